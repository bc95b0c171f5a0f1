"""Winograd's F(2 x 2, 3 x 3): a 3 x 3 convolution with 16 multiplications instead of 36.

The padded images are cut into tiles of 4 x 4 that overlap by two. A tile gives 2 x 2 pixels of the
result: 16 sums of its values and 16 sums of the kernel's values are the factors of as many matrix
products over the channels, and sums of these are the pixels. With many channels, XLA's convolution
on a CPU takes 1.1 to 1.8 times as long, and its kernel gradient about twice; the result differs
from it by about 1e-6 of its largest value.

References:
  Lavin and Gray, Fast algorithms for convolutional neural networks, 2016, section 4.1.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from mixjax.models import chunks
from mixjax.typing import Array

_NUMBERS_OF_A_PART = 2**21  # of images; see `images_of_a_part`
_FEWEST_TILES = 512  # of a part, for each of its products to be worth a start of its own
_FEWEST_PIXELS = 256  # with fewer at a time, the sums of the kernel's values cost too much
_FEWEST_CHANNELS = 32  # with fewer, the sums of the images' values cost too much
# Rows of G in the paper: the kernel's sums along one axis. The other two transforms, of the images
# and of the result, have entries 0, 1 and -1 alone and stand as additions in `_sums`, `_pixels`.
_SUMS_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def suits(shape: tuple[int, ...], features: int) -> bool:
    """Whether it pays for images `[B, H, W, C]` and that number of features."""
    _, height, width, channels = shape
    # The sums are additions over images and kernels, the products multiply-adds over channels: only
    # many channels pay for the sums. F(4 x 4), with fewer products still, gains nothing: its kernel
    # sums cost too much. `benchmarks.convolutions` times both kinds of layer.
    return (
        height % 2 == width % 2 == 0
        and min(channels, features) >= _FEWEST_CHANNELS
        and images_of_a_part(shape) * height * width >= _FEWEST_PIXELS
    )


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
    contracted, order = (1, _ends_exchanged) if transposed else (0, tuple)
    _, height, width, _ = x.shape
    chunk = images_of_a_part(x.shape)

    def of_chunk(x):
        products = _products(_tiles(x, order), kernel, (1, contracted))
        y = [each.reshape(chunk, height // 2, width // 2, -1) for each in products]
        columns = [_pixels(*order(y[i::4])) for i in range(4)]
        rows = [jnp.stack(_pixels(*order(row)), axis=3) for row in zip(*columns, strict=True)]
        return jnp.stack(rows, axis=2)

    return chunks.each(of_chunk, x, chunk).reshape(*x.shape[:3], -1)


def kernel_gradient(x: Array, y: Array) -> Array:
    """The kernel `[3, 3, C, K]` that images `[B, H, W, C]` and results `[B, H, W, K]` stand for.

    The transpose of `convolve` in its kernel: sixteen products over the tiles of the images' sums
    and of as many sums of the results' pixels, and nine sums of these.
    """
    chunk = images_of_a_part(x.shape)

    def of_chunk(x, y):
        batch, height, width, features = y.shape
        y = y.reshape(batch, height // 2, 2, width // 2, 2, features)
        spread = [_flat(part) for row in _sums_of_pixels(y, 1) for part in _sums_of_pixels(row, 2)]
        return jnp.stack(_products(_tiles(x), spread, (0, 0)))

    # Summed over parts of the batch before the nine sums are made: they are the same for all.
    total = chunks.total(of_chunk, x, y, chunk)
    sums = np.kron(_SUMS_OF_KERNEL, _SUMS_OF_KERNEL)
    kernel = lax.dot(jnp.asarray(sums.T), total.reshape(16, -1))
    return kernel.reshape(3, 3, x.shape[3], y.shape[3])


def images_of_a_part(shape: Sequence[int]) -> int:
    """How many images `[B, H, W, C]` are worked on at a time: a divisor of their number.

    Their sums are four times as large: a bound on memory. Parts that stay in a cache are slower,
    for their additions are too small to be spread over the cores: PGD-10 on a ResNet18 of width 64
    took 1.13 times as long with parts of a quarter of the size.
    """
    batch, height, width, channels = shape
    return chunks.images_in_cache(batch, height * width, _NUMBERS_OF_A_PART // channels)


def apart(sums: Array | Sequence[Array]) -> list[Array]:
    """A kernel's sums as an array each, which an attack's loop copies once and not in every turn.

    The compiler leaves a mere slice in a loop, as too little to be worth moving out of it. Where a
    comparison hides the slice it moves both: nothing is below minus infinity, which it does not
    ask. PGD-10 on a ResNet18 of width 64 takes 2 to 5 % less time, and a quarter less memory.
    """
    return [jnp.where(each < -jnp.inf, 0.0, each) for each in sums]


def _products(first, second, contracted):
    """Sixteen matrix products, over this axis of each: that is where the time goes."""
    left, right = contracted
    if first[0].shape[0] >= _FEWEST_TILES:
        # One after the other each is spread over the cores; as one batched product they are not.
        axes = (([left], [right]), ([], []))
        second = apart(second) if isinstance(second, Array) else second
        return [lax.dot_general(a, b, axes) for a, b in zip(first, second, strict=True)]
    # Kernels of few pixels are large, and stay in one array.
    second = second if isinstance(second, Array) else jnp.stack(second)
    axes = (([left + 1], [right + 1]), ([0], [0]))
    return [*lax.dot_general(jnp.stack(first), second, axes)]


def _tiles(x: Array, order: Callable = tuple) -> list[Array]:
    """The images' sixteen sums, `[pixels, C]` each."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x.reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2, channels)
    return [_flat(part) for row in order(_sums(x, 1)) for part in order(_sums(row, 2))]


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
