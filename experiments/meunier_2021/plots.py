"""The figures of the toy games of Meunier 2021: the plane, two classifiers, bounds by rounds."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixjax.reporting import drawing


def plot_synthetic(
    path: str | os.PathLike,
    field: Mapping[str, Any],
    *,
    curves: Mapping[str, Any],
    value: float,
    radii: Any,
    risks: Any,
) -> None:
    """Examples over the optimal mixture; risk per step; risk against the radius.

    Args:
      path: file to write, as PNG.
      field: `x [P, 2]` and `labels [P]` to draw, `radius` of their discs, `side [G]` of the square
        on which `probability [G, G]` is the mixture's of class 1.
      curves: `steps [T]`, `risks` and `limits`: `name -> [T]` and `name -> []`, a name being
        "oracle" or a temperature; a limit may be None.
      value: the game's value.
      radii: `[R]` radii of the right panel.
      risks: `[S, R, 4]` of S seeds: mixture and best single classifier, in sample and on test.

    References:
      Meunier et al., Mixed Nash Equilibria in the Adversarial Examples Game, 2021, figure 2.
    """
    figure, (left, middle, right) = drawing.figure(13.0, 3.9, 3)
    mesh = _field(left, field["side"], field["probability"])
    figure.colorbar(mesh, ax=left, label="probability of class 1", ticks=np.arange(6) / 5)
    _discs(left, field["x"], field["radius"])
    drawing.points(left, field["x"], field["labels"])
    extent = float(np.max(np.abs(field["side"])))
    left.set(
        title=rf"optimal mixture, l2 radius {field['radius']:g}", xlabel="$x_1$", ylabel="$x_2$",
        xlim=(-extent, extent), ylim=(-extent, extent),
    )  # fmt: skip
    left.legend(title="class", frameon=True, fontsize=7.5, title_fontsize=7.5, loc="upper right")
    left.set_aspect("equal")

    for number, (name, risk) in enumerate(curves["risks"].items()):
        label = "oracle, best so far" if name == "oracle" else rf"$\alpha$ = {name}"
        color = drawing.COLORS[number % len(drawing.COLORS)]
        middle.plot(
            curves["steps"], risk, color=color, label=label,
            marker=drawing.MARKERS[number % 7], ms=3.5, linestyle=drawing.STYLES[number % 4],
        )  # fmt: skip
        if curves["limits"].get(name) is not None:
            middle.plot(
                [1.02], [curves["limits"][name]], marker=5, color=color, clip_on=False,
                transform=middle.get_yaxis_transform(),
            )  # fmt: skip
    middle.axhline(value, color="black", linewidth=1, label="value (linear program)")
    middle.set(
        xscale="log", xlabel="iterations", ylabel="adversarial risk",
        title=f"weights found step by step, radius {field['radius']:g}",
    )  # fmt: skip
    middle.text(1.0, 1.01, "limits", transform=middle.transAxes, ha="center", fontsize=8)
    drawing.plain(middle)

    risks = np.asarray(risks)
    names = ("mixture, in sample", "single, in sample", "mixture, test", "single, test")
    for k, name in enumerate(names):
        color = drawing.COLORS[k % 2]
        style = {"linestyle": drawing.STYLES[k // 2], "marker": drawing.MARKERS[k], "ms": 4}
        mean, deviation = risks[..., k].mean(axis=0), risks[..., k].std(axis=0)
        right.plot(radii, mean, color=color, label=name, **style)
        if k < 2:
            right.fill_between(radii, mean - deviation, mean + deviation, color=color, alpha=0.2)
    right.set(
        xlabel=r"radius $\epsilon$", ylabel="adversarial risk",
        title=f"worst point of the l2 ball, {len(risks)} seeds",
    )  # fmt: skip
    drawing.plain(right)
    drawing.write(figure, path, is_small=True)


def plot_game_of_two(
    path: str | os.PathLike, shares: Any, risks: Mapping[str, Any], *, value: float
) -> None:
    """Risk against the first classifier's weight, one line for each attack.

    Args:
      path: file to write, as PNG.
      shares: `[P]` weights of the first of two classifiers.
      risks: `name -> [P]` risks under an attack.
      value: the game's value.
    """
    figure, (axis,) = drawing.figure(5.6, 3.8, 1)
    for number, (name, risk) in enumerate(risks.items()):
        axis.plot(
            shares,
            risk,
            color=drawing.COLORS[number],
            linestyle=drawing.STYLES[number],
            label=name,
            lw=2,
        )
    axis.axhline(value, color="0.6", linewidth=0.8, zorder=0)
    axis.set(xlabel="weight of $f_1$", ylabel="risk", title="two classifiers, moves of at most 1")
    drawing.plain(axis)
    drawing.write(figure, path, is_small=True)


def plot_bounds(
    path: str | os.PathLike,
    growths: Mapping[str, Mapping[str, Any]],
    *,
    alone: float,
    tolerance: float,
    radius: float,
) -> None:
    """Lower and upper bounds of the game's value at every round, one colour for each way to grow.

    Args:
      path: file to write, as PNG.
      growths: `name -> dict` of `upper`, `lower` and `risk`, `[T]` each.
      alone: risk of the first member.
      tolerance: gap at which the game counts as solved.
      radius: l2 radius of the attacker.
    """
    figure, (left, right) = drawing.figure(9.0, 3.6, 2)
    for number, (name, rounds) in enumerate(growths.items()):
        numbers = np.arange(1, len(rounds["upper"]) + 1)
        style = {"color": drawing.COLORS[number], "linestyle": drawing.STYLES[number]}
        left.plot(numbers, rounds["upper"], label=f"{name}: upper", **style)
        left.plot(numbers, rounds["lower"], label=f"{name}: lower", linewidth=0.9, **style)
        left.fill_between(
            numbers, rounds["lower"], rounds["upper"], color=drawing.COLORS[number], alpha=0.08
        )
        left.scatter(
            numbers,
            rounds["risk"],
            s=7,
            color=drawing.COLORS[number],
            marker=drawing.MARKERS[number],
            alpha=0.5,
        )
        gaps = np.subtract(rounds["upper"], rounds["lower"])
        right.plot(numbers, gaps, label=name, **style)
    left.axhline(alone, color="black", linewidth=0.8, linestyle=":", label="best single member")
    left.set(
        xlabel="round",
        ylabel="adversarial risk",
        title=f"bounds, l2 radius {radius:g}; dots: risk of the round",
    )
    right.axhline(tolerance, color="black", linewidth=0.8, linestyle=":", label="tolerance")
    right.set(xlabel="round", ylabel="upper - lower", yscale="log", title="certified gap")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        drawing.plain(axis)
    drawing.write(figure, path, is_small=True)


def _field(axis, side, probability):
    levels = np.linspace(-0.001, 1.001, 12)
    return axis.contourf(side, side, probability, levels=levels, cmap="RdBu", alpha=0.75)


def _discs(axis, x, radius):
    from matplotlib.patches import Circle

    for center in np.asarray(x):
        axis.add_patch(
            Circle(tuple(center), radius, fill=False, color="black", alpha=0.35, linewidth=0.5)
        )
