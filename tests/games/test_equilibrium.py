"""The exact equilibrium: against linear programs built otherwise, closed forms, and itself."""

import itertools
from fractions import Fraction

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
from mixjax.games import equilibrium, patterns
from tests.games.test_weights import MEUNIER

F1_OR_F2 = np.array([0.5, 0.5])


def random_game(seed, shape, levels=None):
    """Losses `[N, M, L]`; with `levels`, of so many different values from 0 to 1."""
    rng = np.random.default_rng(seed)
    if levels is None:
        return rng.uniform(size=shape) * np.linspace(0.6, 1.0, shape[2])
    return rng.integers(levels, size=shape) / (levels - 1)


def matrix_game_value(losses):
    """The value by the attacker's program over pure strategies: a candidate for each example.

    `max v` where `sum_s q_s matrix_sk >= v` for every member `k`.
    """
    num_examples, num_candidates, num_members = losses.shape
    plans = itertools.product(range(num_candidates), repeat=num_examples)
    matrix = np.array([[losses[n, m] for n, m in enumerate(plan)] for plan in plans]).mean(axis=1)
    result = scipy.optimize.linprog(
        np.append(np.zeros(len(matrix)), -1.0),
        np.concatenate([-matrix.T, np.ones((num_members, 1))], axis=1),
        np.zeros(num_members),
        np.append(np.ones(len(matrix)), 0.0)[None],
        [1.0],
        method="highs-ipm",
    )
    assert result.status == 0
    return -result.fun


def dense_value(losses):
    """The value by the defender's whole program, a height for each example, without merging."""
    num_examples, num_candidates, num_members = losses.shape
    heights = -np.repeat(np.eye(num_examples), num_candidates, axis=0) * num_examples
    result = scipy.optimize.linprog(
        np.append(np.zeros(num_members), np.ones(num_examples)),
        np.concatenate([losses.reshape(-1, num_members), heights], axis=1),
        np.zeros(len(heights)),
        np.append(np.ones(num_members), np.zeros(num_examples))[None],
        [1.0],
        bounds=[(0, None)] * num_members + [(None, None)] * num_examples,
    )
    assert result.status == 0
    return result.fun


def slow_gap(weights, attack, losses):
    """What the players gain by answering the weights and the attack."""
    worst, members = 0.0, np.zeros(len(weights))
    for example, probabilities in zip(losses, attack, strict=True):
        worst += max(float(row @ weights) for row in example)
        for row, probability in zip(example, probabilities, strict=True):
            members += probability * row
    return (worst - members.min()) / len(losses)


def assert_equilibrium(found, losses, value=None, tolerance=1e-9):
    """Both strategies are probabilities, and neither player can gain by another one."""
    losses = np.float64(losses)
    assert np.all(found.weights >= 0) and np.all(found.attack >= 0)
    np.testing.assert_allclose(found.weights.sum(), 1.0, atol=1e-12)
    np.testing.assert_allclose(found.attack.sum(axis=1), 1.0, atol=1e-12)
    bound = losses.max()
    gap = slow_gap(found.weights, found.attack, losses)
    np.testing.assert_allclose(found.gap, gap, atol=1e-12 * max(bound, 1.0))
    assert -1e-12 * bound <= gap <= tolerance * bound
    risk = (losses @ found.weights).max(axis=1).mean()
    np.testing.assert_allclose(found.value, risk, rtol=1e-12)
    if value is not None:
        np.testing.assert_allclose(found.value, value, atol=1e-6 * bound)


SHAPES = [(3, 3, 2), (4, 3, 5), (2, 7, 3), (1, 4, 4), (3, 1, 3), (4, 4, 1), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels", [None, 2, 3])
def test_the_value_is_that_of_the_game_over_pure_plans_of_attack(shape, levels):
    for seed in range(3):
        losses = random_game(seed, shape, levels)
        assert_equilibrium(games.solve(losses), losses, matrix_game_value(losses))


@pytest.mark.parametrize("shape", [(60, 12, 5), (100, 30, 3), (70, 4, 12)], ids=str)
@pytest.mark.parametrize("levels", [None, 2])
def test_the_value_is_that_of_the_whole_dense_program(shape, levels):
    """More examples than there are groups, so that cuts are sums."""
    assert shape[0] > equilibrium._MAX_GROUPS
    losses = random_game(7, shape, levels)
    assert_equilibrium(games.solve(losses), losses, dense_value(losses))


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
        elements=st.sampled_from([0.0, 0.25, 1.0]) | st.floats(0, 1, width=16),
    ),
    st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=60)
def test_every_finite_game_has_an_equilibrium(losses, scale):
    found = games.solve(losses * scale)
    assert_equilibrium(found, losses * scale, dense_value(losses) * scale if losses.max() else 0.0)


def test_the_motivating_example_is_exact():
    """Meunier 2021, section 2.1: 1/4 unattacked, 1 for each classifier, 3/4 for the mixture."""
    found = games.solve(MEUNIER)
    assert_equilibrium(found, MEUNIER, tolerance=1e-12)
    np.testing.assert_allclose(found.value, 3 / 4, atol=1e-12)
    np.testing.assert_allclose(found.weights, F1_OR_F2, atol=1e-12)
    # Points at 0 of class -1 move to -1 or +1 as often; those of class +1 come to 0.
    np.testing.assert_allclose(found.attack[:2].mean(axis=0), [0.5, 0.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(found.attack[2:], [[0, 0, 1], [1, 0, 0]], atol=1e-12)
    still = MEUNIER[:, 1].mean(axis=0)
    np.testing.assert_allclose(still, [0.25, 0.25], atol=1e-12)
    for member in np.eye(2):
        assert abs((MEUNIER @ member).max(axis=1).mean() - 1.0) < 1e-12
    always_right = found.attack.copy()
    always_right[:2] = [0.0, 0.0, 1.0]
    best_answer = np.einsum("nm,nml->l", always_right, MEUNIER).min() / 4
    np.testing.assert_allclose(best_answer, 1 / 2, atol=1e-12)


def test_an_asymmetric_game_has_the_equilibrium_of_its_closed_form():
    """Rows (1, 0) and (0, 1/2) on one example: weights and attack (1/3, 2/3), value 1/3."""
    found = games.solve(np.array([[[1.0, 0.0], [0.0, 0.5]]]))
    np.testing.assert_allclose(found.weights, [1 / 3, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(found.attack, [[1 / 3, 2 / 3]], atol=1e-12)
    np.testing.assert_allclose(found.value, 1 / 3, atol=1e-12)


def test_examples_weigh_the_same_however_often_they_are_merged():
    """Three times rows (1, 0), (0, 1/2), once the member-wise exchange of it."""
    one, other = np.array([[1.0, 0.0], [0.0, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.0]])
    losses = np.stack([one, one, other, one])
    assert len(patterns.merge(losses).losses) == 2
    assert_equilibrium(games.solve(losses), losses, dense_value(losses))
    np.testing.assert_allclose(np.sort(patterns.merge(losses).mass), [0.25, 0.75])


def test_a_dominated_member_gets_no_weight_and_equal_members_change_nothing():
    losses = random_game(1, (20, 6, 3))
    dominated = np.concatenate([losses, losses.max(axis=2, keepdims=True) + 0.01], axis=2)
    alone, found = games.solve(losses), games.solve(dominated)
    assert found.weights[3] == 0.0
    np.testing.assert_allclose(found.weights[:3], alone.weights, atol=1e-9)
    twice = np.concatenate([losses, losses], axis=2)
    assert_equilibrium(games.solve(twice), twice, alone.value)
    merged = games.solve(twice).weights.reshape(2, 3).sum(axis=0)
    np.testing.assert_allclose(merged, alone.weights, atol=1e-7)


def test_dominated_and_equal_candidates_are_left_out_and_never_played():
    losses = random_game(5, (30, 3, 4), levels=2)
    weaker = losses * (np.arange(4) > 0)  # no member errs there that does not err at the other
    more = np.concatenate([weaker, losses, losses], axis=1)
    want, found = games.solve(losses), games.solve(more)
    np.testing.assert_allclose(found.value, want.value, atol=1e-12)
    differs = (weaker != losses).any(axis=2)
    assert differs.any() and np.all(found.attack[:, :3][differs] == 0)
    assert np.all(found.attack[:, 6:] == 0)  # of equal ones the first is played
    assert patterns.merge(more).losses.shape == patterns.merge(losses).losses.shape


def test_merging_shrinks_a_table_of_errors_and_spreads_the_attack_back():
    losses = random_game(0, (3000, 40, 3), levels=2)
    smaller = patterns.merge(losses)
    assert smaller.losses.size <= 8 * 8 * 3
    np.testing.assert_allclose(smaller.mass.sum(), 1.0)
    attack = np.random.default_rng(1).dirichlet(np.ones(smaller.losses.shape[1]), len(smaller.mass))
    # What fills up a set repeats its first row, so that mass there is mass on that row.
    want = np.einsum("u,um,uml->l", smaller.mass, attack, smaller.losses)
    spread = smaller.spread(attack)
    np.testing.assert_allclose(spread.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.einsum("nm,nml->l", spread, losses) / 3000, want)


def test_rows_are_equal_only_if_all_their_losses_are():
    """256 values in 12 columns: numbers that ran over would forget the first columns."""
    flat = np.random.default_rng(0).permuted(np.tile(np.arange(256.0), (12, 1)), axis=1).T
    other = flat.copy()
    other[:, 0] = np.roll(flat[:, 0], 1)
    codes = patterns._codes(np.concatenate([flat, other, flat]))
    assert len(np.unique(codes)) == 512
    np.testing.assert_array_equal(codes[:256], codes[512:])


def test_a_table_of_many_different_rows_is_not_merged():
    losses = random_game(2, (1000, 4, 2))
    assert patterns.merge(losses).losses is losses
    late = np.concatenate([np.zeros((2000, 4, 2)), losses])  # differences after the sample
    assert patterns.merge(late).losses is late


def test_members_candidates_and_examples_may_change_places():
    losses = random_game(3, (9, 5, 4))
    rng = np.random.default_rng(0)
    n, m, k = (rng.permutation(size) for size in losses.shape)
    found, want = games.solve(losses[n][:, m][..., k]), games.solve(losses)
    np.testing.assert_allclose(found.weights, want.weights[k], atol=1e-9)
    np.testing.assert_allclose(found.value, want.value, atol=1e-12)


def test_solvers_of_either_player_agree_about_the_value():
    """The game in which the players change places: `attack` by `oracle` on one example."""
    losses = random_game(4, (1, 5, 3))
    found = games.solve(losses)
    other = games.solve(1.0 - np.swapaxes(losses, 1, 2))
    np.testing.assert_allclose(1.0 - other.value, found.value, atol=1e-9)
    np.testing.assert_allclose(other.weights, found.attack[0], atol=1e-9)


# Losses of any size.

SMALL = np.array([[1.0, 0.0], [0.0, 3.0]])
"""One example of its own equilibrium: weights and attack (3/4, 1/4), value 3/4."""

COSTS_IN_ANY_CASE = [
    pytest.param(np.full((2, 2), 1e9), id="the same everywhere"),
    pytest.param(np.array([[0.0, 0.0], [1e9, 1e9]]), id="the same of every member"),
    pytest.param(np.array([[1e9, 1e9], [1e9, 5.0]]), id="at a candidate better than all others"),
    pytest.param(np.full((2, 2), 1e300), id="nearly as large as numbers are"),
    pytest.param(np.full((2, 2), 1.7e308), id="so large that two make too much"),
]


@pytest.mark.parametrize("other", COSTS_IN_ANY_CASE)
def test_an_example_that_costs_every_member_the_same_moves_nobody(other):
    found = games.solve(np.stack([other, SMALL]))
    np.testing.assert_allclose(found.weights, [0.75, 0.25], atol=1e-12)
    np.testing.assert_allclose(found.attack[1], [0.75, 0.25], atol=1e-12)
    np.testing.assert_allclose(found.value, other.max() / 2 + 0.375, rtol=1e-15)
    assert found.lower == np.nextafter(found.upper, 0.0)  # the last digit hides what there is


@pytest.mark.parametrize("sure", [1e9, 1e300])
def test_the_gap_of_given_strategies_does_not_hide_behind_what_an_example_costs(sure):
    losses = np.stack([np.full((2, 2), sure), SMALL])
    attack = np.array([[0.5, 0.5], [0.75, 0.25]])
    gap = games.duality_gap(np.array([0.75, 0.25]), attack, losses)
    np.testing.assert_allclose(gap, 0.0, atol=1e-12)
    gap = games.duality_gap(np.array([0.5, 0.5]), attack, losses)
    np.testing.assert_allclose(gap, (1.5 - 0.75) / 2, rtol=1e-12)


@pytest.mark.parametrize("cost", [1e9, 1e200])
def test_a_member_too_dear_to_be_played_hides_no_small_difference(cost):
    losses = np.concatenate([SMALL, [[cost], [cost]]], axis=1)[None]
    found = games.solve(losses)
    np.testing.assert_allclose(found.weights, [0.75, 0.25, 0.0], atol=1e-12)
    np.testing.assert_allclose([found.value, found.gap], [0.75, 0.0], atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 5e307])
def test_the_strategies_do_not_depend_on_the_unit_of_the_losses(scale):
    losses = random_game(8, (5, 4, 3))
    want, found = games.solve(losses), games.solve(losses * scale)
    chex.assert_trees_all_close(found[:2], want[:2], atol=1e-9)
    np.testing.assert_allclose(found.value / scale, want.value, rtol=1e-9)
    assert 0 <= found.gap / scale < 1e-12


def exact_gap(weights, attack, losses):
    """The gap in rational numbers."""
    weights = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    worst, members = Fraction(0), [Fraction(0)] * len(weights)
    for example, probabilities in zip(losses, attack, strict=True):
        total = sum(map(Fraction, probabilities))
        rows = [[Fraction(loss) for loss in row] for row in example]
        worst += max(sum(w * r for w, r in zip(weights, row, strict=True)) for row in rows)
        for row, probability in zip(rows, probabilities, strict=True):
            for k, loss in enumerate(row):
                members[k] += Fraction(probability) / total * loss
    return (worst - min(members)) / len(losses)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e6, 1e9]))
@settings(max_examples=25)
def test_the_certificate_never_promises_more_than_is_true(seed, sure):
    """Against rational numbers: rounding may make the gap a little larger, never smaller."""
    losses = random_game(seed, (3, 3, 3)) + sure * np.arange(3.0)[:, None, None]
    found = games.solve(losses)
    strategies = found.weights.tolist(), found.attack.tolist(), losses.tolist()
    true = exact_gap(*strategies)
    last_digit = np.spacing(found.value)
    gaps = (found.gap, last_digit), (games.duality_gap(*strategies[:2], losses), 0.0)
    for gap, hidden in gaps:
        assert true <= Fraction(gap) <= true + Fraction(1e-13) + Fraction(hidden)
    assert (found.value, found.gap) == (found.upper, found.upper - found.lower)
    assert true < Fraction(1e-9)


# The certificate.


def test_the_gap_is_what_the_players_gain_by_deviating():
    losses, rng = random_game(6, (7, 4, 3)), np.random.default_rng(2)
    weights, attack = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(4), 7)
    want = slow_gap(weights, attack, losses)
    assert want > 0.05
    np.testing.assert_allclose(games.duality_gap(weights, attack, losses), want, rtol=1e-13)


def test_the_gap_works_in_vmap():
    rng = np.random.default_rng(3)
    losses, weights = rng.uniform(size=(2, 6, 4, 3)), rng.dirichlet(np.ones(3), 2)
    attack = rng.dirichlet(np.ones(4), (2, 6))
    batch = jax.vmap(games.duality_gap)(*(jnp.float32(x) for x in (weights, attack, losses)))
    want = [slow_gap(*case) for case in zip(weights, attack, losses, strict=True)]
    np.testing.assert_allclose(batch, want, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_no_pair_of_strategies_has_a_negative_gap(seed):
    rng = np.random.default_rng(seed)
    losses = rng.integers(2, size=(3, 4, 3)) * 1.0
    weights, attack = rng.dirichlet(np.full(3, 0.3)), rng.dirichlet(np.full(4, 0.3), 3)
    assert games.duality_gap(weights, attack, losses) >= -1e-12


class Variants(chex.TestCase):
    @chex.all_variants
    def test_compiled_or_not_on_any_device_the_gap_is_what_the_players_gain(self):
        losses, rng = random_game(6, (7, 4, 3)), np.random.default_rng(2)
        weights, attack = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(4), 7)
        arrays = [jnp.float32(x) for x in (weights, attack, losses)]
        gap = self.variant(games.duality_gap)(*arrays)
        chex.assert_trees_all_close(gap, slow_gap(weights, attack, losses), atol=1e-6)


# What is refused.

NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (np.ones((2, 3)), r"losses must have 3 axes, none empty, got \[2, 3\]"),
        (np.ones((0, 2, 3)), r"losses must have 3 axes, none empty, got \[0, 2, 3\]"),
        (np.ones((2, 2, 0)), r"losses must have 3 axes, none empty, got \[2, 2, 0\]"),
        (np.full((1, 2, 2), -0.5), "losses must lie in .*, got values from -0.5 to -0.5"),
        (np.full((1, 2, 2), NAN), "losses must lie in .*, got values from nan"),
        (np.full((1, 2, 2), np.inf), "losses must lie in .*, got values from inf"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        games.solve(losses)
    with pytest.raises(ValueError, match=message):
        games.regret_matching(losses, num_steps=3)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        ({"weights": [0.5, 0.6]}, "weights must be on the simplex"),
        ({"weights": [1.5, -0.5]}, "weights must be on the simplex"),
        ({"weights": [1.0]}, r"weights must have shape \[2\], got \[1\]"),
        ({"attack": [[0.5, 0.5, 0.5]]}, "the sums of attack must lie in"),
        ({"attack": [[1.5, -0.5, 0.0]]}, "attack must lie in .* from -0.5 to 1.5"),
        ({"attack": [[NAN, 1.0, 0.0]]}, "attack must lie in .* nan"),
        ({"attack": [[0.5, 0.5]]}, r"attack must have shape \[1, 3\], got \[1, 2\]"),
        ({"losses": np.ones((3, 2))}, r"losses must have 3 axes, none empty, got \[3, 2\]"),
    ],
)
def test_strategies_that_are_no_probabilities_get_no_certificate(convert, strategies, message):
    sound = {"weights": [0.5, 0.5], "attack": [[0.2, 0.3, 0.5]], "losses": np.ones((1, 3, 2))}
    arguments = {name: convert(value) for name, value in (sound | strategies).items()}
    with pytest.raises(ValueError, match=message):
        games.duality_gap(**arguments)
