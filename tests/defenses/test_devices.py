"""Defences of one classifier on four devices: the same steps as on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, games, models, parallel, threats

DEVICES, C, SHAPE = jax.devices("cpu")[:4], 3, (4, 4, 1)
THREAT = threats.linf(0.2)
NETWORK = models.attack_network(C, input_shape=SHAPE, hidden=(5,))


def pgd(key, loss_fn, x, threat):
    """With a random start: each example needs the key that it has on one device."""
    return attacks.pgd(key, loss_fn, x, threat, num_steps=1, step_size=0.1)


def weaker(key, loss_fn, x, threat):
    """Worst on some devices' parts of a batch only."""
    del key, loss_fn
    return x + threat.project(jnp.full_like(x, threat.epsilon)), ()


def minimax(penalty):
    def make(model, axis):
        method = functools.partial(
            games.minimax,
            descent=optax.sgd(0.1),
            ascent=optax.sgd(0.3),
            penalty=penalty,
            data_axis=axis,
        )
        return defenses.against_network(model, NETWORK, method, THREAT, data_axis=axis)

    return make


def maximin(model, axis):
    method = functools.partial(
        games.maximin, descent=optax.sgd(0.1), ascent=optax.sgd(0.3), data_axis=axis
    )
    return defenses.against_network(model, NETWORK, method, THREAT, data_axis=axis)


def several(per_example):
    def make(model, axis):
        return defenses.against_several(
            model,
            optax.sgd(0.1),
            THREAT,
            (pgd, weaker),
            networks=(NETWORK,),
            ascent=optax.sgd(0.3),
            temperature=0.05,
            per_example=per_example,
            data_axis=axis,
        )

    return make


MAKE = {
    "sens": lambda model, axis: defenses.sensitivity(
        model, optax.sgd(0.1), THREAT, pgd, penalty=3.0, clean_weight=0.3, data_axis=axis
    ),
    "lwa": lambda model, axis: defenses.learning_with_adversary(
        model, optax.sgd(0.1), THREAT, pgd, data_axis=axis
    ),
    "cat and mouse": lambda model, axis: defenses.cat_and_mouse(
        model, optax.sgd(0.1), THREAT, pgd, num_steps_per_round=1, data_axis=axis
    ),
    "minimax": minimax(2.0),
    "maximin": maximin,
    "several attacks": several(per_example=False),
    "several attacks, each example its own": several(per_example=True),
}


def batches():
    random = np.random.default_rng(1)
    images = random.uniform(size=(3, 8, *SHAPE)).astype(np.float32)
    return images, random.integers(0, C, (3, 8))


@functools.cache
def initial(name):
    return MAKE[name](models.linear(C, input_shape=SHAPE), None).init(jax.random.key(0))


def play(name, axis):
    """The state and the infos of three steps."""
    model = models.linear(C, input_shape=SHAPE)
    defense = MAKE[name](model, axis)

    def step(state, batch):
        return defense.step(state, *parallel.local_share(batch, axis))

    state, infos = initial(name), []
    if axis is None:
        step = jax.jit(step)
    else:
        step = parallel.pmap_step(step, devices=DEVICES)
        state = parallel.replicate(state, DEVICES)
    for images, labels in zip(*batches(), strict=True):
        state, info = step(state, (images, labels))
        infos.append(jax.device_get(info))
    return jax.device_get((state.variables, state.opponent)), infos


@pytest.mark.parametrize("name", MAKE)
def test_on_four_devices_the_steps_are_those_on_one(name):
    for leaf, want in zip(
        *(jax.tree.leaves(play(name, axis)) for axis in ("data", None)), strict=True
    ):
        np.testing.assert_allclose(leaf, want, rtol=2e-4, atol=1e-6)
