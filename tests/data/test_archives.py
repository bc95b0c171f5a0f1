import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mixjax import data
from mixjax.data import builders, sources

SIZES = {"cifar10": (15, 4), "cifar100": (11, 4), "mnist": (13, 5), "fashion_mnist": (12, 5)}
NAMES = pytest.mark.parametrize("name", SIZES)


def examples(name, num_examples, seed):
    """Random images, labels that reach the last class, coarse labels for CIFAR-100."""
    source, rng = sources.SOURCES[name], np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_examples, *source.image_shape), np.uint8)
    labels = rng.integers(0, len(source.class_names), num_examples)
    labels[0] = len(source.class_names) - 1
    return images, labels, rng.integers(0, 20, num_examples)


def cifar_records(images, *labels):
    """A record: the label bytes, then all red, all green, all blue bytes, row by row."""
    return b"".join(
        bytes(each_labels) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for image, *each_labels in zip(images, *(each.tolist() for each in labels), strict=True)
    )


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def tar_of(contents):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def archives_of(name, train, test):
    """The official archives of `name`, as `{file name: bytes}`."""
    if name == "cifar10":
        contents = {
            f"cifar-10-batches-bin/data_batch_{i + 1}.bin": cifar_records(
                train[0][3 * i : 3 * i + 3], train[1][3 * i : 3 * i + 3]
            )
            for i in range(5)
        }
        contents["cifar-10-batches-bin/test_batch.bin"] = cifar_records(test[0], test[1])
        return {"cifar-10-binary.tar.gz": tar_of(contents)}
    if name == "cifar100":
        contents = {
            f"cifar-100-binary/{split}.bin": cifar_records(images, coarse, labels)
            for split, (images, labels, coarse) in (("train", train), ("test", test))
        }
        return {"cifar-100-binary.tar.gz": tar_of(contents)}
    return {
        f"{prefix}-{kind}-ubyte.gz": idx(array)
        for prefix, (images, labels, _) in (("train", train), ("t10k", test))
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels))
    }


@dataclasses.dataclass
class Official:
    """What a user has who fetched the archives by hand."""

    manual_dir: pathlib.Path
    train: tuple
    test: tuple


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Writes tiny archives of a data set; their checksums replace the official ones."""

    def write(name, test_labels=None):
        num_train, num_test = SIZES[name]
        train, test = examples(name, num_train, 0), examples(name, num_test, 1)
        if test_labels is not None:
            test = (test[0], np.array(test_labels), test[2])
        manual_dir = tmp_path / "manual"
        manual_dir.mkdir()
        contents = archives_of(name, train, test)
        source = sources.SOURCES[name]
        assert {archive.filename for archive in source.archives} == contents.keys()
        replaced = []
        for archive in source.archives:
            content = contents[archive.filename]
            (manual_dir / archive.filename).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            replaced.append(dataclasses.replace(archive, size=len(content), sha256=digest))
        source = dataclasses.replace(source, archives=tuple(replaced))
        monkeypatch.setitem(sources.SOURCES, name, source)
        return Official(manual_dir, train, test)

    return write


@pytest.fixture
def offline(monkeypatch):
    """No request is answered, and none goes out."""

    def refuse(request, **_):
        raise urllib.error.URLError(f"no route to {request.host}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def as_set(images, labels):
    return sorted((int(k), image.tobytes()) for image, k in zip(images, labels, strict=True))


def files_under(folder):
    return sorted(path.name for path in pathlib.Path(folder).rglob("*") if path.is_file())


@NAMES
def test_official_archives_give_their_examples_and_later_starts_need_numpy_only(
    name, official, offline, tmp_path, monkeypatch, capfd
):
    given = official(name)
    data_dir = tmp_path / "data"
    dataset = data.load(name, data_dir, manual_dir=given.manual_dir, num_validation=3)
    carved = [np.concatenate(pair) for pair in zip(dataset.train, dataset.validation, strict=True)]
    assert as_set(*carved) == as_set(*given.train[:2])
    assert as_set(*dataset.test) == as_set(*given.test[:2])
    assert dataset.image_shape == sources.SOURCES[name].image_shape
    assert len(dataset.validation.labels) == 3

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "mixjax.data.builders")
    monkeypatch.delattr(data, "builders")
    again = data.load(name, data_dir, num_validation=3)
    for split, split_again in zip(
        (dataset.train, dataset.validation, dataset.test),
        (again.train, again.validation, again.test),
        strict=True,
    ):
        np.testing.assert_array_equal(split.images, split_again.images)
        np.testing.assert_array_equal(split.labels, split_again.labels)
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_the_registered_name_reads_what_was_prepared(official, tmp_path):
    given = official("cifar100")
    data.load("cifar100", tmp_path / "data", manual_dir=given.manual_dir)
    prepared = tfds.data_source("cifar100", data_dir=tmp_path / "data", download=False)
    images, labels, coarse = given.train
    assert len(prepared["train"]) == len(labels) and len(prepared["test"]) == len(given.test[1])
    for example in prepared["train"]:
        split, number = example["id"].decode().split("_")
        assert split == "train"
        np.testing.assert_array_equal(example["image"], images[int(number)])
        assert example["label"] == labels[int(number)]
        assert example["coarse_label"] == coarse[int(number)]


@NAMES
def test_a_prepared_folder_works_offline_and_without_a_cache(name, official, offline, tmp_path):
    given = official(name)
    first = data.load(name, tmp_path / "data", manual_dir=given.manual_dir)
    (tmp_path / "data" / f"{name}.npz").unlink()
    version = {"cifar10": "3.0.2", "cifar100": "3.0.2"}.get(name, "3.0.1")
    assert (tmp_path / "data" / name / version / "dataset_info.json").is_file()
    again = data.load(name, tmp_path / "data")
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    np.testing.assert_array_equal(first.train.labels, again.train.labels)


@NAMES
def test_offline_one_line_names_the_files_and_folders_that_would_do(name, offline, tmp_path):
    with pytest.raises(data.DataError, match=f"{name} cannot be had .*no route to") as caught:
        data.load(name, tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "data") in message and f"{name}.npz" in message
    assert all(archive.filename in message for archive in sources.SOURCES[name].archives)
    assert files_under(tmp_path) == []


def test_an_archive_with_another_checksum_is_refused_and_nothing_is_prepared(official, tmp_path):
    given = official("mnist")
    path = given.manual_dir / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(data.DataError, match=f"{path}, has wrong checksum") as caught:
        data.load("mnist", tmp_path / "data", manual_dir=given.manual_dir)
    assert "\n" not in str(caught.value)
    assert files_under(tmp_path / "data") == []


def test_a_manual_folder_without_the_archive_is_an_error_and_no_download(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_require_reachable", None)
    with pytest.raises(data.DataError, match="elsewhere has no cifar-10-binary.tar.gz"):
        data.load("cifar10", tmp_path / "data", manual_dir=tmp_path / "elsewhere")


def test_an_archive_with_a_label_outside_the_classes_is_refused(official, tmp_path):
    given = official("fashion_mnist", test_labels=[0, 1, 2, 3, 10])
    with pytest.raises(data.DataError, match="fashion_mnist cannot be had"):
        data.load("fashion_mnist", tmp_path / "data", manual_dir=given.manual_dir)
    assert files_under(tmp_path / "data") == []


def test_progress_is_shown_to_those_who_ask(official, tmp_path, capfd):
    given = official("mnist")
    data.load("mnist", tmp_path / "data", manual_dir=given.manual_dir, progress=True)
    shown = capfd.readouterr()
    assert "Downloading and preparing" in shown.out and "examples" in shown.err


def shard_of(folder):
    return next(folder.glob("*-train.array_record*"))


@pytest.mark.parametrize("damage", ["no shard", "half a shard", "no info", "other format"])
def test_a_damaged_prepared_folder_is_an_error_that_names_it(damage, official, offline, tmp_path):
    given = official("mnist")
    data.load("mnist", tmp_path / "data", manual_dir=given.manual_dir)
    (tmp_path / "data" / "mnist.npz").unlink()
    folder = tmp_path / "data" / "mnist" / "3.0.1"
    info = folder / "dataset_info.json"
    if damage == "no shard":
        shard_of(folder).unlink()
    elif damage == "half a shard":
        shard_of(folder).write_bytes(shard_of(folder).read_bytes()[: 64 * 1024 // 2])
    elif damage == "no info":
        info.unlink()
    else:
        info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(data.DataError, match="cannot be read as array_record") as caught:
        data.load("mnist", tmp_path / "data")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_two_processes_that_prepare_at_once_both_get_the_data(official, tmp_path, monkeypatch):
    """While the one generates its examples, the other comes, prepares, and leaves."""
    given = official("mnist")
    source = sources.SOURCES["mnist"]
    results = []

    def read(paths, split):
        if not results:
            results.append(None)
            results[0] = data.load("mnist", tmp_path / "data", manual_dir=given.manual_dir)
        return source.read(paths, split)

    monkeypatch.setitem(sources.SOURCES, "mnist", dataclasses.replace(source, read=read))
    slower = data.load("mnist", tmp_path / "data", manual_dir=given.manual_dir)
    faster = results[0]
    np.testing.assert_array_equal(slower.train.images, faster.train.images)
    np.testing.assert_array_equal(slower.test.labels, faster.test.labels)
    assert sorted(os.listdir(tmp_path / "data")) == ["mnist", "mnist.npz"]
    assert os.listdir(tmp_path / "data" / "mnist") == ["3.0.1"]


def test_a_folder_that_cannot_hold_the_cache_is_read_all_the_same(official, tmp_path, monkeypatch):
    given = official("mnist")
    data.load("mnist", tmp_path / "data", manual_dir=given.manual_dir)
    (tmp_path / "data" / "mnist.npz").unlink()
    before = files_under(tmp_path / "data")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(data.load("mnist", tmp_path / "data").test.labels) == 5
    assert files_under(tmp_path / "data") == before


class Prepared:
    """What `mock_data` lets a builder find: encoded examples whose image says their number."""

    def __init__(self, builder, split, decoders):
        assert set(decoders) == {"image"}
        self.shape = builder.info.features["image"].shape
        self.num_classes = builder.info.features["label"].num_classes
        self.offset = {"train": 0, "test": 100}[split]

    def __len__(self):
        return 2345 if self.offset == 0 else 5

    def __getitems__(self, indices):
        for index in indices:
            file = io.BytesIO()
            image = np.full(self.shape, (index + self.offset) % 256, np.uint8).squeeze()
            Image.fromarray(image).save(file, "PNG")
            yield {"image": file.getvalue(), "label": index % self.num_classes}


@NAMES
def test_more_examples_than_are_read_at_once_stay_with_their_labels(name, tmp_path):
    def as_data_source(builder, split, decoders):
        return Prepared(builder, split, decoders)

    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        dataset = data.load(name, tmp_path)
    num_classes = len(sources.SOURCES[name].class_names)
    images = np.concatenate([dataset.train.images, dataset.validation.images])
    labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
    expected = sorted((i % 256, i % num_classes) for i in range(2345))
    pairs = zip(images[:, 0, -1, 0].tolist(), labels.tolist(), strict=True)
    assert sorted(pairs) == expected
    np.testing.assert_array_equal(dataset.test.images[:, 3, 3, -1], np.arange(100, 105))


def test_every_data_set_has_a_name_per_class():
    names = {name: source.class_names for name, source in sources.SOURCES.items()}
    assert {name: len(each) for name, each in names.items()} == {
        "cifar10": 10,
        "cifar100": 100,
        "mnist": 10,
        "fashion_mnist": 10,
    }
    assert all(len(set(each)) == len(each) for each in names.values())
    assert names["cifar10"][3] == "cat" and names["fashion_mnist"][9] == "Ankle boot"
    assert names["cifar100"] == tuple(sorted(names["cifar100"]))


@NAMES
def test_versions_and_checksums_are_those_of_tensorflow_datasets(name):
    source, builder = sources.SOURCES[name], tfds.builder_cls(name)
    assert str(builder.VERSION) == source.version
    ours = {archive.url: (archive.size, archive.sha256) for archive in source.archives}
    theirs = {url: (int(info.size), info.checksum) for url, info in builder.url_infos.items()}
    assert ours == theirs
