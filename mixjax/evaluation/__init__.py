"""What a mixture is worth under attack: exact expected accuracies, their bounds and error bars.

`attack_suite` names the attacks of a budget, `evaluate_suite` runs them on a mixture, on each of
its members and on their average, `suite_report` reads every figure off that; `diagnose` looks for
signs that the attacks, and not the mixture, are what is weak; `security_curves` attacks within
one radius after the other.

`pgd_attacks`, `evaluate_mixture` (or `evaluate_batch` under a transformation of the caller's and
`over_batches`) and `report` are the same with PGD alone, as at the end of a training run;
`validate` is the cheap score of an epoch.
"""

from mixjax.evaluation.batches import evaluate_mixture, over_batches
from mixjax.evaluation.budget import QUICK, STANDARD, Budget, attack_suite
from mixjax.evaluation.diagnostics import Finding, compare_attacks, diagnose
from mixjax.evaluation.foolbox import foolbox_model
from mixjax.evaluation.intervals import (
    mean_and_error_bar,
    over_seeds,
    paired_difference,
    paired_interval,
    wilson_interval,
)
from mixjax.evaluation.outcomes import (
    Outcomes,
    Validation,
    evaluate_batch,
    evaluate_run,
    validate,
)
from mixjax.evaluation.passes import Passes, count_passes
from mixjax.evaluation.report import expected_accuracy, report, sandwich, worst_case
from mixjax.evaluation.security import (
    CURVES,
    SecurityCurves,
    security_curves,
    security_report,
)
from mixjax.evaluation.subjects import Evaluation, evaluate_suite
from mixjax.evaluation.suite import Attack, pgd_attacks
from mixjax.evaluation.suite_report import lower_bound, suite_report
from mixjax.evaluation.turns import Record

__all__ = [
    "CURVES",
    "QUICK",
    "STANDARD",
    "Attack",
    "Budget",
    "Evaluation",
    "Finding",
    "Outcomes",
    "Passes",
    "Record",
    "SecurityCurves",
    "Validation",
    "attack_suite",
    "compare_attacks",
    "count_passes",
    "diagnose",
    "evaluate_batch",
    "evaluate_mixture",
    "evaluate_run",
    "evaluate_suite",
    "expected_accuracy",
    "foolbox_model",
    "lower_bound",
    "mean_and_error_bar",
    "over_batches",
    "over_seeds",
    "paired_difference",
    "paired_interval",
    "pgd_attacks",
    "report",
    "sandwich",
    "security_curves",
    "security_report",
    "suite_report",
    "validate",
    "wilson_interval",
    "worst_case",
]
