"""The game grown by best responses: double oracle, and boosted adversarial training beside it.

A table holds the losses of the members found so far at the points found so far. In each round the
attacker adds one point per example, the answer to the weights, and the defender may add a member,
the answer to the attack. Members and points are whatever the caller's functions make of them:
half-planes and points of the plane, or parameters of networks and batches of images.

What is certain of the bounds. `lower`: the attack's points exist, so no mixture of the members
found so far has less risk; with a `defender`, no mixture of anything in its class has, except for
what its answers lack to best responses in that class. `upper`: the risk of the weights under every
point found so far; their true risk is higher by what the attacker's last answer lacks to a best
response, which cannot be known here. Both bounds of a round take everything into account that was
found until its end, so that a late discovery also corrects earlier strategies.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixjax import checks
from mixjax.games import _tables
from mixjax.games.equilibrium import Equilibrium, solve
from mixjax.typing import PyTree

Strategies = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Round(NamedTuple):
    """What a round of the game found.

    Attributes:
      risk: `[]` risk of the weights of this round, the attacker's answer to them included.
      response: `[]` least mean loss of a member under the attack of this round, the defender's
        answer to it included.
      upper: `[]` least risk of the weights of any round so far, under all points so far.
      lower: `[]` highest mean loss of the best member so far under the attack of any round.
      num_members: number of members at the end of the round.
      num_candidates: number of points per example at the end of the round.
    """

    risk: float
    response: float
    upper: float
    lower: float
    num_members: int
    num_candidates: int


class Growth(NamedTuple):
    """The grown game, to which the strategies found belong.

    Attributes:
      members: the `L` members, in the order in which they came.
      points: the `M` candidate points of all examples, in the order in which they came.
      losses: `[N, M, L]` losses of the members at the points.
      rounds: what each round found.
    """

    members: tuple
    points: tuple
    losses: np.ndarray
    rounds: tuple[Round, ...]


def double_oracle(
    losses_fn: Callable[[Any, PyTree], Any],
    attacker: Callable[[np.ndarray, tuple, int], PyTree],
    members: Sequence[Any],
    points: Sequence[PyTree],
    *,
    num_rounds: int,
    tolerance: float = 1e-6,
    defender: Callable[[np.ndarray, tuple, int], Any] | None = None,
    strategies: Strategies | None = None,
) -> tuple[Equilibrium, Growth]:
    """Grows the game until its bounds meet.

    A round takes the weights from the table, adds the attacker's answer to them, takes the attack
    from the larger table and, if there is a defender, adds its answer to that. With exact answers
    from finite classes it ends at an equilibrium of the whole game. Runs on the host; the caller
    compiles the functions that it gives. Each pair of a member and a point is scored once; the
    table is held twice in double precision, `16 N M L` bytes.

    Args:
      losses_fn: `(member, points) -> [N]` losses of a member at one point of each example, finite
        and at least 0.
      attacker: `(weights [L], members, round) -> points`, one point for each example that raises
        the mixture's expected loss; `round` counts from 0, to derive random keys from.
      members: the members to start from, at least one.
      points: the points to start from, at least one of each example: the examples themselves.
      num_rounds: number of rounds, at most.
      tolerance: the game ends as soon as `upper - lower` is at most this; below 0: never.
      defender: `(attack [N, M], points, round) -> member`, a member trained against the attack;
        None: the members are given.
      strategies: `losses [N, M, L] -> (weights [L], attack [N, M])`, to which the players answer;
        an equilibrium if None, `boosting(...)` for boosted adversarial training.

    Returns:
      Of the strategies of all rounds, the weights of least risk under all points and the attack
      under which the best member pays most, as an `Equilibrium` with that risk as `upper` and that
      loss as `lower`; and the grown game.

    Raises:
      ValueError: if there are no members or no points, `num_rounds` is not positive, `tolerance` is
        not a number, losses are not `[N]`, negative or not finite, or strategies are not
        probabilities.

    References:
      McMahan et al., Planning in the presence of cost functions controlled by an adversary, 2003.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> # Members and points are numbers; a member errs by its distance from the point.
      >>> found, grown = games.double_oracle(
      ...     lambda member, point: np.abs(point - member)[None],
      ...     lambda weights, members, round: float(weights @ np.array(members) < 0.5),
      ...     members=[0.0, 1.0],
      ...     points=[0.25],
      ...     num_rounds=10,
      ... )
      >>> found.weights, float(found.value)
      (array([0.5, 0.5]), 0.5)
    """
    checks.at_least(1, num_rounds=num_rounds)
    checks.within(-math.inf, math.inf, tolerance=tolerance)
    if not members or not points:
        raise ValueError(
            "members and points must not be empty, "
            f"got {len(members)} members and {len(points)} points"
        )
    strategies = _checked(strategies or _equilibrium)
    members, points = tuple(members), tuple(points)
    columns = [[_scored(losses_fn, member, point) for member in members] for point in points]
    tried_weights, tried_attacks, rounds = [], [], []
    risks, responses, losses = [], [], _table(columns)
    weights, _ = strategies(losses)
    for index in range(num_rounds):
        answer = attacker(weights, members, index)
        points = (*points, answer)
        columns.append([_scored(losses_fn, member, answer) for member in members])
        # The attack is taken after the attacker's answer: so the defender answers the strongest one
        # known.
        next_weights, attack = strategies(_table(columns))
        if defender is not None:
            member = defender(attack, points, index)
            members = (*members, member)
            for column, point in zip(columns, points, strict=True):
                column.append(_scored(losses_fn, member, point))
        losses = _table(columns)
        tried_weights.append(weights)
        tried_attacks.append(attack)
        # Compared without what an example costs in any case, which would round off the rest.
        table, sure = _tables.above_sure(losses)
        risks = [_tables.upper_bound(weights, table) for weights in tried_weights]
        responses = [float(_tables.lower_bounds(each, table).min()) for each in tried_attacks]
        base, counts = _tables.host_mean(sure), (len(members), len(points))
        bounds = base + min(risks), base + max(responses)
        rounds.append(Round(base + risks[-1], base + responses[-1], *bounds, *counts))
        if min(risks) - max(responses) <= tolerance:
            break
        weights = next_weights if defender is None else strategies(losses)[0]
    best_weights = tried_weights[int(np.argmin(risks))]
    best_attack = tried_attacks[int(np.argmax(responses))]
    found = Equilibrium(
        np.pad(best_weights, (0, len(members) - len(best_weights))),
        np.pad(best_attack, ((0, 0), (0, len(points) - best_attack.shape[1]))),
        rounds[-1].upper,
        rounds[-1].lower,
    )
    return found, Growth(members, points, losses, tuple(rounds))


def boosting(share: float) -> Strategies:
    """The strategies of boosted adversarial training, to compare with an equilibrium's.

    Each new member takes `share` of the weight from the others, and is trained against the last
    answer of the attacker alone. `double_oracle` with these is the algorithm of Pinot et al.

    Args:
      share: the paper's `alpha`, in (0, 1).

    Returns:
      `losses [N, M, L] -> (weights [L], attack [N, M])`.

    Raises:
      ValueError: if `share` is not in (0, 1).

    References:
      Pinot et al., Randomization matters, 2020, algorithm 1.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> weights, attack = games.boosting(0.5)(np.zeros((1, 2, 3)))  # two points, three members
      >>> weights, attack
      (array([0.25, 0.25, 0.5 ]), array([[0., 1.]]))
    """
    checks.positive(share=share)
    checks.fraction(share=share)

    def strategies(losses):
        num_examples, num_candidates, num_members = losses.shape
        weights = share * (1.0 - share) ** np.arange(num_members - 1.0, -1.0, -1.0)
        weights[0] /= share
        attack = np.zeros((num_examples, num_candidates))
        attack[:, -1] = 1.0
        return weights, attack

    return strategies


def _checked(strategies):
    def checked(losses):
        weights, attack = strategies(losses)
        _tables.check_game(weights, losses)
        _tables.check_probabilities(losses.shape[:2], attack=attack)
        return np.asarray(weights, np.float64), np.asarray(attack, np.float64)

    return checked


def _equilibrium(losses):
    found = solve(losses)
    return found.weights, found.attack


def _scored(losses_fn, member, points):
    losses = np.asarray(losses_fn(member, points), np.float64)
    checks.non_empty(1, losses=losses)
    checks.within(0.0, sys.float_info.max, losses=losses)
    return losses


def _table(columns):
    """`[N, M, L]` from `M` lists of `L` losses `[N]`."""
    for losses in (losses for column in columns for losses in column):
        checks.shape(columns[0][0].shape, losses=losses)
    return np.ascontiguousarray(np.transpose(np.array(columns), (2, 0, 1)))
