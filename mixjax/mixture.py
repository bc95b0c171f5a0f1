"""A mixture of classifiers: for each input one of `L` members is drawn, by their `weights`.

Everything here is about one example and exact: the risk of a mixture at a point is a finite sum,
so nothing is ever estimated by drawing members. It is written as a sum, because accelerators would
round the factors of a matrix product to a few digits.

A member of weight 0 does not count, whatever it answers. A member that answers NaN is wrong, with
any label, and gives no class any probability; from an expected loss, which has no number for it, it
is left out, so that the others can still be attacked.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _softmax, checks
from mixjax.typing import Array, Key


def expected_loss(losses_of_members: Array, weights: Array) -> Array:
    """`sum_k weights_k losses_k`: what a defender who draws a member pays on average.

    Args:
      losses_of_members: `[L]` loss of each member on one example.
      weights: `[L]` probabilities of the members.

    Returns:
      `[]` expected loss of the members whose loss is a number; NaN only where none of those that
      have weight is.

    Raises:
      ValueError: if there is not one weight for each loss.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import mixture
      >>> mixture.expected_loss(jnp.array([1.0, 4.0]), jnp.array([0.75, 0.25]))
      Array(1.75, dtype=float32)
    """
    checks.native_order(losses_of_members=losses_of_members)
    checks.shape(np.shape(losses_of_members), weights=weights)
    losses_of_members, weights = jnp.asarray(losses_of_members), jnp.asarray(weights)
    answers = jnp.any(~jnp.isnan(losses_of_members) & (weights != 0))
    return jnp.where(answers, total_loss(losses_of_members, weights), jnp.nan)


def total_loss(losses_of_members: Array, weights: Array) -> Array:
    """As `expected_loss`, over some of the members: `[L], [L] -> []`; 0 where none answers.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import mixture
      >>> mixture.total_loss(jnp.array([jnp.nan, 4.0]), jnp.array([0.5, 0.25]))
      Array(1., dtype=float32)
    """
    # A weight of 0 keeps its derivative, the loss, where that is finite.
    counts = ~jnp.isnan(losses_of_members) & ((weights != 0) | jnp.isfinite(losses_of_members))
    # NaN is replaced before the product: 0 * NaN is NaN, in the value and in the gradient. A sum
    # and not `jnp.dot`, which accelerators would round to a few digits.
    counted = jnp.where(counts, losses_of_members, 0.0)
    # A member surely right and another surely wrong are weighed, for infinity less infinity is NaN.
    are_opposed = jnp.any(jnp.isposinf(counted)) & jnp.any(jnp.isneginf(counted))
    return jnp.sum(weights * jnp.where(are_opposed, jnp.nan_to_num(counted), counted))


def accuracy(logits: Array, label: Array, weights: Array) -> Array:
    """`sum_k weights_k 1[member k is correct]`: the exact probability of a correct answer.

    Args:
      logits: `[L, C]` logits of the members on one example.
      label: `[]` integer class.
      weights: `[L]` probabilities of the members.

    Returns:
      `[]` probability in [0, 1].

    Raises:
      ValueError: if `weights` is not on the simplex or not one for each member, the logits are not
        `[L, C]` or the label is not one of their classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import mixture
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # the first member alone is right
      >>> mixture.accuracy(logits, 0, jnp.array([0.75, 0.25]))
      Array(0.75, dtype=float32)
    """
    _check_members(logits, weights)
    checks.label(np.shape(logits)[-1], label=label)
    return jnp.sum(jnp.asarray(weights) * correct(logits, label))


def correct(logits: Array, label: Array) -> Array:
    """Whether the label's logit exceeds every other: `[..., C], [] -> [...]`.

    A tie and a NaN are errors: `argmax` would decide them by the order of the classes.

    Args:
      logits: `[..., C]` logits, of one member or of several.
      label: `[]` integer class.

    Raises:
      ValueError: if the label is not one integer class of `C`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import mixture
      >>> mixture.correct(jnp.array([[2.0, 0.0], [1.0, 1.0]]), 0)
      Array([ True, False], dtype=bool)
    """
    checks.native_order(logits=logits)
    logits = jnp.asarray(logits)
    checks.label(logits.shape[-1], label=label)
    is_label = jnp.arange(logits.shape[-1]) == label
    # Strictly, over the others: `argmax` would call a tie right or wrong by the order of the
    # classes.
    return logits[..., label] > jnp.max(logits, axis=-1, where=~is_label, initial=-jnp.inf)


def log_probs(logits: Array, weights: Array) -> Array:
    """`log sum_k weights_k softmax(logits_k)`: log of the mean probability of each class.

    Args:
      logits: `[L, C]` logits of the members on one example.
      weights: `[L]` probabilities of the members; those of weight 0 do not count, and
        the derivative in their weight is 0.

    Returns:
      `[C]` log-probabilities of the classes by the averaged ensemble; -inf for a class to which no
      member of positive weight gives any probability.

    Raises:
      ValueError: if the logits are not `[L, C]` or there is not one weight for each member.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import mixture
      >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> log_probs = mixture.log_probs(logits, jnp.array([0.5, 0.5]))
      >>> [round(float(jnp.exp(each)), 3) for each in log_probs]
      [0.375, 0.625]
    """
    checks.logits("L C", logits=logits)
    checks.shape(np.shape(logits)[:1], weights=weights)
    logits, weights = jnp.asarray(logits), jnp.asarray(weights)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Finite from here on where a member does not count: a gradient of 0 * NaN would be NaN.
    counts = (jnp.isfinite(jnp.max(logits, axis=-1)) & (weights > 0))[:, None]
    log_p = _softmax.log_softmax(jnp.where(counts, logits, 0.0))
    log_p = jnp.where(counts, log_p, -jnp.inf)
    # log-sum-exp over members: class by class the highest is taken out, so that a class which all
    # give a probability of 1e-60 keeps a logarithm and a gradient.
    highest = jax.lax.stop_gradient(jnp.max(log_p, axis=0))
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    mean = jnp.sum(weights[:, None] * jnp.exp(log_p - highest[None]), axis=0)
    known = mean > 0
    return jnp.where(known, jnp.log(jnp.where(known, mean, 1.0)) + highest, -jnp.inf)


def predict(key: Key, logits: Array, weights: Array) -> Array:
    """Draws a member and returns the class that it predicts, the first of equal logits.

    Args:
      key: random key; consumed.
      logits: `[L, C]` logits of the members on one example.
      weights: `[L]` probabilities of the members.

    Returns:
      `[]` integer class.

    Raises:
      ValueError: if `weights` is not on the simplex or not one for each member, or the logits are
        not `[L, C]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import mixture
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> mixture.predict(jax.random.key(0), logits, jnp.array([0.0, 1.0]))
      Array(1, dtype=int32)
    """
    checks.key(key=key)
    _check_members(logits, weights)
    logits, weights = jnp.asarray(logits), jnp.asarray(weights)
    member = jax.random.choice(key, logits.shape[0], p=weights)
    return jnp.argmax(logits[member])


def _check_members(logits, weights):
    checks.simplex(weights=weights)
    checks.logits("L C", logits=logits)
    checks.shape(np.shape(logits)[:1], weights=weights)
