"""Solvers of the game between a mixture's weights and the attacker's choice of points.

`losses [N, M, L]` hold the loss of each of `L` members on `N` examples at `M` candidate attacks;
a strategy is `weights [L]` for the defender and `attack [N, M]`, probabilities for each example,
for the attacker. `solve`, `hedge`, `regret_matching` and `double_oracle` return both players'
strategies and what these guarantee as one `Equilibrium`.

Beside them, two players whose strategies are parameters: any `f(u, v)` by gradient steps on both.
"""

from mixjax.games._players import Method, PlayersInfo, PlayersState
from mixjax.games.attacker import (
    Attacker,
    best_response,
    draw,
    entropic_attack,
    losses_under,
    score,
)
from mixjax.games.equilibrium import Equilibrium, duality_gap, solve
from mixjax.games.growing import Growth, Round, boosting, double_oracle
from mixjax.games.no_regret import hedge, regret_matching
from mixjax.games.player_baselines import extragradient, simultaneous, unrolled
from mixjax.games.players import alternating, maximin, minimax
from mixjax.games.weights import (
    ITERATES,
    adversarial_risk,
    entropic,
    entropic_risk,
    oracle,
    projected_subgradient,
)

__all__ = [
    "ITERATES",
    "Attacker",
    "Equilibrium",
    "Growth",
    "Method",
    "PlayersInfo",
    "PlayersState",
    "Round",
    "adversarial_risk",
    "alternating",
    "best_response",
    "boosting",
    "double_oracle",
    "draw",
    "duality_gap",
    "entropic",
    "entropic_attack",
    "entropic_risk",
    "extragradient",
    "hedge",
    "losses_under",
    "maximin",
    "minimax",
    "oracle",
    "projected_subgradient",
    "regret_matching",
    "score",
    "simultaneous",
    "solve",
    "unrolled",
]
