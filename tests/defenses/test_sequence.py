"""Members one after another: one step of each method written out, and the weights that follow.

The members are linear, `x W + b`, and the attack is one step of signs, so that a step of training
is a few lines of NumPy: gradient of the cross-entropy in the input `(p - y) W'`, in the kernel
`x' (p - y)`.
"""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, games, losses, models, threats
from mixjax.defenses.sequence import wrong_classes

N, D, C = 5, 4, 3
RATE, RADIUS = 0.5, 0.3
MODEL = models.linear(C, input_shape=(D,))
THREAT = threats.linf(RADIUS)


def signs(loss_fn, x, threat):
    """One step of signs on the expected loss, without bounds."""
    return x + threat.epsilon * jnp.sign(jax.grad(loss_fn)(x))


def signs_of(key, loss_fn, x, threat):
    del key
    return signs(loss_fn, x, threat), ()


def examples():
    random = np.random.default_rng(3)
    return random.uniform(size=(N, D)).astype(np.float32), random.integers(0, C, N)


def past_of(weights):
    """Members of different sizes, so that nobody's share can be taken for another's."""
    random = np.random.default_rng(7)
    members = []
    for index in range(len(weights) - 1):
        kernel = (1 + index) * random.normal(size=(D, C)).astype(np.float32)
        bias = random.normal(size=C).astype(np.float32)
        tree = {"params": {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
        members.append(jax.tree_util.Partial(MODEL.apply, tree))
    return defenses.Past(tuple(members), jnp.asarray(weights, jnp.float32))


def kernel_and_bias(variables):
    dense = variables["params"]["Dense_0"]
    return np.asarray(dense["kernel"], np.float64), np.asarray(dense["bias"], np.float64)


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def slope(logits, labels, smoothing=0.0):
    """Gradient of the cross-entropy in the logits."""
    return softmax(logits) - (1 - smoothing) * np.eye(C)[labels] - smoothing / C


def one_step(training, past=None, start=lambda state: state):
    state = start(training.init(jax.random.key(2)))
    images, labels = examples()
    new, info = jax.jit(training.step)(state, images, labels, past)
    return state.variables, new, info


def check(new, kernel, bias, x, slopes, at=None):
    """SGD from a kernel and a bias on the mean of these slopes in the logits."""
    del at
    wanted = kernel - RATE * np.mean(x[:, :, None] * slopes[:, None, :], axis=0)
    found = kernel_and_bias(new.variables)
    np.testing.assert_allclose(found[0], wanted, atol=2e-6)
    np.testing.assert_allclose(found[1], bias - RATE * slopes.mean(axis=0), atol=2e-6)
    assert new.step == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_step_of_adversarial_training_is_written_out(smoothing):
    training = defenses.adversarial_member(
        MODEL, optax.sgd(RATE), THREAT, signs, label_smoothing=smoothing
    )
    old, new, info = one_step(training)
    (kernel, bias), (x, labels) = kernel_and_bias(old), examples()
    x = x + RADIUS * np.sign(slope(x @ kernel + bias, labels) @ kernel.T)
    logits = x @ kernel + bias
    check(new, kernel, bias, x, slope(logits, labels, smoothing))
    log_p = np.log(softmax(logits))
    wanted = -(1 - smoothing) * log_p[np.arange(N), labels] - smoothing * log_p.mean(axis=1)
    assert np.isclose(info.loss, wanted.mean(), rtol=1e-5)


def test_under_awp_the_gradient_is_that_where_the_kernel_has_moved_by_its_share_of_the_norm():
    gamma = 0.4  # large, for the step to feel it
    training = defenses.adversarial_member(
        MODEL, optax.sgd(RATE), THREAT, signs, weight_perturbation=gamma
    )
    old, new, _ = one_step(training)
    (kernel, bias), (x, labels) = kernel_and_bias(old), examples()
    x = x + RADIUS * np.sign(slope(x @ kernel + bias, labels) @ kernel.T)
    first = np.mean(x[:, :, None] * slope(x @ kernel + bias, labels)[:, None], axis=0)
    there = kernel + gamma * np.linalg.norm(kernel) * first / np.linalg.norm(first)
    check(new, kernel, bias, x, slope(x @ there + bias, labels))  # the bias stays


def test_the_average_forgets_early_states_faster():
    training = defenses.natural_member(MODEL, optax.sgd(RATE), average_decay=0.5)
    state = training.init(jax.random.key(2))
    images, labels = examples()
    wanted = state.variables
    for step in range(9):
        state, _ = jax.jit(training.step)(state, images, labels)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = partial(lambda d, old, new: d * old + (1 - d) * new, decay)
        wanted = jax.tree.map(mean, wanted, state.variables)
    chex.assert_trees_all_close(state.average, wanted, rtol=1e-5)
    assert np.abs(np.subtract(*map(lambda t: kernel_and_bias(t)[0], state[:2]))).max() > 1e-3


def expected_signs(x, labels, kernels, biases, weights):
    total = sum(
        weight * slope(x @ kernel + bias, labels) @ kernel.T
        for kernel, bias, weight in zip(kernels, biases, weights, strict=True)
    )
    return x + RADIUS * np.sign(total)


def test_boosting_attacks_the_members_so_far_and_the_new_one_learns_naturally():
    method = defenses.boosted(MODEL, optax.sgd(RATE), THREAT, signs, alpha=0.1, bounds=(-9, 9))
    past, (images, labels) = past_of([0.9, 0.1, 0.0]), examples()
    past = past._replace(weights=past.weights[:2])
    attacked = jax.vmap(method.attack, in_axes=(None, None, 0, 0))(
        jax.random.key(0), past, images, labels
    )
    known = [kernel_and_bias(member.args[0]) for member in past.members]
    wanted = expected_signs(images, labels, *zip(*known, strict=True), past.weights)
    np.testing.assert_allclose(attacked, wanted, atol=1e-6)
    assert method.is_attacked
    old, new, _ = one_step(method.training, past_of([0.81, 0.09, 0.1]))
    kernel, bias = kernel_and_bias(old)
    check(new, kernel, bias, images, slope(images @ kernel + bias, labels))


def test_barre_starts_from_the_last_member_and_learns_at_the_attack_on_all():
    method = defenses.barre(MODEL, optax.sgd(RATE), THREAT, signs, bounds=(-9, 9))
    past = past_of([0.2, 0.3, 0.5])
    old, new, _ = one_step(method.training, past, lambda state: method.start(state, past))
    chex.assert_trees_all_equal(old, past.members[-1].args[0])
    own = kernel_and_bias(old)
    known = [*(kernel_and_bias(member.args[0]) for member in past.members), own]
    (x, labels), (kernel, bias) = examples(), own
    x = expected_signs(x, labels, *zip(*known, strict=True), past.weights)
    check(new, kernel, bias, x, slope(x @ kernel + bias, labels))
    assert not method.is_attacked


def test_margin_boosting_learns_the_margin_of_the_mean_logits():
    method = defenses.margin_boosted(MODEL, optax.sgd(RATE), THREAT, signs_of, other_weight=0.7)
    past, (x, labels) = past_of([0.2, 0.3, 0.5]), examples()
    old, new, info = one_step(method.training, past)
    own = kernel_and_bias(old)
    known = [*(kernel_and_bias(member.args[0]) for member in past.members), own]
    kernels, biases = (np.mean(each, axis=0) for each in zip(*known, strict=True))

    def slope_of_both(logits):
        wrong = 1 - np.eye(C)[labels]  # -log softmax(-F)_c falls along softmax(-F) - c
        other = -np.sum(wrong[:, :, None] * (softmax(-logits)[:, None] - np.eye(C)), axis=1)
        return slope(logits, labels) + 0.7 * other / (C - 1)

    x = x + RADIUS * np.sign(slope_of_both(x @ kernels + biases) @ kernels.T)
    logits = x @ kernels + biases
    check(new, *own, x, slope_of_both(logits) / 3)  # a third of the mean is the new member's
    log_p, log_q = np.log(softmax(logits)), np.log(softmax(-logits))
    right = log_p[np.arange(N), labels]
    others = (log_q.sum(axis=1) - log_q[np.arange(N), labels]) / (C - 1)
    assert np.isclose(info.loss, np.mean(-right - 0.7 * others), rtol=1e-5)


def test_the_first_member_alone_is_attacked_and_trained_by_the_same_margin():
    logits, label = jnp.array([0.3, -0.2, 1.1]), 2
    wanted = -np.log(softmax(-np.asarray(logits)))[:2].mean()
    assert np.isclose(wrong_classes(logits, label), wanted, rtol=1e-5)
    assert wrong_classes(jnp.array([-9.0, -9.0, 9.0]), 2) < losses.cross_entropy(logits, 1)


@pytest.mark.parametrize("alpha", [0.06, 0.5])
def test_boosted_weights_after_n_rounds_are_those_of_the_game_in_the_plane(alpha):
    """`(1 - alpha)^(n - 1)`, then `alpha (1 - alpha)^(n - i)`."""
    method = defenses.boosted(MODEL, optax.sgd(RATE), THREAT, signs, alpha=alpha)
    weights = np.ones(1)
    for n in range(2, 11):
        weights = method.propose(weights)
        powers = (1 - alpha) ** np.arange(n - 1.0, -1, -1)
        np.testing.assert_allclose(weights, np.append(powers[0], alpha * powers[1:]), rtol=1e-12)
        known, _ = games.boosting(alpha)(np.zeros((1, 1, n)))
        np.testing.assert_allclose(weights, known, rtol=1e-12)


def test_uniform_weights_hang_on_the_number_alone():
    np.testing.assert_allclose(defenses.uniform([0.9, 0.1]), [1 / 3] * 3)


def test_solved_weights_are_those_that_no_attack_found_against_them_raises():
    """On one example the attacker has the first member pay 3 or the second one pay 1.

    On the others the second pays 1.5 in any case: the mean of `1.5 (1 - p) + max(3 p, 1 - p)` is
    least where both answers are worth the same, at `p = 1/4`.
    """
    asked = []

    def errors_fn(weights):
        asked.append(weights)
        errors = np.array([[0.0, 0.5]] * 3 + [[0.0, 0.0]])
        answer = int(np.argmax(np.array([3.0, 1.0]) * weights))
        errors[3, answer] = (3.0, 1.0)[answer]
        return errors

    found = defenses.solved_weights([0.5, 0.5], errors_fn, num_rounds=5)
    np.testing.assert_allclose(found, [0.25, 0.75], atol=1e-6)
    assert 2 <= len(asked) <= 6


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be (positive|in \\[0, 1\\)), got"):
        defenses.boosted(MODEL, optax.sgd(RATE), THREAT, signs, alpha=alpha)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: defenses.natural_member(MODEL, optax.sgd(RATE), label_smoothing=1.0),
            "label_smoothing must be in [0, 1), got 1.0",
        ),
        (
            lambda: defenses.adversarial_member(
                MODEL, optax.sgd(RATE), THREAT, signs, weight_perturbation=-0.1
            ),
            "weight_perturbation must be at least 0, got -0.1",
        ),
        (
            lambda: defenses.adversarial_member(MODEL, optax.sgd(RATE), THREAT, attacks.pgd),
            "pgd needs num_steps, step_size",
        ),
        (
            lambda: defenses.barre(MODEL, optax.sgd(RATE), THREAT, signs, num_rounds=0),
            "num_rounds must be a whole number of at least 1, got 0",
        ),
        (
            lambda: defenses.margin_boosted(
                MODEL, optax.sgd(RATE), THREAT, signs_of, other_weight=-1.0
            ),
            "other_weight must be at least 0, got -1.0",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_barre_cannot_start_from_another_architecture():
    wide = models.linear(C, input_shape=(D + 1,))
    method = defenses.barre(wide, optax.sgd(RATE), THREAT, signs)
    with pytest.raises(ValueError, match="model must be that of the member before"):
        method.start(method.training.init(jax.random.key(0)), past_of([0.5, 0.5]))
