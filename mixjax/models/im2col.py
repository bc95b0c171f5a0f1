"""Convolutions as one matrix product: of each pixel's neighbourhood with the kernel.

The neighbourhoods are copied out, `side * side` times the images. XLA's own convolutions on a CPU
need no copy, but are slow where the kernel moves by two pixels, and so are their kernel gradients
where it is larger than 3 x 3; of a few images at a time the copies stay in the cache.
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


def suits(channels: int, features: int) -> bool:
    """Whether the product is large enough to pay for the copies."""
    return min(channels, features) >= _FEWEST_CHANNELS


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
    return chunks.each(of_chunk, x, _images(len(x), pixels))


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
        patches = _neighbourhoods(x, kernel, strides, padding)
        sums = (((0, 1, 2), (0, 1, 2)), ((), ()))
        return lax.dot_general(patches, y, sums, precision=precision)

    found = chunks.total(of_chunk, x, y, _images(len(x), math.prod(y.shape[1:3])))
    return found.reshape(*kernel, x.shape[3], y.shape[3])


def _images(batch, pixels):
    # Half as many as other convolutions take at a time: there are the copies beside the images.
    return chunks.images_in_cache(batch, 2 * pixels)


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
