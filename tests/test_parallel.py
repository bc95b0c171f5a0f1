import functools
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from mixjax import attacks, defenses, models, parallel, threats

DEVICES = jax.devices("cpu")[:4]
NUM_MEMBERS = 4
NUM_STEPS = 6

# Each visits both kinds of steps: period 5 for "one", 2 for "all".
CASES = {
    "one": {
        "update": "one",
        "weighing": defenses.oracle_weighing(num_steps=4, loss_bound=4.0),
        "objective": defenses.adversarial_training(),
    },
    "all": {
        "update": "all",
        "weighing": defenses.entropic_weighing(num_steps=4, temperature=0.1, num_samples=2),
        "objective": defenses.trades(beta=2.0),
        "average_decay": 0.9,
    },
}


class Network(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5, use_bias=False)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.7, axis_name=self.axis_name if train else None
        )(x)
        return nn.Dense(3)(nn.tanh(x))


def tiny(data_axis):
    return models.from_linen(Network(data_axis), (2, 3, 1))


def make(case, data_axis=None, member_axis=None, model=tiny):
    return defenses.mixture(
        model(data_axis),
        optax.chain(
            optax.add_decayed_weights(1e-2),
            optax.sgd(1.0, momentum=0.9),
            defenses.scale_by_step(lambda step: 0.2 / (1.0 + step)),
        ),
        threats.linf(0.1),
        functools.partial(attacks.pgd, num_steps=2, step_size=0.07),
        num_members=NUM_MEMBERS,
        num_model_steps=1,
        weighing_loss=lambda logits, label: 1.0 - jax.nn.softmax(logits)[label],
        data_axis=data_axis,
        member_axis=member_axis,
        **CASES[case],
    )


def per_device_step(defense, data_axis):
    """The data set is on every device; the step draws its own batch from it, then its share."""

    def step(state, data):
        rows = jax.random.permutation(jax.random.fold_in(state.key, state.step), 12)[:8]
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        images, labels = parallel.local_share(batch, data_axis)
        return defense.step(state, images.astype(jnp.float32) / 255, labels)

    return step


def dataset(image_shape=(2, 3, 1)):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, *image_shape), np.uint8)
    return images, random.integers(0, 3, 12, np.int32)


@functools.cache
def initial(case):
    return jax.jit(make(case).init)(jax.random.key(1))


@functools.cache
def build(case, kind):
    """A step over devices, and how a state and data come onto them."""
    if kind == "one device":
        place = functools.partial(jax.device_put, device=DEVICES[0])
        return jax.jit(per_device_step(make(case), None)), place, place
    mesh = parallel.mesh(int(kind.split()[0]), DEVICES)
    spec = parallel.state_spec(initial(case), defenses.MEMBER_FIELDS)
    step = per_device_step(make(case, "data", "member"), "data")
    return (
        parallel.shard_step(step, mesh, spec),
        functools.partial(parallel.place, mesh=mesh, spec=spec),
        functools.partial(parallel.place, mesh=mesh),
    )


@functools.cache
def run(case, kind):
    """State and infos after some steps, as NumPy arrays."""
    step, place_state, place_data = build(case, kind)
    state, data = place_state(initial(case)), place_data(dataset())
    infos = []
    for _ in range(NUM_STEPS):
        state, info = step(state, data)
        infos.append(info)
    state = state._replace(key=jax.random.key_data(state.key))
    return jax.tree.map(np.asarray, (state, infos))


RUNS = [("one", "2 x 2"), ("all", "2 x 2")]


@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_several_devices_train_what_one_device_trains(case, kind):
    expected, found = run(case, "one device"), run(case, kind)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_run_that_is_compared_moved_everything(case):
    """Or the comparison would be between two initial states."""
    state, infos = run(case, "one device")
    assert len({bool(info.is_weight_step) for info in infos}) == 2
    assert np.ptp(state.weights) > 1e-2
    for leaf, old in zip(
        jax.tree.leaves(state.variables), jax.tree.leaves(initial(case).variables), strict=True
    ):
        assert np.abs(leaf - old).max() > 1e-3


@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_devices_exchange_sums_and_nothing_else(case, kind):
    """No all-gather of a batch, of members or of gradients."""
    step, place_state, place_data = build(case, kind)
    state = place_state(initial(case))
    text = step.lower(state, place_data(dataset())).compile().as_text()
    collectives = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    assert {*re.findall(collectives, text)} == {"all-reduce"}


def test_what_the_devices_exchange_is_found_in_a_planted_step():
    mesh = parallel.mesh(1, DEVICES)
    step = parallel.shard_step(
        lambda state, data: (jax.lax.all_gather(data[0], "data").sum(0) + state, ()),
        mesh,
        PartitionSpec(),
    )
    text = step.lower(jnp.zeros(4), jnp.ones((2, 4))).compile().as_text()
    assert "all-gather" in text


def test_batch_norm_of_a_residual_network_is_that_of_the_whole_batch(key):
    def network(axis):
        return models.small_resnet(3, 2, input_shape=(4, 4, 1), axis_name=axis)

    def step(axis):
        def train(variables, images):
            images = parallel.local_share(images, axis)
            return network(axis).apply(variables, images / 255.0, train=True)[1], ()

        return train

    variables, (images, _) = jax.jit(network(None).init)(key), dataset((4, 4, 1))
    expected, _ = jax.jit(step(None))(variables, images)
    found, _ = parallel.pmap_step(step("data"), devices=DEVICES)(
        parallel.replicate(variables, DEVICES), parallel.replicate(images, DEVICES)
    )
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    running = jax.tree.leaves(found["batch_stats"])
    assert (
        max(
            np.abs(new - old).max()
            for new, old in zip(running, jax.tree.leaves(variables["batch_stats"]), strict=True)
        )
        > 1e-2
    )


def add(axis):
    """Adds the sum of a batch: by hand `state + 1 + .. + 8`."""

    def step(state, batch):
        total = jax.lax.psum(jnp.sum(parallel.local_share(batch, axis)), axis)
        return state + total, total

    return step


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_a_step_over_any_number_of_devices_keeps_the_state_plain_and_donates_it(num_devices):
    devices = DEVICES[:num_devices]
    pmapped = parallel.pmap_step(add("data"), devices=devices)
    sharded = parallel.shard_step(add("data"), parallel.mesh(1, devices), PartitionSpec())
    batch = np.arange(1.0, 9.0, dtype=np.float32)
    for step in (pmapped, sharded):
        state = parallel.replicate(jnp.ones(3), devices)
        new, info = step(state, parallel.replicate(batch, devices))
        chex.assert_trees_all_equal((new, info), (np.full(3, 37.0, np.float32), np.float32(36)))
        assert state.is_deleted() and len(new.sharding.device_set) == num_devices


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_a_step_on_what_was_placed_is_traced_once(kind, num_devices):
    """The state of the first step comes from the host, all others from the step before."""
    devices = DEVICES[:num_devices]
    counted = chex.assert_max_traces(add("data"), n=1)
    if kind == "pmap":
        step = parallel.pmap_step(counted, devices=devices)
        place = functools.partial(parallel.replicate, devices=devices)
    else:
        mesh = parallel.mesh(1, devices)
        step = parallel.shard_step(counted, mesh, PartitionSpec())
        place = functools.partial(parallel.place, mesh=mesh)
    state, batch = place(jnp.ones(3)), place(jnp.arange(1.0, 9.0))
    for _ in range(3):
        state, _ = step(state, batch)
    np.testing.assert_array_equal(state, [109.0, 109.0, 109.0])


def test_the_axis_may_have_another_name():
    step = parallel.pmap_step(add("examples"), axis_name="examples", devices=DEVICES)
    assert step(jnp.zeros(()), jnp.ones(8))[1] == 8


def test_donation_spares_what_was_placed():
    state = jnp.ones(3)
    placed = parallel.replicate(state, DEVICES)
    parallel.pmap_step(add("data"), devices=DEVICES)(placed, jnp.ones(8))
    np.testing.assert_array_equal(state, [1.0, 1.0, 1.0])


def test_a_state_split_over_members_becomes_plain_again():
    class State(NamedTuple):
        variables: dict
        key: jax.Array

    mesh = parallel.mesh(2, DEVICES)
    state = State({"params": jnp.arange(8.0).reshape(4, 2)}, jax.random.key(5))
    spec = parallel.state_spec(state, ("variables",))
    split = parallel.place(state, mesh, spec)
    shards = split.variables["params"].addressable_shards
    assert [shard.data.tolist() for shard in shards] == 2 * [[[0, 1], [2, 3]]] + 2 * [
        [[4, 5], [6, 7]]
    ]
    plain = parallel.place(split, mesh)
    assert plain.variables["params"].sharding.is_fully_replicated
    np.testing.assert_array_equal(plain.variables["params"], state.variables["params"])
    assert plain.key == state.key and plain.key.dtype == state.key.dtype


def test_fields_of_members_are_found_at_any_depth():
    state = {"inner": initial("one"), "num_epochs": jnp.zeros(())}
    spec = parallel.state_spec(state, defenses.MEMBER_FIELDS)
    members = PartitionSpec("member")
    per_member = [spec["inner"].variables, spec["inner"].opt_state, spec["inner"].average]
    assert {*jax.tree.leaves(per_member)} == {members}
    rest = [spec["inner"].weights, spec["inner"].key, spec["inner"].step, spec["num_epochs"]]
    assert rest == 4 * [PartitionSpec()]


def test_the_share_of_a_device_is_contiguous_and_the_whole_without_an_axis():
    batch = {"x": np.arange(8), "y": np.arange(16).reshape(8, 2)}

    def step(state, batch):
        share = parallel.local_share(batch, "data")
        index = jax.lax.axis_index("data")
        return jax.lax.psum(state.at[index].set(share["x"]), "data"), share["y"].shape[0]

    shares, length = parallel.pmap_step(step, devices=DEVICES)(jnp.zeros((4, 2), int), batch)
    np.testing.assert_array_equal(shares, np.arange(8).reshape(4, 2))
    assert length == 2 and parallel.local_share(batch, None) is batch


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: parallel.pmap_step(add("data"), devices=DEVICES)(jnp.zeros(()), jnp.ones(6)),
            "batch_size must be divisible by 4 devices, got 6",
        ),
        (
            lambda: parallel.check_divisible(4, batch_size=8, num_members=3),
            "num_members must be divisible by 4 devices, got 3",
        ),
        (
            lambda: parallel.place(
                {"variables": jnp.ones((3, 2))},
                parallel.mesh(2, DEVICES),
                {"variables": PartitionSpec("member")},
            ),
            "num_members must be divisible by 2 devices, got 3",
        ),
        (
            lambda: parallel.mesh(3, DEVICES),
            "num_member_devices must divide the 4 devices, got 3",
        ),
        (
            lambda: parallel.mesh(0, DEVICES),
            "num_member_devices must be a whole number of at least 1, got 0",
        ),
        (
            lambda: parallel.state_spec({"weights": 0}, ("variables",)),
            "member_fields must name fields of the state, got variables",
        ),
        (
            lambda: parallel.initialize("127.0.0.1:1", 2, 2),
            "process_id must be below 2 processes, got 2",
        ),
        (
            lambda: parallel.initialize(None, 2),
            "num_processes needs a coordinator_address, got 2",
        ),
        (
            lambda: parallel.initialize(None, 0),
            "num_processes must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_one_process_joins_nobody_and_is_the_main_one():
    parallel.initialize(None)
    assert parallel.is_main() and jax.process_count() == 1
