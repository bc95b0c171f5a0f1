"""The loop: any training, measured at its marks, stopped anywhere, so many steps at once."""

import signal
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import reporting
from mixjax.front import loop
from mixjax.interrupt import Stopped
from mixjax.typing import Training


class State(NamedTuple):
    x: jax.Array
    step: jax.Array


class Info(NamedTuple):
    loss: jax.Array
    is_weight_step: jax.Array


def init(key):
    return State(jax.random.uniform(key), jnp.zeros((), jnp.int32))


def step(state, number):
    """Every fourth step has no loss, as one that moves weights."""
    has_none = state.step % 4 == 3
    loss = jnp.where(has_none, 0.0, state.x)
    return State(0.5 * state.x + number, state.step + 1), Info(loss, has_none)


LINE = Training(init, step)


def steps_of(most=None):
    def batch(examples, step):
        return (examples[step % len(examples)],)

    return loop.in_dispatches(LINE.step, batch, most=most)


def run(folder, dispatch_steps, steps=None, **settings):
    folder.mkdir(exist_ok=True)
    return loop.run(
        loop.Placement(jax.jit(steps_of(), static_argnums=2) if steps is None else steps),
        loop.start(LINE.init(jax.random.key(0))),
        jnp.arange(3.0),
        marks=[5, 9, 11],
        dispatch_steps=dispatch_steps,
        measure=lambda state: {"robust_accuracy": -abs(int(state.step) - 9), "x": state.x},
        folder=folder,
        checkpoints=folder / "checkpoints",
        config={},
        show=False,
        **{"name": "line", **settings},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop") / "whole"
    return run(folder, 2), reporting.read_metrics(folder)


def test_measured_is_at_the_marks_the_loss_is_the_mean_since_the_last_one_the_best_is_kept(whole):
    best, metrics = whole
    state, values = LINE.init(jax.random.key(0)), []
    for number in range(11):
        state, info = step(state, float(number % 3))
        values.append(np.nan if info.is_weight_step else float(info.loss))
    means = [np.nanmean(values[a:b]) for a, b in ((0, 5), (5, 9), (9, 11))]
    assert [row["step"] for row in metrics] == [5, 9, 11] and best.step == 9
    np.testing.assert_allclose([row["loss"] for row in metrics], means, rtol=1e-6)


def test_the_last_state_is_returned_where_no_metric_says_which_is_best(whole, tmp_path):
    last = run(tmp_path / "run", 4, metric=None)
    assert last.step == 11 and last.x == whole[1][-1]["x"]
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"11"}


def test_stopped_between_marks_it_goes_on_to_the_same_numbers_with_other_dispatches(
    whole, tmp_path
):
    """Six steps are done: as many at once as before would never meet the mark at nine."""
    compiled = jax.jit(steps_of(), static_argnums=2)

    def stopped_in_the_third(progress, examples, number):
        if int(progress.training.step) == 5:
            signal.raise_signal(signal.SIGTERM)
        return compiled(progress, examples, number)

    with pytest.raises(Stopped) as stop:
        run(tmp_path / "run", 3, stopped_in_the_third)
    assert stop.value.code == 143 and stop.value.where == "after step 8 of 11 of line"
    best = run(tmp_path / "run", 5)
    chex.assert_trees_all_equal(best, whole[0])
    assert reporting.read_metrics(tmp_path / "run") == whole[1]


def test_one_program_for_all_numbers_of_steps_does_what_one_for_each_does():
    start, examples = loop.start(LINE.init(jax.random.key(0))), jnp.arange(3.0)
    traced = jax.jit(chex.assert_max_traces(steps_of(most=7), 1))
    static = jax.jit(steps_of(), static_argnums=2)
    for number in (2, 7):
        found, losses = traced(start, examples, number)
        expected, exact = static(start, examples, number)
        chex.assert_trees_all_equal(found, expected)
        chex.assert_trees_all_equal(losses[:number], exact)
        assert not np.any(losses[number:])


def test_a_loss_that_is_not_finite_is_named_with_its_step_whatever_the_dispatch(tmp_path):
    def breaking(progress, examples, number):
        progress, losses = jax.jit(steps_of(), static_argnums=2)(progress, examples, number)
        done = int(progress.training.step)
        return progress, jnp.where(done - number + jnp.arange(number) >= 4, jnp.nan, losses)

    with pytest.raises(FloatingPointError, match="the training loss is nan at step 5: try a lower"):
        run(tmp_path / "run", 3, breaking)
