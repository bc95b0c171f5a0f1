"""The attack of a network: bounds, formula, gradient, training, and its places in the library."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, losses, models, threats

SHAPE = (3, 2, 1)
GAIN = 2.0
NETWORK = models.attack_network(3, input_shape=SHAPE, hidden=(8,), dropout=0.2)
CLASSIFIER = models.linear(3, input_shape=SHAPE)
X = jnp.array([0.0, 0.02, 0.5, 0.7, 0.98, 1.0]).reshape(SHAPE)
DIRECTION = jnp.array([-3.0, -2.0, 0.5, 4.0, 0.1, 1.0]).reshape(SHAPE)


def test_only_the_direction_counts_and_its_length_does_not():
    threat = threats.linf(0.1)
    x_adv = attacks.follow(X, DIRECTION, threat)
    h = np.asarray(DIRECTION) / np.sqrt(np.mean(np.asarray(DIRECTION) ** 2))
    expected = np.clip(np.asarray(X) + 0.1 * np.tanh(GAIN * h), 0, 1)
    np.testing.assert_allclose(x_adv, expected, rtol=1e-5, atol=1e-7)
    for factor in (1e-3, 1e3):
        np.testing.assert_allclose(attacks.follow(X, factor * DIRECTION, threat), x_adv, rtol=1e-4)
    np.testing.assert_array_equal(attacks.follow(X, 0 * DIRECTION, threat), X)


def test_a_finished_network_goes_further_than_one_that_learns():
    threat = threats.linf(0.1)
    h = np.asarray(DIRECTION) / np.sqrt(np.mean(np.asarray(DIRECTION) ** 2))
    x_adv, _ = attacks.attack_network(lambda x, label: DIRECTION, jnp.sum, X, jnp.array(0), threat)
    expected = np.clip(np.asarray(X) + 0.1 * np.tanh(2 * GAIN * h), 0, 1)
    np.testing.assert_allclose(x_adv, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(x_adv, attacks.follow(X, DIRECTION, threat, gain=2 * GAIN))


@pytest.mark.parametrize("threat", [threats.linf(0.3), threats.l2(0.2)], ids=["linf", "l2"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0)])
def test_the_attack_stays_in_the_ball_and_in_the_bounds(threat, bounds, key):
    x = jax.random.uniform(key, (50, *SHAPE), minval=bounds[0], maxval=bounds[1])
    direction = 10.0 ** jnp.linspace(-4, 4, 50).reshape(50, 1, 1, 1)
    direction *= jax.random.normal(jax.random.key(1), x.shape)
    follow = functools.partial(attacks.follow, threat=threat, bounds=bounds)
    x_adv = jax.vmap(follow)(x, direction)
    assert jnp.all((x_adv >= bounds[0]) & (x_adv <= bounds[1]))
    norms = jax.vmap(threat.norm)(x_adv - x)
    assert jnp.all(norms <= threat.epsilon * (1 + 1e-5))
    assert jnp.max(norms) > 0.7 * threat.epsilon


def test_a_pixel_at_its_bound_still_teaches():
    """The network pushes a first pixel of 0 further down; should up be better, it has to learn."""

    def pushed(direction):
        return jnp.sum(attacks.follow(X, direction, threats.linf(0.1))[0, 0])

    gradient = jax.grad(pushed)(DIRECTION)
    assert attacks.follow(X, DIRECTION, threats.linf(0.1))[0, 0, 0] == 0
    assert gradient[0, 0, 0] > 1e-4


def test_the_log_of_the_error_is_steep_where_the_classifier_is_sure():
    logits = jnp.array([1.0, -0.5, 0.3])
    p = jax.nn.softmax(logits)
    for label in range(3):
        value = attacks.log_error(logits, jnp.array(label))
        assert float(value) == pytest.approx(float(jnp.log(1 - p[label])), rel=1e-5)
    slope = jax.grad(attacks.log_error)
    sure = jnp.array([0.0, 60.0, 0.0])
    np.testing.assert_allclose(slope(sure, jnp.array(1)), [0.5, -1.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(slope(sure, jnp.array(0)), [0.0, 0.0, 0.0], atol=1e-6)


def fixed_task():
    """A linear classifier that knows its data, and 60 examples of it."""
    random = np.random.default_rng(0)
    kernel = random.normal(size=(6, 3)).astype(np.float32)
    images = random.uniform(0.2, 0.8, size=(60, *SHAPE)).astype(np.float32)
    bias = -np.mean(images.reshape(60, 6) @ kernel, axis=0)
    labels = np.argmax(images.reshape(60, 6) @ kernel + bias, axis=1)
    return {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}, images, labels


def loss_fn(classifier, x, label):
    return losses.cross_entropy(CLASSIFIER.apply(classifier, x), label)


@pytest.fixture(scope="module")
def trained():
    """An attack network after 300 steps on the whole task, with its losses on the way."""
    classifier, images, labels = fixed_task()
    training = attacks.attack_network_training(
        NETWORK, optax.adam(1e-2), loss_fn, threats.linf(0.2)
    )

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda state, _: training.step(state, classifier, images, labels), state, length=300
        )

    state, info = run(training.init(jax.random.key(0)))
    return functools.partial(NETWORK.apply, state.variables), info, state


def attack_all(direction_fn):
    classifier, images, labels = fixed_task()

    def one(x, label):
        loss = functools.partial(loss_fn, classifier, label=label)
        return attacks.attack_network(direction_fn, loss, x, label, threats.linf(0.2))

    return jax.vmap(one)(images, labels)


def test_training_finds_most_of_what_the_best_attack_gains(trained):
    """Against a linear classifier many signed steps are next to the best attack there is."""
    direction_fn, info, state = trained
    classifier, images, labels = fixed_task()

    def best(x, label):
        loss = functools.partial(loss_fn, classifier, label=label)
        return attacks.pgd(
            jax.random.key(0),
            loss,
            x,
            threats.linf(0.2),
            num_steps=20,
            step_size=0.04,
            random_start=False,
        )[1]

    optimum = jax.vmap(best)(images, labels)
    _, found = attack_all(direction_fn)
    gain = jnp.mean(found.loss - found.first_loss) / jnp.mean(optimum.loss - optimum.first_loss)
    assert 0.8 < gain < 1.0
    np.testing.assert_allclose(found.first_loss, optimum.first_loss, rtol=1e-5)
    assert state.step == 300
    assert info.loss[-1] > info.loss[0] and np.all(info.gradient_norm > 0)


def test_the_first_training_step_ascends_the_mean_loss_of_the_batch():
    classifier, images, labels = fixed_task()
    network = models.attack_network(3, input_shape=SHAPE, hidden=(8,))  # nothing drops out
    threat = threats.linf(0.2)
    training = attacks.attack_network_training(network, optax.sgd(0.5), loss_fn, threat)
    state = training.init(jax.random.key(0))

    def mean_loss(params):
        def one(x, label):
            direction = network.apply({"params": params}, x, label)
            return loss_fn(classifier, attacks.follow(x, direction, threat), label)

        return jnp.mean(jax.vmap(one)(images, labels))

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(state.variables["params"])
    new, info = training.step(state, classifier, images, labels)
    assert float(info.loss) == pytest.approx(float(value), rel=1e-5)
    assert float(info.gradient_norm) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    moved = jax.tree.map(jnp.subtract, new.variables["params"], state.variables["params"])
    for change, slope in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(change, 0.5 * slope, rtol=1e-3, atol=1e-6)


def test_asked_for_every_label_it_keeps_the_highest_loss(trained):
    direction_fn, _, _ = trained
    classifier, images, labels = fixed_task()
    x, label = images[7], labels[7]
    loss = functools.partial(loss_fn, classifier, label=label)
    x_adv, info = attacks.attack_network_over_labels(
        direction_fn, loss, x, threats.linf(0.2), num_classes=3
    )
    candidates = [
        attacks.attack_network(direction_fn, loss, x, jnp.array(other), threats.linf(0.2))[0]
        for other in range(3)
    ]
    values = [float(loss(candidate)) for candidate in candidates]
    np.testing.assert_allclose(x_adv, candidates[int(np.argmax(values))], rtol=1e-6)
    assert float(info.loss) == pytest.approx(max(values), rel=1e-6)
    assert float(info.first_loss) == pytest.approx(float(loss(x)), rel=1e-6)


def test_a_mixture_trains_against_it(trained):
    direction_fn, _, _ = trained
    _, images, labels = fixed_task()

    def attack(key, loss, x, threat):
        del key
        return attacks.attack_network_over_labels(direction_fn, loss, x, threat, num_classes=3)

    defense = defenses.mixture(
        CLASSIFIER,
        optax.sgd(0.5),
        lambda step: 1.0,
        threats.linf(0.2),
        attack,
        num_members=2,
        update="all",
    )
    step = jax.jit(defense.step)
    state, first = step(defense.init(jax.random.key(0)), images, labels)
    for _ in range(20):
        state, info = step(state, images, labels)
    assert info.loss < first.loss


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attacks.follow(X, DIRECTION[:2], threats.linf(0.1)),
            "direction must have shape [3, 2, 1], got [2, 2, 1]",
        ),
        (
            lambda: attacks.follow(X, DIRECTION, threats.linf(0.1), bounds=(1.0, 0.0)),
            "bounds must be a pair (low, high) with low < high",
        ),
        (
            lambda: attacks.follow(X, DIRECTION, threats.linf(0.1), gain=0.0),
            "gain must be positive, got 0.0",
        ),
        (
            lambda: attacks.attack_network_over_labels(
                lambda x, label: x, jnp.sum, X, threats.linf(0.1), num_classes=0
            ),
            "num_classes must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
