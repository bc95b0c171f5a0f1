"""Two players with parameters of their own: `min_u max_v f(u, v)` by gradient steps on both.

Each method is a `Method(init, update)` for any `f(u, v, *args) -> []` over pytrees, with one
optimiser of optax for each player; a batch, random keys or fixed parameters are `args`. `u`
descends and `v` ascends: `ascent` is given the gradient of `-f`, so that an optimiser which
descends everywhere else climbs here.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixjax import _check
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
    """What a person wants to see of an update, everything from before the step it belongs to.

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


def minimax(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    penalty: float | optax.Schedule = 1.0,
    num_ascent_steps: int = 1,
) -> Method:
    """`v` ascends `f`; then `u` descends `f + penalty / 2 |df/dv|^2`, as `v` will answer.

    The penalty's gradient `penalty * d2f/dudv df/dv` is what `u` gains by knowing that `v` will
    answer with one more step of length `penalty`. Where alternating steps circle around
    `f = u v`, these converge. Where minimax and maximin differ, they find the minimax if `v` is
    much the faster of the two; at equal rates they may stop at a maximin just as well.

    Args:
      f: `(u, v, *args) -> []`, twice differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.
      penalty: `gamma`, at least 0, or `step [] -> []`. Like the step of `v` that it stands for it
        has the unit of `v^2 / f`.
      num_ascent_steps: steps of `v` before each one of `u`, static.

    Returns:
      The `Method`.

    Raises:
      ValueError: if `penalty` is negative or `num_ascent_steps` below 1; by `init` if a parameter
        is not floating-point or not finite; by `update` if `f` is not a real scalar or an
        optimiser's state does not fit its player.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      algorithm 1. There both gradients are written at the old point; here `u` answers the new
      `v`, as in the first term of eq. 15, so that several steps of `v` count.
    """
    _check.at_least(1, num_ascent_steps=num_ascent_steps)
    turn = _turn(f, descent, ascent, _schedule(penalty), num_ascent_steps)

    def update(state, *args):
        u, v, u_opt_state, v_opt_state, step = state
        (u, u_opt_state, u_norm), (v, v_opt_state, v_norm), value, cost = turn(
            (u, u_opt_state), (v, v_opt_state), step, args
        )
        new = PlayersState(u, v, u_opt_state, v_opt_state, step + 1)
        return new, _info(value, u_norm, v_norm, cost)

    return _method(f, descent, ascent, update)


def maximin(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    penalty: float | optax.Schedule = 1.0,
    num_descent_steps: int = 1,
) -> Method:
    """`minimax` with the players and the sign exchanged.

    `u` descends `f`; then `v` ascends `f - penalty / 2 |df/du|^2`: the best `v` when `u` answers.

    Args:
      f: `(u, v, *args) -> []`, twice differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.
      penalty: `gamma`, at least 0, or `step [] -> []`.
      num_descent_steps: steps of `u` before each one of `v`, static.

    Returns:
      The `Method`; its state and info have `f`'s own sign and names.

    Raises:
      ValueError: as `minimax`.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      section 4.3.
    """
    _check.at_least(1, num_descent_steps=num_descent_steps)

    def exchanged(v, u, *args):
        return -f(u, v, *args)

    turn = _turn(exchanged, ascent, descent, _schedule(penalty), num_descent_steps)

    def update(state, *args):
        u, v, u_opt_state, v_opt_state, step = state
        (v, v_opt_state, v_norm), (u, u_opt_state, u_norm), value, cost = turn(
            (v, v_opt_state), (u, u_opt_state), step, args
        )
        new = PlayersState(u, v, u_opt_state, v_opt_state, step + 1)
        return new, _info(-value, u_norm, v_norm, cost)

    return _method(f, descent, ascent, update)


def alternating(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    num_ascent_steps: int = 1,
) -> Method:
    """`v` ascends `f`, then `u` descends it at the new `v`: `minimax` without the penalty.

    What it finds, if anything, is a saddle point and favours neither player.

    Args:
      f: `(u, v, *args) -> []`, differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.
      num_ascent_steps: steps of `v` before each one of `u`, static.

    Returns:
      The `Method`.

    Raises:
      ValueError: as `minimax`.

    References:
      Goodfellow et al., Generative adversarial nets, 2014, algorithm 1.
    """
    return minimax(f, descent, ascent, penalty=0.0, num_ascent_steps=num_ascent_steps)


def simultaneous(
    f: Payoff, descent: optax.GradientTransformation, ascent: optax.GradientTransformation
) -> Method:
    """Both step at once from the old point.

    With `optax.optimistic_gradient_descent` for both it is the optimistic gradient method, which
    converges on `f = u v` where plain steps spiral outwards.

    Args:
      f: `(u, v, *args) -> []`, differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.

    Returns:
      The `Method`.

    Raises:
      ValueError: as `minimax`.

    References:
      Daskalakis et al., Training GANs with optimism, 2018.
    """

    def update(state, *args):
        value, (u_gradient, v_gradient) = _gradients(f, state.u, state.v, args)
        return _both(state, descent, ascent, u_gradient, v_gradient, value)

    return _method(f, descent, ascent, update)


def extragradient(
    f: Payoff, descent: optax.GradientTransformation, ascent: optax.GradientTransformation
) -> Method:
    """Both step from the old point with the gradients found one step ahead.

    The step ahead is a trial: the optimisers' states do not keep it.

    Args:
      f: `(u, v, *args) -> []`, differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.

    Returns:
      The `Method`; its info tells of the gradients one step ahead.

    Raises:
      ValueError: as `minimax`.

    References:
      Korpelevich, The extragradient method for finding saddle points, 1976.
      Gidel et al., A variational inequality perspective on GANs, 2019, section 3.2.
    """

    def update(state, *args):
        value, (u_gradient, v_gradient) = _gradients(f, state.u, state.v, args)
        ahead, _ = _both(state, descent, ascent, u_gradient, v_gradient, value)
        value, (u_gradient, v_gradient) = _gradients(f, ahead.u, ahead.v, args)
        return _both(state, descent, ascent, u_gradient, v_gradient, value)

    return _method(f, descent, ascent, update)


def unrolled(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    num_unrolled_steps: int = 5,
) -> Method:
    """`u` descends `f(u, v_k(u))`, through `k` steps that `v` would take; `v` takes one of them.

    Args:
      f: `(u, v, *args) -> []`, twice differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included. Its steps are differentiated: Adam
        needs an `eps_root` above 0, its square root having no derivative at 0.
      num_unrolled_steps: `k`, static.

    Returns:
      The `Method`; `f` in its info is `f(u, v_k)`.

    Raises:
      ValueError: as `minimax`.

    References:
      Metz et al., Unrolled generative adversarial networks, 2017, eqs. 7 to 11.
    """
    _check.at_least(1, num_unrolled_steps=num_unrolled_steps)

    def update(state, *args):
        def objective(u):
            moves, player = [], (state.v, state.v_opt_state)
            for _ in range(num_unrolled_steps):
                gradient = _ascent(f, u, player[0], args)
                player = _move(ascent, gradient, player)
                moves.append((*player, optax.tree.norm(gradient)))
            return f(u, player[0], *args), moves[0]

        (value, (v, v_opt_state, v_norm)), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.u
        )
        u, u_opt_state = _move(descent, gradient, (state.u, state.u_opt_state))
        new = PlayersState(u, v, u_opt_state, v_opt_state, state.step + 1)
        return new, _info(value, optax.tree.norm(gradient), v_norm, jnp.zeros_like(value))

    return _method(f, descent, ascent, update)


def _turn(f, leader, follower, penalty, num_steps):
    """`num_steps` of a follower, who raises `f(x, y)`, then one of the leader, who lowers it."""

    def turn(first, second, step, args):
        (x, _), norm = first, None
        for _ in range(num_steps):  # no `scan`: inside one, a CPU's convolutions are slow backwards
            gradient = _ascent(f, x, second[0], args)
            second, norm = _move(follower, gradient, second), optax.tree.norm(gradient)

        def objective(x):
            if penalty is None:
                value = f(x, second[0], *args)
                return value, (value, jnp.zeros_like(value))
            value, gradient = jax.value_and_grad(f, argnums=1)(x, second[0], *args)
            cost = penalty(step) / 2 * optax.tree.norm(gradient, squared=True)
            return value + cost, (value, cost)

        gradient, (value, cost) = jax.grad(objective, has_aux=True)(x)
        first = _move(leader, gradient, first)
        return (*first, optax.tree.norm(gradient)), (*second, norm), value, cost

    return turn


def _schedule(penalty):
    """`step -> gamma`, or None where it is known to be 0 and second derivatives are not needed."""
    if callable(penalty):
        return penalty
    _check.non_negative(penalty=penalty)
    return None if isinstance(penalty, int | float) and penalty == 0 else lambda step: penalty


def _ascent(f, u, v, args):
    """The gradient in `v` of `-f`, for an optimiser that descends."""
    return jax.grad(lambda v: -f(u, v, *args))(v)


def _gradients(f, u, v, args):
    value, (u_gradient, v_gradient) = jax.value_and_grad(f, argnums=(0, 1))(u, v, *args)
    return value, (u_gradient, jax.tree.map(jnp.negative, v_gradient))


def _move(optimizer, gradient, player):
    params, opt_state = player
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _both(state, descent, ascent, u_gradient, v_gradient, value):
    u, u_opt_state = _move(descent, u_gradient, (state.u, state.u_opt_state))
    v, v_opt_state = _move(ascent, v_gradient, (state.v, state.v_opt_state))
    norms = optax.tree.norm(u_gradient), optax.tree.norm(v_gradient)
    new = PlayersState(u, v, u_opt_state, v_opt_state, state.step + 1)
    return new, _info(value, *norms, jnp.zeros_like(value))


def _info(value, u_norm, v_norm, penalty):
    return PlayersInfo(value, u_norm, v_norm, penalty, jnp.sqrt(u_norm**2 + v_norm**2))


def _method(f, descent, ascent, update) -> Method:
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
            _check.within(-math.inf, math.inf, **{name: leaf})  # NaN is nowhere in it


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
