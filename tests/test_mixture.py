"""A mixture's exact numbers against enumeration of its members."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixjax import attacks, mixture, threats

NAN, INF = np.nan, np.inf
ACCURACY = jax.jit(mixture.accuracy)
CORRECT = jax.jit(mixture.correct)
EXPECTED_LOSS = jax.jit(mixture.expected_loss)
LOG_PROBS = jax.jit(mixture.log_probs)
PREDICT = jax.jit(jax.vmap(mixture.predict, in_axes=(0, None, None)))
# Of the log of the mean probability of the first class, in both.
SLOPES = jax.jit(jax.grad(lambda logits, weights: mixture.log_probs(logits, weights)[0], (0, 1)))
few = hypothesis.settings(max_examples=25, deadline=None)


@st.composite
def mixtures(draw):
    """Logits `[L, C]` with many ties, weights `[L]` with some zeros, a label."""
    logits = draw(hnp.arrays(np.int8, (3, 4), elements=st.integers(-3, 3)))
    raw = draw(hnp.arrays(np.int8, 3, elements=st.integers(0, 5)))
    raw[draw(st.integers(0, 2))] += 1
    return np.float32(logits), np.float32(raw / raw.sum()), draw(st.integers(0, 3))


def probabilities(logits):
    exponentials = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_expected_loss_weighs_each_member_with_its_own_weight():
    losses, weights = np.float32([1.0, 10.0, 100.0]), np.float32([0.5, 0.3, 0.2])
    np.testing.assert_allclose(EXPECTED_LOSS(losses, weights), 23.5, rtol=1e-6)


def test_a_member_surely_wrong_outweighs_one_surely_right_by_its_weight():
    """Losses of +inf and -inf; alone, or beside finite ones, each stays what it is."""
    for weight in (0.25, 0.5, 0.75):
        weights = jnp.array([weight, 1 - weight])
        found = EXPECTED_LOSS(jnp.array([jnp.inf, -jnp.inf]), weights)
        assert np.sign(found) == np.sign(2 * weight - 1) and np.isfinite(found)
        assert EXPECTED_LOSS(jnp.array([jnp.inf, 1.0]), weights) == jnp.inf
        assert EXPECTED_LOSS(jnp.array([1.0, -jnp.inf]), weights) == -jnp.inf
    assert EXPECTED_LOSS(jnp.array([jnp.inf, -jnp.inf]), jnp.array([1.0, 0.0])) == jnp.inf
    assert EXPECTED_LOSS(jnp.array([0, 1]), jnp.array([0.75, 0.25])) == 0.25


def test_the_gradient_of_the_expected_loss_in_the_weights_is_the_losses():
    losses, weights = np.float32([1.0, 10.0, 100.0]), np.float32([0.5, 0.3, 0.2])
    found = jax.jit(jax.grad(mixture.expected_loss, (0, 1)))(losses, weights)
    chex.assert_trees_all_equal(found, (weights, losses))


@few
@hypothesis.given(mixtures())
def test_accuracy_is_the_weight_of_the_members_that_are_right(drawn):
    logits, weights, label = drawn
    want = 0.0
    for member, weight in zip(logits, weights, strict=True):
        if all(member[label] > z for k, z in enumerate(member) if k != label):
            want += weight
    np.testing.assert_allclose(ACCURACY(logits, label, weights), want, atol=1e-6)


def test_accuracy_is_not_that_of_averaged_logits():
    logits = np.float32([[9.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    weights = np.float32([0.2, 0.3, 0.5])
    assert np.argmax(weights @ logits) == 0
    np.testing.assert_allclose(ACCURACY(logits, 0, weights), 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "correct"),
    [
        ([1.0, 0.0, 0.5], True),
        ([1.0, 1.0, 0.5], False),
        ([1.0, 0.0, 2.0], False),
        ([NAN, 0.0, 0.0], False),
        ([1.0, NAN, 0.0], False),
        ([INF, 1.0, 0.0], True),
        ([INF, INF, 0.0], False),
        ([-INF, -INF, -INF], False),
    ],
)
def test_ties_and_nan_are_errors(logits, correct):
    logits = np.float32(logits)
    assert CORRECT(logits, 0) == correct
    assert ACCURACY(logits[None], 0, np.ones(1, np.float32)) == float(correct)


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_outside_of_the_classes_is_never_right(label):
    assert not CORRECT(np.float32([1.0, 2.0, 3.0]), label)


def test_correct_takes_any_leading_axes():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(CORRECT(logits, 2), np.argmax(logits, axis=-1) == 2)


@few
@hypothesis.given(mixtures())
def test_log_probs_are_the_log_of_the_mean_probability(drawn):
    logits, weights, _ = drawn
    want = np.log(weights @ probabilities(logits))
    np.testing.assert_allclose(LOG_PROBS(logits, weights), want, rtol=1e-4, atol=1e-5)


def test_log_probs_stay_finite_where_probabilities_underflow():
    logits = np.float32([[0.0, 500.0], [0.0, 400.0]])
    got = LOG_PROBS(logits, np.float32([0.25, 0.75]))
    np.testing.assert_allclose(got, [-400.0 + np.log(0.75), 0.0], rtol=1e-6)


@pytest.mark.parametrize("other", [0.0, 1e3, -1e3, 1e30])
def test_a_member_of_weight_zero_does_not_matter(other):
    logits = np.float32([[0.3, -0.2, 1.0], [other, 0.0, -other]])
    weights = np.float32([1.0, 0.0])
    (p,) = probabilities(logits[:1])
    np.testing.assert_allclose(LOG_PROBS(logits, weights), np.log(p), rtol=1e-6)
    assert ACCURACY(logits, 2, weights) == 1.0
    gradient = np.asarray(SLOPES(logits, weights)[0])
    np.testing.assert_array_equal(gradient[1], 0.0)
    np.testing.assert_allclose(gradient[0], np.eye(3)[0] - p, atol=1e-6)


def test_the_gradient_of_log_probs_in_the_weights_is_the_members_share():
    logits, weights = np.float32([[1.0, 0.0], [0.0, 2.0]]), np.float32([0.25, 0.75])
    _, gradient = SLOPES(logits, weights)
    p = probabilities(logits)[:, 0]
    np.testing.assert_allclose(gradient, p / (weights @ p), rtol=1e-5)


def test_predict_answers_as_often_as_the_members_weigh(key):
    logits = np.float32([[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 9, 0]])
    weights = np.float32([0.5, 0.3, 0.2, 0.0])
    answers = PREDICT(jax.random.split(key, 20_000), logits, weights)
    shares = np.bincount(answers, minlength=3) / len(answers)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)  # four standard errors


def test_predict_never_draws_a_member_of_weight_zero(key):
    weights = np.float32([0.0, 0.6, 0.0, 0.4, 0.0])
    answers = PREDICT(jax.random.split(key, 20_000), np.eye(5, dtype=np.float32), weights)
    assert set(np.unique(answers)) == {1, 3}


def test_the_average_of_answers_is_the_exact_accuracy(key):
    logits, label = np.float32([[3.0, 0.0], [0.0, 1.0], [2.0, 1.0]]), 0
    weights = np.float32([0.1, 0.3, 0.6])
    answers = np.asarray(PREDICT(jax.random.split(key, 20_000), logits, weights))
    exact = ACCURACY(logits, label, weights)
    np.testing.assert_allclose(exact, 0.7, rtol=1e-6)
    np.testing.assert_allclose(np.mean(answers == label), exact, atol=0.015)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.5, 1.5], [NAN, 1.0]])
def test_weights_off_the_simplex_are_refused(weights, key):
    logits, weights = np.zeros((2, 3)), jnp.array(weights)
    with pytest.raises(ValueError, match="weights must be on the simplex.*got"):
        mixture.accuracy(logits, 0, weights)
    with pytest.raises(ValueError, match="weights must be on the simplex.*got"):
        mixture.predict(key, logits, weights)


class Variants(chex.TestCase):
    LOGITS = jax.random.normal(jax.random.key(0), (7, 3, 4))
    LABELS = jnp.arange(7) % 4
    WEIGHTS = jnp.array([0.2, 0.5, 0.3])

    @chex.all_variants
    def test_compiled_or_not_on_any_device_a_batch_has_the_accuracies_of_its_examples(self):
        accuracy = jax.vmap(mixture.accuracy, in_axes=(0, 0, None))
        batch = self.variant(accuracy)(self.LOGITS, self.LABELS, self.WEIGHTS)
        examples = zip(np.asarray(self.LOGITS), np.asarray(self.LABELS), strict=True)
        one_by_one = [np.asarray(ACCURACY(z, k, self.WEIGHTS)) for z, k in examples]
        chex.assert_trees_all_close(batch, np.stack(one_by_one), atol=1e-6)

    @chex.all_variants
    def test_compiled_or_not_on_any_device_the_mean_probability_is_that_of_its_members(self):
        log_probs = jax.vmap(mixture.log_probs, in_axes=(0, None))
        found = self.variant(log_probs)(self.LOGITS, self.WEIGHTS)
        each = np.stack([probabilities(logits) for logits in np.asarray(self.LOGITS)])
        want = np.log(np.einsum("l,nlc->nc", self.WEIGHTS, each))
        chex.assert_trees_all_close(found, want, rtol=1e-4, atol=1e-5)

    @chex.all_variants
    def test_compiled_or_not_on_any_device_a_key_draws_the_same_member(self):
        answer = self.variant(mixture.predict)(jax.random.key(5), jnp.eye(3), self.WEIGHTS)
        chex.assert_trees_all_equal(
            answer, mixture.predict(jax.random.key(5), jnp.eye(3), self.WEIGHTS)
        )


def test_a_member_of_weight_zero_does_not_count_whatever_it_answers():
    weights = np.float32([0.0, 1.0])
    for odd in (NAN, INF):
        assert EXPECTED_LOSS(np.float32([odd, 2.0]), weights) == 2.0
    logits = np.float32([[NAN, NAN], [1.0, 0.0]])
    assert ACCURACY(logits, 0, weights) == 1.0
    (want,) = np.log(probabilities(logits[1:]))
    np.testing.assert_allclose(LOG_PROBS(logits, weights), want, rtol=1e-6)


def test_a_member_that_answers_nan_leaves_the_others_their_loss_and_gradient():
    weights, losses = np.float32([0.25, 0.75]), np.float32([NAN, 2.0])
    value, gradient = jax.jit(jax.value_and_grad(mixture.expected_loss))(losses, weights)
    assert value == 1.5
    np.testing.assert_array_equal(gradient, [0.0, 0.75])
    assert np.isnan(EXPECTED_LOSS(np.float32([NAN, NAN]), weights))  # nobody to attack
    logits = np.float32([[NAN, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(LOG_PROBS(logits, weights)[0], np.log(0.75 / 2), rtol=1e-6)
    slope, _ = SLOPES(logits, weights)
    np.testing.assert_allclose(slope, [[0.0, 0.0], [0.5, -0.5]], rtol=1e-6)
    assert ACCURACY(np.float32([[0.0, NAN], [1.0, 0.0]]), 0, weights) == 0.75


def test_three_weights_for_two_members_are_refused():
    weights, logits = np.full(3, 1 / 3), np.zeros((2, 4))
    for call in (
        lambda: mixture.expected_loss(np.zeros(2), weights),
        lambda: mixture.accuracy(logits, 0, weights),
        lambda: mixture.log_probs(logits, weights),
        lambda: mixture.predict(jax.random.key(0), logits, weights),
    ):
        with pytest.raises(ValueError, match=r"weights must have shape \[2\], got \[3\]"):
            call()
    with pytest.raises(ValueError, match="logits must be all members'"):
        mixture.accuracy(np.zeros(4), 0, np.ones(1))
    with pytest.raises(ValueError, match=r"label must lie in \[0, 3\], got 4"):
        mixture.accuracy(logits, 4, np.array([0.5, 0.5]))


def test_logits_of_numpy_meet_traced_labels_weights_and_keys(key):
    logits = np.float32([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    weights = np.float32([0.25, 0.75])

    @jax.jit
    def traced(labels, keys):
        of_mixture = jax.vmap(mixture.accuracy, in_axes=(None, 0, None))(logits, labels, weights)
        of_first = jax.vmap(lambda label: mixture.correct(logits[0], label))(labels)
        return of_mixture, of_first, jax.vmap(lambda k: mixture.predict(k, logits, weights))(keys)

    accuracies, correct, answers = traced(np.arange(3), jax.random.split(key, 50))
    np.testing.assert_allclose(accuracies, [0.25, 0.75, 0.0])
    np.testing.assert_array_equal(correct, [True, False, False])
    assert set(np.asarray(answers).tolist()) == {0, 1}


@pytest.mark.parametrize("label", [2, -1, 0.0, np.zeros(2, int)], ids=str)
@pytest.mark.parametrize(
    "function",
    [mixture.correct, attacks.log_error, lambda z, label: attacks.likeliest_wrong(z, label, 1)],
    ids=["correct", "log_error", "likeliest_wrong"],
)
def test_what_is_no_class_is_refused(function, label):
    with pytest.raises(ValueError, match=r"^label must (lie in \[0, 1\]|be )"):
        function(jnp.array([1.0, 0.0]), label)


def test_members_where_one_is_due_and_targets_that_are_no_classes_are_refused():
    with pytest.raises(ValueError, match="^logits must be one member's on one example"):
        attacks.log_error(jnp.ones((2, 2)), 0)
    with pytest.raises(ValueError, match="^targets must be a whole number, got float32"):
        attacks.apgd_targeted(
            jax.random.key(0),
            lambda x, target: x[0] + target,
            jnp.full(4, 0.5),
            jnp.array([1.5]),
            threats.linf(0.1),
            num_steps=2,
        )
