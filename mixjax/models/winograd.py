"""Winograd's F(2 x 2, 3 x 3): a 3 x 3 convolution with 16 multiplications instead of 36.

The padded images are cut into tiles of 4 x 4 that overlap by two. A tile gives 2 x 2 pixels of the
result: 16 sums of its values and 16 sums of the kernel's values are the factors of as many matrix
products over the channels, and sums of these are the pixels. With many channels, XLA's convolution
on a CPU takes 1.3 to 1.6 times as long; the result differs from it by about 1e-6 of its largest
value.

References:
  Lavin and Gray, Fast algorithms for convolutional neural networks, 2016, section 4.1.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from mixjax.models import chunks
from mixjax.typing import Array

_FEWEST_PIXELS = 256  # with fewer at a time, the sums of the kernel's values cost too much
_FEWEST_CHANNELS = 128  # with fewer, the sums of the images' values cost too much
_FEWEST_CHANNELS_OF_CORES = 256  # they gain less from several cores than XLA's convolution does
FEWEST_CHANNELS_OF_GRADIENTS = 64  # of kernels, for which XLA's convolution is slower
# Rows of G in the paper: the kernel's sums along one axis. The other two transforms, of the images
# and of the result, have entries 0, 1 and -1 alone and stand as additions in `_sums`, `_pixels`.
_SUMS_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def suits(shape: tuple[int, ...], features: int, fewest: int) -> bool:
    """Whether it pays for images `[B, H, W, C]` and features, if channels pay from `fewest` on."""
    batch, height, width, channels = shape
    # The sums are additions over images and kernels, the products multiply-adds over channels: only
    # many channels pay for the sums. On a ResNet18 it is the difference of 8.5 and 11.0 images per
    # second. F(4 x 4), with fewer products still, gains nothing: its kernel sums cost too much (16
    # to 70 ms a convolution of 256 or 512 channels, against 6.4 and 7.0 by this one).
    return (
        height % 2 == width % 2 == 0
        and min(channels, features) >= fewest
        and chunks.images_in_cache(batch, height * width) * height * width >= _FEWEST_PIXELS
    )


def fewest_channels(cores: int) -> int:
    """From how many channels on `convolve` pays on so many cores."""
    return _FEWEST_CHANNELS if cores == 1 else _FEWEST_CHANNELS_OF_CORES


def convolve(x: Array, w: Array, *, transposed: bool = False) -> Array:
    """Images `[B, H, W, C]`, padded by one pixel, with a kernel `[3, 3, C, K]`: `[B, H, W, K]`.

    The height `H` and the width `W` are even. With `transposed` the images are `[B, H, W, K]`,
    the kernel is flipped, and the result is the input gradient `[B, H, W, C]`. To flip a kernel
    is to exchange the first and the last of its sums: those of the images are exchanged instead,
    and XLA computes the kernel's only once for a convolution and its gradient.
    """
    # Both axes of the kernel at once, one product of 16 x 9: done along one axis and then the other
    # it would be two passes over the kernel.
    sums = np.kron(_SUMS_OF_KERNEL, _SUMS_OF_KERNEL)
    kernel = lax.dot(jnp.asarray(sums), w.reshape(9, -1)).reshape(16, *w.shape[2:])
    # Exchanged ends of the images' sums stand for a flipped kernel, so that a convolution and its
    # input gradient share the kernel's sums in a compiled program.
    contracted, order = (2, _ends_exchanged) if transposed else (1, tuple)
    batch, height, width, _ = x.shape
    chunk = chunks.images_in_cache(batch, height * width)

    def of_chunk(x):
        # Sixteen products of [pixels, channels] by [channels, features] as one batched product:
        # that is where the time goes, and what CPUs do best.
        y = lax.dot_general(_tiles(x, order), kernel, (((2,), (contracted,)), ((0,), (0,))))
        y = y.reshape(4, 4, chunk, height // 2, width // 2, -1)
        rows = _pixels(*order(y))
        return jnp.stack([jnp.stack(_pixels(*order(row)), axis=3) for row in rows], axis=2)

    y = chunks.each(of_chunk, x, chunk)
    return y.reshape(batch, height, width, -1)


def kernel_gradient(x: Array, y: Array) -> Array:
    """The kernel `[3, 3, C, K]` that images `[B, H, W, C]` and results `[B, H, W, K]` stand for.

    The transpose of `convolve` in its kernel: sixteen products over the tiles of the images' sums
    and of as many sums of the results' pixels, and nine sums of these.
    """
    batch, height, width, _ = x.shape
    chunk = chunks.images_in_cache(batch, height * width)

    def of_chunk(x, y):
        y = y.reshape(chunk, height // 2, 2, width // 2, 2, -1)
        rows = _sums_of_pixels(y, 1)
        spread = jnp.stack([_flat(part) for row in rows for part in _sums_of_pixels(row, 2)])
        return lax.dot_general(_tiles(x), spread, (((1,), (1,)), ((0,), (0,))))

    # Summed over parts of the batch before the nine sums are made: they are the same for all.
    total = chunks.total(of_chunk, x, y, chunk)
    sums = np.kron(_SUMS_OF_KERNEL, _SUMS_OF_KERNEL)
    kernel = lax.dot(jnp.asarray(sums.T), total.reshape(16, -1))
    return kernel.reshape(3, 3, x.shape[3], y.shape[3])


def _tiles(x: Array, order: Callable = tuple) -> Array:
    """The images' sums, `[16, pixels, C]`."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x.reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2, channels)
    return jnp.stack([_flat(part) for row in order(_sums(x, 1)) for part in order(_sums(row, 2))])


def _flat(part):
    return part.reshape(-1, part.shape[-1])


def _ends_exchanged(four):
    first, second, third, last = four
    return last, second, third, first


def _sums(x, axis):
    """The four sums of each tile along an axis, which holds pairs of pixels: `[..., n, 2, ...]`."""
    first, second = (lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(2))
    last = first.shape[axis] - 1
    (a, c), (b, d) = (
        [lax.slice_in_dim(pixels, i, last + i, axis=axis) for i in range(2)]
        for pixels in (first, second)
    )
    return a - c, b + c, c - b, b - d


def _pixels(a, b, c, d):
    """The two pixels that four products are summed to."""
    return a + b + c, b - c - d


def _sums_of_pixels(y, axis):
    """Into which four products each pair of pixels goes: the transpose of `_pixels`."""
    first, second = (lax.index_in_dim(y, i, axis + 1, keepdims=False) for i in range(2))
    return first, first + second, first - second, -second
