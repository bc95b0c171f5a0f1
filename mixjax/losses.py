"""Losses of one member on one example, never reduced.

`logits` are `[C]`, `label` is an integer `[]`; `jax.vmap` adds members and examples. The sign is
the defender's: the attacker ascends. A margin is the opposite: positive means correct.
"""

import jax
import jax.numpy as jnp
import optax

from mixjax import mixture
from mixjax.typing import Array


def cross_entropy(logits: Array, label: Array) -> Array:
    """`-log p(label)`: `[C], [] -> []`, in nats."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)


def trades(clean_logits: Array, logits: Array) -> Array:
    """`KL(p(x) || p(x'))`, what an attacker raises in TRADES, in nats.

    Args:
      clean_logits: `[C]` logits on the clean input `x`.
      logits: `[C]` logits on the attacked input `x'`.

    Returns:
      `[]` divergence, 0 where both agree.

    References:
      Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019.
    """
    log_p, log_q = jax.nn.log_softmax(clean_logits), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def margin(logits: Array, label: Array) -> Array:
    """`logits[label] - max of the others`: `[C], [] -> []`; positive means correct."""
    others = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
    return logits[label] - jnp.max(others)


def zero_one(logits: Array, label: Array) -> Array:
    """1 unless the label is strictly ahead of every other class: `[C], [] -> []`."""
    return 1.0 - mixture.correct(logits, label)
