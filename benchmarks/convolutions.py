"""Each convolution of our networks and its two gradients, beside PyTorch's, one layer at a time.

    python -m benchmarks.convolutions      # needs PyTorch: pip install -e '.[bench]'; a minute

The layers of a ResNet18 of width 64 and of the MNIST classifier of Hamm 2018, and some narrow ones,
as small networks have; those of 8 x 8 images by `conv.banded`. Both sides get the same arrays, in
the layout that each is fastest with, and must agree before anything is timed. Beside each map
stands XLA's matrix product of as many multiplications, its factors at hand: no convolution that is
made of one product takes less.
"""

import argparse
import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import comparison, setting, timing
from mixjax import checks, files, memory, reporting
from mixjax.models import conv

PROGRAM = "benchmarks.convolutions"
MAPS = ("forward", "input_gradient", "kernel_gradient")
TOLERANCE = 1e-4  # of the largest value


class Layer(NamedTuple):
    """A convolution: images `[B, size, size, channels]`, a kernel `[side, side, channels, K]`."""

    batch: int
    size: int
    channels: int
    features: int
    side: int = 3
    stride: int = 1
    is_banded: bool = False

    @property
    def name(self) -> str:
        """What it is called in the table."""
        channels = f"{self.channels} to {self.features}, {self.size} x {self.size}"
        name = f"{channels}, kernel {self.side} x {self.side}, stride {self.stride}"
        return f"{name}, banded" if self.is_banded else name

    @property
    def padding(self) -> tuple[int, int]:
        """Before and after, as `SAME`."""
        total = self.side - 1 if self.stride == 1 else self.side - self.stride
        return total // 2, total - total // 2


LAYERS = (
    Layer(32, 32, 64, 64),
    Layer(32, 16, 128, 128),
    Layer(32, 8, 256, 256),
    Layer(32, 4, 512, 512),
    Layer(64, 32, 32, 32),
    Layer(32, 32, 64, 128, 3, 2),
    Layer(32, 16, 128, 256, 3, 2),
    Layer(32, 8, 256, 512, 3, 2),
    Layer(128, 28, 1, 32, 5),
    Layer(128, 14, 32, 64, 5),
    Layer(128, 28, 1, 8, 5),
    Layer(64, 28, 8, 8),
    Layer(64, 32, 16, 16),
    Layer(64, 8, 1, 8, is_banded=True),
    Layer(64, 8, 8, 8, is_banded=True),
    Layer(64, 8, 8, 16, 3, 2, is_banded=True),
)


def main(argv=None):
    """Compares, times, prints, writes."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = parse(argv)
    start, load = time.perf_counter(), os.getloadavg()[0]
    torch = import_torch(PROGRAM)
    cases = []
    try:
        for layer in LAYERS:
            arrays = arrays_of(layer, flags.seed)
            bare = products(layer)
            for name in MAPS:
                mine, theirs = ours(layer, arrays)[name], their_maps(torch, layer, arrays)[name]
                difference = compare(layer, name, mine(), theirs())
                comparison.tell(f"{layer.name}, {name}: both sides differ by {difference:.1e}")
                for side, call in (("torch", theirs), ("mixjax", mine), ("product", bare[name])):
                    cases.append(timing.Case(f"{side}, {name}, {layer.name}", 0, case(call)))
        timings = timing.interleave(cases, num_repeats=flags.repeats, min_seconds=flags.seconds)
    except ValueError as error:
        setting.fail(PROGRAM, error)
    origin = provenance(PROGRAM, argv, flags, start, load, torch)
    result = {"benchmark": "convolutions", "cases": rows(timings), **origin}
    files.write_json(flags.output, result)
    print(table(result))


def import_torch(program: str) -> Any:
    """PyTorch with as many threads as XLA, where the process keeps freed memory."""
    try:
        import torch
    except ModuleNotFoundError as error:
        setting.fail(program, f"{error}: pip install -e '.[bench]'")
    torch.set_num_threads(setting.num_threads())
    memory.keep()
    return torch


def provenance(program: str, argv, flags, start: float, load: float, torch) -> dict[str, Any]:
    """How a result was found: settings, threads, load and versions."""
    origin = reporting.provenance(
        comparison.argv_of(program, argv), flags.seed, time.perf_counter() - start
    )
    origin["versions"]["torch"] = torch.__version__
    return {
        "settings": {key: value for key, value in vars(flags).items() if key != "output"},
        "threads": {"number": setting.num_threads(), "how": comparison.THREADS},
        "load_before_and_after": [load, os.getloadavg()[0]],
        "provenance": origin,
    }


def parse(
    argv, program=PROGRAM, description=__doc__, output="convolutions-cpu.json"
) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(program, description)
    add: Callable[..., Any] = parser.add_argument
    add("--repeats", type=int, default=9, help="turns of each program")
    add("--seconds", type=float, default=0.1, help="least duration of a turn")
    add("--seed", type=int, default=0)
    add("--output", type=pathlib.Path, default=setting.RESULTS / output)
    flags = parser.parse_args(argv)
    with parser.checking():
        checks.at_least(1, repeats=flags.repeats)
        checks.seed(seed=flags.seed)
        checks.non_negative(seconds=flags.seconds)
        setting.check_output(flags.output)
    return flags


def arrays_of(layer: Layer, seed: int) -> tuple[np.ndarray, ...]:
    """Images, kernel and the gradient of the result."""
    random, out = np.random.default_rng(seed), layer.size // layer.stride
    shapes = (
        (layer.batch, layer.size, layer.size, layer.channels),
        (layer.side, layer.side, layer.channels, layer.features),
        (layer.batch, out, out, layer.features),
    )
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)


def ours(layer: Layer, arrays) -> dict[str, Callable[[], Any]]:
    """The three maps, compiled."""
    x, w, y = map(jax.device_put, arrays)

    convolution = conv.banded if layer.is_banded else conv.unrolled

    def forward(x, w):
        return convolution(
            x,
            w,
            (layer.stride,) * 2,
            (layer.padding,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def gradient(place, x, w, y):
        return jax.vjp(forward, x, w)[1](y)[place]

    return {
        "forward": functools.partial(jax.jit(forward), x, w),
        "input_gradient": functools.partial(jax.jit(functools.partial(gradient, 0)), x, w, y),
        "kernel_gradient": functools.partial(jax.jit(functools.partial(gradient, 1)), x, w, y),
    }


def products(layer: Layer) -> dict[str, Callable[[], Any]]:
    """For each map a matrix product of its size, compiled: what copies and sums would go around."""
    pixels, kernel = layer.batch * layer.size**2, layer.side**2 / layer.stride**2
    results, numbers = pixels // layer.stride**2, layer.side**2 * layer.channels
    sizes = {
        "forward": (results, numbers, layer.features),
        "input_gradient": (pixels, round(kernel * layer.features), layer.channels),
        "kernel_gradient": (numbers, results, layer.features),
    }

    def product(rows, summed, columns):
        return functools.partial(
            jax.jit(jnp.dot), jnp.ones((rows, summed)), jnp.ones((summed, columns))
        )

    return {name: product(*size) for name, size in sizes.items()}


def their_maps(torch, layer: Layer, arrays) -> dict[str, Callable[[], Any]]:
    """The same in PyTorch, which pads images and leaves out results alike on both sides."""
    x, w, y = map(torch.tensor, arrays)
    # [B, H, W, C] seen as [B, C, H, W] is what channels_last means; kernels [K, C, side, side].
    x, y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
    w = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    before, after = layer.padding
    side, stride = layer.side // 2, [layer.stride] * 2
    if before != after:  # the padding that SAME leaves out in front, taken by flipped images
        x, w, y = (
            each.flip(2, 3).contiguous(memory_format=torch.channels_last) for each in (x, w, y)
        )

    def back(wanted):
        with torch.no_grad():
            found = torch.ops.aten.convolution_backward(
                y, x, w, None, stride, [side] * 2, [1, 1], False, [0, 0], 1, wanted
            )
        return next(each for each in found if each is not None)

    def forward():
        with torch.no_grad():
            return torch.nn.functional.conv2d(x, w, None, stride, side)

    return {
        "forward": forward,
        "input_gradient": lambda: back([True, False, False]),
        "kernel_gradient": lambda: back([False, True, False]),
    }


def compare(layer: Layer, name: str, mine, theirs) -> float:
    """By how much both sides differ, as a part of the largest value.

    Raises:
      ValueError: if that is more than rounding.
    """
    order = (2, 3, 1, 0) if name == "kernel_gradient" else (0, 2, 3, 1)
    theirs = theirs.permute(*order).numpy()
    if layer.padding[0] != layer.padding[1]:
        axes = (0, 1) if name == "kernel_gradient" else (1, 2)
        theirs = np.flip(theirs, axes)
    difference = float(np.abs(np.asarray(mine) - theirs).max() / np.abs(theirs).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{name} of {layer.name}: both sides differ by {difference:.3g}")
    return difference


def case(call) -> Callable[[], Callable[[], float]]:
    """`prepare` of what is compiled."""

    def prepare():
        def timed():
            found = call()
            if hasattr(found, "block_until_ready"):
                found.block_until_ready()
            return 0.0

        return timed

    return prepare


def rows(timings) -> list[dict[str, Any]]:
    """Milliseconds of both sides and of the product, and how many times as fast ours is."""
    found = []
    for theirs, mine, bare in zip(timings[::3], timings[1::3], timings[2::3], strict=True):
        side, name, layer = mine.case.name.split(", ", 2)
        found.append(
            {
                "layer": layer,
                "map": name,
                "milliseconds": milliseconds(mine),
                "torch_milliseconds": milliseconds(theirs),
                "product_milliseconds": milliseconds(bare),
                "times_as_fast": timing.ratio(theirs, mine)._asdict(),
            }
        )
    return found


def milliseconds(timed: timing.Timing) -> dict[str, float]:
    """Their median, lowest and highest value."""
    return timing.spread([1e3 * each for each in timed.seconds])._asdict()


def table(result: dict[str, Any]) -> str:
    """The result as lines of text: milliseconds, ours / PyTorch's / the product alone."""
    lines = []
    for layer in dict.fromkeys(each["layer"] for each in result["cases"]):
        cells = [
            f"{each['map']} {each['milliseconds']['median']:.1f} / "
            f"{each['torch_milliseconds']['median']:.1f} / "
            f"{each['product_milliseconds']['median']:.1f}"
            for each in result["cases"]
            if each["layer"] == layer
        ]
        lines.append(f"{layer:48}{', '.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
