"""Both players learn by playing against each other, and their averages near an equilibrium.

In each step each player moves towards what would have paid against the other so far: the defender
with the members' losses `[L]`, the attacker with the candidates' losses `[M]` of each example by
itself. The strategies averaged over all steps are returned, with what they guarantee.
"""

import jax
import jax.numpy as jnp

from mixjax import _softmax, checks
from mixjax.games import _tables
from mixjax.games.equilibrium import Equilibrium
from mixjax.typing import Array


def hedge(
    losses: Array,
    *,
    num_steps: int,
    loss_bound: float = 1.0,
    step_size: float | Array | None = None,
) -> Equilibrium:
    """Entropic mirror descent of both: `weights = softmax(-step_size (sum_s g_s + g_last))`.

    `g` are the members' mean losses under the attack; the attacker does the same upwards. The
    last loss counts twice, as a guess of the next one (optimism), so that with step sizes up to
    `1 / loss_bound` the duality gap of the averages is at most
    `((log L + log M) / step_size + loss_bound / 2) / num_steps`. Steps ten times as long are often
    faster, without the guarantee; `upper` and `lower` hold whatever the step.

    A step passes twice over the table, 45 ms on one CPU core for 50 000 examples, 64 candidates
    and 8 members; four arrays `[N, M]` are kept beside it.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates, within [0, `loss_bound`].
      num_steps: number of simultaneous moves, static.
      loss_bound: largest possible loss.
      step_size: positive, in inverse units of the losses; `1 / loss_bound` if None.

    Returns:
      The strategies averaged over the steps, the first move being uniform, and their bounds.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or leaves its bounds, or a number is not positive.

    References:
      Freund and Schapire, Adaptive game playing using multiplicative weights, 1999.
      Syrgkanis et al., Fast convergence of regularized learning in games, 2015, proposition 7.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> found = games.hedge(losses, num_steps=1000)
      >>> bool(found.lower <= 1 / 3 <= found.upper), bool(found.gap < 0.1)
      (True, True)
    """
    table = _tables.checked(losses, loss_bound)
    losses = table.losses
    checks.at_least(1, num_steps=num_steps)
    rate = table.unit / loss_bound  # in inverse units of the table
    if step_size is not None:
        checks.positive(step_size=step_size)
        checks.shape((), step_size=step_size)
        rate = jnp.asarray(step_size, losses.dtype) * table.unit
    # An infinite rate times a difference of 0 would be NaN.
    rate = jnp.minimum(rate, float(jnp.finfo(losses.dtype).max))  # longer steps are as good

    def step(state, _):
        (guess_members, guess_values), (sum_members, sum_values) = state
        # Optimism: the last loss stands in for the next one. Against a player who learns as well it
        # is a good guess, and the gap falls as 1 / T instead of 1 / sqrt(T).
        paid, won = sum_members + guess_members, sum_values + guess_values
        # Differences first: their products may be infinite, those of the sums would all be.
        weights = _softmax.probabilities(rate * (jnp.min(paid) - paid))
        attack = _softmax.probabilities(rate * (won - jnp.max(won, axis=1, keepdims=True)))
        values, members = _tables.expected(losses, weights), _tables.mean_losses(attack, losses)
        state = (members, values), (sum_members + members, sum_values + values)
        return state, (weights, attack)

    still = _zeros(losses)
    return _average(step, (still, still), table, num_steps, lambda t: 1.0 / (t + 1.0))


def regret_matching(losses: Array, *, num_steps: int, best_response: bool = False) -> Equilibrium:
    """Regret matching+: probabilities in proportion to `regret <- max(regret + gain, 0)`.

    The gain of a choice is what it would have won over what was played. The attacker moves by the
    same rule before the defender's regrets are counted, and move `t` counts `t` times in the
    averages. There is no step size; the duality gap of the averages is at most
    `2 loss_bound (sqrt L + sqrt M) / sqrt(num_steps)` for losses within [0, `loss_bound`], and in
    practice falls faster than that of `hedge`.

    With `best_response` the attacker plays that instead, which leaves `2 loss_bound sqrt(L) /
    sqrt(num_steps)`: the promise of `oracle`, here for both players. It is the faster one on
    tables of over about 100 examples, and the slower one on smaller tables.

    A step passes twice over the table, or once with `best_response`: 45 or 30 ms on one CPU core
    for 50 000 examples, 64 candidates and 8 members. Three arrays `[N, M]` are kept beside it, or
    one.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates, finite and at least 0.
      num_steps: number of moves of each player, static.
      best_response: whether the attacker plays a best response to the current weights; static.

    Returns:
      The averaged strategies and their bounds.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or holds what is negative or not finite, or
        `num_steps` is not positive.

    References:
      Tammelin et al., Solving heads-up limit Texas hold'em, 2015, theorem 3.
      Burch et al., Revisiting CFR+ and alternating updates, 2019.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> found = games.regret_matching(losses, num_steps=1000)
      >>> bool(found.lower <= 1 / 3 <= found.upper), bool(found.gap < 0.01)
      (True, True)
    """
    table = _tables.checked(losses)
    losses = table.losses
    checks.at_least(1, num_steps=num_steps)

    def answer(regrets, values):
        """The attacker's regrets, what he plays and what that costs the members."""
        if best_response:
            worst = jnp.argmax(values, axis=1)
            attack = jax.nn.one_hot(worst, losses.shape[1], dtype=losses.dtype)
            return regrets, attack, _tables.mean_losses_at(worst, losses)
        played = jnp.sum(_normalized(regrets) * values, axis=1, keepdims=True)
        # Cut at 0 in each step, the "+": debts of long ago are forgotten, which is what makes it
        # fast.
        regrets = jnp.maximum(regrets + values - played, 0.0)
        attack = _normalized(regrets)
        return regrets, attack, _tables.mean_losses(attack, losses)

    def step(state, _):
        regret_members, regret_values = state
        weights = _normalized(regret_members)
        values = _tables.expected(losses, weights)
        # Moves alternate: the attacker has moved already when the defender's regrets are counted.
        regret_values, attack, members = answer(regret_values, values)
        regret_members = jnp.maximum(regret_members + weights @ members - members, 0.0)
        return (regret_members, regret_values), (weights, attack)

    return _average(step, _zeros(losses), table, num_steps, lambda t: 2.0 / (t + 2.0))


def _average(step, state, table, num_steps, share):
    """Plays `num_steps` of `step` and averages; move `t`, from 0, has `share(t)` of its average."""

    def averaged_step(carry, t):
        state, average = carry
        state, play = step(state, t)
        return (
            state,
            # A running mean: a sum over a hundred thousand steps would lose the digits of the late
            # ones.
            jax.tree.map(lambda old, new: old + share(t) * (new - old), average, play),
        ), None

    losses = table.losses
    steps = jnp.arange(num_steps, dtype=losses.dtype)
    (_, (weights, attack)), _ = jax.lax.scan(averaged_step, (state, _zeros(losses)), steps)
    upper = _tables.mean(jnp.max(_tables.expected(losses, weights), axis=1))
    lower = jnp.min(_tables.mean_losses(attack, losses))
    return Equilibrium(weights, attack, table.restored(upper), table.restored(lower))


def _zeros(losses):
    return jnp.zeros(losses.shape[2], losses.dtype), jnp.zeros(losses.shape[:2], losses.dtype)


def _normalized(regret):
    """`[..., K]` probabilities in proportion to the regrets, uniform where there are none."""
    total = jnp.sum(regret, axis=-1, keepdims=True)
    share = regret / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, share, 1.0 / regret.shape[-1])
