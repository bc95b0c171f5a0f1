"""The game grown by best responses until its bounds meet, and boosting on the same members.

    python -m experiments.meunier_2021.double_oracle      # a minute of a CPU core

Three Gaussians in the plane (Meunier et al. 2021, section 5.1), a pool of random half-planes and
of small networks, each trained against points drawn from the discs on one side of the plane more
than on the other, an attacker who picks the worst of some hundred points of the disc around each
example. Both players' best responses are exact, by looking at the whole pool and at all points, so
that both bounds are certain. Boosted adversarial training (Pinot et al. 2020, algorithm 1) is the
same loop with fixed weights and a defender who answers the last attack only: same pool, same first
member, as many answers of both players. Expect double oracle's bounds to meet within .01 after 20
rounds at .680, and boosting to stay at .70; with half-planes only .680 and .70, with networks only
.727 and .73.

Writes `figure.png`, `rounds.csv` and `result.json`.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.meunier_2021 import plots
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax import checks, games
from mixjax.data import toy
from mixjax.games import Equilibrium, Growth
from mixjax.reporting import Head

PROGRAM = "experiments.meunier_2021.double_oracle"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag; distances are in standard deviations of a Gaussian."""

    examples: int = flag(300, "examples of the game")
    candidates: int = flag(200, "points drawn from the disc around each example")
    epsilon: float = flag(3.0, "radius of the discs")
    half_planes: int = flag(40, "random half-planes in the pool")
    networks: int = flag(40, "small networks trained for the pool")
    max_risk: float = flag(0.4, "no member of the pool errs on this part of the examples")
    training_radius: float = flag(0.5, "networks are trained against moves of at most this")
    width: int = flag(12, "hidden units of a network")
    steps: int = flag(200, "training steps of a network")
    learning_rate: float = flag(0.03, "of Adam")
    rounds: int = flag(100, "answers of each player, at most")
    tolerance: float = flag(0.01, "double oracle ends when its bounds are this close")
    shares: str = flag(
        "0.06 0.1 0.2 0.3 0.5", "boosting's weights of a new member; the best counts"
    )
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder of the results; empty: runs/double_oracle")
    debug: bool = flag(False, "show the traceback of an error")


class Finite(NamedTuple):
    """The game that both players' answers uncover: `losses [N, M, P]` of the pool, 0 or 1."""

    losses: np.ndarray

    def losses_fn(self, member, points):
        """`[N]` losses of a member, a number, at one candidate of each example, numbers too."""
        return self.losses[np.arange(len(points)), points, member]

    def attacker(self, weights, members, index):
        """The best response to a mixture: for each example the candidate of highest loss."""
        return (self.losses[:, :, list(members)] @ weights.astype(np.float32)).argmax(axis=1)

    def defender(self, attack, points, index):
        """The best response to an attack: the member of the whole pool that errs least."""
        examples = np.arange(len(self.losses))
        paid = sum(
            column @ self.losses[examples, candidates]
            for column, candidates in zip(attack.T, points, strict=True)
        )
        return int(np.argmin(paid))

    def risk(self, weights, members) -> float:
        """Adversarial risk of a mixture under all candidates."""
        losses = self.losses[:, :, list(members)].astype(np.float64)
        return float((losses @ weights).max(axis=1).mean())


PRESETS = {"paper": Config()}


def main(argv=None):
    """Grows the game twice, compares, draws."""
    program.main(PROGRAM, __doc__ or "", PRESETS, program.in_folder(experiment), argv)


def experiment(config: Config, folder: pathlib.Path) -> Outcome:
    """Double oracle, boosting with every share, and what boosting's members are worth."""
    shares = check(config)
    finite = finite_game(config)
    first, grown, boosted = compare(finite, config, shares)
    share = min(boosted, key=lambda share: boosted[share][0].upper)
    best = boosted[share]
    plots.plot_bounds(
        folder / "figure.png",
        {"double oracle": bounds(grown[1]), f"boosting, share {share:g}": bounds(best[1])},
        alone=finite.risk([1.0], [first]),
        tolerance=config.tolerance,
        radius=config.epsilon,
    )
    write_csv(folder, grown, boosted)
    found = games.solve(finite.losses[:, :, sorted(set(best[1].members))])
    result = {
        "double_oracle": summary_of(*grown, finite, config),
        "boosting": {
            f"{share:g}": summary_of(*growth, finite, config) for share, growth in boosted.items()
        },
        "best_share": share,
        "advantage_over_boosting": best[0].upper - grown[0].upper,
        "best_weights_for_boosting_s_members": found.value,
        "best_single_member": finite.risk([1.0], [first]),
        "rounds": len(grown[1].rounds),
        "each_kind_alone": each_kind_alone(finite, config, shares),
    }
    drawn = {"figure.png": "Bounds on the value by round, double oracle beside boosting."}
    return Outcome(result, summary_lines(result), head(config, result), figures=drawn)


def head(config: Config, result: dict) -> Head:
    """What the page begins with: whether the bounds meet, and who is better."""
    own = result["double_oracle"]
    closed = "meet" if own["gap"] <= config.tolerance else "do not meet"
    others = {
        "the best mixture by boosting": own["upper"] + result["advantage_over_boosting"],
        "the best single member": result["best_single_member"],
    }
    told = [
        f"{'better' if own['upper'] < risk else 'no better'} than {name} ({risk:.3f})"
        for name, risk in others.items()
    ]
    return Head(
        norm="l2",
        radius=f"{config.epsilon:g}",
        model=f"mixtures of {config.half_planes} half-planes and {config.networks} networks",
        attack=f"the worst of {config.candidates} points of each disc",
        examples=f"{config.examples}",
        found=f"The bounds of double oracle {closed} within {config.tolerance:g} after "
        f"{own['rounds']} rounds, at a risk of {own['upper']:.3f}: {' and '.join(told)}.",
    )


def compare(finite: Finite, config: Config, shares):
    """The best single member, with whom both begin, double oracle, and boosting by share."""
    first = int(finite.losses.max(axis=1).mean(axis=0).argmin())
    grow = functools.partial(
        games.double_oracle,
        finite.losses_fn,
        finite.attacker,
        [first],
        [np.zeros(len(finite.losses), int)],
        defender=finite.defender,
    )
    grown = grow(num_rounds=config.rounds, tolerance=config.tolerance)
    boosted = {
        share: grow(
            num_rounds=len(grown[1].rounds), tolerance=-1.0, strategies=games.boosting(share)
        )
        for share in program.shown(shares, "boosting", "share")
    }
    return first, grown, boosted


def each_kind_alone(finite: Finite, config: Config, shares) -> dict:
    """The same with half-planes only and with networks only."""
    kinds = {
        "half_planes": finite.losses[:, :, : config.half_planes],
        "networks": finite.losses[:, :, config.half_planes :],
    }
    found = {}
    for name, losses in kinds.items():
        if losses.shape[2]:
            _, (equilibrium, growth), boosted = compare(Finite(losses), config, shares)
            best = min(found.upper for found, _ in boosted.values())
            found[name] = {
                "members": losses.shape[2],
                "upper": equilibrium.upper,
                "lower": equilibrium.lower,
                "rounds": len(growth.rounds),
                "advantage_over_boosting": best - equilibrium.upper,
            }
    return found


def check(config: Config):
    """Boosting's shares; raises `ValueError` for what is out of range."""
    names = "examples candidates half_planes networks width steps rounds".split()
    checks.at_least(1, **{name: getattr(config, name) for name in names})
    checks.positive(epsilon=config.epsilon, learning_rate=config.learning_rate)
    checks.positive(max_risk=config.max_risk)
    checks.non_negative(training_radius=config.training_radius)
    checks.fraction(max_risk=config.max_risk)
    checks.positive(tolerance=config.tolerance)
    shares = program.numbers(0.0, 1.0, shares=config.shares)
    for share in shares:
        games.boosting(share)  # refuses what is not inside (0, 1)
    return shares


def finite_game(config: Config) -> Finite:
    """The game of the pool: networks that err too often are left out."""
    losses = np.asarray(jax.jit(functools.partial(pool, config=config))())
    is_good = losses[:, 0].mean(axis=0) < config.max_risk
    is_good[: config.half_planes] = True
    return Finite(np.ascontiguousarray(losses[:, :, is_good]))


def pool(config: Config):
    """`[N, M, P]` errors of all half-planes and networks at all candidates, of type uint8.

    Candidate 0 is the example itself.
    """
    keys = jax.random.split(jax.random.key(config.seed), 4)
    x, labels = toy.three_gaussians(keys[0], config.examples)
    slopes, offsets = toy.half_planes(
        keys[1], x, labels, config.half_planes, max_risk=config.max_risk
    )
    discs = toy.unit_discs(keys[2], (config.examples, config.candidates)).at[:, 0].set(0.0)
    points = x[:, None] + config.epsilon * discs
    both = jnp.broadcast_to(labels[:, None], points.shape[:2])

    def network_errors(key):
        params = train(key, x, labels, config)
        return network(params, points) * both <= 0

    wrong = jax.lax.map(network_errors, jax.random.split(keys[3], config.networks), batch_size=20)
    return jnp.concatenate(
        [toy.errors(slopes, offsets, points, both), jnp.moveaxis(wrong, 0, 2)], axis=2
    ).astype(jnp.uint8)


def network(params, x):
    """`[..., 2] -> [...]`: a hidden layer of tanh units; above 0 for class 1."""
    shape = (1,) * (x.ndim - 1) + params["bias"].shape
    hidden = jnp.tanh(x @ params["first"] + params["bias"].reshape(shape))
    return hidden @ params["last"] + params["offset"]


def train(key, x, labels, config: Config):
    """A network trained on the worst of a few points of smaller discs, of a radius of its own."""
    first_key, last_key, radius_key, tilt_key, step_key = jax.random.split(key, 5)
    params = {
        "first": jax.random.normal(first_key, (2, config.width)),
        "bias": jnp.zeros(config.width),
        "last": jax.random.normal(last_key, (config.width,)) / config.width**0.5,
        "offset": jnp.zeros(()),
    }
    # Members differ in how far they are robust, and in which side of the plane they care for.
    radius = config.training_radius * jax.random.uniform(radius_key)
    odds = jnp.exp(x @ jax.random.normal(tilt_key, (2,)))
    optimizer = optax.adam(config.learning_rate)

    def loss_fn(params, key):
        moved = x[:, None] + radius * toy.unit_discs(key, (len(x), 8))
        margins = (network(params, moved) * labels[:, None]).min(axis=1)
        return jnp.mean(odds * jax.nn.softplus(-margins))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(step_key, config.steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params


def bounds(growth: Growth) -> dict:
    """What the figure shows of each round."""
    names = ("upper", "lower", "risk")
    return {name: [getattr(each, name) for each in growth.rounds] for name in names}


def summary_of(found: Equilibrium, growth: Growth, finite: Finite, config: Config) -> dict:
    """Bounds, the true risk of the weights, and how many members of each kind play."""
    played = {member for member, w in zip(growth.members, found.weights, strict=True) if w > 1e-6}
    return {
        "upper": found.upper,
        "lower": found.lower,
        "gap": found.gap,
        "risk_under_all_candidates": finite.risk(found.weights, growth.members),
        "rounds": len(growth.rounds),
        "half_planes_played": sum(member < config.half_planes for member in played),
        "networks_played": sum(member >= config.half_planes for member in played),
    }


def write_csv(folder: pathlib.Path, grown, boosted):
    """`rounds.csv`: one row for each round; share 0 is double oracle."""
    rows = [
        (share, index, *each)
        for share, (_, growth) in {0.0: grown, **boosted}.items()
        for index, each in enumerate(growth.rounds, 1)
    ]
    names = ("share", "round", *grown[1].rounds[0]._fields)
    program.write_csv(folder / "rounds.csv", dict(zip(names, np.array(rows).T, strict=True)))


def summary_lines(result: dict) -> str:
    """The numbers as a few lines of text."""
    own, best = result["double_oracle"], result["boosting"][f"{result['best_share']:g}"]
    return "\n".join(
        [
            f"double oracle: value between {own['lower']:.4f} and {own['upper']:.4f} after "
            f"{own['rounds']} rounds, with {own['half_planes_played']} half-planes and "
            f"{own['networks_played']} networks",
            f"boosting, best share {result['best_share']:g}: risk {best['upper']:.4f}; with the "
            f"best weights for its members {result['best_weights_for_boosting_s_members']:.4f}",
            f"best single member: {result['best_single_member']:.4f}",
            *(
                f"{name} alone: {found['lower']:.4f} to {found['upper']:.4f}, "
                f"better than boosting by {found['advantage_over_boosting']:.4f}"
                for name, found in result["each_kind_alone"].items()
            ),
        ]
    )


if __name__ == "__main__":
    main()
