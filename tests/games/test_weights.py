"""The weights of a mixture: guarantees against independent solvers, steps against slow loops."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixjax import games
from mixjax.games import _tables

P = jax.sharding.PartitionSpec
SLOW_WEIGHTS = np.array([0.2, 0.5, 0.3])


# Each one program for every table of a shape.
oracle = jax.jit(games.oracle, static_argnames=("num_steps", "iterate"))
entropic = jax.jit(games.entropic, static_argnames="num_steps")
adversarial_risk, entropic_risk = jax.jit(games.adversarial_risk), jax.jit(games.entropic_risk)
entropic_attack, losses_under = jax.jit(games.entropic_attack), jax.jit(games.losses_under)
entropic_risk_and_gradient = jax.jit(jax.value_and_grad(games.entropic_risk))
project = jax.jit(_tables.project)


@functools.cache
def table(seed=0, shape=(6, 5, 3), bound=1.0):
    """Losses `[N, M, L]` whose members are worth different amounts."""
    losses = np.random.default_rng(seed).uniform(size=shape) ** 2
    losses *= np.linspace(0.7, 1.0, shape[2])
    return np.float32(losses * bound)


MEUNIER = np.zeros((4, 3, 2), np.float32)
"""Meunier 2021, section 2.1: four equally likely cases, moves by -1, 0, +1, members f1 and f2.

`f1(x) = -x - 1/2`, `f2(x) = x - 1/2`, an error where `f(x) y <= 0`.
"""
for case, (start, y) in enumerate([(0.0, -1), (0.0, -1), (-1.0, 1), (1.0, 1)]):
    for candidate, move in enumerate([-1.0, 0.0, 1.0]):
        for member, f in enumerate([lambda x: -x - 0.5, lambda x: x - 0.5]):
            MEUNIER[case, candidate, member] = f(start + move) * y <= 0


def slow_adversarial_risk(weights, losses):
    total = 0.0
    for example in losses:
        total += max(sum(weights[k] * row[k] for k in range(len(row))) for row in example)
    return total / len(losses)


def slow_entropic_risk(weights, losses, temperature):
    alphas = np.broadcast_to(temperature, len(losses))
    total = 0.0
    for alpha, example in zip(alphas, np.float64(losses), strict=True):
        total += alpha * np.log(np.mean([np.exp(row @ weights / alpha) for row in example]))
    return total / len(losses)


def slow_entropic_gradient(weights, losses, temperature):
    alphas = np.broadcast_to(temperature, len(losses))
    gradient = np.zeros(losses.shape[2])
    for alpha, example in zip(alphas, np.float64(losses), strict=True):
        p = np.exp(example @ weights / alpha)
        gradient += p / p.sum() @ example / len(losses)
    return gradient


def slow_projection(v):
    """Bisection for the shift `s` at which `max(v - s, 0)` sums to one."""
    low, high = np.min(v) - 1.0, np.max(v)
    for _ in range(100):
        shift = (low + high) / 2
        low, high = (shift, high) if np.maximum(v - shift, 0).sum() > 1 else (low, shift)
    return np.maximum(v - low, 0)


def slow_oracle(losses, num_steps, loss_bound):
    losses, num_members = np.float64(losses), losses.shape[2]
    weights, visited, risks = np.full(num_members, 1 / num_members), [], []
    for _ in range(num_steps):
        worst = [example[np.argmax(example @ weights)] for example in losses]
        gradient = np.mean(worst, axis=0)
        visited.append(weights)
        risks.append(weights @ gradient)
        eta = 2 / (loss_bound * np.sqrt(num_members * num_steps))
        weights = slow_projection(weights - eta * gradient)
    return visited[int(np.argmin(risks))], np.array(risks)


def slow_entropic(losses, temperature, num_steps, loss_bound, weights):
    beta = losses.shape[2] * loss_bound**2 * np.mean(1 / np.asarray(temperature)) / 4
    look_ahead, t, risks = weights, 1.0, []
    for _ in range(num_steps):
        gradient = slow_entropic_gradient(look_ahead, losses, temperature)
        new = slow_projection(look_ahead - gradient / beta)
        t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
        look_ahead = new + (t - 1) / t_next * (new - weights)
        weights, t = new, t_next
        risks.append(slow_entropic_risk(weights, losses, temperature))
    return weights, np.array(risks)


def least_adversarial_risk(losses):
    """The value of the game as a linear program in the weights and one height per example."""
    num_examples, num_candidates, num_members = losses.shape
    cost = np.concatenate([np.zeros(num_members), np.full(num_examples, 1 / num_examples)])
    heights = -np.repeat(np.eye(num_examples), num_candidates, axis=0)
    above = np.concatenate([losses.reshape(-1, num_members), heights], axis=1)
    sums = np.concatenate([np.ones(num_members), np.zeros(num_examples)])[None]
    result = scipy.optimize.linprog(cost, above, np.zeros(len(above)), sums, [1.0])
    assert result.status == 0
    return result.fun


def least_entropic_risk(losses, temperature):
    """Value and weights of the smooth problem by sequential quadratic programming."""
    num_members = losses.shape[2]
    result = scipy.optimize.minimize(
        slow_entropic_risk,
        np.full(num_members, 1 / num_members),
        args=(losses, temperature),
        jac=slow_entropic_gradient,
        bounds=[(0, 1)] * num_members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return result.fun, result.x


def assert_on_simplex(weights):
    assert np.all(np.asarray(weights) >= 0)
    np.testing.assert_allclose(np.sum(weights), 1.0, atol=1e-5)


# The risks.


def test_adversarial_risk_is_the_mean_over_examples_of_the_worst_candidate():
    want = slow_adversarial_risk(SLOW_WEIGHTS, table())
    np.testing.assert_allclose(adversarial_risk(np.float32(SLOW_WEIGHTS), table()), want, rtol=1e-6)


TEMPERATURES = [0.03, 0.5, np.float32([0.05, 0.1, 0.2, 0.5, 1.0, 3.0])]


@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["cold", "warm", "mixed"])
def test_entropic_risk_and_its_gradient_are_those_of_the_slow_loops(temperature):
    value, gradient = entropic_risk_and_gradient(np.float32(SLOW_WEIGHTS), table(), temperature)
    want = slow_entropic_risk(SLOW_WEIGHTS, table(), temperature)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    want = slow_entropic_gradient(SLOW_WEIGHTS, table(), temperature)
    np.testing.assert_allclose(gradient, want, rtol=1e-4)


def test_entropic_risk_lies_below_the_maximum_by_at_most_alpha_log_m():
    weights, losses = np.float32(SLOW_WEIGHTS), table()
    highest = adversarial_risk(weights, losses)
    for alpha in (1e-4, 0.01, 0.3, 10.0):
        risk = entropic_risk(weights, losses, alpha)
        assert highest - alpha * np.log(5) - 1e-6 <= risk <= highest + 1e-6


def test_entropic_risk_goes_from_the_maximum_to_the_mean():
    weights, losses = np.float32(SLOW_WEIGHTS), table()
    highest, mean = adversarial_risk(weights, losses), np.mean(losses @ SLOW_WEIGHTS)
    np.testing.assert_allclose(entropic_risk(weights, losses, 1e-5), highest, atol=1e-4)
    np.testing.assert_allclose(entropic_risk(weights, losses, 100.0), mean, atol=1e-3)
    assert highest - mean > 0.1


def test_one_candidate_leaves_nothing_to_the_attacker():
    weights, losses = np.float32(SLOW_WEIGHTS), table(shape=(6, 1, 3))
    mean = np.mean(losses @ SLOW_WEIGHTS)
    np.testing.assert_allclose(adversarial_risk(weights, losses), mean, rtol=1e-5)
    np.testing.assert_allclose(entropic_risk(weights, losses, 0.2), mean, rtol=1e-5)


def test_a_candidate_of_mass_stands_for_equal_ones_and_one_without_is_not_there():
    """Candidate 0 three times, 1 once, 4 twice; 2 and 3 never, though 2 is the worst of all."""
    losses, alpha = table(), np.float32([0.05, 0.1, 0.2, 0.5, 1.0, 3.0])
    apart = losses[:, [0, 0, 0, 1, 4, 4]]
    together, mass = losses.copy(), np.tile(np.float32([3, 1, 0, 0, 2]) / 6, (6, 1))
    together[:, 2] = 1.0
    weights = np.float32(SLOW_WEIGHTS)
    risk = entropic_risk(weights, together, alpha, mass=mass)
    np.testing.assert_allclose(risk, entropic_risk(weights, apart, alpha), rtol=1e-5)
    want, risks = entropic(apart, alpha, num_steps=20)
    found, same_risks = entropic(together, alpha, num_steps=20, mass=mass)
    np.testing.assert_allclose(found, want, atol=1e-4)
    np.testing.assert_allclose(same_risks, risks, rtol=1e-5)
    attack = entropic_attack(weights, together, alpha, mass=mass)
    whole = np.asarray(entropic_attack(weights, apart, alpha))
    columns = [
        whole[:, :3].sum(1),
        whole[:, 3],
        0 * whole[:, 0],
        0 * whole[:, 0],
        whole[:, 4:].sum(1),
    ]
    np.testing.assert_allclose(attack, np.stack(columns, axis=1), atol=1e-6)


# The oracle algorithm.


@pytest.mark.parametrize(("num_steps", "bound"), [(1, 1.0), (20, 1.0), (150, 0.2), (150, 7.0)])
def test_oracle_takes_the_steps_of_algorithm_1(num_steps, bound):
    losses = table(bound=bound)
    weights, risks = oracle(losses, num_steps=num_steps, loss_bound=bound)
    want_weights, want_risks = slow_oracle(losses, num_steps, bound)
    np.testing.assert_allclose(risks, want_risks, rtol=1e-4)
    np.testing.assert_allclose(weights, want_weights, atol=1e-3)


@pytest.mark.parametrize(("num_steps", "bound"), [(1, 5.0), (10, 1.0), (100, 5.0), (1000, 0.5)])
def test_oracle_comes_as_close_to_the_value_as_it_promises(num_steps, bound):
    losses = table(seed=3, shape=(4, 7, 5), bound=bound)
    weights, _ = oracle(losses, num_steps=num_steps, loss_bound=bound)
    gap = slow_adversarial_risk(np.float64(weights), losses) - least_adversarial_risk(losses)
    assert -1e-4 * bound <= gap <= 2 * bound * np.sqrt(5 / num_steps)
    if num_steps == 1000:
        assert gap < 0.02 * bound  # what it does in fact
    assert_on_simplex(weights)


def test_oracle_returns_the_best_weights_visited_not_the_last():
    """Two members, rows (1, 0) and (0, 1/2): the steps pass the optimum and come back."""
    losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])
    weights, risks = oracle(losses, num_steps=7)
    own = adversarial_risk(weights, losses)
    np.testing.assert_allclose(own, np.min(risks), rtol=1e-6)
    assert np.argmin(risks) < 6 and risks[-1] > own + 0.05


def test_the_last_iterate_is_the_one_after_the_last_step():
    """Rows (1, 0) and (0, 1/2): each step moves along (-1, 1) or (1, -1 / 2) and projects."""
    losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])
    for num_steps in (1, 2, 7):
        weights, risks = oracle(losses, num_steps=num_steps, iterate="last")
        first = 0.5
        for _ in range(num_steps):
            eta = 2 / np.sqrt(2 * num_steps)
            # Projected on the line w1 + w2 = 1 the step is half the difference of the losses.
            slope = 1.0 if first >= (1 - first) / 2 else -0.5
            first = np.clip(first - eta * slope / 2, 0, 1)
        np.testing.assert_allclose(weights, [first, 1 - first], atol=1e-6)
        best = oracle(losses, num_steps=num_steps)
        np.testing.assert_array_equal(risks, best[1])
    frozen, _ = oracle(losses, num_steps=1)
    np.testing.assert_array_equal(frozen, [0.5, 0.5])  # the best of those attacked: the first
    moved, _ = oracle(losses, num_steps=1, iterate="last")
    np.testing.assert_allclose(moved, [0.0, 1.0], atol=1e-6)  # 1/2 - sqrt(2) / 2 < 0


def test_an_iterate_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="iterate must be one of best, last, got mean"):
        games.oracle(table(), num_steps=3, iterate="mean")


# What losses of any size do.


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e7, 1e30])
@pytest.mark.parametrize("num_members", [2, 7])
def test_equal_members_keep_their_weights_at_any_temperature(temperature, num_members):
    """At 1e7 a step is as long, and float32 has no digit left for a sum of 1 beside it."""
    losses = np.repeat(table(shape=(6, 5, 1)), num_members, axis=2)
    weights, risks = entropic(losses, temperature, num_steps=10)
    np.testing.assert_allclose(weights, 1 / num_members, atol=1e-6)
    np.testing.assert_allclose(weights.sum(), 1.0, atol=1e-6)
    chex.assert_tree_all_finite(risks)


@given(
    hnp.arrays(np.float32, st.sampled_from([1, 2, 7]), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([1e-3, 1.0, 1e7, 1e30]),
)
@settings(max_examples=50)
def test_a_projection_from_any_distance_is_on_the_simplex(direction, distance):
    far = np.float32(direction * distance)
    found = project(far)
    np.testing.assert_allclose(
        found, slow_projection(np.maximum(np.float64(far) - far.max(), -2)), atol=1e-5
    )
    assert_on_simplex(found)


@pytest.mark.parametrize("height", [1e3, -1e3])
def test_the_projection_depends_on_differences_alone(height):
    found = project(np.float32([height, height - 0.5]))
    np.testing.assert_allclose(found, [0.75, 0.25], rtol=1e-6)


@pytest.mark.parametrize("num_equal", [3, 7])
def test_equal_values_share_the_simplex_however_far_from_it_they_are(num_equal):
    """Projected as they are, most of these would end with weights whose sum is not 1."""
    heights = np.random.default_rng(0).uniform(-1, 1, (4, 25)) * [[1e6], [1e7], [1e9], [1e30]]
    values = np.repeat(np.float32(heights).reshape(100, 1), num_equal + 1, axis=1)
    values[:, 2] -= np.maximum(abs(values[:, 2]), 1)  # and one far below
    found = jax.jit(jax.vmap(_tables.project))(values)
    want = np.where(np.arange(num_equal + 1) == 2, 0, np.float32(1 / num_equal))
    np.testing.assert_allclose(found, np.tile(want, (100, 1)), atol=1e-6)


def test_what_an_example_costs_in_any_case_moves_no_weights():
    """The same steps with and without 1e6 on one example, and risks higher by its mean."""
    losses = np.float32(np.random.default_rng(5).integers(64, size=(4, 3, 3)) / 64)
    more = losses + np.float32(1e6) * (np.arange(4) == 1)[:, None, None]
    starts = np.float32([0.2, 0.3, 0.5])
    for solver in (
        functools.partial(oracle, num_steps=30),
        functools.partial(entropic, temperature=50.0, num_steps=30),
        functools.partial(entropic, temperature=50.0, num_steps=30, weights=starts),
    ):
        weights, risks = solver(losses, loss_bound=1e6 + 1)
        same, higher = solver(more, loss_bound=1e6 + 1)
        np.testing.assert_allclose(same, weights, atol=2e-7)
        np.testing.assert_allclose(higher, risks + 2.5e5, rtol=1e-6)


def test_risks_are_finite_where_the_losses_are():
    """Sums over examples, and quotients by a temperature, that float32 cannot hold."""
    losses = np.float32(3e38 * np.array([[[1.0, 0.5], [0.5, 1.0]]] * 4))
    weights, quarter = np.float32([0.5, 0.5]), np.full((4, 2), 0.5)
    np.testing.assert_allclose(adversarial_risk(weights, losses), 2.25e38, rtol=1e-6)
    np.testing.assert_allclose(losses_under(quarter, losses), 2.25e38, rtol=1e-6)
    np.testing.assert_allclose(entropic_risk(weights, losses, 0.01), 2.25e38, rtol=1e-6)
    _, gradient = entropic_risk_and_gradient(np.float32([0.75, 0.25]), losses, 0.01)
    np.testing.assert_allclose(gradient, [3e38, 1.5e38], rtol=1e-6)
    weights, risks = oracle(losses, num_steps=20, loss_bound=3.1e38)
    np.testing.assert_allclose(weights, 0.5, atol=1e-6)
    np.testing.assert_allclose(risks[0], 2.25e38, rtol=1e-6)


def test_losses_that_float32_cannot_hold_are_refused_where_it_would_have_to():
    losses = np.full((2, 2, 2), 1e300)
    message = r"losses must lie in \[0.0, 3.4\d*e\+38\], got values from 1e\+300 to 1e\+300"
    for call in (
        lambda: games.adversarial_risk(np.array([0.5, 0.5]), losses),
        lambda: games.best_response(np.array([0.5, 0.5]), losses),
        lambda: games.losses_under(np.full((2, 2), 0.5), losses),
        lambda: games.regret_matching(losses, num_steps=3),
        lambda: games.oracle(losses, num_steps=3, loss_bound=1e301),
        lambda: games.entropic(losses, 1.0, num_steps=3, loss_bound=1e301),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_oracle_starts_from_uniform_weights():
    _, risks = oracle(table(), num_steps=3)
    uniform = adversarial_risk(jnp.full(3, 1 / 3), table())
    np.testing.assert_allclose(risks[0], uniform, rtol=1e-6)


def test_oracle_solves_the_motivating_example_of_the_paper():
    weights, risks = oracle(MEUNIER, num_steps=50)
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(np.min(risks), 0.75, rtol=1e-6)
    np.testing.assert_allclose(least_adversarial_risk(MEUNIER), 0.75, rtol=1e-6)
    for member in (0, 1):  # each classifier alone is helpless
        assert adversarial_risk(jnp.eye(2)[member], MEUNIER) == 1.0
        np.testing.assert_allclose(np.mean(MEUNIER[:, 1, member]), 0.25)  # without attack


def test_an_asymmetric_game_has_its_own_weights():
    """One example, rows (1, 0) and (0, 1/2): weights (w, 1 - w) cost max(w, (1 - w) / 2)."""
    losses = np.float32([[[1.0, 0.0], [0.0, 0.5]]])
    weights, risks = oracle(losses, num_steps=4000)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], atol=0.02)
    np.testing.assert_allclose(np.min(risks), 1 / 3, atol=0.02)
    weights, _ = entropic(losses, 0.005, num_steps=1500)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], atol=0.01)


def solvers():
    first = functools.partial(oracle, num_steps=400)
    second = functools.partial(entropic, temperature=0.1, num_steps=100)
    return [pytest.param(first, id="oracle"), pytest.param(second, id="entropic")]


@pytest.mark.parametrize("solver", solvers())
def test_a_dominated_member_gets_no_weight(solver):
    losses = table(shape=(6, 5, 2))
    losses = np.concatenate([losses, losses.max(axis=2, keepdims=True)], axis=2)
    losses[..., 2] = (1.0 + losses[..., 2]) / 2
    weights, _ = solver(losses)
    assert weights[2] < 0.01
    assert_on_simplex(weights)


@pytest.mark.parametrize("solver", solvers())
def test_the_better_of_two_members_gets_all_the_weight(solver):
    better = table(shape=(6, 5, 1))
    weights, _ = solver(np.concatenate([(1 + better) / 2, better / 2], axis=2))
    np.testing.assert_allclose(weights, [0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("solver", solvers())
def test_equal_members_keep_equal_weights(solver):
    losses = np.repeat(table(shape=(6, 5, 1)), 4, axis=2)
    np.testing.assert_allclose(solver(losses)[0], 0.25, atol=1e-6)


@pytest.mark.parametrize("solver", solvers())
def test_a_single_member_has_all_the_weight(solver):
    losses = table(shape=(6, 5, 1))
    weights, risks = solver(losses)
    np.testing.assert_array_equal(weights, [1.0])
    assert np.ptp(risks) < 1e-6


@pytest.mark.parametrize("solver", solvers())
def test_members_carry_their_weights_along_when_they_change_places(solver):
    losses, order = table(), np.array([2, 0, 1])
    np.testing.assert_allclose(solver(losses[..., order])[0], solver(losses)[0][order], atol=1e-3)


@pytest.mark.parametrize("solver", solvers())
def test_whole_numbers_and_doubles_are_losses_too(solver):
    errors = np.array([[[0, 1], [1, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 0]]])
    want, _ = solver(np.float32(errors))
    for kind in (np.int32, np.float64, bool):
        weights, _ = solver(errors.astype(kind))
        np.testing.assert_array_equal(weights, want)
        assert weights.dtype == jnp.float32
    assert want[1] > want[0]


@pytest.mark.parametrize("solver", solvers())
def test_solvers_work_in_jit_and_vmap(solver):
    tables = np.stack([table(seed) for seed in range(3)])
    batch, risks = jax.jit(jax.vmap(solver))(tables)
    for k in range(3):
        weights, one_risks = solver(tables[k])
        np.testing.assert_allclose(batch[k], weights, atol=1e-3)
        np.testing.assert_allclose(risks[k], one_risks, atol=1e-3)


def test_the_attacker_of_algorithm_1_may_be_any_function():
    losses, seen = jnp.asarray(table()), []

    def best_response(weights, step):
        jax.debug.callback(lambda step: seen.append(int(step)), step)
        worst = losses[jnp.arange(6), jnp.argmax(losses @ weights, axis=1)]
        return jnp.mean(worst, axis=0)

    weights, risks = games.projected_subgradient(best_response, jnp.full(3, 1 / 3), num_steps=12)
    want_weights, want_risks = oracle(losses, num_steps=12)
    jax.effects_barrier()
    np.testing.assert_allclose(risks, want_risks, rtol=1e-5)
    np.testing.assert_allclose(weights, want_weights, atol=1e-5)
    assert sorted(seen) == list(range(12))


def test_a_sloppy_attacker_costs_at_most_twice_its_gap():
    losses, delta, num_steps = jnp.asarray(table()), 0.1, 400

    def sloppy_response(weights, step):
        """The cheapest candidate within `delta` of the worst one."""
        expected = losses @ weights
        allowed = expected >= jnp.max(expected, axis=1, keepdims=True) - delta
        chosen = jnp.argmin(jnp.where(allowed, expected, jnp.inf), axis=1)
        return jnp.mean(losses[jnp.arange(6), chosen], axis=0)

    start = jnp.full(3, 1 / 3)
    weights, _ = games.projected_subgradient(sloppy_response, start, num_steps=num_steps)
    gap = slow_adversarial_risk(np.float64(weights), table()) - least_adversarial_risk(table())
    assert gap <= 2 * delta + 2 * np.sqrt(3 / num_steps)


def test_algorithm_1_starts_from_the_weights_it_is_given():
    losses = np.float32([0.25, 0.5, 1.0])
    start = np.float32([0.0, 0.1, 0.9])
    weights, risks = games.projected_subgradient(lambda w, _: losses, start, num_steps=1)
    np.testing.assert_allclose(risks, [0.95], rtol=1e-6)
    np.testing.assert_array_equal(weights, start)


# The entropic algorithm.


@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["cold", "warm", "mixed"])
@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_entropic_takes_the_steps_of_accelerated_projected_gradient(temperature, bound):
    losses, start = table(bound=bound), np.array([0.7, 0.0, 0.3])
    weights, risks = entropic(
        losses, temperature, num_steps=30, loss_bound=bound, weights=np.float32(start)
    )
    want_weights, want_risks = slow_entropic(losses, temperature, 30, bound, start)
    np.testing.assert_allclose(risks, want_risks, rtol=1e-4)
    np.testing.assert_allclose(weights, want_weights, atol=1e-3)
    np.testing.assert_allclose(risks[-1], entropic_risk(weights, losses, temperature), rtol=1e-5)
    assert_on_simplex(weights)


@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["cold", "warm", "mixed"])
@pytest.mark.parametrize("num_steps", [1, 10, 100])
def test_entropic_comes_as_close_to_the_minimum_as_it_promises(temperature, num_steps):
    losses = table()
    weights, _ = entropic(losses, temperature, num_steps=num_steps)
    least, best_weights = least_entropic_risk(losses, temperature)
    gap = slow_entropic_risk(np.float64(weights), losses, temperature) - least
    beta = 3 * np.mean(1 / np.asarray(temperature)) / 4
    distance = np.sum((1 / 3 - best_weights) ** 2)
    assert -1e-6 <= gap <= 2 * beta * distance / (num_steps + 1) ** 2 + 1e-6


def test_entropic_keeps_its_promise_where_unaccelerated_steps_would_break_it():
    """One candidate, losses (c, 0): a slope so gentle that T plain steps leave a gap of beta / 8T.

    The promise is beta / (T + 1)^2, a fifth of that.
    """
    temperature, num_steps = 0.1, 40
    beta = 2 / (4 * temperature)
    slope = beta / (2 * num_steps)
    losses = np.float32([[[slope, 0.0]]])
    weights, _ = entropic(losses, temperature, num_steps=num_steps)
    gap = slope * weights[0]
    assert gap <= beta / (num_steps + 1) ** 2

    plain = np.array([0.5, 0.5])
    for _ in range(num_steps):
        plain = slow_projection(plain - np.array([slope, 0.0]) / beta)
    assert slope * plain[0] > 4 * beta / (num_steps + 1) ** 2


def test_the_entropic_value_approaches_the_games_value_as_it_cools():
    losses, value = table(), least_adversarial_risk(table())
    distances = []
    for temperature in (1.0, 0.1, 0.01):
        weights, _ = entropic(losses, temperature, num_steps=1000)
        distances.append(float(adversarial_risk(weights, losses)) - value)
    assert distances[0] > distances[1] > distances[2] > -1e-6
    assert distances[2] < 0.01


@pytest.mark.parametrize("check_vma", [False, True])
def test_examples_spread_over_devices_give_the_weights_of_all(check_vma):
    losses = table(seed=1, shape=(8, 5, 3))
    temperature = jnp.linspace(0.05, 1.0, 8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spread = jax.shard_map(
        lambda losses, temperature: games.entropic(
            losses, temperature, num_steps=20, axis_name="data"
        ),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=P(),
        check_vma=check_vma,
    )
    weights, risks = jax.jit(spread)(losses, temperature)
    want_weights, want_risks = games.entropic(losses, temperature, num_steps=20)
    np.testing.assert_allclose(weights, want_weights, atol=1e-5)
    np.testing.assert_allclose(risks, want_risks, atol=1e-5)


# What is refused, and what may be traced.

NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "setting", "message"),
    [
        (np.ones((2, 3)), {}, r"losses must have 3 axes, none empty, got \[2, 3\]"),
        (np.ones((2, 0, 3)), {}, r"losses must have 3 axes, none empty, got \[2, 0, 3\]"),
        (np.full((1, 1, 2), 1.5), {}, r"losses must lie in \[0.0, 1.0\], got values from 1.5"),
        (np.full((1, 1, 2), -0.5), {}, r"losses must lie in \[0.0, 1.0\], got values from -0.5"),
        (np.full((1, 1, 2), NAN), {}, r"losses must lie in \[0.0, 1.0\], got values from nan"),
        (np.ones((1, 1, 2)), {"num_steps": 0}, "num_steps must be .* at least 1, got 0"),
        (np.ones((1, 1, 2)), {"loss_bound": -2.0}, "loss_bound must be positive, got -2.0"),
        (np.ones((1, 1, 2)), {"loss_bound": NAN}, "loss_bound must be positive, got nan"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(losses, setting, message):
    settings = {"num_steps": 3} | setting
    with pytest.raises(ValueError, match=message):
        games.oracle(losses, **settings)
    with pytest.raises(ValueError, match=message):
        games.entropic(losses, 0.1, **settings)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, np.array([1.0, 0.0])])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    losses = np.ones((2, 1, 2))
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        games.entropic(losses, temperature, num_steps=3)
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        games.entropic_risk(jnp.ones(2) / 2, losses, temperature)


RISKS = [
    pytest.param(games.adversarial_risk, id="adversarial"),
    pytest.param(functools.partial(games.entropic_risk, temperature=0.1), id="entropic"),
    pytest.param(functools.partial(games.entropic_attack, temperature=0.1), id="entropic attack"),
    pytest.param(games.best_response, id="best response"),
]


@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"losses": np.ones((0, 1, 2))}, "losses must have 3 axes, none empty"),
        ({"losses": np.ones((2, 2))}, r"losses must have 3 axes, none empty, got \[2, 2\]"),
        ({"losses": np.full((1, 1, 2), -0.5)}, "losses must lie in .*, got values from -0.5"),
        ({"losses": np.full((1, 1, 2), NAN)}, "losses must lie in .*, got values from nan"),
        ({"weights": np.array([0.5, 0.6])}, "weights must be on the simplex"),
        ({"weights": np.array([1.5, -0.5])}, "weights must be on the simplex"),
        ({"weights": np.array([NAN, 1.0])}, "weights must be on the simplex"),
        ({"weights": np.ones(1)}, r"weights must have shape \[2\], got \[1\]"),
    ],
)
def test_no_risk_of_what_makes_no_sense(risk, argument, message):
    sound = {"weights": np.array([0.5, 0.5]), "losses": np.ones((2, 1, 2))}
    with pytest.raises(ValueError, match=message):
        risk(**(sound | argument))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"temperature": np.ones(3)}, r"temperature must have shape \[2\], got \[3\]"),
        ({"mass": np.ones((2, 1)) / 2}, "the sums of mass must lie in"),
        ({"mass": np.ones((1, 1))}, r"mass must have shape \[2, 1\], got \[1, 1\]"),
        ({"mass": np.full((2, 1), NAN)}, "mass must lie in .* nan"),
    ],
)
def test_masses_and_temperatures_that_do_not_fit_are_refused(argument, message):
    argument = {"temperature": 0.1} | argument
    with pytest.raises(ValueError, match=message):
        games.entropic(np.ones((2, 1, 2)), num_steps=3, **argument)
    with pytest.raises(ValueError, match=message):
        games.entropic_attack(np.ones(2) / 2, np.ones((2, 1, 2)), **argument)


def test_starting_weights_off_the_simplex_are_refused():
    losses = np.ones((2, 1, 2))
    for weights in (jnp.array([0.5, 0.6]), jnp.array([-0.5, 1.5])):
        with pytest.raises(ValueError, match="weights must be on the simplex"):
            games.entropic(losses, 0.1, num_steps=3, weights=weights)
        with pytest.raises(ValueError, match="weights must be on the simplex"):
            games.projected_subgradient(lambda w, _: w, weights, num_steps=3)
    with pytest.raises(ValueError, match=r"weights must have shape \[2\], got \[3\]"):
        games.entropic(losses, 0.1, num_steps=3, weights=jnp.ones(3) / 3)


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_the_risks_are_those_of_the_loops(self):
        found = self.variant(games.adversarial_risk)(jnp.float32(SLOW_WEIGHTS), table())
        want = slow_adversarial_risk(SLOW_WEIGHTS, table())
        chex.assert_trees_all_close(found, want, rtol=1e-5)
        found = self.variant(games.entropic_risk)(jnp.float32(SLOW_WEIGHTS), table(), 0.2)
        want = slow_entropic_risk(SLOW_WEIGHTS, table(), 0.2)
        chex.assert_trees_all_close(found, want, rtol=1e-5)

    @chex.all_variants
    def test_compiled_or_not_on_any_device_the_oracle_takes_the_steps_of_the_loop(self):
        weights, risks = self.variant(functools.partial(games.oracle, num_steps=9))(table())
        slow_weights, slow_risks = slow_oracle(table(), 9, 1.0)
        chex.assert_trees_all_close(weights, slow_weights, atol=1e-5)
        chex.assert_trees_all_close(risks, slow_risks, atol=1e-5)
