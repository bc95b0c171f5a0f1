"""A result is complete, in range and free of contradictions before it is written."""

import copy
import json
import math
import os
import pathlib
import re

import jax
import numpy as np
import pytest

from mixjax import files, reporting
from mixjax.reporting import origin

PROVENANCE = {
    "command": "python -m experiments.cifar10_mixture --preset demo",
    "commit": "0" * 40,
    "seed": 7,
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "device": {"platform": "cpu", "kind": "cpu", "number": 4, "num_hosts": 1, "num_cores": 2},
    "seconds": 90.0,
}
RESULT = {
    "dataset": "digits",
    "num_members": 2,
    "weights": [0.25, 0.75],
    "clean_accuracy": 0.975,
    "robust_accuracy": {"pgd": 0.612, "member pgd": 0.641, "worst": 0.603},
    "sandwich": {"lower": 0.588, "upper": 0.603},
    "members": [
        {"clean_accuracy": 0.972, "robust_accuracy": 0.591},
        {"clean_accuracy": 0.976, "robust_accuracy": 0.587},
    ],
    "averaged": {"clean_accuracy": 0.978, "robust_accuracy": 0.598},
    "num_examples": 360,
    "error_bar": {"clean": 0.0082, "pgd": 0.0257, "member pgd": 0.0253, "worst": 0.0258},
    "num_attack_runs": 12,
    "config": {"epsilon": 0.2},
    "provenance": PROVENANCE,
}


def around(**intervals):
    """Intervals as wide as can be, but for some."""
    return {name: [0, 1] for name in RESULT["error_bar"]} | intervals


def changed(path, value):
    """The result with one entry replaced, or removed for None."""
    result = copy.deepcopy(RESULT)
    *parents, last = path
    entry = result
    for name in parents:
        entry = entry[name]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return result


def test_a_result_is_written_as_strict_json_and_comes_back(tmp_path):
    result = RESULT | {"weights": np.array([0.25, 0.75]), "clean_accuracy": np.float64(0.975)}
    assert reporting.write_result(tmp_path, result) == RESULT
    assert reporting.read_result(tmp_path) == RESULT
    assert reporting.read_result(tmp_path / "result.json") == RESULT
    assert json.loads((tmp_path / "result.json").read_text()) == RESULT
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("name", sorted(RESULT.keys() - {"num_attack_runs"}))
def test_every_field_must_be_there(tmp_path, name):
    with pytest.raises(ValueError, match=f"result must hold {name}"):
        reporting.write_result(tmp_path, changed([name], None))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["clean_accuracy"], math.nan, "result.clean_accuracy must be finite, got nan"),
        (["clean_accuracy"], 97.5, r"result.clean_accuracy must be in \[0, 1\], got 97.5"),
        (["clean_accuracy"], "high", "result.clean_accuracy must be a number, got 'high'"),
        (["clean_accuracy"], 0.5, "worst = 0.603 must not exceed clean_accuracy = 0.5"),
        (["robust_accuracy", "worst"], None, "result.robust_accuracy must hold worst"),
        (["robust_accuracy", "pgd"], 0.6, "worst = 0.603 must not exceed robust_accuracy.pgd"),
        (["robust_accuracy", "pgd"], -0.1, r"result.robust_accuracy.pgd must be in \[0, 1\]"),
        (["robust_accuracy"], 0.6, "result.robust_accuracy must be a dict"),
        (["sandwich", "lower"], 0.61, "sandwich.lower = 0.61 must not exceed"),
        (["sandwich", "upper"], 0.60, "worst = 0.603 must not exceed sandwich.upper = 0.6"),
        (["sandwich", "lower"], None, "result.sandwich must hold lower"),
        (["weights"], [0.25, 0.7], "result.weights must be on the simplex"),
        (["weights"], [0.25, 0.25, 0.5], "result.weights must have num_members = 2 entries, got 3"),
        (["members"], [{}], "result.members must have num_members = 2 entries, got 1"),
        (["members", 1, "robust_accuracy"], None, r"result.members\[1\] must hold robust_accuracy"),
        (
            ["averaged", "clean_accuracy"],
            1.5,
            r"result.averaged.clean_accuracy must be in \[0, 1\]",
        ),
        (["num_examples"], 0, "result.num_examples must be a whole number of at least 1, got 0"),
        (["num_members"], 1.5, "result.num_members must be a whole number"),
        (["error_bar", "member pgd"], None, "result.error_bar must hold member pgd"),
        (["error_bar", "clean"], -0.1, "result.error_bar.clean must be at least 0, got -0.1"),
        (["interval"], {"clean": [0.9, 1]}, "result.interval must hold pgd, member pgd, worst"),
        (
            ["interval"],
            around(pgd=[0.62, 0.7]),
            r"interval.pgd\[0\] = 0.62 must not exceed its acc",
        ),
        (["interval"], around(pgd=[0.5, 0.6]), r"must not exceed interval.pgd\[1\] = 0.6"),
        (["interval"], around(pgd=0.6), r"interval.pgd must be \[low, high\], got 0.6"),
        (["interval"], around(worst=[0, 2]), r"interval.worst must be in \[0, 1\], got 2"),
        (["provenance", "commit"], None, "result.provenance must hold commit"),
        (["dataset"], 3, "result.dataset must be a name, got 3"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, path, value, message):
    with pytest.raises(ValueError, match=message):
        reporting.write_result(tmp_path, changed(path, value))
    assert not list(tmp_path.iterdir())


def test_a_second_result_replaces_the_first_or_leaves_it(tmp_path):
    reporting.write_result(tmp_path, RESULT)
    with pytest.raises(ValueError):
        reporting.write_result(tmp_path, changed(["num_examples"], 0))
    assert reporting.read_result(tmp_path) == RESULT
    reporting.write_result(tmp_path, changed(["num_examples"], 361))
    assert reporting.read_result(tmp_path)["num_examples"] == 361


def test_absolute_paths_of_the_config_stay_at_home(tmp_path):
    config = {"data_dir": "/home/someone/data/cifar", "dirs": ["~/x/y", "runs/a"], "epsilon": 0.2}
    written = reporting.write_result(tmp_path, RESULT | {"config": config})
    assert written["config"] == {"data_dir": "cifar", "dirs": ["y", "runs/a"], "epsilon": 0.2}
    assert "someone" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ["{here}/experiments/cifar10_mixture.py", "--preset", "demo"],
            "python -m experiments.cifar10_mixture --preset demo",
        ),
        (["run.py", "--data-dir", "/home/someone/data"], "python -m run --data-dir data"),
        (["run.py", "--data-dir=/home/someone/data/"], "python -m run --data-dir=data"),
        (["run.py", "--run-dir", "{here}/runs/a b"], "python -m run --run-dir 'runs/a b'"),
        (["run.py", "--run-dir", "../../someone/runs"], "python -m run --run-dir runs"),
        (
            "run.py --data-dir ~/data --epsilon 8/255",
            "python -m run --data-dir data --epsilon 8/255",
        ),
        (["tool", "--dirs", "/home/someone/a,/home/someone/b"], "tool --dirs a,b"),
        (["run.py", "--data-dir", "/home/Ann Smith/data"], "python -m run --data-dir data"),
        (["run.py", "--data-dir=/home/Ann Smith/a b"], "python -m run '--data-dir=a b'"),
        ("run.py --data-dir '/home/Ann Smith/data' --cpu", "python -m run --data-dir data --cpu"),
        (["run.py", "--dirs", "{home}/a,{home}/b c"], "python -m run --dirs 'a,b c'"),
        (["run.py", "--run-dir", "{home}"], "python -m run --run-dir '~'"),
        (["run.py", "--run-dir", "{here}"], "python -m run --run-dir ."),
        ([], ""),
    ],
)
def test_the_command_is_repeatable_and_names_no_place_of_this_machine(
    command, expected, monkeypatch
):
    """The user is called "Smith, Ann: = 1": every character that may end a path in a list."""
    home = "/home/Smith, Ann: = 1"
    monkeypatch.setenv("HOME", home)
    if not isinstance(command, str):
        command = [word.format(here=os.getcwd(), home=home) for word in command]
    assert reporting.provenance(command, 0, 1.0)["command"] == expected


def test_provenance_fits_a_result_and_tells_the_device_and_versions():
    facts = reporting.provenance("python -m experiments.x", np.int32(7), 12.3456)
    reporting.check_result(RESULT | {"provenance": facts})
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert (facts["seed"], facts["seconds"]) == (7, 12.3)
    assert facts["versions"]["jax"] == jax.__version__
    assert {"python", "jaxlib", "flax", "optax", "orbax-checkpoint", "mixjax"} <= set(
        facts["versions"]
    )
    assert facts["device"]["number"] == jax.device_count()
    assert os.uname().nodename not in json.dumps(facts)


def git(children, folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    finished = children.run(["git", *identity, *arguments], cwd=folder)
    assert finished.returncode == 0, finished.stderr


def test_the_commit_is_the_one_of_the_code_with_a_mark_for_changes(children, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    code = package / "origin.py"
    code.write_text("a = 1\n")
    monkeypatch.setattr(origin, "__file__", str(code))

    def commit():
        return reporting.provenance("x", 0, 1.0)["commit"]

    assert commit() is None
    git(children, tmp_path, "init", "-q")
    assert commit() is None
    table = tmp_path / "results" / "table.json"
    table.parent.mkdir()
    files.write_json(table, {"seed": 0})
    git(children, tmp_path, "add", "package/origin.py", "results")
    git(children, tmp_path, "commit", "-q", "-m", "first")
    first = commit()
    assert re.fullmatch("[0-9a-f]{40}", first)
    (tmp_path / "untracked").write_text("")
    files.write_json(table, {"seed": 1})  # as a run before this one did
    assert commit() == first
    code.write_text("a = 2\n")
    assert commit() == f"{first}-dirty"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert reporting.provenance("x", 0, 1.0)["commit"] is None


def cells(table):
    return [[cell.strip() for cell in row.strip("| \n").split(" | ")] for row in table.splitlines()]


def test_the_table_says_what_how_good_and_how_sure_in_percent():
    single = RESULT | {
        "num_members": 1,
        "weights": [1.0],
        "members": RESULT["members"][:1],
        "dataset": "cifar10",
    }
    head, rule, mixture_row, single_row = cells(reporting.results_table([RESULT, single]))
    assert set(rule) == {"---"} and len(rule) == len(head)
    assert dict(zip(head, mixture_row, strict=True)) == {
        "data": "digits",
        "L": "2",
        "weights": "0.25, 0.75",
        "clean %": "97.5 (95.3 to 98.7)",
        "robust %": "60.3 (55.2 to 65.2)",
        "lower bound %": "",
        "members alone %": "59.1, 58.7",
        "averaged %": "59.8",
        "examples": "360",
        "attack runs": "12",
        "minutes": "1.5",
        "device": "4 x cpu",
    }
    assert single_row[:3] == ["cifar10", "1", "1.00"]


def test_a_lower_bound_is_what_members_keep_who_met_every_attack_and_not_a_few_runs():
    told = RESULT | {"reported_by": {"num_examples": 360}}  # of every evaluation, by few runs too
    suite = told | {"interval": around(lower_bound=[0.5, 0.6])}
    older = told | {"cost": {}}
    head, _, *rows = cells(reporting.results_table([RESULT, told, suite, older]))
    shown = [row[head.index("lower bound %")] for row in rows]
    assert shown == ["", "", "58.8", "58.8"]


def test_the_interval_in_a_table_is_that_of_the_result_or_wilsons_of_its_accuracy():
    known = RESULT | {"interval": {"clean": [0.9, 0.99], "pgd": [0.5, 0.7], "worst": [0.4, 0.61]}}
    assert cells(reporting.members_table(known))[5][2:] == [
        "97.5 (90.0 to 99.0)",
        "60.3 (40.0 to 61.0)",
    ]
    few = RESULT | {"attacks": {"pgd": {"num_examples": 100}}}
    table = cells(reporting.attack_table({"few": few, "all": RESULT}))
    # 1.96^2 = 3.84: the ends solve (m - .612)^2 = 3.84 m (1 - m) / N.
    assert table[3] == ["pgd", "61.2 (51.4 to 70.2)", "61.2 (56.1 to 66.1)"]


def test_the_duration_of_a_resumed_run_is_marked_as_incomplete():
    command = "python -m experiments.cifar10_mixture --resume --run-dir runs/demo"
    resumed = changed(["provenance", "command"], command)
    *_, row = cells(reporting.results_table([resumed]))
    assert row[-2:] == ["1.5 (resumed)", "4 x cpu"]


def test_labels_become_the_first_column_and_cannot_break_the_table():
    table = reporting.results_table([RESULT], ["L = 2 | averaged"])
    assert table.splitlines()[2].startswith("| L = 2 \\| averaged | digits |")
    with pytest.raises(ValueError):
        reporting.results_table([RESULT], ["one", "two"])


def test_attacks_stand_in_rows_with_the_worst_last():
    other = changed(["robust_accuracy", "pgd"], None)
    other["robust_accuracy"]["another"] = 0.7
    other["error_bar"]["another"] = 0.02
    table = cells(reporting.attack_table({"a": RESULT, "b": other}))
    assert table[0] == ["attack", "a %", "b %"]
    assert [row[0] for row in table[2:]] == ["no attack", "pgd", "member pgd", "another", "worst"]
    assert table[3][:2] == ["pgd", "61.2 (56.1 to 66.1)"]
    assert table[5] == ["another", "", "70.0 (65.1 to 74.5)"]


def test_the_members_table_puts_each_weight_beside_its_member():
    table = cells(reporting.members_table(RESULT))
    assert table[2:4] == [
        ["member 1", "0.250", "97.2", "59.1"],
        ["member 2", "0.750", "97.6", "58.7"],
    ]
    assert table[5] == ["mixture", "1.000", "97.5 (95.3 to 98.7)", "60.3 (55.2 to 65.2)"]


def test_the_report_shows_every_number_of_the_result_and_the_figures_that_are_there(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"")
    path = reporting.write_report(tmp_path, {"single": RESULT, "mixture": RESULT}, "Digits")
    text = pathlib.Path(path).read_text()
    assert text.startswith("# Digits\n")
    for shown in (
        "60.3 (55.2 to 65.2)",
        "59.1",
        "97.8",
        "360",
        "55.2",
        PROVENANCE["command"],
        "0" * 40,
    ):
        assert shown in text
    for column in ("clean", "robust", "lower bound", "members alone", "averaged", "attack runs"):
        assert f"**{column}**" in text
    assert "](curves.png)" in text and "weights.png" not in text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curves.png", "report.md"]
    with pytest.raises(ValueError, match="at least one result"):
        reporting.write_report(tmp_path, {})


def test_the_report_names_the_members_that_answered_nan(tmp_path):
    usual = {**RESULT, "num_nan_answers": [0, 0]}
    broken = {**RESULT, "num_nan_answers": [0, 7]}
    path = reporting.write_report(tmp_path, {"single": usual, "mixture": broken})
    lines = [line for line in path.read_text().splitlines() if "NaN" in line]
    assert len(lines) == 1
    assert "of the mixture that answered NaN" in lines[0] and "member 2 at 7 of" in lines[0]
    for result in (usual, RESULT):  # of older versions
        text = reporting.write_report(tmp_path, {"mixture": result}).read_text()
        assert "NaN" not in text
