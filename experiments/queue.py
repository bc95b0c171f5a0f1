"""Long runs, one after another, at low priority: what is done is kept, the rest goes on next time.

    python -m experiments.queue                      # starts or goes on, until all is done
    python -m experiments.queue --state              # one line: done, running, next, how long
    python -m experiments.queue --only digits        # those whose name begins so

Each entry is one of the project's own commands. A process that was stopped or killed goes on where
it was: a run whose JSON is there is done, any other is started again and continues from its own
checkpoints. When a run is done its JSON is written to `--results` under its name, and what was
done and in how many hours to `queue.json` in `--run-dir`; a run that fails is told there, and the
queue goes on to the next one. The hours are those of two CPU cores, roughly.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import NamedTuple

from experiments.run import program
from experiments.run.command_line import flag
from mixjax import checks, files

PROGRAM = "experiments.queue"
STATE = "queue.json"
_NICE = 19
_HAMM = (
    "experiments.hamm_2018.minimax_defense --preset mnist --cpu --batch-size 64 "
    "--learning-rate 5e-4 --network-steps 1000 --test-examples 1000 --mixture-examples 200 "
    "--apgd-steps 20"
)
_AGAIN = f"{_HAMM} --measurements 10 --ifgsm-steps 10 --dispatch-steps 50"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every field is a flag."""

    run_dir: str = flag("", "folder of the queue and of its runs; empty: runs/queue")
    results: str = flag("results", "folder that the JSON of a finished run is copied into")
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    only: str = flag("", "the runs whose name begins so; empty: all")
    most: int = flag(0, "runs started at most; 0: all")
    state: bool = flag(False, "say what is done, and start nothing")
    debug: bool = flag(False, "show the traceback of an error")


class Entry(NamedTuple):
    """One command of the queue.

    Attributes:
      name: of its folder, and of its JSON in the results.
      words: module and flags.
      hours: how long it takes, roughly.
    """

    name: str
    words: str
    hours: float


def entries() -> tuple[Entry, ...]:
    """The whole list, in the order in which it runs: what is short and asked for first."""
    table = "experiments.pinot_2020.boosted_table"
    digits = _seeds("members_table_digits", f"{table} --preset digits", 1.0)
    longer = [
        entry
        for epochs in (180, 360, 720, 1440)  # each shows whether the one before has converged
        for entry in _seeds(
            f"members_table_digits_algorithm_2_{epochs}_epochs",
            f"{table} --preset digits --epochs {epochs} --rows algorithm_2"
            # The faster way; the shorter ones were begun before there was the choice.
            + " --conv banded" * (epochs > 720),
            epochs / 360,
        )
    ]
    standard = Entry(
        "members_table_digits_standard", f"{table} --preset digits --budget standard", 3.0
    )
    boosted = _seeds("boosted_digits", "experiments.pinot_2020.boosted --suite-members all", 0.4)
    equal_compute = _seeds(
        "hamm_digits_equal_compute",
        "experiments.hamm_2018.minimax_defense --equal-compute",
        0.3,
    )
    mnist = _seeds("members_table_mnist", f"{table} --preset mnist", 12.0)
    cifar = [Entry("members_table_cifar10_width_16", f"{table} --preset cifar10", 60.0)]
    hamm = [
        Entry(
            of_seed(f"hamm_further_mnist_width_8_eta_{eta}_50000_steps_{order}", seed),
            f"{_HAMM} --width 8 --steps 50000 --rows 'sens alt minimax' --measurements 20 "
            f"--etas {eta} --order {order} --seed {seed}",
            20.0,
        )
        for order in ("simultaneous", "alternating")  # as printed, and the variant
        for eta in ("0.3", "0.4")
        for seed in (0, 1)
    ]
    # Measured before FGSM was the printed one, which does not clip to the box.
    five = "--rows 'adv lwa sens alt minimax'"
    again = [
        Entry(f"hamm_{name}", f"{_AGAIN} {words}", hours)
        for name, words, hours in (
            (
                "minimax_defense_mnist_width_8_eta_0.3",
                f"--width 8 --steps 2500 --etas 0.3 {five}",
                0.6,
            ),
            (
                "minimax_defense_mnist_width_8_eta_0.4",
                f"--width 8 --steps 2500 --etas 0.4 {five}",
                0.6,
            ),
            (
                "further_mnist_width_8_eta_0.4_penalty_0.1",
                "--width 8 --steps 2500 --etas 0.4 --rows minimax --penalty 0.1",
                0.4,
            ),
            (
                "further_mnist_width_8_eta_0.4_7500_steps",
                "--width 8 --steps 7500 --etas 0.4 --rows 'sens alt minimax'",
                0.8,
            ),
            (
                "further_mnist_width_8_eta_0.4_7500_steps_seed_1",
                "--width 8 --steps 7500 --etas 0.4 --rows 'alt minimax' --seed 1",
                0.6,
            ),
            (
                "further_mnist_width_32_eta_0.4_3000_steps",
                "--width 32 --steps 3000 --etas 0.4 --rows sens",
                0.9,
            ),
            (
                "further_fashion_mnist_width_8_eta_0.3_1200_steps",
                f"--dataset fashion_mnist --width 8 --steps 1200 --etas 0.3 {five}",
                0.9,
            ),
        )
    ]
    return (
        *boosted[:1],
        *digits,
        *boosted[1:],
        *equal_compute,
        *longer,
        *again,
        standard,
        *mnist,
        *hamm,
        *cifar,
    )


def _seeds(name, words, hours):
    """The same command for each of five seeds."""
    return [Entry(of_seed(name, seed), f"{words} --seed {seed}", hours) for seed in range(5)]


def of_seed(name: str, seed: int) -> str:
    """Seed 0 without an ending, as `RESULTS.md` reads the names."""
    return f"{name}_seed_{seed}" if seed else name


def main(argv=None):
    """Runs the queue; bad input ends in one line and exit code 2."""
    program.main(PROGRAM, __doc__ or "", {"all": Settings()}, run, argv)


def run(call: program.Call):
    """Starts what is not done, one after another."""
    settings, folder = call.config, call.folder
    checks.at_least(0, most=settings.most)
    wanted = [each for each in entries() if each.name.startswith(settings.only)]
    if not wanted:
        raise ValueError(f"only must be the beginning of a run's name, got {settings.only}")
    folder.mkdir(parents=True, exist_ok=True)
    if settings.state:
        print(line(wanted, folder, settings))
        return
    with files.hold(folder, argument="run_dir"):
        started = 0
        for each in wanted:
            if is_done(each, settings):
                continue
            if settings.most and started == settings.most:
                break
            started += 1
            print(line(wanted, folder, settings, each), flush=True)
            note(folder, each, "running", 0.0)
            start = time.monotonic()
            code = start_and_wait(each, settings, folder)
            hours = (time.monotonic() - start) / 3600
            note(folder, each, "done" if code == 0 else f"failed with exit code {code}", hours)
            if code < 0 or code > 128:  # stopped by a signal: so is the queue
                raise SystemExit(code if code > 0 else 128 - code)
            if code == 0:
                keep(each, settings, folder)
        print(line(wanted, folder, settings))


def is_done(each: Entry, settings: Settings) -> bool:
    """Whether its JSON is among the results, made by the program of today's name.

    Runs of programs that have moved since are done again.
    """
    path = pathlib.Path(settings.results) / f"{each.name}.json"
    if not path.exists():
        return False
    made_by = json.loads(path.read_text())["provenance"]["command"]
    return shlex.split(each.words)[0] in shlex.split(made_by)


def start_and_wait(each: Entry, settings: Settings, folder: pathlib.Path) -> int:
    """The exit code of its command, at the lowest priority; what it prints goes into a file."""
    words = command(each, settings, folder)
    with (folder / f"{each.name}.log").open("a") as log:
        print(shlex.join(words), file=log, flush=True)
        with subprocess.Popen(words, stdout=log, stderr=log) as process:
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
            try:
                return process.wait()
            except KeyboardInterrupt:  # The run has received it, too: it saves and ends.
                return process.wait()


def command(each: Entry, settings: Settings, folder: pathlib.Path) -> list[str]:
    """The words of a run, which goes on from its own folder if there is one."""
    place = folder / each.name
    words = [sys.executable, "-m", *shlex.split(each.words), "--run-dir", str(place)]
    if settings.data_dir:
        words += ["--data-dir", settings.data_dir]
    return words + (["--resume"] if (place / files.CONFIG).exists() else [])


def keep(each: Entry, settings: Settings, folder: pathlib.Path):
    """Copies the JSON of a finished run to the results."""
    text = (folder / each.name / "result.json").read_text()
    place = pathlib.Path(settings.results)
    place.mkdir(parents=True, exist_ok=True)
    files.write(place / f"{each.name}.json", text)


def read(folder: pathlib.Path) -> dict[str, dict]:
    """`name -> {state, hours}` of what was started so far."""
    path = folder / STATE
    return json.loads(path.read_text()) if path.exists() else {}


def note(folder: pathlib.Path, each: Entry, state: str, hours: float):
    """Writes down how a run stands; the hours of several starts add up."""
    known = read(folder)
    before = known.get(each.name, {"hours": 0.0})["hours"]
    known[each.name] = {"state": state, "hours": before + hours}
    files.write_json(folder / STATE, known, "state")


def line(
    wanted: list[Entry], folder: pathlib.Path, settings: Settings, running: Entry | None = None
) -> str:
    """What is done, what runs, what comes next and how long all that is left will take."""
    known = read(folder)
    states = {each.name: known.get(each.name, {}).get("state", "") for each in wanted}
    left = [each for each in wanted if not is_done(each, settings)]
    others = [each for each in left if running is None or each.name != running.name]
    waiting = [each for each in others if not states[each.name].startswith("failed")]
    failed = [each.name for each in others if states[each.name].startswith("failed")]
    parts = [f"{len(wanted) - len(left)} of {len(wanted)} done"]
    if running is not None:
        parts.append(f"running {running.name} ({running.hours:g} h)")
    if failed:
        parts.append(f"failed {', '.join(failed)}")
    parts.append(f"next {waiting[0].name}" if waiting else "nothing waits")
    parts.append(f"about {sum(each.hours for each in left):.0f} h left")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
