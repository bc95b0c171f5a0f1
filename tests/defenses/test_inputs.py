"""What is no threat and no attack is refused by every defence, before anything is traced."""

import functools

import numpy as np
import optax
import pytest

from mixjax import attacks, defenses, evaluation, games, models, threats

MODEL, SGD, THREAT = models.linear(2, input_shape=(3,)), optax.sgd(0.1), threats.linf(0.1)
PGD = functools.partial(attacks.pgd, num_steps=1, step_size=0.1)
NETWORK = models.attack_network(2, input_shape=(3,), hidden=(4,))
METHOD = functools.partial(games.minimax, descent=SGD, ascent=SGD)
ON_ATTACKS = {
    "mixture": functools.partial(defenses.mixture, num_members=2),
    "sensitivity": defenses.sensitivity,
    "learning_with_adversary": defenses.learning_with_adversary,
    "cat_and_mouse": functools.partial(defenses.cat_and_mouse, num_steps_per_round=1),
    "adversarial_member": defenses.adversarial_member,
    "barre": defenses.barre,
    "margin_boosted": defenses.margin_boosted,
    "independent": defenses.independent,
    "against_several": lambda model, optimizer, threat, attack: defenses.against_several(
        model, optimizer, threat, [attack]
    ),
    "boosted": functools.partial(defenses.boosted, alpha=0.5),
}
ON_THREATS = {
    "against_network": lambda threat: defenses.against_network(MODEL, NETWORK, METHOD, threat),
    "attack_network_training": lambda threat: attacks.attack_network_training(
        NETWORK, SGD, attacks.log_error, threat
    ),
    "trades_start": defenses.trades_start,
    "diagnose": lambda threat: evaluation.diagnose(
        lambda x: x[None], [1.0], np.full((2, 3), 0.5), np.zeros(2, int), threat
    ),
}


@pytest.mark.parametrize("name", ON_ATTACKS)
def test_a_radius_and_a_name_are_refused_saying_what_to_pass(name):
    make = ON_ATTACKS[name]
    make(MODEL, SGD, THREAT, PGD)
    with pytest.raises(
        ValueError, match=r"must be a Threat, such as threats.linf\(0.1\), got 0.1$"
    ):
        make(MODEL, SGD, 0.1, PGD)
    with pytest.raises(ValueError, match=r"must be a function,? such as attacks.pgd, got '?pgd'?$"):
        make(MODEL, SGD, THREAT, "pgd")


@pytest.mark.parametrize("name", ON_THREATS)
def test_a_radius_is_refused_where_there_is_no_attack_to_name(name):
    with pytest.raises(
        ValueError, match=r"must be a Threat, such as threats.linf\(0.1\), got 0.1$"
    ):
        ON_THREATS[name](0.1)
