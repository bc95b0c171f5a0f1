"""The attack suite: everything that is known to hurt a mixture, at a cost that `L` does not change.

On linear mixtures, whose optimum a linear program gives, each of these attacks alone misses up to
half of what can be gained; together they reach it within a few percent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import attacks, checks, losses, mixture
from mixjax.evaluation.suite import Attack, expected_accuracy_of
from mixjax.threats import Threat
from mixjax.typing import Bounds

# Lines of the report, by what an attack knows: `diagnostics` compares them.
BASELINE = "pgd_expected_loss"
EXPECTED_LOSS = "apgd_expected_loss"
EXPECTED_DLR = "apgd_expected_dlr"
ON_THE_MIXTURE = (
    EXPECTED_LOSS,
    "apgd_mean_probability",
    EXPECTED_DLR,
    "apgd_expected_margin",
    "apgd_targeted_dlr",
)
TRANSFERRED = "apgd_members"
MEMBER_AWARE = ("arc", "lattice_climber")
MINIMUM_NORM = "carlini_wagner"
MINIMUM_NORM_OF_MEMBERS = "carlini_wagner_members"
BLACK_BOX = "square"

_SHARES = (0.5, 1.0)  # of the weight that Carlini and Wagner's attack on members fools
_BASELINE_STEPS = 20


class Budget(NamedTuple):
    """What is spent on each example, whatever `L`.

    Attributes:
      num_restarts: runs of AutoPGD on each of four losses of the mixture.
      num_targets: runs of AutoPGD towards one wrong class each, the likeliest first.
      num_member_runs: runs of AutoPGD on one member each, the members taking turns; at least `L`.
      num_steps: gradient steps of one run of AutoPGD and of Carlini and Wagner's attack.
      num_member_aware_runs: runs of ARC, and as many of the lattice climber.
      num_member_aware_steps: steps of each of these.
      num_orders: orders in which a run of the lattice climber adds members.
      num_queries: questions that the black-box attack may ask.
    """

    num_restarts: int
    num_targets: int
    num_member_runs: int
    num_steps: int
    num_member_aware_runs: int
    num_member_aware_steps: int
    num_orders: int
    num_queries: int


QUICK = Budget(2, 2, 6, 20, 1, 20, 2, 200)
STANDARD = Budget(5, 9, 12, 100, 5, 50, 5, 5000)


def attack_suite(
    threat: Threat, budget: Budget = STANDARD, *, bounds: Bounds = (0.0, 1.0)
) -> tuple[Attack, ...]:
    """The attacks that a mixture, and each of its members, has to survive.

    One run of PGD with 20 steps on the expected loss comes first: it is what papers report, and
    what it fools the others need not attack. Then AutoPGD on the expected cross-entropy, `-log` of
    the mean probability, the expected difference of logits ratio, the expected margin and the
    expected targeted ratio, each on single members as well; ARC and the lattice climber, which
    know which members they have; under an l2 threat Carlini and Wagner's nearest fooling points,
    dropped beyond the radius: of the mean probability, once along its own margin and once along
    the expected loss as Pinot et al. do, and of half of the members by weight and of all; and at
    last a black-box attack that asks for nothing but the members' answers, as a check on all the
    gradients. Of all the points on its path every run of PGD and AutoPGD returns that of lowest
    exact expected accuracy, whatever loss it climbed.

    Args:
      threat: the allowed perturbations, in the units of the inputs.
      budget: `QUICK`, `STANDARD` or one of your own.
      bounds: lowest and highest value of an input, of any range, numbers or arrays that fit one
        input; every evaluation with these attacks takes inputs within them.

    Returns:
      A list of attacks for `evaluate_suite`, which anybody may extend, by a trained network for
      example: `(*attack_suite(threat), Attack(("attack_network",), 1, run))`. The number of runs
      is the same for every `L`.

    Raises:
      ValueError: if a number of the budget is not at least 1.
    """
    checks.at_least(1, **budget._asdict())
    checks.increasing(bounds=bounds)
    settings = {"bounds": bounds}
    suite = [_baseline(threat, settings), _auto_pgd(threat, budget, settings)]
    suite += [_member_aware(threat, budget, settings, attack) for attack in MEMBER_AWARE]
    if threat.name == "l2":
        suite.append(_carlini_wagner(threat, budget, settings))
    return (*suite, _square(threat, budget, settings))


def _baseline(threat, settings):
    def run(key, _, logits_fn, weights, x, label):
        logits_fn = attacks.once(logits_fn)

        def loss_fn(x):
            return losses.expected(losses.cross_entropy, logits_fn(x), label, weights)

        return attacks.pgd(
            key,
            loss_fn,
            x,
            threat,
            num_steps=_BASELINE_STEPS,
            step_size=threat.step_size(_BASELINE_STEPS),
            accuracy_fn=expected_accuracy_of(logits_fn, weights, label),
            **settings,
        )[0]

    return Attack((BASELINE,), _BASELINE_STEPS, run, settings["bounds"])


def _auto_pgd(threat, budget, settings):
    """All runs of AutoPGD: the loss is chosen inside, so that one compiled loop serves all."""
    num_runs = [budget.num_restarts] * 4 + [budget.num_targets, budget.num_member_runs]
    lines = (*ON_THE_MIXTURE, TRANSFERRED)
    names = tuple(name for name, number in zip(lines, num_runs, strict=True) for _ in range(number))
    chosen = np.repeat(np.arange(len(lines)), num_runs)
    turns = np.concatenate([np.arange(number) for number in num_runs])

    def run(key, run, logits_fn, weights, x, label):
        logits_fn = attacks.once(logits_fn)
        logits = logits_fn(x)
        if budget.num_member_runs < logits.shape[0]:
            raise ValueError(
                f"num_member_runs must be at least the number of members {logits.shape[0]}, "
                f"got {budget.num_member_runs}"
            )
        turn = jnp.asarray(turns)[run]
        wrong = attacks.likeliest_wrong(
            mixture.log_probs(logits, weights), label, logits.shape[1] - 1
        )
        target = wrong[turn % len(wrong)]

        def towards_target(logits, label):
            return losses.targeted_dlr(logits, label, target)

        def minus_margin(logits, label):
            return -losses.margin(logits, label)

        def loss_fn(x):
            return jax.lax.switch(
                jnp.asarray(chosen)[run],
                (
                    lambda logits: losses.expected(losses.cross_entropy, logits, label, weights),
                    lambda logits: -mixture.log_probs(logits, weights)[label],
                    lambda logits: losses.expected(losses.dlr, logits, label, weights),
                    lambda logits: losses.expected(minus_margin, logits, label, weights),
                    lambda logits: losses.expected(towards_target, logits, label, weights),
                    lambda logits: losses.cross_entropy(logits[turn % len(logits)], label),
                ),
                logits_fn(x),
            )

        accuracy_fn = expected_accuracy_of(logits_fn, weights, label)
        return attacks.apgd(
            key,
            loss_fn,
            x,
            threat,
            num_steps=budget.num_steps,
            accuracy_fn=accuracy_fn,
            **settings,
        )[0]

    return Attack(names, budget.num_steps, run, settings["bounds"])


def _member_aware(threat, budget, settings, name):
    """ARC or the lattice climber."""
    num_steps = budget.num_member_aware_steps
    settings = settings | {"num_steps": num_steps}
    if name == "lattice_climber":
        settings["num_orders"] = budget.num_orders

    def run(key, _, logits_fn, weights, x, label):
        return getattr(attacks, name)(key, logits_fn, weights, x, label, threat, **settings)[0]

    return Attack((name,) * budget.num_member_aware_runs, num_steps, run, settings["bounds"])


def _carlini_wagner(threat, budget, settings):
    """One run for each way to see a mixture, chosen inside, as `_auto_pgd`."""
    names = (MINIMUM_NORM,) * 2 + (MINIMUM_NORM_OF_MEMBERS,) * len(_SHARES)

    def run(key, run, logits_fn, weights, x, label):
        share = jnp.asarray(_SHARES)[jnp.maximum(run - 2, 0)]

        def of_accuracy(logits):
            return losses.accuracy_margin(logits, label, weights, share)

        def of_mean(logits):
            return losses.mean_probability_margin(logits, label, weights)

        def expected(logits):
            return losses.expected_hinge(logits, label, weights)

        ask = attacks.once(logits_fn)

        def margin_fn(x):
            return jax.lax.switch(jnp.minimum(run, 2), (of_mean, expected, of_accuracy), ask(x))

        def fooled_fn(x):
            return jax.lax.cond(run < 2, of_mean, of_accuracy, ask(x)) <= 0

        x_adv, info = attacks.carlini_wagner(
            margin_fn, x, fooled_fn=fooled_fn, num_steps=budget.num_steps, **settings
        )
        return jnp.where(info.norm <= threat.epsilon, x_adv, x)

    return Attack(names, budget.num_steps, run, settings["bounds"])


def _square(threat, budget, settings):
    settings = settings | {"num_queries": budget.num_queries}

    def run(key, _, logits_fn, weights, x, label):
        def score_fn(x):
            """Expected errors, and between equals how near the members still right are to one."""
            logits = logits_fn(x)
            margins = jax.vmap(losses.margin, in_axes=(0, None))(logits, label)
            ahead = jnp.where(margins > 0, margins, 0.0)  # who answers NaN errs, as who is behind
            errors = 1.0 - mixture.correct(logits, label)
            return mixture.expected_loss(errors - ahead / (1.0 + ahead), weights)

        return attacks.square(key, score_fn, x, threat, **settings)[0]

    return Attack((BLACK_BOX,), budget.num_queries, run, settings["bounds"])
