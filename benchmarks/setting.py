"""What is timed: the flags, and the weights, images and attack that both sides get."""

import argparse
import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import attacks, batch, checks, ensemble, models, threats
from mixjax.models import conv
from mixjax.typing import PyTree

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
CONVOLUTIONS = {"unrolled": conv.unrolled, "scanned": conv.scanned, "grouped": conv.grouped}
DTYPES = ("float32", "bfloat16")
TORCH = ("eager", "compile")
num_threads = batch.cores  # what XLA takes for its threads on a CPU
NUM_CLASSES = 10
EPSILON, STEP_SIZE = 8 / 255, 2 / 255


class Problem(NamedTuple):
    """One mixture and one batch, on the host, for both sides.

    Attributes:
      variables: the members' variables, NumPy leaves `[L, ...]`.
      weights: `[L]` probabilities of the members.
      images: `[B, 32, 32, 3]` in [0, 1].
      labels: `[B]` classes.
      num_steps: steps of the attack.
    """

    variables: PyTree
    weights: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    num_steps: int


def parse(program: str, description: str, argv=None) -> argparse.Namespace:
    """The flags, those not given filled in for the device. Bad input: one line, exit code 2."""
    parser = Parser(program, description)
    add: Callable[..., Any] = parser.add_argument
    add("--width", type=int, default=64, help="channels of the first stage")
    add("--batch-size", type=int, help="images per call; None: 32 on a CPU, 512 on a GPU")
    add("--members", type=int, nargs="+", default=[1, 4], help="numbers of members L")
    add("--attack-steps", type=int, default=10, help="steps of PGD")
    add("--conv", nargs="+", choices=CONVOLUTIONS, default=["unrolled"], help="convolutions")
    add("--dtype", choices=DTYPES, help="of the convolutions; None: float32 on a CPU, bfloat16")
    add("--torch", nargs="+", choices=TORCH, help="None: both")
    add("--no-torch", action="store_true", help="time mixjax alone")
    add("--repeats", type=int, default=3, help="turns of each program")
    add("--seconds", type=float, default=1.0, help="least duration of a turn")
    add("--seed", type=int, default=0, help="of weights, images and attacks")
    add("--output", type=pathlib.Path, help="JSON file; None: results/NAME-DEVICE.json")
    flags = parser.parse_args(argv)
    on_gpu = jax.default_backend() == "gpu"
    defaults = {
        "batch_size": 512 if on_gpu else 32,
        "dtype": "bfloat16" if on_gpu else "float32",
        "torch": list(TORCH),
        "output": RESULTS / f"{program.split('.')[-1]}-{jax.default_backend()}.json",
    }
    for name, value in defaults.items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)
    with parser.checking():
        names = "width batch_size attack_steps repeats".split()
        checks.at_least(1, **{name: getattr(flags, name) for name in names})
        for num_members in flags.members:
            checks.at_least(1, members=num_members)
        checks.seed(seed=flags.seed)
        checks.non_negative(seconds=flags.seconds)
        check_output(flags.output)
    return flags


def fail(program: str, error: Exception | str) -> NoReturn:
    """Ends the process: one line on stderr, exit code 2."""
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


def build_model(flags: argparse.Namespace, convolution: str = "unrolled") -> models.Model:
    """Our ResNet18 at the width and dtype asked for."""
    return models.resnet18(
        NUM_CLASSES,
        flags.width,
        dtype=jnp.dtype(flags.dtype),
        conv=CONVOLUTIONS[convolution],
    )


def problem(flags: argparse.Namespace, num_members: int) -> Problem:
    """The mixture of `num_members` and the batch that the flags describe.

    Every vector among the variables gets noise: with all scales and variances 1, a swapped pair
    of them would change no logit.
    """
    generator = np.random.default_rng(flags.seed)
    model = build_model(flags)
    # Compiled as a whole: layer by layer it would take longer than to attack a small batch.
    init = jax.jit(lambda key: ensemble.init(model.init, key, num_members))
    variables = init(jax.random.key(flags.seed))

    def noisy(leaf):
        noise = generator.uniform(0.0, 0.2, leaf.shape) if leaf.ndim == 2 else 0.0
        return (np.asarray(leaf) + noise).astype(np.float32)

    return Problem(
        variables=jax.tree.map(noisy, variables),
        weights=np.full(num_members, 1 / num_members, np.float32),
        images=generator.uniform(0.0, 1.0, (flags.batch_size, 32, 32, 3)).astype(np.float32),
        labels=generator.integers(0, NUM_CLASSES, flags.batch_size).astype(np.int32),
        num_steps=flags.attack_steps,
    )


def threat() -> threats.Threat:
    """The ball of CIFAR-10's attacks, 8/255."""
    return threats.linf(EPSILON)


def pgd(num_steps: int) -> Callable[..., Any]:
    """`(key, loss_fn, x, threat) -> (x_adv, info)`: the attack of both benchmarks."""
    return partial(attacks.pgd, num_steps=num_steps, step_size=STEP_SIZE)


def check_output(path: pathlib.Path):
    """Raises `ValueError` unless a file can be written there."""
    folder = path.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)) or path.is_dir():
        raise ValueError(f"output {path} cannot be written")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every flag's default."""


class Parser(argparse.ArgumentParser):
    """A parser that answers bad input with one line, and takes no flag in short."""

    def __init__(self, program: str, description: str | None):
        for stream in (sys.stdout, sys.stderr):  # Not every encoding has a plus-minus sign.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        super().__init__(
            prog=program,
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        fail(self.prog, message)

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """In it a `ValueError` about a flag ends the process."""
        try:
            yield
        except ValueError as error:
            fail(self.prog, error)
