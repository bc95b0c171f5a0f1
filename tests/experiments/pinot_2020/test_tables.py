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
        "sandwich": {"lower": 0.2},
        "members": [{"robust_accuracy": 0.1}, {"robust_accuracy": 0.3}],
        "averaged": {"robust_accuracy": 0.4},
        "training": {"passes": 2.5e6, **training},
    }


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
    write("members_table_digits", table_of((0.5, 0.7), (0.4, 0.6), (True, False)))
    text = tables.members()
    assert cells(text, "one network")[3].startswith("60.0 (")
    *_, ahead, passes = cells(text, "double oracle")[:9]
    assert (ahead, passes) == ("-10.0 (-10.0 to -10.0)", "2.50")
    bounds = cells(text, "value of the double oracle")
    assert bounds[0].startswith("10.0 (")
    assert bounds[-2:] == ["1 of 2", "-10.0 (-10.0 to -10.0)"]  # the best of BAT is the first
    assert "Members table mnist: not run yet" in text


def test_one_run_alone_has_no_interval_over_seeds(write):
    write("members_table_digits_standard", table_of((0.5,), (0.4,), (True,)))
    text = tables.members()
    assert cells(text, "one network")[:3] == ["90.0", "70.0", "60.0"]
    assert "Members table digits: not run yet" in text


def test_rows_that_no_run_has_yet_are_told_as_such(write):
    (run,) = table_of((0.5,), (0.4,), (True,))
    run["rows"]["bat_alpha_0.1"] = None
    write("members_table_digits", [run])
    text = tables.members()
    assert cells(text, "bat alpha 0.1")[:2] == ["not run yet", ""]
    assert cells(text, "value of the double oracle")[-2:] == ["1 of 1", ""]
    run["rows"]["double_oracle"] = None
    write("members_table_digits", [run])
    assert "value of the double oracle" not in tables.members()


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
