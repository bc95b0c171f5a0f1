"""Who is right at which point: the one table that every figure of an evaluation is read off.

Everything here is a pure function of a batch, to be compiled and spread over devices by the
caller. An example's randomness hangs on its number in the data set alone, so its outcome depends
neither on the batch it is in nor on the order of the batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import losses, mixture
from mixjax.attacks import once, pgd
from mixjax.batch import example_keys, to_float
from mixjax.evaluation.inputs import (
    UNIT,
    bounds_of,
    check_batch,
    check_members,
)
from mixjax.evaluation.suite import Attack, expected_accuracy_of
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn


class Outcomes(NamedTuple):
    """Answers on `N` examples, each at `R + 1` points: the clean one, then one per attack run.

    Attributes:
      members: `[N, R + 1, L]` whether each member is right.
      averaged: `[N, R + 1]` whether the class of highest mean probability is right.
      is_nan: `[N, R + 1, L]` whether each member answers NaN, which is never right.
    """

    members: Array | np.ndarray
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


def evaluate_batch(
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    images: Array,
    labels: Array,
    indices: Array,
    *,
    attacks: Sequence[Attack],
) -> Outcomes:
    """Attacks a batch with every run of `attacks` and notes who is right at the points found.

    Args:
      key: random key of the data set; the example of number `n` uses `fold_in(key, n)`.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[B, ...]` inputs, floats within bounds or uint8 in [0, 255].
      labels: `[B]` integer classes.
      indices: `[B]` numbers of the examples in the data set.
      attacks: static; see `pgd_attacks`.

    Returns:
      The `Outcomes` of the batch, `R` being the number of runs of all attacks.

    Raises:
      ValueError: if images, labels or weights are not what they should be; of traced values only
        shapes and dtypes are known.
    """
    check_batch(images, labels, bounds_of(attacks))
    check_members(logits_fn, weights, images.shape[1:], labels)

    def one(key, x, label):
        def under(place, attack):
            def under_run(run):
                return _after_run(key, place, attack, run, logits_fn, weights, x, label)

            return jax.lax.map(under_run, jnp.arange(len(attack.names)))

        clean = jax.tree.map(lambda value: value[None], _answers(logits_fn, weights, x, label))
        attacked = [under(place, attack) for place, attack in enumerate(attacks)]
        return jax.tree.map(lambda *points: jnp.concatenate(points), clean, *attacked)

    return jax.vmap(one)(example_keys(key, indices), to_float(images), labels)


def evaluate_run(
    key: Key,
    run: Array,
    logits_fn: LogitsFn,
    weights: Array,
    images: Array,
    labels: Array,
    indices: Array,
    *,
    attack: Attack,
    place: int,
) -> Outcomes:
    """One run of one attack on a batch: the column of `evaluate_batch` that belongs to it.

    Args:
      key: random key of the data set; the example of number `n` uses `fold_in(key, n)`.
      run: `[]` number of the run within the attack.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[B, ...]` inputs, floats within bounds or uint8 in [0, 255].
      labels: `[B]` integer classes.
      indices: `[B]` numbers of the examples in the data set.
      attack: static.
      place: static number of the attack in its suite.

    Returns:
      `Outcomes` of `[B, L]`, `[B]` and `[B, L]`.

    Raises:
      ValueError: as `evaluate_batch`.
    """
    check_batch(images, labels, attack.bounds)
    check_members(logits_fn, weights, images.shape[1:], labels)

    def one(key, x, label):
        return _after_run(key, place, attack, run, logits_fn, weights, x, label)

    return jax.vmap(one)(example_keys(key, indices), to_float(images), labels)


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

    An upper bound to choose checkpoints by, at a twelfth of the cost of the suite. The attacker
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
      ValueError: if `num_steps` or `step_size` is not positive, or as `evaluate_batch`.
    """

    def run(key, _, logits_fn, weights, x, label):
        logits_fn = once(logits_fn)

        def loss_fn(x):
            return losses.expected(losses.cross_entropy, logits_fn(x), label, weights)

        settings = {"num_steps": num_steps, "step_size": step_size, "bounds": bounds}
        accuracy_fn = expected_accuracy_of(logits_fn, weights, label)
        return pgd(key, loss_fn, x, threat, accuracy_fn=accuracy_fn, **settings)[0]

    attack = Attack(("pgd_expected_loss",), num_steps, run, bounds)
    outcomes = evaluate_batch(key, logits_fn, weights, images, labels, indices, attacks=(attack,))
    accuracy = jnp.asarray(outcomes.members, weights.dtype) @ weights
    return Validation(accuracy[:, 0], jnp.min(accuracy, axis=1))


def _after_run(key, place, attack, run, logits_fn, weights, x, label):
    run_key = jax.random.fold_in(jax.random.fold_in(key, place), run)
    point = attack.run(run_key, run, logits_fn, weights, x, label)
    return _answers(logits_fn, weights, point, label)


def _answers(logits_fn, weights, point, label):
    logits = logits_fn(point)
    is_nan = jnp.any(jnp.isnan(logits), axis=-1)
    # The attacks leave such members out of the mean; whoever averages has NaN for an answer.
    averages = ~jnp.any(is_nan & (weights > 0))
    mean_log_probs = mixture.log_probs(logits, weights)
    return Outcomes(
        mixture.correct(logits, label), averages & mixture.correct(mean_log_probs, label), is_nan
    )
