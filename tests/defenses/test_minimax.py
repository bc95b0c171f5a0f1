"""Training against attack networks, one and several: the steps written out."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, games, losses, models, threats
from tests.perceptron import normalized

C, B = 3, 6
SHAPE = (2, 3, 1)
MODEL = models.linear(C, input_shape=SHAPE)
NETWORK = models.attack_network(C, input_shape=SHAPE, hidden=(5,))
THREAT = threats.linf(0.1)
DOWN, UP, GAMMA = 0.3, 0.2, 4.0


def batch():
    random = np.random.default_rng(3)
    images = random.uniform(size=(B, *SHAPE)).astype(np.float32)
    return images, random.integers(0, C, B)


def losses_under(params, v, network=NETWORK):
    """`[N]` losses of the classifier on the batch that the attack network moved."""

    def one(x, label):
        direction = network.apply({"params": v}, x, label)
        logits = MODEL.apply({"params": params}, attacks.follow(x, direction, THREAT))
        return losses.cross_entropy(logits, label)

    return jax.vmap(one)(*batch())


def mean_loss(params, v):
    return jnp.mean(losses_under(params, v))


SLOPE_IN_V = jax.jit(jax.grad(mean_loss, 1))


@jax.jit
def step_written_out(u, v, penalty, is_alternating):
    """The new parameters of both, and the loss at which the classifier takes its step."""
    new_v = moved(v, jax.grad(mean_loss, 1)(u, v), UP)
    answered = jax.tree.map(lambda new, old: jnp.where(is_alternating, new, old), new_v, v)

    def objective(u):
        norm = optax.tree.norm(jax.grad(mean_loss, 1)(u, answered), squared=True)
        loss = mean_loss(u, answered)
        return loss + penalty / 2 * norm, loss

    slope, loss = jax.grad(objective, has_aux=True)(u)
    return moved(u, slope, -DOWN), new_v, loss


def moved(tree, gradient, rate):
    return jax.tree.map(lambda leaf, slope: leaf + rate * slope, tree, gradient)


def assert_equal(tree, expected):
    for leaf, want in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("penalty", [0.0, GAMMA])
def test_a_step_against_a_network_is_the_game_s(penalty, order):
    method = functools.partial(
        games.minimax, descent=optax.sgd(DOWN), ascent=optax.sgd(UP), penalty=penalty, order=order
    )
    defense = defenses.against_network(MODEL, NETWORK, method, THREAT)
    state = defense.init(jax.random.key(0))
    u, v = state.variables["params"], state.opponent["params"]
    new, info = jax.jit(defense.step)(state, *batch())
    new_u, new_v, loss = step_written_out(u, v, penalty, order == "alternating")
    assert_equal(new.opponent["params"], new_v)
    assert_equal(new.variables["params"], new_u)
    assert float(info.f) == pytest.approx(float(loss), rel=1e-4)
    assert new.step == 1


def test_the_paper_s_attacker_plays_with_the_output_as_it_is():
    """With `squash` and no box the first step of the game is that of `f` written out."""
    free = (-jnp.inf, jnp.inf)
    method = functools.partial(games.minimax, descent=optax.sgd(DOWN), ascent=optax.sgd(UP))
    defense = defenses.against_network(
        MODEL, NETWORK, method, THREAT, move=attacks.squash, bounds=free
    )
    state = defense.init(jax.random.key(0))
    u, v = state.variables["params"], state.opponent["params"]

    def f(u, v):
        def one(x, label):
            z = x + 0.1 * jnp.tanh(NETWORK.apply({"params": v}, x, label))
            return losses.cross_entropy(MODEL.apply({"params": u}, z), label)

        return jnp.mean(jax.vmap(one)(*batch()))

    new, info = jax.jit(defense.step)(state, *batch())
    value_and_slope = jax.jit(jax.value_and_grad(f, 1))
    value, slope = value_and_slope(u, v)
    assert float(info.f) == pytest.approx(float(value), rel=1e-5)
    assert_equal(new.opponent["params"], moved(v, slope, UP))
    several = defenses.against_several(
        MODEL,
        optax.sgd(DOWN),
        THREAT,
        [],
        networks=[NETWORK],
        ascent=optax.sgd(0.0),
        move=attacks.squash,
        bounds=free,
    )
    state = several.init(jax.random.key(0))
    (opponent,) = state.opponent
    _, info = jax.jit(several.step)(state, *batch())
    value, _ = value_and_slope(state.variables["params"], opponent["params"])
    assert float(info.loss) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("make", [games.maximin, games.alternating, games.extragradient])
def test_every_method_of_the_games_trains(make):
    method = functools.partial(make, descent=optax.adam(1e-2), ascent=optax.adam(1e-2))
    defense = defenses.against_network(MODEL, NETWORK, method, THREAT)
    step, state = jax.jit(defense.step), defense.init(jax.random.key(0))
    state, first = step(state, *batch())
    for _ in range(30):
        state, info = step(state, *batch())
    assert info.f < first.f


def test_statistics_come_from_the_batch_that_the_new_network_attacked():
    model = normalized(C, input_shape=SHAPE)
    images, labels = batch()
    method = functools.partial(
        games.alternating, descent=optax.sgd(DOWN), ascent=optax.sgd(50 * UP)
    )
    defense = defenses.against_network(model, NETWORK, method, THREAT)
    state = defense.init(jax.random.key(0))
    new, _ = jax.jit(defense.step)(state, images, labels)

    @jax.jit
    def trained(variables, opponent):
        x, _ = attacks.attack_network_batch(NETWORK, opponent, None, images, labels, THREAT)
        return model.apply(variables, x, train=True)[1]

    expected = trained({**state.variables, "params": new.variables["params"]}, new.opponent)
    assert_equal(new.variables["batch_stats"], expected["batch_stats"])


def blind(key, loss_fn, x, threat):
    """No attack at all."""
    del key, loss_fn, threat
    return x, ()


def fgsm(key, loss_fn, x, threat):
    del key
    return attacks.fgsm(loss_fn, x, threat)


def table(params, attacked_params, vs):
    """`[N, M]` losses without attack, under FGSM on `attacked_params`, and under networks."""

    def loss(params, x, label):
        return losses.cross_entropy(MODEL.apply({"params": params}, x), label)

    def one(x, label):
        point, _ = attacks.fgsm(functools.partial(loss, attacked_params, label=label), x, THREAT)
        return loss(params, x, label), loss(params, point, label)

    columns = [losses_under(params, v) for v in vs]
    return jnp.stack([*columns, *jax.vmap(one)(*batch())], axis=1)


def softmax_mean(values, temperature):
    return temperature * jnp.log(jnp.mean(jnp.exp(values / temperature), axis=-1))


RISKS = {
    "hard": (dict(), lambda table: jnp.max(jnp.mean(table, 0))),
    "smooth": (dict(temperature=0.5), lambda table: softmax_mean(jnp.mean(table, 0), 0.5)),
    "hard, each": (dict(per_example=True), lambda table: jnp.mean(jnp.max(table, 1))),
    "smooth, each": (
        dict(per_example=True, temperature=0.5),
        lambda table: jnp.mean(softmax_mean(table, 0.5)),
    ),
}


@jax.jit
def risks_and_slopes(u, attacked, vs):
    """`name -> (value, gradient)` of every risk."""
    of_each = {}
    for name, (_, risk) in RISKS.items():
        of_each[name] = jax.value_and_grad(lambda u, risk=risk: risk(table(u, attacked, vs)))(u)
    return of_each


@pytest.mark.parametrize("name", RISKS)
def test_of_several_attacks_the_worst_is_descended_and_every_network_learns(name):
    settings, _ = RISKS[name]
    defense = defenses.against_several(
        MODEL,
        optax.sgd(DOWN),
        THREAT,
        [blind, fgsm],
        networks=[NETWORK, NETWORK],
        ascent=optax.sgd(UP),
        **settings,
    )
    state = defense.init(jax.random.key(0))
    u, vs = state.variables["params"], [variables["params"] for variables in state.opponent]
    new, info = jax.jit(defense.step)(state, *batch())
    expected = [moved(v, SLOPE_IN_V(u, v), UP) for v in vs]
    for variables, want in zip(new.opponent, expected, strict=True):
        assert_equal(variables["params"], want)

    value, gradient = risks_and_slopes(u, u, expected)[name]
    assert float(info.loss) == pytest.approx(float(value), rel=1e-4)
    assert_equal(new.variables["params"], moved(u, gradient, -DOWN))
    first, second = (np.asarray(jax.tree.leaves(v)[1]) for v in vs)
    assert abs(first - second).max() > 1e-3


def test_fixed_attacks_alone_need_no_networks():
    defense = defenses.against_several(MODEL, optax.sgd(DOWN), THREAT, [blind, fgsm])
    state = defense.init(jax.random.key(0))
    _, info = jax.jit(defense.step)(state, *batch())
    u = state.variables["params"]
    losses_of_attacks = np.asarray(jax.jit(lambda u: table(u, u, []))(u))
    assert float(info.loss) == pytest.approx(losses_of_attacks.mean(axis=0).max(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(fixed_attacks=[]), "fixed_attacks must not be empty without networks"),
        (dict(fixed_attacks=[fgsm], networks=[NETWORK]), "ascent must be an optimiser for 1"),
        (dict(fixed_attacks=[fgsm], temperature=0.0), "temperature must be positive, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        defenses.against_several(MODEL, optax.sgd(DOWN), THREAT, **settings)
