"""FGSM and PGD against losses whose highest point is known."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixjax import attacks, losses, mixture, threats

BOTH = [threats.linf, threats.l2]
WIDE = (-10.0, 10.0)
SHAPE = (2, 3)
X = np.array([[0.5, 0.2, 0.9], [0.0, 1.0, 0.4]], np.float32)  # two coordinates at the bounds
SLOPE = np.array([[1.0, -2.0, 0.5], [-0.3, 4.0, -1.0]], np.float32)
EPSILON = 0.25
few = hypothesis.settings(max_examples=20, deadline=None)
inputs = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
slopes = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([-3.0, -0.1, 0.0, 0.2, 5.0]))


def fgsm(loss_fn, x, threat, **settings):
    """As one program, of what is known when it compiles; the answers in NumPy."""
    attack = jax.jit(lambda: attacks.fgsm(loss_fn, x, threat, **settings))
    return jax.tree.map(np.asarray, attack())


def pgd(key, loss_fn, x, threat, **settings):
    attack = jax.jit(lambda: attacks.pgd(key, loss_fn, x, threat, **settings))
    return jax.tree.map(np.asarray, attack())


def linear(x):
    return (SLOPE * x).sum()


def dual_norm(make, gradient):
    return np.abs(gradient).sum() if make is threats.linf else np.linalg.norm(gradient)


def norm(make, delta):
    return np.abs(delta).max() if make is threats.linf else np.linalg.norm(delta)


@pytest.mark.parametrize("make", BOTH)
def test_fgsm_on_a_linear_loss_gains_epsilon_times_the_dual_norm(make):
    x_adv, info = fgsm(linear, X, make(EPSILON), bounds=WIDE)
    gain = linear(x_adv) - linear(X)
    np.testing.assert_allclose(gain, EPSILON * dual_norm(make, SLOPE), rtol=1e-5)
    np.testing.assert_allclose(info.loss - info.first_loss, gain, rtol=1e-6)
    np.testing.assert_allclose(info.first_loss, linear(X), rtol=1e-6)
    assert info.num_zero_gradients == 0


@pytest.mark.parametrize("make", BOTH)
def test_one_step_on_a_linear_loss_gains_its_length_times_the_dual_norm(make, key):
    """The step is shorter than epsilon: no projection repairs a wrong length."""
    x_adv, info = pgd(
        key, linear, X, make(1.0), num_steps=1, step_size=0.1, random_start=False, bounds=WIDE
    )
    np.testing.assert_allclose(norm(make, x_adv - X), 0.1, rtol=1e-5)
    np.testing.assert_allclose(linear(x_adv) - linear(X), 0.1 * dual_norm(make, SLOPE), rtol=1e-5)
    np.testing.assert_allclose(info.first_loss, linear(X), rtol=1e-6)
    np.testing.assert_allclose(info.loss, linear(x_adv), rtol=1e-6)


@pytest.mark.parametrize("make", BOTH)
def test_steps_add_up_until_they_reach_the_sphere(make, key):
    for num_steps, length in [(2, 0.2), (3, 0.25), (9, 0.25)]:
        x_adv, info = pgd(
            key,
            linear,
            X,
            make(0.25),
            num_steps=num_steps,
            step_size=0.1,
            random_start=False,
            bounds=WIDE,
        )
        np.testing.assert_allclose(norm(make, x_adv - X), length, rtol=1e-5)
        np.testing.assert_allclose(info.first_loss, linear(X), rtol=1e-6)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_finds_the_highest_point_of_a_linear_loss(make, random_start, key):
    settings = dict(num_steps=40, step_size=0.1, random_start=random_start, bounds=WIDE)
    x_adv, info = pgd(key, linear, X, make(EPSILON), **settings)
    best = linear(X) + EPSILON * dual_norm(make, SLOPE)
    np.testing.assert_allclose(linear(x_adv), best, rtol=1e-5)
    np.testing.assert_allclose(info.loss, best, rtol=1e-5)


def test_pgd_finds_the_highest_corner_of_the_box_cut_by_the_bounds(key):
    x_adv, _ = pgd(key, linear, X, threats.linf(EPSILON), num_steps=10, step_size=0.1)
    want = np.clip(X + EPSILON * np.sign(SLOPE), 0.0, 1.0)
    np.testing.assert_allclose(x_adv, want, atol=1e-6)


@pytest.mark.parametrize("make", BOTH)
@few
@hypothesis.given(inputs, slopes, st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 9))
def test_every_point_visited_lies_in_the_ball_and_in_the_bounds(make, x, slope, epsilon, seed):
    """The loss turns NaN elsewhere, and PGD reports a NaN if it meets one."""
    fgsm_point, fgsm_info, pgd_point, pgd_info = run_inside(make)(
        jax.random.key(seed), x, slope, epsilon
    )
    for point, info in [(fgsm_point, fgsm_info), (pgd_point, pgd_info)]:
        assert norm(make, np.float64(point) - x) <= epsilon + 1e-6
        assert np.all((point >= 0) & (point <= 1))
        assert np.isfinite(info.loss) and np.isfinite(info.first_loss)
    assert pgd_info.loss >= pgd_info.first_loss


_RUN_INSIDE = {}


def run_inside(make):
    def run(key, x, slope, epsilon):
        threat = make(epsilon)

        def loss_fn(point):
            left = (threat.norm(point - x) > epsilon + 1e-6) | jnp.any((point < 0) | (point > 1))
            return jnp.sum(slope * point) + jnp.where(left, jnp.nan, 0.0)

        fgsm = attacks.fgsm(loss_fn, x, threat)
        return *fgsm, *attacks.pgd(key, loss_fn, x, threat, num_steps=5, step_size=0.4)

    return _RUN_INSIDE.setdefault(make, jax.jit(run))


def peak_at(top):
    return lambda x: -((x - top) ** 2).sum()


def test_the_best_point_is_returned_not_the_last(key):
    """With steps of .1 from .5 the points are .5, .6, .7, .6, .7, .6; the peak is at .68."""
    x_adv, info = pgd(
        key,
        peak_at(0.68),
        np.float32([0.5]),
        threats.linf(0.4),
        num_steps=5,
        step_size=0.1,
        random_start=False,
    )
    np.testing.assert_allclose(x_adv, [0.7], rtol=1e-6)
    np.testing.assert_allclose(info.loss, -(0.02**2), rtol=1e-3)


def test_the_start_is_one_of_the_points_visited(key):
    x = np.float32([0.5])
    x_adv, info = pgd(
        key, peak_at(0.51), x, threats.l2(0.4), num_steps=3, step_size=0.3, random_start=False
    )
    assert x_adv == x and info.loss == info.first_loss


def test_fgsm_takes_its_step_even_where_the_loss_falls():
    x_adv, info = fgsm(peak_at(0.51), np.float32([0.5]), threats.linf(0.4))
    np.testing.assert_allclose(x_adv, [0.9], rtol=1e-6)
    assert info.loss < info.first_loss
    np.testing.assert_allclose(info.loss, -(0.39**2), rtol=1e-5)


def test_in_the_setting_of_hamm_fgsm_moves_every_pixel_of_minus_one_to_one_by_eta():
    x = np.array([-1.0, -0.9, -0.2, 0.0, 0.8, 1.0], np.float32)
    slope = np.array([-1.0, 3.0, -0.1, 0.0, 2.0, 1.0], np.float32)
    x_adv, _ = fgsm(lambda z: jnp.sum(slope * z), x, threats.linf(0.3), bounds=(-1.0, 1.0))
    np.testing.assert_allclose(x_adv, [-1.0, -0.6, -0.5, 0.0, 1.0, 1.0], atol=1e-6)


def test_in_the_setting_of_hamm_pgd_is_the_ifgsm_written_out(key):
    """Around the tops inside the ball the points go to and fro, and the best one counts."""
    tops = np.array([-1.2, -0.75, -0.33, 0.28, 1.5, 0.95])
    x = np.array([-0.9, -0.9, -0.2, 0.0, 0.8, 1.0])
    z, visited = x, [x]
    for _ in range(5):
        z = np.clip(z + 0.08 * np.sign(tops - z), x - 0.3, x + 0.3).clip(-1.0, 1.0)
        visited.append(z)
    x_adv, info = pgd(
        key,
        peak_at(np.float32(tops)),
        np.float32(x),
        threats.linf(0.3),
        num_steps=5,
        step_size=0.08,
        random_start=False,
        bounds=(-1.0, 1.0),
    )
    best = max(visited, key=lambda z: -np.sum((z - tops) ** 2))
    assert not np.array_equal(best, visited[-1])
    np.testing.assert_allclose(x_adv, best, atol=1e-6)
    np.testing.assert_allclose(info.loss, -np.sum((best - tops) ** 2), rtol=1e-5)


def test_as_printed_fgsm_goes_its_whole_step_beyond_every_box():
    """Equation 1 of Hamm: `x + eta sign(grad)`, nothing else."""
    x = np.array([-1.0, -0.9, -0.2, 0.0, 0.8, 1.0], np.float32)
    slope = np.array([-1.0, 3.0, -0.1, 0.0, 2.0, 1.0], np.float32)
    x_adv, info = fgsm(lambda z: jnp.sum(slope * z), x, threats.linf(0.3), bounds=(-np.inf, np.inf))
    np.testing.assert_allclose(x_adv, x + 0.3 * np.sign(slope), atol=1e-6)
    gain = 0.3 * np.abs(slope).sum()
    np.testing.assert_allclose(info.loss - info.first_loss, gain, rtol=1e-5)


@pytest.mark.parametrize("make", BOTH)
def test_without_bounds_pgd_gains_epsilon_times_the_dual_norm_from_anywhere(make, key):
    x_adv, _ = pgd(
        key,
        linear,
        100.0 * X,
        make(EPSILON),
        num_steps=30,
        step_size=0.1,
        bounds=(-np.inf, np.inf),
    )
    gain = np.sum(SLOPE * (np.float64(x_adv) - np.float64(100.0 * X)))
    np.testing.assert_allclose(gain, EPSILON * dual_norm(make, SLOPE), rtol=1e-3)


def test_the_ifgsm_of_hamm_steps_by_eta_and_ends_where_its_last_step_ends(key):
    """Equation 2; around a top inside the ball it goes to and fro, four steps ending at `x`."""
    tops = np.array([-1.2, -0.75, -0.33, 0.28, 1.5, 0.95])
    x = np.array([-0.9, -0.9, -0.2, 0.0, 0.8, 1.0])
    eta, z = 0.3, x
    for _ in range(4):
        z = np.minimum(
            1, np.minimum(x + eta, np.maximum(-1, np.maximum(x - eta, z + eta * np.sign(tops - z))))
        )
    x_adv, info = pgd(
        key,
        peak_at(np.float32(tops)),
        np.float32(x),
        threats.linf(eta),
        num_steps=4,
        step_size=eta,
        random_start=False,
        iterate="last",
        bounds=(-1.0, 1.0),
    )
    np.testing.assert_allclose(x_adv, z, atol=1e-6)
    np.testing.assert_allclose(info.loss, -np.sum((z - tops) ** 2), rtol=1e-5)
    assert np.any(z == x) and np.any(z == -1) and np.any(z == 1)


def test_the_last_point_may_be_asked_for_and_its_own_loss_is_reported(key):
    """The path of the test above: .5, .6, .7, .6, .7, .6; the peak is at .68."""
    x_adv, info = pgd(
        key,
        peak_at(0.68),
        np.float32([0.5]),
        threats.linf(0.4),
        num_steps=5,
        step_size=0.1,
        random_start=False,
        iterate="last",
    )
    np.testing.assert_allclose(x_adv, [0.6], rtol=1e-6)
    np.testing.assert_allclose(info.loss, -(0.08**2), rtol=1e-3)
    np.testing.assert_allclose(info.first_loss, -(0.18**2), rtol=1e-3)
    with pytest.raises(ValueError, match="iterate must be one of best, last, got first"):
        attacks.pgd(key, linear, X, threats.linf(0.1), num_steps=1, step_size=0.1, iterate="first")


@pytest.mark.parametrize("make", BOTH)
def test_without_a_random_start_the_key_does_not_matter(make):
    points = [
        pgd(
            jax.random.key(seed),
            peak_at(0.9),
            X,
            make(0.2),
            num_steps=2,
            step_size=0.05,
            random_start=False,
        )[0]
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*points)


@pytest.mark.parametrize("make", BOTH)
def test_random_starts_are_spread_over_the_ball(make, key):
    """On a flat loss PGD stays where it started."""
    epsilon, x = 0.2, jnp.full(3, 0.5)

    def start(key):
        return attacks.pgd(
            key, lambda x: 0.0 * jnp.sum(x), x, make(epsilon), num_steps=1, step_size=1e-3
        )

    points, info = jax.jit(jax.vmap(start))(jax.random.split(key, 2000))
    radii = np.sort([norm(make, point - 0.5) for point in np.asarray(points)]) / epsilon
    assert np.max(np.abs(np.arange(1, 2001) / 2000 - radii**3)) < 1.95 / np.sqrt(2000)
    np.testing.assert_array_equal(info.num_zero_gradients, 1)


@pytest.mark.parametrize("make", BOTH)
def test_a_random_start_may_have_a_ball_of_its_own(make, key):
    """A small one to start in, all of the threat to climb in; never outside of the threat."""
    x, flat = jnp.full(3, 0.5), lambda x: 0.0 * x[0]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def attack(key, start_radius):
        starts = make(start_radius)
        settings = dict(start=starts, num_steps=3, step_size=0.1)
        first, _ = attacks.pgd(key, flat, x, make(0.2), **settings)
        last, _ = attacks.pgd(key, jnp.sum, x, make(0.2), **settings)
        return first - x, last - x

    def largest(deltas):
        return max(norm(make, delta) for delta in np.asarray(deltas))

    keys = jax.random.split(key, 200)
    first, last = attack(keys, 0.01)
    assert 0.009 < largest(first) <= 0.01 + 1e-6
    np.testing.assert_allclose(largest(last), 0.2, rtol=1e-5)
    first, _ = attack(keys, 5.0)
    np.testing.assert_allclose(largest(first), 0.2, rtol=1e-5)


def test_ascent_on_the_expected_loss_is_blind_to_a_symmetric_mixture(key):
    """Two members, each fooled from its own side only: the true robust accuracy is 1/2.

    Their gradients cancel at x, so PGD does not move and reports 1; its info must say so.
    """
    x, threat = np.zeros(1, np.float32), threats.linf(0.5)

    def logits_fn(x):  # margins 0.3 - x and 0.3 + x
        margins = 0.3 + jnp.array([-1.0, 1.0]) * x
        return jnp.stack([margins, jnp.zeros(2)], axis=1)

    @jax.jit
    def attack(weights):
        def loss_fn(x):
            members = jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits_fn(x), 0)
            return mixture.expected_loss(members, weights)

        settings = dict(num_steps=7, step_size=0.1, random_start=False, bounds=(-1.0, 1.0))
        x_adv, info = attacks.pgd(key, loss_fn, x, threat, **settings)
        sides = [jnp.full(1, side) for side in (-0.5, 0.5)]
        accuracies = [mixture.accuracy(logits_fn(x), 0, weights) for x in (x_adv, *sides)]
        _, of_fgsm = attacks.fgsm(loss_fn, x, threat, bounds=(-1.0, 1.0))
        return x_adv, info, jnp.stack(accuracies), of_fgsm

    x_adv, info, accuracies, of_fgsm = attack(np.float32([0.5, 0.5]))
    assert info.num_zero_gradients == 7 and x_adv == x
    np.testing.assert_array_equal(accuracies, [1.0, 0.5, 0.5])
    assert of_fgsm.num_zero_gradients == 1

    # Other weights break the symmetry: the heavier member is attacked, nothing is zero.
    x_adv, info, _, _ = attack(np.float32([0.4, 0.6]))
    assert info.num_zero_gradients == 0
    np.testing.assert_allclose(x_adv, [-0.5], rtol=1e-6)


def test_ascent_on_averaged_logits_misses_what_the_expected_loss_finds(key):
    """Member 1 is loud and never fooled; member 2 is quiet and fooled from 0.3 on.

    The average of their logits follows the loud one, away from the only point that fools any.
    """
    weights = np.float32([0.5, 0.5])

    def logits_fn(x):
        margins = jnp.concatenate([10.0 * (1.0 + x), 0.3 - x])
        return jnp.stack([margins, jnp.zeros(2)], axis=1)

    @jax.jit
    def attack(of_averaged_logits):
        def loss_fn(x):
            members = jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits_fn(x), 0)
            expected = mixture.expected_loss(members, weights)
            averaged = losses.cross_entropy(weights @ logits_fn(x), 0)
            return jnp.where(of_averaged_logits, averaged, expected)

        settings = dict(num_steps=10, step_size=0.1, bounds=(-1.0, 1.0))
        x, threat = np.zeros(1, np.float32), threats.linf(0.5)
        x_adv, _ = attacks.pgd(key, loss_fn, x, threat, **settings)
        return x_adv, mixture.accuracy(logits_fn(x_adv), 0, weights)

    (right, accuracy), (wrong, wrong_accuracy) = attack(False), attack(True)
    np.testing.assert_allclose(right, [0.5], rtol=1e-6)
    np.testing.assert_allclose(wrong, [-0.5], rtol=1e-6)
    assert accuracy == 0.5 and wrong_accuracy == 1.0


@pytest.mark.parametrize("make", BOTH)
def test_a_nan_in_the_gradient_stops_only_its_own_coordinate(make, key):
    x = np.float32([0.5, 0.5, 0.5])

    def loss_fn(x):  # the root's derivative at 0.5 is 0 * inf
        return 2.0 * x[0] - x[2] + 0.0 * jnp.sqrt(x[1] - 0.5)

    assert np.isnan(jax.grad(loss_fn)(x)[1])
    x_adv, info = pgd(key, loss_fn, x, make(0.2), num_steps=3, step_size=0.1, random_start=False)
    best = loss_fn(x) + 0.2 * dual_norm(make, np.array([2.0, -1.0]))
    np.testing.assert_allclose(info.loss, best, rtol=1e-5)
    np.testing.assert_allclose(x_adv[1], 0.5)
    assert info.num_zero_gradients == 0
    one_step, _ = fgsm(loss_fn, x, make(0.2))
    np.testing.assert_allclose(one_step, x_adv, rtol=1e-6)


@pytest.mark.parametrize("make", BOTH)
def test_a_gradient_of_nan_alone_counts_as_none(make, key):
    x = np.float32([0.5])
    x_adv, info = pgd(
        key,
        lambda x: jnp.sum(0.0 * jnp.sqrt(x - 0.5)),
        x,
        make(0.2),
        num_steps=4,
        step_size=0.1,
        random_start=False,
    )
    assert x_adv == x and info.num_zero_gradients == 4


def test_a_nan_loss_is_reported_with_its_point(key):
    def loss_fn(x):
        return jnp.where(x[0] > 0.65, jnp.nan, x[0])

    x_adv, info = pgd(
        key,
        loss_fn,
        np.float32([0.5]),
        threats.linf(0.4),
        num_steps=4,
        step_size=0.1,
        random_start=False,
    )
    assert np.isnan(info.loss) and np.isnan(loss_fn(x_adv))
    assert 0.65 < x_adv[0] <= 0.9


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_gradients_move_as_far_as_any(make, scale, key):
    x_adv, info = pgd(
        key,
        lambda x: scale * linear(x),
        X,
        make(1.0),
        num_steps=1,
        step_size=0.1,
        random_start=False,
        bounds=WIDE,
    )
    ordinary = fgsm(linear, X, make(0.1), bounds=WIDE)[0]
    np.testing.assert_allclose(x_adv, ordinary, rtol=1e-5)
    assert info.num_zero_gradients == 0


@pytest.mark.parametrize("make", BOTH)
def test_an_infinite_gradient_is_followed(make, key):
    x_adv, _ = pgd(
        key,
        lambda x: jnp.sqrt(x[0]) + x[1],
        np.float32([0.0, 0.5]),
        make(0.2),
        num_steps=1,
        step_size=0.1,
        random_start=False,
    )
    np.testing.assert_allclose(x_adv[0], 0.1, rtol=1e-5)


@pytest.mark.parametrize("make", BOTH)
def test_a_batch_is_a_vmap_of_single_attacks_in_and_out_of_jit(make, key):
    xs = np.random.default_rng(1).uniform(size=(4, 3)).astype(np.float32)
    tops = np.float32([0.1, 0.4, 0.6, 0.95])
    keys = jax.random.split(key, 4)

    def attack(key, x, top):
        return attacks.pgd(key, peak_at(top), x, make(0.2), num_steps=4, step_size=0.07)

    batch, compiled = jax.jit(jax.vmap(attack))(keys, xs, tops), jax.jit(attack)
    # Out of it in one norm: op by op there is nothing that knows of the other.
    first = attack if make is threats.linf else compiled
    for k, one in enumerate([first, compiled, compiled, compiled]):
        answer = one(keys[k], xs[k], tops[k])
        for got, want in zip(jax.tree.leaves(batch), jax.tree.leaves(answer), strict=True):
            np.testing.assert_allclose(got[k], want, rtol=1e-4, atol=1e-6)


def test_radius_and_step_size_may_be_traced(key):
    @jax.jit
    def attack(epsilon):
        threat = threats.linf(epsilon)
        return attacks.pgd(key, linear, X, threat, num_steps=9, step_size=epsilon / 4)[0]

    want = np.clip(X + 0.2 * np.sign(SLOPE), 0.0, 1.0)
    np.testing.assert_allclose(attack(0.2), want, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": 2.5}, "num_steps must be a whole number of at least 1, got 2.5"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"step_size": float("nan")}, "step_size must be positive, got nan"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be .* low < high, got \(1.0, 0.0\)"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting, message, key):
    settings = {"num_steps": 3, "step_size": 0.1} | setting
    with pytest.raises(ValueError, match=message):
        attacks.pgd(key, linear, X, threats.linf(0.1), **settings)


def test_fgsm_refuses_bounds_the_wrong_way_round():
    with pytest.raises(ValueError, match="bounds must be"):
        attacks.fgsm(linear, X, threats.linf(0.1), bounds=(1.0, 1.0))


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_pgd_finds_the_highest_point_of_a_batch(self):
        threat = threats.l2(EPSILON)

        def attack(keys, xs):
            settings = dict(num_steps=20, step_size=0.1, bounds=WIDE)
            return jax.vmap(lambda key, x: attacks.pgd(key, linear, x, threat, **settings))(
                keys, xs
            )

        xs = np.stack([X, X / 2])
        points, info = self.variant(attack)(jax.random.split(jax.random.key(0)), xs)
        chex.assert_tree_all_finite((points, info))
        best = np.sum(SLOPE * xs, axis=(1, 2)) + EPSILON * np.linalg.norm(SLOPE)
        np.testing.assert_allclose(np.sum(SLOPE * np.asarray(points), axis=(1, 2)), best, rtol=1e-5)


def test_a_loss_is_traced_no_more_often_for_more_steps(key):
    loss_fn = chex.assert_max_traces(linear, n=4)
    for num_steps in (3, 50):
        chex.clear_trace_counter()
        attacks.pgd(key, loss_fn, X, threats.linf(EPSILON), num_steps=num_steps, step_size=0.1)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.fgsm,
        functools.partial(attacks.pgd, num_steps=5, step_size=0.2),
        functools.partial(attacks.apgd, num_steps=5),
    ],
    ids=["fgsm", "pgd", "apgd"],
)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_members_stacked_by_hand_are_attacked_where_one_of_them_answers_nan(attack, weight, key):
    """The one that answers is right from a mean of one half on."""

    def logits_fn(x):
        lead = jnp.mean(x) - 0.5
        return jnp.stack([jnp.stack([lead, -lead]), jnp.full(2, jnp.nan) + 0 * lead])

    weights, x = jnp.array([1 - weight, weight]), jnp.full((2, 2, 1), 0.8)
    x_adv, _ = attacks.on_mixture(attack, key, logits_fn, weights, x, 0, threats.linf(0.4))
    assert logits_fn(x_adv)[0, 0] < 0
