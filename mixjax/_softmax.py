"""Softmax and its kin, finite for finite logits however they are compiled.

XLA may compute the logits twice, for their highest and for what is subtracted from it, with another
rounding each time. The highest of logits about 1e12 then lies 1e5 above itself, and its exponential
is infinite: an infinite loss of a finite point, which an attack would keep as its best.
"""

import jax
import jax.numpy as jnp

from mixjax.typing import Array


def logsumexp(logits: Array) -> Array:
    """`log sum_c exp(logits_c)`: `[..., C] -> [...]`; -inf where all are."""
    below, highest = _below_highest(logits)
    return jnp.log(jnp.sum(jnp.exp(below), axis=-1)) + highest[..., 0]


def log_softmax(logits: Array) -> Array:
    """`logits - logsumexp(logits)`: `[..., C] -> [..., C]`."""
    below, _ = _below_highest(logits)
    return below - jnp.log(jnp.sum(jnp.exp(below), axis=-1, keepdims=True))


def _below_highest(logits):
    """`logits - highest`, none above 0, and `highest`, 0 where that is not finite."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    is_finite = jnp.isfinite(highest)
    highest = jnp.where(is_finite, highest, 0.0)
    below = logits - highest
    # Subtracted instead of cut off: the derivative at the highest stays 1.
    excess = jnp.where(is_finite, jnp.maximum(below, 0.0), 0.0)
    return below - jax.lax.stop_gradient(excess), highest
