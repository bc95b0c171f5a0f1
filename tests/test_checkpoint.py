"""What is restored is, bit for bit, what was saved, or a clear error."""

import json
import math
import pathlib
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from mixjax import checkpoint

CONFIG = {"dataset": "digits", "num_members": 2, "attack": {"epsilon": 0.2, "num_steps": 10}}


class State(NamedTuple):
    variables: Any
    opt_state: Any
    weights: jax.Array
    key: jax.Array
    step: jax.Array


def make_state(value, place=lambda leaf: leaf):
    """A state like that of a training run; every leaf depends on `value`."""
    params = {
        "kernel": value + jnp.arange(8.0).reshape(4, 2) / 7,
        "bias": jnp.full(3, value, jnp.bfloat16),
    }
    opt_state = optax.adam(0.1).init(params)
    gradient = jax.tree.map(lambda leaf: leaf * 0.3, params)
    _, opt_state = optax.adam(0.1).update(gradient, opt_state)
    return jax.tree.map(
        place,
        State(
            {"params": params},
            opt_state,
            jnp.array([0.25, 0.75]),
            jax.random.key(int(value)),
            jnp.int32(value),
        ),
    )


def bits(tree):
    """Every leaf as dtype, shape and bytes."""
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [(str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


def make_small_state(value):
    """A single leaf: TensorStore complains about other reads that a damaged one cuts off."""
    return {"weights": value + jnp.arange(1000.0)}


def save_all(manager, accuracies, make_state=make_state):
    for step, accuracy in accuracies.items():
        checkpoint.save(manager, step, make_state(step), {"robust_accuracy": accuracy})


def flip_a_byte_of_the_state(directory, step):
    """Damages the biggest file of array data of one checkpoint."""
    files = [path for path in (directory / str(step) / "state").rglob("d/*") if path.is_file()]
    path = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def test_named_tuples_optimizer_states_and_typed_keys_come_back_bit_for_bit(tmp_path):
    state = make_state(3)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 3, state, {"robust_accuracy": 0.5})
    template = jax.eval_shape(lambda: make_state(0))
    with checkpoint.open(tmp_path, CONFIG) as manager:
        restored, step, skipped = checkpoint.restore(manager, template)
    assert (step, skipped) == (3, [])
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    assert restored.key.dtype == state.key.dtype


def test_special_floats_are_kept_to_the_bit(tmp_path):
    state = {"x": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45, -jnp.inf])}
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 0, state, {"robust_accuracy": 0.5})
        restored, _, _ = checkpoint.restore(manager, state)
    assert bits(restored) == bits(state)


def test_a_donated_state_does_not_change_the_checkpoint_being_written(tmp_path):
    state = {"x": jnp.arange(2_000_000.0)}
    expected = bits(state)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.5 - 1, tree), donate_argnums=0)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 0, state, {"robust_accuracy": 0.5})
        for _ in range(5):
            state = step(state)
        restored, _, _ = checkpoint.restore(manager, state)
    assert bits(restored) == expected


def placement(num_devices):
    """Shards the first axis of four rows over the devices, replicates everything else."""
    mesh = jax.make_mesh((num_devices,), ("data",), devices=jax.devices()[:num_devices])

    def place(leaf):
        rows = PartitionSpec("data") if leaf.ndim == 2 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, rows))

    return place


def test_a_state_of_four_devices_continues_on_two_and_on_one(tmp_path):
    four = make_state(3, placement(4))
    assert len(four.variables["params"]["kernel"].sharding.device_set) == 4
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 3, four, {"robust_accuracy": 0.5})
        two, _, _ = checkpoint.restore(manager, make_state(0, placement(2)))
        checkpoint.save(manager, 4, two, {"robust_accuracy": 0.5})
        device = SingleDeviceSharding(jax.devices()[2])
        template = make_state(0, lambda leaf: jax.device_put(leaf, device))
        one, step, skipped = checkpoint.restore(manager, template)
    assert (step, skipped) == (4, [])
    assert bits(four) == bits(two) == bits(one)
    assert two.variables["params"]["kernel"].sharding.is_equivalent_to(
        make_state(0, placement(2)).variables["params"]["kernel"].sharding, 2
    )
    assert {leaf.sharding for leaf in jax.tree.leaves(one)} == {device}


def test_the_latest_and_the_best_are_kept_and_nothing_else(tmp_path):
    accuracies = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.45, 5: 0.2, 6: 0.05, 7: 0.04}
    with checkpoint.open(tmp_path, CONFIG, num_latest=2, num_best=3) as manager:
        save_all(manager, accuracies)
        assert checkpoint.steps(manager) == [2, 3, 4, 6, 7]
        _, best, _ = checkpoint.restore(manager, make_state(0), "best")
        _, latest, _ = checkpoint.restore(manager, make_state(0))
        third, number, _ = checkpoint.restore(manager, make_state(0), 3)
    assert (best, latest, number) == (2, 7, 3)
    assert bits(third) == bits(make_state(3))


def test_the_best_of_an_earlier_process_are_still_known(tmp_path):
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=1) as manager:
        save_all(manager, {1: 0.4, 2: 0.3})
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=1) as manager:
        save_all(manager, {3: 0.2, 4: 0.1})
        assert checkpoint.steps(manager) == [1, 4]


@pytest.mark.parametrize("not_a_number", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_never_becomes_the_best(tmp_path, not_a_number):
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=1) as manager:
        save_all(manager, {1: 0.2, 2: not_a_number})
        assert checkpoint.restore(manager, make_state(0), "best")[1] == 1
        save_all(manager, {3: 0.1, 4: not_a_number})
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=1) as manager:
        assert checkpoint.steps(manager) == [1, 4]
        assert checkpoint.restore(manager, make_state(0), "best")[1] == 1


def test_without_a_finite_metric_there_is_no_best(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: math.nan})
        with pytest.raises(ValueError, match="no sound checkpoint with a finite robust_accuracy"):
            checkpoint.restore(manager, make_state(0), "best")


def test_of_equally_good_checkpoints_the_latest_is_the_best(tmp_path):
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=1) as manager:
        save_all(manager, {1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1})
        assert checkpoint.steps(manager) == [2, 4]
        assert checkpoint.restore(manager, make_state(0), "best")[1] == 2


def test_flipped_bytes_are_noticed_and_the_newest_sound_checkpoint_is_used(tmp_path):
    with checkpoint.open(tmp_path, CONFIG, num_latest=3) as manager:
        save_all(manager, {1: 0.3, 2: 0.2, 3: 0.1}, make_small_state)
    flip_a_byte_of_the_state(tmp_path, 3)
    with checkpoint.open(tmp_path, CONFIG, num_latest=3) as manager:
        restored, step, skipped = checkpoint.restore(manager, make_small_state(0))
        assert (step, [each for each, _ in skipped]) == (2, [3])
        assert bits(restored) == bits(make_small_state(2))
        with pytest.raises(ValueError, match="no sound checkpoint 3 in .*; step 3: "):
            checkpoint.restore(manager, make_small_state(0), 3)


@pytest.mark.parametrize(
    "make",
    [make_state, make_small_state, lambda value: {"key": jax.random.key(value)}],
    ids=["all", "floats", "key"],
)
def test_arrays_that_restore_without_complaint_are_checked_against_their_sha256(tmp_path, make):
    """The arrays of one checkpoint under the record of another: every file is intact."""
    with checkpoint.open(tmp_path, CONFIG, num_latest=3) as manager:
        save_all(manager, {1: 0.1, 2: 0.2}, make)
    (tmp_path / "2" / "state").rename(tmp_path / "aside")
    (tmp_path / "1" / "state").rename(tmp_path / "2" / "state")
    (tmp_path / "aside").rename(tmp_path / "1" / "state")
    with checkpoint.open(tmp_path, CONFIG, num_latest=3) as manager:
        with pytest.raises(ValueError, match="step 2: sha256 of state.* is not what was saved"):
            checkpoint.restore(manager, make(0))


def test_a_best_checkpoint_that_is_damaged_gives_way_to_the_next_best(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.2, 2: 0.5, 3: 0.3, 4: 0.1}, make_small_state)
    flip_a_byte_of_the_state(tmp_path, 2)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        _, step, skipped = checkpoint.restore(manager, make_small_state(0), "best")
    assert (step, [each for each, _ in skipped]) == (3, [2])


@pytest.mark.parametrize("damage", ["altered", "torn", "missing"])
def test_a_damaged_record_cannot_make_a_checkpoint_the_best(tmp_path, damage):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.4, 2: 0.3, 3: 0.2})
    (record,) = (tmp_path / "2" / "record").glob("metadata")
    text = record.read_text()
    assert "0.3" in text
    altered = {"altered": text.replace("0.3", "0.9"), "torn": text[:40], "missing": ""}[damage]
    record.write_text(altered)
    if damage == "missing":
        record.unlink()
    with checkpoint.open(tmp_path, CONFIG) as manager:
        assert checkpoint.restore(manager, make_state(0), "best")[1:] == (1, [])
        with pytest.raises(ValueError, match="no sound checkpoint 2"):
            checkpoint.restore(manager, make_state(0), 2)


def test_an_empty_step_folder_is_passed_over(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.3})
    (tmp_path / "9").mkdir()
    with checkpoint.open(tmp_path, CONFIG) as manager:
        restored, step, skipped = checkpoint.restore(manager, make_state(0))
        assert (step, [each for each, _ in skipped]) == (1, [9])
        assert bits(restored) == bits(make_state(1))
        save_all(manager, {2: 0.3})
        assert checkpoint.steps(manager) == [1, 2]


def test_a_run_that_fell_back_saves_over_the_damaged_checkpoint(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1, 2: 0.2}, make_small_state)
    flip_a_byte_of_the_state(tmp_path, 2)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        assert checkpoint.restore(manager, make_small_state(0))[1] == 1
        save_all(manager, {2: 0.2}, make_small_state)
        restored, step, skipped = checkpoint.restore(manager, make_small_state(0))
    assert (step, skipped) == (2, [])
    assert bits(restored) == bits(make_small_state(2))


def test_with_no_sound_checkpoint_the_error_names_each_and_why(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        with pytest.raises(ValueError, match="no sound checkpoint in "):
            checkpoint.restore(manager, make_small_state(0))
        save_all(manager, {1: 0.1}, make_small_state)
    (tmp_path / "7").mkdir()
    flip_a_byte_of_the_state(tmp_path, 1)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        with pytest.raises(ValueError, match="no sound checkpoint in .*; step 7: .*; step 1: "):
            checkpoint.restore(manager, make_small_state(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": jnp.ones(3) / 3}, r"weights is float32\[2\] in checkpoint 1, float32\[3\]"),
        ({"step": jnp.float32(0)}, r"step is int32\[\] in checkpoint 1, float32\[\]"),
        ({"variables": {}}, r"kernel'\] is float32\[4, 2\] in checkpoint 1, absent"),
    ],
)
def test_a_template_that_does_not_fit_is_an_error_not_a_damaged_checkpoint(
    tmp_path, change, message
):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1})
        if "variables" in change:
            bias = make_state(0).variables["params"]["bias"]
            change = {"variables": {"params": {"bias": bias}}}
        with pytest.raises(ValueError, match=message):
            checkpoint.restore(manager, make_state(0)._replace(**change))


def test_saving_the_same_step_again_writes_nothing_new(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1})
        checkpoint.steps(manager)  # waits until the first one is written
        (tmp_path / "1" / "mark").write_text("")
        save_all(manager, {1: 0.1})
        checkpoint.steps(manager)
        assert (tmp_path / "1" / "mark").exists()
        save_all(manager, {1: 0.2})
        checkpoint.steps(manager)
        assert not (tmp_path / "1" / "mark").exists()


def test_what_a_killed_process_was_writing_is_removed_by_the_next_save_not_by_a_reader(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1})
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        assert checkpoint.restore(manager, make_state(0))[1:] == (1, [])
        assert (tmp_path / "2.orbax-checkpoint-tmp").exists()
        save_all(manager, {3: 0.1})
        assert checkpoint.steps(manager) == [1, 3]
    assert not list(tmp_path.glob("*tmp*"))


def test_a_folder_of_another_config_is_refused_naming_the_fields(tmp_path):
    checkpoint.open(tmp_path, CONFIG).close()
    other = CONFIG | {"num_members": 3, "attack": {"epsilon": 0.3, "num_steps": 10}}
    with pytest.raises(ValueError) as caught:
        checkpoint.open(tmp_path, other)
    assert "attack.epsilon: 0.2 -> 0.3; num_members: 2 -> 3" in str(caught.value)
    assert "num_steps" not in str(caught.value)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="directory .* is not empty.*thesis.tex"):
        checkpoint.open(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="directory .*file/below cannot be written"):
        checkpoint.open(tmp_path / "file" / "below", CONFIG)


def test_bad_arguments_are_named_and_nothing_is_written(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="num_latest must be .*got 0"):
        checkpoint.open(folder, CONFIG, num_latest=0)
    with pytest.raises(ValueError, match="num_best must be .*got -1"):
        checkpoint.open(folder, CONFIG, num_best=-1)
    with pytest.raises(ValueError, match="config.epsilon must be finite, got nan"):
        checkpoint.open(folder, {"epsilon": math.nan})
    assert not folder.exists()
    with checkpoint.open(folder, CONFIG) as manager:
        with pytest.raises(ValueError, match="step must be .*got -1"):
            checkpoint.save(manager, -1, make_state(0), {"robust_accuracy": 0.1})
        with pytest.raises(ValueError, match="metrics must hold robust_accuracy, got loss"):
            checkpoint.save(manager, 1, make_state(0), {"loss": 0.1})
        assert checkpoint.steps(manager) == []


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1})
        checkpoint.restore(manager, make_state(0))
    for path in pathlib.Path(tmp_path).rglob("*"):
        assert path.suffix not in {".pkl", ".pickle"}
        assert path.is_dir() or not path.read_bytes().startswith(b"\x80\x04")
