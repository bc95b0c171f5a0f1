"""Attacked images per second: mixjax and three other libraries, on the same networks and images.

    python -m benchmarks.attack_peers --network digits

The network is a ResNet of two blocks, trained on digits for a moment, or a ResNet18 of width 16
with random weights. PGD and AutoPGD take as many steps in an l-inf ball on all sides, Carlini and
Wagner's attack as many of Adam under as many constants. torchattacks and adversarial-library attack
the network in PyTorch, foolbox there and in JAX, where it compiles nothing by itself: it is handed
a compiled network, and for PGD also one that is not. The points found are scored by one network,
and the forward passes of each attack on the batch are counted, our closing steps included.
Where other programs run as well, ratios of processor time tell more than those of durations. At the
end: what the attack suite asks for, in gradients per example. About 2 minutes for a network on one
CPU core. `make bench-peers` installs the others; `--no-peers` times mixjax alone.
"""

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import comparison, setting, timing
from benchmarks.attack_setting import (
    ATTACKS,
    BATCH_SIZES,
    INITIAL_CONST,
    LEARNING_RATE,
    NETWORKS,
    STEP,
    Problem,
    Side,
    problem,
)
from mixjax import (
    attacks,
    checks,
    ensemble,
    evaluation,
    files,
    losses,
    mixture,
    models,
    reporting,
    threats,
)

PROGRAM = "benchmarks.attack_peers"
SUITE_MEMBERS, NORMS = (1, 2, 4), tuple(threats.BY_NAME)
BUDGETS = {"quick": evaluation.QUICK, "standard": evaluation.STANDARD}
VERSIONS = ("torch", "torchattacks", "adv-lib", "foolbox", "eagerpy")


def main(argv=None):
    """Scores, counts and times every side on every network, prints and writes the result."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see `comparison.run`
    flags = parse(argv)
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured
    start, load = time.perf_counter(), [os.getloadavg()[0]]
    try:
        peers = None if flags.no_peers else _import_peers(flags)
        given = problem(flags)
        sides = [ours(given, attack) for attack in ATTACKS] + (peers.sides(given) if peers else [])
        cases = compare(given, [side for side in sides if side.attack in flags.attacks], flags)
    except (ImportError, ValueError) as error:
        setting.fail(PROGRAM, error)
    load.append(os.getloadavg()[0])
    origin = reporting.provenance(
        comparison.argv_of(PROGRAM, argv), flags.seed, time.perf_counter() - start
    )
    if peers:
        origin["versions"] |= {name: importlib.metadata.version(name) for name in VERSIONS}
    result = {
        "benchmark": "attack_peers",
        "settings": {name: value for name, value in vars(flags).items() if name != "output"},
        "threads": {
            "number": setting.num_threads(),
            "how": comparison.THREADS,
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        "load_before_and_after": load,
        "cases": cases,
        "suite": suite_cost(),
        "provenance": origin,
    }
    files.write_json(flags.output, result)
    print(table(result))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(PROGRAM, __doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--network", choices=NETWORKS, default="digits")
    add("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    add("--batch-size", type=int, help=f"images per call; None: {BATCH_SIZES}")
    add("--width", type=int, default=16, help="channels of the ResNet18's first stage")
    add("--steps", type=int, default=20, help="of PGD and AutoPGD")
    add("--adam-steps", type=int, default=50, help="of C&W under one constant")
    add("--search-steps", type=int, default=2, help="constants of C&W")
    add("--no-peers", action="store_true", help="time mixjax alone")
    add("--repeats", type=int, default=3, help="turns of each program")
    add("--seconds", type=float, default=0.5, help="least duration of a turn")
    add("--seed", type=int, default=0, help="of weights, images and attacks")
    add(
        "--output",
        type=pathlib.Path,
        help="JSON file; None: results/attack_peers-NETWORK.json",
    )
    flags = parser.parse_args(argv)
    flags.batch_size = BATCH_SIZES[flags.network] if flags.batch_size is None else flags.batch_size
    flags.output = flags.output or setting.RESULTS / f"attack_peers-{flags.network}.json"
    with parser.checking():
        checks.at_least(1, batch_size=flags.batch_size, width=flags.width, repeats=flags.repeats)
        checks.at_least(
            1, steps=flags.steps, adam_steps=flags.adam_steps, search_steps=flags.search_steps
        )
        checks.seed(seed=flags.seed)
        checks.non_negative(seconds=flags.seconds)
        setting.check_output(flags.output)
    return flags


def ours(problem: Problem, name: str) -> Side:
    """Our side: one compiled program, vmapped over the images."""
    threat = threats.linf(problem.epsilon)
    key = jax.random.key(problem.seed)

    def attack(logits_fn, key, x, label):
        logits_fn = attacks.once(logits_fn)

        def loss_fn(x):
            return losses.cross_entropy(logits_fn(x), label)

        def margin_fn(x):
            return losses.margin(logits_fn(x), label)

        def accuracy_fn(x):
            return 1.0 * mixture.correct(logits_fn(x), label)

        if name == "carlini_wagner":
            return attacks.carlini_wagner(
                margin_fn,
                x,
                num_steps=problem.num_adam_steps,
                num_binary_search_steps=problem.num_search_steps,
                learning_rate=LEARNING_RATE,
                initial_const=INITIAL_CONST,
            )[0]
        settings = {"num_steps": problem.num_steps, "accuracy_fn": accuracy_fn}
        if name == "pgd":
            settings |= {"step_size": STEP * problem.epsilon}
        return getattr(attacks, name)(key, loss_fn, x, threat, **settings)[0]

    def compiled(tell=lambda: None):
        def attack_all(variables, key, images, labels):
            def logits_fn(x):
                tell()
                return problem.apply(variables, x)

            keys = jax.random.split(key, len(images))
            return jax.vmap(functools.partial(attack, logits_fn))(keys, images, labels)

        arguments = jax.device_put((problem.variables, key, problem.images, problem.labels))
        program = jax.jit(attack_all).lower(*arguments).compile()
        return lambda: np.asarray(program(*arguments))

    def count_calls():
        calls = []
        compiled(lambda: jax.debug.callback(lambda: calls.append(None)))()
        jax.effects_barrier()
        return len(calls)

    return Side("mixjax", name, compiled, count_calls)


def compare(problem: Problem, sides: list[Side], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Strength, work and time of all sides, and how many times as fast ours is."""
    score = jax.jit(problem.apply)

    def case(side):
        found = {}

        def prepare():
            attack = side.prepare()

            def call():
                found["images"] = attack()
                return float(np.abs(found["images"] - problem.images).mean())

            return call

        return timing.Case(f"{problem.name}, {side.attack}, {side.package}", 0, prepare), found

    cases = [case(side) for side in sides]
    timings = timing.interleave(
        [case for case, _ in cases],
        num_repeats=flags.repeats,
        min_seconds=flags.seconds,
        tell=comparison.tell,
    )
    base = {
        side.attack: entry
        for side, entry in zip(sides, timings, strict=True)
        if side.package == "mixjax"
    }
    rows = []
    for side, entry, (_, found) in zip(sides, timings, cases, strict=True):
        fooled = np.asarray(score(problem.variables, found["images"])).argmax(-1) != problem.labels
        change = (found["images"] - problem.images).reshape(len(fooled), -1)
        seconds = timing.spread(entry.seconds)
        rows.append(
            {
                "network": problem.name,
                "attack": side.attack,
                "library": side.package,
                "batch_size": len(fooled),
                "images_per_second": len(fooled) / seconds.median,
                "network_calls": side.count_calls(),
                "fooled": float(fooled.mean()),
                "median_norm": {
                    "linf": float(np.median(np.abs(change).max(axis=1))),
                    "l2": float(np.median(np.linalg.norm(change, axis=1))),
                },
                "seconds": entry.seconds,
                "cpu_seconds": entry.cpu_seconds,
                "compile_seconds": entry.compile_seconds,
                "mixjax_times_as_fast": timing.ratio(entry, base[side.attack])._asdict(),
                "mixjax_times_as_fast_in_processor_time": timing.ratio(
                    entry, base[side.attack], cpu=True
                )._asdict(),
            }
        )
    return rows


def suite_cost() -> list[dict[str, Any]]:
    """Passes per example of the attack suite through single networks, if no run is spared.

    They are read off the traced programs, and the same for a network of any shape.
    """
    shape = 8, 8, 1
    model, x = models.linear(10, input_shape=shape), jax.ShapeDtypeStruct(shape, jnp.float32)
    rows = []
    for budget, norm, num_members in itertools.product(BUDGETS, NORMS, SUITE_MEMBERS):
        variables = ensemble.init(model.init, jax.random.key(0), num_members)
        logits_fn = functools.partial(ensemble.apply, model.apply, variables)
        weights = jnp.full(num_members, 1 / num_members)
        suite = evaluation.attack_suite(threats.BY_NAME[norm](1.0), BUDGETS[budget])
        costs = [evaluation.count_passes(each, logits_fn, weights, x) for each in suite]
        runs = [len(each.names) for each in suite]
        row = {"budget": budget, "norm": norm, "members": num_members, "runs": sum(runs)}
        rows.append(
            row
            | {
                "gradients": sum(n * cost.backward for n, cost in zip(runs, costs, strict=True)),
                "answers": sum(n * cost.forward for n, cost in zip(runs, costs, strict=True)),
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{'':45}{'images/s':>10}{'calls':>7}{'fooled':>8}  mixjax is faster by; in CPU time"]
    for case in result["cases"]:
        name = f"{case['network']}, {case['attack']}, {case['library']}"
        ratios = case["mixjax_times_as_fast"], case["mixjax_times_as_fast_in_processor_time"]
        faster = "; ".join(
            "{median:.3g} ({low:.3g} to {high:.3g})".format(**each) for each in ratios
        )
        lines.append(
            f"{name:45}{case['images_per_second']:10.4g}{case['network_calls']:7}"
            f"{case['fooled']:8.1%}  {'' if case['library'] == 'mixjax' else faster}".rstrip()
        )
    for row in result["suite"]:
        lines.append(
            "{budget} suite, {norm}, L = {members}: {runs} runs, {gradients} gradients and "
            "{answers} answers per example".format(**row)
        )
    return "\n".join(lines)


def _import_peers(flags):
    try:
        peers = importlib.import_module("benchmarks.peer_attacks")
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in ("torch", "torchattacks", "adv_lib", "foolbox"):
            raise
        raise ValueError(
            f"{name} is not installed: `make bench-peers` does it, --no-peers times mixjax alone"
        ) from error
    peers.start(setting.num_threads(), flags.seed)
    return peers


if __name__ == "__main__":
    main()
