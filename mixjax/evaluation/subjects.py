"""Who is attacked: the mixture, each of its members alone, and their average, all equally hard."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, files, mixture
from mixjax.evaluation.batches import as_pytree, check_evaluation
from mixjax.evaluation.inputs import bounds_of
from mixjax.evaluation.outcomes import evaluate_run
from mixjax.evaluation.passes import trace
from mixjax.evaluation.suite import Attack, of_members_that_count
from mixjax.evaluation.turns import CLEAN, Record, Stage, attack_in_turn
from mixjax.typing import Key, LogitsFn


class Evaluation(NamedTuple):
    """A mixture under a suite, and its members and their average each under its own.

    Attributes:
      mixture: the mixture at the points of attacks on the mixture.
      members: each member at the points of attacks on this member.
      averaged: the classifier that answers with the class of highest mean probability, at the
        points of attacks on it.
    """

    mixture: Record
    members: tuple[Record, ...]
    averaged: Record


def evaluate_suite(
    key: Key,
    logits_fn: LogitsFn,
    weights: Any,
    images: Any,
    labels: Any,
    attacks: Sequence[Attack],
    *,
    member_fns: Sequence[LogitsFn] | None = None,
    num_complete: int = 1000,
    batch_size: int | None = None,
    folder: Any = None,
    progress: Callable[[str, int, int], Any] = lambda name, num_done, num_all: None,
    transform: Callable = jax.jit,
) -> Evaluation:
    """Attacks a mixture, each member alone and their average, with the same runs.

    The results depend on neither `batch_size` nor `transform`, up to the rounding of the logits,
    nor on whether the process was killed in between, if there is a `folder`.

    Args:
      key: random key; consumed.
      logits_fn: `x -> [L, C]`, the members' logits on one input; members may come from anywhere.
        What it closes over is compiled in as constants: give large variables as
        `jax.tree_util.Partial(function, variables)`, then they are arguments.
      weights: `[L]` probabilities of the members; the attacks on the mixture know nothing of
        members of weight 0, which are attacked alone as the others.
      images: `[N, ...]` inputs, floats within the bounds of the attacks, [0, 1] if these say
        nothing else, or uint8, which is scaled to [0, 1].
      labels: `[N]` integer classes.
      attacks: as from `attack_suite`; the first ones spare the later ones what they fool.
      member_fns: for each member `x -> [1, C]`; None: its row of `logits_fn`, at `L` times the
        cost.
      num_complete: number of examples, evenly spread, that the mixture defends against every
        run, so that each attack can be judged alone. The others are left alone once no attack can
        lower their expected accuracy, as all are where only the worst counts: for the members
        and the average.
      batch_size: number of examples attacked at once; None: 256, or all if there are fewer.
      folder: where to write down what is done, and to continue from; None: nowhere. It knows
        again all that decides the answers: key, data, weights, what `logits_fn` and the attacks
        compute and with which arrays, and the versions of JAX and of this library.
      progress: called after each batch with the name of who is under attack, the number of
        examples times runs that are done, and of all.
      transform: what is done to `evaluate_run` with its seven positional arguments before the
        loop calls it: compiled for one device, or a `shard_map` that splits the last three.

    Returns:
      An `Evaluation`; `suite_report` turns it into figures. For one member all three are the same.

    Raises:
      ValueError: if images, labels or weights are not what they should be, there are too few runs
        for the members, or `folder` holds another evaluation (the message names the differing
        settings) or is in use by another process.
    """
    checks.at_least(0, num_complete=num_complete)
    logits_fn = as_pytree(logits_fn)
    batch_size = min(256, len(images)) if batch_size is None else batch_size
    weights, images, labels = check_evaluation(
        logits_fn, weights, images, labels, batch_size, bounds_of(attacks)
    )
    num_members = len(weights)
    if member_fns is None:
        rows = np.arange(num_members, dtype=np.int32)
        member_fns = [jax.tree_util.Partial(_member, logits_fn, row) for row in rows]
    if len(member_fns) != num_members:
        raise ValueError(f"member_fns must be {num_members} functions, got {len(member_fns)}")

    def stages_of(attacks):
        return [
            Stage(
                attack,
                transform(functools.partial(evaluate_run, attack=attack, place=place)),
                functools.cache(functools.partial(trace, attack)),
            )
            for place, attack in enumerate((CLEAN, *attacks))
        ]

    stages = of_mixture = stages_of(attacks)
    if not np.all(weights > 0):
        of_mixture = stages_of([of_members_that_count(attack, weights) for attack in attacks])

    def under_attack(name, logits_fn, weights, num_complete, stages=stages):
        return attack_in_turn(
            key,
            as_pytree(logits_fn),
            weights,
            images,
            labels,
            stages,
            num_complete=num_complete,
            batch_size=batch_size,
            folder=None if folder is None else pathlib.Path(folder) / name.replace(" ", "_"),
            progress=functools.partial(progress, name),
        )

    with _alone(folder):
        together = under_attack("mixture", logits_fn, weights, num_complete, of_mixture)
        if num_members == 1:
            return Evaluation(together, (together,), together)
        certain = jnp.ones(1, jnp.float32)
        members = tuple(
            under_attack(f"member {k}", member_fn, certain, 0)
            for k, member_fn in enumerate(member_fns, 1)
        )
        averaged_fn = jax.tree_util.Partial(_averaged, logits_fn, weights)
        return Evaluation(together, members, under_attack("averaged", averaged_fn, certain, 0))


def _alone(folder):
    """Keeps other processes out of the folder; of several hosts the first one does."""
    if folder is None or jax.process_index() > 0:
        return contextlib.nullcontext()
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be written: {error.strerror}") from error
    return files.hold(folder, argument="folder")


def _member(logits_fn, k, x):
    return logits_fn(x)[k][None]


def _averaged(logits_fn, weights, x):
    return mixture.log_probs(logits_fn(x), weights)[None]
