"""`mixjax.train` and `mixjax.load`: one call, and stopped at any moment the same members."""

import os
import shutil
import signal
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import mixjax
from mixjax import (
    attacks,
    data,
    defenses,
    evaluation,
    mixture,
    models,
    parallel,
    program,
    reporting,
    threats,
)
from mixjax.front import loop, stored
from mixjax.front.classifiers import members_of

SHAPE = (3, 4, 1)
THREAT = threats.linf(0.1)
OVER_EXAMPLES = parallel.over_examples  # of all devices


def examples(num_examples=60, seed=0):
    """Two classes of uint8 images: the left or the right half is the brighter one."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, num_examples)
    images = random.integers(20, 80, (num_examples, *SHAPE))
    images[:, :, :2] += 150 * labels[:, None, None, None]
    images[:, :, 2:] += 150 * (1 - labels)[:, None, None, None]
    return images.astype(np.uint8), labels


class Normalized(nn.Module):
    """A Linen module with statistics of the batch and dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(2)(nn.Dropout(0.2, deterministic=not train)(x))


def model_of_the_run():
    return models.from_linen(Normalized(), SHAPE)


def train(folder=None, images=None, model=None, threat=THREAT, **settings):
    """Six steps in two epochs, a weight step at the end of each."""
    all_images, labels = examples()
    images = all_images if images is None else images
    model = model_of_the_run() if model is None else model
    settings = {"num_epochs": 2, "batch_size": 16, "num_model_steps": 2} | settings
    settings = {"num_attack_steps": 2, "num_validation_steps": 2, "progress": False} | settings
    settings = {"optimizer": optax.sgd(0.5), "ramp": 0.0} | settings
    return mixjax.train(model, images, labels, threat, folder=folder, **settings)


def arrays(run):
    return [run.weights, *(jax.tree.leaves(member) for member in run.members)]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """A step on several is traced and compiled once more: one test compares them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        patch.setattr(parallel, "over_examples", lambda: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    return train(tmp_path_factory.mktemp("whole") / "run")


def test_a_call_trains_members_and_weights_that_answer_images(whole):
    images, labels = examples(40, seed=1)
    logits = [member(images / np.float32(255)) for member in whole.members]
    assert [each.shape for each in logits] == [(40, 2)] * 2
    assert np.mean(np.argmax(logits[0], axis=1) == labels) > 0.9
    assert np.abs(logits[0] - logits[1]).max() > 0.05
    np.testing.assert_allclose(whole.weights.sum(), 1.0, atol=1e-6)
    assert [(row["step"], row["epoch"]) for row in whole.history] == [(3, 1), (6, 2)]
    assert "2 members" in repr(whole) and len(repr(whole)) < 300


def test_the_members_are_those_of_the_epoch_that_was_most_robust(whole):
    best = max(whole.history, key=lambda row: (row["robust_accuracy"], row["step"]))
    np.testing.assert_array_equal(whole.weights, np.float32(best["weights"]))


def test_the_folder_alone_gives_the_same_members_back(whole):
    images = examples(40, seed=1)[0] / np.float32(255)

    @jax.jit
    def answers(member):
        slopes = jax.vmap(jax.grad(lambda x: jnp.sin(member(x[None])).sum()))
        return member(images), slopes(images)

    wanted = [answers(member) for member in whole.members]
    for again in (mixjax.load(whole.folder), mixjax.load(whole.folder, model_of_the_run())):
        np.testing.assert_array_equal(again.weights, whole.weights)
        assert again.history == whole.history and again.folder == whole.folder
        found = [answers(member) for member in again.members]
        chex.assert_trees_all_close(found, wanted, atol=1e-6)


def test_what_was_read_again_is_attacked_like_any_other_mixture(whole):
    images, labels = examples(8, seed=1)
    run = mixjax.load(whole.folder)
    setting = {"weights": run.weights, "progress": False}
    attack = partial(mixjax.attack, images=images, labels=labels, threat=THREAT, **setting)
    found, want = (attack(each.members, method=attacks.fgsm)[0] for each in (run, whole))
    chex.assert_trees_all_close(found, want, atol=1e-5)
    # Evaluated as well, for which its passes are counted: a program for any batch size has none.
    fgsm = evaluation.Attack(("fgsm",), 1, attacks.fgsm, THREAT)
    floats = np.float32(images) / 255
    members = members_of(run.members, run.weights, floats[:2])
    mixed = members.logits_fn, members.weights
    found = evaluation.evaluate(
        jax.random.key(0), *mixed, floats, labels, (fgsm,), alone=False, num_complete=0
    )
    want = mixture.accuracy(members.logits_fn(found.images[0]), labels[0], members.weights)
    np.testing.assert_allclose(found.accuracies[0, 1], want)


def test_a_finished_run_is_read_and_not_trained_again(whole, monkeypatch):
    steps = []
    monkeypatch.setattr(loop, "_stop_at_nan", lambda *told: steps.append(told))
    chex.assert_trees_all_equal(arrays(train(whole.folder)), arrays(whole))
    assert not steps


def test_ctrl_c_leaves_a_folder_from_which_the_same_call_goes_on(whole, tmp_path, monkeypatch):
    """On one device, and then on four: statistics are those of the whole batch."""
    steps = []

    def stop(step_losses, done, checkpoints):
        steps.append(done)
        if len(steps) == 2:  # in the middle of an epoch
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_stop_at_nan", stop)
        with pytest.raises(
            KeyboardInterrupt, match="stopped after step 2 of 6 of training: the same"
        ):
            train(tmp_path / "run")
    assert steps == [0, 1]
    with pytest.raises(ValueError, match="run that is not finished: the same call"):
        mixjax.load(tmp_path / "run")
    monkeypatch.setattr(jax, "local_devices", jax.devices)
    monkeypatch.setattr(parallel, "over_examples", OVER_EXAMPLES)
    chex.assert_trees_all_close(arrays(train(tmp_path / "run")), arrays(whole), atol=1e-5)
    assert [row["step"] for row in reporting.read_metrics(tmp_path / "run")] == [3, 6]


class Streams(nnx.Module):
    """An NNX module whose dropout keeps a random stream among its variables.

    `len` of a batch of any size is no number: its program is for batches of one size.
    """

    def __init__(self, rngs):
        self.dense = nnx.Linear(12, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(8, 2, dtype=jnp.float32, param_dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.dense(x.reshape(len(x), -1))))))


MODELS = {
    "ours": lambda: models.mnist_cnn(2, 4),  # chooses its way by the size of a batch
    "linen": model_of_the_run,
    "nnx": lambda: models.from_nnx(lambda rngs: Streams(rngs), SHAPE),
}
SHAPES = {"ours": (28, 28, 1)}


@pytest.mark.parametrize("kind", MODELS)
def test_a_stored_program_is_the_classifier_and_its_gradient_for_batches_of_any_size(kind, key):
    model, shape = MODELS[kind](), SHAPES.get(kind, SHAPE)
    variables = jax.jit(model.init)(key)
    written = stored.program(model.apply, variables, shape)
    leaves = stored.unpacked(stored.packed(jax.tree.leaves(variables)))
    chex.assert_trees_all_equal(jax.tree.leaves(variables), leaves)
    assert written.is_fixed == (kind == "nnx")
    x = jax.random.uniform(key, (19, *shape))
    want, slopes = logits_and_slopes(model.apply)(variables, x)
    for most in {written.most, written.most if written.is_fixed else 4}:  # in pieces
        function = stored.function(written._replace(most=most))
        found = logits_and_slopes(function)(leaves, x)
        chex.assert_trees_all_close(found, (want, slopes), atol=1e-5)

    @jax.jit
    def mapped(leaves, x):
        def one(x):
            return jnp.sum(jnp.sin(function(leaves, x[None])))

        return jax.vmap(jax.vmap(jax.grad(one)))(x[:6].reshape(2, 3, *shape))

    found = mapped(leaves, x).reshape(6, *shape)
    chex.assert_trees_all_close(found, slopes[:6], atol=1e-5)
    pure, constants = program.take_apart(lambda x: function(leaves, x[None])[0], x[0])
    found = jax.jit(jax.vmap(partial(pure, constants)))(x)
    chex.assert_trees_all_close(found, want, atol=1e-5)


def logits_and_slopes(apply):
    """Compiled `(variables, x) -> logits, gradient of the sum of their sines`."""

    def both(variables, x):
        logits, pull_back = jax.vjp(partial(apply, variables), x)
        return logits, pull_back(jnp.cos(logits))[0]

    return jax.jit(both)


def test_other_variables_for_each_run_one_after_the_other(key):
    model = models.linear(2, input_shape=SHAPE)
    several = jax.vmap(model.init)(jax.random.split(key, 3))
    leaves, structure = jax.tree.flatten(several)
    one = jax.tree.map(lambda leaf: leaf[0], several)
    function = stored.function(stored.program(model.apply, one, SHAPE))
    x = jax.random.uniform(key, (5, *SHAPE))
    want = jax.vmap(model.apply, (0, None))(jax.tree.unflatten(structure, leaves), x)
    chex.assert_trees_all_close(jax.vmap(function, (0, None))(leaves, x), want, atol=1e-6)


def one_step(key, loss_fn, x, threat):
    return attacks.fgsm(loss_fn, x, threat)


LINEAR = models.linear(2, input_shape=SHAPE)
SHORT = {"model": LINEAR, "attack": one_step, "weighing": None}  # compiles fast


@pytest.fixture(scope="module")
def unstored(tmp_path_factory):
    """The folder of a short run whose classifier could not be written."""

    def refuse(*told):
        raise ValueError("it cannot be written")

    folder = tmp_path_factory.mktemp("unstored") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "program", refuse)
        train(folder, **SHORT)
    return folder


def test_a_model_that_cannot_be_stored_is_asked_for(unstored):
    message = f"model must be given, .*{unstored}.*it cannot be written"
    with pytest.raises(ValueError, match=message):
        mixjax.load(unstored)
    run = mixjax.load(unstored, LINEAR)
    assert run.members[0](jnp.zeros((2, *SHAPE))).shape == (2, 2)
    for other, message in (
        (models.linear(2, input_shape=(3, 5, 1)), r"variable \d+ is float32\[15, 2\], .*\[12, 2\]"),
        (model_of_the_run(), "model must be the one that was trained: "),
    ):
        with pytest.raises(ValueError, match=message):
            mixjax.load(unstored, other)


def test_another_key_gives_other_batches():
    """All begins with the same variables and examples: what differs in the end are the batches."""
    same = LINEAR._replace(init=lambda key: LINEAR.init(jax.random.key(5)))
    settings = SHORT | {"model": same, "validation": examples(8, seed=2)}
    x = np.full((1, *SHAPE), 0.5, np.float32)
    answers = [train(key=jax.random.key(seed), **settings).members[0](x) for seed in (0, 1)]
    assert np.abs(answers[0] - answers[1]).max() > 1e-4


def test_a_damaged_or_foreign_file_of_members_is_refused(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    content = (folder / "members.npz").read_bytes()
    (folder / "members.npz").write_bytes(content[:600] + b"?" + content[601:])
    with pytest.raises(ValueError, match="members.npz is not a sound .npz file"):
        mixjax.load(folder)
    np.savez(folder / "members.npz", weights=np.ones(1))
    with pytest.raises(ValueError, match="members.npz is no file of mixjax.train: it has no 'for"):
        mixjax.load(folder)


# What is refused, before anything compiles.


OTHERS = dict(
    threat=threats.l2(0.2), num_members=3, key=jax.random.key(1), images=examples()[0][::-1]
)
OF_OTHERS = "threat.norm: linf -> l2; threat.epsilon: 0.1 -> 0.2; num_members: 2 -> 3"


@pytest.mark.parametrize(
    ("setting", "messages"),
    [
        (OTHERS, [*OF_OTHERS.split("; "), "key.sha256", "['images'].sha256"]),
        ({"optimizer": optax.sgd(0.1)}, ["programs.step"]),
        ({"weighing": defenses.oracle_weighing(num_steps=2)}, ["programs.step"]),
        ({"augment": partial(data.augment, pad=1)}, ["programs.step"]),
        ({"model": model_of_the_run()}, ["programs.model"]),
    ],
)
def test_a_folder_of_another_run_is_refused_and_what_differs_is_named(unstored, setting, messages):
    with pytest.raises(ValueError, match="folder .*another config: ") as error:
        train(unstored, **SHORT | setting)
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model": Normalized()}, "model must be a mixjax.models.Model.*got Normalized"),
        ({"model": models.linear(2, input_shape=(3, 5, 1))}, r"x must have shape .*\[3, 4, 1\]"),
        ({"model": models.linear(1, input_shape=SHAPE)}, r"labels must lie in \[0, 0\]"),
        ({"threat": 0.1}, r"threat must be a Threat, such as threats.linf\(0.1\)"),
        ({"images": 2.0 * np.ones((60, *SHAPE))}, r"images must lie in \[0, 1\], got values"),
        ({"images": np.ones((60, *SHAPE), int)}, "images must be uint8 or floats"),
        ({"images": examples(50)[0]}, r"labels must have shape \[50\], got \[60\]"),
        ({"num_epochs": 0}, "num_epochs must be .* at least 1, got 0"),
        ({"batch_size": 100}, r"batch_size must lie in \[1, 54\]"),
        ({"ramp": 1.0}, "ramp must be in .*got 1.0"),
        ({"update": "some"}, "update must be"),
        ({"validation": examples(4)[:1] * 2}, "labels must have shape"),
        ({"validation": (np.ones((4, 5, 5, 1)), np.zeros(4, int))}, "validation must hold images"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(setting, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        train(tmp_path / "run", **setting)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run of mixjax.train: it has no config.json"):
        mixjax.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no run of mixjax.train, but one of something else"):
        mixjax.load(tmp_path)


# Killed at any moment.

KILLED = """if True:
    import os, pathlib, signal, sys
    import jax
    from tests.front import test_training

    folder, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])

    def hook(event, arguments):
        global left
        if event == "os.rename" and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    jax.local_devices = lambda: jax.devices()[:1]
    test_training.parallel.over_examples = lambda: None
    sys.addaudithook(hook)
    test_training.train(folder, **test_training.SHORT)
"""


def test_killed_and_called_again_a_run_ends_with_the_same_members_and_weights(
    children, unstored, tmp_path
):
    """In the middle of the second save; what a kill leaves there, the checkpoints' tests show."""
    folder = tmp_path / "run"
    settings = "num_cpu_devices default_matmul_precision compilation_cache_dir".split()
    settings = {name: jax.config.values[f"jax_{name}"] for name in settings}
    settings["persistent_cache_min_compile_time_secs"] = 0.3
    settings = {f"JAX_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", KILLED, str(folder), "7"]
    killed = children.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"} | settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (folder / "checkpoints" / "3").exists() and not (folder / "checkpoints" / "6").exists()
    again, whole = train(folder, **SHORT), mixjax.load(unstored, LINEAR)
    chex.assert_trees_all_equal(arrays(again), arrays(whole))
    chex.assert_trees_all_equal(arrays(mixjax.load(folder)), arrays(whole))
    assert again.history == whole.history
