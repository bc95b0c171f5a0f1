"""Convolutions of small images as products of whole rows with banded matrices.

A row of a result depends on as many rows of the image as the kernel has. Laid out flat they are a
vector, and what the kernel does to it is a matrix that is 0 outside of a band. The product takes
`W / w` times the multiplications, but in one matrix product without a copy for each pixel: of a few
channels, where XLA's convolutions are slow, it is the faster one.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from mixjax.typing import Array

_MOST_NUMBERS = 64  # of a row: pixels times channels
_ROWS = (((2,), (0,)), ((), ()))


def suits(shape: Sequence[int]) -> bool:
    """Whether the rows of images `[B, H, W, C]` are short enough.

    Of 8 x 8 pixels, 1 to 8 channels and 8 to 8 are at least twice as fast as XLA's convolution, and
    16 to 16 are not.
    """
    return shape[2] * shape[3] <= _MOST_NUMBERS


def convolve(
    x: Array, w: Array, strides: Sequence[int], padding: Sequence, precision: Any = None
) -> Array:
    """Images `[B, H, W, C]` with a kernel `[h, w, C, K]`, as `lax.conv_general_dilated`."""
    (batch, _, width, _), (num_rows, size, _, features) = x.shape, w.shape
    (above, below), sides = padding
    columns = (width + sum(sides) - size) // strides[1] + 1
    x = jnp.pad(x.reshape(*x.shape[:2], -1), ((0, 0), (above, below), (0, 0)))
    height = (x.shape[1] - num_rows) // strides[0] + 1
    rows = [x[:, row :: strides[0]][:, :height] for row in range(num_rows)]
    matrix = _matrix(w, width, columns, strides[1], sides[0])
    y = lax.dot_general(jnp.concatenate(rows, 2), matrix, _ROWS, precision=precision)
    return y.reshape(batch, height, columns, features)


def input_gradient(
    y: Array,
    w: Array,
    strides: Sequence[int],
    padding: Sequence,
    image: Sequence[int],
    precision: Any = None,
) -> Array:
    """The images `[B, *image, C]` that results `[B, I, J, K]` stand for: `convolve` transposed."""
    (batch, num_results, columns, _), (num_rows, _, channels, _) = y.shape, w.shape
    matrix = _matrix(w, image[1], columns, strides[1], padding[1][0]).T
    parts = lax.dot_general(y.reshape(batch, num_results, -1), matrix, _ROWS, precision=precision)
    x = jnp.zeros((), y.dtype)
    for row, part in enumerate(jnp.split(parts, num_rows, axis=2)):
        # Where the results' rows lie in the image, for this row of the kernel.
        first = row - padding[0][0]
        last = first + (num_results - 1) * strides[0]
        rows = (first, image[0] - 1 - last, strides[0] - 1)
        x += lax.pad(part, jnp.zeros((), y.dtype), ((0, 0, 0), rows, (0, 0, 0)))
    return x.reshape(batch, *image, channels)


def _matrix(w, width, columns, stride, left):
    """`[h W C, J K]`, from rows of the image to one of the result."""
    num_rows, size, channels, features = w.shape
    # The column of the kernel that takes a column of the image to one of the result.
    place = np.arange(width)[:, None] - stride * np.arange(columns) + left
    matrix = w[:, np.clip(place, 0, size - 1)].transpose(0, 1, 3, 2, 4)
    # The choice comes last: XLA moves a choice out of a loop, but no transposition that ends it.
    seen = (place >= 0) & (place < size)
    matrix = jnp.where(seen[:, None, :, None], matrix, 0)
    return matrix.reshape(num_rows * width * channels, columns * features)
