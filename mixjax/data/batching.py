"""Batches as a pure function of the step, so that resuming needs the step number only."""

import jax
import jax.numpy as jnp

from mixjax import checks
from mixjax.data.datasets import Split
from mixjax.typing import Array, Key


def batch_indices(key: Key, step: Array | int, num_examples: int, batch_size: int) -> Array:
    """Which examples step `step` sees: `[batch_size]` int32; for use inside `jit` or `scan`.

    An epoch is `num_examples // batch_size` steps over one random order of the examples, in which
    none comes twice; what is left over of an order is not seen in that epoch. Epoch `e` has the
    order of `fold_in(key, e)`.

    Args:
      key: random key of the whole run, the same at every step.
      step: `[]` number of the step, counted from 0 over all epochs.
      num_examples: number of examples, static.
      batch_size: examples per step, at most `num_examples`, static.

    Raises:
      ValueError: if `batch_size` or `step` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import data
      >>> key = jax.random.key(0)
      >>> seen = jnp.concatenate([data.batch_indices(key, step, 6, 2) for step in range(3)])
      >>> jnp.sort(seen)  # an epoch of three steps sees each example once
      Array([0, 1, 2, 3, 4, 5], dtype=int32)
    """
    checks.at_least(1, num_examples=num_examples, batch_size=batch_size)
    checks.at_least(0, step=step)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples, {num_examples}, got {batch_size}"
        )
    epoch, step = jnp.divmod(jnp.asarray(step, jnp.int32), num_examples // batch_size)
    # One sort of one draw; equal draws, one pair in 2^32, keep their order: no example comes twice.
    order = jnp.argsort(jax.random.bits(jax.random.fold_in(key, epoch), (num_examples,)))
    return jax.lax.dynamic_slice(order, (step * batch_size,), (batch_size,)).astype(jnp.int32)


def take(split: Split, indices: Array) -> Split:
    """The examples at `indices` `[B]`: images `[B, H, W, C]` and labels `[B]`."""
    return Split(split.images[indices], split.labels[indices])
