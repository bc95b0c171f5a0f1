"""The front door as a new user finds it: any classifier, whole data sets, errors in one line."""

import dataclasses
import functools
import io
import json
import pathlib
import sys
import tomllib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import mixjax
from mixjax import attacks, ensemble, evaluation, parallel, threats
from mixjax.evaluation import batches, diagnostics
from mixjax.front import progress

SIDE = 4
ONE = evaluation.Budget(1, 1, 2, 6, 1, 3, 1, 8, lines=("pgd_expected_loss",))
LINF = threats.linf(0.1)
KERNELS = jnp.asarray(np.random.default_rng(0).normal(size=(2, SIDE * SIDE, 3)), jnp.float32)
UNIT = jnp.ones((1, 1))


OVER_EXAMPLES, DIAGNOSE = parallel.over_examples, diagnostics.diagnose
ATTACK_SUITE, FOR_WORK = evaluation.attack_suite, batches.for_work


def first_attack(threat, budget, *, bounds):
    """One step in its place."""
    baseline, *_ = ATTACK_SUITE(threat, budget, bounds=bounds)
    return (baseline._replace(function=attacks.fgsm, num_steps=1),)


@pytest.fixture(scope="module", autouse=True)
def short():
    """Without what takes long to compile, and is there in one test each: the suite's own attack,
    the checks on it, several devices; and with a level of optimisation that nobody has to count.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "over_examples", lambda: None)
        patch.setattr(batches, "for_work", lambda *told: batches._at_level(0))
        patch.setattr(evaluation, "attack_suite", first_attack)
        patch.setattr(diagnostics, "diagnose", lambda *told, **settings: ())
        yield


def classify(kernel, x, scale=UNIT):
    """Of one program for every kernel and scale: so most of these tests compile the same."""
    return (scale * x.reshape(len(x), -1) - 0.5) @ kernel


def pgd(*arguments, **settings):
    """Two steps, the attack where it does not matter which one moves."""
    settings = {"num_steps": 2, "step_size": 0.05, "progress": False} | settings
    return mixjax.attack(*arguments, attacks.pgd, **settings)


def examples(number=12):
    images = np.random.default_rng(1).uniform(0.2, 0.8, (number, SIDE, SIDE, 1)).astype(np.float32)
    labels = np.asarray(jnp.argmax(classify(KERNELS[0], images) + classify(KERNELS[1], images), 1))
    return images, labels


def evaluated(classify, images, labels, threat=LINF, **settings):
    settings = {"budget": ONE, "progress": False} | settings
    return mixjax.evaluate(classify, images, labels, threat, **settings)


def robust(kernel, images, labels, threat=LINF):
    """Of a linear classifier: the lead over each other class exceeds what the threat takes."""
    logits = np.asarray(classify(kernel, images))
    lead = [
        [
            logits[n, label] - logits[n, k]
            > threat.epsilon * threat.dual_norm(kernel[:, label] - kernel[:, k])
            for k in range(3)
            if k != label
        ]
        for n, label in enumerate(labels)
    ]
    return np.all(lead, axis=1)


def test_a_linear_classifier_keeps_what_its_leads_say(monkeypatch):
    monkeypatch.setattr(evaluation, "attack_suite", ATTACK_SUITE)
    monkeypatch.setattr(batches, "for_work", FOR_WORK)
    monkeypatch.setattr(diagnostics, "diagnose", DIAGNOSE)
    threat = threats.linf(0.02)
    images, labels = examples()
    member = functools.partial(classify, KERNELS[0])
    report = evaluated(member, images, labels, threat)
    assert "stuck_ascent" in {finding.name for finding in report.findings}
    clean = np.asarray(jnp.argmax(classify(KERNELS[0], images), 1)) == labels
    expected = clean & robust(KERNELS[0], images, labels, threat)
    assert 0 < expected.sum() < clean.sum()
    np.testing.assert_array_equal(report.worst, expected)
    assert report.clean_accuracy == clean.mean() and report.robust_accuracy == expected.mean()
    right = np.asarray(jnp.argmax(classify(KERNELS[0], report.images), 1)) == labels
    np.testing.assert_array_equal(right, expected)  # the worst points are what is reported
    moved = np.asarray([threat.norm(each) for each in report.images - images])
    assert moved.max() <= threat.epsilon * (1 + 1e-4) and report.images.dtype == np.float32


def test_members_as_a_list_stacked_or_all_at_once_are_one_mixture():
    images, labels = examples()
    forms = (
        [functools.partial(classify, kernel) for kernel in KERNELS],
        ensemble.members(classify, KERNELS),
        functools.partial(ensemble.apply, classify, KERNELS),
    )
    found = [evaluated(each, images, labels, weights=[0.9, 0.1]) for each in forms]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].correct, other.correct)
        np.testing.assert_allclose(found[0].images, other.images, atol=1e-5)
        assert len(other.alone) == 2 and other.averaged is not None
    assert found[0].weights.tolist() == [0.9, 0.1]
    assert 0 < found[0].robust_accuracy < found[0].clean_accuracy


def test_members_of_two_architectures_need_share_nothing_but_the_classes():
    hidden, out = KERNELS[0][:, :3], KERNELS[1][:3]

    def deep(x):
        return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ hidden) @ out

    images, labels = examples()
    members = [functools.partial(classify, KERNELS[0]), deep]
    report = evaluated(members, images, labels, weights=[0.25, 0.75])
    right = np.stack([np.argmax(each(images), 1) == labels for each in members], 1)
    assert report.clean_accuracy == pytest.approx((right @ [0.25, 0.75]).mean())
    x_adv, _ = mixjax.attack(
        members, images, labels, LINF, attacks.fgsm, weights=[0.25, 0.75], progress=False
    )
    assert np.abs(x_adv - images).max() <= 0.1 + 1e-6
    right = np.stack([np.argmax(each(x_adv), 1) == labels for each in members], 1)
    assert (right @ [0.25, 0.75]).mean() < report.clean_accuracy


@dataclasses.dataclass
class Linear:
    """Equal where its fields are, and so without a hash, as a bound Linen module is."""

    kernel: jax.Array

    def __call__(self, x):
        return classify(self.kernel, x)


def test_a_classifier_need_not_be_hashable():
    images, labels = examples()
    settings = {"method": attacks.fgsm, "progress": False}
    found = [
        mixjax.attack(each, images, labels, LINF, **settings)[0]
        for each in (Linear(KERNELS[0]), functools.partial(classify, KERNELS[0]))
    ]
    chex.assert_trees_all_equal(*found)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


def linen(train=False):
    model = Mlp()
    variables = model.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)))
    return lambda x: model.apply(variables, x, train=train)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(SIDE * SIDE, rngs=rngs)
        self.out = nnx.Linear(SIDE * SIDE, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(x.reshape(len(x), -1)))


def nnx_model(train=False):
    model = Net(nnx.Rngs(0))
    if not train:
        model.eval()
    return model


@pytest.mark.parametrize("make", [linen, nnx_model])
def test_flax_models_are_taken_as_they_are(make):
    model, (images, labels) = make(), examples()
    x_adv, info = pgd(model, images, labels, LINF)
    right = np.asarray(jnp.argmax(model(x_adv), 1)) == labels
    np.testing.assert_array_equal(right, info.accuracy > 0.5)


# One of each kind of what they ask for: the attacks have tests of their own.
EVERY = {
    attacks.fgsm: {},
    attacks.apgd_targeted: {"num_steps": 3},
    attacks.lattice_climber: {"num_steps": 2, "num_orders": 1},
    attacks.square: {"num_queries": 5},
    attacks.carlini_wagner: {"num_steps": 5},
}


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.__name__)
def test_every_attack_is_called_by_the_thing_itself_and_stays_in_the_ball(method):
    images, labels = examples()
    threat = threats.l2(0.3)
    x_adv, info = mixjax.attack(
        ensemble.members(classify, KERNELS),
        *(images, labels, threat, method),
        **EVERY[method],
        weights=[0.4, 0.6],
        progress=False,
    )
    assert x_adv.shape == images.shape and jax.tree.leaves(info)[0].shape == (12,)
    moved = np.linalg.norm((x_adv - images).reshape(12, -1), axis=1)
    assert moved.max() <= 0.3 * (1 + 1e-4)
    assert method is attacks.carlini_wagner or moved.max() > 0


def test_an_attack_of_ones_own_says_what_it_needs_and_joins_the_suite():
    images, labels = examples()

    def towards_black(x, threat, *, share=1.0):
        return x - share * threat.epsilon

    members = functools.partial(classify, KERNELS[0])
    x_adv, info = mixjax.attack(
        members, images, labels, LINF, towards_black, share=0.5, progress=False
    )
    np.testing.assert_allclose(x_adv, images - 0.05, atol=1e-6)
    assert info is None
    own = evaluation.Attack(("black, twice",) * 2, 1, towards_black)
    report = evaluated(members, images, labels, attacks=(towards_black, own))
    assert report.runs[-3:] == ("towards_black", "black, twice", "black, twice")
    assert "towards_black" in str(report)


def test_the_same_key_gives_the_same_numbers_whatever_the_batch_and_the_devices(monkeypatch):
    images, labels = examples()
    members = functools.partial(classify, KERNELS[0])
    attacked = [pgd(members, images, labels, LINF, batch_size=size) for size in (12, 5)]
    monkeypatch.setattr(parallel, "over_examples", OVER_EXAMPLES)
    attacked.append(pgd(members, images, labels, LINF))
    for other in attacked[1:]:
        chex.assert_trees_all_close(attacked[0], other, atol=1e-5)


def test_bytes_are_pixels_of_0_to_1_and_a_model_that_divides_again_is_told():
    images, labels = examples()
    pixels = np.round(images * 255).astype(np.uint8)
    once = evaluated(functools.partial(classify, KERNELS[0]), pixels, labels)
    assert once.images.dtype == np.float32 and once.images.max() <= 1
    twice = evaluated(lambda x: classify(KERNELS[0], x, UNIT / 255), pixels, labels)
    told = {finding.name for finding in twice.findings if finding.is_suspicious}
    assert "divides_itself" in told
    assert "divides_itself" not in {each.name for each in once.findings if each.is_suspicious}


def test_whether_a_model_divides_is_asked_of_the_same_examples():
    """Those that are looked at are all right, the others all wrong, on pixels of any size."""
    labels = np.ones(200, np.int32)
    labels[np.linspace(0, 199, 100).astype(int)] = 0
    always_0 = functools.partial(classify, jnp.zeros_like(KERNELS[0]).at[:, 0].set(-1.0))
    pixels = np.zeros((200, SIDE, SIDE, 1), np.uint8)
    report = evaluated(always_0, pixels, labels, batch_size=12)
    (finding,) = [each for each in report.findings if each.name == "divides_itself"]
    assert report.clean_accuracy == 0.5 and finding.value == 0


def test_a_folder_goes_on_where_it_stopped_and_refuses_what_is_another_evaluation(tmp_path):
    images, labels = examples()
    members = functools.partial(classify, KERNELS[0])
    first = evaluated(members, images, labels, folder=tmp_path / "e")
    files = sorted((tmp_path / "e").rglob("*.npz"))
    for path in files[::2]:
        path.unlink()
    again = evaluated(members, images, labels, folder=tmp_path / "e")
    np.testing.assert_array_equal(first.correct, again.correct)
    np.testing.assert_array_equal(first.images, again.images)
    other = functools.partial(classify, KERNELS[1])
    changes = (
        ((other, images, labels), {}, "logits_fn.constants"),
        ((members, images, labels, threats.linf(0.2)), {}, "threat.epsilon: 0.1 -> 0.2"),
        ((members, images[:5], labels[:5]), {}, "num_examples: 12 -> 5"),
        ((members, images, labels), {"attacks": [attacks.fgsm]}, "attacks: "),
        ((members, images, labels), {"key": jax.random.key(1)}, "key"),
    )
    for arguments, settings, message in changes:
        with pytest.raises(ValueError, match=f"holds a run with another config.*{message}") as told:
            evaluated(*arguments, **settings, folder=tmp_path / "e")
        assert "\n" not in str(told.value)
        # However many runs there are, whose every number follows from what was changed.
        assert len(str(told.value)) < len(str(tmp_path)) + 800


def test_a_bar_shows_who_is_attacked_on_standard_error(capsys):
    images, labels = examples()
    evaluated(functools.partial(classify, KERNELS[0]), images, labels, progress=True)
    shown = capsys.readouterr()
    assert "mixture" in shown.err and "compiling" in shown.err and not shown.out
    evaluated(functools.partial(classify, KERNELS[0]), images, labels)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("is_terminal", "stream", "seconds"),
    [
        (True, io.TextIOWrapper(io.BytesIO()), 0.1),
        (False, io.TextIOWrapper(io.BytesIO()), 10.0),
        (False, io.StringIO(), 0.1),  # as a notebook's
    ],
)
def test_a_bar_writes_seldom_to_a_file_which_keeps_every_line(
    is_terminal, stream, seconds, monkeypatch
):
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(total=1) as bar:
        assert bar.mininterval == seconds


def test_another_radius_another_classifier_and_another_type_compile_nothing_anew(caplog):
    """What of them changes the program would be compiled under another name or shape."""
    images, labels = examples()
    images = np.round(images * 128).astype(np.float32) / 128  # half precision holds them exactly
    others = [(each, dtype) for each in KERNELS for dtype in (np.float16, ml_dtypes.bfloat16)]
    others += [(KERNELS[0], np.uint8)]

    def both(kernel, images, threat):
        member = functools.partial(classify, kernel)
        settings = {"attacks": (attacks.fgsm,), "budget": ONE}
        report = evaluated(member, images, labels, threat, **settings)
        moved = mixjax.attack(member, images, labels, threat, attacks.fgsm, progress=False)[0]
        return report.images, moved

    found = both(KERNELS[0], images, LINF)
    with jax.log_compiles(True):
        for kernel, dtype in others:
            threat = LINF if kernel is KERNELS[0] else threats.linf(0.05)
            pixels = images * 255 if dtype == np.uint8 else images
            other = both(kernel, pixels.astype(dtype), threat)
            if threat is LINF and dtype != np.uint8:
                chex.assert_trees_all_equal(found, other)
    compiled = [each for each in caplog.messages if each.startswith("Compiling")]
    names = "_points", "_attacked", "_answers", "_climb", "_apart"
    assert [each for each in compiled if any(name in each for name in names)] == []


@dataclasses.dataclass
class Black:
    """Equal to another where their share is, and so without a hash."""

    share: float

    def __call__(self, x, threat):
        return x - self.share * threat.epsilon


def test_an_attack_need_not_be_hashable():
    images, labels = examples()
    member = functools.partial(classify, KERNELS[0])
    for share in (1.0, 0.5):  # equal in nothing
        x_adv, _ = mixjax.attack(member, images, labels, LINF, Black(share), progress=False)
        np.testing.assert_allclose(x_adv, images - 0.1 * share, atol=1e-6)
    found = evaluation.evaluate(
        *(jax.random.key(0), lambda x: member(x[None]), [1.0], images, labels),
        (evaluation.Attack(("black",), 1, Black(1.0), LINF),),
    )
    right = np.asarray(jnp.argmax(member(images - 0.1), 1)) == labels
    np.testing.assert_array_equal(found.correct[:, 1, 0], right)


@pytest.mark.parametrize("kept", [True, False])
def test_whoever_stops_an_evaluation_is_told_how_it_goes_on(kept, tmp_path):
    images, labels = examples()
    settings = {"budget": ONE, "folder": tmp_path if kept else None}
    member = functools.partial(classify, KERNELS[0])

    def stop(bars, name, num_done, num_all):
        if num_done == len(images):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixjax.front.progress.Bars.show", stop)
        told = "the same call goes on" if kept else "give a folder to keep it"
        with pytest.raises(KeyboardInterrupt, match=f"the evaluation was stopped: {told}"):
            evaluated(member, images, labels, **settings)
    if kept:
        assert len(list(tmp_path.rglob("*.npz"))) == 1
        assert evaluated(member, images, labels, **settings).runs == ("pgd_expected_loss",)


def test_a_drawn_member_answers_as_often_as_its_weight_says():
    def always(k, x):
        return jax.nn.one_hot(jnp.full(len(x), k), 3) + 0 * x[:, 0, 0]

    members = [functools.partial(always, k) for k in (2, 0)]
    images = np.zeros((2000, SIDE, SIDE, 1), np.float32)
    answers = mixjax.predict(jax.random.key(0), members, [0.8, 0.2], images, batch_size=300)
    assert set(answers) == {0, 2} and 0.77 < (answers == 2).mean() < 0.83
    again = mixjax.predict(jax.random.key(0), members, [0.8, 0.2], images, batch_size=2000)
    np.testing.assert_array_equal(answers, again)


def test_the_report_is_strict_json():
    images, labels = examples()
    report = evaluated(ensemble.members(classify, KERNELS), images, labels)
    found = json.loads(report.to_json())
    assert found["robust_accuracy"]["worst"] == pytest.approx(report.robust_accuracy)
    assert found["num_members"] == 2 and found["averaged"]["robust_accuracy"] <= 1


# Mistakes.


def of_numpy(x):
    return jnp.asarray(np.asarray(x).reshape(len(x), -1)) @ KERNELS[0]


def branching(x):
    return classify(KERNELS[0], x) if x.sum() > 0 else classify(KERNELS[1], x)


def centred_over_the_batch(x):
    return classify(KERNELS[0], x - x.mean(axis=0, keepdims=True) + 0.5)


def calling_back(x):
    shape = jax.ShapeDtypeStruct((len(x), 3), jnp.float32)
    return jax.pure_callback(lambda x: np.zeros((len(x), 3), np.float32), shape, x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.reshape(-1) @ KERNELS[0], r"classify must turn images .* wrap it in jax.vmap"),
        (nnx.Linear(3, 4, rngs=nnx.Rngs(0)), "classify cannot take a batch of one image"),
        (of_numpy, "classify calls NumPy on its input: use jax.numpy"),
        (branching, "classify branches on values: use jnp.where or jax.lax.cond"),
        (centred_over_the_batch, "classify answers differently when other images are in the batch"),
        (nnx_model(train=True), r"classify is a Flax NNX model in training mode: call model.eval"),
        (linen(train=True), "classify (updates its statistics|draws random numbers)"),
        (calling_back, "classify calls back to Python"),
        (lambda x: jnp.argmax(classify(KERNELS[0], x), -1), "classify must turn images"),
        (lambda x: (classify(KERNELS[0], x), x), "classify must return logits alone, got 2"),
        (lambda x: classify(KERNELS[0], x)[:, :1], "one logit for each of two classes at least"),
        ("resnet", "classify must be a function of images"),
        (np.array([classify, classify]), "classify must be a function of .*, or a list of such"),
        ([], "classify must be a function, or a list of at least one"),
    ],
)
def test_a_classifier_that_cannot_be_attacked_is_told_in_one_line(wrong, message):
    images, labels = examples()
    for call in (mixjax.attack, mixjax.evaluate):
        with pytest.raises(ValueError, match=message) as told:
            call(wrong, images, labels, LINF, progress=False)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": 0.1}, r"threat must be a Threat, such as threats.linf\(0.1\), got 0.1"),
        ({"weights": [0.5, 0.5]}, r"got \[2\]: pass one for each member$"),
        ({"weights": "uniform"}, "weights must be on the simplex .* got 'uniform'"),
        ({"weights": [None]}, r"weights must be on the simplex .* got \[None\]"),
        (
            {"labels": np.full(12, 3)},
            r"labels must lie in \[0, 2\], got values from 3.0 .*: number the classes from 0$",
        ),
        ({"labels": np.zeros(12)}, "labels must be integers, got float64"),
        ({"images": np.full((12, SIDE, SIDE, 1), 2.0)}, r"images must lie in \[0, 1\], got"),
        ({"key": 3}, r"key must be a random key, such as jax.random.key\(3\), got 3"),
        (
            {"key": jax.random.split(jax.random.key(0))},
            r"key must be one random key, got shape \[2",
        ),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"bounds": (1, 0)}, "bounds must be a pair"),
    ],
)
def test_arguments_that_cannot_be_are_told_in_one_line(change, message):
    images, labels = examples()
    settings = {"images": images, "labels": labels, "threat": LINF} | change
    for call in (mixjax.attack, mixjax.evaluate):
        with pytest.raises(ValueError, match=message) as told:
            call(functools.partial(classify, KERNELS[0]), progress=False, **settings)
        assert "\n" not in str(told.value)


def test_a_number_that_an_attack_does_not_know_is_refused_with_those_that_it_does():
    images, labels = examples()
    call = functools.partial(
        mixjax.attack, functools.partial(classify, KERNELS[0]), images, labels, LINF
    )
    with pytest.raises(ValueError, match="pgd takes num_steps, step_size, .*, got steps"):
        call(attacks.pgd, steps=20)
    with pytest.raises(ValueError, match="pgd needs step_size: pass step_size=..."):
        call(attacks.pgd, num_steps=20)
    with pytest.raises(ValueError, match="attack must be a function such as attacks.pgd, got"):
        call("pgd")
    with pytest.raises(ValueError, match="attacks must be a list of attacks, got <function"):
        evaluated(functools.partial(classify, KERNELS[0]), images, labels, attacks=attacks.pgd)
    with pytest.raises(ValueError, match="budget must be a Budget, such as evaluation.QUICK"):
        evaluated(functools.partial(classify, KERNELS[0]), images, labels, budget="quick")


@pytest.mark.parametrize(
    "bounds", [np.array([0.0, 1.0]), [0, 1], ([[[0.0]]], [[[1.0]]]), (jnp.zeros(()), jnp.ones(()))]
)
def test_bounds_may_come_in_any_form_that_has_two_ends(bounds):
    images, labels = examples()
    move = functools.partial(mixjax.attack, functools.partial(classify, KERNELS[0]), images, labels)
    settings = {"method": attacks.fgsm, "progress": False}
    found, _ = move(threats.linf(0.5), bounds=bounds, **settings)
    chex.assert_trees_all_equal(found, move(threats.linf(0.5), **settings)[0])
    assert found.min() == 0 and found.max() == 1


def test_within_other_bounds_an_attack_goes_to_their_ends():
    images, labels = examples()
    member = functools.partial(classify, KERNELS[0])
    settings = {"bounds": (-0.5, 2.0), "progress": False}
    found, _ = mixjax.attack(member, images, labels, threats.linf(3.0), attacks.fgsm, **settings)
    assert found.min() == -0.5 and found.max() == 2.0


@pytest.mark.parametrize("step_size", [[[[0.05]]], jnp.float32(0.05)])
def test_a_number_of_an_attack_may_be_an_array(step_size):
    images, labels = examples()
    move = functools.partial(pgd, functools.partial(classify, KERNELS[0]), images, labels, LINF)
    chex.assert_trees_all_close(move(step_size=step_size)[0], move()[0], atol=1e-6)


@pytest.mark.parametrize("images", [0.5, [0.5, 0.5], np.zeros((0, 2))])
def test_what_are_no_images_are_told_in_one_line(images):
    with pytest.raises(ValueError, match=r"images must be \[N, ...\] and not empty, got \["):
        mixjax.predict(jax.random.key(0), functools.partial(classify, KERNELS[0]), None, images)


def test_what_can_be_called_is_listed_and_comes_when_it_is_asked_for():
    assert {"attack", "evaluate", "predict", "attacks", "threats"} <= set(dir(mixjax))
    with pytest.raises(AttributeError, match="no attribute 'atack'"):
        _ = mixjax.atack


# A new user's hour: the wheel, and what the core alone can do.

ROOT = pathlib.Path(mixjax.__file__).parents[1]
OF_THE_EXTRAS = (
    "array_record chex flatbuffers flax importlib_resources matplotlib orbax PIL sklearn "
    "tensorflow_datasets torch"
)
CORE_ALONE = f"""
import importlib.machinery, json, pydoc, sys

class TheCore(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in "{OF_THE_EXTRAS}".split():
            return super().find_spec(name, path, target)

place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = TheCore
import jax, jax.numpy as jnp, numpy as np
import mixjax
from mixjax import attacks, evaluation, threats

def told(call):
    try:
        call()
    except ModuleNotFoundError as error:
        return str(error)

images, labels = np.random.default_rng(0).uniform(size=(4, 6)), np.array([0, 1, 1, 0])
kernels = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 2)), jnp.float32)
members = [lambda x, kernel=kernel: jnp.tanh(x @ kernel) for kernel in kernels]
x_adv, info = mixjax.attack(members[0], images, labels, threats.l2(0.1), attacks.fgsm)
budget = evaluation.Budget(1, 1, 2, 2, 1, 1, 1, 2, lines=("pgd_expected_loss",))
report = mixjax.evaluate(members[0], images, labels, threats.linf(0.1), budget=budget)
saved = report.save(sys.argv[1])
answers = mixjax.predict(jax.random.key(0), members, [0.5, 0.5], images)
print(json.dumps({{
    "listed": dir(mixjax),
    "help": "evaluate" in pydoc.render_doc(mixjax),
    "shapes": [x_adv.shape, report.images.shape, answers.shape],
    "page": saved.read_text(),
    "models": told(lambda: mixjax.models),
    "train": told(lambda: mixjax.train),
    "checkpoint": told(lambda: mixjax.checkpoint),
    "digits": told(lambda: mixjax.data.load("digits")),
}}))
"""


def test_the_core_alone_attacks_evaluates_and_names_the_extra_of_what_it_lacks(children, tmp_path):
    command = [sys.executable, "-c", CORE_ALONE, str(tmp_path)]
    result = children.run(command, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"attack", "evaluate", "predict", "data"} <= {*found["listed"]}
    assert not {"checkpoint", "defenses", "load", "models", "train"} & {*found["listed"]}
    assert found["help"] and found["shapes"] == [[4, 6], [4, 6], [4]]
    assert "No figure without matplotlib: `pip install 'mixjax[report]'`" in found["page"]
    assert not list(tmp_path.glob("*.png"))
    for name, package in {"models": "flax", "checkpoint": "orbax", "digits": "sklearn"}.items():
        extra = "data" if name == "digits" else "train"
        assert found[name] == f"{package} is missing: pip install 'mixjax[{extra}]'"
    assert found["train"].endswith("is missing: pip install 'mixjax[train]'")


def test_the_wheel_holds_the_library_and_its_types_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["mixjax"]}
    files = [path for path in (ROOT / "mixjax").rglob("*") if path.is_file()]
    assert {path.name for path in files if path.suffix not in (".py", ".pyc")} == {"py.typed"}
    assert {"train", "data", "report", "all"} <= {*project["project"]["optional-dependencies"]}
    core = [name.partition(">")[0] for name in project["project"]["dependencies"]]
    assert core == ["jax", "numpy", "optax", "scipy", "tqdm"]
