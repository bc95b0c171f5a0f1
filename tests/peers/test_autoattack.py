"""FAB and the whole AutoAttack beside torchattacks', on the same weights and digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks

from benchmarks import peer_autoattack
from mixjax import attacks, evaluation, threats
from tests.peers import network

NUM_EXAMPLES = 100
RADII = {"linf": 0.15, "l2": 0.8}
FAR = {"linf": 0.5, "l2": 3.0}  # where every point counts


@pytest.fixture(scope="module")
def problem():
    """Weights, the same in PyTorch, and digits that they classify correctly."""
    params = network.train(threats.linf(0.15))
    images, labels = network.digits()
    logits = jax.jit(jax.vmap(network.apply, (None, 0)))(params, images)
    correct = np.flatnonzero(np.argmax(logits, axis=1) == labels)[:NUM_EXAMPLES]
    peer = network.TorchNetwork(params).requires_grad_(False)
    return params, peer, images[correct], labels[correct].astype(np.int32)


def members(params, x):
    return network.apply(params, x)[None]


@pytest.mark.parametrize("norm", RADII)
def test_fab_finds_points_as_near_as_theirs(norm, problem):
    """The mean distance over 9 targets of 50 steps each."""
    params, peer, images, labels = problem
    threat, logits_fn = threats.BY_NAME[norm](FAR[norm]), functools.partial(members, params)

    @jax.jit
    @jax.vmap
    def attack(key, x, label):
        targets = attacks.likeliest_wrong(logits_fn(x)[0], label, 9)
        weights = jnp.ones(1)
        arguments = key, logits_fn, weights, x, label, targets, threat
        return attacks.fab_targeted(*arguments, num_steps=50)[1]

    info = attack(jax.random.split(jax.random.key(0), len(images)), images, labels)
    theirs = torchattacks.FAB(
        peer,
        norm=peer_autoattack.NORMS[norm],
        eps=FAR[norm],
        steps=50,
        n_restarts=1,
        multi_targeted=True,
        n_classes=10,
    )
    points = theirs(
        torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels).long()
    )
    moved = points.detach().permute(0, 2, 3, 1).numpy() - images
    with torch.no_grad():
        fooled = peer(points).argmax(1).numpy() != labels
    assert np.all(info.found) and fooled.mean() > 0.95
    norms = np.asarray(jax.vmap(threat.norm)(moved))[fooled]
    print(norm, np.mean(info.norm[fooled]), norms.mean())
    assert np.mean(info.norm[fooled]) <= 1.01 * norms.mean()


@pytest.mark.parametrize("norm", RADII)
def test_the_budget_autoattack_leaves_no_more_than_theirs(norm, problem):
    """By more than their own spread over two seeds, or one example in 100."""
    params, peer, images, labels = problem
    epsilon = RADII[norm]
    logits_fn = jax.tree_util.Partial(members, params)
    suite = evaluation.attack_suite(threats.BY_NAME[norm](epsilon), evaluation.AUTOATTACK)
    found = evaluation.evaluate(
        jax.random.key(0), logits_fn, [1.0], images, labels, suite, alone=False, num_complete=0
    )
    side, theirs = peer_autoattack.AutoAttack(peer, images, labels), []
    for seed in range(2):
        points, _ = side.attack(norm, epsilon, seed)
        logits = jax.jit(jax.vmap(functools.partial(network.apply, params)))(points)
        theirs.append(float(np.mean(np.argmax(logits, axis=1) == labels)))
    print(norm, found.worst.mean(), theirs)
    assert 0.1 < min(theirs) < 0.95
    assert found.worst.mean() <= max(theirs) + max(np.ptp(theirs), 0.01)
