"""What a pytree of arrays is made of, leaf by leaf: shape, dtype and sha256 of its bytes."""

import concurrent.futures
import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def forms(tree: Any) -> dict[str, dict[str, Any]]:
    """Path -> {"shape", "dtype"} of each leaf: arrays, `jax.ShapeDtypeStruct`s or numbers."""
    return {name: _form(leaf) for name, leaf in _leaves(tree).items()}


def fingerprints(tree: Any) -> dict[str, dict[str, Any]]:
    """Path -> {"shape", "dtype", "sha256"} of each leaf; the same on any number of devices."""
    leaves = _leaves(tree)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # sha256 releases Python's lock
        digests = pool.map(_sha256, [_on_host(leaf) for leaf in leaves.values()])
        return {
            name: _form(leaf) | {"sha256": digest}
            for (name, leaf), digest in zip(leaves.items(), digests, strict=True)
        }


def _leaves(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _form(leaf):
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _on_host(leaf):
    """The whole value of a leaf as a NumPy array, also where other hosts hold parts of it."""
    if isinstance(leaf, jax.Array):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable and leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        elif not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _sha256(array):
    contiguous = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(contiguous.data).hexdigest()
