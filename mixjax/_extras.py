"""What is not part of the core: a missing package is one line that names the extra it comes with."""

import importlib.util

_PACKAGES = {
    "models": ("train", "flax"),
    "checkpoint": ("train", "orbax"),
    "data": ("data", "tensorflow_datasets"),
}


def require(extra: str, *packages: str):
    """Raises `ModuleNotFoundError` naming the `extra` if one of its `packages` is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"{package} is missing: pip install 'mixjax[{extra}]'", name=package
            )
