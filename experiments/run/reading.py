"""Finished runs of `experiments.cifar10_mixture`, for the programs that look at them."""

import dataclasses
import pathlib
from typing import NamedTuple

from experiments.meunier_2021.settings import Config
from mixjax import reporting


class Run(NamedTuple):
    """A finished run, or the single classifier in it."""

    folder: pathlib.Path
    recorded: dict
    config: Config
    result: dict

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"


def read_run(folder: pathlib.Path) -> Run:
    """Reads a finished run.

    Raises:
      ValueError: if there is none, or one that is not finished or of another program.
    """
    for file, what in (
        ("config.json", "no run of experiments.cifar10_mixture"),
        ("result.json", "a run that is not finished (continue it with --resume of its program)"),
        ("checkpoints", "a run without its checkpoints"),
    ):
        if not (folder / file).exists():
            raise ValueError(f"run_dir {folder} holds {what}: it has no {file}")
    recorded = reporting.read_config(folder)
    known = {field.name for field in dataclasses.fields(Config)}
    if foreign := sorted(recorded.keys() - known):
        raise ValueError(
            f"run_dir {folder} holds a run of another program or version: "
            f"config.json has {', '.join(foreign)}"
        )
    return Run(folder, recorded, Config(**recorded), reporting.read_result(folder))
