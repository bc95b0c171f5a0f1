"""ARC on members whose boundaries are known, and what it shares with the lattice climber."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, mixture, threats

BOTH = [threats.linf, threats.l2]
ATTACKS = [attacks.arc, attacks.lattice_climber]
X = np.array([0.5, 0.4, 0.6], np.float32)
NORMALS = np.array([[3.0, -4.0, 0.0], [0.0, 1.0, 2.0]], np.float32)
WEIGHTS = np.array([0.7, 0.3], np.float32)
DUAL = {threats.linf: np.array([7.0, 3.0]), threats.l2: np.array([5.0, np.sqrt(5.0)])}


def binary(margins):
    """Members' logits `[L] -> [L, 2]` for label 0."""
    return jnp.stack([margins, jnp.zeros_like(margins)], axis=1)


@functools.cache
def linear(attack, make):
    """Linear members of given margins at `X`; outside of ball and bounds their logits are NaN."""

    @jax.jit
    def run(key, normals, margins, weights, epsilon):
        threat = make(epsilon)

        def logits_fn(x):
            outside = (threat.norm(x - X) > epsilon * 1.00001 + 1e-6) | jnp.any((x < 0) | (x > 1))
            logits = binary(margins + jnp.sum(normals * (x - X)[None], axis=1))
            return jnp.where(outside, jnp.nan, logits)

        point, info = attack(key, logits_fn, weights, X, jnp.int32(0), threat)
        return point, info, mixture.accuracy(logits_fn(point), 0, weights)

    return run


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("attack", ATTACKS)
def test_one_member_is_fooled_exactly_when_its_boundary_is_in_reach(attack, make, key):
    """The other one is out of reach; NaN, an error, would be found outside of the ball."""
    run, epsilon = linear(attack, make), 0.1
    for k, (share, fooled) in [(0, (0.98, True)), (0, (1.02, False)), (1, (0.98, True))]:
        margins = np.full(2, 50.0, np.float32)
        margins[k] = share * epsilon * DUAL[make][k]
        point, info, accuracy = run(key, NORMALS, margins, WEIGHTS, epsilon)
        np.testing.assert_allclose(accuracy, 1 - WEIGHTS[k] * fooled, rtol=1e-6)
        assert info.accuracy == accuracy and info.first_accuracy == 1.0
        assert np.all(np.isfinite(point)) and info.num_zero_gradients == 0


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("attack", ATTACKS)
def test_of_two_opposed_members_the_heavier_is_fooled(attack, make, key):
    """Their gradients cancel, the lighter one is nearer: an expected loss leads nowhere."""
    normals, margins = np.stack([NORMALS[0], -NORMALS[0]]), np.array([0.3, 0.2], np.float32)
    point, info, accuracy = linear(attack, make)(key, normals, margins, WEIGHTS, 0.1)
    np.testing.assert_allclose(accuracy, 0.3, rtol=1e-5)
    assert np.sum(NORMALS[0] * (point - X)) < -0.3


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_member_fooled_from_the_start_is_not_given_back(attack, make, key):
    margins = np.array([-0.01, 0.2], np.float32)
    _, info, accuracy = linear(attack, make)(key, NORMALS, margins, WEIGHTS, 0.12)
    assert accuracy == 0.0 and info.accuracy == 0.0
    np.testing.assert_allclose(info.first_accuracy, 0.3, rtol=1e-5)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_moves_in_a_ball_of_radius_zero(attack, key):
    margins = np.array([0.1, -0.2], np.float32)
    point, info, _ = linear(attack, threats.linf)(key, NORMALS, margins, WEIGHTS, 0.0)
    np.testing.assert_array_equal(point, X)
    np.testing.assert_allclose(info.accuracy, 0.7, rtol=1e-6)


@pytest.mark.parametrize("attack", ATTACKS)
def test_constant_members_have_zero_gradients_only_and_say_so(attack, key):
    _, info, _ = linear(attack, threats.linf)(key, 0 * NORMALS, np.ones(2, "f"), WEIGHTS, 0.1)
    num_steps = 20 if attack is attacks.arc else 5 * 2 * 21
    assert info.accuracy == 1.0 and info.num_zero_gradients == num_steps


def test_a_batch_is_a_vmap_of_single_attacks(key):
    run = linear(attacks.arc, threats.linf)
    keys = jax.random.split(key, 3)
    margins = np.array([[0.2, 0.3], [0.5, 0.1], [0.9, 0.28]], np.float32)
    batch = jax.jit(jax.vmap(run, in_axes=(0, None, 0, None, None)))
    batch = batch(keys, NORMALS, margins, WEIGHTS, 0.1)
    for k in range(3):
        one = run(keys[k], NORMALS, margins[k], WEIGHTS, 0.1)
        for got, want in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(got[k], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "setting", "message"),
    [
        (attacks.arc, {"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        (attacks.arc, {"step_size": -0.1}, "step_size must be positive, got -0.1"),
        (attacks.arc, {"num_boundaries": 0}, "num_boundaries must be a whole number of at least"),
        (attacks.arc, {"bounds": (1, 0)}, "bounds must be a pair"),
        (attacks.lattice_climber, {"num_orders": 0}, "num_orders must be a whole number of at"),
        (attacks.lattice_climber, {"num_steps": 1.5}, "num_steps must be a whole number of at"),
        (attacks.lattice_climber, {"bounds": (1, 0)}, "bounds must be a pair"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(attack, setting, message, key):
    with pytest.raises(ValueError, match=message):
        attack(key, None, WEIGHTS, X, 0, threats.linf(0.1), **setting)


@pytest.mark.parametrize("attack", ATTACKS)
def test_weights_off_the_simplex_are_refused(attack, key):
    with pytest.raises(ValueError, match="weights must be on the simplex"):
        attack(key, None, np.array([0.7, 0.7]), X, 0, threats.linf(0.1))


@pytest.mark.parametrize("attack", ATTACKS)
def test_there_is_one_weight_for_each_member(attack, key):
    def logits_fn(x):
        return jnp.stack([x[:2], x[1:]])

    weights = np.float32([0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match=r"weights must have shape \[2\], got \[3\]"):
        attack(key, logits_fn, weights, np.zeros(3, np.float32), 0, threats.linf(0.1))


def test_a_step_is_as_long_as_it_is_said_to_be(key):
    """On a member in sight but out of reach of one step."""

    def logits_fn(x):
        return binary(0.5 + jnp.sum(NORMALS[:1] * (x - X)[None], axis=1))

    settings = dict(num_steps=1, step_size=0.02)
    arguments = np.ones(1, np.float32), X, 0, threats.linf(0.1)
    point, info = jax.jit(lambda key: attacks.arc(key, logits_fn, *arguments, **settings))(key)
    np.testing.assert_allclose(point - X, [-0.02, 0.02, 0.0], atol=1e-6)
    assert info.accuracy == 1.0


def test_the_nearest_boundary_need_not_be_that_of_the_second_highest_logit(key):
    """Class 1 is 0.1 behind and flat, class 2 is 0.2 behind and steep."""

    def logits_fn(x):
        return jnp.stack([0.0, -0.1 + 1e-3 * x[0], -0.2 + 4.0 * x[1]])[None]

    arguments = np.ones(1, np.float32), np.zeros(2, np.float32), 0, threats.linf(0.1)

    @functools.partial(jax.jit, static_argnums=0)
    def accuracy(num_boundaries):
        settings = dict(num_steps=1, num_boundaries=num_boundaries)
        return attacks.arc(key, logits_fn, *arguments, **settings)[1].accuracy

    assert accuracy(1) == 1.0 and accuracy(2) == 0.0


def test_where_no_gradient_leads_the_second_half_starts_at_a_random_point(key):
    def logits_fn(x):  # a hill with its top at x
        return binary(0.3 - 10 * jnp.sum(x**2, keepdims=True))

    arguments = np.ones(1, np.float32), np.zeros(2, np.float32), 0, threats.l2(0.5)

    @functools.partial(jax.jit, static_argnums=0)
    def accuracy(num_steps):
        settings = dict(num_steps=num_steps, bounds=(-1, 1))
        return attacks.arc(key, logits_fn, *arguments, **settings)[1].accuracy

    assert accuracy(1) == 1.0 and accuracy(4) == 0.0


@jax.jit
def one_step(key, normals, margins, weights):
    def logits_fn(x):
        return binary(margins + jnp.sum(normals * x[None], axis=1))

    settings = dict(num_steps=1, bounds=(-1, 1))
    return attacks.arc(key, logits_fn, weights, jnp.zeros(2), 0, threats.l2(0.3), **settings)


def test_the_heaviest_member_comes_first_even_where_two_others_weigh_more(key):
    normals = np.array([[-1.0, -0.5], [-1.0, 0.5], [1.0, 0.0]], np.float32)
    _, info = one_step(key, normals, np.full(3, 0.2, "f"), np.array([0.25, 0.35, 0.4], "f"))
    np.testing.assert_allclose(info.accuracy, 0.6, rtol=1e-6)


def test_a_second_member_is_pushed_just_far_enough_to_keep_the_first(key):
    """Either one's full step makes the other safer; only straight down are both fooled."""
    normals = np.array([[1.0, 0.5], [-1.0, 0.5], [0.0, 0.0]], np.float32)
    margins, weights = np.array([0.1, 0.12, 9.0], "f"), np.array([0.5, 0.4, 0.1], "f")
    _, info = one_step(key, normals, margins, weights)
    np.testing.assert_allclose(info.accuracy, 0.1, rtol=1e-6)
