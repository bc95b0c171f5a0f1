"""Adversarial training of a mixture of classifiers, its weights included: algorithm 2 on CIFAR-10.

    python -m experiments.cifar10_mixture --preset demo     # digits, 2 CPU cores, 3 minutes
    python -m experiments.cifar10_mixture                   # CIFAR-10, ResNet18, a GPU
    python -m experiments.cifar10_mixture --preset paper    # the paper's setting, several GPUs

Trains L classifiers against an attacker of the mixture, keeps the checkpoint that is most robust
on validation data, attacks it on test data, and writes a folder with the numbers, the figures and
a report. With `--single` it first trains one classifier at the same cost, to compare with.

Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 5.2.
"""

import dataclasses
import math
import pathlib
import shlex
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments import _config
from experiments._game import PLACES, Config, Game, build, check
from mixjax import (
    attacks,
    checkpoint,
    data,
    defenses,
    ensemble,
    evaluation,
    losses,
    mixture,
    parallel,
    reporting,
)
from mixjax.interrupt import interruptible
from mixjax.typing import Array

PROGRAM = "python -m experiments.cifar10_mixture"

PRESETS = {
    "demo": Config(
        dataset="digits",
        model="small_resnet",
        width=16,
        dtype="float32",
        single=True,
        epsilon=0.2,
        ramp=0.3,
        attack_step_size=0.05,
        update="all",
        model_steps=20,
        weight_steps=3,
        epochs=15,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-2,
        weight_decay=0.0,
        average_decay=0.98,
        augment=False,
        test_batch_size=200,
        dispatch_steps=10,
        cpu=True,
    ),
    "fast": Config(),
    "paper": Config(
        epochs=200,
        batch_size=1024,
        learning_rate=0.1,
        schedule="piecewise",
        average_decay=0.0,
        validation_examples=5000,
        test_runs=15,
        test_steps=100,
    ),
}


class Progress(NamedTuple):
    """State of the loop: the training's, and the sums over the model steps of this epoch."""

    training: defenses.MixtureState
    loss_sum: Array
    num_losses: Array


def main(argv=None):
    """Runs the experiment; bad input ends in one line and exit code 2."""
    preset, config = _config.parse(
        argv, PRESETS, default="fast", program=PROGRAM, description=__doc__ or ""
    )
    if not config.cpu and jax.default_backend() == "cpu":
        _config.fail(
            PROGRAM,
            f"preset {preset} is made for a GPU and there is none: --preset demo takes 3 minutes "
            "on a CPU, --cpu insists",
        )
    try:
        run(preset, config, sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError, FloatingPointError) as error:
        if config.debug:
            raise
        hint = "; --preset demo needs no data" if isinstance(error, data.DataError) else ""
        _config.fail(PROGRAM, f"{error}{hint}")


def run(preset: str, config: Config, argv):
    """Trains, evaluates and reports, the single classifier first if asked for."""
    dataset = data.load(
        config.dataset, config.data_dir or None, manual_dir=config.manual_dir or None
    )
    if config.train_examples:
        part = data.Split(*(array[: config.train_examples] for array in dataset.train))
        dataset = dataclasses.replace(dataset, train=part)
    check(config, dataset, jax.device_count())
    folder = pathlib.Path(config.run_dir or f"runs/{preset}")
    configs = {f"mixture of {config.members}": (config, folder)}
    if config.single:
        configs = {"single": (at_equal_cost(config), folder / "single")} | configs
    reporting.open_run(folder, recorded(config), resume=config.resume)
    results, metrics, worst = {}, {}, None
    for name, (each, each_folder) in configs.items():
        if each_folder != folder:
            reporting.open_run(each_folder, recorded(each), resume=config.resume)
        results[name], worst = complete(
            name, each, dataset, each_folder, f"{PROGRAM} {shlex.join(argv)}", worst
        )
        metrics[name] = reporting.read_metrics(each_folder)
    reporting.plot_curves(folder / "curves.png", metrics)
    reporting.plot_weights(folder / "weights.png", metrics)
    reporting.write_report(folder, results, f"{config.dataset}, {config.loss}")
    print(reporting.results_table(list(results.values()), list(results)))
    print("".join(reporting.difference_line(*item) for item in results.items()))
    print(f"{folder / 'report.md'} holds the report.")


def at_equal_cost(config: Config) -> Config:
    """One classifier, trained for as many forward-backward passes as the mixture."""
    single = dataclasses.replace(config, members=1)
    epochs = config.epochs * (config.members if config.update == "one" else 1)
    return dataclasses.replace(single, epochs=round(epochs * passes(config) / passes(single)))


def passes(config: Config) -> float:
    """Forward-backward passes of single networks per training step, on average."""
    updated = config.members if config.update == "all" else 1
    clean = 1 if config.loss == "trades" else 0
    attack = config.members * (config.attack_steps + 1 + clean)
    model_step = attack + updated * (1 + clean)
    if config.members == 1 or config.weights == "uniform":
        return model_step
    if config.weights == "oracle":
        weight_step = config.weight_steps * (attack + config.members)
    else:
        weight_step = attack + config.members * (1 + config.samples)
    model_steps = config.model_steps * config.members / updated
    return (model_steps * model_step + weight_step) / (model_steps + 1)


def complete(
    name: str,
    config: Config,
    dataset: data.Dataset,
    folder: pathlib.Path,
    command: str,
    versus: np.ndarray | None = None,
):
    """Trains, then attacks the most robust checkpoint on test data.

    Returns:
      The result, with the paired difference to the accuracies `versus` [N], and the worst
      expected accuracy of each test example, [N].
    """
    start = time.monotonic()
    best = train(name, config, dataset, folder)
    game = build(config, dataset)
    result, worst = evaluate(name, config, dataset, game, best)
    result["training_passes"] = passes(config) * game.num_epochs * game.steps_per_epoch
    if versus is not None:
        difference, error_bar = evaluation.paired_difference(worst, versus)
        result["versus_single"] = {"difference": difference, "error_bar": error_bar}
    seconds = time.monotonic() - start
    result["provenance"] = reporting.provenance(command, config.seed, seconds)
    draw_attacks(config, dataset, game, best, folder / "attacks.png")
    return reporting.write_result(folder, result), worst


def recorded(config: Config) -> dict:
    """What identifies a run: places may change when it is continued."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in PLACES}


def axes(config: Config):
    """Names of the axes over which examples and members are spread; None: on one device."""
    if (config.devices or jax.device_count()) == 1:
        return None, None
    return parallel.DATA_AXIS, parallel.MEMBER_AXIS if config.member_devices > 1 else None


def make_steps(config: Config, game: Game, num_steps: int):
    """`(progress, examples) -> (progress, losses [num_steps])`, pure, on one device of several."""
    data_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    data_axis, _ = axes(config)

    def step(progress, examples):
        now = progress.training.step
        picked = data.batch_indices(data_key, now, len(examples.labels), config.batch_size)
        images, labels = examples.images[picked], examples.labels[picked]
        if config.augment:
            images = data.augment(jax.random.fold_in(data_key, now), images)
        images, labels = parallel.local_share((images, labels), data_axis)
        training, info = game.defense.step(progress.training, data.to_float(images), labels)
        num_losses = progress.num_losses + ~info.is_weight_step
        return Progress(training, progress.loss_sum + info.loss, num_losses), info.loss

    def steps(progress, examples):
        return jax.lax.scan(lambda carry, _: step(carry, examples), progress, length=num_steps)

    return steps


def on_devices(config: Config, steps, progress: Progress):
    """The compiled steps and the functions that bring a state and data to where they run."""
    devices = jax.devices()[: config.devices or None]
    if len(devices) == 1:
        return jax.jit(steps, donate_argnums=0), jax.device_put, jax.device_put
    if config.member_devices == 1:
        replicate = partial(parallel.replicate, devices=devices)
        return parallel.pmap_step(steps, devices=devices), replicate, replicate
    mesh = parallel.mesh(config.member_devices, devices)
    spec = parallel.state_spec(progress)
    place = partial(parallel.place, mesh=mesh)
    return parallel.shard_step(steps, mesh, spec), partial(place, spec=spec), place


def train(
    name: str, config: Config, dataset: data.Dataset, folder: pathlib.Path
) -> defenses.MixtureState:
    """Trains one mixture and returns its state that was most robust on validation data."""
    game = build(config, dataset, *axes(config))
    total = game.num_epochs * game.steps_per_epoch
    num_steps = largest_divisor(game.steps_per_epoch, config.dispatch_steps)
    training = game.defense.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    progress = Progress(training, jnp.zeros(()), jnp.zeros((), jnp.int32))
    steps, place_state, place_data = on_devices(
        config, make_steps(config, game, num_steps), progress
    )
    validate = make_validation(config, dataset, build(config, dataset))
    with (
        checkpoint.open(folder / "checkpoints", recorded(config)) as saved,
        interruptible() as interrupt,
    ):
        if checkpoint.steps(saved):
            progress, _, skipped = checkpoint.restore(saved, progress)
            tell_skipped(skipped)
        done = int(progress.training.step)
        reporting.truncate_metrics(folder, done)
        progress, examples = place_state(progress), place_data(dataset.train)
        with tqdm.tqdm(total=total, initial=done, desc=name, unit="step") as bar:
            while done < total:
                progress, step_losses = steps(progress, examples)
                stop_at_nan(step_losses, done, folder)
                done += num_steps
                bar.update(num_steps)
                score = math.nan
                if done % game.steps_per_epoch == 0:
                    row = validate(progress, done / total * config.epochs)
                    progress = forget_losses(progress)
                    score = row["robust_accuracy"]
                    reporting.append_metrics(folder, row)
                    bar.set_postfix_str(
                        f"clean {row['clean_accuracy']:.3f} robust {row['robust_accuracy']:.3f} "
                        f"weights {np.round(row['weights'], 2)}"
                    )
                if done % game.steps_per_epoch == 0 or interrupt.received:
                    checkpoint.save(saved, done, progress, {"robust_accuracy": score})
                if interrupt.received:
                    raise SystemExit(interrupt.exit_code)
        best, _, skipped = checkpoint.restore(saved, progress, "best")
        tell_skipped(skipped)
    return best.training


def make_validation(config: Config, dataset: data.Dataset, game: Game):
    """`(progress, epoch) -> dict`, a line of the metrics: accuracies on validation data."""
    images, labels = (part[: config.validation_examples] for part in dataset.validation)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    score = jax.jit(
        partial(
            evaluation.validate,
            threat=game.threat,
            num_steps=config.validation_steps,
            step_size=step_size(config, config.validation_steps),
        )
    )

    def validate(progress, epoch):
        training = jax.device_get(progress.training)
        scores = evaluation.over_batches(
            partial(score, key, members(game, training), training.weights),
            images,
            labels,
            batch_size=min(config.test_batch_size, len(labels)),
        )
        step = int(training.step)
        return {
            "step": step,
            "epoch": epoch,
            "loss": float(progress.loss_sum / progress.num_losses),
            "learning_rate": float(jnp.asarray(game.learning_rate(training.step - 1))),
            "clean_accuracy": scores.clean.mean(),
            "robust_accuracy": scores.robust.mean(),
            "weights": training.weights,
        }

    return validate


def evaluate(
    name: str, config: Config, dataset: data.Dataset, game: Game, state: defenses.MixtureState
):
    """The result on test data, its provenance left out, and the worst accuracies [N]."""
    images, labels = (part[: config.test_examples] for part in dataset.test)
    suite = evaluation.pgd_attacks(
        game.threat,
        num_runs=config.test_runs,
        num_steps=config.test_steps,
        step_size=step_size(config, config.test_steps),
    )
    outcomes = evaluation.evaluate_mixture(
        jax.random.fold_in(jax.random.key(config.seed), 3),
        members(game, state),
        state.weights,
        images,
        labels,
        suite,
        batch_size=min(config.test_batch_size, len(labels)),
        progress=partial(tqdm.tqdm, desc=f"attacking {name}", unit="batch"),
    )
    report = evaluation.report(outcomes, state.weights, suite)
    result = {"dataset": config.dataset, **report, "config": recorded(config)}
    return result, evaluation.worst_case(outcomes, state.weights)


def draw_attacks(
    config: Config,
    dataset: data.Dataset,
    game: Game,
    state: defenses.MixtureState,
    path: pathlib.Path,
    num_examples: int = 6,
):
    """Draws test examples before and after PGD on the mixture's expected loss."""
    images = data.to_float(jnp.asarray(dataset.test.images[:num_examples]))
    labels = jnp.asarray(dataset.test.labels[:num_examples])
    logits_fn = members(game, state)

    def attack(key, x, label):
        def loss_fn(x):
            each = jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits_fn(x), label)
            return mixture.expected_loss(each, state.weights)

        num_steps = config.test_steps
        return attacks.pgd(
            key,
            loss_fn,
            x,
            game.threat,
            num_steps=num_steps,
            step_size=step_size(config, num_steps),
        )[0]

    keys = jax.random.split(jax.random.key(config.seed), len(labels))
    attacked = jax.jit(jax.vmap(attack))(keys, images, labels)
    before, after = (jnp.argmax(jax.vmap(logits_fn)(x), axis=-1) for x in (images, attacked))
    reporting.plot_attacks(path, images, attacked, labels, before, after, dataset.class_names)


def members(game: Game, state: defenses.MixtureState):
    """`x -> [L, C]`: the logits of the averaged members; a pytree, which `jit` knows again."""
    apply_fn = jax.tree_util.Partial(game.model.apply)
    return jax.tree_util.Partial(ensemble.apply, apply_fn, state.average)


def step_size(config: Config, num_steps: int) -> float:
    """Length of one evaluation step: all together reach two and a half times across the ball."""
    return 2.5 * config.epsilon / num_steps


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(k for k in range(1, limit + 1) if number % k == 0)


def forget_losses(progress: Progress) -> Progress:
    """The same state at the beginning of an epoch."""
    loss_sum, num_losses = map(jnp.zeros_like, (progress.loss_sum, progress.num_losses))
    return Progress(progress.training, loss_sum, num_losses)


def stop_at_nan(step_losses: Array, done: int, folder: pathlib.Path):
    """Raises `FloatingPointError` at the first loss that is not finite."""
    wrong = np.flatnonzero(~np.isfinite(step_losses))
    if wrong.size:
        raise FloatingPointError(
            f"the training loss is {step_losses[wrong[0]]} at step {done + wrong[0] + 1}: try a "
            f"lower learning_rate; {folder / 'checkpoints'} holds the state before"
        )


def tell_skipped(skipped):
    """Says which checkpoints were damaged."""
    for step, reason in skipped:
        print(f"checkpoint {step} is left out: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
