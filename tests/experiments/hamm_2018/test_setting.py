"""What the experiments of Hamm 2018 share: units, data, the training loop, scores."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from experiments.hamm_2018 import (
    attack_network,
    cat_and_mouse,
    minimax_defense,
    mixtures,
    privacy_filter,
    scores,
    sensitivity,
    settings,
    training,
)
from experiments.hamm_2018.settings import Config
from experiments.hamm_2018.training import Setting, train
from experiments.hamm_2018.variants import PRINTED, STRONG, fgsm, ifgsm
from mixjax import data, defenses, models, reporting

# A linear classifier of digits: seconds.
CONFIG = Config(
    **settings.DIGITS
    | dict(steps=23, network_steps=8, network_width=8, batch_size=64, apgd_steps=3, ifgsm_steps=3)
    | dict(test_examples=90, test_batch_size=50, measurements=3, learning_rate=0.03, etas="0.3")
)


def setting_in(folder, config=CONFIG):
    dataset = training.load(config)
    model, network = models.linear(input_shape=(8, 8, 1)), training.build(config, dataset)[1]
    return Setting(config, dataset, model, network, folder, "python -m experiments.test")


def lwa(setting):
    def make(eta):
        optimizer = optax.adam(setting.config.learning_rate)
        ball = training.ball(eta)
        attack = fgsm(setting.config)
        return defenses.learning_with_adversary(setting.model, optimizer, ball, attack)

    return make


def run(setting, make=None, measure=None):
    return train(
        setting,
        "lwa",
        make or lwa(setting),
        jnp.float32(0.3),
        num_steps=setting.config.steps,
        measure=measure or (lambda state: {"seen": int(state.step)}),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    setting = setting_in(tmp_path_factory.mktemp("machine"))
    return setting, run(setting)


def test_fgsm_in_our_units_moves_a_pixel_as_the_paper_s_does_in_its_own():
    """`z = x + eta sign(grad)` for pixels in [-1, 1], seen from [0, 1]: eq. 1 has no clip."""
    x, slope, eta = np.float32([0.5, 0.05]), np.float32([1.0, -3.0]), 0.3
    z = (2 * x - 1) + eta * np.sign(slope)

    def loss_fn(x):  # of pixels in [-1, 1]
        return jnp.sum((2 * x - 1) * slope)

    boxed = dataclasses.replace(CONFIG, gradient_attacks="boxed")
    attacks_of = [fgsm(config) for config in (CONFIG, boxed)]

    @jax.jit
    def both(x):
        return [attack(None, loss_fn, x, training.ball(eta))[0] for attack in attacks_of]

    ours, within = both(x)
    np.testing.assert_allclose(2 * ours - 1, z, rtol=1e-6)
    assert z[1] < -1
    np.testing.assert_allclose(2 * within - 1, np.maximum(z, -1), rtol=1e-6)


def test_ifgsm_steps_by_eta_itself_within_the_ball_and_the_box():
    """Eq. 2 jumps to and fro where the slope turns within eta, and ends where it ends."""
    x, eta = np.float32([0.45, 0.1]), 0.4

    def loss_fn(x):  # a hill at .5 for the first pixel; the second is best at 0
        return -((x[0] - 0.5) ** 2) - x[1]

    def printed(num_steps):  # in the paper's own units
        z = 2 * x - 1
        for _ in range(num_steps):
            z = z + eta * np.sign([-z[0], -1.0])
            z = np.minimum(np.minimum(1, 2 * x - 1 + eta), np.maximum(-1, z))
            z = np.maximum(z, 2 * x - 1 - eta)
        return z

    numbers = 1, 2, 3
    configs = [dataclasses.replace(CONFIG, ifgsm_steps=number) for number in numbers]
    configs.append(dataclasses.replace(CONFIG, gradient_attacks="boxed", ifgsm_steps=10))
    attacks_of = [ifgsm(config) for config in configs]

    @jax.jit
    def all_of_them(x):
        return [attack(None, loss_fn, x, training.ball(eta))[0] for attack in attacks_of]

    *ours, best = jax.device_get(all_of_them(x))
    for number, each in zip(numbers, ours, strict=True):
        np.testing.assert_allclose(2 * each - 1, printed(number), atol=1e-6)
    assert loss_fn(best) > loss_fn(ours[-1])


def test_both_attackers_are_built_as_their_names_say_and_one_judges_as_it_is_drawn():
    dataset = training.load(CONFIG)
    paper = dataclasses.replace(CONFIG, attacker="paper")
    assert training.attacker_of(paper) == PRINTED and training.attacker_of(CONFIG) == STRONG
    label = np.int32(3)
    x, loss_fn = np.zeros((8, 8, 1), np.float32), jnp.sum
    for config, gain, low in ((CONFIG, 4.0, 0.0), (paper, 1.0, -0.2)):
        model, network = training.build(config, dataset)
        setting = Setting(config, dataset, model, network, None, "", training.attacker_of(config))

        @jax.jit
        def found(key, setting=setting):
            variables = setting.network.init(key)
            at = loss_fn, x, label, training.ball(0.4)
            point = training.under_network(setting, variables, *at)
            return setting.network.apply(variables, x, label), point

        output, point = jax.device_get(found(jax.random.key(0)))
        if config is CONFIG:
            output = output / np.sqrt(np.mean(output**2))
        expected = np.maximum(0.2 * np.tanh(gain * output), low)
        np.testing.assert_allclose(point, expected, rtol=1e-4, atol=1e-6)


def test_standardised_images_are_the_paper_s_shifted_to_zero_one():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    images[0, 0, 0] = 255
    images[0, 1:] = 20
    expected = [(each - each.mean()) / each.std() for each in images.astype(np.float64)]
    expected = np.clip(expected, -2, 2) / 2  # the paper's, in [-1, 1]
    assert expected.max() == 1
    np.testing.assert_allclose(2 * training.standardize(images) - 1, expected, atol=1e-5)
    assert np.all(training.standardize(np.full((1, 2, 2, 3), 9, np.uint8)) == 0.5)


def test_training_descends_and_leaves_its_curve(finished):
    setting, state = finished
    assert state.step == 23
    metrics = reporting.read_metrics(setting.folder / "lwa")
    assert [(each["step"], each["seen"]) for each in metrics] == [(8, 8), (16, 16), (23, 23)]
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


def test_a_run_stopped_by_sigterm_continues_to_the_same_state(finished, tmp_path, monkeypatch):
    setting, expected = finished
    setting = setting_in(tmp_path, dataclasses.replace(CONFIG, dispatch_steps=3))
    calls, whole = [], training.compiled

    def compiled(*arguments):
        steps = whole(*arguments)

        def stopped_in_the_fourth_call(*arguments):
            calls.append(arguments)
            if len(calls) == 4:  # steps 9 to 11; the first mark is 8
                os.kill(os.getpid(), signal.SIGTERM)
            return steps(*arguments)

        return stopped_in_the_fourth_call

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr("experiments.hamm_2018.training.compiled", compiled)
        run(setting)
    assert stopped.value.code == 143
    assert len(reporting.read_metrics(tmp_path / "lwa")) == 1
    assert (tmp_path / "lwa" / "checkpoints" / "11").exists()
    state = run(setting)
    assert len(reporting.read_metrics(tmp_path / "lwa")) == 3
    for leaf, want in zip(
        jax.tree.leaves((state.variables, state.opt_state)),
        jax.tree.leaves((expected.variables, expected.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, want)

    def never(state):
        raise AssertionError("a finished training was gone on with")

    assert run(setting, measure=never).step == 23


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    setting = setting_in(tmp_path)

    def make(eta):
        defense = lwa(setting)(eta)

        def step(state, images, labels):
            state, info = defense.step(state, images, labels)
            return state, info._replace(loss=jnp.where(state.step > 10, jnp.nan, info.loss))

        return defenses.Defense(defense.init, step)

    with pytest.raises(FloatingPointError, match="training loss is nan at step 11"):
        run(setting, make)


def test_scores_are_errors_on_the_points_that_each_attack_made(finished):
    setting, state = finished
    result = scores.score(setting, "lwa", state.variables, 0.3)
    assert reporting.read_result(setting.folder / "lwa") == result
    images, labels = setting.dataset.test
    kernel, bias = (np.asarray(state.variables["params"]["Dense_0"][n]) for n in ("kernel", "bias"))
    flat = images.reshape(90, 64)
    logits = flat @ kernel + bias
    slopes = (scipy.special.softmax(logits, axis=1) - np.eye(10)[labels]) @ kernel.T
    moved = (flat + 0.15 * np.sign(slopes)) @ kernel + bias
    clean, fgsm = ((each.argmax(-1) == labels).mean() for each in (logits, moved))
    assert result["clean_accuracy"] == pytest.approx(float(clean), abs=0.012)
    assert result["robust_accuracy"]["fgsm_curr"] == pytest.approx(float(fgsm), abs=0.012)
    assert fgsm < clean - 0.1
    attacked = {"fgsm_curr", "ifgsm_curr", "attack_network_curr", "auto_pgd", "worst"}
    assert set(result["robust_accuracy"]) == attacked
    assert result["robust_accuracy"]["auto_pgd"] <= result["robust_accuracy"]["fgsm_curr"] + 0.05
    assert result["num_examples"] == 90 and result["eta"] == 0.3
    low, high = result["interval"]["clean"]
    assert low < result["clean_accuracy"] < high
    again = scores.score(setting, "lwa", jax.tree.map(np.array, state.variables), 0.3)
    assert again == result  # taken from its file
    other = jax.tree.map(np.zeros_like, jax.device_get(state.variables))
    for variables, eta in ((other, 0.3), (state.variables, 0.4)):
        with pytest.raises(ValueError, match="lwa/result.json is of another classifier or radius"):
            scores.score(setting, "lwa", variables, eta)
        with pytest.raises(ValueError, match="attack_network holds a run with .*args: "):
            scores.attack_network(setting, "lwa", variables, eta)


AT_THE_END = 0.78, np.float32([0.0, 0.01, -20.0])  # from there on logits that are just wrong


def on_a_line(setting, logits_fn):
    """The setting with grey images and `(variables, first pixel) -> [3]` as its model."""
    model = models.Model(lambda key: {}, lambda variables, x: logits_fn(variables, x[0, 0, 0]))
    images, labels = np.full((40, 8, 8, 1), 0.5, np.float32), np.zeros(40, np.int32)
    dataset = dataclasses.replace(setting.dataset, test=data.Split(images, labels))
    return setting._replace(model=model, dataset=dataset)


def only(monkeypatch, name):
    """Of the attacks on classifiers one is made: the others take their time to compile."""
    made = scores.on_classifiers

    def one(*told):
        return [attack for attack in made(*told) if attack.names[0] == name]

    monkeypatch.setattr(scores, "on_classifiers", one)


def test_an_error_on_auto_pgd_s_path_counts_where_the_loss_is_higher_elsewhere(
    tmp_path, monkeypatch
):
    """Cross-entropy leads past its summit to the end, which is wrong; DLR leads away from it."""

    def logits_fn(variables, pixel):
        end, wrong = AT_THE_END
        before = jnp.stack([0.0 * pixel, 0.0 * pixel - 0.1, 1.8 * pixel - 2.0])
        return jnp.where(pixel > end, wrong, before)

    only(monkeypatch, "auto_pgd")
    setting = on_a_line(setting_in(tmp_path), logits_fn)
    assert np.all(scores.errors(setting, {}, 0.6)["auto_pgd"])


def test_an_error_on_the_path_of_ifgsm_counts_unless_the_path_s_end_does(tmp_path, monkeypatch):
    """Small steps pass what is wrong on their way up; the printed attack is where it ends."""

    def logits_fn(variables, pixel):  # the loss rises all the way; only about .7 is it an error
        is_wrong = jnp.abs(pixel - 0.7) < 0.05
        wrong = jnp.stack([0.0 * pixel, 0.01 + 0.01 * pixel, -20.0 + 0.0 * pixel])  # loss .7
        right = jnp.stack([0.0 * pixel, -0.1 + 0.05 * pixel, -0.1 + 0.0 * pixel])  # loss 1
        return jnp.where(is_wrong, wrong, right)

    only(monkeypatch, "ifgsm_curr")
    boxed = dataclasses.replace(CONFIG, gradient_attacks="boxed", ifgsm_steps=20)
    setting = on_a_line(setting_in(tmp_path, boxed), logits_fn)
    assert np.all(scores.errors(setting, {}, 0.6)["ifgsm_curr"])
    config = dataclasses.replace(boxed, gradient_attacks="printed")
    printed = on_a_line(setting_in(tmp_path, config), logits_fn)
    assert not np.any(scores.errors(printed, {}, 0.6)["ifgsm_curr"])
    attack = ifgsm(boxed)
    assert np.all(scores.transferred(setting, {}, {}, 0.6, attack))


def test_on_a_mixture_too_auto_pgd_keeps_what_fools_most_members(tmp_path):
    """The first member's losses lead to the end, where they fall and the second errs as well."""

    def logits_fn(is_second, pixel):
        end, wrong = AT_THE_END
        first = jnp.stack([0.0 * pixel, 5.0 + 20.0 * pixel, -5.0 + 0.0 * pixel])
        before = jnp.where(is_second, np.float32([0.0, -0.5, -5.0]), first)
        return jnp.where(pixel > end, wrong, before)

    setting = on_a_line(setting_in(tmp_path), logits_fn)
    wrong = mixtures._attacked(
        setting,
        np.array([False, True]),
        np.array([0.6, 0.4]),
        setting.network.init(jax.random.key(1)),
        eta=0.6,
        split=setting.dataset.test,
    )
    np.testing.assert_array_equal(wrong["clean"], [[True, False]] * 40)
    assert np.all(wrong["auto_pgd"])


def test_an_attack_on_another_classifier_is_made_with_that_one(finished):
    setting, state = finished
    score = functools.partial(scores.transferred, setting, eta=0.3, attack=fgsm(CONFIG))
    wrong = score(state.variables, state.variables)
    current = scores.current(setting, state.variables, 0.3)
    assert wrong.mean() == pytest.approx(current["fgsm_curr"])
    other = setting.model.init(jax.random.key(5))
    assert score(other, state.variables).mean() < wrong.mean()
    random = score(state.variables, other).mean()
    assert random > 0.7  # who answers is the target


def test_the_gate_says_when_the_attack_network_is_too_weak():
    def result(accuracy, clean=0.95):
        robust = {"attack_network_curr": accuracy}
        return {"eta": 0.4, "clean_accuracy": clean, "robust_accuracy": robust}

    assert scores.gate(result(0.05)) == (
        True,
        "The attack network raises the error of the undefended classifier to 0.950 at eta 0.4: it "
        "can judge a defence.",
    )
    is_strong, sentence = scores.gate(result(0.4))
    assert not is_strong and "too weak to judge" in sentence
    is_strong, sentence = scores.gate(result(0.05, clean=0.06))
    assert not is_strong and "errs on 0.940 without an attack" in sentence


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--etas 0", "etas must be positive"),
        ("--etas much", "etas must be numbers, got 'much'"),
        ("--etas ,", "etas must hold at least one number"),
        ("--attacker weak", "--attacker: invalid choice: 'weak'"),
        ("--gradient-attacks none", "--gradient-attacks: invalid choice: 'none'"),
        ("--steps 0", "steps must be a whole number of at least 1, got 0"),
        ("--no-cpu", "preset demo is made for a GPU and there is none"),
        ("--model none", "--model: invalid choice: 'none'"),
        ("--initialization zero", "--initialization: invalid choice: 'zero'"),
        ("--model cifar_cnn --initialization tutorial", "is of model mnist_cnn, got cifar_cnn"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        sensitivity.main([*flags.split(), "--run-dir", str(tmp_path / "run")])
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "module", [attack_network, cat_and_mouse, minimax_defense, privacy_filter, sensitivity]
)
def test_every_preset_is_what_the_checks_allow(module):
    for config in module.PRESETS.values():
        settings.check(config)
        assert config.dataset in data.NAMES
        assert json.dumps(settings.recorded(config))


def test_classifiers_of_mnist_start_from_the_tutorial_s_weights_and_others_from_their_own():
    for module in (cat_and_mouse, minimax_defense, sensitivity):
        starts = {name: config.initialization for name, config in module.PRESETS.items()}
        assert starts == dict(demo="he", mnist="tutorial", fashion_mnist="tutorial", cifar10="he")
    dataset = data.load("digits")
    kernels = [
        training.build(dataclasses.replace(CONFIG, width=2, initialization=name), dataset)[0].init(
            jax.random.key(0)
        )["params"]["Conv_0"]["kernel"]
        for name in ("tutorial", "he")
    ]
    np.testing.assert_allclose(kernels[0] / kernels[1], 0.1 * (25 / 2) ** 0.5, rtol=1e-5)


def test_a_score_without_an_attack_network_makes_its_folder(finished, tmp_path):
    setting, state = finished
    setting = setting._replace(folder=tmp_path)
    result = scores.score(setting, "new/one", state.variables, 0.3, with_network=False)
    assert "attack_network_curr" not in result["robust_accuracy"]
    assert reporting.read_result(tmp_path / "new" / "one") == result
