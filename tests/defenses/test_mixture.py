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
from flax import nnx

from mixjax import defenses, ensemble, losses, models, parallel, threats

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
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.sgd(1.0, momentum=MOMENTUM),
        defenses.scale_by_step(learning_rate),
    )
    settings = {"num_members": num_members, "num_model_steps": 1, **settings}
    return defenses.mixture(MODEL, optimizer, growing_threat, attack, **settings)


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
    return jax.device_get((states, infos))


@functools.cache
def trained(num_members, objective, update, num_steps=6):
    defense = make(
        num_members,
        objective=defenses.trades(BETA) if objective == "trades" else None,
        weighing=defenses.oracle_weighing(num_steps=3, loss_bound=4.0),
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
    """Algorithm 1 on the averaged members; the least risk found, and the last weights."""
    members = [member_of(state.average, j) for j in range(L)]
    weights, found = np.float64(state.weights), []
    for _ in range(3):
        attacked = slow_attack(members, weights, images, labels, step, objective)
        means = np.array(
            [-np.log(m.probabilities(attacked)[np.arange(B), labels]).mean() for m in members]
        )
        found.append(weights @ means)
        weights = on_simplex(weights - 2.0 / (4.0 * math.sqrt(L * 3)) * means)
    return min(found), weights


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
        np.any(np.reshape(a != b, (a.shape[0], -1)), axis=1)
        for a, b in zip(*map(jax.tree.leaves, trees), strict=True)
    ]
    return functools.reduce(np.logical_or, leaves)


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


def test_a_schedule_of_optax_counts_the_updates_of_the_member_that_has_it():
    """A rate that is 0 after the first update: each of three members moves once, in its turn."""
    optimizer = optax.sgd(lambda count: jnp.where(count == 0, 0.5, 0.0))
    defense = defenses.mixture(MODEL, optimizer, growing_threat, ascend, num_members=L)
    state, step = defense.init(jax.random.key(1)), jax.jit(defense.step)
    num_moves, num_updates = np.zeros(L, int), 12
    for images, labels in zip(*batches(num_updates), strict=True):
        old, (state, _) = state, step(state, images, labels)
        before, after = (np.asarray(each.variables["params"]["kernel"]) for each in (old, state))
        num_moves += np.any(before != after, axis=(1, 2))
    counts = np.asarray(jax.tree.leaves(state.opt_state)[0])
    assert counts.sum() == num_updates and counts.min() >= 2
    np.testing.assert_array_equal(num_moves, 1)


def test_each_example_and_each_step_has_a_key_of_its_own():
    """A batch of one image again and again: what varies in its statistics is the keys."""
    seen = []

    def noise(key, loss_fn, x, threat):
        return x + jax.random.normal(key, x.shape), ()

    defense = make(1, attack=noise)
    state, step = defense.init(jax.random.key(0)), jax.jit(defense.step)
    for _ in range(3):
        old = jax.device_get(state.variables["batch_stats"])
        state, _ = step(state, np.zeros((64, *SHAPE), np.float32), np.zeros(64, np.int32))
        new = jax.device_get(state.variables["batch_stats"])
        now = jax.tree.map(lambda a, b: 4 * a[0] - 3 * b[0], new, old)
        seen.append(now["mean"])
        assert np.all((0.4 < now["var"]) & (now["var"] < 2.0))
    assert np.abs(seen[0] - seen[1]).min() > 1e-4 and np.abs(seen[1] - seen[2]).min() > 1e-4


# --- dropout, and what is no floating-point number -----------------------------------------------


def noisy_apply(variables, x, *, train=False, key=None):
    """A constant, and in training dropout's draw instead: the loss tells which key there was."""
    logits = jnp.broadcast_to(variables["params"]["bias"], (*x.shape[:-3], C))
    if not train:
        return logits
    draw = jnp.zeros(()) if key is None else jax.random.normal(key)
    return logits.at[..., 0].add(draw), variables


NOISY = models.Model(lambda key: {"params": {"bias": jnp.zeros(C)}}, noisy_apply)


@functools.cache
def draws(update, objective=None):
    """What dropout drew in four steps: the loss is `log(exp(draw) + 2) - draw` for label 0."""
    defense = defenses.mixture(
        NOISY,
        optax.sgd(0.0),
        threats.linf(0.1),
        lambda key, loss_fn, x, threat: (x, ()),
        num_members=L,
        objective=objective,
        update=update,
    )
    state, step, seen = defense.init(jax.random.key(1)), jax.jit(defense.step), []
    for _ in range(4):
        state, info = step(state, jnp.zeros((B, *SHAPE)), jnp.zeros(B, int))
        seen.append(float(info.loss))
    return np.array(seen)


def test_dropout_draws_anew_in_every_step_and_for_every_member():
    one, every = draws("one"), draws("all")
    assert len(set(np.round(one, 5))) == 4 and np.all(np.abs(one - np.log(3)) > 1e-4)
    # The mean over members is none of theirs: they would agree if they shared a draw.
    key = jax.random.split(jax.random.key(1))[1]
    for number in (0, 2, 0):  # the step, its third use, the first device
        key = jax.random.fold_in(key, number)
    each = [jax.random.split(jax.random.fold_in(key, k))[1] for k in range(L)]
    draw = np.asarray(jax.vmap(jax.random.normal)(jnp.stack(each)))
    np.testing.assert_allclose(every[0], np.mean(np.log(np.exp(draw) + 2) - draw), rtol=1e-5)


def test_the_clean_and_the_attacked_pass_of_trades_draw_apart():
    """With one draw for both the divergence would be 0 and the weight of it of no effect."""
    light, heavy = (draws("one", defenses.trades(beta)) for beta in (0.0, 6.0))
    assert np.all(heavy > light + 1e-3)


THREAT = threats.linf(0.1)


def stay(key, loss_fn, x, threat):
    return x, ()


@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param(functools.partial(defenses.sensitivity, clean_weight=0.5), id="sensitivity"),
        pytest.param(defenses.learning_with_adversary, id="learning with an adversary"),
        pytest.param(
            functools.partial(defenses.cat_and_mouse, num_steps_per_round=2), id="cat and mouse"
        ),
        pytest.param(
            lambda model, optimizer, threat, attack: defenses.against_several(
                model, optimizer, threat, [attack]
            ),
            id="several attacks",
        ),
    ],
)
def test_dropout_reaches_every_trainer(trainer, key):
    defense = trainer(NOISY, optax.sgd(0.0), THREAT, stay)
    state, step, seen = defense.init(key), jax.jit(defense.step), []
    for _ in range(3):
        state, info = step(state, jnp.zeros((B, *SHAPE)), jnp.zeros(B, int))
        seen.append(float(info.loss))
    assert len(set(np.round(seen, 5))) == 3
    assert np.all(np.abs(np.array(seen) - np.log(3)) > 1e-4)


@pytest.mark.parametrize("are_large", [False, True])
@pytest.mark.parametrize("axis", [None, parallel.DATA_AXIS])
def test_random_keys_and_counters_are_the_newest_on_every_side(axis, are_large, key, monkeypatch):
    """What NNX modules with dropout keep among their statistics: no mean of them makes sense."""
    monkeypatch.setattr(ensemble, "_LARGE_MEMBER", 1 if are_large else 100)

    def init(key):
        state = {"stream": jax.random.key(7), "count": jnp.zeros((), jnp.uint32)}
        return {
            "params": {"bias": jnp.zeros(C)},
            "batch_stats": state | {"mean": jnp.zeros(())},
        }

    def apply(variables, x, *, train=False):
        logits = jnp.broadcast_to(variables["params"]["bias"], (*x.shape[:-3], C))
        if not train:
            return logits
        old = variables["batch_stats"]
        new = {
            "stream": jax.random.fold_in(old["stream"], 1),
            "count": old["count"] + 1,
            "mean": jnp.mean(x),
        }
        return logits, {**variables, "batch_stats": new}

    def run(axis):
        defense = defenses.mixture(
            models.Model(init, apply),
            optax.sgd(0.1),
            threats.linf(0.1),
            lambda key, loss_fn, x, threat: (x, ()),
            num_members=2,
            update="all",
            average_decay=0.5,
            data_axis=axis,
        )

        def step(state, batch):
            return defense.step(state, *parallel.local_share(batch, axis))

        batch = tuple(part[0] for part in batches(1))
        if axis is None:
            return defense.init(key), jax.jit(step)(defense.init(key), batch)[0]
        mesh = parallel.mesh(devices=jax.devices("cpu")[:2])
        spec = parallel.state_spec(defense.init(key), ())
        state, batch = (parallel.place(each, mesh) for each in (defense.init(key), batch))
        return defense.init(key), parallel.shard_step(step, mesh, spec)(state, batch)[0]

    old, new = run(axis)
    stream = jax.vmap(lambda key: jax.random.fold_in(key, 1))(
        old.variables["batch_stats"]["stream"]
    )
    for tree in (new.variables, new.average):
        found = tree["batch_stats"]
        np.testing.assert_array_equal(
            jax.random.key_data(found["stream"]), jax.random.key_data(stream)
        )
        np.testing.assert_array_equal(found["count"], [1, 1])
        assert found["count"].dtype == jnp.uint32
    mean = batches(1)[0].mean()
    np.testing.assert_allclose(new.variables["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(new.average["batch_stats"]["mean"], 0.9 * mean, rtol=1e-5)


def test_large_members_take_the_step_of_small_ones(key, monkeypatch):
    """One after the other on a CPU, where small ones work side by side."""

    def stepped(least):
        monkeypatch.setattr(ensemble, "_LARGE_MEMBER", least)
        defense = defenses.mixture(
            MODEL,
            optax.sgd(0.1, momentum=MOMENTUM),
            threats.linf(0.1),
            ascend,
            num_members=L,
            update="all",
            average_decay=0.5,
        )
        batch = tuple(part[0] for part in batches(1))
        return jax.jit(defense.step)(defense.init(key), *batch)

    (large, info), (small, expected) = stepped(1), stepped(10**6)
    chex.assert_trees_all_close(large._replace(key=()), small._replace(key=()), rtol=1e-5)
    np.testing.assert_allclose(info.loss, expected.loss, rtol=1e-5)


def test_networks_of_nnx_with_dropout_can_be_trained(key):
    class Network(nnx.Module):
        def __init__(self, *, rngs):
            self.dense = nnx.Linear(D, C, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dense(self.dropout(x.reshape(x.shape[0], -1)))

    defense = defenses.mixture(
        models.from_nnx(lambda rngs: Network(rngs=rngs), SHAPE),
        optax.sgd(0.1),
        threats.linf(0.1),
        ascend,
        num_members=2,
        weighing=defenses.oracle_weighing(num_steps=1),
        num_model_steps=1,
        average_decay=0.9,
    )
    state, step = defense.init(key), jax.jit(defense.step)
    for images, labels in zip(*batches(3), strict=True):
        state, info = step(state, images, labels)
    assert info.is_weight_step and not np.allclose(state.weights, 0.5)


# --- weights on several batches, and 64-bit JAX ------------------------------------------------


def test_weights_may_be_found_on_several_batches():
    """Three batches of eight as one of twenty-four: the same weights, whatever the loop."""
    images, labels = batches(3)
    settings = {
        "weighing": defenses.oracle_weighing(num_steps=3, loss_bound=4.0),
        "weighing_loss": losses.cross_entropy,
    }
    apart = make(num_weight_batches=3, **settings)
    state = apart.init(jax.random.key(0))._replace(weights=jnp.asarray(WEIGHTS), step=jnp.int32(3))

    @jax.jit
    def on_several(state, images, labels):
        return apart.step(state, images[0], labels[0], lambda k: (images[k], labels[k]))

    found, info = on_several(state, images, labels)
    whole = images.reshape(-1, *SHAPE), labels.reshape(-1)
    want, want_info = jax.jit(make(**settings).step)(state, *whole)
    assert info.is_weight_step and want_info.is_weight_step
    np.testing.assert_allclose(found.weights, want.weights, atol=1e-6)
    np.testing.assert_allclose(info.risk, want_info.risk, rtol=1e-6)
    first, _ = on_several(state, images[[0, 0, 0]], labels[[0, 0, 0]])
    assert np.abs(np.asarray(first.weights) - np.asarray(want.weights)).max() > 1e-3
    with pytest.raises(ValueError, match="batches must be a function of the numbers 1 to 2"):
        apart.step(state, images[0], labels[0])


@pytest.mark.parametrize(("weighing", "dtype"), [("oracle", np.float32), ("entropic", np.float64)])
def test_both_kinds_of_step_work_under_64_bit_jax(weighing, dtype):
    with jax.enable_x64():
        weigh = {
            "oracle": defenses.oracle_weighing(num_steps=2),
            "entropic": defenses.entropic_weighing(num_steps=2, temperature=0.1, num_samples=1),
        }[weighing]
        defense = make(2, weighing=weigh, average_decay=0.9)
        state, step = defense.init(jax.random.key(0)), jax.jit(defense.step)
        before = jax.tree.map(lambda leaf: leaf.dtype, state)
        for images, labels in zip(*batches(3), strict=True):
            state, info = step(state, images.astype(dtype), labels)
        assert info.is_weight_step
        assert before == jax.tree.map(lambda leaf: leaf.dtype, state)
        np.testing.assert_allclose(state.weights.sum(), 1.0, atol=1e-6)
