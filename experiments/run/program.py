"""The frame of every program: flags, folder, provenance, page, and errors in one line."""

import contextlib
import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from experiments.run import command_line
from mixjax import checkpoint, checks, data, files, memory, reporting
from mixjax.front.progress import bar
from mixjax.interrupt import Stopped

PLACES = ("data_dir", "manual_dir", "run_dir", "resume", "cpu", "debug")  # say not what is computed


class Call(NamedTuple):
    """What a person asked of a program.

    Attributes:
      program: name of its module.
      choice: the preset, or the budget; empty where a run goes on with its own config.
      config: the flags.
      folder: of the run.
      command: the command line, for the provenance.
    """

    program: str
    choice: str
    config: Any
    folder: pathlib.Path
    command: str

    @property
    def name(self) -> str:
        """The last part of the module's name."""
        return self.program.split(".")[-1]


class Outcome(NamedTuple):
    """What an experiment found.

    Attributes:
      result: entries of `result.json`.
      summary: lines to print.
      head: what `report.md` begins with, and the sentence that is printed last.
      sections: parts of `report.md`, Markdown; none: the summary.
      figures: `file -> caption` of what was drawn into the folder, for the page.
    """

    result: dict[str, Any]
    summary: str
    head: reporting.Head
    sections: list[str] = []
    figures: dict[str, str] = {}


def main(
    program: str,
    description: str,
    presets: dict[str, Any],
    run: Callable[[Call], None],
    argv,
    *,
    default: str = "",
    selector: str = "preset",
    folder: str = "runs/{name}",
    hint: str = "",
):
    """Reads the command line and runs; bad input ends in one line and exit code 2.

    Args:
      program: name of the module.
      description: what `--help` shows.
      presets: name to config, with `run_dir` and `debug` among its fields.
      run: does what was asked for.
      argv: arguments; None for those of the process.
      default: name of the preset used when none is named; empty: the first.
      selector: name of the flag that names the preset.
      folder: of a run whose flag `run_dir` is empty, with the `name` of the program and the
        `choice` of preset in it; empty: the program looks at runs of others.
      hint: what is added to the line where data cannot be had.
    """
    command = f"python -m {program}"
    default = default or next(iter(presets))
    name = program.split(".")[-1]

    def of_run(run_dir, choice=default):
        return pathlib.Path(run_dir or folder.format(name=name, choice=choice or default))

    def resumed(run_dir):
        with errors_in_one_line(command):
            place = of_run(run_dir)
            return reporting.read_config(place) if (place / files.CONFIG).exists() else {}

    choice, config = command_line.parse(
        argv,
        presets,
        default=default,
        program=command,
        description=description,
        selector=selector,
        resumed=resumed if folder else None,
    )
    cache_compilation()
    memory.keep()
    place = of_run(config.run_dir, choice)
    words = shlex.join(sys.argv[1:] if argv is None else argv)
    go_on = "the same command begins anew"
    if hasattr(config, "resume"):
        own = f"--resume --run-dir {shlex.quote(str(place))} goes on"
        go_on = own if folder else "the same command with --resume goes on"
    with errors_in_one_line(command, debug=config.debug, hint=hint, go_on=go_on):
        run(Call(program, choice, config, place, f"{command} {words}".strip()))


@contextlib.contextmanager
def errors_in_one_line(
    command: str, *, debug: bool = False, hint: str = "", go_on: str = ""
) -> Iterator[None]:
    """Ends the process in one line at an error that bad input causes, or raises it to debug.

    So it does after Ctrl-C: the line says where the program stopped and how it goes on.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        if debug:
            raise
        command_line.fail(command, f"{error}{hint if isinstance(error, data.DataError) else ''}")
    except Stopped as stop:
        print(f"{command}: stopped {stop.where}; {go_on}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print(f"{command}: stopped; {go_on}", file=sys.stderr)
        raise SystemExit(130) from None


def need_accelerator(call: Call):
    """Raises `ValueError` on a CPU for a preset that is made for something else."""
    if call.choice and not call.config.cpu and jax.default_backend() == "cpu":
        raise ValueError(
            f"preset {call.choice} is made for a GPU and there is none: --preset demo takes "
            "minutes on a CPU, --cpu insists"
        )


@contextlib.contextmanager
def held(
    folder: pathlib.Path, recorded: dict[str, Any], *, resume: bool | None
) -> Iterator[pathlib.Path]:
    """The folder of a run, which nobody else can have meanwhile.

    Args:
      folder: the folder.
      recorded: what identifies the run.
      resume: whether the folder may hold this run already; None: it never may.
    """
    checkpoint.check_directory(folder, argument="run_dir")
    if not resume and (folder / files.CONFIG).exists():
        told = "" if resume is None else "continue it with --resume or "
        raise ValueError(f"run_dir {folder} holds a run already: {told}choose another --run-dir")
    with reporting.open_run(folder, recorded, resume=bool(resume)):
        yield folder


def in_folder(
    experiment: Callable[[Any, pathlib.Path], Outcome],
) -> Callable[[Call], None]:
    """What `main` runs, of an experiment `(config, folder) -> Outcome`."""

    def run(call):
        checks.seed(seed=call.config.seed)
        complete(call, lambda: experiment(call.config, call.folder))

    return run


def complete(
    call: Call,
    experiment: Callable[[], Outcome],
    *,
    recorded: dict[str, Any] | None = None,
    title: str = "",
):
    """An experiment in its folder: `result.json`, a page, a summary.

    The same command again does the same again, or goes on; another config needs another folder.
    With a flag `resume` a run that is there is gone on with only if it is given.

    Args:
      call: what was asked for.
      experiment: the experiment; it may draw into the folder.
      recorded: what identifies the run; None: all fields of the config that are no places.
      title: of the page; empty: the program's name.
    """
    start = time.monotonic()
    recorded = recorded_of(call.config) if recorded is None else recorded
    with held(call.folder, recorded, resume=getattr(call.config, "resume", True)) as folder:
        outcome = experiment()
        seconds = time.monotonic() - start
        origin = reporting.provenance(call.command, call.config.seed, seconds)
        result = {**outcome.result, "config": recorded, "provenance": origin}
        files.write_json(folder / "result.json", result, "result")
        title = title or call.name.replace("_", " ").capitalize()
        files.write(folder / "report.md", page(outcome, title, origin))
    print(outcome.summary)
    print(outcome.head.found)
    print(f"{folder / 'report.md'} holds the report.")


def recorded_of(config: Any) -> dict[str, Any]:
    """What identifies a run: its flags but those that may change when it is continued."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in PLACES}


def page(outcome: Outcome, title: str, origin: dict[str, Any]) -> str:
    """`report.md`."""
    sections = outcome.sections or [f"```text\n{outcome.summary}\n```\n"]
    parts = [f"# {title}\n", str(outcome.head), *sections]
    parts += [f"![{text}]({file})\n\n{text}\n" for file, text in outcome.figures.items()]
    parts += ["## Provenance\n"]
    parts += [f"- {name}: {value}" for name, value in origin.items()]
    return "\n".join(parts) + "\n"


def shown(items: Iterable, name: str, unit: str) -> Iterable:
    """The items, one after the other, with a bar on standard error."""
    return bar(items, desc=name, unit=unit)


def numbers(low: float, high: float, **lists: str) -> list[float]:
    """The numbers in a flag such as `"1 0.3 0.1"`.

    Raises:
      ValueError: naming the flag, if there are none or one is not a number of [low, high].
    """
    ((name, text),) = lists.items()
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers, got {text!r}") from error
    if not values:
        raise ValueError(f"{name} must hold at least one number, got {text!r}")
    checks.within(low, high, **{name: values})
    return values


def write_csv(path, columns: dict[str, Any]):
    """Writes columns of equal length as CSV, whole or not at all."""
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(f"{value:g}" for value in row) for row in rows)]
    files.write(path, "\n".join(lines) + "\n")


def cache_compilation():
    """Keeps compiled programs in the user's cache, unless JAX was told where."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        with contextlib.suppress(RuntimeError):  # A container may run without a home.
            cache = pathlib.Path("~/.cache/mixjax/compiled").expanduser()
            if cache.is_absolute():
                jax.config.update("jax_compilation_cache_dir", str(cache))
