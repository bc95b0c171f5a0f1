"""The tables in `RESULTS.md` of members trained one after another, from runs made up here."""

import json

import pytest

from experiments.pinot_2020 import tables


def row(suite, **training):
    return {
        "clean_accuracy": 0.9,
        "robust_accuracy": {
            "pgd_expected_loss": 0.7,
            "apgd_expected_loss": 0.6,
            "worst": suite,
        },
        "interval": {
            "clean": [0.85, 0.95],
            "pgd_expected_loss": [0.65, 0.75],
            "apgd_expected_loss": [0.55, 0.65],
            "worst": [suite - 0.05, suite + 0.1],
        },
        "reported_by": {
            "rob_acc": {
                "accuracy": 0.65,
                "interval": [0.6, 0.7],
                "num_restarts": 5,
                "num_steps": 100,
            }
        },
        "num_examples": 200,
        "sandwich": {"lower": 0.2},
        "members": [{"robust_accuracy": 0.1}, {"robust_accuracy": 0.3}],
        "averaged": {"robust_accuracy": 0.4},
        "training": {"passes": 2.5e6, **training},
    }


def test_an_interval_of_rates_ends_at_zero_and_one_that_of_differences_at_minus_one():
    assert tables.rate_cell([0.0, 0.1]) == "5.0 (0.0 to 68.5)"
    assert tables.rate_cell([1.0, 0.9]) == "95.0 (31.5 to 100.0)"
    assert tables.mean_cell([0.0, 0.1]) == "5.0 (-58.5 to 68.5)"


def table_of(ones, mixtures, holds):
    bounds = {"lower": 0.1, "upper": 0.5, "risk_under_attacks_kept_out": 0.4}
    return [
        {
            "rows": {
                "one_network": row(one),
                "bat": row(mixture + 0.1),
                "bat_alpha_0.1": row(mixture - 0.1),
                "double_oracle": row(mixture, **bounds, upper_holds=held),
            }
        }
        for one, mixture, held in zip(ones, mixtures, holds, strict=True)
    ]


def grid(suite):
    return {
        "config": {"alpha": 0.06},
        "mixtures": [
            {"alpha": alpha, "num_members": n, "pgd": {"accuracy": alpha * n}}
            for alpha in (0.02, 0.06)
            for n in (1, 2)
        ],
        "suite": {str(n): {"worst": {"accuracy": suite}} for n in (1, 2)},
    }


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def write(base, runs):
        for seed, run in enumerate(runs):
            name = f"{base}_seed_{seed}" if seed else base
            (tmp_path / f"{name}.json").write_text(json.dumps(run))

    return write


def cells(text, first):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_row_has_the_mean_over_the_seeds_and_is_compared_seed_by_seed(write):
    ones, holds = (0.5, 0.55, 0.6, 0.65, 0.7), (True, True, False, True, False)
    write("members_table_digits", table_of(ones, [one - 0.1 for one in ones], holds))
    text = tables.members()
    assert "Rob. Acc. 5 x 100" in text
    assert cells(text, "one network")[4].startswith("60.0 (")
    # The average keeps .4 in each seed: .2 less than one network on the mean.
    *_, ahead, of_average, passes = cells(text, "double oracle")[:11]
    assert (ahead, passes) == ("-10.0 (-10.0 to -10.0)", "2.50")
    assert of_average == "-20.0 (-29.8 to -10.2)"
    assert "Over the 200 examples of one seed Wilson's 95 % interval" in text
    assert "at most 15.0 wide" in text
    bounds = cells(text, "value of the double oracle")
    assert bounds[0].startswith("10.0 (")
    assert bounds[-2:] == ["3 of 5", "-10.0 (-10.0 to -10.0)"]  # the best of BAT is the first
    assert "Members table mnist: not run yet" in text


def test_one_run_alone_has_the_interval_over_its_examples_and_is_compared_with_none(write):
    write("members_table_digits_standard", table_of((0.5,), (0.4,), (True,)))
    text = tables.members()
    assert cells(text, "one network")[:6] == [
        "90.0 (85.0 to 95.0)",
        "70.0 (65.0 to 75.0)",
        "60.0 (55.0 to 65.0)",
        "65.0 (60.0 to 70.0)",
        "50.0 (45.0 to 60.0)",
        "20.0",
    ]
    assert cells(text, "bat")[-2:] == ["", "2.50"]
    assert "wide" not in text
    assert "Members table digits: not run yet" in text


def test_rows_that_no_run_has_yet_are_told_as_such(write):
    (run,) = table_of((0.5,), (0.4,), (True,))
    run["rows"]["bat_alpha_0.1"] = None
    write("members_table_digits", [run])
    text = tables.members()
    assert cells(text, "bat alpha 0.1")[:2] == ["not run yet", ""]
    assert cells(text, "value of the double oracle")[-2:] == ["1 of 1", ""]
    assert cells(text, "bat")[0] == "90.0 (85.0 to 95.0)"
    run["rows"]["double_oracle"] = None
    write("members_table_digits", [run])
    assert "value of the double oracle" not in tables.members()


def test_of_a_run_of_some_rows_the_others_are_left_out(write):
    (run,) = table_of((0.5,), (0.4,), (True,))
    run["rows"] |= {"one_network": None, "double_oracle": None}
    write("members_table_digits_algorithm_2_180_epochs", [run])
    text = tables.members()
    assert cells(text, "bat")[0] == "90.0 (85.0 to 95.0)"
    assert "| one network |" not in text and "epochs: not run yet" not in text


def test_more_epochs_are_compared_with_fewer_seed_by_seed(write):
    before, after = (0.1, 0.2, 0.3, 0.4, 0.5), (0.15, 0.25, 0.35, 0.45, 0.55)
    for name, left in (("180", before), ("360", after)):
        write(f"members_table_digits_algorithm_2_{name}_epochs", table_of(left, left, (True,) * 5))
    text = tables.members()
    of_180, of_360 = text.split("360 epochs, seeds: 5")
    assert cells(of_360, "bat")[-2] == "5.0 (5.0 to 5.0)"
    assert cells(of_180, "bat")[-2] == ""  # of 60 epochs there is none


def test_boosting_is_told_for_its_own_alpha_by_the_number_of_members(write):
    write("boosted_digits", [grid(0.25)])
    text = tables.members()
    assert cells(text, "PGD on the expected loss") == ["6.0", "12.0"]
    assert cells(text, "the suite") == ["25.0", "25.0"]


def test_boosting_is_compared_with_its_first_member_seed_by_seed(write):
    first, second = grid(0.25), grid(0.35)
    for run, left in ((first, 0.2), (second, 0.3)):
        run["suite"]["2"]["worst"]["accuracy"] = left
    write("boosted_digits", [first, second])
    text = tables.members()
    assert cells(text, "the suite, minus n = 1") == ["", "-5.0 (-5.0 to -5.0)"]
    assert cells(text, "PGD on the expected loss, minus n = 1") == ["", "6.0 (6.0 to 6.0)"]
