"""The initial weights behind Hamm's numbers: those of TensorFlow's tutorial, larger than He's.

The tutorial draws every kernel with a standard deviation of 0.1, whatever its fan-in, and starts
biases at 0.1 behind the first layer: logits begin nine times as large as from `models.mnist_cnn`'s
own weights, training moves the weights less, and the classifier falls to FGSM much more easily.
"""

from mixjax.models import Model

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
