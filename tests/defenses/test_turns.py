"""Algorithm 2's order of play: which step does what to whom, whatever the numbers."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, models, threats

L, SHAPE, WEIGHTS = 3, (2, 3, 1), (0.6, 0.1, 0.3)


def stay(key, loss_fn, x, threat):
    """Stands in for an attack: cheap."""
    del key, loss_fn, threat
    return x, ()


def swap(key, losses_fn, attack_fn, sample_fn, weights, axis_name):
    """Stands in for a weight step: cheap, and the weights move each time."""
    del key, losses_fn, attack_fn, sample_fn, axis_name
    return jnp.roll(weights, 1), jnp.ones(())


def make(attack=stay, **settings):
    settings = {"num_members": L, "num_model_steps": 1, **settings}
    model, threat = models.linear(3, input_shape=SHAPE), threats.linf(0.1)
    optimizer = optax.sgd(0.1, momentum=0.9)
    return defenses.mixture(model, optimizer, threat, attack, **settings)


def batch():
    random = np.random.default_rng(3)
    return random.uniform(size=(8, *SHAPE)).astype(np.float32), random.integers(0, 3, 8)


def changed(old, new):
    """Which members differ in anything: `[L]`."""
    trees = [(state.variables, state.opt_state, state.average) for state in (old, new)]
    leaves = [
        jnp.any(jnp.reshape(a != b, (a.shape[0], -1)), axis=1)
        for a, b in zip(*map(jax.tree.leaves, trees), strict=True)
    ]
    return functools.reduce(jnp.logical_or, leaves)


def play(defense, num_steps):
    """`changed [T, L]`, weights `[T + 1, L]` and the infos of a whole run in one program."""
    images, labels = batch()

    @jax.jit
    def run(state):
        def step(state, _):
            new, info = defense.step(state, images, labels)
            return new, (changed(state, new), new.weights, info)

        return jax.lax.scan(step, state, length=num_steps)[1]

    state = defense.init(jax.random.key(4))
    state = state._replace(weights=jnp.asarray(WEIGHTS))
    moved, weights, info = jax.device_get(run(state))
    return moved, np.concatenate([state.weights[None], weights]), info


@pytest.mark.parametrize(
    ("update", "weight_steps"), [("one", [7, 14, 21]), ("all", [3, 6, 9, 12, 15, 18, 21])]
)
def test_members_and_weights_take_turns(update, weight_steps):
    """Two model steps per member, three members: t mod 7 == 0, or mod 3 if all learn at once."""
    moved, weights, info = play(make(num_model_steps=2, weighing=swap, update=update), 21)
    assert (np.flatnonzero(info.is_weight_step) + 1).tolist() == weight_steps
    for t in range(21):
        if info.is_weight_step[t]:
            assert not moved[t].any() and info.loss[t] == 0 and info.risk[t] == 1
            np.testing.assert_array_equal(weights[t + 1], np.roll(weights[t], 1))
        else:
            assert moved[t].sum() == (1 if update == "one" else L)
            assert info.loss[t] > 0 and info.risk[t] == 0
            np.testing.assert_array_equal(weights[t + 1], weights[t])


@pytest.mark.parametrize("settings", [{"weighing": None}, {"weighing": swap, "num_members": 1}])
def test_without_a_weighing_or_a_second_member_every_step_is_a_model_step(settings):
    defense = make(**settings)
    step = jax.eval_shape(defense.init, jax.random.key(0))
    assert "cond" not in str(jax.make_jaxpr(defense.step)(step, *batch()))


def test_members_are_drawn_uniformly_and_not_in_turn():
    """Chi-squared with 2 degrees of freedom exceeds 13.8 once in a thousand keys."""
    moved, _, _ = play(make(), 600)
    drawn = moved.argmax(1)
    counts = np.bincount(drawn, minlength=L)
    assert ((counts - 200) ** 2 / 200).sum() < 13.8
    pairs = np.bincount(L * drawn[:-1] + drawn[1:], minlength=L * L)
    assert pairs.min() > 40  # each follows each: about 66 times


def test_pgd_with_its_numbers_filled_in_is_an_attack():
    attack = functools.partial(attacks.pgd, num_steps=2, step_size=0.05)
    weighing = defenses.entropic_weighing(num_steps=2, temperature=0.5, num_samples=2)
    defense = make(attack, weighing=weighing, update="all")
    state, step = defense.init(jax.random.key(0)), jax.jit(defense.step)
    for _ in range(2):
        state, info = step(state, *batch())
    assert info.is_weight_step and abs(state.weights.sum() - 1) < 1e-6
    assert state.weights.min() >= 0 and np.ptp(state.weights) > 1e-3


def test_a_fresh_state_has_different_members_equal_weights_and_can_be_donated(key):
    defense = make()
    state = defense.init(key)
    np.testing.assert_allclose(state.weights, np.full(L, 1 / L), rtol=1e-6)
    (_, kernel) = jax.tree.leaves(state.variables)
    assert kernel.shape == (L, 6, 3) and np.abs(kernel[0] - kernel[1]).max() > 0.1
    chex.assert_trees_all_equal(state.average, state.variables)
    donated, _ = jax.jit(defense.step, donate_argnums=0)(state, *batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.average))
    assert donated.step == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_members": 0}, "num_members must be a whole number of at least 1, got 0"),
        ({"num_model_steps": 0}, "num_model_steps must be a whole number of at least 1, got 0"),
        ({"update": "some"}, "update must be one of one, all, got some"),
        ({"average_decay": 1.0}, "average_decay must be in [0, 1), got 1.0"),
        ({"average_decay": -0.1}, "average_decay must be in [0, 1), got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**settings)
