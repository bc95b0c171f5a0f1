"""The Square attack against slow pictures of its changes and scores that have no derivative."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixjax import attacks, threats
from mixjax.attacks import random_search

BOTH = [threats.linf, threats.l2]
few = hypothesis.settings(max_examples=12, deadline=None)
IMAGE = np.linspace(0.3, 0.7, 6 * 7 * 2, dtype=np.float32).reshape(6, 7, 2)


def square(key, score_fn, x, threat, **settings):
    """As one program; the answers in NumPy."""
    attack = jax.jit(lambda: attacks.square(key, score_fn, x, threat, **settings))
    return jax.tree.map(np.asarray, attack())


def norm(make, delta):
    return np.abs(delta).max() if make is threats.linf else np.linalg.norm(delta)


def slow_bump(height, width):
    """One bump: rectangles that grow from the centre, the k-th of height 1 / k^2."""
    bump = np.zeros((height, width))
    for k in range(max(height, width) // 2 + 1):
        rows = slice(max(height // 2 - k, 0), height // 2 + k + 1)
        columns = slice(max(width // 2 - k, 0), width // 2 + k + 1)
        bump[rows, columns] += 1.0 / (k + 1) ** 2
    return bump


@pytest.mark.parametrize("side", [3, 5, 7, 8])
def test_a_pair_of_bumps_is_one_up_and_one_down(side):
    rows, columns = np.mgrid[:8, :8]  # of one shape: one program
    want = np.concatenate([slow_bump(side // 2, side), -slow_bump(side - side // 2, side)])
    bumps = np.asarray(_bumps(rows, columns, side, side))[:side, :side]
    np.testing.assert_allclose(bumps, want, rtol=1e-5)
    turned = np.asarray(_bumps(columns, rows, side, side))[:side, :side]
    np.testing.assert_allclose(turned, want.T, rtol=1e-5)


_bumps = jax.jit(random_search._bumps)


def test_the_squares_shrink_as_in_the_paper():
    """With 10 000 queries the share is halved after 10, 50, 200, 500, 1000, .., 8000 queries."""
    sides = random_search._sides((32, 32, 3), 10_000, 0.8, 1)
    np.testing.assert_array_equal(sides[:, 0], sides[:, 1])
    for query, halvings in [(0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (501, 4), (8001, 9)]:
        want = max(round(np.sqrt(0.8 / 2**halvings * 32 * 32)), 1)
        assert sides[query, 0] == want, query
    np.testing.assert_array_equal(random_search._sides((32, 32, 3), 1000, 0.8, 1), sides[::10])


def test_a_window_higher_than_the_image_becomes_longer():
    np.testing.assert_array_equal(random_search._sides((1, 30, 1), 1, 0.8, 1), [[1, 24]])
    np.testing.assert_array_equal(random_search._sides((30, 4, 1), 1, 0.8, 1), [[24, 4]])
    np.testing.assert_array_equal(random_search._sides((2, 2, 1), 1, 0.8, 3), [[2, 2]])


def test_windows_lie_anywhere_inside_the_image(key):
    shape, sides = (4, 6, 1), np.array([2, 3])
    windows = jax.jit(jax.vmap(lambda key: random_search._window(key, shape, sides)[0]))
    windows = windows(jax.random.split(key, 500))
    np.testing.assert_array_equal(np.sum(windows, axis=(1, 2, 3)), 6)
    places = {tuple(np.argwhere(window[..., 0])[0]) for window in np.asarray(windows)}
    assert places == {(top, left) for top in range(3) for left in range(4)}


def test_in_a_box_a_change_paints_one_window_in_one_color(key):
    delta, sides = np.full((5, 6, 2), 0.01, np.float32), np.array([2, 3])
    recolor = jax.jit(functools.partial(random_search._recolor, threat=threats.linf(0.2)))
    changed = np.asarray(recolor(key, sides, delta))
    rows, columns = np.nonzero(np.any(changed != delta, axis=-1))
    window = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert window.shape == (2, 3, 2)
    np.testing.assert_array_equal(window, np.broadcast_to(window[:1, :1], window.shape))
    np.testing.assert_allclose(np.abs(window), 0.2, rtol=1e-6)


def test_in_l2_a_change_moves_norm_between_two_windows_and_uses_all_of_epsilon(key):
    """Outside of both windows only the scale changes, by nothing if no channel was clipped."""
    delta = np.random.default_rng(0).normal(scale=0.01, size=(9, 9, 2)).astype(np.float32)
    threat, sides = threats.l2(1.0), np.array([3, 3])
    changed = jax.jit(functools.partial(random_search._regroup, threat=threat))(key, sides, delta)
    np.testing.assert_allclose(np.linalg.norm(changed), 1.0, rtol=1e-5)
    same = np.isclose(changed, delta, rtol=1e-4).all(-1)
    emptied = np.all(changed == 0.0, axis=-1)
    assert same.sum() >= 81 - 18 and 0 < emptied.sum() <= 9
    for channel in range(2):  # each channel gets half of the unused square of the norm
        unused = (1.0 - np.sum(np.square(delta))) / 2
        want = np.sum(np.square(delta[..., channel])) + unused
        np.testing.assert_allclose(np.sum(np.square(changed[..., channel])), want, rtol=1e-4)


@pytest.mark.parametrize(("shape", "num_queries"), [((12,), 300), ((4, 5, 2), 1500)])
def test_in_a_box_the_search_ends_in_the_best_corner_of_a_linear_score(shape, num_queries, key):
    slope, x = np.random.default_rng(0).normal(size=shape), np.full(shape, 0.5, np.float32)
    x_adv, info = square(
        key, lambda x: jnp.sum(slope * x), x, threats.linf(0.2), num_queries=num_queries
    )
    np.testing.assert_allclose(x_adv, 0.5 + 0.2 * np.sign(slope), rtol=1e-5)
    np.testing.assert_allclose(info.loss, np.sum(slope * x_adv), rtol=1e-4)
    assert info.loss > info.first_loss and info.num_zero_gradients == 0


def test_in_l2_the_search_comes_near_the_optimum_of_a_smooth_score(key):
    """A bright blob against a dark one; random directions of 64 pixels reach 1 / 8 in mean."""
    rows, columns = np.mgrid[:8, :8]
    slope = np.exp(-((rows - 2) ** 2 + (columns - 2) ** 2) / 4)
    slope -= np.exp(-((rows - 6) ** 2 + (columns - 5) ** 2) / 4)
    slope, x = (slope / np.linalg.norm(slope))[..., None], np.full((8, 8, 1), 0.5, np.float32)
    x_adv, info = square(key, lambda x: jnp.sum(slope * (x - 0.5)), x, threats.l2(0.4))
    assert 0.4 * 0.7 < info.loss <= 0.4 * (1 + 1e-5)
    np.testing.assert_allclose(np.linalg.norm(x_adv - 0.5), 0.4, rtol=1e-4)


def test_a_score_without_any_derivative_is_enough(key):
    """A score of whole steps, whose derivative is an error and not merely zero."""

    @jax.custom_jvp
    def score_fn(x):
        return jnp.round(10.0 * jnp.sum(x[:3]))

    @score_fn.defjvp
    def differentiate(primals, tangents):
        raise AssertionError("differentiated")

    with pytest.raises(AssertionError, match="differentiated"):
        jax.grad(score_fn)(IMAGE)
    x_adv, info = square(key, score_fn, IMAGE, threats.linf(0.3), num_queries=200)
    assert info.loss == score_fn(x_adv) > info.first_loss


@pytest.mark.parametrize("make", BOTH)
def test_the_score_is_asked_for_as_often_as_was_said_and_the_best_is_kept(make, key):
    asked = []

    def score_fn(x):
        score = jnp.sin(50.0 * jnp.sum(x))
        jax.debug.callback(lambda score: asked.append(float(score)), score, ordered=True)
        return score

    _, info = square(key, score_fn, IMAGE, make(0.3), num_queries=40)
    jax.effects_barrier()
    assert len(asked) == 40 and info.first_loss == asked[0] < max(asked)
    assert info.loss == max(asked)


@pytest.mark.parametrize(
    ("make", "shape"), [(threats.linf, (3,)), (threats.l2, (6, 7, 2)), (threats.l2, (1, 1, 1))]
)
@few
@hypothesis.given(st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 9))
def test_every_point_asked_for_lies_in_the_ball_and_in_the_bounds(make, shape, epsilon, seed):
    """The score turns NaN elsewhere, and a NaN that was met is reported."""
    x_adv, info, x = run_inside(make, shape)(jax.random.key(seed), epsilon)
    assert x_adv.shape == shape and x_adv.dtype == info.loss.dtype == np.float32
    assert norm(make, np.float64(x_adv) - x) <= epsilon + 1e-6
    assert np.all((x_adv >= 0) & (x_adv <= 1))
    assert np.isfinite(info.loss) and info.loss >= info.first_loss


@functools.cache
def run_inside(make, shape):
    def run(key, epsilon):
        threat, x = make(epsilon), jax.random.uniform(jax.random.key(1), shape)

        def score_fn(point):
            left = (threat.norm(point - x) > epsilon + 1e-6) | jnp.any((point < 0) | (point > 1))
            return jnp.sum(jnp.sin(9.0 * point)) + jnp.where(left, jnp.nan, 0.0)

        return *attacks.square(key, score_fn, x, threat, num_queries=30), x

    return jax.jit(run)


def test_a_batch_is_a_vmap_of_single_attacks(key):
    keys, tops = jax.random.split(key, 3), np.float32([0.1, 0.6, 0.95])

    def attack(key, top):
        return attacks.square(
            key, lambda x: -jnp.sum((x - top) ** 2), IMAGE, threats.linf(0.3), num_queries=30
        )

    batch, one = jax.jit(jax.vmap(attack))(keys, tops), jax.jit(attack)
    for k in range(3):
        answer = one(keys[k], tops[k])
        for got, want in zip(jax.tree.leaves(batch), jax.tree.leaves(answer), strict=True):
            np.testing.assert_allclose(got[k], want, rtol=1e-4, atol=1e-5)


def test_a_nan_score_is_reported_with_its_point(key):
    def score_fn(x):
        gain = jnp.sum(x - IMAGE)
        return jnp.where(gain > 2.0, jnp.nan, gain)

    x_adv, info = square(key, score_fn, IMAGE, threats.linf(0.1), num_queries=60)
    assert np.isnan(info.loss) and np.sum(x_adv - IMAGE) > 2.0


def test_one_query_returns_the_start(key):
    x_adv, info = square(key, jnp.sum, IMAGE, threats.linf(0.1), num_queries=1)
    assert info.loss == info.first_loss == pytest.approx(x_adv.sum(), rel=1e-5)
    stripes = np.asarray(x_adv - IMAGE)
    np.testing.assert_allclose(np.abs(stripes), 0.1, rtol=1e-5)
    np.testing.assert_allclose(stripes, np.broadcast_to(stripes[:1], stripes.shape), rtol=1e-5)
    assert np.std(np.sign(stripes)) > 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_queries": 0}, "num_queries must be a whole number of at least 1, got 0"),
        ({"first_share": 0.0}, "first_share must be positive, got 0.0"),
        ({"first_share": 1.5}, r"first_share must lie in \[0.0, 1.0\], got 1.5"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be .* low < high, got \(1.0, 0.0\)"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting, message, key):
    with pytest.raises(ValueError, match=message):
        attacks.square(key, jnp.sum, IMAGE, threats.linf(0.1), **setting)
