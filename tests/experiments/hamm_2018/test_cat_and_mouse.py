"""Cat and mouse in short: what was seen is withstood, what comes next is not."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.hamm_2018 import cat_and_mouse, training
from mixjax import checkpoint, data, models
from tests.perceptron import SHORT, perceptron

TINY = [*SHORT, *"--rounds 2 --steps 120 --network-steps 10".split()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "mnist_cnn", perceptron)
        cat_and_mouse.main([*TINY, "--run-dir", str(folder)])
    return folder, json.loads((folder / "result.json").read_text())


def test_each_classifier_withstands_its_own_attack_and_falls_to_the_next(finished):
    _, result = finished
    rounds = result["rounds"]["eta = 0.4"]
    (own_x, own), (next_x, following) = rounds.values()
    assert own_x == [1, 2] and next_x == [0.5, 1.5, 2.5]
    assert following[0] > 0.6  # nobody has defended yet
    assert own[0] < following[0] - 0.4  # round 1 withstands the attack that broke round 0
    assert np.mean(own) < np.mean(following[1:]) - 0.1


def test_every_round_is_kept_and_is_the_one_of_the_tables(finished, monkeypatch):
    monkeypatch.setattr(models, "mnist_cnn", perceptron)
    folder, result = finished
    names = {field.name for field in dataclasses.fields(cat_and_mouse.Config)}
    config = {name: value for name, value in result["config"].items() if name in names}
    dataset = data.load("digits")
    model = training.build(cat_and_mouse.Config(**config), dataset)[0]
    variables = model.init(jax.random.key(0))
    with checkpoint.open(folder / "eta_0.4-rounds", {}, metric="round") as kept:
        assert checkpoint.steps(kept) == [0, 1, 2]
        variables, _, _ = checkpoint.restore(kept, variables, 2)
    images = dataset.test.images[:200].astype(np.float32) / 255
    answers = np.argmax(model.apply(variables, images), axis=-1)
    error = np.mean(answers != dataset.test.labels[:200])
    row = result["errors"]["0.4"]["Adv FGSM2"]
    assert row["clean"]["error"] == pytest.approx(float(error), abs=0.006)


def test_the_report_holds_the_tables_of_the_paper(finished):
    folder, result = finished
    page = (folder / "report.md").read_text()
    for text in ("| Adv FGSM2 |", "| FGSM1 | FGSM2 |", "## One round", "rounds.png"):
        assert text in page
    assert set(result["one_round"]["0.4"]) == {"fgsm", "ifgsm"}
    assert (folder / "rounds.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cat_and_mouse.main(["--rounds", "0", "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "rounds must be a whole number of at least 1, got 0" in error
