"""The frame of a program: defaults in the help, going on with a folder's own config, Ctrl-C."""

import dataclasses
import json
import pathlib
import sys

import pytest

from experiments import cifar10_mixture
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.program import Outcome
from mixjax.interrupt import Stopped
from mixjax.reporting import Head


@dataclasses.dataclass(frozen=True)
class Config:
    size: float = flag(1.0, "a size")
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder")
    resume: bool = flag(False, "continue")
    debug: bool = flag(False, "show the traceback of an error")


HEAD = Head("l2", "0.5", "one", "none", "3", "Size matters.")
PRESETS = {"small": Config(size=0.5), "large": Config(size=7.5)}


def call(argv, seen, experiment=lambda: None):
    def run(call):
        seen.append((call.choice, call.config.size))

        def found():
            experiment()
            return Outcome({"size": call.config.size}, "done", HEAD)

        program.complete(call, found)

    program.main("tests.sizes", "Sizes.", PRESETS, run, argv, folder="runs/{name}-{choice}")


def test_the_help_of_a_preset_shows_its_own_defaults(capsys):
    for flags, shown in (([], "(preset fast: 8)"), (["--preset", "demo"], "(preset demo: 0.2)")):
        with pytest.raises(SystemExit) as stop:
            cifar10_mixture.main([*flags, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert stop.value.code == 0
        expected = cifar10_mixture.PRESETS[flags[-1] if flags else "fast"].epsilon
        assert f"also as a fraction: 8/255 (preset {shown[8:12]}: {expected!r})" in text


def test_the_help_does_not_wait_for_what_only_a_run_needs(children):
    code = """if True:
        import sys
        from experiments import cifar10_mixture, evaluate
        from experiments.hamm_2018 import minimax_defense
        slow = {"flax.nnx", "matplotlib", "orbax.checkpoint", "scipy.optimize"}
        assert not slow & {*sys.modules}, slow & {*sys.modules}
    """
    root = pathlib.Path(__file__).resolve().parents[3]
    finished = children.run([sys.executable, "-c", code], cwd=root)
    assert finished.returncode == 0, finished.stderr


def test_resume_and_a_folder_alone_go_on_with_the_config_in_it(tmp_path, capsys):
    folder, seen = tmp_path / "run", []
    call(["--preset", "large", "--size", "9", "--run-dir", str(folder)], seen)
    first = (folder / "result.json").read_bytes()
    call(["--resume", "--run-dir", str(folder)], seen)
    assert seen == [("large", 9.0), ("", 9.0)]
    assert json.loads(first)["config"] == {"size": 9.0, "seed": 0}
    for flags, told in (
        (["--preset", "large", "--resume"], "size: 9.0 -> 7.5"),  # named, it counts
        (["--resume", "--size", "3"], "size: 9.0 -> 3.0"),
        ([], "holds a run already: continue it with --resume or choose another --run-dir"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call([*flags, "--run-dir", str(folder)], [])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and told in error and error.count("\n") == 1


def test_without_a_run_there_resume_begins_the_preset_that_is_usual(tmp_path):
    seen = []
    call(["--resume", "--run-dir", str(tmp_path / "run")], seen)
    assert seen == [("small", 0.5)]


def test_a_stop_says_where_and_how_to_go_on_with_the_exit_code_of_the_signal(tmp_path, capsys):
    folder = tmp_path / "a run"

    def stopped():
        raise Stopped(143, "after step 3 of 7 of training, which is saved")

    def interrupted():
        raise KeyboardInterrupt  # what Ctrl-C becomes

    for experiment, code, told in (
        (stopped, 143, "stopped after step 3 of 7 of training, which is saved; --resume --run-dir"),
        (interrupted, 130, "stopped; --resume --run-dir"),
    ):
        with pytest.raises(SystemExit) as stop:
            call(["--resume", "--run-dir", str(folder)], [], experiment)
        error = capsys.readouterr().err
        assert stop.value.code == code and error.count("\n") == 1
        assert f"python -m tests.sizes: {told}" in error
    assert not (folder / "result.json").exists()
