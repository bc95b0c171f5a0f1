"""The attacks that a mixture has to survive, as a list that anybody may extend.

No single attack suffices: ascent on the expected loss stalls where the members' gradients cancel
or spends itself on a steep member of little weight, and a member's own attack does not know the
others. So several run, and per example the worst counts. On linear mixtures, whose optimum a
linear program gives, each alone misses up to half of what can be gained; together they reach it
within a few percent. More runs lower a score by themselves: their number belongs to the suite and
not to the mixture, and is the same for every `L`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixjax import attacks, checks, losses, mixture
from mixjax.batch import low_and_high
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds, Key, LogitsFn

# Lines of the report, by what an attack knows: `diagnostics` compares them.
BASELINE = "pgd_expected_loss"
EXPECTED_LOSS = "apgd_expected_loss"
EXPECTED_DLR = "apgd_expected_dlr"
MEAN_PROBABILITY = "apgd_mean_probability"
EXPECTED_MARGIN = "apgd_expected_margin"
TARGETED_DLR = "apgd_targeted_dlr"
TRANSFERRED = "apgd_members"
ON_THE_MIXTURE = (MEAN_PROBABILITY, EXPECTED_MARGIN, EXPECTED_LOSS, EXPECTED_DLR, TARGETED_DLR)
MEMBER_AWARE = ("arc", "lattice_climber")
MINIMUM_NORM = "carlini_wagner"
MINIMUM_NORM_OF_MEMBERS = "carlini_wagner_members"
BOUNDARY = "fab_targeted"
BLACK_BOX = "square"

# The losses that AutoPGD climbs, first what takes most accuracy beyond those before it.
_CLIMBED = (MEAN_PROBABILITY, TRANSFERRED, *ON_THE_MIXTURE[1:])
_SHARES = (0.5, 1.0)  # of the weight that Carlini and Wagner's attack on members fools
_BASELINE_STEPS = 20


class Attack(NamedTuple):
    """Attack runs on one example that share a compiled loop.

    Attributes:
      names: for each run, the line of the report on which it counts.
      num_steps: gradient steps of one run; of a black-box attack its queries.
      function: the attack. What it needs, the names of its parameters say, as
        `attacks.on_mixture` explains; `run` is the number of the run, from 0 to
        `len(names) - 1`, traced. The arrays of a `jax.tree_util.Partial`, such as the variables of
        a network that attacks, are arguments of what is compiled.
      threat: the allowed perturbations; None for a function that asks for none.
      bounds: lowest and highest value of an input, numbers or arrays that fit one input; None if
        the attack does not know: those of the attacks beside it, else [0, 1].
      number: which random numbers it draws. The attacks of a suite have different numbers, so what
        one draws does not depend on the others. None: its place in the list, from 1.
      on_one: `(attack, first)`, of which run `first + r` takes the place of run `r` where a single
        classifier is attacked; None: nothing takes its place.
    """

    names: tuple[str, ...]
    num_steps: int
    function: Callable
    threat: Threat | None = None
    bounds: Bounds | None = None
    number: int | None = None
    on_one: "tuple[Attack, int] | None" = None

    def runs(self, num_members: int) -> "list[tuple[Attack, int]]":
        """`(attack, run)` of each run on a mixture of so many members."""
        attack, first = (self, 0)
        if num_members == 1 and self.on_one is not None:
            attack, first = self.on_one
        return [(attack, first + run) for run in range(len(self.names))]

    def run(
        self,
        key: Key,
        run: int | Array,
        logits_fn: LogitsFn,
        weights: Array,
        x: Array,
        label: Array,
    ) -> Array:
        """The point `[...]` that one run of the attack finds on one example."""
        return run_attack(
            self.function, key, run, logits_fn, weights, x, label, self.threat, self.bounds
        )


def run_attack(
    function: Callable,
    key: Key,
    run: int | Array,
    logits_fn: LogitsFn,
    weights: Array,
    x: Array,
    label: Array,
    threat: Threat | None,
    bounds: Bounds | None,
) -> Array:
    """One run on one example: `[...]`."""
    bounds = (0.0, 1.0) if bounds is None else bounds
    return attacks.on_mixture(
        function, key, logits_fn, weights, x, label, threat, bounds=bounds, run=run
    )[0]


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
      num_queries: forward passes of the black-box attack.
      num_boundary_targets: runs of FAB towards one wrong class each, the likeliest first, each of
        `num_steps`; 0 for none.
      lines: the lines of the report that are run, in the order of the suite; None: all there are.
    """

    num_restarts: int
    num_targets: int
    num_member_runs: int
    num_steps: int
    num_member_aware_runs: int
    num_member_aware_steps: int
    num_orders: int
    num_queries: int
    num_boundary_targets: int = 0
    lines: tuple[str, ...] | None = None


QUICK = Budget(2, 2, 6, 20, 1, 20, 2, 200)
STANDARD = Budget(5, 9, 12, 100, 5, 50, 5, 5000)
# The standard version of AutoAttack: APGD-CE, APGD-T, FAB-T, Square; on a mixture each of them on
# the exact expected value. With fewer than ten classes the runs to spare are restarts.
AUTOATTACK = Budget(
    num_restarts=1,
    num_targets=9,
    num_member_runs=1,
    num_steps=100,
    num_member_aware_runs=1,
    num_member_aware_steps=1,
    num_orders=1,
    num_queries=5000,
    num_boundary_targets=9,
    lines=(EXPECTED_LOSS, TARGETED_DLR, BOUNDARY, BLACK_BOX),
)


def attack_suite(
    threat: Threat, budget: Budget = STANDARD, *, bounds: Bounds = (0.0, 1.0)
) -> tuple[Attack, ...]:
    """The attacks that a mixture, and each of its members, has to survive.

    First what takes most accuracy per pass, as `benchmarks.suite_runs` measures it: AutoPGD on
    `-log` of the mean probability, the cross-entropy of single members, the expected margin, the
    expected cross-entropy, the expected difference of logits ratio and the expected targeted ratio.
    Then the lattice climber and ARC, which see the members; under an l2 threat Carlini and Wagner's
    nearest fooling points, dropped beyond the radius: of the mean probability, once along its own
    margin and once along the expected loss as Pinot et al. do, and of half of the members by weight
    and of all; FAB if the budget has it, which looks for the nearest point where the mean
    probability errs; and at last what hardly ever adds anything: a black-box attack that needs
    nothing but the members' logits, as a check on all the gradients, and one run of PGD with 20
    steps on the expected loss, which is what papers report. Of all the points on its path every run
    of PGD and AutoPGD returns that of lowest exact expected accuracy, whatever loss it climbed.

    On one classifier the first, second and fourth loss are the same, and their runs are restarts;
    the runs of the climber and of ARC are replaced by as many of AutoPGD towards further classes.

    Args:
      threat: the allowed perturbations, in the units of the inputs.
      budget: `QUICK`, `STANDARD`, `AUTOATTACK` (for one classifier the attacks, in number, steps
        and order, of the published AutoAttack, to compare with its figures) or one of your own.
      bounds: lowest and highest value of an input, of any range, numbers or arrays that fit one
        input; every evaluation with these attacks takes inputs within them.

    Returns:
      A tuple of attacks for `evaluate`, which anybody may extend, by a trained network for
      example: `(*attack_suite(threat), Attack(("attack_network",), 1, function, threat))`. The
      number of runs is the same for every `L`, and two suites of one budget share what is compiled.

    Raises:
      ValueError: if the budget is no `Budget`, a number of it is not at least 1
        (`num_boundary_targets`: 0) or a line is unknown, the threat is no `Threat`, or the bounds
        are the wrong way round.

    Example:
      >>> from mixjax import evaluation, threats
      >>> suite = evaluation.attack_suite(threats.linf(8 / 255), evaluation.QUICK)
      >>> sum(len(attack.names) for attack in suite)
      20
    """
    checks.threat(threat=threat)
    if not isinstance(budget, Budget):
        raise ValueError(f"budget must be a Budget, such as evaluation.QUICK, got {budget!r}")
    numbers = budget._asdict()
    _check_lines(numbers.pop("lines"))
    checks.at_least(0, num_boundary_targets=numbers.pop("num_boundary_targets"))
    checks.at_least(1, **numbers)
    bounds = low_and_high(bounds)

    def make(number, line, num_runs, num_steps, function, on_one=None):
        names = tuple(np.repeat(line, num_runs).tolist())
        return Attack(names, num_steps, function, threat, bounds, number, on_one)

    def runs(line, number):
        return 0 if budget.lines is not None and line not in budget.lines else number

    num_steps, num_aware_steps = budget.num_steps, budget.num_member_aware_steps
    restarts, aware = budget.num_restarts, budget.num_member_aware_runs
    numbers = restarts, budget.num_member_runs, restarts, restarts, restarts, budget.num_targets
    climbs = tuple(map(runs, _CLIMBED, numbers))
    arc, climber = (runs(line, aware) for line in MEMBER_AWARE)
    ascent = _with(_auto_pgd, num_runs=climbs, num_more=climber + arc, num_steps=num_steps)
    # One classifier has no members to know: towards further classes there, by the same program.
    lines, more = (*_CLIMBED, TARGETED_DLR), (*climbs, climber + arc)
    with_more = make(2, lines, more, num_steps, ascent)
    minimum_norm = MINIMUM_NORM, MINIMUM_NORM_OF_MEMBERS
    norms = tuple(runs(line, 2 if threat.name == "l2" else 0) for line in minimum_norm)
    suite = (
        make(2, _CLIMBED, climbs, num_steps, ascent),
        make(
            4,
            MEMBER_AWARE[1],
            climber,
            num_aware_steps,
            _with(attacks.lattice_climber, num_steps=num_aware_steps, num_orders=budget.num_orders),
            (with_more, sum(climbs)),
        ),
        make(
            3,
            MEMBER_AWARE[0],
            arc,
            num_aware_steps,
            _with(attacks.arc, num_steps=num_aware_steps),
            (with_more, sum(climbs) + climber),
        ),
        make(
            5,
            minimum_norm,
            norms,
            num_steps,
            _with(_carlini_wagner, num_steps=num_steps, first=2 - norms[0]),
        ),
        make(
            7,
            BOUNDARY,
            runs(BOUNDARY, budget.num_boundary_targets),
            num_steps,
            _with(_fab, num_steps=num_steps),
        ),
        make(
            6,
            BLACK_BOX,
            runs(BLACK_BOX, 1),
            budget.num_queries,
            _with(attacks.square, num_queries=budget.num_queries),
        ),
        make(1, BASELINE, runs(BASELINE, 1), _BASELINE_STEPS, _baseline),
    )
    return tuple(each for each in suite if each.names)


def pgd_attacks(
    threat: Threat,
    *,
    num_runs: int = 12,
    num_steps: int = 20,
    step_size: float,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Attack, ...]:
    """PGD on two losses of a mixture and on the cross-entropy of each of its members.

    A third of the runs climbs the expected cross-entropy, a third `-log` of the mean probability
    of the label, and the rest one member's cross-entropy each, the members taking turns. Every
    run starts at a random point of its own: for `L = 1`, where the three losses are the same one,
    these are `num_runs` different restarts of one attack and none is wasted. Each run returns the
    point of lowest exact expected accuracy on its path, and of highest loss among these.

    Args:
      threat: the allowed perturbations, in the units of the inputs.
      num_runs: number of runs in all, whatever `L`; at least 3, and those on members,
        `num_runs - 2 (num_runs // 3)`, at least `L` (checked when the attack meets a mixture).
      num_steps: gradient steps of a run.
      step_size: length of one step in the threat's norm, units of the inputs.
      bounds: lowest and highest value of an input.

    Returns:
      A tuple of one `Attack`: all runs share one compiled loop.

    Raises:
      ValueError: if an argument is out of its range.
    """
    checks.threat(threat=threat)
    checks.at_least(3, num_runs=num_runs)
    checks.at_least(1, num_steps=num_steps)
    checks.positive(step_size=step_size)
    bounds = low_and_high(bounds)
    share = num_runs // 3
    num_member_runs = num_runs - 2 * share
    names = ("pgd_expected_loss",) * share + ("pgd_mean_probability",) * share
    names += ("pgd_members",) * num_member_runs
    function = _with(
        _pgd_in_turn, num_runs=num_runs, num_steps=num_steps, step_size=float(step_size)
    )
    return (Attack(names, num_steps, function, threat, bounds, 0),)


def _check_lines(lines):
    known = (BASELINE, *ON_THE_MIXTURE, TRANSFERRED, *MEMBER_AWARE, MINIMUM_NORM)
    known = (*known, MINIMUM_NORM_OF_MEMBERS, BOUNDARY, BLACK_BOX)
    for line in lines or ():
        checks.one_of(known, lines=line)


# Remembered: what is compiled for one function is compiled for every list that holds the same one.
_with = functools.cache(functools.partial)


def _baseline(key, loss_fn, accuracy_fn, x, threat, bounds):
    return attacks.pgd(
        key,
        loss_fn,
        x,
        threat,
        num_steps=_BASELINE_STEPS,
        step_size=threat.step_size(_BASELINE_STEPS),
        accuracy_fn=accuracy_fn,
        bounds=bounds,
    )


def _pgd_in_turn(
    key, run, logits_fn, weights, x, label, threat, accuracy_fn, bounds, *, num_runs, **numbers
):
    share = num_runs // 3

    def loss_fn(x):
        logits = logits_fn(x)
        if num_runs - 2 * share < logits.shape[0]:
            raise ValueError(
                f"num_runs must be at least {3 * logits.shape[0]} for {logits.shape[0]} members, "
                f"a third of them for the members in turn, got {num_runs}"
            )
        member_losses = jax.vmap(losses.cross_entropy, in_axes=(0, None))(logits, label)
        choices = (
            mixture.expected_loss(member_losses, weights),
            -mixture.log_probs(logits, weights)[label],
            member_losses[(run - 2 * share) % logits.shape[0]],
        )
        return jnp.stack(choices)[jnp.minimum(run // share, 2)]

    return attacks.pgd(key, loss_fn, x, threat, accuracy_fn=accuracy_fn, bounds=bounds, **numbers)


def _auto_pgd(
    key,
    run,
    logits_fn,
    weights,
    x,
    label,
    threat,
    accuracy_fn,
    bounds,
    *,
    num_runs,
    num_more,
    num_steps,
):
    """All runs of AutoPGD: the loss is chosen inside, so that one compiled loop serves all.

    `num_runs` on each of `_CLIMBED`, and `num_more` towards the classes after those of the last.
    """
    logits = logits_fn(x)
    transferred = num_runs[_CLIMBED.index(TRANSFERRED)]
    if 0 < transferred < logits.shape[0]:
        raise ValueError(
            f"num_member_runs must be at least the number of members {logits.shape[0]}, "
            f"got {transferred}"
        )
    numbers = (*num_runs[:-1], num_runs[-1] + num_more)
    used = [place for place, number in enumerate(numbers) if number]
    chosen = np.repeat(np.arange(len(used)), [numbers[place] for place in used])
    turn = jnp.asarray(np.concatenate([np.arange(number) for number in numbers]))[run]
    wrong = attacks.likeliest_wrong(mixture.log_probs(logits, weights), label, logits.shape[1] - 1)
    target = wrong[turn % len(wrong)]

    def expected(loss, logits):
        return losses.expected(loss, logits, label, weights)

    def minus_margin(logits, label):
        return -losses.margin(logits, label)

    def towards_target(logits, label):
        return losses.targeted_dlr(logits, label, target)

    def loss_fn(x):
        branches = (
            lambda logits: -mixture.log_probs(logits, weights)[label],
            lambda logits: losses.cross_entropy(logits[turn % len(logits)], label),
            lambda logits: expected(minus_margin, logits),
            lambda logits: expected(losses.cross_entropy, logits),
            lambda logits: expected(losses.dlr, logits),
            lambda logits: expected(towards_target, logits),
        )
        branches = [branches[place] for place in used]
        return _switch(jnp.asarray(chosen)[run], branches, logits_fn(x))

    return attacks.apgd(
        key, loss_fn, x, threat, num_steps=num_steps, accuracy_fn=accuracy_fn, bounds=bounds
    )


def _switch(index, branches, logits):
    """`jax.lax.switch` of losses of the logits, each differentiated inside its own branch."""

    # The gradient of a switch carries the intermediate values of every branch, of all but the
    # chosen one as zeros: twice the program.
    @jax.custom_vjp
    def chosen(index, logits):
        return jax.lax.switch(index, branches, logits)

    def forward(index, logits):
        return jax.lax.switch(index, [jax.value_and_grad(each) for each in branches], logits)

    def backward(gradient, cotangent):
        # Of half-precision logits the losses, weighed by float32 numbers, may be float32.
        return None, (cotangent * gradient).astype(gradient.dtype)

    chosen.defvjp(forward, backward)
    return chosen(index, logits)


def _fab(key, run, logits_fn, weights, x, label, threat, bounds, *, num_steps):
    """Towards one class each; a run towards a class that had one starts at random."""
    log_probs = mixture.log_probs(logits_fn(x), weights)
    wrong = attacks.likeliest_wrong(log_probs, label, len(log_probs) - 1)
    return attacks.fab_targeted(
        key,
        logits_fn,
        weights,
        x,
        label,
        wrong[run % len(wrong)][None],
        threat,
        num_steps=num_steps,
        random_start=run >= len(wrong),
        bounds=bounds,
    )


def _carlini_wagner(run, logits_fn, weights, x, label, bounds, *, num_steps, first):
    """One run for each way to see a mixture, chosen inside, as `_auto_pgd`."""
    run += first
    share = jnp.asarray(_SHARES)[jnp.maximum(run - 2, 0)]

    def of_accuracy(logits):
        return losses.accuracy_margin(logits, label, weights, share)

    def of_mean(logits):
        return losses.mean_probability_margin(logits, label, weights)

    def expected(logits):
        return losses.expected_hinge(logits, label, weights)

    def margin_fn(x):
        branches = (of_mean, expected, of_accuracy)
        return jax.lax.switch(jnp.minimum(run, 2), branches, logits_fn(x))

    def fooled_fn(x):
        return jax.lax.cond(run < 2, of_mean, of_accuracy, logits_fn(x)) <= 0

    return attacks.carlini_wagner(
        margin_fn, x, fooled_fn=fooled_fn, num_steps=num_steps, bounds=bounds
    )
