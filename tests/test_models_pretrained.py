"""State dicts of PyTorch in our networks: written from our own weights under torch's names."""

import json
import math

import chex
import jax
import numpy as np
import pytest

from mixjax import models

RESNET = models.resnet18(3, 2, input_shape=(8, 8, 3))
WIDE = models.wide_resnet(3, 16, 1, input_shape=(8, 8, 3))
PREACT = models.preact_resnet18(3, 2, final_norm=False, input_shape=(8, 8, 3))

# What a stage is called, its shortcut, the last layer, the BatchNorm outside of blocks.
KUANGLIU = ("layer{}.{}", "shortcut.0", "shortcut.1", "linear", "bn1")
TORCHVISION = ("layer{}.{}", "downsample.0", "downsample.1", "fc", "bn1")
TRADES = ("block{}.layer.{}", "convShortcut", None, "fc", "bn1")


def variables_of(model):
    """Every number a different one."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    starts = np.cumsum([0, *(math.prod(leaf.shape) for leaf in leaves)])
    filled = [
        np.arange(start, start + math.prod(leaf.shape), dtype=np.float32).reshape(leaf.shape)
        for start, leaf in zip(starts, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, filled)


def state_dict(variables, names, num_blocks):
    """Our variables under the names and in the layout of PyTorch."""
    stage_name, shortcut, shortcut_norm, last, norm = names
    params, stats = variables["params"], variables["batch_stats"]
    state = {}

    def add(prefix, ours, params, stats):
        kind = ours.partition("_")[0]
        if kind == "Conv":
            state[f"{prefix}.weight"] = params[ours]["kernel"].transpose(3, 2, 0, 1)
        elif kind == "Dense":
            state[f"{prefix}.weight"] = params[ours]["kernel"].T
            state[f"{prefix}.bias"] = params[ours]["bias"]
        else:
            state[f"{prefix}.weight"] = params[ours]["scale"]
            state[f"{prefix}.bias"] = params[ours]["bias"]
            state[f"{prefix}.running_mean"] = stats[ours]["mean"]
            state[f"{prefix}.running_var"] = stats[ours]["var"]
            state[f"{prefix}.num_batches_tracked"] = np.asarray(7)

    outside = {"Conv_0": "conv1", "BatchNorm_0": norm, "Dense_0": last}
    inside = {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": shortcut}
    inside |= {"BatchNorm_0": "bn1", "BatchNorm_1": "bn2", "BatchNorm_2": shortcut_norm}
    for ours, theirs in outside.items():
        if ours in params:
            add(theirs, ours, params, stats)
    for index in range(sum(name.startswith("_Block") for name in params)):
        stage, block = divmod(index, num_blocks)
        p, s = params[f"_Block_{index}"], stats[f"_Block_{index}"]
        for ours in p:
            add(f"{stage_name.format(stage + 1, block)}.{inside[ours]}", ours, p, s)
    return state


def save_npz(path, state):
    np.savez(path, **state)
    return path


def save_safetensors(path, state):
    """The format written out: length, header, bytes."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    codes = {"float32": "F32", "float16": "F16", "int64": "I64"}
    for name, value in state.items():
        data = np.ascontiguousarray(value).tobytes()
        offsets = [len(content), len(content) + len(data)]
        code = codes[str(value.dtype)]
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


@pytest.mark.parametrize("save", [save_npz, save_safetensors])
@pytest.mark.parametrize(
    ("model", "names"),
    [(RESNET, KUANGLIU), (RESNET, TORCHVISION), (PREACT, KUANGLIU), (WIDE, TRADES)],
    ids=["kuangliu", "torchvision", "preact", "wide"],
)
def test_every_number_comes_back_to_its_place(model, names, save, tmp_path):
    want = variables_of(model)
    path = tmp_path / f"weights.{save.__name__.removeprefix('save_')}"
    got = models.load_pretrained(save(path, state_dict(want, names, 2)), model)
    chex.assert_trees_all_equal(got, want, strict=True)


def test_a_state_of_a_parallel_network_in_half_precision_fits_too(tmp_path):
    want = jax.tree.map(lambda leaf: np.float32(leaf % 1000), variables_of(RESNET))
    state = state_dict(want, KUANGLIU, 2)
    state = {f"module.{name}": value.astype(np.float16) for name, value in state.items()}
    state = {name: v if v.ndim else np.asarray(7) for name, v in state.items()}
    got = models.load_pretrained(save_safetensors(tmp_path / "w.safetensors", state), RESNET)
    chex.assert_trees_all_equal(got, want, strict=True)


def test_the_unused_copy_of_a_stage_is_left_out(tmp_path):
    want = variables_of(WIDE)
    state = state_dict(want, TRADES, 2)
    copies = {f"sub_{k}": v for k, v in state.items() if k.startswith("block1.")}
    got = models.load_pretrained(save_npz(tmp_path / "w.npz", state | copies), WIDE)
    chex.assert_trees_all_equal(got, want, strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv1.weight": np.zeros((2, 3, 7, 7))},
            "conv1.weight in .*w.npz must have shape "
            r"\[2, 3, 3, 3\], got \[2, 3, 7, 7\]",
        ),
        ({"linear.weight": np.zeros((10, 16))}, r"linear.weight .* \[3, 16\], got \[10, 16\]"),
        ({"bn1.bias": np.zeros(4)}, r"bn1.bias .* \[2\], got \[4\]"),
        ({"layer2.1.conv2.weight": None}, "nothing for params/_Block_3/Conv_1/kernel"),
        ({"bn1.running_var": None}, "nothing for batch_stats/BatchNorm_0/var"),
        ({"conv1.bias": np.zeros(2)}, "holds conv1.bias, for which the model has no place"),
        ({"mean": np.zeros(3)}, "holds mean, for which the model has no place"),
        ({"layer5.0.conv1.weight": np.zeros(1)}, "holds layer5.0.conv1.weight, for which"),
        ({"layer1.0.shortcut.0.weight": np.zeros(1)}, "layer1.0.shortcut.0.weight, for which"),
        ({"fc.bias": np.zeros(3)}, "holds fc.bias, for which the model has no place"),
    ],
)
def test_a_name_that_does_not_fit_is_one_clear_error(change, message, tmp_path):
    state = state_dict(variables_of(RESNET), KUANGLIU, 2) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(save_npz(tmp_path / "w.npz", state), RESNET)


def test_weights_of_another_depth_are_refused(tmp_path):
    deeper = models.wide_resnet(3, 22, 1, input_shape=(8, 8, 3))
    path = save_npz(tmp_path / "w.npz", state_dict(variables_of(deeper), TRADES, 3))
    with pytest.raises(ValueError, match="w.npz"):
        models.load_pretrained(path, WIDE)


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x04\0\0\0\0\0\0\0null", b"\xff" * 40])
def test_a_broken_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as"):
        models.load_pretrained(tmp_path / name, RESNET)


def test_a_truncated_file_is_named(tmp_path):
    state = state_dict(variables_of(RESNET), KUANGLIU, 2)
    for save, name in [(save_npz, "w.npz"), (save_safetensors, "w.safetensors")]:
        path = save(tmp_path / name, state)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError, match=f"{name} cannot be read as"):
            models.load_pretrained(path, RESNET)


def test_nothing_is_unpickled(tmp_path):
    path = save_npz(tmp_path / "w.npz", {"conv1.weight": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        models.load_pretrained(path, RESNET)
    with pytest.raises(ValueError, match="path must end in .npz or .safetensors, got .*w.pt"):
        models.load_pretrained(tmp_path / "w.pt", RESNET)
