"""Methods of the field that minimax is measured against: simultaneous, extragradient, unrolled.

As in `players`: a `Method` for any `f(u, v, *args) -> []`; `u` descends it, `v` ascends it.
"""

import jax
import jax.numpy as jnp
import optax

from mixjax import checks
from mixjax.games._players import (
    Method,
    Payoff,
    PlayersState,
    ascent_gradient,
    checked_method,
    make_info,
    move,
)


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

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mixjax import games
      >>> init, update = games.simultaneous(lambda u, v: u * v, optax.sgd(0.5), optax.sgd(0.5))
      >>> state, info = update(init(jnp.float32(1.0), jnp.float32(1.0)))
      >>> float(state.u), float(state.v)
      (0.5, 1.5)
    """

    def update(state, *args):
        value, (u_gradient, v_gradient) = _gradients(f, state.u, state.v, args)
        return _both(state, descent, ascent, u_gradient, v_gradient, value)

    return checked_method(f, descent, ascent, update)


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
      The `Method`; value and gradients in its info are those one step ahead.

    Raises:
      ValueError: as `minimax`.

    References:
      Korpelevich, The extragradient method for finding saddle points, 1976.
      Gidel et al., A variational inequality perspective on GANs, 2019, section 3.2.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mixjax import games
      >>> init, update = games.extragradient(lambda u, v: u * v, optax.sgd(0.5), optax.sgd(0.5))
      >>> state, info = update(init(jnp.float32(1.0), jnp.float32(1.0)))
      >>> float(state.u), float(state.v)
      (0.25, 1.25)
    """

    def update(state, *args):
        value, (u_gradient, v_gradient) = _gradients(f, state.u, state.v, args)
        ahead, _ = _both(state, descent, ascent, u_gradient, v_gradient, value)
        value, (u_gradient, v_gradient) = _gradients(f, ahead.u, ahead.v, args)
        return _both(state, descent, ascent, u_gradient, v_gradient, value)

    return checked_method(f, descent, ascent, update)


def unrolled(
    f: Payoff,
    descent: optax.GradientTransformation,
    ascent: optax.GradientTransformation,
    *,
    num_unrolled_steps: int = 5,
) -> Method:
    """`u` descends `f(u, v_k(u))`, through `k` steps that `v` would take; `v` takes the first one.

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

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mixjax import games
      >>> init, update = games.unrolled(lambda u, v: u * v, optax.sgd(0.5), optax.sgd(0.5))
      >>> state, info = update(init(jnp.float32(1.0), jnp.float32(1.0)))
      >>> float(state.u), float(state.v)
      (-2.0, 1.5)
    """
    checks.at_least(1, num_unrolled_steps=num_unrolled_steps)

    def update(state, *args):
        def objective(u):
            moves, player = [], (state.v, state.v_opt_state)
            for _ in range(num_unrolled_steps):
                gradient = ascent_gradient(f, u, player[0], args)
                player = move(ascent, gradient, player)
                moves.append((*player, optax.tree.norm(gradient)))
            return f(u, player[0], *args), moves[0]

        (value, (v, v_opt_state, v_norm)), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.u
        )
        u, u_opt_state = move(descent, gradient, (state.u, state.u_opt_state))
        new = PlayersState(u, v, u_opt_state, v_opt_state, state.step + 1)
        return new, make_info(value, optax.tree.norm(gradient), v_norm, jnp.zeros_like(value))

    return checked_method(f, descent, ascent, update)


def _gradients(f, u, v, args):
    value, (u_gradient, v_gradient) = jax.value_and_grad(f, argnums=(0, 1))(u, v, *args)
    return value, (u_gradient, jax.tree.map(jnp.negative, v_gradient))


def _both(state, descent, ascent, u_gradient, v_gradient, value):
    u, u_opt_state = move(descent, u_gradient, (state.u, state.u_opt_state))
    v, v_opt_state = move(ascent, v_gradient, (state.v, state.v_opt_state))
    norms = optax.tree.norm(u_gradient), optax.tree.norm(v_gradient)
    new = PlayersState(u, v, u_opt_state, v_opt_state, state.step + 1)
    return new, make_info(value, *norms, jnp.zeros_like(value))
