"""What all figures have in common: colours, lines, a figure without a screen, a file for it."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixjax import _extras, files

# Okabe and Ito, Color universal design, 2008: blue, vermilion, green, orange, purple, sky, black;
# and grey. Colour-blind readers can tell them apart; still, never colour alone.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#8A8A8A")
STYLES = ("-", "--", "-.", ":")
MARKERS = "os^DvPX"
RIGHT, WRONG = COLORS[0], COLORS[1]
# What has the same look in every figure and on the page of a run.
ATTACKS = ("ascent_path", "pgd_expected_loss", "apgd_expected_loss", "arc", "lattice_climber")
_WORST = 6
_IMAGE, _GAP, _LINE = 0.95, 0.08, 0.14  # inches of an image's side; in sides of an image
_DOTS_PER_INCH = 150
_SMALL_DOTS_PER_INCH = 110
_PALETTE = 256  # colours: a file of a third of the size


def figure(width: float, height: float, panels: int | tuple[int, int]) -> tuple[Any, Any]:
    """A figure without pyplot, which keeps a global state and may want a screen.

    Args:
      width: in inches.
      height: likewise.
      panels: how many beside each other, or rows and columns of them.

    Returns:
      The figure and its axes, row by row.
    """
    with _extras.needed("report"):
        from matplotlib.figure import Figure

    rows, columns = panels if isinstance(panels, tuple) else (1, panels)
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    return made, axes.ravel()


def look(number: int) -> dict[str, Any]:
    """Colour, line and marker of the curve of this number, different for any eight in a row."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": STYLES[number % len(STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def of_attack(name: str, others: Sequence[str]) -> dict[str, Any]:
    """The look of an attack: its own in every figure, or its place among the `others` there."""
    if name == "worst":
        return look(_WORST)
    return look(ATTACKS.index(name) if name in ATTACKS else len(ATTACKS) + others.index(name))


def plain(axis: Any) -> None:
    """A light grid, no frame above and on the right, a legend without a box."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7.5)


def points(axis: Any, x: Any, labels: Any, **look: Any) -> None:
    """Points `x [N, 2]` of two classes, `labels [N]` 1 or -1, which differ in colour and mark."""
    x, labels = np.asarray(x), np.asarray(labels)
    usual = {"s": 22, "edgecolors": "white", "linewidths": 0.6, "zorder": 3} | look
    for label, color, marker in ((1, COLORS[0], "o"), (-1, COLORS[1], "^")):
        own = x[labels == label]
        axis.scatter(own[:, 0], own[:, 1], color=color, marker=marker, label=f"{label:d}", **usual)


def gallery(
    rows: Mapping[str, Any],
    below: Mapping[str, Sequence[tuple[str, bool]]],
    *,
    above: Sequence[str] = (),
) -> Any:
    """Rows of images in one panel: with a panel for each they take three times as long to draw.

    Args:
      rows: `name -> [N, H, W, C]` images in [0, 1], C = 1 or 3, of one shape.
      below: `name -> N` texts, and whether what they say is right, which gives them their colour.
      above: N texts above the first row.
    """
    number, high, wide = np.shape(next(iter(rows.values())))[:3]
    lines = max(text.count("\n") + 1 for texts in below.values() for text, _ in texts)
    side, across, down = high / wide, 1 + _GAP, high / wide + 2 * _GAP + lines * _LINE
    size = 1.5 + _IMAGE * across * number, 0.3 + _IMAGE * down * len(rows)
    made, (axis,) = figure(*size, 1)
    for r, (name, images) in enumerate(rows.items()):
        for n, image in enumerate(images):
            left, top = n * across, r * down
            pixels = np.broadcast_to(image, (high, wide, 3)).clip(0, 1)
            axis.imshow(pixels, extent=(left, left + 1, top + side, top))
        for n, (text, is_right) in enumerate(below.get(name, ())):
            place = n * across + 0.5, r * down + side + _GAP / 2
            color = RIGHT if is_right else WRONG
            axis.text(*place, text, ha="center", va="top", fontsize=7, color=color)
    axis.set(xlim=(0, number * across - _GAP), ylim=(len(rows) * down - _GAP, 0))
    axis.set_yticks(np.arange(len(rows)) * down + side / 2, list(rows), fontsize=9)
    axis.set_xticks(np.arange(len(above)) * across + 0.5, above, fontsize=9)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)
    made.get_layout_engine().set(w_pad=0.1)  # the names of rows are measured too narrow
    return made


def write(figure: Any, path: str | os.PathLike, *, is_small: bool = False) -> None:
    """Writes a figure as PNG and, beside it, as PDF for a paper; each whole or not at all.

    Args:
      figure: as from `figure`.
      path: the PNG file; the PDF has the ending `.pdf` instead.
      is_small: fewer dots and 256 colours, for figures that a repository keeps.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_SMALL_DOTS_PER_INCH if is_small else _DOTS_PER_INCH)
    files.write(path, _quantized(buffer) if is_small else buffer.getvalue())
    figure.set_layout_engine("none")  # Panels keep their places: to find them takes half the time.
    buffer = io.BytesIO()
    # Without the time, which would make another file of the same figure.
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    files.write(pathlib.Path(path).with_suffix(".pdf"), buffer.getvalue())


def _quantized(full):
    from PIL import Image  # comes with the extra `report`, as matplotlib

    small = io.BytesIO()
    picture = (
        Image.open(full)
        .convert("RGB")
        .quantize(_PALETTE, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    picture.save(small, format="png", optimize=True)
    return small.getvalue()
