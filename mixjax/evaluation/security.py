"""Security curves: the accuracy that each attack leaves, against the radius that it is allowed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, mixture
from mixjax.batch import example_keys, to_float
from mixjax.evaluation.batches import as_pytree, check_evaluation, over_batches
from mixjax.evaluation.budget import BASELINE, EXPECTED_LOSS, MEMBER_AWARE
from mixjax.evaluation.inputs import bounds_of
from mixjax.evaluation.report import score
from mixjax.evaluation.suite import Attack, of_members_that_count
from mixjax.typing import Array, Key, LogitsFn

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


def security_curves(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    images: Any,
    labels: Any,
    attacks_within: Callable[[Array], Sequence[Attack]],
    radii: Any,
    *,
    names: Sequence[str] = CURVES,
    batch_size: int = 50,
    transform: Callable = jax.jit,
) -> SecurityCurves:
    """Attacks the examples within one radius after the other.

    Args:
      key: random key; consumed.
      logits_fn: `x -> [L, C]`, the members' logits on one input.
      weights: `[L]` probabilities of the members.
      images: `[N, ...]` inputs, floats within the bounds of the attacks, or uint8.
      labels: `[N]` integer classes.
      attacks_within: `[] radius -> ` a suite, traced:
        `lambda epsilon: attack_suite(threats.linf(epsilon))`.
      radii: `[R]` increasing, above 0.
      names: which lines of the suite, one run of each; those that it lacks are left out.
      batch_size: number of examples attacked at once, at most.
      transform: what is done to a function of six positional arguments before it is called:
        compiled for one device, or a `shard_map` that splits the last three.

    Raises:
      ValueError: if an argument is not what it should be, or the suite has none of `names`.
    """
    checks.non_empty(1, radii=radii)
    radii = np.append(0.0, radii)
    if not np.all(np.diff(radii) > 0):
        raise ValueError(f"radii must be increasing and above 0, got {radii[1:].tolist()}")
    logits_fn = as_pytree(logits_fn)
    bounds = bounds_of(attacks_within(jnp.float32(radii[1])))
    weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, batch_size, bounds
    )

    def counting(radius):
        return [of_members_that_count(attack, weights) for attack in attacks_within(radius)]

    attack = transform(functools.partial(_attacked, names=names, attacks_within=counting))
    found = [
        over_batches(
            functools.partial(attack, (key, np.float32(radius)), logits_fn, weights),
            images,
            labels,
            batch_size=batch_size,
            bounds=bounds,
        )
        for radius in radii[1:]
    ]
    there = [name for name in names if name in found[0][0]]
    if not there:
        raise ValueError(f"names must be among those of the suite, got {', '.join(names)}")
    accuracies = {
        name: np.minimum.accumulate([found[0][2], *(left[name] for _, left, _ in found)])
        for name in there
    }
    accuracies["worst"] = np.min(list(accuracies.values()), axis=0)
    points = {name: np.stack([at[name] for at, _, _ in found]) for name in there}
    return SecurityCurves(radii, accuracies, points)


def security_report(curves: SecurityCurves) -> dict[str, Any]:
    """The curves, ready for JSON.

    Returns:
      `radii`, `num_examples`, and by attack the lists `accuracy`, `error_bar` and `interval`
      (`wilson_interval`), one entry for each radius.
    """
    scores = {name: [score(left) for left in lefts] for name, lefts in curves.accuracies.items()}
    return {
        "radii": curves.radii.tolist(),
        "num_examples": curves.accuracies["worst"].shape[1],
        **{
            entry: {name: [at[entry] for at in each] for name, each in scores.items()}
            for entry in ("accuracy", "error_bar", "interval")
        },
    }


def _attacked(
    key_and_radius, logits_fn, weights, images, labels, indices, *, names, attacks_within
):
    """`name -> points [B, ...]`, `name -> accuracies there [B]`, and those of the images [B]."""
    key, radius = key_and_radius
    suite = {name: attack for attack in attacks_within(radius) for name in attack.names}

    def accuracy(x, label):
        return jnp.sum(weights * mixture.correct(logits_fn(x), label))

    def one(key, x, label):
        points = {
            name: suite[name].run(
                key, jnp.int32(suite[name].names.index(name)), logits_fn, weights, x, label
            )
            for name in names
            if name in suite
        }
        return points, {name: accuracy(points[name], label) for name in points}, accuracy(x, label)

    return jax.vmap(one)(example_keys(key, indices), to_float(images), labels)
