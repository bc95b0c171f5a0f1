"""Weights from PyTorch in our residual networks, and back: the same logits on the same input.

A state dict comes as `.npz` (`numpy.savez(path, **{name: t.numpy() for name, t in ...})`) or as
`.safetensors`: formats that hold arrays and cannot run code. The names are those that the common
implementations for CIFAR share: `conv1`, `layer2.0.bn1` or `block2.layer.0.bn1`, `shortcut` or
`downsample` or `convShortcut`, `linear` or `fc`.
"""

import hashlib
import itertools
import json
import os
import pathlib
import re
from typing import Any

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
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}

# The other way, the first of several names; where networks differ, by their family.
_NAMES_IN_BLOCK = {ours: name for name, ours in reversed(_IN_BLOCK.items())}
_NAMES_OUTSIDE = {ours: name for name, ours in reversed(_OUTSIDE.items())}
_FAMILIES = {
    "residual": ("layer{}.{}", _NAMES_IN_BLOCK, _NAMES_OUTSIDE),
    "pre-activation": ("layer{}.{}", _NAMES_IN_BLOCK, _NAMES_OUTSIDE | {"BatchNorm_0": "bn"}),
    "wide": (
        "block{}.layer.{}",
        _NAMES_IN_BLOCK | {"Conv_2": "convShortcut"},
        _NAMES_OUTSIDE | {"Dense_0": "fc"},
    ),
}
_LEAF_NAMES = {
    (kind, *place): name for kind, leaves in _LEAVES.items() for name, place in leaves.items()
}
_OUR_BLOCK = re.compile(r"_Block_(\d+)")
_LAST_OF_BLOCK = ("Conv_1", "kernel")
_NUM_STAGES_OF_WIDE = 3
_ALIGNMENT = 8  # bytes, for readers that map the file into memory


def load_pretrained(path: str | os.PathLike, model: Model, *, sha256: str | None = None) -> PyTree:
    """The model's variables with the weights and statistics of a PyTorch state dict.

    Fits `resnet18` and `small_resnet` (as ResNet18 for CIFAR), `wide_resnet` (without biases in
    the convolutions) and `preact_resnet18`. A leading `module.` of the names is dropped. Pixels
    are normalised inside of the model: make it with the `mean` and `std` of the training.

    Args:
      path: the `.npz` or `.safetensors` file.
      model: the network to fill, of the same width and depth.
      sha256: digest that the file must have; None: any. A damaged number in an `.npz` file is found
        without it, but not in a `.safetensors` file, which has no checksums.

    Returns:
      Variables for `model.apply`, float32.

    Raises:
      ValueError: if the file is of another kind, broken or of another digest, or a name is
        unknown, missing or of another shape than in the model; it names the file and the name.
      OSError: if the file cannot be read.
    """
    path = pathlib.Path(path)
    state = {name.removeprefix("module."): value for name, value in _read(path, sha256).items()}
    state = {name: value for name, value in state.items() if not _UNUSED.match(name)}
    wanted, structure = _shapes(model)
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


def save_pretrained(path: str | os.PathLike, model: Model, variables: PyTree) -> str:
    """Writes the model's variables as a state dict of PyTorch, in one file; returns its sha256.

    The counterpart of `load_pretrained`, for the same networks: what it reads back is the same, bit
    for bit, and `safetensors.torch.load_file` reads it, too. The names are those of the common
    implementations for CIFAR: `layer1.0.conv1.weight`, `shortcut` and `linear` in ResNets,
    `block1.layer.0.conv1.weight`, `convShortcut` and `fc` in WideResNets. What no evaluation uses,
    `num_batches_tracked` and the copy `sub_block1`, is left out, and so are `mean` and `std` of the
    pixels, which are part of the model.

    Args:
      path: the `.safetensors` file to write, whole or not at all.
      model: the network, one of those that `load_pretrained` fits.
      variables: those of one network, as of `model.init`; kept in the precision that they have.

    Returns:
      The digest of the file, for `load_pretrained(path, model, sha256=...)`: the format has no
      checksums of its own.

    Raises:
      ValueError: if `path` has another ending, the variables are not those of the model (it names
        the first that differs), or the model is another one.
      OSError: if the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> import jax
      >>> from mixjax import models
      >>> model = models.small_resnet()
      >>> variables = model.init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "weights.safetensors"
      ...     digest = models.save_pretrained(path, model, variables)
      ...     loaded = models.load_pretrained(path, model, sha256=digest)
      >>> jax.tree.all(jax.tree.map(lambda old, new: bool((old == new).all()), variables, loaded))
      True
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    leaves = jax.tree.leaves_with_path(variables)
    arrays = {_entries(place): np.asarray(leaf) for place, leaf in leaves}
    _check_fits(arrays, _shapes(model)[0])
    content = _written_safetensors(_state_dict(arrays))
    files.write(path, content)
    return hashlib.sha256(content).hexdigest()


def _shapes(model) -> tuple[dict[Any, Any], Any]:
    """Shapes of the model's variables by their place, and the structure of their tree."""
    shapes, structure = jax.tree.flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    return {_entries(place): leaf.shape for place, leaf in shapes}, structure


def _entries(place):
    return tuple(str(getattr(entry, "key", entry)) for entry in place)


def _check_fits(arrays, wanted):
    """Raises `ValueError` unless these are numbers, one array for each place of the model."""
    for place, shape in wanted.items():
        name = "/".join(place)
        if place not in arrays:
            raise ValueError(f"variables must be those of the model, got none for {name}")
        if arrays[place].shape != shape:
            raise ValueError(
                f"variables must be those of the model: {name} must have shape {list(shape)}, "
                f"got {list(arrays[place].shape)}"
            )
        if arrays[place].dtype.newbyteorder("=") not in _CODES:
            raise ValueError(f"variables must hold numbers, got {arrays[place].dtype} for {name}")
    if unknown := arrays.keys() - wanted.keys():
        name = "/".join(min(unknown))
        raise ValueError(f"variables must be those of the model, which has no {name}")


def _state_dict(arrays):
    """Our arrays under the names and in the layout of PyTorch."""
    widths = {
        int(block[1]): value.shape[-1]
        for place, value in arrays.items()
        if place[2:] == _LAST_OF_BLOCK and (block := _OUR_BLOCK.fullmatch(place[1]))
    }
    numbers = sorted(widths)
    stages = _stages([widths[number] for number in numbers])
    # Only a ResNet normalises its shortcuts, and only a WideResNet has three stages.
    is_residual = any("BatchNorm_2" in place for place in arrays)
    is_wide = not is_residual and bool(stages) and stages[-1][0] == _NUM_STAGES_OF_WIDE
    family = "residual" if is_residual else "wide" if is_wide else "pre-activation"
    block_name, in_block, outside = _FAMILIES[family]
    blocks = {
        f"_Block_{number}": block_name.format(*at)
        for number, at in zip(numbers, stages, strict=True)
    }
    state = {}
    for place, value in arrays.items():
        name = _torch_name(place, blocks, in_block, outside)
        if name is None:
            raise ValueError(
                "model must be one that load_pretrained fits, such as resnet18, "
                f"got one with {'/'.join(place) or 'one array alone'}"
            )
        state[name] = _to_torch(value)
    return state


def _torch_name(place, blocks, in_block, outside):
    """What PyTorch calls the array at that place in our variables, or None."""
    match place:
        case (collection, layer, leaf):
            prefix, module = "", outside.get(layer)
        case (collection, block, layer, leaf) if block in blocks:
            prefix, module = f"{blocks[block]}.", in_block.get(layer)
        case _:
            return None
    ours = layer.partition("_")[0], collection, leaf
    known = module is not None and ours in _LEAF_NAMES
    return f"{prefix}{module}.{_LEAF_NAMES[ours]}" if known else None


def _stages(widths):
    """Stage, from 1, and place in it, from 0, of each block: a stage begins with another width."""
    stages = []
    for number, width in enumerate(widths):
        is_first = number == 0 or width != widths[number - 1]
        stage, place = stages[-1] if stages else (0, 0)
        stages.append((stage + 1, 0) if is_first else (stage, place + 1))
    return stages


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


def _to_torch(value):
    """Kernels as `[out, in, rows, columns]` or `[out, in]`."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    return value if axes is None else value.transpose(axes)


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


def _written_safetensors(arrays):
    """The content of the file: in the order of the names, in little-endian bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, value in sorted(arrays.items()):
        code = _CODES[value.dtype.newbyteorder("=")]
        parts.append(value.astype(value.dtype.newbyteorder("<")).tobytes())
        offsets = [end, end := end + len(parts[-1])]
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


_READERS = {".npz": files.arrays_in, ".safetensors": _read_safetensors}
