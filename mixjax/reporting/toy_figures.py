"""Figures of the games in the plane and on the line: risks, fields, attacks that move points."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixjax import files
from mixjax.reporting.figures import _COLORS, _MARKERS, _STYLES, _figure

_DOTS_PER_INCH = 110
_PALETTE = 256  # colours: a file of a third of the size
_POSITIVE, _NEGATIVE = _COLORS[0], _COLORS[1]  # class 1 and class -1, everywhere


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
    figure, (left, middle, right) = _figure(13.0, 3.9, 3)
    mesh = _field(left, field["side"], field["probability"])
    figure.colorbar(mesh, ax=left, label="probability of class 1", ticks=np.arange(6) / 5)
    _discs(left, field["x"], field["radius"])
    _points(left, field["x"], field["labels"])
    extent = float(np.max(np.abs(field["side"])))
    left.set(title="optimal mixture", xlim=(-extent, extent), ylim=(-extent, extent))
    left.set_aspect("equal")

    for number, (name, risk) in enumerate(curves["risks"].items()):
        label = "oracle, best so far" if name == "oracle" else rf"$\alpha$ = {name}"
        color = _COLORS[number % len(_COLORS)]
        middle.plot(
            curves["steps"], risk, color=color, label=label, marker=_MARKERS[number % 7], ms=3.5,
            linestyle=_STYLES[number % 4],
        )  # fmt: skip
        if curves["limits"].get(name) is not None:
            middle.plot(
                [1.02], [curves["limits"][name]], marker=5, color=color, clip_on=False,
                transform=middle.get_yaxis_transform(),
            )  # fmt: skip
    middle.axhline(value, color="black", linewidth=1, label="value (linear program)")
    middle.set(
        xscale="log", xlabel="iterations", ylabel="adversarial risk", title="convergence",
    )  # fmt: skip
    middle.text(1.0, 1.01, "limits", transform=middle.transAxes, ha="center", fontsize=8)
    _plain(middle)

    risks = np.asarray(risks)
    names = ("mixture, in sample", "single, in sample", "mixture, test", "single, test")
    for k, name in enumerate(names):
        color = _COLORS[k % 2]
        style = {"linestyle": _STYLES[k // 2], "marker": _MARKERS[k], "ms": 4}
        mean, deviation = risks[..., k].mean(axis=0), risks[..., k].std(axis=0)
        right.plot(radii, mean, color=color, label=name, **style)
        if k < 2:
            right.fill_between(radii, mean - deviation, mean + deviation, color=color, alpha=0.2)
    right.set(
        xlabel=r"radius $\epsilon$", ylabel="adversarial risk",
        title=f"mean and deviation of {len(risks)} seeds",
    )  # fmt: skip
    _plain(right)
    _write(figure, path)


def _field(axis, side, probability):
    levels = np.linspace(-0.001, 1.001, 12)
    return axis.contourf(side, side, probability, levels=levels, cmap="RdBu", alpha=0.75)


def _discs(axis, x, radius):
    from matplotlib.patches import Circle

    for center in np.asarray(x):
        axis.add_patch(Circle(tuple(center), radius, color="black", alpha=0.03, linewidth=0))


def _points(axis, x, labels, **style):
    for label, color, marker in ((1, _POSITIVE, "o"), (-1, _NEGATIVE, "^")):
        own = np.asarray(x)[np.asarray(labels) == label]
        look = {"s": 22, "edgecolors": "white", "linewidths": 0.6, "zorder": 3} | style
        axis.scatter(own[:, 0], own[:, 1], color=color, marker=marker, label=f"{label:d}", **look)


def _plain(axis):
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7.5)


def _write(figure, path):
    from PIL import Image  # comes with the extra `report`, as matplotlib

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=_DOTS_PER_INCH)
    picture = (
        Image.open(full)
        .convert("RGB")
        .quantize(_PALETTE, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    picture.save(small, format="png", optimize=True)
    files.write(path, small.getvalue())


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
    figure, (axis,) = _figure(5.6, 3.8, 1)
    for number, (name, risk) in enumerate(risks.items()):
        axis.plot(shares, risk, color=_COLORS[number], linestyle=_STYLES[number], label=name, lw=2)
    axis.axhline(value, color="0.6", linewidth=0.8, zorder=0)
    axis.set(xlabel="weight of $f_1$", ylabel="risk", title="two classifiers and their attacker")
    _plain(axis)
    _write(figure, path)


def plot_penalized_line(
    path: str | os.PathLike, x: Any, panels: Mapping[str, Any], heaped: Any, epsilon: float
) -> None:
    """Two densities before the attack and under the best attacks; the attackable zones shaded.

    Args:
      path: file to write, as PNG.
      x: `[P]` places; the boundary is at 0.
      panels: `title -> [2, P]` densities of class 1 and of class -1.
      heaped: `[2]` masses that the attacker who pays by length heaps up at the boundary.
      epsilon: longest move.

    References:
      Pinot et al., Randomization matters, 2020, figure 1.
    """
    figure, axes = _figure(12.0, 3.3, len(panels))
    for axis, (title, densities) in zip(axes, panels.items(), strict=True):
        for density, color, style, name in zip(
            densities, (_POSITIVE, _NEGATIVE), _STYLES, ("1", "-1"), strict=False
        ):
            axis.plot(x, density, color=color, linestyle=style, label=f"class {name}")
        axis.axvline(0.0, color="black", linewidth=1)
        if title.startswith("norm"):
            for mass, color, side in zip(heaped, (_POSITIVE, _NEGATIVE), (-1, 1), strict=True):
                place = side * 0.015 * (x[-1] - x[0])
                axis.annotate(
                    "", (place, 0.28), (place, 0.0), arrowprops={"arrowstyle": "->", "color": color}
                )
                axis.text(
                    place + side * 0.05, 0.3, f"{mass:.2f}", color=color,
                    ha="right" if side < 0 else "left", fontsize=8,
                )  # fmt: skip
        if not title.startswith("before"):
            axis.axvspan(0.0, epsilon, color=_POSITIVE, alpha=0.12)
            axis.axvspan(-epsilon, 0.0, color=_NEGATIVE, alpha=0.12)
        axis.set(title=title, xlabel="x", ylabel="density", ylim=(0, None))
        _plain(axis)
    _write(figure, path)


def plot_penalized_plane(path: str | os.PathLike, panels: Sequence[Mapping[str, Any]]) -> None:
    """Points of the plane and where the best attack moves them.

    Args:
      path: file to write, as PNG.
      panels: dicts of `title`, `x [N, 2]`, `labels [N]`, `target [N, 2]`, and
        `score_fn: [..., 2] -> [...]`, above 0 on the side of class 1.
    """
    figure, axes = _figure(3.4 * len(panels), 3.5, len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        x, target = panel["x"], panel["target"]
        extent = float(np.abs(x).max()) + 0.2
        side = np.linspace(-extent, extent, 120)
        grid = np.stack(np.meshgrid(side, side), axis=-1)
        score = panel["score_fn"](grid)
        axis.contourf(side, side, score > 0, levels=[-0.5, 0.5, 1.5], cmap="RdBu", alpha=0.35)
        moved = np.any(x != target, axis=1)
        step = (target - x)[moved]
        axis.quiver(
            *x[moved].T, *step.T, angles="xy", scale_units="xy", scale=1, width=0.006, zorder=2
        )
        _points(axis, x, panel["labels"], s=14)
        axis.set(title=panel["title"], xlim=(-extent, extent), ylim=(-extent, extent))
        axis.set_aspect("equal")
    _write(figure, path)


def plot_cycle(
    path: str | os.PathLike, cycles: Mapping[str, Mapping[str, Any]], *, extent: float
) -> None:
    """What the classifiers answer, round by round, and the risk after every move.

    Args:
      path: file to write, as PNG.
      cycles: `penalty -> dict` of `answers [T + 1, J]`, -1 or 1, and of the risks `[T]`
        `risk_when_the_attacker_has_moved` and `risk_when_the_defender_has_moved`.
      extent: the line reaches from `-extent` to `extent`.

    References:
      Pinot et al., Randomization matters, 2020, theorem 1.
    """
    figure, axes = _figure(5.2 * len(cycles), 5.0, (2, len(cycles)))
    for upper, lower, (penalty, found) in zip(
        axes[: len(cycles)], axes[len(cycles) :], cycles.items(), strict=True
    ):
        answers = found["answers"]
        upper.imshow(
            answers, aspect="auto", cmap="RdBu", vmin=-1.6, vmax=1.6, interpolation="nearest",
            extent=(-extent, extent, len(answers) - 0.5, -0.5),
        )  # fmt: skip
        upper.set(title=f"{penalty} penalty", xlabel="x (blue: answers 1)", ylabel="round")
        attacked = found["risk_when_the_attacker_has_moved"]
        defended = found["risk_when_the_defender_has_moved"]
        risks = np.stack([attacked, defended], axis=1).ravel()
        moves = np.arange(len(risks)) / 2
        lower.plot(moves, risks, color="0.6", linewidth=1, zorder=1)
        for k, name in enumerate(("attacker has moved", "defender has moved")):
            lower.scatter(
                moves[k::2], risks[k::2], color=_COLORS[1 - k], marker=_MARKERS[k], s=22, label=name
            )
        lower.set(xlabel="round", ylabel="risk, less the penalty", ylim=(None, 1.3 * risks.max()))
        _plain(lower)
    _write(figure, path)


def plot_theorem_2(
    path: str | os.PathLike,
    curves: Sequence[Mapping[str, Any]],
    failing: Sequence[Mapping[str, Any]],
    grid: Sequence[Mapping[str, Any]],
) -> None:
    """Risk of the mixture against alpha, the theorem's interval shaded; the gain over a grid.

    Args:
      path: file to write, as PNG.
      curves: dicts of `penalty`, `epsilon`, `lam`, `alphas [P]`, `risks [P]`, `risk_alone` and
        `interval [2]`.
      failing: the same, where the theorem's condition fails.
      grid: dicts that also hold `largest_gain` and `least_gain_per_share`.

    References:
      Pinot et al., Randomization matters, 2020, theorem 2.
    """
    penalties = list(dict.fromkeys(each["penalty"] for each in grid))
    figure, axes = _figure(15.0, 3.7, len(penalties) + 2)
    for axis, penalty in zip(axes, penalties, strict=False):
        own = [each for each in curves if each["penalty"] == penalty]
        _theorem_2_panel(axis, own)
        axis.set_title(rf"{penalty} penalty, $\epsilon$ = {own[0]['epsilon']:g}")
    _theorem_2_panel(axes[-2], failing, by="penalty")
    axes[-2].set_title("condition fails: a loss")
    for k, penalty in enumerate(penalties):
        own = [each for each in grid if each["penalty"] == penalty]
        for number, epsilon in enumerate(dict.fromkeys(each["epsilon"] for each in own)):
            row = [each for each in own if each["epsilon"] == epsilon]
            axes[-1].plot(
                [each["lam"] for each in row], [each["least_gain_per_share"] for each in row],
                color=_COLORS[number % 7], marker=_MARKERS[number % 7], linestyle=_STYLES[k], ms=4,
                label=rf"{penalty}, $\epsilon$ = {epsilon:g}",
            )  # fmt: skip
    axes[-1].axhline(0, color="black", linewidth=0.8)
    axes[-1].set(
        xlabel=r"price $\lambda$", ylabel=r"least gain / $(1 - \alpha)$",
        title="condition holds: gain in the interval",
    )  # fmt: skip
    _plain(axes[-1])
    axes[-1].legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _write(figure, path)


def _theorem_2_panel(axis, curves, by="lam"):
    for number, each in enumerate(curves):
        color = _COLORS[number % 7]
        name = rf"$\lambda$ = {each['lam']:g}" if by == "lam" else f"{each[by]} penalty"
        axis.plot(each["alphas"], each["risks"], color=color, label=name, linestyle=_STYLES[number])
        axis.axhline(each["risk_alone"], color=color, linewidth=0.8, linestyle=":")
        axis.axvspan(*each["interval"], color=color, alpha=0.1)
    axis.set(xlabel=r"weight $\alpha$ of $h_1$", ylabel="worst-case risk (dotted: $h_1$ alone)")
    _plain(axis)


def plot_bounds(
    path: str | os.PathLike,
    growths: Mapping[str, Mapping[str, Any]],
    *,
    alone: float,
    tolerance: float,
) -> None:
    """Lower and upper bounds of the game's value at every round, one colour for each way to grow.

    Args:
      path: file to write, as PNG.
      growths: `name -> dict` of `upper`, `lower` and `risk`, `[T]` each.
      alone: risk of the first member.
      tolerance: gap at which the game counts as solved.
    """
    figure, (left, right) = _figure(9.0, 3.6, 2)
    for number, (name, rounds) in enumerate(growths.items()):
        numbers = np.arange(1, len(rounds["upper"]) + 1)
        style = {"color": _COLORS[number], "linestyle": _STYLES[number]}
        left.plot(numbers, rounds["upper"], label=f"{name}: upper", **style)
        left.plot(numbers, rounds["lower"], label=f"{name}: lower", linewidth=0.9, **style)
        left.fill_between(
            numbers, rounds["lower"], rounds["upper"], color=_COLORS[number], alpha=0.08
        )
        left.scatter(
            numbers, rounds["risk"], s=7, color=_COLORS[number], marker=_MARKERS[number], alpha=0.5
        )
        gaps = np.subtract(rounds["upper"], rounds["lower"])
        right.plot(numbers, gaps, label=name, **style)
    left.axhline(alone, color="black", linewidth=0.8, linestyle=":", label="best single member")
    left.set(xlabel="round", ylabel="adversarial risk", title="bounds; dots: risk of the round")
    right.axhline(tolerance, color="black", linewidth=0.8, linestyle=":", label="tolerance")
    right.set(xlabel="round", ylabel="upper - lower", yscale="log", title="certified gap")
    for axis in (left, right):
        _plain(axis)
    _write(figure, path)
