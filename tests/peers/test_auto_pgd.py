"""AutoPGD beside torchattacks: the same weights, the same digits, the same number of steps.

Never weaker by more than .5 %. Theirs is weaker by up to 1.6 % (.558 against .542, l2 with DLR), so
that a bound of 1 % on the other side would fail; 2 % still notices another attack or radius.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks

from mixjax import attacks, losses, threats
from tests.peers import network

NUM_STEPS = 50
THREATS = {"Linf": threats.linf(0.15), "L2": threats.l2(0.8)}
LOSSES = {"ce": losses.cross_entropy, "dlr": losses.dlr}


@pytest.fixture(scope="module")
def problem():
    """Weights, and those 1000 digits that they classify correctly."""
    params = network.train(threats.linf(0.15))
    images, labels = network.digits()
    logits = jax.jit(jax.vmap(network.apply, (None, 0)))(params, images)
    correct = np.flatnonzero(np.argmax(logits, axis=1) == labels)[:1000]
    peer = network.TorchNetwork(params)
    with torch.no_grad():
        np.testing.assert_allclose(peer(channels_first(images)), logits, atol=1e-4)
    return params, peer, images[correct], labels[correct]


def channels_first(images):
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()


def success(params, x_adv, labels):
    logits = jax.jit(jax.vmap(network.apply, (None, 0)))(params, x_adv)
    return np.mean(np.argmax(logits, axis=1) != labels)


def ours(attack, images, labels, seed):
    keys = jax.random.split(jax.random.key(seed), len(labels))
    return jax.jit(jax.vmap(lambda *example: attack(*example)[0]))(keys, images, labels)


def theirs(attack, images, labels):
    x_adv = attack(channels_first(images), torch.tensor(labels).long())
    return x_adv.detach().permute(0, 2, 3, 1).numpy()


def compare(params, images, labels, x_adv, peer_x_adv, norm):
    threat = THREATS[norm]
    for points in (x_adv, peer_x_adv):
        norms = jax.vmap(threat.norm)(jnp.asarray(points) - images)
        assert np.max(norms) <= threat.epsilon * (1 + 1e-5)
    rates = success(params, x_adv, labels), success(params, peer_x_adv, labels)
    print(norm, rates)
    assert 0.1 < rates[1] < 0.9  # neither hopeless nor trivial
    assert rates[1] - 0.005 <= rates[0] <= rates[1] + 0.02, rates


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("loss", LOSSES)
def test_apgd_is_as_strong_as_theirs(loss, norm, problem):
    params, peer, images, labels = problem
    threat = THREATS[norm]

    def attack(key, x, label):
        def loss_fn(x):
            return LOSSES[loss](network.apply(params, x), label)

        return attacks.apgd(key, loss_fn, x, threat, num_steps=NUM_STEPS)

    their_attack = torchattacks.APGD(peer, norm, threat.epsilon, steps=NUM_STEPS, loss=loss, seed=0)
    x_adv, peer_x_adv = ours(attack, images, labels, 0), theirs(their_attack, images, labels)
    compare(params, images, labels, x_adv, peer_x_adv, norm)


@pytest.mark.parametrize("norm", THREATS)
def test_targeted_apgd_is_as_strong_as_theirs(norm, problem):
    params, peer, images, labels = problem
    threat = THREATS[norm]

    def attack(key, x, label):
        logits = network.apply(params, x)
        return attacks.apgd_targeted(
            key,
            lambda x, target: losses.targeted_dlr(network.apply(params, x), label, target),
            x,
            attacks.likeliest_wrong(logits, label, 9),
            threat,
            num_steps=NUM_STEPS,
        )

    their_attack = torchattacks.APGDT(peer, norm, threat.epsilon, steps=NUM_STEPS, n_classes=10)
    their_attack.seed = 0
    x_adv, peer_x_adv = ours(attack, images, labels, 0), theirs(their_attack, images, labels)
    compare(params, images, labels, x_adv, peer_x_adv, norm)
