"""Double oracle in the plane: certified, above no truth and below boosting."""

import json

import jax
import numpy as np
import pytest

from experiments.meunier_2021 import double_oracle
from experiments.meunier_2021.double_oracle import Finite
from mixjax import games
from mixjax.data import toy

TINY = (
    "--epsilon 4 --examples 50 --candidates 30 --half-planes 12 --networks 4 --width 4 --steps 100 "
    "--rounds 40 --shares 0.1,0.5 --tolerance 0.01"
).split()
CONFIG = double_oracle.Config(
    epsilon=4, examples=50, candidates=30, half_planes=12, networks=4, width=4, steps=100
)


@pytest.fixture(scope="module")
def losses():
    return double_oracle.finite_game(CONFIG).losses


@pytest.fixture(scope="module")
def finished(tmp_path_factory, losses):
    """On the same game, which is drawn and trained once."""
    folder = tmp_path_factory.mktemp("runs") / "run"

    def finite_game(config):
        names = "epsilon examples candidates half_planes networks width steps seed".split()
        assert all(getattr(config, name) == getattr(CONFIG, name) for name in names)
        return Finite(losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(double_oracle, "finite_game", finite_game)
        double_oracle.main([*TINY, "--run-dir", str(folder)])
    return folder, json.loads((folder / "result.json").read_text())


def test_answers_are_the_best_of_the_whole_pool_and_of_all_points():
    rng = np.random.default_rng(0)
    finite = Finite((rng.uniform(size=(7, 5, 6)) < 0.4).astype(np.uint8))
    weights = np.array([0.7, 0.3])
    answer = finite.attacker(weights, (4, 1), 0)
    paid = finite.losses[np.arange(7), answer][:, [4, 1]] @ weights
    assert paid.mean() == pytest.approx(finite.risk(weights, (4, 1)))
    points, attack = (np.zeros(7, int), np.full(7, 3)), np.tile([0.25, 0.75], (7, 1))
    member = finite.defender(attack, points, 0)
    losses = 0.25 * finite.losses[:, 0].mean(axis=0) + 0.75 * finite.losses[:, 3].mean(axis=0)
    assert losses[member] == losses.min() < losses.max()


def test_the_bounds_hold_the_value_of_the_whole_game_and_boosting_stays_above(finished, losses):
    _, result = finished
    own = result["double_oracle"]
    assert own["gap"] <= 0.01 and own["rounds"] < 40
    value = games.solve(losses.astype(float)).value
    assert own["lower"] - 1e-9 <= value <= own["upper"] + 1e-9
    assert own["risk_under_all_candidates"] == pytest.approx(own["upper"], abs=1e-9)
    for boosted in result["boosting"].values():
        assert boosted["rounds"] == own["rounds"]
        assert boosted["upper"] >= value - 1e-9
    assert result["advantage_over_boosting"] > 0
    assert result["best_weights_for_boosting_s_members"] <= result["best_single_member"]
    assert result["best_weights_for_boosting_s_members"] <= min(
        boosted["upper"] for boosted in result["boosting"].values()
    )
    best = result["boosting"][f"{result['best_share']:g}"]["upper"]
    assert result["advantage_over_boosting"] == pytest.approx(best - own["upper"])
    for kind in result["each_kind_alone"].values():
        assert kind["lower"] <= kind["upper"] + 1e-9 and kind["upper"] >= value - 1e-9


def test_the_pool_stands_still_at_candidate_0_and_nobody_in_it_errs_too_often(losses):
    """Both kinds of members, from their definitions: half-planes first, then what was trained."""

    @jax.jit
    def of_half_planes():
        keys = jax.random.split(jax.random.key(CONFIG.seed), 4)
        x, labels = toy.three_gaussians(keys[0], 50)
        return toy.errors(*toy.half_planes(keys[1], x, labels, 12), x, labels)

    np.testing.assert_array_equal(losses[:, 0, :12], of_half_planes())
    clean = losses[:, 0].mean(axis=0)
    assert 12 < losses.shape[2] <= 16 and clean.max() < 0.4
    assert np.all(losses.max(axis=1).mean(axis=0) >= clean)


def test_training_makes_a_network_that_is_right_more_often_than_not(key):
    @jax.jit
    def margins(key):
        x, labels = toy.three_gaussians(key, 60)
        params = double_oracle.train(key, x, labels, double_oracle.Config(steps=40, width=4))
        return double_oracle.network(params, x) * labels

    assert np.mean(np.asarray(margins(key)) > 0) > 0.6


def test_the_rounds_are_written_and_drawn(finished):
    folder, result = finished
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    rows = np.genfromtxt(folder / "rounds.csv", delimiter=",", names=True)
    own = rows[rows["share"] == 0]
    assert len(own) == result["rounds"] and len(rows) == 3 * len(own)
    assert np.all(np.diff(own["upper"]) <= 1e-9) and np.all(np.diff(own["lower"]) >= -1e-9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--shares 1", "share must be"),
        ("--epsilon 0", "epsilon must be positive"),
        ("--rounds 0", "rounds must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        double_oracle.main([*TINY, *flags.split(), "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1 and message in error[0]
