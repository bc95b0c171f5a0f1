"""The folder of a run: `config.json`, written once, and `metrics.jsonl`, which grows."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mixjax import files

METRICS = "metrics.jsonl"


@contextlib.contextmanager
def open_run(
    run_dir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    argument: str = "run_dir",
) -> Iterator[pathlib.Path]:
    """Makes the folder of a new run, or confirms that it holds this run, and holds it.

    No other process can open it before the end of the `with` block or of this process:

        with open_run(run_dir, config) as folder:
            ...

    Args:
      run_dir: the folder; missing, empty, or, with `resume`, one of the same config.
      config: dict that JSON can hold; stored as `config.json` and compared.
      resume: whether to continue a run that is there. If there is none a new run begins, so that
        one command can be repeated until a run is finished.
      argument: what to call the folder in an error.

    Yields:
      The folder as a path.

    Raises:
      ValueError: if the folder cannot be written, holds foreign files, holds a run and `resume`
        is false, belongs to another config (the message names the differing fields), or is in use
        by another process.
    """
    run_dir = pathlib.Path(run_dir)
    if not resume and (run_dir / files.CONFIG).exists():
        raise ValueError(
            f"{argument} {run_dir} holds a run already: resume it or choose another folder"
        )
    new = files.claim(run_dir, config, argument=argument)
    with files.hold(run_dir, argument=argument):
        # Another process may have claimed it at the same time, and with another config.
        files.claim(run_dir, config, argument=argument)
        if not new:
            truncate_metrics(run_dir, math.inf)  # A line that a kill has torn swallows the next.
        yield run_dir


def read_config(run_dir: str | os.PathLike) -> Any:
    """The config of the run in the folder `run_dir`.

    Raises:
      ValueError: if it is not JSON.
    """
    return files.read_json(pathlib.Path(run_dir) / files.CONFIG)


def append_metrics(run_dir: str | os.PathLike, entry: Mapping[str, Any]) -> None:
    """Adds one line to `metrics.jsonl`.

    Args:
      run_dir: folder of the run.
      entry: dict with the integer `step`, the training steps done, and whatever was measured
        then. The figures read `epoch` (epochs per classifier), `clean_accuracy`,
        `robust_accuracy` and `weights`.

    Raises:
      ValueError: if `step` is missing or an entry is not finite; nothing is written then.
    """
    entry = files.plain(entry, "metrics")
    if not isinstance(entry.get("step"), int):
        raise ValueError(f"metrics must hold the integer step, got {entry.get('step')}")
    with (pathlib.Path(run_dir) / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """All entries of `metrics.jsonl` in order; a torn last line counts as never written.

    Raises:
      ValueError: if another line is not JSON or has no integer `step`.
    """
    path = pathlib.Path(run_dir) / METRICS
    if not path.exists():
        return []
    # A character that a kill has cut in half may stand in the torn line only.
    *lines, _torn = path.read_bytes().decode(errors="replace").split("\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(entries[-1], dict) or not isinstance(entries[-1].get("step"), int):
            raise ValueError(f"{path} line {number} has no integer step")
    return entries


def truncate_metrics(run_dir: str | os.PathLike, step: float) -> None:
    """Drops the entries after `step`, the step of the checkpoint from which a run continues."""
    path = pathlib.Path(run_dir) / METRICS
    if path.exists():
        kept = [entry for entry in read_metrics(run_dir) if entry["step"] <= step]
        files.write(path, "".join(json.dumps(entry) + "\n" for entry in kept))
