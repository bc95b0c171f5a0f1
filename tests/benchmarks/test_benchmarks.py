import argparse
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks
from benchmarks import attack_throughput, comparison, cost, setting, timing, training_step
from mixjax import models
from mixjax.models import conv

FLAGS = argparse.Namespace(
    width=1, batch_size=6, members=[1, 3], attack_steps=2, dtype="float32", seed=3
)


class Clock:
    """Time that passes only in calls."""

    def __init__(self):
        self.now = 0.0
        self.turns = []

    def __call__(self):
        return self.now

    def case(self, name, preparation, durations, num_members=1):
        """A case whose calls take these times, one after the other."""
        remaining = iter(durations)

        def call():
            self.turns.append(name)
            self.now += next(remaining)
            return 7.0

        def prepare():
            self.now += preparation
            return call

        return timing.Case(name, num_members, prepare)


def test_cases_take_turns_and_neither_compilation_nor_the_first_call_counts():
    clock = Clock()
    cases = [clock.case("a", 5.0, [100, 1, 2]), clock.case("b", 9.0, [100, 3, 4])]
    first, second = timing.interleave(cases, num_repeats=2, clock=clock)
    assert "".join(clock.turns) == "abab" + "ab"
    assert (first.compile_seconds, second.compile_seconds) == (5.0, 9.0)
    assert (first.seconds, second.seconds) == ([1, 2], [3, 4])
    assert first.loss == 7.0


def test_a_turn_lasts_the_least_duration_and_gives_the_mean_of_its_calls():
    clock = Clock()
    case = clock.case("a", 0.0, [1, 1, 1, 4, 9, 9])
    (found,) = timing.interleave([case], num_repeats=2, min_seconds=5.0, clock=clock)
    assert found.seconds == [2.0, 9.0]


def test_a_ratio_is_taken_turn_by_turn():
    case = timing.Case("a", 1, lambda: lambda: 0.0)
    slow = timing.Timing(case, 0.0, 0.0, [2.0, 20.0, 9.0], [8.0, 6.0, 9.0])
    fast = timing.Timing(case, 0.0, 0.0, [1.0, 4.0, 3.0], [1.0, 2.0, 1.0])
    assert timing.ratio(slow, fast) == (3.0, 2.0, 5.0)
    assert timing.ratio(slow, fast, cpu=True) == (8.0, 3.0, 9.0)


@pytest.mark.parametrize("width", [1, 64])
def test_multiply_adds_are_those_of_the_convolutions_that_the_model_makes(width):
    total = 0

    def counting(lhs, rhs, *args, **kwargs):
        nonlocal total
        out = conv.grouped(lhs, rhs, *args, **kwargs)
        total += math.prod(out.shape[1:]) * math.prod(rhs.shape[:3])
        return out

    model = models.resnet18(10, width, conv=counting)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    total = 0
    jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert cost.multiply_adds(width) == total + 8 * width * 10


def test_a_pgd_10_training_step_costs_24_forward_passes_per_member_without_a_stem_gradient():
    forward, stem = cost.multiply_adds(64), 32 * 32 * 27 * 64
    assert round(forward / 1e9, 2) == 0.56
    assert cost.attack_operations(64, 3, 10) == 3 * 21 * 2 * forward
    assert cost.training_operations(64, 3, 10) == 3 * 2 * (24 * forward - stem)


def timings(*entries):
    return [
        timing.Timing(timing.Case(name, number, lambda: lambda: 0.0), 1.0, 0.5, seconds, seconds)
        for name, number, seconds in entries
    ]


def test_the_summary_says_who_is_faster_and_what_members_cost():
    found = comparison.summary(
        FLAGS,
        timings(
            ("torch eager", 1, [6.0, 4.0, 8.0]),
            ("mixjax scanned", 1, [3.0, 1.0, 2.0]),
            ("torch eager", 3, [30.0, 10.0, 20.0]),
            ("mixjax scanned", 3, [6.0, 4.0, 5.0]),
        ),
        cost.attack_operations,
    )
    torch_case, our_case, _, ours_at_three = found["cases"]
    assert our_case["images_per_second"] == 3.0
    assert our_case["times_as_fast_as"] == {"torch eager": {"median": 4.0, "low": 2.0, "high": 4.0}}
    assert ours_at_three["times_as_fast_as"]["torch eager"]["median"] == 4.0
    assert "times_as_fast_as" not in torch_case
    costs = {entry["case"]: entry for entry in found["cost_of_members"]}
    assert costs["mixjax scanned"]["median"] == 2.5
    assert (costs["torch eager"]["members"], costs["torch eager"]["over"]) == (3, 1)
    assert "torch eager 4 (2 to 4)" in comparison.table(found)


def test_the_share_of_the_matrix_rate_is_that_of_the_same_turn():
    products = cost.matrix_rate(1.0)
    found = comparison.summary(
        FLAGS,
        timings(("mixjax unrolled", 1, [1.0, 2.0]), ("matrix products", 0, [10.0, 40.0])),
        lambda width, num_members, num_steps: products / 60,
    )
    (case,) = found["cases"]
    assert case["share_of_matrix_rate"] == pytest.approx({"median": 1.5, "low": 1.0, "high": 2.0})
    assert found["matrix_rate"]["high"] == products / 10


def test_logits_that_differ_stop_the_benchmark():
    problem = setting.problem(FLAGS, 2)
    model = models.resnet18(10, 1, conv=conv.grouped)
    apply = {
        False: jax.jit(model.apply),
        True: jax.jit(lambda variables, x: model.apply(variables, x, train=True)[0]),
    }

    def theirs(train):
        """In evaluation they are ours, in training a thousandth larger."""
        members = [jax.tree.map(lambda leaf, i=i: leaf[i], problem.variables) for i in range(2)]
        rows = [apply[train](member, problem.images) for member in members]
        return np.stack(rows) * (1 + 1e-3 * train)

    with pytest.raises(ValueError, match=r"logits differ in training mode by 0\.001 of"):
        comparison.compare_logits(FLAGS, problem, theirs)


def test_both_sides_get_weights_that_no_exchange_of_vectors_leaves_alone():
    problem = setting.problem(FLAGS, 2)
    norm = problem.variables["params"]["BatchNorm_0"]
    statistics = problem.variables["batch_stats"]["BatchNorm_0"]
    vectors = [norm["scale"], norm["bias"], statistics["mean"], statistics["var"]]
    members = [member for vector in vectors for member in vector.ravel().tolist()]
    assert len(set(members)) == 8
    assert problem.weights.tolist() == [0.5, 0.5]


@pytest.fixture
def as_before(monkeypatch):
    """Puts back what a benchmark sets for its process."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    enabled = jax.config.values["jax_enable_compilation_cache"]
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)


def test_without_torch_one_line_names_the_extra(monkeypatch, capsys, tmp_path, as_before):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peer", raising=False)
    monkeypatch.delattr(benchmarks, "peer", raising=False)
    with pytest.raises(SystemExit) as caught:
        training_step.main(["--width", "1", "--output", str(tmp_path / "out.json")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -e '.[bench]'" in line
    assert not list(tmp_path.iterdir())


def test_mixjax_alone_is_timed_without_torch(monkeypatch, capsys, tmp_path, as_before):
    monkeypatch.setitem(sys.modules, "torch", None)
    flags = "--no-torch --width 1 --batch-size 2 --members 1 --attack-steps 1 --seconds 0"
    output = tmp_path / "out.json"
    attack_throughput.main([*flags.split(), "--repeats", "2", "--output", str(output)])
    result = json.loads(output.read_text())
    (case,) = result["cases"]
    assert (case["case"], len(case["seconds"]), result["same_logits"]) == ("mixjax unrolled", 2, [])
    assert case["loss"] > 0
    assert result["provenance"]["command"].startswith("python -m benchmarks.attack_throughput")
    assert "mixjax unrolled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--width 0", "width must be a whole number of at least 1, got 0"),
        ("--members 2 0", "members must be a whole number of at least 1, got 0"),
        ("--batch-size -1", "batch_size must be a whole number of at least 1, got -1"),
        ("--attack-steps 0", "attack_steps must be"),
        ("--repeats 0", "repeats must be"),
        ("--seconds nan", "seconds must be at least 0, got nan"),
        ("--seed -1", "seed must be"),
        ("--conv folded", "invalid choice: 'folded'"),
        ("--dtype float16", "invalid choice: 'float16'"),
        ("--output /nowhere/at/all.json", "output /nowhere/at/all.json cannot be written"),
        ("--wide 3", "unrecognized arguments: --wide 3"),
    ],
)
def test_a_bad_flag_is_one_line(flags, message, capsys, as_before):
    with pytest.raises(SystemExit) as caught:
        attack_throughput.main(flags.split())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.attack_throughput: error: ")
    assert message in line
