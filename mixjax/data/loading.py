"""`load`: a data set by its name, from the nearest place that has it."""

import contextlib
import os
import pathlib

import numpy as np

from mixjax import _extras, checks
from mixjax.data import cache
from mixjax.data.augmentation import NO_AUGMENTATION
from mixjax.data.datasets import Dataset, Split, choose, from_arrays
from mixjax.data.errors import DataError
from mixjax.data.sources import SOURCES

NAMES = ("digits", *SOURCES)
_DIGITS_WHITE = 16  # scikit-learn's digits are whole numbers from 0 to 16
_DIGITS_TEST_EXAMPLES = 360
_DIGITS_TEST_SEED = 0


def default_dir() -> pathlib.Path:
    """The folder of the data by default: `$MIXJAX_DATA_DIR`, or `~/.cache/mixjax`.

    Raises:
      DataError: if the folder is to lie in a home folder and there is none.
    """
    told = os.environ.get("MIXJAX_DATA_DIR")
    return _at_home(told or "~/.cache/mixjax", "MIXJAX_DATA_DIR" if told else "the default")


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    num_validation: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Dataset:
    """Loads a data set.

    `digits` (8 x 8 x 1, embedded in scikit-learn) needs neither network nor disk. The others are
    looked for as `<data_dir>/<name>.npz`, as `<data_dir>/<name>/<version>` prepared by TensorFlow
    Datasets, as official archives in `manual_dir`, and on the network, in this order; what was
    found is kept as `<data_dir>/<name>.npz`, unless the folder cannot be written. The test split
    is the official one, and for `digits` a fixed one: it depends on no argument.

    Args:
      name: `digits`, `cifar10`, `cifar100`, `mnist` or `fashion_mnist`.
      data_dir: folder of all data sets; `None` is `default_dir()`.
      manual_dir: folder with the official archives, instead of the network.
      num_validation: number of validation examples, carved from the training examples; `None` is a
        tenth of them, 5 000 for CIFAR.
      seed: which examples these are, at most 2^32 - 1.
      progress: whether downloading and preparing show progress bars.

    Returns:
      A `Dataset` of NumPy arrays, images uint8 `[N, H, W, C]`, labels int32 `[N]`.

    Raises:
      DataError: saying in one line what to do, if the data cannot be obtained or is damaged.
      ValueError: if the name is unknown or `num_validation` or `seed` is out of range.

    Example:
      >>> from mixjax import data
      >>> digits = data.load("digits")
      >>> digits.image_shape, digits.num_classes, len(digits.test.labels)
      ((8, 8, 1), 10, 360)
    """
    checks.one_of(NAMES, name=name)
    checks.seed(seed=seed)
    if num_validation is not None:
        checks.at_least(1, num_validation=num_validation)
    if name == "digits":
        class_names, augmentation = tuple("0123456789"), NO_AUGMENTATION
        train, test = _digits()
    else:
        folder = default_dir() if data_dir is None else _at_home(data_dir, "data_dir")
        manual = None if manual_dir is None else _at_home(manual_dir, "manual_dir")
        class_names, augmentation = SOURCES[name].class_names, SOURCES[name].augmentation
        train, test = _find(SOURCES[name], folder, manual, progress)
    return from_arrays(
        name,
        class_names,
        train,
        test,
        num_validation=num_validation,
        seed=seed,
        augmentation=augmentation,
    )


def _at_home(path, name):
    """`path` with the home for `~`; a container may run without one."""
    try:
        expanded = pathlib.Path(path).expanduser()
        if not expanded.is_absolute() and str(path).startswith("~"):
            raise RuntimeError("HOME is no absolute path")
    except RuntimeError as error:
        raise DataError(
            f"{name} {path} has no home folder to be in: pass a data_dir, or set MIXJAX_DATA_DIR"
        ) from error
    return expanded


def _find(source, data_dir, manual_dir, progress):
    path = data_dir / f"{source.name}.npz"
    if path.exists():
        return cache.read(path, source)
    try:
        with _extras.needed("data"):
            from mixjax.data import builders
    except ImportError as error:
        raise DataError(
            f"{path} does not exist, and {source.name} cannot be prepared without "
            f"tensorflow-datasets ({error}): install it, or put {path.name} into {data_dir}"
        ) from error
    train, test = builders.read(source, data_dir, manual_dir, progress=progress)
    with contextlib.suppress(OSError):  # A folder that is full or read-only does not hold it.
        cache.write(path, train, test)
    return train, test


def _digits():
    with _extras.needed("data"):
        import sklearn.datasets  # Slow to import, and no other data set needs it.

    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / _DIGITS_WHITE)).astype(np.uint8).reshape(-1, 8, 8, 1)
    test, train = choose(len(labels), _DIGITS_TEST_EXAMPLES, _DIGITS_TEST_SEED)
    return Split(images[train], labels[train]), Split(images[test], labels[test])
