"""The figures of Pinot 2020: attackers who pay, and what blind attacks leave."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mixjax.reporting import drawing, interval_of
from mixjax.reporting.figures import around

_POSITIVE, _NEGATIVE = drawing.COLORS[0], drawing.COLORS[1]  # class 1 and class -1, everywhere


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
    figure, axes = drawing.figure(12.0, 3.3, len(panels))
    for axis, (title, densities) in zip(axes, panels.items(), strict=True):
        for density, color, style, name in zip(
            densities, (_POSITIVE, _NEGATIVE), drawing.STYLES, ("1", "-1"), strict=False
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
        within = "" if title.startswith("before") else f", radius $\\epsilon$ = {epsilon:g}"
        axis.set(title=title + within, xlabel="x", ylabel="density", ylim=(0, None))
        drawing.plain(axis)
    drawing.write(figure, path, is_small=True)


def plot_penalized_plane(
    path: str | os.PathLike, panels: Sequence[Mapping[str, Any]], *, epsilon: float
) -> None:
    """Points of the plane and where the best attack moves them.

    Args:
      path: file to write, as PNG.
      panels: dicts of `title`, `x [N, 2]`, `labels [N]`, `target [N, 2]`, and
        `score_fn: [..., 2] -> [...]`, above 0 on the side of class 1.
      epsilon: longest move.
    """
    figure, axes = drawing.figure(3.4 * len(panels), 4.2, len(panels))
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
            *x[moved].T, *step.T, angles="xy", scale_units="xy", scale=1, width=0.004, zorder=2
        )
        drawing.points(axis, x, panel["labels"], s=14)
        axis.set(title=panel["title"], xlim=(-extent, extent), ylim=(-extent, extent))
        axis.set(xlabel="$x_1$", ylabel="$x_2$")
        axis.set_aspect("equal")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, [f"class {label}" for label in labels], loc="outside lower center", ncols=2,
        frameon=False, title=f"arrows: the attacker's best response, l2 radius {epsilon:g}",
    )  # fmt: skip
    drawing.write(figure, path, is_small=True)


def plot_cycle(
    path: str | os.PathLike,
    cycles: Mapping[str, Mapping[str, Any]],
    *,
    extent: float,
    epsilon: float,
) -> None:
    """What the classifiers answer, round by round, and the risk after every move.

    Args:
      path: file to write, as PNG.
      cycles: `penalty -> dict` of `answers [T + 1, J]`, -1 or 1, and of the risks `[T]`
        `risk_when_the_attacker_has_moved` and `risk_when_the_defender_has_moved`.
      extent: the line reaches from `-extent` to `extent`.
      epsilon: longest move.

    References:
      Pinot et al., Randomization matters, 2020, theorem 1.
    """
    figure, axes = drawing.figure(5.2 * len(cycles), 5.0, (2, len(cycles)))
    for upper, lower, (penalty, found) in zip(
        axes[: len(cycles)], axes[len(cycles) :], cycles.items(), strict=True
    ):
        answers = found["answers"]
        upper.imshow(
            answers, aspect="auto", cmap="RdBu", vmin=-1.6, vmax=1.6, interpolation="nearest",
            extent=(-extent, extent, len(answers) - 0.5, -0.5),
        )  # fmt: skip
        title = f"{penalty} penalty, radius $\\epsilon$ = {epsilon:g}"
        upper.set(title=title, xlabel="x (blue: answers 1)", ylabel="round")
        attacked = found["risk_when_the_attacker_has_moved"]
        defended = found["risk_when_the_defender_has_moved"]
        risks = np.stack([attacked, defended], axis=1).ravel()
        moves = np.arange(len(risks)) / 2
        lower.plot(moves, risks, color="0.6", linewidth=1, zorder=1)
        for k, name in enumerate(("attacker has moved", "defender has moved")):
            lower.scatter(
                moves[k::2],
                risks[k::2],
                color=drawing.COLORS[1 - k],
                marker=drawing.MARKERS[k],
                s=22,
                label=name,
            )
        lower.set(xlabel="round", ylabel="risk, less the penalty", ylim=(None, 1.3 * risks.max()))
        drawing.plain(lower)
    drawing.write(figure, path, is_small=True)


def plot_theorem_2(
    path: str | os.PathLike,
    curves: Sequence[Mapping[str, Any]],
    failing: Sequence[Mapping[str, Any]],
    grid: Sequence[Mapping[str, Any]],
) -> None:
    """Risk of the mixture against alpha, the theorem's interval a bar; the gain over a grid.

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
    figure, axes = drawing.figure(15.0, 3.7, len(penalties) + 2)
    for axis, penalty in zip(axes, penalties, strict=False):
        own = [each for each in curves if each["penalty"] == penalty]
        _theorem_2_panel(axis, own)
        title = rf"{penalty} penalty, radius $\epsilon$ = {own[0]['epsilon']:g}"
        axis.set_title(f"{title}\nbars: the theorem's interval")
    _theorem_2_panel(axes[-2], failing, by="penalty")
    axes[-2].set_title(f"radius $\\epsilon$ = {failing[0]['epsilon']:g}\ncondition fails: a loss")
    for k, penalty in enumerate(penalties):
        own = [each for each in grid if each["penalty"] == penalty]
        for number, epsilon in enumerate(dict.fromkeys(each["epsilon"] for each in own)):
            row = [each for each in own if each["epsilon"] == epsilon]
            axes[-1].plot(
                [each["lam"] for each in row], [each["least_gain_per_share"] for each in row],
                color=drawing.COLORS[number % 7], marker=drawing.MARKERS[number % 7], ms=4,
                linestyle=drawing.STYLES[k],
                label=rf"$\epsilon$ = {epsilon:g}" if k == 0 else None,
            )  # fmt: skip
    axes[-1].axhline(0, color="black", linewidth=0.8)
    axes[-1].set(
        xlabel=r"price $\lambda$", ylabel=r"least gain / $(1 - \alpha)$",
        title="condition holds: gain in the interval\n" + ", ".join(
            f"{name} penalty {('solid', 'dashed')[k]}" for k, name in enumerate(penalties)
        ),
    )  # fmt: skip
    drawing.plain(axes[-1])
    axes[-1].legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawing.write(figure, path, is_small=True)


def _theorem_2_panel(axis, curves, by="lam"):
    for number, each in enumerate(curves):
        color = drawing.COLORS[number % 7]
        name = rf"$\lambda$ = {each['lam']:g}" if by == "lam" else f"{each[by]} penalty"
        axis.plot(
            each["alphas"], each["risks"], color=color, label=name, linestyle=drawing.STYLES[number]
        )
        axis.axhline(each["risk_alone"], color=color, linewidth=0.8, linestyle=":")
        height = 0.015 + 0.03 * number
        axis.plot(
            each["interval"], [height, height], color=color, linewidth=4, alpha=0.5,
            transform=axis.get_xaxis_transform(), solid_capstyle="butt",
        )  # fmt: skip
    axis.set(xlabel=r"weight $\alpha$ of $h_1$", ylabel="worst-case risk (dotted: $h_1$ alone)")
    drawing.plain(axis)


def plot_blindness(
    path: str | os.PathLike,
    results: Mapping[str, Mapping[str, Any]],
    attacks: Sequence[str],
    blind: Collection[str],
    *,
    radii: Mapping[str, float],
) -> None:
    """What each attack leaves of each mixture's accuracy, and the exact optimum where known.

    Bars are Wilson's 95 % intervals, as in `plot_security`.

    Args:
      path: file to write, as PNG.
      results: `name -> result`, dicts as in `check_result`; with the entry `optimum`, of
        `accuracy` and `error_bar`, if the strongest attack is known.
      attacks: names of the attacks to show, from top to bottom.
      blind: which of them do not see the members; drawn with other marks.
      radii: `name -> l-inf radius`.

    Raises:
      ValueError: if there is no result, or one without one of the attacks.
    """
    if not results:
        raise ValueError("results must hold at least one result, got none")
    figure, axes = drawing.figure(2.6 * len(results) + 1.2, 0.3 * len(attacks) + 1.6, len(results))
    rows = range(len(attacks))
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        if missing := [attack for attack in attacks if attack not in result["robust_accuracy"]]:
            raise ValueError(f"result of {name} must hold the attack {', '.join(missing)}")
        for is_blind, color, marker in ((True, drawing.WRONG, "o"), (False, drawing.RIGHT, "s")):
            chosen = [row for row in rows if (attacks[row] in blind) == is_blind]
            axis.errorbar(
                [100 * result["robust_accuracy"][attacks[row]] for row in chosen],
                chosen,
                xerr=around(
                    [result["robust_accuracy"][attacks[row]] for row in chosen],
                    [interval_of(result, attacks[row]) for row in chosen],
                ),
                color=color,
                marker=marker,
                linestyle="none",
                label="blind to the members" if is_blind else "sees the members",
            )
        if "optimum" in result:
            optimum = 100 * result["optimum"]["accuracy"]
            axis.axvline(optimum, color="0.2", linestyle="--", label="exact optimum")
        title = f"{name}\nl-inf radius {radii[name]:g}"
        axis.set(title=title, xlabel="accuracy left (%)", xlim=(-3, 103), yticks=rows)
        axis.set_yticklabels([])
        axis.set_ylim(len(attacks) - 0.5, -0.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticklabels([attack.replace("_", " ") for attack in attacks])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    drawing.write(figure, path)
