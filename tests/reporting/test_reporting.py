"""The folder of a run: refused when it is another's, never half-written, strict JSON."""

import json
import math
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import files, reporting

CONFIG = {"dataset": "digits", "num_members": 2, "epsilon": 0.2, "milestones": (1, 2)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def open_and_close(*args, **kwargs):
    with reporting.open_run(*args, **kwargs) as run_dir:
        return run_dir


def test_a_new_folder_holds_the_config_and_nothing_else(tmp_path):
    run_dir = open_and_close(tmp_path / "deep" / "run", CONFIG)
    assert names(run_dir) == [".lock", "config.json"]
    assert json.loads((run_dir / "config.json").read_text()) == CONFIG | {"milestones": [1, 2]}


def test_a_run_that_is_there_is_refused_naming_the_flag(tmp_path):
    open_and_close(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="run_dir .* holds a run already: resume it"):
        open_and_close(tmp_path, CONFIG)


def test_the_same_run_may_be_resumed_and_a_missing_one_begins(tmp_path):
    run_dir = open_and_close(tmp_path / "run", CONFIG, resume=True)
    assert open_and_close(run_dir, CONFIG, resume=True) == run_dir


def test_resuming_with_another_config_is_refused_naming_the_fields(tmp_path):
    open_and_close(tmp_path, CONFIG)
    other = {"dataset": "digits", "num_members": 3, "epsilon": 0.2, "seed": 1}
    with pytest.raises(ValueError) as caught:
        open_and_close(tmp_path, other, resume=True)
    for change in ("milestones: [1, 2] -> (absent)", "num_members: 2 -> 3", "seed: (absent) -> 1"):
        assert change in str(caught.value)
    assert "epsilon" not in str(caught.value)


def test_a_folder_in_use_is_refused_in_one_line_with_the_process_and_free_afterwards(tmp_path):
    with reporting.open_run(tmp_path, CONFIG):
        reporting.append_metrics(tmp_path, {"step": 1})
        before = (tmp_path / "metrics.jsonl").read_bytes() + b'{"step": 2, "lo'  # being written
        (tmp_path / "metrics.jsonl").write_bytes(before)
        message = f"run_dir {tmp_path} is in use by another process \\(pid {os.getpid()}\\)"
        with pytest.raises(ValueError, match=message + "$"):
            open_and_close(tmp_path, CONFIG, resume=True)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with reporting.open_run(tmp_path, CONFIG, resume=True) as run_dir:
        assert reporting.read_metrics(run_dir) == [{"step": 1}]


HOLD = """
import sys, time
from mixjax import files
with files.hold(sys.argv[1], argument="run_dir"):
    time.sleep(600)
"""


def test_a_killed_process_frees_its_folder(tmp_path, children):
    process = children.start([sys.executable, "-c", HOLD, str(tmp_path)])
    children.wait(lambda: (tmp_path / ".lock").exists() and (tmp_path / ".lock").read_text())
    with pytest.raises(ValueError, match=f"in use by another process .pid {process.pid}."):
        with files.hold(tmp_path, argument="run_dir"):
            pass
    process.kill()
    children.finish(process)
    with files.hold(tmp_path, argument="run_dir"):
        pass


def test_of_two_that_claim_a_folder_at_once_one_has_it(tmp_path, monkeypatch):
    """The other writes its config between the claim of the first and its lock."""
    hold = files.hold

    def late(directory, *, argument):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"epsilon": 0.3}))
        return hold(directory, argument=argument)

    monkeypatch.setattr(files, "hold", late)
    with pytest.raises(ValueError, match="another config: epsilon: 0.3 -> 0.2"):
        open_and_close(tmp_path, CONFIG)


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="run_dir .* is not empty and has no config.json"):
        open_and_close(tmp_path, CONFIG, resume=resume)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_foreign_config_is_an_error_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text("not JSON")
    with pytest.raises(ValueError, match="config.json is not readable JSON"):
        open_and_close(tmp_path, CONFIG, resume=True)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="run_dir .* cannot be written: "):
            open_and_close(run_dir, CONFIG)


def test_a_folder_without_write_permission_is_a_clear_error(tmp_path, monkeypatch):
    """Asked of the system, because a superuser may write anywhere."""
    open_and_close(tmp_path, CONFIG)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="run_dir .* cannot be written: Permission denied"):
        open_and_close(tmp_path, CONFIG, resume=True)


def test_a_config_is_never_half_written(tmp_path, monkeypatch):
    """Killed before the rename, a run leaves a folder that the next start takes for empty."""

    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr("pathlib.Path.unlink", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            open_and_close(tmp_path, CONFIG)
    assert len(names(tmp_path)) == 1 and not (tmp_path / "config.json").exists()
    open_and_close(tmp_path, CONFIG)
    assert json.loads((tmp_path / "config.json").read_text())["num_members"] == 2


def test_a_config_that_json_cannot_hold_is_named_and_no_folder_made(tmp_path):
    with pytest.raises(ValueError, match="config.attack.epsilon must be finite, got inf"):
        open_and_close(tmp_path / "run", {"attack": {"epsilon": math.inf}})
    with pytest.raises(ValueError, match="config.model must be something JSON can hold"):
        open_and_close(tmp_path / "run", {"model": object()})
    assert not (tmp_path / "run").exists()


def test_metrics_come_back_as_they_were_written(tmp_path):
    assert reporting.read_metrics(tmp_path) == []
    entry = {"step": np.int64(3), "loss": jnp.float32(0.5), "weights": jnp.array([0.25, 0.75])}
    reporting.append_metrics(tmp_path, entry)
    reporting.append_metrics(tmp_path, {"step": 4, "note": "ω"})
    expected = [{"step": 3, "loss": 0.5, "weights": [0.25, 0.75]}, {"step": 4, "note": "ω"}]
    assert reporting.read_metrics(tmp_path) == expected
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"step": 1, "loss": math.nan}, "metrics.loss must be finite, got nan"),
        ({"step": 1, "weights": jnp.array([0.5, jnp.inf])}, r"metrics.weights\[1\] must be finite"),
        ({"loss": 1.0}, "metrics must hold the integer step, got None"),
    ],
)
def test_metrics_that_are_not_finite_are_named_and_not_written(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message):
        reporting.append_metrics(tmp_path, entry)
    assert reporting.read_metrics(tmp_path) == []


def test_metrics_after_the_restored_step_are_dropped(tmp_path):
    for step in (0, 2, 4, 5, 6):
        reporting.append_metrics(tmp_path, {"step": step})
    reporting.truncate_metrics(tmp_path, 4)
    assert [entry["step"] for entry in reporting.read_metrics(tmp_path)] == [0, 2, 4]
    assert names(tmp_path) == ["metrics.jsonl"]


def test_truncating_metrics_that_are_not_there_writes_nothing(tmp_path):
    reporting.truncate_metrics(tmp_path, 4)
    assert names(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2, "note": "\xcf', b'{"step": 2}'])
def test_a_torn_last_line_counts_as_never_written(tmp_path, torn):
    open_and_close(tmp_path, CONFIG)
    reporting.append_metrics(tmp_path, {"step": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert reporting.read_metrics(tmp_path) == [{"step": 1}]
    open_and_close(tmp_path, CONFIG, resume=True)
    reporting.append_metrics(tmp_path, {"step": 3})
    assert reporting.read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl line 2 is not JSON"):
        reporting.read_metrics(tmp_path)
