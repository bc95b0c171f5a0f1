"""Anybody's classifier, checked before an attack compiles, as what the rest of the library takes.

A function of a batch is traced once, at one example, and its arrays are taken out of it: so
classifiers of one architecture share what is compiled, and no weights are constants in it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import checks, ensemble, program
from mixjax.evaluation import inputs
from mixjax.typing import LogitsFn

_SAME = {"float32": 1e-2, "float64": 1e-2}  # of the largest logit; other types round more
_SAME_OTHERWISE = 0.1


class Members(NamedTuple):
    """A mixture's members as functions of one example.

    Attributes:
      logits_fn: `x -> [L, C]`, a pytree whose leaves are the members' arrays.
      alone: for each member `x -> [1, C]`; None where one function gives the logits of all.
      weights: `[L]` probabilities.
    """

    logits_fn: LogitsFn
    alone: list[LogitsFn] | None
    weights: np.ndarray


def members_of(classify: Any, weights: Any, images: np.ndarray) -> Members:
    """Traces a classifier, or the members of a mixture, and checks that it can be attacked.

    Args:
      classify: function of images `[N, ...]` to logits `[N, C]`, or to those of all members
        `[L, N, C]`; or a list of such functions to `[N, C]`.
      weights: `[L]` probabilities of the members; None: equal ones.
      images: `[2, ...]` floats, two images to compare its answers on.

    Raises:
      ValueError: in one line that says what to write instead.
    """
    several = isinstance(classify, list | tuple)
    functions = list(classify) if several else [classify]
    if not functions:
        raise ValueError("classify must be a function, or a list of at least one")
    names = [f"classify[{k}]" if several else "classify" for k in range(len(functions))]
    x = jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)
    traced = [_traced(*each, x) for each in zip(functions, names, strict=True)]
    stacked = [len(logits.shape) == 3 for _, _, logits in traced]
    if any(stacked) and several:
        raise ValueError(f"{names[stacked.index(True)]} must return [N, C] logits, got [L, N, C]")
    classes = [logits.shape[-1] for *_, logits in traced]
    if len(set(classes)) > 1:
        raise ValueError(f"classify must have members of as many classes, got {classes}")
    checked = set()
    for function, name, (pure, constants, _) in zip(functions, names, traced, strict=True):
        if pure not in checked:
            _check_batches(function, name, pure, constants, images)
            checked.add(pure)
    asked = [jax.tree_util.Partial(pure, constants) for pure, constants, _ in traced]
    if stacked[0]:
        logits_fn, alone = asked[0], None
    else:
        alone = [jax.tree_util.Partial(_one, each) for each in asked]
        logits_fn = alone[0] if len(alone) == 1 else _together(traced, asked)
    num_members = jax.eval_shape(logits_fn, x).shape[0]
    if weights is None:
        weights = np.full(num_members, 1 / num_members)
    weights = inputs.native(weights)
    checks.for_members(num_members, weights=weights)
    return Members(logits_fn, alone, weights)


def _together(traced, asked):
    """All members as one function: stacked where they are one architecture."""
    pure, constants, _ = traced[0]
    if len(constants) and all(each is pure for each, *_ in traced):
        leaves = zip(*(constants for _, constants, _ in traced), strict=True)
        stacked = tuple(_stack(each) for each in leaves)
        return jax.tree_util.Partial(ensemble.apply, jax.tree_util.Partial(pure), stacked)
    return jax.tree_util.Partial(_each, *asked)


def _one(member, x):
    return member(x)[None]


def _each(*members_and_x):
    *members, x = members_and_x
    return ensemble.apply_each(members, x)


def _stack(arrays):
    if jnp.issubdtype(arrays[0].dtype, jax.dtypes.extended):  # random keys
        return jnp.stack(arrays)
    # On the host, which compiles nothing; a rule of the classifier's own takes no NumPy in `vmap`.
    return jnp.asarray(np.stack([np.asarray(array) for array in arrays]))


def _traced(function, name, x):
    """`(pure, constants, logits)` of a function of a batch, at one example.

    `pure(constants, x)` is `[C]`, or `[L, C]` where all members answer at once; `logits` is the
    shape for a batch of one.
    """
    if any(base.__module__.split(".")[0] == "torch" for base in type(function).__mro__):
        raise ValueError(
            f"{name} is a PyTorch module, whose gradients JAX cannot take: build the same model "
            "in JAX and read its weights with models.load_pretrained"
        )
    if not callable(function):
        got = " ".join(repr(function).split())
        raise ValueError(
            f"{name} must be a function of images [N, ...], or a list of such, got {got}"
        )
    shapes = []

    def of_one(x):
        logits = function(x[None])
        if isinstance(logits, tuple | list) and logits and hasattr(logits[0], "shape"):
            raise _Told(
                f"{name} must return logits alone, got {len(logits)} results: take the first, "
                "lambda x: model(x)[0]"
            )
        if not hasattr(logits, "shape"):
            raise _Told(f"{name} must return logits [N, C], got {type(logits).__name__}")
        logits = jnp.asarray(logits)
        shapes.append(jax.ShapeDtypeStruct(logits.shape, logits.dtype))
        if logits.ndim == 3:
            return logits[:, 0]
        return logits[0] if logits.ndim else logits

    try:
        pure, constants = program.take_apart(of_one, x)
    except _Told as told:
        raise ValueError(str(told)) from None
    except Exception as error:
        raise ValueError(f"{name} {_explained(error, function, x)}") from error
    logits = shapes[0]
    axes = len(logits.shape)
    if axes not in (2, 3) or logits.shape[axes - 2] != 1:
        hint = _hint_of_vmap(function, x)
        raise ValueError(
            f"{name} must turn images [N, ...] into logits [N, C], got {list(logits.shape)} for "
            f"one image{hint}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{name} must return logits, not classes: got {logits.dtype}")
    if logits.shape[-1] < 2:
        raise ValueError(
            f"{name} must return one logit for each of two classes at least, got one: "
            "stack it with zeros"
        )
    try:
        jax.eval_shape(jax.grad(lambda x: jnp.sum(pure(constants, x))), x)
    except Exception as error:
        raise ValueError(f"{name} {_explained(error, function, x)}") from error
    return pure, constants, logits


class _Told(Exception):
    """What is wrong, said already."""


_BY_TYPE = {
    "TracerArrayConversionError": "calls NumPy on its input: use jax.numpy in its place",
    "TracerBoolConversionError": "branches on values: use jnp.where or jax.lax.cond",
    "TracerIntegerConversionError": "uses a value as a Python number: use jnp.take or lax",
    "ConcretizationTypeError": "needs a value in Python: use jax.numpy on the whole array",
    "TraceContextError": "is a Flax NNX model in training mode: call model.eval() first",
    "ModifyScopeVariableError": "updates its statistics: apply it as for evaluation, train=False",
    "InvalidRngError": "draws random numbers: switch its dropout off, deterministic=True",
}
_BY_TEXT = {
    "requires a key": "draws random numbers: give eqx.nn.inference_mode(model) in its place",
    "allback": "calls back to Python, where JAX knows no gradient: write it in jax.numpy",
}


def _explained(error, function, x):
    """What to write instead, after the function's name."""
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_TYPE:
            return _BY_TYPE[kind.__name__]
    for text, told in _BY_TEXT.items():
        if text in str(error):
            return told
    hint = _hint_of_vmap(function, x)
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot take a batch of one image {[1, *x.shape]}: {said}{hint}"


def _hint_of_vmap(function, x):
    """Whether it takes one example where a batch is due."""
    try:
        logits = jax.eval_shape(function, x)
    except Exception:  # whatever it is that it cannot do
        return ""
    alone = getattr(logits, "ndim", 0) == 1
    return ": it takes one image, wrap it in jax.vmap" if alone else ""


@jax.jit  # once for all classifiers of one program
def _apart(classify, images):
    return jax.vmap(classify)(images)


def _check_batches(function, name, pure, constants, images):
    """Raises `ValueError` if an answer depends on the rest of the batch."""
    two = np.array(images, np.float32)
    # Two equal images would agree even in a BatchNorm that looks at both.
    if np.array_equal(*two):
        two[1] = two.mean()
    # Not of the function itself: a dataclass or a bound Linen module cannot be hashed.
    together = np.asarray(jax.jit(lambda x: function(x))(jnp.asarray(two)), np.float32)
    apart = np.asarray(_apart(jax.tree_util.Partial(pure, constants), two), np.float32)
    if together.ndim == 3:
        together = together.swapaxes(0, 1)
    # Where it overflows nothing can be compared; answers of NaN are a finding of the report.
    known = np.isfinite(together) & np.isfinite(apart)
    size = np.max(np.abs(together[known]), initial=1e-6)
    gap = np.max(np.abs(together[known] - apart[known]), initial=0.0)
    dtype = jax.eval_shape(pure, constants, two[0]).dtype.name
    if gap > _SAME.get(dtype, _SAME_OTHERWISE) * size:
        raise ValueError(
            f"{name} answers differently when other images are in the batch (by {gap:.2g}): "
            "switch BatchNorm and dropout to evaluation"
        )
