"""The lattice climber: which sets of members it finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, threats
from tests import linear_game

EPSILON = 0.3
WEIGHTS = np.array([0.4, 0.35, 0.25], np.float32)


@functools.cache
def climber(num_orders):
    @jax.jit
    def run(key, normals, margins, weights):
        def logits_fn(x):
            logits = margins + jnp.sum(normals * x[None], axis=1)
            return jnp.stack([logits, jnp.zeros(3)], axis=1)

        point, info = attacks.lattice_climber(
            key,
            logits_fn,
            weights,
            jnp.zeros(normals.shape[1]),
            0,
            threats.l2(EPSILON),
            num_orders=num_orders,
            bounds=(-1.0, 1.0),
        )
        return logits_fn(point)[:, 0] <= 0, info

    return run


def normals_of(*rows):
    return np.array([[*row, 0.0] for row in rows], np.float32)


def test_a_heavy_member_alone_may_weigh_less_than_the_two_that_it_excludes(key):
    """By weight the first comes first and the others cannot join it; other orders find them."""
    normals, margins = normals_of([1, 0, 0], [-0.5, 1, 0], [-0.5, 0, 1]), np.full(3, 0.2, "f")
    for num_orders, fooled in [(1, [True, False, False]), (5, [False, True, True])]:
        got, info = climber(num_orders)(key, normals, margins, WEIGHTS)
        assert got.tolist() == fooled
        np.testing.assert_allclose(info.accuracy, 1 - WEIGHTS @ fooled, rtol=1e-5)


def test_a_member_that_x_fools_comes_first_whatever_its_weight(key):
    """Fooling the heaviest would give it back and keep the third, which could join it, away."""
    normals = normals_of([1, 0, 0], [-1, 0, 0], [0, 1, 0])
    margins = np.array([0.2, -0.1, 0.25], np.float32)
    fooled, info = climber(1)(key, normals, margins, WEIGHTS)
    assert fooled.tolist() == [False, True, True]
    np.testing.assert_allclose(info.first_accuracy, 0.65, rtol=1e-5)


def test_a_member_out_of_reach_is_left_out_and_the_next_one_tried(key):
    normals = normals_of([1, 0, 0], [0, 1, 0], [0.7, 0.7, 0])
    margins = np.array([0.15, 5.0, 0.2], np.float32)
    fooled, _ = climber(1)(key, normals, margins, WEIGHTS)
    assert fooled.tolist() == [True, False, True]


def test_a_member_left_out_pulls_no_longer(key):
    """The heaviest is out of reach and pulls away from the second, as strongly as that one."""
    normals, margins = normals_of([1, 0, 0], [-1, 0, 0], [0, 1, 0]), np.float32([5.0, 0.15, 5.0])
    fooled, _ = climber(1)(key, normals, margins, WEIGHTS)
    assert fooled.tolist() == [False, True, False]


def smallest_norm(normals, margins, members):
    free = np.ones(normals.shape[1])
    return linear_game.smallest_l2(normals[members], -margins[members], -free, free)


@pytest.mark.parametrize("seed", range(12))
def test_one_order_is_effective_and_maximal_on_linear_members(seed, key):
    """Up to 5 % of the radius: what it fools can be fooled, and nothing more that contains it."""
    generator = np.random.default_rng(seed)
    normals = np.float32(generator.normal(size=(3, 4)))
    margins = np.float32(generator.uniform(0.05, 0.5, size=3))
    fooled, info = climber(1)(key, normals, margins, WEIGHTS)
    fooled = np.asarray(fooled)
    for k in np.flatnonzero(~fooled):
        larger = np.append(np.flatnonzero(fooled), k)
        assert smallest_norm(normals, margins, larger) > 0.95 * EPSILON
    assert not fooled.any() or smallest_norm(normals, margins, fooled) <= 1.001 * EPSILON
    assert (info.accuracy < info.first_accuracy) == fooled.any()


def test_nothing_of_its_own_is_infinite(key):
    """Outside of `jit` this mode looks at every single result."""
    logits = jnp.array([[0.1, 0.0, -0.2], [0.2, 0.1, 0.0]])
    with jax.debug_infs(True):
        _, info = attacks.lattice_climber(
            key,
            lambda x: logits.at[:, 0].add(2.0 * x[0]),
            np.array([0.6, 0.4]),
            jnp.zeros(1),
            0,
            threats.linf(EPSILON),
            num_orders=1,
            num_steps=1,
            bounds=(-1.0, 1.0),
        )
    assert info.accuracy == 0
