"""Learning by play, and what every iterative solver promises, against the exact equilibrium."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixjax import games

SHAPE = (3, 4, 5)
BOUNDS = st.sampled_from([0.02, 1.0, 7.0])


def tables(shape=SHAPE):
    """Tables of losses within [0, 1], many of them on the boundary."""
    elements = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=16)
    return hnp.arrays(np.float32, shape, elements=elements)


def table(seed=0, shape=(6, 5, 3)):
    losses = np.random.default_rng(seed).uniform(size=shape) ** 2
    return np.float32(losses * np.linspace(0.7, 1.0, shape[2]))


@functools.cache
def compiled(solver, **setting):
    return jax.jit(functools.partial(getattr(games, solver), **setting))


def risk(weights, losses):
    return (np.float64(losses) @ np.float64(weights)).max(axis=1).mean()


def slow_softmax(v):
    p = np.exp(v - v.max())
    return p / p.sum()


def slow_hedge(losses, num_steps, rate):
    """Every player by itself, in loops; all plays, not averaged."""
    losses = np.float64(losses)
    num_examples, num_candidates, num_members = losses.shape
    paid, last_paid = np.zeros(num_members), np.zeros(num_members)
    won, last_won = np.zeros((2, num_examples, num_candidates))
    plays = []
    for _ in range(num_steps):
        weights = slow_softmax(-rate * (paid + last_paid))
        attack = np.array([slow_softmax(rate * (won[n] + last_won[n])) for n in range(len(won))])
        last_paid = np.mean([p @ rows for p, rows in zip(attack, losses, strict=True)], axis=0)
        last_won = np.array([rows @ weights for rows in losses])
        paid, won = paid + last_paid, won + last_won
        plays.append((weights, attack))
    return plays


def slow_matched(regrets):
    total = regrets.sum()
    return regrets / total if total > 0 else np.full(len(regrets), 1 / len(regrets))


def slow_regret_matching(losses, num_steps, best_response=False):
    losses = np.float64(losses)
    num_examples, num_candidates, num_members = losses.shape
    member_regrets = np.zeros(num_members)
    regrets = np.zeros((num_examples, num_candidates))
    plays = []
    for _ in range(num_steps):
        weights, attack = slow_matched(member_regrets), []
        for n, rows in enumerate(losses):
            values = rows @ weights
            if best_response:
                attack.append(np.eye(num_candidates)[values.argmax()])
                continue
            regrets[n] = np.maximum(regrets[n] + values - slow_matched(regrets[n]) @ values, 0)
            attack.append(slow_matched(regrets[n]))
        paid = np.mean([p @ rows for p, rows in zip(attack, losses, strict=True)], axis=0)
        member_regrets = np.maximum(member_regrets + weights @ paid - paid, 0)
        plays.append((weights, np.array(attack)))
    return plays


def assert_average(solver, plays, share, losses, **setting):
    """Strategies and bounds are those of the averages of the slow plays, after any number."""
    for num_steps in (1, 2, 25):
        found = compiled(solver, num_steps=num_steps, **setting)(losses)
        shares = np.array([share(t) for t in range(num_steps)])
        shares /= shares.sum()
        weights = sum(s * play[0] for s, play in zip(shares, plays, strict=False))
        attack = sum(s * play[1] for s, play in zip(shares, plays, strict=False))
        paid = np.einsum("nm,nml->l", attack, np.float64(losses)) / len(losses)
        np.testing.assert_allclose(found.upper, risk(weights, losses), atol=1e-5)
        np.testing.assert_allclose(found.lower, paid.min(), atol=1e-5)
        np.testing.assert_allclose(found.weights, weights, atol=1e-4)
        np.testing.assert_allclose(found.attack, attack, atol=1e-4)


@pytest.mark.parametrize("rate", [None, 2.5])
def test_hedge_takes_the_steps_of_optimistic_multiplicative_weights(rate):
    losses, setting = 4 * table(), {"loss_bound": 4.0, "step_size": rate}
    plays = slow_hedge(losses, 25, rate or 1 / 4)
    assert_average("hedge", plays, lambda t: 1.0, losses, **setting)


@pytest.mark.parametrize("rate", [1e9, 1e12, 1e25, 1e300])
def test_hedge_with_a_step_of_any_length_plays_the_best_candidate(rate):
    losses = table(seed=1, shape=(1, 2, 2))
    found = compiled("hedge", num_steps=3)(losses, step_size=rate)
    chex.assert_tree_all_finite(found)
    uniform, (weights, attack), _ = slow_hedge(losses, 3, 1e6)
    assert {*weights} == {*attack[0]} == {0.0, 1.0}
    second = compiled("hedge", num_steps=2)(losses, step_size=rate)
    np.testing.assert_allclose(second.weights, (uniform[0] + weights) / 2, rtol=1e-6)
    np.testing.assert_allclose(second.attack, (uniform[1] + attack) / 2, rtol=1e-6)


@pytest.mark.parametrize("best_response", [False, True])
def test_regret_matching_takes_its_steps_and_weighs_the_late_ones_more(best_response):
    losses, setting = table(1), {"best_response": best_response}
    plays = slow_regret_matching(losses, 25, best_response)
    assert_average("regret_matching", plays, lambda t: t + 1.0, losses, **setting)


def test_every_solver_returns_one_type_whose_value_and_gap_are_its_bounds():
    losses = table()
    found = {
        "solve": games.solve(losses),
        "hedge": compiled("hedge", num_steps=4)(losses),
        "regret matching": compiled("regret_matching", num_steps=4)(losses),
        "double oracle": games.double_oracle(
            lambda member, points: losses[np.arange(6), points, member],
            lambda weights, members, index: (losses[..., list(members)] @ weights).argmax(axis=1),
            [0, 1, 2],
            [np.zeros(6, int)],
            num_rounds=9,
        )[0],
    }
    value = games.solve(losses).value
    for each in found.values():
        assert type(each) is games.Equilibrium
        weights, attack, upper, lower = each
        assert each.value == upper and each.gap == upper - lower
        assert lower - 1e-6 <= value <= upper + 1e-6
    assert found["solve"].gap < 1e-9 < 1e-3 < found["hedge"].gap


def test_exact_answers_pay_where_there_are_many_examples():
    losses = table(3, (100, 64, 8))
    gaps = []
    for best_response in (False, True):
        found = compiled("regret_matching", num_steps=64, best_response=best_response)(losses)
        gaps.append(float(found.gap))
    assert gaps[1] < gaps[0] / 2


@given(tables(), BOUNDS, st.sampled_from([1, 60]))
@settings(max_examples=30)
def test_hedge_comes_as_close_as_it_promises(losses, bound, num_steps):
    solver = compiled("hedge", num_steps=num_steps)
    found = solver(losses * bound, loss_bound=bound)
    gap = games.duality_gap(*(np.asarray(x) for x in (found.weights, found.attack, losses * bound)))
    promise = bound * (math.log(5) + math.log(4) + 0.5) / num_steps
    assert -1e-6 * bound <= gap <= promise + 1e-6 * bound
    np.testing.assert_allclose(found.gap, gap, atol=1e-5 * bound)


@given(tables(), BOUNDS, st.sampled_from([1, 60, 200]), st.booleans())
@settings(max_examples=40)
def test_regret_matching_comes_as_close_as_it_promises(losses, bound, num_steps, best_response):
    solver = compiled("regret_matching", num_steps=num_steps, best_response=best_response)
    found = solver(losses * bound)
    gap = games.duality_gap(*(np.asarray(x) for x in (found.weights, found.attack, losses * bound)))
    attacker = 0 if best_response else math.sqrt(4)
    promise = 2 * bound * (math.sqrt(5) + attacker) / math.sqrt(num_steps)
    assert -1e-6 * bound <= gap <= promise
    np.testing.assert_allclose(found.gap, gap, atol=1e-5 * bound)
    if num_steps == 200 and not best_response:
        assert gap <= 0.02 * bound  # what it does in fact


@given(tables(), BOUNDS, st.sampled_from([1, 60, 200]))
@settings(max_examples=30)
def test_oracle_comes_as_close_as_it_promises(losses, bound, num_steps):
    weights, risks = compiled("oracle", num_steps=num_steps)(losses * bound, loss_bound=bound)
    excess = risk(weights, losses * bound) - games.solve(losses * bound).value
    assert -1e-6 * bound <= excess <= 2 * bound * math.sqrt(5 / num_steps)
    np.testing.assert_allclose(np.min(risks), risk(weights, losses * bound), atol=1e-5 * bound)


def slow_entropic_risk(weights, losses, alpha):
    scaled = np.float64(losses) @ weights / alpha
    high = scaled.max(axis=1)
    return np.mean(alpha * (high + np.log(np.mean(np.exp(scaled - high[:, None]), axis=1))))


@given(tables((3, 4, 2)), BOUNDS, st.sampled_from([1, 60]), st.sampled_from([0.03, 0.3, 2.0]))
@settings(max_examples=40)
def test_entropic_comes_as_close_as_it_promises(losses, bound, num_steps, warmth):
    """With two members the minimum is a search along a line."""
    losses, alpha = losses * bound, warmth * bound
    weights, _ = compiled("entropic", num_steps=num_steps)(losses, alpha, loss_bound=bound)

    def along(first):
        return slow_entropic_risk(np.array([first, 1 - first]), losses, alpha)

    least = scipy.optimize.minimize_scalar(
        along, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}
    )
    best = min([least.x, 0.0, 1.0], key=along)
    beta, distance = 2 * bound**2 / (4 * alpha), 2 * (best - 0.5) ** 2
    excess = slow_entropic_risk(np.float64(weights), losses, alpha) - along(best)
    promise = 2 * beta * distance / (num_steps + 1) ** 2
    assert -1e-6 * bound <= excess <= promise + 1e-6 * bound


@given(tables(), st.lists(st.floats(0.01, 3.0), min_size=3, max_size=3))
@settings(max_examples=30)
def test_entropic_risk_is_below_the_maximum_by_at_most_alpha_log_m(losses, alphas):
    """For each example by itself."""
    weights = np.float32([0.1, 0.2, 0.3, 0.25, 0.15])
    entropic_risk = compiled("entropic_risk")
    for example, alpha in zip(losses, alphas, strict=True):
        soft = entropic_risk(weights, example[None], jnp.float32(alpha))
        highest = (example @ weights).max()
        assert highest - alpha * math.log(4) - 1e-5 <= soft <= highest + 1e-5
    together = compiled("entropic_risk")(weights, losses, jnp.float32(alphas))
    apart = [
        entropic_risk(weights, one[None], jnp.float32(alpha))
        for one, alpha in zip(losses, alphas, strict=True)
    ]
    np.testing.assert_allclose(together, np.mean(apart), atol=1e-5)


@given(tables(), st.sampled_from([1.0, 0.1, 0.01]))
@settings(max_examples=20)
def test_the_entropic_weights_approach_the_value_as_alpha_falls(losses, alpha):
    num_steps = 300
    weights, risks = compiled("entropic", num_steps=num_steps)(losses, jnp.float32(alpha))
    value, rest = games.solve(losses).value, 5 / (4 * alpha) * 2 * 0.8 / (num_steps + 1) ** 2
    assert value - alpha * math.log(4) - 1e-5 <= risks[-1] <= value + rest + 1e-5
    assert risk(weights, losses) <= value + alpha * math.log(4) + rest + 1e-5


SOLVERS = [
    pytest.param("hedge", {"num_steps": 300, "step_size": 5.0}, id="hedge"),
    pytest.param("regret_matching", {"num_steps": 300}, id="regret matching"),
    pytest.param(
        "regret_matching", {"num_steps": 300, "best_response": True}, id="with best responses"
    ),
]


@pytest.mark.parametrize(("solver", "setting"), SOLVERS)
def test_both_averages_near_the_equilibrium_of_an_asymmetric_game(solver, setting):
    """Rows (1, 0) and (0, 1/2) on one example: weights and attack (1/3, 2/3), value 1/3."""
    found = compiled(solver, **setting)(np.float32([[[1.0, 0.0], [0.0, 0.5]]]))
    np.testing.assert_allclose(found.weights, [1 / 3, 2 / 3], atol=0.02)
    np.testing.assert_allclose(found.attack, [[1 / 3, 2 / 3]], atol=0.02)
    assert found.lower <= 1 / 3 + 1e-6 and found.upper >= 1 / 3 - 1e-6
    assert found.gap < 0.01


@pytest.mark.parametrize(("solver", "setting"), SOLVERS)
@pytest.mark.parametrize("sure", [1e9, 1e38])
def test_what_an_example_costs_in_any_case_moves_no_average(solver, setting, sure):
    """Beside it losses (1, 0), (0, 3), of which float32 would see nothing: weights (3/4, 1/4)."""
    if sure == 1e38:
        setting = setting | {"num_steps": 3}  # finite is enough: the differences are 1e-38 of it
        setting.pop("step_size", None)
    bound = {"loss_bound": sure} if solver == "hedge" else {}
    losses = np.float32([np.full((2, 2), sure), [[1.0, 0.0], [0.0, 3.0]]])
    found = compiled(solver, **setting)(losses, **bound)
    chex.assert_tree_all_finite(found)
    np.testing.assert_allclose(found.upper, sure / 2, rtol=1e-6)
    if sure == 1e9:
        np.testing.assert_allclose(found.weights, [0.75, 0.25], atol=0.05)
        np.testing.assert_allclose(found.attack[1], [0.75, 0.25], atol=0.05)


@pytest.mark.parametrize(("solver", "setting"), SOLVERS)
@pytest.mark.parametrize("shape", [(3, 1, 4), (3, 4, 1), (1, 1, 1)], ids=str)
def test_one_candidate_or_one_member_leaves_a_choice_to_the_other_only(solver, setting, shape):
    losses = table(2, shape)
    found = compiled(solver, **setting)(losses)
    np.testing.assert_allclose(found.upper, games.solve(losses).value, atol=0.01)
    np.testing.assert_allclose(np.sum(found.weights), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.sum(found.attack, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(("solver", "setting"), SOLVERS)
def test_play_works_in_vmap(solver, setting):
    losses = np.stack([table(seed) for seed in range(3)])
    batch = jax.jit(jax.vmap(functools.partial(getattr(games, solver), **setting)))(losses)
    for k in range(3):
        one = compiled(solver, **setting)(losses[k])
        for many, single in zip(batch, one, strict=True):
            np.testing.assert_allclose(many[k], single, atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_steps": 0}, "num_steps must be .* at least 1, got 0"),
        ({"loss_bound": -1.0}, "loss_bound must be positive, got -1.0"),
        ({"loss_bound": 0.5}, r"losses must lie in \[0.0, 0.5\], got values from 1.0 to 1.0"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"step_size": np.ones(3)}, r"step_size must have shape \[\], got \[3\]"),
        ({"losses": np.full((2, 1, 2), -1.0)}, "losses must lie in .* from -1.0"),
        ({"losses": np.ones((2, 2))}, r"losses must have 3 axes, none empty, got \[2, 2\]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        games.hedge(**({"losses": np.ones((2, 1, 2)), "num_steps": 3} | setting))
    if not {"loss_bound", "step_size"} & {*setting}:
        with pytest.raises(ValueError, match=message):
            games.regret_matching(**({"losses": np.ones((2, 1, 2)), "num_steps": 3} | setting))


class Variants(chex.TestCase):
    @chex.all_variants
    @parameterized.parameters("hedge", "regret_matching")
    def test_compiled_or_not_on_any_device_both_players_end_on_the_simplex(self, solver):
        play = self.variant(functools.partial(getattr(games, solver), num_steps=30))(table())
        sums = play.weights.sum(), play.attack.sum(axis=1)
        chex.assert_trees_all_close(sums, (1.0, np.ones(6)), atol=1e-5)
        chex.assert_trees_all_close(play, compiled(solver, num_steps=30)(table()), atol=1e-5)
