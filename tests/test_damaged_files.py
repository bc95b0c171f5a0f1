"""A flipped bit in a file that is read: the same content, or one line that names the file.

Where the file can be made again it is. What has no checksum (safetensors, JSON) is read as it is,
but never ends in an exception of a reader's own.
"""

import hashlib

import chex
import numpy as np
import pytest

from mixjax import data, files, models, reporting
from mixjax.data import cache, sources
from mixjax.evaluation import runner
from mixjax.models import pretrained
from tests.models import test_pretrained as test_models_pretrained
from tests.reporting import test_result as test_reporting_result

NUM_FLIPS = 300


def flips(content, seed=0):
    """The content with one bit flipped, at places spread over it; the number of the bit."""
    bits = np.random.default_rng(seed).permutation(8 * len(content))[:NUM_FLIPS]
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        yield bytes(damaged)


def equal(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def outcomes(path, read, expected):
    """How often the damaged file was read as it was written, and how often refused in one line."""
    numbers = {"same": 0, "refused": 0}
    for damaged in flips(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            found = read(path)
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
            numbers["refused"] += 1
        else:
            assert equal(found, expected)
            numbers["same"] += 1
    return numbers


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(save, tmp_path):
    arrays = {"rows": np.arange(5), "values": np.linspace(0, 1, 7), "ok": np.array([True, False])}
    save(tmp_path / "a.npz", **arrays)
    numbers = outcomes(tmp_path / "a.npz", files.read_arrays, arrays)
    assert numbers["refused"] > NUM_FLIPS / 3


def test_a_header_that_asks_for_less_than_there_is(tmp_path):
    """Of which `numpy.load` compares no checksum, because it never comes to the end."""
    np.savez(tmp_path / "a.npz", a=np.zeros(60_000, dtype=np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    assert content.count(b"(60000,)") == 1
    (tmp_path / "a.npz").write_bytes(content.replace(b"(60000,)", b"(20000,)"))
    with np.load(tmp_path / "a.npz") as believed:
        assert len(believed["a"]) == 20_000
    with pytest.raises(ValueError, match=r"a.npz is not a sound .npz file: BadZipFile"):
        files.read_arrays(tmp_path / "a.npz")


def test_a_batch_of_an_evaluation_is_as_it_was_or_made_again(tmp_path):
    path, batch = tmp_path / "b.npz", np.arange(4)
    answers = np.eye(4, 3) > 0, np.array([1, 0, 1, 1]) > 0, np.eye(4, 3, 1) > 0
    lowered, points = np.array([1, 3]), np.ones((2, 5), np.float32)
    found = runner._Batch(batch, *answers, np.asarray(1.5), lowered, points)
    runner._write(path, found)
    made_again = 0
    for damaged in flips(path.read_bytes()):
        path.write_bytes(damaged)
        read = runner._read(path, batch)
        made_again += read is None
        if read is not None:
            chex.assert_trees_all_equal(read, found)
    assert NUM_FLIPS / 3 < made_again < NUM_FLIPS


STATE = {
    "conv1.weight": np.linspace(-1, 1, 18, dtype=np.float32).reshape(2, 1, 3, 3),
    "linear.bias": np.arange(3, dtype=np.float32),
}


def test_pretrained_weights_with_checksums(tmp_path):
    path = test_models_pretrained.save_npz(tmp_path / "w.npz", STATE)
    numbers = outcomes(path, lambda path: pretrained._read(path, None), STATE)
    assert numbers["refused"] > NUM_FLIPS / 3


def test_pretrained_weights_without_checksums(tmp_path):
    """A flip in the header is refused, or leaves another name, for which no model has a place."""
    path = test_models_pretrained.save_safetensors(tmp_path / "w.safetensors", STATE)
    content = path.read_bytes()
    start = len(content) - sum(value.nbytes for value in STATE.values())
    for damaged in flips(content[:start]):
        path.write_bytes(damaged + content[start:])
        try:
            found = pretrained._read(path, None)
        except ValueError as error:
            assert "w.safetensors cannot be read" in str(error) and "\n" not in str(error)
        else:
            assert found.keys() != STATE.keys() or equal(found, STATE)


@pytest.mark.parametrize("save", ["npz", "safetensors"])
def test_another_file_than_the_digest_says_is_refused(save, tmp_path):
    path = getattr(test_models_pretrained, f"save_{save}")(tmp_path / f"w.{save}", STATE)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert equal(pretrained._read(path, digest.upper()), STATE)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"w.{save} must have the sha256 {digest}, got "):
        models.load_pretrained(path, test_models_pretrained.RESNET, sha256=digest)


def test_a_copy_of_a_data_set(tmp_path):
    rng = np.random.default_rng(0)
    train, test = (
        data.Split(rng.integers(0, 256, (n, 28, 28, 1), np.uint8), rng.integers(0, 10, n))
        for n in (2, 1)
    )
    cache.write(tmp_path / "mnist.npz", train, test)
    expected = {"train": train.images, "labels": train.labels, "test": test.images}

    def read(path):
        train, test = cache.read(path, sources.SOURCES["mnist"])
        return {"train": train.images, "labels": train.labels, "test": test.images}

    assert outcomes(tmp_path / "mnist.npz", read, expected)["refused"] > NUM_FLIPS / 3


def test_json_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "result.json"
    reporting.write_result(tmp_path, test_reporting_result.RESULT)
    for damaged in flips(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            reporting.read_result(path)
        except ValueError as error:
            assert "result" in str(error) and "\n" not in str(error)


def test_metrics_are_read_or_refused_in_one_line(tmp_path):
    for step in range(3):
        reporting.append_metrics(tmp_path, {"step": step, "robust_accuracy": 0.5})
    path = tmp_path / "metrics.jsonl"
    for damaged in flips(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            reporting.truncate_metrics(tmp_path, 1)
        except ValueError as error:
            assert "metrics.jsonl" in str(error) and "\n" not in str(error)
