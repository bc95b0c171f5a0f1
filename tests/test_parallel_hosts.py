"""Several processes; run as a script, this file is one of those that its test starts."""

import functools
import os
import pathlib
import socket
import sys

import chex
import jax
import numpy as np
import optax

from mixjax import attacks, defenses, models, parallel, threats

NUM_STEPS = 4
ROOT = pathlib.Path(__file__).resolve().parents[1]


def defense(data_axis=None, member_axis=None):
    return defenses.mixture(
        models.linear(3, input_shape=(2, 3, 1)),
        optax.sgd(0.2, momentum=0.9),
        threats.linf(0.1),
        functools.partial(attacks.pgd, num_steps=1, step_size=0.07),
        num_members=2,
        num_model_steps=1,
        weighing=defenses.oracle_weighing(num_steps=2),
        data_axis=data_axis,
        member_axis=member_axis,
    )


def data():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (8, 2, 3, 1), np.uint8), random.integers(0, 3, 8)


def step(defense, data_axis, state, data):
    images, labels = parallel.local_share(data, data_axis)
    return defense.step(state, images.astype(np.float32) / 255, labels)


def after_steps(step, state, data):
    for _ in range(NUM_STEPS):
        state, _ = step(state, data)
    return state


def leaves(state):
    """The state as NumPy arrays, its key left out."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state._replace(key=()))]


def under_pmap():
    state = parallel.replicate(defense().init(jax.random.key(0)))
    pmapped = parallel.pmap_step(functools.partial(step, defense("data"), "data"))
    return after_steps(pmapped, state, parallel.replicate(data()))


def on_a_mesh():
    """Members of one process, and a state that no process holds entirely until the end."""
    mesh = parallel.mesh(2)
    state = defense().init(jax.random.key(0))
    spec = parallel.state_spec(state, defenses.MEMBER_FIELDS)
    sharded = parallel.shard_step(
        functools.partial(step, defense("data", "member"), "data"), mesh, spec
    )
    state = after_steps(sharded, parallel.place(state, mesh, spec), parallel.place(data(), mesh))
    assert not jax.tree.leaves(state.variables)[0].is_fully_addressable
    return parallel.place(state, mesh)


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def run_processes(children, folder, num_processes=2):
    """The leaves that each process saved, by process and by kind of step."""
    address = free_address()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONPATH": str(ROOT),
    }
    # As in the other tests: a half-written entry of the cache is compiled again.
    warnings = ["error", "ignore:Error reading persistent compilation cache entry:UserWarning"]
    python = [sys.executable, *(f"-W{action}" for action in warnings), __file__]
    processes = [
        children.start([*python, address, str(num_processes), str(i), folder], env=environment)
        for i in range(num_processes)
    ]
    for process in processes:
        output, error = children.finish(process)
        assert process.returncode == 0, output + error
    return [dict(np.load(folder / f"{i}.npz")) for i in range(num_processes)]


def test_two_processes_on_loopback_train_what_one_device_trains(children, tmp_path):
    results = run_processes(children, tmp_path)
    with jax.default_device(jax.devices("cpu")[0]):
        alone = jax.jit(functools.partial(step, defense(), None))
        expected = leaves(after_steps(alone, defense().init(jax.random.key(0)), data()))
    for process, result in enumerate(results):
        assert result["is_main"] == (process == 0)
        for kind in ("pmap", "mesh"):
            found = [result[f"{kind}{i}"] for i in range(len(expected))]
            chex.assert_trees_all_close(found, expected, atol=1e-5)


def main(address, num_processes, process_id, folder):
    parallel.initialize(address, int(num_processes), int(process_id))
    assert jax.device_count() == 2 * int(num_processes)
    arrays = {
        f"{kind}{i}": leaf
        for kind, state in (("pmap", under_pmap()), ("mesh", on_a_mesh()))
        for i, leaf in enumerate(leaves(state))
    }
    np.savez(pathlib.Path(folder) / f"{process_id}.npz", is_main=parallel.is_main(), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
