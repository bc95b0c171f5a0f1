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
from collections.abc import Callable
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
from mixjax import attacks, evaluation, losses, mixture, reporting
from mixjax.batch import example_keys
from mixjax.typing import PyTree

STRONG = 0.9  # error of an undefended classifier that an attack network must reach to judge others
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
    wrong = errors(setting, variables, eta, network)
    result = _result(setting, wrong)
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
    key = jax.random.fold_in(jax.random.key(setting.config.seed), 3)
    run = functools.partial(_judge(setting), variables, network, jnp.float32(eta), key)
    return over_test(setting, run)


def transferred(
    setting: Setting, source: PyTree, target: PyTree, eta: float, attack: Callable
) -> np.ndarray:
    """Whether the classifier `target` errs, `[N]`, under an attack on the classifier `source`.

    Args:
      setting: what was trained on what.
      source: variables of the classifier attacked.
      target: variables of the classifier that answers.
      eta: radius, for pixels in [-1, 1].
      attack: `(key, loss_fn, x, threat, accuracy_fn) -> (x_adv, info)` without randomness, the same
        each time.
    """
    run = functools.partial(_transfer(setting, attack), source, target, jnp.float32(eta))
    return over_test(setting, run)


def current(setting: Setting, variables: PyTree, eta: float) -> dict[str, float]:
    """What a curve of training shows: the errors without attack and under FGSM-curr."""
    key = jax.random.key(0)
    wrong = over_test(
        setting,
        functools.partial(_judge(setting, curve=True), variables, None, jnp.float32(eta), key),
    )
    return {name: float(each.mean()) for name, each in wrong.items()}


def error_under_network(setting: Setting, variables: PyTree, network: PyTree, eta: float) -> float:
    """The error of a classifier under an attack network, both given as variables."""
    run = functools.partial(_under_network(setting), variables, network, eta)
    return float(over_test(setting, run).mean())


def over_test(setting: Setting, run) -> Any:
    """`(images, labels, indices) -> pytree of [B]` on all test examples: the pytree of `[N]`."""
    images, labels = setting.dataset.test
    size = min(setting.config.test_batch_size, len(labels))
    return evaluation.over_batches(run, images, labels, batch_size=size)


@functools.cache
def _judge(setting: Setting, curve: bool = False):
    """Compiled `(variables, network, eta, key, images, labels, indices) -> {attack: wrong [B]}`."""
    config, apply = setting.config, setting.model.apply

    def one(variables, network, eta, key, x, label):
        threat = ball(eta)

        def right(x):
            return 1.0 * mixture.correct(apply(variables, x), label)

        def wrong(x):
            return ~mixture.correct(apply(variables, x), label)

        def loss_fn(x):
            return losses.cross_entropy(apply(variables, x), label)

        def under(attack):
            return attack(key, loss_fn, x, threat)[0]

        found = {"clean": wrong(x), "fgsm_curr": wrong(under(fgsm(config)))}
        if curve:
            return found
        found["ifgsm_curr"] = wrong(under(functools.partial(ifgsm(config), accuracy_fn=right)))
        if network is not None:
            point = under_network(setting, network, loss_fn, x, label, threat)
            found["attack_network_curr"] = wrong(point)
        auto_pgd = functools.partial(attacks.apgd, num_steps=config.apgd_steps)

        def with_loss(choice):  # one compiled loop for both
            logits_fn = attacks.once(functools.partial(apply, variables))

            def loss_fn(x):
                each = losses.cross_entropy(logits_fn(x), label), losses.dlr(logits_fn(x), label)
                return jnp.stack(each)[choice]

            def accuracy_fn(x):
                return 1.0 * mixture.correct(logits_fn(x), label)

            return wrong(auto_pgd(key, loss_fn, x, threat, accuracy_fn=accuracy_fn)[0])

        return found | {"auto_pgd": jnp.any(jax.lax.map(with_loss, jnp.arange(2)))}

    def batch(variables, network, eta, key, images, labels, indices):
        keys = example_keys(key, indices)
        return jax.vmap(one, in_axes=(None, None, None, 0, 0, 0))(
            variables, network, eta, keys, images, labels
        )

    return jax.jit(batch)


@functools.cache
def _under_network(setting: Setting):
    """Compiled `(variables, network, eta, images, labels, indices) -> wrong [B]`."""

    def one(variables, network, eta, x, label):
        def loss_fn(x):
            return losses.cross_entropy(setting.model.apply(variables, x), label)

        point = under_network(setting, network, loss_fn, x, label, ball(eta))
        return ~mixture.correct(setting.model.apply(variables, point), label)

    def batch(variables, network, eta, images, labels, indices):
        del indices
        return jax.vmap(one, in_axes=(None, None, None, 0, 0))(
            variables, network, eta, images, labels
        )

    return jax.jit(batch)


@functools.cache
def _transfer(setting: Setting, attack: Callable):
    """Compiled `(source, target, eta, images, labels, indices) -> wrong [B]`."""
    apply = setting.model.apply

    def batch(source, target, eta, images, labels, indices):
        del indices

        def one(x, label):
            def loss_fn(x):
                return losses.cross_entropy(apply(source, x), label)

            def accuracy_fn(x):
                return 1.0 * mixture.correct(apply(source, x), label)

            x_adv, _ = attack(None, loss_fn, x, ball(eta), accuracy_fn)
            return ~mixture.correct(apply(target, x_adv), label)

        return jax.vmap(one)(images, labels)

    return jax.jit(batch)


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
    clean, broken = (error(undefended, attack) for attack in ("clean", "attack_network_curr"))
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
