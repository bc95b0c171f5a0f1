"""A mixture of classifiers: one of `L` members is drawn with probabilities `weights` per question.

Everything here is about one example and exact: the risk of a mixture at a point is a finite sum,
so nothing is ever estimated by drawing members; and written as one, because a matrix product would
round its factors to a few digits on accelerators.
"""

import jax
import jax.numpy as jnp

from mixjax import _check
from mixjax.typing import Array, Key


def expected_loss(losses_of_members: Array, weights: Array) -> Array:
    """`sum_k weights_k losses_k`: what a defender who draws a member pays on average.

    Args:
      losses_of_members: `[L]` loss of each member on one example.
      weights: `[L]` probabilities of the members.

    Returns:
      `[]` expected loss.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 2.
    """
    return jnp.sum(weights * losses_of_members)


def accuracy(logits: Array, label: Array, weights: Array) -> Array:
    """`sum_k weights_k 1[member k is correct]`: the exact probability of a correct answer.

    Args:
      logits: `[L, C]` logits of the members on one example.
      label: `[]` integer class.
      weights: `[L]` probabilities of the members.

    Returns:
      `[]` probability in [0, 1].

    Raises:
      ValueError: if `weights` is not on the simplex.
    """
    _check.simplex(weights=weights)
    return jnp.sum(weights * correct(logits, label))


def correct(logits: Array, label: Array) -> Array:
    """Whether the label's logit exceeds every other: `[..., C], [] -> [...]`.

    A tie and a NaN are errors: nobody may count on how `argmax` breaks them.
    """
    is_label = jnp.arange(logits.shape[-1]) == label
    others = jnp.where(is_label, -jnp.inf, logits)
    return logits[..., label] > jnp.max(others, axis=-1)


def log_probs(logits: Array, weights: Array) -> Array:
    """`log sum_k weights_k softmax(logits_k)`: log of the mean probability of each class.

    Args:
      logits: `[L, C]` logits of the members on one example.
      weights: `[L]` probabilities of the members; those of weight 0 do not count, and
        the derivative in their weight is 0.

    Returns:
      `[C]` log-probabilities of the answer of a drawn member, and of the averaged ensemble.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(log_p, axis=0, b=weights[:, None])


def predict(key: Key, logits: Array, weights: Array) -> Array:
    """Draws a member and returns its answer.

    Args:
      key: random key; consumed.
      logits: `[L, C]` logits of the members on one example.
      weights: `[L]` probabilities of the members.

    Returns:
      `[]` integer class.

    Raises:
      ValueError: if `weights` is not on the simplex.
    """
    _check.simplex(weights=weights)
    member = jax.random.choice(key, logits.shape[0], p=weights)
    return jnp.argmax(logits[member])
