import io
import os
import sys
import threading
import zipfile

import numpy as np
import pytest

from mixjax import data
from mixjax.data import cache, sources

SOURCE = sources.SOURCES["mnist"]


def arrays(num_train=30, num_test=7, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(0, 256, (num_train, 28, 28, 1), np.uint8),
        "train_labels": rng.integers(0, 10, num_train).astype(np.uint8),
        "test_images": rng.integers(0, 256, (num_test, 28, 28, 1), np.uint8),
        "test_labels": rng.integers(0, 10, num_test).astype(np.uint8),
    }


def splits(arrays):
    return tuple(
        data.Split(arrays[f"{n}_images"], arrays[f"{n}_labels"]) for n in ("train", "test")
    )


@pytest.fixture
def without_tfds(monkeypatch):
    """As on a machine where TensorFlow Datasets is not installed."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "mixjax.data.builders", raising=False)
    monkeypatch.delattr(data, "builders", raising=False)


def test_a_numpy_copy_made_elsewhere_needs_no_tfds(tmp_path, without_tfds):
    content = arrays()
    np.savez(tmp_path / "mnist.npz", **content)
    dataset = data.load("mnist", tmp_path, num_validation=4)
    np.testing.assert_array_equal(dataset.test.images, content["test_images"])
    np.testing.assert_array_equal(dataset.test.labels, content["test_labels"])
    assert dataset.train.images.shape == (26, 28, 28, 1) and dataset.train.labels.dtype == np.int32
    carved = np.concatenate([dataset.train.labels, dataset.validation.labels])
    np.testing.assert_array_equal(np.sort(carved), np.sort(content["train_labels"]))


def test_a_compressed_copy_and_the_folder_of_the_environment_do_as_well(
    tmp_path, monkeypatch, without_tfds
):
    np.savez_compressed(tmp_path / "mnist.npz", **arrays())
    monkeypatch.setenv("MIXJAX_DATA_DIR", str(tmp_path))
    assert data.default_dir() == tmp_path
    assert len(data.load("mnist").test.labels) == 7
    monkeypatch.delenv("MIXJAX_DATA_DIR")
    assert data.default_dir().parts[-2:] == (".cache", "mixjax")


def test_without_tfds_and_without_a_copy_one_line_says_what_to_do(tmp_path, without_tfds):
    with pytest.raises(data.DataError, match="install it, or put mnist.npz into") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back(tmp_path):
    train, test = splits(arrays())
    path = tmp_path / "mnist.npz"
    cache.write(path, train, test)
    for split, again in zip((train, test), cache.read(path, SOURCE), strict=True):
        np.testing.assert_array_equal(split.images, again.images)
        np.testing.assert_array_equal(split.labels, again.labels)
    assert os.listdir(tmp_path) == ["mnist.npz"]


def saved(**content):
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def lone_array():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def foreign_archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images.npy", b"hello")
    return file.getvalue()


def flipped(content, position):
    damaged = bytearray(content)
    damaged[position] ^= 0x10
    return bytes(damaged)


GOOD = arrays()
WHOLE = saved(**GOOD)
OBJECTS = np.array([{"a": 1}] * 30, dtype=object)
DAMAGED = {
    "empty": b"",
    "a text": b"not an archive",
    "half of it": WHOLE[: len(WHOLE) // 2],
    "its end missing": WHOLE[:-10],
    "a flipped bit in the images": flipped(WHOLE, 5000),
    "a lone array": lone_array(),
    "a foreign archive": foreign_archive(),
    "other keys": saved(x_train=GOOD["train_images"], y_train=GOOD["train_labels"]),
    "no test labels": saved(**{k: v for k, v in GOOD.items() if k != "test_labels"}),
    "floating-point images": saved(**GOOD | {"train_images": GOOD["train_images"] / 255}),
    "signed images": saved(**GOOD | {"train_images": GOOD["train_images"].astype(np.int16)}),
    "images of another size": saved(**GOOD | {"test_images": np.zeros((7, 32, 32, 3), np.uint8)}),
    "flat images": saved(**GOOD | {"train_images": GOOD["train_images"].reshape(30, -1)}),
    "fewer labels than images": saved(**GOOD | {"train_labels": GOOD["train_labels"][:-1]}),
    "a label outside the classes": saved(**GOOD | {"test_labels": np.full(7, 10, np.uint8)}),
    "a negative label": saved(**GOOD | {"test_labels": np.full(7, -1, np.int8)}),
    "floating-point labels": saved(**GOOD | {"test_labels": np.zeros(7)}),
    "pickled objects": saved(**GOOD | {"train_labels": OBJECTS}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_or_foreign_copy_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "mnist.npz"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match="delete it, and it is made again") as caught:
        data.load("mnist", tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_writer_that_fails_leaves_the_old_copy_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    path.write_bytes(WHOLE)

    def fill_the_disk(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        cache.write(path, *splits(arrays(seed=1)))
    assert path.read_bytes() == WHOLE and os.listdir(tmp_path) == ["mnist.npz"]


def test_several_writers_and_a_reader_at_once_only_ever_see_whole_copies(tmp_path):
    path = tmp_path / "mnist.npz"
    versions = [arrays(num_train=200, seed=seed) for seed in range(4)]
    cache.write(path, *splits(versions[0]))
    failures = []

    def keep_writing(version):
        try:
            for _ in range(15):
                cache.write(path, *splits(version))
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=keep_writing, args=(version,)) for version in versions]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        train, _ = cache.read(path, SOURCE)
        assert any(np.array_equal(train.images, version["train_images"]) for version in versions)
    for writer in writers:
        writer.join()
    assert not failures and os.listdir(tmp_path) == ["mnist.npz"]
