"""The attacker who draws: where its probabilities come from, and what they cost whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import games

WEIGHTS = np.float32([0.2, 0.5, 0.3])


def table(seed=0, shape=(6, 5, 3)):
    losses = np.random.default_rng(seed).uniform(size=shape) ** 2
    return np.float32(losses * np.linspace(0.7, 1.0, shape[2]))


def some_attack(seed=1, shape=(6, 5)):
    return np.float32(np.random.default_rng(seed).dirichlet(np.ones(shape[1]), shape[0]))


def line_attacker():
    """Points on a line, -2 to 2, that nobody can mistake for each other; the third never played."""
    points = np.float32([[-2.0, -1.0, 0.5], [2.0, 1.0, 0.25]])[..., None]
    return games.Attacker(points, np.float32([[0.25, 0.75, 0.0], [0.6, 0.4, 0.0]]))


def test_the_best_response_costs_the_mixture_its_adversarial_risk():
    attack = games.best_response(WEIGHTS, table())
    assert attack.shape == (6, 5) and set(np.unique(attack)) == {0.0, 1.0}
    paid = games.losses_under(attack, table())
    want = games.adversarial_risk(jnp.asarray(WEIGHTS), table())
    np.testing.assert_allclose(WEIGHTS @ paid, want, rtol=1e-6)


def test_the_members_losses_under_the_entropic_attack_are_the_gradient_of_the_risk():
    alpha = jnp.float32([0.05, 0.1, 0.2, 0.5, 1.0, 3.0])
    attack = games.entropic_attack(WEIGHTS, table(), alpha)
    gradient = jax.grad(games.entropic_risk)(jnp.asarray(WEIGHTS), table(), alpha)
    np.testing.assert_allclose(games.losses_under(attack, table()), gradient, rtol=1e-5)
    np.testing.assert_allclose(attack.sum(axis=1), 1.0, rtol=1e-6)


def test_the_entropic_attack_goes_from_the_best_response_to_uniform():
    cold = games.entropic_attack(WEIGHTS, table(), 1e-5)
    np.testing.assert_allclose(cold, games.best_response(WEIGHTS, table()), atol=1e-6)
    np.testing.assert_allclose(games.entropic_attack(WEIGHTS, table(), 1e4), 1 / 5, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.02])
def test_the_entropic_pair_has_a_gap_of_at_most_alpha_log_m(alpha):
    losses = table(3)
    weights, _ = games.entropic(losses, alpha, num_steps=3000)
    attack = games.entropic_attack(weights, losses, alpha)
    gap = games.duality_gap(weights, attack, losses)
    assert -1e-6 <= gap <= alpha * np.log(5) + 1e-4
    value = games.solve(losses)
    assert games.losses_under(attack, losses).min() <= value.value + 1e-6


def test_no_classifier_beats_the_value_against_the_randomised_attack_only():
    """Rows (1, 0) and (0, 1/2): each deterministic attack leaves one member unhurt."""
    losses = np.float32([[[1.0, 0.0], [0.0, 0.5]]])
    found = games.solve(losses)
    np.testing.assert_allclose(games.losses_under(found.attack, losses).min(), 1 / 3, rtol=1e-6)
    for weights in ([0.9, 0.1], [0.1, 0.9]):
        attack = games.best_response(np.float32(weights), losses)
        assert games.losses_under(attack, losses).min() == 0.0


def test_draws_come_as_often_as_their_probabilities(key):
    attacker = line_attacker()
    draws = jax.vmap(lambda key: games.draw(key, attacker))(jax.random.split(key, 4000))
    draws = np.asarray(draws)
    assert draws.shape == (4000, 2, 1)
    for n in range(2):
        for point, probability in zip(attacker.points[n], attacker.attack[n], strict=True):
            share = np.mean(draws[:, n] == point)
            assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 4000)


def test_examples_are_drawn_independently(key):
    points = np.broadcast_to(np.float32([0.0, 1.0]), (2000, 2))
    draws = games.draw(key, games.Attacker(points, np.full((2000, 2), 0.5, np.float32)))
    assert 0.4 < np.mean(draws) < 0.6


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)], ids=str)
def test_the_score_is_the_mean_over_the_draws_of_any_classifier(shape):
    attacker = line_attacker()
    slopes = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def losses_fn(points):
        assert points.shape == (2, 1)
        return jnp.abs(points.reshape((2,) + (1,) * len(shape)) - slopes[None])

    found = games.score(losses_fn, attacker)
    want = np.zeros(shape)
    for n in range(2):
        for m in range(3):
            want += attacker.attack[n, m] * np.abs(attacker.points[n, m, 0] - slopes) / 2
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert found.shape == shape


def test_score_and_losses_under_are_two_routes_to_one_number():
    attack, points = some_attack(), np.random.default_rng(2).normal(size=(6, 5, 2))
    members = np.float32([[1.0, 0.3], [-0.5, 2.0], [0.1, 0.1]])

    def losses_fn(points):
        return jnp.tanh(points @ members.T) + 1.0

    attacker = games.Attacker(np.float32(points), attack)
    whole = games.losses_under(attack, losses_fn(attacker.points))
    np.testing.assert_allclose(games.score(losses_fn, attacker), whole, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda a: games.score(losses_fn, a))(attacker), whole, 1e-5)


def test_tables_work_in_jit_and_vmap():
    losses = np.stack([table(0), table(1)])
    for function in (
        lambda losses: games.best_response(WEIGHTS, losses),
        lambda losses: games.entropic_attack(WEIGHTS, losses, 0.1),
        lambda losses: games.losses_under(some_attack(), losses),
    ):
        for got, one in zip(jax.jit(jax.vmap(function))(losses), losses, strict=True):
            np.testing.assert_allclose(got, function(one), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: games.losses_under(2 * some_attack(), table()),
            "attack must lie in|sums of attack",
        ),
        (lambda: games.losses_under(some_attack().T, table()), r"attack must have shape \[6, 5\]"),
        (lambda: games.losses_under(some_attack(), -table()), "losses must lie in .* got values"),
        (lambda: games.losses_under(some_attack(), table()[..., :0]), "losses must have 3 axes"),
        (
            lambda: games.score(lambda points: points[:1], line_attacker()),
            r"losses must have shape \[2, 1\], got \[1, 1\]",
        ),
        (
            lambda: games.score(lambda points: points * np.nan, line_attacker()),
            "the mean losses must lie in .* nan",
        ),
        (
            lambda: games.draw(jax.random.key(0), line_attacker()._replace(attack=np.eye(2))),
            r"attack must have shape \[2, 3\], got \[2, 2\]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
