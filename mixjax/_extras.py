"""What is not part of the core: a missing package is told in one line that names its extra."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
    """Turns a missing package, inside the `with` block, into the line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing: pip install 'mixjax[{extra}]'", name=error.name
        ) from None
