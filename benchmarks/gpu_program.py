"""What a GPU would run, on a machine without one: XLA compiles for an H100 that is not there.

    python -m venv .venv-gpu && .venv-gpu/bin/pip install -e '.[gpu-compile]'    # 5.6 GB
    .venv-gpu/bin/python -m benchmarks.gpu_program --program training --members 1 2 4

Compiles a program of the project and prints, for the optimised one, each kind of kernel with how
often it runs, its operations, the bytes that it moves and the time that these take at best; the
memory; the seconds of compilation; and convolutions that no fast kernel computes. What it cannot
tell are real times: nothing is tried out, as XLA does where there is a card. One to three minutes
on one core for a training step of one member, ResNet18 of width 64, batch 512, bfloat16.
"""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

# Before JAX is imported: without a card there are neither drivers to check nor kernels to try.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import comparison, gpu_roofline, setting
from mixjax import (
    attacks,
    checks,
    defenses,
    ensemble,
    evaluation,
    files,
    games,
    models,
    reporting,
    threats,
)

PROGRAM = "benchmarks.gpu_program"
NAME = "NVIDIA H100 80GB HBM3"
# Of the card's data sheet and of CUDA's table of compute capabilities, in the compiler's words.
TARGET = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: 84929347584  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{NAME}"
"""


def main(argv=None):
    """Compiles what the flags name, prints and writes."""
    flags = parse(argv)
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    cases = []
    for number in flags.members:
        for batch_size in flags.batch_sizes:
            try:
                cases.append(case(flags, number, batch_size))
            except (ImportError, RuntimeError) as error:
                setting.fail(PROGRAM, f"{error}: pip install -e '.[gpu-compile]'")
            print(table(cases[-1]), flush=True)
    load.append(os.getloadavg()[0])
    command = comparison.argv_of(PROGRAM, argv)
    result = {
        "benchmark": "gpu_program",
        "device_compiled_for": NAME,
        "assumed": {
            "operations_per_second": gpu_roofline.MATRIX_RATE,
            "bytes_per_second": gpu_roofline.BANDWIDTH,
            "seconds_of_a_launch": gpu_roofline.LAUNCH,
        },
        "settings": {name: value for name, value in vars(flags).items() if name != "output"},
        "load_before_and_after": load,
        "cases": cases,
        "provenance": reporting.provenance(command, 0, time.perf_counter() - began),
    }
    if flags.output:
        files.write_json(flags.output, result)
    if any(each["faults"] for each in cases):
        sys.exit(1)


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(PROGRAM, __doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--program", choices=PROGRAMS, default="training")
    add("--members", type=int, nargs="+", default=[1], help="numbers of members L")
    add("--batch-sizes", type=int, nargs="+", default=[512])
    add("--width", type=int, default=64, help="channels of the network's first stage")
    add("--attack-steps", type=int, default=10)
    add("--dtype", choices=setting.DTYPES, default="bfloat16", help="of the convolutions")
    add("--text", type=pathlib.Path, help="where to write the last optimised program")
    add("--output", type=pathlib.Path, help="JSON file")
    flags = parser.parse_args(argv)
    with parser.checking():
        checks.at_least(1, width=flags.width, attack_steps=flags.attack_steps)
        for number in (*flags.members, *flags.batch_sizes):
            checks.at_least(1, number=number)
        for path in (flags.text, flags.output):
            if path:
                setting.check_output(path)
    return flags


def case(flags: argparse.Namespace, num_members: int, batch_size: int) -> dict[str, Any]:
    """One program compiled, and what its text says."""
    function, shapes = PROGRAMS[flags.program](flags, num_members, batch_size)
    began = time.perf_counter()
    compiled = compile_for_gpu(function, *shapes)
    seconds, text, memory = (
        time.perf_counter() - began,
        compiled.as_text(),
        compiled.memory_analysis(),
    )
    if text is None or memory is None:
        raise RuntimeError("this JAX shows neither the optimised program nor its memory")
    if flags.text:
        flags.text.write_text(text)
    kernels = list(gpu_roofline.kernels(text))
    is_half = flags.dtype == "bfloat16" and flags.program not in IN_SINGLE_PRECISION
    return {
        "program": flags.program,
        "members": num_members,
        "batch_size": batch_size,
        "compile_seconds": seconds,
        "kernels": sum(each.runs for each in kernels),
        "operations": sum(each.runs * each.operations for each in kernels),
        "bytes": sum(each.runs * each.num_bytes for each in kernels),
        "seconds_at_best": gpu_roofline.seconds(kernels),
        "memory": {
            "temporaries": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes,
        },
        "faults": gpu_roofline.faults(text, bfloat16=is_half),
        "kinds": gpu_roofline.table(kernels),
    }


def compile_for_gpu(function: Callable, *shapes: Any) -> jax.stages.Compiled:
    """A function compiled for the card, its arguments described by `jax.ShapeDtypeStruct`."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1")
    device = NamedSharding(Mesh(np.array(topology.devices), ("device",)), PartitionSpec())

    def there(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    traced = jax.jit(function).trace(*jax.tree.map(there, shapes))
    return traced.lower(lowering_platforms=("cuda",)).compile()


def table(found: dict[str, Any]) -> str:
    """A case as lines of text."""
    lines = [
        "{program}, L = {members}, batch {batch_size}: compiled in {compile_seconds:.0f} s, "
        "{kernels} kernels, ".format(**found)
        + f"{found['memory']['temporaries'] / 2**30:.2f} GiB of temporaries",
        f"{'':36}{'runs':>8}{'TFLOP':>9}{'GB':>9}{'ms at best':>12}",
    ]
    total = {"kind": "all", "runs": found["kernels"]}
    total |= {name: found[name] for name in ("operations", "bytes", "seconds_at_best")}
    for row in (*found["kinds"], total):
        lines.append(
            f"{row['kind']:36}{row['runs']:8}{row['operations'] / 1e12:9.2f}"
            f"{row['bytes'] / 1e9:9.2f}{1e3 * row['seconds_at_best']:12.2f}"
        )
    return "\n".join([*lines, *(f"fault: {each}" for each in found["faults"])])


def _training(flags, num_members, batch_size):
    attack = functools.partial(attacks.pgd, num_steps=flags.attack_steps, step_size=2 / 255)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
    defense = defenses.mixture(
        setting.build_model(flags),
        optimizer,
        setting.threat(),
        attack,
        num_members=num_members,
        update="all",
    )
    state = jax.eval_shape(defense.init, jax.eval_shape(lambda: jax.random.key(0)))
    return defense.step, (state, *_batch(batch_size))


def _minimax(flags, num_members, batch_size):
    """Hamm's step on MNIST, on one classifier."""
    del num_members
    shape = (28, 28, 1)
    model = models.mnist_cnn(10, max(flags.width // 2, 1), input_shape=shape)
    network = models.attack_network(10, input_shape=shape, hidden=(300,) * 3)
    method = functools.partial(
        games.minimax, descent=optax.adam(1e-3), ascent=optax.adam(1e-4), penalty=1.0
    )
    defense = defenses.against_network(model, network, method, threats.linf(0.15))
    state = jax.eval_shape(defense.init, jax.eval_shape(lambda: jax.random.key(0)))
    return defense.step, (state, *_batch(batch_size, shape))


def _evaluated(function):
    """A program of the mixture's variables and a batch: `function` of the members' logits."""

    def program(flags, num_members, batch_size):
        model, key = setting.build_model(flags), jax.eval_shape(lambda: jax.random.key(0))
        variables = jax.eval_shape(lambda key: ensemble.init(model.init, key, num_members), key)

        def run(key, variables, images, labels):
            logits_fn = functools.partial(ensemble.apply, model.apply, variables)
            weights = jnp.full(num_members, 1 / num_members)
            return function(flags, key, logits_fn, weights, images, labels)

        return run, (key, variables, *_batch(batch_size))

    return program


def _attack(method, steps="num_steps"):
    def attack_all(flags, key, logits_fn, weights, images, labels):
        numbers = {steps: flags.attack_steps}

        def one(key, x, label):
            threat = setting.threat()
            return attacks.on_mixture(method, key, logits_fn, weights, x, label, threat, **numbers)

        return jax.vmap(one)(jax.random.split(key, len(images)), images, labels)[0]

    return _evaluated(attack_all)


def _validate(flags, key, logits_fn, weights, images, labels):
    numbers = {"num_steps": flags.attack_steps, "step_size": 2 / 255}
    indices = jnp.arange(len(images))
    return evaluation.validate(
        key, logits_fn, weights, images, labels, indices, threat=setting.threat(), **numbers
    )


def _batch(batch_size, shape=(32, 32, 3)):
    images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
    return images, jax.ShapeDtypeStruct((batch_size,), jnp.int32)


PROGRAMS = {
    "training": _training,
    "apgd": _attack(attacks.apgd),
    "arc": _attack(attacks.arc),
    "lattice_climber": _attack(attacks.lattice_climber),
    "fab_targeted": _attack(attacks.fab_targeted),
    "minimax": _minimax,
    "validation": _evaluated(_validate),
}
IN_SINGLE_PRECISION = ("minimax",)

if __name__ == "__main__":
    main()
