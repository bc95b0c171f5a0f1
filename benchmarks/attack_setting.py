"""What `attack_peers` attacks: two networks with their images, and the numbers of the attacks."""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import setting
from mixjax import attacks, data, defenses, models, threats
from mixjax.typing import PyTree

NETWORKS = {"digits": 0.1, "resnet18": 1 / 255}  # and the radius of the attacks on it
BATCH_SIZES = {"digits": 128, "resnet18": 16}
ATTACKS = ("pgd", "apgd", "carlini_wagner")
STEP = 0.25  # of PGD, in radii
LEARNING_RATE, INITIAL_CONST = 0.1, 1.0  # of Carlini and Wagner's attack
TRAINING_STEPS, TRAINING_BATCH = 100, 64


class Problem(NamedTuple):
    """One network and the images to attack, on the host, for all sides.

    Attributes:
      name: of the network.
      apply: `(variables, x) -> logits`.
      variables: NumPy leaves.
      images: `[B, H, W, channels]` in [0, 1].
      labels: `[B]`, the classes that the network itself gives: every image can be attacked.
      epsilon: l-inf radius.
      num_steps: gradient steps of PGD and AutoPGD.
      num_adam_steps: those of Carlini and Wagner's attack under one constant.
      num_search_steps: number of constants.
      seed: of the attacks.
    """

    name: str
    apply: Callable[[PyTree, Any], Any]
    variables: PyTree
    images: np.ndarray
    labels: np.ndarray
    epsilon: float
    num_steps: int
    num_adam_steps: int
    num_search_steps: int
    seed: int


class Side(NamedTuple):
    """One library's attack.

    Attributes:
      package: its name, and what it runs on.
      attack: one of `ATTACKS`.
      prepare: compiles if there is something to compile, and returns the call that attacks all
        images: `() -> [B, H, W, channels]`.
      count_calls: `() -> ` forward passes of one call over all images; after a call.
    """

    package: str
    attack: str
    prepare: Callable[[], Callable[[], np.ndarray]]
    count_calls: Callable[[], int]


def problem(flags: argparse.Namespace) -> Problem:
    """The network that the flags name, and its images."""
    if flags.network == "digits":
        model, variables, images = _trained(flags.batch_size, flags.seed)
    else:
        drawn = argparse.Namespace(dtype="float32", attack_steps=flags.steps, **vars(flags))
        random = setting.problem(drawn, 1)
        model, images = setting.build_model(drawn), random.images
        variables = jax.tree.map(lambda leaf: leaf[0], random.variables)
    logits = jax.jit(model.apply)(variables, images)
    return Problem(
        name=flags.network,
        apply=model.apply,
        variables=variables,
        images=images,
        labels=np.asarray(logits).argmax(axis=-1).astype(np.int32),
        epsilon=NETWORKS[flags.network],
        num_steps=flags.steps,
        num_adam_steps=flags.adam_steps,
        num_search_steps=flags.search_steps,
        seed=flags.seed,
    )


def _trained(batch_size, seed):
    """A network that is right about most digits, its variables, and test images."""
    digits, model, threat = data.load("digits"), models.small_resnet(), threats.linf(0.05)
    attack = functools.partial(attacks.pgd, num_steps=1, step_size=threat.epsilon)
    defense = defenses.mixture(model, optax.adam(3e-3), threat, attack, num_members=1)
    generator, step = np.random.default_rng(seed), jax.jit(defense.step)
    images, labels = data.to_float(jnp.asarray(digits.train.images)), digits.train.labels
    state = defense.init(jax.random.key(seed))
    for _ in range(TRAINING_STEPS):
        batch = generator.integers(0, len(labels), TRAINING_BATCH)
        state, _ = step(state, images[batch], labels[batch])
    variables = jax.tree.map(lambda leaf: np.asarray(leaf[0]), state.variables)
    tests = np.asarray(data.to_float(jnp.asarray(digits.test.images)))
    return model, variables, tests[np.arange(batch_size) % len(tests)]
