"""What every method for two players is made of: states, infos, single steps, checks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import checks
from mixjax.typing import Array, PyTree

Payoff = Callable[..., Array]  # `(u, v, *args) -> []`: what `u` lowers and `v` raises


class Method(NamedTuple):
    """A method: `init(u, v) -> state`, `update(state, *args) -> (state, info)`, both pure."""

    init: Callable[[PyTree, PyTree], "PlayersState"]
    update: Callable[..., tuple["PlayersState", "PlayersInfo"]]


class PlayersState(NamedTuple):
    """Both players.

    Attributes:
      u: parameters of the player who descends.
      v: parameters of the player who ascends.
      u_opt_state: state of the optimiser `descent`.
      v_opt_state: state of the optimiser `ascent`.
      step: `[]` number of updates taken.
    """

    u: PyTree
    v: PyTree
    u_opt_state: PyTree
    v_opt_state: PyTree
    step: Array


class PlayersInfo(NamedTuple):
    """What a person wants to see of an update; a player's numbers are from before its step.

    Attributes:
      f: `[]` value where the last of the players to move took its gradient.
      u_gradient_norm: `[]` Euclidean norm of the gradient that `u` descended, its penalty's part
        included.
      v_gradient_norm: `[]` the same for `v`; of several steps, the last one's.
      penalty: `[]` the penalty's value there, 0 for the methods without one.
      residual: `[]` Euclidean norm of both gradients together: 0 exactly where nobody moves, which
        with or without a penalty are the stationary points of `f`.
    """

    f: Array
    u_gradient_norm: Array
    v_gradient_norm: Array
    penalty: Array
    residual: Array

    @property
    def loss(self) -> Array:
        """The value `f`, as what a training by these methods shows as its loss."""
        return self.f


def ascent_gradient(f: Payoff, u: PyTree, v: PyTree, args: tuple[Any, ...]) -> PyTree:
    """The gradient in `v` of `-f`, for an optimiser that descends."""
    return jax.grad(lambda v: -f(u, v, *args))(v)


def move(
    optimizer: optax.GradientTransformation, gradient: PyTree, player: tuple[PyTree, PyTree]
) -> tuple[PyTree, PyTree]:
    """A step of a player `(params, opt_state)`."""
    params, opt_state = player
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def make_info(value: Array, u_norm: Array, v_norm: Array, penalty: Array) -> PlayersInfo:
    """The info from both gradients' norms."""
    return PlayersInfo(value, u_norm, v_norm, penalty, jnp.sqrt(u_norm**2 + v_norm**2))


def checked_method(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    update: Callable[..., tuple[PlayersState, PlayersInfo]],
) -> Method:
    """`Method(init, update)`, the arguments of both checked first."""

    def init(u, v):
        _check_parameters("u", u)
        _check_parameters("v", v)
        u, v = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), (u, v))
        return PlayersState(u, v, descent.init(u), ascent.init(v), jnp.zeros((), jnp.int32))

    def checked(state, *args):
        for name, player, optimizer, opt_state in (
            ("u", state.u, descent, state.u_opt_state),
            ("v", state.v, ascent, state.v_opt_state),
        ):
            _check_parameters(name, player)
            _check_fits(name, jax.eval_shape(optimizer.init, player), opt_state)
        values = jax.tree.leaves(jax.eval_shape(lambda u, v: f(u, v, *args), state.u, state.v))
        if [value.shape for value in values] != [()] or not _is_real(values[0]):
            got = ", ".join(f"{value.dtype}{list(value.shape)}" for value in values)
            raise ValueError(f"f must return one real scalar, got {got or 'nothing'}")
        return update(state, *args)

    return Method(init, checked)


def _check_parameters(name, tree):
    for leaf in jax.tree.leaves(tree):
        if not _is_real(leaf):
            raise ValueError(f"{name} must hold real floating-point arrays, got {leaf}")
        if jnp.size(leaf):
            checks.within(-math.inf, math.inf, **{name: leaf})  # NaN is nowhere in it


def _check_fits(name, expected, opt_state):
    def description(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure, [jnp.shape(leaf) for leaf in leaves]

    if description(expected) != description(opt_state):
        raise ValueError(
            f"{name}_opt_state must be the optimiser's state for {name}, got another's"
        )


def _is_real(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
