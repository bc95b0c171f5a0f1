"""From which command, code, versions and device a result came; nothing about people or hosts."""

import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# A path that leads out of the working directory, at the start of a word or after one of = , : ;
# A name may have spaces: the path ends where the text ends, or with one of these.
_OUTSIDE = re.compile(r"(?:(?<=^)|(?<=[=,:;\s]))(?:/|~|\.\./)[^=,:;]*")


def provenance(command: str | Sequence[str], seed: int, seconds: float) -> dict[str, Any]:
    """What is needed to repeat a run and to judge its duration.

    Args:
      command: the command line, as a string or as a list like `sys.argv`.
      seed: root seed of the run.
      seconds: wall-clock time of the run.

    Returns:
      Dict of `command` (with paths relative to the working directory, or their last part alone),
      `commit` (ending in `-dirty` if tracked files differ from it, those in the folder `results` at
      the top left out, which programs write; None outside git), `seed`, `versions`, `device`
      (`platform`, `kind`, `number`, `num_hosts`, `num_cores` of the CPU) and `seconds`.
    """
    devices = jax.devices()
    return {
        "command": _command(command),
        "commit": _commit(),
        "seed": int(seed),
        "versions": _versions(),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "number": len(devices),
            "num_hosts": jax.process_count(),
            "num_cores": os.cpu_count(),
        },
        "seconds": round(float(seconds), 1),
    }


def without_paths(value: Any) -> Any:
    """`value` with every absolute path in its strings made relative, or cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    return _OUTSIDE.sub(_shorten, _from_home(value)) if isinstance(value, str) else value


def _from_home(text):
    """`text` without working directory and home, whose names may hold what ends a path."""
    for folder, name in ((os.getcwd(), ""), (os.path.expanduser("~"), "~/")):
        if folder := folder.rstrip("/"):
            found = rf"(?<![^=,:;\s]){re.escape(folder)}(/|$)"
            text = re.sub(found, lambda end, name=name: name or ("" if end[1] else "."), text)
    return text


def _shorten(match):
    if match[0] in ("~", "~/"):
        return "~"
    path = pathlib.PurePosixPath(os.path.expanduser(match[0]))
    here = pathlib.PurePosixPath(os.getcwd())
    if path.is_relative_to(here) and ".." not in path.parts:
        return str(path.relative_to(here))
    return path.name or "."


def _command(command):
    words = shlex.split(command) if isinstance(command, str) else list(map(str, command))
    words = [without_paths(word) for word in words]
    if words and words[0].endswith(".py"):
        module = pathlib.PurePosixPath(words[0]).with_suffix("")
        words[:1] = ["python", "-m", ".".join(module.parts).removesuffix(".__main__")]
    return shlex.join(words)


def _commit():
    """The commit of the code that runs, if its files are under version control."""
    tracked = _git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
    commit = tracked and _git("rev-parse", "HEAD")
    code = ":/", ":(top,exclude)results"
    changed = commit and _git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return f"{commit}-dirty" if changed else commit


def _git(*arguments):
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        finished = subprocess.run(
            ["git", *arguments],
            cwd=pathlib.Path(__file__).parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip() or None


def _versions():
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions | {"mixjax": sys.modules["mixjax"].__version__}
