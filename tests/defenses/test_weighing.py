import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import defenses, games

# losses [point, example, member]: a "point" is the number that stands for an attacked batch.
TABLE = np.array(
    [
        [[0.9, 0.1, 0.4], [0.2, 0.6, 0.4]],
        [[0.1, 0.8, 0.5], [0.3, 0.2, 0.9]],
        [[0.5, 0.5, 0.1], [0.9, 0.3, 0.2]],
    ],
    np.float32,
)
WEIGHTS = np.array([0.5, 0.2, 0.3], np.float32)


def losses_fn(point):
    return jnp.asarray(TABLE)[point]


def best_response(key, weights):
    del key
    return jnp.argmax(jnp.asarray(TABLE).mean(1) @ weights)


def test_oracle_is_projected_subgradient_descent_on_the_attacks_it_asks_for(key):
    def found_by(iterate):
        weigh = defenses.oracle_weighing(num_steps=5, loss_bound=2.0, iterate=iterate)
        return jax.jit(lambda w: weigh(key, losses_fn, best_response, None, w))(WEIGHTS)

    weights, visited = np.float64(WEIGHTS), []
    for _ in range(5):
        means = TABLE.mean(1)
        subgradient = means[np.argmax(means @ weights)]
        visited.append((subgradient @ weights, weights))
        moved = weights - 2.0 / (2.0 * np.sqrt(3 * 5)) * subgradient
        assert moved.min() > (moved.sum() - 1) / 3  # inside the simplex: a shift projects
        weights = moved - (moved.sum() - 1) / 3
    best_risk, best = min(visited, key=lambda pair: pair[0])
    for iterate, expected in (("best", best), ("last", weights)):
        found, risk = found_by(iterate)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(risk, best_risk, atol=1e-6)
    assert np.abs(weights - best).max() > 0.04
    assert best_risk < visited[0][0] and best_risk < visited[-1][0]


def test_one_step_of_the_oracle_moves_the_weights(key):
    """`T_lambda = 1`: the paper's weights are those after the step, and not frozen for good."""
    weigh = defenses.oracle_weighing(num_steps=1)
    found, risk = jax.jit(lambda: weigh(key, losses_fn, best_response, None, WEIGHTS))()
    means = TABLE.mean(1)
    worst = means[np.argmax(means @ WEIGHTS)]
    moved = WEIGHTS - 2 / np.sqrt(3) * worst
    np.testing.assert_allclose(found, moved - (moved.sum() - 1) / 3, atol=1e-6)
    np.testing.assert_allclose(risk, worst @ WEIGHTS, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "best"),
    [
        pytest.param([[1.0, 0.0]] * 5, 0.0, id="one is always wrong and the other never"),
        pytest.param([[1.0, 0.0], [0.0, 0.0], [0.5, 0.25]], 0.25, id="one is never better"),
        pytest.param([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]], 1 / 3, id="both are needed"),
    ],
)
def test_the_defaults_of_the_relaxation_reach_the_least_risk(key, row, best):
    """At the programs' temperature, from the weights of the worse side."""
    weigh = defenses.entropic_weighing(temperature=0.01, num_samples=8)
    table = np.float32(row)[:, None].repeat(4, 1)  # [point, example, member]
    found, _ = jax.jit(
        lambda weights: weigh(
            key,
            lambda point: jnp.asarray(table)[point],
            lambda key, weights: 0,
            lambda key: 1 + jax.random.randint(key, (), 0, len(row) - 1),
            weights,
        )
    )(np.float32([0.9, 0.1]))
    found = np.asarray(found)
    assert (table @ found).max(axis=0).mean() <= best + 1e-2
    np.testing.assert_allclose(found.sum(), 1.0, atol=1e-6)


def test_oracle_attacks_with_another_key_each_time(key):
    """A fixed number of attacks, and the attacker's dice differ: half of them would be the same."""
    weigh = defenses.oracle_weighing(num_steps=64)

    def coin(key, weights):
        return jax.random.uniform(key) + 0.0 * weights.sum()

    def losses_at(point):
        return jnp.full((2, 1), point)

    _, risk = jax.jit(lambda weights: weigh(key, losses_at, coin, None, weights))(np.ones(1))
    assert risk < 0.2  # the least of 64 uniform draws


def test_entropic_is_the_entropic_algorithm_on_samples_and_the_attack(key):
    """Two kinds of candidates: the attack on the given weights, and sampled points."""
    seen = []

    def attack_fn(key, weights):
        seen.append(weights)
        return 1

    weigh = defenses.entropic_weighing(num_steps=6, temperature=0.2, num_samples=3, loss_bound=1.0)
    arguments = key, losses_fn, attack_fn, lambda key: jnp.int32(2), WEIGHTS
    found, risk = jax.jit(lambda: weigh(*arguments))()
    candidates = np.swapaxes(TABLE[[1, 2, 2, 2]], 0, 1)
    solved = jax.jit(functools.partial(games.entropic, num_steps=6))(
        candidates, 0.2, weights=WEIGHTS
    )
    risk_of = jax.jit(games.entropic_risk)
    expected, risks = solved
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(risk, risk_of(found, candidates, 0.2), atol=1e-6)
    assert risk < risk_of(WEIGHTS, candidates, 0.2) - 1e-2
    assert len(seen) == 1 and seen[0] is WEIGHTS and risks.shape == (6,)


def test_entropic_draws_each_sample_anew_and_needs_none(key):
    def risk_of(num_samples):
        weigh = defenses.entropic_weighing(num_steps=1, temperature=100.0, num_samples=num_samples)

        @jax.jit
        def risk(weights):
            return weigh(
                key,
                lambda point: jnp.full((1, 1), point),
                lambda key, weights: 0.5,
                jax.random.uniform,
                weights,
            )[1]

        return float(risk(np.ones(1, np.float32)))

    assert abs(risk_of(0) - 0.5) < 1e-3
    # At a high temperature the risk is the mean over candidates; of equal draws it would be one.
    many = risk_of(200)
    assert abs(many - 0.5) < 0.1 and abs(many - risk_of(1)) > 1e-3


@pytest.mark.parametrize("weigh", ["oracle", "entropic"])
def test_examples_may_be_spread_over_devices(key, weigh):
    """Two devices with an example each, by `vmap` over an axis of that name."""
    weighing = {
        "oracle": defenses.oracle_weighing(num_steps=3),
        "entropic": defenses.entropic_weighing(num_steps=3, temperature=0.2, num_samples=1),
    }[weigh]

    def weights_and_risk(table, axis_name=None):
        return weighing(
            key,
            lambda point: table[point],
            lambda key, weights: 1,
            lambda key: 2,
            jnp.asarray(WEIGHTS),
            axis_name,
        )

    @jax.jit
    def spread_and_together(table):
        spread = jax.vmap(lambda table: weights_and_risk(table[:, None], "i"), 1, axis_name="i")
        return spread(table), weights_and_risk(table)

    for found, expected in zip(*spread_and_together(TABLE), strict=True):
        np.testing.assert_allclose(found[0], expected, atol=1e-6)
        np.testing.assert_allclose(found[1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: defenses.oracle_weighing(num_steps=0), "num_steps must be a whole number"),
        (
            lambda: defenses.oracle_weighing(num_steps=1, loss_bound=-1.0),
            "loss_bound must be positive, got -1.0",
        ),
        (
            lambda: defenses.entropic_weighing(num_steps=1, temperature=0.0, num_samples=1),
            "temperature must be positive, got 0.0",
        ),
        (
            lambda: defenses.entropic_weighing(num_steps=1, temperature=1.0, num_samples=-1),
            "num_samples must be a whole number of at least 0, got -1",
        ),
        (
            lambda: defenses.entropic_weighing(temperature=1.0, num_samples=1, tolerance=0.0),
            "tolerance must be positive, got 0.0",
        ),
        (
            lambda: defenses.oracle_weighing(num_steps=1, iterate="mean"),
            "iterate must be one of best, last, got mean",
        ),
        (lambda: defenses.trades(-6.0), "beta must be at least 0, got -6.0"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
