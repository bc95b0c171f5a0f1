"""Carlini and Wagner's attack against boundaries whose nearest point is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, losses
from tests import linear_game

SIZE = 6
INSIDE = np.array([0.5, 0.4, 0.6, 0.45, 0.55, 0.7], np.float32)
AT_THE_BOUNDS = np.array([0.0, 1.0, 0.5, 1.0, 0.02, 0.0], np.float32)


def problem(seed):
    """A slope of some length, a point inside or at the bounds of [0, 1]."""
    random = np.random.default_rng(seed)
    slope = random.normal(size=SIZE) * [0.1, 1.0, 10.0][seed % 3]
    return slope.astype(np.float32), [INSIDE, AT_THE_BOUNDS][seed % 2]


def nearest(slope, margin, x, bounds=(0.0, 1.0)):
    """Distance from `x` to where a linear margin vanishes within the bounds, by bisection."""
    slope, x = np.float64(slope), np.float64(x)

    def move(t):
        return np.clip(x - t * slope, *bounds) - x

    if margin + slope @ move(1e6) > 0:
        return np.inf
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if margin + slope @ move(middle) > 0 else (low, middle)
    return np.linalg.norm(move(high))


def linear_margin(slope, margin, x):
    return lambda point: margin + jnp.sum(slope * (point - x))


@functools.cache
def run(bounds=(0.0, 1.0), **settings):
    """The attack on a batch of linear margins, compiled once for each setting."""

    def attack(slope, margin, x):
        return attacks.carlini_wagner(linear_margin(slope, margin, x), x, bounds=bounds, **settings)

    return jax.jit(jax.vmap(attack))


def batch(num, fall):
    """Slopes, margins, points; margins are that share of what the best corner takes off."""
    slopes, xs = zip(*map(problem, range(num)), strict=True)
    corners = [np.where(slope > 0, 0.0, 1.0) - x for slope, x in zip(slopes, xs, strict=True)]
    falls = [-slope @ corner for slope, corner in zip(slopes, corners, strict=True)]
    return np.stack(slopes), np.float32(fall) * np.float32(falls), np.stack(xs)


def norms_of(x_adv, x):
    return np.linalg.norm(np.float64(x_adv) - np.float64(x), axis=-1)


@pytest.mark.parametrize("fall", [0.01, 0.15, 0.6])
def test_on_a_linear_margin_the_norm_is_within_one_percent_of_the_least(fall):
    """A boundary nearer than one step of Adam, one well inside, one near the corner."""
    slopes, margins, xs = batch(24, fall)
    x_adv, info = run()(slopes, margins, xs)
    least = np.array([nearest(*one) for one in zip(slopes, margins, xs, strict=True)])
    np.testing.assert_allclose(info.norm, norms_of(x_adv, xs), rtol=1e-5)
    ratios = info.norm / least
    assert np.all((ratios > 1 - 1e-4) & (ratios <= 1.01)), ratios
    assert np.all(info.found) and np.all((x_adv >= 0) & (x_adv <= 1))
    assert np.all(margins + np.sum(slopes * (np.asarray(x_adv) - xs), 1) <= 1e-6 * abs(margins))


def test_well_inside_the_box_the_least_norm_is_the_margin_over_that_of_the_slope():
    slope, x = problem(0)
    _, info = attacks.carlini_wagner(linear_margin(slope, 0.02, x), x)
    np.testing.assert_allclose(info.norm, 0.02 / np.linalg.norm(slope), rtol=0.01)


def test_the_attack_of_the_paper_is_as_near_where_the_boundary_is_many_of_its_steps_away():
    slopes, margins, xs = (array[::2] for array in batch(24, 0.6))
    _, info = run(num_closing_steps=0)(slopes, margins, xs)
    least = np.array([nearest(*one) for one in zip(slopes, margins, xs, strict=True)])
    assert np.median(info.norm / least) < 1.05
    assert np.all(info.norm / least > 1 - 1e-4)


def test_it_succeeds_exactly_where_the_best_corner_fools():
    for fall, attackable in [(0.99, True), (1.01, False)]:
        slopes, margins, xs = batch(24, fall)
        x_adv, info = run()(slopes, margins, xs)
        np.testing.assert_array_equal(info.found, attackable)
        if not attackable:
            np.testing.assert_array_equal(x_adv, xs)
            assert np.all(np.isinf(info.norm)) and np.all(np.isinf(info.const))


def test_an_example_already_fooled_stays_as_it_is():
    """On the boundary itself too: a tie is an error."""
    slopes, _, xs = batch(4, 0.1)
    for margin in (0.0, -0.3):
        x_adv, info = run()(slopes, np.full(4, margin, np.float32), xs)
        np.testing.assert_array_equal(x_adv, xs)
        assert np.all(info.found) and np.all(info.norm == 0)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (-3.0, 5.0)])
def test_an_input_on_the_bounds_gives_finite_points_within_them(bounds):
    low, high = bounds
    xs = np.array([[low] * SIZE, [high] * SIZE, [low, high] * (SIZE // 2)], np.float32)
    slopes = np.array([[-1.0], [1.0], [2.0]]) * np.arange(1, SIZE + 1)
    x_adv, info = run(bounds=bounds)(
        slopes.astype(np.float32), np.array([3.0, 3.0, 6.0], np.float32), xs
    )
    assert np.all(info.found) and np.all(np.isfinite(x_adv))
    assert np.all((x_adv >= low) & (x_adv <= high))
    least = [nearest(*one, bounds) for one in zip(slopes, (3.0, 3.0, 6.0), xs, strict=True)]
    np.testing.assert_allclose(info.norm, least, rtol=0.01)


CENTER = np.array([0.9, 0.3])
START = np.array([0.2, 0.6])


def curved_margin(point):
    """Negative within an ellipse and nowhere else."""
    offset = point - CENTER
    return offset[0] ** 2 + 3.0 * offset[1] ** 2 - 0.15


def written_out(num_steps, num_constants, rate, const, every=None):
    """The algorithm in NumPy: best point, its norm, and the smallest constant that fooled.

    `every` so many steps it looks whether to go on, as the published program does each tenth.
    """
    every = every or max(np.ceil(num_steps / 10), 25)
    variables_of_x = np.arctanh(0.999999 * (2 * START - 1))
    best, best_norm, lower, upper = START, np.inf, 0.0, np.inf
    for _ in range(num_constants):
        variables, first, second = variables_of_x, 0.0, 0.0
        fooled, checked = False, np.inf
        for i in range(num_steps):
            point = (np.tanh(variables) + 1) / 2
            margin, offset = curved_margin(point), point - CENTER
            norm = np.linalg.norm(point - START)
            if margin <= 0:
                fooled = True
                if norm < best_norm:
                    best, best_norm = point, norm
            loss = norm**2 + const * max(margin, 0.0)
            if i % every == 0:
                if loss > 0.9999 * checked:
                    break
                checked = loss
            slope = 2 * (point - START) + const * (margin > 0) * np.array([2.0, 6.0]) * offset
            gradient = slope * (1 - np.tanh(variables) ** 2) / 2  # by the variables
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            hats = first / (1 - 0.9 ** (i + 1)), second / (1 - 0.999 ** (i + 1))
            variables = variables - rate * hats[0] / (np.sqrt(hats[1]) + 1e-8)
        lower, upper = (lower, const) if fooled else (const, upper)
        const = 10 * const if np.isinf(upper) else (lower + upper) / 2
    return best, best_norm, upper


def curved(**settings):
    x = START.astype(np.float32)
    attack = functools.partial(attacks.carlini_wagner, curved_margin, **settings)
    return jax.jit(attack)(x)


@pytest.mark.parametrize(("num_steps", "rate"), [(90, 0.1), (400, 0.1)])
@pytest.mark.parametrize("published", [True, False])
def test_without_closing_steps_it_is_the_algorithm_written_out(num_steps, rate, published):
    """Searches that stop early end a little farther off here: by more than the tolerance."""
    every = num_steps // 10 if published else None
    want, norm, const = written_out(num_steps, 7, rate, 1e-2, every)
    assert written_out(num_steps, 7, rate, 1e-2, every=num_steps)[1] < 0.998 * norm
    if num_steps == 90:
        assert (
            abs(written_out(90, 7, rate, 1e-2, 9)[1] / written_out(90, 7, rate, 1e-2)[1] - 1)
            > 0.002
        )
    x_adv, info = curved(
        num_steps=num_steps,
        num_binary_search_steps=7,
        num_closing_steps=0,
        steps_between_checks=every,
        learning_rate=rate,
        initial_const=1e-2,
    )
    np.testing.assert_allclose(info.norm, norm, rtol=1e-3)
    np.testing.assert_allclose(x_adv, want, atol=1e-3)
    np.testing.assert_allclose(info.const, const, rtol=1e-5)


def test_closing_steps_come_nearer_and_find_the_nearest_point_of_a_curved_boundary():
    """Few steps of Adam: alone they stay 2 % away."""
    angle = np.linspace(0.0, 2 * np.pi, 100_000)
    ellipse = CENTER + np.sqrt(0.15) * np.stack([np.cos(angle), np.sin(angle) / np.sqrt(3)], 1)
    ellipse = ellipse[np.all((ellipse >= 0) & (ellipse <= 1), axis=1)]
    least = norms_of(ellipse, START).min()
    alone, closed = (curved(num_steps=20, num_closing_steps=num)[1].norm for num in (0, 10))
    assert alone > 1.02 * least
    assert least * (1 - 1e-4) < closed < 1.01 * least


def test_the_bounds_are_the_unit_of_everything_but_the_learning_rate():
    """From [0, 1] to [-1, 1] lengths double, and constants, being squares, are four times."""
    slopes, margins, xs = batch(6, 0.3)
    x_adv, info = run()(slopes, margins, xs)
    wide_x_adv, wide = run(bounds=(-1.0, 1.0), initial_const=4e-3)(slopes / 2, margins, 2 * xs - 1)
    np.testing.assert_allclose(wide.norm, 2 * info.norm, rtol=1e-4)
    np.testing.assert_allclose(wide_x_adv, 2 * x_adv - 1, atol=1e-3)
    np.testing.assert_allclose(wide.const, 4 * info.const, rtol=0.1)


def test_a_batch_is_a_vmap_of_single_attacks_in_and_out_of_jit():
    """Each stops at a step of its own; the first finds nothing."""
    slopes, margins, xs = batch(4, 0.3)
    margins[0] *= 10
    x_adv, info = run()(slopes, margins, xs)
    assert not info.found[0] and np.all(info.found[1:])
    for k in range(4):
        one, one_info = attacks.carlini_wagner(linear_margin(slopes[k], margins[k], xs[k]), xs[k])
        np.testing.assert_allclose(x_adv[k], one, atol=1e-5)
        for got, want in zip(info, one_info, strict=True):
            np.testing.assert_allclose(got[k], want, rtol=1e-4)


WEIGHTS = np.array([0.7, 0.3], np.float32)


def logits_fn(x):
    """Two members, two classes; the lighter one is steeper and fooled from another side."""
    margins = jnp.stack([0.4 - x[0] + 0.2 * x[1], 2.0 - 3.0 * x[1] - x[0]])
    return jnp.stack([margins, jnp.zeros(2)], axis=1)


def mean_probability_margin(x):
    return losses.mean_probability_margin(logits_fn(x), 0, WEIGHTS)


def expected_margin(x):
    return losses.expected_margin(logits_fn(x), 0, WEIGHTS)


def margin_of_all(x):
    return losses.accuracy_margin(logits_fn(x), 0, WEIGHTS)


def margin_of_half(x):
    return losses.accuracy_margin(logits_fn(x), 0, WEIGHTS, 0.5)


@pytest.mark.parametrize(
    "margin_fn", [mean_probability_margin, expected_margin, margin_of_all, margin_of_half]
)
def test_any_margin_of_a_mixture_is_attacked_up_to_its_nearest_point(margin_fn):
    x = jnp.array([0.1, 0.2])
    x_adv, info = jax.jit(lambda x: attacks.carlini_wagner(margin_fn, x))(x)
    axis = np.linspace(0.0, 1.0, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    fooled = grid[np.asarray(jax.vmap(margin_fn)(grid)) <= 0]
    least = norms_of(fooled, x).min()
    assert margin_fn(x) > 0.3 and margin_fn(x_adv) <= 0
    np.testing.assert_allclose(info.norm, least, rtol=0.015)


def test_the_attack_of_pinot_lowers_the_expected_loss_and_judges_by_the_mean_probability():
    """The nearest point of the judge's is nearer than that where the expected loss is 0."""
    x = jnp.array([0.1, 0.2])

    def attack(fooled_fn):
        return jax.jit(
            lambda x: attacks.carlini_wagner(
                lambda x: losses.expected_hinge(logits_fn(x), 0, WEIGHTS), x, fooled_fn=fooled_fn
            )
        )(x)

    def fooled_fn(x):
        return mean_probability_margin(x) <= 0

    x_adv, info = attack(fooled_fn)
    all_x_adv, all_info = attack(None)
    assert fooled_fn(x_adv) and not margin_of_all(x_adv) <= 0
    assert margin_of_all(all_x_adv) <= 0 and info.norm < all_info.norm
    least = jax.jit(lambda x: attacks.carlini_wagner(mean_probability_margin, x))(x)[1].norm
    assert least * 0.99 <= info.norm <= 1.2 * least


def test_what_fools_is_told_apart_from_what_is_lowered():
    """A margin that knows nothing of the boundary leads across it; on it the point is kept."""

    def fooled_fn(x):
        return x[0] >= 0.6

    x = jnp.array([0.2, 0.5])
    x_adv, info = jax.jit(
        lambda x: attacks.carlini_wagner(lambda x: 5.0 - x[0], x, fooled_fn=fooled_fn)
    )(x)
    assert info.found and fooled_fn(x_adv)
    np.testing.assert_allclose(info.norm, 0.4, rtol=0.02)
    _, info = attacks.carlini_wagner(lambda x: -1.0 - x[0], x, fooled_fn=lambda x: x[0] > 2.0)
    assert not info.found and np.isinf(info.norm)


@pytest.mark.parametrize("kind", ["steeper", "opposed"])
def test_the_accuracy_margins_leave_what_the_best_attack_leaves_of_a_linear_mixture(kind):
    """The margin of the mean probability leaves more than twice as much."""
    game = linear_game.two(0, kind, num_examples=40)
    epsilon, weights = 0.4, jnp.asarray(game.weights)
    margins = {
        "mean": losses.mean_probability_margin,
        "half": functools.partial(losses.accuracy_margin, share=0.5),
        "all": losses.accuracy_margin,
    }
    risks = {}
    for name, margin in margins.items():

        def attack(x, label, margin=margin):
            def margin_fn(x):
                return margin(jnp.asarray(game.logits(x)), label, weights)

            x_adv, info = attacks.carlini_wagner(margin_fn, x)
            return jnp.where(info.norm <= epsilon, x_adv, x)

        risks[name] = game.risk(jax.jit(jax.vmap(attack))(game.x, game.labels))
    best = 1 - game.optimal_risk(2, epsilon).mean()
    left = 1 - np.maximum(risks["half"], risks["all"]).mean()
    assert best - 1e-6 <= left <= best + 0.03
    assert 1 - risks["mean"].mean() > 2 * left


def test_beyond_a_radius_the_natural_example_is_kept_and_norms_give_the_accuracy():
    slopes, margins, xs = batch(8, 0.3)
    margins[1] *= 10
    x_adv, info = run()(slopes, margins, xs)
    epsilon = np.median(info.norm)
    kept = np.where(info.norm[:, None] <= epsilon, x_adv, xs)
    correct = margins + np.sum(slopes * (kept - xs), axis=1) > 0
    assert 0 < correct.mean() < 1 and correct[1]
    assert np.mean(info.norm > epsilon) == correct.mean()


def test_a_nan_counts_as_fooled_and_leaves_the_point_finite():
    def margin_fn(x):
        return jnp.where(x[0] > 0.6, jnp.nan, 1.0 - x[0])

    x_adv, info = jax.jit(lambda x: attacks.carlini_wagner(margin_fn, x))(jnp.array([0.5, 0.2]))
    assert info.found and 0.6 < x_adv[0] <= 1.0 and np.isfinite(info.norm)


@pytest.mark.parametrize(
    "margin", [losses.mean_probability_margin, losses.expected_margin, losses.accuracy_margin]
)
def test_infinitely_sure_members_are_no_nan_that_hides_who_is_right(margin):
    """`inf - inf` counted as fooled at `x` itself; the first error is .2 away."""

    def logits_fn(x):
        sure = jnp.array([jnp.where(x[0] < 0.7, jnp.inf, 0.7 - x[0]), 0.0, -jnp.inf])
        return jnp.stack([sure, sure])

    def margin_fn(x):
        return margin(logits_fn(x), 0, WEIGHTS)

    x = jnp.array([0.5, 0.2])
    x_adv, info = jax.jit(lambda x: attacks.carlini_wagner(margin_fn, x))(x)
    assert margin_fn(x) > 0
    assert x_adv[0] >= 0.7 if info.found else np.array_equal(x_adv, x)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e25])
def test_tiny_and_huge_margins_are_as_near_as_any(scale):
    x = jnp.asarray(INSIDE)
    margin_fn = linear_margin(scale * np.arange(-2.0, 4.0, dtype=np.float32), 0.5 * scale, x)
    _, info = jax.jit(lambda x: attacks.carlini_wagner(margin_fn, x))(x)
    np.testing.assert_allclose(info.norm, 0.5 / np.sqrt(19.0), rtol=0.01)


def test_learning_rate_and_constant_may_be_traced():
    attack = jax.jit(
        lambda rate, const: attacks.carlini_wagner(
            curved_margin, START.astype(np.float32), learning_rate=rate, initial_const=const
        )
    )
    assert attack(0.1, 1e-3)[1].norm < 0.42


def test_features_have_bounds_of_their_own_or_none():
    """A pixel, a feature without bounds, one with a lower bound alone, one far from 0."""
    low = jnp.array([0.0, -jnp.inf, 0.0, 100.0])
    high = jnp.array([1.0, jnp.inf, jnp.inf, 120.0])
    x = jnp.array([0.5, 30.0, 0.1, 101.0])
    slope = jnp.array([2.0, 1.0, 4.0, 0.3])  # the third soon meets its bound
    x_adv, info = jax.jit(
        lambda x: attacks.carlini_wagner(
            lambda z: 2.5 + jnp.sum(slope * (z - x)), x, bounds=(low, high)
        )
    )(x)
    # The first and the third meet their bounds, where they have taken off 1 and .4.
    step = (2.5 - 1.0 - 0.4) / (1.0 + 0.09)
    want = jnp.array([0.0, 30.0 - step, 0.0, 101.0 - 0.3 * step])
    assert info.found and np.all((x_adv >= low) & (x_adv <= high))
    np.testing.assert_allclose(x_adv, want, atol=0.02)
    np.testing.assert_allclose(info.norm, norms_of(want, x), rtol=0.01)


def test_without_any_bounds_the_least_norm_is_the_margin_over_that_of_the_slope():
    slope, _ = problem(0)
    x = 100 * slope
    attack = functools.partial(attacks.carlini_wagner, bounds=(-np.inf, np.inf))
    _, info = attack(linear_margin(slope, 0.3, x), jnp.asarray(x))
    np.testing.assert_allclose(info.norm, 0.3 / np.linalg.norm(slope), rtol=0.01)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("enable_x64", [False, True])
def test_inputs_of_any_type_under_64_bit_or_not_keep_their_type(dtype, enable_x64):
    with jax.enable_x64(enable_x64):
        x = jnp.asarray(INSIDE, dtype)
        slope = jnp.asarray([3.0, -2.0, 1.0, 0.5, -1.0, 2.0], dtype)

        def attack(x, rate):
            def margin_fn(point):
                return jnp.asarray(0.7, dtype) + jnp.sum(slope * (point - x))

            return attacks.carlini_wagner(margin_fn, x, learning_rate=rate)

        x_adv, info = jax.jit(attack)(x, jnp.asarray(0.1))
        assert x_adv.dtype == dtype and info.found
        least = 0.7 / np.linalg.norm(np.float32(slope))
        np.testing.assert_allclose(info.norm, least, rtol=0.01 + 2 * float(jnp.finfo(dtype).eps))


def test_under_64_bit_a_double_input_is_attacked_in_double_precision():
    with jax.enable_x64():
        x = jnp.full(3, 0.5) + 1e-12

        def margin_fn(point):
            return 1e-10 + jnp.sum(point - x)

        x_adv, info = jax.jit(lambda x: attacks.carlini_wagner(margin_fn, x))(x)
        assert x_adv.dtype == info.norm.dtype == jnp.float64
        np.testing.assert_allclose(info.norm, 1e-10 / np.sqrt(3), rtol=0.01)


def test_infinities_are_none_of_the_attack_s_own_making():
    """Only the norm of an example that nothing fools is infinite, as it is documented."""
    x = jnp.asarray(INSIDE)
    slope, _ = problem(0)
    with jax.debug_infs(), jax.debug_nans(), jax.enable_checks():
        for jit in (lambda f: f, jax.jit):
            attack = jit(lambda x: attacks.carlini_wagner(linear_margin(slope, 0.02, x), x))
            assert attack(x)[1].found


def test_a_flat_margin_at_its_boundary_and_infinite_ones_leave_finite_points():
    """There is neither a slope nor a fall to go by: 0 / 0."""
    x = jnp.asarray(INSIDE)
    beyond = 1e-3  # by so much of the first margin the closing steps aim below 0

    def steps(point):
        return jnp.where(point[0] < 0.4, -beyond, 1.0) + 0.0 * point[0]

    def walls(point):
        return jnp.where(point[0] < 0.4, -jnp.inf, jnp.inf)

    def slope_to_walls(point):
        return jnp.where(point[0] < 0.4, -jnp.inf, point[0])

    for margin_fn in (steps, walls, slope_to_walls):
        x_adv, info = jax.jit(lambda x, f=margin_fn: attacks.carlini_wagner(f, x))(x)
        assert np.all(np.isfinite(x_adv)) and np.all((x_adv >= 0) & (x_adv <= 1))
        assert info.found == (margin_fn is slope_to_walls)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_binary_search_steps": 0}, "num_binary_search_steps must be .* got 0"),
        ({"num_closing_steps": -1}, "num_closing_steps must be .* at least 0, got -1"),
        ({"steps_between_checks": 0}, "steps_between_checks must be .* got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"learning_rate": -0.1}, "learning_rate must be positive, got -0.1"),
        ({"initial_const": 0.0}, "initial_const must be positive, got 0.0"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be .* low < high, got \(1.0, 0.0\)"),
        ({"num_steps": 3.0}, "num_steps must be a whole number of at least 1, got 3.0: pass 3"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        attacks.carlini_wagner(curved_margin, START, **setting)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([-1.2, 2.1]), r"x must lie in \[0, 1\], got values from -1.2 to 2.1"),
        (np.array([0.2, np.nan]), "x must lie in .* got NaN"),
        (np.array([20, 255], np.uint8), "x must hold floating-point numbers, got uint8: .* 255"),
        (np.array([0.2, 0.3], ">f4"), "x must be in native byte order"),
    ],
)
def test_an_input_that_cannot_be_one_is_refused_in_one_line(x, message):
    with pytest.raises(ValueError, match=message):
        attacks.carlini_wagner(curved_margin, x)


def test_a_batch_without_vmap_and_an_answer_for_each_of_several_are_refused():
    xs = np.full((3, 2), 0.5, np.float32)
    message = r"margin_fn must return one number for one example, got shape \[3\]: make the batch"
    with pytest.raises(ValueError, match=message):
        attacks.carlini_wagner(jax.vmap(curved_margin), xs)
    with pytest.raises(ValueError, match="fooled_fn must return one number .*vmap"):
        attacks.carlini_wagner(curved_margin, xs[0], fooled_fn=lambda x: x > 0.5)
