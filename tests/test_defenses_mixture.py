"""Algorithm 2 against NumPy: a linear model on normalised inputs has closed-form gradients."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import defenses, losses, models, threats

D, C, B, L = 6, 3, 8, 3  # inputs, classes, batch, members
SHAPE = (2, 3, 1)
MOMENTUM, WEIGHT_DECAY, FLOOR, BETA = 0.9, 1e-2, 1e-3, 2.0
WEIGHTS = (0.6, 0.1, 0.3)
PATTERN = np.linspace(-0.6, 0.5, D, dtype=np.float32).reshape(SHAPE)


def learning_rate(step):
    return 0.5 / (1.0 + step)


def growing_threat(step):
    return threats.linf(0.05 * (2.0 + step))


def init(key):
    """Members with kernels, running means and running variances of their own."""
    keys = jax.random.split(key, 3)
    mean, var = jax.random.uniform(keys[1], (D,)), 0.2 + jax.random.uniform(keys[2], (D,))
    kernel = jax.random.normal(keys[0], (D, C))
    return {"params": {"kernel": kernel}, "batch_stats": {"mean": mean, "var": var}}


def apply(variables, x, *, train=False):
    """Normalisation of the input, whose statistics move by a quarter, then a linear map."""
    x = x.reshape(*x.shape[: x.ndim - 3], D)
    old = variables["batch_stats"]
    batch = {"mean": x.mean(0), "var": x.var(0)} if train else old
    leading = (1,) * (x.ndim - 1)
    mean, var = (batch[name].reshape(*leading, D) for name in ("mean", "var"))
    logits = (x - mean) / jnp.sqrt(var + FLOOR) @ variables["params"]["kernel"]
    if not train:
        return logits
    new = jax.tree.map(lambda running, now: 0.75 * running + 0.25 * now, old, batch)
    return logits, {**variables, "batch_stats": new}


MODEL = models.Model(init, apply)


def ascend(key, loss_fn, x, threat):
    """A signed step from a fixed place beside `x`; a divergence has no gradient at `x` itself."""
    del key
    delta = threat.epsilon * PATTERN
    delta += 0.8 * threat.epsilon * threat.steepest(jax.grad(loss_fn)(x + delta))
    return x + threat.project(delta), ()


def make(num_members=L, attack=ascend, **settings):
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(1.0, momentum=MOMENTUM)
    )
    settings = {"num_members": num_members, "num_model_steps": 1, **settings}
    return defenses.mixture(MODEL, optimizer, learning_rate, growing_threat, attack, **settings)


def batches(num_steps, size=B):
    random = np.random.default_rng(3)
    images = random.uniform(size=(num_steps, size, *SHAPE)).astype(np.float32)
    return images, random.integers(0, C, (num_steps, size))


def train(defense, state, num_steps):
    """Initial state and the states after each step, with the infos."""
    step, states, infos = jax.jit(defense.step), [state], []
    for images, labels in zip(*batches(num_steps), strict=True):
        state, info = step(state, images, labels)
        states.append(state)
        infos.append(info)
    return states, infos


@functools.cache
def trained(num_members, objective, update, num_steps=6):
    defense = make(
        num_members,
        objective=defenses.trades(BETA) if objective == "trades" else None,
        weighing=defenses.oracle(num_steps=3, loss_bound=4.0),
        weighing_loss=losses.cross_entropy,
        update=update,
        average_decay=0.3,
    )
    state = defense.init(jax.random.key(0))
    weights = jnp.asarray(WEIGHTS if num_members == L else (1.0,))
    return train(defense, state._replace(weights=weights), num_steps)


# --- the same in NumPy, member by member and example by example -------------------------------


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@dataclasses.dataclass
class Member:
    kernel: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    def probabilities(self, x):
        return softmax((x - self.mean) / np.sqrt(self.var + FLOOR) @ self.kernel)

    def input_gradient(self, logit_gradient):
        return self.kernel @ logit_gradient / np.sqrt(self.var + FLOOR)


def member_of(variables, k):
    leaf = {**variables["params"], **variables["batch_stats"]}
    return Member(**{name: np.float64(value[k]) for name, value in leaf.items()})


def slow_attack(members, weights, images, labels, step, objective):
    epsilon, attacked = 0.05 * (2.0 + step), []
    for x, label in zip(images.reshape(-1, D), labels, strict=True):
        start = x + epsilon * PATTERN.reshape(D)
        gradient = np.zeros(D)
        for member, weight in zip(members, weights, strict=True):
            target = member.probabilities(x) if objective == "trades" else np.eye(C)[label]
            gradient += weight * member.input_gradient(member.probabilities(start) - target)
        moved = start - x + 0.8 * epsilon * np.sign(gradient)
        attacked.append(x + np.clip(moved, -epsilon, epsilon))
    return np.array(attacked)


def normalised(member, x):
    """Batch-normalised inputs; the member's running statistics move."""
    member.mean, mean = 0.75 * member.mean + 0.25 * x.mean(0), x.mean(0)
    member.var, var = 0.75 * member.var + 0.25 * x.var(0), x.var(0)
    return (x - mean) / np.sqrt(var + FLOOR)


def slow_loss_and_gradient(member, clean, attacked, labels, objective):
    onehot = np.eye(C)[labels]
    if objective != "trades":
        z = normalised(member, attacked)
        q = softmax(z @ member.kernel)
        return -np.log(q[onehot == 1]).mean(), z.T @ (q - onehot) / len(q)
    z_clean = normalised(member, clean)
    z = normalised(member, attacked)
    p, q = softmax(z_clean @ member.kernel), softmax(z @ member.kernel)
    divergence = (p * np.log(p / q)).sum(1, keepdims=True)
    loss = -np.log(p[onehot == 1]).mean() + BETA * divergence.mean()
    of_clean = p - onehot + BETA * p * (np.log(p / q) - divergence)
    return loss, (z_clean.T @ of_clean + BETA * z.T @ (q - p)) / len(q)


def slow_model_step(state, k, images, labels, step, objective):
    """Loss, member, momentum and average of member `k` after a model step."""
    members = [member_of(state.variables, j) for j in range(len(state.weights))]
    attacked = slow_attack(members, state.weights, images, labels, step, objective)
    member, average = members[k], member_of(state.average, k)
    clean = images.reshape(-1, D).astype(np.float64)
    loss, gradient = slow_loss_and_gradient(member, clean, attacked, labels, objective)
    trace = np.float64(jax.tree.leaves(state.opt_state)[0][k])
    trace = MOMENTUM * trace + gradient + WEIGHT_DECAY * member.kernel
    member.kernel = member.kernel - learning_rate(step) * trace
    decay = min(0.3, (1 + step) / (10 + step))
    for name, value in vars(average).items():
        setattr(average, name, decay * value + (1 - decay) * vars(member)[name])
    return loss, member, trace, average


def on_simplex(v):
    """Euclidean projection by bisection of `sum max(v - shift, 0) = 1`."""
    low, high = v.min() - 1, v.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - low, 0)


def slow_weight_step(state, images, labels, step, objective):
    members = [member_of(state.variables, j) for j in range(L)]
    weights, visited = np.float64(state.weights), []
    for _ in range(3):
        attacked = slow_attack(members, weights, images, labels, step, objective)
        means = np.array(
            [-np.log(m.probabilities(attacked)[np.arange(B), labels]).mean() for m in members]
        )
        visited.append((weights @ means, weights))
        weights = on_simplex(weights - 2.0 / (4.0 * math.sqrt(L * 3)) * means)
    return min(visited, key=lambda pair: pair[0])


CASES = [(1, "at", "one"), (1, "trades", "one"), (L, "at", "one"), (L, "trades", "all")]


@pytest.mark.parametrize(("num_members", "objective", "update"), CASES)
def test_every_step_is_the_one_computed_by_hand(num_members, objective, update):
    states, infos = trained(num_members, objective, update)
    kinds = set()
    for step, (old, new, info, images, labels) in enumerate(
        zip(states, states[1:], infos, *batches(len(infos)), strict=False)
    ):
        kinds.add(bool(info.is_weight_step))
        if info.is_weight_step:
            risk, weights = slow_weight_step(old, images, labels, step, objective)
            np.testing.assert_allclose(info.risk, risk, rtol=1e-5)
            np.testing.assert_allclose(new.weights, weights, atol=1e-5)
            continue
        drawn = [k for k in range(num_members) if changed(old, new)[k]]
        assert len(drawn) == (num_members if update == "all" else 1)
        found = [slow_model_step(old, k, images, labels, step, objective) for k in drawn]
        np.testing.assert_allclose(info.loss, np.mean([each[0] for each in found]), rtol=1e-5)
        for k, (_, member, trace, average) in zip(drawn, found, strict=True):
            pairs = [(member_of(new.variables, k), member), (member_of(new.average, k), average)]
            for ours, slow in pairs:
                for name, value in vars(slow).items():
                    np.testing.assert_allclose(vars(ours)[name], value, atol=2e-5, err_msg=name)
            np.testing.assert_allclose(jax.tree.leaves(new.opt_state)[0][k], trace, atol=2e-5)
    assert kinds == ({False} if num_members == 1 else {False, True})


def changed(old, new):
    """Which members differ in anything: `[L]`."""
    trees = [(state.variables, state.opt_state, state.average) for state in (old, new)]
    leaves = [
        jnp.any(jnp.reshape(a != b, (a.shape[0], -1)), axis=1)
        for a, b in zip(*map(jax.tree.leaves, trees), strict=True)
    ]
    return functools.reduce(jnp.logical_or, leaves)


@pytest.mark.parametrize("objective", ["at", "trades"])
def test_one_member_is_plain_adversarial_training(objective):
    """Written directly: no members, no weights, the learning rate inside the optimiser."""
    states, _ = trained(1, objective, "one")
    variables = jax.tree.map(lambda leaf: leaf[0], states[0].variables)
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(learning_rate, momentum=MOMENTUM)
    )

    def divergence(p, q):
        return (jnp.exp(p) * (p - q)).sum(-1)

    def log_probs(variables, x, train=False):
        logits, new = apply(variables, x, train=True) if train else (apply(variables, x), None)
        return jax.nn.log_softmax(logits), new

    @jax.jit
    def step(variables, opt_state, images, labels, epsilon):
        rows, start = jnp.arange(B), images + epsilon * PATTERN[None]

        def attacked_loss(x):
            q, p = log_probs(variables, x)[0], log_probs(variables, images)[0]
            return jnp.sum(divergence(p, q) if objective == "trades" else -q[rows, labels])

        moved = start - images + 0.8 * epsilon * jnp.sign(jax.grad(attacked_loss)(start))
        attacked = images + jnp.clip(moved, -epsilon, epsilon)

        def loss_fn(params):
            new = {**variables, "params": params}
            if objective == "trades":
                p, new = log_probs(new, images, True)
                q, new = log_probs(new, attacked, True)
                return jnp.mean(-p[rows, labels] + BETA * divergence(p, q)), new
            q, new = log_probs(new, attacked, True)
            return -jnp.mean(q[rows, labels]), new

        grads, new = jax.grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        return new | {"params": optax.apply_updates(variables["params"], updates)}, opt_state

    opt_state = optimizer.init(variables["params"])
    for t, (images, labels) in enumerate(zip(*batches(len(states) - 1), strict=True)):
        variables, opt_state = step(variables, opt_state, images, labels, 0.05 * (2.0 + t))
        found = jax.tree.map(lambda leaf: leaf[0], states[t + 1].variables)
        chex.assert_trees_all_close(found, variables, atol=1e-6)


def test_each_example_and_each_step_has_a_key_of_its_own():
    """A batch of one image again and again: what varies in its statistics is the keys."""
    seen = []

    def noise(key, loss_fn, x, threat):
        return x + jax.random.normal(key, x.shape), ()

    defense = make(1, attack=noise)
    state, step = defense.init(jax.random.key(0)), jax.jit(defense.step)
    for _ in range(3):
        old, (state, _) = state.variables, step(state, jnp.zeros((64, *SHAPE)), jnp.zeros(64, int))
        now = jax.tree.map(lambda a, b: 4 * a[0] - 3 * b[0], state.variables, old)["batch_stats"]
        seen.append(now["mean"])
        assert np.all((0.4 < now["var"]) & (now["var"] < 2.0))
    assert np.abs(seen[0] - seen[1]).min() > 1e-4 and np.abs(seen[1] - seen[2]).min() > 1e-4
