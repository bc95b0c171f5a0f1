"""AutoPGD against a slow reference, point by point, and against losses of known highest point."""

import dataclasses
import functools
import math
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixjax import attacks, threats

BOTH = [threats.linf, threats.l2]
WIDE = (-100.0, 100.0)
SHAPE = (2, 3)
X = np.array([[0.5, 0.2, 0.9], [0.0, 1.0, 0.4]], np.float32)  # two coordinates at the bounds
SLOPE = np.array([[1.0, -2.0, 0.5], [-0.3, 4.0, -1.0]], np.float32)
few = hypothesis.settings(max_examples=20, deadline=None)


def apgd(key, loss_fn, x, threat, **settings):
    """As one program; the answers in NumPy."""
    attack = jax.jit(lambda: attacks.apgd(key, loss_fn, x, threat, **settings))
    return jax.tree.map(np.asarray, attack())


def linear(x):
    return (SLOPE * x).sum()


def norm(make, delta):
    return np.abs(delta).max() if make is threats.linf else np.linalg.norm(delta)


def slow_checkpoints(num_steps):
    """The steps of the paper, in fractions, those after the last step left out."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return [math.ceil(fraction * num_steps) for fraction in p]


def slow_apgd(value, gradient, steepest, project, start, epsilon, num_steps):
    """Algorithm 1 of the paper: all points, the best one, and why each checkpoint halved."""
    checkpoints = slow_checkpoints(num_steps)
    points, best, step_size = [start], start, 2 * epsilon
    rises, reviews, reasons = [], [(step_size, value(start))], {}
    x = previous = start
    for k in range(num_steps):
        if k > 0 and k in checkpoints:
            before = checkpoints[checkpoints.index(k) - 1]
            is_few = bool(sum(rises[before:k]) < 0.75 * (k - before))
            is_stuck = bool(reviews[-1] == (step_size, value(best)))
            reasons[k] = "few " * is_few + "stuck" * is_stuck
            reviews.append((step_size, value(best)))
            if is_few or is_stuck:
                step_size, x = step_size / 2, best
        new = project(x + step_size * steepest(gradient(x)))
        if k > 0:
            new = project(x + 0.75 * (new - x) + 0.25 * (x - previous))
        rises.append(value(new) > value(x))
        best = new if value(new) > value(best) else best
        points.append(new)
        previous, x = x, new
    return points, best, reasons


def at_x(key, shape, epsilon):
    return jnp.zeros(shape)


def with_parts(threat, **functions):
    """The same ball with other functions."""
    return threats.Threat(threat.epsilon, dataclasses.replace(threat.geometry, **functions))


def recorded(loss_fn, threat, x, num_steps, bounds):
    """`apgd` from `x` itself: its result and all the points at which it asked for the loss."""
    points = []

    def recording(point):
        jax.debug.callback(lambda point: points.append(np.array(point)), point, ordered=True)
        return loss_fn(point)

    threat = with_parts(threat, sample=at_x)
    x_adv, info = attacks.apgd(
        jax.random.key(0), recording, x, threat, num_steps=num_steps, bounds=bounds
    )
    jax.effects_barrier()
    return points, x_adv, info


# Values on the line; the slope shown to the attack is always 1, so that it climbs up the line with
# whatever step size the values leave it.
def spike_then_rise(x):
    return 3.0 * (abs(x) < 0.01) + 1e-3 * x


def waves(x):
    return np.sin(1.7 * x) + 0.5 * x


def falling(x):
    return -x


REASONS = {
    # 9: as many rises as needed, the best value unchanged, but the step was halved the last time.
    spike_then_rise: {
        5: "stuck",
        9: "",
        12: "stuck",
        14: "few ",
        16: "few ",
        18: "few ",
        19: "few ",
    },
    waves: {5: "few ", 9: "few ", 12: "few ", 14: "few ", 16: "few ", 18: "few ", 19: "few "},
    falling: {5: "few stuck"} | {k: "few " for k in (9, 12, 14, 16, 18, 19)},
    lambda x: 2.0 * x: dict.fromkeys((5, 9, 12, 14, 16, 18, 19), ""),
}


@pytest.mark.parametrize("value", REASONS, ids=["stuck", "few", "both", "neither"])
def test_each_condition_alone_halves_the_step_and_restarts_from_the_best_point(value):
    points, best, reasons = slow_apgd(
        lambda x: float(value(x[0])), np.ones_like, lambda g: g, lambda x: x, np.zeros(1), 0.5, 20
    )
    assert reasons == REASONS[value]

    def loss_fn(x):
        held = jax.lax.stop_gradient(x[0])
        height = {waves: lambda x: jnp.sin(1.7 * x) + 0.5 * x}.get(value, value)(held)
        return x[0] - held + height

    line = with_parts(threats.linf(0.5), steepest=lambda g: g, project=lambda delta, _: delta)
    got, x_adv, _ = recorded(loss_fn, line, jnp.zeros(1), 20, WIDE)
    np.testing.assert_allclose(got, points, atol=1e-5)
    np.testing.assert_allclose(x_adv, best, atol=1e-5)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("num_steps", [1, 7, 23])
def test_every_point_is_the_slow_reference_s(make, num_steps):
    """A bumpy loss, a ball that reaches over the bounds."""
    epsilon, waviness = 0.3, np.linspace(3.0, 9.0, 6).reshape(SHAPE)

    def project(x):
        delta = x - X
        if make is threats.l2:
            delta = delta * min(1.0, epsilon / max(np.linalg.norm(delta), 1e-30))
        return np.clip(X + np.clip(delta, -epsilon, epsilon), 0.0, 1.0)

    def steepest(g):
        return np.sign(g) if make is threats.linf else g / np.linalg.norm(g)

    points, best, reasons = slow_apgd(
        lambda x: float(np.sum(np.sin(waviness * x) + SLOPE * x * x[0, 0])),
        lambda x: (
            waviness * np.cos(waviness * x)
            + SLOPE * x[0, 0]
            + np.sum(SLOPE * x) * (np.arange(6).reshape(SHAPE) == 0)
        ),
        steepest,
        project,
        np.float64(X),
        epsilon,
        num_steps,
    )
    got, x_adv, info = recorded(
        lambda x: jnp.sum(jnp.sin(waviness.astype(np.float32) * x) + SLOPE * x * x[0, 0]),
        make(epsilon),
        jnp.asarray(X),
        num_steps,
        (0.0, 1.0),
    )
    assert num_steps < 23 or {"few "} <= {*reasons.values()}
    np.testing.assert_allclose(got, points, atol=2e-4)
    np.testing.assert_allclose(x_adv, best, atol=2e-4)
    assert info.loss >= info.first_loss


def test_the_checkpoints_of_a_hundred_steps_are_the_paper_s():
    assert slow_checkpoints(100)[:9] == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def peak_at(top):
    return lambda x: -((x - top) ** 2).sum()


@pytest.mark.parametrize("make", BOTH)
def test_apgd_finds_the_highest_point_of_a_linear_loss(make, key):
    x_adv, info = apgd(key, linear, X, make(0.25), num_steps=20, bounds=WIDE)
    dual = np.abs(SLOPE).sum() if make is threats.linf else np.linalg.norm(SLOPE)
    best = linear(X) + 0.25 * dual
    np.testing.assert_allclose(info.loss, best, rtol=1e-5)
    np.testing.assert_allclose(linear(x_adv), best, rtol=1e-5)
    assert info.first_loss < info.loss and info.num_zero_gradients == 0


def test_apgd_finds_the_highest_corner_of_the_box_cut_by_the_bounds(key):
    x_adv, _ = apgd(key, linear, X, threats.linf(0.25), num_steps=10)
    np.testing.assert_allclose(x_adv, np.clip(X + 0.25 * np.sign(SLOPE), 0.0, 1.0), atol=1e-6)


def test_the_best_point_is_returned_not_the_last(key):
    """Both steps leave the peak, which is at the start."""
    threat = with_parts(threats.linf(0.4), sample=at_x)
    x = np.float32([0.5])
    x_adv, info = apgd(key, peak_at(0.51), x, threat, num_steps=2)
    assert x_adv == x and info.loss == info.first_loss


def test_the_last_point_is_one_of_those_compared(key):
    x_adv, info = apgd(key, jnp.sum, np.float32([0.5]), threats.linf(0.25), num_steps=1)
    np.testing.assert_allclose(x_adv, [0.75], rtol=1e-6)
    np.testing.assert_allclose(info.loss, 0.75, rtol=1e-6)


inputs = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
slopes = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([-3.0, -0.1, 0.0, 0.2, 5.0]))


@pytest.mark.parametrize("make", BOTH)
@few
@hypothesis.given(inputs, slopes, st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 9))
def test_every_point_visited_lies_in_the_ball_and_in_the_bounds(make, x, slope, epsilon, seed):
    """The loss turns NaN elsewhere, and a NaN that was met is reported."""
    x_adv, info = run_inside(make)(jax.random.key(seed), x, slope, epsilon)
    assert norm(make, np.float64(x_adv) - x) <= epsilon + 1e-6
    assert np.all((x_adv >= 0) & (x_adv <= 1))
    assert np.isfinite(info.loss) and info.loss >= info.first_loss
    assert x_adv.dtype == info.loss.dtype == np.float32


_RUN_INSIDE = {}


def run_inside(make):
    def run(key, x, slope, epsilon):
        threat = make(epsilon)

        def loss_fn(point):
            left = (threat.norm(point - x) > epsilon + 1e-6) | jnp.any((point < 0) | (point > 1))
            return jnp.sum(slope * jnp.sin(5.0 * point)) + jnp.where(left, jnp.nan, 0.0)

        return attacks.apgd(key, loss_fn, x, threat, num_steps=12, num_restarts=2)

    return _RUN_INSIDE.setdefault(make, jax.jit(run))


def test_the_best_of_the_restarts_is_returned(key):
    """On a flat slope a run stays where it began; the highest of 4 uniform points is .6 in mean."""

    def attack(key):
        settings = dict(num_steps=3, num_restarts=4, bounds=WIDE)
        return attacks.apgd(
            key, lambda x: jax.lax.stop_gradient(x[0]), jnp.zeros(1), threats.linf(1.0), **settings
        )

    points, info = jax.jit(jax.vmap(attack))(jax.random.split(key, 1000))
    assert abs(np.mean(points) - 0.6) < 0.04
    np.testing.assert_array_equal(info.loss, points[:, 0])
    np.testing.assert_array_equal(info.first_loss, info.loss)
    np.testing.assert_array_equal(info.num_zero_gradients, 3 * 4)


@pytest.mark.parametrize("make", BOTH)
def test_a_batch_is_a_vmap_of_single_attacks_in_and_out_of_jit(make, key):
    """In double precision: a rounded loss may pass or fail a checkpoint and halve the step."""
    with jax.enable_x64(True):
        xs = np.random.default_rng(1).uniform(size=(4, 3))
        tops = np.array([0.1, 0.4, 0.6, 0.95])
        keys = jax.random.split(key, 4)

        def attack(key, x, top):
            return attacks.apgd(key, peak_at(top), x, make(0.2), num_steps=9, num_restarts=2)

        batch, compiled = jax.jit(jax.vmap(attack))(keys, xs, tops), jax.jit(attack)
        # Out of it in one norm: op by op there is nothing that knows of the other.
        first = attack if make is threats.linf else compiled
        for k, one in enumerate([first, compiled, compiled, compiled]):
            answer = one(keys[k], xs[k], tops[k])
            for got, want in zip(jax.tree.leaves(batch), jax.tree.leaves(answer), strict=True):
                np.testing.assert_allclose(got[k], want, rtol=1e-6, atol=1e-9)


def test_a_nan_loss_is_reported_with_its_point(key):
    def loss_fn(x):
        return jnp.where(x[0] > 0.65, jnp.nan, x[0])

    x, settings = np.float32([0.5]), dict(num_steps=9, num_restarts=3)
    x_adv, info = apgd(key, loss_fn, x, threats.linf(0.4), **settings)
    assert np.isnan(info.loss) and 0.65 < x_adv <= 0.9


@pytest.mark.parametrize("make", BOTH)
def test_a_nan_in_the_gradient_stops_only_its_own_coordinate(make, key):
    def loss_fn(x):  # the root's derivative at 0.5 is 0 * inf
        return 2.0 * x[0] - x[2] + 0.0 * jnp.sqrt(x[1] - 0.5)

    threat = with_parts(make(0.2), sample=at_x)
    x = np.full(3, 0.5, np.float32)
    x_adv, info = apgd(key, loss_fn, x, threat, num_steps=3)
    gain = 0.2 * (3.0 if make is threats.linf else np.sqrt(5.0))
    np.testing.assert_allclose(info.loss, 0.5 + gain, rtol=1e-5)
    np.testing.assert_allclose(x_adv[1], 0.5)


def test_the_radius_may_be_traced(key):
    attack = jax.jit(
        lambda epsilon: attacks.apgd(key, linear, X, threats.linf(epsilon), num_steps=9)[0]
    )
    np.testing.assert_allclose(attack(0.2), np.clip(X + 0.2 * np.sign(SLOPE), 0, 1), atol=1e-6)


def test_only_the_right_target_leads_over_the_border(key):
    """Three classes along one line: class 1 lies too far away, class 2 in reach on the other side.

    The margin falls in the direction of class 1, where untargeted ascent ends without success.
    """

    def logits_fn(x):
        return jnp.stack([0.0 * x[0], 4.0 * x[0] - 1.25, 2.0 * (jnp.abs(x[0]) - x[0]) - 0.9])

    threat = with_parts(threats.linf(0.3), sample=at_x)
    x, settings = np.float32([0.1]), dict(num_steps=10, bounds=(-1.0, 1.0))

    @jax.jit
    def attack():
        targets = attacks.likeliest_wrong(logits_fn(x), 0, 2)

        def loss_fn(x, target):
            return logits_fn(x)[target] - logits_fn(x)[0]

        return targets, *attacks.apgd_targeted(key, loss_fn, x, targets, threat, **settings)

    targets, x_adv, info = attack()
    np.testing.assert_array_equal(targets, [1, 2])
    np.testing.assert_allclose(x_adv, [0.4], rtol=1e-6)
    np.testing.assert_allclose(info.loss, 0.35, rtol=1e-5)


def test_every_restart_of_every_target_has_a_start_of_its_own(key):
    """On a flat slope the highest of 3 targets' 2 uniform points is 5/7 in mean."""

    def attack(key):
        return attacks.apgd_targeted(
            key,
            lambda x, target: jax.lax.stop_gradient(x[0]) + 0.0 * target,
            jnp.zeros(1),
            jnp.arange(3),
            threats.linf(1.0),
            num_steps=1,
            num_restarts=2,
            bounds=WIDE,
        )

    points, info = jax.jit(jax.vmap(attack))(jax.random.split(key, 1000))
    assert abs(np.mean(points) - 5 / 7) < 0.04
    np.testing.assert_array_equal(info.num_zero_gradients, 6)


@functools.partial(jax.jit, static_argnums=2)
def likeliest_wrong(logits, label, num_targets):
    return attacks.likeliest_wrong(logits, label, num_targets)


def test_a_masked_class_is_no_target_and_the_likeliest_come_again_in_its_place():
    logits = np.float32([0.0, -np.inf, 3.0, 1.0, np.nan])
    np.testing.assert_array_equal(likeliest_wrong(logits, 0, 4), [2, 3, 2, 3])
    np.testing.assert_array_equal(likeliest_wrong(logits, 2, 1), [3])
    labels = np.array([2, 3])
    batch = jax.vmap(lambda label: likeliest_wrong(logits, label, 3))(labels)
    np.testing.assert_array_equal(batch, [[3, 0, 3], [2, 0, 2]])
    none = np.float32([0.0, -np.inf, -np.inf])
    np.testing.assert_array_equal(np.sort(likeliest_wrong(none, 0, 2)), [1, 2])


def test_the_likeliest_wrong_classes_come_best_first_without_the_label():
    logits = np.float32([0.3, 2.0, -np.inf, 1.2])
    np.testing.assert_array_equal(likeliest_wrong(logits, 1, 3), [3, 0, 3])
    np.testing.assert_array_equal(likeliest_wrong(logits, 0, 2), [1, 3])
    np.testing.assert_array_equal(likeliest_wrong(logits, 2, 1), [1])
    labels = np.array([0, 1])
    batch = jax.vmap(lambda label: likeliest_wrong(logits, label, 2))(labels)
    np.testing.assert_array_equal(batch, [[1, 3], [3, 0]])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be a whole number of at least 1, got 0"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be .* low < high, got \(1.0, 0.0\)"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting, message, key):
    with pytest.raises(ValueError, match=message):
        attacks.apgd(key, linear, X, threats.linf(0.1), **setting)
    with pytest.raises(ValueError, match=message):
        attacks.apgd_targeted(
            key, lambda x, _: linear(x), X, np.arange(2), threats.linf(0.1), **setting
        )


def test_targets_that_make_no_sense_are_refused_by_name(key):
    with pytest.raises(ValueError, match="targets must have 1 axes, none empty, got \\[0\\]"):
        attacks.apgd_targeted(key, lambda x, _: linear(x), X, np.arange(0), threats.linf(0.1))
    with pytest.raises(ValueError, match="num_targets must be a whole number of at least 1, got 0"):
        attacks.likeliest_wrong(np.zeros(3), 0, 0)
    with pytest.raises(
        ValueError, match="num_targets must be below the number of classes 3, got 3"
    ):
        attacks.likeliest_wrong(np.zeros(3), 0, 3)
