"""AutoAttack's standard version, ours beside torchattacks', on one network and the same digits.

    .venv-peers/bin/python -m benchmarks.autoattack      # some minutes on two cores

A small ResNet is trained against PGD on digits and exported to PyTorch. Both sides attack the same
images within the same radius with AutoPGD (100 steps), targeted AutoPGD and FAB towards 9 classes,
and Square with 5000 queries, each on what those before left. The points found are judged by one
network. Ours compiles anew for every seed, and that is part of its time. The quick and the standard
suite follow, for what they leave at which cost. Its own `AutoAttack` class takes 10 steps in place
of 100: put together here it is the published attack.
"""

import argparse
import functools
import importlib.metadata
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import comparison, setting
from mixjax import (
    attacks,
    checks,
    data,
    defenses,
    evaluation,
    files,
    models,
    reporting,
    threats,
)

PROGRAM = "benchmarks.autoattack"
BUDGETS = {
    "autoattack": evaluation.AUTOATTACK,
    "quick": evaluation.QUICK,
    "standard": evaluation.STANDARD,
}
TRAINING_BATCH, TRAINING_RADII = 128, {"linf": 0.15, "l2": 1.0}
TOLERANCE = 1e-4  # of logits
THEIRS = "torchattacks"


def main(argv=None):
    """Trains, compares, prints and writes the result."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see `comparison.run`
    flags = parse(argv)
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    model, variables, images, labels = problem(flags)
    try:
        theirs = None if flags.no_peers else _their_side(model, variables, images, labels, flags)
    except (ImportError, ValueError) as error:
        setting.fail(PROGRAM, error)
    rows = []
    for seed in range(flags.seed, flags.seed + flags.seeds):
        for budget in flags.budgets:
            rows.append(ours(model, variables, images, labels, flags, budget, seed))
        if theirs:
            points, seconds, cpu_seconds = timed(
                lambda seed=seed: theirs.attack(flags.norm, flags.epsilon, seed)[0]
            )
            right = np.asarray(jax.jit(model.apply)(variables, points)).argmax(-1) == labels
            norms = jax.vmap(threats.BY_NAME[flags.norm](1.0).norm)(points - images)
            inside = np.asarray(norms) <= flags.epsilon * (1 + 1e-5)
            rows.append(row(THEIRS, seed, right | ~inside, seconds, cpu_seconds))
    load.append(os.getloadavg()[0])
    command = comparison.argv_of(PROGRAM, argv)
    origin = reporting.provenance(command, flags.seed, time.perf_counter() - began)
    if theirs:
        names = ("torch", THEIRS)
        origin["versions"] |= {name: importlib.metadata.version(name) for name in names}
    result = {
        "benchmark": "autoattack",
        "settings": {name: value for name, value in vars(flags).items() if name != "output"},
        "threads": {"number": setting.num_threads(), "how": comparison.THREADS},
        "load_before_and_after": load,
        "runs": rows,
        "summary": summary(rows),
        "provenance": origin,
    }
    files.write_json(flags.output, result)
    print(table(result))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(PROGRAM, __doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--examples", type=int, default=300, help="images: the 360 for testing first")
    add("--norm", choices=tuple(threats.BY_NAME), default="linf")
    add("--epsilon", type=float, default=0.15, help="radius")
    add("--width", type=int, default=8, help="channels of the network's first stage")
    add("--training-steps", type=int, default=300, help="of adversarial training")
    add("--budgets", nargs="+", choices=BUDGETS, default=["autoattack", "quick"])
    add("--no-peers", action="store_true", help="ours alone")
    add("--seeds", type=int, default=3, help="number of seeds of the attacks")
    add("--seed", type=int, default=0, help="of weights, and first of the attacks")
    add("--output", type=pathlib.Path, default=setting.RESULTS / "autoattack-digits.json")
    flags = parser.parse_args(argv)
    with parser.checking():
        checks.at_least(1, examples=flags.examples, width=flags.width, seeds=flags.seeds)
        checks.at_least(1, training_steps=flags.training_steps)
        checks.positive(epsilon=flags.epsilon)
        checks.seed(seed=flags.seed)
        setting.check_output(flags.output)
    return flags


def problem(flags: argparse.Namespace):
    """The model, its variables after some training against PGD, images and labels.

    The images are those of the test set, and more than it holds are filled up by training images.
    """
    digits = data.load("digits")
    # Its images have short rows.
    model = models.small_resnet(width=flags.width, conv=models.conv.banded)
    threat = threats.BY_NAME[flags.norm](TRAINING_RADII[flags.norm])
    attack = functools.partial(attacks.pgd, num_steps=5, step_size=threat.step_size(5))
    defense = defenses.mixture(model, optax.adam(3e-3), threat, attack, num_members=1)
    generator, step = np.random.default_rng(flags.seed), jax.jit(defense.step)
    images, labels = data.to_float(jnp.asarray(digits.train.images)), digits.train.labels
    state = defense.init(jax.random.key(flags.seed))
    for _ in range(flags.training_steps):
        batch = generator.integers(0, len(labels), TRAINING_BATCH)
        state, _ = step(state, images[batch], labels[batch])
    variables = jax.tree.map(lambda leaf: np.asarray(leaf[0]), state.variables)
    splits = digits.test, digits.train
    images = np.concatenate([each.images for each in splits])[: flags.examples]
    labels = np.concatenate([each.labels for each in splits])[: flags.examples]
    return model, variables, data.to_float(images), labels.astype(np.int32)


def ours(model, variables, images, labels, flags, budget: str, seed: int) -> dict[str, Any]:
    """One evaluation by a budget of the suite, compiled anew."""
    jax.clear_caches()
    suite = evaluation.attack_suite(threats.BY_NAME[flags.norm](flags.epsilon), BUDGETS[budget])

    def evaluate():
        return evaluation.evaluate(
            jax.random.key(seed),
            jax.tree_util.Partial(_members, jax.tree_util.Partial(model.apply), variables),
            [1.0],
            images,
            labels,
            suite,
            alone=False,
            num_complete=0,
        )

    found, seconds, cpu_seconds = timed(evaluate)
    per_run = np.round(found.seconds, 3).tolist()
    extra = {
        "attacks": list(found.runs),
        "seconds_of_each": per_run,
        "attacked_by_each": found.num_attacked.tolist(),
    }
    return row(f"mixjax {budget}", seed, found.worst > 0.5, seconds, cpu_seconds) | extra


def row(name: str, seed: int, left, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """What one side left in one go."""
    accuracy = float(np.mean(left))
    comparison.tell(f"{name}, seed {seed}: {accuracy:.4f} left, {cpu_seconds:.1f} s of a core")
    return {
        "side": name,
        "seed": seed,
        "robust_accuracy": accuracy,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its seconds and those of the processor."""
    began, cpu_began = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - began, time.process_time() - cpu_began


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each side the accuracies over seeds and the median time, as a share of theirs."""
    found = {}
    for name in dict.fromkeys(each["side"] for each in rows):
        mine = [each for each in rows if each["side"] == name]
        accuracies = [each["robust_accuracy"] for each in mine]
        found[name] = {
            "robust_accuracy": {"mean": float(np.mean(accuracies)), "of_seeds": accuracies},
            "seconds": float(np.median([each["seconds"] for each in mine])),
            "cpu_seconds": float(np.median([each["cpu_seconds"] for each in mine])),
        }
    for entry in found.values() if THEIRS in found else ():
        for time_of in ("seconds", "cpu_seconds"):
            entry[f"share_of_their_{time_of}"] = entry[time_of] / found[THEIRS][time_of]
    return found


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{'':24}{'robust %':>10}{'of each seed':>24}{'s':>8}{'CPU s':>8}{'share':>8}"]
    for name, entry in result["summary"].items():
        accuracy = entry["robust_accuracy"]
        each = " ".join(f"{100 * value:.2f}" for value in accuracy["of_seeds"])
        share = entry.get("share_of_their_cpu_seconds")
        lines.append(
            f"{name:24}{100 * accuracy['mean']:10.2f}{each:>24}{entry['seconds']:8.1f}"
            f"{entry['cpu_seconds']:8.1f}" + ("" if share is None else f"{share:8.2f}")
        )
    return "\n".join(lines)


def _members(apply, variables, x):
    return apply(variables, x[None])


def _their_side(model, variables, images, labels, flags):
    try:
        from benchmarks import peer_autoattack
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}: `make .venv-peers/peers` installs it, --no-peers times mixjax alone"
        ) from error
    peer_autoattack.start(setting.num_threads(), flags.seed)
    side = peer_autoattack.of_resnet(variables, images, labels)
    difference = np.abs(side.logits() - jax.jit(model.apply)(variables, images)).max()
    if not difference <= TOLERANCE * max(1.0, float(np.abs(side.logits()).max())):
        raise ValueError(f"logits of the two networks differ by {difference:.3g}")
    return side


if __name__ == "__main__":
    main()
