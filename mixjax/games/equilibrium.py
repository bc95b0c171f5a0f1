"""The exact solution of the game on a table of losses, for both players, with its certificate.

The game's linear program, `min sum_n t_n` where `t_n >= sum_k weights_k losses_nmk` for every `m`,
has a row for each candidate of each example, of which only a few matter. It is grown from those
that a best response ever picks, and its dual variables are the attacker's probabilities.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from mixjax.games import _tables
from mixjax.games.patterns import merge
from mixjax.games.weights import adversarial_risk
from mixjax.typing import Array

_MAX_GROUPS = 32
_MAX_ROUNDS = 1000
_TOLERANCE = 1e-10  # of the largest loss; the least that HiGHS accepts


class Equilibrium(NamedTuple):
    """Strategies of both players and what they guarantee, in double precision.

    Attributes:
      weights: `[L]` probabilities of the members.
      attack: `[N, M]` probabilities of the candidates, for each example.
      value: `[]` adversarial risk of `weights`: no attack at the candidates does more.
      gap: `[]` `value` less the mean loss of the best answer to `attack`, computed from the two
        strategies alone: the game's value lies in [`value - gap`, `value`].
    """

    weights: np.ndarray
    attack: np.ndarray
    value: float
    gap: float


def solve(losses) -> Equilibrium:
    """`min_weights max_attack mean_n sum_mk attack_nm weights_k losses_nmk`, and who attains it.

    Exact up to rounding: by linear programs (HiGHS), on the host, not inside `jit`. Each has a
    cut for the best responses to all weights found so far, summed over each of at most 32 groups
    of examples; the last one is met by the best responses to its own solution. Equal and dominated
    candidates of an example and examples with equal candidates are merged first where a table has
    few different rows, as those of 0/1 losses have.

    Takes the table in double precision, `8 N M L` bytes, and a few arrays `[N, M]` of memory, and
    one pass over the table for each program. On one CPU core 8 members at 64 candidates each of
    50 000 examples, no two rows of losses equal, take 5 seconds and 600 MB.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates, finite and at least 0.

    Returns:
      The equilibrium; `gap` says how good it is whatever the programs say.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or holds what is negative or not finite.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, theorem 1.
      Kelley, The cutting-plane method for solving convex programs, 1960.
    """
    _tables.check_losses(losses)
    table = np.asarray(losses, np.float64)
    scale = table.max() or 1.0
    patterns = merge(table)
    weights, attack = _cutting_planes(patterns.losses / scale, patterns.mass)
    attack = patterns.spread(attack)
    upper, lower = _bounds(weights, attack, table)
    return Equilibrium(weights, attack, upper, upper - lower)


def duality_gap(weights, attack, losses) -> Array | float:
    """`mean_n max_m sum_k weights_k losses_nmk - min_k mean_n sum_m attack_nm losses_nmk`.

    What the two players could gain together by deviating: at least 0, and 0 exactly at an
    equilibrium. It certifies both strategies, wherever they come from. In double precision if no
    argument is an array of JAX; else as JAX computes it, also inside `jit` and `vmap`.

    Args:
      weights: `[L]` probabilities of the members.
      attack: `[N, M]` probabilities of the candidates, for each example.
      losses: `[N, M, L]` losses of the members at the candidates.

    Returns:
      `[]` gap, in the units of the losses.

    Raises:
      ValueError: if the shapes do not fit, the strategies are not probabilities, or `losses` holds
        what is negative or not finite.
    """
    _tables.check_game(weights, losses)
    _tables.check_probabilities(np.shape(losses)[:2], attack=attack)
    if _tables.are_host_arrays(weights, attack, losses):
        upper, lower = _bounds(*(np.asarray(x, np.float64) for x in (weights, attack, losses)))
        return upper - lower
    return adversarial_risk(weights, losses) - _tables.mean_losses(attack, losses).min()


def _bounds(weights, attack, table):
    """Risk of the weights, and the least mean loss of a member under the attack."""
    upper = (table @ weights).max(axis=1).mean()
    members = attack.reshape(-1) @ table.reshape(attack.size, -1) / len(table)
    return float(upper), float(members.min())


def _cutting_planes(losses, mass):
    """Weights `[L]` and attack `[U, M]` of the game on `losses [U, M, L]` within [0, 1].

    `mass [U]` are the examples' weights, summing to 1.
    """
    num_examples, num_candidates, num_members = losses.shape
    examples = np.arange(num_examples)
    num_groups = min(num_examples, _MAX_GROUPS)
    group = examples * num_groups // num_examples
    starts = np.searchsorted(group, np.arange(num_groups))
    flat = losses.reshape(-1, num_members)

    def respond(weights):
        """Best responses `[U]` to the weights, and their losses summed over groups `[G, L]`."""
        response = (flat @ weights).reshape(num_examples, num_candidates).argmax(axis=1)
        return response, np.add.reduceat(mass[:, None] * losses[examples, response], starts)

    # Rounds of best responses, their losses and the groups for which they make a cut.
    best, least = np.full(num_members, 1 / num_members), np.inf
    starting = (best, *np.eye(num_members))
    rounds = [(*respond(weights), np.ones(num_groups, bool)) for weights in starting]
    probabilities = np.zeros((0, num_groups))
    for _ in range(_MAX_ROUNDS):
        weights, heights, bound, probabilities = _linear_program(rounds)
        response, sums = respond(weights)
        risk = np.sum(sums @ weights)
        if risk < least:
            best, least = weights, risk
        new = sums @ weights > heights + _TOLERANCE / num_groups
        if least - bound <= _TOLERANCE or not new.any():
            break
        rounds.append((response, sums, new))
    attack = np.zeros((num_examples, num_candidates))
    for (response, _, _), probability in zip(rounds, probabilities, strict=False):
        attack[examples, response] += probability[group]
    return best, attack / attack.sum(axis=1, keepdims=True)


def _linear_program(rounds):
    """`min sum_g t_g` where `t_g >= cut . weights` for each cut of group `g`.

    Returns:
      Weights `[L]`, `t [G]`, the least sum, and for each round the probabilities `[G]` with which
      the groups play its responses: the dual variables.
    """
    cuts = np.concatenate([sums[chosen] for _, sums, chosen in rounds])
    owners = np.concatenate([np.flatnonzero(chosen) for _, _, chosen in rounds])
    (num_cuts, num_members), num_groups = cuts.shape, len(rounds[0][2])
    heights = scipy.sparse.csr_array(
        (np.full(num_cuts, -1.0), (np.arange(num_cuts), owners)), (num_cuts, num_groups)
    )
    sums = np.concatenate([np.ones(num_members), np.zeros(num_groups)])
    result = scipy.optimize.linprog(
        1.0 - sums,
        scipy.sparse.hstack([scipy.sparse.csr_array(cuts), heights], format="csr"),
        np.zeros(num_cuts),
        scipy.sparse.csr_array(sums[None]),
        [1.0],
        np.stack([np.where(sums > 0, 0.0, -np.inf), np.full(len(sums), np.inf)], axis=1),
        method="highs-ds",
        options={
            "primal_feasibility_tolerance": _TOLERANCE,
            "dual_feasibility_tolerance": _TOLERANCE,
        },
    )
    if result.status != 0:
        raise ValueError(f"losses make a linear program that HiGHS cannot solve: {result.message}")
    weights = np.maximum(result.x[:num_members], 0.0)
    duals = np.split(
        np.maximum(-result.ineqlin.marginals, 0.0),
        np.cumsum([chosen.sum() for _, _, chosen in rounds[:-1]]),
    )
    probabilities = np.zeros((len(rounds), num_groups))
    for probability, (_, _, chosen), dual in zip(probabilities, rounds, duals, strict=True):
        probability[chosen] = dual
    return weights / weights.sum(), result.x[num_members:], result.fun, probabilities
