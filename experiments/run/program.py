"""What the experiments on toy problems share: a command line, a folder, and where results go."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.run import command_line
from mixjax import checks, files, reporting

_PLACES = ("run_dir", "debug")


def main(
    program: str,
    description: str,
    config: Any,
    experiment: Callable[[Any, pathlib.Path], tuple[dict, str]],
    argv,
):
    """Runs an experiment and writes `result.json`; bad input ends in one line and exit code 2.

    Args:
      program: name of the module.
      description: what `--help` shows.
      config: the settings without flags, with `run_dir`, `seed` and `debug` among them.
      experiment: `(config, folder) -> (result, summary)`: writes its figures and files into the
        folder, returns the result and a few lines to print.
      argv: arguments; None for those of the process.
    """
    command = f"python -m {program}"
    _, config = command_line.parse(
        argv, {"paper": config}, default="paper", program=command, description=description
    )
    with command_line.errors_in_one_line(command, debug=config.debug):
        checks.seed(seed=config.seed)
        start = time.monotonic()
        recorded = {
            name: value for name, value in dataclasses.asdict(config).items() if name not in _PLACES
        }
        # The same command again does the same again; another config needs another folder.
        run_dir = config.run_dir or f"runs/{program.split('.')[-1]}"
        with reporting.open_run(run_dir, recorded, resume=True) as folder:
            result, summary = experiment(config, folder)
            words = ["python", "-m", program, *(sys.argv[1:] if argv is None else argv)]
            origin = reporting.provenance(words, config.seed, time.monotonic() - start)
            result = {**result, "config": recorded, "provenance": origin}
            files.write_json(folder / "result.json", result, "result")
        print(summary)
        print(f"{folder} holds the figures and numbers.")


def numbers(low: float, high: float, **lists: str) -> list[float]:
    """The numbers in a flag such as `"1 0.3 0.1"`.

    Raises:
      ValueError: naming the flag, if there are none or one is not a number of [low, high].
    """
    ((name, text),) = lists.items()
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers, got {text!r}") from error
    if not values:
        raise ValueError(f"{name} must hold at least one number, got {text!r}")
    checks.within(low, high, **{name: values})
    return values


def write_csv(path, columns: dict[str, Any]):
    """Writes columns of equal length as CSV, whole or not at all."""
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(f"{value:g}" for value in row) for row in rows)]
    files.write(path, "\n".join(lines) + "\n")
