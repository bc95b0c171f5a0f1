"""Winograd's products for a 3 x 3 kernel that moves by two: 25 multiplications instead of 36.

Along one axis a tile of five numbers, `e0` to `e4`, gives two results, `e0 g0 + e1 g1 + e2 g2` and
`e2 g0 + e3 g1 + e4 g2`. Five terms make both, a sum of its numbers times one of the kernel's each:

    (e0 - e2) g0 + e1 g1 + e2 (g0 + g2)        (e4 - e2) g2 + e3 g1 + e2 (g0 + g2)

The first two of each belong to one result alone and are one matrix product over twice the channels.
With many channels `im2col`, and XLA's input gradient, take 1.1 to 1.6 times as long on two cores;
the result differs from theirs by about 1e-6 of its largest value.

References:
  Lavin and Gray, Fast algorithms for convolutional neural networks, 2016, section 4.1: their
  F(2, 2) for `g0` and `g2`, which see every second number; `g1` sees the others.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mixjax.models import chunks, winograd
from mixjax.typing import Array

_FEWEST_CHANNELS = 32  # with fewer, the sums of the images' values cost too much
_FEWEST_PIXELS = 1024  # with fewer at a time, the sums of the kernel's values cost too much
_BEFORE = {(0, 1): 0, (1, 1): 1, (1, 0): 1}  # pixels of padding that the first tile begins with
_SUMS_OF_KERNEL = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
_TERMS = (0, 1), (2, 3), (4,)  # those of the first result alone, of the second, of both
# For two results, one along each axis, what the nine values of a kernel are in their terms.
_SUMS_OF_BOTH = [
    np.kron(_SUMS_OF_KERNEL[[*rows]], _SUMS_OF_KERNEL[[*columns]])
    for rows in _TERMS
    for columns in _TERMS
]
_ALL_SUMS = np.concatenate(_SUMS_OF_BOTH)


def suits(shape: Sequence[int], padding: Sequence[tuple[int, int]], features: int) -> bool:
    """Whether it can be done and pays for images `[B, H, W, C]` and that number of features."""
    _, height, width, channels = shape
    return (
        height % 4 == width % 4 == 0
        and all(pads in _BEFORE for pads in padding)
        and min(channels, features) >= _FEWEST_CHANNELS
        and winograd.images_of_a_part(shape) * height * width >= _FEWEST_PIXELS
    )


def convolve(x: Array, w: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Images `[B, H, W, C]` with a kernel `[3, 3, C, K]`: `[B, H / 2, W / 2, K]`."""
    kernels = _sums_of_kernel(w)
    chunk = winograd.images_of_a_part(x.shape)
    return chunks.each(lambda x: _convolve(x, kernels, padding), x, chunk)


def input_gradient(y: Array, w: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """The images `[B, H, W, C]` that results `[B, H / 2, W / 2, K]` stand for.

    The transpose of `convolve` in its images. Written out, for the one that JAX derives pads what
    each term gives to whole images before it adds them, and takes twice as long.
    """
    kernels = _sums_of_kernel(w)
    batch, height, width, features = y.shape

    def of_chunk(y):
        y = y.reshape(-1, height // 2, 2, width // 2, 2, features)
        results = [_of_terms(row, 2) for row in _of_terms(y, 1)]
        rows = []
        for i, terms in enumerate(_TERMS):
            products = [
                lax.dot_general(results[i][j], kernels[3 * i + j], (((3,), (2,)), ((), ())))
                for j in range(3)
            ]
            for row in range(len(terms)):
                columns = [
                    products[j][..., row * len(each) + column, :]
                    for j, each in enumerate(_TERMS)
                    for column in range(len(each))
                ]
                rows.append(_numbers(columns, 2, padding[1]))
        return _numbers(rows, 1, padding[0]).reshape(-1, 2 * height, 2 * width, w.shape[2])

    chunk = winograd.images_of_a_part((batch, 2 * height, 2 * width, w.shape[2]))
    return chunks.each(of_chunk, y, chunk)


def kernel_gradient(x: Array, y: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """The kernel `[3, 3, C, K]` that images `[B, H, W, C]` and results `[B, I, J, K]` stand for."""
    shape = x.shape[3], y.shape[3]
    kernels = [jax.ShapeDtypeStruct((len(each), *shape), x.dtype) for each in _SUMS_OF_BOTH]

    def of_chunk(x, y):
        transpose = jax.linear_transpose(lambda kernels: _convolve(x, kernels, padding), kernels)
        return jnp.concatenate(transpose(y)[0])

    total = chunks.total(of_chunk, x, y, winograd.images_of_a_part(x.shape))
    # Not left to the transpose: its product would have the nine values along the last axis.
    return lax.dot(jnp.asarray(_ALL_SUMS.T), total.reshape(25, -1)).reshape(3, 3, *shape)


def _convolve(x, kernels, padding):
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 4, 4, width // 4, 4, channels)
    images = [_terms(row, 2, padding[1]) for row in _terms(x, 1, padding[0])]

    def product(i, j):
        """All terms of two results, one along each axis, as one product over their channels."""
        numbers = [images[row][column] for row in _TERMS[i] for column in _TERMS[j]]
        numbers, kernel = jnp.concatenate(numbers, axis=3), kernels[3 * i + j]
        # Two axes each, or the transpose in the kernel would copy the images' sums.
        found = numbers.reshape(-1, numbers.shape[3]) @ kernel.reshape(-1, kernel.shape[2])
        return found.reshape(*numbers.shape[:3], -1)

    *alone, both = [[product(i, j) for j in range(3)] for i in range(3)]
    rows = [
        jnp.stack([row[j] + row[2] + both[j] + both[2] for j in range(2)], axis=3) for row in alone
    ]
    return jnp.stack(rows, axis=2).reshape(batch, height // 2, width // 2, -1)


def _terms(x, axis, pads):
    """The five sums of each tile along an axis, which holds fours of pixels: `[..., n, 4, ...]`."""
    four = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(4)]
    if _BEFORE[pads]:
        e = [_moved(four[3], axis, 1), *four]
    else:
        e = [*four, _moved(four[0], axis, -1)]
    return e[0] - e[2], e[1], e[4] - e[2], e[3], e[2]


def _numbers(terms, axis, pads):
    """The transpose of `_terms`: five gradients make fours of pixels."""
    first, second, fourth, third, both = terms  # of the numbers of a tile
    middle = both - first - fourth
    if _BEFORE[pads]:
        four = second, middle, third, fourth + _moved(first, axis, -1)
    else:
        four = first + _moved(fourth, axis, 1), second, middle, third
    return jnp.stack(four, axis=axis + 1)


def _sums_of_kernel(w):
    """What the terms of each two results are multiplied by: nine arrays `[terms, C, K]`."""
    kernel = lax.dot(jnp.asarray(_ALL_SUMS), w.reshape(9, -1)).reshape(25, *w.shape[2:])
    ends = np.cumsum([len(each) for each in _SUMS_OF_BOTH])
    return winograd.apart(jnp.split(kernel, ends[:-1]))


def _of_terms(y, axis):
    """The gradients of pairs of results, for the terms of the first, of the second, of both."""
    first, second = (lax.index_in_dim(y, i, axis + 1, keepdims=False) for i in range(2))
    return first, second, first + second


def _moved(x, axis, by):
    """The array moved along an axis by one place, in front or behind filled with zeros."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (by, -by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)
