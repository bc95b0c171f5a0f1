"""Figures read off `Outcomes`, in double precision: accuracies and their bounds.

An expected accuracy is `weights @ correct`, a finite sum: nothing is estimated by drawing members.
The clean example is a point of every attack: an attacker need not move.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixjax import checks
from mixjax.evaluation.intervals import mean_and_error_bar, wilson_interval
from mixjax.evaluation.outcomes import Outcomes
from mixjax.evaluation.suite import Attack


def expected_accuracy(outcomes: Outcomes, weights: Any) -> np.ndarray:
    """`sum_k weights_k 1[member k is right]` at every point: `[N, R + 1]`, the clean one first.

    Raises:
      ValueError: if `weights` is not on the simplex or is not `[L]`.
    """
    return _weigh(outcomes.members, weights)


def worst_case(outcomes: Outcomes, weights: Any) -> np.ndarray:
    """Lowest expected accuracy over all points of each example, `[N]`.

    An upper bound of the mixture's robust accuracy, as tight as the attacks are strong.
    """
    return expected_accuracy(outcomes, weights).min(axis=1)


def sandwich(outcomes: Outcomes, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """`sum_k weights_k rob(member k) <= worst` for each example: `([N], [N])`.

    A member is robust if it is right at all points, those found by other members' attacks
    included. So the lower value never exceeds the upper one; it bounds the truth from below only
    as far as the attacks on each member are strong.
    """
    lower = _weigh(np.asarray(outcomes.members).all(axis=1), weights)
    return lower, worst_case(outcomes, weights)


def score(values: Any) -> dict[str, Any]:
    """`accuracy`, `error_bar` and `interval` (a list) of the mean over `[N]` values in [0, 1]."""
    mean, error_bar = mean_and_error_bar(values)
    interval = list(wilson_interval(mean, np.size(values)))
    return {"accuracy": mean, "error_bar": error_bar, "interval": interval}


def report(outcomes: Outcomes, weights: Any, attacks: Sequence[Attack]) -> dict[str, Any]:
    """All figures of an evaluation, ready for JSON.

    Args:
      outcomes: what `evaluate_mixture` returned.
      weights: `[L]` probabilities of the members.
      attacks: the attacks that `outcomes` came from.

    Returns:
      `num_members`, `weights`, `num_examples`, `clean_accuracy`; `robust_accuracy`: per example
      the worst expected accuracy over the runs of each attack, and over all of them (`worst`);
      `error_bar`: standard errors of the clean accuracy (`clean`) and of each of these, and
      `interval`: `wilson_interval` of the same; `sandwich`: `upper`, which is `worst`, and
      `lower`, the weighted mean of what the members keep at the same points: a few runs on each
      of them do not make it a lower bound of the truth, see `suite_report` for one; `members` and
      `averaged` (the ensemble that answers with the class of highest mean probability):
      `clean_accuracy`, and `robust_accuracy` over all points with its `error_bar` and `interval`;
      `num_nan_answers`: for each member, at how many of all points scored it answered NaN, which
      is an error of its own and no success of an attack; `num_attack_runs`, the same for every `L`;
      `attacks`: each one's `num_runs` and `num_steps`.

    Raises:
      ValueError: if `attacks` or `weights` do not fit `outcomes`, or an attack is named `worst`
        or `clean`.
    """
    runs = [(name, attack.num_steps) for attack in attacks for name in attack.names]
    names = np.array(["clean", *(name for name, _ in runs)])
    accuracies = expected_accuracy(outcomes, weights)
    if accuracies.shape[1] != len(names):
        raise ValueError(
            f"attacks must have the {accuracies.shape[1] - 1} runs of outcomes, got {len(runs)}"
        )
    if {"clean", "worst"} & set(names[1:]):
        raise ValueError(f"attacks must not be named clean or worst, got {', '.join(names[1:])}")

    examples = {"clean": accuracies[:, 0]}
    for name in dict.fromkeys(names[1:].tolist()):
        examples[name] = accuracies[:, (names == name) | (names == "clean")].min(axis=1)
    lower, examples["worst"] = sandwich(outcomes, weights)
    scores = {name: score(values) for name, values in examples.items()}
    members = np.moveaxis(np.asarray(outcomes.members), -1, 0)

    return {
        "num_members": len(members),
        "weights": np.asarray(weights, np.float64).tolist(),
        "num_examples": len(accuracies),
        **figures(scores),
        "sandwich": {"lower": float(lower.mean()), "upper": scores["worst"]["accuracy"]},
        "members": [alone(correct) for correct in members],
        "averaged": alone(np.asarray(outcomes.averaged)),
        "num_nan_answers": nan_answers(outcomes),
        "num_attack_runs": len(runs),
        "attacks": {
            name: {"num_runs": int((names == name).sum()), "num_steps": num_steps}
            for name, num_steps in runs
        },
    }


def figures(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The entries of a report that give the `score` of `clean` and of each attack."""
    accuracies, error_bars, intervals = (
        {name: each[entry] for name, each in scores.items()}
        for entry in ("accuracy", "error_bar", "interval")
    )
    return {
        "clean_accuracy": accuracies.pop("clean"),
        "robust_accuracy": accuracies,
        "error_bar": error_bars,
        "interval": intervals,
    }


def alone(correct: Any) -> dict[str, Any]:
    """Accuracies of one deterministic classifier, `correct` being `[N, R + 1]`."""
    correct = np.asarray(correct)
    robust = score(correct.all(axis=1))
    return {
        "clean_accuracy": float(correct[:, 0].mean()),
        "robust_accuracy": robust.pop("accuracy"),
        **robust,
    }


def nan_answers(outcomes: Outcomes) -> list[int]:
    """For each member the number of points at which it answers NaN."""
    return np.sum(outcomes.is_nan, axis=(0, 1)).tolist()


def _weigh(correct, weights):
    checks.simplex(weights=weights)
    correct, weights = np.asarray(correct, np.float64), np.asarray(weights, np.float64)
    checks.shape(correct.shape[-1:], weights=weights)
    # Float32 weights sum to 1 only up to rounding, and nobody is right with probability 1 + 1e-7.
    return (correct * (weights / weights.sum())).sum(axis=-1)
