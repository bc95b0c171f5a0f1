"""The table of all that trains members: one cost for each row, and rows that are done stay."""

import json

import numpy as np
import pytest

from experiments.pinot_2020 import boosted_table
from experiments.pinot_2020.boosted_table import Config, affordable
from mixjax import attacks, evaluation

TINY = (
    "--model linear --epochs 2 --validations 1 --batch-size 400 --learning-rate 0.05 "
    "--attack-steps 2 --validation-examples 12 --test-examples 12 --members 2 "
    "--train-examples 400"
).split()


def few_attacks(threat, budget, attack_suite=evaluation.attack_suite):
    """One step under both names, that compiles fast; one of them is the double oracle's own."""
    return tuple(
        evaluation.Attack(each.names, 1, attacks.fgsm, threat, (0.0, 1.0), each.number)
        for each in attack_suite(threat, budget)
        if each.names[0] in ("pgd_expected_loss", "square")
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "table"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boosted_table.BUDGETS, "quick", evaluation.Budget(1, 1, 2, 3, 1, 2, 1, 5))
        patch.setattr(evaluation, "attack_suite", few_attacks)
        flags = [*TINY, "--rows", "one_network double_oracle algorithm_2", "--run-dir", str(folder)]
        boosted_table.main(flags)
    return folder


def test_rows_that_were_not_asked_for_read_not_run_yet(finished):
    result = json.loads((finished / "result.json").read_text())
    page = (finished / "report.md").read_text()
    assert result["rows"]["barre"] is None and "| barre | not run yet |" in page
    for name in ("one_network", "double_oracle", "algorithm_2"):
        row = result["rows"][name]
        assert np.isclose(sum(row["weights"]), 1)
        assert row["robust_accuracy"]["worst"] <= row["clean_accuracy"]
        assert row["num_members"] == (1 if name == "one_network" else 2)


def test_the_double_oracle_tells_whether_its_bound_holds_on_attacks_kept_out(finished):
    training = json.loads((finished / "double_oracle" / "row.json").read_text())["training"]
    assert training["lower"] <= training["upper"]
    holds = training["risk_under_attacks_kept_out"] <= training["upper"] + 1e-9
    assert training["upper_holds"] == holds


def test_no_row_costs_more_than_independent_members_and_none_much_less():
    config = Config(members=3, attack_steps=10, epochs=12)
    limit = 3 * 12 * 12  # attack of ten steps, the answer to it, and the update
    for name, (cost, _) in boosted_table.ROWS.items():
        epochs = affordable(cost, config)
        assert cost(config, epochs) <= limit < cost(config, epochs + 1), name
    assert affordable(boosted_table.single_cost, config) == 36
    # Each batch meets one, two, three members, eleven passes each, and then the update.
    assert boosted_table.together_cost(config, 1) == 11 + 22 + 33 + 3
    # Two attacks of eleven passes on one member and on two, and one pass a natural step.
    assert boosted_table.boosted_cost(config, 1) == 12 + (11 + 1) + (22 + 1)
    # Sixty model steps to one weight step of five attacks.
    assert np.isclose(boosted_table.algorithm_2_cost(config, 61), 60 * 34 + 5 * 36)


def test_bad_input_is_told_in_one_line(capsys):
    for flags, told in (
        (["--members", "1"], "members must be a whole number of at least 2, got 1"),
        (["--alpha", "2"], "alpha must lie in (0, 1), got 2.0"),
        (["--rows", "bat other"], "rows must be one of"),
    ):
        with pytest.raises(SystemExit) as stop:
            boosted_table.main(flags)
        error = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(error) == 1 and told in error[0]
