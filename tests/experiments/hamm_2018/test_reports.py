"""The figures that the experiments of Hamm 2018 share."""

import numpy as np
import pytest

from experiments.hamm_2018 import reports


def test_curves_and_galleries_are_drawn(tmp_path):
    curves = {"one": ([1, 2, 3], [0.1, 0.2, 0.3]), "other": ([1, 2], [1.0, 0.5])}
    for points in (False, True):
        path = tmp_path / f"errors_{points}.png"
        reports.plot_errors(path, {"a": curves, "b": curves}, xlabel="steps", points=points)
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


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="panels must hold at least one panel, got none"):
        reports.plot_errors(tmp_path / "x.png", {}, xlabel="steps")
    for pictures, answers in (
        ({"clean": np.zeros((2, 4, 4, 1))}, {}),
        ({"clean": np.zeros((1, 4, 4, 1))}, {"clean": [0, 1]}),
    ):
        with pytest.raises(ValueError, match="pictures and predictions of clean must be 2 each"):
            reports.plot_gallery(tmp_path / "x.png", pictures, [0, 1], answers, ("a", "b"))
