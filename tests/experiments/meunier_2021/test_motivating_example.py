"""The motivating example: every value of the paper, exactly, and by the linear program."""

import json
from fractions import Fraction

import numpy as np
import pytest

from experiments.meunier_2021 import motivating_example as example
from mixjax import games


def test_every_value_of_the_paper_is_exact():
    found = example.values()
    assert {found[f"standard_risk_of_{who}"] for who in ("f1", "f2", "the_mixture")} == {
        Fraction(1, 4)
    }
    assert found["adversarial_risk_of_f1"] == found["adversarial_risk_of_f2"] == 1
    assert found["value"] == found["least_risk_under_the_randomised_attack"] == Fraction(3, 4)
    assert found["least_risk_under_the_attack_that_moves_0_to_1"] == Fraction(1, 2)
    assert found["gap_of_the_equilibrium"] == 0
    losses = [value for name, value in found.items() if "_loses_by_" in name]
    assert len(losses) == 6 and min(losses) > 0


def test_f1_answers_the_attacker_who_always_moves_0_to_1():
    """The paper's f1(x) = -x - 1/2 says class -1 on the right, where f2(x) = x - 1/2 is fooled."""
    found = example.values()
    assert found["single_response_f1_to_the_attack_that_moves_0_to_1"] == Fraction(1, 2)
    assert found["single_response_f2_to_the_attack_that_moves_0_to_1"] == 1
    f1, f2 = example.CLASSIFIERS
    assert (f1(1), f2(1)) == (Fraction(-3, 2), Fraction(1, 2))


def test_a_tie_is_an_error_and_whole_moves_are_enough():
    assert example.errors(example.CLASSIFIERS[0], (1, Fraction(1, 2), 1), 0)
    places = [Fraction(k, 8) for k in range(-8, 9)]
    for one in example.EXAMPLES:
        patterns = {
            tuple(example.errors(f, one, move) for f in example.CLASSIFIERS) for move in places
        }
        kept = {
            tuple(example.errors(f, one, move) for f in example.CLASSIFIERS)
            for move in example.MOVES
        }
        assert all(any(np.all(np.array(q) >= p) for q in kept) for p in patterns)


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(5, 6)])
def test_the_risk_of_a_mixture_grows_with_its_distance_from_the_middle(share):
    weights = (share, 1 - share)
    assert example.worst(weights) == Fraction(1, 2) + max(weights) / 2
    attacks = (example.STAY, example.LEFT, example.RIGHT, example.BOTH_SIDES)
    assert all(example.risk(weights, attack) <= example.worst(weights) for attack in attacks)
    assert example.risk(weights, example.BOTH_SIDES) == Fraction(3, 4)


def test_the_linear_program_finds_the_same_equilibrium():
    found = games.solve(example.table())
    np.testing.assert_allclose(found.weights, 0.5, atol=1e-12)
    np.testing.assert_allclose([found.value, found.gap], [0.75, 0.0], atol=1e-12)


def test_a_run_writes_fractions_and_numbers(tmp_path, capsys):
    example.main(["--points", "3", "--run-dir", str(tmp_path / "run")])
    assert "3/4" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["exact"]["value"] == "3/4"
    for name, text in result["exact"].items():
        assert abs(float(Fraction(text)) - result["numbers"][name]) < 1e-12
    assert (tmp_path / "run" / "figure.png").exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--points", "1", "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 2 and "points must be" in capsys.readouterr().err


def test_a_seed_that_would_change_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--seed", "1", "--run-dir", str(tmp_path / "run")])
    assert stop.value.code == 2 and "--seed: invalid choice: 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
