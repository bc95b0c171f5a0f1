"""Members trained one after another on the host: stopped at any moment, the same numbers."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import data, defenses, evaluation, threats
from mixjax.front import loop
from mixjax.front.sequence import Plan, train_by_double_oracle, train_in_sequence
from tests.perceptron import plain

SHAPE, C = (2, 2, 1), 3
THREAT = threats.linf(0.1)
MODEL = plain(SHAPE, C)
PLAN = Plan(num_steps=4, steps_per_validation=2, batch_size=8, num_validation_steps=2)


class Stopped(Exception):
    """Stands for the end of the process."""


def signs(loss_fn, x, threat):
    return jnp.clip(x + threat.epsilon * jnp.sign(jax.grad(loss_fn)(x)), 0.0, 1.0)


def examples(num_examples, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, C, num_examples)
    images = random.integers(0, 120, (num_examples, *SHAPE))
    images.reshape(num_examples, -1)[np.arange(num_examples), labels] += 120
    return data.Split(images.astype(np.uint8), labels)


TRAIN, VALIDATION = examples(24, 0), examples(10, 1)


def adversarial(rate=0.5, model=MODEL):
    return model, defenses.adversarial_member(
        model, optax.sgd(rate), THREAT, signs, average_decay=0.3
    )


def boosted(rate=0.5):
    return MODEL, defenses.boosted(MODEL, optax.sgd(rate), THREAT, signs, alpha=0.2)


ADVERSARIAL, BOOSTED = adversarial(), boosted()  # once, and so is what is compiled for them


def train(folder, first=None, following=None, num_members=3, **settings):
    return train_in_sequence(
        jax.random.key(4),
        first or ADVERSARIAL,
        following or BOOSTED,
        TRAIN,
        VALIDATION,
        THREAT,
        PLAN,
        num_members=num_members,
        folder=folder,
        config={"name": "test"},
        show=False,
        **settings,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), num_members=5)


def test_the_weights_of_each_round_are_kept_in_the_order_of_training(whole):
    assert [len(each) for each in whole.weights] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(whole.weights[-1], [0.4096, 0.1024, 0.128, 0.16, 0.2], rtol=1e-6)
    assert whole.stopped == ""
    assert jax.eval_shape(whole.logits_fn(2), jnp.zeros(SHAPE)).shape == (2, C)
    kernels = [jax.tree.leaves(member)[1] for member in whole.members]
    assert min(np.abs(a - b).max() for a, b in zip(kernels, kernels[1:], strict=False)) > 0.01


def test_stopped_in_the_middle_of_the_third_of_five_it_goes_on_to_the_same_numbers(
    tmp_path, monkeypatch, whole
):
    save, saved = loop.checkpoint.save, []

    def save_and_stop(*arguments):
        save(*arguments)
        saved.append(arguments[1])
        if len(saved) == 5:
            raise Stopped

    monkeypatch.setattr(loop.checkpoint, "save", save_and_stop)
    with pytest.raises(Stopped):
        train(tmp_path, num_members=5)
    assert saved == [2, 4, 2, 4, 2]
    again = train(tmp_path, num_members=5)
    assert saved[5:] == [4, 2, 4, 2, 4]  # nothing of what was done is done again
    chex.assert_trees_all_equal(again.members, whole.members)
    chex.assert_trees_all_equal(again.weights, whole.weights)


def test_more_members_begin_with_those_of_fewer(whole, tmp_path):
    fewer = train(tmp_path, num_members=2)
    chex.assert_trees_all_equal(fewer.members, whole.members[:2])


def test_the_new_member_learns_from_the_images_attacked_for_it(whole, tmp_path):
    train(tmp_path, num_members=2)
    with np.load(tmp_path / "member_2" / "attacked.npz") as stored:
        found = stored["images"]
    clean = TRAIN.images / np.float32(255)

    def loss(x, label):
        return -jax.nn.log_softmax(whole.members[0](x))[label]

    slopes = jax.jit(jax.vmap(jax.grad(loss)))(clean, TRAIN.labels)
    np.testing.assert_allclose(found, np.clip(clean + 0.1 * np.sign(slopes), 0, 1), atol=1e-6)


def test_a_member_whose_loss_is_nan_ends_the_sequence_and_what_is_sound_is_kept(tmp_path):
    found = train(tmp_path, following=boosted(rate=float("inf")), num_members=3)
    assert len(found.members) == 1 and found.weights[-1].tolist() == [1.0]
    assert re.match("member 2: the training loss is nan at step 2: .* lower", found.stopped)
    with pytest.raises(FloatingPointError, match="the training loss is nan at step 2"):
        train(tmp_path / "other", first=adversarial(rate=float("inf")), num_members=1)


def test_the_first_member_may_have_another_architecture(tmp_path):
    found = train(tmp_path, first=adversarial(model=plain(SHAPE, 4, C)), num_members=2)
    assert jax.eval_shape(found.logits_fn(), jnp.zeros(SHAPE)).shape == (2, C)
    assert len(jax.tree.leaves(found.members[0])) != len(jax.tree.leaves(found.members[1]))


def test_the_first_member_is_chosen_by_the_accuracy_asked_for(tmp_path, monkeypatch):
    run, chosen = loop.run, []

    def remembered(*arguments, metric, **settings):
        chosen.append(metric)
        return run(*arguments, metric=metric, **settings)

    monkeypatch.setattr(loop, "run", remembered)
    train(tmp_path, num_members=2, select="clean_accuracy")
    assert chosen == ["clean_accuracy", "robust_accuracy"]


def test_weights_of_barre_are_solved_for_and_asked_for_once(tmp_path):
    method = defenses.barre(MODEL, optax.sgd(0.5), THREAT, signs, num_rounds=2)
    found = train(tmp_path, following=(MODEL, method), num_members=2, num_settling=6)
    assert np.isclose(found.weights[-1].sum(), 1) and len(found.weights[-1]) == 2
    again = train(tmp_path, following=(MODEL, method._replace(settle=None)), num_members=2)
    np.testing.assert_array_equal(again.weights[-1], found.weights[-1])


def test_the_bounds_of_the_double_oracle_hold_on_its_own_points_and_are_in_order(tmp_path):
    attack = evaluation.Attack(("signs",), 1, signs, THREAT)
    natural = MODEL, defenses.natural_member(MODEL, optax.sgd(0.5))

    def grow():
        return train_by_double_oracle(
            jax.random.key(4),
            ADVERSARIAL,
            natural,
            TRAIN,
            VALIDATION,
            THREAT,
            PLAN,
            (attack,),
            num_members=3,
            folder=tmp_path,
            config={"name": "test"},
            show=False,
        )

    found = grow()
    assert len(found.sequence.members) == 3 and np.isclose(found.sequence.weights[-1].sum(), 1)
    for before, after in zip(found.rounds, found.rounds[1:], strict=False):
        assert after.lower >= 0 and after.num_members == before.num_members + 1
    last = found.rounds[-1]
    assert last.lower <= last.upper
    # The risk of the weights at the points found, computed anew.
    stored = [np.load(tmp_path / f"member_{k}" / "attacked.npz")["images"] for k in (2, 3)]
    points = [TRAIN.images / np.float32(255), *stored]
    logits_fn, risks = jax.jit(jax.vmap(found.sequence.logits_fn())), []
    for each in points:
        logits = logits_fn(each)
        right = np.argmax(logits, axis=-1) == TRAIN.labels[:, None]
        risks.append((1 - right) @ found.sequence.weights[-1])
    np.testing.assert_allclose(np.max(risks, axis=0).mean(), last.upper, atol=1e-6)
    chex.assert_trees_all_equal(grow().sequence, found.sequence)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_members": 0}, "num_members must be a whole number of at least 1, got 0"),
        ({"select": "loss"}, "select must be one of robust_accuracy, clean_accuracy, got loss"),
    ],
)
def test_bad_input_is_told_before_anything_runs(settings, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_config_is_refused(tmp_path):
    train(tmp_path, num_members=1)
    (tmp_path / "member_1" / "checkpoints" / "config.json").write_text('{"name": "other"}')
    with pytest.raises(ValueError, match="config"):
        train(tmp_path, num_members=1)
