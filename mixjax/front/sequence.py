"""Members of a mixture trained one after another, each resumable in the middle.

What a `defenses.Succession` says as pure functions is compiled and called here, on one device: a
folder for each member holds its checkpoints, the inputs that were attacked for it and the weights
after it. After a kill the same call continues from there, to the same numbers.
"""

import functools
import io
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, data, ensemble, evaluation, files, games, mixture
from mixjax.batch import example_keys, to_float
from mixjax.defenses import Defense, Past, Succession, uniform
from mixjax.front import loop
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key

SELECTIONS = ("robust_accuracy", "clean_accuracy")
_VALIDATION, _ATTACK = 2**31, 2**31 + 1  # folded into keys; no member has such a number
_MOST_DISPATCHED = 30  # steps at once on an accelerator, which waits for the host between them


class Plan(NamedTuple):
    """How long each member is trained, and what it is chosen by.

    Attributes:
      num_steps: training steps of a member, a multiple of `steps_per_validation`.
      steps_per_validation: steps between two validations, at each of which a checkpoint is written.
      batch_size: images of a step.
      attack_batch_size: images attacked or validated at once.
      num_validation_steps: steps of PGD on the expected loss on validation data.
      augment: `(key, images [B, ...]) -> images`, of images as they were given; None: nothing.
      bounds: lowest and highest value of an image.
    """

    num_steps: int
    steps_per_validation: int
    batch_size: int
    attack_batch_size: int = 256
    num_validation_steps: int = 20
    augment: Callable[[Key, Array], Array] | None = None
    bounds: Bounds = (0.0, 1.0)


class Sequence(NamedTuple):
    """The members in the order in which they came.

    Attributes:
      members: `n` functions `x -> logits [C]`, pytrees of their variables.
      weights: after each member, `[1]` to `[n]`, those of the mixture in double precision.
      stopped: why fewer members were trained than asked for; empty if none are missing.
    """

    members: tuple[Callable[[Array], Array], ...]
    weights: tuple[np.ndarray, ...]
    stopped: str = ""

    def logits_fn(self, num_members: int | None = None) -> Callable[[Array], Array]:
        """`x -> [n, C]` of the first `num_members`, a pytree; all if None."""
        return jax.tree_util.Partial(ensemble_logits, self.members[:num_members])


def train_in_sequence(
    key: Key,
    first: tuple[Model, Defense],
    following: tuple[Model, Succession],
    train: data.Split,
    validation: data.Split,
    threat: Threat,
    plan: Plan,
    *,
    num_members: int,
    folder: pathlib.Path,
    config: dict[str, Any],
    begin: Sequence | None = None,
    select: str = "robust_accuracy",
    num_settling: int = 1000,
    show: bool = True,
) -> Sequence:
    """Trains the members of a mixture one after another.

    Each member is kept as the moving average of its variables, as it was at the validation at which
    the mixture of the members so far and the new one, at the weights proposed for it, was best. For
    one key, member k is the same whatever `num_members` is.

    Args:
      key: random key; consumed.
      first: architecture and training of the first member.
      following: architecture of the others, and how they follow.
      train: `images [N, ...]` floats or uint8, and `labels [N]`.
      validation: the same, by which the best state of each training is chosen.
      threat: ball of the attack on validation data.
      plan: numbers of the training.
      num_members: `n`, at least 1.
      folder: where the members are kept; the same call continues from there.
      config: what the folder belongs to.
      begin: members that are there already, trained anywhere; None: none.
      select: by which accuracy on validation data the *first* member is chosen: the paper's
        `bestAUA` is "robust_accuracy", by which the others are chosen in any case.
      num_settling: number of training examples, the first ones, that are attacked for the
        succession's `settle`.
      show: whether to show bars on standard error.

    Returns:
      A `Sequence`. A member whose training loss is no longer finite ends it: those before are kept,
      with the weights that they had.

    Raises:
      ValueError: if an argument is out of its range, or the folder belongs to another config.
      FloatingPointError: if the loss of the first member is no longer finite.

    References:
      Pinot et al., Randomization matters, 2020, algorithm 1 and supplement, table 3.
    """
    checks.at_least(1, num_members=num_members, num_settling=num_settling)
    checks.one_of(SELECTIONS, select=select)
    _check_plan(plan, len(train.labels))
    model, method = following
    score = _scoring(key, validation, threat, plan)
    sequence = Sequence((), ()) if begin is None else begin
    for index in range(len(sequence.members), num_members):
        init_key, train_key, attack_key, settle_key = jax.random.split(
            jax.random.fold_in(key, index), 4
        )
        place = folder / f"member_{index + 1}"
        proposed = np.ones(1) if index == 0 else method.propose(sequence.weights[-1])
        past = Past(sequence.members, jnp.asarray(proposed, jnp.float32))
        own_model, training = first if index == 0 else (model, method.training)
        images, state = train.images, training.init(init_key)
        if index:
            state = method.start(state, past)
        if index and method.is_attacked:
            path = place / "attacked.npz"
            images = _attacked_once(path, attack_key, method, sequence, train, plan)
        try:
            variables = _trained(
                train_key,
                own_model,
                training,
                state,
                data.Split(images, train.labels),
                past,
                index > 0 and method.sees_past,
                score,
                plan,
                place,
                {**config, "member": index + 1},
                metric=SELECTIONS[0] if index else select,
                show=show,
            )
        except FloatingPointError as error:
            if index == 0:
                raise
            return sequence._replace(stopped=f"member {index + 1}: {error}")
        members = (*sequence.members, jax.tree_util.Partial(own_model.apply, variables))
        weights = proposed
        if index:
            path = place / "weights.json"
            weights = _settled(
                path, settle_key, method, members, proposed, train, plan, num_settling
            )
        sequence = Sequence(members, (*sequence.weights, weights))
    return sequence


class DoubleOracle(NamedTuple):
    """A mixture grown by best responses.

    Attributes:
      sequence: the members in the order in which they came; only the last weights are a mixture of
        all of them, and are the equilibrium's.
      rounds: what each round found, on the training examples of the game.
    """

    sequence: Sequence
    rounds: tuple[games.Round, ...]


def train_by_double_oracle(
    key: Key,
    first: tuple[Model, Defense],
    response: tuple[Model, Defense],
    train: data.Split,
    validation: data.Split,
    threat: Threat,
    plan: Plan,
    attacks: tuple[evaluation.Attack, ...],
    *,
    num_members: int,
    folder: pathlib.Path,
    config: dict[str, Any],
    show: bool = True,
) -> DoubleOracle:
    """Double oracle whose defender answers by trained networks: `games.double_oracle`.

    In each round the attacker answers the weights by the strongest point that `attacks` find for
    each example, and the defender answers the equilibrium's attack by a network trained on points
    drawn from it. Both bounds are 0/1 risks on the training examples: `upper` is that of the
    weights under all points found, and holds for as much as the attacks are strong; `lower` would
    be one of the whole game if no network of the class did better than the one trained.

    Args:
      key: random key; consumed.
      first: architecture and training of the member that the game starts from.
      response: architecture and training of the defender's answers, on inputs drawn for it, such
        as `natural_member`.
      train: `images [N, ...]` floats or uint8, and `labels [N]`.
      validation: the same, by which the best state of each training is chosen.
      threat: ball of the attack on validation data.
      plan: numbers of the training.
      attacks: the attacker's, such as a part of `evaluation.attack_suite`.
      num_members: number of members in the end, at least 2; fewer if the bounds meet.
      folder: where the members and points are kept; the same call continues from there.
      config: what the folder belongs to.
      show: whether to show bars on standard error.

    Returns:
      The `DoubleOracle`.

    Raises:
      ValueError: if an argument is out of its range, or the folder belongs to another config.
      FloatingPointError: if the loss of a member is no longer finite.
    """
    checks.at_least(2, num_members=num_members)
    _check_plan(plan, len(train.labels))
    score = _scoring(key, validation, threat, plan)
    images, labels = np.asarray(to_float(np.asarray(train.images))), np.asarray(train.labels)

    def place(index):
        return folder / f"member_{index + 1}"

    def trained(index, model, training, examples, past):
        init_key, train_key = jax.random.split(jax.random.fold_in(key, index))
        variables = _trained(
            train_key,
            model,
            training,
            training.init(init_key),
            examples,
            Past(past, jnp.asarray(uniform(past), jnp.float32)),
            False,
            score,
            plan,
            place(index),
            {**config, "member": index + 1},
            show=show,
        )
        return jax.tree_util.Partial(model.apply, variables)

    def losses_fn(member, points):
        return _over_data(partial(_errors, (member,)), points, labels, plan)[:, 0]

    def attacker(weights, members, index):
        path = place(index + 1) / "attacked.npz"
        if not path.exists():
            found = evaluation.evaluate(
                jax.random.fold_in(jax.random.fold_in(key, index), _ATTACK),
                jax.tree_util.Partial(ensemble_logits, members),
                weights / weights.sum(),
                images,
                labels,
                attacks,
                alone=False,
                num_complete=0,
                batch_size=plan.attack_batch_size,
            )
            _write_images(path, found.images)
        return files.read_arrays(path)["images"]

    members = [trained(0, *first, data.Split(images, labels), ())]

    def defender(attack, points, index):
        examples = _Drawn(np.stack(points), attack.astype(np.float32), labels)
        members.append(trained(index + 1, *response, examples, tuple(members)))
        return members[-1]

    found, grown = games.double_oracle(
        losses_fn, attacker, members[:1], [images], num_rounds=num_members - 1, defender=defender
    )
    return DoubleOracle(Sequence(tuple(grown.members), (found.weights,)), grown.rounds)


class _Drawn(NamedTuple):
    """Points `[M, N, ...]` of which one is drawn for an example, by `attack [N, M]`."""

    points: Any
    attack: Any
    labels: Any


def ensemble_logits(members: tuple[Callable, ...], x: Array) -> Array:
    """`[L, C]` logits of members of any architectures, for `jax.tree_util.Partial`."""
    return ensemble.apply_each(members, x)


def _check_plan(plan, num_examples):
    names = "num_steps steps_per_validation batch_size attack_batch_size num_validation_steps"
    checks.at_least(1, **{name: getattr(plan, name) for name in names.split()})
    checks.within(1, num_examples, batch_size=plan.batch_size)
    if plan.num_steps % plan.steps_per_validation:
        raise ValueError(
            f"num_steps must be a multiple of steps_per_validation {plan.steps_per_validation}, "
            f"got {plan.num_steps}"
        )


def _trained(
    key, model, training, state, examples, before, sees_past, score, plan, place, config, **settings
):
    """The averaged variables of the best state of one training."""
    # A convolution in a loop is slow backwards on a CPU, which needs no dispatches ahead anyway.
    most = 1 if jax.default_backend() == "cpu" else _MOST_DISPATCHED
    num_at_once = loop.largest_divisor(plan.steps_per_validation, most)
    place.mkdir(parents=True, exist_ok=True)
    best = loop.run(
        loop.Placement(_steps(training.step, plan.batch_size, plan.augment)),
        loop.start(state),
        (key, jax.tree.map(jnp.asarray, examples), before if sees_past else None),
        marks=range(plan.steps_per_validation, plan.num_steps + 1, plan.steps_per_validation),
        dispatch_steps=num_at_once,
        measure=lambda state: score(
            (*before.members, jax.tree_util.Partial(model.apply, state.average)), before.weights
        ),
        folder=place,
        checkpoints=place / "checkpoints",
        config=config,
        name=place.name.replace("_", " "),
        **settings,
    )
    variables = jax.tree.map(jnp.asarray, best.average)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(variables)):
        raise FloatingPointError("its variables are no longer finite: try a lower learning_rate")
    return variables


# Remembered: what is compiled for one member serves the next one, if that does not see the others.
@functools.lru_cache(maxsize=64)
def _steps(step, batch_size, augment):
    def batch(everything, number):
        key, examples, past = everything
        order_key, draw_key = jax.random.split(key)
        draw_key = jax.random.fold_in(draw_key, number)
        picked = data.batch_indices(order_key, number, len(examples.labels), batch_size)
        if isinstance(examples, _Drawn):
            chances = examples.attack[picked]
            drawn = jax.random.categorical(draw_key, jnp.log(chances), axis=-1)
            images = examples.points[drawn, picked]
        else:
            images = examples.images[picked]
        if augment is not None:
            images = augment(jax.random.fold_in(draw_key, 1), images)
        return to_float(images), examples.labels[picked], past

    steps = loop.in_dispatches(step, batch)
    return jax.jit(steps, static_argnums=2, donate_argnums=0)


def _scoring(key, validation, threat, plan):
    """`(members, weights) -> dict`: the accuracies of the mixture so far on validation data."""
    key = jax.random.fold_in(key, _VALIDATION)

    def score(members, weights):
        logits_fn = jax.tree_util.Partial(ensemble_logits, tuple(members))
        found = evaluation.over_batches(
            partial(
                _validated,
                plan.num_validation_steps,
                key,
                logits_fn,
                jnp.asarray(weights, jnp.float32),
                threat,
                plan.bounds,
            ),
            validation.images,
            validation.labels,
            batch_size=min(plan.attack_batch_size, len(validation.labels)),
            bounds=plan.bounds,
        )
        return {"clean_accuracy": found.clean.mean(), "robust_accuracy": found.robust.mean()}

    return score


@partial(jax.jit, static_argnums=0)
def _validated(num_steps, key, logits_fn, weights, threat, bounds, images, labels, indices):
    return evaluation.validate(
        key,
        logits_fn,
        weights,
        to_float(images),
        labels,
        indices,
        threat=threat,
        num_steps=num_steps,
        step_size=threat.step_size(num_steps),
        bounds=bounds,
    )


@partial(jax.jit, static_argnums=0)
def _attacked(attack, key, past, images, labels, indices):
    keys = example_keys(key, indices)
    return jax.vmap(attack, in_axes=(0, None, 0, 0))(keys, past, to_float(images), labels)


@jax.jit
def _errors(members, points, labels, indices):
    """`[B, L]` who errs at the points of a batch."""
    del indices
    logits = jax.vmap(partial(ensemble_logits, members))(points)
    return 1.0 - jax.vmap(mixture.correct)(logits, labels)


def _over_data(batch_fn, images, labels, plan):
    """A compiled function of `(images, labels, indices)` on all examples."""
    return evaluation.over_batches(
        batch_fn,
        np.asarray(images),
        np.asarray(labels),
        batch_size=min(plan.attack_batch_size, len(labels)),
        bounds=plan.bounds,
    )


def _attacked_once(path, key, method, sequence, train, plan):
    """The training images attacked against the members so far, made once."""
    if not path.exists():
        past = Past(sequence.members, jnp.asarray(sequence.weights[-1], jnp.float32))
        batch_fn = partial(_attacked, method.attack, key, past)
        _write_images(path, _over_data(batch_fn, train.images, train.labels, plan))
    return files.read_arrays(path)["images"]


def _settled(path, key, method, members, proposed, train, plan, num_settling):
    """The weights after a member, found once."""
    if not path.exists():
        images, labels = (part[:num_settling] for part in (train.images, train.labels))

        def errors_fn(weights):
            past = Past(members, jnp.asarray(weights, jnp.float32))
            points = _over_data(partial(_attacked, method.attack, key, past), images, labels, plan)
            return _over_data(partial(_errors, members), points, labels, plan)

        weights = np.asarray(method.settle(proposed, errors_fn), np.float64)
        files.write_json(path, {"weights": weights}, "weights")
    return np.asarray(files.read_json(path)["weights"], np.float64)


def _write_images(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, images=np.asarray(images, np.float32))
    files.write(path, content.getvalue())
