"""The adversarial game between a mixture of classifiers and its attacker, as pure JAX functions.

`attack`, `evaluate` and `predict` take any classifier, or a mixture, and whole data sets; `train`
makes a mixture and `load` reads it back. Behind them, bottom to top, the way data flows: `data`,
`models` -> `threats`, `mixture` -> `ensemble` (members' logits `[L, C]`) -> `losses` -> `attacks`,
`games` (the mixture's weights `[L]`) -> `defenses`, `evaluation` -> `checkpoint`, `parallel` ->
`front`. `program` recognises a function by what it computes; `batch` has the keys, means and pixels
of a batch.

A submodule is imported when it is first used: `mixjax.threats` needs neither Flax nor Orbax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mixjax import _extras

if TYPE_CHECKING:
    from mixjax import attacks as attacks
    from mixjax import batch as batch
    from mixjax import checkpoint as checkpoint
    from mixjax import checks as checks
    from mixjax import data as data
    from mixjax import defenses as defenses
    from mixjax import ensemble as ensemble
    from mixjax import evaluation as evaluation
    from mixjax import files as files
    from mixjax import front as front
    from mixjax import games as games
    from mixjax import interrupt as interrupt
    from mixjax import intervals as intervals
    from mixjax import losses as losses
    from mixjax import memory as memory
    from mixjax import mixture as mixture
    from mixjax import models as models
    from mixjax import parallel as parallel
    from mixjax import program as program
    from mixjax import reporting as reporting
    from mixjax import threats as threats
    from mixjax.front import attack as attack
    from mixjax.front import evaluate as evaluate
    from mixjax.front import predict as predict
    from mixjax.front.trained import load as load
    from mixjax.front.training import train as train

__version__ = "0.1.0"

_CALLS = {
    "attack": "mixjax.front",
    "evaluate": "mixjax.front",
    "load": "mixjax.front.trained",
    "predict": "mixjax.front",
    "train": "mixjax.front.training",
}
# What needs the extra `train`: without it `dir(mixjax)` leaves these out, and their use says so.
_OF_TRAINING = ("checkpoint", "defenses", "load", "models", "train")

__all__ = [
    "attack",
    "attacks",
    "batch",
    "checkpoint",
    "checks",
    "data",
    "defenses",
    "ensemble",
    "evaluate",
    "evaluation",
    "files",
    "front",
    "games",
    "interrupt",
    "intervals",
    "load",
    "losses",
    "memory",
    "mixture",
    "models",
    "parallel",
    "predict",
    "program",
    "reporting",
    "threats",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CALLS:
        return getattr(importlib.import_module(_CALLS[name]), name)
    if name in __all__:
        return importlib.import_module(f"mixjax.{name}")
    raise AttributeError(f"module 'mixjax' has no attribute '{name}'")


def __dir__() -> list[str]:
    left_out = () if _extras.installed("train") else _OF_TRAINING
    return ["__version__", *(name for name in __all__ if name not in left_out)]
