"""Other libraries' attacks on a network of ours, in PyTorch and in JAX."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks
from adv_lib import attacks as adversarial_library

from benchmarks import comparison, peer
from benchmarks.attack_setting import INITIAL_CONST, LEARNING_RATE, STEP, Problem, Side

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports what SciPy has moved
    import foolbox

PYTORCH = "foolbox on PyTorch"
JAX, UNCOMPILED = "foolbox on JAX", "foolbox on JAX, not compiled"


def start(num_threads: int, seed: int):
    """Sets PyTorch up with as many threads as XLA has."""
    peer.start(num_threads, "cpu", seed)


def sides(problem: Problem) -> list[Side]:
    """Every attack that a peer has; its logits are first compared with ours.

    Raises:
      ValueError: if the two networks differ.
    """
    network = peer.network(problem.variables, "cpu").eval().requires_grad_(False)
    # [B, H, W, C] seen as [B, C, H, W] is what channels_last means.
    images = torch.from_numpy(problem.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(problem.labels).long()
    with torch.no_grad():
        _check_logits(problem, network(images).numpy())
    asked = []
    network.register_forward_hook(lambda *_: asked.append(None))
    settings = {"eps": problem.epsilon, "steps": problem.num_steps}

    def in_torch(library, name, attack):
        """A side whose attack takes and returns `[B, C, H, W]`."""

        def call():
            return attack(images, labels).detach().permute(0, 2, 3, 1).numpy()

        return _side(library, name, call, asked)

    found = [
        in_torch(
            "torchattacks",
            "pgd",
            torchattacks.PGD(network, alpha=STEP * problem.epsilon, **settings),
        ),
        in_torch("torchattacks", "apgd", torchattacks.APGD(network, **settings)),
    ]
    for name, attack in _adversarial_library_attacks(problem, network).items():
        found.append(in_torch("adversarial-library", name, attack))
    model = foolbox.models.PyTorchModel(network, bounds=(0, 1), device="cpu")
    for name, attack in _foolbox_attacks(problem, model).items():
        found.append(in_torch(PYTORCH, name, attack))
    return found + _sides_in_jax(problem)


def _sides_in_jax(problem):
    """JAX for foolbox: a compiled network, and for PGD also one that is not."""
    variables, calls, found = jax.device_put(problem.variables), [], []
    images, labels = jax.device_put((problem.images, problem.labels))
    for library, apply in {JAX: jax.jit(problem.apply), UNCOMPILED: problem.apply}.items():

        def logits_fn(images, apply=apply):
            calls.append(None)
            return apply(variables, images)

        model = foolbox.models.JAXModel(logits_fn, bounds=(0, 1))
        for name, attack in _foolbox_attacks(problem, model).items():
            if library == JAX or name == "pgd":
                call = functools.partial(attack, images, labels)
                found.append(_side(library, name, call, calls))
    return found


def _adversarial_library_attacks(problem, network):
    """`(images, labels) -> images` by name."""
    return {
        "apgd": functools.partial(
            adversarial_library.apgd,
            network,
            eps=problem.epsilon,
            norm=math.inf,
            n_iter=problem.num_steps,
            loss_function="ce",
        ),
        "carlini_wagner": functools.partial(
            adversarial_library.carlini_wagner_l2,
            network,
            learning_rate=LEARNING_RATE,
            initial_const=INITIAL_CONST,
            binary_search_steps=problem.num_search_steps,
            max_iterations=problem.num_adam_steps,
        ),
    }


def _foolbox_attacks(problem, model):
    """`(images, labels) -> images` by name; foolbox has no AutoPGD."""
    pgd = foolbox.attacks.LinfPGD(rel_stepsize=STEP, steps=problem.num_steps)
    carlini_wagner = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=problem.num_search_steps,
        steps=problem.num_adam_steps,
        stepsize=LEARNING_RATE,
        initial_const=INITIAL_CONST,
    )

    def run(attack, images, labels, **settings):
        return attack.run(model, images, foolbox.criteria.Misclassification(labels), **settings)

    return {
        "pgd": functools.partial(run, pgd, epsilon=problem.epsilon),
        "carlini_wagner": functools.partial(run, carlini_wagner),
    }


def _side(library, name, call, asked):
    """There is nothing to prepare; the forward passes of a call are counted as it runs."""
    counts = []

    def counted():
        before = len(asked)
        images = np.asarray(call())
        counts.append(len(asked) - before)
        return images

    return Side(library, name, lambda: counted, lambda: counts[-1])


def _check_logits(problem, theirs):
    logits = np.asarray(jax.jit(problem.apply)(problem.variables, jnp.asarray(problem.images)))
    tolerance = comparison.TOLERANCE["cpu", "float32"]
    difference = np.max(np.abs(logits - theirs)) / np.max(np.abs(logits))
    if not difference <= tolerance:
        raise ValueError(
            f"logits on {problem.name} differ by {difference:.2g} of the largest, "
            f"tolerance {tolerance}: nothing was timed"
        )
