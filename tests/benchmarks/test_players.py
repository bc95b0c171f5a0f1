"""The benchmark of steps through gradients of gradients, without PyTorch."""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import benchmarks
from benchmarks import cost, minimax_step, timing
from mixjax.models import conv

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
FLAGS = argparse.Namespace(width=2, hidden=4, batch_size=3, seed=0, order="simultaneous")
STEPS = minimax_step.STEPS


# As many as the matrix products of `timings` make in half a second of the first turn.
OPERATIONS = dict.fromkeys(STEPS, cost.matrix_rate(1.0) / 2)


def timings():
    seconds = {
        "matrix products": [1.0, 0.5],
        "torch plain": [2.0, 4.0],
        "mixjax plain": [1.0, 4.0],
        "torch sens": [9.0, 6.0],
        "mixjax sens": [3.0, 3.0],
        "torch minimax": [1.0, 1.0],
        "mixjax minimax": [2.0, 2.0],
        "torch compile plain": [0.5, 2.0],
        "resnet18 plain": [1.0, 2.0],
        "resnet18 penalized": [4.0, 10.0],
    }
    return [
        timing.Timing(timing.Case(name, 0, lambda: lambda: 0.0), 0.5, 0.0, each, each)
        for name, each in seconds.items()
    ]


def test_ratios_are_theirs_over_ours_turn_by_turn():
    found = minimax_step.summary(timings(), OPERATIONS)
    ratios = {
        name: each["seconds"]["median"] for name, each in found["times_as_fast_as_torch"].items()
    }
    assert ratios == {"plain": 1.5, "sens": 2.5, "minimax": 0.5}
    assert found["times_as_fast_as_torch_compile"]["plain"]["seconds"]["median"] == 0.5
    over_plain = found["resnet18_penalized_over_plain"]["cpu_seconds"]
    assert over_plain == {"median": 4.5, "low": 4.0, "high": 5.0}
    shares = found["share_of_matrix_rate"]["plain"]
    assert shares["mixjax"] == pytest.approx({"median": 0.28125, "low": 0.0625, "high": 0.5})
    text = minimax_step.table(found)
    assert "costs 4.5 (4 to 5) plain ones" in text
    assert "plain: mixjax is 0.5 (0.5 to 0.5) times as fast as torch_compile" in text
    assert "plain, share of the matrix rate: mixjax 0.28, torch 0.16" in text


def test_operations_are_those_of_the_products_that_are_read():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 16))

    def product(x, w):
        unread = x @ w[:, :1]
        del unread
        return [x @ w]

    assert cost.counted_operations(product, x, w) == 2 * 4 * 8 * 16
    image, kernel = jnp.ones((2, 6, 6, 8)), jnp.ones((3, 3, 8, 16))
    found = cost.counted_operations(
        lambda *a: [conv.unrolled(*a, (1, 1), "VALID", **NHWC)], image, kernel
    )
    assert found == 2 * 2 * 4 * 4 * 9 * 8 * 16


class Problem(minimax_step.Problem):
    """What one step has compiled serves the next of that name."""

    @functools.cached_property
    def defenses(self):
        descent, ascent = optax.sgd(1.0), optax.sgd(0.0)
        return {name: super(Problem, self).defense(name, descent, ascent) for name in STEPS}

    def defense(self, name, descent, ascent):
        return self.defenses[name]


PROBLEM = Problem(FLAGS)


@functools.cache
def loss_and_gradient(name):
    """Of a step of that name."""
    defense = PROBLEM.defenses[name]
    state = PROBLEM.state(name, defense)
    new, info = jax.jit(defense.step)(state, PROBLEM.images, PROBLEM.labels)
    moved = jax.tree.map(np.subtract, state.variables["params"], new.variables["params"])
    return np.float32(info[0] + info.penalty), moved


class Sides:
    """Stands in for PyTorch: a gradient that is ours times a factor."""

    def __init__(self, factor):
        self.factor = factor

    def Peer(self, *arguments):
        del arguments
        return self

    def gradient(self, found):
        return jax.tree.map(lambda leaf: self.factor * leaf, found[1])

    def __getattr__(self, name):
        return lambda: loss_and_gradient(name)


@pytest.mark.parametrize(("factor", "message"), [(1.0, None), (1.01, "plain steps differ")])
def test_gradients_that_differ_stop_the_benchmark(factor, message):
    if message is None:
        found = minimax_step.compare(PROBLEM, Sides(factor))
        assert set(found) == {"plain", "sens", "minimax"}
        assert all(each["relative_distance_of_gradients"] < 1e-4 for each in found.values())
        assert found["sens"]["loss"] != found["plain"]["loss"] != found["minimax"]["loss"]
    else:
        with pytest.raises(ValueError, match=message):
            minimax_step.compare(PROBLEM, Sides(factor))


def test_without_torch_one_line_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peer_players", raising=False)
    monkeypatch.delattr(benchmarks, "peer_players", raising=False)
    with pytest.raises(SystemExit) as stop:
        minimax_step.main(["--output", str(tmp_path / "x.json")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "pip install -e '.[bench]'" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--width 0", "width must be a whole number of at least 1, got 0"),
        ("--seconds=-1", "seconds must be at least 0, got -1.0"),
        ("--output /dev/null/x.json", "output /dev/null/x.json cannot be written"),
    ],
)
def test_a_bad_flag_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        minimax_step.parse(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error
