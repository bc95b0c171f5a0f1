"""Losses of one member on one example, never reduced.

`logits` are `[C]`, `label` is an integer `[]`; `jax.vmap` adds members and examples. The sign is
the defender's: the attacker ascends. A margin is the opposite: positive means correct.
"""

import jax
import jax.numpy as jnp
import optax

from mixjax import _check, mixture
from mixjax.typing import Array

_SMALLEST_SPREAD = 1e-12  # of logits that differ; far below the spacing of float32 around 1


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
    """`logits[label] - max of the others`: `[C], [] -> []`; positive means correct.

    Raises:
      ValueError: if there is one class only, which nothing can lead.
    """
    _check.at_least(2, num_classes=logits.shape[-1])
    others = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
    return logits[label] - jnp.max(others)


def dlr(logits: Array, label: Array) -> Array:
    """`-(z_label - max of the others) / (z_1st - z_3rd)`, logits sorted downwards: `[C], [] -> []`.

    Unlike the cross-entropy it does not change when the logits are shifted or multiplied by a
    positive number, so that overconfident networks do not hide their gradients. It lies in
    [-1, 0] where the label is ahead and is positive where it is behind.

    With three classes the denominator is the whole spread. With two the quotient could only be
    -1 or 1, useless to an attacker: there it is the plain `-margin`. Where the three highest logits
    tie the denominator is 1e-12, so that value and gradient stay finite.

    Raises:
      ValueError: if there is one class only.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, equation 6.
    """
    if logits.shape[-1] < 3:
        return -margin(logits, label)
    highest, _ = jax.lax.top_k(logits, 3)
    return -margin(logits, label) / jnp.maximum(highest[0] - highest[2], _SMALLEST_SPREAD)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """`-(z_label - z_target) / (z_1st - (z_3rd + z_4th) / 2)`: `[C], [], [] -> []`.

    As `dlr`, but of the lead over one class: positive only where `target` is ahead of the label, so
    that a positive value always means an error.

    With three classes there is no fourth and the denominator is the whole spread; with two it is
    the plain `z_target - z_label`.

    References:
      Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, 2020, equation 7.
    """
    lead = logits[label] - logits[target]
    if logits.shape[-1] < 3:
        return -lead
    highest, _ = jax.lax.top_k(logits, min(logits.shape[-1], 4))
    return -lead / jnp.maximum(highest[0] - jnp.mean(highest[2:]), _SMALLEST_SPREAD)


def zero_one(logits: Array, label: Array) -> Array:
    """1 unless the label is strictly ahead of every other class: `[C], [] -> []`."""
    return 1.0 - mixture.correct(logits, label)
