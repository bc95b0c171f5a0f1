"""One protocol for all attacks: the names of its parameters say what an attack needs.

`attacks.pgd` needs a `key`, a `loss_fn`, an `x`, a `threat`, an `accuracy_fn` and `bounds`;
`attacks.arc` needs `logits_fn`, `weights` and `label` in place of the loss. What is left, such as
`num_steps`, are numbers that the caller chooses. Your own function can be run wherever the attacks
of this library can, if its parameters have these names.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mixjax import checks, losses, mixture
from mixjax.attacks._steps import once
from mixjax.attacks.auto_pgd import likeliest_wrong
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn

_MOST_TARGETS = 9  # as AutoAttack
_ROUNDING = 1e-6

NEEDS = {
    "key": "a random key",
    "run": "`[]` the number of the run, from 0",
    "loss_fn": "`x -> []` the expected cross-entropy, to raise",
    "accuracy_fn": "`x -> []` the exact expected accuracy, to lower",
    "targeted_loss_fn": "`(x, target) -> []` the expected targeted DLR, to raise",
    "targets": "`[T]` the likeliest wrong classes, 9 at most",
    "score_fn": "`x -> []` the expected errors, then how near the next one is, to raise",
    "margin_fn": "`x -> []` positive while a member of positive weight is right, to lower",
    "logits_fn": "`x -> [L, C]` the members' logits",
    "weights": "`[L]` the members' probabilities",
    "x": "`[...]` the input",
    "label": "`[]` its class",
    "threat": "what may be done to it",
    "bounds": "lowest and highest value of an input",
}


def on_mixture(
    attack: Callable,
    key: Key,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
    threat: Threat | None,
    *,
    bounds: Bounds = (0.0, 1.0),
    run: int | Array = 0,
    **numbers: Any,
) -> tuple[Array, Any]:
    """Runs an attack on one example, whatever it needs: all of `NEEDS` follows from the mixture.

    The members' logits at a point are computed once, however many functions use them.

    Args:
      attack: function that returns `(x_adv, info)` or `x_adv` alone; see `NEEDS` for the names of
        parameters that it is given.
      key: random key; consumed.
      logits_fn: `[...] -> [L, C]`, the members' logits. Built by `ensemble.apply` or `apply_each`,
        a member whose gradient is NaN leaves those of the others; stacked by hand it hides them.
      weights: `[L]` probabilities of the members.
      x: `[...]` one input, inside `bounds`.
      label: `[]` integer class.
      threat: the allowed perturbations. A point that leaves the ball, as those of an attack that
        needs no threat may, is dropped for `x`. None for such an attack: none is dropped.
      bounds: lowest and highest value of an input, numbers or arrays per feature.
      run: number of the run, for attacks that are several.
      **numbers: the attack's other parameters.

    Returns:
      The `[...]` attacked input, and the attack's info, None if it returns none.

    Raises:
      ValueError: if the attack does not know one of `numbers` or needs one that is not given, it
        needs a threat and there is none, or as by the attack itself.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mixjax import attacks, threats
      >>> logits_fn = lambda x: jnp.stack([x, 2 * x])  # two members, two classes
      >>> x_adv, info = attacks.on_mixture(
      ...     attacks.pgd,
      ...     jax.random.key(0),
      ...     logits_fn,
      ...     jnp.array([0.5, 0.5]),
      ...     jnp.array([0.6, 0.4]),
      ...     jnp.int32(0),
      ...     threats.linf(0.2),
      ...     num_steps=5,
      ...     step_size=0.1,
      ... )
      >>> float(info.accuracy)  # both members are fooled
      0.0
    """
    asked = check_numbers(attack, **numbers)
    if threat is not None or "threat" in asked:
        checks.threat(threat=threat)
    ask = once(logits_fn)

    def expected(loss, x):
        return losses.expected(loss, ask(x), label, weights)

    def towards(target):
        return lambda logits, label: losses.targeted_dlr(logits, label, target)

    given = {
        "key": key,
        "run": run,
        "loss_fn": lambda x: expected(losses.cross_entropy, x),
        "targeted_loss_fn": lambda x, target: expected(towards(target), x),
        "accuracy_fn": lambda x: mixture.accuracy(ask(x), label, weights),
        "score_fn": lambda x: _errors_and_leads(ask(x), label, weights),
        "margin_fn": lambda x: losses.accuracy_margin(ask(x), label, weights),
        "logits_fn": ask,
        "weights": weights,
        "x": x,
        "label": label,
        "threat": threat,
        "bounds": bounds,
    }
    if "targets" in asked:
        log_probs = mixture.log_probs(ask(x), weights)
        num_targets = min(_MOST_TARGETS, len(log_probs) - 1)
        given["targets"] = likeliest_wrong(log_probs, label, num_targets)
    found = attack(**{name: given[name] for name in asked}, **numbers)
    x_adv, info = found if isinstance(found, tuple) else (found, None)
    if "threat" not in asked and threat is not None:
        # Rounded coordinates of a point on the edge may lie just outside.
        slack = _ROUNDING * jnp.maximum(1.0, threat.epsilon)
        x_adv = jnp.where(threat.norm(x_adv - x) <= threat.epsilon + slack, x_adv, x)
    return x_adv, info


def check_numbers(attack: Callable, **numbers: Any) -> tuple[str, ...]:
    """The names among `NEEDS` that an attack needs.

    Args:
      attack: as in `on_mixture`; what a `functools.partial` fills in is not needed any more.
      **numbers: the attack's other parameters.

    Raises:
      ValueError: if the attack is no function, does not know one of `numbers`, or needs one that is
        not given.

    Example:
      >>> from mixjax import attacks
      >>> attacks.check_numbers(attacks.fgsm)
      ('loss_fn', 'x', 'threat', 'bounds')
    """
    name = name_of(attack)
    if not callable(attack):
        raise ValueError(f"attack must be a function such as attacks.pgd, got {attack!r}")
    parameters = inspect.signature(attack).parameters
    known = [each for each in parameters if each not in NEEDS]
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [each for each in numbers if each not in known]
    if unknown and not open_ended:
        raise ValueError(f"{name} takes {', '.join(known) or 'no numbers'}, got {unknown[0]}")
    missing = [
        each.name
        for each in parameters.values()
        if each.name in known
        and each.default is each.empty
        and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        and each.name not in numbers
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: pass {missing[0]}=...")
    given = attack.keywords if isinstance(attack, functools.partial) else {}
    return tuple(each for each in parameters if each in NEEDS and each not in given)


def name_of(attack: Any) -> str:
    """The name by which an attack is called in tables and messages."""
    while isinstance(attack, functools.partial):
        attack = attack.func
    return getattr(attack, "__name__", type(attack).__name__)


def _errors_and_leads(logits, label, weights):
    """Expected errors, and between equals how near the members still right are to one."""
    margins = jax.vmap(losses.margin, in_axes=(0, None))(logits, label)
    ahead = jnp.where(margins > 0, margins, 0.0)  # who answers NaN errs, as who is behind
    # A black-box attack needs a slope where the error is a step: between points of equal error the
    # leads decide, squashed to below 1 so that no lead outweighs an error.
    errors = 1.0 - mixture.correct(logits, label)
    return mixture.expected_loss(errors - ahead / (1.0 + ahead), weights)
