"""What is restored is, bit for bit, what was saved, or a clear error."""

import contextlib
import json
import math
import pathlib
import pickle
import resource
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from mixjax import checkpoint

# Of a write that failed Orbax leaves a future behind, whose callback finds its loop closed, at once
# or some tests later.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)

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


def make_big_state(value):
    return {"x": jax.random.normal(jax.random.key(value), (50_000,)), "step": jnp.int32(value)}


@contextlib.contextmanager
def full_disk():
    """No file can grow beyond 50 000 bytes: a quarter of the big state."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def test_what_was_bound_to_no_device_is_restored_so_and_compiles_nothing_anew(tmp_path, caplog):
    state = {"x": jnp.arange(3.0), "key": jax.random.key(1)}
    step = jax.jit(lambda state: state | {"x": 2 * state["x"]}, donate_argnums=0)
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 3, state, {"robust_accuracy": 0.5})
        again, _, _ = checkpoint.restore(manager, state)
    assert not any(leaf.committed for leaf in jax.tree.leaves(again))
    assert bits(again) == bits(state)
    expected = bits(step(state))
    with jax.log_compiles(True):
        assert bits(step(again)) == expected
    assert again["x"].is_deleted()  # and its memory serves the next state
    assert not [each for each in caplog.messages if each.startswith("Compiling")]


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


def test_a_save_that_failed_is_an_error_and_the_second_try_writes_the_file(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1}, make_big_state)
        assert checkpoint.steps(manager) == [1]
        for _ in range(2):
            with full_disk():
                checkpoint.save(manager, 2, make_big_state(2), {"robust_accuracy": 0.2})
                with pytest.raises(OSError, match="a checkpoint could not be written to .*") as e:
                    checkpoint.steps(manager)
            assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)
            assert checkpoint.steps(manager) == [1]
            assert checkpoint.restore(manager, make_big_state(0), "best")[1:] == (1, [])
        save_all(manager, {2: 0.2}, make_big_state)
        assert checkpoint.steps(manager) == [1, 2]
    with checkpoint.open(tmp_path, CONFIG) as manager:
        restored, step, skipped = checkpoint.restore(manager, make_big_state(0))
    assert (step, skipped) == (2, [])
    assert bits(restored) == bits(make_big_state(2))


@pytest.mark.parametrize("end", ["save", "close"])
def test_that_a_save_failed_is_said_by_whatever_comes_next(tmp_path, end):
    manager = checkpoint.open(tmp_path, CONFIG)
    with full_disk():
        checkpoint.save(manager, 1, make_big_state(1), {"robust_accuracy": 0.1})
        with pytest.raises(OSError, match="could not be written"):
            if end == "save":
                checkpoint.save(manager, 2, make_big_state(2), {"robust_accuracy": 0.1})
            else:
                manager.close()
    assert end == "close" or checkpoint.steps(manager) == []


@pytest.mark.parametrize("step", [1, 2])
def test_a_save_at_or_below_an_existing_step_that_fails_loses_nothing(tmp_path, step):
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=0) as manager:
        save_all(manager, {2: 0.2}, make_big_state)
        checkpoint.steps(manager)
        with full_disk(), pytest.raises(OSError, match="could not be written"):
            checkpoint.save(manager, step, make_big_state(5), {"robust_accuracy": 0.3})
            checkpoint.steps(manager)
        assert checkpoint.steps(manager) == [2]
    with checkpoint.open(tmp_path, CONFIG) as manager:
        restored, found, skipped = checkpoint.restore(manager, make_big_state(0))
        assert (found, skipped) == (2, [])
        assert bits(restored) == bits(make_big_state(2))


def test_a_history_that_goes_back_replaces_the_later_steps_when_it_is_on_disk(tmp_path):
    """Step 2 is written again after 3: both old ones go, and the run ends as any other."""
    with checkpoint.open(tmp_path, CONFIG, num_latest=3) as manager:
        save_all(manager, {1: 0.1, 2: 0.2, 3: 0.3})
        checkpoint.save(manager, 2, make_state(7), {"robust_accuracy": 0.15})
        assert checkpoint.steps(manager) == [1, 2]
        assert checkpoint.restore(manager, make_state(0), "best")[1] == 2
        save_all(manager, {3: 0.1, 4: 0.1})
    with checkpoint.open(tmp_path, CONFIG, num_latest=3) as manager:
        assert checkpoint.steps(manager) == [2, 3, 4]
        second, step, _ = checkpoint.restore(manager, make_state(0), 2)
        assert checkpoint.restore(manager, make_state(0), "best")[1] == 2
        assert checkpoint.restore(manager, make_state(0))[1] == 4
    assert step == 2 and bits(second) == bits(make_state(7))


def test_a_checkpoint_that_was_removed_since_is_written_again(tmp_path):
    with checkpoint.open(tmp_path, CONFIG, num_latest=1, num_best=0) as manager:
        save_all(manager, {1: 0.1, 2: 0.2})
        assert checkpoint.steps(manager) == [2]
        save_all(manager, {1: 0.1})
        assert checkpoint.steps(manager) == [1]


def test_a_checkpoint_without_its_step_in_the_record_has_its_folder_s(tmp_path, monkeypatch):
    """As version 0.1.0 has written them."""
    signed = checkpoint._signed
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint,
            "_signed",
            lambda record: signed({k: v for k, v in record.items() if k != "step"}),
        )
        with checkpoint.open(tmp_path, CONFIG) as manager:
            save_all(manager, {4: 0.1})
    with checkpoint.open(tmp_path, CONFIG) as manager:
        restored, step, skipped = checkpoint.restore(manager, make_state(0))
    assert (step, skipped) == (4, []) and bits(restored) == bits(make_state(4))


def test_numbers_of_python_and_numpy_and_other_byte_orders_come_back_as_they_are(tmp_path):
    state = {
        "numpy": np.float32(2.5),
        "int64": np.int64(2**40),
        "bool": np.bool_(True),
        "python": (3, 2.5, True, 2j),
        "swapped": np.arange(3.0, dtype=">f4"),
    }
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 1, state, {"robust_accuracy": 0.5})
        restored, _, skipped = checkpoint.restore(manager, state)
    assert skipped == [] and jax.tree.structure(restored) == jax.tree.structure(state)
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert type(got) is type(expected) and np.array_equal(got, expected)


def test_the_step_may_be_a_number_of_jax_or_numpy(tmp_path):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, jnp.int32(3), make_state(3), {"robust_accuracy": jnp.float32(0.5)})
        checkpoint.save(manager, np.int64(4), make_state(4), {"robust_accuracy": np.float32(0.4)})
        assert checkpoint.steps(manager) == [3, 4]
        for step in (3, jnp.int32(3), np.int64(3)):
            _, found, _ = checkpoint.restore(manager, make_state(0), step)
            assert (type(found), found) == (int, 3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": "text"}, r"state\['x'\] must be an array or a number, got 'text'"),
        ({"x": [None, object]}, r"state\['x'\]\[1\] must be an array or a number"),
        ({"x": np.longdouble(1)}, r"state\['x'\] must be an array or a number, got np.longdouble"),
        (
            {"x": np.zeros(2, [("a", "f4")])},
            r"state\['x'\] must be an array or a number, got array",
        ),
        ({"x": jnp.zeros((0, 3))}, r"state\['x'\] must not be empty, got shape \[0, 3\]"),
        ({"a": {"b": jnp.zeros(2)}, "a.b": jnp.ones(3)}, r"'a.b'\] must not share the name a.b"),
        ({}, "state must be a dict, list or tuple that holds arrays, got none"),
        (jnp.ones(3), "state must be a dict, list or tuple that holds arrays, got one leaf alone"),
    ],
)
def test_a_state_that_cannot_be_stored_is_named_and_nothing_is_lost(tmp_path, state, message):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1})
        with pytest.raises(ValueError, match=message):
            checkpoint.save(manager, 1, state, {"robust_accuracy": 0.5})
        assert checkpoint.steps(manager) == [1]


@pytest.mark.parametrize("value", ["high", [0.5], np.ones(1)], ids=["text", "list", "array"])
def test_a_metric_that_is_no_number_is_named_and_nothing_is_lost(tmp_path, value):
    with checkpoint.open(tmp_path, CONFIG) as manager:
        save_all(manager, {1: 0.1})
        with pytest.raises(ValueError, match=r"metrics\['robust_accuracy'\] must be a number, got"):
            checkpoint.save(manager, 1, make_state(1), {"robust_accuracy": value})
        assert checkpoint.steps(manager) == [1]


@pytest.mark.parametrize("name", ["[lr=0.1] a", "a*", "why?"])
def test_a_path_whose_checkpoints_could_not_be_read_again_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="directory must not have . in its path"):
        checkpoint.open(tmp_path / name / "checkpoints", CONFIG)
    assert not (tmp_path / name).exists()


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
    assert "num_members: 2 -> 3; attack.epsilon: 0.2 -> 0.3" in str(caught.value)
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
