"""Our C&W beside its peers: the same weights, the same examples, the same budget."""

import functools
import warnings

import jax
import numpy as np
import pytest
import torch
from adv_lib import attacks as adversarial_library

from mixjax import attacks, losses
from tests.peers import digits

SETTINGS = {"num_steps": 100, "num_binary_search_steps": 9}


def by_foolbox(network, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what SciPy has moved
        import foolbox
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=9, steps=100, stepsize=0.1, initial_const=1e-3
    )
    return attack.run(model, x, foolbox.criteria.Misclassification(y))


def by_adversarial_library(network, x, y):
    return adversarial_library.carlini_wagner_l2(
        network, x, y, learning_rate=0.1, binary_search_steps=9, max_iterations=100
    )


@pytest.fixture(scope="module", params=[by_foolbox, by_adversarial_library])
def peer_norms(request):
    images, labels = digits.correct_examples()
    network = digits.in_torch(digits.trained())
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(labels.astype(np.int64))
    x_adv = request.param(network, x, y)
    fooled = (network(x_adv).argmax(-1) != y).numpy()
    norms = (x_adv - x).flatten(1).norm(dim=1).numpy()
    return np.where(fooled, norms, np.inf)


@functools.cache
def our_norms(**settings):
    variables = digits.trained()

    def attack(x, label):
        def margin_fn(x):
            return losses.margin(digits.MODEL.apply(variables, x), label)

        return attacks.carlini_wagner(margin_fn, x, **SETTINGS, **settings)[1].norm

    return np.asarray(jax.jit(jax.vmap(attack))(*digits.correct_examples()))


def test_both_fool_everything(peer_norms):
    assert np.isfinite(our_norms()).mean() >= np.isfinite(peer_norms).mean() - 0.005
    assert np.isfinite(peer_norms).mean() > 0.99


def test_our_median_norm_is_no_more_than_that_of_the_peer(peer_norms):
    ours = our_norms()
    assert np.median(ours) <= 1.0 * np.median(peer_norms)
    assert np.mean(ours <= 1.01 * peer_norms) > 0.95


def test_the_attack_of_the_paper_alone_comes_within_five_percent(peer_norms):
    assert np.median(our_norms(num_closing_steps=0)) <= 1.05 * np.median(peer_norms)


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.75])
def test_at_a_radius_success_rates_are_within_one_percent_or_ours_is_higher(quantile, peer_norms):
    epsilon = np.quantile(peer_norms, quantile)
    assert np.mean(our_norms() <= epsilon) >= np.mean(peer_norms <= epsilon) - 0.005
