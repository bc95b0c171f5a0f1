"""Balls of perturbations: where they begin, end and rise fastest."""

import dataclasses
import pickle

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from mixjax import attacks, threats

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


@pytest.mark.parametrize("make", BOTH)
def test_the_radius_is_the_only_leaf_and_may_be_an_argument(make):
    delta = jnp.array([3.0, -4.0])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def moved(threat):
        return threat.project(delta)

    assert jax.tree.leaves(make(0.5)) == [0.5]
    for epsilon in (0.5, 1.5):
        np.testing.assert_allclose(
            slow_norm(make, moved(make(jnp.float32(epsilon)))), epsilon, rtol=1e-6
        )


def test_a_program_for_one_norm_is_not_that_for_another():
    project = jax.jit(lambda threat: threat.project(jnp.array([3.0, -4.0])))
    np.testing.assert_allclose(project(threats.linf(1.0)), [1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(project(threats.l2(1.0)), [0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("make", BOTH)
def test_one_ball_for_each_radius_is_mapped_over(make):
    delta = jnp.array([3.0, -4.0])
    projected = jax.vmap(lambda threat: threat.project(delta))(make(jnp.array([0.5, 1.0])))
    norms = [slow_norm(make, each) for each in projected]
    np.testing.assert_allclose(norms, [0.5, 1.0], rtol=1e-6)
    slope = jax.grad(lambda threat: threat.project(delta).sum())(make(0.5))
    np.testing.assert_allclose(slope.epsilon, make(1.0).project(delta).sum(), atol=1e-6)


@pytest.mark.parametrize("make", BOTH)
def test_equal_threats_are_equal_have_one_hash_and_survive_pickling(make):
    other = threats.l2 if make is threats.linf else threats.linf
    for epsilon in (0.25, np.float32(0.25), jnp.float32(0.25), jnp.array([0.25, 0.5])):
        threat, again = make(epsilon), make(np.asarray(epsilon))
        assert threat == again and hash(threat) == hash(again)
        assert threat != other(epsilon) and threat != make(0.3) and threat != 0.25
        found = pickle.loads(pickle.dumps(threat))
        assert found == threat and hash(found) == hash(threat)


def test_a_traced_radius_equals_itself_alone_and_has_no_hash():
    def seen(first, second):
        threat = threats.linf(first)
        assert threat == threats.linf(first) and threat != threats.linf(second)
        assert "float32[]" in repr(threat)
        with pytest.raises(TypeError):
            hash(threat)
        return first

    jax.jit(seen)(0.1, 0.1)


@pytest.mark.parametrize("leaf", [None, object(), jax.ShapeDtypeStruct((), np.float32)])
def test_whatever_stands_for_the_radius_passes_through_unchecked(leaf):
    """As where a transformation asks for the structure alone."""
    threat = jax.tree.unflatten(jax.tree.structure(threats.l2(0.5)), [leaf])
    assert threat.epsilon is leaf and threat.name == "l2" and repr(threat).startswith("l2(")


@pytest.mark.parametrize("name", threats.BY_NAME)
def test_a_threat_says_its_name_and_radius(name):
    make = threats.BY_NAME[name]
    assert make(0.1).name == name
    for epsilon in (0.031, np.float32(0.031), jnp.float32(0.031)):
        assert str(make(epsilon)) == repr(make(epsilon)) == f"{name}(epsilon=0.031)"
    assert repr(make(np.array([0.5, 1.0]))) == f"{name}(epsilon=[0.5 1. ])"


def test_all_steps_together_reach_two_and_a_half_radii():
    np.testing.assert_allclose(threats.l2(0.4).step_size(5), 0.2)
    np.testing.assert_allclose(threats.l2(0.4).step_size(4, reach=5.0), 0.5)
    assert threats.linf(0.0).step_size(5) == 1.0  # a ball of one point: of any length above 0
    steps = jax.vmap(lambda threat: threat.step_size(5))(threats.linf(jnp.array([0.2, 0.4])))
    np.testing.assert_allclose(steps, [0.1, 0.2])


def test_a_norm_of_ones_own_attacks_like_any_other(key):
    """The first coordinate may move twice as far as the second."""
    reach = jnp.array([2.0, 1.0])
    box = threats.linf(1.0).geometry
    uneven = threats.Geometry(
        "uneven",
        sample=lambda key, shape, epsilon: reach * box.sample(key, shape, epsilon),
        steepest=lambda gradient: reach * jnp.sign(gradient),
        project=lambda delta, epsilon: jnp.clip(delta, -epsilon * reach, epsilon * reach),
        norm=lambda delta: jnp.max(jnp.abs(delta) / reach),
        dual_norm=lambda gradient: jnp.sum(jnp.abs(gradient) * reach),
    )
    threat, x = threats.Threat(0.1, uneven), jnp.array([0.5, 0.5])
    assert threat == dataclasses.replace(threat) != threats.Threat(0.1, box)
    climb = jax.jit(
        lambda threat: attacks.apgd(key, lambda x: x[0] - x[1], x, threat, num_steps=10)[0]
    )
    np.testing.assert_allclose(climb(threat), [0.7, 0.4], rtol=1e-5)


class Variants(chex.TestCase):
    @chex.all_variants
    @parameterized.parameters("linf", "l2")
    def test_compiled_or_not_on_any_device_the_ball_is_the_same(self, name):
        make = threats.BY_NAME[name]
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
