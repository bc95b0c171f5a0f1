"""Figures of an `Evaluation`, in double precision."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixjax.evaluation.budget import BASELINE, EXPECTED_DLR, EXPECTED_LOSS
from mixjax.evaluation.report import (
    alone,
    expected_accuracy,
    figures,
    nan_answers,
    score,
    worst_case,
)
from mixjax.evaluation.subjects import Evaluation
from mixjax.evaluation.suite import Attack
from mixjax.evaluation.turns import Record


def suite_report(evaluation: Evaluation, weights: Any, attacks: Sequence[Attack]) -> dict[str, Any]:
    """All figures of an evaluation, ready for JSON.

    Each attack alone is judged on the complete examples, which met every run; everything else on
    all examples. The clean example is a point of every attack: an attacker need not move.

    Args:
      evaluation: what `evaluate_suite` returned.
      weights: `[L]` probabilities of the members.
      attacks: the attacks that it came from.

    Returns:
      The entries of `report`, and: in `attacks`, for each line, `num_examples` too, of one run and
      example `num_gradients` and `num_answers`, passes through single networks, and the `seconds`
      of all its runs; `members` and `averaged`, each under its own suite, whose points count for
      `num_nan_answers` too; `sandwich.lower` is a
      lower bound here, as far as the attacks are strong, because each member met the whole budget:
      it counts as robust if it is right at all points, those of its own suite and those of the
      mixture's (`interval.lower_bound`); `reported_by`: on the complete examples the accuracies
      under PGD on the expected loss, AutoPGD on the expected loss, and all attacks (`worst`), each
      with its `error_bar` and `interval`, and `rob_acc`, the worst of AutoPGD on the expected
      cross-entropy and on the expected DLR, with the `num_restarts` and `num_steps` of either: with
      5 and 100, as in the `STANDARD` budget, it is the robust accuracy of Meunier et al., but for
      the point that a run returns, here the worst that it visits; `cost`, per example, of
      attacking the `mixture` and `all` with it.

    Raises:
      ValueError: if `attacks` or `weights` do not fit, or an attack is named `worst` or `clean`.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 5, for
      `rob_acc`.
    """
    record = evaluation.mixture
    num_steps = {name: attack.num_steps for attack in attacks for name in attack.names}
    names = np.array([name for attack in attacks for name in attack.names])
    if len(record.seconds) != len(names):
        raise ValueError(
            f"attacks must have the {len(record.seconds)} runs of evaluation, got {len(names)}"
        )
    if {"clean", "worst"} & {*num_steps}:
        raise ValueError(f"attacks must not be named clean or worst, got {', '.join(names)}")

    accuracies = expected_accuracy(record.outcomes, weights)
    complete = accuracies[record.is_complete]
    lines = {name: names == name for name in num_steps}
    examples = {
        name: complete[:, np.append(True, is_line)].min(axis=1) for name, is_line in lines.items()
    }
    on_complete = {name: examples[name] for name in (BASELINE, EXPECTED_LOSS) if name in lines}
    on_complete["worst"] = complete.min(axis=1)
    reported_by = {name: score(values) for name, values in on_complete.items() if len(values)}
    if {EXPECTED_LOSS, EXPECTED_DLR} <= {*lines} and len(complete):
        both = lines[EXPECTED_LOSS] | lines[EXPECTED_DLR]
        reported_by["rob_acc"] = score(complete[:, np.append(True, both)].min(axis=1)) | {
            "num_restarts": int(lines[EXPECTED_LOSS].sum()),
            "num_steps": num_steps[EXPECTED_LOSS],
        }
    examples = (examples if len(complete) else {}) | {"worst": accuracies.min(axis=1)}
    scores = {"clean": score(accuracies[:, 0])}
    scores |= {name: score(values) for name, values in examples.items()}
    shown, lower = figures(scores), score(lower_bound(evaluation, weights))
    records = (record,) if len(evaluation.members) == 1 else everyone(evaluation)

    return {
        "num_members": len(evaluation.members),
        "weights": np.asarray(weights, np.float64).tolist(),
        "num_examples": len(accuracies),
        **shown,
        "interval": shown["interval"] | {"lower_bound": lower["interval"]},
        "sandwich": {"lower": lower["accuracy"], "upper": scores["worst"]["accuracy"]},
        "members": [alone(each.outcomes.members[:, :, 0]) for each in evaluation.members],
        "averaged": alone(evaluation.averaged.outcomes.members[:, :, 0]),
        "num_nan_answers": _nan_answers(evaluation),
        "num_attack_runs": len(names),
        "attacks": {
            name: {
                "num_runs": int(is_line.sum()),
                "num_steps": num_steps[name],
                "num_examples": len(complete),
                "num_gradients": int(record.num_gradients[is_line].max()),
                "num_answers": int(record.num_answers[is_line].max()),
                "seconds": round(float(record.seconds[is_line].sum()), 2),
            }
            for name, is_line in lines.items()
        },
        "reported_by": {"num_examples": len(complete), **reported_by},
        "cost": {"mixture": _cost([record]), "all": _cost(records)},
    }


def everyone(evaluation: Evaluation) -> tuple[Record, ...]:
    """The records of the mixture, of each member and of their average."""
    return (evaluation.mixture, *evaluation.members, evaluation.averaged)


def lower_bound(evaluation: Evaluation, weights: Any) -> np.ndarray:
    """`sum_k weights_k rob(member k)` for each example, `[N]`: never above the worst case.

    A member is robust if it is right at all points found, those of attacks on it and those of
    attacks on the mixture. It bounds the truth from below as far as these attacks are strong.
    """
    alone = [each.outcomes.members[:, :, 0].all(axis=1) for each in evaluation.members]
    together = evaluation.mixture.outcomes.members.all(axis=1)
    robust = (together & np.stack(alone, axis=1))[:, None]
    return worst_case(evaluation.mixture.outcomes._replace(members=robust), weights)


def _nan_answers(evaluation):
    """Of each member at all points scored: the mixture's, and those of its own suite."""
    together = nan_answers(evaluation.mixture.outcomes)
    if len(evaluation.members) == 1:  # the same points
        return together
    alone = [nan_answers(each.outcomes)[0] for each in evaluation.members]
    return np.add(together, alone).tolist()


def _cost(records):
    """Per example, attacks left out because the example was lost not counted."""
    num_examples = len(records[0].is_complete)

    def each(values):
        return float(sum(np.sum(record.num_attacked * values(record)) for record in records))

    return {
        "gradients": each(lambda record: record.num_gradients) / num_examples,
        "answers": each(lambda record: record.num_answers) / num_examples,
        "seconds": float(sum(record.seconds.sum() for record in records)) / num_examples,
    }
