"""Weights trained with PyTorch, in our residual networks: the same logits on the same input.

A state dict comes as `.npz` (`numpy.savez(path, **{name: t.numpy() for name, t in ...})`) or as
`.safetensors`: formats that hold arrays and cannot run code. The names are those that the common
implementations for CIFAR share: `conv1`, `layer2.0.bn1` or `block2.layer.0.bn1`, `shortcut` or
`downsample` or `convShortcut`, `linear` or `fc`.
"""

import hashlib
import itertools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import files
from mixjax.models.model import Model
from mixjax.typing import PyTree

# Whose values no evaluation uses: a counter of steps, and a copy of the first stage in TRADES.
_UNUSED = re.compile(r".*\.num_batches_tracked$|sub_block1\.")
_BLOCK = re.compile(r"(?:layer|block)(\d+)\.(?:layer\.)?(\d+)\.(.+)$")
_IN_BLOCK = {
    "conv1": "Conv_0",
    "conv2": "Conv_1",
    "bn1": "BatchNorm_0",
    "bn2": "BatchNorm_1",
    "shortcut.0": "Conv_2",
    "shortcut.1": "BatchNorm_2",
    "downsample.0": "Conv_2",
    "downsample.1": "BatchNorm_2",
    "convShortcut": "Conv_2",
}
_OUTSIDE = {
    "conv1": "Conv_0",
    "bn1": "BatchNorm_0",
    "bn": "BatchNorm_0",
    "linear": "Dense_0",
    "fc": "Dense_0",
}
_LEAVES = {
    "Conv": {"weight": ("params", "kernel")},
    "Dense": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "BatchNorm": {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    },
}
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_DTYPES |= {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8}


def load_pretrained(path: str | pathlib.Path, model: Model, *, sha256: str | None = None) -> PyTree:
    """The model's variables with the weights and statistics of a PyTorch state dict.

    Fits `resnet18` and `small_resnet` (as ResNet18 for CIFAR), `wide_resnet` (without shifts in
    the convolutions) and `preact_resnet18`. A leading `module.` of the names is dropped. Pixels
    are normalised inside of the model: make it with the `mean` and `std` of the training.

    Args:
      path: the `.npz` or `.safetensors` file.
      model: the network to fill, of the same width and depth.
      sha256: digest of the file that is asked for; None: any. A damaged number in an `.npz` file
        is found without it, in a `.safetensors` file, which has no checksums, it is not.

    Returns:
      Variables for `model.apply`, float32.

    Raises:
      ValueError: if the file is of another kind, broken or of another digest, or a name is
        unknown, missing or of another shape than in the model; it names the file and the name.
    """
    path = pathlib.Path(path)
    state = {name.removeprefix("module."): value for name, value in _read(path, sha256).items()}
    state = {name: value for name, value in state.items() if not _UNUSED.match(name)}
    shapes, structure = jax.tree.flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    wanted = {tuple(entry.key for entry in place): leaf.shape for place, leaf in shapes}
    blocks = sorted({_block(name) for name in state if _BLOCK.match(name)})
    found = {}
    for name, value in state.items():
        place = _place(name, blocks)
        if place not in wanted or place in found:
            raise ValueError(f"{path} holds {name}, for which the model has no place")
        found[place] = _from_torch(value)
        if found[place].shape != wanted[place]:
            expected = list(_torch_shape(wanted[place]))
            raise ValueError(
                f"{name} in {path} must have shape {expected}, got {list(value.shape)}"
            )
    for place in wanted:
        if place not in found:
            raise ValueError(f"{path} holds nothing for {'/'.join(place)} of the model")
    return jax.tree.unflatten(structure, [found[place] for place in wanted])


def _block(name):
    stage, block, _ = _BLOCK.findall(name)[0]
    return int(stage), int(block)


def _place(name, blocks):
    """Where the array of that name stands in our variables, or None."""
    match = _BLOCK.match(name)
    module, _, leaf = (match[3] if match else name).rpartition(".")
    layer = (_IN_BLOCK if match else _OUTSIDE).get(module, "")
    collection, ours = _LEAVES.get(layer.partition("_")[0], {}).get(leaf, (None, None))
    if collection is None:
        return None
    inside = (f"_Block_{blocks.index(_block(name))}",) if match else ()
    return collection, *inside, layer, ours


def _from_torch(value):
    """Kernels as `[rows, columns, in, out]` or `[in, out]`; float32."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
    return jnp.asarray(value if axes is None else value.transpose(axes), jnp.float32)


def _torch_shape(shape):
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]


def _read(path, sha256):
    if path.suffix not in _READERS:
        raise ValueError(f"path must end in {' or '.join(_READERS)}, got {path}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{path} must have the sha256 {sha256}, got {found}")
    try:
        return _READERS[path.suffix](content)
    except Exception as error:  # Whatever damage makes a reader raise, the file is unsound.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} cannot be read as {path.suffix}: {reason}") from error


def _read_safetensors(content):
    """Eight bytes of length, a JSON header of that length, then the arrays' bytes, all of them."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    arrays, ends = {}, [(0, 0)]
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            values = np.frombuffer(content[start + first : start + last], _DTYPES[entry["dtype"]])
            arrays[name] = values.reshape(entry["shape"])
            ends.append((first, last))
    ends = [*sorted(ends), (len(content) - start,) * 2]
    if any(last != first for (_, last), (first, _) in itertools.pairwise(ends)):
        raise ValueError("the arrays do not fill the file one after the other")
    return arrays


_READERS = {".npz": files.arrays_in, ".safetensors": _read_safetensors}
