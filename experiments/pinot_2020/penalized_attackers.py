"""Attackers who pay for what they do: no pure equilibrium, and what randomisation gains.

    python -m experiments.pinot_2020.penalized_attackers      # 10 seconds on 2 CPU cores

Pinot et al., Randomization matters, 2020: two Gaussians, an attacker who pays for the length of
his moves (norm penalty) or for their number (mass penalty). Expect:

- figure 1: the best attack clears a zone of width epsilon on both sides of the boundary;
- theorem 1: best responses to best responses go round in circles; each is a strict improvement;
- theorem 2: a mixture of a classifier and of the best response to its best attack has less risk
  for every alpha in ((1 + lam epsilon) / 2, 1), or ((1 + lam) / 2, 1), where the attackable zone
  holds more mass than its surroundings; where it holds far less, the mixture has *more* risk but
  for alpha next to 1.

Writes `figure_1.png`, `best_responses.png`, `cycle.png`, `theorem_2.png`, `theorem_2.csv` and
`result.json`.
"""

import dataclasses
import itertools
import pathlib

import numpy as np

from experiments.pinot_2020 import penalized, plots
from experiments.pinot_2020.penalized import CLASSES, PENALTIES, Gaussians
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks
from mixjax.reporting import Head

PROGRAM = "experiments.pinot_2020.penalized_attackers"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag; lengths are on the line on which the Gaussians lie."""

    # Figure 1 and the cycle: class 1 around `mean`, class -1 around `-mean`.
    mean: float = flag(1.0, "of class 1; of class -1 the negative")
    scale: float = flag(1.0, "standard deviation of both")
    epsilon: float = flag(0.6, "longest move")
    lam: float = flag(0.3, "price of a move, in errors per unit of length or per move")
    cells: int = flag(240, "cells of the line in the cycle of best responses")
    rounds: int = flag(12, "best responses of each player, at most")
    # Theorem 2: Gaussians that vanish around the attackable zone, and some that do not.
    narrow_mean: float = flag(0.25, "of class 1 where the condition holds")
    narrow_scale: float = flag(0.2, "standard deviation where the condition holds")
    far_mean: float = flag(0.75, "of class 1 where the condition fails")
    far_scale: float = flag(0.15, "standard deviation where the condition fails")
    far_epsilon: float = flag(0.5, "longest move where the condition fails")
    far_lam: float = flag(0.01, "price where the condition fails")
    epsilons: str = flag("0.3 0.4 0.5 0.75 1", "longest moves in the grid of theorem 2")
    lams: str = flag("0.1 0.3 0.5 0.7 0.9", "prices in the grid of theorem 2")
    alphas: int = flag(41, "weights of the first classifier tried")
    # The plane.
    points: int = flag(60, "points attacked in the plane")
    seed: int = flag(0, "root of all randomness: the points in the plane")
    run_dir: str = flag("", "folder of the results; empty: runs/penalized_attackers")
    debug: bool = flag(False, "show the traceback of an error")


PRESETS = {"paper": Config()}


def main(argv=None):
    """Computes, draws."""
    program.main(PROGRAM, __doc__ or "", PRESETS, program.in_folder(experiment), argv)


def experiment(config: Config, folder: pathlib.Path) -> Outcome:
    """The four figures and their numbers."""
    epsilons, lams = check(config)
    wide = Gaussians(config.mean, config.scale)
    plots.plot_penalized_line(folder / "figure_1.png", *attacked_line(wide, config.epsilon))
    plane = best_responses(config)
    plots.plot_penalized_plane(folder / "best_responses.png", plane, epsilon=config.epsilon)
    cycles = {penalty: cycle(wide, penalty, config) for penalty in PENALTIES}
    plots.plot_cycle(folder / "cycle.png", cycles, extent=_extent(wide), epsilon=config.epsilon)
    narrow = Gaussians(config.narrow_mean, config.narrow_scale)
    far = Gaussians(config.far_mean, config.far_scale)
    grid = [
        gain(narrow, penalty, epsilon, lam, config.alphas)
        for penalty, epsilon, lam in program.shown(
            list(itertools.product(PENALTIES, epsilons, lams)), "theorem 2", "case"
        )
    ]
    failing = [
        gain(far, penalty, config.far_epsilon, config.far_lam, config.alphas)
        for penalty in PENALTIES
    ]
    plots.plot_theorem_2(folder / "theorem_2.png", shown(grid, epsilons, lams), failing, grid)
    write_csv(folder, grid + failing)
    result = {
        "best_responses": {panel["title"]: panel["largest_error"] for panel in plane},
        "cycle": {
            name: {key: value for key, value in found.items() if key != "answers"}
            for name, found in cycles.items()
        },
        "theorem_2": theorem_2(grid),
        "condition_fails": theorem_2(failing),
        "grid": [without_curves(each) for each in grid],
        "failing": [without_curves(each) for each in failing],
    }
    drawn = {
        "figure_1.png": "Densities before and after the best attack of either penalty.",
        "best_responses.png": "Best attacks in the plane.",
        "cycle.png": "Best responses to best responses.",
        "theorem_2.png": "Risk of the mixture against the weight of the first classifier.",
    }
    return Outcome(result, summary_lines(result), head(config, result), figures=drawn)


def head(config: Config, result: dict) -> Head:
    """What the page begins with: where randomisation gains, and where it does not."""
    holds, fails = result["theorem_2"], result["condition_fails"]
    gains = "gains" if holds["least_gain"] > 0 else "does not always gain"
    loses = "loses" if fails["least_gain"] < 0 else "does not lose"
    return Head(
        norm="length of a move on the line, or whether there is one (mass penalty)",
        radius=f"{config.epsilon:g} for figure 1 and the cycle; theorem 2: {config.epsilons}",
        model="thresholds between two Gaussians, and mixtures of two of them",
        attack=f"the best one, exact, at prices {config.lams}",
        examples="none: risks are integrals over the Gaussians",
        found=f"Where theorem 2's condition holds a mixture {gains} in all {holds['cases']} cases "
        f"(by {holds['least_gain']:.2g} to {holds['largest_gain']:.3f} within the intervals), and "
        f"where it fails a mixture {loses} (by up to {abs(min(fails['least_gain'], 0)):.3f}).",
    )


def check(config: Config):
    """The lists among the settings; raises `ValueError` for what is out of range."""
    names = "mean scale epsilon narrow_mean narrow_scale far_mean far_scale far_epsilon".split()
    checks.positive(**{name: getattr(config, name) for name in names})
    checks.within(0.0, 1.0, epsilon=config.epsilon, far_epsilon=config.far_epsilon)
    checks.positive(lam=config.lam, far_lam=config.far_lam)
    checks.fraction(lam=config.lam, far_lam=config.far_lam)
    checks.at_least(8, cells=config.cells)
    checks.at_least(1, rounds=config.rounds, points=config.points)
    checks.at_least(3, alphas=config.alphas)
    epsilons = program.numbers(0.0, 1.0, epsilons=config.epsilons)
    lams = program.numbers(0.0, 1.0, lams=config.lams)
    checks.positive(epsilons=np.array(epsilons), lams=np.array(lams))
    for lam in lams:
        checks.fraction(lams=lam)
    return epsilons, lams


def attacked_line(gaussians: Gaussians, epsilon: float):
    """Densities of both classes before the attack and under the best attack of either penalty.

    Returns:
      Places, `title -> [2, P]` densities, and the mass that the norm penalty heaps up at the edge.
    """
    x = np.linspace(-_extent(gaussians), _extent(gaussians), 2001)
    before = np.stack([gaussians.density(label, x) for label in CLASSES])
    sides = np.stack([label * x for label in CLASSES])
    attackable = (sides > 0) & (sides <= epsilon)
    arrived = (sides <= 0) & (sides > -epsilon)
    moved = np.stack([gaussians.density(label, x + label * epsilon) for label in CLASSES])
    cleared = np.where(attackable, 0.0, before)
    panels = {
        "before the attack": before,
        "mass penalty": cleared + np.where(arrived, moved, 0.0),
        "norm penalty": cleared,
    }
    heaped = [abs(gaussians.mass(label, 0.0, label * epsilon)) for label in CLASSES]
    return x, panels, heaped, epsilon


def _extent(gaussians):
    return gaussians.mean + 3 * gaussians.scale


def best_responses(config: Config) -> list[dict]:
    """Attacks in the plane: in closed form on a line, numerically on it and on a curve."""
    rng = np.random.default_rng(config.seed)
    labels = rng.choice(CLASSES, config.points)
    x = rng.normal(size=(config.points, 2)) * 0.9
    slope, offset = np.array([1.0, 0.5]), 0.1
    x[:, 0] += 0.6 * labels
    panels = []
    for penalty in PENALTIES:

        def line(x):
            return x @ slope + offset

        def curve(x):
            return x[..., 0] - 0.5 * np.sin(2.5 * x[..., 1])

        exact = penalized.linear_response(x, labels, slope, offset, penalty, config.epsilon)
        for name, score_fn in (("line", line), ("curve", curve)):
            found = penalized.numerical_response(score_fn, x, labels, penalty, config.epsilon)
            error = None
            if name == "line":
                error = largest_error(x, labels, found, exact, line, penalty)
            panels.append(
                {
                    "title": f"{penalty} penalty, {name}",
                    "x": x,
                    "labels": labels,
                    "target": exact if name == "line" else found,
                    "score_fn": score_fn,
                    "largest_error": error,
                }
            )
    return panels


def largest_error(x, labels, found, exact, score_fn, penalty) -> float:
    """By how much a numerical attack's moves are too long, beside the closed form's least ones."""
    order = 2 if penalty == "norm" else np.inf
    wrong = labels * score_fn(found) <= 0
    moved = np.any(exact != x, axis=1)
    if np.any(moved != (wrong & np.any(found != x, axis=1))):
        raise ValueError("points must be attackable by both routes or by none: change the seed")
    least = np.linalg.norm(exact - x, ord=order, axis=1)
    if penalty == "mass":  # the closed form goes across; the least move ends at the line
        margin = labels * score_fn(x)
        least = np.where(
            moved, margin / np.abs(score_fn(np.eye(2)) - score_fn(np.zeros(2))).sum(), 0
        )
    return float(np.abs(np.linalg.norm(found - x, ord=order, axis=1) - least).max())


def cycle(gaussians: Gaussians, penalty: str, config: Config) -> dict:
    """Best responses in turn from the Bayes classifier on, until a classifier comes again."""
    cells = penalized.lattice(gaussians, config.cells, _extent(gaussians))
    answers = np.where(cells.centers > 0, 1, -1)
    history, attacked, defended = [answers], [], []
    period = None
    for _ in range(config.rounds):
        target = penalized.attack_cells(cells, answers, penalty, config.epsilon)
        attacked.append(penalized.attacked_risk(cells, answers, target, penalty, config.lam))
        positive, negative = penalized.transported(cells, target)
        # Where no class is likelier, nothing changes.
        answers = np.where(positive == negative, answers, np.where(positive > negative, 1, -1))
        defended.append(penalized.attacked_risk(cells, answers, target, penalty, config.lam))
        history.append(answers)
        seen = [np.array_equal(answers, old) for old in history[:-1]]
        if any(seen):
            period = len(history) - 1 - seen.index(True)
            break
    gains = np.array(attacked) - np.array(defended)
    return {
        "answers": np.array(history),
        "risk_when_the_attacker_has_moved": attacked,
        "risk_when_the_defender_has_moved": defended,
        "least_gain_of_the_defender": gains.min(),
        "least_gain_of_the_attacker": min(np.subtract(attacked[1:], defended[:-1]), default=None),
        "period": period,
    }


def gain(gaussians: Gaussians, penalty: str, epsilon: float, lam: float, num_alphas: int) -> dict:
    """Theorem 2 for one price: the risk of the mixture of h1 and h2 against alpha.

    h1 is the Bayes classifier, h2 the best response to the best attack on it; the mixture is
    attacked at its own worst.
    """
    first = penalized.threshold(0.0)
    second = penalized.defender_response(first, gaussians, epsilon)
    alone, _ = penalized.worst_risk(gaussians, [first], [1.0], penalty, epsilon, lam)
    exact = penalized.threshold_risk(gaussians, 0.0, penalty, epsilon, lam)
    start = (1 + lam * (epsilon if penalty == "norm" else 1)) / 2
    inside = start + (1 - start) * np.linspace(0.005, 0.995, num_alphas)
    everywhere = np.linspace(0, 1, num_alphas)

    def risks(alphas):
        return np.array(
            [
                penalized.worst_risk(gaussians, [first, second], [a, 1 - a], penalty, epsilon, lam)
                for a in alphas
            ]
        ).T

    (within, errors), (risk, _) = risks(inside), risks(everywhere)
    return {
        "penalty": penalty,
        "epsilon": epsilon,
        "lam": lam,
        "interval": [start, 1.0],
        "vanishing": [
            {"outside": outside, "inside": zone, "holds": outside <= zone}
            for outside, zone in penalized.vanishing(gaussians, 0.0, epsilon)
        ],
        "risk_alone": exact,
        # What the mixture gains for each unit of weight of h2, as both tend to 0 at alpha = 1.
        "least_gain_per_share": float(np.min((exact - within) / (1 - inside))),
        "least_gain": float(np.min(exact - within)),
        "largest_gain": float(np.max(exact - within)),
        "part_of_the_interval_with_gain": float(np.mean(exact > within)),
        "integration_error": float(max(errors.max(), abs(alone - exact))),
        "alphas": everywhere,
        "risks": risk,
    }


def shown(grid, epsilons, lams) -> list[dict]:
    """The curves that are drawn: the middle radius, the lowest and a high price."""
    epsilon = sorted(epsilons)[len(epsilons) // 2]
    chosen = {min(lams), sorted(lams)[len(lams) // 2]}
    return [each for each in grid if each["epsilon"] == epsilon and each["lam"] in chosen]


def without_curves(entry: dict) -> dict:
    """An entry of the grid without what `theorem_2.csv` holds."""
    return {name: value for name, value in entry.items() if name not in ("alphas", "risks")}


def theorem_2(entries) -> dict:
    """What the entries say together."""
    return {
        "condition_holds": all(each["holds"] for entry in entries for each in entry["vanishing"]),
        "least_gain": min(entry["least_gain"] for entry in entries),
        "least_gain_per_share": min(entry["least_gain_per_share"] for entry in entries),
        "largest_gain": max(entry["largest_gain"] for entry in entries),
        "largest_integration_error": max(entry["integration_error"] for entry in entries),
        "part_of_the_interval_with_gain": max(
            entry["part_of_the_interval_with_gain"] for entry in entries
        ),
        "cases": len(entries),
    }


def write_csv(folder: pathlib.Path, entries):
    """`theorem_2.csv`: one row for each case and alpha."""
    rows = [
        (PENALTIES.index(entry["penalty"]), entry["epsilon"], entry["lam"], alpha, risk,
         entry["risk_alone"])
        for entry in entries
        for alpha, risk in zip(entry["alphas"], entry["risks"], strict=True)
    ]  # fmt: skip
    names = ("is_mass_penalty", "epsilon", "lam", "alpha", "risk", "risk_of_h1")
    program.write_csv(folder / "theorem_2.csv", dict(zip(names, np.array(rows).T, strict=True)))


def summary_lines(result: dict) -> str:
    """The numbers as a few lines of text."""
    holds, fails = result["theorem_2"], result["condition_fails"]
    lines = [
        f"theorem 2, {holds['cases']} cases, condition holds: {holds['condition_holds']}; gain "
        f"within the intervals {holds['least_gain']:.2g} to {holds['largest_gain']:.3f}, "
        f"integration error {holds['largest_integration_error']:.1g}",
        f"condition fails: gain {fails['least_gain']:.3f} to {fails['largest_gain']:.4f}, above 0 "
        f"in at most {fails['part_of_the_interval_with_gain']:.3f} of the interval, "
        f"integration error {fails['largest_integration_error']:.1g}",
    ]
    for name, found in result["cycle"].items():
        lines.append(
            f"{name} penalty: the classifiers repeat with period {found['period']}; each attack "
            f"gains at least {found['least_gain_of_the_attacker']:.3f}, each defence "
            f"{found['least_gain_of_the_defender']:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
