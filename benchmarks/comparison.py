"""Both benchmarks' common course: check that both sides compute the same, time, print, write."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cost, setting, timing
from mixjax import ensemble, files, memory, reporting

THREADS = "XLA takes the cores of the affinity mask; torch.set_num_threads is given their number"
# Largest difference of logits allowed, as a part of the largest logit.
TOLERANCE = {("cpu", "float32"): 1e-4, ("gpu", "float32"): 1e-2}  # a GPU multiplies in TF32
BFLOAT16_TOLERANCE = 5e-2

Ours = Callable[[argparse.Namespace, setting.Problem, str], Callable[[], Callable[[], float]]]
Theirs = Callable[[Any], Callable[[], float]]


def run(name: str, description: str, argv, ours: Ours, theirs: Theirs, operations: Callable):
    """The whole benchmark.

    Args:
      name: of the benchmark and its module.
      description: what `--help` shows.
      argv: arguments; None for those of the process.
      ours: `(flags, problem, name of the convolution) -> prepare`, as in `timing.Case`.
      theirs: `Peer -> call`, the same work in PyTorch.
      operations: `(width, num_members, attack_steps) -> ` operations per image.
    """
    program = f"benchmarks.{name}"
    # Two libraries share the device: neither may take all of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Where other programs run as well, torch's threads waste their time waiting in a loop for one
    # that the system has put aside: on a busy machine it is up to 100 times as slow by default.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = setting.parse(program, description, argv)
    memory.keep()  # for both sides
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured
    start, load = time.perf_counter(), [os.getloadavg()[0]]
    try:
        peer = None if flags.no_torch else _import_peer(flags)
        problems = {number: setting.problem(flags, number) for number in flags.members}
        checks, cases = [], []
        for number, problem in problems.items():
            for mode in flags.torch if peer else ():
                case, check = _their_case(peer, flags, problem, mode, theirs)
                cases.append(case)
                checks.append({"case": case.name, "members": number, **check})
            for convolution in flags.conv:
                prepare = ours(flags, problem, convolution)
                cases.append(timing.Case(f"mixjax {convolution}", number, prepare))
        cases.append(cost.matrix_case(flags.dtype))
        timings = timing.interleave(
            cases, num_repeats=flags.repeats, min_seconds=flags.seconds, tell=tell
        )
    except (ImportError, ValueError) as error:
        setting.fail(program, error)
    load.append(os.getloadavg()[0])
    result = summary(flags, timings, operations)
    origin = reporting.provenance(argv_of(program, argv), flags.seed, time.perf_counter() - start)
    if peer:
        origin["versions"]["torch"] = peer.version()
    settings = {key: value for key, value in vars(flags).items() if key != "output"}
    head = {
        "benchmark": name,
        "settings": settings,
        "threads": {
            "number": setting.num_threads(),
            "how": THREADS,
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        "load_before_and_after": load,
        "same_logits": checks,
    }
    files.write_json(flags.output, {**head, **result, "provenance": origin})
    print(table(result))


def summary(flags: argparse.Namespace, timings: list[timing.Timing], operations: Callable) -> dict:
    """Rates, ratios and shares of the timings, as `cases`, `cost_of_members`, `matrix_rate`."""
    found = {(entry.case.name, entry.case.num_members): entry for entry in timings}
    matrix = found.pop(("matrix products", 0), None)
    rates = matrix and [cost.matrix_rate(seconds) for seconds in matrix.seconds]
    cases = []
    for (name, number), entry in found.items():
        work = operations(flags.width, number, flags.attack_steps) * flags.batch_size
        case = {
            "case": name,
            "members": number,
            "images_per_second": flags.batch_size / timing.spread(entry.seconds).median,
            "seconds": entry.seconds,
            "cpu_seconds": entry.cpu_seconds,
            "compile_seconds": entry.compile_seconds,
            "loss": entry.loss,
            "operations_per_second": work / timing.spread(entry.seconds).median,
        }
        if rates:
            turns = zip(entry.seconds, rates, strict=True)
            shares = [work / seconds / rate for seconds, rate in turns]
            case["share_of_matrix_rate"] = timing.spread(shares)._asdict()
        if not name.startswith("torch"):
            peers = {
                other: found[other, number]
                for other, members in found
                if other.startswith("torch") and members == number
            }
            for field, cpu in (("times_as_fast_as", False), ("cpu_times_as_fast_as", True)):
                case[field] = {
                    other: timing.ratio(peer, entry, cpu=cpu)._asdict()
                    for other, peer in peers.items()
                }
        cases.append(case)
    costs = [
        {"case": name, "members": number, "over": few, **timing.ratio(entry, base)._asdict()}
        for (name, number), entry in found.items()
        for few in [min(flags.members)]
        for base in [found[name, few]]
        if number > few
    ]
    result = {"operations": cost.FORMULA, "cases": cases, "cost_of_members": costs}
    return result | ({"matrix_rate": timing.spread(rates)._asdict()} if rates else {})


def table(result: dict) -> str:
    """The result as lines of text."""
    lines = [f"{'':24}{'L':>3}{'images/s':>10}{'compile':>10}  times as fast as"]
    for case in result["cases"]:
        ratios = "; ".join(
            f"{name} {_range(ratio)}" for name, ratio in case.get("times_as_fast_as", {}).items()
        )
        lines.append(
            f"{case['case']:24}{case['members']:3}{case['images_per_second']:10.4g}"
            f"{case['compile_seconds']:8.1f} s  {ratios}".rstrip()
        )
        if "share_of_matrix_rate" in case:
            lines[-1] += f"; share of the matrix rate {_range(case['share_of_matrix_rate'])}"
    for entry in result["cost_of_members"]:
        lines.append(
            f"{entry['case']}: L = {entry['members']} costs {_range(entry)} times L = "
            f"{entry['over']}"
        )
    if "matrix_rate" in result:
        lines.append(f"matrix products: {result['matrix_rate']['median'] / 1e9:.0f} GFLOP/s")
    return "\n".join(lines)


def argv_of(program: str, argv) -> list[str]:
    """The command line, as a list."""
    return ["python", "-m", program, *(sys.argv[1:] if argv is None else argv)]


def check_compiler(instead: str = ""):
    """Raises ValueError where `torch.compile` would not find the compiler that it needs."""
    compilers = os.environ.get("CXX", "g++"), "clang++"
    if _device() == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(f"torch.compile needs g++ or clang++: install one{instead}")


def _import_peer(flags):
    try:
        from benchmarks import peer
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torch":
            raise
        raise ValueError(
            "torch is not installed: pip install -e '.[bench]', or time mixjax alone: --no-torch"
        ) from error
    if "compile" in flags.torch:
        check_compiler(", or give --torch eager")
    peer.start(setting.num_threads(), _device(), flags.seed)
    return peer


def _device():
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _their_case(peer, flags, problem, mode, theirs):
    """PyTorch's case, and by how much its logits differ from ours."""
    side = peer.Peer(problem, flags.dtype, _device())
    check = compare_logits(flags, problem, side.logits)

    def prepare():
        call = peer.waiting(theirs(side))
        if mode == "compile":
            side.compile()
            call()  # compiles; the time includes one run
        return call

    return timing.Case(f"torch {mode}", len(problem.weights), prepare), check


def compare_logits(flags: argparse.Namespace, problem: setting.Problem, their_logits) -> dict:
    """Compares logits with and without the batch's own statistics.

    Args:
      flags: width and dtype of the model.
      problem: weights and images.
      their_logits: `train -> [L, B, C]`.

    Returns:
      `evaluation` and `training`, the largest difference as a part of the largest logit, and the
      `tolerance`.

    Raises:
      ValueError: if one of them exceeds the tolerance.
    """
    model = setting.build_model(flags)
    images = jnp.asarray(problem.images)
    tolerance = TOLERANCE.get((jax.default_backend(), flags.dtype), BFLOAT16_TOLERANCE)
    found: dict[str, float] = {}
    for name, train in (("evaluation", False), ("training", True)):

        def apply(variables, images, train=train):
            logits = model.apply(variables, images, train=train)
            return logits[0] if train else logits

        ours = jax.jit(lambda variables, apply=apply: ensemble.apply(apply, variables, images))(
            problem.variables
        )
        ours, theirs = np.asarray(ours), their_logits(train)
        found[name] = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours)))
        if not found[name] <= tolerance:
            raise ValueError(
                f"logits differ in {name} mode by {found[name]:.2g} of the largest, "
                f"tolerance {tolerance}: nothing was timed"
            )
    return {**found, "tolerance": tolerance}


def _range(values):
    return f"{values['median']:.3g} ({values['low']:.3g} to {values['high']:.3g})"


def tell(text: str):
    """A line about the progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
