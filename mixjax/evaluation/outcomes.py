"""Pure functions of a batch: the points that an attack finds, and who is right there.

To be compiled and spread over devices by the caller. An example's randomness depends on its number
in the data set alone, so its outcome depends neither on the batch it is in nor on the order of the
batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import attacks, mixture
from mixjax.batch import example_keys, to_float
from mixjax.evaluation.inputs import UNIT, check_batch, check_members
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn


class Answers(NamedTuple):
    """Who is right at the `B` points of a batch.

    Attributes:
      correct: `[B, L]` whether each member is right.
      averaged: `[B]` whether the class of highest mean probability is right.
      is_nan: `[B, L]` whether each member answers NaN, which is never right.
    """

    correct: Array | np.ndarray
    averaged: Array | np.ndarray
    is_nan: Array | np.ndarray


class Validation(NamedTuple):
    """Exact expected accuracies per example, `[N]` each; their means are the scores.

    Attributes:
      clean: at the example itself.
      robust: the lower one of the example and its attacked version.
    """

    clean: Array
    robust: Array


def answers(logits_fn: LogitsFn, weights: Array, points: Array, labels: Array) -> Answers:
    """Asks all members at the points of a batch.

    Args:
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      points: `[B, ...]` inputs, floats within bounds or uint8 in [0, 255].
      labels: `[B]` integer classes.
    """

    def one(x, label):
        logits = logits_fn(x)
        is_nan = jnp.any(jnp.isnan(logits), axis=-1)
        # The attacks leave such members out of the mean; whoever averages has NaN for an answer.
        averages = ~jnp.any(is_nan & (weights > 0))
        mean = mixture.correct(mixture.log_probs(logits, weights), label)
        return Answers(mixture.correct(logits, label), averages & mean, is_nan)

    return jax.vmap(one)(to_float(points), labels)


def run_keys(key: Key, number: int | Array, run: int | Array, indices: Array) -> Key:
    """The random key `[B]` of each example in one run of attack `number`."""

    def one(key):
        return jax.random.fold_in(jax.random.fold_in(key, number), run)

    return jax.vmap(one)(example_keys(key, indices))


def validate(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    images: Array,
    labels: Array,
    indices: Array,
    *,
    threat: Threat,
    num_steps: int = 20,
    step_size: float,
    bounds: Bounds = UNIT,
) -> Validation:
    """Exact expected accuracy, clean and under one run of PGD on the expected loss.

    An upper bound to choose checkpoints by, at a twelfth of the cost of `pgd_attacks`. The attacker
    keeps the clean example where PGD found nothing worse.

    Args:
      key: random key of the data set; the example of number `n` uses `fold_in(key, n)`.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[B, ...]` inputs, floats within bounds or uint8 in [0, 255].
      labels: `[B]` integer classes.
      indices: `[B]` numbers of the examples in the data set.
      threat: the allowed perturbations, in the units of the inputs.
      num_steps: gradient steps.
      step_size: length of one step in the threat's norm.
      bounds: lowest and highest value of an input.

    Returns:
      `Validation` of the batch.

    Raises:
      ValueError: if `num_steps` or `step_size` is not positive, or images, labels or weights are
        not what they should be; of traced values only shapes and dtypes are known.
    """
    check_batch(images, labels, bounds)
    check_members(logits_fn, weights, images.shape[1:], labels)

    def one(key, x, label):
        found, _ = attacks.on_mixture(
            attacks.pgd,
            key,
            logits_fn,
            weights,
            x,
            label,
            threat,
            bounds=bounds,
            num_steps=num_steps,
            step_size=step_size,
        )
        clean, robust = (mixture.accuracy(logits_fn(at), label, weights) for at in (x, found))
        return Validation(clean, jnp.minimum(clean, robust))

    return jax.vmap(one)(run_keys(key, 0, 0, indices), to_float(images), labels)
