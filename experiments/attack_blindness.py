"""How much robustness an attack reports that does not see the members: fixed mixtures of two.

    python -m experiments.attack_blindness                       # a few minutes on 2 CPU cores
    python -m experiments.attack_blindness --budget standard     # every attack at full strength

Three linear mixtures, whose strongest attack has a closed form, and a pair trained on digits by
boosted adversarial training: the first member adversarially, the second naturally on the data
attacked for the first. Each is attacked through its averaged logits, through its expected loss,
and by attacks that know which members there are. Every attack returns the point of lowest exact
expected accuracy that it has visited, so that what a blind one leaves is due to where its loss
leads, and not to which of its points was kept.

Pinot et al., Randomization matters, 2020, algorithm 1. Dbouk and Shanbhag, Adversarial
vulnerability of randomized ensembles, 2022, on why ascent fails here.
"""

import functools
import pathlib
import shlex
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import tqdm

from experiments import _config
from experiments._blindness import (
    LINEAR_MIXTURES,
    MARGIN_OF_PIXELS,
    PGD_STEP,
    Config,
    Mixture,
    boosted_pair,
    linear_mixture,
)
from mixjax import (
    attacks,
    checks,
    data,
    evaluation,
    losses,
    mixture,
    reporting,
    threats,
)

PROGRAM = "python -m experiments.attack_blindness"
BUDGETS = {"quick": evaluation.QUICK, "standard": evaluation.STANDARD}
BLIND = ("pgd_averaged_logits", "pgd_expected_loss", "apgd_expected_loss")
SHOWN = (*BLIND, "arc", "lattice_climber", "worst")


def main(argv=None):
    """Runs the experiment; bad input ends in one line and exit code 2."""
    budget, config = _config.parse(
        argv,
        dict.fromkeys(BUDGETS, Config()),
        default="quick",
        program=PROGRAM,
        description=__doc__ or "",
        selector="budget",
    )
    _config.cache_compilation()
    with _config.errors_in_one_line(PROGRAM, debug=config.debug):
        run(budget, config, sys.argv[1:] if argv is None else argv)


def run(budget: str, config: Config, argv):
    """Attacks the linear mixtures, trains and attacks the pair, and reports."""
    check(config)
    dataset = data.load(config.dataset, config.data_dir or None)
    checks.within(1, len(dataset.train.labels), batch_size=config.batch_size)
    places = ("data_dir", "run_dir", "debug")
    recorded = {name: value for name, value in vars(config).items() if name not in places}
    with reporting.open_run(config.run_dir, {"budget": budget, **recorded}) as folder:
        results = score(budget, config, recorded, dataset, folder, f"{PROGRAM} {shlex.join(argv)}")
    print(reporting.attack_table(results))
    print(f"{folder / 'report.md'} holds the report.")


def score(
    budget: str,
    config: Config,
    recorded: dict,
    dataset: data.Dataset,
    folder: pathlib.Path,
    command: str,
):
    """`name -> figures` of every mixture, and the result, figure and report in `folder`."""
    mixtures = {
        f"linear, {name}": partial(linear_mixture, config, name) for name in LINEAR_MIXTURES
    }
    mixtures[f"boosted pair on {dataset.name}"] = partial(boosted_pair, config, dataset)
    results = {}
    for name, make in mixtures.items():
        start = time.monotonic()
        figures = attacked(name, make(), budget, config)
        results[name] = {
            "dataset": name,
            **figures,
            "config": {"budget": budget, **recorded},
            "provenance": reporting.provenance(command, config.seed, time.monotonic() - start),
        }
    *linear, trained = results
    result = {**results[trained], "linear": {name: results[name] for name in linear}}
    reporting.write_result(folder, result)
    reporting.plot_blindness(folder / "blindness.png", results, SHOWN, blind=BLIND)
    reporting.write_report(folder, results, "What attacks report that do not see the members")
    return results


def check(config: Config):
    """Raises `ValueError` for what would otherwise go wrong only after the run has begun."""
    names = "num_examples test_examples width train_steps train_attack_steps pgd_runs pgd_steps"
    checks.at_least(1, **{name: getattr(config, name) for name in names.split()})
    checks.at_least(2, dimension=config.dimension)
    checks.seed(seed=config.seed)
    checks.positive(
        linear_epsilon=config.linear_epsilon,
        epsilon=config.epsilon,
        alpha=config.alpha,
        learning_rate=config.learning_rate,
    )
    checks.fraction(alpha=config.alpha)
    # Beyond it pixels meet their bounds, and the closed form does not know these.
    checks.within(0.0, MARGIN_OF_PIXELS, linear_epsilon=config.linear_epsilon)


def attacked(name: str, target: Mixture, budget: str, config: Config) -> dict:
    """The figures of a mixture under every attack, the blind ones included."""
    suite, evaluate = compiled(target.epsilon, budget, config)
    outcomes = evaluation.evaluate_mixture(
        jax.random.fold_in(jax.random.key(config.seed), 1),
        target.logits_fn,
        target.weights,
        target.images,
        target.labels,
        suite,
        batch_size=min(50, len(target.labels)),
        progress=partial(tqdm.tqdm, desc=name, unit="batch"),
        transform=lambda _: evaluate,
    )
    figures = evaluation.report(outcomes, target.weights, suite)
    if target.optimum is not None:
        accuracy, error_bar = evaluation.mean_and_error_bar(target.optimum)
        interval = evaluation.wilson_interval(accuracy, len(target.optimum))
        figures["optimum"] = {"accuracy": accuracy, "error_bar": error_bar, "interval": interval}
    return figures


@functools.cache
def compiled(epsilon: float, budget: str, config: Config):
    """The attacks of one radius, and their evaluation: one program for all mixtures of a kind."""
    threat = threats.linf(epsilon)
    suite = (
        ascent("pgd_averaged_logits", loss_of_averaged_logits, threat, config),
        ascent("pgd_expected_loss", expected_loss, threat, config),
        *(
            attack
            for attack in evaluation.attack_suite(threat, BUDGETS[budget])
            if "pgd_expected_loss" not in attack.names
        ),
    )
    return suite, jax.jit(partial(evaluation.evaluate_batch, attacks=suite))


def ascent(name: str, loss, threat: threats.Threat, config: Config) -> evaluation.Attack:
    """PGD with restarts on one loss of all members, its step that of Pinot et al.

    Of the points on its path it returns that of lowest exact expected accuracy: what is left is due
    to where the loss leads, and not to which of the points is kept.
    """

    def run(key, _, logits_fn, weights, x, label):
        logits_fn = attacks.once(logits_fn)
        settings = {
            "num_steps": config.pgd_steps,
            "step_size": PGD_STEP * threat.epsilon,
            "accuracy_fn": lambda x: mixture.accuracy(logits_fn(x), label, weights),
        }
        return attacks.pgd(
            key, lambda x: loss(logits_fn(x), label, weights), x, threat, **settings
        )[0]

    return evaluation.Attack((name,) * config.pgd_runs, config.pgd_steps, run)


def expected_loss(logits, label, weights):
    """`sum_k weights_k CE_k`."""
    return losses.expected(losses.cross_entropy, logits, label, weights)


def loss_of_averaged_logits(logits, label, weights):
    """`CE(sum_k weights_k logits_k)`, what the released code of Pinot et al. ascends."""
    return losses.cross_entropy(jnp.sum(weights[:, None] * logits, axis=0), label)


if __name__ == "__main__":
    main()
