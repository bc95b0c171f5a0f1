"""The attacker who draws: for each example, probabilities `attack [N, M]` of `M` candidate points.

They come from `solve`, from the averages of `hedge` and `regret_matching`, or from here: the
softmax of the entropic relaxation, and the best response, which is deterministic. An `Attacker` is
such an attack with its points, so that it can be played against classifiers that did not exist
when it was found.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import _softmax, checks
from mixjax.games import _tables
from mixjax.typing import Array, Key


class Attacker(NamedTuple):
    """A randomised attack and its points.

    Attributes:
      points: `[N, M, ...]` candidate points of each example.
      attack: `[N, M]` their probabilities.
    """

    points: Array
    attack: Array


def best_response(weights: Array, losses: Array) -> Array:
    """The deterministic attack: all on the candidate of highest expected loss, the first of equals.

    Args:
      weights: `[L]` probabilities of the members.
      losses: `[N, M, L]` losses of the members at the candidates.

    Returns:
      `[N, M]` attack, 0 or 1: its mean loss against the mixture is the adversarial risk.

    Raises:
      ValueError: as `adversarial_risk`.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> games.best_response(np.array([0.5, 0.5]), losses)
      Array([[1., 0.]], dtype=float32)
    """
    _tables.check_table(weights, losses)
    worst = jnp.argmax(_tables.expected(losses, weights), axis=1)
    return jax.nn.one_hot(worst, losses.shape[1], dtype=jnp.asarray(weights).dtype)


def entropic_attack(
    weights: Array, losses: Array, temperature: float | Array, *, mass: Array | None = None
) -> Array:
    """`attack_nm ~ mass_nm exp(sum_k weights_k losses_nmk / alpha_n)`: the relaxation's attacker.

    The gradient of `entropic_risk` in the weights is the members' mean losses under this attack.
    At the weights that minimise it, the attack's own duality gap is at most `alpha log M` where
    all candidates have the same mass.

    Args:
      weights: `[L]` probabilities of the members.
      losses: `[N, M, L]` losses of the members at the candidates.
      temperature: `[]` or `[N]`, the `alpha` above, positive, in the units of the losses.
      mass: `[N, M]` probabilities of each example's candidates; all equal if None.

    Returns:
      `[N, M]` attack.

    Raises:
      ValueError: as `entropic_risk`.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 4.2.

    Example:
      >>> import numpy as np
      >>> from mixjax import games
      >>> losses = np.array([[[1.0, 0.0], [0.0, 0.5]]])  # each member errs at a point of its own
      >>> attack = games.entropic_attack(np.array([0.5, 0.5]), losses, 0.25)
      >>> [round(float(probability), 2) for probability in attack[0]]
      [0.73, 0.27]
    """
    _, _, logits = _tables.tempered(weights, losses, temperature, mass)
    return _softmax.probabilities(logits)


def losses_under(attack: Array, losses: Array) -> Array:
    """`mean_n sum_m attack_nm losses_nm`: what each classifier pays under an attack.

    Args:
      attack: `[N, M]` probabilities of the candidates, for each example.
      losses: `[N, M, ...]` losses at the candidates, of one classifier or of many.

    Returns:
      `[...]` mean losses. No mixture of many classifiers pays less than the least of them.

    Raises:
      ValueError: if the shapes do not fit, `attack` does not hold probabilities or `losses` holds
        what is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from mixjax import games
      >>> losses = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])  # each member errs at a point of its own
      >>> games.losses_under(jnp.array([[0.75, 0.25]]), losses)
      Array([0.75, 0.25], dtype=float32)
    """
    _tables.check_probabilities(np.shape(losses)[:2], attack=attack)
    checks.non_empty(np.ndim(losses), losses=losses)
    _tables.check_dtype(losses=losses)
    return _tables.mean_losses(jnp.asarray(attack), jnp.asarray(losses))


def draw(key: Key, attacker: Attacker) -> Array:
    """Draws a point for each example.

    Args:
      key: random key; consumed.
      attacker: points and probabilities.

    Returns:
      `[N, ...]` points.

    Raises:
      ValueError: if the shapes do not fit or the attack does not hold probabilities.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import games
      >>> points = jnp.array([[[0.1], [0.2]], [[0.3], [0.4]]])  # two examples, two candidates
      >>> attacker = games.Attacker(points, attack=jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      >>> games.draw(jax.random.key(0), attacker)
      Array([[0.1],
             [0.4]], dtype=float32)
    """
    checks.key(key=key)
    _check_attacker(attacker)
    points, attack = jnp.asarray(attacker.points), jnp.asarray(attacker.attack)
    chosen = jax.random.categorical(key, jnp.log(attack), axis=1)
    return points[jnp.arange(len(points)), chosen]


def score(losses_fn: Callable[[Array], Array], attacker: Attacker) -> Array:
    """The exact mean loss under the attacker of any classifiers: nothing is drawn.

    Args:
      losses_fn: `points [N, ...] -> [N, ...]` losses at one point of each example, of one
        classifier or of many; called on one candidate at a time.
      attacker: points and probabilities.

    Returns:
      `[...]` mean losses.

    Raises:
      ValueError: if the shapes do not fit or the attack does not hold probabilities.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import games
      >>> points = jnp.array([[[0.1], [0.2]], [[0.3], [0.4]]])  # two examples, two candidates
      >>> attacker = games.Attacker(points, attack=jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      >>> games.score(lambda points: 1.0 * (points[:, 0] > 0.25), attacker)
      Array(0.5, dtype=float32)
    """
    _check_attacker(attacker)

    def candidate_losses(candidate):
        points, probabilities = candidate
        return jnp.tensordot(probabilities, losses_fn(points), axes=1, precision="highest")

    points, attack = jnp.asarray(attacker.points), jnp.asarray(attacker.attack)
    found = jax.eval_shape(losses_fn, points[:, 0])
    checks.shape((len(points), *found.shape[1:]), losses=found)
    candidates = jnp.swapaxes(points, 0, 1), attack.T / len(points)
    mean = jnp.sum(jax.lax.map(candidate_losses, candidates), axis=0)
    checks.within(0.0, sys.float_info.max, **{"the mean losses": mean})
    return mean


def _check_attacker(attacker):
    _tables.check_probabilities(np.shape(attacker.points)[:2], attack=attacker.attack)
