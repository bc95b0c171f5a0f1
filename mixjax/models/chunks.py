"""A batch in parts that stay in a CPU's cache.

What a convolution writes for a whole batch before it sums it up goes to memory and comes back; of
a few thousand pixels at a time it stays in the cache of a core.
"""

from collections.abc import Callable

from jax import lax

from mixjax.typing import Array

PIXELS_IN_CACHE = 2048  # convolutions of so many at a time are the fastest on a CPU


def images_in_cache(
    batch: int, pixels: int, most: int = PIXELS_IN_CACHE, *, fewest: int = 1
) -> int:
    """How many images of so many pixels a CPU takes at a time: a divisor of their number."""
    fitting = max(fewest, most // pixels)
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= fitting)


def each(function: Callable[[Array], Array], x: Array, chunk: int) -> Array:
    """`function`, which keeps the batch axis, of parts of `chunk` images of a batch, joined."""
    if chunk == len(x):
        return function(x)
    y = lax.map(function, x.reshape(-1, chunk, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def total(function: Callable[[Array, Array], Array], x: Array, y: Array, chunk: int) -> Array:
    """The sum of `function` over parts of `chunk` images of two batches."""
    if chunk == len(x):
        return function(x, y)
    chunks = [part.reshape(-1, chunk, *part.shape[1:]) for part in (x, y)]
    first = function(*(part[0] for part in chunks))
    rest = [part[1:] for part in chunks]
    return lax.scan(lambda total, part: (total + function(*part), None), first, rest)[0]
