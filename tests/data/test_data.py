import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import data
from mixjax.data import datasets, sources


def numbered(num_examples, num_classes=4, start=0):
    """Images that carry their own number, so that every example can be followed."""
    number = np.arange(start, start + num_examples)
    images = np.zeros((num_examples, 2, 3, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 1, 2, 0] = number % 256, number // 256
    return data.Split(images, number % num_classes)


def numbers(split):
    return split.images[:, 0, 0, 0].astype(int) + 256 * split.images[:, 1, 2, 0].astype(int)


def test_digits_need_neither_network_nor_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "socket", None)
    dataset = data.load("digits", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert dataset.image_shape == (8, 8, 1) and dataset.num_classes == 10
    assert dataset.class_names == tuple("0123456789")
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [1294, 143, 360] and sum(sizes) == 1797
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.images.min() == 0 and split.images.max() == 255
        assert np.bincount(split.labels, minlength=10).min() > 5


def test_digits_are_scikit_learns_each_in_one_split():
    from sklearn.datasets import load_digits

    dataset = data.load("digits")
    raw = load_digits()
    ours = [
        (int(label), *(image.ravel() / 255 * 16).round().astype(int))
        for split in (dataset.train, dataset.validation, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    theirs = [
        (int(label), *pixels.astype(int))
        for pixels, label in zip(raw.data, raw.target, strict=True)
    ]
    assert sorted(ours) == sorted(theirs)


def test_another_seed_moves_validation_and_never_test():
    first, again, other = data.load("digits"), data.load("digits"), data.load("digits", seed=1)
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    assert (first.validation.images != other.validation.images).any()
    np.testing.assert_array_equal(first.test.images, other.test.images)
    np.testing.assert_array_equal(first.test.labels, other.test.labels)


def test_validation_is_carved_from_train_and_test_is_left_alone():
    train, test = numbered(300), numbered(40, start=300)
    dataset = data.from_arrays("own", tuple("abcd"), train, test, num_validation=70, seed=3)
    kept, chosen = numbers(dataset.train), numbers(dataset.validation)
    assert len(chosen) == 70
    assert sorted([*kept, *chosen]) == list(range(300))
    np.testing.assert_array_equal(numbers(dataset.test), np.arange(300, 340))
    for split in (dataset.train, dataset.validation, dataset.test):
        np.testing.assert_array_equal(split.labels, numbers(split) % 4)
    assert (np.diff(kept) > 0).all()


def test_a_tenth_of_train_validates_unless_told():
    dataset = data.from_arrays("own", tuple("abcd"), numbered(257), numbered(8))
    assert len(dataset.validation.labels) == 25 and len(dataset.train.labels) == 232


def test_the_choice_of_a_seed_stays_what_it_is():
    """Golden values: the splits of a finished run must be found again years later."""
    chosen, rest = datasets.choose(10, 3, seed=0)
    np.testing.assert_array_equal(chosen, [2, 4, 8])
    np.testing.assert_array_equal(rest, [0, 1, 3, 5, 6, 7, 9])
    np.testing.assert_array_equal(data.load("digits").test.labels[:8], [4, 5, 6, 9, 4, 7, 8, 9])


@pytest.mark.parametrize("num_validation", [0, -1, 20, 21])
def test_a_split_that_leaves_nothing_is_refused(num_validation):
    with pytest.raises(ValueError, match=f"num_validation must be .*got {num_validation}"):
        data.from_arrays(
            "own", tuple("abcd"), numbered(20), numbered(8), num_validation=num_validation
        )


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, 0.5])
def test_a_seed_that_is_no_seed_or_another_s_second_name_is_refused(seed):
    message = f"seed must be a whole number from 0 to 4294967295, got {seed}"
    with pytest.raises(ValueError, match=message):
        data.load("digits", seed=seed)
    with pytest.raises(ValueError, match=message):
        data.from_arrays("own", tuple("abcd"), numbered(20), numbered(8), seed=seed)


def test_the_highest_seed_chooses_as_no_other():
    highest, first = data.load("digits", seed=2**32 - 1), data.load("digits")
    assert (highest.validation.images != first.validation.images).any()


def test_digits_are_neither_shifted_nor_mirrored_and_photographs_are():
    assert data.load("digits").augmentation == (0, False)
    found = {name: tuple(source.augmentation) for name, source in sources.SOURCES.items()}
    assert found == {
        "cifar10": (4, True),
        "cifar100": (4, True),
        "mnist": (0, False),
        "fashion_mnist": (0, False),
    }
    own = data.from_arrays("own", tuple("abcd"), numbered(20), numbered(8))
    assert not any(own.augmentation)
    told = data.from_arrays(
        "own",
        tuple("abcd"),
        numbered(20),
        numbered(8),
        augmentation=data.Augmentation(2, flip=True),
    )
    assert told.augmentation == (2, True)


def test_images_of_another_byte_order_are_turned_or_refused():
    swapped = data.Split((numbered(20).images / 255).astype(">f4"), numbered(20).labels)
    dataset = data.from_arrays("own", tuple("abcd"), swapped, swapped)
    np.testing.assert_array_equal(dataset.test.images, swapped.images)
    assert dataset.test.images.dtype == np.float32
    jax.device_put(dataset.train)
    with pytest.raises(ValueError, match="train.images must be in native byte order"):
        data.Dataset("own", tuple("abcd"), swapped, swapped, swapped)


def test_without_a_home_the_error_says_what_to_pass(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("MIXJAX_DATA_DIR", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(data.DataError, match="no home folder.*pass a data_dir, or set MIXJAX"):
        data.load("cifar10")
    with pytest.raises(data.DataError, match="manual_dir ~/x has no home folder"):
        data.load("cifar10", "/nowhere", manual_dir="~/x")
    with pytest.raises(data.DataError, match="data_dir ~no one/x has no home folder"):
        data.load("cifar10", "~no one/x")
    assert len(data.load("digits").test.labels) == 360


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="name must be one of digits, cifar10, .*got imagenet"):
        data.load("imagenet")


GOOD = np.full((3, 2, 2, 1), 0.5, np.float32)
LABELS = np.array([0, 1, 2])


def test_sound_images_and_labels_pass():
    data.check(GOOD, LABELS, 3)
    data.check(jnp.asarray(GOOD), jnp.asarray(LABELS), 3)
    data.check(np.full((3, 2, 2, 1), 255, np.uint8), LABELS.astype(np.uint8), 3)
    data.check(np.array([0.0, 1.0]).reshape(2, 1, 1, 1), [0, 0], 2)


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "message"),
    [
        (np.where(np.arange(4).reshape(2, 2, 1) == 3, np.nan, GOOD), LABELS, 3, "images .*nan"),
        (GOOD + 0.6, LABELS, 3, r"images must lie in \[0, 1\], got values from 1.1"),
        (GOOD - 0.6, LABELS, 3, r"images must lie in \[0, 1\], got values from -0.1"),
        (GOOD * np.inf, LABELS, 3, "images must lie in .*inf"),
        (GOOD.astype(np.int32), LABELS, 3, "images must be uint8 or floating point, got int32"),
        (GOOD[0], LABELS, 3, r"images must have 4 axes, none empty, got \[2, 2, 1\]"),
        (GOOD[:0], LABELS[:0], 3, "images must have 4 axes, none empty"),
        (GOOD, [0, 1, 3], 3, "labels must be classes 0 to 2, got 3"),
        (GOOD, [0, -1, 2], 3, "labels must be classes 0 to 2, got -1"),
        (GOOD, [0.0, 1.0, 2.0], 3, "labels must be integers, got float64"),
        (GOOD, [0, 1], 3, r"labels must have shape \[3\], got \[2\]"),
        (GOOD, [[0], [1], [2]], 3, r"labels must have shape \[3\], got \[3, 1\]"),
        (GOOD, [0, 0, 0], 1, "num_classes must be a whole number of at least 2, got 1"),
    ],
)
def test_bad_images_and_labels_are_refused_by_name_and_value(images, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        data.check(images, labels, num_classes)


def test_a_data_set_names_the_split_that_is_wrong():
    good = data.Split(GOOD, LABELS)
    with pytest.raises(ValueError, match="test.labels must be classes 0 to 2, got 7"):
        data.Dataset("own", tuple("abc"), good, good, data.Split(GOOD, LABELS + 5))
    with pytest.raises(ValueError, match=r"validation.images must have shape \[any, 2, 2, 1\]"):
        data.Dataset("own", tuple("abc"), good, data.Split(GOOD[:, :1], LABELS), good)
    as_bytes = data.Split(GOOD.astype(np.uint8), LABELS)
    with pytest.raises(ValueError, match=r"test.images.dtype must be one of float32, got uint8"):
        data.Dataset("own", tuple("abc"), good, good, as_bytes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 0.5, "train.labels must be integers, got float64"),
        (LABELS[:2], r"train.labels must have shape \[3\], got \[2\]"),
        (LABELS + 1, "train.labels must be classes 0 to 2, got 3"),
    ],
)
def test_training_examples_are_checked_before_any_becomes_validation(labels, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays("own", tuple("abc"), data.Split(GOOD, labels), data.Split(GOOD, LABELS))


def test_an_epoch_sees_no_example_twice_and_leaves_out_the_remainder(key):
    step_indices = jax.jit(lambda step: data.batch_indices(key, step, 23, 5))
    epochs = [np.concatenate([step_indices(4 * epoch + i) for i in range(4)]) for epoch in range(6)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20 and epoch.min() >= 0 and epoch.max() < 23
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 3
    assert len({tuple(step_indices(i).tolist()) for i in range(24)}) == 24


def test_the_step_alone_says_what_is_seen(key):
    """Resuming: step 7 of a new process is step 7 of the old one, in a scan, in jit or eager."""
    _, scanned = jax.lax.scan(
        lambda carry, step: (carry, data.batch_indices(key, step, 11, 3)), 0, jnp.arange(9)
    )
    for step in (0, 3, 7):
        np.testing.assert_array_equal(data.batch_indices(key, step, 11, 3), scanned[step])
    assert scanned.dtype == jnp.int32
    other = data.batch_indices(jax.random.key(1), 7, 11, 3)
    assert (np.asarray(other) != scanned[7]).any()


def test_every_order_of_three_examples_is_equally_likely(key):
    steps = jnp.arange(1200)
    orders = jax.vmap(lambda step: data.batch_indices(key, step, 3, 3))(steps)
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.sum((counts - 200) ** 2 / 200) < 20.5  # once in a thousand keys, 5 degrees of freedom


@pytest.mark.parametrize(
    ("step", "batch_size", "message"),
    [
        (0, 11, "batch_size must be at most the number of examples, 10, got 11"),
        (0, 0, "batch_size must be a whole number of at least 1, got 0"),
        (-1, 5, "step must be a whole number of at least 0, got -1"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(key, step, batch_size, message):
    with pytest.raises(ValueError, match=message):
        data.batch_indices(key, step, 10, batch_size)


def test_a_batch_taken_on_the_device_keeps_images_and_labels_together(key):
    split = numbered(300)
    on_device = jax.device_put(split)
    assert on_device.images.dtype == jnp.uint8

    @jax.jit
    def batch_of(split, step):
        return data.take(split, data.batch_indices(key, step, 300, 32))

    batch = jax.device_get(batch_of(on_device, 5))
    np.testing.assert_array_equal(numbers(batch), data.batch_indices(key, 5, 300, 32))
    np.testing.assert_array_equal(batch.labels, numbers(batch) % 4)
