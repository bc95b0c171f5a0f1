"""LWA and Sens in short: both withstand the attack that a classifier without defence falls to."""

import json

import pytest

from experiments.hamm_2018 import sensitivity, tables
from mixjax import models
from tests.perceptron import SHORT, perceptron

TINY = [*SHORT, *"--steps 240 --network-steps 40 --measurements 2".split()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "mnist_cnn", perceptron)
        sensitivity.main([*TINY, "--run-dir", str(folder)])
    return folder, json.loads((folder / "result.json").read_text())


def test_training_on_the_attack_of_the_moment_defends_against_it(finished):
    _, result = finished
    rows = {name: row["fgsm_curr"]["error"] for name, row in result["errors"]["0.4"].items()}
    assert rows["No defense"] > 0.6
    assert rows["LWA FGSM"] < rows["No defense"] - 0.2
    assert rows["Sens FGSM"] < rows["No defense"] - 0.2
    assert result["errors"]["0.4"]["LWA FGSM"] != result["errors"]["0.4"]["Sens FGSM"]
    costs = result["training_cost"]
    assert 1.7 < costs["LWA FGSM"]["cost_of_a_step"] < 2.2 < costs["Sens FGSM"]["cost_of_a_step"]


def test_the_report_holds_the_table_the_figures_and_what_judges(finished):
    folder, result = finished
    page = (folder / "report.md").read_text()
    for text in ("| Sens FGSM |", "errors.png", "attacks.png", "200 test examples of digits"):
        assert text in page
    judges = "can judge" if result["attack_network_is_strong"] else "too weak to judge"
    assert judges in page
    for name in ("errors.png", "attacks.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    assert result["provenance"]["seed"] == 0 and result["num_examples"] == 200


def test_a_result_can_be_committed_and_makes_a_table(finished):
    _, result = finished
    errors, costs = tables.defences(result)
    assert "| Sens FGSM |" in errors and "| Sens FGSM |" in costs


def test_a_finished_run_is_read_and_not_made_again(finished, capsys, monkeypatch):
    folder, result = finished
    monkeypatch.setattr(models, "mnist_cnn", perceptron)
    sensitivity.main([*TINY, "--run-dir", str(folder), "--resume"])
    again = json.loads((folder / "result.json").read_text())
    assert again["errors"] == result["errors"]
    assert "| Sens FGSM |" in capsys.readouterr().out
