"""Problems in the plane, simple enough to draw: points, labels -1 or 1, random half-planes.

Everything here is a function of a key, so that `jax.vmap` over keys draws many problems at once.
"""

import jax
import jax.numpy as jnp

from mixjax import checks
from mixjax.typing import Array, Key

_TRIES = 64  # half-planes drawn for each one wanted; about every seventh one is good enough


def three_gaussians(key: Key, num_examples: int, *, separation: float = 3.0) -> tuple[Array, Array]:
    """Class -1 in the middle, class 1 on both sides: no half-plane separates them.

    `x | -1 ~ N(0, I)` and `x | 1 ~ (N((-separation, 0), I) + N((separation, 0), I)) / 2`, both
    classes equally likely.

    Args:
      key: random key; consumed.
      num_examples: number of points.
      separation: distance of the two halves of class 1 from class -1, in standard deviations.

    Returns:
      `[N, 2]` points and `[N]` labels, -1.0 or 1.0.

    Raises:
      ValueError: if `num_examples` is not positive or `separation` is negative.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 5.1.
    """
    checks.at_least(1, num_examples=num_examples)
    checks.non_negative(separation=separation)
    label_key, side_key, point_key = jax.random.split(key, 3)
    labels = jax.random.rademacher(label_key, (num_examples,), jnp.float32)
    sides = jax.random.rademacher(side_key, (num_examples,), jnp.float32)
    x = jax.random.normal(point_key, (num_examples, 2))
    return x.at[:, 0].add(jnp.where(labels > 0, separation * sides, 0.0)), labels


def half_planes(
    key: Key,
    x: Array,
    labels: Array,
    num_members: int,
    *,
    max_risk: float = 0.4,
    spread: float = 3.0,
) -> tuple[Array, Array]:
    """Random linear classifiers `x @ slope + offset`, wrong on less than `max_risk` of the points.

    All coefficients are normal: the slope's with standard deviation 1, the offset with `spread`.
    Both are then divided by the length of the slope.

    Args:
      key: random key; consumed.
      x: `[N, D]` points.
      labels: `[N]` labels, -1 or 1.
      num_members: number of classifiers.
      max_risk: each classifier errs on less than this share of the points, in (0, 1).
      spread: standard deviation of the offset, where that of the slope's entries is 1.

    Returns:
      `[L, D]` slopes of length 1 and `[L]` offsets. Where too few of the classifiers drawn are
      good enough, those that err least make up for them.

    Raises:
      ValueError: if a number is not positive or `max_risk` is not below 1.
    """
    checks.at_least(1, num_members=num_members)
    checks.positive(max_risk=max_risk, spread=spread)
    checks.fraction(max_risk=max_risk)
    slope_key, offset_key = jax.random.split(key)
    slopes = jax.random.normal(slope_key, (_TRIES * num_members, x.shape[1]))
    lengths = jnp.linalg.norm(slopes, axis=1)
    slopes = slopes / lengths[:, None]
    offsets = spread * jax.random.normal(offset_key, (len(slopes),)) / lengths
    num_wrong = jnp.sum(errors(slopes, offsets, x, labels), axis=0)
    # The first ones that are good enough, then the others from the best to the worst.
    order = jnp.where(num_wrong < max_risk * len(x), -1, num_wrong)
    chosen = jnp.argsort(order, stable=True)[:num_members]
    return slopes[chosen], offsets[chosen]


def errors(slopes: Array, offsets: Array, x: Array, labels: Array) -> Array:
    """`[L, D], [L], [..., D], [...] -> [..., L]`: which classifiers err; a tie is an error."""
    scores = jnp.matmul(x, slopes.T, precision="highest")
    shape = (1,) * (scores.ndim - 1) + offsets.shape
    return (scores + offsets.reshape(shape)) * labels[..., None] <= 0


def unit_discs(key: Key, shape: tuple[int, ...]) -> Array:
    """Points drawn uniformly from the unit disc.

    Args:
      key: random key; consumed.
      shape: how many.

    Returns:
      `[*shape, 2]` points.
    """
    angle_key, radius_key = jax.random.split(key)
    angles = jax.random.uniform(angle_key, shape, maxval=2.0 * jnp.pi)
    radii = jnp.sqrt(jax.random.uniform(radius_key, shape))
    return radii[..., None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
