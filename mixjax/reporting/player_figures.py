"""Figures of games between a classifier and its attacker: errors over time, pictures of attacks."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixjax.reporting.figures import _COLORS, _MARKERS, _STYLES, _figure, _write


def plot_errors(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, Sequence[Any]]],
    *,
    xlabel: str,
    points: bool = False,
) -> None:
    """Error rates against steps or rounds, one panel each, one line for each name.

    Args:
      path: file to write, as PNG.
      panels: `title -> name -> (x [T], errors [T])`.
      xlabel: what x is.
      points: whether to mark each value and not to join them, for what jumps.

    Raises:
      ValueError: if there is no panel.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel, got none")
    figure, axes = _figure(4.2 * len(panels) + 0.6, 3.2, len(panels))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for number, (name, (x, errors)) in enumerate(curves.items()):
            axis.plot(
                x,
                errors,
                label=name,
                color=_COLORS[number % len(_COLORS)],
                linestyle="none" if points else _STYLES[number % len(_STYLES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4 if points or len(x) <= 20 else 0,
            )
        axis.set(title=title, xlabel=xlabel, ylabel="error", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels), 1 + len(panels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    _write(figure, path)


def plot_gallery(
    path: str | os.PathLike,
    pictures: Mapping[str, Any],
    labels: Any,
    predictions: Mapping[str, Any],
    class_names: Sequence[str],
) -> None:
    """The same examples under several attacks, a row for each.

    Args:
      path: file to write, as PNG.
      pictures: `name -> [N, H, W, C]` images in [0, 1], C = 1 or 3; a handful.
      labels: `[N]` true classes.
      predictions: `name -> [N]` what the attacked classifier answers.
      class_names: names of the classes.

    Raises:
      ValueError: if a row does not have N images, or predictions lack one.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      figure 4.
    """
    number = len(labels)
    for name, images in pictures.items():
        if name not in predictions or len(predictions[name]) != number or len(images) != number:
            raise ValueError(f"pictures and predictions of {name} must be {number} each")
    figure, axes = _figure(1.5 + 0.95 * number, 0.4 + 1.15 * len(pictures), (len(pictures), number))
    axes = np.reshape(axes, (len(pictures), number))
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for n, axis in enumerate(row):
            image = np.asarray(images[n])
            axis.imshow(np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1))
            axis.set(xticks=[], yticks=[])
            right = int(predictions[name][n]) == int(labels[n])
            answer = f"{class_names[int(predictions[name][n])]} {'✓' if right else '✗'}"
            axis.set_xlabel(answer, fontsize=7, color=_COLORS[0] if right else _COLORS[1])
    _write(figure, path)
