"""What a mixture is worth under attack: exact expected accuracies, their bounds and error bars.

`pgd_attacks` names the attack runs, `evaluate_mixture` (or `evaluate_batch` under a transformation
of the caller's and `over_batches`) makes them and notes who is right where, `report` reads every
figure off that one table. `validate` is the cheap score of an epoch.
"""

from mixjax.evaluation.batches import evaluate_mixture, over_batches
from mixjax.evaluation.outcomes import Outcomes, Validation, evaluate_batch, validate
from mixjax.evaluation.report import (
    expected_accuracy,
    mean_and_error_bar,
    paired_difference,
    report,
    sandwich,
    worst_case,
)
from mixjax.evaluation.suite import Attack, pgd_attacks

__all__ = [
    "Attack",
    "Outcomes",
    "Validation",
    "evaluate_batch",
    "evaluate_mixture",
    "expected_accuracy",
    "mean_and_error_bar",
    "over_batches",
    "paired_difference",
    "pgd_attacks",
    "report",
    "sandwich",
    "validate",
    "worst_case",
]
