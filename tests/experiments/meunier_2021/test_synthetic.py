"""The synthetic problem: its parts by two routes, and the whole as a person runs it."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments.meunier_2021 import synthetic
from experiments.meunier_2021.synthetic import Config, ErrorPatterns
from mixjax import games
from mixjax.data import toy

CONFIG = Config(examples=60, candidates=50, members=4)
RADII = np.float32([0.0, 1.0, 3.0])
TINY = (
    "--seeds 2 --examples 40 --candidates 30 --members 3 --radii 1,3 --iterations 4 --shown 5 "
    "--temperatures 1,0.03"
).split()


@pytest.fixture(scope="module")
def drawn():
    problem, codes = jax.jit(functools.partial(synthetic.draw_problem, config=CONFIG, radii=RADII))(
        jax.random.key(3)
    )
    return problem, np.asarray(codes)


def whole_table(codes):
    """`[N, M, L]` without any merging."""
    return ((codes[..., None] >> np.arange(CONFIG.members)) & 1).astype(np.float32)


def test_the_classes_lie_where_the_paper_puts_them(key):
    x, labels = map(np.asarray, jax.jit(toy.three_gaussians, static_argnums=1)(key, 4000))
    assert abs(float(labels.mean())) < 0.06
    middle, outer = x[labels < 0], x[labels > 0]
    np.testing.assert_allclose(middle.mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(outer.mean(axis=0), 0.0, atol=0.25)
    np.testing.assert_allclose(middle.std(axis=0), 1.0, atol=0.1)
    np.testing.assert_allclose(outer.std(axis=0), [10**0.5, 1.0], atol=0.1)
    assert 0.4 < float((outer[:, 0] > 0).mean()) < 0.6


def test_every_half_plane_is_good_enough_and_of_slope_1(key):
    @jax.jit
    def draw(key):
        x, labels = toy.three_gaussians(key, 500)
        other = jax.random.fold_in(key, 1)
        return x, labels, *toy.half_planes(other, x, labels, num_members=8, max_risk=0.4)

    x, labels, slopes, offsets = map(np.asarray, draw(key))
    wrong = (x @ slopes.T + offsets) * labels[:, None] <= 0
    assert float(wrong.mean(axis=0).max()) < 0.4
    np.testing.assert_allclose(np.linalg.norm(slopes, axis=1), 1.0, rtol=1e-5)


def test_offsets_are_three_times_as_wide_as_the_entries_of_a_slope(key):
    """An offset over the length of its slope is below r as often as r / sqrt(r^2 + 9)."""
    x = np.float32([[100.0, 0.0], [-100.0, 0.0]])  # half the half-planes are right on both
    draw = jax.jit(functools.partial(toy.half_planes, num_members=800, max_risk=0.4))
    offsets = np.asarray(draw(key, x, np.float32([1.0, -1.0]))[1])
    found = np.mean(np.abs(offsets)[:, None] < [1.0, 3.0, 9.0], axis=0)
    np.testing.assert_allclose(found, [0.316, 0.707, 0.949], atol=0.05)
    assert abs(float((offsets > 0).mean()) - 0.5) < 0.07


def test_points_of_the_disc_are_uniform(key):
    draw = jax.jit(toy.unit_discs, static_argnums=1)
    points = np.asarray(draw(key, (50, 100))).reshape(-1, 2)
    radii = np.linalg.norm(points, axis=1)
    assert float(radii.max()) <= 1 + 1e-6
    np.testing.assert_allclose(
        np.mean(radii[:, None] < [0.5, 0.8], axis=0), [0.25, 0.64], atol=0.03
    )
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=0.03)


def test_more_room_never_helps_the_defender_and_no_code_lies(drawn):
    problem, codes = drawn
    assert codes.shape == (2, 3, 60, 50)
    near, far = (whole_table(codes[0, k]).max(axis=1) for k in (1, 2))
    arguments = problem.slopes, problem.offsets, problem.x, problem.labels
    clean = np.asarray(jax.jit(toy.errors)(*arguments))
    # Who errs on an example errs on some point around it but for rare geometry; reach grows it.
    assert far.mean() > near.mean() > float(clean.mean())
    still, on_test = (whole_table(codes[k, 0]) for k in (0, 1))
    np.testing.assert_array_equal(still, np.repeat(clean[:, None], 50, axis=1))
    assert np.mean(on_test[:, 0] != still[:, 0]) > 0.2  # other examples


def test_the_four_risks_are_those_of_their_names():
    rng = np.random.default_rng(0)
    train, test = ((rng.uniform(size=(30, 4, 3)) < share) * 1.0 for share in (0.35, 0.4))
    train[:, :, 0] = np.eye(4)[0]  # seldom wrong among the candidates, always at the worst one
    mass = np.full((30, 4), 0.25)
    risks, found = synthetic.best_risks(ErrorPatterns(train, mass), ErrorPatterns(test, mass))
    alone = train.max(axis=1).mean(axis=0)
    assert risks[:2] == pytest.approx([games.solve(train).value, alone.min()])
    on_test = test.max(axis=1).mean(axis=0)[alone.argmin()]
    assert risks[2:] == pytest.approx([(test @ found.weights).max(axis=1).mean(), on_test])
    assert len({*np.round(risks, 6)}) == 4


def test_merging_changes_neither_the_value_nor_the_masses(drawn):
    codes = drawn[1][0, 2]
    merged = synthetic.merge(codes, CONFIG.members)
    assert merged.losses.shape[1] < codes.shape[1] / 3
    np.testing.assert_allclose(merged.mass.sum(axis=1), 1.0)
    np.testing.assert_allclose(
        np.einsum("nk,nkl->nl", merged.mass, merged.losses),
        whole_table(codes).mean(axis=1),
        atol=1e-6,
    )
    value = games.solve(whole_table(codes)).value
    np.testing.assert_allclose(games.solve(merged.losses).value, value, atol=1e-9)


def test_the_relaxation_on_merged_rows_is_that_on_all_candidates(drawn):
    codes = drawn[1][0, 2]
    merged, steps = synthetic.merge(codes, CONFIG.members), 4
    _, curves = synthetic.convergence(merged, [0.3, 0.02], steps)
    entropic = jax.jit(functools.partial(games.entropic, num_steps=steps))
    for alpha in (0.3, 0.02):
        weights, _ = entropic(whole_table(codes), alpha)
        risk = synthetic.adversarial_risk(np.asarray(weights, np.float64), merged)
        np.testing.assert_allclose(curves[f"{alpha:g}"][-1], risk, atol=2e-5)


def test_limits_are_minima_and_approach_the_value(drawn):
    merged = synthetic.merge(drawn[1][0, 2], CONFIG.members)
    temperatures = [1.0, 0.1, 0.001]
    found = synthetic.entropic_limits(merged, temperatures)
    table = whole_table(drawn[1][0, 2])

    @jax.jit
    def both(weights, alpha):
        other, _ = games.entropic(table, alpha, num_steps=64)
        return [games.entropic_risk(each, table, alpha) for each in (weights, other)]

    for alpha, (weights, gap) in zip(temperatures, found, strict=True):
        assert -1e-9 < gap < 2e-3
        least, other = both(np.float32(weights), alpha)
        assert float(least) <= float(other) + 1e-5
    value = games.solve(merged.losses).value
    excess = [synthetic.adversarial_risk(w, merged) - value for w, _ in found]
    assert -1e-9 < excess[2] < 0.003


def test_only_the_randomised_attack_holds_the_value():
    # Two members, fooled on one side each: a pure attack leaves one of them right.
    patterns = ErrorPatterns(np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2), np.full((2, 2), 0.5))
    found = games.solve(patterns.losses)
    attacks = synthetic.responses(patterns, found)["attacks"]
    assert attacks["best response to the best single classifier"]["loss"] == 0.0
    np.testing.assert_allclose(attacks["randomised"]["loss"], 0.5, atol=1e-9)


def test_the_gain_is_what_the_single_classifier_errs_more_often():
    """Two seeds at one radius: mixture and single in training, mixture and single on test."""
    risks = np.array([[[0.5, 0.6, 0.51, 0.58]], [[0.5, 0.5, 0.53, 0.55]]])
    (row,) = synthetic.summary_of([2.0], risks, np.array([[0.55], [0.51]]))
    assert row["gain"] == pytest.approx({"mean": 0.05, "standard_deviation": 0.05})
    assert row["gain_on_test"]["mean"] == pytest.approx(0.045)
    assert row["single_on_test"]["mean"] == pytest.approx(0.565)
    assert (row["epsilon"], row["least_gain"], row["seeds_with_gain"]) == (2.0, 0.0, 1)
    assert (row["seeds"], row["seeds_with_gain_by_algorithm_1"]) == (2, 1)
    assert row["by_algorithm_1"]["mean"] == pytest.approx(0.53)


def test_better_in_every_seed_is_said_of_the_radii_from_which_on_it_is_true():
    """Radii in no order: seeds gain at 3 and 4 both, at 2 one, at 1 both by chance."""
    gains = np.array([[0.1, 0.2, 0.0, 0.1], [0.1, 0.1, 0.1, 0.1]])
    assert synthetic.from_where([4.0, 3.0, 2.0, 1.0], gains) == 3.0
    assert synthetic.from_where([2.0, 1.0, 4.0, 3.0], gains) is None


def test_algorithm_1_comes_close_to_the_value_from_above():
    patterns = synthetic.merge(np.random.default_rng(0).integers(8, size=(20, 5)), 3)
    value = games.solve(patterns.losses).value
    assert value - 1e-6 <= synthetic.oracle_risk(patterns, 1024) <= value + 0.02


def test_a_run_leaves_figure_tables_and_numbers_that_agree(tmp_path, capsys):
    synthetic.main([*TINY, "--run-dir", str(tmp_path / "run")])
    assert "gain" in capsys.readouterr().out
    assert (tmp_path / "run" / "figure.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    risks = np.genfromtxt(tmp_path / "run" / "risks.csv", delimiter=",", names=True)
    assert len(risks) == 2 * 2 and np.all(risks["mixture"] <= risks["single"] + 1e-9)
    for row in result["radii"]:
        own = risks[risks["epsilon"] == row["epsilon"]]
        for name in ("mixture", "single", "mixture_on_test", "single_on_test"):
            np.testing.assert_allclose(own[name].mean(), row[name]["mean"], atol=1e-5)
    assert min(result["entropic"]["excess_over_the_value"]["mean"]) >= -1e-9
    paid = result["responses"]["attacks"]
    assert paid["randomised"]["loss"] >= paid["best response to the best mixture"]["loss"] - 1e-9
    curve = np.genfromtxt(tmp_path / "run" / "convergence.csv", delimiter=",", names=True)
    assert np.all(np.diff(curve["oracle"]) <= 0)
    assert curve["oracle"][-1] >= result["convergence"]["value"] - 1e-6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--radius 2", "radius must be one of radii"),
        ("--radii x", "radii must be numbers"),
        ("--temperatures 0", "temperatures must lie in"),
        ("--members 16", "members must lie in"),
        ("--max-risk 1", "max_risk must be in"),
        ("--seeds 0", "seeds must be a whole number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        synthetic.main([*TINY, *flags.split(), "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1 and message in error[0]
