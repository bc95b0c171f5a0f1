"""Figures of a run, of an evaluation and of its security curves."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixjax.reporting import drawing
from mixjax.reporting.tables import interval_of


def plot_curves(
    path: str | os.PathLike,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    attack: str = "",
) -> None:
    """Standard and robust accuracy against epochs per classifier, one line for each run.

    Args:
      path: the PNG to write; the same figure as PDF is written beside it.
      runs: `name -> entries` of `read_metrics`; those without `epoch`, `clean_accuracy` or
        `robust_accuracy` are left out.
      attack: what the robust accuracy is under, norm and radius with it, for the title.

    Raises:
      ValueError: if a run has no such entry.

    References:
      Meunier et al., Mixed Nash Equilibria in the Adversarial Examples Game, 2021, figure 3.
    """
    fields = ("epoch", "clean_accuracy", "robust_accuracy")
    selected = _select(runs, fields)
    figure, axes = drawing.figure(8.0, 3.2, 2)
    titles = ("standard accuracy", f"under {attack}" if attack else "robust accuracy")
    for axis, field, title in zip(axes, fields[1:], titles, strict=True):
        for number, (name, entries) in enumerate(selected.items()):
            _line(axis, number, name, entries, [100 * entry[field] for entry in entries])
        axis.set(title=title, xlabel="epochs per classifier", ylabel="accuracy (%)")
    axes[0].legend(frameon=False)
    drawing.write(figure, path)


def plot_weights(path: str | os.PathLike, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The weights of each run's mixture against epochs per classifier, one panel for each run.

    Args:
      path: the PNG to write; the same figure as PDF is written beside it.
      runs: `name -> entries` of `read_metrics`; those without `epoch` or `weights` are left out.

    Raises:
      ValueError: if a run has no such entry.
    """
    selected = _select(runs, ("epoch", "weights"))
    figure, axes = drawing.figure(4.0 * len(runs), 3.2, len(runs))
    for axis, (name, entries) in zip(axes, selected.items(), strict=True):
        weights = np.array([entry["weights"] for entry in entries])
        for k, weight in enumerate(weights.T):
            _line(axis, k, f"member {k + 1}", entries, weight)
        uniform = 1 / weights.shape[1]
        axis.axhline(uniform, color="0.6", linewidth=0.8, zorder=0, label="uniform")
        axis.set(title=name, xlabel="epochs per classifier", ylabel="weight (probability)")
        axis.set_ylim(-0.03, 1.03)
        axis.legend(frameon=False, ncols=1 + weights.shape[1] // 5)
    drawing.write(figure, path)


def plot_attacks(
    path: str | os.PathLike,
    images: ArrayLike,
    attacked: ArrayLike,
    labels: ArrayLike,
    clean_predictions: ArrayLike,
    attacked_predictions: ArrayLike,
    class_names: Sequence[str],
) -> None:
    """Rows: clean, attacked, difference; under each image what the members make of it.

    Args:
      path: the PNG to write; the same figure as PDF is written beside it.
      images: `[N, H, W, C]` clean examples in [0, 1], C = 1 or 3; a handful.
      attacked: `[N, H, W, C]` the same under attack.
      labels: `[N]` true classes.
      clean_predictions: `[N, L]` each member's class on the clean example.
      attacked_predictions: `[N, L]` each member's class under attack.
      class_names: names of the classes.

    Raises:
      ValueError: if the shapes do not belong together.
    """
    images, attacked = np.asarray(images, np.float32), np.asarray(attacked, np.float32)
    clean_predictions = np.asarray(clean_predictions)
    attacked_predictions = np.asarray(attacked_predictions)
    labels = np.asarray(labels)
    _check_shapes(images, attacked, labels, clean_predictions, attacked_predictions)
    difference = attacked - images
    scale = float(np.abs(difference).max()) or 1.0
    shifted = 0.5 + 0.5 * difference / scale
    below = f"below: members\n1 to {clean_predictions.shape[1]}"
    clean, under = f"clean\n\n{below}", f"attacked\n\n{below}"
    rows = {clean: images, under: attacked, f"difference\ngrey: 0\nrange: ±{scale:.3f}": shifted}
    answers = {clean: clean_predictions, under: attacked_predictions}
    texts = {
        name: [_answers(*each, class_names) for each in zip(labels, predictions, strict=True)]
        for name, predictions in answers.items()
    }
    above = [f"true: {class_names[int(label)]}" for label in labels]
    drawing.write(drawing.gallery(rows, texts, above=above), path)


def plot_suite(path: str | os.PathLike, report: Mapping[str, Any], *, threat: str = "") -> None:
    """What each attack leaves of a mixture's accuracy, and all of them together.

    Bars are Wilson's 95 % intervals.

    Args:
      path: the PNG to write; the same figure as PDF is written beside it.
      report: as from `evaluation.Evaluation.report`.
      threat: norm and radius, for the title.
    """
    robust = report["robust_accuracy"]
    rows = np.arange(len(robust))
    (figure, (axis,)) = drawing.figure(5, 0.3 * len(rows) + 1.2, 1)
    axis.errorbar(
        [100 * accuracy for accuracy in robust.values()],
        rows,
        xerr=around([*robust.values()], [interval_of(report, name) for name in robust]),
        color=drawing.RIGHT,
        marker="s",
        linestyle="none",
    )
    axis.axvline(100 * report["clean_accuracy"], color="0.2", linestyle="--")
    title = f"{threat}; dashed: clean".removeprefix("; ")
    axis.set(title=title, xlabel="accuracy left (%)", xlim=(-3, 103), yticks=rows)
    axis.set_yticklabels([name.replace("_", " ") for name in robust])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    drawing.write(figure, path)


def plot_security(
    path: str | os.PathLike, curves: Mapping[str, Mapping[str, Any]], *, norm: str = ""
) -> None:
    """Accuracy that each attack leaves against the radius, one panel for each classifier.

    Bars are Wilson's 95 % intervals over the examples.

    Args:
      path: the PNG to write; the same figure as PDF is written beside it.
      curves: `name -> curves` with the entries of `SecurityCurves.report`.
      norm: of the radius, for the axis.

    Raises:
      ValueError: if there are no curves.
    """
    if not curves:
        raise ValueError("curves must hold those of one classifier, got none")
    figure, axes = drawing.figure(4.0 * len(curves), 3.2, len(curves))
    for axis, (name, each) in zip(axes, curves.items(), strict=True):
        others = [attack for attack in each["accuracy"] if attack not in drawing.ATTACKS]
        for attack, accuracy in each["accuracy"].items():
            axis.errorbar(
                each["radii"],
                100 * np.asarray(accuracy),
                yerr=around(accuracy, each["interval"][attack]),
                label=attack.replace("_", " "),
                **drawing.of_attack(attack, others),
                markersize=4,
            )
        xlabel = f"radius ({norm})" if norm else "radius"
        axis.set(title=name, xlabel=xlabel, ylabel="accuracy left (%)", ylim=(-3, 103))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    drawing.write(figure, path)


def around(accuracies: Any, intervals: Any) -> np.ndarray:
    """`[2, N]` distances, in percent, from accuracies `[N]` down and up to the ends `[N, 2]`."""
    ends, accuracies = np.asarray(intervals).reshape(-1, 2).T, np.asarray(accuracies)
    return 100 * np.maximum([accuracies - ends[0], ends[1] - accuracies], 0.0)


def _answers(label, predictions, class_names):
    """Each member's class, for those who cannot see the colour with a mark; are all right?"""
    words = [
        f"{class_names[int(prediction)]} {'✓' if prediction == label else '✗'}"
        for prediction in predictions
    ]
    return "\n".join(words), bool(np.all(predictions == label))


def _check_shapes(images, attacked, labels, clean_predictions, attacked_predictions):
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be [N, H, W, 1 or 3], got {list(images.shape)}")
    expected = {
        "attacked": (attacked, images.shape),
        "labels": (labels, images.shape[:1]),
        "attacked_predictions": (attacked_predictions, clean_predictions.shape),
        "clean_predictions": (clean_predictions, (len(images), clean_predictions.shape[-1])),
    }
    for name, (array, shape) in expected.items():
        if np.shape(array) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(np.shape(array))}")


def _select(runs, fields):
    """Of each run the entries that have all fields."""
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    selected = {}
    for name, entries in runs.items():
        selected[name] = [entry for entry in entries if all(field in entry for field in fields)]
        if not selected[name]:
            raise ValueError(f"metrics of {name} must hold an entry with {', '.join(fields)}")
    return selected


def _line(axis, number, name, entries, values):
    few = len(entries) <= 20
    axis.plot(
        [entry["epoch"] for entry in entries],
        values,
        label=name,
        **drawing.look(number),
        markersize=4 if few else 0,
    )
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
