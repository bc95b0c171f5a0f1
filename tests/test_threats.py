"""Balls of perturbations: where they begin, end and rise fastest."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from mixjax import threats

BOTH = [threats.linf, threats.l2]
SHAPE = (2, 3)
few = hypothesis.settings(max_examples=25, deadline=None)
vectors = hnp.arrays(
    np.float32, SHAPE, elements=st.floats(-10, 10, width=32, allow_subnormal=False)
)


def slow_norm(make, delta):
    delta = np.float64(delta)
    return np.abs(delta).max() if make is threats.linf else np.sqrt((delta**2).sum())


def slow_dual_norm(make, gradient):
    gradient = np.float64(gradient)
    return np.abs(gradient).sum() if make is threats.linf else np.sqrt((gradient**2).sum())


@pytest.mark.parametrize("make", BOTH)
@few
@hypothesis.given(vectors)
def test_norm_and_dual_norm_are_those_of_their_definition(make, delta):
    threat = make(0.3)
    np.testing.assert_allclose(threat.norm(delta), slow_norm(make, delta), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(
        threat.dual_norm(delta), slow_dual_norm(make, delta), rtol=1e-5, atol=1e-30
    )


@pytest.mark.parametrize("make", BOTH)
@few
@hypothesis.given(vectors, vectors, st.floats(0.0, 5.0))
def test_project_goes_to_the_nearest_point_of_the_ball(make, delta, other, epsilon):
    threat = make(epsilon)
    nearest = np.float64(threat.project(delta))
    assert slow_norm(make, nearest) <= epsilon * (1 + 1e-5)
    # Projections onto convex sets: every point of the ball lies at an obtuse angle.
    inside = np.float64(threat.project(other))
    assert np.sum((delta - nearest) * (inside - nearest)) <= 1e-3


@pytest.mark.parametrize("make", BOTH)
@few
@hypothesis.given(vectors)
def test_project_leaves_what_is_inside_the_ball(make, delta):
    threat = make(slow_norm(make, delta) * 1.001 + 1e-6)
    np.testing.assert_allclose(threat.project(delta), delta, rtol=1e-6)


@pytest.mark.parametrize("make", BOTH)
@few
@hypothesis.given(vectors)
def test_a_unit_step_along_steepest_gains_the_dual_norm(make, gradient):
    threat = make(1.0)
    direction = threat.steepest(gradient)
    gain = np.sum(np.float64(gradient) * np.float64(direction))
    np.testing.assert_allclose(gain, slow_dual_norm(make, gradient), rtol=1e-5, atol=1e-30)
    if np.any(gradient):
        np.testing.assert_allclose(slow_norm(make, direction), 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-20, 1.0, 1e20, 1e38])
def test_l2_directions_of_tiny_and_huge_gradients_are_those_of_ordinary_ones(scale):
    threat, ordinary = threats.l2(0.5), np.array([[3.0, 0.0, -0.4], [0.1, -2.0, 0.0]], np.float32)
    gradient = ordinary * np.float32(scale)
    np.testing.assert_allclose(
        threat.steepest(gradient), ordinary / np.linalg.norm(ordinary), rtol=1e-5
    )
    with np.errstate(over="ignore"):
        expected = np.float32(np.linalg.norm(np.float64(gradient)))
    np.testing.assert_allclose(threat.norm(gradient), expected, rtol=1e-5)
    moved = threat.project(gradient)
    np.testing.assert_allclose(moved, gradient * min(1.0, 0.5 / np.float64(expected)), rtol=1e-5)


@pytest.mark.parametrize("make", BOTH)
def test_no_gradient_gives_no_direction(make):
    threat = make(0.5)
    np.testing.assert_array_equal(threat.steepest(jnp.zeros(SHAPE)), 0.0)
    np.testing.assert_array_equal(threat.project(jnp.zeros(SHAPE)), 0.0)
    assert threat.norm(jnp.zeros(SHAPE)) == 0.0


@pytest.mark.parametrize("make", BOTH)
def test_a_ball_of_radius_zero_is_a_point(make, key):
    threat = make(0.0)
    np.testing.assert_array_equal(threat.sample(key, SHAPE), 0.0)
    np.testing.assert_array_equal(threat.project(jnp.ones(SHAPE)), 0.0)


@pytest.mark.parametrize("make", BOTH)
def test_samples_fill_the_ball_uniformly(make, key):
    epsilon, dimension, num_samples = 0.25, 3, 4000
    threat = make(epsilon)
    points = jax.vmap(lambda key: threat.sample(key, (dimension,)))(
        jax.random.split(key, num_samples)
    )
    radii = np.sort([slow_norm(make, point) for point in np.asarray(points)]) / epsilon
    assert radii[-1] <= 1 + 1e-6
    # P(norm <= r) = r^d in any norm; Kolmogorov-Smirnov distance at level .001.
    empirical = np.arange(1, num_samples + 1) / num_samples
    assert np.max(np.abs(empirical - radii**dimension)) < 1.95 / np.sqrt(num_samples)
    # No direction is preferred: four standard errors around 0.
    mean, deviation = np.mean(points, axis=0), np.std(points, axis=0)
    np.testing.assert_allclose(mean, 0.0, atol=4 * deviation.max() / np.sqrt(num_samples))
    np.testing.assert_allclose(deviation, deviation.mean(), rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(points.T), np.eye(dimension), atol=0.07)


def test_the_linf_ball_is_a_box_and_the_l2_ball_is_not():
    delta = jnp.array([0.3, -2.0, 0.1])
    np.testing.assert_allclose(threats.linf(0.2).project(delta), [0.2, -0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(
        threats.l2(0.2).project(delta), 0.2 * delta / np.linalg.norm(delta), rtol=1e-6
    )


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_a_radius_below_zero_or_not_finite_is_refused(make, epsilon):
    with pytest.raises(ValueError, match=f"epsilon must be at least 0, got {epsilon}"):
        make(epsilon)


@pytest.mark.parametrize("make", BOTH)
def test_the_radius_may_be_traced(make):
    delta = jnp.array([3.0, -4.0])
    norms = jax.vmap(lambda epsilon: make(epsilon).norm(make(epsilon).project(delta)))(
        jnp.array([0.5, 1.0, 100.0])
    )
    np.testing.assert_allclose(norms, [0.5, 1.0, slow_norm(make, delta)], rtol=1e-6)


class Variants(chex.TestCase):
    @chex.all_variants
    @parameterized.parameters("linf", "l2")
    def test_compiled_or_not_on_any_device_the_ball_is_the_same(self, name):
        make = getattr(threats, name)
        delta = np.array([[0.1, -2.0, 0.3], [0.0, 0.5, -0.2]], np.float32)

        def everything(key, delta, epsilon):
            threat = make(epsilon)
            norms = threat.norm(delta), threat.dual_norm(delta)
            sample = threat.sample(key, SHAPE)
            return threat.project(delta), threat.steepest(delta), norms, sample

        arguments = jax.random.key(3), jnp.asarray(delta), jnp.float32(0.25)
        projected, steepest, norms, sample = self.variant(everything)(*arguments)
        want = slow_norm(make, delta), slow_dual_norm(make, delta)
        chex.assert_trees_all_close(norms, want, rtol=1e-5)
        np.testing.assert_allclose(slow_norm(make, np.asarray(projected)), 0.25, rtol=1e-5)
        np.testing.assert_allclose((delta * steepest).sum(), want[1], rtol=1e-5)
        chex.assert_trees_all_close(sample, make(0.25).sample(arguments[0], SHAPE), rtol=1e-5)
