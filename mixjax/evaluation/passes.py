"""What an attack costs, counted in its own program: passes forward and backward per run.

No formula is written down that could be forgotten when an attack changes: every call of the
network, and every pullback through it, carries a name in the traced program, and the loops around
it say how often it runs.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from mixjax.evaluation import inputs
from mixjax.evaluation.suite import Attack
from mixjax.typing import LogitsFn

_FORWARD, _BACKWARD = "mixjax_forward", "mixjax_backward"


class Passes(NamedTuple):
    """Passes through single networks: all `L` members at once are `L` of them.

    Attributes:
      forward: forward passes, those on the way to a gradient included.
      backward: gradients.
    """

    forward: int
    backward: int


def count_passes(attack: Attack, logits_fn: LogitsFn, weights: Any, x: Any) -> Passes:
    """Passes of one run on one example: nothing is computed, the program is only read.

    Of a branch the more expensive side counts, and a `while_loop` counts for `num_steps` turns, so
    that the count is an upper bound.

    Args:
      attack: the attack.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      x: `[...]` an input, or its `jax.ShapeDtypeStruct`.
    """
    x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    return trace(attack, jax.eval_shape(logits_fn, x), weights, x, key)[1]


def trace(
    attack: Attack, logits: jax.ShapeDtypeStruct, weights: Any, x: jax.ShapeDtypeStruct, key: Any
) -> tuple[core.ClosedJaxpr, Passes]:
    """The program of one run, in place of the networks a stand-in, and its passes.

    An attack sees only logits: one trace, in a fraction of the time, serves for all networks of
    `[L, C]` logits.
    """
    leaves, structure = jax.tree.flatten((inputs.as_argument(attack), weights))
    return _trace(attack.num_steps, structure, tuple(map(_shape, leaves)), logits, x, key)


@functools.lru_cache(maxsize=256)
def _trace(num_steps, structure, leaves, logits, x, key):
    def stand_in(x):
        return jnp.full(logits.shape, jnp.mean(x), logits.dtype)

    def run(key, number, leaves, x, label):
        argument, weights = jax.tree.unflatten(structure, leaves)
        return inputs.run(argument, key, number, _named(stand_in), weights, x, label)

    integer = jax.ShapeDtypeStruct((), jnp.int32)
    closed = jax.make_jaxpr(run)(key, integer, leaves, x, integer)
    found = _count(closed.jaxpr, num_steps)
    networks, size = logits.shape[0], math.prod(logits.shape)
    passes = (round(found[name] * networks / size) for name in (_FORWARD, _BACKWARD))
    return closed, Passes(*passes)


def _shape(value):
    dtype, is_number = jnp.result_type(value), jnp.ndim(value) == 0
    return jax.ShapeDtypeStruct(jnp.shape(value), dtype, weak_type=is_number)


def _named(logits_fn):
    """The same function, whose calls and pullbacks can be found in a program."""

    @jax.custom_vjp
    def named(x):
        return checkpoint_name(logits_fn(x), _FORWARD)

    def forward(x):
        logits, pullback = jax.vjp(logits_fn, x)
        return checkpoint_name(logits, _FORWARD), pullback

    def backward(pullback, cotangent):
        return pullback(checkpoint_name(cotangent, _BACKWARD))

    named.defvjp(forward, backward)
    return named


def _count(jaxpr, num_turns):
    """Sizes of what carries each name, times how often it is computed."""
    total = {_FORWARD: 0, _BACKWARD: 0}
    for equation in jaxpr.eqns:
        kind, params = equation.primitive.name, equation.params
        if kind == "name" and params["name"] in total:
            total[params["name"]] += equation.outvars[0].aval.size
        turns = {"scan": params.get("length"), "while": num_turns}.get(kind, 1)
        inner = [_count(each, num_turns) for each in _jaxprs(params.values())]
        combine = max if kind == "cond" else sum
        for name in total:
            total[name] += turns * combine([each[name] for each in inner] or [0])
    return total


def _jaxprs(values):
    """The programs among the parameters of an operation."""
    for value in values:
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
