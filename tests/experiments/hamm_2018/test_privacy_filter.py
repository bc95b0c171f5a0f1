"""The privacy filter in short: the hidden label is lost, the kept one is not."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hamm_2018 import privacy_filter
from mixjax import models
from tests.perceptron import perceptron

TINY = (
    "--width 32 --batch-size 64 --steps 200 --network-width 32 --network-steps 80 "
    "--test-batch-size 360 --measurements 1"
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "mnist_cnn", perceptron)
        privacy_filter.main([*TINY, "--run-dir", str(folder)])
    return folder, json.loads((folder / "result.json").read_text())


def test_the_filter_hides_one_label_from_fresh_readers_and_keeps_the_other(finished):
    _, result = finished
    rows = {
        name: {label: each["error"] for label, each in row.items()}
        for name, row in result["filters"].items()
    }
    assert max(rows["no filter"].values()) < 0.2
    assert rows["minimax"]["hidden"] > rows["noise alone"]["hidden"] + 0.1
    assert rows["minimax"]["kept"] < 0.2
    assert set(rows) == {"no filter", "noise alone", "alternating", "minimax"}


def test_who_knows_the_parity_only_errs_on_two_digits_of_five():
    assert privacy_filter.blind_error(np.arange(10)) == pytest.approx(0.4)
    assert privacy_filter.blind_error(np.array([0, 2, 4, 7])) == 0.0
    labels = jnp.array([0, 3, 4, 5, 8])
    assert privacy_filter.kept(labels).tolist() == [0, 1, 0, 1, 0]
    assert privacy_filter.hidden(labels).tolist() == [0, 0, 0, 1, 1]


def test_the_report_holds_the_table_and_the_pictures(finished):
    folder, result = finished
    page = (folder / "report.md").read_text()
    assert "| minimax |" in page and "filtered.png" in page and "360 test examples" in page
    assert (folder / "filtered.png").read_bytes()[:4] == b"\x89PNG"
    assert result["error_knowing_the_kept_label"] == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--weight 0", "weight must be positive, got 0.0"),
        ("--penalty=-1", "penalty must be at least 0, got -1.0"),
        ("--ascent-steps 0", "ascent_steps must be a whole number of at least 1, got 0"),
        ("--dataset cifar10", "dataset must be one of digits, mnist, got cifar10"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        privacy_filter.main([*flags.split(), "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and re.search(re.escape(message), error)
