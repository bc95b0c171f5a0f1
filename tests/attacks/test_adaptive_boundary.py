"""FAB against boundaries whose nearest point is known, and its projection against SciPy's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, mixture, threats
from mixjax.attacks.hyperplanes import nearest_lower
from tests import linear_game

SIZE = 7
ORDERS = {"linf": np.inf, "l2": 2}
SOLVE = {"linf": linear_game.smallest_linf, "l2": linear_game.smallest_l2}
WHOLE = np.ones(1, np.float32)


def problems(seed, num, share):
    """Points at and inside bounds per feature, slopes of any size, falls short of the largest."""
    random = np.random.default_rng(seed)
    low, high = np.float32([-1, 0, 0, 0, -2, 0, 3]), np.float32([1, 1, 1, 0.5, 2, 9, 4])
    x = low + (high - low) * random.choice([0, 1, 0.3, 0.8, 0.5], size=(num, SIZE))
    slopes = random.normal(size=(num, SIZE)) * 10.0 ** random.integers(-3, 3, size=(num, 1))
    slopes[::5, 2] = 0.0
    falls = np.sum(slopes * (x - np.where(slopes > 0, low, high)), axis=1)
    return low, high, np.float32(x), np.float32(slopes), np.float32(share * falls)


@functools.cache
def projected(norm):
    threat = threats.BY_NAME[norm](1.0)

    def one(low, high, x, slope, fall):
        return nearest_lower(x, slope, fall, (low, high), threat.steepest(slope))

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0)))


@pytest.mark.parametrize("norm", ORDERS)
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_the_projection_on_a_hyperplane_in_a_box_is_that_of_a_solver(norm, share):
    low, high, x, slopes, falls = problems(int(100 * share), 40, share)
    found = np.float64(projected(norm)(low, high, x, slopes, falls))
    assert np.all((found >= low) & (found <= high))
    moved = found - x
    np.testing.assert_allclose(-np.sum(slopes * moved, 1), falls, rtol=1e-4, atol=1e-9)
    for n, (slope, fall) in enumerate(zip(np.float64(slopes), np.float64(falls), strict=True)):
        size = np.abs(slope).max()
        least = SOLVE[norm](
            slope[None] / size, -fall[None] / size, *np.float64((low - x[n], high - x[n]))
        )
        np.testing.assert_allclose(np.linalg.norm(moved[n], ORDERS[norm]), least, rtol=1e-4)


@pytest.mark.parametrize("norm", ORDERS)
def test_where_the_hyperplane_is_out_of_reach_the_projection_is_the_lowest_corner(norm):
    low, high, x, slopes, falls = problems(1, 40, 1.5)
    corner = np.where(slopes > 0, low, np.where(slopes < 0, high, x))
    np.testing.assert_allclose(projected(norm)(low, high, x, slopes, falls), corner, atol=1e-6)


@pytest.mark.parametrize("norm", ORDERS)
def test_without_bounds_the_projection_has_a_closed_form_and_without_a_fall_stays(norm):
    _, _, x, slopes, falls = problems(2, 40, 0.7)
    threat, endless = threats.BY_NAME[norm](1.0), np.full(SIZE, np.inf, np.float32)
    found = projected(norm)(-endless, endless, x, slopes, falls)
    directions, sizes = jax.jit(jax.vmap(lambda s: (threat.steepest(s), threat.dual_norm(s))))(
        slopes
    )
    lengths = falls / np.asarray(sizes)
    np.testing.assert_allclose(
        found, x - lengths[:, None] * np.asarray(directions), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(projected(norm)(-endless, endless, x, slopes, 0 * falls), x)


# On linear networks.

NUM_MEMBERS, NUM_CLASSES = 3, 4
GAME = linear_game.random(4, 1, num_classes=NUM_CLASSES, num_examples=24)
MANY = linear_game.random(2, NUM_MEMBERS, num_classes=3, num_examples=24)


@functools.cache
def compiled(attack, norm, **settings):
    """One program for every game and every radius."""

    @jax.jit
    def run_all(key, slopes, offsets, weights, x, labels, epsilon):
        def one(key, x, label):
            logits_fn = linear_game.LinearGame(slopes, offsets, weights, x, label, (0, 1)).logits
            threat = threats.BY_NAME[norm](epsilon)
            if attack is attacks.fab:
                return attack(key, logits_fn, weights, x, label, threat, **settings)
            log_probs = mixture.log_probs(logits_fn(x), weights)
            targets = attacks.likeliest_wrong(log_probs, label, len(log_probs) - 1)
            return attack(key, logits_fn, weights, x, label, targets, threat, **settings)

        return jax.vmap(one)(jax.random.split(key, len(x)), x, labels)

    return run_all


def run(attack, norm, key, game, epsilon):
    """On a game with copies of its first member, of no weight, and masked classes."""
    num_members, num_classes, _ = game.slopes.shape
    members = [*range(num_members), *[0] * (NUM_MEMBERS - num_members)]
    classes = [(0, 0), (0, NUM_CLASSES - num_classes)]
    slopes = np.pad(game.slopes[members], [*classes, (0, 0)])
    offsets = np.pad(game.offsets[members], classes, constant_values=-np.inf)
    weights = np.float32([*game.weights, *[0.0] * (NUM_MEMBERS - num_members)])
    arguments = slopes, offsets, weights, game.x, game.labels
    return jax.tree.map(np.asarray, compiled(attack, norm)(key, *arguments, epsilon))


def norms(points, x, norm):
    return np.linalg.norm(np.float64(points) - np.float64(x), ORDERS[norm], axis=-1)


@pytest.mark.parametrize("attack", [attacks.fab, attacks.fab_targeted])
@pytest.mark.parametrize("norm", ORDERS)
def test_on_a_linear_network_in_a_box_it_finds_the_least_distance(attack, norm, key):
    least = np.array([GAME._smallest_norm(n, np.array([0]), ORDERS[norm]) for n in range(24)])
    assert np.all(np.isfinite(least)) and least.max() > 1.5 * least.min()
    x_adv, info = run(attack, norm, key, GAME, 10.0)
    assert np.all(info.found) and np.all(info.accuracy == 0)
    assert np.all((x_adv >= 0) & (x_adv <= 1))
    np.testing.assert_allclose(norms(x_adv, GAME.x, norm), info.norm, rtol=1e-4)
    ratios = info.norm / least
    assert np.all(ratios >= 1 - 1e-4) and np.median(ratios) <= 1.01
    # Untargeted it may walk along the boundary of a class that is nearest only without the box.
    assert ratios.max() <= (1.01 if attack is attacks.fab_targeted else 1.2)


@pytest.mark.parametrize("norm", ORDERS)
def test_only_points_within_the_radius_are_returned_and_the_norm_does_not_depend_on_it(norm, key):
    _, far = run(attacks.fab_targeted, norm, key, GAME, 10.0)
    epsilon = float(np.median(far.norm)) * 1.001
    x_adv, near = run(attacks.fab_targeted, norm, key, GAME, epsilon)
    chex.assert_trees_all_close(near.norm, far.norm)
    within = np.asarray(far.norm <= epsilon)
    assert 0 < within.sum() < len(within)
    np.testing.assert_array_equal(near.accuracy, ~within)
    np.testing.assert_array_equal(x_adv[~within], GAME.x[~within])
    assert norms(x_adv, GAME.x, norm).max() <= epsilon * (1 + 1e-6)


@pytest.mark.parametrize("attack", [attacks.fab, attacks.fab_targeted])
def test_on_a_mixture_every_point_is_scored_by_the_exact_expected_accuracy(attack, key):
    """The mean of the probabilities steers; who is right at the point returned is what counts."""
    epsilon = 0.4
    x_adv, info = run(attack, "l2", key, MANY, epsilon)
    left = 1 - MANY.risk(x_adv)
    np.testing.assert_allclose(info.accuracy, left, atol=1e-6)
    np.testing.assert_allclose(info.first_accuracy, 1 - MANY.risk(MANY.x), atol=1e-6)
    assert np.all(info.accuracy <= info.first_accuracy)
    best = 1 - MANY.optimal_risk(2, epsilon)
    assert best.mean() <= left.mean() < info.first_accuracy.mean() - 0.1
    assert len(np.unique(left.round(4))) > 2  # some members err and others do not


def test_a_step_is_the_one_that_is_printed(key):
    """Three steps of one run, written out with projections that SciPy finds by bisection."""
    slope, offset = np.array([0.9, -0.2, 1.4]), -1.31
    x, bias, overshoot, backward = np.array([0.2, 0.5, 0.1]), 0.3, 1.4, 0.8
    bounds = (0.0, 0.6)

    def value(point):
        return slope @ point + 0.5 * point[0] ** 2 + offset  # positive: an error

    def project(origin, gradient, height):
        low, high = 0.0, 9.0
        for _ in range(60):
            t = (low + high) / 2
            moved = np.clip(origin - t * np.sign(height) * gradient, *bounds)
            enough = abs(gradient @ (moved - origin)) >= abs(height)
            low, high = (low, t) if enough else (t, high)
        return moved - origin

    point, across = x, []
    for _ in range(3):
        gradient, height = slope + point * [1.0, 0.0, 0.0], value(point)
        here = project(point, gradient, height)
        there = project(x, gradient, height + gradient @ (x - point))
        lengths = np.linalg.norm(here), np.linalg.norm(there)
        share = min(lengths[0] / sum(lengths), bias)
        new = (1 - share) * (point + overshoot * here) + share * (x + overshoot * there)
        point = np.clip(new, *bounds)
        if value(point) > 0:
            across.append(point)
            point = x + backward * (point - x)
    assert len(across) > 1 and share < bias
    best = min(across, key=lambda each: np.linalg.norm(each - x))

    def logits_fn(x):
        error = jnp.sum(np.float32(slope) * x) + 0.5 * x[0] ** 2 + offset
        return jnp.stack([0.0 * error, error])[None]

    settings = dict(num_steps=3, largest_bias=bias, overshoot=overshoot, bounds=bounds)
    attack = functools.partial(attacks.fab, backward_step=backward, **settings)
    arguments = key, WHOLE, jnp.float32(x)
    x_adv, info = jax.jit(lambda *a: attack(a[0], logits_fn, *a[1:], 0, threats.l2(1.0)))(
        *arguments
    )
    np.testing.assert_allclose(x_adv, best, atol=1e-5)
    np.testing.assert_allclose(info.norm, np.linalg.norm(best - x), rtol=1e-4)


def two_sided(x):
    """Errors .2 to the left and, hidden by a hill between, .1 to the right of .5."""
    hill = 0.3 * jnp.exp(-(((x[0] - 0.55) / 0.02) ** 2))
    error = jnp.maximum(0.3 - x[0], jnp.minimum(x[0] - 0.6, 0.0) * 4.0) - hill
    error = jnp.where(x[0] > 0.6, 1.0, error)
    return jnp.stack([0.0 * error, error])[None]


def test_the_first_run_starts_at_the_input_and_the_others_at_random_near_it():
    """From .5 the slope leads to the left, from right of the hill to the nearer error."""
    x, threat = np.float32([0.5]), threats.l2(0.3)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.vmap, in_axes=(0, None))
    def norm(key, num_restarts):
        settings = dict(num_steps=9, num_restarts=num_restarts)
        return attacks.fab(key, two_sided, WHOLE, x, 0, threat, **settings)[1].norm

    keys = jax.random.split(jax.random.key(0), 8)
    once, more = norm(keys, 1), norm(keys, 4)
    assert np.ptp(once) == 0
    assert np.all(more <= once) and np.ptp(more) > 0


def test_every_target_is_approached_and_the_nearest_counts(key):
    """Class 1 begins .1 away along the first coordinate, class 2 .4 along the second."""

    def logits_fn(x):
        return jnp.stack([0.0 * x[0], x[0] - 0.6, 2.0 * x[1] - 1.8])[None]

    x, threat = np.float32([0.5, 0.5]), threats.l2(1.0)

    @jax.jit
    def towards(*targets):
        targets = jnp.array(targets)
        return attacks.fab_targeted(key, logits_fn, WHOLE, x, 0, targets, threat)

    np.testing.assert_allclose(towards(1, 1)[0], [0.6, 0.5], atol=2e-3)
    np.testing.assert_allclose(towards(2, 2)[0], [0.5, 0.9], atol=4e-3)
    np.testing.assert_allclose(towards(2, 1)[1].norm, 0.1, rtol=0.01)


def test_a_network_without_a_gradient_is_told_of(key):
    def flat(x):
        return jnp.stack([1.0 + 0.0 * x[0], 0.0 * x[0], -jnp.inf + 0.0 * x[0]])[None]

    def masked(x):  # a slope, and none towards the class that is never answered
        return jnp.stack([1.0 + x[0], 0.5 * x[0], jnp.where(x[0] > 9, x[0], -jnp.inf)])[None]

    x, threat = np.float32([0.5, 0.5]), threats.linf(0.2)

    @jax.jit
    def attack():
        targets = jnp.array([1, 2])
        return (
            attacks.fab(key, flat, WHOLE, x, 0, threat, num_steps=3),
            attacks.fab_targeted(key, flat, WHOLE, x, 0, targets, threat, num_steps=3),
            attacks.fab_targeted(key, masked, WHOLE, x, 0, targets[1:], threat, num_steps=3),
        )

    for (x_adv, info), num_runs in zip(attack(), (1, 2, 1), strict=True):
        assert info.num_zero_gradients == 3 * num_runs
        assert not info.found and info.accuracy == 1 and np.isinf(info.norm)
        np.testing.assert_array_equal(x_adv, x)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be .* got 0"),
        ({"largest_bias": 1.0}, r"largest_bias must be in \[0, 1\), got 1.0"),
        ({"overshoot": 0.0}, "overshoot must be positive, got 0.0"),
        ({"backward_step": 1.5}, r"backward_step must lie in \[0.0, 1.0\], got 1.5"),
        ({"targets": np.zeros(0, np.int32)}, "targets must have 1 axes, none empty"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting, message, key):
    x, targets = np.float32([0.5, 0.5]), setting.pop("targets", np.array([1]))
    arguments = (key, two_sided, WHOLE, x, 0)
    with pytest.raises(ValueError, match=message):
        attacks.fab_targeted(*arguments, targets, threats.l2(0.1), **setting)
    if setting:
        with pytest.raises(ValueError, match=message):
            attacks.fab(*arguments, threats.l2(0.1), **setting)


def test_a_norm_whose_nearest_points_are_not_known_is_refused(key):
    l2 = threats.l2(0.1).geometry
    own = threats.Threat(0.1, threats.Geometry("l4", *(getattr(l2, n) for n in GEOMETRY)))
    with pytest.raises(ValueError, match=r"threat must be linf or l2 for FAB, got l4"):
        attacks.fab(key, two_sided, WHOLE, jnp.array([0.5, 0.5]), 0, own)


GEOMETRY = ("sample", "steepest", "project", "norm", "dual_norm")
