"""`report.md`: tables, figures, what they mean and where they come from, as one page."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mixjax import files
from mixjax.reporting.head import Head
from mixjax.reporting.tables import (
    attack_table,
    findings_table,
    members_table,
    reported_table,
    results_table,
    suite_table,
)

_FIGURES = {
    "blindness.png": "What each attack leaves, and the exact optimum where it is known.",
    "curves.png": "Standard and robust accuracy on validation data against epochs per classifier.",
    "weights.png": "Weights of the mixture against epochs per classifier.",
    "security.png": "What one run of each attack leaves, against the radius that it is allowed.",
    "attacks.png": "Examples as they are, attacked, and the difference.",
}
_MEANING = """\
- **L**: number of classifiers; for each input the mixture draws one of them with the
  probabilities **weights**. All accuracies are exact expectations over that draw.
- **clean**: accuracy on the examples as they are. **robust**: for each example the lowest expected
  accuracy over all attacks, an upper bound of the truth. In brackets Wilson's 95 % interval over
  examples: it knows nothing of another training run.
- **lower bound**: the weighted sum of the members' own robust accuracies, where each member met
  as many attacks of its own as the mixture did; it is as good as these are strong. The few runs
  of PGD on each member at the end of training do not give one, and leave a mixture more than the
  whole suite does.
- **members alone**, **averaged**: robust accuracy of each member by itself and of the ensemble
  that answers with the class of highest mean probability, on the same attacked points.
- **attack runs**: attacks per example, restarts included. More of them lower a score by
  themselves: compare rows of equal number.
"""
_SUITE = """\
The same classifiers under all attacks of the suite, as many runs for every L. **Members alone** and
**averaged** are attacked by the same suite on their own here; a member counts towards the **lower
bound** if it is right at all points of its own suite and of the mixture's.
"""
_SUITE_TABLE = """\
**left**: accuracy left by this attack alone, on the examples that met every run. **gradients**,
**answers**: backward and forward passes through single networks for one run on one example; in
the last row for all runs, on average: an example that is lost is left alone.
"""


def write_report(
    run_dir: str | os.PathLike,
    results: Mapping[str, Mapping[str, Any]],
    title: str = "Report",
    evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    head: Head | None = None,
) -> pathlib.Path:
    """Writes `report.md` into the folder of a run, with the figures that are there.

    Args:
      run_dir: folder of the run.
      results: `name -> result`, dicts as in `check_result`, to be shown side by side.
      title: heading of the page.
      evaluations: `budget -> name -> evaluation` by the attack suite, if there are any: results
        with the entries of `Evaluation.report`.
      head: what the page begins with.

    Returns:
      The path of the page.

    Raises:
      ValueError: if there is no result.
    """
    if not results:
        raise ValueError("results must hold at least one result, got none")
    run_dir = pathlib.Path(run_dir)
    parts = [f"# {title}\n", *([str(head)] if head else [])]
    parts += [results_table(list(results.values()), list(results))]
    parts += [difference_line(name, result) for name, result in results.items()]
    parts += [nan_line(name, result) for name, result in results.items()]
    parts += [_MEANING]
    parts += ["## Attacks\n", attack_table(results)]
    for name, result in results.items():
        parts += [f"## Members: {name}\n", members_table(result)]
    for budget, by_name in (evaluations or {}).items():
        parts += _suite_section(budget, by_name)
    for file, caption in _FIGURES.items():
        if (run_dir / file).exists():
            parts.append(f"![{caption}]({file})\n\n{caption}\n")
    parts.append("## Provenance\n")
    parts += [_provenance(name, result["provenance"]) for name, result in results.items()]
    path = run_dir / "report.md"
    files.write(path, "\n".join(parts))
    return path


def _suite_section(budget, evaluations):
    parts = [f"## Attack suite: {budget}\n", _SUITE]
    parts += [results_table(list(evaluations.values()), list(evaluations))]
    parts += [difference_line(name, result) for name, result in evaluations.items()]
    parts += [nan_line(name, result) for name, result in evaluations.items()]
    parts += [f"### What each attacker would report: {budget}\n", reported_table(evaluations)]
    parts += [_SUITE_TABLE]
    for name, evaluation in evaluations.items():
        parts += [f"### {name}: {budget} suite\n", suite_table(evaluation)]
        parts += [f"### {name}: signs of weak attacks\n", findings_table(evaluation["diagnostics"])]
        parts += [_provenance(f"{name}, {budget} suite", evaluation["provenance"])]
    return parts


def difference_line(name: str, result: Mapping[str, Any]) -> str:
    """How a result compares with the single classifier of the same run, if it says so."""
    if "versus_single" not in result:
        return ""
    versus = result["versus_single"]
    interval = ""
    if "interval" in versus:
        low, high = (100 * end for end in versus["interval"])
        interval = f"; 95 % interval {low:+.1f} to {high:+.1f}"
    return (
        f"Robust accuracy of the {name} minus that of the single classifier, on the same examples: "
        f"{100 * versus['difference']:+.1f} ± {100 * versus['error_bar']:.1f} %{interval}.\n"
    )


def nan_line(name: str, result: Mapping[str, Any]) -> str:
    """Which members answered NaN, and at how many points, if any did."""
    counts = [
        f"{k} at {count}" for k, count in enumerate(result.get("num_nan_answers", ()), 1) if count
    ]
    if not counts:
        return ""
    return (
        f"Members of the {name} that answered NaN, counted as their errors: member "
        f"{', member '.join(counts)} of the points scored. That is a fault of the member and no "
        "success of an attack.\n"
    )


def _provenance(name, facts):
    device = facts["device"]
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return (
        f"**{name}**\n\n"
        f"- command: `{facts['command']}`\n"
        f"- commit: {facts['commit'] or 'not under version control'}\n"
        f"- seed: {facts['seed']}\n"
        f"- device: {device['number']} x {device['kind']} ({device['platform']})\n"
        f"- duration: {facts['seconds']:.0f} s\n"
        f"- versions: {versions}\n"
    )
