"""How hard XLA tries on a CPU, where most evaluations compile for longer than they run."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mixjax.evaluation.passes import count_passes
from mixjax.evaluation.suite import Attack
from mixjax.typing import LogitsFn

# Up to how many floating-point operations in all which level of optimisation ends first. Level 0
# compiles four times as fast and runs small ResNets two to five times slower; level 1 saves a third
# and runs as fast. A core makes about 1e11 operations a second; a suite compiles for 10 to 40 s.
_LEVELS = ((2e11, 0), (1e13, 1))


def for_work(flops: float) -> Callable:
    """`jax.jit`, on a CPU with as little optimisation as so many operations are worth.

    By counted work and never by a clock: the same call compiles the same programs on every machine.
    """
    if jax.default_backend() != "cpu":
        return jax.jit
    return _at_level(next((level for limit, level in _LEVELS if flops < limit), None))


def work_of(
    attacks: Sequence[Attack], logits_fn: LogitsFn, weights: Any, shape: Sequence[int], number: int
) -> float:
    """Floating-point operations of all runs on a `number` of examples; infinite if not known."""
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    cost = jax.jit(logits_fn).lower(x).cost_analysis()
    if not cost or "flops" not in cost:
        return math.inf
    num_members = len(weights)
    passes = [(count_passes(each, logits_fn, weights, x), len(each.names)) for each in attacks]
    total = sum(runs * (each.forward + 2 * each.backward) for each, runs in passes)
    return float(cost["flops"]) / num_members * total * number


@functools.cache
def _at_level(level):
    if level is None:
        return jax.jit
    options: dict[str, Any] = {"xla_backend_optimization_level": level}
    if jax.__version_info__ < (0, 11):  # later ones have no other emitters
        options["xla_cpu_use_fusion_emitters"] = False
    return functools.partial(jax.jit, compiler_options=options)
