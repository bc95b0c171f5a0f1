"""What a mixture is worth under attack: exact expected accuracies, their bounds and error bars.

`attack_suite` names the attacks of a budget, `evaluate` runs them on a mixture, on each of its
members and on their average, and the `Evaluation` that it returns has every figure; among its
findings are signs that the attacks, and not the mixture, are what is weak. `security_curves`
attacks within one radius after the other; `pgd_attacks` are PGD alone, as at the end of a training
run, and `validate` is the cheap score of an epoch.
"""

from mixjax.evaluation.batches import Validation, over_batches, validate
from mixjax.evaluation.diagnostics import compare_attacks, diagnose
from mixjax.evaluation.foolbox import foolbox_model
from mixjax.evaluation.passes import Passes, count_passes
from mixjax.evaluation.result import Evaluation, Finding, expected_accuracy
from mixjax.evaluation.runner import evaluate
from mixjax.evaluation.security import CURVES, SecurityCurves, security_curves
from mixjax.evaluation.suite import (
    AUTOATTACK,
    QUICK,
    STANDARD,
    Attack,
    Budget,
    attack_suite,
    pgd_attacks,
)
from mixjax.intervals import (
    mean_and_error_bar,
    over_seeds,
    paired_difference,
    paired_interval,
    wilson_interval,
)

__all__ = [
    "AUTOATTACK",
    "CURVES",
    "QUICK",
    "STANDARD",
    "Attack",
    "Budget",
    "Evaluation",
    "Finding",
    "Passes",
    "SecurityCurves",
    "Validation",
    "attack_suite",
    "compare_attacks",
    "count_passes",
    "diagnose",
    "evaluate",
    "expected_accuracy",
    "foolbox_model",
    "mean_and_error_bar",
    "over_batches",
    "over_seeds",
    "paired_difference",
    "paired_interval",
    "pgd_attacks",
    "security_curves",
    "validate",
    "wilson_interval",
]
