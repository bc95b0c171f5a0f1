"""`mixjax.train`: from a model and images to a robust mixture, in one call."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixjax import (
    _fingerprint,
    attacks,
    checkpoint,
    checks,
    data,
    defenses,
    ensemble,
    evaluation,
    parallel,
    program,
    reporting,
)
from mixjax.batch import low_and_high, to_float
from mixjax.evaluation import inputs
from mixjax.front import loop
from mixjax.front.trained import KIND, MEMBERS, Run, write
from mixjax.interrupt import Stopped
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key

ORACLE = defenses.oracle_weighing(num_steps=5)
_HELD_OUT, _MOST_HELD_OUT = 0.1, 1000  # of the images; each epoch attacks them all
_MOST_DISPATCHED = 30  # steps at once on an accelerator, which waits for the host between them
_PEAK, _PEAK_AT = 5e-3, 0.3  # of the default learning rate, the place as a part of the run


def train(
    model: Model,
    images: Any,
    labels: Any,
    threat: Threat,
    *,
    num_members: int = 2,
    num_epochs: int = 30,
    folder: str | os.PathLike | None = None,
    key: Key | None = None,
    batch_size: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
    objective: defenses.Objective | None = None,
    attack: Callable[..., tuple[Array, Any]] | None = None,
    num_attack_steps: int = 10,
    ramp: float = 0.3,
    update: str = "all",
    weighing: defenses.Weighing | None = ORACLE,
    num_model_steps: int | None = None,
    num_weight_batches: int = 1,
    average_decay: float = 0.99,
    validation: tuple[Any, Any] | None = None,
    num_validation_steps: int = 20,
    bounds: Bounds = (0.0, 1.0),
    progress: bool = True,
) -> Run:
    """Trains a mixture of classifiers and its weights against an attacker: Algorithm 2.

    The members of the epoch that was most robust on validation data are returned, as the moving
    averages of their variables. Runs on all devices that a batch can be split over evenly.

    Args:
      model: architecture of every member: of `mixjax.models`, or `models.from_linen` or
        `from_nnx` of one's own.
      images: `[N, ...]` floats within `bounds`, or uint8, which is scaled to [0, 1].
      labels: `[N]` integer classes.
      threat: the ball of the attacker, in the units of the scaled images.
      num_members: `L`; 1 is plain adversarial training.
      num_epochs: passes over the images; `num_members` times as many if `update` is "one".
      folder: where to keep checkpoints, metrics and members: the same call continues from there,
        whenever it was stopped, and `mixjax.load` reads it. None: nowhere.
      key: random key; None: `jax.random.key(0)`. The same key gives the same numbers.
      batch_size: images per step; 128 if None, or as many as there are.
      optimizer: of each member, learning rate included; a schedule in it counts that member's
        updates. Adam if None, its rate up to .005 after 30 % of the run and down to 0.
      augment: `(key, images [B, ...]) -> images`, such as `partial(data.augment, pad=2)`, of images
        as they were given; None: nothing.
      objective: what both players raise and lower: `defenses.adversarial_training()` if None, or
        `defenses.trades()`.
      attack: `(key, loss_fn, x, threat) -> (x_adv, info)` on one example; PGD if None.
      num_attack_steps: gradient steps of that PGD, of 2.5 radii together.
      ramp: part of the run over which the radius grows from 0, in [0, 1).
      update: "all" members on each attacked batch, or, as in the paper, "one" of them.
      weighing: how weights are found; `defenses.oracle_weighing(num_steps=5)` by default,
        `defenses.entropic_weighing(...)`, or None: they stay uniform.
      num_model_steps: updates of a member between two weight steps; if None as many as an epoch
        has steps, at most 100.
      num_weight_batches: batches on which a weight step finds the weights.
      average_decay: of the moving average of the variables, in [0, 1); 0: none.
      validation: `(images, labels)` by which the epoch is chosen; None: a tenth of the images, at
        most 1000, is held out.
      num_validation_steps: gradient steps of PGD on these.
      bounds: lowest and highest value of an image.
      progress: whether to show a bar on standard error.

    Returns:
      A `Run`: `members`, functions of a batch of images, `weights [L]`, `history`, `folder`.

    Raises:
      ValueError: in one line, before a step compiles, if an argument is not what it should be or
        `folder` holds a run with other settings, images or model: it names what differs.
      FloatingPointError: if the loss is no longer finite: a lower learning rate may help.
      KeyboardInterrupt: after Ctrl-C, when the state is saved.

    References:
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, algorithm 2.

    Example:
      >>> import mixjax, numpy as np
      >>> from mixjax import models, threats
      >>> labels = np.arange(34) % 2
      >>> images = (0.2 + 0.6 * labels)[:, None, None, None] * np.ones((1, 2, 2, 1))
      >>> model = models.linear(2, input_shape=(2, 2, 1))
      >>> run = mixjax.train(model, images, labels, threats.linf(0.1), num_epochs=2, progress=False)
      >>> len(run.members), run.weights.shape, run.members[0](images).shape
      (2, (2,), (34, 2))
    """
    if not isinstance(model, Model):
        raise ValueError(
            "model must be a mixjax.models.Model, such as models.from_linen(module, input_shape), "
            f"got {type(model).__name__}"
        )
    checks.threat(threat=threat)
    checks.at_least(1, num_members=num_members, num_epochs=num_epochs)
    checks.at_least(1, num_attack_steps=num_attack_steps, num_validation_steps=num_validation_steps)
    checks.fraction(ramp=ramp)
    bounds = low_and_high(bounds)
    key = jax.random.key(0) if key is None else key
    checks.key(key=key)
    examples, held_out = _split(key, images, labels, validation, bounds)
    variables, x = _fitting(model, key, examples, held_out)
    num_examples = len(examples.labels)
    batch_size = min(128, num_examples) if batch_size is None else batch_size
    checks.within(1, num_examples, batch_size=batch_size)
    steps_per_epoch = num_examples // batch_size
    num_steps = num_epochs * steps_per_epoch * (num_members if update == "one" else 1)
    num_model_steps = min(steps_per_epoch, 100) if num_model_steps is None else num_model_steps
    objective = defenses.adversarial_training() if objective is None else objective
    training = defenses.mixture(
        model,
        _adam(num_steps) if optimizer is None else optimizer,
        _growing(threat, ramp * num_steps) if ramp else threat,
        _pgd(objective, num_attack_steps, bounds) if attack is None else attack,
        num_members=num_members,
        objective=objective,
        weighing=weighing,
        num_model_steps=num_model_steps,
        num_weight_batches=num_weight_batches,
        update=update,
        average_decay=average_decay,
        bounds=bounds,
    )
    batches = _batches(augment, num_examples, batch_size, num_weight_batches)
    known = jax.random.fold_in(key, 1), examples  # arguments: another key compiles nothing anew
    progress_at_start = loop.start(training.init(jax.random.fold_in(key, 0)))
    placement, traced, dispatch_steps = _placed(
        training.step, batches, progress_at_start, known, batch_size, steps_per_epoch
    )
    config = {
        "kind": KIND,
        "threat": {"norm": threat.name, "epsilon": float(threat.epsilon)},
        "num_members": num_members,
        "num_epochs": num_epochs,
        "batch_size": batch_size,
        "num_attack_steps": num_attack_steps,
        "ramp": ramp,
        "update": update,
        "num_model_steps": num_model_steps,
        "num_weight_batches": num_weight_batches,
        "average_decay": average_decay,
        "num_validation_steps": num_validation_steps,
        "bounds": [np.asarray(end) for end in bounds],
        "key": _fingerprint.fingerprints(key)[""],
        "examples": _fingerprint.fingerprints(examples._asdict()),
        "validation": _fingerprint.fingerprints(held_out._asdict()),
        # What the names above do not say: optimiser, losses, attack, augmentation, weighing.
        "programs": {
            name: _short(closed)
            for name, closed in {
                "init": jax.make_jaxpr(model.init)(key),
                "model": jax.make_jaxpr(model.apply)(variables, x),
                "step": traced,
            }.items()
        },
        "versions": program.versions(),
    }
    validate = _validation(
        model,
        jax.random.fold_in(key, 2),
        held_out,
        threat,
        num_steps=num_validation_steps,
        bounds=bounds,
        steps_per_epoch=steps_per_epoch,
    )
    with (
        _kept_in(folder) as place,
        reporting.open_run(place, config, resume=True, argument="folder"),
    ):
        try:
            best = loop.run(
                placement,
                progress_at_start,
                known,
                marks=range(steps_per_epoch, num_steps + 1, steps_per_epoch),
                dispatch_steps=dispatch_steps,
                measure=validate,
                folder=place,
                checkpoints=place / "checkpoints",
                config=config,
                show=progress,
            )
        except Stopped as stop:
            if stop.code != 128 + signal.SIGINT:
                raise
            told = "give a folder to keep it" if folder is None else "the same call goes on"
            raise KeyboardInterrupt(f"stopped {stop.where}: {told}") from None
        average = jax.tree.map(jnp.asarray, best.average)
        weights = np.asarray(best.weights)
        if folder is not None and not (place / MEMBERS).exists():
            write(place, model.apply, average, weights, x.shape)
        return Run(
            ensemble.members(model.apply, average),
            weights,
            reporting.read_metrics(place),
            None if folder is None else place,
        )


def _split(key, images, labels, validation, bounds):
    """Examples to train on and to choose the epoch by, as NumPy arrays, none of them in both."""
    images, labels = inputs.checked(images, labels, bounds)
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    if validation is not None:
        held_out = data.Split(*inputs.checked(validation[0], validation[1], bounds))
        if held_out.images.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"validation must hold images of shape {list(images.shape[1:])}, "
                f"got {list(held_out.images.shape[1:])}"
            )
        return data.Split(images, labels), held_out
    if len(images) < 2:
        raise ValueError("images must be 2 at least, to hold one out for validation, got 1")
    num_held_out = min(max(1, int(_HELD_OUT * len(images))), _MOST_HELD_OUT)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 3), len(images)))
    parts = np.sort(order[num_held_out:]), np.sort(order[:num_held_out])
    train, held_out = (data.Split(images[rows], labels[rows]) for rows in parts)
    return train, held_out


def _fitting(model, key, examples, held_out):
    """Shapes of a member's variables and of an image; `ValueError` if model and data do not fit."""
    x = jax.ShapeDtypeStruct(examples.images.shape[1:], jnp.float32)
    variables = jax.eval_shape(model.init, key)
    logits = jax.eval_shape(model.apply, variables, x)
    if len(logits.shape) != 1:
        raise ValueError(
            f"model must return [num_classes] logits for one image, got {list(logits.shape)}"
        )
    for name, each in (("labels", examples.labels), ("validation labels", held_out.labels)):
        checks.within(0, logits.shape[0] - 1, **{name: each})
    return variables, x


def _adam(num_steps):
    """Adam, its rate up and down in straight lines."""
    corners = jnp.array([0.0, _PEAK_AT * num_steps, num_steps])

    def rate(step):
        return _PEAK * jnp.interp(step + 1.0, corners, jnp.array([0.0, 1.0, 0.0]))

    return optax.chain(optax.scale_by_adam(), optax.scale(-1.0), defenses.scale_by_step(rate))


def _growing(threat, num_steps):
    def at(step):
        part = jnp.minimum(1.0, (step + 1.0) / num_steps)
        return dataclasses.replace(threat, epsilon=part * threat.epsilon)

    return at


def _pgd(objective, num_steps, bounds):
    def attack(key, loss_fn, x, threat):
        # A loss that compares with the clean answer has no gradient at the image itself.
        start = defenses.trades_start(threat) if objective.uses_clean else threat
        step_size = threat.step_size(num_steps)
        numbers = {"num_steps": num_steps, "step_size": step_size, "bounds": bounds}
        return attacks.pgd(key, loss_fn, x, threat, start=start, **numbers)

    return attack


def _batches(augment, num_examples, batch_size, num_weight_batches):
    """`((key, examples), step, spread) -> (images, labels, others)`, what a step sees."""

    def batch(data_key, augment_key, number, examples, spread):
        picked = data.batch_indices(data_key, number, num_examples, batch_size)
        images, labels = examples.images[picked], examples.labels[picked]
        if augment is not None:
            images = augment(jax.random.fold_in(augment_key, number), images)
        return spread((to_float(images), labels))

    def batches(known, step, spread):
        key, examples = known
        data_key, augment_key = jax.random.split(key)
        # The other batches of a weight step come in an order of their own.
        other_key, other_augment_key = jax.random.split(jax.random.fold_in(data_key, 1))

        def others(k):
            number = step * (num_weight_batches - 1) + k - 1
            return batch(other_key, other_augment_key, number, examples, spread)

        return *batch(data_key, augment_key, step, examples, spread), others

    return batches


def _placed(step, batches, progress, known, batch_size, steps_per_epoch):
    """Where the steps run, the program of one of them on one device, and how many run at once."""
    # A convolution in a loop is slow backwards on a CPU, which needs no dispatches ahead anyway.
    most = 1 if jax.default_backend() == "cpu" else _MOST_DISPATCHED
    num_steps = -(-steps_per_epoch // -(-steps_per_epoch // most))  # all about equally many

    def compiled(spread):
        steps = loop.in_dispatches(step, partial(_spread_batch, batches, spread))
        return jax.jit(steps, static_argnums=2, donate_argnums=0)

    alone = compiled(lambda batch: batch)
    traced = alone.trace(progress, known, 1).jaxpr
    devices = jax.local_devices()
    devices = devices[: loop.largest_divisor(batch_size, len(devices))]
    if len(devices) == 1:
        return loop.Placement(alone), traced, num_steps
    mesh = Mesh(np.asarray(devices), (parallel.DATA_AXIS,))
    split = NamedSharding(mesh, PartitionSpec(parallel.DATA_AXIS))
    steps = compiled(lambda batch: jax.lax.with_sharding_constraint(batch, split))
    place = partial(parallel.place, mesh=mesh)
    return loop.Placement(steps, place, place), traced, num_steps


def _spread_batch(batches, spread, known, step):
    return batches(known, step, spread)


def _validation(model, key, held_out, threat, *, num_steps, bounds, steps_per_epoch):
    """`training -> dict`: the accuracies of an epoch's averaged members on what was held out."""
    score = (parallel.over_examples() or jax.jit)(
        partial(
            evaluation.validate,
            threat=threat,
            num_steps=num_steps,
            step_size=threat.step_size(num_steps),
            bounds=bounds,
        )
    )
    apply_fn = jax.tree_util.Partial(model.apply)

    def validate(training):
        logits_fn = jax.tree_util.Partial(ensemble.apply, apply_fn, training.average)
        found = evaluation.over_batches(
            partial(score, key, logits_fn, training.weights),
            *held_out,
            batch_size=min(500, len(held_out.labels)),
            bounds=bounds,
        )
        return {
            "epoch": int(training.step) // steps_per_epoch,
            "clean_accuracy": found.clean.mean(),
            "robust_accuracy": found.robust.mean(),
            "weights": training.weights,
        }

    return validate


@contextlib.contextmanager
def _kept_in(folder):
    """The folder, checked; a temporary one if there is none."""
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            yield pathlib.Path(place) / "run"
        return
    checkpoint.check_directory(folder, argument="folder")
    yield pathlib.Path(folder)


def _short(closed):
    """A program with its arrays, in few enough characters for an error message."""
    found = program.fingerprint_of_jaxpr(closed)
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]
