"""Networks of PyTorch, and ours with their weights: the same logits."""

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from mixjax import models

MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.3, 0.25)


class PostActivation(nn.Module):
    """A block of ResNet18, the shortcut called as the caller wants."""

    def __init__(self, fan_in, features, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.name, path = shortcut, nn.Sequential()
        if stride > 1 or fan_in != features:
            conv = nn.Conv2d(fan_in, features, 1, stride, bias=False)
            path = nn.Sequential(conv, nn.BatchNorm2d(features))
        self.add_module(shortcut, path)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + getattr(self, self.name)(x))


class PreActivation(nn.Module):
    """A block of PreActResNet18."""

    def __init__(self, fan_in, features, stride, _):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        if stride > 1 or fan_in != features:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, features, 1, stride, bias=False))

    def forward(self, x):
        first = functional.relu(self.bn1(x))
        shortcut = self.shortcut(first) if hasattr(self, "shortcut") else x
        return self.conv2(functional.relu(self.bn2(self.conv1(first)))) + shortcut


class ResNet18(nn.Module):
    """Stem, four stages, mean, last layer."""

    def __init__(self, block, last="linear", shortcut="shortcut", final_norm=False, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.post = block is PostActivation
        if self.post:
            self.bn1 = nn.BatchNorm2d(width)
        fan_in = width
        for stage in range(4):
            features = width * 2**stage
            first = block(fan_in, features, 2 if stage else 1, shortcut)
            second = block(features, features, 1, shortcut)
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, second))
            fan_in = features
        self.final_norm = final_norm
        if final_norm:
            self.bn = nn.BatchNorm2d(fan_in)
        self.last = last
        self.add_module(last, nn.Linear(fan_in, 7))

    def forward(self, x):
        x = self.conv1(x)
        x = functional.relu(self.bn1(x)) if self.post else x
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = functional.relu(self.bn(x)) if self.final_norm else x
        return getattr(self, self.last)(x.mean((2, 3)))


class WideBlock(nn.Module):
    """A block of WideResNet, dropout between its convolutions."""

    def __init__(self, fan_in, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.equal = fan_in == features
        if not self.equal:
            self.convShortcut = nn.Conv2d(fan_in, features, 1, stride, bias=False)

    def forward(self, x):
        first = functional.leaky_relu(self.bn1(x), 0.1)
        y = functional.leaky_relu(self.bn2(self.conv1(first)), 0.1)
        y = self.conv2(functional.dropout(y, 0.3, self.training))
        return y + (x if self.equal else self.convShortcut(first))


class Stage(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """WideResNet-16-1, whose first block keeps its 16 channels, or -16-2."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        fan_in = 16
        for stage in range(3):
            features = 16 * width * 2**stage
            first = WideBlock(fan_in, features, 2 if stage else 1)
            stage_module = Stage(first, WideBlock(features, features, 1))
            self.add_module(f"block{stage + 1}", stage_module)
            fan_in = features
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.fc = nn.Linear(fan_in, 7)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(functional.leaky_relu(self.bn1(x), 0.1).mean((2, 3)))


SETTINGS = dict(input_shape=(16, 16, 3), mean=MEAN, std=STD)
CASES = {
    "kuangliu": (lambda: ResNet18(PostActivation), models.resnet18(7, 8, **SETTINGS)),
    "torchvision": (
        lambda: ResNet18(PostActivation, "fc", "downsample"),
        models.resnet18(7, 8, **SETTINGS),
    ),
    "preact": (
        lambda: ResNet18(PreActivation),
        models.preact_resnet18(7, 8, final_norm=False, **SETTINGS),
    ),
    "preact with final norm": (
        lambda: ResNet18(PreActivation, final_norm=True),
        models.preact_resnet18(7, 8, **SETTINGS),
    ),
    "wide 1": (
        lambda: WideResNet(1),
        models.wide_resnet(7, 16, 1, dropout=0.3, negative_slope=0.1, **SETTINGS),
    ),
    "wide 2": (
        lambda: WideResNet(2),
        models.wide_resnet(7, 16, 2, dropout=0.3, negative_slope=0.1, **SETTINGS),
    ),
}


def randomized(make):
    """The network with every number random, statistics too."""
    torch.manual_seed(0)
    network = make()
    for name, value in network.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.uniform_(-0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_pytorch(name, kind, tmp_path):
    make, model = CASES[name]
    network = randomized(make)
    path = tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **{key: value.numpy() for key, value in network.state_dict().items()})
    else:
        safetensors.torch.save_file(network.state_dict(), path)
    x = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)
    normalized = torch.from_numpy((x - np.float32(MEAN)) / np.float32(STD))
    with torch.no_grad():
        want = network(normalized.permute(0, 3, 1, 2)).numpy()
    got = jax.jit(model.apply)(models.load_pretrained(path, model), x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"torchvision"}))
def test_pytorch_loads_what_is_saved(name, tmp_path):
    make, model = CASES[name]
    network = randomized(make)
    np.savez(
        tmp_path / "w.npz", **{key: value.numpy() for key, value in network.state_dict().items()}
    )
    path = tmp_path / "w.safetensors"
    models.save_pretrained(path, model, models.load_pretrained(tmp_path / "w.npz", model))
    loaded = make()
    loaded.load_state_dict(safetensors.torch.load_file(path), strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
