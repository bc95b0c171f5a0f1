"""State dicts of PyTorch in our networks and back; our own weights under torch's names."""

import hashlib
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixjax import models
from mixjax.models import pretrained

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


SMALL = models.small_resnet(3, 2, input_shape=(8, 8, 3))
NORMED = models.preact_resnet18(3, 2, input_shape=(8, 8, 3))
SAVED = [
    (RESNET, KUANGLIU, 2),
    (SMALL, KUANGLIU, 1),
    (NORMED, (*KUANGLIU[:4], "bn"), 2),
    (PREACT, KUANGLIU, 2),
    (WIDE, TRADES, 2),
    (models.wide_resnet(3, 10, 2, input_shape=(8, 8, 3)), TRADES, 1),
]


@pytest.mark.parametrize(
    ("model", "names", "num_blocks"),
    SAVED,
    ids=["resnet18", "small", "preact", "preact without final norm", "wide 16-1", "wide 10-2"],
)
def test_what_is_saved_has_the_names_and_the_layout_of_pytorch(model, names, num_blocks, tmp_path):
    """And comes back bit for bit, NaN and the sign of zero included."""
    variables = variables_of(model)
    odd = variables["batch_stats"]["_Block_1"]["BatchNorm_0"]["mean"]
    odd[:2] = np.nan, -0.0
    path = tmp_path / "w.safetensors"
    digest = models.save_pretrained(path, model, variables)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    want = state_dict(variables, names, num_blocks)
    want = {name: value for name, value in want.items() if value.ndim}  # no counters of steps
    got = pretrained._read(path, digest)
    chex.assert_trees_all_equal(got, want, strict=True)
    back = models.load_pretrained(path, model, sha256=digest)
    chex.assert_trees_all_equal_structs(back, variables)
    for old, new in zip(jax.tree.leaves(variables), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(new).view(np.uint32), old.view(np.uint32))


def test_the_saved_file_is_what_the_format_says(tmp_path):
    """Length, JSON that begins with a brace and is filled up by spaces, arrays without holes."""
    variables = variables_of(SMALL)
    path = tmp_path / "w.safetensors"
    models.save_pretrained(path, SMALL, jax.tree.map(jnp.asarray, variables))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length]
    assert length % 8 == 0 and text[:1] == b"{" and text.rstrip(b" ")[-1:] == b"}"
    header = json.loads(text)
    assert header.pop("__metadata__") == {"format": "pt"}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    ends = [entry["data_offsets"] for entry in header.values()]
    assert [0, *(end for _, end in ends)] == [*(begin for begin, _ in ends), size]
    assert len(content) == 8 + length + size
    kernel = header["layer2.0.shortcut.0.weight"]
    assert kernel["dtype"] == "F32" and kernel["shape"] == [4, 2, 1, 1]
    begin, end = (8 + length + offset for offset in kernel["data_offsets"])
    numbers = variables["params"]["_Block_1"]["Conv_2"]["kernel"]
    assert content[begin:end] == numbers[0, 0].T.astype("<f4").tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    ("dtype", "code"), [(jnp.bfloat16, "BF16"), (np.float16, "F16"), (">f4", "F32")]
)
def test_variables_are_saved_in_the_precision_that_they_have(dtype, code, tmp_path):
    variables = jax.tree.map(lambda leaf: (leaf % 100).astype(dtype), variables_of(SMALL))
    path = tmp_path / "w.safetensors"
    models.save_pretrained(path, SMALL, variables)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {entry["dtype"] for entry in header.values() if "dtype" in entry} == {code}
    want = jax.tree.map(np.float32, variables)
    chex.assert_trees_all_equal(models.load_pretrained(path, SMALL), want, strict=True)


def changed(variables, *place, to):
    """A copy with the leaf at `place` another one, or without it."""
    first, *rest = place
    inner = {first: changed(variables[first], *rest, to=to) if rest else to}
    return {name: leaf for name, leaf in (variables | inner).items() if leaf is not None}


BIAS = ("params", "Dense_0", "bias")


@pytest.mark.parametrize(
    ("model", "variables", "message"),
    [
        (
            SMALL,
            changed(variables_of(SMALL), *BIAS, to=None),
            "variables must be those of the model, got none for params/Dense_0/bias",
        ),
        (
            SMALL,
            changed(variables_of(SMALL), *BIAS, to=np.zeros(4)),
            r"variables must be those of the model: params/Dense_0/bias must have shape \[3\], "
            r"got \[4\]",
        ),
        (
            SMALL,
            jax.tree.map(lambda leaf: np.stack([leaf, leaf]), variables_of(SMALL)),
            r"batch_stats/BatchNorm_0/mean must have shape \[2\], got \[2, 2\]",
        ),
        (
            SMALL,
            changed(variables_of(SMALL), "params", "Dense_1", to={"bias": np.zeros(3)}),
            "variables must be those of the model, which has no params/Dense_1/bias",
        ),
        (
            SMALL,
            changed(variables_of(SMALL), *BIAS, to=np.array(["a", "b", "c"])),
            "variables must hold numbers, got <U1 for params/Dense_0/bias",
        ),
        (SMALL, np.zeros(3), "variables must be those of the model, got none for batch_stats"),
    ],
    ids=["missing", "shape", "two members", "too many", "text", "an array"],
)
def test_other_variables_are_not_saved(model, variables, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        models.save_pretrained(tmp_path / "w.safetensors", model, variables)
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"params": {"Conv_0": {"bias": np.zeros(3)}}}, "params/Conv_0/bias"),
        ({"params": {"kernel": np.zeros(3)}}, "params/kernel"),
        ({"params": {"_Block_0": {"Conv_5": {"kernel": np.zeros(3)}}}}, "params/_Block_0/Conv_5"),
        ({"params": {"a": {"Conv_1": {"kernel": np.zeros(3)}}}}, "params/a/Conv_1/kernel"),
        (np.zeros(3), "one array alone"),
    ],
)
def test_a_network_without_names_in_pytorch_is_refused(variables, place, tmp_path):
    model = models.Model(lambda key: variables, lambda variables, x: x)
    message = f"model must be one that load_pretrained fits, such as resnet18, got one with {place}"
    with pytest.raises(ValueError, match=message):
        models.save_pretrained(tmp_path / "w.safetensors", model, variables)
    assert not [*tmp_path.iterdir()]


def test_weights_are_saved_as_safetensors_alone(tmp_path):
    with pytest.raises(ValueError, match="path must end in .safetensors, got .*w.npz"):
        models.save_pretrained(tmp_path / "w.npz", SMALL, variables_of(SMALL))
