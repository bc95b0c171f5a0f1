"""The standard version of AutoAttack in PyTorch, put together from torchattacks' four attacks."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torchattacks

from benchmarks import peer
from mixjax.typing import PyTree

NORMS = {"linf": "Linf", "l2": "L2"}
NUM_STEPS, NUM_QUERIES = 100, 5000  # torchattacks' own `AutoAttack` takes 10 steps instead


def of_resnet(variables: PyTree, images: np.ndarray, labels: np.ndarray) -> "AutoAttack":
    """On one of our ResNets; its `logits` are to be compared with ours before."""
    return AutoAttack(peer.network(variables, "cpu"), images, labels)


def start(num_threads: int, seed: int):
    """Sets PyTorch up with as many threads as XLA has."""
    peer.start(num_threads, "cpu", seed)


class AutoAttack:
    """Attacks a network `[B, channels, H, W] -> [B, C]` on images `[B, H, W, channels]`."""

    def __init__(self, network: torch.nn.Module, images: np.ndarray, labels: np.ndarray):
        self.network = network.eval().requires_grad_(False)
        # [B, H, W, C] seen as [B, C, H, W] is what channels_last means.
        self.images = torch.tensor(images).permute(0, 3, 1, 2)
        self.labels = torch.tensor(labels).long()

    def logits(self) -> np.ndarray:
        """`[B, C]` on the images as they are."""
        with torch.no_grad():
            return self.network(self.images).numpy()

    def attack(self, norm: str, epsilon: float, seed: int) -> tuple[np.ndarray, float]:
        """The `[B, H, W, C]` points found and the seconds: each attack on what others left."""
        began = time.perf_counter()
        points = self.images.clone()
        for attack in self._attacks(NORMS[norm], epsilon, seed):
            with torch.no_grad():
                left = self.network(points).argmax(1) == self.labels
            if left.any():
                points[left] = attack(self.images[left], self.labels[left]).detach()
        return points.permute(0, 2, 3, 1).numpy(), time.perf_counter() - began

    def _attacks(self, norm, epsilon, seed) -> list[Callable]:
        torch.manual_seed(seed)
        classes = self.logits().shape[1]
        common = {"norm": norm, "eps": epsilon, "seed": seed, "n_restarts": 1}
        steps = {"steps": NUM_STEPS}
        return [
            torchattacks.APGD(self.network, loss="ce", **steps, **common),
            torchattacks.APGDT(self.network, n_classes=classes, **steps, **common),
            torchattacks.FAB(
                self.network, multi_targeted=True, n_classes=classes, **steps, **common
            ),
            torchattacks.Square(self.network, n_queries=NUM_QUERIES, **common),
        ]
