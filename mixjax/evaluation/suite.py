"""The attacks that a mixture has to survive, as a list that anybody may extend.

No single attack suffices: ascent on the expected loss stalls where the members' gradients cancel
or spends itself on a steep member of little weight, and a member's own attack does not know the
others. So several run, and per example the worst counts. More runs lower a score by themselves:
their number belongs to the suite and not to the mixture, and is the same for every `L`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, losses, mixture
from mixjax.attacks import once, pgd
from mixjax.threats import Threat
from mixjax.typing import AccuracyFn, Array, Bounds, Key, LogitsFn


class Attack(NamedTuple):
    """Attack runs on one example that share a compiled loop.

    Attributes:
      names: for each run, the line of the report on which it counts.
      num_steps: gradient steps of one run.
      run: `(key, run, logits_fn, weights, x, label) -> x_adv`; `run` is the `[]` number of the
        run, from 0 to `len(names) - 1`, traced; `logits_fn: x -> [L, C]`.
      bounds: lowest and highest value of an input, numbers or arrays that fit one input; None if
        the attack does not know: those of the attacks beside it, else [0, 1].
    """

    names: tuple[str, ...]
    num_steps: int
    run: Callable[[Key, Array, LogitsFn, Array, Array, Array], Array]
    bounds: Bounds | None = None


def pgd_attacks(
    threat: Threat,
    *,
    num_runs: int = 12,
    num_steps: int = 20,
    step_size: float,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Attack, ...]:
    """PGD on what a mixture answers and on what each of its members answers.

    A third of the runs climbs the expected cross-entropy, a third `-log` of the mean probability
    of the label, and the rest one member's cross-entropy each, the members taking turns. Every
    run starts at a random point of its own: for `L = 1`, where the three losses are the same one,
    these are `num_runs` different restarts of one attack and none is wasted. Each run returns the
    point of lowest exact expected accuracy on its path, and of highest loss among these.

    Args:
      threat: the allowed perturbations, in the units of the inputs.
      num_runs: number of runs in all, whatever `L`; at least 3, and a third of it at least `L`
        (known, and checked, when the attack meets a mixture).
      num_steps: gradient steps of a run.
      step_size: length of one step in the threat's norm, units of the inputs.
      bounds: lowest and highest value of an input.

    Returns:
      A list of attacks, here of one: all runs share one compiled loop.

    Raises:
      ValueError: if an argument is out of its range.
    """
    checks.at_least(3, num_runs=num_runs)
    checks.at_least(1, num_steps=num_steps)
    checks.positive(step_size=step_size)
    checks.increasing(bounds=bounds)
    share = num_runs // 3
    num_member_runs = num_runs - 2 * share

    def run(key, run, logits_fn, weights, x, label):
        logits_fn = once(logits_fn)

        def loss_fn(x):
            logits = logits_fn(x)
            _check_share(num_runs, num_member_runs, num_members=logits.shape[0])
            member_losses = jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits, label)
            choices = (
                mixture.expected_loss(member_losses, weights),
                -mixture.log_probs(logits, weights)[label],
                member_losses[(run - 2 * share) % logits.shape[0]],
            )
            return jnp.stack(choices)[jnp.minimum(run // share, 2)]

        settings = {"num_steps": num_steps, "step_size": step_size, "bounds": bounds}
        accuracy_fn = expected_accuracy_of(logits_fn, weights, label)
        return pgd(key, loss_fn, x, threat, accuracy_fn=accuracy_fn, **settings)[0]

    names = ("pgd_expected_loss",) * share + ("pgd_mean_probability",) * share
    return (Attack(names + ("pgd_members",) * num_member_runs, num_steps, run, bounds),)


def of_members_that_count(attack: Attack, weights: Any) -> Attack:
    """The attack on a mixture without its members of weight 0; `weights` `[L]` must be known.

    What these answer cannot matter then: it reaches no order of turns, no direction and no draw.
    """
    rows = np.flatnonzero(np.asarray(weights) > 0)
    if len(rows) == len(weights):
        return attack

    def run(key, run, logits_fn, weights, x, label):
        return attack.run(key, run, lambda x: logits_fn(x)[rows], weights[rows], x, label)

    return attack._replace(run=run)


def expected_accuracy_of(logits_fn: LogitsFn, weights: Array, label: Array) -> AccuracyFn:
    """`x -> []`, the exact expected accuracy: of the points of an attack the lowest is returned."""
    return lambda x: mixture.accuracy(logits_fn(x), label, weights)


def _check_share(num_runs, num_member_runs, *, num_members):
    if num_member_runs < num_members:
        raise ValueError(
            f"num_runs must be at least {3 * num_members} for {num_members} members, "
            f"a third of them for the members in turn, got {num_runs}"
        )
