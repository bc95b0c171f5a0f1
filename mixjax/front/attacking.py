"""`mixjax.attack`: the attacked images of a whole batch, from any classifier or mixture."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from mixjax import attacks, batch, checks, parallel
from mixjax.evaluation import batches, inputs
from mixjax.evaluation.passes import named
from mixjax.front.classifiers import members_of
from mixjax.front.progress import Bars
from mixjax.threats import Threat
from mixjax.typing import Bounds, Key


def attack(
    classify: Any,
    images: Any,
    labels: Any,
    threat: Threat,
    method: Callable = attacks.apgd,
    *,
    weights: Any = None,
    key: Key | None = None,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int | None = None,
    progress: bool = True,
    **numbers: Any,
) -> tuple[np.ndarray, Any]:
    """Attacks images: each is moved within the threat to where the classifier errs.

    Of the points that AutoPGD and PGD visit, that of lowest exact expected accuracy is returned.

    Args:
      classify: function of images `[N, ...]` to logits `[N, C]`, or to those of all members of a
        mixture `[L, N, C]`; or a list of functions to `[N, C]`, the members.
      images: `[N, ...]` floats within `bounds`, or uint8, which is scaled to [0, 1].
      labels: `[N]` integer classes.
      threat: the allowed perturbations, in the units of the inputs.
      method: an attack of the library such as `attacks.pgd`, `attacks.arc` or `attacks.square`,
        or a function of your own whose parameters say what it needs; see `attacks.on_mixture`.
      weights: `[L]` probabilities of the members; None: equal ones.
      key: random key; None: `jax.random.key(0)`. The same key gives the same images, whatever the
        batch size.
      bounds: lowest and highest value of an input, numbers or arrays that fit one input.
      batch_size: number of images attacked at once, at most; None: 64 on a CPU, 256 elsewhere.
      progress: whether to show a bar on standard error.
      **numbers: of the attack, such as `num_steps`.

    Returns:
      The attacked images `[N, ...]`, float32, and the attack's info with a leading axis `[N]`: an
      `attacks.AttackInfo` of FGSM, PGD, AutoPGD and Square, an `attacks.MixtureAttackInfo` of ARC
      and the lattice climber; None if the attack returns none. Its `accuracy` `[N]` is the exact
      expected accuracy at these images, 0 where every member errs; FGSM leaves it None.

    Raises:
      ValueError: in one line, before the attack compiles, if an argument is not what it should be.

    Example:
      >>> import jax.numpy as jnp, numpy as np, mixjax
      >>> from mixjax import threats
      >>> classify = lambda x: jnp.stack([x.sum(axis=1), jnp.ones(len(x))], axis=1)
      >>> images, labels = np.array([[0.6, 0.5], [0.9, 0.8]]), np.array([0, 0])
      >>> x_adv, info = mixjax.attack(classify, images, labels, threats.linf(0.1), progress=False)
      >>> info.accuracy  # the first is fooled, the second is out of reach
      array([0., 1.], dtype=float32)
    """
    key = jax.random.key(0) if key is None else key
    checks.key(key=key)
    checks.threat(threat=threat)
    numbers = {name: _plain(value) for name, value in numbers.items()}
    attacks.check_numbers(method, **numbers)
    bounds = batch.low_and_high(bounds)
    images, labels = inputs.checked(images, labels, bounds)
    batch_size = batches.equal_batches(len(images), batch_size)
    images = inputs.as_floats(images)
    members = members_of(classify, weights, images[[0, -1]])
    inputs.check_members(members.logits_fn, members.weights, images.shape[1:], labels)
    weights = batches.single(members.weights)
    # Compiled code is looked up by the numbers that it was made for; an array cannot be looked up.
    arrays = {name: value for name, value in numbers.items() if not _is_hashable(value)}
    known = tuple(entry for entry in numbers.items() if entry[0] not in arrays)
    told = inputs.as_pytree(partial(method, **arrays) if arrays else method), inputs.Static(known)
    arguments = key, *told, members.logits_fn, weights, (threat, bounds)
    transform = parallel.over_examples()
    if transform is None:
        shape = (batch_size, *images.shape[1:])
        _, passes = batches.trace(_attacked, arguments, members.logits_fn, shape)
        transform = batches.for_work(len(images) * passes.cost, members.logits_fn, shape[1:])
    with Bars(progress, unit="image") as bars:
        return batches.over_batches(
            _attacked,
            images,
            labels,
            arguments=arguments,
            transform=transform,
            batch_size=batch_size,
            progress=partial(bars.show, attacks.name_of(method)),
            bounds=bounds,
        )


def _attacked(key, method, known, logits_fn, weights, settings, images, labels, indices):
    threat, bounds = settings
    numbers = dict(known.value)

    def one(key, x, label):
        example = named(logits_fn), weights, x, label
        return attacks.on_mixture(
            inputs.plain(method), key, *example, threat, bounds=bounds, **numbers
        )

    return jax.vmap(one)(batch.example_keys(key, indices), images, labels)


def _is_hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _plain(value):
    """A number as one that can be looked up, a list as an array."""
    if isinstance(value, list):
        return np.asarray(value)
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
