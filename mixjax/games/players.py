"""Two players with parameters of their own: `min_u max_v f(u, v)` by gradient steps on both.

Each method is a `Method(init, update)` for any `f(u, v, *args) -> []` over pytrees, with one
optimiser of optax for each player; a batch, random keys or fixed parameters are `args`. `u`
descends and `v` ascends: `ascent` is given the gradient of `-f`, so that an optimiser which
descends everywhere else climbs here.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mixjax import checks
from mixjax.batch import mean_over
from mixjax.games._players import (
    Method,
    Payoff,
    PlayersState,
    ascent_gradient,
    checked_method,
    make_info,
    move,
)

Order = Literal["simultaneous", "alternating"]
_ORDERS = ("simultaneous", "alternating")


def minimax(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    penalty: float | optax.Schedule = 1.0,
    order: Order = "simultaneous",
    num_ascent_steps: int = 1,
    data_axis: str | None = None,
) -> Method:
    """`v` ascends `f` and `u` descends `f + penalty / 2 |df/dv|^2`, as `v` will answer.

    The penalty's gradient `penalty * d2f/dudv df/dv` is what `u` gains by knowing that `v` will
    answer with one more step of length `penalty`. On `f = u v` steps without it circle around the
    saddle point or spiral away from it, and these converge. Where minimax and maximin differ, they
    find the minimax if `v` is much the faster of the two; at equal rates they may stop at a maximin
    just as well.

    In the order "simultaneous", the algorithm as it is printed, both gradients are taken at the
    old point: on `f = u v` plain steps lead to `v + sigma u` and `u - lambda (v + penalty u)`. In
    the order "alternating", a variant, `u` answers the new `v`, as in the first term of eq. 15:
    it leads to `u - lambda (v + sigma u + penalty u)`.

    Args:
      f: `(u, v, *args) -> []`, twice differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.
      penalty: `gamma`, at least 0, or `step [] -> []`. Like the step of `v` that it stands for it
        has the unit of `v^2 / f`.
      order: "simultaneous" or "alternating": whether `u` takes its gradient at the old `v` or at
        the new one.
      num_ascent_steps: steps of `v` to each one of `u`, static. In the simultaneous order `u`
        answers the `v` before all of them.
      data_axis: mapped axis over which `f` is to be averaged: each device's is of its own `args`.

    Returns:
      The `Method`.

    Raises:
      ValueError: if `penalty` is negative, `order` neither or `num_ascent_steps` below 1; by `init`
        if a parameter is not floating-point or not finite; by `update` if `f` is not a real scalar
        or an optimiser's state does not fit its player.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      algorithm 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mixjax import games
      >>> init, update = games.minimax(lambda u, v: u * v, optax.sgd(0.1), optax.sgd(0.1))
      >>> state, update = init(jnp.float32(1.0), jnp.float32(1.0)), jax.jit(update)
      >>> for _ in range(200):  # plain steps would lead away from (0, 0)
      ...     state, info = update(state)
      >>> bool(jnp.hypot(state.u, state.v) < 0.01)
      True
    """
    checks.one_of(_ORDERS, order=order)
    checks.at_least(1, num_ascent_steps=num_ascent_steps)
    turn = _turn(f, descent, ascent, _schedule(penalty), order, num_ascent_steps, data_axis)

    def update(state, *args):
        u, v, u_opt_state, v_opt_state, step = state
        (u, u_opt_state, u_norm), (v, v_opt_state, v_norm), value, cost = turn(
            (u, u_opt_state), (v, v_opt_state), step, args
        )
        new = PlayersState(u, v, u_opt_state, v_opt_state, step + 1)
        return new, make_info(value, u_norm, v_norm, cost)

    return checked_method(f, descent, ascent, update)


def maximin(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    penalty: float | optax.Schedule = 1.0,
    order: Order = "simultaneous",
    num_descent_steps: int = 1,
    data_axis: str | None = None,
) -> Method:
    """`minimax` with the players and the sign exchanged.

    `u` descends `f` and `v` ascends `f - penalty / 2 |df/du|^2`: the best `v` when `u` answers.

    Args:
      f: `(u, v, *args) -> []`, twice differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.
      penalty: `gamma`, at least 0, or `step [] -> []`.
      order: "simultaneous", as printed, or "alternating", where `v` answers the new `u`.
      num_descent_steps: steps of `u` to each one of `v`, static.
      data_axis: mapped axis over which `f` is to be averaged: each device's is of its own `args`.

    Returns:
      The `Method`; its state and info have `f`'s own sign and names.

    Raises:
      ValueError: as `minimax`.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      section 4.3.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mixjax import games
      >>> init, update = games.maximin(lambda u, v: u * v, optax.sgd(0.5), optax.sgd(0.5))
      >>> state, info = update(init(jnp.float32(1.0), jnp.float32(1.0)))
      >>> float(state.u), float(state.v)  # v knows that u will answer
      (0.5, 1.0)
    """
    checks.one_of(_ORDERS, order=order)
    checks.at_least(1, num_descent_steps=num_descent_steps)

    def exchanged(v, u, *args):
        return -f(u, v, *args)

    turn = _turn(
        exchanged, ascent, descent, _schedule(penalty), order, num_descent_steps, data_axis
    )

    def update(state, *args):
        u, v, u_opt_state, v_opt_state, step = state
        (v, v_opt_state, v_norm), (u, u_opt_state, u_norm), value, cost = turn(
            (v, v_opt_state), (u, u_opt_state), step, args
        )
        new = PlayersState(u, v, u_opt_state, v_opt_state, step + 1)
        return new, make_info(-value, u_norm, v_norm, cost)

    return checked_method(f, descent, ascent, update)


def alternating(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    num_ascent_steps: int = 1,
    data_axis: str | None = None,
) -> Method:
    """`v` ascends `f`, then `u` descends it at the new `v`: `minimax`, alternating, no penalty.

    What it finds, if anything, is a saddle point and favours neither player. Both gradients at the
    old point are `simultaneous`.

    Args:
      f: `(u, v, *args) -> []`, differentiable.
      descent: optimiser of `u`, its learning rate included.
      ascent: optimiser of `v`, its learning rate included.
      num_ascent_steps: steps of `v` before each one of `u`, static.
      data_axis: mapped axis over which `f` is to be averaged: each device's is of its own `args`.

    Returns:
      The `Method`.

    Raises:
      ValueError: as `minimax`.

    References:
      Goodfellow et al., Generative adversarial nets, 2014, algorithm 1.
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      eq. 19, which writes the step of `u` first: from there on it is the same sequence.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mixjax import games
      >>> init, update = games.alternating(lambda u, v: u * v, optax.sgd(0.5), optax.sgd(0.5))
      >>> state, info = update(init(jnp.float32(1.0), jnp.float32(1.0)))
      >>> float(state.u), float(state.v)  # u answers the new v
      (0.25, 1.5)
    """
    return minimax(
        f,
        descent,
        ascent,
        penalty=0.0,
        order="alternating",
        num_ascent_steps=num_ascent_steps,
        data_axis=data_axis,
    )


def _turn(f, leader, follower, penalty, order, num_steps, data_axis):
    """`num_steps` of a follower, who raises `f(x, y)`, and one of the leader, who lowers it."""
    mean = functools.partial(mean_over, data_axis)

    def lead(x, y, step, args):
        """The leader's gradient at `(x, y)`, and the value, its penalty and `df/dy` there."""

        def objective(x):
            if penalty is None:
                value = mean(f(x, y, *args))
                return value, (value, jnp.zeros_like(value), None)
            # The mean over devices comes before the square, and is differentiated with it.
            # One inner gradient serves the penalty here and, in simultaneous play, the follower's
            # step.
            value, slope = mean(jax.value_and_grad(f, argnums=1)(x, y, *args))
            cost = penalty(step) / 2 * optax.tree.norm(slope, squared=True)
            return value + cost, (value, cost, slope)

        gradient, seen = jax.grad(objective, has_aux=True)(x)
        return mean(gradient), *seen

    def follow(x, second, args, slope=None):
        """The follower's steps at `x`; the first takes `df/dy` from `slope` if it is known."""
        norm: Any = None
        for _ in range(num_steps):  # no `scan`: inside one, a CPU's convolutions are slow backwards
            if slope is None:
                gradient = mean(ascent_gradient(f, x, second[0], args))
            else:
                gradient, slope = jax.tree.map(jnp.negative, slope), None
            second, norm = move(follower, gradient, second), optax.tree.norm(gradient)
        return *second, norm

    def turn(first, second, step, args):
        x, y = first[0], second[0]
        if order == "simultaneous":
            gradient, value, cost, slope = lead(x, y, step, args)
            second = follow(x, second, args, slope)
        else:
            second = follow(x, second, args)
            gradient, value, cost, _ = lead(x, second[0], step, args)
        return (*move(leader, gradient, first), optax.tree.norm(gradient)), second, value, cost

    return turn


def _schedule(penalty):
    """`step -> gamma`, or None where it is known to be 0 and second derivatives are not needed."""
    if callable(penalty):
        return penalty
    checks.non_negative(penalty=penalty)
    return None if isinstance(penalty, int | float) and penalty == 0 else lambda step: penalty
