"""Losses against their definitions in NumPy, in value, sign and derivative."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from mixjax import losses, mixture

LOGITS = np.array([0.3, 2.0, -1.0, 1.2], np.float32)
LABELS = range(4)
few = hypothesis.settings(max_examples=25, deadline=None)


@functools.cache
def compiled(loss):
    """One program for all logits of a shape, of any label."""
    return jax.jit(loss)


@functools.cache
def with_gradient(loss, argnums=0):
    return jax.jit(jax.value_and_grad(loss, argnums=argnums))


def gradient_of(loss, argnums=0):
    return lambda *arguments: with_gradient(loss, argnums)(*arguments)[1]


def softmax(logits):
    exponentials = np.exp(np.float64(logits) - np.max(logits))
    return exponentials / exponentials.sum()


def slow_margin(logits, label):
    return logits[label] - max(z for k, z in enumerate(logits) if k != label)


@pytest.mark.parametrize("label", LABELS)
def test_cross_entropy_is_minus_the_log_probability_of_the_label(label):
    want = -np.log(softmax(LOGITS)[label])
    np.testing.assert_allclose(compiled(losses.cross_entropy)(LOGITS, label), want, rtol=1e-6)


@pytest.mark.parametrize("label", LABELS)
def test_the_gradient_of_the_cross_entropy_is_probability_minus_label(label):
    want = softmax(LOGITS) - np.eye(4)[label]
    got = gradient_of(losses.cross_entropy)(LOGITS, label)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_cross_entropy_of_a_wrong_and_certain_network_is_the_gap_of_its_logits():
    assert compiled(losses.cross_entropy)(np.float32([0.0, 1e4]), 0) == 1e4


def test_trades_is_the_divergence_of_the_attacked_from_the_clean_prediction():
    clean, attacked = LOGITS, np.array([1.0, 0.5, 0.0, 3.0], np.float32)
    p, q = softmax(clean), softmax(attacked)
    np.testing.assert_allclose(
        compiled(losses.trades)(clean, attacked), np.sum(p * np.log(p / q)), rtol=1e-5
    )
    # KL is not symmetric: the other way round is another number.
    assert (
        abs(compiled(losses.trades)(clean, attacked) - compiled(losses.trades)(attacked, clean))
        > 0.1
    )


def test_trades_is_zero_and_flat_where_both_predictions_agree():
    value, gradient = with_gradient(losses.trades, 1)(LOGITS, LOGITS)
    assert value == 0.0
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_the_gradient_of_trades_in_the_attacked_logits_is_q_minus_p():
    attacked = np.float32([1.0, 0.5, 0.0, 3.0])
    gradient = gradient_of(losses.trades, 1)(LOGITS, attacked)
    np.testing.assert_allclose(gradient, softmax(attacked) - softmax(LOGITS), atol=1e-6)


@pytest.mark.parametrize("loss_fn", [losses.margin, losses.dlr])
def test_one_class_alone_leads_nobody(loss_fn):
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 2, got 1"):
        loss_fn(jnp.zeros(1), 0)


@pytest.mark.parametrize("label", LABELS)
def test_margin_is_the_lead_over_the_best_other_class(label):
    got = compiled(losses.margin)(LOGITS, label)
    np.testing.assert_allclose(got, slow_margin(LOGITS, label), rtol=1e-6)
    assert (got > 0) == (label == 1)


def test_zero_one_is_one_unless_the_label_is_strictly_ahead():
    assert compiled(losses.zero_one)(np.float32([0.0, 1.0, -3.0]), 1) == 0.0
    assert compiled(losses.zero_one)(np.float32([0.0, 1.0, -3.0]), 0) == 1.0
    assert compiled(losses.zero_one)(np.float32([1.0, 1.0, -3.0]), 0) == 1.0
    assert compiled(losses.zero_one)(np.float32([1.0, np.nan, -3.0]), 0) == 1.0
    assert compiled(losses.zero_one)(np.float32([np.nan, 0.0, -3.0]), 0) == 1.0
    assert compiled(losses.zero_one)(jnp.full(3, -np.inf), 0) == 1.0
    assert compiled(losses.zero_one)(np.float32([0.0, 1.0]), 1).dtype == jnp.float32


@pytest.mark.parametrize("label", LABELS)
def test_dlr_is_the_lost_lead_over_the_distance_from_first_to_third(label):
    first, _, third = np.sort(LOGITS)[::-1][:3]
    want = -slow_margin(LOGITS, label) / (first - third)
    np.testing.assert_allclose(compiled(losses.dlr)(LOGITS, label), want, rtol=1e-6)


def test_dlr_of_known_logits():
    # Sorted: 5, 4, 2, 0. First minus third: 3.
    logits = np.float32([4.0, 0.0, 5.0, 2.0])
    np.testing.assert_allclose(compiled(losses.dlr)(logits, 2), -1 / 3, rtol=1e-6)
    np.testing.assert_allclose(compiled(losses.dlr)(logits, 0), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(compiled(losses.dlr)(logits, 1), 5 / 3, rtol=1e-6)


@few
@hypothesis.given(
    st.lists(st.integers(-50, 50), min_size=5, max_size=5, unique=True),
    st.floats(0.1, 1000.0),
    st.floats(-10.0, 10.0),
    st.data(),
)
def test_dlr_neither_sees_a_shift_nor_a_scale(logits, scale, shift, data):
    logits = np.float32(logits)
    label = data.draw(st.integers(0, len(logits) - 1))
    plain = compiled(losses.dlr)(logits, label)
    np.testing.assert_allclose(
        compiled(losses.dlr)(logits * np.float32(scale), label), plain, rtol=1e-4
    )
    np.testing.assert_allclose(
        compiled(losses.dlr)(logits + np.float32(shift), label), plain, rtol=1e-3
    )


@few
@hypothesis.given(st.lists(st.integers(-3, 3), min_size=4, max_size=4), st.data())
def test_dlr_is_at_least_minus_one_and_positive_exactly_for_a_label_behind(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    value = compiled(losses.dlr)(np.float32(logits), label)
    lead = slow_margin(logits, label)
    assert value >= -1.0
    assert (value > 0) == (lead < 0) and (value < 0) == (lead > 0)


@pytest.mark.parametrize(
    "logits",
    [[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 0.0], [2.0, 2.0, 1.0], [1.0, 0.0, 0.0], [3.0, 3.0]],
)
def test_dlr_and_its_gradient_are_finite_where_logits_tie(logits):
    for label in range(len(logits)):
        value, gradient = with_gradient(losses.dlr)(np.float32(logits), label)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_ascent_on_dlr_shrinks_the_lead_of_the_label():
    logits = np.float32([4.0, 0.0, 5.0, 2.0])
    moved = logits + 0.1 * gradient_of(losses.dlr)(logits, 2)
    assert compiled(losses.margin)(moved, 2) < compiled(losses.margin)(logits, 2)


def test_dlr_of_two_classes_is_the_negative_margin():
    logits = np.float32([1.5, -0.5])
    assert compiled(losses.dlr)(logits, 0) == -2.0
    assert compiled(losses.dlr)(logits, 1) == 2.0
    np.testing.assert_array_equal(gradient_of(losses.dlr)(logits, 0), [-1.0, 1.0])


def test_dlr_of_three_classes_divides_by_the_whole_spread():
    np.testing.assert_allclose(compiled(losses.dlr)(np.float32([0.0, 4.0, 3.0]), 1), -0.25)


def test_targeted_dlr_of_known_logits():
    # Sorted: 5, 4, 2, 0, -7. First minus the mean of third and fourth: 4.
    logits = np.float32([4.0, 0.0, 5.0, 2.0, -7.0])
    np.testing.assert_allclose(compiled(losses.targeted_dlr)(logits, 2, 0), -1 / 4, rtol=1e-6)
    np.testing.assert_allclose(compiled(losses.targeted_dlr)(logits, 2, 4), -12 / 4, rtol=1e-6)
    np.testing.assert_allclose(compiled(losses.targeted_dlr)(logits, 1, 3), 2 / 4, rtol=1e-6)
    np.testing.assert_allclose(
        compiled(losses.targeted_dlr)(7.0 * logits + 3.0, 1, 3), 2 / 4, rtol=1e-6
    )


def test_targeted_dlr_of_few_classes():
    np.testing.assert_allclose(
        compiled(losses.targeted_dlr)(np.float32([0.0, 4.0, 3.0]), 1, 2), -0.25
    )
    np.testing.assert_allclose(
        compiled(losses.targeted_dlr)(np.float32([0.0, 4.0, 3.0]), 1, 0), -1.0
    )
    assert compiled(losses.targeted_dlr)(np.float32([1.5, -0.5]), 0, 1) == -2.0
    gradient = gradient_of(losses.targeted_dlr)(np.float32([1.5, -0.5]), 0, 1)
    np.testing.assert_array_equal(gradient, [-1.0, 1.0])


@few
@hypothesis.given(st.lists(st.integers(-3, 3), min_size=2, max_size=6), st.data())
def test_some_target_s_dlr_is_positive_exactly_for_a_label_behind(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    values = [
        compiled(losses.targeted_dlr)(np.float32(logits), label, k) for k in range(len(logits))
    ]
    assert values[label] == 0.0 and np.all(np.isfinite(values))
    assert (max(values) > 0) == (slow_margin(logits, label) < 0)


@pytest.mark.parametrize("logits", [[0.0] * 5, [5.0, 5.0, 5.0, 5.0, 0.0], [2.0] * 3, [3.0, 3.0]])
def test_targeted_dlr_and_its_gradient_are_finite_where_logits_tie(logits):
    value, gradient = with_gradient(losses.targeted_dlr)(np.float32(logits), 0, 1)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and gradient[1] > 0


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, losses.zero_one])
def test_a_batch_is_a_vmap(loss):
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    labels = np.array([0, 4, 2, 2, 1, 3])
    batch = jax.jit(jax.vmap(loss))(logits, labels)
    one_by_one = [compiled(loss)(z, label) for z, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(batch, one_by_one, rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.zero_one])
def test_larger_is_worse_for_the_defender(loss):
    good, bad = np.float32([3.0, 0.0, 0.0]), np.float32([0.0, 3.0, 0.0])
    assert compiled(loss)(bad, 0) > compiled(loss)(good, 0)


MEMBERS = np.array([[2.0, 0.5, -1.0], [0.0, 4.0, 1.0], [1.0, 0.2, 0.9]], np.float32)
WEIGHTS = np.array([0.5, 0.2, 0.3], np.float32)  # margins of class 0: 1.5, -4, .1


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.dlr, losses.zero_one])
def test_the_expected_loss_is_that_of_a_member_drawn_by_its_weight(loss):
    logits = np.stack([LOGITS, 2 * LOGITS[::-1], -LOGITS])
    each_loss = np.stack([compiled(loss)(each, 1) for each in logits])
    expected = jax.jit(functools.partial(losses.expected, loss))
    np.testing.assert_allclose(expected(logits, 1, WEIGHTS), each_loss @ WEIGHTS, rtol=1e-6)
    with pytest.raises(ValueError, match="weights must have shape"):
        expected(logits, 1, WEIGHTS[:2])


def test_the_margins_of_a_mixture_are_those_written_out():
    p = sum(w * softmax(row) for w, row in zip(WEIGHTS, MEMBERS, strict=True))
    lead = np.log(p[0]) - np.log(np.delete(p, 0).max())
    got = compiled(losses.mean_probability_margin)(MEMBERS, 0, WEIGHTS)
    np.testing.assert_allclose(got, lead, rtol=1e-5)
    got = compiled(losses.expected_margin)(MEMBERS, 0, WEIGHTS)
    np.testing.assert_allclose(got, 0.75 - 0.8 + 0.03, rtol=1e-4)
    got = compiled(losses.expected_hinge)(MEMBERS, 0, WEIGHTS)
    np.testing.assert_allclose(got, 0.75 + 0.03, rtol=1e-5)


@pytest.mark.parametrize(
    ("share", "want"), [(1e-3, -4.0), (0.2, -4.0), (0.21, 0.1), (0.5, 0.1), (0.51, 1.5), (1.0, 1.5)]
)
def test_the_accuracy_margin_is_that_of_the_member_that_completes_the_share(share, want):
    got = compiled(losses.accuracy_margin)(MEMBERS, 0, WEIGHTS, share)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@hypothesis.given(
    st.lists(
        st.lists(st.sampled_from([-2.0, 0.0, 1.0, 3.0]), min_size=3, max_size=3),
        min_size=4,
        max_size=4,
    ),
    st.sampled_from([0.05, 0.25, 0.5, 0.6, 1.0]),
)
@few
def test_the_accuracy_margin_is_positive_exactly_above_its_accuracy(rows, share):
    logits, weights = np.array(rows, np.float32), np.array([0.1, 0.4, 0.0, 0.5], np.float32)
    accuracy = compiled(mixture.accuracy)(logits, 0, weights)
    positive = compiled(losses.accuracy_margin)(logits, 0, weights, share) > 0
    assert positive == (accuracy > 1 - share + 1e-5)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.dlr, losses.margin, losses.zero_one])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_expected_loss_leads_by_the_members_that_answer(loss, weight):
    """Hand-stacked: one member answers NaN in one class or in all."""
    expected = with_gradient(lambda *given: losses.expected(loss, *given))
    weights = np.float32([1 - weight, weight])
    want, slope = expected(MEMBERS[:1], 0, weights[:1])
    for odd in ([np.nan] * 3, [np.nan, 1.0, 0.0]):
        value, gradient = expected(np.float32([MEMBERS[0], odd]), 0, weights)
        np.testing.assert_allclose(gradient, [slope[0], np.zeros(3)], rtol=1e-6)
        if loss is not losses.zero_one:  # where NaN is an error
            np.testing.assert_allclose(value, want, rtol=1e-6)


MIXTURE_MARGINS = {
    "mean probability": losses.mean_probability_margin,
    "expected": losses.expected_margin,
    "hinge": losses.expected_hinge,
    "any member": functools.partial(losses.accuracy_margin, share=1e-3),
    "all members": losses.accuracy_margin,
}


@pytest.mark.parametrize("name", MIXTURE_MARGINS)
def test_a_member_that_answers_nan_or_weighs_nothing_decides_no_margin(name):
    """In value and derivative; of weight 0 it may be infinite too."""
    margin = with_gradient(MIXTURE_MARGINS[name])
    for weight in (0.0, 0.4):
        for odd in (np.nan, np.inf, -np.inf) if weight == 0 else (np.nan,):
            logits = np.float32([MEMBERS[0], [odd, 0.0, odd]])
            weights = np.float32([1 - weight, weight])
            value, gradient = margin(logits, 0, weights)
            want, slope = margin(MEMBERS[:1], 0, weights[:1])
            if weight == 0 or name not in ("any member", "all members"):
                np.testing.assert_allclose(value, want, rtol=1e-5)
                np.testing.assert_allclose(gradient[0], slope[0], rtol=1e-5, atol=1e-6)
            assert not np.any(np.isnan(gradient))
    assert margin(np.full((2, 3), np.nan, np.float32), 0, np.float32([0.6, 0.4]))[0] <= 0


@pytest.mark.parametrize("name", MIXTURE_MARGINS)
def test_masked_classes_and_overconfident_members_give_numbers_for_margins(name):
    margin = compiled(MIXTURE_MARGINS[name])
    for row in ([1.0, -np.inf, 0.3], [1e4, 0.0, -1e4], [np.inf, 0.0, 1.0], [3e38, -3e38, 0.0]):
        logits = np.float32([row, [0.5, 0.2, 0.1]])
        assert margin(logits, 0, np.float32([0.7, 0.3])) > 0, row
    sure = np.float32([[np.inf, 0.0], [0.0, np.inf]])
    assert np.isfinite(compiled(losses.expected_margin)(sure, 0, WEIGHTS[:2]))


@pytest.mark.parametrize("name", MIXTURE_MARGINS)
def test_margins_of_a_mixture_refuse_weights_of_other_members(name):
    with pytest.raises(ValueError, match=r"weights must have shape \[3\], got \[2\]"):
        MIXTURE_MARGINS[name](MEMBERS, 0, WEIGHTS[:2])


def test_a_share_outside_of_0_to_1_is_refused():
    for share, message in (
        (0.0, "share must be positive"),
        (1.5, r"share must lie in \[0.0, 1.0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.accuracy_margin(MEMBERS, 0, WEIGHTS, share)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    @parameterized.parameters("cross_entropy", "margin", "dlr", "zero_one")
    def test_compiled_or_not_on_any_device_a_batch_has_the_losses_of_its_examples(self, name):
        loss = getattr(losses, name)
        logits = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
        labels = np.array([0, 4, 2, 2, 1, 3])
        batch = self.variant(jax.vmap(loss))(logits, labels)
        one_by_one = [compiled(loss)(z, k) for z, k in zip(logits, labels, strict=True)]
        np.testing.assert_allclose(batch, one_by_one, rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_the_gradient_of_a_loss_is_that_of_finite_differences(loss):
    chex.assert_numerical_grads(
        jax.jit(lambda z: loss(z, 2)), (np.float32([0.3, 2.0, -1.0, 1.2]),), order=1
    )


ODD = {
    "masked": [0.0, -2.0, 1.0, -np.inf],
    "two left": [0.0, -2.0, -np.inf, -np.inf],
    "one left": [0.0, -np.inf, -np.inf, -np.inf],
    "label masked": [-np.inf, 1.0, 2.0, 0.5],
    "overconfident": [0.0, 1e4, -1e4, 2e4],
    "tied": [1.0, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "loss",
    [
        losses.cross_entropy,
        losses.margin,
        losses.dlr,
        lambda logits, label: compiled(losses.targeted_dlr)(logits, label, 1),
        lambda logits, label: compiled(losses.targeted_dlr)(logits, label, 3),
        lambda logits, label: compiled(losses.trades)(np.float32([0.5, 0.2, 0.1, -np.inf]), logits),
        lambda logits, label: -mixture.log_probs(logits[None], jnp.ones(1))[label],
    ],
)
def test_logits_of_minus_infinity_and_far_apart_make_no_nan(loss, name):
    value, gradient = with_gradient(loss)(np.float32(ODD[name]), 0)
    assert not np.isnan(value)
    assert np.all(np.isfinite(gradient))


def test_a_masked_class_leaves_the_loss_of_the_others():
    three, four = np.float32([0.3, 2.0, -1.0]), np.float32([0.3, 2.0, -1.0, -np.inf])
    two, hidden = three[:2], np.float32([0.3, 2.0, -np.inf, -np.inf])
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        loss = compiled(loss)
        np.testing.assert_allclose(loss(four, 0), loss(three, 0), rtol=1e-6)
        np.testing.assert_allclose(loss(hidden, 0), loss(two, 0), rtol=1e-6)
    for few, many in ((three, four), (two, hidden)):
        want = compiled(losses.targeted_dlr)(few, 0, 1)
        np.testing.assert_allclose(compiled(losses.targeted_dlr)(many, 0, 1), want, rtol=1e-6)
    np.testing.assert_allclose(compiled(losses.trades)(four, four + 1.0), 0.0, atol=1e-6)
    assert compiled(losses.targeted_dlr)(four, 0, 3) == -np.inf
    assert compiled(losses.targeted_dlr)(four, 3, 0) == compiled(losses.dlr)(four, 3) == np.inf
    assert (
        compiled(losses.margin)(four, 3) == -np.inf
        and compiled(losses.cross_entropy)(four, 3) == np.inf
    )


def test_half_precision_logits_have_a_finite_loss():
    logits = np.float16([0.0, 6e4, -6e4])
    np.testing.assert_allclose(compiled(losses.cross_entropy)(logits, 2), 1.2e5, rtol=1e-3)
    assert np.isfinite(compiled(losses.dlr)(np.ones(4, np.float16), 1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.ones((2, 3)), 0), r"logits must be one member's on one example, \[C\]"),
        ((np.ones(3), 3), r"label must lie in \[0, 2\], got 3"),
        ((np.ones(3), 1.0), "label must be a whole number, got float64"),
    ],
)
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, losses.zero_one])
def test_logits_of_all_members_and_labels_that_are_none_are_refused(loss, args, message):
    with pytest.raises(ValueError, match=message):
        loss(*args)


@pytest.mark.parametrize(
    "loss",
    [
        losses.cross_entropy,
        losses.margin,
        losses.dlr,
        losses.zero_one,
        lambda logits, label: compiled(losses.targeted_dlr)(logits, 0, label),
    ],
)
def test_logits_of_numpy_meet_traced_labels(loss):
    want = [compiled(loss)(LOGITS, label) for label in LABELS]
    got = jax.jit(jax.vmap(lambda k: loss(LOGITS, k)))(np.arange(4))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(LOGITS, np.arange(4))
    np.testing.assert_allclose(got, want, rtol=1e-6)
