"""The attack of a network: bounds, formula, gradient, training, and its places in the library."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, losses, models, threats

SHAPE = (3, 2, 1)
GAIN = 2.0
NETWORK = models.attack_network(3, input_shape=SHAPE, hidden=(8,), dropout=0.2)
CLASSIFIER = models.linear(3, input_shape=SHAPE)
X = np.float32([0.0, 0.02, 0.5, 0.7, 0.98, 1.0]).reshape(SHAPE)
DIRECTION = np.float32([-3.0, -2.0, 0.5, 4.0, 0.1, 1.0]).reshape(SHAPE)


@jax.jit
def followed(direction):
    """`X` moved along the direction, and the slope of the sum of its pixels."""
    x_adv, pull = jax.vjp(lambda h: attacks.follow(X, h, threats.linf(0.1)), direction)
    return x_adv, *pull(jnp.ones(SHAPE))


def test_only_the_direction_counts_and_its_length_does_not():
    x_adv, _ = followed(DIRECTION)
    h = np.asarray(DIRECTION) / np.sqrt(np.mean(np.asarray(DIRECTION) ** 2))
    expected = np.clip(np.asarray(X) + 0.1 * np.tanh(GAIN * h), 0, 1)
    np.testing.assert_allclose(x_adv, expected, rtol=1e-5, atol=1e-7)
    for factor in (1e-3, 1e3):
        np.testing.assert_allclose(followed(np.float32(factor) * DIRECTION)[0], x_adv, rtol=1e-4)
    np.testing.assert_array_equal(followed(0 * DIRECTION)[0], X)


def test_a_finished_network_goes_further_than_one_that_learns():
    threat = threats.linf(0.1)
    h = np.asarray(DIRECTION) / np.sqrt(np.mean(np.asarray(DIRECTION) ** 2))
    x_adv, _ = attacks.attack_network(lambda x, label: DIRECTION, jnp.sum, X, jnp.array(0), threat)
    expected = np.clip(np.asarray(X) + 0.1 * np.tanh(2 * GAIN * h), 0, 1)
    np.testing.assert_allclose(x_adv, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(x_adv, attacks.follow(X, DIRECTION, threat, gain=2 * GAIN))


@pytest.mark.parametrize("threat", [threats.linf(0.3), threats.l2(0.2)], ids=["linf", "l2"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0)])
def test_the_attack_stays_in_the_ball_and_in_the_bounds(threat, bounds):
    random = np.random.default_rng(0)
    x = np.float32(random.uniform(*bounds, size=(50, *SHAPE)))
    lengths = 10.0 ** np.linspace(-4, 4, 50).reshape(50, 1, 1, 1)
    direction = np.float32(lengths * random.normal(size=x.shape))

    @jax.jit
    @jax.vmap
    def follow(x, direction):
        x_adv = attacks.follow(x, direction, threat=threat, bounds=bounds)
        return x_adv, threat.norm(x_adv - x)

    x_adv, norms = map(np.asarray, follow(x, direction))
    assert np.all((x_adv >= bounds[0]) & (x_adv <= bounds[1]))
    assert np.all(norms <= threat.epsilon * (1 + 1e-5))
    assert norms.max() > 0.7 * threat.epsilon


def test_a_pixel_at_its_bound_still_teaches():
    """The network pushes a first pixel of 0 further down; should up be better, it has to learn."""

    def pushed(direction):
        return jnp.sum(attacks.follow(X, direction, threats.linf(0.1))[0, 0])

    gradient = jax.jit(jax.grad(pushed))(DIRECTION)
    assert followed(DIRECTION)[0][0, 0, 0] == 0
    assert gradient[0, 0, 0] > 1e-4


def test_the_straight_slope_is_that_of_the_attack_without_the_clip():
    """Central differences: of the value with its own gradient, of the unclipped one with the other.

    The sum of a pushed input's coordinates along a change of the direction: with the clip, the
    coordinates that it holds do not move.
    """
    change = np.arange(6.0, dtype=np.float32).reshape(SHAPE) - 2
    follow = functools.partial(attacks.follow, X, threat=threats.linf(0.1))
    no_box = functools.partial(follow, bounds=(-jnp.inf, jnp.inf))

    def slope(move):
        return float(np.vdot(jax.jit(jax.grad(lambda h: jnp.sum(move(h))))(DIRECTION), change))

    def difference(move):
        ahead, behind = (jax.jit(move)(DIRECTION + step * change) for step in (0.01, -0.01))
        return float(np.sum(np.asarray(ahead) - np.asarray(behind)) / 0.02)

    straight, own = slope(follow), slope(functools.partial(follow, straight_through=False))
    assert straight == pytest.approx(difference(no_box), rel=1e-3)
    assert own == pytest.approx(difference(follow), rel=1e-3)
    assert abs(straight - own) > 0.1 * abs(own)


def test_squashed_as_it_is_the_output_s_length_counts_and_no_pixel_is_held_back():
    """Hamm: `z = x + eta tanh(h)`, within the ball; nothing is said of the pixels' range."""
    free = (-jnp.inf, jnp.inf)
    x_adv = attacks.squash(X, DIRECTION, threats.linf(0.1), bounds=free)
    expected = np.asarray(X) + 0.1 * np.tanh(np.asarray(DIRECTION))
    chex.assert_trees_all_close(x_adv, expected, rtol=1e-6)
    assert x_adv.min() < 0 and x_adv.max() > 1
    boxed = attacks.squash(X, DIRECTION, threats.linf(0.1))
    chex.assert_trees_all_close(boxed, np.clip(expected, 0, 1), rtol=1e-6)
    shorter = attacks.squash(X, 0.5 * DIRECTION, threats.linf(0.1), bounds=free)
    chex.assert_trees_all_close(shorter, X + 0.1 * jnp.tanh(0.5 * DIRECTION), rtol=1e-6)
    short = attacks.squash(X, DIRECTION, threats.l2(0.05), bounds=free)
    assert float(jnp.linalg.norm((short - X).ravel())) == pytest.approx(0.05, rel=1e-4)


def test_the_scale_of_the_last_layer_changes_the_penalty_alone_unless_the_output_keeps_its_length():
    """`f(c v) = f(v)` makes `|df/dv|^2` at `c v` that at `v` over `c^2`: gamma means nothing."""
    hidden = np.float32([0.3, -1.0, 2.0])
    last = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)

    def f_of(move):
        def f(last):
            return jnp.sum(jnp.sin(move(X, (hidden @ last).reshape(SHAPE), threats.linf(0.1))))

        return jax.jit(jax.value_and_grad(f))

    c = np.float32(5.0)
    followed, squashed = f_of(attacks.follow), f_of(attacks.squash)
    (value, slope), (scaled, slope_of_scaled) = followed(last), followed(c * last)
    np.testing.assert_allclose(scaled, value, rtol=1e-6)
    squares = [np.sum(np.square(gradient)) for gradient in (slope, slope_of_scaled)]
    assert squares[0] / squares[1] == pytest.approx(c**2, rel=1e-3)
    assert abs(squashed(c * last)[0] - squashed(last)[0]) > 1e-3


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e37])
def test_a_direction_of_any_size_is_followed(size):
    """Squares of 1e20 are infinite in float32; below 1e-6 nothing is meant to be followed."""
    x_adv, slope = followed(np.float32(size) * DIRECTION)
    expected = followed(DIRECTION)[0] if size > 1 else X
    np.testing.assert_allclose(x_adv, expected, rtol=1e-5)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("move", [attacks.follow, attacks.squash])
def test_the_attacked_input_keeps_its_type_under_64_bits_too(dtype, move):
    kernel = np.float32(np.random.default_rng(0).normal(size=(6, 6)))
    with jax.enable_x64(True):
        x, threat = X.astype(dtype), threats.linf(np.float64(0.1))

        def direction_fn(x, label):
            return (x.reshape(-1) @ kernel + label).reshape(SHAPE)

        @jax.jit
        def attack(x):
            x_adv, info = attacks.attack_network(
                direction_fn, jnp.sum, x, jnp.array(1), threat, move=move
            )
            return x_adv, info, move(x, jnp.full(SHAPE, 6e4, dtype), threats.linf(0.1))

        x_adv, info, huge = attack(x)
        assert x_adv.dtype == dtype and info.loss.dtype == dtype
        assert np.max(np.abs(np.float32(x_adv) - np.float32(x))) > 0.01
        assert huge.dtype == dtype and np.all(np.isfinite(np.float32(huge)))


@pytest.mark.parametrize("move", [attacks.follow, attacks.squash])
def test_each_feature_may_have_bounds_of_its_own(move):
    low = jnp.array([0.0, -5.0, 0.49, 0.0, 0.9, 0.0]).reshape(SHAPE)
    high = jnp.array([1.0, 5.0, 0.51, 1.0, 1.0, 2.0]).reshape(SHAPE)
    x_adv = move(X, DIRECTION, threats.linf(0.1), bounds=(low, high))
    free = move(X, DIRECTION, threats.linf(0.1), bounds=(-jnp.inf, jnp.inf))
    chex.assert_trees_all_close(x_adv, jnp.clip(free, low, high))
    assert x_adv[0, 1, 0] < 0 and x_adv[2, 1, 0] > 1 and x_adv[1, 0, 0] == high[1, 0, 0]


def test_the_paper_s_attack_network_learns_what_there_is_to_gain():
    """Cross-entropy, `squash`, no box: ascent on `f` against a linear classifier."""
    classifier, images, labels = fixed_task()
    network = models.attack_network(3, input_shape=SHAPE, hidden=(16,), label_scale=1.0)
    move, bounds = attacks.squash, (-jnp.inf, jnp.inf)
    training = attacks.attack_network_training(
        network, optax.adam(2e-2), loss_fn, threats.linf(0.2), move=move, bounds=bounds
    )

    @jax.jit
    def run(key):
        return jax.lax.scan(
            lambda state, _: training.step(state, classifier, images, labels),
            training.init(key),
            length=200,
        )

    _, info = run(jax.random.key(0))
    free = functools.partial(attacks.fgsm, bounds=bounds)

    def best(x, label):
        return free(functools.partial(loss_fn, classifier, label=label), x, threats.linf(0.2))[1]

    optimum = jax.jit(jax.vmap(best))(images, labels)
    gain = (info.loss[-1] - optimum.first_loss.mean()) / jnp.mean(optimum.loss - optimum.first_loss)
    assert 0.7 < float(gain) < 1.01


def test_the_log_of_the_error_is_steep_where_the_classifier_is_sure():
    logits = np.float32([1.0, -0.5, 0.3])
    p = np.exp(logits) / np.exp(logits).sum()
    value_and_slope = jax.jit(jax.value_and_grad(attacks.log_error))
    for label in range(3):
        value, _ = value_and_slope(logits, label)
        assert float(value) == pytest.approx(float(np.log(1 - p[label])), rel=1e-5)
    sure = np.float32([0.0, 60.0, 0.0])
    np.testing.assert_allclose(value_and_slope(sure, 1)[1], [0.5, -1.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(value_and_slope(sure, 0)[1], [0.0, 0.0, 0.0], atol=1e-6)


def test_where_all_other_classes_are_masked_nothing_moves_the_error():
    value_and_slope = jax.jit(jax.value_and_grad(attacks.log_error))
    value, slope = value_and_slope(np.float32([1.0, -np.inf, -np.inf]), 0)
    assert value == -np.inf and not np.any(slope)
    value, slope = value_and_slope(np.float32([1.0, -np.inf, 0.0]), 0)
    assert np.isfinite(value) and np.all(np.isfinite(slope))


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
    def run(key):
        return jax.lax.scan(
            lambda state, _: training.step(state, classifier, images, labels),
            training.init(key),
            length=300,
        )

    state, info = run(jax.random.key(0))
    return functools.partial(NETWORK.apply, state.variables), info, state


def attack_all(direction_fn):
    classifier, images, labels = fixed_task()

    def one(x, label):
        loss = functools.partial(loss_fn, classifier, label=label)
        return attacks.attack_network(direction_fn, loss, x, label, threats.linf(0.2))

    return jax.jit(jax.vmap(one))(images, labels)


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

    optimum = jax.jit(jax.vmap(best))(images, labels)
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
    state = jax.jit(training.init)(jax.random.key(0))

    def mean_loss(params):
        def one(x, label):
            direction = network.apply({"params": params}, x, label)
            return loss_fn(classifier, attacks.follow(x, direction, threat), label)

        return jnp.mean(jax.vmap(one)(images, labels))

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(state.variables["params"])
    new, info = jax.jit(training.step)(state, classifier, images, labels)
    assert float(info.loss) == pytest.approx(float(value), rel=1e-5)
    assert float(info.gradient_norm) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    moved = jax.tree.map(np.subtract, *jax.device_get((new.variables, state.variables)))["params"]
    for change, slope in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(change, 0.5 * slope, rtol=1e-3, atol=1e-6)


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
            lambda: attacks.squash(X, DIRECTION[:2], threats.linf(0.1)),
            "output must have shape [3, 2, 1], got [2, 2, 1]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
