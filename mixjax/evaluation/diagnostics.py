"""Signs that the attacks are weak and not the mixture strong, each as a finding with its figure.

Most broken defenses break their attacker's gradients: an attack that stands still reports full
robustness. None of these checks proves an evaluation right; each has exposed wrong ones.

References:
  Athalye, Carlini and Wagner, Obfuscated gradients give a false sense of security, 2018,
  section 3.1; Carlini et al., On evaluating adversarial robustness, 2019, sections 4 and 5; Croce
  and Hein, AutoAttack, 2020, whose `flags_doc` names its warnings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, losses, mixture
from mixjax.evaluation.batches import compiled, single
from mixjax.evaluation.inputs import Static, check_evaluation
from mixjax.evaluation.result import Evaluation, Finding
from mixjax.evaluation.suite import (
    BLACK_BOX,
    EXPECTED_LOSS,
    MEMBER_AWARE,
    ON_THE_MIXTURE,
    TRANSFERRED,
)
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, LogitsFn

_REACH = 5.0  # all steps together, in radii: half of them are the usual attack
_ROUNDING = 1e-6
_ROUNDING_OF_SUMS = 1e-3  # of probabilities, whatever their precision was


class _Ascent(NamedTuple):
    """The points of an ascent, `x` first: `[B, T + 1]` each, of the members `[B, T + 1, L]`."""

    loss: Array
    accuracy: Array
    is_flat: Array
    is_nan: Array
    is_distribution: Array


def diagnose(
    logits_fn: LogitsFn,
    weights: Any,
    images: Any,
    labels: Any,
    threat: Threat,
    *,
    num_steps: int = 40,
    num_examples: int = 100,
    bounds: Bounds = (0.0, 1.0),
    transform: Callable = jax.jit,
) -> tuple[Finding, ...]:
    """Probes a mixture by plain gradient ascent on the expected cross-entropy, from `x` itself.

    Args:
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[N, ...]` inputs, floats within `bounds` or uint8, which is scaled to [0, 1].
      labels: `[N]` integer classes.
      threat: the allowed perturbations, in the units of the inputs; not of radius 0.
      num_steps: steps of the ascent, at least 2; their length is 5 radii in all.
      num_examples: number of examples probed at once, evenly spread; all if there are fewer.
      bounds: lowest and highest value of an input.
      transform: what is done to a function of six positional arguments before it is called:
        compiled for one device, or a `shard_map` that splits the last three.

    Returns:
      `vanished_gradients`: share of examples that a member gets right and at which the gradient of
      its cross-entropy is exactly zero; the largest of the members' shares. `stuck_ascent`: share
      of examples that some member gets right and whose expected loss no step raises.
      `one_step_is_stronger`: how much lower the accuracy is after a single step of length epsilon
      than at all points of the ascent. `more_steps_help`: accuracy that the second half of the
      steps takes. `huge_radius_survived`: accuracy left when the whole box is allowed.
      `nan_answers`: share of the points visited at which a member answers NaN, an error of its own
      and no success of an attack; the largest share. `probabilities`: share of the points at which
      a member's outputs are non-negative and sum to 1; the largest share.

    Raises:
      ValueError: if an argument is out of its range.
    """
    checks.at_least(2, num_steps=num_steps)
    checks.at_least(1, num_examples=num_examples)
    checks.threat(threat=threat)
    checks.positive(epsilon=threat.epsilon)
    checks.increasing(bounds=bounds)
    logits_fn, weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, bounds
    )
    num_examples = min(num_examples, len(images))
    rows = np.linspace(0, len(images) - 1, num_examples).astype(np.int32)

    def ascend(weights, radius, step_size=None):
        reach = np.float32(radius), np.float32(step_size or _REACH * radius / num_steps)
        settings = Static(num_steps), *reach, threat, bounds
        batch = images[rows], labels[rows], rows
        points = compiled(_climb, transform)(settings, logits_fn, single(weights), *batch)
        return jax.tree.map(np.asarray, points)

    def lowest(points, num_points=None):
        return float(points.accuracy[:, :num_points].min(axis=1).mean())

    epsilon = float(threat.epsilon)
    low, high = (jnp.broadcast_to(jnp.asarray(end), images.shape[1:]) for end in bounds)
    whole_box = float(threat.norm(high - low))
    members = [ascend(each, epsilon) for each in jnp.eye(len(weights))]
    vanished = [float(np.mean(each.is_flat[:, 0] & (each.accuracy[:, 0] > 0))) for each in members]
    many, one = ascend(weights, epsilon), ascend(weights, epsilon, epsilon)
    huge = ascend(weights, whole_box)
    above = many.loss[:, :1] * (1 + _ROUNDING) + _ROUNDING
    undefined = np.stack([many.is_nan, huge.is_nan], axis=1).mean(axis=(0, 1, 2))
    normalised = many.is_distribution.mean(axis=(0, 1))
    num_points = 2 * many.accuracy.size
    stuck = (many.accuracy[:, 0] > 0) & ~(many.loss > above).any(axis=1)
    findings = (
        (
            "vanished_gradients",
            max(vanished),
            0.01,
            f"share of examples on which member {1 + int(np.argmax(vanished))} is right and the "
            "gradient of its cross-entropy is exactly zero; there no attack on this loss moves",
        ),
        (
            "stuck_ascent",
            float(stuck.mean()),
            0.01,
            f"share of examples not lost on which none of {num_steps} gradient steps raises the "
            "expected loss; neither more steps nor restarts from the example can help there",
        ),
        (
            "one_step_is_stronger",
            lowest(many) - lowest(one, 2),
            0.01,
            f"accuracy that one step of the whole radius takes beyond {num_steps} small ones; the "
            "gradient near the example does not lead where the errors are",
        ),
        (
            "more_steps_help",
            lowest(many, num_steps // 2 + 1) - lowest(many),
            0.02,
            f"accuracy that the second half of {num_steps} steps takes; the ascent has not "
            "converged and longer attacks will report less",
        ),
        (
            "huge_radius_survived",
            lowest(huge),
            0.05,
            f"accuracy left when the radius is {whole_box:.3g} and every input allowed; either "
            "the attack fails or the members are never wrong together",
        ),
        (
            "nan_answers",
            float(undefined.max()),
            0.0,
            f"share of points at which member {1 + int(undefined.argmax())} answers NaN, at "
            f"{round(undefined.max() * num_points)} of {num_points}; that is an error of this "
            "member, and its gradients may blind the attacks on all of them",
        ),
        (
            "probabilities",
            float(normalised.max()),
            0.5,
            f"share of points at which what member {1 + int(normalised.argmax())} answers is "
            "non-negative and sums to 1; logits are due, and their losses are not those of "
            "probabilities: give their logarithms",
        ),
    )
    return tuple(Finding(*each) for each in findings)


def compare_attacks(found: Evaluation) -> tuple[Finding, ...]:
    """What one kind of attack finds and another misses, on the examples that met every run.

    Args:
      found: of a mixture; a comparison that lacks an attack is left out.

    Returns:
      `black_box_is_stronger`: accuracy that the black-box attack takes beyond all others.
      `transfer_is_stronger`: by how much the attacks on single members leave less than those on
      losses of the mixture. `expected_loss_is_blind`: by how much the attacks that know the
      members leave less than AutoPGD on the expected loss. `restarts_help`: accuracy that the
      second half of the restarts on the expected loss takes.
    """
    complete = found.is_complete

    def left(*lines):
        """Accuracy left by these attacks together; None if one is missing."""
        if {*lines} <= {*found.runs} and complete.any():
            return float(found.left(*lines)[complete].mean())
        return None

    others = [name for name in dict.fromkeys(found.runs) if name != BLACK_BOX]
    restarts = 1 + np.flatnonzero(np.isin(found.runs, [EXPECTED_LOSS]))
    first = [0, *restarts[: -(-len(restarts) // 2)]]
    half = None
    if len(restarts) > 1 and complete.any():
        half = float(found.accuracies[complete][:, first].min(axis=1).mean())
    comparisons = (
        (
            "black_box_is_stronger",
            left(*others),
            left(*others, BLACK_BOX),
            0.01,
            "accuracy that a black-box attack takes beyond all attacks by gradient; gradients are "
            "masked",
        ),
        (
            "transfer_is_stronger",
            left(*ON_THE_MIXTURE),
            left(TRANSFERRED),
            0.01,
            "by how much attacks on single members leave less than attacks on losses of the "
            "mixture; those losses are the wrong ones to climb",
        ),
        (
            "expected_loss_is_blind",
            left(EXPECTED_LOSS),
            left(*MEMBER_AWARE),
            0.02,
            "by how much attacks that go member by member leave less than AutoPGD on the "
            "expected loss; do not report the latter",
        ),
        (
            "restarts_help",
            half,
            left(EXPECTED_LOSS),
            0.02,
            f"accuracy that the second half of {len(restarts)} restarts on the expected loss "
            "takes; more restarts will report less",
        ),
    )
    return tuple(
        Finding(name, higher - lower, limit, text)
        for name, higher, lower, limit, text in comparisons
        if higher is not None and lower is not None
    )


def _climb(settings, logits_fn, weights, images, labels, indices):
    """Plain ascent on the expected loss of a batch."""
    del indices
    num_steps, radius, step_size, threat, bounds = settings
    scale = radius / threat.epsilon

    def one(x, label):
        def loss_and_accuracy(point):
            logits = logits_fn(point)
            accuracy = jnp.sum(weights * mixture.correct(logits, label))
            sums_to_one = jnp.abs(jnp.sum(logits, axis=-1) - 1.0) < _ROUNDING_OF_SUMS
            is_distribution = jnp.all(logits >= 0, axis=-1) & sums_to_one
            seen = (accuracy, jnp.any(jnp.isnan(logits), axis=-1), is_distribution)
            return losses.expected(losses.cross_entropy, logits, label, weights), seen

        def step(point, _):
            (loss, (accuracy, *seen)), gradient = jax.value_and_grad(
                loss_and_accuracy, has_aux=True
            )(point)
            gradient = jnp.nan_to_num(gradient)
            delta = point - x + step_size * threat.steepest(gradient)
            moved = jnp.clip(x + scale * threat.project(delta / scale), *bounds)
            return moved, _Ascent(loss, accuracy, jnp.all(gradient == 0), *seen)

        return jax.lax.scan(step, x, length=num_steps.value + 1)[1]

    return jax.vmap(one)(images, labels)
