"""A batch of examples, perhaps spread over devices: its keys, means, pixels and cores.

An example gets the same random key, and a batch the same mean, whatever else is computed beside
it and on however many devices.
"""

import os
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks
from mixjax.typing import Array, Bounds, Key, PyTree

_Images = TypeVar("_Images", Array, np.ndarray)


def example_keys(key: Key, indices: Array) -> Key:
    """One key for each example: a function of `key` and of its number in the data set alone.

    Under `vmap` some generators (`rbg`) draw for all examples at once. Their keys are folded into
    one of threefry; a key of threefry is used as it is.

    Args:
      key: random key; consumed.
      indices: `[B]` whole numbers of the examples, such as their places in the data set.

    Returns:
      `[B]` typed keys.

    Raises:
      ValueError: if `key` is not a single key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import batch
      >>> keys = batch.example_keys(jax.random.key(0), jnp.array([7, 3]))
      >>> keys.shape, bool(keys[1] == jax.random.fold_in(jax.random.key(0), 3))
      ((2,), True)
    """
    checks.key(key=key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    # Of threefry a key's numbers do not depend on what else is drawn beside it, and so an example's
    # attack does not depend on its batch.
    first = jax.random.key(0, impl="threefry2x32")
    if key.dtype != first.dtype:
        words = jax.random.key_data(key)
        key = first
        for place in range(len(words)):
            key = jax.random.fold_in(key, words[place])
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def example_indices(num_here: int, axis_name: str | None = None) -> Array:
    """`[num_here]` places in the whole batch of this device's examples, one device after another.

    Args:
      num_here: number of examples of this device's part.
      axis_name: mapped axis over which the batch is spread; None: all of it is here.
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_here
    return first + jnp.arange(num_here)


def mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Means over devices of floating-point leaves; random keys and counters are each device's.

    Args:
      axis_name: mapped axis over which a batch is spread; None: `tree` is the mean already.
      tree: means over parts of equal size.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import batch
      >>> parts = jnp.array([1.0, 3.0])  # of two devices, here mapped
      >>> jax.vmap(lambda part: batch.mean_over("data", part), axis_name="data")(parts)
      Array([2., 2.], dtype=float32)
    """
    if axis_name is None:
        return tree

    def mean(leaf):
        is_real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jax.lax.pmean(leaf, axis_name) if is_real else leaf

    return jax.tree.map(mean, tree)


def low_and_high(bounds: Any) -> Bounds:
    """Bounds of an input in the form that compiled code takes: numbers stay numbers, lists do not.

    Args:
      bounds: a pair of numbers, or of arrays or lists that fit one input.

    Raises:
      ValueError: if it is no pair, or the first is not below the second everywhere.

    Example:
      >>> import numpy as np
      >>> from mixjax import batch
      >>> batch.low_and_high(np.array([0.0, 1.0]))
      (0.0, 1.0)
    """
    checks.increasing(bounds=bounds)
    low, high = (end if isinstance(end, jax.Array) else np.asarray(end) for end in bounds)
    return _number_or_array(low), _number_or_array(high)


def _number_or_array(end: Any) -> Any:
    return end.item() if isinstance(end, np.ndarray) and end.ndim == 0 else end


def to_float(images: _Images) -> _Images:
    """`images / 255`: uint8 `[...]` to float32 in [0, 1]; floating point becomes float32 as it is.

    A NumPy array stays a NumPy array.

    Raises:
      ValueError: if `images` are of another type: which number is white cannot be known.

    Example:
      >>> from mixjax import batch
      >>> import jax.numpy as jnp
      >>> batch.to_float(jnp.array([0, 255], jnp.uint8))
      Array([0., 1.], dtype=float32)
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.float32)
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}")
    return images.astype(jnp.float32) / 255


def cores() -> int:
    """How many cores a batch is computed on by XLA's CPU backend: those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
