"""The committed results of the game show what the README and the docstrings say of them."""

import json

import numpy as np
import pytest

from benchmarks import setting

# Another implementation of figure 2, with ten seeds of its own.
RADII = [2.0, 2.5, 3.0, 3.5, 4.0]
GAINS = [0.013, 0.049, 0.099, 0.161, 0.203]
VALUES = [0.619, 0.672, 0.716, 0.734, 0.746]
SLOW = ("hedge, its guaranteed step", "regret matching+, certified")


def result(name):
    return json.loads((setting.RESULTS / f"{name}.json").read_text())


def test_the_synthetic_problem_is_that_of_another_implementation_within_the_seeds_spread():
    found = {row["epsilon"]: row for row in result("synthetic")["radii"]}
    for radius, gain, value in zip(RADII, GAINS, VALUES, strict=True):
        row = found[radius]
        assert abs(row["gain"]["mean"] - gain) <= row["gain"]["standard_deviation"]
        assert abs(row["mixture"]["mean"] - value) <= row["mixture"]["standard_deviation"]
    assert all(abs(found[radius]["gain"]["mean"]) < 0.005 for radius in (0.0, 0.5, 1.0, 1.5))
    assert all(found[radius]["seeds_with_gain"] == 10 for radius in (3.0, 3.5, 4.0))
    for row in found.values():
        assert row["least_gain"] >= -1e-9
        for player in ("mixture", "single"):
            assert abs(row[player]["mean"] - row[f"{player}_on_test"]["mean"]) <= 0.01
        assert abs(row["gain"]["mean"] - row["gain_on_test"]["mean"]) <= 0.01


def test_the_limits_of_the_relaxation_come_down_to_the_value_with_the_temperature():
    found = result("synthetic")
    excess = found["entropic"]["excess_over_the_value"]
    want = [0.037, 0.023, 0.019, 0.013, 0.004, 0.001]
    assert found["entropic"]["temperatures"] == [1.0, 0.3, 0.1, 0.03, 0.01, 0.003]
    np.testing.assert_array_less(np.diff(excess["mean"]), 0.0)
    assert np.all(np.abs(np.subtract(excess["mean"], want)) <= excess["standard_deviation"])
    last, limits = found["convergence"]["entropic_last"], found["convergence"]["entropic_limits"]
    for one, other in zip(last.values(), limits.values(), strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    value = found["convergence"]["value"]
    assert value <= found["convergence"]["oracle_best"] <= value + 0.01


def test_double_oracle_is_certified_and_better_than_boosting():
    found = result("double_oracle")
    assert found["double_oracle"]["gap"] < 0.01
    for boosted in found["boosting"].values():
        assert boosted["rounds"] == found["double_oracle"]["rounds"]
        assert boosted["upper"] > found["double_oracle"]["upper"]
    for kind in ("half_planes", "networks"):
        alone = found["each_kind_alone"][kind]
        assert alone["upper"] - alone["lower"] < 0.01 and alone["advantage_over_boosting"] > 0


@pytest.mark.parametrize("name", ["game_solvers", "game_solvers-50000"])
def test_iterative_solvers_come_near_the_value_in_less_time_than_the_linear_program(name):
    found = result(name)
    exact, *iterative = found["cases"]
    assert exact["gap"] < 1e-9 and found["peak_memory_bytes"] < 2e9
    for case in iterative:
        assert case["within_tolerance"] and case["excess"] <= 1e-3
        assert case["gap"] is None or case["gap"] <= 1e-3 or "certified" not in case["solver"]
        if case["solver"] not in SLOW:
            assert np.median(case["cpu_seconds"]) < np.median(exact["cpu_seconds"])
