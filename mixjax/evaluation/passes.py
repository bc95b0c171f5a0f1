"""What an attack costs, counted in its own program: passes forward and backward per run.

No formula is written down that could be forgotten when an attack changes: every call of the
network, and every pullback through it, carries a name in the traced program, and the loops around
it say how often it runs.
"""

import math
from collections.abc import Sequence
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

    @property
    def cost(self) -> int:
        """In forward passes: a gradient costs two."""
        return self.forward + 2 * self.backward


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

    def run(key, number, x, label):
        argument = inputs.as_argument(attack)
        return inputs.run(argument, key, number, named(logits_fn), weights, x, label)

    x = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    key, integer = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    closed = jax.make_jaxpr(run)(key, integer, x, integer)
    return read(closed.jaxpr, attack.num_steps, jax.eval_shape(logits_fn, x).shape)


def read(jaxpr: core.Jaxpr, num_turns: int, shape: Sequence[int]) -> Passes:
    """The passes in a traced program.

    Args:
      jaxpr: in which the networks were called through `named`.
      num_turns: of each `while_loop`.
      shape: `[L, C]` of the logits on one example; `[B, L, C]` counts for each of `B` examples.
    """
    found, networks = _count(jaxpr, num_turns), shape[-2]
    return Passes(
        *(round(found[name] * networks / math.prod(shape)) for name in (_FORWARD, _BACKWARD))
    )


def named(logits_fn: LogitsFn) -> LogitsFn:
    """The same function, whose calls and pullbacks `read` finds in a traced program."""

    @jax.custom_vjp
    def found(x):
        return checkpoint_name(logits_fn(x), _FORWARD)

    def forward(x):
        logits, pullback = jax.vjp(logits_fn, x)
        return checkpoint_name(logits, _FORWARD), (pullback, logits)

    def backward(residuals, cotangent):
        pullback, logits = residuals
        # Both sides are the same: a cotangent that all examples share becomes one of each, as the
        # logits are, and counts for each.
        cotangent = jnp.where(logits > 0, cotangent, cotangent)
        return pullback(checkpoint_name(cotangent, _BACKWARD))

    found.defvjp(forward, backward)
    return found


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
