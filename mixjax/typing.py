"""Types; shapes stand in the docstrings of the functions that use them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array  # a typed key of `jax.random.key`; a function that takes one consumes it
PyTree = Any
# Lowest and highest value of an input: numbers, or arrays per feature that broadcast to the input.
Bounds = tuple[float | Array, float | Array]


class Training(NamedTuple):
    """Anything that learns: `init(key) -> state`, `step(state, *batch) -> (state, info)`.

    The state counts its steps in `step`, the info has a `loss`: `front.loop` trains it to its end.
    """

    init: Callable[[Key], Any]
    step: Callable[..., tuple[Any, Any]]


LossFn = Callable[[Array], Array]  # `[...] -> []`: what an attacker raises
AccuracyFn = Callable[[Array], Array]  # `[...] -> []`: what a point is judged by, lower is better
LogitsFn = Callable[[Array], Array]  # `[...] -> [L, C]`: the members' logits
