"""Errors of a finished classifier, clean and under attacks made or trained for it, and the report.

`fgsm_curr` and `attack_network_curr` are the paper's FGSM-curr and AttNet-curr; `ifgsm_curr` is
there in its tables 1 and 2, `auto_pgd` nowhere. Every error is a rate over test examples with one
standard error and Wilson's 95 % interval. As in the paper an attack counts where it moves an
example, whether that helps or not; `worst` is the best of all attacks and of no attack, for each
example. Of the points on its path AutoPGD keeps one that is misclassified, if any is, as the
published one does, and so does IFGSM "boxed"; as printed IFGSM ends where it ends. FGSM as printed
and the paper's attack network may leave [-1, 1], AutoPGD never does.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hamm_2018.settings import recorded
from experiments.hamm_2018.training import (
    Setting,
    attacker,
    ball,
    identity,
    train,
    under_network,
)
from experiments.hamm_2018.variants import fgsm, ifgsm
from mixjax import attacks, data, ensemble, evaluation, losses, reporting
from mixjax.typing import PyTree

STRONG = 0.9  # error of an undefended classifier that an attack network must reach to judge others
NETWORK = "attack_network_curr"
TRAINED = 0.5  # error without an attack above which a classifier says nothing about one


def score(setting: Setting, name: str, variables: PyTree, eta: float, *, with_network: bool = True):
    """Attacks a classifier on test examples, by an attack network trained for it too.

    Args:
      setting: what was trained on what.
      name: folder of the classifier below that of the run; a result of it that is there is taken.
      variables: the classifier's variables.
      eta: radius, for pixels in [-1, 1].
      with_network: whether an attack network is trained and counts.

    Returns:
      The result, as `reporting.check_result` wants it, that is written to `<name>/result.json`.

    Raises:
      ValueError: if there is one already of another classifier or radius.
    """
    folder, known = setting.folder / name, identity((variables, eta, with_network))
    if (folder / "result.json").exists():
        result = reporting.read_result(folder)
        if result.get("identity") != known:
            raise ValueError(
                f"{folder / 'result.json'} is of another classifier or radius than the run's: "
                f"remove the folder {folder} to begin it anew"
            )
        return result
    start, network = time.monotonic(), None
    if with_network:
        network = attack_network(setting, name, variables, eta)
    folder.mkdir(parents=True, exist_ok=True)
    result = _result(setting, errors(setting, variables, eta, network))
    result |= {"eta": eta, "identity": known}
    seconds = time.monotonic() - start
    result["provenance"] = reporting.provenance(setting.command, setting.config.seed, seconds)
    return reporting.write_result(folder, result)


def attack_network(setting: Setting, name: str, variables: PyTree, eta: float) -> PyTree:
    """The variables of a network trained against the classifier in the folder `name`."""
    return train(
        setting,
        f"{name}/attack_network",
        attacker(setting),
        jnp.float32(eta),
        variables,
        num_steps=setting.config.network_steps,
    ).variables


def errors(
    setting: Setting, variables: PyTree, eta: float, network: PyTree = None
) -> dict[str, np.ndarray]:
    """Whether the classifier errs, `[N]` for each attack; `network` are the variables of one."""
    return _of_one(setting, variables, on_classifiers(setting, eta, network))


def current(setting: Setting, variables: PyTree, eta: float) -> dict[str, float]:
    """What a curve of training shows: the errors without attack and under FGSM-curr."""
    wrong = _of_one(setting, variables, on_classifiers(setting, eta)[:1])
    return {name: float(each.mean()) for name, each in wrong.items()}


def error_under_network(setting: Setting, variables: PyTree, network: PyTree, eta: float) -> float:
    """The error of a classifier under an attack network, both given as variables."""
    return float(_of_one(setting, variables, [by_network(setting, eta, network)])[NETWORK].mean())


def transferred(
    setting: Setting, source: PyTree, target: PyTree, eta: float, attack: Callable
) -> np.ndarray:
    """Whether the classifier `target` errs, `[N]`, under an attack on the classifier `source`.

    They are a mixture in which the target has weight 0.

    Args:
      setting: what was trained on what.
      source: variables of the classifier attacked.
      target: variables of the classifier that answers.
      eta: radius, for pixels in [-1, 1].
      attack: `(key, loss_fn, x, threat, accuracy_fn) -> (x_adv, info)` without randomness, the same
        each time.
    """
    made = [evaluation.Attack(("transferred",), 1, attack, ball(eta))]
    found = evaluated(setting, classifiers(setting, source, target), [1.0, 0.0], made)
    return wrong(found)["transferred"][:, 1]


def _of_one(setting, variables, made):
    found = evaluated(setting, classifiers(setting, variables), [1.0], made)
    return {name: each[:, 0] for name, each in wrong(found).items()}


def classifiers(setting: Setting, *variables: PyTree) -> Callable:
    """`x -> [L, C]`, the logits of the setting's model with each of these variables."""
    return jax.tree_util.Partial(
        _each, *(jax.tree_util.Partial(setting.model.apply, one) for one in variables)
    )


def _each(*members_and_x):
    *members, x = members_and_x
    return ensemble.apply_each(members, x)


def evaluated(
    setting: Setting,
    logits_fn: Callable,
    weights: Any,
    made: Sequence[evaluation.Attack],
    split: data.Split | None = None,
    *,
    stream: int = 3,
) -> evaluation.Evaluation:
    """Classifiers under attacks, of which each meets every example.

    Args:
      setting: what was trained on what.
      logits_fn: `x -> [L, C]`.
      weights: `[L]` probabilities of the classifiers.
      made: the attacks.
      split: examples; None: the test examples.
      stream: which random numbers of the seed the attacks draw.
    """
    images, labels = setting.dataset.test if split is None else split
    return evaluation.evaluate(
        jax.random.fold_in(jax.random.key(setting.config.seed), stream),
        logits_fn,
        weights,
        images,
        labels,
        made,
        alone=False,
        num_complete=None,
        batch_size=setting.config.test_batch_size,
    )


def wrong(found: evaluation.Evaluation) -> dict[str, np.ndarray]:
    """Who errs, `[N, L]`, without an attack and where each one leads; of its runs the best."""
    names = np.array(["clean", *found.runs])
    points = {}
    for name in dict.fromkeys(names.tolist()):
        runs = np.flatnonzero(names == name)
        best = runs[found.accuracies[:, runs].argmin(axis=1)]
        points[name] = ~found.correct[np.arange(len(best)), best]
    return points


def on_classifiers(setting: Setting, eta: float, network: PyTree = None) -> list[evaluation.Attack]:
    """FGSM, IFGSM, the attack network if there is one, and two runs of AutoPGD."""
    config, threat = setting.config, ball(eta)
    steps = config.ifgsm_steps, config.apgd_steps
    return [
        evaluation.Attack(("fgsm_curr",), 1, fgsm(config), threat),
        evaluation.Attack(("ifgsm_curr",), steps[0], ifgsm(config), threat),
        *([] if network is None else [by_network(setting, eta, network)]),
        evaluation.Attack(("auto_pgd",) * 2, steps[1], _auto_pgd(steps[1]), threat),
    ]


def by_network(setting: Setting, eta: float, network: PyTree) -> evaluation.Attack:
    """The attack of a finished network; its variables are arguments of what is compiled."""
    attack = jax.tree_util.Partial(_by_network(setting), network)
    return evaluation.Attack((NETWORK,), 1, attack, ball(eta))


@functools.cache  # the same function each time: what is compiled depends on it
def _by_network(setting: Setting):
    def attack(network, loss_fn, x, label, threat):
        return under_network(setting, network, loss_fn, x, label, threat)

    return attack


@functools.cache
def _auto_pgd(num_steps: int):
    """AutoPGD on the expected cross-entropy in run 0, on the expected DLR in run 1."""

    def attack(key, run, logits_fn, weights, x, label, threat, accuracy_fn):
        def loss_fn(x):
            of = (losses.cross_entropy, losses.dlr)
            return jnp.stack([losses.expected(f, logits_fn(x), label, weights) for f in of])[run]

        return attacks.apgd(key, loss_fn, x, threat, num_steps=num_steps, accuracy_fn=accuracy_fn)

    return attack


def over_test(setting: Setting, run) -> Any:
    """`(images, labels, indices) -> pytree of [B]` on all test examples: the pytree of `[N]`."""
    images, labels = setting.dataset.test
    return evaluation.over_batches(run, images, labels, batch_size=setting.config.test_batch_size)


def _result(setting: Setting, wrong: dict[str, np.ndarray]) -> dict[str, Any]:
    right = {name: 1.0 - each for name, each in wrong.items()}
    right["worst"] = np.min(list(right.values()), axis=0)
    scores = {name: evaluation.mean_and_error_bar(each) for name, each in right.items()}
    robust = {name: mean for name, (mean, _) in scores.items() if name != "clean"}
    alone = {"clean_accuracy": scores["clean"][0], "robust_accuracy": robust["worst"]}
    return {
        "dataset": setting.config.dataset,
        "num_members": 1,
        "weights": [1.0],
        "clean_accuracy": scores["clean"][0],
        "robust_accuracy": robust,
        "sandwich": {"lower": robust["worst"], "upper": robust["worst"]},
        "members": [alone],
        "averaged": alone,
        "num_examples": len(right["worst"]),
        "error_bar": {name: error_bar for name, (_, error_bar) in scores.items()},
        "interval": {
            name: list(evaluation.wilson_interval(mean, len(right["worst"])))
            for name, (mean, _) in scores.items()
        },
        "config": recorded(setting.config),
    }


def error_entry(accuracy: float, error_bar: float, num_examples: int) -> dict[str, Any]:
    """An accuracy as an entry of `result.json`: error, standard error and Wilson's interval."""
    interval = evaluation.wilson_interval(1 - accuracy, num_examples)
    return {"error": 1 - accuracy, "error_bar": error_bar, "interval": list(interval)}


def error(result: dict[str, Any], attack: str) -> float:
    """The error of a result under an attack; NaN if it has not met it."""
    if attack == "clean":
        return 1 - result["clean_accuracy"]
    return 1 - result["robust_accuracy"].get(attack, np.nan)


def breaks(clean: float, attacked: float) -> bool:
    """Whether errors without and under an attack are those of a classifier that it breaks."""
    return clean <= TRAINED and attacked > STRONG


def gate(undefended: dict[str, Any]) -> tuple[bool, str]:
    """Whether the attack network breaks an undefended classifier, and a sentence that says so."""
    clean, broken = (error(undefended, attack) for attack in ("clean", NETWORK))
    eta = undefended["eta"]
    if clean > TRAINED:
        return False, (
            f"The undefended classifier errs on {clean:.3f} without an attack, above {TRAINED}: it "
            f"cannot show at eta {eta:g} whether the attack network is too weak to judge a defence."
        )
    if breaks(clean, broken):
        return True, (
            f"The attack network raises the error of the undefended classifier to {broken:.3f} at "
            f"eta {eta:g}: it can judge a defence."
        )
    return False, (
        f"The attack network raises the error of the undefended classifier to {broken:.3f} only at "
        f"eta {eta:g}, not above {STRONG}: it is too weak to judge a defence, and its column "
        "says nothing about one."
    )
