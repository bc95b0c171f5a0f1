"""A network as a pair of pure functions, and the way from Flax to it.

Convention: inputs are float32 in [0, 1] with any number of leading axes, none included (one
example); variables are `{"params": ..., "batch_stats": ...}`, where every collection besides
`"params"` is state that training updates and nothing differentiates.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mixjax import checks
from mixjax.typing import Array, Key, PyTree

if TYPE_CHECKING:
    from flax import nnx

# How the arguments of a call are named that switch between training and use, and those for which
# True means use.
_SWITCHES = ("train", "training", "is_training")
_INVERTED = ("deterministic", "use_running_average", "inference", "is_eval")


class Model(NamedTuple):
    """A network.

    Attributes:
      init: `key -> variables`; consumes the key.
      apply: `(variables, x [..., H, W, C], train=False) -> logits [..., num_classes]` in float32.
        With `train=True` it needs a leading axis, uses the batch's own statistics and returns
        `(logits, variables)`, the variables with their statistics updated. Then `key=` is the
        random key of dropout; consumed. Without one, our networks drop nothing out. Integers are
        refused: `data.to_float` makes pixels of [0, 1] of them.
      freeze: `variables -> variables` that `apply` takes as well, but not in training, with what
        depends on them alone computed once: an attack asks its network hundreds of times. The same
        logits and gradients up to rounding; by default nothing is done.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Any]
    freeze: Callable[[PyTree], PyTree] = lambda variables: variables


def from_linen(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    draw: Callable | None = None,
    train_argument: str | None = None,
) -> Model:
    """The model of a Linen module `(x [B, *input_shape], train=False) -> logits [B, num_classes]`.

    Args:
      module: the module. Its call may name the switch between training and use `train`,
        `training` or `is_training`, or the other way round `deterministic`,
        `use_running_average`, `inference` or `is_eval`; several of them are all set.
      input_shape: shape of one example.
      draw: `(key, shapes) -> variables`, used in place of the module's own initialisers; `shapes`
        holds a `jax.ShapeDtypeStruct` for each variable.
      train_argument: the switch under any other name, or one that the call takes in `**kwargs`:
        "learning", or "not frozen" if True means use.

    Returns:
      The `Model`.

    Raises:
      ValueError: if a size in `input_shape` is below 1, the call does not take `train_argument`,
        or the module has dropout or statistics and no switch is found; `apply` raises it when `x`
        does not end in `input_shape`, has no batch axis in training, or holds integers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mixjax import models
      >>> model = models.from_linen(nn.Dense(2), (3,))
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((5, 3))).shape
      (5, 2)
    """
    for size in input_shape:
        checks.at_least(1, input_shape=size)
    switches = _switches(type(module), train_argument)
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)

    def arguments(train) -> dict[str, Any]:
        return {name: train != inverted for name, inverted in switches.items()}

    def own(key, x):
        return module.init(key, x, **arguments(False))

    # A call that takes anything may hide a second switch beside the one that is named.
    if not switches or (train_argument is None and _takes_anything(type(module))):
        _refuse_without_switch(type(module), _needs_a_switch(own, example))

    def init(key):
        if draw is None:
            return own(key, jnp.zeros(example.shape))
        return draw(key, jax.eval_shape(own, key, example))

    def apply(variables, x, *, train=False, key=None):
        x, batch = _as_batch(x, input_shape, train)
        if not train:
            logits = cast(Array, module.apply(variables, batch, **arguments(False)))
            return _unflatten(logits, x, input_shape)
        state = [name for name in variables if name != "params"]
        rngs = None if key is None else {"dropout": key}
        logits, updates = module.apply(
            variables, batch, mutable=state, rngs=rngs, **arguments(True)
        )
        return _unflatten(logits, x, input_shape), {**variables, **updates}

    if _is_hidden(type(module), train_argument) and _needs_a_switch(own, example):
        model, key = Model(init, apply), jax.random.key(0)
        _check_that_it_switches(type(module), train_argument, model, input_shape, key=key)
    return Model(init, apply)


def from_nnx(
    constructor: "Callable[[nnx.Rngs], nnx.Module]",
    input_shape: tuple[int, ...],
    *,
    train_argument: str | None = None,
) -> Model:
    """The model of an NNX module `x [B, *input_shape] -> logits [B, num_classes]`.

    Its `train()` and `eval()` are called, and what its own call takes as a switch is set as by
    `from_linen`.

    Args:
      constructor: `rngs -> module`, for example `lambda rngs: Network(width=16, rngs=rngs)`.
      input_shape: shape of one example.
      train_argument: as in `from_linen`.

    Returns:
      The `Model`; what the module holds besides `nnx.Param`, random streams included, is in
      `variables["batch_stats"]`: its `apply` needs no key.

    Raises:
      ValueError: as `from_linen`; a call that takes `**kwargs` may hide a switch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from mixjax import models
      >>> model = models.from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs), (3,))
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((5, 3))).shape
      (5, 2)
    """
    from flax import nnx  # who has no such module need not wait for it

    for size in input_shape:
        checks.at_least(1, input_shape=size)
    abstract = nnx.eval_shape(lambda: constructor(nnx.Rngs(0)))
    structure, params, rest = nnx.split(abstract, nnx.Param, ...)
    switches = _switches(type(abstract), train_argument)
    if not switches and jax.tree.leaves(rest):
        is_set = any(
            hasattr(part, name)
            for _, part in nnx.iter_graph(abstract)
            for name in ("deterministic", "use_running_average")
        )
        if not is_set or _takes_anything(type(abstract)):
            _refuse_without_switch(type(abstract), "statistics or random streams")

    def init(key):
        _, params, rest = nnx.split(constructor(nnx.Rngs(key)), nnx.Param, ...)
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(rest)}

    def apply(variables, x, *, train=False):
        x, batch = _as_batch(x, input_shape, train)
        states = [
            _filled(params, variables["params"]),
            _filled(rest, variables["batch_stats"]),
        ]
        module = nnx.merge(structure, *states)
        (module.train if train else module.eval)()
        arguments = {name: train != inverted for name, inverted in switches.items()}
        logits = _unflatten(module(batch, **arguments), x, input_shape)
        if not train:
            return logits
        _, _, updated = nnx.split(module, nnx.Param, ...)
        return logits, {**variables, "batch_stats": nnx.to_pure_dict(updated)}

    if _is_hidden(type(abstract), train_argument) and jax.tree.leaves(rest):
        _check_that_it_switches(type(abstract), train_argument, Model(init, apply), input_shape)
    return Model(init, apply)


def _switches(kind, train_argument):
    """`name -> whether True means use` of the arguments that switch a module's call."""
    if train_argument is not None:
        name = train_argument.removeprefix("not ")
        if name not in inspect.signature(kind.__call__).parameters and not _takes_anything(kind):
            raise ValueError(
                f"train_argument must be an argument of {kind.__name__}.__call__, got {name}"
            )
        return {name: train_argument.startswith("not ")}
    names = inspect.signature(kind.__call__).parameters
    return {name: name in _INVERTED for name in (*_SWITCHES, *_INVERTED) if name in names}


def _takes_anything(kind):
    parameters = inspect.signature(kind.__call__).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _needs_a_switch(own, example):
    """What a Linen module has that differs in training: "" if nothing."""
    dropouts = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            dropouts.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        shapes = jax.eval_shape(own, jax.random.key(0), example)
    found = ["dropout"] if dropouts else []
    return " and ".join(found + sorted(name for name in shapes if name != "params"))


def _refuse_without_switch(kind, found):
    if found:
        known = f"no argument of its call is named {', '.join((*_SWITCHES, *_INVERTED))}"
        why = "its call takes any argument" if _takes_anything(kind) else known
        raise ValueError(
            f"train_argument must name what switches {kind.__name__} to training: it has {found}, "
            f"and {why}"
        )


def _is_hidden(kind, train_argument):
    """Whether a switch is named that the call takes among any others: it may be misspelled."""
    names = inspect.signature(kind.__call__).parameters
    return train_argument is not None and train_argument.removeprefix("not ") not in names


def _check_that_it_switches(kind, train_argument, model, input_shape, **in_training):
    """Raises `ValueError` where training computes what an answer does."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)

    def operations(**arguments):
        traced = jax.make_jaxpr(functools.partial(model.apply, **arguments))(variables, x)
        return str(traced.jaxpr.replace(outvars=[]))  # in training the statistics are among them

    if operations() == operations(train=True, **in_training):
        raise ValueError(
            f"train_argument must name what switches {kind.__name__} to training: with "
            f"{train_argument} its call does in training what it does elsewhere"
        )


def _filled(state, values):
    """A copy of an NNX state that holds `values`."""
    from flax import nnx

    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _as_batch(x, input_shape, train):
    """`x [..., *input_shape]` as JAX takes it, and as `[B, *input_shape]`."""
    x = x if hasattr(x, "dtype") else np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating point in [0, 1], got {x.dtype}: pass data.to_float(x) for pixels"
        )
    if isinstance(x, np.ndarray):  # JAX knows the byte order of the machine only.
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
    leading = x.ndim - len(input_shape)
    if leading < 0 or x.shape[leading:] != tuple(input_shape):
        raise ValueError(f"x must have shape [..., {_text(input_shape)}], got {list(x.shape)}")
    if train and leading == 0:
        raise ValueError(f"x must have a batch axis in training, got {list(x.shape)}")
    return x, x.reshape(math.prod(x.shape[:leading]), *input_shape)


def _text(shape):
    return ", ".join(map(str, shape))


def _unflatten(logits, x, input_shape):
    leading = x.shape[: x.ndim - len(input_shape)]
    return logits.astype(jnp.float32).reshape(*leading, *logits.shape[1:])
