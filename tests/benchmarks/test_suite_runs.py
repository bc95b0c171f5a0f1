"""What runs of a suite add, on answers that are written down by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import suite_runs
from mixjax import evaluation

# Of four examples, under a weak run, one that fools two, and one that fools a third: [N, R + 1].
ACCURACIES = np.array([[1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]], float)
RUNS = suite_runs.Runs(
    ["weak", "strong", "strange"], np.array([1, 3, 4]), ACCURACIES, np.array([1.0, 2.0, 3.0])
)


def test_what_a_run_takes_beyond_those_before_it_and_what_is_lost_without_it():
    found = suite_runs.subject(RUNS)
    assert found["clean_accuracy"] == 1.0 and found["robust_accuracy"] == 0.25
    assert [each["leaves_alone"] for each in found["runs"]] == [0.75, 0.5, 0.75]
    assert [each["takes_beyond_those_before"] for each in found["runs"]] == [0.25, 0.25, 0.25]
    assert found["lost_without"] == {"weak": 0.0, "strong": 0.25, "strange": 0.25}


def test_the_greedy_order_goes_by_accuracy_per_pass():
    """A quarter for one pass, two quarters for three, then what is left of them for three."""
    order = suite_runs.greedy(RUNS)
    assert [(each["line"], each["takes"]) for each in order] == [
        ("weak", 0.25),
        ("strong", 0.25),
        ("strange", 0.25),
    ]
    order = suite_runs.greedy(RUNS._replace(costs=np.array([4, 3, 4])))
    assert [(each["line"], each["takes"]) for each in order] == [("strong", 0.5), ("strange", 0.25)]


def evaluated(folder, num_complete):
    """Two attacks on one classifier: the first fools examples below .3, the second below .5."""
    images = np.linspace(0.1, 0.7, 4, dtype=np.float32)[:, None]
    attacks = [
        evaluation.Attack((name,), 1, lambda x, limit=limit: jnp.where(x < limit, x - 9.0, x))
        for name, limit in (("first", 0.25), ("second", 0.45))
    ]
    evaluation.evaluate(
        jax.random.key(0),
        lambda x: jnp.stack([x[0] + 1.0, 0.0])[None],
        [1.0],
        images,
        np.zeros(4, int),
        attacks,
        num_complete=num_complete,
        folder=folder,
    )


def test_it_reads_what_an_evaluation_wrote(tmp_path, capsys):
    evaluated(tmp_path / "a", None)
    output = tmp_path / "found.json"
    suite_runs.main([f"one={tmp_path}/a/mixture", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [each["leaves_alone"] for each in result["subjects"]["one"]["runs"]] == [0.75, 0.5]
    assert result["lines"]["second"]["lost_without"] == 0.25
    assert "second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{folder}/mixture", "folders must be NAME=FOLDER"),
        ("one={folder}/mixture", "did not meet every run"),
        ("one={folder}/nothing", "No such file"),
    ],
)
def test_what_it_cannot_read_is_one_line(words, message, tmp_path, capsys):
    evaluated(tmp_path / "a", 0)
    with pytest.raises(SystemExit) as caught:
        suite_runs.main([words.format(folder=tmp_path / "a"), "--output", str(tmp_path / "b.json")])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and message in told and told.count("\n") == 1
