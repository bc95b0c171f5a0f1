"""What trains what in Hamm 2018: data, networks, defences and attackers, and the way to their end.

Units: pixels lie in [0, 1] here, in [-1, 1] in the paper, and so do its radii, eta: `ball` is the
one place that knows, `epsilon = eta / 2`. All networks rescale their input to [-1, 1] themselves;
`defenses.sensitivity` has the paper's penalty as its default.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.hamm_2018.settings import RunConfig
from experiments.hamm_2018.variants import ATTACKERS, STRONG, Attacker, tutorial
from mixjax import attacks, checkpoint, data, defenses, files, models, reporting, threats
from mixjax.front import loop
from mixjax.typing import Array, PyTree, Training


class Setting(NamedTuple):
    """What a config stands for.

    Attributes:
      config: the flags.
      dataset: images in [0, 1], standardised where the paper does.
      model: the classifier.
      network: the attack network.
      folder: of the run.
      command: the command line, for provenance.
      attacker: what the attack network raises and what is made of its output.
    """

    config: Any
    dataset: data.Dataset
    model: models.Model
    network: models.Model
    folder: pathlib.Path
    command: str
    attacker: Attacker = STRONG


def ball(eta: float | Array) -> threats.Threat:
    """The paper's l-inf ball of radius `eta` for pixels in [-1, 1], for pixels in [0, 1]."""
    return threats.linf(eta / 2)


def load(config: RunConfig) -> data.Dataset:
    """The data set, cut to size; CIFAR standardised as in the paper's appendix B."""
    dataset = data.load(
        config.dataset, config.data_dir or None, manual_dir=config.manual_dir or None
    )
    prepare = standardize if config.dataset.startswith("cifar") else data.to_float

    def cut(split, number):
        return data.Split(prepare(split.images[:number]), split.labels[:number])

    return dataclasses.replace(
        dataset,
        train=cut(dataset.train, config.train_examples or None),
        validation=cut(dataset.validation, None),
        test=cut(dataset.test, config.test_examples),
    )


def standardize(images: np.ndarray) -> np.ndarray:
    """Each image minus its mean, over its standard deviation, clipped to +-2, rescaled to [0, 1].

    Args:
      images: `[N, H, W, C]` uint8.

    Returns:
      The float32 images, 0 standing for the paper's -1.
    """
    axes = (1, 2, 3)
    images = data.to_float(images)
    mean, std = images.mean(axes, keepdims=True), images.std(axes, keepdims=True)
    floor = 1 / np.sqrt(images[0].size)  # as in TensorFlow, for an image of one colour
    return (np.clip((images - mean) / np.maximum(std, floor), -2, 2) / 4 + 0.5).astype(np.float32)


def build(config: RunConfig, dataset: data.Dataset) -> tuple[models.Model, models.Model]:
    """The classifier and the attack network."""
    model = classifier(config, dataset, getattr(config, "initialization", "he"))
    return model, attack_network_of(config, dataset, attacker_of(config))


def classifier(config: RunConfig, dataset: data.Dataset, initialization: str) -> models.Model:
    """The classifier; `models.mnist_cnn` from the tutorial's initial weights if it is told so."""
    shape = dataset.image_shape
    model = getattr(models, config.model)(dataset.num_classes, config.width, input_shape=shape)
    return tutorial(model) if initialization == "tutorial" else model


def attacker_of(config: RunConfig) -> Attacker:
    """What the flag `attacker` stands for."""
    return ATTACKERS[getattr(config, "attacker", "strong")]


def attack_network_of(config: RunConfig, dataset: data.Dataset, attacker: Attacker) -> models.Model:
    """An attacker's network for a data set."""
    return models.attack_network(
        dataset.num_classes,
        input_shape=dataset.image_shape,
        hidden=(config.network_width,) * 3,
        dropout=attacker.dropout,
        label_scale=attacker.label_scale,
    )


def stay(key, loss_fn, x, threat):
    """No attack, in the form that defences take."""
    del key, loss_fn, threat
    return x, ()


@functools.cache
def undefended(setting: Setting) -> Callable[[], defenses.Defense]:
    """`() -> Defense`: training on images as they are."""

    def make():
        optimizer = optax.adam(setting.config.learning_rate)
        return defenses.learning_with_adversary(setting.model, optimizer, ball(1.0), stay)

    return make


def under_network(setting: Setting, network: PyTree, loss_fn, x, label, threat) -> Array:
    """The input that a finished attack network makes of one, as judged and as drawn.

    Args:
      setting: with the network and its attacker.
      network: the network's variables.
      loss_fn: `[...] -> []`, the loss of the classifier attacked.
      x: `[...]` one image.
      label: `[]` its label.
      threat: the ball.
    """
    return attacks.attack_network(
        functools.partial(setting.network.apply, network),
        loss_fn,
        x,
        label,
        threat,
        move=setting.attacker.finished,
        bounds=setting.attacker.bounds,
    )[0]


@functools.cache
def attacker(setting: Setting) -> Callable[[Array, PyTree], Training]:
    """`(eta, variables of a classifier) -> Training` of an attack network against it."""

    def raised(variables, x, label):
        return setting.attacker.raised(setting.model.apply(variables, x), label)

    def make(eta, variables):
        return network_training(setting, raised, eta, variables)

    return make


def network_training(setting: Setting, raised, eta, classifier: PyTree) -> Training:
    """Training of the setting's attack network: `raised` is `(classifier, x, label) -> []`."""
    training = attacks.attack_network_training(
        setting.network,
        optax.adam(setting.config.network_learning_rate),
        raised,
        ball(eta),
        move=setting.attacker.move,
        bounds=setting.attacker.bounds,
    )

    def step(state, images, labels):
        return training.step(state, classifier, images, labels)

    return Training(training.init, step)


def train(
    setting: Setting,
    name: str,
    make: Callable[..., Training],
    *args: PyTree,
    num_steps: int,
    measure: Callable[[Any], dict[str, float]] | None = None,
    measurements: int | None = None,
) -> Any:
    """Trains to the end, or goes on from the last checkpoint.

    Leaves `<folder>/<name>/checkpoints` and, if asked to measure, `metrics.jsonl` beside it.

    Args:
      setting: what is trained on what.
      name: folder below that of the run.
      make: `(*args) -> Training`, of a defence or of whatever else learns. The same function is
        compiled once, whatever the `args`: so make it once, and give it what differs from row to
        row as `args`.
      *args: pytrees, traced: a radius, the variables of the opponent.
      num_steps: training steps.
      measure: `state -> numbers`, a line of the metrics each time.
      measurements: how often, at equal distances and at the end, it is called and a checkpoint is
        saved; None: `config.measurements` times.

    Returns:
      The state after `num_steps` steps.

    Raises:
      ValueError: if the folder holds a training of another length or of other `args`.
    """
    config, folder = setting.config, setting.folder / name
    state = make(*args).init(jax.random.fold_in(jax.random.key(config.seed), 0))
    steps = compiled(make, config.seed, config.batch_size, config.dispatch_steps)
    number = min(measurements or config.measurements, num_steps)
    marks = -(-np.arange(1, number + 1) * num_steps // number)  # rounded up
    recorded = {"name": name, "steps": num_steps, "args": identity(args)}
    with reporting.open_run(folder, recorded, resume=True):
        state = loop.run(
            loop.Placement(steps),
            loop.start(state),
            (args, setting.dataset.train),
            marks=marks.tolist(),
            dispatch_steps=config.dispatch_steps,
            measure=measure,
            folder=folder,
            checkpoints=folder / "checkpoints",
            config={},
            metric=None,
            name=name,
        )
    return jax.device_put(state)


def identity(tree: PyTree) -> str:
    """What tells one opponent, radius or classifier from another: all leaves, in 12 characters."""
    text = json.dumps(checkpoint.fingerprints(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=64)
def compiled(make, seed: int, batch_size: int, most: int):
    """`(progress, (args, examples), number) -> (progress, losses [most])`, one program for all."""
    key = jax.random.fold_in(jax.random.key(seed), 1)

    def batch(known, number):
        args, examples = known
        picked = data.batch_indices(key, number, len(examples.labels), batch_size)
        return args, *data.take(examples, picked)

    def step(state, args, images, labels):
        return make(*args).step(state, images, labels)

    return jax.jit(loop.in_dispatches(step, batch, most=most))


def step_costs(setting: Setting, rows: dict[str, tuple]) -> dict[str, float]:
    """Operations of one training step of each row, over those of a step on images as they are.

    They are counted once and stand in `step_costs.json` in the folder of the run.

    Args:
      setting: what is trained on what.
      rows: row to `(make, *args)`, `make` as `(*args) -> Defense`, as in training.
    """
    path = setting.folder / "step_costs.json"
    if not path.exists():
        plain = _operations(setting, undefended(setting))
        found = {row: _operations(setting, *each) / plain for row, each in rows.items()}
        files.write_json(path, found, "step costs")
    return files.read_json(path)


def equal_steps(cost: dict[str, float], steps: int, begun: dict[str, float]) -> dict[str, int]:
    """Steps for each row so that all cost as much as `steps` of the most expensive one.

    Args:
      cost: row to the cost of a step.
      steps: of the most expensive row.
      begun: row to the cost of what it goes on from, which counts as its own.

    Returns:
      Row to its number of steps, at least 1.
    """
    total = steps * max(cost.values())
    return {row: max(1, round((total - begun.get(row, 0.0)) / each)) for row, each in cost.items()}


def costs(cost: dict[str, float], steps: dict[str, int], begun: dict[str, float]) -> dict[str, Any]:
    """What `result.json` says of each row: `cost_of_a_step`, `steps` and `cost`."""
    return {
        row: {
            "cost_of_a_step": each,
            "steps": steps[row],
            "cost": begun.get(row, 0.0) + each * steps[row],
        }
        for row, each in cost.items()
    }


def _operations(setting: Setting, make, *args) -> float:
    images, labels = (part[: setting.config.batch_size] for part in setting.dataset.train)
    defense = make(*args)
    state = jax.eval_shape(defense.init, jax.random.key(0))
    lowered = jax.jit(defense.step).lower(state, jnp.asarray(images), jnp.asarray(labels))
    return float((lowered.cost_analysis() or {})["flops"])
