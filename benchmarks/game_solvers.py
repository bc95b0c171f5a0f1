"""The linear program against the iterative solvers on one game: time, memory, the gap reached.

    taskset --cpu-list 1 python -m benchmarks.game_solvers        # one thread, 3 minutes
    python -m benchmarks.game_solvers --examples 50000 --output large.json

The game: 20 000 examples of Meunier's synthetic problem in four dimensions, 64 uniform points in
the l2 ball of radius 3 around each, 8 random linear classifiers whose standard risk is below 0.4.
The loss is a sigmoid of the margin, so that no two rows of the table are equal and merging does
not help; `--errors` takes 0/1 losses instead. An iterative solver runs 8, 16, 32, ... steps, each
time from the start, until its risk is within `--tolerance` of the value, or, where its name says
"certified", until its own duality gap is; then all solvers are timed in turn, compiled, the program
with them. Every time stands in the file as seconds on the clock and of CPU time.
"""

import argparse
import functools
import os
import pathlib
import resource
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import comparison, setting
from mixjax import checks, files, games, reporting

PROGRAM = "benchmarks.game_solvers"
MAX_STANDARD_RISK = 0.4
SEPARATION = 3.0  # of the two halves of class +1 from class -1
DIMENSIONS = 4
SLOPE = 2.0  # of the sigmoid, per unit of distance from the boundary
LOSS_BOUND = 1.0


class Solver(NamedTuple):
    """What is timed, and what it found.

    Attributes:
      call: solves the game.
      case: its row of the result.
    """

    call: Callable[[], Any]
    case: dict[str, Any]


def main(argv=None):
    """Times all solvers on one table and writes what they reached."""
    flags = parse(argv)
    start, load = time.perf_counter(), [os.getloadavg()[0]]
    losses = table(flags)
    prepared = [linear_program(losses)]
    value = prepared[0].case["value"]
    for name, (run, measure) in solvers(flags).items():
        prepared.append(prepare(name, run, measure, jax.numpy.asarray(losses), value, flags))
    for _ in range(flags.repeats):
        for solver in prepared:
            clock, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(solver.call())
            solver.case["cpu_seconds"].append(time.process_time() - cpu)
            solver.case["seconds"].append(time.perf_counter() - clock)
        comparison.tell("\n".join(line(solver.case) for solver in prepared))
    load.append(os.getloadavg()[0])
    cases = [solver.case for solver in prepared]
    result = {
        "benchmark": "game_solvers",
        "settings": {key: value for key, value in vars(flags).items() if key != "output"},
        "threads": setting.num_threads(),
        "load_before_and_after": load,
        "value": value,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cases": cases,
        "provenance": reporting.provenance(
            comparison.argv_of(PROGRAM, argv), flags.seed, time.perf_counter() - start
        ),
    }
    files.write_json(flags.output, result)
    print("\n".join(map(line, cases)))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(PROGRAM, __doc__)
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
    with parser.checking():
        checks.at_least(1, examples=flags.examples, candidates=flags.candidates)
        checks.at_least(1, members=flags.members, repeats=flags.repeats)
        checks.at_least(8, max_steps=flags.max_steps)
        checks.positive(tolerance=flags.tolerance, temperature=flags.temperature)
        checks.seed(seed=flags.seed)
        checks.non_negative(radius=flags.radius)
        setting.check_output(flags.output)
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


def solvers(flags: argparse.Namespace) -> dict[str, tuple[Callable, str]]:
    """`(losses, num_steps) -> (weights, attack or None)`, and what ends the search, by name."""

    def play(solver, **setting):
        def run(losses, num_steps):
            found = solver(losses, num_steps=num_steps, **setting)
            return found.weights, found.attack

        return run

    def entropic(losses, num_steps):
        weights, _ = games.entropic(losses, flags.temperature, num_steps=num_steps)
        return weights, games.entropic_attack(weights, losses, flags.temperature)

    def oracle(losses, num_steps):
        return games.oracle(losses, num_steps=num_steps)[0], None

    matching = play(games.regret_matching)
    answering = play(games.regret_matching, best_response=True)
    return {
        "oracle": (oracle, "excess"),
        f"entropic, temperature {flags.temperature:g}": (entropic, "excess"),
        "hedge, its guaranteed step": (play(games.hedge), "excess"),
        "hedge, ten times the step": (play(games.hedge, step_size=10.0 / LOSS_BOUND), "excess"),
        "regret matching+": (matching, "excess"),
        "regret matching+, certified": (matching, "gap"),
        "best responses": (answering, "excess"),
        "best responses, certified": (answering, "gap"),
    }


def linear_program(losses: np.ndarray) -> Solver:
    """The exact solution; the call that finds its memory is not timed."""
    tracemalloc.start()
    exact = games.solve(losses)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    case = {
        "solver": "linear program",
        "value": exact.value,
        "excess": 0.0,
        "gap": exact.gap,
        "memory_bytes": losses.nbytes + peak,
    }
    return Solver(lambda: games.solve(losses), case | {"seconds": [], "cpu_seconds": []})


def prepare(
    name: str, solver: Callable, measure: str, losses, value: float, flags: argparse.Namespace
) -> Solver:
    """A solver with the fewest steps tried that bring its measure within the tolerance."""
    num_steps, table = 4, np.asarray(losses, np.float64)
    while True:
        num_steps = min(2 * num_steps, flags.max_steps)
        start = time.perf_counter()
        run = jax.jit(functools.partial(solver, num_steps=num_steps)).lower(losses).compile()
        compile_seconds = time.perf_counter() - start
        weights, attack = run(losses)
        weights = np.asarray(weights, np.float64)
        found = {"excess": float((table @ weights).max(axis=1).mean() - value), "gap": None}
        if attack is not None:
            found["gap"] = games.duality_gap(weights, np.asarray(attack, np.float64), table)
        if found[measure] <= flags.tolerance or num_steps == flags.max_steps:
            break
    memory = run.memory_analysis()
    names = ("argument", "output", "temp")
    sizes = [getattr(memory, f"{name}_size_in_bytes") for name in names] if memory else []
    case = {
        "solver": name,
        "num_steps": num_steps,
        "within_tolerance": found[measure] <= flags.tolerance,
        **found,
        "memory_bytes": sum(sizes),
        "compile_seconds": compile_seconds,
    }
    return Solver(lambda: run(losses), case | {"seconds": [], "cpu_seconds": []})


def line(case: dict[str, Any]) -> str:
    """A case as a line of text."""
    gap = "none" if case["gap"] is None else f"{case['gap']:.1e}"
    steps = f"{case['num_steps']} steps, " if "num_steps" in case else ""
    seconds, megabytes = np.median(case["seconds"]), case["memory_bytes"] / 1e6
    return (
        f"{case['solver']:30}{seconds:8.2f} s{megabytes:8.0f} MB  {steps}"
        f"risk above the value {case['excess']:.1e}, duality gap {gap}"
    )


if __name__ == "__main__":
    main()
