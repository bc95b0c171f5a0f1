"""The metrics of a run for TensorBoard, beside `metrics.jsonl`: with the extra `tensorboard`."""

import contextlib
import importlib
import numbers
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mixjax import _extras

FOLDER = "tensorboard"


@contextlib.contextmanager
def open_scalars(
    run_dir: str | os.PathLike, *, is_wanted: bool = True
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives a function that writes the numbers of an entry of the metrics as scalars.

    A list, such as `weights`, becomes one scalar for each number. A run that continues after a kill
    writes a file of its own: TensorBoard shows the last value of each step.

    Args:
      run_dir: folder of the run; the scalars go into `tensorboard` below it.
      is_wanted: if false the function does nothing, and nothing is imported.

    Yields:
      `entry -> None`, of a dict as `append_metrics` takes it.

    Raises:
      ModuleNotFoundError: if TensorBoardX is not installed, in one line that names the extra.
    """
    if not is_wanted:
        yield lambda entry: None
        return
    with _extras.needed("tensorboard"):
        writer = importlib.import_module("tensorboardX").SummaryWriter(
            str(pathlib.Path(run_dir) / FOLDER)
        )
    try:
        yield lambda entry: _write(writer, entry)
    finally:
        writer.close()


def _write(writer, entry):
    for name, value in entry.items():
        if name == "step" or value is None:
            continue
        if isinstance(value, numbers.Real):
            writer.add_scalar(name, float(value), entry["step"])
        elif isinstance(value, list | tuple | np.ndarray) or hasattr(value, "__array__"):
            for k, number in enumerate(np.asarray(value, float).ravel(), 1):
                label = name if np.ndim(value) == 0 else f"{name}/{k}"
                writer.add_scalar(label, float(number), entry["step"])
