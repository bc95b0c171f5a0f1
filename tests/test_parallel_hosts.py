"""Several processes; run as a script, this file is one of those that its test starts."""

import functools
import os
import pathlib
import socket
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import parallel

NUM_STEPS = 4
ROOT = pathlib.Path(__file__).resolve().parents[1]


class State(NamedTuple):
    """Two members' variables `[2, 3]`, and what all of them sum up to."""

    variables: jax.Array
    total: jax.Array


def start():
    return State(np.float32([[1.0, 0.0, 2.0], [0.0, 3.0, 0.5]]), np.zeros((), np.float32))


def data():
    random = np.random.default_rng(0)
    return random.normal(size=(8, 3)).astype(np.float32), np.arange(8, dtype=np.float32)


def step(state, data, member_axis=None):
    """Every member goes half of the way to its mean over the whole batch."""
    images, labels = parallel.local_share(data, "data")
    signs = jnp.sign(labels[:, None] - 3.5 + state.variables.sum(axis=1)[None])  # [B, L]
    means = jax.lax.pmean(signs.T @ images / len(images), "data")
    variables = (state.variables + means) / 2
    total = jnp.sum(variables)
    return State(variables, jax.lax.psum(total, member_axis) if member_axis else total), ()


def expected():
    """The same on the whole batch, in NumPy."""
    (images, labels), (variables, _) = data(), start()
    for _ in range(NUM_STEPS):
        signs = np.sign(labels[:, None] - 3.5 + variables.sum(axis=1))
        variables = (variables + signs.T @ images / len(images)) / 2
    return State(variables, variables.sum())


def after_steps(step, state, data):
    for _ in range(NUM_STEPS):
        state, _ = step(state, data)
    return state


def under_pmap():
    return after_steps(
        parallel.pmap_step(step), parallel.replicate(start()), parallel.replicate(data())
    )


def on_a_mesh():
    """Members of one process, and a state that no process holds entirely until the end."""
    mesh = parallel.mesh(2)
    spec = parallel.state_spec(start(), ("variables",))
    sharded = parallel.shard_step(functools.partial(step, member_axis="member"), mesh, spec)
    state = after_steps(sharded, parallel.place(start(), mesh, spec), parallel.place(data(), mesh))
    assert not state.variables.is_fully_addressable
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


def test_two_processes_on_loopback_compute_what_one_does(children, tmp_path):
    results, want = run_processes(children, tmp_path), expected()
    for process, result in enumerate(results):
        assert result["is_main"] == (process == 0)
        for kind in ("pmap", "mesh"):
            for name, values in want._asdict().items():
                np.testing.assert_allclose(result[f"{kind}_{name}"], values, rtol=1e-5)


def main(address, num_processes, process_id, folder):
    parallel.initialize(address, int(num_processes), int(process_id))
    assert jax.device_count() == 2 * int(num_processes)
    arrays = {
        f"{kind}_{name}": np.asarray(values)
        for kind, state in (("pmap", under_pmap()), ("mesh", on_a_mesh()))
        for name, values in state._asdict().items()
    }
    np.savez(pathlib.Path(folder) / f"{process_id}.npz", is_main=parallel.is_main(), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
