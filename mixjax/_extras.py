"""What is not part of the core: a missing package is an error of one line that names its extra."""

import contextlib
import importlib.util
from collections.abc import Iterator

_PACKAGES = {"train": ("flax", "flatbuffers", "orbax")}  # all of these, or the extra is not there


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
    """Turns a missing package, inside the `with` block, into the line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing: pip install 'mixjax[{extra}]'", name=error.name
        ) from None


def installed(extra: str) -> bool:
    """Whether the packages of an extra are there; none is imported."""
    return all(importlib.util.find_spec(name) for name in _PACKAGES[extra])
