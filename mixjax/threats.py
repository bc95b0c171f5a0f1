"""Threat models: which perturbations `delta` of one input are allowed.

A `Threat` is all that an attack needs to know of a norm: where to start, which way is steepest
and how to come back. Radii are in the units of the input, [0, 1] for images.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import _check
from mixjax.typing import Array

_TINY = float(jnp.finfo(jnp.float32).tiny)
_HUGE = 1e37  # its inverse is still a normal number: a division may be a product with the inverse


class Threat(NamedTuple):
    """A ball of perturbations around one input.

    Attributes:
      epsilon: radius of the ball.
      sample: `(key, shape) -> [*shape]`, uniform in the ball.
      steepest: `gradient -> direction` of norm 1 along which a linear loss grows fastest.
      project: `delta -> delta`, the nearest point of the ball.
      norm: `delta -> []`, the threat's norm.
      dual_norm: `gradient -> []`, what one step of length 1 along `steepest` gains.

    Directions and projections have the dtype of what they are of, l2 and dual norms float32 at
    least.
    """

    epsilon: float | Array
    sample: Callable[..., Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array], Array]
    norm: Callable[[Array], Array]
    dual_norm: Callable[[Array], Array]


def linf(epsilon: float | Array) -> Threat:
    """Every coordinate moves by at most `epsilon`.

    Args:
      epsilon: radius, at least 0, in the units of the input.

    Raises:
      ValueError: if `epsilon` is negative or not finite.
    """
    _check.non_negative(epsilon=epsilon)

    def project(delta):
        return optax.projections.projection_box(delta, -epsilon, epsilon).astype(delta.dtype)

    return Threat(
        epsilon=epsilon,
        sample=lambda key, shape: jax.random.uniform(key, shape, minval=-1.0) * epsilon,
        steepest=jnp.sign,
        project=project,
        norm=lambda delta: jnp.max(jnp.abs(delta)),
        dual_norm=lambda gradient: jnp.sum(jnp.abs(_wide(gradient))),
    )


def l2(epsilon: float | Array) -> Threat:
    """The Euclidean norm of the whole perturbation is at most `epsilon`.

    Args:
      epsilon: radius, at least 0, in the units of the input.

    Raises:
      ValueError: if `epsilon` is negative or not finite.
    """
    _check.non_negative(epsilon=epsilon)

    def sample(key, shape):
        direction_key, radius_key = jax.random.split(key)
        direction = _unit(jax.random.normal(direction_key, shape))
        dimension = max(direction.size, 1)
        return direction * epsilon * jax.random.uniform(radius_key) ** (1.0 / dimension)

    def project(delta):
        share = jnp.minimum(1.0, epsilon / jnp.maximum(_l2_norm(delta), _TINY))
        return (delta * share).astype(delta.dtype)

    return Threat(epsilon, sample, _unit, project, _l2_norm, _l2_norm)


def _unit(x):
    """`x / |x|`, and 0 for 0."""
    wide = _wide(x)
    wide = wide / _scale(wide)
    return (wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(wide**2), _TINY))).astype(x.dtype)


def _l2_norm(x):
    x = _wide(x)
    scale = _scale(x)
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2))


def _scale(x):
    """The size of `x`, to divide by: squares of tiny gradients underflow, of huge ones overflow."""
    return jnp.clip(jnp.max(jnp.abs(x)), _TINY, _HUGE)


def _wide(x):
    """In float32 at least: a half-precision square overflows at 256, and `_TINY` is 0 there."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
