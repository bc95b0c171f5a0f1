"""Attacks on linear mixtures, against the exact optimum; and the measure, against weak attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from mixjax import attacks, losses, mixture, threats
from tests import linear_game
from tests.linear_game import LinearGame

NORMS = {np.inf: (threats.linf, (0.05, 0.12)), 2: (threats.l2, (0.15, 0.4))}
ORDERS = [pytest.param(np.inf, id="linf"), pytest.param(2, id="l2")]
TWO = {kind: linear_game.two(seed, kind) for seed, kind in enumerate(["steeper", "opposed"])}
MORE = {num: linear_game.random(num, num, num_examples=n) for num, n in ((3, 25), (5, 12))}
GAMES = {**TWO, **MORE}
NUM_MEMBERS, NUM_EXAMPLES = 5, 60  # the most of any: all games are attacked in one shape


@functools.cache
def optimum(name, order, epsilon):
    return GAMES[name].optimal_risk(order, epsilon)


def padded(game):
    """The game with the first member again, of no weight, and its examples again."""
    num_more = NUM_MEMBERS - len(game.weights)

    def more(leaf, filling):
        return np.concatenate([leaf, np.repeat(filling, num_more, axis=0)])

    return game._replace(
        slopes=more(game.slopes, game.slopes[:1]),
        offsets=more(game.offsets, game.offsets[:1]),
        weights=more(game.weights, np.zeros(1, np.float32)),
        x=np.resize(game.x, (NUM_EXAMPLES, game.x.shape[1])),
        labels=np.resize(game.labels, NUM_EXAMPLES),
    )


@functools.cache
def compiled(attack, order):
    """One program for every game and every example's radius."""

    @jax.jit
    def run(key, slopes, offsets, weights, x, labels, epsilons, **choices):
        def one(key, x, label, epsilon):
            game = LinearGame(slopes, offsets, weights, x, label, (0.0, 1.0))
            return attack(game.logits, weights, NORMS[order][0](epsilon), key, x, label, **choices)

        return jax.vmap(one)(jax.random.split(key, len(x)), x, labels, epsilons)

    return run


def attacked(attack, game, order, epsilons, **choices):
    epsilons = np.resize(np.float32(epsilons), NUM_EXAMPLES)
    run = compiled(attack, order)
    points = run(jax.random.key(1), *padded(game)[:5], epsilons, **choices)
    return np.asarray(points)[: len(game.x)]


def points_of(attack, name, order, epsilon, **choices):
    return attacked(attack, GAMES[name], order, epsilon, **choices)


def arc(logits_fn, weights, threat, key, x, label):
    return attacks.arc(key, logits_fn, weights, x, label, threat)[0]


def lattice_climber(logits_fn, weights, threat, key, x, label):
    return attacks.lattice_climber(key, logits_fn, weights, x, label, threat)[0]


def pgd(logits_fn, weights, threat, key, x, label, of_averaged_logits=False):
    """On the expected loss; or on the loss of the averaged logits, which nobody should."""

    def loss_fn(x):
        logits = logits_fn(x)
        averaged = losses.cross_entropy(jnp.sum(weights[:, None] * logits, axis=0), label)
        members = jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits, label)
        expected = mixture.expected_loss(members, weights)
        return jnp.where(of_averaged_logits, averaged, expected)

    settings = dict(num_steps=20, step_size=threat.epsilon / 4)
    return attacks.pgd(key, loss_fn, x, threat, **settings)[0]


def check(points, name, order, epsilon, share):
    """Inside ball and bounds, nowhere above the optimum, on average `share` of it."""
    game, best = GAMES[name], optimum(name, order, epsilon)
    deltas = np.float64(points) - game.x
    norms = np.linalg.norm(deltas, ord=order, axis=1)
    assert np.all(norms <= epsilon * (1 + 1e-5)), f"a point leaves the ball: {norms.max()}"
    assert np.all((points >= 0) & (points <= 1))
    risks = game.risk(points)
    above = game.optimal_risk(order, epsilon * (1 + 1e-4)) if np.any(risks > best + 1e-6) else best
    assert np.all(risks <= above + 1e-6)
    assert np.all(risks >= game.risk(game.x) - 1e-6), "worse for the attacker than x"
    assert risks.mean() >= share * best.mean(), f"{risks.mean()} of {best.mean()}"
    return risks


def missed(risks, name, order, epsilon):
    """The examples that can be attacked and were not."""
    clean = GAMES[name].risk(GAMES[name].x)
    return np.flatnonzero((optimum(name, order, epsilon) > clean + 1e-6) & (risks <= clean + 1e-6))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TWO)
def test_arc_reaches_97_percent_of_the_optimum_on_two_members_and_misses_nobody(name, order):
    for epsilon in NORMS[order][1]:
        points = points_of(arc, name, order, epsilon)
        risks = check(points, name, order, epsilon, 0.97)
        assert missed(risks, name, order, epsilon).size == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MORE)
def test_the_lattice_climber_reaches_93_percent_on_three_and_five_and_misses_nobody(name, order):
    for epsilon in NORMS[order][1]:
        points = points_of(lattice_climber, name, order, epsilon)
        risks = check(points, name, order, epsilon, 0.93)
        assert missed(risks, name, order, epsilon).size == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("attack", [arc, lattice_climber, pgd])
def test_attacks_on_one_linear_classifier_succeed_exactly_beyond_its_distance(attack, order):
    """`|w . x + b| / |w|_dual`, each example at its own radius, a hundredth below and above."""
    generator = np.random.default_rng(5)
    slope = generator.normal(size=12)
    xs = generator.uniform(0.4, 0.6, (30, 12)).astype(np.float32)
    values = (xs - 0.5) @ slope
    game = LinearGame(
        slopes=np.float32([[slope, 0 * slope]]),
        offsets=np.float32([[-0.5 * slope.sum(), 0.0]]),
        weights=np.ones(1, np.float32),
        x=xs,
        labels=(values < 0).astype(np.int32),
        bounds=(0.0, 1.0),
    )
    distances = abs(values) / np.linalg.norm(slope, ord=1 if order == np.inf else 2)
    for share in (0.99, 1.01):
        points = attacked(attack, game, order, np.resize(share * distances, NUM_EXAMPLES))
        np.testing.assert_array_equal(game.risk(points), share > 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TWO)
def test_the_measure_catches_attacks_that_do_nothing_or_average_logits(name, order):
    _, epsilon = NORMS[order][1]
    with pytest.raises(AssertionError, match=r"^[0-9.]+ of [0-9.]+"):
        check(GAMES[name].x, name, order, epsilon, 0.97)
    averaged = points_of(pgd, name, order, epsilon, of_averaged_logits=True)
    with pytest.raises(AssertionError, match=r"^[0-9.]+ of [0-9.]+|worse for the attacker"):
        check(averaged, name, order, epsilon, 0.97)
    assert missed(GAMES[name].risk(GAMES[name].x), name, order, epsilon).size > 0


@pytest.mark.parametrize("order", ORDERS)
def test_arc_sees_what_ascent_on_the_expected_loss_does_not(order):
    """Of two opposed members the second is fooled on the way only by who knows of it."""
    _, epsilon = NORMS[order][1]
    best = optimum("opposed", order, epsilon).mean()
    risks = [
        GAMES["opposed"].risk(points_of(attack, "opposed", order, epsilon)).mean()
        for attack in (arc, pgd)
    ]
    assert risks[0] >= 0.97 * best > risks[1]


@pytest.mark.parametrize("order", ORDERS)
def test_the_measure_catches_a_point_one_percent_outside_of_the_ball(order):
    epsilon, _ = NORMS[order][1]
    x, points = GAMES["steeper"].x, points_of(arc, "steeper", order, epsilon)
    with pytest.raises(AssertionError, match="a point leaves the ball"):
        check(x + 1.01 * (points - x), "steeper", order, epsilon, 0.0)


@pytest.mark.parametrize("order", ORDERS)
def test_the_smallest_perturbation_of_one_member_is_its_margin_over_the_dual_norm(order):
    a, b, free = np.array([[3.0, -4.0, 0.0]]), np.array([-2.0]), np.full(3, 9.0)
    solve = linear_game.smallest_l2 if order == 2 else linear_game.smallest_linf
    assert solve(a, b, -free, free) == pytest.approx(2 / 5 if order == 2 else 2 / 7)
    # The second coordinate may not move: the first must do it alone.
    low, high = -free * [1, 0, 1], free * [1, 0, 1]
    assert solve(a, b, low, high) == pytest.approx(2 / 3)
    assert solve(a, b, low / 100, high / 100) == np.inf


def test_the_smallest_perturbation_agrees_with_a_general_solver():
    generator = np.random.default_rng(3)
    for _ in range(5):
        a, b = generator.normal(size=(2, 4)), -generator.uniform(0.2, 0.6, size=2)
        low, high = np.full(4, -0.3), np.array([0.5, 0.1, 0.4, 0.5])
        result = scipy.optimize.minimize(
            lambda delta: delta @ delta,
            np.zeros(4),
            jac=lambda delta: 2 * delta,
            method="SLSQP",
            bounds=scipy.optimize.Bounds(low, high),
            constraints=scipy.optimize.LinearConstraint(a, -np.inf, b),
        )
        smallest = linear_game.smallest_l2(a, b, low, high)
        if result.success:
            np.testing.assert_allclose(smallest, np.sqrt(result.fun), rtol=1e-5)
            corner = linear_game.smallest_linf(a, b, low, high)
            assert smallest / 2 - 1e-9 <= corner <= smallest + 1e-9
        else:
            assert smallest == np.inf
