"""`report.md`: tables, figures, what they mean and where they come from, as one page."""

import pathlib

from mixjax import _files
from mixjax.reporting.tables import attack_table, members_table, results_table

_FIGURES = {
    "curves.png": "Standard and robust accuracy on validation data against epochs per classifier.",
    "weights.png": "Weights of the mixture against epochs per classifier.",
    "attacks.png": "Examples as they are, attacked, and the difference.",
}
_MEANING = """\
- **L**: number of classifiers; for each input the mixture draws one of them with the
  probabilities **weights**. All accuracies are exact expectations over that draw.
- **clean**: accuracy on the examples as they are. **robust**: for each example the lowest expected
  accuracy over all attacks, an upper bound of the truth. ± is one standard error over examples.
- **lower bound**: the weighted sum of the members' own robust accuracies on the same attacked
  points. Lower bound <= robust, for each example; the lower one is as good as the attacks are
  strong.
- **members alone**, **averaged**: robust accuracy of each member by itself and of the ensemble
  that answers with the class of highest mean probability, on the same attacked points.
- **attack runs**: attacks per example, restarts included. More of them lower a score by
  themselves: compare rows of equal number.
"""


def write_report(run_dir, results, title="Report"):
    """Writes `report.md` into the folder of a run, with the figures that are there.

    Args:
      run_dir: folder of the run.
      results: `name -> result`, dicts as in `check_result`, to be shown side by side.
      title: heading of the page.

    Returns:
      The path of the page.

    Raises:
      ValueError: if there is no result.
    """
    if not results:
        raise ValueError("results must hold at least one result, got none")
    run_dir = pathlib.Path(run_dir)
    parts = [f"# {title}\n", results_table(list(results.values()), list(results))]
    parts += [difference_line(name, result) for name, result in results.items()]
    parts += [_MEANING]
    parts += ["## Attacks\n", attack_table(results)]
    for name, result in results.items():
        parts += [f"## Members: {name}\n", members_table(result)]
    for file, caption in _FIGURES.items():
        if (run_dir / file).exists():
            parts.append(f"![{caption}]({file})\n\n{caption}\n")
    parts.append("## Provenance\n")
    parts += [_provenance(name, result["provenance"]) for name, result in results.items()]
    path = run_dir / "report.md"
    _files.write(path, "\n".join(parts))
    return path


def difference_line(name, result):
    """How a result compares with the single classifier of the same run, if it says so."""
    if "versus_single" not in result:
        return ""
    versus = {key: 100 * value for key, value in result["versus_single"].items()}
    return (
        f"Robust accuracy of the {name} minus that of the single classifier, on the same examples: "
        f"{versus['difference']:+.1f} ± {versus['error_bar']:.1f} %.\n"
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
