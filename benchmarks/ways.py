"""One layer by every way that XLA has to compute it, beside PyTorch: what limits Hamm's steps.

    python -m benchmarks.ways              # needs PyTorch: pip install -e '.[bench]'; a minute

The steps of Hamm's classifier spend most of their time in one layer: 32 to 64 channels under a
5 x 5 kernel, 128 images of 14 x 14. Here it and its two gradients are computed as XLA's
convolution, with the pixels last too, as one or several matrix products, by Winograd's
F(2 x 2, 5 x 5), which multiplies 2.8 times less, by Fourier's transform, and as mixjax does. A
gradient in the images is the same way with the flipped kernel; one in the kernel is what JAX
derives. All must agree with PyTorch's before anything is timed. The matrix product of as many
multiplications, its factors at hand, and the rates of large products of both libraries show what
there is to win.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import convolutions, setting, timing
from mixjax import files
from mixjax.models import conv
from mixjax.typing import Array

PROGRAM = "benchmarks.ways"
LAYER = convolutions.Layer(128, 14, 32, 64, 5)
MAPS, RATE = convolutions.MAPS, "large products"
_sum = functools.partial(functools.reduce, jnp.add)
_LARGE = 2048  # rows and columns of the products that show the rates


def by_xla(x: Array, w: Array) -> Array:
    """XLA's convolution of images `[B, H, W, C]` with a kernel `[h, w, C, K]`, of equal size."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_NUMBERS)


def pixels_last(x: Array, w: Array) -> Array:
    """The same of images `[B, C, H, W]`; the axes are moved outside of what is timed."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME")


def one_product(x: Array, w: Array) -> Array:
    """Each pixel's neighbourhood, copied, with the kernel."""
    patches = jnp.concatenate([moved for row in _moved(x, *w.shape[:2]) for moved in row], 3)
    return patches @ w.reshape(-1, w.shape[3])


def product_for_each_row(x: Array, w: Array) -> Array:
    """The pixels beside each pixel, copied, with each row of the kernel."""
    rows = [jnp.concatenate(row, 3) for row in _moved(x, *w.shape[:2])]
    return _sum(part @ w[i].reshape(-1, w.shape[3]) for i, part in enumerate(rows))


def product_for_each_number(x: Array, w: Array) -> Array:
    """Moved images with each number of the kernel: nothing is copied but the images."""
    moved = _moved(x, *w.shape[:2])
    return _sum(part @ w[i, j] for i, row in enumerate(moved) for j, part in enumerate(row))


def winograd(x: Array, w: Array) -> Array:
    """36 products of tiles of 6 x 6 pixels for 2 x 2 results; the kernel is 5 x 5."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    x = x.reshape(batch, height // 2 + 2, 2, width // 2 + 2, 2, channels)
    rows = _combined(_OF_IMAGE, _six(x, 1))
    tiles = [tile for row in rows for tile in _combined(_OF_IMAGE, _six(row, 2))]
    of_kernel = jnp.asarray(_OF_KERNEL, w.dtype)
    kernels = jnp.einsum("ai,bj,ijck->abck", of_kernel, of_kernel, w).reshape(36, *w.shape[2:])
    products = [tile @ kernel for tile, kernel in zip(tiles, kernels, strict=True)]
    columns = [_combined(_OF_RESULT, products[j::6]) for j in range(6)]
    pixels = [jnp.stack(_combined(_OF_RESULT, row), 3) for row in zip(*columns, strict=True)]
    return jnp.stack(pixels, 2).reshape(batch, height, width, -1)


def fourier(x: Array, w: Array) -> Array:
    """Products of the images' and the kernel's frequencies."""
    (height, width), (rows, columns) = x.shape[1:3], w.shape[:2]
    size = (height + rows - 1, width + columns - 1)
    of_x, of_w = jnp.fft.rfft2(x, size, (1, 2)), jnp.fft.rfft2(w[::-1, ::-1], size, (0, 1))
    y = jnp.fft.irfft2(jnp.einsum("bhwc,hwck->bhwk", of_x, of_w), size, (1, 2))
    return y[:, rows // 2 :, columns // 2 :][:, :height, :width]


def of_mixjax(x: Array, w: Array) -> Array:
    """As our networks are computed."""
    return conv.unrolled(x, w, (1, 1), "SAME", dimension_numbers=_NUMBERS)


WAYS = {
    "mixjax": of_mixjax,
    "XLA's convolution": by_xla,
    "XLA's convolution, pixels last": pixels_last,
    "one product of neighbourhoods": one_product,
    "a product for each row of the kernel": product_for_each_row,
    "a product for each number of the kernel": product_for_each_number,
    "Winograd, 36 products": winograd,
    "Fourier": fourier,
}
_NUMBERS = ("NHWC", "HWIO", "NHWC")
# Winograd's F(2, 5) at the points 0, 1, -1, 2, -2 and infinity: what a tile, a kernel and the
# products are summed to. Lavin and Gray, Fast algorithms for convolutional neural networks, 2016.
_OF_IMAGE = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OF_RESULT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 1))
_POINTS = np.array([0.0, 1.0, -1.0, 2.0, -2.0])
_SCALES = np.array([4.0, -6.0, -6.0, 24.0, 24.0])
_OF_KERNEL = np.vstack([_POINTS[:, None] ** np.arange(5) / _SCALES[:, None], np.eye(5)[4:]])


def _moved(x, rows, columns):
    """`[rows][columns]` images `[B, H, W, C]`, each as a number of the kernel sees them."""
    (height, width), pads = x.shape[1:3], [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)]
    x = jnp.pad(x, pads)
    return [[x[:, i : i + height, j : j + width] for j in range(columns)] for i in range(rows)]


def _six(x, axis):
    """The six pixels of each tile along an axis, which holds pairs of pixels."""
    halves = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(2)]
    last = x.shape[axis] - 2
    return [lax.slice_in_dim(halves[i % 2], i // 2, last + i // 2, axis=axis) for i in range(6)]


def _combined(rows, parts):
    return [
        _sum(part if c == 1 else c * part for c, part in zip(row, parts, strict=True) if c)
        for row in rows
    ]


def maps(way: Callable, arrays: tuple[np.ndarray, ...]) -> dict[str, Callable[[], Array]]:
    """A way's three maps, compiled, of images, kernel and the gradient of the result."""
    x, w, y = map(jnp.asarray, arrays)
    flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    if way is pixels_last:
        x, y = (each.transpose(0, 3, 1, 2) for each in (x, y))
        w, flipped = (each.transpose(3, 2, 0, 1) for each in (w, flipped))

    def kernel_gradient(x, y):
        return jax.vjp(lambda w: way(x, w), w)[1](y)[0]

    def input_gradient(y, w):
        return jax.vjp(lambda x: way(x, w), x)[1](y)[0]

    # Ours knows its own gradient in the images.
    back = (input_gradient, w) if way is of_mixjax else (way, flipped)
    calls = {
        "forward": (way, x, w),
        "input_gradient": (back[0], y, back[1]),
        "kernel_gradient": (kernel_gradient, x, y),
    }
    return {
        name: functools.partial(jax.jit(function), *given)
        for name, (function, *given) in calls.items()
    }


def main(argv=None):
    """Compares, times, prints, writes."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = parse(argv)
    start, load = time.perf_counter(), os.getloadavg()[0]
    torch = convolutions.import_torch(PROGRAM)
    arrays = convolutions.arrays_of(LAYER, flags.seed)
    theirs = convolutions.their_maps(torch, LAYER, arrays)
    calls = {("torch", name): call for name, call in theirs.items()}
    calls |= {
        ("the product alone", name): call for name, call in convolutions.products(LAYER).items()
    }
    try:
        for way, function in WAYS.items():
            for name, call in maps(function, arrays).items():
                found = np.asarray(call())
                if function is pixels_last:
                    found = found.transpose((2, 3, 1, 0) if name == MAPS[2] else (0, 2, 3, 1))
                convolutions.compare(LAYER, name, found, theirs[name]())
                calls[way, name] = call
        square = np.ones((_LARGE, _LARGE), np.float32)
        of_torch, of_xla = torch.tensor(square), jnp.asarray(square)
        calls["torch", RATE] = functools.partial(torch.mm, of_torch, of_torch)
        calls["XLA", RATE] = functools.partial(jax.jit(jnp.dot), of_xla, of_xla)
        cases = [
            timing.Case(", ".join(which), 0, convolutions.case(call))
            for which, call in calls.items()
        ]
        timings = timing.interleave(cases, num_repeats=flags.repeats, min_seconds=flags.seconds)
    except ValueError as error:
        setting.fail(PROGRAM, error)
    found = summary(dict(zip(calls, timings, strict=True)))
    origin = convolutions.provenance(PROGRAM, argv, flags, start, load, torch)
    result = {"benchmark": "ways", "layer": LAYER.name, **found, **origin}
    files.write_json(flags.output, result)
    print(table(result))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    return convolutions.parse(argv, PROGRAM, __doc__, "ways-cpu.json")


def summary(timings: dict[tuple[str, str], timing.Timing]) -> dict:
    """Milliseconds of each way, and the rates of large products."""
    ways = dict.fromkeys(way for way, name in timings if name != RATE)
    return {
        "milliseconds": {
            way: {name: convolutions.milliseconds(timings[way, name]) for name in MAPS}
            for way in ways
        },
        "gigaflops_of_large_products": {
            side: timing.spread(
                [2e-9 * _LARGE**3 / seconds for seconds in timings[side, RATE].seconds]
            )._asdict()
            for side in ("torch", "XLA")
        },
    }


def table(result: dict) -> str:
    """The result as lines of text: milliseconds forward / of both gradients."""
    lines = [
        f"{way:44}" + " / ".join(f"{found[name]['median']:.1f}" for name in MAPS)
        for way, found in result["milliseconds"].items()
    ]
    rates = result["gigaflops_of_large_products"]
    told = ", ".join(f"{side} {rate['median']:.0f}" for side, rate in rates.items())
    return "\n".join([*lines, f"large products, GFLOP/s: {told}"])


if __name__ == "__main__":
    main()
