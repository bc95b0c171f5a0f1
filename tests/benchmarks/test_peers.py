"""Attacks beside their peers, for whom others stand in, and the solvers of the game."""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks
from benchmarks import attack_peers, attack_setting, game_solvers, timing
from benchmarks.attack_setting import Problem, Side
from mixjax import attacks, evaluation, models

IMAGES = np.broadcast_to(np.float32([[[0.5], [0.55]]]), (4, 1, 2, 1))  # a twentieth to class 0


def apply(variables, x):
    """Class 1 where the first of two pixels is the brighter one."""
    difference = variables * (x[..., 0, 0, :] - x[..., 0, 1, :])
    return jnp.concatenate([jnp.zeros_like(difference), difference], axis=-1)


@pytest.fixture
def problem():
    labels = np.zeros(4, np.int32)
    return Problem("two pixels", apply, np.float32(1.0), IMAGES, labels, 0.1, 3, 2, 4, seed=0)


@pytest.fixture
def as_before(monkeypatch):
    """Puts back what a benchmark sets for its process."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    enabled = jax.config.values["jax_enable_compilation_cache"]
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)


def test_sides_are_scored_by_one_network_and_compared_within_an_attack(problem, monkeypatch):
    found = IMAGES.copy()
    found[:3, 0, 0] += [[0.3], [0.2], [0.1]]  # and nothing on the fourth
    seconds = {"mixjax": [1.0, 4.0, 2.0], "other": [3.0, 4.0, 8.0]}

    def interleave(cases, **_):
        timings = []
        for case in cases:
            loss = case.prepare()()
            taken = seconds[case.name.split(", ")[-1]]
            on_the_processor = [2 * each for each in taken] if "other" in case.name else taken
            timings.append(timing.Timing(case, 0.5, loss, taken, on_the_processor))
        return timings

    monkeypatch.setattr(timing, "interleave", interleave)
    sides = [
        Side("mixjax", "pgd", lambda: lambda: found, lambda: 7),
        Side("other", "pgd", lambda: lambda: IMAGES, lambda: 5),
    ]
    ours, theirs = attack_peers.compare(problem, sides, argparse.Namespace(repeats=3, seconds=0))
    assert (ours["fooled"], theirs["fooled"]) == (0.75, 0.0)
    assert (ours["network_calls"], theirs["network_calls"]) == (7, 5)
    assert ours["images_per_second"] == 2.0
    assert ours["median_norm"] == pytest.approx({"linf": 0.15, "l2": 0.15}, rel=1e-5)
    assert theirs["mixjax_times_as_fast"] == {"median": 3.0, "low": 1.0, "high": 4.0}
    assert theirs["mixjax_times_as_fast_in_processor_time"]["median"] == 6.0
    lines = attack_peers.table({"cases": [ours, theirs], "suite": []}).splitlines()
    assert lines[1].split() == ["two", "pixels,", "pgd,", "mixjax", "2", "7", "75.0%"]
    assert lines[2].endswith("3 (1 to 4); 6 (2 to 8)")


@pytest.mark.parametrize(
    ("attack", "calls"), [("pgd", 3 + 1), ("apgd", 3 + 1), ("carlini_wagner", 1 + 4 * 2 + 10)]
)
def test_our_side_attacks_as_asked_and_counts_what_it_asks(attack, calls, problem):
    side = attack_peers.ours(problem, attack)
    found = side.prepare()()
    assert np.all(found[:, 0, 0] > found[:, 0, 1])
    change = np.abs(found - IMAGES)
    assert change.max() <= 0.1 + 1e-6 if attack != "carlini_wagner" else 0.025 < change.max() < 0.03
    assert side.count_calls() == calls


def test_the_cost_of_a_suite_is_that_of_all_runs_on_all_members(monkeypatch):
    def suite(threat, budget):
        def run(key, run, logits_fn, weights, x, label):
            def loss_fn(x):
                return logits_fn(x)[:, 0].sum()

            return attacks.pgd(key, loss_fn, x, threat, num_steps=budget, step_size=0.1)[0]

        return evaluation.Attack(("a", "b"), budget, run), evaluation.Attack(("c",), budget, run)

    monkeypatch.setattr(evaluation, "attack_suite", suite)
    monkeypatch.setattr(attack_peers, "BUDGETS", {"small": 5})
    monkeypatch.setattr(attack_peers, "SUITE_MEMBERS", (3,))
    linf, l2 = attack_peers.suite_cost()
    assert linf == {
        "budget": "small",
        "norm": "linf",
        "members": 3,
        "runs": 3,
        "gradients": 3 * 3 * 5,
        "answers": 3 * 3 * 6,
    }
    assert l2["norm"] == "l2"


def test_mixjax_alone_is_timed_without_its_peers(monkeypatch, capsys, tmp_path, as_before):
    monkeypatch.setattr(attack_peers, "suite_cost", list)
    model = models.linear(10, input_shape=(8, 8, 1))

    def trained(batch_size, seed):
        images = jax.random.uniform(jax.random.key(seed), (batch_size, 8, 8, 1))
        return model, model.init(jax.random.key(seed)), np.asarray(images)

    monkeypatch.setattr(attack_setting, "_trained", trained)
    output = tmp_path / "out.json"
    flags = "--no-peers --batch-size 5 --attacks pgd --steps 2 --seconds 0 --repeats 2 --seed 3"
    attack_peers.main([*flags.split(), "--output", str(output)])
    result = json.loads(output.read_text())
    (case,) = result["cases"]
    assert (case["network"], case["attack"], case["library"]) == ("digits", "pgd", "mixjax")
    assert (case["network_calls"], case["batch_size"], len(case["seconds"])) == (3, 5, 2)
    assert 0 < case["median_norm"]["linf"] <= 0.1 + 1e-6
    assert result["provenance"]["seed"] == 3
    assert result["settings"]["network"] == "digits"
    assert "digits, pgd, mixjax" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["torch", "torchattacks", "adv_lib", "foolbox"])
def test_without_a_peer_one_line_says_what_to_do(missing, monkeypatch, capsys, tmp_path, as_before):
    for name in ("torch", "torchattacks", "adv_lib", "foolbox"):
        monkeypatch.setitem(sys.modules, name, None)
    error = ModuleNotFoundError(f"No module named {missing!r}", name=missing)
    monkeypatch.delitem(sys.modules, "benchmarks.peer_attacks", raising=False)
    monkeypatch.delattr(benchmarks, "peer_attacks", raising=False)

    def import_module(name):
        raise error

    monkeypatch.setattr(attack_peers.importlib, "import_module", import_module)
    with pytest.raises(SystemExit) as caught:
        attack_peers.main(["--output", str(tmp_path / "out.json")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{missing} is not installed: `make bench-peers` does it" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        (attack_peers, "--steps 0", "steps must be a whole number of at least 1, got 0"),
        (attack_peers, "--adam-steps 0", "adam_steps must be"),
        (attack_peers, "--search-steps 0", "search_steps must be"),
        (attack_peers, "--batch-size 0", "batch_size must be"),
        (attack_peers, "--width 0", "width must be"),
        (attack_peers, "--repeats 0", "repeats must be"),
        (attack_peers, "--seconds -1", "seconds must be at least 0, got -1.0"),
        (attack_peers, "--seed -1", "seed must be"),
        (attack_peers, "--network vgg", "invalid choice: 'vgg'"),
        (attack_peers, "--output /nowhere/at/all.json", "cannot be written"),
        (game_solvers, "--members 0", "members must be a whole number of at least 1, got 0"),
        (game_solvers, "--max-steps 7", "max_steps must be"),
        (game_solvers, "--tolerance 0", "tolerance must be positive, got 0.0"),
        (game_solvers, "--radius -1", "radius must be"),
        (game_solvers, "--seed -1", "seed must be"),
        (game_solvers, "--output /nowhere/at/all.json", "cannot be written"),
        (game_solvers, "--example 3", "unrecognized arguments: --example 3"),
    ],
)
def test_a_bad_flag_is_one_line(program, flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        program.parse(flags.split())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program.PROGRAM}: error: ")
    assert message in line


def test_every_solver_comes_near_the_value_of_the_game(tmp_path, capsys):
    output = tmp_path / "out.json"
    flags = "--examples 40 --candidates 5 --members 3 --tolerance 0.02 --max-steps 64 --repeats 2"
    game_solvers.main([*flags.split(), "--output", str(output)])
    result = json.loads(output.read_text())
    exact, *iterative = result["cases"]
    assert exact["solver"] == "linear program" and abs(exact["gap"]) < 1e-9
    assert 0 < result["value"] < 1
    assert len(iterative) == 8
    for case in iterative:
        measure = "gap" if "certified" in case["solver"] else "excess"
        assert case["within_tolerance"] == (case[measure] <= 0.02)
        assert case["within_tolerance"] or case["num_steps"] == 64
        assert case["excess"] >= -1e-6 and len(case["seconds"]) == len(case["cpu_seconds"]) == 2
        assert case["memory_bytes"] > 40 * 5 * 3 * 4
        assert case["gap"] is None or case["gap"] >= case["excess"] - 1e-6
    assert sum(case["within_tolerance"] for case in iterative) >= 6
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_the_game_is_bounded_and_its_errors_are_those_of_the_sigmoid_above_a_half():
    flags = game_solvers.parse("--examples 50 --candidates 4 --members 3".split())
    losses = game_solvers.table(flags)
    flags.errors = True
    assert losses.shape == (50, 4, 3) and losses.dtype == np.float32
    np.testing.assert_array_equal(game_solvers.table(flags), losses >= 0.5)
    assert 0 < np.mean(losses >= 0.5) < 1
