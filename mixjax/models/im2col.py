"""Convolutions as one matrix product: of each pixel's neighbourhood with the kernel.

The neighbourhoods are copied out, `side * side` times the images. XLA's own convolutions on a CPU
need no copy, but are slow where the kernel moves by two pixels or there are few channels and
features; of a few images at a time the copies stay in the cache.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from mixjax.models import chunks
from mixjax.typing import Array

_FEWEST_CHANNELS = 32  # with fewer, the product is too narrow to pay for the copies
_MOST_NUMBERS, _MOST_FEATURES = 32, 16  # of a narrow kernel: numbers that a feature is made of
_FEWEST_PIXELS = 196  # of an image; of smaller ones a narrow kernel gains a tenth of a millisecond
_COPIES_IN_CACHE = 2**18  # numbers


def suits(channels: int, features: int) -> bool:
    """Whether the product is large enough to pay for the copies."""
    return min(channels, features) >= _FEWEST_CHANNELS


def is_narrow(kernel: Sequence[int], shape: Sequence[int], features: int) -> bool:
    """Whether images `[B, H, W, C]` have so few channels that their copies are small.

    An image of one channel, 28 x 28, with a 5 x 5 kernel and 8 features: 128 of them take XLA's
    convolution 10 milliseconds on two cores and 19 on one, and the product 6 and 8.
    """
    _, height, width, channels = shape
    return (
        math.prod(kernel) * channels <= _MOST_NUMBERS
        and features <= _MOST_FEATURES
        and height * width >= _FEWEST_PIXELS
    )


def convolve(
    x: Array, w: Array, strides: Sequence[int], padding: Sequence, precision: Any = None
) -> Array:
    """Images `[B, H, W, C]` with a kernel `[h, w, C, K]`, as `lax.conv_general_dilated`."""
    gather = functools.partial(
        _neighbourhoods, kernel=w.shape[:2], strides=strides, padding=padding
    )

    def of_chunk(x):
        patches = gather(x)
        return lax.dot_general(
            patches, w.reshape(-1, w.shape[3]), (((3,), (0,)), ((), ())), precision=precision
        )

    pixels = math.prod(
        (size + sum(pads) - side) // stride + 1
        for size, pads, side, stride in zip(x.shape[1:3], padding, w.shape, strides, strict=False)
    )
    return chunks.each(of_chunk, x, _images(len(x), pixels, math.prod(w.shape[:3])))


def kernel_gradient(
    x: Array,
    y: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence,
    precision: Any = None,
) -> Array:
    """The kernel `[h, w, C, K]` that images `[B, H, W, C]` and results `[B, I, J, K]` stand for."""

    def of_chunk(x, y):
        # Two axes each: a product that sums over three would copy both arrays first.
        patches = _neighbourhoods(x, kernel, strides, padding).reshape(-1, numbers)
        sums = (((0,), (0,)), ((), ()))
        return lax.dot_general(patches, y.reshape(-1, y.shape[3]), sums, precision=precision)

    numbers = math.prod(kernel) * x.shape[3]
    found = chunks.total(of_chunk, x, y, _images(len(x), math.prod(y.shape[1:3]), numbers))
    return found.reshape(*kernel, x.shape[3], y.shape[3])


def kernel_gradient_of_moves_by_one(
    x: Array, y: Array, kernel: Sequence[int], padding: Sequence, precision: Any = None
) -> Array:
    """As `kernel_gradient`, of a kernel `[h, w, C, K]` that moves by one pixel.

    The images are copied once for each column of the kernel and the results once for each row:
    `w C + h K` numbers for a pixel where whole neighbourhoods are `w h C`. One layer of 32 to 64
    channels, 5 x 5, 128 images of 14 x 14: 26 milliseconds on two cores, 35 by XLA's convolution
    (`benchmarks.convolutions`).
    """
    (rows, columns), ((above, below), sides) = kernel, padding
    (_, height, _, channels), (_, _, width, features) = x.shape, y.shape

    def of_chunk(x, y):
        x = jnp.pad(x, ((0, 0), (0, 0), sides, (0, 0)))
        # Row `i` of the kernel takes a row of the image to the one `i - above` before it.
        y = jnp.pad(y, ((0, 0), (rows - 1 - above, rows - 1 - below), (0, 0), (0, 0)))
        images = jnp.concatenate([x[:, :, j : j + width] for j in range(columns)], 3)
        results = jnp.concatenate([y[:, i : i + height] for i in reversed(range(rows))], 3)
        sums = (((0,), (0,)), ((), ()))
        images, results = (part.reshape(-1, part.shape[3]) for part in (images, results))
        return lax.dot_general(images, results, sums, precision=precision)

    chunk = chunks.images_in_cache(len(x), height * width, 2 * chunks.PIXELS_IN_CACHE)
    found = chunks.total(of_chunk, x, y, chunk).reshape(columns, channels, rows, features)
    return found.transpose(2, 0, 1, 3)


def _images(batch, pixels, numbers):
    # Half as many as other convolutions take at a time, for there are the copies beside the images,
    # and more where the copies are small.
    most = max(chunks.PIXELS_IN_CACHE // 2, _COPIES_IN_CACHE // numbers)
    return chunks.images_in_cache(batch, pixels, most)


def _neighbourhoods(x, kernel, strides, padding):
    """`[B, I, J, h w C]`, what each pixel of the result sees."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        (size - side) // stride + 1
        for size, side, stride in zip(x.shape[1:3], kernel, strides, strict=True)
    )
    return jnp.concatenate(
        [
            x[:, i :: strides[0], j :: strides[1]][:, :rows, :columns]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ],
        axis=3,
    )
