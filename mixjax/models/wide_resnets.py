"""Residual networks that normalise before each convolution: WideResNet and PreActResNet18."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mixjax import checks
from mixjax.models import conv as convolutions
from mixjax.models.initialization import Dense, he_normal
from mixjax.models.model import Model, from_linen
from mixjax.models.resnet import CHANNEL_MEAN, CHANNEL_STD, check_std, layers, normalized
from mixjax.typing import Array

_STEM = 16  # channels of a WideResNet's first convolution


def wide_resnet(
    num_classes: int = 10,
    depth: int = 28,
    width: int = 10,
    *,
    dropout: float = 0.0,
    negative_slope: float = 0.0,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    mean: float | Sequence[float] = CHANNEL_MEAN,
    std: float | Sequence[float] = CHANNEL_STD,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    conv: Callable[..., Array] = convolutions.unrolled,
) -> Model:
    """WideResNet-depth-width: three stages of `(depth - 4) / 6` blocks, no bottleneck.

    Pinot et al. use `dropout=0.3` and `negative_slope=0.1`. Dropout needs a key,
    `model.apply(variables, x, train=True, key=key)`, and without one drops nothing out.

    Args:
      num_classes: number of classes `C`.
      depth: number of convolutions in sequence and the last layer, `6 n + 4`.
      width: the stages have `16 width`, `32 width` and `64 width` channels.
      dropout: probability of dropping an activation between a block's convolutions in training.
      negative_slope: of the activation below 0; 0 is ReLU.
      input_shape: `(H, W, channels)` of one example.
      mean: subtracted from the input, per channel or for all.
      std: divides the input after that.
      dtype: of the convolutions; parameters, statistics and logits are float32.
      axis_name: mapped axis over which BatchNorm averages its statistics in training.
      conv: the convolution, one of `conv.unrolled`, `banded`, `scanned` and `grouped`.

    Returns:
      The `Model`.

    Raises:
      ValueError: if a size is below 1, `depth` is not `6 n + 4`, `dropout` is not in [0, 1),
        `negative_slope` is negative or a `std` is not positive.

    References:
      Zagoruyko and Komodakis, Wide residual networks, 2016, table 1 and section 2.4.
    """
    checks.at_least(1, num_classes=num_classes, width=width)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 for a whole n of at least 1, got {depth}")
    module = _PreActivationResNet(
        num_classes=num_classes,
        stem=_STEM,
        widths=(_STEM * width, 2 * _STEM * width, 4 * _STEM * width),
        num_blocks=(depth - 4) // 6,
        final_norm=True,
        dropout=dropout,
        negative_slope=negative_slope,
        mean=mean,
        std=std,
        dtype=dtype,
        axis_name=axis_name,
        conv=conv,
    )
    return _model(module, input_shape)


def wide_resnet_28_10(num_classes: int = 10, **settings: Any) -> Model:
    """`wide_resnet(num_classes, 28, 10)`; 36,479,194 parameters for ten classes.

    Settings, result and errors are those of `wide_resnet`.

    Example:
      >>> import jax
      >>> from mixjax import models
      >>> variables = jax.eval_shape(models.wide_resnet_28_10().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      36479194
    """
    return wide_resnet(num_classes, 28, 10, **settings)


def preact_resnet18(
    num_classes: int = 10,
    width: int = 64,
    *,
    final_norm: bool = True,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    mean: float | Sequence[float] = CHANNEL_MEAN,
    std: float | Sequence[float] = CHANNEL_STD,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    conv: Callable[..., Array] = convolutions.unrolled,
) -> Model:
    """ResNet18 for 32 x 32 images with BatchNorm and ReLU before the convolutions.

    All other arguments, the result and the errors are those of `resnet18`.

    Args:
      num_classes: number of classes `C`.
      width: channels of the first stage.
      final_norm: BatchNorm and ReLU before the last layer, too; some published weights have none.

    References:
      He et al., Identity mappings in deep residual networks, 2016, figure 1b.

    Example:
      >>> import jax
      >>> from mixjax import models
      >>> variables = jax.eval_shape(models.preact_resnet18().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      11172170
    """
    checks.at_least(1, num_classes=num_classes, width=width)
    module = _PreActivationResNet(
        num_classes=num_classes,
        stem=width,
        widths=(width, 2 * width, 4 * width, 8 * width),
        num_blocks=2,
        final_norm=final_norm,
        dropout=0.0,
        negative_slope=0.0,
        mean=mean,
        std=std,
        dtype=dtype,
        axis_name=axis_name,
        conv=conv,
    )
    return _model(module, input_shape)


def _model(module, input_shape):
    checks.fraction(dropout=module.dropout)
    checks.non_negative(negative_slope=module.negative_slope)
    check_std(module.std)
    return from_linen(module, input_shape, draw=he_normal)


class _PreActivationResNet(nn.Module):
    """`[B, H, W, channels] -> [B, num_classes]`; stages after the first halve the image."""

    num_classes: int
    stem: int
    widths: tuple[int, ...]
    num_blocks: int
    final_norm: bool
    dropout: float
    negative_slope: float
    mean: float | Sequence[float]
    std: float | Sequence[float]
    dtype: Any
    axis_name: str | None
    conv: Callable[..., Array]

    @nn.compact
    def __call__(self, x, train=False):
        conv, norm = layers(self.dtype, self.axis_name, self.conv, train)
        activate = partial(nn.leaky_relu, negative_slope=self.negative_slope)
        drop = nn.Dropout(self.dropout, deterministic=not (train and self.has_rng("dropout")))
        x = normalized(x, self.mean, self.std).astype(self.dtype)
        x = conv(self.stem, (3, 3))(x)
        for stage, features in enumerate(self.widths):
            for block in range(self.num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Block(features, stride, conv, norm, activate, drop)(x)
        if self.final_norm:
            x = activate(norm()(x))
        x = x.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes)(x)


class _Block(nn.Module):
    """Two activated 3 x 3 convolutions beside the identity, or a projection of the activation."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activate: Callable[[Array], Array]
    drop: nn.Module

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        activated = self.activate(self.norm()(x))
        y = self.conv(self.features, (3, 3), strides, padding=((1, 1), (1, 1)))(activated)
        y = self.activate(self.norm()(y))
        y = self.conv(self.features, (3, 3))(self.drop(y))
        if self.stride > 1 or x.shape[-1] != self.features:
            x = self.conv(self.features, (1, 1), strides)(activated)
        return x + y
