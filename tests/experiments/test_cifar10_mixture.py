"""The experiment as a person runs it: flags, bad input, run folder, kill and resume."""

import dataclasses
import functools
import io
import json
import os
import pickle
import signal
import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import setting
from experiments import cifar10_mixture
from experiments.meunier_2021 import algorithm, training
from experiments.meunier_2021.settings import PRESETS
from experiments.run import command_line, program
from mixjax import data, files, reporting
from mixjax.front import loop

# A linear model on digits: the whole experiment in seconds.
TINY = (
    "--preset demo --model linear --epochs 3 --batch-size 256 --attack-steps 2 --model-steps 2 "
    "--weight-steps 2 --learning-rate 0.05 --validation-examples 40 --validation-steps 2 "
    "--test-examples 30 --test-runs 6 --test-steps 2 --test-batch-size 40 --dispatch-steps 2 "
    "--devices 1"
).split()


def run(run_dir, *flags):
    with pytest.MonkeyPatch.context() as patch:
        draw = functools.partial(cifar10_mixture.draw_attacks, num_examples=1)
        patch.setattr(cifar10_mixture, "draw_attacks", draw)
        cifar10_mixture.main([*TINY, "--run-dir", str(run_dir), *flags])


def settings_of(*flags):
    """The config of the flags."""
    argv = [*TINY, *flags]
    return command_line.parse(argv, PRESETS, default="demo", program="", description="")[1]


def trained(folder, *flags):
    """Metrics and state of the training alone, without the attack on what it leaves."""
    config, dataset = settings_of(*flags), data.load("digits")
    split = data.Split(*(part[: config.train_examples or None] for part in dataset.train))
    game = algorithm.build(config, dataclasses.replace(dataset, train=split))
    folder.mkdir()
    best = training.train("mixture", game, split, folder, folder / "checkpoints", {})
    return reporting.read_metrics(folder), best


def numbers(run_dir):
    """Everything measured by a run except durations."""
    result = json.loads((run_dir / "result.json").read_text())
    del result["provenance"]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(folder)
    return folder


def test_a_run_leaves_its_numbers_figures_and_report_for_mixture_and_single(finished):
    for folder in (finished, finished / "single"):
        result, metrics = numbers(folder)
        assert len(metrics) == (3 if folder == finished else result["config"]["epochs"])
        assert 0 <= result["sandwich"]["lower"] <= result["robust_accuracy"]["worst"] + 1e-9
        assert result["num_attack_runs"] == 6
    result, metrics = numbers(finished)
    best = max(metrics, key=lambda row: (row["robust_accuracy"], row["step"]))
    assert result["weights"] == best["weights"]
    single, _ = numbers(finished / "single")
    assert (result["num_members"], single["num_members"]) == (2, 1)
    worst = result["robust_accuracy"]["worst"] - single["robust_accuracy"]["worst"]
    assert result["versus_single"]["difference"] == pytest.approx(worst)
    cost = result["training_passes"] / single["training_passes"]
    assert cost == pytest.approx(1, abs=0.1)
    for name in ("config.json", "curves.png", "weights.png", "attacks.png", "report.md"):
        assert (finished / name).stat().st_size > 0


def test_selection_sees_validation_data_and_never_test_data(tmp_path, monkeypatch, finished):
    """With other test labels training, selection and validation are the same."""
    load = data.load

    def with_wrong_test_labels(*args, **kwargs):
        dataset = load(*args, **kwargs)
        test = data.Split(dataset.test.images, (dataset.test.labels + 1) % 10)
        return data.Dataset(
            dataset.name, dataset.class_names, dataset.train, dataset.validation, test
        )

    monkeypatch.setattr(data, "load", with_wrong_test_labels)
    metrics, _ = trained(tmp_path / "run")
    _, expected = numbers(finished)
    seconds = {"seconds", "images_per_second"}
    for row, other in zip(metrics, expected, strict=True):
        for name in {*other} - seconds:
            assert row[name] == other[name], name


def test_the_most_robust_epoch_is_the_one_that_is_kept(tmp_path, monkeypatch):
    """Half-way the training turns round and ascends: the last state is the worst."""

    def turning(config, num_steps):
        return lambda step: 0.05 * jnp.where(step < num_steps / 2, 1.0, -1.0)

    monkeypatch.setattr("experiments.meunier_2021.algorithm.schedule", turning)
    flags = "--average-decay 0 --ramp 0 --epochs 6 --weights uniform"
    metrics, kept = trained(tmp_path / "run", *flags.split())
    best = max(metrics, key=lambda row: row["robust_accuracy"])
    assert best["epoch"] < 5 and best["clean_accuracy"] > metrics[-1]["clean_accuracy"] + 0.5
    assert int(kept.step) == best["step"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset none", "--preset: invalid choice: 'none'"),
        ("--dataset none", "--dataset: invalid choice: 'none'"),
        ("--loss none", "--loss: invalid choice: 'none'"),
        ("--members 0", "members must be a whole number of at least 1, got 0"),
        ("--members two", "--members: not a whole number: 'two'"),
        ("--epsilon -8/255", "epsilon must be positive, got -0.03"),
        ("--epsilon 1/0", "--epsilon: not a number: '1/0'"),
        ("--learning-rate -1", "learning_rate must be positive, got -1.0"),
        ("--learning-rate nan", "--learning-rate: not a number: 'nan'"),
        ("--attack-steps -1", "attack_steps must be a whole number of at least 1, got -1"),
        ("--epochs 0", "epochs must be a whole number of at least 1, got 0"),
        ("--batch-size 2000", "batch_size must lie in [1, 1294], got"),
        ("--devices 3", "batch_size must be divisible by 3 devices, got 256"),
        ("--devices 400", "devices must lie in [1, 4], got"),
        ("--devices 4 --member-devices 4", "members must be divisible by 4 devices, got 2"),
        ("--members 3", "test_runs must be a whole number of at least 9, got 6"),
        ("--seed 4294967296", "seed must be a whole number from 0 to 4294967295, got 4294967296"),
        ("--seed 99999999999999999999", "seed must be a whole number from 0 to 4294967295"),
        ("--crop -2", "crop must be a whole number of at least -1, got -2"),
        ("--crop 8", "crop must lie in [-1, 7], got 8"),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", *flags.replace("--epsilon -", "--epsilon=-").split())
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_neither_overwritten_nor_mixed_with_another(finished, tmp_path, capsys):
    before = (finished / "result.json").read_bytes()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    for folder, flags, message in (
        (finished, [], "--resume"),
        (finished, ["--resume", "--epsilon", "0.3"], "epsilon"),
        (tmp_path / "foreign", [], "run_dir"),
        (tmp_path / "foreign" / "letter.txt", [], "run_dir"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(folder, *flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert (finished / "result.json").read_bytes() == before
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["letter.txt"]


def test_a_run_folder_whose_checkpoints_could_not_be_read_is_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "[lr=0.1] a")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "run_dir must not have [ in its path" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_digits_are_not_mirrored_or_shifted_unless_each_is_asked_for(preset):
    config = PRESETS[preset]
    digits, photographs = data.load("digits").augmentation, data.Augmentation(4, flip=True)
    for flags, of_digits, of_photographs in (
        ({}, (0, False), (4, True)),
        ({"crop": 1}, (1, False), (1, True)),
        ({"crop": 0}, (0, False), (0, True)),
        ({"flip": "yes"}, (0, True), (4, True)),
        ({"flip": "no"}, (0, False), (4, False)),
    ):
        told = dataclasses.replace(config, **flags)
        assert algorithm.augmentation(told, digits) == of_digits
        assert algorithm.augmentation(told, photographs) == of_photographs


def test_training_sees_the_shifts_that_it_was_told(monkeypatch):
    seen = []

    def augment(key, images, **changes):
        seen.append(changes)
        return images

    monkeypatch.setattr(data, "augment", augment)
    dataset = data.load("digits")
    for flags in ([], ["--crop", "1"], ["--flip", "yes"]):
        game = algorithm.build(settings_of(*flags), dataset)
        jax.eval_shape(lambda examples, game=game: game.batches(examples, 0)[:2], dataset.train)
    assert seen == [{"pad": 1, "flip": False}, {"pad": 0, "flip": True}]


def test_what_the_terminal_has_no_character_for_is_printed_as_its_code(monkeypatch):
    """As under PYTHONIOENCODING=ascii, in experiments and benchmarks alike."""

    def from_experiment():
        command_line.parse([], PRESETS, default="demo", program="", description="")

    for start in (from_experiment, lambda: setting.Parser("", "").parse_args([])):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
        start()
        print("90.0 \xb1 1.5", flush=True)
        assert written.getvalue() == b"90.0 \\xb1 1.5\n"


def test_without_a_home_programs_are_compiled_without_a_cache(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        program.cache_compilation()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_second_process_on_a_run_folder_is_refused_and_the_metrics_stay(finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    with files.hold(finished, argument="run_dir"):
        with pytest.raises(SystemExit) as stop:
            run(finished, "--resume")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"run_dir {finished} is in use by another process (pid {os.getpid()})" in error
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_data_outside_their_range_are_refused(tmp_path, capsys):
    images = np.zeros((20, 28, 28, 1), np.uint8)
    for name, labels in (("labels", np.full(20, 10, np.uint8)), ("images", np.zeros(20, np.uint8))):
        wrong = images if name == "labels" else images[..., 0].astype(np.float32) * np.nan
        np.savez(
            tmp_path / "mnist.npz",
            train_images=wrong,
            train_labels=labels,
            test_images=wrong,
            test_labels=labels,
        )
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "run", "--dataset", "mnist", "--data-dir", str(tmp_path))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "mnist.npz" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_that_turns_nan_stops_the_run_and_keeps_what_was_sound(
    tmp_path, monkeypatch, capsys
):
    def breaking(config, num_steps):
        return lambda step: jnp.where(step == 6, jnp.nan, 0.05)

    monkeypatch.setattr("experiments.meunier_2021.algorithm.schedule", breaking)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", "--no-single", "--weights", "uniform")
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert "the training loss is nan at step 8" in error
    assert sorted(
        path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()
    )


def test_without_an_accelerator_the_default_preset_names_one_that_works(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(SystemExit) as stop:
        cifar10_mixture.main([])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "--preset demo" in error and "--cpu" in error


def test_data_that_cannot_be_had_names_a_preset_that_needs_none(tmp_path, monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise data.DataError("cifar10 is not there")

    monkeypatch.setattr(data, "load", unreachable)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", "--dataset", "cifar10")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "--preset demo" in error


def test_a_run_that_was_interrupted_ends_with_the_numbers_of_one_that_was_not(
    tmp_path, finished, monkeypatch
):
    """SIGTERM in the middle of the second epoch; `mixjax.train`, on the same loop, is killed."""
    monkeypatch.setattr(cifar10_mixture, "draw_attacks", lambda *told, **settings: None)
    for name in ("plot_curves", "plot_weights"):
        monkeypatch.setattr(reporting, name, lambda path, *told, **settings: path.touch())
    folder, steps = tmp_path / "run", []

    def stop(step_losses, done, checkpoints):
        steps.append(done)
        if done + len(step_losses) >= 8:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_stop_at_nan", stop)
        with pytest.raises(SystemExit) as stopped:
            run(folder, "--no-single")
    assert stopped.value.code == 143 and steps[-1] < 8
    steps.clear()
    monkeypatch.setattr(loop, "_stop_at_nan", lambda losses, done, checkpoints: steps.append(done))
    run(folder, "--no-single", "--resume")
    assert 5 <= steps[0] <= 8  # from what is saved, and not anew
    (result, rows), (expected, wanted) = numbers(folder), numbers(finished)
    assert rows == wanted
    for name in ("weights", "clean_accuracy", "robust_accuracy", "members", "sandwich"):
        assert result[name] == expected[name]


def assert_same_training(metrics, other):
    for row, expected_row in zip(metrics, reporting.read_metrics(other), strict=True):
        assert row["loss"] == pytest.approx(expected_row["loss"], abs=1e-4)
        np.testing.assert_allclose(row["weights"], expected_row["weights"], atol=1e-4)


def test_several_devices_give_the_numbers_of_one(finished, tmp_path):
    flags = "--devices 4 --member-devices 2"
    assert_same_training(trained(tmp_path / "run", *flags.split())[0], finished)


# The data come in a file: what reads them otherwise takes longer to import than JAX.
TRAINING_ALONE = """if True:
    import pathlib, pickle, sys
    import jax
    import numpy as np
    from experiments import cifar10_mixture

    digits = pickle.loads(pathlib.Path(sys.argv.pop(1)).read_bytes())
    cifar10_mixture.data.load = lambda *told, **settings: digits

    def end(name, config, game, dataset, state):
        assert jax.process_count() == 2
        jax.tree.map(np.asarray, state._replace(key=()))  # every process holds all of it
        sys.exit(0)

    cifar10_mixture.evaluate = end
    cifar10_mixture.main(sys.argv[1:])
"""


def test_two_hosts_give_the_numbers_of_one(children, finished, tmp_path):
    """In their training: each attacks what came of it by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cache = jax.config.values["jax_compilation_cache_dir"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    (tmp_path / "digits").write_bytes(pickle.dumps(data.load("digits")))
    command = [sys.executable, "-c", TRAINING_ALONE, str(tmp_path / "digits")]
    command += [*TINY, "--no-single", "--devices", "2"]
    command += ["--run-dir", str(tmp_path / "run"), "--coordinator", address, "--processes", "2"]
    processes = [children.start([*command, "--process", str(k)], env=environment) for k in range(2)]
    for process in processes:
        _, error = children.finish(process)
        assert process.returncode == 0, error
    assert_same_training(reporting.read_metrics(tmp_path / "run"), finished)


def test_an_epoch_of_weight_steps_alone_has_no_loss_and_goes_on(tmp_path):
    """One step an epoch, every other one a weight step: there is no mean of no losses."""
    flags = "--train-examples 256 --model-steps 1 --epochs 4 --weight-batches 2"
    metrics, _ = trained(tmp_path / "run", *flags.split())
    assert [row["loss"] is None for row in metrics] == [False, True, False, True]
    assert metrics[0]["weights"] == [0.5, 0.5] != metrics[1]["weights"]
