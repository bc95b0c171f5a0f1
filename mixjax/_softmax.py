"""Softmax and its relatives, finite for finite logits however they are compiled.

XLA may compute the logits twice, once for their maximum and once for what the maximum is subtracted
from, and round them differently. A largest logit of about 1e12 may then differ from the maximum by
1e5: above it, where its exponential is infinite, or below, where all exponentials are 0. The loss
of a finite point would be infinite, and an attack would keep that point as its best.
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


def probabilities(logits: Array) -> Array:
    """`exp(logits) / sum_c exp(logits_c)`: `[..., C] -> [..., C]`."""
    return jnp.exp(log_softmax(logits))


@jax.custom_jvp
def _below_highest(logits):
    """`logits - highest`, none above 0 and one 0, and `highest`, 0 where that is not finite."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    is_finite = jnp.isfinite(highest)
    highest = jnp.where(is_finite, highest, 0.0)
    classes = jax.lax.broadcasted_iota(int, logits.shape, logits.ndim - 1)
    is_highest = classes == jnp.argmax(logits, axis=-1, keepdims=True)
    below = logits - highest
    # What should be 0 is set to 0, whatever a second rounding of the logits made of it; nothing may
    # lie above the highest.
    return jnp.where(is_finite & (is_highest | (below > 0)), 0.0, below), highest


@_below_highest.defjvp
def _below_highest_jvp(primals, tangents):
    """As if `highest` were constant: what is made of the two does not depend on its value."""
    below, highest = _below_highest(*primals)
    return (below, highest), (tangents[0], jnp.zeros_like(highest))
