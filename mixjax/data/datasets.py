"""What a data set is, and the checks that every one of them has passed, a user's own too."""

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mixjax import checks
from mixjax.data.augmentation import NO_AUGMENTATION, Augmentation
from mixjax.typing import Array


class Split(NamedTuple):
    """Examples; a pytree, so that `jax.device_put(split)` puts it on the device.

    Attributes:
      images: `[N, H, W, C]` uint8, or floating point in [0, 1].
      labels: `[N]` int32 classes.
    """

    images: np.ndarray | Array
    labels: np.ndarray | Array


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits of the same kind of images, checked when it is made.

    Attributes:
      name: what reports call it.
      class_names: a name per class; label `k` means `class_names[k]`.
      train: what parameters and weights are fitted to.
      validation: what checkpoints and settings are selected by.
      test: what is reported, and nothing else.
      augmentation: random changes that leave a training image in its class; none by default: a
        mirrored digit, for example, is no longer that digit.

    Raises:
      ValueError: if a split fails `check` or the splits' images differ in shape or dtype.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    augmentation: Augmentation = NO_AUGMENTATION

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            check(split.images, split.labels, self.num_classes, name=f"{name}.")
            checks.shape((None, *self.image_shape), **{f"{name}.images": split.images})
            checks.one_of([self.train.images.dtype], **{f"{name}.images.dtype": split.images.dtype})

    @property
    def num_classes(self) -> int:
        """The number of classes, also of those without examples."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)` of one image."""
        return tuple(self.train.images.shape[1:])


def check(images: ArrayLike, labels: ArrayLike, num_classes: int, *, name: str = "") -> None:
    """Raises `ValueError` unless these are images with a class each.

    Args:
      images: `[N, H, W, C]` uint8, or floating point in [0, 1] without NaN.
      labels: `[N]` integers in [0, num_classes).
      num_classes: number of classes, at least 2.
      name: put before `images` and `labels` in an error.

    Raises:
      ValueError: naming the argument and what it holds.
    """
    checks.at_least(2, num_classes=num_classes)
    images, labels = np.asarray(images), np.asarray(labels)
    checks.non_empty(4, **{f"{name}images": images})
    if np.issubdtype(images.dtype, np.floating):
        checks.within(0, 1, **{f"{name}images": images})
    elif images.dtype != np.uint8:
        raise ValueError(f"{name}images must be uint8 or floating point, got {images.dtype}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}labels must be integers, got {labels.dtype}")
    checks.shape((len(images),), **{f"{name}labels": labels})
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name}labels must be classes 0 to {num_classes - 1}, got {wrong}")


def from_arrays(
    name: str,
    class_names: tuple[str, ...],
    train: Split,
    test: Split,
    *,
    num_validation: int | None = None,
    seed: int = 0,
    augmentation: Augmentation = NO_AUGMENTATION,
) -> Dataset:
    """A `Dataset` whose validation examples are carved from `train`, without replacement.

    Args:
      name: what reports call it.
      class_names: a name per class.
      train: training examples, some of which become the validation split; in order otherwise.
      test: test examples, untouched.
      num_validation: number of validation examples; `None` is a tenth of `train`.
      seed: of the choice, which depends on it, `num_validation` and the number of examples only;
        at most 2^32 - 1.
      augmentation: what suits the images in training.

    Returns:
      The `Dataset`, of NumPy arrays; labels are int32.

    Raises:
      ValueError: if a split fails `check`, no example is left to train on or to validate with, or
        `seed` is out of its range.

    Example:
      >>> import numpy as np
      >>> from mixjax import data
      >>> part = lambda n: data.Split(np.zeros((n, 4, 4, 1), np.uint8), np.arange(n) % 2)
      >>> mine = data.from_arrays("mine", ("left", "right"), part(20), part(6))
      >>> len(mine.train.labels), len(mine.validation.labels), mine.image_shape
      (18, 2, (4, 4, 1))
    """
    for split_name, split in (("train", train), ("test", test)):
        check(split.images, split.labels, len(class_names), name=f"{split_name}.")
    num_examples = len(train.labels)
    num_validation = max(1, num_examples // 10) if num_validation is None else num_validation
    checks.at_least(1, num_validation=num_validation)
    checks.seed(seed=seed)
    if num_validation >= num_examples:
        raise ValueError(
            f"num_validation must be below the {num_examples} training examples, "
            f"got {num_validation}"
        )
    chosen, rest = choose(num_examples, num_validation, seed)
    return Dataset(
        name=name,
        class_names=tuple(class_names),
        train=_select(train, rest),
        validation=_select(train, chosen),
        test=_select(test, slice(None)),
        augmentation=augmentation,
    )


def choose(num_examples: int, num_chosen: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices `[num_chosen]` drawn without replacement, and the rest; both ascending."""
    # The stream of RandomState is frozen for good, so that a split never moves with NumPy.
    order = np.random.RandomState(seed).permutation(num_examples)
    return np.sort(order[:num_chosen]), np.sort(order[num_chosen:])


def _select(split, indices):
    labels = np.asarray(split.labels).astype(np.int32)
    images = np.asarray(split.images)[indices]
    return Split(images.astype(images.dtype.newbyteorder("="), copy=False), labels[indices])
