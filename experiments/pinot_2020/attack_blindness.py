"""How much robustness an attack reports that does not see the members: fixed mixtures of two.

    python -m experiments.pinot_2020.attack_blindness                    # 3 minutes of a CPU core
    python -m experiments.pinot_2020.attack_blindness --budget standard  # attacks at full strength

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
import time
from functools import partial

import jax
import jax.numpy as jnp

from experiments.pinot_2020 import plots
from experiments.pinot_2020.blindness import (
    LINEAR_MIXTURES,
    MARGIN_OF_PIXELS,
    PGD_STEP,
    Config,
    Mixture,
    boosted_pair,
    linear_mixture,
)
from experiments.run import program
from mixjax import (
    attacks,
    checks,
    data,
    evaluation,
    losses,
    reporting,
    threats,
)
from mixjax.front.progress import Bars

PROGRAM = "experiments.pinot_2020.attack_blindness"
BUDGETS = {"quick": evaluation.QUICK, "standard": evaluation.STANDARD}
BLIND = ("pgd_averaged_logits", "pgd_expected_loss", "apgd_expected_loss")
SHOWN = (*BLIND, "arc", "lattice_climber", "worst")


def main(argv=None):
    """Runs the experiment; bad input ends in one line and exit code 2."""
    budgets = dict.fromkeys(BUDGETS, Config())
    program.main(PROGRAM, __doc__ or "", budgets, run, argv, selector="budget")


def run(call: program.Call):
    """Attacks the linear mixtures, trains and attacks the pair, and reports."""
    budget, config = call.choice, call.config
    check(config)
    dataset = data.load(config.dataset, config.data_dir or None)
    checks.within(1, len(dataset.train.labels), batch_size=config.batch_size)
    recorded = program.recorded_of(config)
    with program.held(call.folder, {"budget": budget, **recorded}, resume=None) as folder:
        results = score(budget, config, recorded, dataset, folder, call.command)
    print(reporting.attack_table(results))
    print(head(budget, config, results).found)
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
        numbers = attacked(name, make(), budget, config)
        results[name] = {
            "dataset": name,
            **numbers,
            "config": {"budget": budget, **recorded},
            "provenance": reporting.provenance(command, config.seed, time.monotonic() - start),
        }
    *linear, trained = results
    result = {**results[trained], "linear": {name: results[name] for name in linear}}
    reporting.write_result(folder, result)
    radii = dict.fromkeys(linear, config.linear_epsilon) | {trained: config.epsilon}
    plots.plot_blindness(folder / "blindness.png", results, SHOWN, BLIND, radii=radii)
    title = "What attacks report that do not see the members"
    reporting.write_report(folder, results, title, head=head(budget, config, results))
    return results


def head(budget: str, config: Config, results: dict) -> reporting.Head:
    """What the page begins with: by how much the last mixture flatters those who cannot see it."""
    name = [*results][-1]
    result = results[name]
    blind, left = (reporting.score_of(result, each) for each in ("pgd_expected_loss", "worst"))
    verdict = (
        "attacks that know the members find more than PGD on the expected loss"
        if reporting.order(blind["interval"], left["interval"])
        else f"between PGD on the expected loss and all attacks there is {reporting.NO_DIFFERENCE}"
    )
    return reporting.Head(
        norm="l-inf",
        radius=f"{config.epsilon:g} of pixels in [0, 1]; linear mixtures {config.linear_epsilon:g}",
        model=f"mixtures of two: {', '.join(results)}",
        attack=f"PGD on averaged logits and on the expected loss, {config.pgd_runs} runs each, and "
        f"the suite, budget {budget}",
        examples=f"{result['num_examples']} of {name}; {config.num_examples} of each other",
        found=f"On the {name} {verdict}: PGD leaves {reporting.percent(blind)}, all together leave "
        f"{reporting.percent(left)}.",
    )


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
    with Bars(name=name) as bars:
        found = evaluation.evaluate(
            jax.random.fold_in(jax.random.key(config.seed), 1),
            target.logits_fn,
            target.weights,
            target.images,
            target.labels,
            attacks_on(threats.linf(target.epsilon), budget, config),
            alone=False,
            num_complete=None,
            batch_size=50,
            progress=bars.show,
        )
    numbers = found.report(with_costs=False)
    if target.optimum is not None:
        accuracy, error_bar = evaluation.mean_and_error_bar(target.optimum)
        interval = evaluation.wilson_interval(accuracy, len(target.optimum))
        numbers["optimum"] = {"accuracy": accuracy, "error_bar": error_bar, "interval": interval}
    return numbers


def attacks_on(
    threat: threats.Threat, budget: str, config: Config
) -> tuple[evaluation.Attack, ...]:
    """The two blind ascents, and the attacks of the budget but its own PGD on the expected loss."""
    names = "pgd_averaged_logits", "pgd_expected_loss"
    return (
        *(
            evaluation.Attack(
                (name,) * config.pgd_runs,
                config.pgd_steps,
                ascent(name, config.pgd_steps),
                threat,
                number=number,
            )
            for number, name in enumerate(names)
        ),
        *(
            attack
            for attack in evaluation.attack_suite(threat, BUDGETS[budget])
            if "pgd_expected_loss" not in attack.names
        ),
    )


@functools.cache
def ascent(name: str, num_steps: int):
    """PGD on one loss of all members, its step that of Pinot et al.

    Of the points on its path it returns that of lowest exact expected accuracy: what is left is due
    to where the loss leads, and not to which of the points is kept.
    """

    def run(key, logits_fn, weights, x, label, threat, accuracy_fn):
        def loss_fn(x):
            if name == "pgd_averaged_logits":
                return loss_of_averaged_logits(logits_fn(x), label, weights)
            return losses.expected(losses.cross_entropy, logits_fn(x), label, weights)

        step_size = PGD_STEP * threat.epsilon
        settings = {"num_steps": num_steps, "step_size": step_size, "accuracy_fn": accuracy_fn}
        return attacks.pgd(key, loss_fn, x, threat, **settings)

    return run


def loss_of_averaged_logits(logits, label, weights):
    """`CE(sum_k weights_k logits_k)`, what the released code of Pinot et al. ascends."""
    return losses.cross_entropy(jnp.sum(weights[:, None] * logits, axis=0), label)


if __name__ == "__main__":
    main()
