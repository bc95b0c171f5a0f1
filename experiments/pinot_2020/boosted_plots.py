"""The figures of boosted adversarial training: accuracies over n, and over alpha and n."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mixjax.reporting import drawing
from mixjax.reporting.figures import around


def plot_lines(
    path: str | os.PathLike,
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    *,
    xlabel: str,
    title: str,
) -> None:
    """Accuracies in percent against a number, with their intervals.

    Args:
      path: file to write, as PNG.
      lines: `name -> (number, score)`, the score with `accuracy` and, if known, `interval`.
      xlabel: what the number is.
      title: of the figure.
    """
    figure, (axis,) = drawing.figure(5.6, 3.6, 1)
    for number, (name, points) in enumerate(lines.items()):
        accuracies = [score["accuracy"] for _, score in points]
        intervals = [score.get("interval", [score["accuracy"]] * 2) for _, score in points]
        axis.errorbar(
            [place for place, _ in points],
            [100 * accuracy for accuracy in accuracies],
            yerr=around(accuracies, intervals),
            label=name,
            **drawing.look(number),
            markersize=4,
            capsize=2,
        )
    axis.set(xlabel=xlabel, ylabel="accuracy (%)", title=title)
    axis.set_xticks(sorted({place for points in lines.values() for place, _ in points}))
    drawing.plain(axis)
    drawing.write(figure, path)


def plot_grid(
    path: str | os.PathLike,
    rows: Mapping[str, Sequence[float | None]],
    columns: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """A heat map of accuracies in percent, each written into its cell.

    Args:
      path: file to write, as PNG.
      rows: `name -> accuracies`, one for each column; None where there is none.
      columns: names of the columns.
      xlabel: what the columns are.
      ylabel: what the rows are.
      title: of the figure.
    """
    values = [
        [float("nan") if each is None else 100 * each for each in row] for row in rows.values()
    ]
    figure, (axis,) = drawing.figure(1.2 + 0.62 * len(columns), 1.3 + 0.42 * len(rows), 1)
    image = axis.imshow(values, cmap="viridis", aspect="auto")
    middle = sum(image.get_clim()) / 2
    for number, row in enumerate(values):
        for place, value in enumerate(row):
            if value == value:
                color = "white" if value < middle else "black"
                axis.text(place, number, f"{value:.1f}", ha="center", va="center", color=color)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), [*rows])
    figure.colorbar(image, ax=axis, label="accuracy (%)")
    drawing.write(figure, path)
