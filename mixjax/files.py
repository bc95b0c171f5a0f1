"""Files that are written whole or not at all, strict JSON, and folders that know their config.

A file is written under a temporary name in its own folder and renamed: a reader, and a run that
is killed at any moment, sees the old content or the new one. JSON is strict: no NaN, no infinity.
A folder that a process writes to is held by it alone (`hold`).
"""

import contextlib
import fcntl
import io
import json
import math
import os
import pathlib
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

CONFIG = "config.json"
_LOCK = ".lock"
_TEMPORARY = ".tmp"
_ABSENT = "(absent)"
_LONGEST_VALUE = 80  # characters of it in an error
_MOST_DIFFERENCES = 8  # told in an error
_END_OF_DIRECTORY = b"PK\x05\x06"  # the last record of a zip archive


def plain(value: Any, name: str = "value") -> Any:
    """`value` as JSON knows it: dicts with string keys, lists, strings, finite numbers, None.

    Args:
      value: mappings, sequences, arrays of any library, paths, numbers, strings, None.
      name: what to call `value` in an error.

    Raises:
      ValueError: naming the entry that is not finite or that JSON has no form for.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {str(key): plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist(), name)
    raise ValueError(f"{name} must be something JSON can hold, got {value!r}")


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content`, text or bytes, to the file `path`, whole or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any, name: str = "value") -> None:
    """Writes `value` as strict JSON to the file `path`, whole or not at all.

    Raises:
      ValueError: naming the entry that JSON cannot hold; nothing is written then.

    Example:
      >>> import pathlib, tempfile
      >>> from mixjax import files
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     files.write_json(pathlib.Path(folder) / "a.json", {"accuracy": 0.5})
      ...     files.read_json(pathlib.Path(folder) / "a.json")
      {'accuracy': 0.5}
    """
    write(path, json.dumps(plain(value, name), indent=2) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The content of the JSON file `path`.

    Raises:
      ValueError: if the file is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def read_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """The arrays in the `.npz` file `path`, as they were written.

    Raises:
      ValueError: naming the file, if it is damaged or not such a file, or holds pickled objects.
      OSError: if it cannot be read.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        return arrays_in(content)
    except Exception as error:  # Whatever damage makes a reader raise, the file is unsound.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is not a sound .npz file: {reason}") from error


def arrays_in(content: bytes) -> dict[str, Any]:
    """The arrays in the content of an `.npz` file.

    `numpy.load` believes a damaged header that asks for less than there is, and a directory that
    has lost an array: here every checksum, and the number of arrays, is compared first. A damaged
    file makes it raise many kinds of exception.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: io.BytesIO(archive.read(name)) for name in archive.namelist()}
    end = content.rfind(_END_OF_DIRECTORY)
    number = int.from_bytes(content[end + 10 : end + 12], "little")
    if number not in (len(members), 0xFFFF):  # the latter stands for more than 16 bits hold
        raise ValueError(f"there should be {number} arrays, got {len(members)}")
    return {
        name.removesuffix(".npy"): np.lib.format.read_array(member, allow_pickle=False)
        for name, member in members.items()
    }


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Sentences `name: old -> new` for each entry in which two plain values differ.

    Of a long list the entries that differ, if the other is as long; other long values are cut.
    """
    are_lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if are_lists and len(str(old)) > _LONGEST_VALUE:
        old, new = (dict(enumerate(each)) for each in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            sentence
            for key in sorted(old.keys() | new.keys())
            for sentence in differences(
                old.get(key, _ABSENT), new.get(key, _ABSENT), f"{name}.{key}".lstrip(".")
            )
        ]
    return [] if old == new else [f"{name}: {_cut(old)} -> {_cut(new)}"]


def _cut(value):
    text = str(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    # Two lists that begin alike would look the same where they are cut.
    return (
        f"{len(value)} entries" if isinstance(value, list) else f"{text[: _LONGEST_VALUE - 3]}..."
    )


def claim(directory: str | os.PathLike, config: Mapping[str, Any], *, argument: str) -> bool:
    """Makes `directory` the folder of `config`, or confirms that it is.

    Args:
      directory: a folder that is missing, empty, or claimed before with the same config.
      config: dict that JSON can hold; stored as `config.json`.
      argument: what to call the folder in an error.

    Returns:
      True if the folder is new, False if it had been claimed before.

    Raises:
      ValueError: if the folder cannot be written, holds foreign files, or has another config.
    """
    directory = pathlib.Path(directory)
    config = plain(config, "config")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / CONFIG).exists():
            changed = differences(read_json(directory / CONFIG), config)
            if changed:
                # What a setting says before what stands deep in a list that follows from it.
                changed.sort(key=lambda sentence: sentence.partition(": ")[0].count("."))
                told = "; ".join(changed[:_MOST_DIFFERENCES])
                if len(changed) > _MOST_DIFFERENCES:
                    told += f"; and {len(changed) - _MOST_DIFFERENCES} more"
                raise ValueError(f"{argument} {directory} holds a run with another config: {told}")
            if not os.access(directory, os.W_OK):
                raise PermissionError(13, "Permission denied")
            return False
        # A process that was killed while claiming the folder leaves a temporary file at most.
        names = [entry.name for entry in directory.iterdir() if entry.suffix != _TEMPORARY]
        if foreign := [name for name in names if name not in (CONFIG, _LOCK)]:
            raise ValueError(
                f"{argument} {directory} is not empty and has no {CONFIG}: it holds {min(foreign)}"
            )
        write_json(directory / CONFIG, config)
    except OSError as error:
        raise ValueError(f"{argument} {directory} cannot be written: {error.strerror}") from error
    return True


@contextlib.contextmanager
def hold(directory: str | os.PathLike, *, argument: str) -> Iterator[None]:
    """Keeps every other process out of `directory` for the length of the `with` block.

    The lock belongs to an open file, `.lock` in the folder: the system frees it when the process
    ends, however it ends. Of several JAX processes of one run, process 0 alone takes it. Reading
    needs no lock.

    Args:
      directory: an existing folder.
      argument: what to call the folder in an error.

    Raises:
      ValueError: if another `hold` has the folder, or `.lock` cannot be written in it.
    """
    directory = pathlib.Path(directory)
    try:
        file = (directory / _LOCK).open("a+")
    except OSError as error:
        raise ValueError(f"{argument} {directory} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            number = file.read().strip()
            raise ValueError(
                f"{argument} {directory} is in use by another process"
                + (f" (pid {number})" if number else "")
            ) from error
        except OSError as error:
            raise ValueError(
                f"{argument} {directory} cannot be locked: {error.strerror}"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
