"""The exact solution of the game on a table of losses, for both players, with its certificate.

The game's linear program, `min sum_n t_n` where `t_n >= sum_k weights_k losses_nmk` for every `m`,
has a row for each candidate of each example, of which only a few matter. It is grown from those
that a best response ever picks, and its dual variables are the attacker's probabilities.
"""

import math
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy

from mixjax.games import _tables
from mixjax.games.patterns import merge
from mixjax.games.weights import adversarial_risk
from mixjax.typing import Array

# One cut per example makes programs with as many rows as examples, one cut for all takes many
# rounds: a few dozen groups lie between the two.
_MAX_GROUPS = 32
_MAX_ROUNDS = 1000
_TOLERANCE = 1e-10  # of the best member's risk; the least that HiGHS accepts


class Equilibrium(NamedTuple):
    """Strategies of both players and what each guarantees: an equilibrium up to `gap`.

    What every solver of this package returns. `solve` and `double_oracle` compute in NumPy's double
    precision, the others as JAX does, also inside `jit` and `vmap`.

    Attributes:
      weights: `[L]` probabilities of the members.
      attack: `[N, M]` probabilities of the candidates, for each example.
      upper: `[]` adversarial risk of `weights`: no attack at the candidates does more.
      lower: `[]` mean loss of the best answer to `attack`: no weights make less of it. The game's
        value lies between the two, up to their last digit.
    """

    weights: Any
    attack: Any
    upper: Any
    lower: Any

    @property
    def value(self) -> Any:
        """`[]`: what the weights guarantee, `upper`; the game's value is at most `gap` below it."""
        return self.upper

    @property
    def gap(self) -> Any:
        """`[]`: what both players together could gain by deviating, 0 at an equilibrium alone.

        Known up to the last digit of `upper`, below which `duality_gap` may see more.
        """
        return self.upper - self.lower


def solve(losses: Any) -> Equilibrium:
    """`min_weights max_attack mean_n sum_mk attack_nm weights_k losses_nmk`, and who attains it.

    Exact up to rounding: by linear programs (HiGHS), on the host, not inside `jit`. Each has a
    cut for the best responses to all weights found so far, summed over each of at most 32 groups
    of examples; the last one is met by the best responses to its own solution. Equal and dominated
    candidates of an example and examples with equal candidates are merged first where a table has
    few different rows, as those of 0/1 losses have.

    Losses of any size may stand beside each other: what an example costs in any case moves nobody
    and is subtracted; a candidate that another one beats for all weights is left out; and each
    member has a unit of its own, its risk alone, since a solver of linear programs takes small
    coefficients beside large ones for 0.

    Takes the table in double precision, `8 N M L` bytes, and a few arrays `[N, M]` of memory, and
    one pass over the table for each program. On one CPU core 8 members at 64 candidates each of
    50 000 examples, no two rows of losses equal, take 5 seconds and 600 MB.

    Args:
      losses: `[N, M, L]` losses of the members at the candidates, finite and at least 0.

    Returns:
      The equilibrium. `gap` says how good it is, whatever the solver did: it is computed from the
      two strategies alone and enlarged by all that rounding can have hidden.

    Raises:
      ValueError: if `losses` is not `[N, M, L]` or holds what is negative or not finite.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, theorem 1.
      Kelley, The cutting-plane method for solving convex programs, 1960.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> found = games.solve(losses)
      >>> found.weights.round(3), round(float(found.value), 3)
      (array([0.333, 0.667]), 0.333)
    """
    _tables.check_losses(losses)
    table, sure = _above_sure_gains(losses)
    exponent = int(np.frexp(table.max())[1])
    np.ldexp(table, -exponent, out=table)  # by a power of two: exact
    # The best weights give member k at most `least / alone[k]`, for what they cost is at least
    # `weights[k] alone[k]`, and `least` is enough.
    alone = table.max(axis=1).mean(axis=0)
    least = _power_of_two(alone.min() or alone.max() or 1.0)
    units = _power_of_two(least / np.maximum(alone, least))
    table *= units / least
    patterns = merge(table)
    shares, attack = _cutting_planes(patterns.losses, patterns.mass, units, int(alone.argmin()))
    attack = patterns.spread(attack)
    upper = _tables.upper_bound(shares, table) * least
    lower = float(np.min(_tables.lower_bounds(attack, table) * (least / units)))
    gap = _tables.certified_gap(upper, lower, table)
    value = _tables.host_mean(sure) + float(np.ldexp(upper, exponent))
    value = min(value, sys.float_info.max)  # rounding could leave the numbers there are
    return Equilibrium(
        shares * units, attack, value, _at_least_below(value, float(np.ldexp(gap, exponent)))
    )


def duality_gap(weights: Any, attack: Any, losses: Any) -> Array | float:
    """`mean_n max_m sum_k weights_k losses_nmk - min_k mean_n sum_m attack_nm losses_nmk`.

    What the two players could gain together by deviating: 0 at an equilibrium alone. It certifies
    both strategies, wherever they come from. In double precision if no argument is an array of
    JAX, and then never below the true gap, by which rounding may enlarge it; else as JAX computes
    it, also inside `jit` and `vmap`.

    Args:
      weights: `[L]` probabilities of the members; made to sum to 1 exactly.
      attack: `[N, M]` probabilities of the candidates, for each example; likewise.
      losses: `[N, M, L]` losses of the members at the candidates.

    Returns:
      `[]` gap, in the units of the losses.

    Raises:
      ValueError: if the shapes do not fit, the strategies are not probabilities, or `losses` holds
        what is negative or not finite.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> attack = np.array([[0.5, 0.5]])
      >>> round(games.duality_gap(np.array([0.5, 0.5]), attack, losses), 6)
      0.25
    """
    _tables.check_game(weights, losses)
    _tables.check_probabilities(np.shape(losses)[:2], attack=attack)
    if _tables.are_host_arrays(weights, attack, losses):
        weights, attack = (np.asarray(x, np.float64) for x in (weights, attack))
        table, _ = _tables.above_sure(losses)
        exponent = int(np.frexp(table.max())[1])
        # By a power of two, which rounds nothing: sums of large losses would overflow.
        np.ldexp(table, -exponent, out=table)
        upper = _tables.upper_bound(weights / weights.sum(), table)
        lower = _tables.lower_bounds(attack / attack.sum(axis=1, keepdims=True), table).min()
        return float(np.ldexp(_tables.certified_gap(upper, float(lower), table), exponent))
    _tables.check_dtype(losses=losses)
    weights, attack, losses = (jnp.asarray(x) for x in (weights, attack, losses))
    weights, attack = weights / weights.sum(), attack / attack.sum(axis=1, keepdims=True)
    # What an example costs in any case cancels, and would round off the rest.
    losses = losses - losses.min(axis=(1, 2), keepdims=True)
    return adversarial_risk(weights, losses) - _tables.mean_losses(attack, losses).min()


def _above_sure_gains(losses):
    """`[N, M, L]` less the least loss of each example, and `[N]` these losses.

    Of the candidates that matter: if one costs no member more than another costs every member, it
    is never played, and counts as a loss below 0 of every member.
    """
    table = np.array(losses, np.float64)
    least, most = table.min(axis=2), table.max(axis=2)
    # Worth the pass: what is beaten for all weights would stand in the program as a row that never
    # binds.
    is_beaten = most <= least.max(axis=1, keepdims=True)
    is_beaten[np.arange(len(table)), least.argmax(axis=1)] = False
    sure = np.where(is_beaten, np.inf, least).min(axis=1)
    table -= sure[:, None, None]
    table[is_beaten] = -(float(table.max()) or 1.0)
    return table, sure


def _at_least_below(value, gap):
    """The highest number of at least 0 that is at least `gap` below `value`."""
    lower = max(value - gap, 0.0)
    return lower if value - lower >= gap else math.nextafter(lower, 0.0)


def _power_of_two(x):
    """The largest one that is at most `x`."""
    return np.ldexp(0.5, np.frexp(x)[1])


def _cutting_planes(losses, mass, units, start):
    """Shares `[L]` and attack `[U, M]` of the game on `losses [U, M, L]`.

    `shares * units` are probabilities, and the losses are those of the members per unit.
    `mass [U]` are the examples' weights, summing to 1; with `start`, the best member alone, the
    search for the weights begins.
    """
    num_examples, num_candidates, num_members = losses.shape
    examples = np.arange(num_examples)
    num_groups = min(num_examples, _MAX_GROUPS)
    group = examples * num_groups // num_examples
    starts = np.searchsorted(group, np.arange(num_groups))
    flat = losses.reshape(-1, num_members)

    def respond(shares):
        """Best responses `[U]` to the shares, and their losses summed over groups `[G, L]`."""
        response = (flat @ shares).reshape(num_examples, num_candidates).argmax(axis=1)
        return response, np.add.reduceat(mass[:, None] * losses[examples, response], starts)

    # Rounds of best responses, their losses and the groups for which they make a cut.
    members = np.eye(num_members)
    best = members[start] / units[start]
    least = np.sum(respond(best)[1] @ best)
    # Uniform weights and each member alone: their best responses bound the program before its first
    # solution, which would otherwise be unbounded below.
    starting = (units.min() / units, *members)  # multiples of uniform weights and of each member's
    rounds = [(*respond(shares), np.ones(num_groups, bool)) for shares in starting]
    probabilities = np.zeros((0, num_groups))
    for _ in range(_MAX_ROUNDS):
        shares, heights, bound, probabilities = _linear_program(rounds, units)
        response, sums = respond(shares)
        risk = np.sum(sums @ shares)
        if risk < least:
            best, least = shares, risk
        new = sums @ shares > heights + _TOLERANCE / num_groups
        # The program's value is a lower bound, the best risk seen an upper one.
        if least - bound <= _TOLERANCE or not new.any():
            break
        rounds.append((response, sums, new))
    attack = np.zeros((num_examples, num_candidates))
    for (response, _, _), probability in zip(rounds, probabilities, strict=False):
        # The dual variables of the cuts are the probabilities with which a group plays its
        # responses.
        attack[examples, response] += probability[group]
    return best, attack / attack.sum(axis=1, keepdims=True)


def _linear_program(rounds, units):
    """`min sum_g t_g` where `t_g >= cut . shares` for each cut of group `g`.

    Returns:
      Shares `[L]` with `units . shares = 1`, `t [G]`, the least sum, and for each round the
      probabilities `[G]` with which the groups play its responses: the dual variables.
    """
    cuts = np.concatenate([sums[chosen] for _, sums, chosen in rounds])
    owners = np.concatenate([np.flatnonzero(chosen) for _, _, chosen in rounds])
    (num_cuts, num_members), num_groups = cuts.shape, len(rounds[0][2])
    heights = scipy.sparse.csr_array(
        (np.full(num_cuts, -1.0), (np.arange(num_cuts), owners)), (num_cuts, num_groups)
    )
    is_share = np.arange(num_members + num_groups) < num_members
    sums = np.concatenate([units, np.zeros(num_groups)])
    result = scipy.optimize.linprog(
        1.0 - is_share,
        scipy.sparse.hstack([scipy.sparse.csr_array(cuts), heights], format="csr"),
        np.zeros(num_cuts),
        scipy.sparse.csr_array(sums[None]),
        [1.0],
        np.stack([np.where(is_share, 0.0, -np.inf), np.full(len(sums), np.inf)], axis=1),
        method="highs-ds",
        options={
            "primal_feasibility_tolerance": _TOLERANCE,
            "dual_feasibility_tolerance": _TOLERANCE,
        },
    )
    if result.status != 0:
        raise ValueError(f"losses make a linear program that HiGHS cannot solve: {result.message}")
    shares = np.maximum(result.x[:num_members], 0.0)
    duals = np.split(
        np.maximum(-result.ineqlin.marginals, 0.0),
        np.cumsum([chosen.sum() for _, _, chosen in rounds[:-1]]),
    )
    probabilities = np.zeros((len(rounds), num_groups))
    for probability, (_, _, chosen), dual in zip(probabilities, rounds, duals, strict=True):
        probability[chosen] = dual
    return shares / (units @ shares), result.x[num_members:], result.fun, probabilities
