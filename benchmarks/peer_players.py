"""The same classifier, attack network and training steps in PyTorch, with our weights in them."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_GAIN, _SMALLEST_SQUARE = 2.0, 1e-12  # as in mixjax.attacks.attack_networks


class Classifier(nn.Module):
    """`models.mnist_cnn`: `[B, channels, H, W] -> [B, C]`."""

    def __init__(self, params):
        super().__init__()
        self.convs = nn.ModuleList(_conv(params[f"Conv_{i}"]) for i in range(2))
        self.dense = nn.ModuleList(_linear(params[f"Dense_{i}"]) for i in range(2))

    def forward(self, x):
        """Logits of a batch in [0, 1]."""
        x = 2 * x - 1
        for conv in self.convs:
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.dense[1](functional.relu(self.dense[0](x)))


class AttackNetwork(nn.Module):
    """`models.attack_network` with `attacks.follow` behind it, for the l-inf ball."""

    def __init__(self, params, epsilon: float):
        super().__init__()
        self.layers = nn.ModuleList(_linear(params[f"Dense_{i}"]) for i in range(len(params)))
        first, last = params["Dense_0"]["kernel"], params[f"Dense_{len(params) - 1}"]["kernel"]
        self.num_classes, self.epsilon = first.shape[0] - last.shape[1], epsilon

    def forward(self, x, labels):
        """The attacked batch; the gradient passes the clip unchanged."""
        x_flat = 2 * x.flatten(1) - 1
        one_hot = x_flat.shape[1] ** 0.5 * functional.one_hot(labels, self.num_classes)
        h = torch.cat([x_flat, one_hot], 1)
        for layer in list(self.layers)[:-1]:
            h = functional.relu(layer(h))
        h = self.layers[-1](h)
        h = h * torch.rsqrt((h**2).mean(1, keepdim=True) + _SMALLEST_SQUARE)
        moved = x + (self.epsilon * torch.tanh(_GAIN * h)).reshape(x.shape)
        return moved + (moved.clamp(0, 1) - moved).detach()


class Peer:
    """One classifier and one attack network on one batch.

    Args:
      classifier: the classifier's parameters, as ours, on the host.
      network: the attack network's.
      images: `[B, H, W, channels]` in [0, 1].
      labels: `[B]`.
      epsilon: radius of the l-inf ball.
      penalty: gamma of the minimax step.
      rates: learning rates of Adam for the classifier and the network.
    """

    def __init__(self, classifier, network, images, labels, epsilon, penalty, rates):
        self.classifier = Classifier(classifier)
        self.network = AttackNetwork(network, epsilon)
        self.images = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous()
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.epsilon, self.penalty = epsilon, penalty
        self.descent = torch.optim.Adam(self.classifier.parameters(), rates[0])
        self.ascent = torch.optim.Adam(self.network.parameters(), rates[1], maximize=True)

    def compile(self):
        """From the next call on the classifier is compiled, by `torch.compile`."""
        self.classifier.compile()

    def plain(self):
        """Loss on clean images and its gradient in the classifier."""
        loss = functional.cross_entropy(self.classifier(self.images), self.labels)
        return loss, torch.autograd.grad(loss, self.u())

    def sens(self):
        """Loss on FGSM with the penalty `epsilon B / 4 sum_i |df/dz_i|^2`, and its gradient."""
        x = self.images.clone().requires_grad_()
        loss = functional.cross_entropy(self.classifier(x), self.labels)
        (slope,) = torch.autograd.grad(loss, x)
        z = (x + self.epsilon * slope.sign()).clamp(0, 1).detach().requires_grad_()
        loss = functional.cross_entropy(self.classifier(z), self.labels)
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        loss = loss + self.epsilon / 2 * len(x) / 2 * (slope**2).sum()
        return loss, torch.autograd.grad(loss, self.u())

    def slopes(self):
        """`df/dv`."""
        return torch.autograd.grad(self.payoff(), list(self.network.parameters()))

    def ascend(self, slopes):
        """A step of the attack network along `df/dv`."""
        for param, slope in zip(self.network.parameters(), slopes, strict=True):
            param.grad = slope.detach()
        self.ascent.step()

    def minimax(self):
        """`f + penalty / 2 |df/dv|^2`, its gradient in the classifier, and `df/dv`."""
        loss = self.payoff()
        slopes = torch.autograd.grad(loss, list(self.network.parameters()), create_graph=True)
        loss = loss + self.penalty / 2 * torch.stack([(each**2).sum() for each in slopes]).sum()
        return loss, torch.autograd.grad(loss, self.u()), slopes

    def payoff(self):
        """Mean loss under the attack network."""
        attacked = self.network(self.images, self.labels)
        return functional.cross_entropy(self.classifier(attacked), self.labels)

    def u(self):
        """The classifier's parameters."""
        return list(self.classifier.parameters())

    def descend(self, found) -> float:
        """A step of the classifier with a loss and its gradient; returns the loss."""
        loss, slopes = found[:2]
        for param, slope in zip(self.u(), slopes, strict=True):
            param.grad = slope
        self.descent.step()
        return loss.item()


def gradient(found) -> dict[str, np.ndarray]:
    """A gradient in our names and forms: that of a loss and gradient in the classifier."""
    slopes = found[1]
    conv, dense = [each.numpy() for each in slopes[:4]], [each.numpy() for each in slopes[4:]]
    tree = {}
    for i in range(2):
        tree[f"Conv_{i}"] = {"kernel": conv[2 * i].transpose(2, 3, 1, 0), "bias": conv[2 * i + 1]}
        tree[f"Dense_{i}"] = {"kernel": dense[2 * i].T, "bias": dense[2 * i + 1]}
    return tree


def start(num_threads: int):
    """So many threads."""
    torch.set_num_threads(num_threads)


def version() -> str:
    """Of PyTorch."""
    return torch.__version__


def _conv(params):
    kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding="same")
    return _filled(layer, kernel, params["bias"])


def _linear(params):
    kernel = np.asarray(params["kernel"]).T
    return _filled(nn.Linear(kernel.shape[1], kernel.shape[0]), kernel, params["bias"])


def _filled(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight.copy()))
        layer.bias.copy_(torch.tensor(np.array(bias)))
    return layer
