"""Tables and figures of games between a classifier and its attacker."""

from mixjax import reporting

RESULT = {
    "clean_accuracy": 0.99,
    "robust_accuracy": {"fgsm": 0.25, "worst": 0.2},
    "num_examples": 200,
}
ATTACKS = {"clean": "no attack", "fgsm": "FGSM", "network": "network"}


def test_errors_stand_beside_the_published_ones_and_gaps_stay_empty():
    table = reporting.error_table(
        {"Sens": RESULT, "LWA": RESULT},
        ATTACKS,
        {"Sens": {"fgsm": {3: 0.048, 4: 0.05, 5: 0.048}, "network": {4: 0.9}}},
    )
    assert table.splitlines() == [
        "| classifier | no attack | FGSM | network |",
        "| --- | --- | --- | --- |",
        "| Sens | 0.010 (0.003 to 0.036) | 0.750 (0.686 to 0.805) [0.048 T3 T5, 0.050 T4] | "
        "[0.900 T4] |",
        "| LWA | 0.010 (0.003 to 0.036) | 0.750 (0.686 to 0.805) |  |",
    ]


def test_where_all_examples_are_missed_the_interval_is_not_a_point():
    assert reporting.error_cell(1.0, 200) == "1.000 (0.981 to 1.000)"
    assert reporting.error_cell(0.0, 200) == "0.000 (0.000 to 0.019)"
    assert reporting.error_cell(None, 200) == ""


def test_rates_and_texts_are_cells():
    table = reporting.rate_table("row", ["a", "b"], {"x": [0.25, "none"]})
    assert table.splitlines()[2] == "| x | 0.250 | none |"
