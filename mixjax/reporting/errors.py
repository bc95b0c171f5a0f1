"""Errors of several classifiers under several attacks as a table, beside those of a paper."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixjax.intervals import wilson_interval
from mixjax.reporting.tables import _markdown


def error_table(
    rows: Mapping[str, Mapping[str, Any]],
    attacks: Mapping[str, str],
    paper: Mapping[str, Mapping[str, Mapping[Any, float]]] | None = None,
) -> str:
    """One row for each classifier, one column for each attack, as Markdown.

    Args:
      rows: `name -> result`, dicts as in `check_result`; accuracies become error rates.
      attacks: `name -> heading` of `clean` and of entries of `robust_accuracy`; a result without
        the entry has an empty cell.
      paper: `name -> attack -> table -> error` of the same rows as published, if there are any.

    Returns:
      Markdown text, cells as of `error_cell`.
    """

    def cell(name, result, attack):
        accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
        error = 1 - accuracies[attack] if attack in accuracies else None
        return error_cell(error, result["num_examples"], (paper or {}).get(name, {}).get(attack))

    table = [[name, *(cell(name, row, attack) for attack in attacks)] for name, row in rows.items()]
    return _markdown(["classifier", *attacks.values()], table)


def error_cell(
    error: float | None, num_examples: int, published: Mapping[Any, float] | None = None
) -> str:
    """`0.921 (0.903 to 0.936) [0.995 T3, 0.996 T4]`: an error rate and what a paper reports.

    Args:
      error: rate over the examples, None where it is not known.
      num_examples: of these; in brackets follows Wilson's 95 % interval.
      published: `table -> error` as published, by the number of the table: tables of one paper
        may contradict each other.

    Returns:
      The text of a cell, empty where nothing is known.

    Example:
      >>> from mixjax import reporting
      >>> reporting.error_cell(0.25, 100, {4: 0.2})
      '0.250 (0.175 to 0.343) [0.200 T4]'
    """
    parts = []
    if error is not None:
        low, high = wilson_interval(error, num_examples)
        parts.append(f"{error:.3f} ({low:.3f} to {high:.3f})")
    if published:
        tables = {}
        for number, value in published.items():
            tables.setdefault(value, []).append(f"T{number}")
        texts = [f"{value:.3f} {' '.join(names)}" for value, names in tables.items()]
        parts.append(f"[{', '.join(texts)}]")
    return " ".join(parts)


def rate_table(corner: str, head: Sequence[str], rows: Mapping[Any, Iterable[float | str]]) -> str:
    """Error rates as they are: `rows` is `name -> numbers or texts`, as Markdown."""
    cells = [
        [name, *(value if isinstance(value, str) else f"{value:.3f}" for value in values)]
        for name, values in rows.items()
    ]
    return _markdown([corner, *head], cells)
