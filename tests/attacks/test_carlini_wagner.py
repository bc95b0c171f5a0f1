"""Carlini and Wagner's attack against boundaries whose nearest point is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, losses
from tests import linear_game

SIZE, NUM = 6, 24
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
def compiled(**settings):
    """The attack on `NUM` linear margins; each feature's bounds and the constant are data."""

    def attack(slope, margin, x, low, high, const):
        return attacks.carlini_wagner(
            linear_margin(slope, margin, x),
            x,
            bounds=(low, high),
            initial_const=const,
            **settings,
        )

    return jax.jit(jax.vmap(attack))


def run(slopes, margins, xs, *, bounds=(0.0, 1.0), initial_const=1e-3, **settings):
    """The attack on a batch of up to `NUM` linear margins; its numbers in NumPy."""
    arrays = slopes, margins, xs, *(np.broadcast_to(bound, np.shape(xs)) for bound in bounds)
    padded = [np.resize(np.float32(array), (NUM, *np.shape(array)[1:])) for array in arrays]
    consts = np.full(NUM, initial_const, np.float32)
    answer = compiled(**settings)(*padded, consts)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(xs)], answer)


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
    x_adv, info = run(slopes, margins, xs)
    least = np.array([nearest(*one) for one in zip(slopes, margins, xs, strict=True)])
    np.testing.assert_allclose(info.norm, norms_of(x_adv, xs), rtol=1e-5)
    ratios = info.norm / least
    assert np.all((ratios > 1 - 1e-4) & (ratios <= 1.01)), ratios
    assert np.all(info.found) and np.all((x_adv >= 0) & (x_adv <= 1))
    assert np.all(margins + np.sum(slopes * (np.asarray(x_adv) - xs), 1) <= 1e-6 * abs(margins))


def test_well_inside_the_box_the_least_norm_is_the_margin_over_that_of_the_slope():
    slope, x = problem(0)
    _, info = run(slope[None], [0.02], x[None])
    np.testing.assert_allclose(info.norm, 0.02 / np.linalg.norm(slope), rtol=0.01)


def test_the_attack_of_the_paper_is_as_near_where_the_boundary_is_many_of_its_steps_away():
    slopes, margins, xs = (array[::2] for array in batch(24, 0.6))
    _, info = run(slopes, margins, xs, num_closing_steps=0)
    least = np.array([nearest(*one) for one in zip(slopes, margins, xs, strict=True)])
    assert np.median(info.norm / least) < 1.05
    assert np.all(info.norm / least > 1 - 1e-4)


def test_it_succeeds_exactly_where_the_best_corner_fools():
    for fall, attackable in [(0.99, True), (1.01, False)]:
        slopes, margins, xs = batch(24, fall)
        x_adv, info = run(slopes, margins, xs)
        np.testing.assert_array_equal(info.found, attackable)
        if not attackable:
            np.testing.assert_array_equal(x_adv, xs)
            assert np.all(np.isinf(info.norm)) and np.all(np.isinf(info.const))


def test_an_example_already_fooled_stays_as_it_is():
    """On the boundary itself too: a tie is an error."""
    slopes, _, xs = batch(4, 0.1)
    for margin in (0.0, -0.3):
        x_adv, info = run(slopes, np.full(4, margin), xs)
        np.testing.assert_array_equal(x_adv, xs)
        assert np.all(info.found) and np.all(info.norm == 0)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (-3.0, 5.0)])
def test_an_input_on_the_bounds_gives_finite_points_within_them(bounds):
    low, high = bounds
    xs = np.array([[low] * SIZE, [high] * SIZE, [low, high] * (SIZE // 2)], np.float32)
    slopes = np.array([[-1.0], [1.0], [2.0]]) * np.arange(1, SIZE + 1)
    x_adv, info = run(slopes, [3.0, 3.0, 6.0], xs, bounds=bounds)
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


@pytest.mark.parametrize(("num_steps", "published"), [(90, True), (90, False), (400, False)])
def test_without_closing_steps_it_is_the_algorithm_written_out(num_steps, published, rate=0.1):
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
    x_adv, info = run(slopes, margins, xs)
    wide_x_adv, wide = run(slopes / 2, margins, 2 * xs - 1, bounds=(-1.0, 1.0), initial_const=4e-3)
    np.testing.assert_allclose(wide.norm, 2 * info.norm, rtol=1e-4)
    np.testing.assert_allclose(wide_x_adv, 2 * x_adv - 1, atol=1e-3)
    np.testing.assert_allclose(wide.const, 4 * info.const, rtol=0.1)


def test_a_batch_is_a_vmap_of_single_attacks():
    """Each stops at a step of its own; the first finds nothing."""
    slopes, margins, xs = batch(4, 0.3)
    margins[0] *= 10
    x_adv, info = run(slopes, margins, xs)
    assert not info.found[0] and np.all(info.found[1:])
    attack = jax.jit(
        lambda slope, margin, x: attacks.carlini_wagner(linear_margin(slope, margin, x), x)
    )
    for k in range(4):
        one, one_info = attack(slopes[k], margins[k], xs[k])
        np.testing.assert_allclose(x_adv[k], one, atol=1e-5)
        for got, want in zip(info, one_info, strict=True):
            np.testing.assert_allclose(got[k], want, rtol=1e-4)


WEIGHTS = np.array([0.7, 0.3], np.float32)
MARGINS = (
    losses.mean_probability_margin,
    losses.expected_margin,
    losses.accuracy_margin,
    functools.partial(losses.accuracy_margin, share=0.5),
)
NAMES = ("mean", "expected", "all", "half")
MEAN, _, ALL, HALF = range(4)
DIMENSION = 12
GAMES = {kind: linear_game.two(0, kind, num_examples=40) for kind in ("steeper", "opposed")}


def margin_of(which, logits, label, weights):
    """One of `MARGINS`, known only when the program runs."""
    branches = [functools.partial(margin, weights=weights) for margin in MARGINS]
    return jax.lax.switch(which, branches, logits, label)


@jax.jit
def _of_games(which, slopes, offsets, boost, weights, x, labels):
    def one(x, label):
        game = linear_game.LinearGame(slopes, offsets, weights, x, label, (0.0, 1.0))

        def margin_fn(x):
            logits = game.logits(x) + jnp.where(x[0] < 0.7, boost, 0.0)[None]
            return margin_of(which, logits, label, weights)

        return *attacks.carlini_wagner(margin_fn, x), margin_fn(x)

    return jax.vmap(one)(x, labels)


def of_games(which, slopes, offsets, weights, x, labels, boost=0.0):
    """The attack on 40 examples of two members, and each one's first margin; in NumPy.

    A third class is masked. The boost is that of the first class where the first pixel is below .7.
    """
    slopes = np.concatenate([slopes, np.zeros_like(slopes[:, :1])], axis=1)
    offsets = np.concatenate([offsets, np.full_like(offsets[:, :1], -np.inf)], axis=1)
    boost = np.float32([boost, 0.0, 0.0])
    answer = _of_games(which, slopes, offsets, boost, weights, x, labels)
    return jax.tree.map(np.asarray, answer)


# Two members, two classes; the lighter one is steeper and fooled from another side: their margins
# are .4 - x0 + .2 x1 and 2 - x0 - 3 x1.
SLOPES, OFFSETS = np.zeros((2, 2, DIMENSION), np.float32), np.float32([[0.4, 0.0], [2.0, 0.0]])
SLOPES[:, 0, :2] = [[-1.0, 0.2], [-1.0, -3.0]]
ORIGIN = np.float32([0.1, 0.2])


def logits_fn(x):
    return jnp.sum(SLOPES[..., :2] * x[None, None], axis=-1) + OFFSETS


def from_two_pixels(which, slopes, offsets, pixels, **settings):
    """The first two coordinates of a point, the others move nothing; the info; the first margin."""
    x = np.full((40, DIMENSION), 0.5, np.float32)
    x[:, :2] = pixels
    labels = np.zeros(40, np.int32)
    points, info, margins = of_games(which, slopes, offsets, WEIGHTS, x, labels, **settings)
    return points[0, :2], jax.tree.map(lambda leaf: leaf[0], info), margins[0]


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def margins_at(which, x):
    return margin_of(which, logits_fn(x), 0, WEIGHTS)


@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_any_margin_of_a_mixture_is_attacked_up_to_its_nearest_point(which):
    x_adv, info, before = from_two_pixels(which, SLOPES, OFFSETS, ORIGIN)
    axis = np.linspace(0.0, 1.0, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    after, *values = np.asarray(margins_at(which, np.stack([x_adv, *grid])))
    least = norms_of(grid[np.array(values) <= 0], ORIGIN).min()
    assert before > 0.3 and after <= 0
    np.testing.assert_allclose(info.norm, least, rtol=0.015)


def test_the_attack_of_pinot_lowers_the_expected_loss_and_judges_by_the_mean_probability():
    """The nearest point of the judge's is nearer than that where the expected loss is 0."""

    @jax.jit
    def attack(by_mean):
        def hinge(x):
            return losses.expected_hinge(logits_fn(x), 0, WEIGHTS)

        def fooled_fn(x):
            mean = losses.mean_probability_margin(logits_fn(x), 0, WEIGHTS)
            return jnp.where(by_mean, mean, hinge(x)) <= 0

        return attacks.carlini_wagner(hinge, ORIGIN, fooled_fn=fooled_fn)

    (x_adv, info), (all_x_adv, all_info) = attack(True), attack(False)
    points = np.stack([x_adv, all_x_adv])
    fools_mean, _ = margins_at(MEAN, points) <= 0
    fools_all, all_fools_all = margins_at(ALL, points) <= 0
    assert fools_mean and not fools_all
    assert all_fools_all and info.norm < all_info.norm
    least = from_two_pixels(MEAN, SLOPES, OFFSETS, ORIGIN)[1].norm
    assert least * 0.99 <= info.norm <= 1.2 * least


def test_what_fools_is_told_apart_from_what_is_lowered():
    """A margin that knows nothing of the boundary leads across it; on it the point is kept."""
    x = np.float32([0.2, 0.5])

    @jax.jit
    def attack(height, boundary):
        return attacks.carlini_wagner(
            lambda x: height - x[0], x, fooled_fn=lambda x: x[0] >= boundary
        )

    x_adv, info = attack(5.0, 0.6)
    assert info.found and x_adv[0] >= 0.6
    np.testing.assert_allclose(info.norm, 0.4, rtol=0.02)
    _, info = attack(-1.0, 2.0)
    assert not info.found and np.isinf(info.norm)


@pytest.mark.parametrize("kind", GAMES)
def test_the_accuracy_margins_leave_what_the_best_attack_leaves_of_a_linear_mixture(kind):
    """The margin of the mean probability leaves more than twice as much."""
    game, epsilon = GAMES[kind], 0.4

    def risks(which):
        x_adv, info, _ = of_games(which, *game[:5])
        within = info.norm[:, None] <= epsilon
        return game.risk(np.where(within, x_adv, game.x))

    best = 1 - game.optimal_risk(2, epsilon).mean()
    left = 1 - np.maximum(risks(HALF), risks(ALL)).mean()
    assert best - 1e-6 <= left <= best + 0.03
    assert 1 - risks(MEAN).mean() > 2 * left


def test_beyond_a_radius_the_natural_example_is_kept_and_norms_give_the_accuracy():
    slopes, margins, xs = batch(8, 0.3)
    margins[1] *= 10
    x_adv, info = run(slopes, margins, xs)
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


@pytest.mark.parametrize("which", range(3), ids=NAMES[:3])
def test_infinitely_sure_members_are_no_nan_that_hides_who_is_right(which):
    """`inf - inf` counted as fooled at `x` itself; the first error is .2 away."""
    slopes, offsets, x = np.zeros_like(SLOPES), np.float32([[0.7, 0.0]] * 2), [0.5, 0.2]
    slopes[:, 0, 0] = -1.0
    x_adv, info, before = from_two_pixels(which, slopes, offsets, x, boost=np.inf)
    assert before > 0
    assert x_adv[0] >= 0.7 if info.found else np.array_equal(x_adv, np.float32(x))


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e25])
def test_tiny_and_huge_margins_are_as_near_as_any(scale):
    _, info = run([scale * np.arange(-2.0, 4.0)], [0.5 * scale], INSIDE[None])
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
    low, high = np.float32([[0, -np.inf, 0, 100, 0, 0], [1, np.inf, np.inf, 120, 1, 1]])
    x = np.float32([0.5, 30.0, 0.1, 101.0, 0.3, 1.0])
    slope = np.float32([2.0, 1.0, 4.0, 0.3, 0.0, 0.0])  # the third soon meets its bound
    x_adv, info = run(slope[None], [2.5], x[None], bounds=(low, high))
    # The first and the third meet their bounds, where they have taken off 1 and .4.
    step = (2.5 - 1.0 - 0.4) / (1.0 + 0.09)
    want = np.array([0.0, 30.0 - step, 0.0, 101.0 - 0.3 * step, 0.3, 1.0])
    assert np.all(info.found) and np.all((x_adv >= low) & (x_adv <= high))
    np.testing.assert_allclose(x_adv[0], want, atol=0.02)
    np.testing.assert_allclose(info.norm, norms_of(want, x), rtol=0.01)
    # Without the closing steps, which start from any point that fools, the descent gets as near.
    x_adv, info = run(slope[None], [2.5], x[None], bounds=(low, high), num_closing_steps=0)
    assert np.all(info.found) and np.all((x_adv >= low) & (x_adv <= high))
    np.testing.assert_allclose(info.norm, norms_of(want, x), rtol=0.05)


def test_without_any_bounds_the_least_norm_is_the_margin_over_that_of_the_slope():
    slope, _ = problem(0)
    _, info = run(slope[None], [0.3], 100 * slope[None], bounds=(-np.inf, np.inf))
    np.testing.assert_allclose(info.norm, 0.3 / np.linalg.norm(slope), rtol=0.01)


@pytest.mark.parametrize(
    ("dtype", "enable_x64"), [(jnp.float16, True), (jnp.bfloat16, False), (jnp.float32, True)]
)
def test_inputs_of_any_type_under_64_bit_or_not_keep_their_type(dtype, enable_x64):
    with jax.enable_x64(enable_x64):
        x = INSIDE.astype(dtype)
        slope = np.array([3.0, -2.0, 1.0, 0.5, -1.0, 2.0], dtype)

        def attack(x, rate):
            def margin_fn(point):
                return jnp.asarray(0.7, dtype) + jnp.sum(slope * (point - x))

            return attacks.carlini_wagner(margin_fn, x, learning_rate=rate)

        x_adv, info = jax.jit(attack)(x, 0.1)
        assert x_adv.dtype == dtype and info.found
        least = 0.7 / np.linalg.norm(np.float32(slope))
        np.testing.assert_allclose(info.norm, least, rtol=0.01 + 2 * float(jnp.finfo(dtype).eps))


def test_under_64_bit_a_double_input_is_attacked_in_double_precision():
    with jax.enable_x64():
        x = np.full(3, 0.5) + 1e-12

        def margin_fn(point):
            return 1e-10 + jnp.sum(point - x)

        x_adv, info = jax.jit(lambda x: attacks.carlini_wagner(margin_fn, x))(x)
        assert x_adv.dtype == info.norm.dtype == jnp.float64
        np.testing.assert_allclose(info.norm, 1e-10 / np.sqrt(3), rtol=0.01)


def test_infinities_are_none_of_the_attack_s_own_making():
    """Only the norm of an example that nothing fools is infinite, as it is documented."""
    slope, _ = problem(0)
    with jax.debug_infs(), jax.debug_nans(), jax.enable_checks():
        _, info = attacks.carlini_wagner(linear_margin(slope, 0.02, INSIDE), INSIDE)
        assert info.found


def test_a_flat_margin_at_its_boundary_and_infinite_ones_leave_finite_points():
    """There is neither a slope nor a fall to go by: 0 / 0."""
    beyond = 1e-3  # by so much of the first margin the closing steps aim below 0

    def steps(point):
        return jnp.where(point[0] < 0.4, -beyond, 1.0) + 0.0 * point[0]

    def walls(point):
        return jnp.where(point[0] < 0.4, -jnp.inf, jnp.inf)

    def slope_to_walls(point):
        return jnp.where(point[0] < 0.4, -jnp.inf, point[0])

    @jax.jit
    def attack(which):
        return attacks.carlini_wagner(
            lambda x: jax.lax.switch(which, (steps, walls, slope_to_walls), x), INSIDE
        )

    for which in range(3):
        x_adv, info = jax.tree.map(np.asarray, attack(which))
        assert np.all(np.isfinite(x_adv)) and np.all((x_adv >= 0) & (x_adv <= 1))
        assert info.found == (which == 2)


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
