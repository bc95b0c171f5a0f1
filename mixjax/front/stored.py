"""A classifier in a file, without its code: what it computes, and its gradient in the images.

`jax.export` writes both as StableHLO, for batches of any size; the variables stand beside it.
Loaded again it is a function of a batch like any other, to be compiled, mapped and differentiated
once in the images: what an attack needs. The format is JAX's, which promises to read it for six
months.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mixjax import _extras
from mixjax.typing import Array, PyTree

with _extras.needed("train"):
    import flatbuffers as flatbuffers  # with which `jax.export` writes and reads

# Largest batches, tried in turn: up to so many examples a model must compute the same for any size.
_MOST = (1024, 128, 16)
_FIXED = 16  # where the program can be written for one size only
_PLATFORMS = ("cpu", "cuda")


class Program(NamedTuple):
    """What a classifier computes, in bytes.

    Attributes:
      forward: `(leaves, x [B, ...]) -> logits [B, C]`, exported.
      pullback: `(leaves, x [B, ...], cotangents [B, C]) -> [B, ...]`, exported.
      most: the largest `B` of both; larger batches are taken in pieces.
      is_fixed: whether `most` is the only `B`; smaller batches are then filled up to it.
    """

    forward: bytes
    pullback: bytes
    most: int
    is_fixed: bool


def program(apply_fn: Callable, variables: PyTree, input_shape: Sequence[int]) -> Program:
    """The program of a classifier.

    Args:
      apply_fn: `(variables, x [B, ...]) -> logits [B, C]`.
      variables: of one member: arrays or `jax.ShapeDtypeStruct`s.
      input_shape: shape of one example.

    Raises:
      ValueError: if it cannot be written down, as what calls back to Python cannot.
    """
    reason = None
    leaves, structure = jax.tree.flatten(variables)

    def forward(leaves, x):
        return apply_fn(jax.tree.unflatten(structure, leaves), x)

    def pullback(leaves, x, cotangents):
        return jax.vjp(lambda x: forward(leaves, x), x)[1](cotangents)[0]

    def written(function, *arguments):
        return bytes(export.export(jax.jit(function), platforms=_PLATFORMS)(*arguments).serialize())

    # Any size up to a bound first: with the bound known, comparisons of sizes inside the model can
    # be decided. One fixed size is the last resort.
    for most, is_fixed in [*((most, False) for most in _MOST), (_FIXED, True)]:
        (any_size,) = export.symbolic_shape("b", constraints=[f"b <= {most}"])
        size = most if is_fixed else any_size
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        x = jax.ShapeDtypeStruct((size, *input_shape), jnp.float32)
        try:
            logits = jax.eval_shape(forward, shapes, x)
            both = written(forward, shapes, x), written(pullback, shapes, x, logits)
            return Program(*both, most, is_fixed)
        except Exception as error:  # Whatever depends on the size, or is wrong otherwise.
            reason = error
    raise ValueError(f"the classifier cannot be written as a program: {_first_line(reason)}")


def function(program: Program) -> Callable[[Sequence[Any], Array], Array]:
    """The classifier again: `(leaves, x [B, ...]) -> logits [B, C]`.

    It may be compiled, mapped over `x`, and differentiated in `x` by reverse mode, once; its
    gradient in the leaves is 0. It runs only on the platforms that it was written for: CPUs and
    NVIDIA GPUs.
    """
    written = program.forward, program.pullback
    calls = [export.deserialize(bytearray(each)).call for each in written]
    forward, pullback = (_of_any_size(call, program.most, program.is_fixed) for call in calls)

    @jax.custom_vjp
    def apply(leaves, x):
        return forward(leaves, x)

    def there(leaves, x):
        return forward(leaves, x), (leaves, x)

    def back(kept, cotangents):
        leaves, x = kept
        # An attack moves images, never variables: a pullback of these would double the file.
        return None, pullback(leaves, x, cotangents)

    apply.defvjp(there, back)
    return apply


def _of_any_size(call, most, is_fixed):
    """`(leaves, *arrays [B, ...])` in pieces of at most `most` examples, and a rule for `vmap`.

    An exported program has none: the mapped axis becomes a part of the batch.
    """

    @jax.custom_batching.custom_vmap
    def apply(leaves, *arrays):
        num_examples = len(arrays[0])
        num_whole = num_examples // most * most
        pieces = []
        if num_whole > most:
            whole = [x[:num_whole].reshape(-1, most, *x.shape[1:]) for x in arrays]
            found = jax.lax.map(lambda piece: call(leaves, *piece), whole)
            pieces.append(found.reshape(num_whole, *found.shape[2:]))
        elif num_whole:
            pieces.append(call(leaves, *(x[:num_whole] for x in arrays)))
        if num_whole < num_examples:
            num_left = num_examples - num_whole
            more = most - num_left if is_fixed else 0
            rest = [_filled_up(x[num_whole:], more) for x in arrays]
            pieces.append(call(leaves, *rest)[:num_left])
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)

    @apply.def_vmap
    def mapped(axis_size, is_mapped, leaves, *arrays):
        leaves_mapped, *arrays_mapped = is_mapped
        if any(jax.tree.leaves(leaves_mapped)):  # other variables for each: one after the other
            each = jax.tree.map(
                lambda x, mapped: x if mapped else jnp.broadcast_to(x, (axis_size, *x.shape)),
                (leaves, arrays),
                (leaves_mapped, tuple(arrays_mapped)),
            )
            return jax.lax.map(lambda one: apply(one[0], *one[1]), each), True
        flat = [
            (x if mapped else jnp.broadcast_to(x, (axis_size, *x.shape))).reshape(
                -1, *x.shape[1 + mapped :]
            )
            for x, mapped in zip(arrays, arrays_mapped, strict=True)
        ]
        found = apply(leaves, *flat)
        return found.reshape(axis_size, -1, *found.shape[1:]), True

    return apply


def _filled_up(x, more):
    """`[B, ...] -> [B + more, ...]`, by copies of the last example."""
    return jnp.concatenate([x, jnp.broadcast_to(x[-1:], (more, *x.shape[1:]))]) if more else x


def packed(leaves: Sequence[Array]) -> dict[str, np.ndarray]:
    """Arrays of any dtype, random keys too, as arrays that NumPy can hold in a file."""
    found = {}
    for place, leaf in enumerate(leaves):
        kind = str(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            kind, leaf = f"key {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
        array = np.asarray(leaf)
        if array.dtype.kind == "V":  # bfloat16 and its like, as the bytes that they are
            array = array.view(f"u{array.dtype.itemsize}")
        found[f"leaf_{place:05d}"] = array
        found[f"kind_{place:05d}"] = np.asarray(kind)
    return found


def unpacked(arrays: dict[str, np.ndarray]) -> list[Array]:
    """The leaves that were `packed`; anything else in `arrays` is ignored."""
    leaves = []
    for name in sorted(name for name in arrays if name.startswith("leaf_")):
        kind, array = str(arrays[name.replace("leaf", "kind")]), arrays[name]
        if kind.startswith("key "):
            leaves.append(
                jax.random.wrap_key_data(jnp.asarray(array), impl=kind.removeprefix("key "))
            )
        else:
            leaves.append(jnp.asarray(array.view(jnp.dtype(kind))))
    return leaves


def _first_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
