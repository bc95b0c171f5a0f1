"""The fixed mixtures of two that blind attacks are tried on: linear ones, and a trained pair."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.run.command_line import flag
from mixjax import attacks, data, ensemble, losses, models, threats


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field is a flag; distances are in units of pixels within [0, 1]."""

    # The linear mixtures.
    dimension: int = flag(20, "number of coordinates of an input")
    num_examples: int = flag(200, "examples of each linear mixture")
    linear_epsilon: float = flag(0.1, "radius of the l-inf ball around them, at most .25")
    # The trained pair.
    dataset: str = flag("digits", "data", options=("digits", "mnist", "fashion_mnist"))
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    test_examples: int = flag(200, "test examples attacked, at most")
    epsilon: float = flag(0.2, "radius of the l-inf ball around them, also as a fraction")
    alpha: float = flag(0.1, "weight of the second member")
    width: int = flag(8, "channels of the networks' first stage")
    train_steps: int = flag(300, "training steps of each member")
    train_attack_steps: int = flag(10, "PGD steps of the first member's training attack")
    batch_size: int = flag(64, "examples per training step")
    learning_rate: float = flag(1e-2, "Adam's highest learning rate")
    # The attackers through one loss of all members.
    pgd_runs: int = flag(5, "restarts of PGD on the averaged logits and on the expected loss")
    pgd_steps: int = flag(100, "steps of each")
    # The run.
    seed: int = flag(0, "root of all randomness")
    run_dir: str = flag("", "folder of the run, which must be new; empty: runs/attack_blindness")
    debug: bool = flag(False, "show the traceback of an error")


class Mixture(NamedTuple):
    """A fixed mixture, the examples that it is attacked on, and what is known about it."""

    logits_fn: jax.tree_util.Partial
    weights: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    epsilon: float
    optimum: np.ndarray | None = None  # [N] lowest expected accuracy inside the ball


# Weight of the second member, its steepness, and how far its normal opposes the first one's.
LINEAR_MIXTURES = {"alike": (0.5, 1.0, 0.0), "steep": (0.1, 30.0, 0.0), "opposed": (0.1, 30.0, 0.8)}
MARGIN_OF_PIXELS = 0.25  # of the linear mixtures' inputs to the ends of [0, 1]
PGD_STEP = 0.25  # in radii, whatever the number of steps: Pinot et al. step .008 at .031
SHARPNESS = 1.0  # logits of the first member per unit of distance
DISTANCES = np.array([0.8, 0.3])  # of an example to the members' boundaries on average, in radii


def linear_mixture(config: Config, name: str) -> Mixture:
    """Two binary linear classifiers, right on all examples, and the exact optimum."""
    weight, steepness, opposition = LINEAR_MIXTURES[name]
    generator = np.random.default_rng(config.seed)
    normals = generator.normal(size=(2, config.dimension))
    normals /= np.abs(normals).sum(axis=1, keepdims=True)
    normals[1] = (1 - opposition) * normals[1] - opposition * normals[0]
    normals[1] /= np.abs(normals[1]).sum()  # now l-inf distances are heights
    reach = 0.5 - MARGIN_OF_PIXELS
    x = 0.5 + generator.uniform(-reach, reach, (100 * config.num_examples, config.dimension))
    heights = (x - 0.5) @ normals.T + DISTANCES * config.linear_epsilon
    kept = np.flatnonzero(np.all(heights > 0, axis=1))[: config.num_examples]
    if len(kept) < config.num_examples:
        raise ValueError(
            f"linear_epsilon must leave room for examples that both members get right, "
            f"got {config.linear_epsilon}"
        )
    steep = SHARPNESS * np.array([1.0, steepness])
    weights = np.array([1 - weight, weight])
    return Mixture(
        jax.tree_util.Partial(
            linear_logits,
            jnp.asarray(steep[:, None] * normals, jnp.float32),
            jnp.asarray(steep * DISTANCES * config.linear_epsilon, jnp.float32),
        ),
        weights,
        x[kept].astype(np.float32),
        np.zeros(config.num_examples, np.int32),
        config.linear_epsilon,
        lowest_accuracy(normals, heights[kept], weights, config.linear_epsilon),
    )


def linear_logits(slopes, offsets, x):
    """`[L, 2]` logits, those of class 1 zero: `slopes` `[L, D]`, `offsets` `[L]`, `x` `[D]`."""
    margins = jnp.sum(slopes * (x - 0.5)[None], axis=1) + offsets
    return jnp.stack([margins, jnp.zeros_like(margins)], axis=1)


def lowest_accuracy(normals, margins, weights, epsilon):
    """`[N]` lowest expected accuracy of two linear members within `|delta|_inf <= epsilon`, exact.

    Both can be fooled at once exactly if, for every `t` in [0, 1],
    `t m_1 + (1 - t) m_2 <= epsilon |t n_1 + (1 - t) n_2|_1`: the duality of linear programs. In `t`
    left minus right is concave and piecewise linear, highest at an end or where a coordinate of
    the mixed normal changes its sign.

    Args:
      normals: `[2, D]` gradients of the members' margins.
      margins: `[N, 2]` margins of the examples; a tie is an error.
      weights: `[2]` probabilities of the members.
      epsilon: radius; no bounds on the inputs within it.
    """
    first, second = normals
    turns = second / np.where(first == second, np.inf, second - first)
    shares = np.concatenate([[1.0, 0.0], turns[(turns > 0) & (turns < 1)]])[:, None]
    shares = np.concatenate([shares, 1 - shares], axis=1)  # [T, 2]
    reach = epsilon * np.abs(shares @ normals).sum(axis=1)
    within_reach = margins @ shares.T <= reach  # [N, T]
    alone = np.max(weights * within_reach[:, :2], axis=1)
    return 1 - np.where(within_reach.all(axis=1), weights.sum(), alone)


def boosted_pair(config: Config, dataset: data.Dataset) -> Mixture:
    """The mixture of boosted adversarial training: two networks, the second trained naturally."""
    height, width, channels = dataset.image_shape
    model = models.small_resnet(10, config.width, input_shape=(height, width, channels))
    images = data.to_float(jnp.asarray(dataset.train.images))
    labels = jnp.asarray(dataset.train.labels)
    keys = jax.random.split(jax.random.key(config.seed), 3)

    def attack(key, variables, x, label):
        def loss_fn(x):
            return losses.cross_entropy(model.apply(variables, x), label)

        settings = {"num_steps": config.train_attack_steps, "step_size": PGD_STEP * config.epsilon}
        return attacks.pgd(key, loss_fn, x, threats.linf(config.epsilon), **settings)[0]

    def attack_all(key, variables, images, labels):
        keys = jax.random.split(key, len(labels))
        return jax.vmap(attack, in_axes=(0, None, 0, 0))(keys, variables, images, labels)

    def unchanged(key, variables, images, labels):
        return images

    first = train(keys[0], model, images, labels, config, attack_all)
    attacked_images = jax.jit(attack_all)(keys[1], first, images, labels)
    second = train(keys[2], model, attacked_images, labels, config, unchanged)
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    logits_fn = jax.tree_util.Partial(ensemble.apply, jax.tree_util.Partial(model.apply), members)
    weights = np.array([1 - config.alpha, config.alpha])
    images, labels = (np.asarray(part[: config.test_examples]) for part in dataset.test)
    return Mixture(logits_fn, weights, images, labels, config.epsilon)


def train(key, model: models.Model, images, labels, config: Config, attack_all):
    """Variables of one network after Adam on the cross-entropy of attacked batches."""
    init_key, order_key, attack_key = jax.random.split(key, 3)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.train_steps)
    optimizer = optax.adam(schedule)

    def loss(params, variables, x, y):
        logits, variables = model.apply({**variables, "params": params}, x, train=True)
        return jnp.mean(jax.vmap(losses.cross_entropy)(logits, y)), variables

    def step(carry, number):
        variables, opt_state = carry
        batch = data.batch_indices(order_key, number, len(labels), config.batch_size)
        x, y = images[batch], labels[batch]
        x = attack_all(jax.random.fold_in(attack_key, number), variables, x, y)
        gradient, variables = jax.grad(loss, has_aux=True)(variables["params"], variables, x, y)
        updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return ({**variables, "params": params}, opt_state), None

    @jax.jit
    def run_all(variables):
        carry = (variables, optimizer.init(variables["params"]))
        return jax.lax.scan(step, carry, jnp.arange(config.train_steps))[0][0]

    return run_all(model.init(init_key))
