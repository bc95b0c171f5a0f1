"""Tables and figures of games between a classifier and its attacker."""

import numpy as np
import pytest

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


def test_curves_and_galleries_are_drawn(tmp_path):
    curves = {"one": ([1, 2, 3], [0.1, 0.2, 0.3]), "other": ([1, 2], [1.0, 0.5])}
    for points in (False, True):
        path = tmp_path / f"errors_{points}.png"
        reporting.plot_errors(path, {"a": curves, "b": curves}, xlabel="steps", points=points)
        assert path.read_bytes()[:4] == b"\x89PNG"
    images = {"clean": np.zeros((2, 4, 4, 1)), "attacked": np.ones((2, 4, 4, 1))}
    answers = {"clean": [0, 1], "attacked": [1, 1]}
    path = tmp_path / "gallery.png"
    reporting.plot_gallery(path, images, [0, 1], answers, ("zero", "one"))
    assert path.read_bytes()[:4] == b"\x89PNG"
    first = path.read_bytes()
    answers["attacked"] = [0, 1]
    reporting.plot_gallery(path, images, [0, 1], answers, ("zero", "one"))
    assert path.read_bytes() != first


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="panels must hold at least one panel, got none"):
        reporting.plot_errors(tmp_path / "x.png", {}, xlabel="steps")
    for pictures, answers in (
        ({"clean": np.zeros((2, 4, 4, 1))}, {}),
        ({"clean": np.zeros((1, 4, 4, 1))}, {"clean": [0, 1]}),
    ):
        with pytest.raises(ValueError, match="pictures and predictions of clean must be 2 each"):
            reporting.plot_gallery(tmp_path / "x.png", pictures, [0, 1], answers, ("a", "b"))
