"""Each sign of a weak attack, on members built to show it and on members that must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import evaluation, threats
from tests.evaluation.answers import of_answers

LINF = threats.linf(0.1)
SIZE = 8


def diagnose(logits_fn, weights, images, **settings):
    labels = np.zeros(len(images), np.int32)
    settings = {"num_steps": 20} | settings
    findings = evaluation.diagnose(logits_fn, weights, images, labels, LINF, **settings)
    return {finding.name: finding for finding in findings}


def suspicious(findings):
    return {name for name, finding in findings.items() if finding.is_suspicious}


def scores(values):
    """Logits of members that are right about label 0 where their value is positive."""
    return jnp.stack([values, jnp.zeros_like(values)], axis=-1)


def linear(x):
    """Two members right above .45 and .4 on average, an honest game."""
    return scores(20 * (jnp.mean(x) - jnp.array([0.45, 0.4])))


def images(num_examples=20):
    values = np.linspace(0.42, 0.7, num_examples, dtype=np.float32)
    return np.repeat(values[:, None], SIZE, axis=1)


def test_honest_linear_members_raise_no_suspicion():
    findings = diagnose(linear, [0.3, 0.7], images())
    assert suspicious(findings) == set()
    assert findings["huge_radius_survived"].value == 0.0
    assert findings["vanished_gradients"].value == findings["stuck_ascent"].value == 0.0
    assert [*findings] == [
        "vanished_gradients",
        "stuck_ascent",
        "one_step_is_stronger",
        "more_steps_help",
        "huge_radius_survived",
        "nan_answers",
        "probabilities",
    ]
    assert findings["nan_answers"].value == findings["probabilities"].value == 0.0


def test_a_staircase_has_vanished_gradients_and_names_the_member():
    """The second member is right on the example and flat around it; the first is linear."""

    def stairs(x):
        value = jnp.mean(x)
        return scores(jnp.stack([20 * (value - 0.45), jnp.sign(value - 0.5)]))

    findings = diagnose(stairs, [0.5, 0.5], images())
    assert findings["vanished_gradients"].is_suspicious
    assert findings["vanished_gradients"].value == np.mean(images()[:, 0] > 0.5)
    assert "member 2" in findings["vanished_gradients"].text
    assert not findings["stuck_ascent"].is_suspicious  # the first member's gradient still leads


def test_saturated_logits_vanish_in_the_cross_entropy_and_no_radius_is_fatal():
    def saturated(x):
        return scores(1e4 * (jnp.mean(x, keepdims=True) - 0.3))

    findings = diagnose(saturated, [1.0], images())
    assert {"vanished_gradients", "stuck_ascent", "huge_radius_survived"} <= suspicious(findings)
    assert findings["huge_radius_survived"].value == 1.0


def test_members_that_are_never_wrong_together_survive_every_radius():
    def opposed(x):
        value = 20 * (jnp.mean(x) - 0.55)
        return scores(jnp.stack([value, -value]))

    findings = diagnose(opposed, [0.4, 0.6], images())
    assert findings["huge_radius_survived"].value == pytest.approx(0.4, abs=0.21)
    assert "huge_radius_survived" in suspicious(findings)


def test_where_gradients_cancel_the_ascent_is_stuck():
    """Each member is fooled from its own side; the expected loss is highest in the middle."""

    def symmetric(x):
        u = jnp.mean(x) - 0.5
        member_losses = jnp.log(2.0) - 0.08 + jnp.stack([u, -u]) - u**2
        return scores(-jnp.log(jnp.expm1(member_losses)))

    middle = np.full((5, SIZE), 0.5, np.float32)
    findings = diagnose(symmetric, [0.5, 0.5], middle)
    assert findings["stuck_ascent"].value == 1.0
    assert findings["vanished_gradients"].value == 0.0  # a member's own gradient is there


def test_a_gradient_that_points_the_wrong_way_is_betrayed_by_one_long_step():
    """Small steps are caught at a distance of .03; the error is beyond .09."""

    def ridge(x):
        u = jnp.mean(x, keepdims=True) - 0.5
        climbing = 1.0 - 10 * jnp.maximum(u, 0) + 400 * jnp.maximum(u - 0.03, 0)
        return scores(jnp.where(u > 0.09, -1.0, climbing))

    middle = np.full((5, SIZE), 0.5 + 1e-3, np.float32)
    findings = diagnose(ridge, [1.0], middle)
    assert findings["one_step_is_stronger"].value == 1.0


def test_half_the_steps_are_not_enough_on_a_winding_way():
    """A group of pixels counts only once the one before has moved: at steps 4 and 8 of 20."""

    def winding(x):
        first, second, third = jnp.mean((x[:6] - 0.5).reshape(3, 2), axis=1)
        gates = jnp.maximum(jnp.stack([first, second]) - 0.095, 0.0) * 200
        return scores((1.0 - first - gates[0] * second - 15 * gates[1] * third)[None])

    findings = diagnose(winding, [1.0], np.full((5, SIZE), 0.5, np.float32))
    assert findings["more_steps_help"].value == 1.0
    assert suspicious(findings) == {"more_steps_help"}


def test_a_member_that_answers_nan_is_named_with_the_number_of_points():
    """The third member is not a number where the first pixel is above .6, which no step changes."""

    def broken(x):
        right = 20 * (jnp.mean(x[1:]) - jnp.array([0.3, 0.4, 0.2]))
        return scores(jnp.where((x[0] > 0.6) & (jnp.arange(3) == 2), jnp.nan, right))

    x = np.full((4, SIZE), 0.5, np.float32)
    x[0, 0] = 0.75
    findings = diagnose(broken, [0.3, 0.3, 0.4], x, bounds=(0.0, 1.0))
    finding = findings["nan_answers"]
    assert finding.is_suspicious and finding.value == pytest.approx(0.25)
    assert "member 3 answers NaN, at 42 of 168" in finding.text  # 2 ascents of 21 points each
    assert not findings["probabilities"].is_suspicious


def test_probabilities_in_the_place_of_logits_are_told():
    def second(x):
        logits = linear(x)
        return logits.at[1].set(jax.nn.softmax(logits[1]))

    findings = diagnose(second, [0.3, 0.7], images())
    assert findings["probabilities"].value == 1.0
    assert findings["probabilities"].is_suspicious and "member 2" in findings["probabilities"].text


def test_no_more_examples_are_probed_than_there_are_and_they_are_spread():
    """Only the last quarter is saturated."""

    def partly(x):
        return scores(jnp.where(x[:1] > 0.75, 1e4, 2 * (x[:1] - 0.1)))

    values = np.linspace(0.2, 1.0, 40, dtype=np.float32)
    found = diagnose(partly, [1.0], np.repeat(values[:, None], SIZE, axis=1), num_examples=8)
    assert found["vanished_gradients"].value == pytest.approx(0.25, abs=0.13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 1}, "num_steps must be a whole number of at least 2, got 1"),
        ({"num_examples": 0}, "num_examples must be a whole number of at least 1, got 0"),
        ({"bounds": (1.0, 0.0)}, "bounds must be a pair"),
        ({"threat": threats.linf(0.0)}, "epsilon must be positive, got 0"),
    ],
)
def test_bad_input_is_named_with_its_value(change, message):
    arguments = {"threat": LINF} | change
    with pytest.raises(ValueError, match=message):
        evaluation.diagnose(linear, [0.3, 0.7], images(), np.zeros(20, np.int32), **arguments)


# Comparisons between the attacks of a suite.

SUITE_NAMES = (
    *("apgd_expected_loss",) * 2,
    "apgd_mean_probability",
    "apgd_expected_dlr",
    "apgd_expected_margin",
    "apgd_targeted_dlr",
    "apgd_members",
    "arc",
    "lattice_climber",
    "square",
)


def found(fooled, is_complete=None, runs=SUITE_NAMES):
    """100 examples and one member that each named run fools on the given range of examples."""
    right = np.ones((100, 1 + len(runs), 1), bool)
    for run, count in enumerate(fooled, 1):
        right[:count, run] = False
    complete = np.ones(100, bool) if is_complete is None else is_complete
    return of_answers(right, [1.0], runs, is_complete=complete)


def compared(fooled, **settings):
    findings = evaluation.compare_attacks(found(fooled, **settings))
    return {finding.name: finding for finding in findings}


def test_equal_attacks_raise_no_suspicion():
    findings = compared([40] * 10)
    assert [*findings] == [
        "black_box_is_stronger",
        "transfer_is_stronger",
        "expected_loss_is_blind",
        "restarts_help",
    ]
    assert all(finding.value == 0 for finding in findings.values())


@pytest.mark.parametrize(
    ("fooled", "name", "value"),
    [
        ([40] * 9 + [45], "black_box_is_stronger", 0.05),
        ([40] * 6 + [47] + [40] * 3, "transfer_is_stronger", 0.07),
        ([40] * 7 + [55, 40, 40], "expected_loss_is_blind", 0.15),
        ([40] * 8 + [60, 40], "expected_loss_is_blind", 0.20),
        ([30] + [40] * 9, "restarts_help", 0.10),
    ],
)
def test_each_weakness_is_found_and_no_other(fooled, name, value):
    findings = compared(fooled)
    assert suspicious(findings) == {name}
    assert findings[name].value == pytest.approx(value)


def test_only_complete_examples_are_compared_and_only_attacks_that_are_there():
    complete = np.arange(100) % 2 == 0
    findings = compared([40] * 9 + [46], is_complete=complete)
    assert findings["black_box_is_stronger"].value == pytest.approx(3 / 50)
    assert compared([40] * 10, is_complete=np.zeros(100, bool)) == {}
    assert [*compared([40] * 10, runs=("apgd_expected_loss",) * 10)] == ["restarts_help"]


def test_a_value_that_is_not_a_number_is_suspicious():
    assert evaluation.Finding("check", float("nan"), 0.1, "text").is_suspicious
    assert not evaluation.Finding("check", 0.1, 0.1, "text").is_suspicious
