"""Command lines of the experiments: every field of a frozen dataclass is a flag with help."""

import argparse
import contextlib
import dataclasses
import fractions
import io
import pathlib
import sys
from typing import Any, NoReturn

import jax

from mixjax import data


def flag(default: Any, help: str, *, options: tuple | None = None) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
      default: value without preset and flag; its type is that of the flag.
      help: what the value means, with its unit.
      options: the values allowed; None allows all of the type.
    """
    return dataclasses.field(default=default, metadata={"help": help, "options": options})


def parse(
    argv, presets: dict, *, default: str, program: str, description: str, selector: str = "preset"
):
    """The preset named in `argv`, changed by the flags that follow.

    Args:
      argv: arguments without the program's name; None for those of the process.
      presets: name to config, all of one dataclass made with `flag`.
      default: name of the preset used when none is named.
      program: name of the program in messages.
      description: what `--help` shows above the flags.
      selector: name of the flag that names the preset.

    Returns:
      `(name of the preset, config)`. Bad input ends the process: one line, exit code 2.
    """
    print_anything()
    parser = _Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        f"--{selector}", choices=presets, default=default, help="default: %(default)s"
    )
    for field in dataclasses.fields(presets[default]):
        name = "--" + field.name.replace("_", "-")
        usual = getattr(presets[default], field.name)
        text = f"{field.metadata['help']} ({selector} {default}: {usual!r})".replace("%", "%%")
        if isinstance(field.default, bool):
            kind: dict = {"action": argparse.BooleanOptionalAction}
        else:
            kind = {"type": _READERS[type(field.default)], "choices": field.metadata["options"]}
            kind["metavar"] = None if kind["choices"] else type(field.default).__name__.upper()
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **kind)
    flags = vars(parser.parse_args(argv))
    preset = flags.pop(selector)
    return preset, dataclasses.replace(presets[preset], **flags)


def print_anything():
    """Lets `print` write the code of a character that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(program: str, error: Exception | str) -> NoReturn:
    """Ends the process: one line on stderr, exit code 2."""
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def errors_in_one_line(program: str, *, debug: bool, data_hint: str = ""):
    """Ends the process as `fail` does at an error that bad input causes, or raises it to debug."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        fail(program, f"{error}{data_hint if isinstance(error, data.DataError) else ''}")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(self.prog, message)


def _real(text):
    """A number, also as a fraction: `8/255`."""
    try:
        return float(fractions.Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from error


def _whole(text):
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from error


_READERS = {float: _real, int: _whole, str: str}


def cache_compilation():
    """Keeps compiled programs in the user's cache, unless JAX was told where."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        with contextlib.suppress(RuntimeError):  # A container may run without a home.
            cache = pathlib.Path("~/.cache/mixjax/compiled").expanduser()
            if cache.is_absolute():
                jax.config.update("jax_compilation_cache_dir", str(cache))
