"""How strong attack networks are: on digits the usual one learns, and the report says how much."""

import json

import chex
import pytest

from experiments.hamm_2018 import attack_network, variants
from mixjax import models
from tests.perceptron import SHORT, perceptron

FLAGS = "--steps 200 --network-steps 120 --measurements 3 --initialization he".split()
TINY = [*SHORT, *FLAGS, "--networks", "usual paper"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "mnist_cnn", perceptron)
        attack_network.main([*TINY, "--run-dir", str(folder)])
    return folder, json.loads((folder / "result.json").read_text())


def test_the_usual_network_learns_to_attack_and_goes_further_than_the_paper_s(finished):
    _, result = finished
    found = result["attacked"]["he, eta = 0.4"]
    curves = found["attack_networks"]
    steps, usual = curves["usual"]
    assert steps == [40, 80, 120]
    assert usual[-1] > found["clean"] + 0.3
    assert usual[-1] > curves["paper"][1][-1] + 0.05
    assert found["auto_pgd"] >= found["fgsm"] - 0.05 > found["clean"]


def test_the_report_says_whether_the_best_network_breaks_the_classifier(finished):
    folder, result = finished
    found = result["attacked"]["he, eta = 0.4"]
    best = max(errors[-1] for _, errors in found["attack_networks"].values())
    assert attack_network.strongest(found) == best
    assert result["attack_network_is_strong"] == {"he, eta = 0.4": best > 0.9}
    words = "breaks" if best > 0.9 else "does not break"
    assert f"{words} the classifier: {best:.3f}" in (folder / "report.md").read_text()
    assert (folder / "errors.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("words", ["tutorial", "tutorial he"])
def test_initial_weights_are_the_tutorial_s_whatever_comes_after(words, tmp_path, monkeypatch, key):
    class Begun(Exception):
        pass

    def train(setting, name, make, *, num_steps):
        raise Begun(setting.model)

    monkeypatch.setattr(attack_network, "train", train)
    with pytest.raises(Begun) as begun:
        attack_network.main(
            ["--initialization", words, "--width", "2", "--run-dir", str(tmp_path / "run")]
        )
    (model,) = begun.value.args
    right = variants.tutorial(models.mnist_cnn(10, 2, input_shape=(8, 8, 1)))
    chex.assert_trees_all_equal(model.init(key), right.init(key))


@pytest.mark.parametrize(
    ("clean", "end", "is_broken"), [(0.05, 0.95, True), (0.6, 0.95, False), (0.05, 0.85, False)]
)
def test_only_a_classifier_that_is_right_without_an_attack_can_be_broken(clean, end, is_broken):
    curves = {"usual": [[40.0, 80.0], [0.99, end]]}
    found = {"clean": clean, "attack_networks": curves}
    assert attack_network.is_broken(found) is is_broken


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks", "usual loud"], "networks must be one of usual, unscaled-label"),
        (["--initialization", "zero"], "initialization must be one of tutorial, he, got zero"),
        (["--model", "small_resnet"], "initialization tutorial is of model mnist_cnn, got small_"),
    ],
)
def test_what_is_unknown_ends_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        attack_network.main(flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
