"""The whole attack suite on a finished run of `experiments.cifar10_mixture`.

    python -m experiments.evaluate --run-dir runs/demo                # 5 minutes of a CPU core
    python -m experiments.evaluate --run-dir runs/fast --budget standard     # hours on a GPU

Attacks the run's most robust mixture, each of its members alone and their average, all with the
same number of runs, and the single classifier of the same run if there is one; looks for signs
that the attacks were weak; draws what they leave at other radii (`security.png`); writes
`evaluation_<budget>.json` and a section of `report.md`. Another threat than the run's (`--norm l2
--epsilon 0.5`) has files and a section of its own. A process that was stopped, or killed,
continues with `--resume` to the same numbers.
"""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from experiments.meunier_2021.algorithm import Config, build, members
from experiments.meunier_2021.training import restore
from experiments.pinot_2020.boosted_attacks import rejected_scores
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.reading import Run, head, read_run
from mixjax import checks, data, ensemble, evaluation, parallel, reporting, threats
from mixjax.front.progress import Bars
from mixjax.interrupt import Stopped, interruptible

PROGRAM = "experiments.evaluate"
BUDGETS = {
    "quick": evaluation.QUICK,
    "standard": evaluation.STANDARD,
    "autoattack": evaluation.AUTOATTACK,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every field is a flag."""

    run_dir: str = flag("", "folder of the finished run")
    norm: str = flag(
        "", "norm of the perturbations; empty: the run's", options=("", *threats.BY_NAME)
    )
    epsilon: float = flag(0.0, "radius of the perturbations, also as a fraction; 0: the run's")
    carlini_wagner: bool = flag(
        False, "Carlini and Wagner's attack as Pinot et al. reject it, beyond three l2 norms, too"
    )
    num_examples: int = flag(0, "test examples attacked; 0: as many as the run itself tested")
    num_complete: int = flag(
        1000, "examples that meet every attack, lost or not, so that each can be judged alone"
    )
    num_diagnosed: int = flag(
        100, "examples of the security curve, and on which signs of weak attacks are looked for"
    )
    num_radii: int = flag(4, "radii of the security curve, up to twice the run's; 0: no curve")
    batch_size: int = flag(0, "examples attacked at once; 0: 50 on a CPU, 500 elsewhere")
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    manual_dir: str = flag("", "folder with the official archives, to prepare data offline")
    devices: int = flag(0, "number of devices; 0: all")
    resume: bool = flag(False, "continue an evaluation of the same run and budget")
    debug: bool = flag(False, "show the traceback of an error")


def main(argv=None):
    """Runs the evaluation; bad input ends in one line and exit code 2."""
    budgets = dict.fromkeys(BUDGETS, Settings())
    program.main(PROGRAM, __doc__ or "", budgets, run, argv, selector="budget", folder="")


def run(call: program.Call):
    """Evaluates the single classifier, if there is one, and the mixture, and reports."""
    budget, settings = call.choice, call.config
    check(settings)
    folder = pathlib.Path(settings.run_dir)
    mixture = read_run(folder)
    label = label_of(budget, settings, mixture.config)
    runs = {f"mixture of {mixture.config.members}": mixture}
    if (folder / "single").exists():
        runs = {"single": read_run(folder / "single")} | runs
    for each in runs.values():
        refuse_what_is_there(each.folder, label, settings.resume)
    dataset = data.load(
        mixture.config.dataset, settings.data_dir or None, manual_dir=settings.manual_dir or None
    )
    evaluations, versus = {}, None
    for name, each in runs.items():
        evaluations[name], versus = evaluate(
            name, each, dataset, budget, settings, call.command, versus
        )
    results = {name: each.result for name, each in runs.items()}
    title = f"{mixture.config.dataset}, loss {mixture.config.loss}"
    on_disk = reporting.read_evaluations({name: each.folder for name, each in runs.items()})
    if settings.num_radii:
        curves = {name: each["security"] for name, each in evaluations.items()}
        norm = reporting.NORMS[threat_of(settings, mixture.config).name]
        reporting.plot_security(folder / "security.png", curves, norm=norm)
    first = head(folder, results, on_disk)
    reporting.write_report(folder, results, title, on_disk, first)
    print(reporting.reported_table(evaluations))
    print(reporting.results_table(list(evaluations.values()), list(evaluations)))
    print("".join(reporting.difference_line(*item) for item in evaluations.items()))
    print(first.found)
    print(f"{folder / 'report.md'} holds the report.")


def check(settings: Settings):
    """Raises `ValueError` for what would otherwise go wrong only after the attacks."""
    checks.at_least(1, num_complete=settings.num_complete, num_diagnosed=settings.num_diagnosed)
    names = ("num_examples", "num_radii", "batch_size", "devices")
    checks.at_least(0, **{name: getattr(settings, name) for name in names})
    number = jax.device_count()
    checks.within(1, number, devices=settings.devices or number)
    checks.non_negative(epsilon=settings.epsilon)
    if not settings.run_dir:
        raise ValueError("run_dir must be the folder of a finished run: --run-dir DIR")


def threat_of(settings: Settings, config: Config) -> threats.Threat:
    """The run's own, or another."""
    return threats.BY_NAME[settings.norm or config.norm](settings.epsilon or config.epsilon)


def label_of(budget: str, settings: Settings, config: Config) -> str:
    """What the files of an evaluation are called: by the budget, and the threat if another one."""
    threat = threat_of(settings, config)
    own = (threat.name, float(threat.epsilon)) == (config.norm, config.epsilon)
    return budget if own else f"{budget}_{threat.name}_{float(threat.epsilon):g}"


def refuse_what_is_there(folder: pathlib.Path, budget: str, resume: bool):
    """Raises `ValueError` if there is an evaluation and nobody asked to continue it."""
    for path in (folder / f"evaluation_{budget}.json", folder / f"evaluation_{budget}"):
        if path.exists() and not resume:
            raise ValueError(
                f"run_dir holds {path} already: continue it with --resume, or remove both "
                f"{path.stem}.json and the folder {path.stem} to begin anew"
            )


def evaluate(
    name: str,
    each: Run,
    dataset: data.Dataset,
    budget: str,
    settings: Settings,
    command: str,
    versus: np.ndarray | None,
):
    """Attacks, diagnoses and writes.

    Returns:
      The evaluation, with the paired difference to the accuracies `versus` [N], and the worst
      expected accuracy of each test example, [N].
    """
    start = time.monotonic()
    num_devices = settings.devices or jax.device_count()
    mesh = parallel.mesh(devices=jax.devices()[:num_devices])
    game = build(each.config, dataset)
    state = parallel.place(restore(game, each.checkpoints, each.recorded), mesh)
    apply_fn = jax.tree_util.Partial(game.model.apply)
    member_fns = [
        jax.tree_util.Partial(
            ensemble.apply, apply_fn, jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], state.average)
        )
        for k in range(each.config.members)
    ]
    num_examples = settings.num_examples or each.config.test_examples
    images, labels = (part[:num_examples] for part in dataset.test)
    limit = BUDGETS[budget]
    threat, label = threat_of(settings, each.config), label_of(budget, settings, each.config)
    suite = evaluation.attack_suite(threat, limit)
    mixture = (members(game.model, state), state.weights, images, labels)
    key = jax.random.fold_in(jax.random.key(each.config.seed), 4)
    batch = batch_size(settings.batch_size, len(labels), num_devices)
    transform = parallel.over_examples(tuple(mesh.devices.flat))
    with interruptible() as interrupt, Bars(name=name) as bars:

        def progress(*done):
            bars.show(*done)
            if interrupt.received:
                raise Stopped(interrupt.exit_code, "after {1} of {2} runs of {0}".format(*done))

        found = evaluation.evaluate(
            key,
            *mixture,
            suite,
            member_fns=member_fns,
            num_complete=settings.num_complete,
            num_diagnosed=settings.num_diagnosed,
            batch_size=batch,
            folder=each.folder / f"evaluation_{label}",
            progress=progress,
            transform=transform,
        )
    figures, worst = found.report(), found.worst
    if versus is not None:
        difference, error_bar = evaluation.paired_difference(worst, versus)
        figures["versus_single"] = {
            "difference": difference,
            "error_bar": error_bar,
            "interval": evaluation.paired_interval(worst, versus),
        }
    if settings.num_radii:
        curves = evaluation.security_curves(
            key,
            *mixture[:2],
            images[: settings.num_diagnosed],
            labels[: settings.num_diagnosed],
            suite,
            float(threat.epsilon) * np.linspace(0, 2, settings.num_radii + 1)[1:],
            batch_size=batch,
            transform=transform,
        )
        figures["security"] = curves.report()
    if settings.carlini_wagner:
        figures["carlini_wagner"] = rejected_scores(*mixture, batch_size=batch)
    seconds = max(time.monotonic() - start, figures["cost"]["all"]["seconds"] * len(labels))
    result = {
        "dataset": each.config.dataset,
        **figures,
        "budget": {"name": budget, **limit._asdict()},
        "config": each.recorded,
        "provenance": reporting.provenance(command, each.config.seed, seconds),
    }
    return reporting.write_result(each.folder, result, f"evaluation_{label}.json"), worst


def batch_size(wanted: int, num_examples: int, num_devices: int) -> int:
    """Examples attacked at once: no more than there are, and as many on each device."""
    usual = 50 if jax.default_backend() == "cpu" else 500
    number = min(wanted or usual, num_examples)
    return -(-number // num_devices) * num_devices


if __name__ == "__main__":
    main()
