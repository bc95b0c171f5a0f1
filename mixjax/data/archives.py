"""The formats of the official archives, as NumPy arrays."""

import gzip
import math
import pathlib
import tarfile

import numpy as np

_IDX_UINT8 = 0x08  # the third byte of an idx file of unsigned bytes


def read_cifar(
    path: pathlib.Path, members: tuple[str, ...], num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The records in some members of a CIFAR archive, in order.

    A record is `num_labels` bytes, then 32 x 32 bytes of red, of green and of blue, in rows.

    Args:
      path: a `.tar.gz` file; nothing of it is unpacked to disk.
      members: names of files in it.
      num_labels: 1 for CIFAR-10, 2 (coarse, fine) for CIFAR-100.

    Returns:
      uint8 images `[N, 32, 32, 3]` and uint8 labels `[N, num_labels]`.

    Raises:
      ValueError: if a member is absent, or the members do not hold a whole number of records.
    """
    chunks = []
    with tarfile.open(path, "r:gz") as archive:
        for member in members:
            file = archive.extractfile(member) if member in archive.getnames() else None
            if file is None:
                raise ValueError(f"{path} has no file {member}")
            chunks.append(file.read())
    records = np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, num_labels + 3 * 32 * 32)
    images = records[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, :num_labels]


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The array in a gzipped idx file: two zero bytes, a type, the number of axes, the axes, bytes.

    Raises:
      ValueError: if the file is not an idx file of unsigned bytes of the size that it names.
    """
    content = gzip.decompress(pathlib.Path(path).read_bytes())
    num_axes = content[3] if len(content) > 3 else 0
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * num_axes], ">u4").tolist())
    data = content[4 + 4 * num_axes :]
    if content[:3] != bytes([0, 0, _IDX_UINT8]) or len(data) != math.prod(shape):
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)
