"""Initial variables from a single draw: each draw of a new shape costs a compilation of its own."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixjax.typing import Key, PyTree

# Flax traces a layer's own initialiser in every call, to compare shapes: where `he_normal` draws,
# the one that takes least.
Conv = functools.partial(nn.Conv, kernel_init=nn.initializers.zeros)
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)

_CONSTANTS = {"bias": 0.0, "scale": 1.0, "mean": 0.0, "var": 1.0}


def he_normal(key: Key, shapes: PyTree) -> PyTree:
    """Normal kernels, one draw split up: `std = sqrt(2 / fan_in)` for convolutions.

    Dense kernels, whose outputs are logits, have `std = 1 / sqrt(fan_in)`; biases and means are
    0, scales and variances 1.

    Args:
      key: random key; consumed.
      shapes: `jax.ShapeDtypeStruct` of each variable, named as Flax does (kernel, bias, scale,
        mean, var).

    Returns:
      The variables.

    References:
      He et al., Delving deep into rectifiers, 2015, eq. 10.
    """
    leaves, structure = jax.tree.flatten_with_path(shapes)
    names = [path[-1].key for path, _ in leaves]
    sizes = [
        math.prod(leaf.shape) if name == "kernel" else 0
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    draw = jax.random.normal(key, (sum(sizes),))
    variables, start = [], 0
    for name, size, (_, leaf) in zip(names, sizes, leaves, strict=True):
        if name == "kernel":
            kernel = draw[start : start + size].reshape(leaf.shape)
            variables.append((_kernel_std(leaf.shape) * kernel).astype(leaf.dtype))
        else:
            variables.append(jnp.full(leaf.shape, _CONSTANTS[name], leaf.dtype))
        start += size
    return jax.tree.unflatten(structure, variables)


def _kernel_std(shape):
    gain = 1.0 if len(shape) == 2 else 2.0
    return math.sqrt(gain / math.prod(shape[:-1]))
