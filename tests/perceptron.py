"""A network without convolutions, which take their time to compile, where another is not needed."""

from flax import linen as nn

from mixjax import models

# Of all short experiments of Hamm's: what is the same in two of them is compiled once.
SHORT = (
    "--width 32 --batch-size 64 --learning-rate 0.005 --network-width 64 --apgd-steps 3 "
    "--ifgsm-steps 2 --test-examples 200 --test-batch-size 200"
).split()


class _Normalized(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


def normalized(num_classes, *, input_shape):
    """One hidden layer with BatchNorm."""
    return models.from_linen(_Normalized(num_classes), input_shape)


class _Perceptron(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(2 * x.reshape(x.shape[0], -1) - 1))
        return nn.Dense(self.num_classes)(x)


def perceptron(num_classes, width, *, input_shape):
    """One hidden layer, in the place of `models.mnist_cnn` with He's initial weights."""
    return models.from_linen(_Perceptron(num_classes, width), input_shape)
