"""From a command line to `result.json` and `report.md`, for the experiments of Hamm 2018."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.hamm_2018 import scores
from experiments.hamm_2018.settings import PAPER, check, recorded
from experiments.hamm_2018.training import (
    Setting,
    attacker_of,
    ball,
    build,
    load,
    under_network,
)
from experiments.hamm_2018.variants import fgsm, said
from experiments.run import program
from experiments.run.program import Outcome
from mixjax import losses, reporting
from mixjax.intervals import wilson_interval
from mixjax.reporting import drawing
from mixjax.reporting.figures import around
from mixjax.typing import PyTree

ATTACKS = {
    "clean": "no attack",
    "fgsm_curr": "FGSM-curr",
    "attack_network_curr": "AttNet-curr",
    "ifgsm_curr": "IFGSM-curr",
    "auto_pgd": "AutoPGD (not in the paper)",
    "worst": "worst of all",
}
_MEANING = """\
Error rates on test examples, in brackets Wilson's 95 % interval over them; in square brackets what
the paper reports, *T4* in its table 4. **FGSM-curr** is FGSM on this very classifier,
**AttNet-curr** an attack network trained afresh against it, **AutoPGD** the worst of two losses,
which the paper does not run. Radii eta are for pixels in [-1, 1].
"""


def main(
    name: str,
    description: str,
    presets: dict[str, Any],
    experiment: Callable[[Setting], Outcome],
    argv,
    check_own: Callable[[Any], None] = lambda config: None,
):
    """Runs an experiment and writes its result and report; bad input is one line, exit code 2.

    Args:
      name: name of the module.
      description: what `--help` shows.
      presets: name to config, "demo" among them.
      experiment: the experiment.
      argv: arguments; None for those of the process.
      check_own: raises `ValueError` for fields of its own that are out of range.
    """

    def run(call):
        config = call.config
        program.need_accelerator(call)
        check(config)
        check_own(config)
        dataset = load(config)
        model, network = build(config, dataset)
        attacker = attacker_of(config)
        setting = Setting(config, dataset, model, network, call.folder, call.command, attacker)
        title = f"{call.name.replace('_', ' ')}: {call.choice or config.dataset}"

        def named():
            outcome = experiment(setting)
            return outcome._replace(result={"dataset": config.dataset, **outcome.result})

        program.complete(call, named, recorded=recorded(config), title=title)

    hint = "; --preset demo needs no data"
    program.main(name, description, presets, run, argv, folder="runs/{name}-{choice}", hint=hint)


def head(setting: Setting, found: str, **other: str) -> reporting.Head:
    """What a page begins with; `other` replaces what an experiment has otherwise."""
    config = setting.config
    lines = {
        "norm": "l-inf",
        "radius": f"eta = {getattr(config, 'etas', '')}, of pixels in [-1, 1]",
        "model": f"{config.model} of width {config.width}, trained in several ways",
        "attack": f"FGSM, IFGSM-{getattr(config, 'ifgsm_steps', 0)}, an attack network trained "
        f"afresh, AutoPGD-{getattr(config, 'apgd_steps', 0)} with two losses",
        "examples": f"{len(setting.dataset.test.labels)} test examples of {config.dataset}",
    }
    return reporting.Head(**{**lines, "found": found, **other})


def least(errors: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Which classifier errs least under the worst of all attacks, and what FGSM alone says of it.

    Args:
      errors: `eta -> classifier -> attack -> error and interval`, "No defense" among them.
    """
    parts = []
    for eta, rows in errors.items():
        best = min(rows, key=lambda name: rows[name]["worst"]["error"])
        one, none = rows[best]["worst"], rows["No defense"]["worst"]
        where = f"at eta = {eta}"
        if best == "No defense" or reporting.order(one["interval"], none["interval"]) == 0:
            told = f"{where} between {best} and no defence there is {reporting.NO_DIFFERENCE}"
            if best == "No defense":
                told = f"{where} no defence is better than none"
        else:
            told = f"{where} {best} errs least under the worst of all attacks"
        fgsm = rows[best]["fgsm_curr"]["error"]
        numbers = f"{_error(one)}, under FGSM alone {fgsm:.3f}; without defence {_error(none)}"
        parts.append(f"{told}: {numbers}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _error(entry):
    low, high = entry["interval"]
    return f"{entry['error']:.3f} (95 % interval {low:.3f} to {high:.3f})"


def tables(setting: Setting, rows: dict[tuple[str, float], dict[str, Any]]) -> list[str]:
    """A table for each radius: `(classifier, eta) -> result`, beside the paper's numbers."""
    number = next(iter(rows.values()))["num_examples"]
    sections = [_MEANING, f"{said(recorded(setting.config))}\n"]
    sections.append(f"{number} test examples of {setting.config.dataset}.\n")
    for eta in dict.fromkeys(eta for _, eta in rows):
        here = {name: result for (name, each), result in rows.items() if each == eta}
        paper = PAPER.get(setting.config.dataset, {}).get(eta, {})
        sections.append(f"## eta = {eta:g}\n\n{reporting.error_table(here, ATTACKS, paper)}")
    return sections


def errors_of(rows: dict[tuple[str, float], dict[str, Any]]) -> dict[str, Any]:
    """The same for `result.json`: `eta -> classifier -> attack -> error, error bar, interval`."""
    found: dict[str, Any] = {}
    for (name, eta), result in rows.items():
        accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
        found.setdefault(f"{eta:g}", {})[name] = {
            attack: scores.error_entry(
                accuracy, result["error_bar"][attack], result["num_examples"]
            )
            for attack, accuracy in accuracies.items()
        }
    return {"errors": found, "num_examples": next(iter(rows.values()))["num_examples"]}


def outcome(
    setting: Setting,
    rows: dict[tuple[str, float], dict[str, Any]],
    figures: dict[str, str],
    *,
    costs: dict[str, Any] | None = None,
    **more,
) -> Outcome:
    """The outcome of an experiment whose result is a table of classifiers, "No defense" with them.

    Args:
      setting: what was trained on what.
      rows: `(classifier, eta) -> result`.
      figures: `file -> caption`.
      costs: as of `training.costs`, for the table of what training cost.
      **more: further entries of `result.json`.
    """
    gates = [scores.gate(result) for (name, _), result in rows.items() if name == "No defense"]
    sentences = [sentence for _, sentence in gates]
    found = errors_of(rows)
    result = found | {"attack_network_is_strong": all(is_strong for is_strong, _ in gates)}
    sections = [*tables(setting, rows), *(f"{sentence}\n" for sentence in sentences)]
    if costs:
        result["training_cost"] = costs
        sections.append(f"## What training cost\n\n{cost_table(costs)}")
    first = head(setting, least(found["errors"]))
    return Outcome({**result, **more}, "\n".join(sections[1:]), first, sections, figures)


def cost_table(found: dict[str, Any]) -> str:
    """What training cost, as of `training.costs`, as Markdown."""
    rows = {
        row: [f"{each['cost_of_a_step']:.2f}", str(each["steps"]), f"{each['cost']:.0f}"]
        for row, each in found.items()
    }
    head = ["cost of a step", "steps", "cost in all"]
    return reporting.rate_table("in steps on clean images", head, rows)


def draw_attacks(
    setting: Setting, variables: PyTree, network: PyTree, eta: float, number: int = 8
) -> dict[str, str]:
    """Figure 4: examples clean, under FGSM and under the attack network; `{file: caption}`."""
    images, labels = (np.asarray(part[:number]) for part in setting.dataset.test)
    apply = setting.model.apply

    def one(variables, network, x, label):
        def loss_fn(x):
            return losses.cross_entropy(apply(variables, x), label)

        threat = ball(eta)
        points = {
            "clean": x,
            "FGSM": fgsm(setting.config)(None, loss_fn, x, threat)[0],
            "attack network": under_network(setting, network, loss_fn, x, label, threat),
        }
        return points, {name: apply(variables, point).argmax() for name, point in points.items()}

    points, answers = jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))(
        variables, network, images, labels
    )
    points = {name: points[name] for name in ("clean", "FGSM", "attack network")}
    names = setting.dataset.class_names
    plot_gallery(setting.folder / "attacks.png", points, labels, answers, names)
    caption = (
        f"Test examples under attacks of eta = {eta:g}, and what the classifier makes of them."
    )
    return {"attacks.png": caption}


def plot_errors(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, Sequence[Any]]],
    *,
    xlabel: str,
    attack: str,
    num_examples: int,
    names: Sequence[str] = (),
    points: bool = False,
) -> None:
    """Error rates against steps or rounds, one panel each, one line for each name.

    Bars are Wilson's 95 % intervals over the examples.

    Args:
      path: file to write, as PNG.
      panels: `title -> name -> (x [T], errors [T])`.
      xlabel: what x is.
      attack: what the errors are under, for the titles.
      num_examples: that the errors are rates of.
      names: all that there may be: each has the same look whether others are drawn or not.
      points: whether to mark each value and not to join them, for what jumps.

    Raises:
      ValueError: if there is no panel.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel, got none")
    figure, axes = drawing.figure(4.2 * len(panels) + 0.6, 3.6, len(panels))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, (x, errors) in curves.items():
            look = drawing.look([*dict.fromkeys((*names, *curves))].index(name))
            axis.errorbar(
                x,
                errors,
                yerr=around(errors, [wilson_interval(e, num_examples) for e in errors]) / 100,
                label=name,
                **look | ({"linestyle": "none"} if points else {}),
                markersize=4 if points or len(x) <= 20 else 0,
                elinewidth=0.8,
                capsize=2,
            )
        axis.set(
            title=f"{title}, l-inf, of pixels in [-1, 1]\n{attack}",
            xlabel=xlabel,
            ylabel="error",
            ylim=(-0.03, 1.03),
        )
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels), 1 + len(panels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    drawing.write(figure, path)


def plot_gallery(
    path: str | os.PathLike,
    pictures: Mapping[str, Any],
    labels: Any,
    predictions: Mapping[str, Any],
    class_names: Sequence[str],
) -> None:
    """The same examples under several attacks, a row for each.

    Args:
      path: file to write, as PNG.
      pictures: `name -> [N, H, W, C]` images in [0, 1], C = 1 or 3; a handful.
      labels: `[N]` true classes.
      predictions: `name -> [N]` what the attacked classifier answers.
      class_names: names of the classes.

    Raises:
      ValueError: if a row does not have N images, or predictions lack one.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      figure 4.
    """
    number = len(labels)
    for name, images in pictures.items():
        if name not in predictions or len(predictions[name]) != number or len(images) != number:
            raise ValueError(f"pictures and predictions of {name} must be {number} each")
    answers = {
        name: [
            (f"{class_names[int(answer)]} {'✓' if answer == label else '✗'}", answer == label)
            for answer, label in zip(predictions[name], labels, strict=True)
        ]
        for name in pictures
    }
    drawing.write(drawing.gallery(pictures, answers), path)
