"""Our FGSM and PGD beside foolbox's, and foolbox on a mixture of ours."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mixjax import attacks, ensemble, evaluation, losses, mixture, threats
from tests.peers import digits

WEIGHTS = np.array([0.6, 0.4], np.float32)
NUM_STEPS = 20


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what SciPy has moved
        import foolbox
    return foolbox


def our_success(make, epsilon, key):
    variables = digits.trained()
    images, labels = digits.correct_examples()

    @jax.jit
    @jax.vmap
    def fooled(key, x, label):
        x_adv, _ = attacks.pgd(
            key,
            lambda x: losses.cross_entropy(digits.MODEL.apply(variables, x), label),
            x,
            make(epsilon),
            num_steps=NUM_STEPS,
            step_size=epsilon / 5,
            random_start=False,
        )
        return losses.zero_one(digits.MODEL.apply(variables, x_adv), label)

    return float(fooled(jax.random.split(key, len(labels)), images, labels).mean())


def peer_success(attack, foolbox, epsilon):
    network = digits.in_torch(digits.trained())
    images, labels = digits.correct_examples()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(labels.astype(np.int64))
    return float(attack(model, x, y, epsilons=epsilon)[2].float().mean())


def test_the_two_networks_are_one():
    images, _ = digits.correct_examples()
    with torch.no_grad():
        theirs = digits.in_torch(digits.trained())(torch.from_numpy(images).permute(0, 3, 1, 2))
    ours = digits.MODEL.apply(digits.trained(), images)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
    assert len(images) > 200


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.15])
def test_pgd_in_the_box_succeeds_as_often(epsilon, foolbox, key):
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=NUM_STEPS, random_start=False)
    theirs = peer_success(attack, foolbox, epsilon)
    ours = our_success(threats.linf, epsilon, key)
    assert 0.02 < theirs < 0.98
    assert theirs - 0.005 <= ours <= theirs + 0.01


@pytest.mark.parametrize("epsilon", [0.3, 0.6])
def test_pgd_in_the_l2_ball_succeeds_as_often(epsilon, foolbox, key):
    attack = foolbox.attacks.L2PGD(rel_stepsize=0.2, steps=NUM_STEPS, random_start=False)
    theirs = peer_success(attack, foolbox, epsilon)
    ours = our_success(threats.l2, epsilon, key)
    assert 0.02 < theirs < 0.98
    assert theirs - 0.005 <= ours <= theirs + 0.01


def test_foolbox_attacks_our_mixture_as_we_attack_its_mean_probability(foolbox, key):
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(digits.trained, (0, 1)))
    images, labels = (jnp.asarray(array[:100]) for array in digits.correct_examples())
    logits_fn = jax.jit(lambda x: ensemble.apply(digits.MODEL.apply, members, x))
    settings = dict(num_steps=NUM_STEPS, step_size=0.02, random_start=False)

    @jax.jit
    @jax.vmap
    def attack(x, label):
        def loss_fn(x):
            return -mixture.log_probs(logits_fn(x), WEIGHTS)[label]

        return attacks.pgd(key, loss_fn, x, threats.linf(0.1), **settings)[0]

    @jax.jit
    @jax.vmap
    def fooled(x, label):
        return losses.zero_one(mixture.log_probs(logits_fn(x), WEIGHTS), label)

    model = evaluation.foolbox_model(logits_fn, WEIGHTS)
    peer = foolbox.attacks.LinfPGD(abs_stepsize=0.02, steps=NUM_STEPS, random_start=False)
    with jax.numpy_rank_promotion("allow"):
        _, theirs, success = peer(model, images, labels, epsilons=0.1)
    ours = attack(images, labels)
    assert float(jnp.abs(theirs - images).max()) <= 0.1 + 1e-6
    np.testing.assert_array_equal(success, fooled(theirs, labels) == 1)
    assert abs(float(success.mean()) - float(fooled(ours, labels).mean())) <= 0.01
    assert 0.02 < float(success.mean()) < 0.98
