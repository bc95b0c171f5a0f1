"""The loop over runs and examples: who is attacked by what, what is left out, what survives a kill.

The attacks here are tables: run `r` on example `n` fools exactly the members that the table says.
"""

import functools
import json
import os
import shutil
import signal
import sys
import textwrap
import threading
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import evaluation, files, parallel, reporting, threats
from mixjax.evaluation import batches

NUM_EXAMPLES, NUM_RUNS = 12, 5
WEIGHTS = np.array([0.2, 0.5, 0.3])
NAMES = ("one", "one", "two", "three", "two")


def coded_logits(x):
    """Input `[n, code]`: member k is right iff bit k of the code is set."""
    bits = (x[1].astype(jnp.int32) >> jnp.arange(3)) & 1
    return jnp.stack([bits * 2.0 - 1.0, jnp.zeros(3)], axis=-1)


def table_attack(table, names, first=0):
    """Run r moves example n to code `table[n, first + r]`."""
    codes = jnp.asarray(table)

    def run(key, run, logits_fn, weights, x, label):
        logits_fn(x)
        return x.at[1].set(codes[(x[0] * 1000).astype(jnp.int32), first + run])

    return evaluation.Attack(names, 7, run)


@functools.cache
def game():
    """A random table in which about half of all examples end up lost."""
    table = np.random.default_rng(0).integers(0, 8, (NUM_EXAMPLES, NUM_RUNS)).astype(np.float32)
    images = np.stack([(np.arange(NUM_EXAMPLES) + 0.5) / 1000, np.ones(NUM_EXAMPLES)], axis=1)
    attacks = (table_attack(table, NAMES[:3]), table_attack(table, NAMES[3:], first=3))
    return table, images.astype(np.float32), np.zeros(NUM_EXAMPLES, np.int32), attacks


def clean_logits(x):
    """As `coded_logits`, and code 1 stands for the clean example, on which all are right."""
    return jnp.where(x[1] == 1.0, jnp.array([[1.0, 0.0]] * 3), coded_logits(x))


def evaluate(key, attacks, images, labels, **settings):
    settings = {"batch_size": 5, "num_complete": 4} | settings
    return evaluation.evaluate(key, clean_logits, WEIGHTS, images, labels, attacks, **settings)


def right(table):
    """`[N, R + 1, L]` who is right where, the clean point first."""
    bits = (table.astype(int)[..., None] >> np.arange(3)) & 1 == 1
    bits |= (table == 1)[..., None]
    return np.concatenate([np.ones((len(table), 1, 3), bool), bits], axis=1)


def test_the_worst_is_as_if_nothing_had_been_left_out_and_each_attack_sees_complete_examples(key):
    table, images, labels, attacks = game()
    found = evaluate(key, attacks, images, labels)
    report = found.report()
    accuracies = right(table) @ WEIGHTS
    assert 0.2 < (accuracies.min(axis=1) < 1e-9).mean() < 0.8
    complete = np.linspace(0, 11, 4).astype(int)
    np.testing.assert_array_equal(np.flatnonzero(found.is_complete), complete)
    assert report["robust_accuracy"]["worst"] == pytest.approx(accuracies.min(axis=1).mean())
    first = accuracies.round(9).argmin(axis=1)  # of the points that leave least, the first is kept
    codes = np.concatenate([np.ones((NUM_EXAMPLES, 1)), table], axis=1)
    np.testing.assert_array_equal(found.images[:, 1], codes[np.arange(NUM_EXAMPLES), first])
    for name in ("one", "two", "three"):
        columns = [0] + [1 + r for r in range(NUM_RUNS) if NAMES[r] == name]
        lowest = accuracies[complete][:, columns].min(axis=1)
        assert report["robust_accuracy"][name] == pytest.approx(lowest.mean())
        assert report["error_bar"][name] == pytest.approx(lowest.std() / 2)
        assert report["attacks"][name]["num_examples"] == 4
    assert report["error_bar"]["worst"] == pytest.approx(
        accuracies.min(axis=1).std() / np.sqrt(NUM_EXAMPLES)
    )
    worst = accuracies[complete].min(axis=1)
    assert report["reported_by"] == {
        "num_examples": 4,
        "worst": {
            "accuracy": pytest.approx(worst.mean()),
            "error_bar": pytest.approx(worst.std() / 2),
            "interval": pytest.approx(evaluation.wilson_interval(worst.mean(), 4)),
        },
    }


def test_the_papers_robust_accuracy_is_the_worst_of_auto_pgd_on_two_expected_losses(key):
    """Per example, of these runs alone: another attack does not count, however strong."""
    lines = ("apgd_expected_loss", "apgd_expected_loss", "apgd_members", "apgd_expected_dlr", "arc")
    table, images, labels, _ = game()
    attacks = (table_attack(table, lines)._replace(num_steps=100),)
    found = evaluate(key, attacks, images, labels, num_complete=NUM_EXAMPLES)
    reported = found.report()["reported_by"]
    lowest = (right(table) @ WEIGHTS)[:, [0, 1, 2, 4]].min(axis=1)
    assert reported["worst"]["accuracy"] < lowest.mean() - 0.02
    assert reported["rob_acc"] == {
        "accuracy": pytest.approx(lowest.mean()),
        "error_bar": pytest.approx(lowest.std() / np.sqrt(NUM_EXAMPLES)),
        "interval": pytest.approx(evaluation.wilson_interval(lowest.mean(), NUM_EXAMPLES)),
        "num_restarts": 2,
        "num_steps": 100,
    }
    shown = reporting.reported_table({"mixture": {"num_members": 3, "reported_by": reported}})
    assert f"| {100 * lowest.mean():.1f} (" in shown and "| 2 x 100 | 12 |" in shown


def test_an_example_is_left_alone_from_the_run_after_the_one_that_lost_it(key):
    table, images, labels, attacks = game()
    found = evaluate(key, attacks, images, labels)
    lost = (right(table) @ WEIGHTS < 1e-9).cumsum(axis=1) > 0
    alive = ~lost[:, :-1] | found.is_complete[:, None]
    np.testing.assert_array_equal(found.num_attacked, alive.sum(axis=0))
    members = right(table)[:, :, 0].cumprod(axis=1)[:, :-1].sum(axis=0)
    np.testing.assert_array_equal(found.alone[0].num_attacked, members)
    assert evaluate(key, attacks, images, labels, num_complete=12).num_attacked.tolist() == [12] * 5


def test_the_members_and_their_average_defend_themselves_alone_against_every_run(key):
    """The table's points are the same for all, so that the three suites see one table."""
    table, images, labels, attacks = game()
    found = evaluate(key, attacks, images, labels)
    report = found.report()
    robust = right(table).all(axis=1)
    assert [member["robust_accuracy"] for member in report["members"]] == pytest.approx(
        robust.mean(axis=0).tolist()
    )
    assert report["sandwich"]["lower"] == pytest.approx((robust @ WEIGHTS).mean())
    # All logits are 1 and 0 or -1 and 0: the mean probability is that of softmax(1) or of its rest.
    probability = np.where(right(table), 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))) @ WEIGHTS
    assert report["averaged"]["robust_accuracy"] == pytest.approx(
        (probability > 0.5).all(axis=1).mean()
    )
    assert report["averaged"]["clean_accuracy"] == 1.0
    lower = found.lower
    np.testing.assert_allclose(lower, robust @ WEIGHTS, atol=1e-12)
    assert np.all(lower <= found.worst + 1e-12)


def test_attacks_on_the_average_see_the_mean_of_all_members(key):
    """Whoever sees members that differ stays; where all answer the mean, all go to code 0."""

    def run(logits_fn, x):
        logits = logits_fn(x.at[1].set(2.0))  # there the second member alone is right
        are_one = jnp.all(logits == logits[:1]) & (len(logits) == 3)
        return x.at[1].set(jnp.where(are_one, 0.0, 1.0))

    _, images, labels, _ = game()
    found = evaluate(key, (evaluation.Attack(("average",), 1, run),), images, labels)
    assert np.all(found.correct[:, 1]) and not np.any(found.averaged.correct[:, 1])


def test_the_lower_bound_counts_what_attacks_on_the_mixture_did_to_a_member(key):
    """An attack that works on mixtures only: each member alone stands, together all fall."""

    def run(key, run, logits_fn, weights, x, label):
        return x.at[1].set(
            jnp.where(len(weights) == 1, 1.0, 2.0)
        )  # code 2: member 1 alone is right

    attacks = (evaluation.Attack(("joint",), 1, run),)
    _, images, labels, _ = game()
    report = evaluate(key, attacks, images, labels).report()
    assert [member["robust_accuracy"] for member in report["members"]] == [1.0, 1.0, 1.0]
    assert report["sandwich"] == {"lower": pytest.approx(0.5), "upper": pytest.approx(0.5)}


def test_members_given_as_functions_of_their_own_are_attacked_instead_of_rows(key):
    _, images, labels, attacks = game()
    always_wrong = [lambda x: jnp.array([[0.0, 1.0]])] * 3
    found = evaluate(key, attacks, images, labels, member_fns=always_wrong)
    report = found.report()
    assert [member["clean_accuracy"] for member in report["members"]] == [0.0] * 3
    assert report["clean_accuracy"] == 1.0
    assert found.alone[0].num_attacked.tolist() == [0] * 5


def test_one_member_is_attacked_once(key):
    table, images, labels, attacks = game()
    names = []
    found = evaluation.evaluate(
        key,
        lambda x: clean_logits(x)[:1],
        [1.0],
        images,
        labels,
        attacks,
        progress=lambda name, *_: names.append(name),
    )
    assert {*names} == {"mixture"}
    report = found.report()
    robust = right(table)[:, :, 0].all(axis=1).mean()
    assert report["members"] == [report["averaged"]]
    assert report["averaged"]["robust_accuracy"] == pytest.approx(robust)
    assert report["robust_accuracy"]["worst"] == pytest.approx(robust)
    assert report["cost"]["all"] == report["cost"]["mixture"]


def test_members_of_weight_zero_do_not_keep_an_example_alive(key):
    """Code 2: member 1, of weight 0, is right alone."""
    images = np.stack([(np.arange(3) + 0.5) / 1000, np.ones(3)], axis=1).astype(np.float32)
    table = np.full((3, 2), 2.0, np.float32)
    attacks = (table_attack(table, ("one", "two")),)
    weights = np.array([0.4, 0.0, 0.6])
    found = evaluation.evaluate(
        key, clean_logits, weights, images, np.zeros(3, int), attacks, num_complete=0
    )
    assert found.num_attacked.tolist() == [3, 0]
    report = found.report()
    assert report["robust_accuracy"] == {"worst": 0.0} and report["sandwich"]["lower"] == 0.0


def test_answers_of_nan_are_counted_for_their_member_and_are_its_errors(key, tmp_path):
    """The second member answers NaN wherever it would be wrong; its own suite stops there."""

    def logits_fn(x):
        logits = clean_logits(x)
        is_nan = (logits[:, :1] < 0) & (jnp.arange(3) == 1)[:, None]
        return jnp.where(is_nan, jnp.nan, logits)

    table, images, labels, attacks = game()
    for _ in range(2):  # attacked, and read from the folder
        found = evaluation.evaluate(
            key, logits_fn, WEIGHTS, images, labels, attacks, num_complete=4, folder=tmp_path
        )
        report = found.report()
        worst = (right(table) @ WEIGHTS).min(axis=1).mean()
        assert report["robust_accuracy"]["worst"] == pytest.approx(worst)
        wrong = ~right(table)[:, 1:, 1]
        lost = (right(table) @ WEIGHTS < 1e-9).cumsum(axis=1) > 0
        met = ~lost[:, :-1] | found.is_complete[:, None]
        number = (wrong & met).sum() + wrong.any(axis=1).sum()
        assert report["num_nan_answers"] == [0, number, 0] and number > 10


def test_results_depend_neither_on_the_batch_size_nor_on_the_devices(key):
    """The runs use their key, so that one that hung on the batch would show."""

    def run(key, run, logits_fn, weights, x, label):
        return x.at[1].set(jax.random.randint(key, (), 0, 8).astype(x.dtype) + 0 * run)

    _, images, labels, _ = game()
    attacks = (evaluation.Attack(("random",) * 4, 1, run),)

    found = [
        evaluate(key, attacks, images, labels, alone=False, **settings)
        for settings in (
            {"batch_size": 12},
            {"batch_size": 5},
            {"batch_size": 6, "transform": parallel.over_examples()},
        )
    ]
    codes = {row.tobytes() for row in found[0].correct}
    assert len(codes) > 6
    for other in found[1:]:
        for one, two in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            if getattr(one, "dtype", None) != np.float64:  # seconds
                np.testing.assert_array_equal(one, two)


# Resuming.


def without_seconds(report):
    report = json.loads(json.dumps(report))
    del report["cost"]
    for attack in report["attacks"].values():
        del attack["seconds"]
    return report


def test_what_is_written_down_is_not_done_again(key, tmp_path):
    _, images, labels, attacks = game()
    straight = evaluate(key, attacks, images, labels).report()
    calls = []

    class Stopped(Exception):
        pass

    def stop(name, num_done, num_all):
        if (name, num_done) == ("member 2", 3 * NUM_EXAMPLES):
            raise Stopped

    def counting(batch_fn):
        compiled = jax.jit(batch_fn)

        def counted(*arguments):
            if batch_fn.__name__ == "_answers":  # once in every batch
                calls.append(arguments)
            return compiled(*arguments)

        return counted

    with pytest.raises(Stopped):
        evaluate(key, attacks, images, labels, folder=tmp_path, progress=stop, transform=counting)
    before, names = len(calls), sorted(path.name for path in tmp_path.rglob("*"))
    resumed = evaluate(key, attacks, images, labels, folder=tmp_path, transform=counting)
    report = resumed.report()
    assert without_seconds(report) == without_seconds(straight)
    total = len(list(tmp_path.rglob("*.npz")))
    assert 0 < before < total == len(calls)
    assert {*names} < {path.name for path in tmp_path.rglob("*")}
    evaluate(key, attacks, images, labels, folder=tmp_path, transform=counting)
    assert total == len(calls)


def test_a_damaged_note_is_made_again(key, done, tmp_path):
    _, images, labels, attacks = game()
    first = evaluate(key, attacks, images, labels, folder=done)
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    for number, path in enumerate(sorted(tmp_path.rglob("*.npz"))):
        if number % 3 == 0:
            path.write_bytes(path.read_bytes()[: 50 * (number % 2)])
    again = evaluate(key, attacks, images, labels, folder=tmp_path)
    report, other = (each.report() for each in (first, again))
    assert without_seconds(report) == without_seconds(other)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a whole evaluation."""
    folder = tmp_path_factory.mktemp("suite") / "done"
    _, images, labels, attacks = game()
    evaluate(jax.random.key(0), attacks, images, labels, folder=folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_complete": 5}, "num_complete: 4 -> 5"),
        ({"batch_size": 6}, "batch_size: 4 -> 6"),
        ({"key": jax.random.key(3)}, "key.sha256: "),
        ({"key": jax.random.key(0, impl="rbg")}, "key.dtype: "),
        ({"labels": np.ones(NUM_EXAMPLES, np.int32)}, "labels.sha256: "),
        ({"images": game()[1] - np.float32([0, 0.5])}, "images.sha256: "),
        ({"attacks": game()[3][:1]}, "attacks: "),
    ],
)
def test_another_evaluation_is_refused_naming_what_differs(key, done, change, message):
    _, images, labels, attacks = game()
    settings = {"key": key, "attacks": attacks, "images": images, "labels": labels}
    with pytest.raises(ValueError, match="folder .* holds a run with another config.*" + message):
        evaluate(**{**settings, **change}, folder=done)


def one_line(z):
    """Logits of a line through .5: right above it, with a steepness of 2."""
    return jnp.stack([2.0 * (z.sum() - 0.5), 0.0])[None]


def attack_one_line(folder, *, threat, logits_fn=one_line, step_size=0.05, **settings):
    settings = {"num_runs": 3, "num_steps": 4} | settings
    found = evaluation.evaluate(
        jax.random.key(0),
        logits_fn,
        [1.0],
        np.full((1, 1), 0.8, np.float32),
        np.zeros(1, np.int32),
        evaluation.pgd_attacks(threat, step_size=step_size, **settings),
        folder=folder,
    )
    return found.correct[0, :, 0].min()


@pytest.fixture(scope="module")
def one_line_done(tmp_path_factory):
    """Within .1 of .8 the line holds."""
    folder = tmp_path_factory.mktemp("one_line") / "done"
    assert attack_one_line(folder, threat=threats.linf(0.1))
    return folder


def test_the_same_folder_with_another_radius_does_not_give_the_old_answers(one_line_done, tmp_path):
    """Within .4 the line does not hold."""
    assert attack_one_line(one_line_done, threat=threats.linf(0.1))
    with pytest.raises(ValueError, match=r"threat.epsilon: 0.1 -> 0.4") as caught:
        attack_one_line(one_line_done, threat=threats.linf(0.4))
    assert "\n" not in str(caught.value)
    assert not attack_one_line(tmp_path, threat=threats.linf(0.4))


def steeper(z):
    return 2 * one_line(z)


def without_gradient(z):
    """Answers as `one_line` does."""
    return one_line(jax.lax.stop_gradient(z))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": threats.l2(0.1)}, "threat.norm: .*linf.* -> .*l2"),
        ({"step_size": 0.06}, "step_size: .*0.05.* -> .*0.06"),
        ({"num_steps": 5}, "num_steps: .*4.* -> .*5"),
        ({"bounds": (-1.0, 1.0)}, r"bounds: .*0.0.* -> .*-1.0"),
        ({"logits_fn": steeper}, r"logits_fn.program: \w+ -> \w+"),
        ({"logits_fn": without_gradient}, r"logits_fn.program: \w+ -> \w+"),
    ],
)
def test_whatever_decides_the_answers_makes_it_another_evaluation(one_line_done, change, message):
    with pytest.raises(ValueError, match="holds a run with another config.*" + message):
        attack_one_line(one_line_done, **{"threat": threats.linf(0.1)} | change)


def test_other_arrays_of_a_closure_are_another_evaluation(tmp_path):
    def closed_over(slope):
        return jax.jit(lambda z: jnp.stack([slope @ (z - 0.5), 0.0])[None])

    def attacked(slope):
        images, labels = np.full((1, 1), 0.8, np.float32), np.zeros(1, np.int32)
        idle, logits_fn = evaluation.Attack(("idle",), 0, lambda x: x), closed_over(slope)
        arguments = jax.random.key(0), logits_fn, [1.0], images, labels, (idle,)
        evaluation.evaluate(*arguments, folder=tmp_path)

    for _ in range(2):
        attacked(np.float32([2.0]))
    with pytest.raises(ValueError, match="logits_fn.constants: "):
        attacked(np.float32([2.1]))


def test_another_code_of_an_attack_is_another_evaluation(key, tmp_path):
    """Of equal names, numbers and costs: only what it computes differs."""
    table, images, labels, _ = game()

    def attacks(table):
        return (table_attack(table, NAMES),)

    evaluate(key, attacks(table), images, labels, folder=tmp_path)
    evaluate(key, attacks(table.copy()), images, labels, folder=tmp_path)
    with pytest.raises(ValueError, match="programs.1 one: "):
        evaluate(key, attacks(table[::-1].copy()), images, labels, folder=tmp_path)


def test_arrays_of_an_attack_are_arguments_and_others_are_another_evaluation(key, tmp_path):
    """One program for both tables, and two evaluations."""
    table, images, labels, _ = game()
    calls = []

    def run(codes, run, logits_fn, x):
        calls.append(logits_fn(x).shape)
        return x.at[1].set(codes[(x[0] * 1000).astype(jnp.int32), run])

    def attacks(table):
        return (evaluation.Attack(NAMES, 7, jax.tree_util.Partial(run, jnp.asarray(table))),)

    other = np.roll(table, 1, axis=1)
    found = [evaluate(key, attacks(each), images, labels) for each in (table, other)]
    assert len(calls) == 2  # the mixture and its average, the members
    for each, codes in zip(found, (table, other), strict=True):
        np.testing.assert_allclose(each.worst, (right(codes) @ WEIGHTS).min(axis=1))
    evaluate(key, attacks(table), images, labels, folder=tmp_path)
    with pytest.raises(ValueError, match="programs.1 one: "):
        evaluate(key, attacks(other), images, labels, folder=tmp_path)


def test_an_attack_is_traced_once_for_all_members_and_their_average(key):
    """Passes are counted in the program that is compiled: nothing is traced for them alone."""
    table, images, labels, _ = game()
    calls = []

    def run(key, run, logits_fn, weights, x, label):
        calls.append(logits_fn(x).shape)
        return table_attack(table, NAMES).run(key, run, logits_fn, weights, x, label)

    attacks = (evaluation.Attack(NAMES, 1, run),)
    found = evaluate(key, attacks, images, labels)
    assert sorted(calls) == [(1, 2), (3, 2)]  # the members; the mixture and its average
    assert found.alone[1].num_answers.tolist() == [1] * NUM_RUNS  # here and in the table: one point


def test_who_holds_a_folder_works_in_it_alone(key, tmp_path):
    _, images, labels, attacks = game()
    with (
        files.hold(tmp_path, argument="folder"),
        pytest.raises(ValueError, match="folder .* is in use by another process") as caught,
    ):
        evaluate(key, attacks, images, labels, folder=tmp_path)
    assert "\n" not in str(caught.value)
    evaluate(key, attacks, images, labels, folder=tmp_path)

    def progress(*_):
        with pytest.raises(ValueError, match="in use"), files.hold(tmp_path, argument="folder"):
            pass

    evaluate(key, attacks, images, labels, folder=tmp_path, progress=progress)


def test_a_killed_process_is_continued_to_the_same_numbers(children, tmp_path):
    """SIGKILL after thirty batches, and another process that comes through: this one."""
    program = textwrap.dedent(
        """
        import os, signal, sys
        import jax
        from tests.evaluation import test_suite as suite

        _, images, labels, attacks = suite.game()
        left = 30

        def progress(*_):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        suite.evaluate(
            jax.random.key(0), attacks, images, labels, folder=sys.argv[1], progress=progress
        )
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    killed = children.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    _, images, labels, attacks = game()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    resumed = evaluate(jax.random.key(0), attacks, images, labels, folder=tmp_path)
    for path, time in written.items():  # what the other has done is not done again
        assert path.stat().st_mtime_ns == time
    assert 10 < len(written) < len([*tmp_path.rglob("*.npz")])
    straight = evaluate(jax.random.key(0), attacks, images, labels).report()
    assert without_seconds(resumed.report()) == without_seconds(straight)


# Cost and progress.


def test_passes_are_counted_in_the_traced_program():
    """Three steps with one gradient, two answers asked for in a loop that ends by itself."""

    def run(key, run, logits_fn, weights, x, label):
        def step(x, _):
            return x + jax.grad(lambda x: logits_fn(x).sum())(x), None

        x, _ = jax.lax.scan(step, x, length=3)
        jacobian = jax.jacrev(lambda x: logits_fn(x)[:, 0])(x)
        x = jax.lax.cond(jacobian.sum() > 0, lambda: x, lambda: x + logits_fn(x).sum())
        return jax.lax.while_loop(lambda x: x[0] < 1, lambda x: x + logits_fn(x)[0, 0], x)

    attack = evaluation.Attack(("counted",), 6, run)
    weights = jnp.ones(2) / 2

    def logits_fn(x):
        return jnp.stack([jnp.tanh(x), x])

    passes = evaluation.count_passes(attack, logits_fn, weights, jnp.zeros(4))
    # Backward: 3 steps and a Jacobian of 2 rows, through 2 networks each.
    assert passes == evaluation.Passes(forward=2 * (3 + 1 + 1 + 6), backward=2 * (3 + 2))


def test_the_cost_per_example_counts_the_runs_that_were_made(key):
    table, images, labels, _ = game()

    def run(key, run, logits_fn, weights, x, label):
        gradient = jax.grad(lambda x: logits_fn(x).sum())(x)
        return table_attack(table, NAMES).run(key, run, logits_fn, weights, x, label) + 0 * gradient

    attacks = (evaluation.Attack(NAMES, 1, run),)
    found = evaluate(key, attacks, images, labels, num_complete=0)
    report = found.report()
    num_attacked = found.num_attacked
    assert report["attacks"]["one"]["num_gradients"] == 3
    assert report["attacks"]["one"]["num_answers"] == 6
    assert report["cost"]["mixture"]["gradients"] == pytest.approx(3 * num_attacked.sum() / 12)
    others = sum(each.num_attacked.sum() for each in found.alone)  # one network each
    both = 3 * (num_attacked.sum() + found.averaged.num_attacked.sum()) + others
    assert report["cost"]["all"]["gradients"] == pytest.approx(both / 12)
    assert 0 < report["cost"]["mixture"]["seconds"] < report["cost"]["all"]["seconds"]


def test_progress_reaches_the_end_of_each_and_never_falls(key):
    _, images, labels, attacks = game()
    seen = {}

    def progress(name, num_done, num_all):
        seen.setdefault(name, []).append(num_done)
        assert num_all == (NUM_RUNS + 1) * NUM_EXAMPLES

    evaluate(key, attacks, images, labels, progress=progress)
    assert [*seen] == ["mixture", "member 1", "member 2", "member 3", "averaged"]
    for numbers in seen.values():
        assert numbers == sorted(numbers) and numbers[-1] == (NUM_RUNS + 1) * NUM_EXAMPLES


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_complete": -1}, "num_complete must be a whole number of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"member_fns": [clean_logits]}, "member_fns must be 3 functions, got 1"),
        ({"labels": np.full(NUM_EXAMPLES, 2)}, r"labels must lie in \[0, 1\]"),
    ],
)
def test_bad_input_is_named_with_its_value(key, change, message):
    _, images, labels, attacks = game()
    settings = {"attacks": attacks, "images": images, "labels": labels}
    with pytest.raises(ValueError, match=message):
        evaluate(key, **{**settings, **change})


@pytest.mark.parametrize("name", ["worst", "clean"])
def test_an_attack_may_not_be_named_as_an_entry_of_the_report(key, name):
    _, images, labels, attacks = game()
    renamed = (attacks[0], attacks[1]._replace(names=(name, "x")))
    with pytest.raises(ValueError, match=f"must not be named clean or worst, got {name}"):
        evaluate(key, renamed, images, labels)
    with pytest.raises(ValueError, match="attacks must be a list of Attack, got 'quick'"):
        evaluate(key, ("quick",), images, labels)


def test_the_last_batch_takes_the_smallest_of_four_sizes_that_holds_it():
    """Of batches of 300 at most, every number left is served by sizes of 300, 150 and 75."""
    sizes = {300: set(), 100: set()}
    for batch_size, seen in sizes.items():
        for number in range(1, 701, 3):
            rows = np.arange(1000, 1000 + number)
            parts = list(batches.split(rows, batch_size, shrink=True))
            np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), rows)
            for part, filled in parts:
                np.testing.assert_array_equal(filled[: len(part)], part)
                assert np.all(filled[len(part) :] == part[-1])
                assert len(part) in (batch_size, len(rows) % batch_size)
                seen.add(len(filled))
    assert sizes == {300: {300, 150, 75}, 100: {100}}
    plain = [len(filled) for _, filled in batches.split(np.arange(330), 300)]
    assert plain == [300, 300]


def test_a_cpu_attacks_64_examples_at_once_and_a_gpu_256(monkeypatch):
    sizes = {1: 60, 2: 50, 4: 38, 16: 38}  # on so many cores
    for number, size in sizes.items():
        monkeypatch.setattr(batches, "cores", lambda number=number: number)
        assert batches.equal_batches(300, None) == size
        assert batches.equal_batches(300, 64) == 60
        assert batches.equal_batches(64, None) == 64
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches.equal_batches(300, None) == 150


def _drawn(key, images, labels, indices):
    """Random numbers of the type of JAX's own floats: in another thread another one."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(indices)
    return jax.vmap(jax.random.uniform)(keys) * 1.0 + labels


@pytest.mark.parametrize("is_64_bit", [False, True])
def test_batches_at_the_same_time_give_what_they_give_one_after_another(
    is_64_bit, key, monkeypatch
):
    images, labels = np.zeros((21, 1), np.float32), np.arange(21)
    found = {}
    for number in (1, 3):
        monkeypatch.setattr(batches, "cores", lambda number=number: number)
        with jax.enable_x64(is_64_bit):
            found[number] = evaluation.over_batches(
                _drawn, images, labels, arguments=(key,), transform=jax.jit, batch_size=4
            )
    chex.assert_trees_all_equal(found[1], found[3])
    assert found[3].dtype == (np.float64 if is_64_bit else np.float32)
    assert (np.floor(found[3]) == labels).all()


def test_a_stop_leaves_no_batch_at_work(key, monkeypatch):
    monkeypatch.setattr(batches, "cores", lambda: 3)
    images, labels = np.zeros((21, 1), np.float32), np.arange(21)
    before = threading.active_count()

    def stop(num_done, num_all):
        if num_done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.over_batches(
            _drawn,
            images,
            labels,
            arguments=(key,),
            transform=jax.jit,
            batch_size=4,
            progress=stop,
        )
    assert threading.active_count() == before


@pytest.mark.parametrize("is_cheap", [False, True])
def test_examples_that_are_left_alone_are_not_attacked_along_with_the_others(is_cheap, key):
    """The second run attacks what the first has left in half a batch, where it is worth it."""
    seen = []

    def counting(batch_fn):
        compiled = jax.jit(batch_fn)

        def counted(*arguments):
            seen.append(len(arguments[-1]))
            return compiled(*arguments)

        return counted

    images = np.linspace(0.0, 1.0, 160, dtype=np.float32)[:, None]
    suite = [
        evaluation.Attack(("first",), 1, lambda x: jnp.where(x < 0.63, x - 9.0, x)),
        evaluation.Attack(("second",), 1, lambda x: x),
    ]

    def logits_fn(x):
        return jnp.stack([x[0] + 1.0, 0.0])[None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "cores", lambda: 1)  # several at once are compiled beforehand
        if is_cheap:  # so few operations that compiling once more would take longer
            patch.setattr(batches, "_at_level", lambda level: counting)
        arguments = key, logits_fn, [1.0], images, np.zeros(160, np.int32), suite
        settings = {"num_complete": 0, "batch_size": 256}
        found = evaluation.evaluate(*arguments, transform=counting, **settings)
    assert found.num_attacked.tolist() == [160, 59]
    assert sorted(seen) == ([160] * 5 if is_cheap else [80, 80, 160, 160, 160])


def test_each_thread_waits_for_what_it_has_called(monkeypatch):
    """Calls return before their work is done, and that of one thread is done in order."""
    waited_in = []

    class Result:
        def block_until_ready(self):
            waited_in.append(threading.current_thread())
            return self

    def call(*batch):
        return Result()

    program = types.SimpleNamespace(compile=lambda: call)
    monkeypatch.setattr(batches, "cores", lambda: 2)
    monkeypatch.setattr(
        batches, "compiled", lambda *_: types.SimpleNamespace(lower=lambda *batch: program)
    )
    given = [(np.zeros(2),)] * 3
    assert len(list(batches._each(call, (), given, jax.jit))) == 3
    assert len(waited_in) == 3 and threading.main_thread() not in waited_in


def test_the_next_attack_is_compiled_once_and_while_another_runs(key, monkeypatch):
    compiled_in = []

    def listen(event, seconds, **told):
        if "backend_compile" in event and "_points" in told.get("fun_name", ""):
            compiled_in.append(threading.current_thread())

    def attack(by):
        return evaluation.Attack((f"by {by}",) * 2, 1, lambda x: jnp.clip(x + by, 0.0, 1.0))

    suite = [attack(by) for by in (0.125, 0.25, 0.375)]
    images, labels = np.linspace(0.0, 1.0, 4, dtype=np.float32)[:, None], np.zeros(4, np.int32)

    def robust():
        found = evaluation.evaluate(key, _below_half, [1.0], images, labels, suite)
        return found.robust_accuracy

    monkeypatch.setattr(batches, "cores", lambda: 1)
    in_turn = robust()
    monkeypatch.setattr(batches, "cores", lambda: 2)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert robust() == in_turn == 0.25
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled_in) == 3 and threading.main_thread() not in compiled_in


def _below_half(x):
    """One member, which answers 0 below a half."""
    return jnp.stack([0.5 - x[0], 0.0])[None]


def test_without_jit_batches_follow_each_other(key):
    with jax.disable_jit():
        found = evaluation.over_batches(
            _drawn,
            np.zeros((2, 1), np.float32),
            np.arange(2),
            arguments=(key,),
            transform=jax.jit,
            batch_size=1,
        )
    assert (np.floor(found) == [0, 1]).all()
