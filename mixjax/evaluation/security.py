"""Security curves: the accuracy that each attack leaves, against the radius that it is allowed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks
from mixjax.evaluation.batches import attack_batch, equal_batches, judge_batch, padded_batches
from mixjax.evaluation.inputs import as_pytree, bounds_of, check_evaluation
from mixjax.evaluation.result import expected_accuracy, score
from mixjax.evaluation.runner import those_that_count
from mixjax.evaluation.suite import BASELINE, EXPECTED_LOSS, MEMBER_AWARE, Attack
from mixjax.threats import Threat
from mixjax.typing import Key, LogitsFn

CURVES = (BASELINE, EXPECTED_LOSS, *MEMBER_AWARE)


class SecurityCurves(NamedTuple):
    """What one run of each of several attacks leaves of `N` examples within `R` radii.

    Attributes:
      radii: `[R + 1]`, 0 first.
      accuracies: for each attack, and for `worst` of them, `[R + 1, N]` exact expected accuracies;
        what is found within a radius counts within all larger ones.
      points: for each attack `[R, N, ...]`, what it found within each radius but 0.
    """

    radii: np.ndarray
    accuracies: dict[str, np.ndarray]
    points: dict[str, np.ndarray]

    def report(self) -> dict[str, Any]:
        """The curves, ready for JSON.

        Returns:
          `radii`, `num_examples`, and by attack the lists `accuracy`, `error_bar` and `interval`
          (`wilson_interval`), one entry for each radius.
        """
        scores = {name: [score(left) for left in lefts] for name, lefts in self.accuracies.items()}
        return {
            "radii": self.radii.tolist(),
            "num_examples": self.accuracies["worst"].shape[1],
            **{
                entry: {name: [at[entry] for at in each] for name, each in scores.items()}
                for entry in ("accuracy", "error_bar", "interval")
            },
        }


def security_curves(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    images: Any,
    labels: Any,
    attacks: Sequence[Attack],
    radii: Any,
    *,
    names: Sequence[str] = CURVES,
    batch_size: int = 50,
    transform: Callable | None = None,
) -> SecurityCurves:
    """Attacks the examples within one radius after the other; the radius compiles nothing anew.

    Args:
      key: random key; consumed.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[N, ...]` inputs, floats within the bounds of the attacks, or uint8.
      labels: `[N]` integer classes.
      attacks: such as `attack_suite(threat)`, whatever the radius of its threat.
      radii: `[R]` increasing, above 0.
      names: which lines of the list, one run of each; those that it lacks are left out.
      batch_size: number of examples attacked at once, at most.
      transform: as of `evaluate`.

    Raises:
      ValueError: if an argument is not what it should be, or the list has none of `names`.
    """
    checks.non_empty(1, radii=radii)
    radii = np.append(0.0, radii)
    if not np.all(np.diff(radii) > 0):
        raise ValueError(f"radii must be increasing and above 0, got {radii[1:].tolist()}")
    bounds = bounds_of(attacks)
    lines = {
        name: attack._replace(
            bounds=bounds, number=number if attack.number is None else attack.number
        )
        for number, attack in enumerate(attacks, 1)
        for name in attack.names
        if name in names
    }
    if not lines:
        raise ValueError(f"names must be among those of the attacks, got {', '.join(names)}")
    logits_fn = as_pytree(logits_fn)
    weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, batch_size, bounds
    )
    batch_size = equal_batches(len(images), batch_size)
    seen, seen_weights = those_that_count(logits_fn, weights)

    def accuracies_and_points(attack, run):
        """What one run of an attack leaves `[N]`, and where `[N, ...]`; None: no attack."""
        left, found = [], []
        for rows, padded in padded_batches(len(images), batch_size):
            batch = images[padded], labels[padded], padded
            points = batch[0]
            if attack is not None:
                points = attack_batch(
                    key, seen, seen_weights, attack, run, *batch, transform=transform
                )
            answers = judge_batch(logits_fn, weights, points, *batch[1:], transform=transform)
            left.append(expected_accuracy(answers.correct, weights)[: len(rows)])
            found.append(np.asarray(points)[: len(rows)])
        return np.concatenate(left), np.concatenate(found)

    clean = accuracies_and_points(None, 0)[0]
    accuracies, points = {}, {}
    for name in (name for name in names if name in lines):
        attack = lines[name]
        within = [
            accuracies_and_points(
                attack._replace(threat=_within(attack.threat, radius)), attack.names.index(name)
            )
            for radius in radii[1:]
        ]
        accuracies[name] = np.minimum.accumulate([clean, *(left for left, _ in within)])
        points[name] = np.stack([found for _, found in within])
    accuracies["worst"] = np.min(list(accuracies.values()), axis=0)
    return SecurityCurves(radii, accuracies, points)


def _within(threat: Threat | None, radius):
    """The threat with another radius."""
    leaves, structure = jax.tree.flatten(threat)
    return jax.tree.unflatten(structure, [jnp.float32(radius) for _ in leaves])
