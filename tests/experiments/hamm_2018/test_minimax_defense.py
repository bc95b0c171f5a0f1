"""Training against an attack network on digits: who withstands whom, and what the report says."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hamm_2018 import minimax_defense, settings, training
from experiments.hamm_2018.minimax_defense import Config, mixture_section
from experiments.hamm_2018.training import Setting
from experiments.hamm_2018.variants import tutorial
from mixjax import attacks, defenses, models
from tests.perceptron import SHORT, perceptron

FLAGS = "--steps 220 --network-steps 150 --mixture-examples 20 --measurements 2 --etas 0.3".split()
TINY = [*SHORT, *FLAGS, "--rows", "adv sens minimax"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "mnist_cnn", perceptron)
        patch.setattr(attacks, "arc", attacks.fgsm)  # compiles fast; the setting's tests run ARC
        minimax_defense.main([*TINY, "--run-dir", str(folder)])
    return folder, json.loads((folder / "result.json").read_text())


def error(result, row, attack):
    return result["errors"]["0.3"][row][attack]["error"]


def test_each_defence_withstands_its_own_attack_better_than_none_does(finished):
    _, result = finished
    undefended = functools.partial(error, result, "No defense")
    assert undefended("attack_network_curr") > 0.5 > 0.2 > undefended("clean")
    for row, attack in (("Sens FGSM", "fgsm_curr"), ("Minimax", "attack_network_curr")):
        assert error(result, row, attack) < undefended(attack) - 0.15
    own = result["error_under_own_attack"]["eta = 0.3"]["Minimax"]
    assert own[0] == [110, 220] and own[1][1] < 0.5


def test_the_worst_of_all_attacks_is_no_less_than_any(finished):
    _, result = finished
    for rows in (result["errors"]["0.3"], result["mixtures"]["0.3"]["errors"]):
        for row in rows.values():
            errors = {attack: each["error"] for attack, each in row.items()}
            assert errors["worst"] >= max(errors.values()) - 1e-6


def test_the_mixture_is_weighed_and_compared_with_its_members(finished):
    folder, result = finished
    mixed = result["mixtures"]["0.3"]
    weights = np.array(list(mixed["weights"].values()))
    assert np.all(weights >= 0) and weights.sum() == pytest.approx(1)
    assert list(mixed["weights"]) == ["Minimax", "Sens FGSM", "Adv FGSM1"]
    clean = [mixed["errors"][name]["clean"]["error"] for name in mixed["weights"]]
    gain = mixed["gain_over_best_member"]["mean"]
    worst = {name: row["worst"]["error"] for name, row in mixed["errors"].items()}
    best = min(mixed["weights"], key=worst.__getitem__)
    assert mixed["best_member"] == best
    assert gain == pytest.approx(worst[best] - worst["mixture of the game"], abs=1e-6)
    for name, share in (("uniform mixture", np.full(3, 1 / 3)), ("mixture of the game", weights)):
        assert mixed["errors"][name]["clean"]["error"] == pytest.approx(share @ clean, abs=1e-6)
    assert "The game's weights, from validation data: Minimax" in (folder / "report.md").read_text()


def test_the_report_says_whether_the_attacker_is_strong_enough(finished):
    folder, result = finished
    strong = error(result, "No defense", "attack_network_curr") > 0.9
    assert result["attack_network_is_strong"] is strong
    words = "it can judge a defence" if strong else "it is too weak to judge a defence"
    assert words in (folder / "report.md").read_text()
    for name in ("errors.png", "attacks.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_a_finished_run_resumed_has_the_same_numbers(finished, monkeypatch):
    folder, result = finished
    monkeypatch.setattr(models, "mnist_cnn", perceptron)
    monkeypatch.setattr(training, "_operations", None)  # counted already
    minimax_defense.main([*TINY, "--run-dir", str(folder), "--resume"])
    again = json.loads((folder / "result.json").read_text())
    for name in ("errors", "mixtures", "error_under_own_attack", "training_cost"):
        assert again[name] == result[name]


def test_what_a_step_of_each_row_costs_is_recorded_and_can_be_made_equal(finished):
    """Counted in steps on clean images: three gradients for Adv FGSM1, a double one for Sens."""
    folder, result = finished
    costs = result["training_cost"]
    assert costs["No defense"]["cost_of_a_step"] == 1
    assert 2.7 < costs["Adv FGSM1"]["cost_of_a_step"] < 3.1
    assert 2.7 < costs["Sens FGSM"]["cost_of_a_step"] < 3.5
    # Its network is larger than this classifier.
    assert 10 < costs["Minimax"]["cost_of_a_step"] < 20
    assert {row["steps"] for row in costs.values()} == {220}
    assert "| Minimax | " in (folder / "report.md").read_text().split("## What training cost")[1]
    cost = {row: each["cost_of_a_step"] for row, each in costs.items() if row != "No defense"}
    begun = {"Adv FGSM1": 220.0}
    steps = training.equal_steps(cost, 220, begun)
    assert steps["Minimax"] == 220
    leveled = [each["cost"] for each in training.costs(cost, steps, begun).values()]
    np.testing.assert_allclose(leveled, leveled[-1], rtol=0.02)


def test_the_report_names_the_variants(finished):
    folder, result = finished
    assert result["config"]["order"] == "simultaneous" and result["config"]["attacker"] == "strong"
    page = (folder / "report.md").read_text()
    for words in ("both gradients at the old point", "FGSM may leave [-1, 1]", "stronger kind"):
        assert words in page
    for rows in (result["errors"]["0.3"], result["mixtures"]["0.3"]["errors"]):
        low, high = rows["Minimax"]["worst"]["interval"]
        assert low <= rows["Minimax"]["worst"]["error"] <= high and high - low > 0.01


def test_adversarial_training_goes_on_from_the_classifier_without_defence(tmp_path):
    config = Config(**settings.DIGITS | dict(width=2, steps=7))
    model, network = models.linear(input_shape=(8, 8, 1)), models.attack_network()
    setting = Setting(config, None, model, network, tmp_path, "python -m experiments.test")
    variables = jax.tree.map(lambda leaf: leaf + 1.0, model.init(jax.random.key(3)))
    make = minimax_defense.defences(setting, {"Adv FGSM1": 7})["Adv FGSM1"]
    state = make(jnp.float32(0.4), variables).init(jax.random.key(0))
    assert state.step == 7
    for tree in (state.variables, state.opponent):
        for leaf, want in zip(jax.tree.leaves(tree), jax.tree.leaves(variables), strict=True):
            np.testing.assert_array_equal(leaf, want)


def test_the_tutorial_s_kernels_have_a_standard_deviation_of_a_tenth(key):
    wide, narrow = (
        jax.device_get(jax.jit(tutorial(models.mnist_cnn(width=width)).init)(key)["params"])
        for width in (32, 8)
    )
    for name, layer in wide.items():
        assert np.std(layer["kernel"]) == pytest.approx(0.1, rel=0.06)
        assert np.all(layer["bias"] == np.float32(0.0 if name == "Conv_0" else 0.1))
    assert np.std(narrow["Dense_0"]["kernel"]) == pytest.approx(0.2, rel=0.06)
    with pytest.raises(ValueError, match="model must be mnist_cnn, got one with layers"):
        tutorial(models.linear()).init(key)


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.1, "gains: its worst error is less by 0.100"), (-0.1, "loses"), (0.01, "neither gains")],
)
def test_mixing_pays_where_the_interval_of_the_gain_is_above_zero(gain, words):
    heads = ("clean", "fgsm_curr", "attack_network_curr", "auto_pgd", "arc", "worst")
    row = {head: {"error": 0.5, "error_bar": 0.02} for head in heads}
    mixed = {
        "weights": {"Minimax": 0.5, "Sens FGSM": 0.3, "Adv FGSM1": 0.2},
        "best_member": "Sens FGSM",
        "gain_over_best_member": {"mean": gain, "interval": [gain - 0.04, gain + 0.04]},
        "num_examples": 9,
        "errors": {"mixture of the game": row},
    }
    assert f"best member alone, Sens FGSM, the mixture {words}" in mixture_section(0.3, mixed)


def test_what_is_out_of_range_ends_in_one_line(capsys):
    for flags, message in (
        (["--rows", "adv sense"], "rows must be one of"),
        (["--order", "printed"], "--order: invalid choice: 'printed'"),
        (["--penalty", "-1"], "penalty must be at least 0, got -1.0"),
        (["--mixture-examples", "0"], "mixture_examples must be a whole number of at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            minimax_defense.main(flags)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_all_games_and_gradient_defences_are_offered(tmp_path):
    config = Config(**settings.DIGITS | dict(width=2))
    model, network = models.linear(input_shape=(8, 8, 1)), models.attack_network()
    setting = Setting(config, None, model, network, tmp_path, "python -m experiments.test")
    makes = minimax_defense.defences(setting, dict.fromkeys(minimax_defense.ROWS, 9))
    assert tuple(makes) == minimax_defense.ROWS
    assert isinstance(makes["Maximin"](0.4), defenses.Defense)
