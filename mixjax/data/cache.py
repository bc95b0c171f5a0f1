"""The NumPy copy of a data set, `<data_dir>/<name>.npz`: all that a later start needs.

The arrays are `train_images` and `test_images`, uint8 `[N, H, W, C]`, and `train_labels` and
`test_labels`, integers `[N]`. Nothing is ever pickled.
"""

import os
import pathlib
import uuid
import zipfile
import zlib

import numpy as np

from mixjax import checks
from mixjax.data.datasets import Split, check
from mixjax.data.errors import DataError
from mixjax.data.sources import Source

# A lone array is a TypeError, an encrypted or exotic archive a RuntimeError; the rest is damage.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def read(path: pathlib.Path, source: Source) -> tuple[Split, Split]:
    """The training and test split in the file `path`.

    Raises:
      DataError: naming the file, if it is truncated, damaged, or not a copy of this data set.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            train, test = (
                Split(arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for name in ("train", "test")
            )
        for name, split in (("train", train), ("test", test)):
            checked(split, source, name=f"{name}_")
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is not a sound NumPy copy of {source.name} ({_one_line(error)}): "
            "delete it, and it is made again"
        ) from error
    return train, test


def write(path: pathlib.Path, train: Split, test: Split) -> None:
    """Writes both splits to the file `path`, whole or not at all.

    Every writer has a temporary file of its own and renames it: of several at once the last one
    wins, and a reader sees a whole file at any time.

    Raises:
      OSError: if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez(
                file,
                train_images=train.images,
                train_labels=train.labels,
                test_images=test.images,
                test_labels=test.labels,
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checked(split: Split, source: Source, *, name: str = "") -> Split:
    """The split itself.

    Raises:
      ValueError: unless its images are uint8 of the shape of `source`, its labels classes of it.
    """
    check(split.images, split.labels, len(source.class_names), name=name)
    checks.one_of([np.dtype(np.uint8)], **{f"{name}images.dtype": split.images.dtype})
    checks.shape((None, *source.image_shape), **{f"{name}images": split.images})
    return split


def _one_line(error):
    return " ".join(str(error).split())
