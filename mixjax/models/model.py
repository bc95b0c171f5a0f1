"""A network as a pair of pure functions, and the way from Flax to it.

Convention: inputs are float32 in [0, 1] with any number of leading axes, none included (one
example); variables are `{"params": ..., "batch_stats": ...}`, where every collection besides
`"params"` is state that training updates and nothing differentiates.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from mixjax import _check
from mixjax.typing import Array, Key, PyTree


class Model(NamedTuple):
    """A network.

    Attributes:
      init: `key -> variables`; consumes the key.
      apply: `(variables, x [..., H, W, C], train=False) -> logits [..., num_classes]` in float32.
        With `train=True` it needs a leading axis, uses the batch's own statistics and returns
        `(logits, variables)`, the variables with their statistics updated. Then `key=` is the
        random key of dropout; consumed. Without one, our networks drop nothing out.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Any]


def from_linen(
    module: nn.Module, input_shape: tuple[int, ...], *, draw: Callable | None = None
) -> Model:
    """The model of a Linen module `(x [B, *input_shape], train=False) -> logits [B, num_classes]`.

    Args:
      module: the module; whether its call takes `train` is read off its signature.
      input_shape: shape of one example.
      draw: `(key, shapes) -> variables`, used in place of the module's own initialisers; `shapes`
        holds a `jax.ShapeDtypeStruct` for each variable.

    Returns:
      The `Model`.

    Raises:
      ValueError: if a size in `input_shape` is below 1; `apply` raises it when `x` does not end
        in `input_shape`, or has no batch axis in training.
    """
    for size in input_shape:
        _check.at_least(1, input_shape=size)
    takes_train = "train" in inspect.signature(type(module).__call__).parameters
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)

    def arguments(train) -> dict[str, Any]:
        return {"train": train} if takes_train else {}

    def own(key, x):
        return module.init(key, x, **arguments(False))

    def init(key):
        if draw is None:
            return own(key, jnp.zeros(example.shape))
        return draw(key, jax.eval_shape(own, key, example))

    def apply(variables, x, *, train=False, key=None):
        batch = _as_batch(x, input_shape, train)
        if not train:
            logits = cast(Array, module.apply(variables, batch, **arguments(False)))
            return _unflatten(logits, x, input_shape)
        state = [name for name in variables if name != "params"]
        rngs = None if key is None else {"dropout": key}
        logits, updates = module.apply(
            variables, batch, mutable=state, rngs=rngs, **arguments(True)
        )
        return _unflatten(logits, x, input_shape), {**variables, **updates}

    return Model(init, apply)


def from_nnx(constructor: Callable[[nnx.Rngs], nnx.Module], input_shape: tuple[int, ...]) -> Model:
    """The model of an NNX module `x [B, *input_shape] -> logits [B, num_classes]`.

    Args:
      constructor: `rngs -> module`, for example `lambda rngs: Network(width=16, rngs=rngs)`.
      input_shape: shape of one example.

    Returns:
      The `Model`; what the module holds besides `nnx.Param`, random streams included, is in
      `variables["batch_stats"]`: its `apply` needs no key.

    Raises:
      ValueError: as `from_linen`.
    """
    for size in input_shape:
        _check.at_least(1, input_shape=size)
    structure, params, rest = nnx.split(
        nnx.eval_shape(lambda: constructor(nnx.Rngs(0))), nnx.Param, ...
    )

    def init(key):
        _, params, rest = nnx.split(constructor(nnx.Rngs(key)), nnx.Param, ...)
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(rest)}

    def apply(variables, x, *, train=False):
        batch = _as_batch(x, input_shape, train)
        states = [
            _filled(params, variables["params"]),
            _filled(rest, variables["batch_stats"]),
        ]
        module = nnx.merge(structure, *states)
        (module.train if train else module.eval)()
        logits = _unflatten(module(batch), x, input_shape)
        if not train:
            return logits
        _, _, updated = nnx.split(module, nnx.Param, ...)
        return logits, {**variables, "batch_stats": nnx.to_pure_dict(updated)}

    return Model(init, apply)


def _filled(state, values):
    """A copy of an NNX state that holds `values`."""
    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _as_batch(x, input_shape, train):
    """`[..., *input_shape]` as `[B, *input_shape]`."""
    leading = x.ndim - len(input_shape)
    if leading < 0 or x.shape[leading:] != tuple(input_shape):
        raise ValueError(f"x must have shape [..., {_text(input_shape)}], got {list(x.shape)}")
    if train and leading == 0:
        raise ValueError(f"x must have a batch axis in training, got {list(x.shape)}")
    return x.reshape(math.prod(x.shape[:leading]), *input_shape)


def _text(shape):
    return ", ".join(map(str, shape))


def _unflatten(logits, x, input_shape):
    leading = x.shape[: x.ndim - len(input_shape)]
    return logits.astype(jnp.float32).reshape(*leading, *logits.shape[1:])
