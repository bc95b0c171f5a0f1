"""Command lines of the experiments: every field of a frozen dataclass is a flag with help."""

import argparse
import dataclasses
import fractions
import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn


def flag(default: Any, help: str, *, options: tuple | None = None) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
      default: value without preset and flag; its type is that of the flag.
      help: what the value means, with its unit.
      options: the values allowed; None allows all of the type.
    """
    return dataclasses.field(default=default, metadata={"help": help, "options": options})


def parse(
    argv,
    presets: dict,
    *,
    default: str,
    program: str,
    description: str,
    selector: str = "preset",
    resumed: Callable[[str], dict] | None = None,
):
    """The preset named in `argv`, changed by the flags that follow.

    Args:
      argv: arguments without the program's name; None for those of the process.
      presets: name to config, all of one dataclass made with `flag`.
      default: name of the preset used when none is named.
      program: name of the program in messages.
      description: what `--help` shows above the flags.
      selector: name of the flag that names the preset.
      resumed: `run_dir -> fields` of the run in a folder: with `--resume` they stand for the
        preset that nobody has named; None: runs of the program are not gone on with so.

    Returns:
      `(name of the preset, config)`; the name is empty where the run's own config has replaced it.
      Bad input ends the process: one line, exit code 2.
    """
    print_anything()
    first = _Parser(prog=program, add_help=False, allow_abbrev=False)
    first.add_argument(f"--{selector}")
    first.add_argument("--run-dir", default="")
    first.add_argument("--resume", action=argparse.BooleanOptionalAction)
    found, _ = first.parse_known_args(argv)
    named = getattr(found, selector)
    chosen = named if named in presets else default
    usual, source = presets[chosen], f"{selector} {chosen}"
    if resumed is not None and found.resume and named is None:
        known = {field.name for field in dataclasses.fields(usual)}
        own = {name: value for name, value in resumed(found.run_dir).items() if name in known}
        if own:
            usual, source, chosen = dataclasses.replace(usual, **own), "the run's", ""
    parser = _Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(f"--{selector}", choices=presets, help=f"default: {default}")
    for field in dataclasses.fields(usual):
        name = "--" + field.name.replace("_", "-")
        value = getattr(usual, field.name)
        text = f"{field.metadata['help']} ({source}: {value!r})".replace("%", "%%")
        if isinstance(field.default, bool):
            kind: dict = {"action": argparse.BooleanOptionalAction}
        else:
            kind = {"type": _READERS[type(field.default)], "choices": field.metadata["options"]}
            kind["metavar"] = None if kind["choices"] else type(field.default).__name__.upper()
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **kind)
    flags = vars(parser.parse_args(argv))
    del flags[selector]
    return chosen, dataclasses.replace(usual, **flags)


def print_anything():
    """Lets `print` write the code of a character that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(program: str, error: Exception | str) -> NoReturn:
    """Ends the process: one line on stderr, exit code 2."""
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


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
