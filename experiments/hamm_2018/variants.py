"""What Hamm 2018 prints and what was used instead: attacks, the order, initial weights.

Each choice is a flag of the experiments with the paper's own among its options. `said` puts the
choices of a run into words, for its tables; runs from before a choice was recorded used the
variant that is not the paper's.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from mixjax import attacks, losses, threats
from mixjax.models import Model
from mixjax.typing import Bounds

Order = Literal["simultaneous", "alternating"]
ORDERS = ("simultaneous", "alternating")
_NO_BOX = (-math.inf, math.inf)


class Attacker(NamedTuple):
    """An attack network: how it is built, trained and used.

    Attributes:
      raised: `(logits [C], label []) -> []`, what it is trained to raise.
      move: what is made of its output in training, as in `attacks.attack_network_batch`.
      finished: what is made of it when the network judges a classifier or is drawn.
      bounds: lowest and highest value that it gives a pixel.
      dropout: of its hidden units, in training.
      label_scale: as in `models.attack_network`.
    """

    raised: Callable = attacks.log_error
    move: Callable = attacks.follow
    finished: Callable = functools.partial(attacks.follow, gain=4.0)
    bounds: Bounds = (0.0, 1.0)
    dropout: float = 0.0
    label_scale: float | None = None


STRONG = Attacker()
PRINTED = Attacker(losses.cross_entropy, attacks.squash, attacks.squash, _NO_BOX, 0.5, 1.0)
ATTACKERS = {"strong": STRONG, "paper": PRINTED}


def _printed_fgsm(key, loss_fn, x, threat, accuracy_fn=None):
    del key, accuracy_fn
    return attacks.fgsm(loss_fn, x, threat, bounds=_NO_BOX)


def _boxed_fgsm(key, loss_fn, x, threat, accuracy_fn=None):
    del key, accuracy_fn
    return attacks.fgsm(loss_fn, x, threat)


_FGSM = {"printed": _printed_fgsm, "boxed": _boxed_fgsm}
GRADIENT_ATTACKS = tuple(_FGSM)


def fgsm(config):
    """FGSM of a config's flag `gradient_attacks`, in the form that defences take.

    It has one point: the `accuracy_fn` that a judge hands it, as it does to `ifgsm`, says nothing.
    """
    return _FGSM[config.gradient_attacks]


def ifgsm(config):
    """IFGSM of the flags `gradient_attacks` and `ifgsm_steps`, in the form that defences take.

    "printed" ends where eq. 2 ends, whether or not it fooled more before. "boxed" keeps the best
    point on its path: with `accuracy_fn`, as a judge calls it, the one of lowest accuracy, and
    among equals of highest loss; without, as a defence does, the one of highest loss, which is
    what training is about.
    """
    return _ifgsm(config.gradient_attacks, config.ifgsm_steps)


@functools.cache  # the same function each time: what is compiled depends on it
def _ifgsm(kind, num_steps):
    def attack(key, loss_fn, x, threat, accuracy_fn=None):
        run = functools.partial(
            attacks.pgd, key, loss_fn, x, threat, num_steps=num_steps, random_start=False
        )
        if kind == "printed":
            return run(step_size=threat.epsilon, iterate="last")
        return run(step_size=threat.step_size(num_steps), accuracy_fn=accuracy_fn)

    return attack


def _kept(config):
    if "ifgsm_keeps" in config:
        return "a point on its path that fools kept, if there is one"
    return "its point of highest loss kept"


def said(config: dict[str, Any]) -> str:
    """The choices of a run in words, from the config in its `result.json`."""
    parts = []
    if "ifgsm_steps" in config:
        number = config["ifgsm_steps"]
        length = threats.REACH / number
        parts.append(
            "FGSM and IFGSM as in the paper's eqs. 1 and 2: FGSM may leave [-1, 1], IFGSM takes "
            f"{number} steps of eta itself (the paper does not say how many) and ends where it ends"
            if config.get("gradient_attacks", "boxed") == "printed"
            else f"FGSM clipped to [-1, 1] and IFGSM of {number} steps of {length:.2g} eta, "
            f"{_kept(config)}; the paper's FGSM has no clip, its IFGSM steps of eta"
        )
        attacker = config.get("attacker", "strong")
        if "networks" in config:
            attacker = ""
        if attacker == "strong":
            parts.append(
                "attack networks of the stronger kind: they raise the log of the error, the label "
                "scaled up, a direction whose length does not count, no dropout, within [-1, 1]"
            )
        elif attacker:
            parts.append(
                "attack networks as in the paper: they raise the cross-entropy, tanh of the output "
                "as it is, dropout .5, not bound to [-1, 1]"
            )
    if "apgd_steps" in config:
        parts.append(
            "AutoPGD keeps the point that fools most"
            if "auto_pgd_keeps" in config
            else "AutoPGD kept by loss: what fools on its path and has a lower loss is not counted"
        )
    if "penalty" in config:
        parts.append(
            "Minimax and Maximin as algorithm 1 is printed: both gradients at the old point"
            if config.get("order", "alternating") == "simultaneous"
            else "Minimax with its min step at the new v (Maximin's max step at the new u), a "
            "variant of algorithm 1"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


# The initial weights behind Hamm's numbers are those of TensorFlow's tutorial. It draws every
# kernel with a standard deviation of 0.1, whatever its fan-in, and starts biases at 0.1 behind the
# first layer: logits begin nine times as large as from `models.mnist_cnn`'s own weights, training
# moves the weights less, and the classifier falls to FGSM much more easily.
#
# 0.1 over the standard deviation that `models.mnist_cnn` draws with at the paper's width, 32. The
# same factors at any width, for the same growth of signals.
_FACTORS = {
    "Conv_0": 0.1 * (25 / 2) ** 0.5,
    "Conv_1": 0.1 * (800 / 2) ** 0.5,
    "Dense_0": 0.1 * 3136**0.5,
    "Dense_1": 0.1 * 512**0.5,
}
_BIAS = 0.1


def tutorial(model: Model) -> Model:
    """`models.mnist_cnn` with the tutorial's initial weights.

    Args:
      model: of `models.mnist_cnn`, of any width.

    Raises:
      ValueError: by `init` if the model has other layers.
    """

    def init(key):
        variables = model.init(key)
        layers = variables["params"]
        if set(layers) != set(_FACTORS):
            raise ValueError(f"model must be mnist_cnn, got one with layers {sorted(layers)}")
        params = {
            name: {
                "kernel": _FACTORS[name] * layer["kernel"],
                "bias": layer["bias"] + (0.0 if name == "Conv_0" else _BIAS),
            }
            for name, layer in layers.items()
        }
        return {**variables, "params": params}

    return model._replace(init=init)
