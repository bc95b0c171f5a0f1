"""The same network, attack and training step in PyTorch, with our weights in it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.setting import EPSILON, STEP_SIZE, Problem
from mixjax.models.resnet import CHANNEL_MEAN, CHANNEL_STD
from mixjax.typing import PyTree


class ResNet(nn.Module):
    """Our residual networks: `[B, channels, H, W] -> [B, num_classes]`, float32 logits.

    `features` are the channels of each block; one that has more than came in halves the image.
    """

    def __init__(self, channels: int, width: int, features: list[int], num_classes: int):
        super().__init__()
        self.stem = _conv(channels, width, 3, 1)
        self.stem_norm = _norm(width)
        fans_in = [width, *features]
        self.blocks = nn.Sequential(
            *(_Block(few, many, 1 if few == many else 2) for few, many in pairwise(fans_in))
        )
        self.head = nn.Linear(fans_in[-1], num_classes)

    def forward(self, x):
        """Logits of a batch."""
        x = (x - CHANNEL_MEAN) / CHANNEL_STD
        x = functional.relu(self.stem_norm(self.stem(x)))
        return self.head(self.blocks(x).float().mean((2, 3))).float()


class _Block(nn.Module):
    def __init__(self, fan_in, features, stride):
        super().__init__()
        self.conv1, self.norm1 = _conv(fan_in, features, 3, stride), _norm(features)
        self.conv2, self.norm2 = _conv(features, features, 3, 1), _norm(features)
        self.shortcut: nn.Sequential | None = None
        if stride > 1 or fan_in != features:
            self.shortcut = nn.Sequential(_conv(fan_in, features, 1, stride), _norm(features))

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu((x if self.shortcut is None else self.shortcut(x)) + y)


def _conv(fan_in, features, size, stride):
    return nn.Conv2d(fan_in, features, size, stride, padding=size // 2, bias=False)


def _norm(features):
    return nn.BatchNorm2d(features, eps=1e-5, momentum=0.1)


def network(variables: PyTree, device: str) -> ResNet:
    """The network with the weights and statistics of one member, leaves without member axis."""
    params, statistics = variables["params"], variables["batch_stats"]
    *_, channels, width = params["Conv_0"]["kernel"].shape
    num_blocks = sum(name.startswith("_Block_") for name in params)
    shapes = [params[f"_Block_{i}"]["Conv_0"]["kernel"].shape for i in range(num_blocks)]
    num_classes = params["Dense_0"]["bias"].shape[0]
    result = ResNet(channels, width, [features for *_, features in shapes], num_classes)
    _fill_conv(result.stem, params["Conv_0"])
    _fill_norm(result.stem_norm, params["BatchNorm_0"], statistics["BatchNorm_0"])
    for i, block in enumerate(result.blocks):
        _fill_block(block, params[f"_Block_{i}"], statistics[f"_Block_{i}"])
    _fill(result.head.weight, params["Dense_0"]["kernel"].T)
    _fill(result.head.bias, params["Dense_0"]["bias"])
    return nn.utils.convert_conv2d_weight_memory_format(result.to(device), torch.channels_last)


class Peer:
    """PyTorch's side of a problem: `attack` and `training_step` are what is timed."""

    def __init__(self, problem: Problem, dtype: str, device: str):
        self.device, self.dtype, self.num_steps = device, getattr(torch, dtype), problem.num_steps
        self.networks = [
            network(_member(problem.variables, i), device) for i in range(len(problem.weights))
        ]
        self.weights = problem.weights.tolist()
        # [B, H, W, C] seen as [B, C, H, W] is what channels_last means.
        self.images = torch.from_numpy(problem.images).to(device).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(problem.labels.astype(np.int64)).to(device)
        self.optimizers: list[torch.optim.Optimizer] = []

    def compile(self):
        """From the next call on the networks are compiled, by `torch.compile`."""
        for member in self.networks:
            member.compile()

    def logits(self, train: bool) -> np.ndarray:
        """`[L, B, C]` logits; with `train` normalised by the batch, and the statistics kept."""
        with torch.no_grad(), self._autocast():
            rows = []
            for member in self.networks:
                state = {name: value.clone() for name, value in member.state_dict().items()}
                rows.append(member.train(train)(self.images).cpu().numpy())
                member.load_state_dict(state)
        return np.stack(rows)

    def attack(self) -> float:
        """PGD on the expected loss of the mixture; mean loss at the points found."""
        return float(self._attack()[1].mean())

    def training_step(self, learning_rate: float, momentum: float, weight_decay: float) -> float:
        """Attacks the batch and updates every member; the members' mean loss."""
        self.optimizers = self.optimizers or [
            torch.optim.SGD(member.parameters(), learning_rate, momentum, weight_decay=weight_decay)
            for member in self.networks
        ]
        attacked, _ = self._attack()
        losses = []
        for member, optimizer in zip(self.networks, self.optimizers, strict=True):
            member.train().requires_grad_(True)
            optimizer.zero_grad()
            with self._autocast():
                loss = functional.cross_entropy(member(attacked), self.labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def _attack(self):
        for member in self.networks:
            member.eval().requires_grad_(False)
        x = self.images
        point = (x + (2 * torch.rand_like(x) - 1) * EPSILON).clamp(0, 1)
        best, best_loss = point, torch.full((len(x),), -torch.inf, device=self.device)
        for _ in range(self.num_steps):
            point.requires_grad_(True)
            loss = self._expected_loss(point)
            (gradient,) = torch.autograd.grad(loss.sum(), point)
            point, loss = point.detach(), loss.detach()
            best, best_loss = _keep_higher(best, best_loss, point, loss)
            delta = point - x + STEP_SIZE * gradient.sign()
            point = (x + delta.clamp(-EPSILON, EPSILON)).clamp(0, 1)
        with torch.no_grad():
            return _keep_higher(best, best_loss, point, self._expected_loss(point))

    def _expected_loss(self, x) -> torch.Tensor:
        total = torch.zeros(len(x), device=self.device)
        with self._autocast():
            for weight, member in zip(self.weights, self.networks, strict=True):
                loss = functional.cross_entropy(member(x), self.labels, reduction="none")
                total = total + weight * loss
        return total

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)


def start(num_threads: int, device: str, seed: int):
    """Sets PyTorch up: as many threads as XLA has, convolutions chosen by measurement.

    Raises:
      ValueError: if JAX has a GPU and PyTorch has none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("JAX sees a GPU but torch does not: install torch with CUDA or --no-torch")
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # above it, torch would go on uncompiled


def waiting(call: Callable[[], float]) -> Callable[[], float]:
    """`call`, which ends when the device is done."""

    def result():
        value = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return value

    return result


def version() -> str:
    """PyTorch's version."""
    return torch.__version__


def _keep_higher(best, best_loss, point, loss):
    higher = loss > best_loss
    return torch.where(higher[:, None, None, None], point, best), torch.where(
        higher, loss, best_loss
    )


def _member(variables, index):
    if isinstance(variables, dict):
        return {name: _member(value, index) for name, value in variables.items()}
    return variables[index]


def _fill_block(block, params, statistics):
    pairs = [(block.conv1, block.norm1), (block.conv2, block.norm2)]
    pairs += [] if block.shortcut is None else [tuple(block.shortcut)]
    for i, (conv, norm) in enumerate(pairs):
        _fill_conv(conv, params[f"Conv_{i}"])
        _fill_norm(norm, params[f"BatchNorm_{i}"], statistics[f"BatchNorm_{i}"])


def _fill_conv(conv, params):
    _fill(conv.weight, params["kernel"].transpose(3, 2, 0, 1))


def _fill_norm(norm, params, statistics):
    _fill(norm.weight, params["scale"])
    _fill(norm.bias, params["bias"])
    _fill(norm.running_mean, statistics["mean"])
    _fill(norm.running_var, statistics["var"])


def _fill(target, values):
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.array(values)))
