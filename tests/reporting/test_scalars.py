"""Scalars for TensorBoard: what is written, and what is said without the extra."""

import sys
import types

import numpy as np
import pytest

from mixjax import reporting


def test_numbers_are_scalars_of_their_step_and_lists_one_each(tmp_path, monkeypatch):
    written, closed = [], []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            closed.append(True)

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    row = {"step": 7, "loss": None, "epoch": 2, "robust_accuracy": np.float32(0.5)}
    with reporting.open_scalars(tmp_path) as write:
        write(row | {"weights": np.array([0.25, 0.75]), "note": "text"})
    assert closed and written == [
        ("epoch", 2.0, 7),
        ("robust_accuracy", 0.5, 7),
        ("weights/1", 0.25, 7),
        ("weights/2", 0.75, 7),
    ]


def test_without_the_extra_it_is_named_and_unasked_nothing_is_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with reporting.open_scalars(tmp_path, is_wanted=False) as write:
        write({"step": 1, "loss": 2.0})
    with pytest.raises(ModuleNotFoundError, match=r"missing: pip install 'mixjax\[tensorboard\]'"):
        with reporting.open_scalars(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
