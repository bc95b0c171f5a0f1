"""Training of a classifier against an attack network that is trained with it.

`f(u, v)` is the mean loss of the classifier `u` on a batch as the attack network `v` moves it. Any
two-player method of `games` plays it: minimax, maximin, alternating and the rest.
"""

from collections.abc import Callable

import jax

from mixjax import attacks, checks, games
from mixjax.batch import mean_over
from mixjax.defenses.classifier import ClassifierState, dropout_key, mean_loss
from mixjax.defenses.mixture_training import Defense
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds


def against_network(
    model: Model,
    network: Model,
    method: Callable[[Callable], games.Method],
    threat: Threat,
    *,
    move: Callable[..., Array] = attacks.follow,
    bounds: Bounds = (0.0, 1.0),
    data_axis: str | None = None,
) -> Defense:
    """Plays `f(u, v)`, the mean cross-entropy of a classifier under an attack network.

    Args:
      model: the classifier, `u`.
      network: the attacker, `v`, of `models.attack_network` or the like.
      method: `f -> games.Method`, as `functools.partial(games.minimax, descent=optax.adam(1e-4),
        ascent=optax.adam(1e-3))`.
      threat: the attacker's ball, in the units of the images.
      move: what is made of the network's output: `attacks.follow`, stronger, or `attacks.squash`,
        with which the penalty of `games.minimax` means the same whatever the scale of `v`.
      bounds: lowest and highest value of an input.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part, and
        `method` must average over the same axis.

    Returns:
      A `Defense` with `ClassifierState` and `games.PlayersInfo`; `state.opponent` holds the
      network's variables. Statistics of BatchNorm come from the attacked batch after the step.

    Raises:
      ValueError: if the threat is no `Threat`; as `move` and `method`, when a step is traced.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      section 4. The game there is `models.attack_network(dropout=0.5, label_scale=1.0)`,
      `move=attacks.squash`, `bounds=(-inf, inf)`, `games.minimax` with its default order.

    Example:
      >>> import functools, jax, jax.numpy as jnp, optax
      >>> from mixjax import defenses, games, models, threats
      >>> defense = defenses.against_network(
      ...     models.linear(2, input_shape=(3,)),
      ...     models.attack_network(2, input_shape=(3,), hidden=(4,)),
      ...     functools.partial(games.minimax, descent=optax.sgd(0.1), ascent=optax.sgd(0.1)),
      ...     threats.linf(0.1),
      ... )
      >>> images, labels = jnp.array([[0.1, 0.9, 0.2], [0.8, 0.1, 0.3]]), jnp.array([0, 1])
      >>> state, info = jax.jit(defense.step)(defense.init(jax.random.key(0)), images, labels)
      >>> int(state.step)
      1
    """
    checks.threat(threat=threat)

    def payoff(params, v, state, key, images, labels):
        network_variables = {**state.opponent, "params": v}
        attacked, _ = attacks.attack_network_batch(
            network, network_variables, key, images, labels, threat, move=move, bounds=bounds
        )
        variables = {**state.variables, "params": params}
        return mean_loss(model, variables, attacked, labels, dropout_key(key))[0]

    init_players, update = method(payoff)

    def init(key):
        model_key, network_key, train_key = jax.random.split(key, 3)
        variables, opponent = model.init(model_key), network.init(network_key)
        players = init_players(variables["params"], opponent["params"])
        return ClassifierState(variables, opponent, players[2:4], train_key, players.step)

    def step(state, images, labels):
        key = jax.random.fold_in(state.key, state.step)
        if data_axis is not None:  # dropout of its own on each device
            key = jax.random.fold_in(key, jax.lax.axis_index(data_axis))
        u, v = state.variables["params"], state.opponent["params"]
        u_opt_state, v_opt_state = state.opt_state
        players = games.PlayersState(u, v, u_opt_state, v_opt_state, state.step)
        players, info = update(players, state, key, images, labels)
        variables = {**state.variables, "params": players.u}
        opponent = {**state.opponent, "params": players.v}
        if len(variables) > 1:
            attacked, opponent = attacks.attack_network_batch(
                network, opponent, key, images, labels, threat, move=move, bounds=bounds
            )
            _, new = mean_loss(model, variables, attacked, labels, dropout_key(key))
            variables = mean_over(data_axis, new)
        return ClassifierState(variables, opponent, players[2:4], state.key, players.step), info

    return Defense(init, step)
