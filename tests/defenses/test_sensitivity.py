"""LWA, Sens and cat and mouse on a linear classifier, whose gradients are written out."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, models, threats
from tests.perceptron import normalized

D, C, B = 6, 3, 8
SHAPE = (2, 3, 1)
MODEL = models.linear(C, input_shape=SHAPE)
RATE, EPSILON = 0.3, 0.1
THREAT = threats.linf(EPSILON)


def fgsm(key, loss_fn, x, threat, bounds=(0.0, 1.0)):
    del key
    return attacks.fgsm(loss_fn, x, threat, bounds=bounds)


def batch(seed=3):
    random = np.random.default_rng(seed)
    images = random.uniform(size=(B, *SHAPE)).astype(np.float32)
    return images, random.integers(0, C, B)


def layer(variables):
    return variables["params"]["Dense_0"]


def slopes(params, images, labels):
    """`[N, C]`: derivatives of each example's cross-entropy in its logits."""
    logits = images.reshape(B, D) @ params["kernel"] + params["bias"][None]
    return jax.nn.softmax(logits) - jnp.eye(C)[labels]


@jax.jit
def attacked_by_hand(params, images, labels):
    gradient = slopes(params, images, labels) @ params["kernel"].T
    return jnp.clip(images + EPSILON * jnp.sign(gradient).reshape(images.shape), 0, 1)


def loss_by_hand(params, images, labels):
    logits = images.reshape(B, D) @ params["kernel"] + params["bias"][None]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(B), labels])


def penalty_by_hand(params, attacked, labels, gamma):
    """`gamma / 2 sum_i |df/dz_i|^2`, `f` the mean loss."""
    gradient = slopes(params, attacked, labels) @ params["kernel"].T / B
    return gamma / 2 * jnp.sum(gradient**2)


@jax.jit
def by_hand(params, attacked, images, labels, clean_weight, gamma):
    """`(objective, penalty, gradient)`."""

    def objective(params):
        penalty = penalty_by_hand(params, attacked, labels, gamma)
        loss = (1 - clean_weight) * loss_by_hand(params, attacked, labels)
        return loss + clean_weight * loss_by_hand(params, images, labels) + penalty, penalty

    (value, penalty), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    return value, penalty, gradient


def first_step(defense, images, labels):
    """The parameters before, the change of them at learning rate 1, and the info."""
    state = defense.init(jax.random.key(0))
    new, info = jax.jit(defense.step)(state, images, labels)
    before, after = jax.device_get((layer(state.variables), layer(new.variables)))
    assert new.step == 1
    return before, jax.tree.map(lambda a, b: (a - b) / RATE, after, before), info


def assert_descends(change, gradient):
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(change[name], -gradient[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("penalty", [None, 0.7])
@pytest.mark.parametrize("clean_weight", [0.0, 0.25])
def test_sens_descends_the_loss_on_the_attack_held_fixed_and_its_sensitivity(penalty, clean_weight):
    images, labels = batch()
    defense = defenses.sensitivity(
        MODEL, optax.sgd(RATE), THREAT, fgsm, penalty=penalty, clean_weight=clean_weight
    )
    params, change, info = first_step(defense, images, labels)
    attacked = attacked_by_hand(params, images, labels)
    gamma = B * (EPSILON / 2 if penalty is None else penalty)  # eta is 2 epsilon, its unit 1/2

    value, cost, gradient = by_hand(params, attacked, images, labels, clean_weight, gamma)
    assert_descends(change, gradient)
    assert float(info.penalty) == pytest.approx(float(cost), rel=1e-4)
    assert float(info.loss) + float(info.penalty) == pytest.approx(float(value), rel=1e-5)


def test_sens_weighs_each_feature_s_slope_by_the_width_of_its_bounds():
    """`gamma / N` is `epsilon (high - low) / 2` for each feature: eta in units of [-1, 1]."""
    images, labels = batch()
    low, high = np.full(SHAPE, -1, np.float32), np.arange(1, 7, dtype=np.float32).reshape(SHAPE)

    def attack(key, loss_fn, x, threat):
        return fgsm(key, loss_fn, x, threat, bounds=(low, high))

    defense = defenses.sensitivity(MODEL, optax.sgd(RATE), THREAT, attack, bounds=(low, high))
    params, _, info = first_step(defense, images, labels)
    gradient = jax.jit(lambda x: slopes(params, x, labels) @ params["kernel"].T)
    step = EPSILON * np.sign(gradient(images)).reshape(images.shape)  # far from all bounds
    rates = EPSILON * (high - low).reshape(1, D) / 2
    cost = B / 2 * np.sum(rates * (np.asarray(gradient(images + step)) / B) ** 2)
    assert float(info.penalty) == pytest.approx(cost, rel=1e-4)


def test_sens_does_not_care_whether_pixels_are_in_zero_to_one_or_in_minus_one_to_one():
    """The paper's `gamma = eta N` for pixels in [-1, 1] is the default."""
    images, labels = batch()
    infos = []
    for low in (0.0, -1.0):
        width = 1.0 - low
        bounds = (low, 1.0)

        def apply(variables, x, train=False, low=low, width=width):
            return MODEL.apply(variables, (x - low) / width, train=train)

        defense = defenses.sensitivity(
            models.Model(MODEL.init, apply),
            optax.sgd(RATE),
            threats.linf(EPSILON * width),
            functools.partial(fgsm, bounds=bounds),
            bounds=bounds,
        )
        infos.append(first_step(defense, low + width * images, labels)[1:])
    chex.assert_trees_all_close(*infos, rtol=1e-3, atol=1e-6)
    explicit = defenses.sensitivity(MODEL, optax.sgd(RATE), THREAT, fgsm, penalty=EPSILON / 2)
    np.testing.assert_allclose(
        first_step(explicit, images, labels)[2].penalty, infos[0][1].penalty, rtol=1e-5
    )


@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_lwa_descends_the_loss_on_the_attack_alone(clean_weight):
    images, labels = batch()
    defense = defenses.learning_with_adversary(
        MODEL, optax.sgd(RATE), THREAT, fgsm, clean_weight=clean_weight
    )
    params, change, info = first_step(defense, images, labels)
    attacked = attacked_by_hand(params, images, labels)

    value, _, gradient = by_hand(params, attacked, images, labels, clean_weight, 0.0)
    assert_descends(change, gradient)
    assert float(info.loss) == pytest.approx(float(value), rel=1e-5)
    assert info.penalty == 0


def test_each_round_of_cat_and_mouse_is_against_the_classifier_of_the_last():
    defense = defenses.cat_and_mouse(MODEL, optax.sgd(RATE), THREAT, fgsm, num_steps_per_round=2)
    step, state = jax.jit(defense.step), defense.init(jax.random.key(0))
    before = [state.variables]
    for index in range(6):
        images, labels = batch(index)
        new, info = jax.device_get(step(state, images, labels))
        params, opponent = layer(state.variables), layer(before[index // 2 * 2])
        attacked = attacked_by_hand(opponent, images, labels)
        clean_weight = 1.0 if index < 2 else 0.5  # in round 0 there is no attack
        value, _, gradient = by_hand(params, attacked, images, labels, clean_weight, 0.0)
        assert float(info.loss) == pytest.approx(float(value), rel=1e-5)
        change = jax.tree.map(lambda a, b: (a - b) / RATE, layer(new.variables), params)
        assert_descends(change, gradient)
        np.testing.assert_array_equal(layer(new.opponent)["kernel"], opponent["kernel"])
        state = new
        before.append(state.variables)


def test_batch_statistics_are_those_of_the_attacked_batch():
    model = normalized(C, input_shape=SHAPE)
    images, labels = batch()
    defense = defenses.sensitivity(model, optax.sgd(RATE), threats.linf(0.3), fgsm)
    state = defense.init(jax.random.key(0))
    new, _ = jax.jit(defense.step)(state, images, labels)

    def attack(x, label):
        def loss_fn(x):
            return -jax.nn.log_softmax(model.apply(state.variables, x))[label]

        return fgsm(None, loss_fn, x, threats.linf(0.3))[0]

    @jax.jit
    def trained():
        attacked = jax.vmap(attack)(images, labels)
        return model.apply(state.variables, attacked, train=True)[1]

    expected = trained()
    for leaf, want in zip(
        jax.tree.leaves(new.variables["batch_stats"]),
        jax.tree.leaves(expected["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, want, rtol=1e-3, atol=1e-5)


SETTINGS = MODEL, optax.sgd(RATE), THREAT, fgsm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: defenses.sensitivity(*SETTINGS, penalty=-1.0),
            "penalty must be at least 0, got -1",
        ),
        (
            lambda: defenses.sensitivity(*SETTINGS, clean_weight=1.0),
            "clean_weight must be in [0, 1)",
        ),
        (lambda: defenses.sensitivity(*SETTINGS, bounds=(1.0, 0.0)), "bounds must be a pair"),
        (
            lambda: defenses.learning_with_adversary(*SETTINGS, clean_weight=-0.5),
            "clean_weight must be in [0, 1), got -0.5",
        ),
        (
            lambda: defenses.cat_and_mouse(*SETTINGS, num_steps_per_round=0),
            "num_steps_per_round must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_numbers_out_of_their_range_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
