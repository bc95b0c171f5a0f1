"""Each check lets good values pass and names the argument and the value of a bad one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import attacks, checks, ensemble, games, losses, mixture, threats

NAN, INF = float("nan"), float("inf")

ACCEPTED = [
    (checks.positive, 1e-30),
    (checks.positive, np.array([0.5, 2.0])),
    (checks.positive, [1, 2]),
    (checks.non_negative, 0),
    (checks.non_negative, np.zeros(3)),
    (checks.fraction, 0.0),
    (checks.fraction, 0.999),
    (checks.simplex, np.array([0.2, 0.8])),
    (checks.simplex, [1.0]),
    (checks.simplex, np.float32([1 / 3, 1 / 3, 1 / 3])),
    (checks.increasing, (-1.0, 1.0)),
]
REFUSED = [
    (checks.positive, 0.0, "positive"),
    (checks.positive, -0.1, "positive"),
    (checks.positive, NAN, "positive"),
    (checks.positive, INF, "positive"),
    (checks.positive, np.array([1.0, 0.0]), "positive"),
    (checks.non_negative, -1e-9, "at least 0"),
    (checks.non_negative, INF, "at least 0"),
    (checks.fraction, 1.0, "in [0, 1)"),
    (checks.fraction, -0.1, "in [0, 1)"),
    (checks.fraction, NAN, "in [0, 1)"),
    (checks.simplex, np.array([0.5, 0.6]), "on the simplex"),
    (checks.simplex, np.array([1.5, -0.5]), "on the simplex"),
    (checks.simplex, np.array([NAN, 1.0]), "on the simplex"),
    (checks.simplex, np.array([[0.5, 0.5]]), "on the simplex"),
    (checks.simplex, np.array([]), "on the simplex"),
    (checks.simplex, 1.0, "on the simplex"),
    (checks.increasing, (1.0, 1.0), "low < high"),
    (checks.increasing, (1.0, 0.0), "low < high"),
    (checks.increasing, (NAN, 1.0), "low < high"),
    (checks.increasing, (0.0,), "low < high"),
]


def message(check, *args, **values):
    with pytest.raises(ValueError) as error:
        check(*args, **values)
    return str(error.value)


@pytest.mark.parametrize(("check", "value"), ACCEPTED)
def test_a_good_value_passes(check, value):
    check(argument=value)


@pytest.mark.parametrize(("check", "value", "demand"), REFUSED)
def test_a_bad_value_is_named_with_its_argument(check, value, demand):
    text = message(check, argument=value)
    assert text.startswith("argument must be ")
    assert demand in text and text.endswith(f"got {value}")


def test_the_text_is_one_line_that_says_what_is_wrong():
    assert message(checks.positive, step_size=-0.1) == "step_size must be positive, got -0.1"


def test_the_bad_one_of_several_arguments_is_named():
    assert message(checks.positive, first=1.0, second=-2.0).startswith("second ")


@pytest.mark.parametrize("value", [0, 2.5, NAN, INF, -INF, np.array([1, 2])])
def test_a_number_of_things_is_whole_and_large_enough(value):
    text = message(checks.at_least, 1, num_steps=value)
    assert text == f"num_steps must be a whole number of at least 1, got {value}"


def test_a_text_is_not_told_as_if_it_were_a_number():
    assert message(checks.at_least, 1, num_steps="3").endswith("got '3'")
    assert message(checks.non_negative, epsilon="0.1").endswith("got '0.1'")


def test_a_number_of_things_may_come_from_numpy():
    checks.at_least(1, num_steps=np.int64(1))
    checks.at_least(1, num_steps=jnp.int32(3))


def test_a_whole_float_is_no_number_of_things():
    text = message(checks.at_least, 1, num_steps=3.0)
    assert text == "num_steps must be a whole number of at least 1, got 3.0: pass 3"


def test_an_unknown_option_is_answered_with_the_known_ones():
    checks.one_of(("at", "trades"), loss="at")
    text = message(checks.one_of, ("at", "trades"), loss="mse")
    assert text == "loss must be one of at, trades, got mse"


def test_values_outside_an_interval_are_answered_with_their_extremes():
    checks.within(0.0, 1.0, images=np.array([0.0, 1.0]))
    checks.within(0.0, 1.0, images=np.array([1.0 + 1e-7]))  # rounding
    text = message(checks.within, 0.0, 1.0, images=np.array([0.5, -0.25, 2.0]))
    assert text == "images must lie in [0.0, 1.0], got values from -0.25 to 2.0"
    assert "nan" in message(checks.within, 0.0, 1.0, images=np.array([0.5, NAN]))
    assert "from -1.0 to" in message(checks.within, 0.0, 1.0, images=np.array([-1.0, 0.5]))
    assert message(checks.within, 1, 2, devices=3) == "devices must lie in [1, 2], got 3"


def test_arrays_with_an_empty_axis_or_another_rank_are_answered_with_their_shape():
    checks.non_empty(2, losses=np.ones((2, 3)))
    assert message(checks.non_empty, 2, losses=np.ones((2, 0))).endswith("got [2, 0]")
    assert message(checks.non_empty, 2, losses=np.ones(3)).endswith("got [3]")


def test_a_shape_may_leave_sizes_open():
    checks.shape((None, 3), points=np.ones((7, 3)))
    text = message(checks.shape, (None, 3), points=np.ones((7, 2)))
    assert text == "points must have shape [any, 3], got [7, 2]"
    assert message(checks.shape, (None, 3), points=np.ones(3)).endswith("got [3]")


def test_traced_values_pass_unchecked():
    @jax.jit
    def function(value):
        checks.positive(value=value)
        checks.non_negative(value=value)
        checks.fraction(value=value)
        checks.simplex(value=value)
        checks.increasing(value=(value, 0.0))
        checks.within(0.0, 1.0, value=value)
        checks.within(0.0, value, value=2.0)
        return value

    assert function(-7.0) == -7.0


def test_known_values_are_checked_inside_of_jit_too():
    good, bad = jnp.array([0.25, 0.75]), jnp.array([0.5, -0.5])

    @jax.jit
    def function(x):
        checks.positive(weights=good)
        checks.simplex(weights=good)
        checks.within(0.0, 1.0, weights=good)
        with pytest.raises(ValueError, match="weights must be positive"):
            checks.positive(weights=bad)
        with pytest.raises(ValueError, match="weights must lie in"):
            checks.within(0.0, 1.0, weights=bad)
        return x

    function(0.0)


def test_the_shape_of_a_traced_array_is_checked():
    with pytest.raises(ValueError, match=r"x must have shape \[2\], got \[3\]"):
        jax.jit(lambda x: checks.shape((2,), x=x))(jnp.ones(3))
    with pytest.raises(ValueError, match="x must have 2 axes"):
        jax.jit(lambda x: checks.non_empty(2, x=x))(jnp.ones(3))


def test_an_input_outside_of_its_bounds_is_answered_with_its_extremes():
    checks.inside((0, 1), x=np.float32([0.0, 1.0]))
    checks.inside((-np.inf, np.inf), x=np.float32([-1e30]))
    text = message(checks.inside, (0.0, 1.0), x=np.array([-1.2, 0.5, 2.1]))
    assert text == "x must lie in [0, 1], got values from -1.2 to 2.1"
    assert message(checks.inside, (0, 1), x=np.array([0.5, NAN])) == (
        "x must lie in [0, 1], got NaN"
    )


def test_bounds_may_differ_between_features():
    low, high = np.array([0.0, -5.0]), np.array([1.0, 5.0])
    checks.inside((low, high), x=np.array([[0.5, -4.0], [0.0, 5.0]]))
    checks.inside((0.0, high), x=np.array([0.5, 4.0]))
    text = message(checks.inside, (low, high), x=np.array([-4.0, 0.5]))
    assert text == "x must lie within its bounds, got values from -4 to 0.5"
    text = message(checks.inside, (low, high[:1]), x=np.ones((2, 1)))
    assert text == "bounds must broadcast to the shape [2, 1] of x, got [2] and [1]"
    text = message(checks.inside, (low, -low), x=np.ones(2))
    assert text.startswith("bounds must be a pair (low, high) with low < high")
    for bounds in (0.5, None, (0.0, 0.5, 1.0)):
        assert "bounds must be a pair" in message(checks.inside, bounds, x=np.ones(2))


def test_whole_numbers_and_other_byte_orders_are_answered_with_what_to_pass():
    pixels = np.array([0, 255], np.uint8)
    text = message(checks.inside, (0, 1), x=pixels)
    assert text == "x must hold floating-point numbers, got uint8: pass it divided by 255"
    text = message(checks.floating, x=np.ones(2, ">f4"))
    assert text == "x must be in native byte order, got >f4: pass it as .astype('float32')"
    with pytest.raises(ValueError, match="x must hold floating-point numbers, got int32"):
        jax.jit(lambda x: checks.floating(x=x))(jnp.ones(2, int))


SWAPPED = np.array([0.5, 0.5], ">f4")
LINF, TABLE = threats.linf(0.1), np.array([[[1.0, 0.0], [0.0, 0.5]]])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("weights", lambda x, logits: mixture.accuracy(logits, 0, SWAPPED)),
        ("weights", lambda x, logits: mixture.log_probs(logits, SWAPPED)),
        ("weights", lambda x, logits: mixture.predict(jax.random.key(0), logits, SWAPPED)),
        ("weights", lambda x, logits: losses.expected(losses.margin, logits, 0, SWAPPED)),
        ("weights", lambda x, logits: losses.accuracy_margin(logits, 0, SWAPPED)),
        ("weights", lambda x, logits: losses.mean_probability_margin(logits, 0, SWAPPED)),
        ("weights", lambda x, logits: games.adversarial_risk(SWAPPED, TABLE)),
        ("losses_of_members", lambda x, logits: mixture.expected_loss(SWAPPED, x)),
        ("logits", lambda x, logits: mixture.correct(SWAPPED, 0)),
        ("logits", lambda x, logits: losses.expected_margin(np.eye(2, dtype=">f4"), 0, x)),
        ("logits", lambda x, logits: attacks.likeliest_wrong(SWAPPED, 0, 1)),
        (
            "bounds",
            lambda x, logits: attacks.fgsm(jnp.sum, x, LINF, bounds=(np.zeros(2, ">f4"), SWAPPED)),
        ),
        ("epsilon", lambda x, logits: threats.linf(SWAPPED)),
        ("delta", lambda x, logits: LINF.project(SWAPPED)),
        ("gradient", lambda x, logits: LINF.steepest(SWAPPED)),
        ("direction", lambda x, logits: attacks.follow(x, SWAPPED, LINF)),
        ("x", lambda x, logits: ensemble.apply_each([jnp.sin], SWAPPED)),
        ("losses", lambda x, logits: games.oracle(TABLE.astype(">f8"), num_steps=1)),
        ("losses", lambda x, logits: games.entropic_risk(x, TABLE.astype(">f8"), 1.0)),
    ],
)
def test_every_array_of_another_byte_order_is_answered_with_what_to_pass(name, call):
    with pytest.raises(
        ValueError, match=rf"^{name} must be in native byte order, got >f\d: pass it"
    ):
        call(jnp.array([0.5, 0.5]), jnp.eye(2))


@pytest.mark.parametrize(
    "call",
    [
        lambda key, x: attacks.pgd(key, jnp.sum, x, LINF, num_steps=1, step_size=0.1),
        lambda key, x: attacks.apgd(key, jnp.sum, x, LINF),
        lambda key, x: attacks.square(key, jnp.sum, x, LINF),
        lambda key, x: attacks.arc(key, jnp.diag, x, x, 0, LINF),
        lambda key, x: attacks.lattice_climber(key, jnp.diag, x, x, 0, LINF),
        lambda key, x: attacks.on_mixture(attacks.fab, key, jnp.diag, x, x, 0, LINF),
        lambda key, x: mixture.predict(key, jnp.eye(2), x),
        lambda key, x: LINF.sample(key, (2,)),
        lambda key, x: ensemble.init(jax.random.normal, key, 2),
    ],
)
def test_a_seed_or_several_keys_are_no_key(call):
    for wrong in (0, jax.random.split(jax.random.key(0))):
        with pytest.raises(ValueError, match="^key must be (a|one) random key"):
            call(wrong, jnp.array([0.5, 0.5]))


def test_a_label_is_one_whole_number_below_the_number_of_classes():
    checks.label(3, label=2)
    checks.label(3, label=jnp.int32(0))
    assert message(checks.label, 3, label=3) == "label must lie in [0, 2], got 3"
    assert message(checks.label, 3, label=-1) == "label must lie in [0, 2], got -1"
    text = message(checks.label, 3, label=jnp.float32(1.0))
    assert text == "label must be a whole number, got float32: pass it as .astype(int)"
    text = message(checks.label, 3, label=np.array([0, 1]))
    assert text == "label must be that of one example, got shape [2]: make the batch by jax.vmap"


def test_logits_of_all_members_are_not_those_of_one():
    checks.logits("C", logits=np.ones(3))
    checks.logits("L C", logits=np.ones((2, 3)))
    text = message(checks.logits, "C", logits=np.ones((2, 3)))
    assert text == "logits must be one member's on one example, [C], got shape [2, 3]"
    text = message(checks.logits, "L C", logits=np.ones(3))
    assert text == "logits must be all members' on one example, [L, C], got shape [3]"


def test_a_radius_is_no_threat_and_a_threat_has_one_radius():
    checks.threat(threat=threats.l2(0.5))
    text = message(checks.threat, threat=0.2)
    assert text == "threat must be a Threat, such as threats.linf(0.2), got 0.2"
    text = message(checks.threat, threat=threats.linf(np.array([0.1, 0.2])))
    assert text == (
        "threat must have one radius for one example, got shape [2]: make the batch by jax.vmap"
    )


def test_a_loss_that_has_no_gradient_is_named_and_what_is_not_differentiated_may_be_whole():
    def rank(x):
        return jnp.argmax(x)

    text = message(checks.one_number, jnp.ones(3), loss_fn=rank)
    assert text == "loss_fn must return a floating-point number, got int32"
    assert set(checks.one_number(jnp.ones(3), accuracy_fn=rank)) == {"accuracy_fn"}


def test_a_loss_of_a_whole_batch_is_answered_with_vmap():
    checks.one_number(jnp.ones(3), loss_fn=jnp.sum)
    text = message(checks.one_number, jnp.ones((4, 3)), loss_fn=lambda x: jnp.sum(x, axis=1))
    assert text == (
        "loss_fn must return one number for one example, got shape [4]: make the batch by jax.vmap"
    )
