"""The evaluation of a finished run as a person runs it: flags, refusals, kill and resume."""

import json
import re
import shutil
import signal

import pytest

from experiments import evaluate
from experiments.meunier_2021 import algorithm
from mixjax import evaluation
from tests import short_run

# A linear model on digits, and a budget that takes seconds. The flags of training are those of
# `test_cifar10_mixture.py`: what is compiled for one serves the other.
TINY = (
    "--preset demo --model linear --epochs 3 --batch-size 256 --attack-steps 2 --model-steps 2 "
    "--weight-steps 2 --learning-rate 0.05 --validation-examples 40 --validation-steps 2 "
    "--test-examples 30 --test-runs 6 --test-steps 2 --test-batch-size 40 --dispatch-steps 2 "
    "--devices 1"
).split()
BUDGET = evaluation.Budget(1, 1, 2, 3, 1, 2, 1, 5)
ATTACK_SUITE = evaluation.attack_suite


def first_attacks(threat, budget):
    """PGD, under the names of AutoPGD's runs too: they share what is compiled."""
    auto_pgd, *_, baseline = ATTACK_SUITE(threat, budget)
    return baseline, baseline._replace(names=auto_pgd.names, number=auto_pgd.number)


def train(folder, *flags):
    short_run.train(folder, *TINY, *flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nobody has evaluated yet."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny_budget():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(evaluate.BUDGETS, "quick", BUDGET)
        patch.setattr(evaluation, "attack_suite", first_attacks)
        # What is compiled for one model serves all tests of its config.
        games = {}
        patch.setattr(
            evaluate,
            "build",
            lambda config, dataset: games.setdefault(config, algorithm.build(config, dataset)),
        )
        yield


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """The run, evaluated without disturbance."""
    folder = tmp_path_factory.mktemp("runs") / "evaluated"
    shutil.copytree(finished, folder)
    run(folder, "--num-radii", "2")
    return folder


def run(folder, *flags):
    evaluate.main(["--run-dir", str(folder), "--devices", "1", "--num-radii", "0", *flags])


def numbers(folder):
    """Everything found except durations, the command, and what is found at other radii."""
    result = json.loads((folder / "evaluation_quick.json").read_text())
    result.pop("security", None)
    del result["provenance"], result["cost"]
    for attack in result["attacks"].values():
        del attack["seconds"]
    return result


def refusal(capsys, folder, *flags):
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as stop:
        run(folder, *flags)
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1
    return error[0]


def test_an_evaluation_leaves_its_numbers_and_a_section_of_the_report(evaluated):
    for folder, num_members in ((evaluated, 2), (evaluated / "single", 1)):
        result = numbers(folder)
        assert (result["num_members"], result["num_examples"]) == (num_members, 30)
        assert result["num_attack_runs"] == 1 + 4 + 1 + 2
        assert result["sandwich"]["lower"] <= result["robust_accuracy"]["worst"] + 1e-9
        assert result["budget"] == {"name": "quick", **BUDGET._asdict()}
        assert len(result["diagnostics"]) == 8
        assert result["config"] == json.loads((folder / "config.json").read_text())
    mixture, single = numbers(evaluated), numbers(evaluated / "single")
    difference = mixture["robust_accuracy"]["worst"] - single["robust_accuracy"]["worst"]
    assert mixture["versus_single"]["difference"] == pytest.approx(difference)
    report = (evaluated / "report.md").read_text()
    for text in (
        "## Attack suite: quick",
        "PGD-20 on the expected loss %",
        "| apgd_members |",
        "signs of weak attacks",
        "huge radius survived",
        "curves.png",
        "security.png",
    ):
        assert text in report


def test_the_security_curve_begins_at_the_clean_accuracy_and_goes_to_twice_the_radius(evaluated):
    assert (evaluated / "security.png").read_bytes().startswith(b"\x89PNG")
    for folder in (evaluated, evaluated / "single"):
        result = json.loads((folder / "evaluation_quick.json").read_text())
        curves, epsilon = result["security"], result["config"]["epsilon"]
        assert curves["radii"] == pytest.approx([0, epsilon, 2 * epsilon])
        assert curves["num_examples"] == result["num_examples"] == 30
        assert [*curves["accuracy"]] == ["pgd_expected_loss", "apgd_expected_loss", "worst"]
        for clean, at_epsilon, beyond in curves["accuracy"].values():
            assert clean == pytest.approx(result["clean_accuracy"], abs=1e-6)
            assert beyond < at_epsilon < clean
            # The suite has more runs than the one of each that the curve shows.
            assert at_epsilon >= result["robust_accuracy"]["worst"] - 0.1


def test_the_mixture_attacked_is_the_one_that_the_run_has_tested(evaluated):
    for folder in (evaluated, evaluated / "single"):
        tested = json.loads((folder / "result.json").read_text())
        found = numbers(folder)
        assert found["weights"] == tested["weights"]
        assert found["clean_accuracy"] == pytest.approx(tested["clean_accuracy"], abs=1e-6)
        clean = [member["clean_accuracy"] for member in tested["members"]]
        assert [member["clean_accuracy"] for member in found["members"]] == pytest.approx(clean)


def test_the_run_keeps_its_evaluation_when_it_writes_its_report_again(evaluated, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    train(folder, "--resume")
    assert "## Attack suite: quick" in (folder / "report.md").read_text()


def test_what_is_there_is_neither_overwritten_nor_mixed_with_another(evaluated, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    before = (folder / "evaluation_quick.json").read_bytes()
    assert "continue it with --resume" in refusal(capsys, folder)
    other = refusal(capsys, folder, "--resume", "--num-examples", "20")
    assert "num_examples: 30 -> 20" in other
    assert (folder / "evaluation_quick.json").read_bytes() == before
    run(folder, "--resume")
    assert numbers(folder) == numbers(evaluated)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "holds no run of experiments.cifar10_mixture: it has no config.json"),
        ("result.json", "holds a run that is not finished .* it has no result.json"),
        ("checkpoints", "holds a run without its checkpoints"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(removed, message, finished, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(str(each) for each in folder.rglob("*"))
    line = refusal(capsys, folder)
    assert line.startswith("python -m experiments.evaluate: error: run_dir ")
    assert re.search(message, line)
    assert sorted(str(each) for each in folder.rglob("*")) == before


def test_a_run_of_another_program_or_with_damaged_files_is_refused(finished, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"temperament": 1}))
    assert "another program or version: config.json has temperament" in refusal(capsys, folder)
    (folder / "config.json").write_text("{")
    assert "config.json is not readable JSON" in refusal(capsys, folder)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.rmtree(folder / "single")
    for step in (folder / "checkpoints").iterdir():
        if step.is_dir():
            shutil.rmtree(step / "state")
    assert "no sound checkpoint" in refusal(capsys, folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--budget huge", "--budget: invalid choice: 'huge'"),
        ("--num-examples -1", "num_examples must be a whole number of at least 0, got -1"),
        ("--num-examples many", "--num-examples: not a whole number: 'many'"),
        ("--num-complete 0", "num_complete must be a whole number of at least 1, got 0"),
        ("--num-radii -1", "num_radii must be a whole number of at least 0, got -1"),
        ("--num-diagnosed 0", "num_diagnosed must be a whole number of at least 1, got 0"),
        ("--batch-size -5", "batch_size must be a whole number of at least 0, got -5"),
        ("--devices 400", "devices must lie in [1, 4], got"),
        ("--preset demo", "unrecognized arguments: --preset demo"),
        ("--run-dir=", "run_dir must be the folder of a finished run: --run-dir DIR"),
        ("--run-dir /nowhere", "run_dir /nowhere holds no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, finished, capsys):
    assert message in refusal(capsys, finished, *flags.split())
    assert not list(finished.rglob("evaluation_*"))


def test_too_few_runs_for_the_members_are_refused(finished, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "single")
    monkeypatch.setattr(evaluation, "attack_suite", ATTACK_SUITE)
    monkeypatch.setitem(evaluate.BUDGETS, "quick", BUDGET._replace(num_member_runs=1))
    with pytest.raises(SystemExit):
        run(folder)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "num_member_runs must be at least the number of members 2, got 1" in line


def test_several_devices_give_the_numbers_of_one(evaluated, finished, tmp_path):
    """The single classifier in the run's folder is a finished run of its own."""
    folder = tmp_path / "run"
    shutil.copytree(finished / "single", folder)
    run(folder, "--devices", "4", "--batch-size", "10", "--num-radii", "2")
    found, expected = numbers(folder), numbers(evaluated / "single")
    for name in ("robust_accuracy", "members", "averaged", "sandwich"):
        assert found[name] == expected[name]
    security = [
        json.loads((each / "evaluation_quick.json").read_text())["security"]
        for each in (folder, evaluated / "single")
    ]
    assert security[0] == security[1]


def test_an_evaluation_that_was_interrupted_ends_with_the_numbers_of_one_that_was_not(
    evaluated, finished, tmp_path, monkeypatch
):
    """SIGTERM within the third batch of the mixture, after the single classifier was written."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shown = []

    def show(bars, *done):
        shown.append((bars.name, *done))
        if [name for name, *_ in shown].count("mixture of 2") == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Bars, "show", show)
        with pytest.raises(SystemExit) as stop:
            run(folder)
    assert stop.value.code == 143
    assert (folder / "single" / "evaluation_quick.json").exists()
    assert not (folder / "evaluation_quick.json").exists()
    run(folder, "--resume")
    assert numbers(folder) == numbers(evaluated)
    assert numbers(folder / "single") == numbers(evaluated / "single")


def test_another_threat_has_files_of_its_own_and_its_thresholds_are_those_of_the_image_size(
    finished, tmp_path
):
    folder = tmp_path / "finished"
    shutil.copytree(finished / "single", folder)
    run(folder, "--norm", "l2", "--epsilon", "1/2", "--num-examples", "8", "--carlini-wagner")
    result = json.loads((folder / "evaluation_quick_l2_0.5.json").read_text())
    assert "evaluation_quick.json" not in [path.name for path in folder.iterdir()]
    scores = result["carlini_wagner"]
    assert [round(each["norm"], 4) for each in scores] == [0.0577, 0.0866, 0.1155]
    accuracies = [each["accuracy"] for each in scores]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "quick_l2_0.5" in (folder / "report.md").read_text()
    with pytest.raises(SystemExit):
        run(folder, "--norm", "l2", "--epsilon", "-1")
