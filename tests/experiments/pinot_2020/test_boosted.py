"""Boosted adversarial training as a person runs it: linear members on digits, seconds."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pinot_2020 import boosted
from experiments.pinot_2020.boosted_attacks import NORMS, norms_for, rejected_scores, score
from experiments.pinot_2020.boosted_setting import Setting, network, optimizer, plan
from mixjax import attacks, data, evaluation

TINY = (
    "--model linear --epochs 2 --validations 2 --batch-size 256 --learning-rate 0.05 "
    "--attack-steps 2 --validation-examples 20 --test-examples 20 --pgd-steps 3 --cw-steps 4 "
    "--cw-searches 2 --members 2 --grid 0.3 --no-both-first"
).split()


def first_attacks(threat, budget, attack_suite=evaluation.attack_suite):
    """One step in the place of PGD: attacks take long to compile and have tests of their own."""
    *_, baseline = attack_suite(threat, budget)
    return (evaluation.Attack(baseline.names, 1, attacks.fgsm, threat, (0.0, 1.0), 0),)


def not_attacked(logits_fn, weights, images, labels, *, num_steps, num_searches, batch_size):
    """In the place of Carlini and Wagner's attack, which has a test of its own."""
    norms = norms_for(math.prod(images.shape[1:]))
    return [
        {**score(np.ones(len(labels))), "norm": norm, "norm_of_paper": paper}
        for norm, paper in zip(norms, NORMS, strict=True)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "boosted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boosted.BUDGETS, "quick", evaluation.Budget(1, 1, 2, 3, 1, 2, 1, 5))
        patch.setattr(evaluation, "attack_suite", first_attacks)
        patch.setattr(boosted, "rejected_scores", not_attacked)
        boosted.main([*TINY, "--run-dir", str(folder)])
    return folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_each_mixture_has_its_weights_in_the_order_of_training(finished):
    result = result_of(finished)
    found = {(each["alpha"], each["num_members"]): each["weights"] for each in result["mixtures"]}
    assert [*found] == [(0.06, 1), (0.06, 2), (0.3, 1), (0.3, 2)]
    np.testing.assert_allclose(found[0.06, 2], [0.94, 0.06])
    np.testing.assert_allclose(found[0.3, 2], [0.7, 0.3])
    np.testing.assert_allclose(result["weights"], [0.94, 0.06])
    for each in result["mixtures"]:
        assert 0 <= each["pgd"]["accuracy"] <= each["natural"]["accuracy"] <= 1


def test_the_tables_have_the_papers_numbers_beside_ours(finished):
    result, page = result_of(finished), (finished / "report.md").read_text()
    assert result["paper"]["table_1"]["boosted"]["pgd"] == 0.58
    assert "[58]" in page and "C&W 0.058 (0.4)" in page and "## Table 2" in page
    assert [*result["table_1"]] == ["natural", "adversarial", "boosted"]
    assert len(result["table_1"]["boosted"]["cw"]) == 3
    assert np.shape(result["table_2"]["pgd"]) == (2, 2)
    assert (finished / "grid.png").exists() and (finished / "members.png").exists()
    worst = result["suite"]["2"]["worst"]["accuracy"]
    assert result["suite"]["2"]["sandwich"]["lower"] <= worst + 1e-9
    assert result["robust_accuracy"]["worst"] == worst


def test_members_that_both_alphas_share_are_trained_once(finished):
    assert not (finished / "alpha_0.3").exists()


def refusal(capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        boosted.main([*flags])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1
    return error[0]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--alpha", "1"], "alpha must lie in (0, 1), got 1.0"),
        (["--grid", "0.1 0"], "grid must lie in (0, 1), got 0.0"),
        (["--members", "0"], "members must be a whole number of at least 1, got 0"),
        (["--epsilon", "0"], "epsilon must be positive, got 0.0"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys, tmp_path, flags, told):
    assert told in refusal(capsys, *flags, "--run-dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_gone_on_with_only_if_asked(capsys, finished):
    assert "holds a run already" in refusal(capsys, *TINY, "--run-dir", str(finished))


def test_the_papers_network_and_schedule():
    paper = boosted.PRESETS["paper"]
    assert (paper.model, paper.dropout, paper.negative_slope) == ("wide_resnet_28_10", 0.3, 0.1)
    assert (paper.momentum, paper.weight_decay, paper.batch_size, paper.epochs) == (
        0.9,
        2e-4,
        128,
        200,
    )
    rates = []
    update = optimizer(paper, 200)
    params = {"w": np.ones(1, np.float32)}
    state = update.init(params)
    for _ in range(200):
        step, state = update.update({"w": np.zeros(1, np.float32)}, state, params)
        rates.append(float(step["w"][0]))
    # Without a gradient the momentum of the decay settles at 10 times it: the rate is what moves.
    rates = np.array(rates) / (-2e-4 * (1 - 0.9 ** np.arange(1, 201)) / 0.1)
    np.testing.assert_allclose(
        rates[[0, 59, 60, 119, 120, 159, 160, 199]],
        [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008],
        rtol=1e-4,
    )


def test_norms_of_smaller_images_have_the_same_mean_square():
    np.testing.assert_allclose(norms_for(3072), [0.4, 0.6, 0.8])
    np.testing.assert_allclose(norms_for(768), [0.2, 0.3, 0.4])


def test_validations_are_as_many_as_asked_for_at_least():
    dataset = data.load("digits")
    found = plan(Setting(epochs=12, validations=4), dataset)
    assert (
        found.num_steps == 12 * (1294 // 64) and found.num_steps == 4 * found.steps_per_validation
    )
    found = plan(Setting(epochs=7, validations=3), dataset)
    assert found.num_steps == 7 * found.steps_per_validation
    assert network(Setting(model="linear"), dataset) is not None


def test_the_way_of_convolving_changes_the_program_and_not_the_answers():
    dataset = data.load("digits")
    one, other = (network(Setting(conv=conv), dataset) for conv in ("unrolled", "banded"))
    variables, x = one.init(jax.random.key(0)), jnp.asarray(dataset.test.images[:4] / 255.0)
    chex.assert_trees_all_close(one.apply(variables, x), other.apply(variables, x), atol=1e-5)
    programs = [jax.jit(each.apply).lower(variables, x).as_text() for each in (one, other)]
    assert "stablehlo.convolution" in programs[0] and programs[0] != programs[1]


def test_an_attack_beyond_the_norm_is_discarded_and_the_natural_example_kept():
    """One coordinate, the boundary at .5: the attack's norm is the distance to it."""

    def logits_fn(x):
        return jnp.stack([10 * jnp.stack([x[0] - 0.5, 0.5 - x[0]])])

    norms = norms_for(1)
    images = 0.5 + np.array([[0.5 * norms[0]], [0.5 * (norms[0] + norms[2])], [3 * norms[2]]])
    scores = rejected_scores(
        jax.tree_util.Partial(logits_fn),
        [1.0],
        images.astype(np.float32),
        np.zeros(3, int),
        batch_size=3,
    )
    assert [each["norm"] for each in scores] == norms
    np.testing.assert_allclose(scores[0]["accuracy"], 2 / 3)
    np.testing.assert_allclose(scores[2]["accuracy"], 1 / 3)
