"""A mixture of linear classifiers against the best one of them, solved exactly.

    python -m experiments.meunier_2021.synthetic      # a minute on 2 CPU cores

Figure 2 of Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021. Three
Gaussians in the plane, ten random half-planes, an attacker who picks the worst of 1000 points drawn
from the disc around each example. Expect that the best mixture errs .02 / .05 / .10 / .16 / .20
less often than the best single classifier at radius 2 / 2.5 / 3 / 3.5 / 4 (mean over 10 seeds,
standard deviation .06 at 3), and at most by chance less often up to 1.5; on new examples about the
same. The paper says that the mixture is strictly better whenever epsilon > 2; the table counts the
seeds in which it is, for the exact mixture and for that of Algorithm 1, by which the paper's was
optimised.

The paper does not say how the half-planes are drawn. Here the entries of slopes are normal with
deviation 1 and offsets with deviation 3. Over 20 seeds the gains are .03 / .07 / .12 / .18 / .21,
with offsets of deviation 2 .05 / .10 / .15 / .19 / .22, and with slopes of length 1 and offsets
uniform up to 3 .01 / .03 / .08 / .15 / .20 or up to 2.5 .03 / .09 / .15 / .20 / .23: no further
apart than two seeds of one draw.

Writes `figure.png`, `risks.csv` (one row for each seed and radius), `convergence.csv` and
`result.json`.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from experiments.meunier_2021 import plots
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks, games
from mixjax.data import toy
from mixjax.reporting import Head

PROGRAM = "experiments.meunier_2021.synthetic"
_ROUNDING = 1e-9  # of the risks, all of them multiples of a weight over the number of examples


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag; distances are in standard deviations of a Gaussian."""

    seeds: int = flag(10, "number of independent problems")
    examples: int = flag(1000, "training examples, and as many to test on")
    candidates: int = flag(1000, "points drawn from the disc around each example")
    members: int = flag(10, "number of half-planes")
    max_risk: float = flag(0.4, "every half-plane errs on less than this part of the examples")
    radii: str = flag("0 0.5 1 1.5 2 2.5 3 3.5 4", "radii of the discs in the right panel")
    radius: float = flag(3.0, "radius in the other panels; one of the radii")
    temperatures: str = flag("1 0.3 0.1 0.03 0.01 0.003", "of the entropic relaxation, in errors")
    iterations: int = flag(1024, "of the algorithms in the middle panel")
    shown: int = flag(40, "examples drawn in the left panel")
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder of the results; empty: runs/synthetic")
    debug: bool = flag(False, "show the traceback of an error")


class Problem(NamedTuple):
    """Examples `x [N, 2]`, labels `[N]`, and half-planes with `slopes [L, 2]`, `offsets [L]`."""

    x: jax.Array
    labels: jax.Array
    slopes: jax.Array
    offsets: jax.Array


class ErrorPatterns(NamedTuple):
    """The different rows of losses around each example, filled up with copies of the first.

    Attributes:
      losses: `[N, K, L]` which members err, 0 or 1.
      mass: `[N, K]` part of the candidates that have these losses; 0 for a copy.
    """

    losses: np.ndarray
    mass: np.ndarray


PRESETS = {"paper": Config()}


def main(argv=None):
    """Solves, measures, draws."""
    program.main(PROGRAM, __doc__ or "", PRESETS, program.in_folder(experiment), argv)


def experiment(config: Config, folder: pathlib.Path) -> Outcome:
    """The three panels and the numbers in them."""
    radii, temperatures = check(config)
    shown, risks = None, np.zeros((config.seeds, len(radii), 4))
    by_algorithm_1 = np.zeros((config.seeds, len(radii)))
    excesses, gaps = np.zeros((2, config.seeds, len(temperatures)))
    draw = jax.jit(
        functools.partial(draw_problem, config=config, radii=np.array(radii, np.float32))
    )
    for seed in program.shown(range(config.seeds), "problems", "seed"):
        problem, codes = draw(jax.random.fold_in(jax.random.key(config.seed), seed))
        codes = np.asarray(codes)
        for index, radius in enumerate(radii):
            train, test = (merge(each[index], config.members) for each in codes)
            risks[seed, index], found = best_risks(train, test)
            by_algorithm_1[seed, index] = oracle_risk(train, config.iterations)
            if radius == config.radius:
                limits = entropic_limits(train, temperatures, found.weights)
                excesses[seed] = [adversarial_risk(w, train) - found.value for w, _ in limits]
                gaps[seed] = [gap for _, gap in limits]
                shown = shown or (problem, train, found)
    assert shown is not None  # `check` has found the radius among the radii
    problem, train, found = shown
    steps, curves = convergence(train, temperatures, config.iterations)
    limits = [adversarial_risk(w, train) for w, _ in entropic_limits(train, temperatures)]
    plots.plot_synthetic(
        folder / "figure.png",
        field_of(problem, found.weights, config),
        curves={
            "steps": steps,
            "risks": curves,
            "limits": dict(zip(curves, [None, *limits], strict=True)),
        },
        value=found.value,
        radii=radii,
        risks=risks,
    )
    write_tables(folder, config, radii, risks, steps, curves)
    result = {
        "radii": summary_of(radii, risks, by_algorithm_1),
        "better_in_every_seed_from": from_where(radii, risks[..., 1] - risks[..., 0]),
        "entropic": {
            "epsilon": config.radius,
            "temperatures": temperatures,
            "excess_over_the_value": spread(excesses),
            "largest_optimality_gap": gaps.max(axis=0),
        },
        "convergence": {
            "value": found.value,
            "oracle_best": curves["oracle"][-1],
            "entropic_last": {name: risk[-1] for name, risk in curves.items() if name != "oracle"},
            "entropic_limits": dict(zip(map(str, temperatures), limits, strict=True)),
        },
        "responses": responses(train, found),
    }
    drawn = {
        "figure.png": "Examples and discs over the best mixture; risk by step; risk by radius."
    }
    return Outcome(result, summary_lines(result), head(config, result), figures=drawn)


def head(config: Config, result: dict) -> Head:
    """What the page begins with: at which radii the mixture wins in every seed."""
    since = result["better_in_every_seed_from"]
    row = next(row for row in result["radii"] if row["epsilon"] == config.radius)
    where = "at no radius" if since is None else f"from radius {since:g} on"
    return Head(
        norm="l2",
        radius=config.radii,
        model=f"half-planes, {config.members} in each game, and their best mixture",
        attack=f"the worst of {config.candidates} points of each disc",
        examples=f"{config.examples} in each of {config.seeds} seeds",
        found=f"The best mixture is strictly better than the best single classifier in every seed "
        f"{where}; at radius {config.radius:g} it gains in {row['seeds_with_gain']} of "
        f"{row['seeds']} seeds, on average {row['gain']['mean']:.3f} of the examples, and on fresh "
        f"ones {row['gain_on_test']['mean']:.3f}.",
    )


def check(config: Config):
    """The lists among the settings; raises `ValueError` for what is out of range."""
    names = ("seeds", "examples", "candidates", "members", "iterations", "shown")
    checks.at_least(1, **{name: getattr(config, name) for name in names})
    checks.within(1, 15, members=config.members)  # a pattern of errors fits in 16 bits
    checks.within(1, config.examples, shown=config.shown)
    checks.positive(max_risk=config.max_risk)
    checks.fraction(max_risk=config.max_risk)
    radii = program.numbers(0.0, 1e3, radii=config.radii)
    if config.radius not in radii:
        raise ValueError(f"radius must be one of radii {radii}, got {config.radius}")
    return radii, program.numbers(1e-4, 1e3, temperatures=config.temperatures)


def draw_problem(key, *, config: Config, radii):
    """A problem, and which members err at which candidate, as a number of `members` bits.

    Returns:
      The problem, and `[2, R, N, M]` codes on training and on test examples.
    """
    keys = jax.random.split(key, 5)
    x, labels = toy.three_gaussians(keys[0], config.examples)
    slopes, offsets = toy.half_planes(keys[1], x, labels, config.members, max_risk=config.max_risk)
    test = toy.three_gaussians(keys[2], config.examples)
    bits = 2 ** jnp.arange(config.members)

    def codes(key, x, labels):
        # The same points of the unit disc for all radii.
        discs = toy.unit_discs(key, (config.examples, config.candidates))
        moves = (discs @ slopes.T) * labels[:, None, None]
        margins = ((x @ slopes.T + offsets[None]) * labels[:, None])[:, None]

        def at(radius):
            wrong = margins + radius * moves <= 0
            return jnp.sum(jnp.where(wrong, bits[None, None], 0), axis=2).astype(jnp.int16)

        return jax.lax.map(at, radii)

    problem = Problem(x, labels, slopes, offsets)
    return problem, jnp.stack([codes(keys[3], x, labels), codes(keys[4], *test)])


def merge(codes: np.ndarray, num_members: int) -> ErrorPatterns:
    """The different patterns among the candidates of each example: a dozen out of a thousand."""
    num_examples, num_candidates = codes.shape
    size = 2**num_members
    flat = codes + size * np.arange(num_examples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=size * num_examples)
    (present,) = np.nonzero(counts)
    example, code = np.divmod(present, size)
    first = np.searchsorted(example, np.arange(num_examples))
    place = np.arange(len(present)) - first[example]
    patterns = np.repeat(code[first][:, None], place.max() + 1, axis=1)
    mass = np.zeros(patterns.shape)
    patterns[example, place] = code
    mass[example, place] = counts[present] / num_candidates
    losses = (patterns[..., None] >> np.arange(num_members)) & 1
    return ErrorPatterns(losses.astype(float), mass)


def best_risks(train: ErrorPatterns, test: ErrorPatterns):
    """Adversarial risks of the best mixture and of the best single classifier in training.

    Returns:
      `[4]` risks: mixture and single in sample, mixture and single on test examples; and the
      equilibrium.
    """
    found = games.solve(train.losses)
    single = np.eye(train.losses.shape[2])[train.losses.max(axis=1).mean(axis=0).argmin()]
    risks = [
        adversarial_risk(weights, patterns)
        for patterns in (train, test)
        for weights in (found.weights, single)
    ]
    return risks, found


def oracle_risk(patterns: ErrorPatterns, num_steps: int) -> float:
    """Adversarial risk of the mixture that Algorithm 1 finds: the best of its iterates."""
    # As many candidates as a power of two, so that few programs are compiled.
    num_candidates = patterns.losses.shape[1]
    places = np.arange(2 ** (num_candidates - 1).bit_length())
    losses = patterns.losses[:, np.where(places < num_candidates, places, 0)]
    weights, _ = _run_oracle(losses.astype(np.float32), num_steps=num_steps)
    return adversarial_risk(np.float64(weights), patterns)


_run_oracle = jax.jit(games.oracle, static_argnames="num_steps")


def adversarial_risk(weights, patterns: ErrorPatterns) -> float:
    """`mean_n max_k` of the expected loss, in double precision."""
    return float((patterns.losses @ weights).max(axis=1).mean())


def entropic_limits(patterns: ErrorPatterns, temperatures, weights=None):
    """The minima of the entropic risk, by sequential quadratic programs in double precision.

    Returns:
      For each temperature the `[L]` weights, and a bound of how much less the least risk is:
      `g . weights - min g` with the gradient `g`, by convexity.
    """
    num_members = patterns.losses.shape[2]
    with np.errstate(divide="ignore"):
        log_mass = np.log(patterns.mass)

    def risk(weights, temperature):
        scaled = patterns.losses @ weights / temperature + log_mass
        top = scaled.max(axis=1, keepdims=True)
        odds = np.exp(scaled - top)
        sums = odds.sum(axis=1, keepdims=True)
        gradient = np.einsum("nk,nkl->l", odds / sums, patterns.losses) / len(odds)
        return float(temperature * np.mean(np.log(sums) + top)), gradient

    found = []
    weights = np.full(num_members, 1 / num_members)
    for temperature in temperatures:
        weights = scipy.optimize.minimize(
            risk,
            weights,
            (temperature,),
            method="SLSQP",
            jac=True,
            bounds=[(0.0, 1.0)] * num_members,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-12, "maxiter": 500},
        ).x.clip(0.0)
        weights = weights / weights.sum()
        _, gradient = risk(weights, temperature)
        found.append((weights, float(gradient @ weights - gradient.min())))
    return found


def convergence(patterns: ErrorPatterns, temperatures, num_steps: int):
    """Adversarial risks after 1, 2, 4, ... steps: the oracle's best, the relaxation's last.

    Returns:
      The numbers of steps, and `name -> risks`, the oracle's first.
    """
    steps = [2**power for power in range(num_steps.bit_length())]
    losses = jnp.asarray(patterns.losses, jnp.float32)
    mass = jnp.asarray(patterns.mass, jnp.float32)

    @functools.partial(jax.jit, static_argnames="num_steps")
    def relaxed(losses, mass, alphas, num_steps):
        def last(alpha):
            return games.entropic(losses, alpha, num_steps=num_steps, mass=mass)[0]

        return jax.lax.map(last, alphas)

    _, visited = jax.jit(functools.partial(games.oracle, num_steps=steps[-1]))(losses)
    curves = {"oracle": np.minimum.accumulate(visited)[np.array(steps) - 1]}
    alphas = jnp.asarray(temperatures, jnp.float32)
    weights = [np.asarray(relaxed(losses, mass, alphas, n), np.float64) for n in steps]
    for index, alpha in enumerate(temperatures):
        curves[f"{alpha:g}"] = np.array([adversarial_risk(w[index], patterns) for w in weights])
    return steps, curves


def responses(patterns: ErrorPatterns, found: games.Equilibrium) -> dict:
    """What the best single classifier pays under three attacks: only the last holds the value."""
    single = np.eye(len(found.weights))[patterns.losses.max(axis=1).mean(axis=0).argmin()]
    attacks = {
        "best response to the best single classifier": _best_response(single, patterns),
        "best response to the best mixture": _best_response(found.weights, patterns),
        "randomised": found.attack,
    }
    table = {}
    for name, attack in attacks.items():
        paid = np.einsum("nk,nkl->l", attack, patterns.losses) / len(attack)
        table[name] = {"best_member": int(paid.argmin()), "loss": paid.min(), "losses": paid}
    return {"value": found.value, "gap": found.gap, "attacks": table}


def _best_response(weights, patterns):
    worst = (patterns.losses @ weights).argmax(axis=1)
    return np.eye(patterns.losses.shape[1])[worst]


def field_of(problem: Problem, weights, config: Config, extent=8.0, size=160) -> dict:
    """What the left panel shows: some examples, their discs, the mixture's probability of 1."""
    side = np.linspace(-extent, extent, size)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    scores = grid @ np.asarray(problem.slopes).T + np.asarray(problem.offsets)
    return {
        "x": np.asarray(problem.x[: config.shown]),
        "labels": np.asarray(problem.labels[: config.shown]),
        "radius": config.radius,
        "side": side,
        "probability": (scores > 0) @ weights,
    }


def spread(values) -> dict:
    """Mean and standard deviation over the first axis."""
    return {"mean": values.mean(axis=0), "standard_deviation": values.std(axis=0)}


def summary_of(radii, risks, by_algorithm_1) -> list[dict]:
    """For each radius the risks and what the mixture gains, over the seeds.

    Args:
      radii: the `R` radii.
      risks: `[seeds, R, 4]` as in `best_risks`.
      by_algorithm_1: `[seeds, R]` risks of the mixture that Algorithm 1 finds.
    """
    names = ("mixture", "single", "mixture_on_test", "single_on_test")
    rows = []
    for index, radius in enumerate(radii):
        gain = risks[:, index, 1] - risks[:, index, 0]
        on_test = risks[:, index, 3] - risks[:, index, 2]
        rows.append(
            {"epsilon": radius}
            | {name: spread(risks[:, index, k]) for k, name in enumerate(names)}
            | {
                "gain": spread(gain),
                "gain_on_test": spread(on_test),
                "least_gain": gain.min(),
                "seeds": len(gain),
                "seeds_with_gain": int(np.sum(gain > _ROUNDING)),
                "by_algorithm_1": spread(by_algorithm_1[:, index]),
                "seeds_with_gain_by_algorithm_1": int(
                    np.sum(risks[:, index, 1] - by_algorithm_1[:, index] > _ROUNDING)
                ),
            }
        )
    return rows


def from_where(radii, gains) -> float | None:
    """The least radius from which on every seed gains, of gains `[seeds, R]`; None: there is none.

    The paper's mixture is strictly better whenever epsilon > 2.
    """
    least = None
    for index in sorted(range(len(radii)), key=lambda index: -radii[index]):
        if not np.all(gains[:, index] > _ROUNDING):
            break
        least = radii[index]
    return least


def write_tables(folder, config, radii, risks, steps, curves):
    """`risks.csv` and `convergence.csv`."""
    seeds, epsilons = np.meshgrid(range(config.seeds), radii, indexing="ij")
    names = ("mixture", "single", "mixture_on_test", "single_on_test")
    columns = {"seed": seeds.ravel(), "epsilon": epsilons.ravel()}
    columns |= {name: risks[:, :, k].ravel() for k, name in enumerate(names)}
    program.write_csv(folder / "risks.csv", columns)
    renamed = {f"entropic_{name}" if name != "oracle" else name: c for name, c in curves.items()}
    program.write_csv(folder / "convergence.csv", {"step": steps} | renamed)


def summary_lines(result: dict) -> str:
    """The numbers as a few lines of text."""
    lines = [
        "epsilon  mixture  single   gain  +- over seeds   on test   "
        "better in seeds   by Algorithm 1"
    ]
    for row in result["radii"]:
        lines.append(
            f"{row['epsilon']:7g}  {row['mixture']['mean']:7.3f} {row['single']['mean']:7.3f} "
            f"{row['gain']['mean']:6.3f} {row['gain']['standard_deviation']:10.3f} "
            f"{row['gain_on_test']['mean']:13.3f} "
            f"{row['seeds_with_gain']:9} of {row['seeds']} "
            f"{row['seeds_with_gain_by_algorithm_1']:11} of {row['seeds']}"
        )
    since = result["better_in_every_seed_from"]
    lines.append(
        "strictly better in every seed: "
        + ("at no radius" if since is None else f"from epsilon {since:g} on")
        + "; the paper: whenever epsilon > 2"
    )
    found = result["entropic"]
    excess = [f"{value:.3f}" for value in found["excess_over_the_value"]["mean"]]
    lines.append(f"limits of the relaxation at epsilon {found['epsilon']:g}, above the value:")
    pairs = zip(found["temperatures"], excess, strict=True)
    lines.append("  " + ", ".join(f"alpha {alpha:g}: {value}" for alpha, value in pairs))
    for name, attack in result["responses"]["attacks"].items():
        lines.append(f"best member under the attack '{name}': {attack['loss']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
