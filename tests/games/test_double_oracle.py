"""The grown game: on finite games whose whole solution is known, step by step, and against BAT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixjax import games
from tests.games.test_weights import MEUNIER


class Whole:
    """A finite game, of which double oracle sees what its answers uncover.

    Members are numbers of columns; points are the numbers of a candidate for each example.
    """

    def __init__(self, losses):
        self.losses = np.float64(losses)
        self.examples = np.arange(len(losses))
        self.num_scored = 0
        self.start = np.zeros(len(losses), int)

    def losses_fn(self, member, points):
        self.num_scored += 1
        return jnp.asarray(self.losses[self.examples, points, member])

    def attacker(self, weights, members, index):
        return (self.losses[:, :, list(members)] @ weights).argmax(axis=1)

    def defender(self, attack, points, index):
        played = np.zeros(self.losses.shape[:2])
        for column, candidates in zip(attack.T, points, strict=True):
            played[self.examples, candidates] += column
        return int(np.einsum("nm,nml->l", played, self.losses).argmin())

    def grow(self, members=(0,), **setting):
        setting = {"num_rounds": 60, "defender": self.defender} | setting
        return games.double_oracle(self.losses_fn, self.attacker, members, [self.start], **setting)


def random_game(seed, shape=(4, 5, 6)):
    return np.random.default_rng(seed).uniform(size=shape) * np.linspace(1.0, 0.7, shape[2])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_exact_answers_of_both_lead_to_the_equilibrium_of_the_whole_game(seed):
    whole = Whole(random_game(seed))
    value = games.solve(whole.losses).value
    found, grown = whole.grow()
    np.testing.assert_allclose([found.upper, found.lower], value, atol=1e-6)
    for early, late in zip(grown.rounds, grown.rounds[1:], strict=False):
        assert early.lower <= late.lower + 1e-12 and late.upper <= early.upper + 1e-12
    for one in grown.rounds:
        assert one.lower <= value + 1e-6 and one.upper >= value - 1e-6


def test_what_an_example_costs_in_any_case_does_not_end_the_game_early_or_late():
    """2^36 on top of one example: doubles still hold the losses, and no longer their mean."""
    losses = np.random.default_rng(4).integers(64, size=(4, 5, 6)) / 64
    rounds = []
    for sure in (0.0, 2.0**36):
        whole = Whole(losses + sure * (np.arange(4) == 2)[:, None, None])
        whole.losses_fn = lambda member, points, whole=whole: whole.losses[
            whole.examples, points, member
        ]
        found, grown = whole.grow(tolerance=1e-9)
        rounds.append(grown.rounds)
        np.testing.assert_allclose(found.upper, found.lower, rtol=1e-15, atol=1e-9)
    assert len(rounds[0]) == len(rounds[1]) < 60
    np.testing.assert_allclose([one.upper for one in rounds[1]], 2.0**34 + 0.5, atol=0.5)


def test_without_a_defender_the_game_is_that_of_the_given_members():
    whole = Whole(random_game(1))
    found, grown = whole.grow((4, 1, 2), defender=None)
    want = games.solve(whole.losses[..., [4, 1, 2]])
    np.testing.assert_allclose([found.upper, found.lower], want.value, atol=1e-6)
    assert grown.members == (4, 1, 2)
    # Every pair once: three members at each point.
    assert whole.num_scored == 3 * len(grown.points)
    assert len(grown.points) == len(grown.rounds) + 1 < whole.losses.shape[1] ** 4


def test_the_strategies_returned_have_the_bounds_returned():
    whole = Whole(random_game(2, (20, 8, 12)))
    found, grown = whole.grow(num_rounds=4)
    assert found.upper - found.lower > 0.01  # stopped on the way
    assert grown.losses.shape == (20, 5, 5) and len(found.weights) == len(grown.members) == 5
    gap = games.duality_gap(found.weights, found.attack, grown.losses)
    np.testing.assert_allclose(found.upper - found.lower, gap, atol=1e-12)
    np.testing.assert_allclose((grown.losses @ found.weights).max(axis=1).mean(), found.upper)
    for m, points in enumerate(grown.points):
        for k, member in enumerate(grown.members):
            want = whole.losses[whole.examples, points, member]
            np.testing.assert_allclose(grown.losses[:, m, k], want, rtol=1e-6)
    last = grown.rounds[-1]
    assert (last.num_members, last.num_candidates) == (5, 5)
    assert (last.upper, last.lower) == (found.upper, found.lower)


def test_the_motivating_example_grows_from_one_classifier_and_the_examples():
    whole = Whole(MEUNIER)
    whole.start = np.ones(4, int)  # nothing moves
    found, grown = whole.grow()
    first = grown.rounds[0]
    assert (first.risk, first.response) == (1.0, 0.25)  # f2 does not care for attacks on f1
    np.testing.assert_allclose([found.upper, found.lower], 3 / 4, atol=1e-12)
    mass = [found.weights[np.array(grown.members) == k].sum() for k in (0, 1)]
    np.testing.assert_allclose(mass, 1 / 2, atol=1e-12)


def test_a_late_discovery_corrects_the_bound_of_earlier_weights():
    """The attacker sleeps through the first round: its upper bound was too low, and rises."""
    whole = Whole(random_game(3))
    awake = whole.attacker
    whole.attacker = lambda weights, members, index: awake(weights, members, index) * (index > 0)
    found, grown = whole.grow(num_rounds=3, defender=None, members=(0, 1, 2), tolerance=-1.0)
    value = games.solve(whole.losses[..., :3]).value
    assert grown.rounds[0].upper < value - 0.05
    assert grown.rounds[1].upper > grown.rounds[0].upper + 0.05
    assert grown.rounds[0].lower <= value  # what the attacker found is there


def test_a_new_member_corrects_the_bound_of_earlier_attacks():
    """The defender sleeps through the first round: its lower bound was too high, and falls."""
    whole = Whole(random_game(4))
    awake = whole.defender
    whole.defender = lambda attack, points, index: awake(attack, points, index) if index else 0
    found, grown = whole.grow(num_rounds=2, tolerance=-1.0)
    assert grown.rounds[1].lower < grown.rounds[0].lower - 0.05
    worse_members = whole.losses[..., [0]]
    assert grown.rounds[0].lower <= worse_members.max(axis=1).mean() + 1e-12


def test_the_weights_returned_are_the_best_of_all_rounds_not_the_last():
    """A defender who mixes in the first round and then plays one member alone."""
    plans = iter([np.ones(3) / 3, *3 * [np.eye(3)[0]]])
    found, grown = Whole(random_game(6)).grow(
        (0, 1, 2),
        defender=None,
        strategies=lambda losses: (next(plans), games.solve(losses).attack),
        num_rounds=3,
        tolerance=-1.0,
    )
    assert grown.rounds[-1].risk > found.upper + 0.05
    np.testing.assert_allclose(found.weights, 1 / 3)
    np.testing.assert_allclose((grown.losses @ found.weights).max(axis=1).mean(), found.upper)


def test_it_ends_within_the_tolerance_and_not_before():
    _, exact = Whole(random_game(5, (20, 8, 12))).grow()
    _, loose = Whole(random_game(5, (20, 8, 12))).grow(tolerance=0.05)
    gaps = [one.upper - one.lower for one in exact.rounds]
    assert len(loose.rounds) == 1 + next(i for i, gap in enumerate(gaps) if gap <= 0.05)
    assert 1 < len(loose.rounds) < len(exact.rounds)
    assert len(Whole(random_game(5)).grow(num_rounds=9, tolerance=-1.0)[1].rounds) == 9


def test_points_and_members_are_whatever_the_functions_make_of_them():
    """Images under a shift, classified by their mean against a member's threshold."""
    images = jnp.linspace(0.1, 0.9, 5)[:, None, None] * jnp.ones((5, 2, 2))

    def losses_fn(member, points):
        return 1.0 * (jnp.mean(points["images"], axis=(1, 2)) < member["threshold"])

    def attacker(weights, members, index):
        return {"images": jnp.clip(images - 0.15, 0, 1)}

    members = [{"threshold": jnp.float32(t)} for t in (0.5, 0.2)]
    found, grown = games.double_oracle(
        losses_fn, attacker, members, [{"images": images}], num_rounds=3
    )
    np.testing.assert_array_equal(grown.losses[:, 0], [[1, 1], [1, 0], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(grown.losses[:, 1], [[1, 1], [1, 1], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose([found.upper, found.lower], 0.4)
    np.testing.assert_allclose(found.weights, [0, 1])


def test_a_defender_may_train_each_new_member_against_the_attack(key):
    """Two points that a line must tell apart, each moved by at most 1; members are `[2]` lines.

    The attack found so far is the training set: points weighed by their probabilities.
    """
    x, labels = jnp.array([-0.5, 0.3, 0.9]), jnp.array([-1.0, 1.0, 1.0])

    def losses_fn(member, points):
        return (labels * (member[0] * points + member[1]) <= 0).astype(jnp.float32)

    def attacker(weights, members, index):
        grid = x[:, None] + jnp.linspace(-1.0, 1.0, 21)[None]
        losses = jnp.zeros(grid.shape)
        for w, (slope, offset) in zip(weights, members, strict=True):
            losses += w * (labels[:, None] * (slope * grid + offset) <= 0)
        return grid[jnp.arange(3), losses.argmax(axis=1)]

    @jax.jit
    def train(attack, points, member):
        def loss_fn(member):
            margins = labels[:, None] * (member[0] * points + member[1])
            return jnp.sum(attack * jax.nn.softplus(-10 * margins))

        def step(member, _):
            return member - 0.05 * jax.grad(loss_fn)(member), None

        return jax.lax.scan(step, member, length=200)[0]

    trained = []

    def defender(attack, points, index):
        start = jax.random.normal(jax.random.fold_in(key, index), (2,))
        trained.append((attack, train(jnp.asarray(attack), jnp.stack(points, axis=1), start)))
        return trained[-1][1]

    members = [jnp.array([1.0, 0.0])]
    found, grown = games.double_oracle(
        losses_fn, attacker, members, [x], num_rounds=5, defender=defender
    )
    assert len(trained) == len(grown.rounds) == len(grown.members) - 1
    np.testing.assert_array_equal(grown.members[-1], trained[-1][1])
    alone = grown.losses[:, :, 0].max(axis=1).mean()
    assert found.upper < alone - 0.1  # what was trained is of use
    # Lines answer right on two of the three at best, whatever is done; one class always loses.
    assert 1 / 3 - 1e-9 <= found.lower <= found.upper


# Boosted adversarial training.


def test_boosting_gives_each_new_member_its_share():
    weights = np.ones(1)
    for num_members in range(1, 6):
        found, attack = games.boosting(0.1)(np.ones((2, 3, num_members)))
        np.testing.assert_allclose(found, weights, rtol=1e-12)
        np.testing.assert_array_equal(attack, [[0, 0, 1]] * 2)
        weights = np.append(0.9 * weights, 0.1)


def test_boosting_trains_each_member_against_the_last_answer_to_the_mixture():
    whole = Whole(random_game(6, (10, 6, 8)))
    found, grown = whole.grow(strategies=games.boosting(0.3), num_rounds=3, tolerance=-1.0)
    members, weights, points = [0], np.ones(1), [whole.start]
    for _ in range(3):  # the algorithm as the paper writes it
        attacked = (whole.losses[..., members] @ weights).argmax(axis=1)
        risk = whole.losses[whole.examples, attacked][:, members].mean(axis=0) @ weights
        np.testing.assert_allclose(grown.rounds[len(members) - 1].risk, risk, rtol=1e-6)
        points.append(attacked)
        members.append(int(whole.losses[whole.examples, attacked].mean(axis=0).argmin()))
        weights = np.append(0.7 * weights, 0.3)
    assert grown.members == tuple(members) and len({*members}) > 2
    np.testing.assert_array_equal(grown.points, points)


def test_an_equilibrium_of_the_members_of_boosting_is_never_worse():
    for seed in range(3):
        whole = Whole(random_game(seed, (15, 6, 8)))
        setting = {"num_rounds": 8, "tolerance": -1.0}
        boosted, grown = whole.grow(strategies=games.boosting(0.2), **setting)
        assert games.solve(grown.losses).value <= boosted.upper + 1e-9
        assert whole.grow(**setting)[0].upper < boosted.upper - 0.005  # at an equal budget


# What is refused.


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_losses_that_make_no_sense_are_refused(value):
    whole = Whole(np.full((2, 3, 2), value))
    with pytest.raises(ValueError, match="losses must lie in .*, got values from"):
        whole.grow()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_rounds": 0}, "num_rounds must be .* at least 1, got 0"),
        ({"members": []}, "must not be empty, got 0 members and 1 points"),
        ({"points": []}, "must not be empty, got 1 members and 0 points"),
        ({"tolerance": float("nan")}, "tolerance must lie in .* nan"),
        ({"strategies": lambda t: (np.ones(1), np.ones(t.shape[:2]))}, "the sums of attack"),
        ({"strategies": lambda t: (np.ones(2) / 2, None)}, r"weights must have shape \[1\]"),
    ],
)
def test_an_empty_game_is_refused(setting, message):
    whole = Whole(random_game(0))
    setting = {"members": [0], "points": [whole.start], "num_rounds": 2} | setting
    with pytest.raises(ValueError, match=message):
        games.double_oracle(whole.losses_fn, whole.attacker, **setting)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_outside_of_its_range_is_refused(share):
    with pytest.raises(ValueError, match="share must be"):
        games.boosting(share)


def test_losses_of_the_wrong_shape_are_refused():
    whole = Whole(random_game(0))
    with pytest.raises(ValueError, match=r"losses must have shape \[4\], got \[3\]"):
        games.double_oracle(
            lambda member, points: np.ones(len(points)),
            lambda weights, members, index: np.zeros(3),
            [0],
            [whole.start],
            num_rounds=1,
        )
    with pytest.raises(ValueError, match=r"losses must have 1 axes, none empty, got \[4, 1\]"):
        games.double_oracle(
            lambda member, points: np.ones((4, 1)), whole.attacker, [0], [whole.start], num_rounds=1
        )
