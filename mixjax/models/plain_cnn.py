"""Two convolutions, two poolings and dense layers: the classifiers of Hamm 2018.

Inputs are in [0, 1] and rescaled to [-1, 1] here. Nothing depends on the batch.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn

from mixjax import checks
from mixjax.models import conv as convolutions
from mixjax.models.initialization import Conv, Dense, he_normal
from mixjax.models.model import Model, from_linen
from mixjax.typing import Array


def mnist_cnn(
    num_classes: int = 10,
    width: int = 32,
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    conv: Callable[..., Array] = convolutions.unrolled,
) -> Model:
    """5 x 5 convolutions of `width` and `2 width` channels, a dense layer of `16 width` units.

    Each convolution is followed by ReLU and a maximum over 2 x 2; 1,663,370 parameters by default.

    Args:
      num_classes: number of classes `C`.
      width: channels of the first convolution.
      input_shape: `(H, W, channels)` of one example.
      conv: the convolution, one of `conv.unrolled`, `banded`, `scanned` and `grouped`.

    Returns:
      The `Model`.

    Raises:
      ValueError: if a size is below 1.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      appendix A.

    Example:
      >>> import jax
      >>> from mixjax import models
      >>> model = models.mnist_cnn()
      >>> variables = jax.eval_shape(model.init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      1663370
    """
    checks.at_least(1, num_classes=num_classes, width=width)
    module = _PlainCNN((width, 2 * width), 2, (16 * width, num_classes), conv)
    return from_linen(module, input_shape, draw=he_normal)


def cifar_cnn(
    num_classes: int = 10,
    width: int = 64,
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    conv: Callable[..., Array] = convolutions.unrolled,
) -> Model:
    """Two 5 x 5 convolutions of `width` channels, dense layers of `6 width` and `3 width` units.

    Each convolution is followed by ReLU and a maximum over 3 x 3 at every second pixel.

    Args:
      num_classes: number of classes `C`.
      width: channels of the convolutions.
      input_shape: `(H, W, channels)` of one example.
      conv: the convolution, one of `conv.unrolled`, `banded`, `scanned` and `grouped`.

    Returns:
      The `Model`.

    Raises:
      ValueError: if a size is below 1.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      appendix B: the network of TensorFlow's tutorial without local response normalisation.
    """
    checks.at_least(1, num_classes=num_classes, width=width)
    module = _PlainCNN((width, width), 3, (6 * width, 3 * width, num_classes), conv)
    return from_linen(module, input_shape, draw=he_normal)


def max_pool(x: Array, window: int) -> Array:
    """Maximum over `window x window` pixels at every second one, with borders as if padded.

    Args:
      x: `[B, H, W, C]`.
      window: pixels along each side, at least 2.

    Returns:
      `[B, ceil(H / 2), ceil(W / 2), C]`. Made of slices: the gradient of a windowed reduction is
      30 times as slow on a CPU.
    """
    sizes = [-(-size // 2) for size in x.shape[1:3]]
    missing = [
        max(2 * (new - 1) + window - old, 0) for new, old in zip(sizes, x.shape[1:3], strict=True)
    ]
    borders = [(0, 0), *((total // 2, total - total // 2) for total in missing), (0, 0)]
    # The border never wins: below any number, as the padding of a windowed maximum.
    if any(missing):
        x = jnp.pad(x, borders, constant_values=-jnp.inf)
    # The maximum of shifted slices instead of `reduce_window`: its gradient took 130 ms on a CPU
    # (MNIST classifier at half width), that of four slices takes 3.7.
    height, width = (2 * size - 1 for size in sizes)
    parts = [
        x[:, row : row + height : 2, column : column + width : 2]
        for row in range(window)
        for column in range(window)
    ]
    return functools.reduce(jnp.maximum, parts)


class _PlainCNN(nn.Module):
    channels: Sequence[int]
    window: int
    units: Sequence[int]
    conv: Callable[..., Array]

    @nn.compact
    def __call__(self, x):
        x = 2.0 * x - 1.0
        for channels in self.channels:
            x = Conv(channels, (5, 5), conv_general_dilated=self.conv)(x)
            # The same numbers as the maximum of the ReLU, at a quarter of the pixels.
            x = nn.relu(max_pool(x, self.window))
        x = x.reshape(x.shape[0], -1)
        for units in self.units[:-1]:
            x = nn.relu(Dense(units)(x))
        return Dense(self.units[-1])(x)
