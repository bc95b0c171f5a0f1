"""Adversarial training of a mixture of classifiers, its weights included: algorithm 2 on CIFAR-10.

    python -m experiments.cifar10_mixture --preset demo     # digits, 2 CPU cores, 5 to 10 minutes
    python -m experiments.cifar10_mixture                   # CIFAR-10, ResNet18, a GPU
    python -m experiments.cifar10_mixture --preset paper    # the paper's setting, several GPUs

Trains L classifiers against an attacker of the mixture, keeps the checkpoint that is most robust
on validation data, attacks it on test data, and writes a folder with the numbers, the figures and
a report. With `--single` it first trains one classifier at the same cost, to compare with.

Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 5.2.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.meunier_2021.algorithm import Game, build, members, step_size
from experiments.meunier_2021.settings import LOSSES, PRESETS, Config, check, oracle_steps, recorded
from experiments.meunier_2021.training import train
from experiments.run import program
from experiments.run.reading import head
from mixjax import (
    attacks,
    checkpoint,
    data,
    defenses,
    evaluation,
    parallel,
    reporting,
)
from mixjax.batch import example_keys
from mixjax.front.progress import Bars

PROGRAM = "experiments.cifar10_mixture"


def main(argv=None):
    """Runs the experiment; bad input ends in one line and exit code 2."""
    program.main(
        PROGRAM,
        __doc__ or "",
        PRESETS,
        run,
        argv,
        default="fast",
        folder="runs/{choice}",
        hint="; --preset demo needs no data",
    )


def run(call: program.Call):
    """Trains, evaluates and reports, the single classifier first if asked for."""
    config = call.config
    parallel.initialize(config.coordinator or None, config.processes, config.process)
    program.need_accelerator(call)
    dataset = data.load(
        config.dataset, config.data_dir or None, manual_dir=config.manual_dir or None
    )
    if config.train_examples:
        part = data.Split(*(array[: config.train_examples] for array in dataset.train))
        dataset = dataclasses.replace(dataset, train=part)
    check(config, dataset, jax.device_count())
    configs = {f"mixture of {config.members}": (config, "")}
    if config.single:
        configs = {"single": (at_equal_cost(config), "single")} | configs
    folder = call.folder
    checkpoint.check_directory(folder, argument="run_dir")
    if not parallel.is_main():  # Checkpoints are saved together, all else by one process.
        folder = pathlib.Path(tempfile.mkdtemp())
    with program.held(folder, recorded(config), resume=config.resume):
        results, first = compare(config, configs, dataset, folder, call.folder, call.command)
    if not parallel.is_main():
        return
    print(reporting.results_table(list(results.values()), list(results)))
    print("".join(reporting.difference_line(*item) for item in results.items()))
    print(first.found)
    print(first.worth)
    print(f"{folder / 'report.md'} holds the report.")


def compare(
    config: Config,
    configs: dict[str, tuple[Config, str]],
    dataset: data.Dataset,
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
    command: str,
) -> tuple[dict[str, dict], reporting.Head]:
    """`name -> result`, each with the difference to the one before, and the head of the page."""
    folders = {name: folder / subfolder for name, (_, subfolder) in configs.items()}
    results, metrics, worst = {}, {}, None
    for name, (each, subfolder) in configs.items():
        places = folders[name], checkpoints / subfolder / "checkpoints"
        with contextlib.ExitStack() as held:
            if subfolder:
                run = reporting.open_run(folders[name], recorded(each), resume=config.resume)
                held.enter_context(run)
            game = build(each, dataset)
            results[name], worst = complete(name, each, game, dataset, *places, command, worst)
        metrics[name] = reporting.read_metrics(folders[name])
    evaluations = reporting.read_evaluations(folders)
    first = head(folder, results, evaluations)
    attack = f"PGD-{config.validation_steps}, {first.within}"
    reporting.plot_curves(folder / "curves.png", metrics, attack=attack)
    reporting.plot_weights(folder / "weights.png", metrics)
    reporting.write_report(
        folder, results, f"{config.dataset}, loss {config.loss}", evaluations, first
    )
    return results, first


def at_equal_cost(config: Config) -> Config:
    """One classifier, trained for as many forward-backward passes as the mixture."""
    single = dataclasses.replace(config, members=1)
    epochs = config.epochs * (config.members if config.update == "one" else 1)
    return dataclasses.replace(single, epochs=round(epochs * passes(config) / passes(single)))


def passes(config: Config) -> float:
    """Forward-backward passes of single networks per training step, on average."""
    updated = config.members if config.update == "all" else 1
    clean = int(LOSSES[config.loss].objective(config).uses_clean)
    attack = config.members * (config.attack_steps + 1 + clean)
    model_step = attack + updated * (1 + clean)
    if config.members == 1 or config.weights == "uniform":
        return model_step
    if config.weights == "oracle":
        weight_step = oracle_steps(config) * (attack + config.members)
    else:
        weight_step = attack + config.members * (1 + config.samples)
    weight_step *= config.weight_batches
    model_steps = config.model_steps * config.members / updated
    return (model_steps * model_step + weight_step) / (model_steps + 1)


def complete(
    name: str,
    config: Config,
    game: Game,
    dataset: data.Dataset,
    folder: pathlib.Path,
    checkpoints: pathlib.Path,
    command: str,
    versus: np.ndarray | None = None,
):
    """Trains, then attacks the most robust checkpoint on test data.

    Returns:
      The result, with the paired difference to the accuracies `versus` [N], and the worst
      expected accuracy of each test example, [N].
    """
    start = time.monotonic()
    places = folder, checkpoints, recorded(config)
    best = train(name, game, dataset.train, *places, tensorboard=config.tensorboard)
    result, worst = evaluate(name, config, game, dataset, best)
    result["training_passes"] = passes(config) * game.num_steps
    if versus is not None:
        difference, error_bar = evaluation.paired_difference(worst, versus)
        result["versus_single"] = {
            "difference": difference,
            "error_bar": error_bar,
            "interval": evaluation.paired_interval(worst, versus),
        }
    seconds = time.monotonic() - start
    result["provenance"] = reporting.provenance(command, config.seed, seconds)
    draw_attacks(config, game, dataset, best, folder / "attacks.png")
    return reporting.write_result(folder, result), worst


def evaluate(
    name: str, config: Config, game: Game, dataset: data.Dataset, state: defenses.MixtureState
):
    """The result on test data, its provenance left out, and the worst accuracies [N]."""
    images, labels = (part[: config.test_examples] for part in dataset.test)
    suite = evaluation.pgd_attacks(
        game.threat,
        num_runs=config.test_runs,
        num_steps=config.test_steps,
        step_size=step_size(config, config.test_steps),
    )
    with Bars(name=f"attacking {name}") as bars:
        found = evaluation.evaluate(
            jax.random.fold_in(game.key, 3),
            members(game.model, state),
            state.weights,
            images,
            labels,
            suite,
            alone=False,
            num_complete=None,
            batch_size=config.test_batch_size,
            progress=bars.show,
        )
    report = found.report(with_costs=False)
    return {"dataset": config.dataset, **report, "config": recorded(config)}, found.worst


def draw_attacks(
    config: Config,
    game: Game,
    dataset: data.Dataset,
    state: defenses.MixtureState,
    path: pathlib.Path,
    num_examples: int = 6,
):
    """Draws test examples before and after PGD on the mixture's expected loss.

    Of the points on its path the one that fools most is drawn.
    """
    images = data.to_float(jnp.asarray(dataset.test.images[:num_examples]))
    labels = jnp.asarray(dataset.test.labels[:num_examples])
    logits_fn = members(game.model, state)

    def attack(key, x, label):
        return attacks.on_mixture(
            attacks.pgd,
            key,
            logits_fn,
            state.weights,
            x,
            label,
            game.threat,
            num_steps=config.test_steps,
            step_size=step_size(config, config.test_steps),
        )[0]

    keys = example_keys(jax.random.key(config.seed), jnp.arange(len(labels)))
    attacked = jax.jit(jax.vmap(attack))(keys, images, labels)
    before, after = (jnp.argmax(jax.vmap(logits_fn)(x), axis=-1) for x in (images, attacked))
    reporting.plot_attacks(path, images, attacked, labels, before, after, dataset.class_names)


if __name__ == "__main__":
    main()
