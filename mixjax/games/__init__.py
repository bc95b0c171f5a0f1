"""Solvers of the game between a mixture's weights and the attacker's choice of points.

`losses [N, M, L]` hold the loss of each of `L` members on `N` examples at `M` candidate attacks.
"""

from mixjax.games.equilibrium import Equilibrium, duality_gap, solve
from mixjax.games.hedge import AveragedPlay, hedge, regret_matching
from mixjax.games.weights import (
    adversarial_risk,
    entropic,
    entropic_risk,
    oracle,
    projected_subgradient,
)

__all__ = [
    "AveragedPlay",
    "Equilibrium",
    "adversarial_risk",
    "duality_gap",
    "entropic",
    "entropic_risk",
    "hedge",
    "oracle",
    "projected_subgradient",
    "regret_matching",
    "solve",
]
