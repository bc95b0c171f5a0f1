"""Residual networks for small images: ResNet18 for 32 x 32, and a small one for digits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mixjax import checks
from mixjax.models import conv as convolutions
from mixjax.models.initialization import Conv, Dense, he_normal
from mixjax.models.model import Model, from_linen
from mixjax.typing import Array, PyTree

_MOMENTUM = 0.9  # of the running statistics: new = 0.9 old + 0.1 batch
_VARIANCE_FLOOR = 1e-5
CHANNEL_MEAN, CHANNEL_STD = 0.5, 0.25  # roughly those of natural images in [0, 1]


def resnet18(
    num_classes: int = 10,
    width: int = 64,
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    mean: float | Sequence[float] = CHANNEL_MEAN,
    std: float | Sequence[float] = CHANNEL_STD,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    conv: Callable[..., Array] = convolutions.unrolled,
) -> Model:
    """ResNet18 for 32 x 32 images: 3 x 3 stem, four stages of two blocks, no max pooling.

    Args:
      num_classes: number of classes `C`.
      width: channels of the first stage; the others have 2, 4 and 8 times as many. At 64, with
        three channels in and ten classes, there are 11,173,962 parameters.
      input_shape: `(H, W, channels)` of one example.
      mean: subtracted from the input, per channel or for all.
      std: divides the input after that.
      dtype: of the convolutions; parameters, statistics and logits are float32.
      axis_name: mapped axis over which BatchNorm averages its statistics in training.
      conv: the convolution, one of `conv.unrolled`, `banded`, `scanned` and `grouped`.

    Returns:
      The `Model`.

    Raises:
      ValueError: if a size is below 1 or a `std` is not positive.

    References:
      He et al., Deep residual learning for image recognition, 2016, table 1 and section 4.2.

    Example:
      >>> import jax
      >>> from mixjax import models
      >>> model = models.resnet18()
      >>> variables = jax.eval_shape(model.init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      11173962
    """
    return _residual(
        num_classes, input_shape, (2, 2, 2, 2), width, mean, std, dtype, axis_name, conv
    )


def small_resnet(
    num_classes: int = 10,
    width: int = 16,
    *,
    input_shape: tuple[int, int, int] = (8, 8, 1),
    mean: float | Sequence[float] = CHANNEL_MEAN,
    std: float | Sequence[float] = CHANNEL_STD,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    conv: Callable[..., Array] = convolutions.unrolled,
) -> Model:
    """ResNet of two blocks for 8 x 8 and 28 x 28 images; 19,706 parameters by default.

    Arguments, result and errors are those of `resnet18`.
    """
    return _residual(num_classes, input_shape, (1, 1), width, mean, std, dtype, axis_name, conv)


def _residual(num_classes, input_shape, stages, width, mean, std, dtype, axis_name, conv) -> Model:
    checks.at_least(1, num_classes=num_classes, width=width)
    check_std(std)
    module = _ResNet(num_classes, stages, width, mean, std, dtype, axis_name, conv)
    model = from_linen(module, input_shape, draw=he_normal)
    if dtype == jnp.float32:
        return model  # nothing is converted, and folding gains nothing on a CPU
    frozen = from_linen(module.clone(is_frozen=True), input_shape)

    def apply(variables, x, *, train=False, key=None):
        """As the network with its BatchNorms, unless these are folded into the convolutions."""
        if "batch_stats" in variables:
            return model.apply(variables, x, train=train, key=key)
        if train:
            raise ValueError("variables must not be frozen in training")
        return frozen.apply(variables, x)

    return Model(model.init, apply, partial(_folded, dtype=dtype))


def _folded(variables: PyTree, dtype: Any) -> PyTree:
    """The variables without BatchNorms, which follow a convolution each, and in `dtype`."""

    def fold(params, statistics):
        found = {}
        for name, layer in params.items():
            kind, _, number = name.rpartition("_")
            if kind == "Conv":
                norm = f"BatchNorm_{number}"
                scale = params[norm]["scale"] * lax.rsqrt(statistics[norm]["var"] + _VARIANCE_FLOOR)
                bias = params[norm]["bias"] - statistics[norm]["mean"] * scale
                found[name] = {
                    "kernel": (layer["kernel"] * scale.reshape(1, 1, 1, -1)).astype(dtype),
                    "bias": bias.astype(dtype),
                }
            elif kind == "_Block":
                found[name] = fold(layer, statistics[name])
            elif kind != "BatchNorm":
                found[name] = layer
        return found

    return {"params": fold(variables["params"], variables["batch_stats"])}


def check_std(std: float | Sequence[float]) -> None:
    """Raises `ValueError` unless every standard deviation is positive."""
    for value in std if isinstance(std, Sequence) else (std,):
        checks.positive(std=value)


@jax.custom_jvp
def relu_of_output(x: Array) -> Array:
    """`max(x, 0)`, whose gradient reads its result.

    A GPU then computes convolution, bias, sum and ReLU in one kernel: what was before the ReLU is
    not needed any more. The barrier keeps the compiler from writing one in terms of the other.
    """
    return lax.optimization_barrier(jnp.maximum(x, 0))


@relu_of_output.defjvp
def _relu_of_output_jvp(primals, tangents):
    y = relu_of_output(*primals)
    return y, jnp.where(y > 0, tangents[0], 0)


def layers(
    dtype: Any, axis_name: str | None, conv: Callable[..., Array], train: bool
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Constructors of the convolutions, without bias, and of the BatchNorms of a network."""
    norm = partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=_MOMENTUM,
        epsilon=_VARIANCE_FLOOR,
        dtype=dtype,
        axis_name=axis_name if train else None,
    )
    return partial(Conv, use_bias=False, dtype=dtype, conv_general_dilated=conv), norm


def normalized(x: Array, mean: float | Sequence[float], std: float | Sequence[float]) -> Array:
    """`(x - mean) / std`, each a number or one per channel: `[B, H, W, channels]`."""
    shift, scale = (
        jnp.broadcast_to(jnp.asarray(value, x.dtype), (1, 1, 1, x.shape[-1]))
        for value in (mean, std)
    )
    return (x - shift) / scale


class _ResNet(nn.Module):
    """`[B, H, W, channels] -> [B, num_classes]`; stage `i` has `width * 2**i` channels."""

    num_classes: int
    stages: tuple[int, ...]
    width: int
    mean: float | Sequence[float]
    std: float | Sequence[float]
    dtype: Any
    axis_name: str | None
    conv: Callable[..., Array]
    is_frozen: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        conv, norm = layers(self.dtype, self.axis_name, self.conv, train)
        relu = nn.relu
        if self.is_frozen:
            conv, norm, relu = partial(conv, use_bias=True), _nothing, relu_of_output
        x = normalized(x, self.mean, self.std).astype(self.dtype)
        x = relu(norm()(conv(self.width, (3, 3))(x)))
        for stage, num_blocks in enumerate(self.stages):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Block(self.width * 2**stage, stride, conv, norm, relu)(x)
        # Averages and logits in float32 whatever the convolutions' dtype: sixteen bits lose the
        # last digits of a mean over pixels, and attacks compare logits that are close to each
        # other.
        x = x.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes)(x)


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside the identity, or a projection where the shape changes."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable[[Array], Array]]
    relu: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        padding = ((1, 1), (1, 1))
        y = self.conv(self.features, (3, 3), strides, padding=padding)(x)
        y = self.relu(self.norm()(y))
        y = self.norm()(self.conv(self.features, (3, 3))(y))
        if self.stride > 1 or x.shape[-1] != self.features:
            x = self.norm()(self.conv(self.features, (1, 1), strides)(x))
        return self.relu(x + y)


def _nothing():
    """In the place of a BatchNorm that is folded into its convolution."""
    return lambda x: x
