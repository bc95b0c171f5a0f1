"""What each attack's docstring says that it costs, counted in its program; nothing is computed."""

import functools

import jax.numpy as jnp
import pytest

from mixjax import attacks, evaluation, threats

L, C = 3, 5
# `(attack, its numbers, gradients, evaluations of logits_fn)`, those of gradients included.
COSTS = [
    (attacks.fgsm, {}, 1, 2),
    (attacks.pgd, {"num_steps": 7, "step_size": 0.1}, 7, 8),
    (attacks.apgd, {"num_steps": 7, "num_restarts": 2}, 2 * 7, 2 * 8),
    (attacks.apgd_targeted, {"num_steps": 7}, (C - 1) * 7, (C - 1) * 8 + 1),
    (attacks.fab, {"num_steps": 7, "num_restarts": 2}, 2 * 7 * (C - 1), 2 * 7 * 2 + 1),
    (
        attacks.fab_targeted,
        {"num_steps": 7, "num_restarts": 2},
        (C - 1) * 2 * 7,
        (C - 1) * 2 * 7 * 2 + 2,
    ),
    (attacks.arc, {"num_steps": 7, "num_boundaries": 2}, 7 * L * 2, 7 * (L + 2) + 3),
    (
        attacks.lattice_climber,
        {"num_steps": 7, "num_orders": 2},
        2 * L * 8 + L,
        2 * L * 8 + 2,
    ),
    (
        attacks.carlini_wagner,
        {"num_steps": 7, "num_binary_search_steps": 4, "num_closing_steps": 2},
        4 * 7 + 2 + 1,
        4 * 7 + 2 + 1,
    ),
    (attacks.square, {"num_queries": 9}, 0, 9),
]


@pytest.mark.parametrize(("attack", "numbers", "gradients", "evaluations"), COSTS)
def test_an_attack_costs_what_its_docstring_says(attack, numbers, gradients, evaluations):
    def logits_fn(x):
        return jnp.outer(jnp.arange(1.0, L + 1), x[:C])

    run = evaluation.Attack(
        ("counted",), numbers.get("num_steps", 1), functools.partial(attack, **numbers)
    )._replace(threat=threats.l2(0.1), number=1)
    passes = evaluation.count_passes(run, logits_fn, jnp.ones(L) / L, jnp.full(8, 0.5))
    assert passes == evaluation.Passes(forward=L * evaluations, backward=L * gradients)
