"""The figures that the experiments of Hamm 2018 share."""

import numpy as np
import pytest

from experiments.hamm_2018 import reports
from mixjax.reporting import drawing

SETTINGS = {"attack": "under FGSM", "num_examples": 100}


def test_curves_and_galleries_are_drawn(tmp_path):
    curves = {"one": ([1, 2, 3], [0.1, 0.2, 0.3]), "other": ([1, 2], [1.0, 0.5])}
    for points in (False, True):
        path = tmp_path / f"errors_{points}.png"
        reports.plot_errors(
            path, {"a": curves, "b": curves}, xlabel="steps", points=points, **SETTINGS
        )
        assert path.read_bytes()[:4] == b"\x89PNG"
    images = {"clean": np.zeros((2, 4, 4, 1)), "attacked": np.ones((2, 4, 4, 1))}
    answers = {"clean": [0, 1], "attacked": [1, 1]}
    path = tmp_path / "gallery.png"
    reports.plot_gallery(path, images, [0, 1], answers, ("zero", "one"))
    assert path.read_bytes()[:4] == b"\x89PNG"
    first = path.read_bytes()
    answers["attacked"] = [0, 1]
    reports.plot_gallery(path, images, [0, 1], answers, ("zero", "one"))
    assert path.read_bytes() != first


def test_a_curve_has_error_bars_and_the_same_look_whether_others_are_drawn_or_not(
    tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr(drawing, "write", lambda figure, path: figures.append(figure))
    names, curve = ("Alt", "Minimax"), ([1, 2], [0.0, 0.4])
    for panel in ({"Alt": curve, "Minimax": curve}, {"Minimax": curve}):
        panels = {"eta = 0.3": panel}
        reports.plot_errors(tmp_path / "x.png", panels, xlabel="steps", names=names, **SETTINGS)
    both, one = (figure.axes[0].containers[-1] for figure in figures)
    assert both.get_label() == one.get_label() == "Minimax"
    assert both.lines[0].get_color() == one.lines[0].get_color()
    low, high = one.lines[2][0].get_segments()[0][:, 1]  # of no errors in 100 examples
    assert low == 0 and 0.02 < high < 0.06
    title = figures[0].axes[0].get_title()
    assert title == "eta = 0.3, l-inf, of pixels in [-1, 1]\nunder FGSM"


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="panels must hold at least one panel, got none"):
        reports.plot_errors(tmp_path / "x.png", {}, xlabel="steps", **SETTINGS)
    for pictures, answers in (
        ({"clean": np.zeros((2, 4, 4, 1))}, {}),
        ({"clean": np.zeros((1, 4, 4, 1))}, {"clean": [0, 1]}),
    ):
        with pytest.raises(ValueError, match="pictures and predictions of clean must be 2 each"):
            reports.plot_gallery(tmp_path / "x.png", pictures, [0, 1], answers, ("a", "b"))
