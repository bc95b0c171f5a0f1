"""Threat models: which perturbations `delta` of one input are allowed.

A `Threat` is all that an attack needs to know of a norm: where to start, which way is steepest
and how to come back. Radii are in the units of the input, [0, 1] for images.

Its radius is an array like any other, which may be traced, vmapped and differentiated; its
geometry is static. Your own norm is a `Geometry` of five functions:
`Threat(0.1, Geometry("l1", sample, steepest, project, norm, dual_norm))`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mixjax import checks
from mixjax.typing import Array, Key

REACH = 2.5  # of all steps of an attack together, in radii: Madry et al. and everybody since
_TINY = float(jnp.finfo(jnp.float32).tiny)
_HUGE = 1e37  # its inverse is still a normal number: a division may be a product with the inverse


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A norm, as functions; equal where all of them are the same.

    Functions of a module, unlike closures, can be pickled.

    Attributes:
      name: what the norm is called; by this name attacks that treat some norms apart know it.
      sample: `(key, shape, epsilon) -> [*shape]`, uniform in the ball of radius `epsilon`.
      steepest: `gradient -> direction` of norm 1 along which a linear loss grows fastest.
      project: `(delta, epsilon) -> delta`, the nearest point of the ball.
      norm: `delta -> []`.
      dual_norm: `gradient -> []`, what one step of length 1 along `steepest` gains.
    """

    name: str
    sample: Callable[[Key, Sequence[int], float | Array], Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array, float | Array], Array]
    norm: Callable[[Array], Array]
    dual_norm: Callable[[Array], Array]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["epsilon"], meta_fields=["geometry"]
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Threat:
    """A ball of perturbations around one input; a pytree whose only leaf is its radius.

    Directions and projections have the dtype of what they are of, l2 and dual norms float32 at
    least. Threats of equal geometry and radius are equal; one of a traced radius equals itself
    alone and cannot be hashed.

    Attributes:
      epsilon: radius of the ball.
      geometry: the norm, static.
    """

    epsilon: float | Array
    geometry: Geometry

    @property
    def name(self) -> str:
        """What the norm is called: "linf", "l2" or that of a norm of one's own."""
        return self.geometry.name

    def sample(self, key: Key, shape: Sequence[int]) -> Array:
        """A perturbation `[*shape]`, uniform in the ball."""
        checks.key(key=key)
        return self.geometry.sample(key, shape, self.epsilon)

    def steepest(self, gradient: Array) -> Array:
        """The direction of norm 1 along which a linear loss grows fastest."""
        checks.native_order(gradient=gradient)
        return self.geometry.steepest(gradient)

    def project(self, delta: Array) -> Array:
        """The nearest point of the ball."""
        checks.native_order(delta=delta)
        return self.geometry.project(delta, self.epsilon)

    def norm(self, delta: Array) -> Array:
        """The threat's norm of a perturbation, `[]`."""
        checks.native_order(delta=delta)
        return self.geometry.norm(delta)

    def dual_norm(self, gradient: Array) -> Array:
        """What one step of length 1 along `steepest` gains, `[]`."""
        checks.native_order(gradient=gradient)
        return self.geometry.dual_norm(gradient)

    def step_size(self, num_steps: int, *, reach: float = REACH) -> float | Array:
        """The length of one of `num_steps` steps that together reach `reach` radii.

        By default they lead from any point of the ball to any other and some way back. In a ball of
        radius 0, which is one point, steps are of length 1.
        """
        step_size = reach / num_steps * self.epsilon
        is_point = not isinstance(step_size, Tracer) and np.ndim(step_size) == 0 and step_size == 0
        return 1.0 if is_point else step_size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Threat):
            return NotImplemented
        radii = self.epsilon, other.epsilon
        known = not any(isinstance(radius, Tracer) for radius in radii)
        same = np.array_equal(*radii) if known else radii[0] is radii[1]
        return same and self.geometry == other.geometry

    def __hash__(self) -> int:
        radius = np.asarray(self.epsilon)  # a traced one is a `TypeError`, as of all unhashables
        return hash((self.geometry, radius.shape, *radius.ravel().tolist()))

    def __repr__(self) -> str:
        radius = self.epsilon
        if np.ndim(radius) == 0 and hasattr(radius, "__float__") and not isinstance(radius, Tracer):
            radius = f"{float(radius):g}"
        return f"{self.name}(epsilon={radius})"


def linf(epsilon: float | Array) -> Threat:
    """Every coordinate moves by at most `epsilon`.

    Args:
      epsilon: radius, at least 0, in the units of the input.

    Raises:
      ValueError: if `epsilon` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import threats
      >>> threat = threats.linf(0.5)
      >>> threat, threat.project(jnp.array([3.0, -4.0, 0.25]))
      (linf(epsilon=0.5), Array([ 0.5 , -0.5 ,  0.25], dtype=float32))
    """
    checks.non_negative(epsilon=epsilon)
    return Threat(epsilon, _BOX)


def l2(epsilon: float | Array) -> Threat:
    """The Euclidean norm of the whole perturbation is at most `epsilon`.

    Args:
      epsilon: radius, at least 0, in the units of the input.

    Raises:
      ValueError: if `epsilon` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import threats
      >>> threat = threats.l2(2.5)
      >>> threat, threat.project(jnp.array([3.0, -4.0]))
      (l2(epsilon=2.5), Array([ 1.5, -2. ], dtype=float32))
    """
    checks.non_negative(epsilon=epsilon)
    return Threat(epsilon, _EUCLIDEAN)


BY_NAME = {"linf": linf, "l2": l2}  # what makes a threat, by the name that the threat has


def _sample_in_box(key, shape, epsilon):
    # Drawn in units of the radius: one program for all radii.
    return jax.random.uniform(key, shape, minval=-1.0) * epsilon


def _project_on_box(delta, epsilon):
    return optax.projections.projection_box(delta, -epsilon, epsilon).astype(delta.dtype)


def _sign(x):
    return jnp.sign(x)


def _largest(delta):
    return jnp.max(jnp.abs(delta))


def _sum_of_sizes(gradient):
    return jnp.sum(jnp.abs(_wide(gradient)))


def _sample_in_ball(key, shape, epsilon):
    direction_key, radius_key = jax.random.split(key)
    # Normal numbers have no direction of their own; a radius `u^(1/d)` makes the ball's volume
    # uniform. In 3072 dimensions that is nearly the sphere, which is where the volume lies.
    direction = _unit(jax.random.normal(direction_key, shape))
    dimension = max(direction.size, 1)
    return direction * epsilon * jax.random.uniform(radius_key) ** (1.0 / dimension)


def _project_on_ball(delta, epsilon):
    # A point inside is multiplied by exactly 1 and stays as it is.
    share = jnp.minimum(1.0, epsilon / jnp.maximum(_l2_norm(delta), _TINY))
    return (delta * share).astype(delta.dtype)


def _unit(x):
    """`x / |x|`, and 0 for 0."""
    wide = _wide(x)
    # Scaled first: gradients of a confident network are about 1e-30, and their squares are 0.
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


_BOX = Geometry("linf", _sample_in_box, _sign, _project_on_box, _largest, _sum_of_sizes)
_EUCLIDEAN = Geometry("l2", _sample_in_ball, _unit, _project_on_ball, _l2_norm, _l2_norm)
