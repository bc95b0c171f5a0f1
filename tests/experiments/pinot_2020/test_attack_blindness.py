"""The experiment on blind attacks: its closed form, what it claims, its files and refusals."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from experiments.pinot_2020 import attack_blindness, blindness, plots
from mixjax import attacks, data, evaluation, losses, mixture, models, reporting, threats
from tests.linear_game import LinearGame

BUDGET = evaluation.Budget(1, 1, 2, 5, 1, 20, 1, 5)
TINY = (
    "--dimension 8 --num-examples 40 --test-examples 20 --width 2 --train-steps 3 --batch-size 16 "
    "--train-attack-steps 2 --pgd-runs 2 --pgd-steps 20"
).split()
TRAINED = "boosted pair on digits"


def all_that_is_shown(threat, budget, attack_suite=evaluation.attack_suite):
    """ARC, and one step under the names of AutoPGD and the lattice climber, for the figure."""
    auto_pgd, climber, arc, *_ = attack_suite(threat, budget)

    def one_step(attack):
        settings = threat, (0.0, 1.0), attack.number
        return evaluation.Attack(attack.names, 1, attacks.fgsm, *settings)

    return one_step(auto_pgd), arc, one_step(climber)


def untrained(config, dataset):
    """In the place of the pair, whose training has a test of its own: as compiled already."""
    weights = np.array([1 - config.alpha, config.alpha])
    return blindness.linear_mixture(config, "steep")._replace(weights=weights, optimum=None)


def linear(num_classes, width, *, input_shape):
    """In the place of a network: no convolution is compiled."""
    return models.linear(num_classes, input_shape=input_shape)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attack_blindness.BUDGETS, "quick", BUDGET)
        patch.setattr(evaluation, "attack_suite", all_that_is_shown)
        patch.setattr(attack_blindness, "boosted_pair", untrained)
        attack_blindness.main([*TINY, "--run-dir", str(folder)])
    return folder


def results_of(folder):
    trained = json.loads((folder / "result.json").read_text())
    return {**trained["linear"], TRAINED: trained}


@pytest.mark.parametrize("name", blindness.LINEAR_MIXTURES)
def test_the_closed_form_is_the_optimum_of_a_linear_program(name):
    config = blindness.Config(dimension=6, num_examples=12, seed=3)
    game = blindness.linear_mixture(config, name)
    slopes, offsets = map(np.asarray, game.logits_fn.args)
    slow = LinearGame(
        np.stack([slopes, 0 * slopes], axis=1),
        np.stack([offsets - slopes.sum(axis=1) / 2, 0 * offsets], axis=1),
        game.weights,
        game.images,
        game.labels,
        (0.0, 1.0),
    )
    for image, logits in zip(game.images[:3], map(game.logits_fn, game.images[:3]), strict=True):
        np.testing.assert_allclose(slow.logits(image), logits, atol=1e-4)
    np.testing.assert_allclose(game.optimum, 1 - slow.optimal_risk(np.inf, game.epsilon))
    assert len(np.unique(game.optimum)) >= 2
    np.testing.assert_array_equal(slow.risk(game.images), 0)


def test_both_members_are_out_of_reach_together_where_each_is_within_reach_alone():
    normals = np.array([[1.0, 0.0], [-0.6, 0.4]])
    # |n|_1 = 1: each alone within .2. The mixture .375 / .625 of the normals is (0, .25): both
    # together need .375 * .1 + .625 * .2 <= .25 epsilon.
    margins, weights = np.array([[0.1, 0.2]]), np.array([0.3, 0.7])
    for epsilon, accuracy in ((0.05, 1.0), (0.15, 0.7), (0.25, 0.3), (0.649, 0.3), (0.651, 0.0)):
        found = blindness.lowest_accuracy(normals, margins, weights, epsilon)
        assert found == pytest.approx([accuracy]), epsilon


def test_no_attack_is_better_than_the_optimum_and_arc_reaches_it(finished):
    for name in blindness.LINEAR_MIXTURES:
        result = results_of(finished)[f"linear, {name}"]
        optimum = result["optimum"]["accuracy"]
        assert min(result["robust_accuracy"].values()) >= optimum - 1e-6
        assert result["robust_accuracy"]["arc"] <= optimum + 0.03
        assert result["clean_accuracy"] == pytest.approx(1)


def test_attacks_on_one_loss_of_all_members_report_far_more_than_there_is(finished):
    results = results_of(finished)
    for name in ("linear, steep", "linear, opposed"):
        result = results[name]
        for attack in attack_blindness.BLIND[:2]:
            assert result["robust_accuracy"][attack] > result["optimum"]["accuracy"] + 0.1


def test_a_run_leaves_checked_results_a_figure_and_a_report(finished):
    assert {path.name for path in finished.iterdir()} == {
        ".lock",
        "config.json",
        "result.json",
        "blindness.png",
        "blindness.pdf",
        "report.md",
    }
    result = reporting.read_result(finished)
    assert result["weights"] == pytest.approx([0.9, 0.1])
    assert (result["num_examples"], result["config"]["budget"]) == (40, "quick")
    report = (finished / "report.md").read_text()
    assert "blindness.png" in report
    for name in (*results_of(finished), "exact optimum", "pgd_averaged_logits"):
        assert name in report
    for each in results_of(finished).values():
        reporting.check_result(each)
        assert each["provenance"]["command"].startswith(
            "python -m experiments.pinot_2020.attack_blindness "
        )


def test_the_second_member_learns_from_the_data_attacked_for_the_first(monkeypatch):
    monkeypatch.setattr(models, "small_resnet", linear)
    seen, original = [], blindness.train

    def train(key, model, images, labels, config, attack_all):
        variables = original(key, model, images, labels, config, attack_all)
        seen.append((np.asarray(images), np.asarray(model.apply(variables, images)), attack_all))
        return variables

    monkeypatch.setattr(blindness, "train", train)
    config = blindness.Config(train_steps=40, train_attack_steps=5, test_examples=30)
    dataset = data.load("digits")
    pair = blindness.boosted_pair(config, dataset)
    (clean, logits, attack), (attacked, second_logits, natural) = seen
    np.testing.assert_allclose(clean, dataset.train.images / 255, atol=1e-6)
    assert 0.19 < np.abs(attacked - clean).max() <= config.epsilon + 1e-6
    assert np.mean(logits.argmax(-1) == dataset.train.labels) > 0.7
    first = jax.tree.map(lambda leaf: leaf[0], pair.logits_fn.args[1])
    fooled = np.asarray(models.linear(10, input_shape=(8, 8, 1)).apply(first, attacked)).argmax(-1)
    assert np.mean(fooled == dataset.train.labels) < 0.6
    assert np.mean(second_logits.argmax(-1) == dataset.train.labels) > 0.8
    keys_and_more = (jax.random.key(0), first, clean[:4], np.zeros(4, np.int32))
    assert np.array_equal(natural(*keys_and_more), clean[:4])
    assert not np.array_equal(jax.jit(attack)(*keys_and_more), clean[:4])
    assert pair.weights == pytest.approx([0.9, 0.1]) and pair.images.shape == (30, 8, 8, 1)


def test_a_member_is_trained_on_what_the_attack_makes_of_each_batch(key):
    """Black images teach a linear model its biases alone."""
    model = models.linear(10, input_shape=(8, 8, 1))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(40, 8, 8, 1)), jnp.float32)
    labels = jnp.asarray(np.arange(40) % 3)
    config = blindness.Config(train_steps=3, batch_size=8)

    def black(key, variables, x, y):
        return jnp.zeros_like(x)

    start = model.init(jax.random.split(key, 3)[0])
    trained = blindness.train(key, model, images, labels, config, black)
    ((_, before),), ((_, after),) = start["params"].items(), trained["params"].items()
    np.testing.assert_array_equal(after["kernel"], before["kernel"])
    assert np.all(after["bias"] != before["bias"])


def test_the_two_blind_losses_differ_where_members_do():
    logits, weights = np.float32([[2.0, 0.0], [-5.0, 0.0]]), np.float32([0.75, 0.25])

    def cross_entropy(margin):
        return np.log1p(np.exp(-margin))

    @jax.jit
    def both(logits, weights):
        expected = losses.expected(losses.cross_entropy, logits, 0, weights)
        return expected, attack_blindness.loss_of_averaged_logits(logits, 0, weights)

    expected, averaged = both(logits, weights)
    assert expected == pytest.approx(0.75 * cross_entropy(2) + 0.25 * cross_entropy(-5), rel=1e-5)
    assert averaged == pytest.approx(cross_entropy(0.25), rel=1e-5)


def test_the_blind_attacks_are_pgd_with_restarts_on_these_two_losses(key):
    """A step is a quarter of the radius, whatever their number, as in the paper's PGD-100."""
    config = blindness.Config(pgd_runs=3, pgd_steps=4)
    suite = attack_blindness.attacks_on(threats.linf(0.2), "quick", config)
    slopes = jax.random.normal(key, (2, 2, 6))
    weights, x = np.float32([0.8, 0.2]), np.linspace(0.3, 0.7, 6, dtype=np.float32)

    def logits_fn(x):
        return jnp.tanh(3 * jnp.sum(slopes * (x - 0.4)[None, None], axis=-1))

    points = []
    for attack, name, loss in (
        (suite[0], "pgd_averaged_logits", attack_blindness.loss_of_averaged_logits),
        (suite[1], "pgd_expected_loss", partial(losses.expected, losses.cross_entropy)),
    ):
        assert attack.names == (name,) * 3 and attack.num_steps == 4

        @jax.jit
        def both(key, attack=attack, loss=loss):
            plain, _ = attacks.pgd(
                key,
                lambda x: loss(logits_fn(x), 0, weights),
                x,
                threats.linf(0.2),
                num_steps=4,
                step_size=0.05,
                accuracy_fn=lambda x: mixture.accuracy(logits_fn(x), 0, weights),
            )
            return attack.run(key, 0, logits_fn, weights, x, 0), plain

        found, plain = jax.device_get(both(key))
        np.testing.assert_allclose(found, plain, atol=1e-6)
        points.append(found)
    assert not np.allclose(*points, atol=1e-3)
    assert sum("pgd_expected_loss" in attack.names for attack in suite) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--budget huge", "--budget: invalid choice: 'huge'"),
        ("--dataset cifar10", "--dataset: invalid choice: 'cifar10'"),
        ("--num-examples 0", "num_examples must be a whole number of at least 1, got 0"),
        ("--dimension 1", "dimension must be a whole number of at least 2, got 1"),
        ("--alpha 1", "alpha must be in [0, 1), got 1.0"),
        ("--alpha 0", "alpha must be positive, got 0.0"),
        ("--epsilon=-1/5", "epsilon must be positive, got -0.2"),
        ("--linear-epsilon 0.3", "linear_epsilon must lie in [0.0, 0.25], got"),
        ("--pgd-steps 0", "pgd_steps must be a whole number of at least 1, got 0"),
        ("--batch-size 5000", "batch_size must lie in [1, 1294], got"),
        ("--batch-size 0", "batch_size must lie in [1, 1294], got"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_no_folder(
    flags, message, capsys, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        attack_blindness.main([*TINY, "--run-dir", str(folder), *flags.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert (
        line.startswith("python -m experiments.pinot_2020.attack_blindness: error: ")
        and message in line
    )
    assert not folder.exists()


def test_a_folder_with_a_run_is_not_overwritten(finished, capsys):
    before = (finished / "result.json").read_bytes()
    with pytest.raises(SystemExit):
        attack_blindness.main([*TINY, "--run-dir", str(finished)])
    assert "holds a run already" in capsys.readouterr().err
    assert (finished / "result.json").read_bytes() == before


def test_the_figure_draws_each_attack_once_and_the_optimum_as_a_line(
    finished, tmp_path, monkeypatch
):
    drawn = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        drawn.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    results = results_of(finished)
    shown, blind = attack_blindness.SHOWN, attack_blindness.BLIND
    radii = dict.fromkeys(results, 0.25)
    plots.plot_blindness(tmp_path / "figure.png", results, shown, blind, radii=radii)
    for axis, (name, result) in zip(drawn[0].axes, results.items(), strict=True):
        assert axis.get_title() == f"{name}\nl-inf radius 0.25"
        dots = {}
        for bars in axis.containers:
            line = bars.lines[0]
            for row, value in zip(line.get_ydata(), line.get_xdata(), strict=True):
                dots[shown[int(row)]] = (value, bars.get_label())
        assert {attack: value for attack, (value, _) in dots.items()} == pytest.approx(
            {attack: 100 * result["robust_accuracy"][attack] for attack in shown}
        )
        assert {attack for attack, (_, text) in dots.items() if "blind" in text} == {*blind}
        verticals = [line for line in axis.lines if line.get_label() == "exact optimum"]
        assert len(verticals) == ("optimum" in result)
        for line in verticals:
            assert line.get_xdata()[0] == pytest.approx(100 * result["optimum"]["accuracy"])


def test_what_cannot_be_drawn_is_named_and_nothing_is_written(finished, tmp_path):
    path = tmp_path / "figure.png"
    with pytest.raises(ValueError, match="results must hold at least one result, got none"):
        plots.plot_blindness(path, {}, ["arc"], [], radii={})
    with pytest.raises(ValueError, match="result of linear, alike must hold the attack unheard_of"):
        plots.plot_blindness(path, results_of(finished), ["arc", "unheard_of"], [], radii={})
    assert not path.exists()
