"""Security curves: the accuracy that each attack leaves, against the radius that it is allowed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks
from mixjax.evaluation.batches import equal_batches
from mixjax.evaluation.inputs import check_evaluation, numbered
from mixjax.evaluation.result import score
from mixjax.evaluation.runner import Subject, attack_in_turn, those_that_count
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
    """Attacks the examples within one radius after the other; a new radius compiles nothing.

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
      transform: as of `evaluate`; None: `jax.jit`.

    Returns:
      The `SecurityCurves`.

    Raises:
      ValueError: if an argument is not what it should be, or the list has none of `names`.
    """
    checks.key(key=key)
    checks.non_empty(1, radii=radii)
    radii = np.append(0.0, radii)
    if not np.all(np.diff(radii) > 0):
        raise ValueError(f"radii must be increasing and above 0, got {radii[1:].tolist()}")
    attacks, bounds = numbered(attacks)
    lines = {
        name: (attack, attack.names.index(name))
        for attack in attacks
        for name in attack.names
        if name in names
    }
    if not lines:
        raise ValueError(f"names must be among those of the attacks, got {', '.join(names)}")
    lines = {name: lines[name] for name in names if name in lines}
    runs = [
        (attack._replace(threat=_within(attack.threat, radius)), run)
        for attack, run in lines.values()
        for radius in radii[1:]
    ]
    logits_fn, weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, bounds
    )
    visited = [[] for _ in range(1 + len(runs))]
    found = attack_in_turn(
        key,
        Subject("mixture", *those_that_count(logits_fn, weights), logits_fn, weights),
        images,
        labels,
        runs,
        bounds=bounds,
        num_complete=len(images),
        batch_size=equal_batches(len(images), batch_size),
        transform=transform or jax.jit,
        visit=lambda run, points: visited[run].append(points),
    )
    clean, shape = found.accuracies[:, :1].T, (len(lines), len(radii) - 1, len(images))
    left = found.accuracies[:, 1:].T.reshape(shape)
    points = np.stack([np.concatenate(each) for each in visited[1:]])
    accuracies = {
        name: np.minimum.accumulate([*clean, *within])
        for name, within in zip(lines, left, strict=True)
    }
    accuracies["worst"] = np.min(list(accuracies.values()), axis=0)
    points = points.reshape(*shape, *images.shape[1:])
    return SecurityCurves(radii, accuracies, dict(zip(lines, points, strict=True)))


def _within(threat: Threat | None, radius):
    """The threat with another radius."""
    leaves, structure = jax.tree.flatten(threat)
    return jax.tree.unflatten(structure, [jnp.float32(radius) for _ in leaves])
