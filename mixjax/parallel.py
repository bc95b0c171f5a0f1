"""One training step on several devices: `jax.pmap`, or `shard_map` on a mesh of members and data.

A per-device step is `step(state, data) -> (state, info)`. Every device gets the whole `data` (a
data set stays on the device as uint8), picks its part of a batch with `local_share` and averages
over the mapped axis by itself; state and info, members apart, leave it equal on all devices.
Under `pmap_step` each device holds all members; under `shard_step` it may hold a part of them.
Both donate the state: the arrays given are gone after the call.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixjax import checks
from mixjax.typing import PyTree

MEMBER_AXIS, DATA_AXIS = "member", "data"

Step = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def pmap_step(
    step: Step, *, axis_name: str = DATA_AXIS, devices: Sequence[Any] | None = None
) -> "PmapStep":
    """The step on every device at once, for a state without an axis of devices.

    Args:
      step: `(state, data) -> (state, info)` on one device, with collectives over `axis_name`.
      axis_name: name of the mapped axis.
      devices: where to run, those of all processes; all devices if None.

    Returns:
      `(state, data) -> (state, info)`, compiled. Place its arguments by `replicate`; its results
      are placed so. With several processes they are the process's own arrays.
    """
    everywhere = _devices(devices)
    # `pmap` insists on one argument with a mapped axis; the step does not see it.
    pmapped = jax.pmap(
        lambda _, state, data: step(state, data),
        axis_name=axis_name,
        in_axes=(0, None, None),
        out_axes=None,
        devices=everywhere,
        donate_argnums=1,
    )
    here = _local(everywhere)
    spread = NamedSharding(Mesh(here, (axis_name,)), PartitionSpec(axis_name))
    return PmapStep(pmapped, jax.device_put(np.zeros(len(here), np.int8), spread))


@dataclasses.dataclass(frozen=True)
class PmapStep:
    """What `pmap_step` returns: called, or lowered to look at what was compiled."""

    pmapped: Any
    mapped: jax.Array

    def __call__(self, state: PyTree, data: PyTree) -> tuple[PyTree, PyTree]:
        """`(state, info)` after the step; `state` is donated."""
        return self.pmapped(self.mapped, state, data)

    def lower(self, state: PyTree, data: PyTree) -> jax.stages.Lowered:
        """As `jax.jit(...).lower`."""
        return self.pmapped.lower(self.mapped, state, data)


def replicate(tree: PyTree, devices: Sequence[Any] | None = None) -> PyTree:
    """A copy of every leaf on each device of this process, where `pmap_step` wants it."""
    return place(tree, Mesh(_local(_devices(devices)), (DATA_AXIS,)))


def mesh(num_member_devices: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices as a ("member", "data") mesh.

    Args:
      num_member_devices: number of parts into which the members are split; each part's devices,
        neighbours in `devices`, split the batch.
      devices: all devices of all processes if None.

    Raises:
      ValueError: if the devices do not divide into that many equal parts.
    """
    checks.at_least(1, num_member_devices=num_member_devices)
    everywhere = _devices(devices)
    if len(everywhere) % num_member_devices:
        raise ValueError(
            f"num_member_devices must divide the {len(everywhere)} devices, "
            f"got {num_member_devices}"
        )
    grid = np.asarray(everywhere).reshape(num_member_devices, -1)
    return Mesh(grid, (MEMBER_AXIS, DATA_AXIS))


def state_spec(state: PyTree, member_fields: Sequence[str]) -> PyTree:
    """Which leaves of a state are split over the "member" axis, for `shard_step` and `place`.

    Args:
      state: any pytree; of NamedTuples, dataclasses and dicts the names of fields count.
      member_fields: fields whose leaves have a leading axis of members, such as
        `defenses.MEMBER_FIELDS`.

    Returns:
      A pytree like `state` of `PartitionSpec`s: "member" below those fields, nothing elsewhere.

    Raises:
      ValueError: if a name in `member_fields` occurs nowhere in `state`.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import parallel
      >>> state = {"variables": jnp.zeros((4, 3)), "weights": jnp.full(4, 0.25)}
      >>> specs = parallel.state_spec(state, ["variables"])
      >>> tuple(specs["variables"]), tuple(specs["weights"])
      (('member',), ())
    """
    found = set()

    def spec(path, _):
        names = {getattr(entry, "name", getattr(entry, "key", None)) for entry in path}
        found.update(names)
        return PartitionSpec(MEMBER_AXIS) if names & {*member_fields} else PartitionSpec()

    specs = jax.tree.map_with_path(spec, state)
    for name in member_fields:
        if name not in found:
            raise ValueError(f"member_fields must name fields of the state, got {name}")
    return specs


def shard_step(step: Step, mesh: Mesh, spec: PyTree) -> jax.stages.Wrapped:
    """The step on a mesh: no device holds, or averages the gradients of, the others' members.

    Args:
      step: `(state, data) -> (state, info)` on one device, with collectives over "data" and
        "member"; of the per-member leaves it sees its own part `[L / num_member_devices, ...]`.
      mesh: as from `mesh`.
      spec: the state's `PartitionSpec`s, as from `state_spec`.

    Returns:
      `(state, data) -> (state, info)`, compiled, on whole arrays. Place its arguments by `place`
      (state with `spec`, data without); its results are placed so.
    """
    everywhere = PartitionSpec()
    # With the default check, `pmean` of gradients that were summed already would be silent.
    sharded = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(spec, everywhere),
        out_specs=(spec, everywhere),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


@functools.cache
def over_examples(devices: Sequence[Any] | None = None) -> Callable | None:
    """Splits the last three arguments of a function `[B, ...]` over devices; the rest goes to each.

    Args:
      devices: where to run, a tuple; all devices if None.

    Returns:
      `function -> compiled function`, whose results are `[B, ...]`: of any `B`, which is filled up
      with copies of the last example to a multiple of the number of devices. None for one device,
      where there is nothing to split.
    """
    everywhere = _devices(devices)
    if len(everywhere) == 1:
        return None
    spread_over = Mesh(np.asarray(everywhere), (DATA_AXIS,))
    split, whole = PartitionSpec(DATA_AXIS), PartitionSpec()

    def transform(function):
        @jax.jit
        def spread(*arguments):
            size = len(arguments[-1])
            more = -size % len(everywhere)
            rows = np.minimum(np.arange(size + more), size - 1)
            # Filled up by copies of the last example: every device gets as many, and shapes stay
            # few.
            batch = [each[rows] if more else each for each in arguments[-3:]]
            specs = (whole,) * (len(arguments) - 3) + (split,) * 3
            found = jax.shard_map(
                function, mesh=spread_over, in_specs=specs, out_specs=split, check_vma=False
            )(*arguments[:-3], *batch)
            return jax.tree.map(lambda each: each[:size], found)

        return spread

    return transform


def place(tree: PyTree, mesh: Mesh, spec: PyTree | None = None) -> PyTree:
    """Puts a pytree on a mesh: arrays, or NumPy arrays that are equal in every process.

    Args:
      tree: the pytree.
      mesh: as from `mesh`.
      spec: pytree of `PartitionSpec`s like `tree`; None: a copy on each device. With it, a state
        that was split over members becomes plain again, for evaluation or a checkpoint.

    Returns:
      The same values, laid out so.

    Raises:
      ValueError: if members do not divide into as many equal parts as the mesh has for them.
    """
    if spec is None:
        spec = jax.tree.map(lambda _: PartitionSpec(), tree)

    def put(leaf, leaf_spec):
        if leaf_spec == PartitionSpec(MEMBER_AXIS):
            check_divisible(mesh.shape[MEMBER_AXIS], num_members=leaf.shape[0])
        return _put(leaf, NamedSharding(mesh, leaf_spec))

    return jax.tree.map(put, tree, spec)


def local_share(tree: PyTree, axis_name: str | None) -> PyTree:
    """This device's contiguous part of a batch: leaves `[B, ...] -> [B / size, ...]`.

    Args:
      tree: the whole batch, on every device.
      axis_name: mapped axis over which it is split; None: the part is the whole.

    Raises:
      ValueError: if `B` is not divisible by the size of the axis.
    """
    if axis_name is None:
        return tree
    size, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def share(leaf):
        check_divisible(size, batch_size=leaf.shape[0])
        length = leaf.shape[0] // size
        return jax.lax.dynamic_slice_in_dim(leaf, index * length, length)

    return jax.tree.map(share, tree)


def check_divisible(num_devices: int, **values: int) -> None:
    """Raises `ValueError` unless every value is divisible by the number of devices it is for."""
    for name, value in values.items():
        if value % num_devices:
            raise ValueError(f"{name} must be divisible by {num_devices} devices, got {value}")


def initialize(
    coordinator_address: str | None, num_processes: int = 1, process_id: int = 0
) -> None:
    """Joins the processes of several hosts; call it before anything touches a device.

    Args:
      coordinator_address: "host:port" of process 0, the same in every process; None: there is
        one process, and nothing to do.
      num_processes: number of processes, at least 1.
      process_id: this one's number, from 0.

    Raises:
      ValueError: if a number is out of range or several processes have no address.
    """
    checks.at_least(1, num_processes=num_processes)
    checks.at_least(0, process_id=process_id)
    if process_id >= num_processes:
        raise ValueError(f"process_id must be below {num_processes} processes, got {process_id}")
    if coordinator_address is None:
        if num_processes > 1:
            raise ValueError(f"num_processes needs a coordinator_address, got {num_processes}")
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def _devices(devices):
    return tuple(jax.devices() if devices is None else devices)


def _local(devices):
    return [device for device in devices if device.process_index == jax.process_index()]


def _put(leaf, sharding):
    # Through the host: `device_put` would share memory with `leaf`, which donation then takes
    # away, and refuses arrays of one process that are to lie on several.
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf.copy(), sharding)
    dtype = jax.dtypes.result_type(leaf)
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.array(leaf, dtype)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
