"""Attackers who pay: closed forms, brute force beside them, and both theorems."""

import json

import matplotlib.figure
import numpy as np
import pytest

from experiments.pinot_2020 import penalized, penalized_attackers
from experiments.pinot_2020.penalized import Classifier, Gaussians

NARROW = Gaussians(0.25, 0.2)
FIRST = penalized.threshold(0.0)
TINY = "--epsilons 0.4 --lams 0.2 --alphas 3 --cells 40 --rounds 12 --points 12".split()


def brute(x, label, classifiers, weights, penalty, epsilon, lam):
    """The best score over a fine grid of places to move to, and the place itself."""
    z = np.append(np.linspace(x - epsilon, x + epsilon, 4001), x)
    wrong = sum(w * (c(z) != label) for w, c in zip(weights, classifiers, strict=True))
    cost = np.abs(z - x) if penalty == "norm" else (z != x)
    return (wrong - lam * cost).max()


@pytest.mark.parametrize("penalty", penalized.PENALTIES)
def test_the_score_is_that_of_the_best_of_all_moves(penalty):
    classifiers = [Classifier((-0.3, 0.1, 0.5), (-1, 1, -1, 1)), penalized.threshold(0.2)]
    places = np.linspace(-1.03, 1.17, 23)
    for label in (1, -1):
        setting = (label, classifiers, [0.7, 0.3], penalty, 0.35, 0.6)
        want = [brute(x, *setting) for x in places]
        np.testing.assert_allclose(penalized.worst_score(places, *setting), want, atol=3e-4)


@pytest.mark.parametrize("penalty", penalized.PENALTIES)
@pytest.mark.parametrize("edge", [0.0, 0.17])
def test_the_quadrature_meets_the_closed_form_of_a_threshold(penalty, edge):
    setting = (penalty, 0.4, 0.7)
    found, error = penalized.worst_risk(NARROW, [penalized.threshold(edge)], [1.0], *setting)
    np.testing.assert_allclose(
        found, penalized.threshold_risk(NARROW, edge, *setting), atol=max(error, 1e-10)
    )


def test_the_price_lowers_what_the_attacker_gains():
    free = penalized.threshold_risk(NARROW, 0.1, "norm", 0.5, 0.0)
    assert free == pytest.approx(penalized.threshold_risk(NARROW, 0.1, "mass", 0.5, 0.0))
    norm, mass = (penalized.threshold_risk(NARROW, 0.1, p, 0.5, 0.5) for p in ("norm", "mass"))
    assert mass < norm < free


def test_the_defender_turns_the_attacked_zone_over_and_nothing_else():
    second = penalized.defender_response(penalized.threshold(0.2), NARROW, 0.5)
    assert second.edges == pytest.approx((-0.3, 0.2, 0.7)) and second.labels == (-1, 1, -1, 1)
    # An edge far off the Bayes classifier's: between 0 and the zone the likelier class.
    second = penalized.defender_response(penalized.threshold(0.8), NARROW, 0.5)
    assert second.edges == pytest.approx((0.0, 0.8, 1.3)) and second.labels == (-1, 1, -1, 1)


@pytest.mark.parametrize("penalty", penalized.PENALTIES)
@pytest.mark.parametrize("epsilon", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("lam", [0.05, 0.5, 0.95])
def test_theorem_2_wherever_its_condition_holds(penalty, epsilon, lam):
    found = penalized_attackers.gain(NARROW, penalty, epsilon, lam, 9)
    assert all(each["holds"] for each in found["vanishing"])
    assert found["least_gain"] > 10 * found["integration_error"] > 0
    start = (1 + lam * (epsilon if penalty == "norm" else 1)) / 2
    assert found["interval"][0] == pytest.approx(start)
    assert found["risks"][-1] == pytest.approx(found["risk_alone"], abs=1e-5)


def test_the_gain_of_a_share_is_the_least_along_the_interval():
    setting = ("norm", 0.4, 0.3)
    found = penalized_attackers.gain(NARROW, *setting, 3)
    start, _ = found["interval"]
    gains = []
    for alpha in start + (1 - start) * np.array([0.005, 0.5, 0.995]):
        pair = [FIRST, penalized.defender_response(FIRST, NARROW, 0.4)]
        risk, _ = penalized.worst_risk(NARROW, pair, [alpha, 1 - alpha], *setting)
        gains.append((found["risk_alone"] - risk, 1 - alpha))
    assert found["least_gain_per_share"] == pytest.approx(min(g / share for g, share in gains))
    assert found["least_gain"] == pytest.approx(min(gains)[0])
    assert found["largest_gain"] == pytest.approx(max(gains)[0])


def test_the_integration_error_counts_what_the_closed_form_differs_by(monkeypatch):
    exact = penalized.threshold_risk(NARROW, 0.0, "norm", 0.4, 0.3)
    monkeypatch.setattr(penalized, "threshold_risk", lambda *setting: exact + 0.01)
    found = penalized_attackers.gain(NARROW, "norm", 0.4, 0.3, 3)
    assert found["integration_error"] == pytest.approx(0.01, rel=1e-3)


def test_without_the_condition_a_mixture_loses():
    found = penalized_attackers.gain(Gaussians(0.75, 0.15), "norm", 0.5, 0.01, 21)
    assert not any(each["holds"] for each in found["vanishing"])
    assert found["least_gain"] < -0.3 and found["part_of_the_interval_with_gain"] < 0.1


def test_the_vanishing_measure_of_a_known_zone():
    (outside, inside), (mirrored, _) = penalized.vanishing(Gaussians(0.25, 0.5), 0.0, 0.5)
    assert inside == pytest.approx(0.3829249, abs=1e-6)  # within half a deviation
    assert outside == pytest.approx(0.8663856 - 0.3829249, abs=1e-6)  # within one and a half
    assert mirrored == pytest.approx(outside)
    first, second = penalized.vanishing(Gaussians(0.25, 0.5), 0.2, 0.3)
    assert first != pytest.approx(second)


@pytest.mark.parametrize("penalty", penalized.PENALTIES)
def test_best_responses_go_round_and_each_is_a_strict_improvement(penalty):
    config = penalized_attackers.Config(cells=80)
    found = penalized_attackers.cycle(Gaussians(1.0, 1.0), penalty, config)
    assert found["period"] == 2
    assert found["least_gain_of_the_defender"] > 0.01
    assert found["least_gain_of_the_attacker"] > 0.01
    attacked, defended = (
        np.array(found[f"risk_when_the_{who}_has_moved"]) for who in ("attacker", "defender")
    )
    assert found["least_gain_of_the_defender"] == min(attacked - defended)
    assert found["least_gain_of_the_attacker"] == min(attacked[1:] - defended[:-1])


def test_attacks_clear_their_zone_and_lose_no_mass():
    x, panels, heaped, _ = penalized_attackers.attacked_line(Gaussians(1.0, 0.8), 0.6)
    before, by_mass, by_norm = panels.values()
    masses = {name: np.trapezoid(density, x) for name, density in panels.items()}
    for row, label in enumerate((1, -1)):
        zone = (label * x > 0) & (label * x <= 0.6)
        assert before[row][zone].min() > 0.1
        assert np.all(by_mass[row][zone] == 0) and np.all(by_norm[row][zone] == 0)
        assert np.all(by_mass[row][~zone] >= before[row][~zone])
    np.testing.assert_allclose(masses["mass penalty"], masses["before the attack"], atol=2e-3)
    np.testing.assert_allclose(
        masses["norm penalty"] + heaped, masses["before the attack"], atol=2e-3
    )


def test_the_attack_on_cells_moves_no_further_than_allowed_and_only_across():
    cells = penalized.lattice(Gaussians(1.0, 1.0), 40, 4.0)
    np.testing.assert_allclose(cells.masses.sum(axis=1), 0.5)
    answers = np.where(cells.centers > 0.5, 1, -1)
    for penalty in penalized.PENALTIES:
        target = penalized.attack_cells(cells, answers, penalty, 0.6)
        moved = target != np.arange(40)
        assert np.abs(cells.centers[target] - cells.centers).max() <= 0.6 + 1e-9
        assert moved.sum() == 6  # three cells of width .2 on either side
        assert np.all(answers[target[0]][moved[0]] == -1)
        assert np.all(answers[target[1]][moved[1]] == 1)


def test_the_norm_penalty_goes_just_across_and_the_mass_penalty_as_far_as_it_may():
    cells = penalized.Lattice(np.arange(6.0), np.array([[0.0, 0, 0, 0.1, 0.3, 0.1], [0.0] * 6]))
    answers = np.array([-1, -1, -1, 1, 1, 1])
    risks = {}
    for penalty, want in (("norm", [2, 2, 5]), ("mass", [1, 2, 5])):
        target = penalized.attack_cells(cells, answers, penalty, 2.0)
        np.testing.assert_array_equal(target[0][3:], want)
        risks[penalty] = penalized.attacked_risk(cells, answers, target, penalty, 0.5)
    # Masses .1 and .3 go wrong; they pay for one and two steps, or for two moves.
    assert risks == pytest.approx({"norm": 0.4 - 0.5 * 0.7, "mass": 0.4 - 0.5 * 0.4})


def test_the_projection_onto_a_line_and_the_step_across_it():
    x, labels = np.array([[1.0, 0.0], [0.2, 0.1], [-0.3, 0.0]]), np.array([1, 1, 1])
    slope, offset = np.array([3.0, 4.0]), 0.0
    norm = penalized.linear_response(x, labels, slope, offset, "norm", 0.3)
    np.testing.assert_allclose(norm, [[1.0, 0.0], [0.08, -0.06], [-0.3, 0.0]], atol=1e-12)
    mass = penalized.linear_response(x, labels, slope, offset, "mass", 0.2)
    np.testing.assert_allclose(mass[1], x[1] - 0.2, atol=1e-12)
    np.testing.assert_array_equal(mass[[0, 2]], x[[0, 2]])


@pytest.mark.parametrize("penalty", penalized.PENALTIES)
def test_the_numerical_response_finds_the_nearest_point_of_a_circle(penalty):
    def circle(x):
        return np.sum(x**2, axis=-1) - 1.0

    x, labels = np.array([[1.5, 0.0], [0.0, -0.7], [3.0, 0.0], [0.5, 0.2]]), np.array([1, -1, 1, 1])
    found = penalized.numerical_response(circle, x, labels, penalty, 0.6)
    want = {"norm": [[1.0, 0.0], [0.0, -1.0]], "mass": None}[penalty]
    if want is not None:
        np.testing.assert_allclose(found[:2], want, atol=1e-3)
        lengths = np.linalg.norm(found[:2] - x[:2], axis=1)
        np.testing.assert_allclose(lengths, [0.5, 0.3], atol=1e-6)
    assert np.all(labels[:2] * circle(found[:2]) <= 1e-12)
    assert np.abs(found - x).max() <= 0.6 + 1e-9
    np.testing.assert_array_equal(found[2:], x[2:])  # out of reach; wrong already


def test_a_run_leaves_figures_and_numbers(tmp_path, capsys, monkeypatch):
    # To lay panels out takes as long as to draw them.
    monkeypatch.setattr(matplotlib.figure.Figure, "get_layout_engine", lambda figure: None)
    penalized_attackers.main([*TINY, "--run-dir", str(tmp_path / "run")])
    assert "theorem 2" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"figure_1.png", "best_responses.png", "cycle.png", "theorem_2.png"} < names
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["theorem_2"]["condition_holds"] and result["theorem_2"]["least_gain"] > 0
    assert not result["condition_fails"]["condition_holds"]
    assert result["best_responses"]["norm penalty, line"] < 1e-6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lam 1", "lam must be in"),
        ("--epsilon 2", "epsilon must lie in"),
        ("--lams 0", "lams must be positive"),
        ("--alphas 2", "alphas must be"),
        ("--seed -1", "seed must be a whole number from 0 to 4294967295, got -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        penalized_attackers.main([*TINY, *flags.split(), "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1 and message in error[0]
