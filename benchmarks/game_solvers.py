"""The linear program against the iterative solvers on one game: time, and the gap reached.

    python -m benchmarks.game_solvers

The game: 20 000 examples of Meunier's synthetic problem in four dimensions, 64 uniform points in
the l2 ball of radius 3 around each, 8 random linear classifiers whose standard risk is below 0.4.
The loss is a sigmoid of the margin, so that no two rows of the table are equal and merging does
not help; `--errors` takes 0/1 losses instead. An iterative solver runs 8, 16, 32, ... steps, each
time from the start, until its risk is within `--tolerance` of the value; the time of the last run
counts, compiled. About 2 minutes on 2 CPU cores.
"""

import argparse
import functools
import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import comparison, setting
from mixjax import _check, _files, games, reporting

PROGRAM = "benchmarks.game_solvers"
MAX_STANDARD_RISK = 0.4
SEPARATION = 3.0  # of the two halves of class +1 from class -1
DIMENSIONS = 4
SLOPE = 2.0  # of the sigmoid, per unit of distance from the boundary
LOSS_BOUND = 1.0


def main(argv=None):
    """Times all solvers on one table and writes what they reached."""
    flags = parse(argv)
    start, load = time.perf_counter(), [os.getloadavg()[0]]
    losses = table(flags)
    seconds, exact = _timed(lambda: games.solve(losses), flags.repeats)
    comparison.tell(
        f"linear program: {min(seconds):.2f} s, value {exact.value:.6f}, gap {exact.gap:.1e}"
    )
    cases = [{"solver": "linear program", "seconds": seconds, "gap": exact.gap, "excess": 0.0}]
    for name, solver in solvers(flags).items():
        cases.append(case(name, solver, jax.numpy.asarray(losses), exact.value, flags))
        comparison.tell(line(cases[-1]))
    load.append(os.getloadavg()[0])
    origin = reporting.provenance(
        comparison.argv_of(PROGRAM, argv), flags.seed, time.perf_counter() - start
    )
    result = {
        "benchmark": "game_solvers",
        "settings": {key: value for key, value in vars(flags).items() if key != "output"},
        "load_before_and_after": load,
        "value": exact.value,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cases": cases,
        "provenance": origin,
    }
    _files.write_json(flags.output, result)
    print("\n".join(map(line, cases)))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--radius", type=float, default=3.0)
    parser.add_argument("--errors", action="store_true", help="losses of 0 and 1")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="risk above the value")
    parser.add_argument("--max-steps", type=int, default=1024, help="of an iterative solver")
    parser.add_argument("--temperature", type=float, default=0.01, help="of the relaxation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=pathlib.Path, default=setting.RESULTS / "game_solvers.json"
    )
    flags = parser.parse_args(argv)
    try:
        _check.at_least(1, examples=flags.examples, candidates=flags.candidates)
        _check.at_least(1, members=flags.members, repeats=flags.repeats)
        _check.at_least(8, max_steps=flags.max_steps)
        _check.positive(tolerance=flags.tolerance, temperature=flags.temperature)
        _check.at_least(0, seed=flags.seed)
        _check.non_negative(radius=flags.radius)
        setting.check_output(flags.output)
    except ValueError as error:
        setting.fail(PROGRAM, error)
    return flags


def table(flags: argparse.Namespace) -> np.ndarray:
    """Losses `[N, M, L]`, float32, within [0, 1]."""
    rng = np.random.default_rng(flags.seed)
    shape = flags.examples, flags.candidates, DIMENSIONS
    label = rng.choice([-1.0, 1.0], flags.examples)
    x = rng.normal(size=(flags.examples, DIMENSIONS))
    x[:, 0] += np.where(label > 0, SEPARATION * rng.choice([-1.0, 1.0], flags.examples), 0.0)
    directions = rng.normal(size=shape)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    lengths = flags.radius * rng.uniform(size=(*shape[:2], 1)) ** (1 / DIMENSIONS)
    points = x[:, None] + directions * lengths
    members = []
    while len(members) < flags.members:
        slope, offset = rng.normal(size=DIMENSIONS), SEPARATION * rng.normal()
        slope /= np.linalg.norm(slope)
        if np.mean((x @ slope + offset) * label <= 0) < MAX_STANDARD_RISK:
            margin = (points @ slope + offset) * label[:, None]
            members.append(margin <= 0 if flags.errors else 1 / (1 + np.exp(SLOPE * margin)))
    return np.stack(members, axis=2).astype(np.float32)


def solvers(flags: argparse.Namespace) -> dict[str, Callable]:
    """`(losses, num_steps) -> (weights, attack or None)` by name, to be compiled."""

    def play(name, **setting):
        def run(losses, num_steps):
            found = getattr(games, name)(losses, num_steps=num_steps, **setting)
            return found.weights, found.attack

        return run

    def entropic(losses, num_steps):
        weights, _ = games.entropic(losses, flags.temperature, num_steps=num_steps)
        return weights, games.entropic_attack(weights, losses, flags.temperature)

    def oracle(losses, num_steps):
        return games.oracle(losses, num_steps=num_steps)[0], None

    return {
        "oracle": oracle,
        f"entropic, temperature {flags.temperature:g}": entropic,
        "hedge, its guaranteed step": play("hedge"),
        "hedge, ten times the step": play("hedge", step_size=10.0 / LOSS_BOUND),
        "regret matching+": play("regret_matching"),
    }


def case(
    name: str, solver: Callable, losses, value: float, flags: argparse.Namespace
) -> dict[str, Any]:
    """What a solver reaches, with the fewest steps tried that bring it within the tolerance."""
    num_steps, table = 4, np.asarray(losses, np.float64)
    while True:
        num_steps = min(2 * num_steps, flags.max_steps)
        start = time.perf_counter()
        run = jax.jit(functools.partial(solver, num_steps=num_steps)).lower(losses).compile()
        compile_seconds = time.perf_counter() - start
        weights, attack = jax.block_until_ready(run(losses))
        excess = float((table @ np.asarray(weights, np.float64)).max(axis=1).mean() - value)
        if excess <= flags.tolerance or num_steps == flags.max_steps:
            break
    seconds, _ = _timed(lambda: jax.block_until_ready(run(losses)), flags.repeats)
    doubles = (np.asarray(x, np.float64) for x in (weights, attack, table))
    return {
        "solver": name,
        "num_steps": num_steps,
        "within_tolerance": excess <= flags.tolerance,
        "excess": excess,
        "gap": None if attack is None else float(games.duality_gap(*doubles)),
        "seconds": seconds,
        "compile_seconds": compile_seconds,
    }


def line(case: dict[str, Any]) -> str:
    """A case as a line of text."""
    gap = "none" if case["gap"] is None else f"{case['gap']:.1e}"
    steps = f"{case['num_steps']} steps, " if "num_steps" in case else ""
    return (
        f"{case['solver']:30}{min(case['seconds']):8.3f} s  {steps}"
        f"risk above the value {case['excess']:.1e}, duality gap {gap}"
    )


def _timed(call: Callable[[], Any], num_repeats: int) -> tuple[list[float], Any]:
    """Seconds of each call, and what the last one returned."""
    seconds, result = [], None
    for _ in range(num_repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return seconds, result


if __name__ == "__main__":
    main()
