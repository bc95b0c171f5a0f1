"""A run's folder: its config, its metrics, its result, and from which code and machine they came.

`open_run` makes the folder with `config.json`; `append_metrics` adds a line to `metrics.jsonl`
while the run trains; `write_result` writes `result.json` with its `provenance`; `plot_curves`,
`plot_weights`, `plot_attacks` and `write_report` make the pictures and the page that show it.
JSON is strict and every file but the growing `metrics.jsonl` is written whole or not at all.
"""

from mixjax.reporting.errors import error_cell, error_table, rate_table
from mixjax.reporting.figures import (
    plot_attacks,
    plot_curves,
    plot_security,
    plot_suite,
    plot_weights,
)
from mixjax.reporting.head import NO_DIFFERENCE, NORMS, Head, compared, order, percent
from mixjax.reporting.origin import provenance
from mixjax.reporting.page import difference_line, write_report
from mixjax.reporting.result import check_result, read_evaluations, read_result, write_result
from mixjax.reporting.run_folder import (
    append_metrics,
    open_run,
    read_config,
    read_metrics,
    truncate_metrics,
)
from mixjax.reporting.scalars import open_scalars
from mixjax.reporting.tables import (
    attack_table,
    findings_table,
    interval_of,
    members_table,
    reported_table,
    results_table,
    score_of,
    suite_table,
    training_table,
)

__all__ = [
    "NORMS",
    "NO_DIFFERENCE",
    "Head",
    "append_metrics",
    "attack_table",
    "check_result",
    "compared",
    "difference_line",
    "error_cell",
    "error_table",
    "findings_table",
    "interval_of",
    "members_table",
    "open_run",
    "open_scalars",
    "order",
    "percent",
    "plot_attacks",
    "plot_curves",
    "plot_security",
    "plot_suite",
    "plot_weights",
    "provenance",
    "rate_table",
    "read_config",
    "read_evaluations",
    "read_metrics",
    "read_result",
    "reported_table",
    "results_table",
    "score_of",
    "suite_table",
    "training_table",
    "truncate_metrics",
    "write_report",
    "write_result",
]
