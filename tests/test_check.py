"""Each check lets good values pass and names the argument and the value of a bad one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import _check

NAN, INF = float("nan"), float("inf")

ACCEPTED = [
    (_check.positive, 1e-30),
    (_check.positive, np.array([0.5, 2.0])),
    (_check.positive, [1, 2]),
    (_check.non_negative, 0),
    (_check.non_negative, np.zeros(3)),
    (_check.fraction, 0.0),
    (_check.fraction, 0.999),
    (_check.simplex, np.array([0.2, 0.8])),
    (_check.simplex, [1.0]),
    (_check.simplex, np.float32([1 / 3, 1 / 3, 1 / 3])),
    (_check.increasing, (-1.0, 1.0)),
]
REFUSED = [
    (_check.positive, 0.0, "positive"),
    (_check.positive, -0.1, "positive"),
    (_check.positive, NAN, "positive"),
    (_check.positive, INF, "positive"),
    (_check.positive, np.array([1.0, 0.0]), "positive"),
    (_check.non_negative, -1e-9, "at least 0"),
    (_check.non_negative, INF, "at least 0"),
    (_check.fraction, 1.0, "in [0, 1)"),
    (_check.fraction, -0.1, "in [0, 1)"),
    (_check.fraction, NAN, "in [0, 1)"),
    (_check.simplex, np.array([0.5, 0.6]), "on the simplex"),
    (_check.simplex, np.array([1.5, -0.5]), "on the simplex"),
    (_check.simplex, np.array([NAN, 1.0]), "on the simplex"),
    (_check.simplex, np.array([[0.5, 0.5]]), "on the simplex"),
    (_check.simplex, np.array([]), "on the simplex"),
    (_check.simplex, 1.0, "on the simplex"),
    (_check.increasing, (1.0, 1.0), "low < high"),
    (_check.increasing, (1.0, 0.0), "low < high"),
    (_check.increasing, (NAN, 1.0), "low < high"),
    (_check.increasing, (0.0,), "low < high"),
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
    assert message(_check.positive, step_size=-0.1) == "step_size must be positive, got -0.1"


def test_the_bad_one_of_several_arguments_is_named():
    assert message(_check.positive, first=1.0, second=-2.0).startswith("second ")


@pytest.mark.parametrize("value", [0, 2.5, NAN, INF, -INF, np.array([1, 2])])
def test_a_number_of_things_is_whole_and_large_enough(value):
    text = message(_check.at_least, 1, num_steps=value)
    assert text == f"num_steps must be a whole number of at least 1, got {value}"


def test_a_number_of_things_may_come_from_numpy():
    _check.at_least(1, num_steps=np.int64(1))
    _check.at_least(3, num_steps=3.0)


def test_an_unknown_option_is_answered_with_the_known_ones():
    _check.one_of(("at", "trades"), loss="at")
    text = message(_check.one_of, ("at", "trades"), loss="mse")
    assert text == "loss must be one of at, trades, got mse"


def test_values_outside_an_interval_are_answered_with_their_extremes():
    _check.within(0.0, 1.0, images=np.array([0.0, 1.0]))
    _check.within(0.0, 1.0, images=np.array([1.0 + 1e-7]))  # rounding
    text = message(_check.within, 0.0, 1.0, images=np.array([0.5, -0.25, 2.0]))
    assert text == "images must lie in [0.0, 1.0], got values from -0.25 to 2.0"
    assert "nan" in message(_check.within, 0.0, 1.0, images=np.array([0.5, NAN]))
    assert "from -1.0 to" in message(_check.within, 0.0, 1.0, images=np.array([-1.0, 0.5]))
    assert message(_check.within, 1, 2, devices=3) == "devices must lie in [1, 2], got 3"


def test_arrays_with_an_empty_axis_or_another_rank_are_answered_with_their_shape():
    _check.non_empty(2, losses=np.ones((2, 3)))
    assert message(_check.non_empty, 2, losses=np.ones((2, 0))).endswith("got [2, 0]")
    assert message(_check.non_empty, 2, losses=np.ones(3)).endswith("got [3]")


def test_a_shape_may_leave_sizes_open():
    _check.shape((None, 3), points=np.ones((7, 3)))
    text = message(_check.shape, (None, 3), points=np.ones((7, 2)))
    assert text == "points must have shape [any, 3], got [7, 2]"
    assert message(_check.shape, (None, 3), points=np.ones(3)).endswith("got [3]")


def test_traced_values_pass_unchecked():
    @jax.jit
    def function(value):
        _check.positive(value=value)
        _check.non_negative(value=value)
        _check.fraction(value=value)
        _check.simplex(value=value)
        _check.increasing(value=(value, 0.0))
        _check.within(0.0, 1.0, value=value)
        _check.within(0.0, value, value=2.0)
        return value

    assert function(-7.0) == -7.0


def test_known_values_are_checked_inside_of_jit_too():
    good, bad = jnp.array([0.25, 0.75]), jnp.array([0.5, -0.5])

    @jax.jit
    def function(x):
        _check.positive(weights=good)
        _check.simplex(weights=good)
        _check.within(0.0, 1.0, weights=good)
        with pytest.raises(ValueError, match="weights must be positive"):
            _check.positive(weights=bad)
        with pytest.raises(ValueError, match="weights must lie in"):
            _check.within(0.0, 1.0, weights=bad)
        return x

    function(0.0)


def test_the_shape_of_a_traced_array_is_checked():
    with pytest.raises(ValueError, match=r"x must have shape \[2\], got \[3\]"):
        jax.jit(lambda x: _check.shape((2,), x=x))(jnp.ones(3))
    with pytest.raises(ValueError, match="x must have 2 axes"):
        jax.jit(lambda x: _check.non_empty(2, x=x))(jnp.ones(3))
