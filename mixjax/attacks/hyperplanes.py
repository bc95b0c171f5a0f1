"""The point of a box nearest to another where a linear function has fallen by so much."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixjax.typing import Array

_TINY = float(jnp.finfo(jnp.float32).tiny)
_FARTHEST = 1e18  # along a direction in which no bound stops it


class _Reached(NamedTuple):
    """How far the walk has come, and whether it went on at the last turn."""

    t: Array
    goes_on: Array


def nearest_lower(
    x: Array,
    gradient: Array,
    fall: Array,
    bounds: tuple[Array | float, Array | float],
    direction: Array | None = None,
) -> Array:
    """The point of the box nearest to `x` where `gradient . x` is lower by `fall`.

    It is `clip(x - t direction)` for one `t`. The fall is a concave, piecewise linear function of
    `t`, of slope `gradient . direction` over the coordinates that no bound has stopped. From
    `t = 0` on Newton's steps never pass the solution, and each either stops further coordinates
    or was the last: it is exact up to rounding, after some ten steps in practice and without
    sorting.

    Args:
      x: `[...]` a point of the box, in float32 at least.
      gradient: `[...]` the function's.
      fall: `[]` by how much; if 0 or less, `x` is returned.
      bounds: the box, numbers or arrays per coordinate.
      direction: `[...]` steepest for the norm in which the point is to be nearest, of any length:
        the gradient itself for l2, as if None; its signs for l-inf.

    Returns:
      `[...]` that point, or, where the function cannot fall so far, the corner where it is lowest.
    """
    direction = gradient if direction is None else direction
    low, high = bounds
    # Scaled to at most 1 each, for products of small gradients underflow and their quotients do not
    # matter: the way is the same for any multiple.
    size = jnp.maximum(jnp.max(jnp.abs(gradient)), _TINY)
    length = jnp.maximum(jnp.max(jnp.abs(direction)), _TINY)
    direction, fall = direction / length, (fall / size).astype(x.dtype)
    slope = gradient / size * direction
    room = x - jnp.where(direction > 0, low, high)
    reach = jnp.where(slope > 0, room / jnp.where(direction == 0, 1.0, direction), 0.0)
    corner = jnp.minimum(jnp.max(reach, initial=0.0), _FARTHEST)

    def further(reached):
        moves = reach > reached.t
        steepness = jnp.sum(jnp.where(moves, slope, 0.0))
        # What the coordinates that a bound has stopped have contributed, once and for all.
        fallen = jnp.sum(jnp.where(moves, 0.0, slope * reach))
        # Newton's step on a concave function: it comes from below and never passes the solution.
        t = (fall - fallen) / jnp.maximum(steepness, _TINY)
        t = jnp.where(steepness > 0, jnp.clip(t, 0.0, corner), corner)
        return _Reached(jnp.maximum(t, reached.t), t > reached.t)

    start = _Reached(jnp.zeros((), x.dtype), jnp.asarray(fall > 0))
    t = jax.lax.while_loop(lambda reached: reached.goes_on, further, start).t
    return jnp.clip(x - t * direction, low, high)
