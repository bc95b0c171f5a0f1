"""What a training step of each defence costs, counted: their processor work differs sixfold.

Counted are the floating-point operations of the step's program as it is handed to the compiler,
attack networks and optimisers included; the unit is a step on images as they are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.hamm_2018.settings import Setting, undefended
from mixjax import reporting


def step_cost(setting: Setting, make, *args) -> float:
    """Operations of one training step, over those of a step on images as they are.

    Args:
      setting: what is trained on what.
      make: `(*args) -> Defense`.
      *args: as in training.
    """
    return _operations(setting, make, *args) / _plain(setting)


def equal_steps(cost: dict[str, float], steps: int, begun: dict[str, float]) -> dict[str, int]:
    """Steps for each row so that all cost as much as `steps` of the most expensive one.

    Args:
      cost: row to the cost of a step.
      steps: of the most expensive row.
      begun: row to the cost of what it goes on from, which counts as its own.

    Returns:
      Row to its number of steps, at least 1.
    """
    total = steps * max(cost.values())
    return {row: max(1, round((total - begun.get(row, 0.0)) / each)) for row, each in cost.items()}


def costs(cost: dict[str, float], steps: dict[str, int], begun: dict[str, float]) -> dict[str, Any]:
    """What `result.json` says of each row: `cost_of_a_step`, `steps` and `cost`."""
    return {
        row: {
            "cost_of_a_step": each,
            "steps": steps[row],
            "cost": begun.get(row, 0.0) + each * steps[row],
        }
        for row, each in cost.items()
    }


def table(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    rows = {
        row: [f"{each['cost_of_a_step']:.2f}", str(each["steps"]), f"{each['cost']:.0f}"]
        for row, each in found.items()
    }
    head = ["cost of a step", "steps", "cost in all"]
    return reporting.rate_table("in steps on clean images", head, rows)


@functools.cache
def _plain(setting: Setting) -> float:
    return _operations(setting, undefended(setting))


def _operations(setting: Setting, make, *args) -> float:
    images, labels = (part[: setting.config.batch_size] for part in setting.dataset.train)
    defense = make(*args)
    state = jax.eval_shape(defense.init, jax.random.key(0))
    lowered = jax.jit(defense.step).lower(state, jnp.asarray(images), jnp.asarray(labels))
    return float((lowered.cost_analysis() or {})["flops"])
