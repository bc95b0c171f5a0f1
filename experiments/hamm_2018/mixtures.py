"""Differently trained classifiers as one mixture, weighed by the game against several attacks.

The weights are found on validation data: attack each member alone and all of them equally, solve
the game on every member's errors at all of these points, attack the solution, solve again. What
the table reports was attacked anew, on test data. Errors are expectations over the draw of a
member, exact; `worst` is, for each example, the worst of all points found by attacks on any row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hamm_2018 import scores
from experiments.hamm_2018.training import (
    Setting,
    ball,
    network_training,
    train,
)
from mixjax import (
    attacks,
    data,
    ensemble,
    evaluation,
    files,
    games,
    losses,
    mixture,
    reporting,
)
from mixjax.typing import PyTree

HEAD = ("clean", "fgsm_curr", "attack_network_curr", "auto_pgd", "arc", "worst")
_ROUNDS = 1  # of attacking the solution and solving again
_UNIFORM, _GAME = "uniform mixture", "mixture of the game"


def play(
    setting: Setting, folder: str, members: dict[str, tuple[str, PyTree]], eta: float, number: int
) -> dict[str, Any]:
    """Weighs the members and reports them alone, mixed equally and as the game mixes them.

    Args:
      setting: what was trained on what.
      folder: of the mixture, below that of the run; a result that is there is taken.
      members: `name -> (folder, variables)` of classifiers that `scores.score` has seen,
        so that their attack networks exist.
      eta: radius, for pixels in [-1, 1].
      number: examples of each split, at most.

    Returns:
      Entries `weights`, `value` (of the game on validation data), `best_member` alone and
      `gain_over_best_member` of the game's mixture (less worst error, on the same examples),
      `num_examples` and `errors`: `row -> attack -> error, error bar and interval`.
    """
    path = setting.folder / folder / "mixture.json"
    if path.exists():
        return files.read_json(path)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(variables for _, variables in members.values())
    )
    rows = dict(zip(members, np.eye(len(members), dtype=np.float32), strict=True))
    networks = {
        name: scores.attack_network(setting, place, variables, eta)
        for name, (place, variables) in members.items()
    }

    def add(name, weights):
        rows[name] = np.asarray(weights, np.float32)
        place = f"{folder}/{name.replace(' ', '_')}"
        networks[name] = _attack_network(setting, place, stacked, rows[name], eta)

    add(_UNIFORM, np.full(len(members), 1 / len(members)))
    attack = functools.partial(_attacked, setting, stacked, eta=eta)
    validation = data.Split(*(part[:number] for part in setting.dataset.validation))
    tables = [attack(rows[name], networks[name], split=validation) for name in rows]
    found = _solve(tables)
    for _ in range(_ROUNDS):
        tables.append(attack(found.weights, networks[_UNIFORM], split=validation))
        found = _solve(tables)
    add(_GAME, found.weights)
    test = data.Split(*(part[:number] for part in setting.dataset.test))
    wrong = {name: attack(rows[name], networks[name], split=test) for name in rows}
    every = np.concatenate([_table(each) for each in wrong.values()], axis=1)
    errors, worst = {}, {}
    for name, weights in rows.items():
        worst[name] = (every @ weights).max(axis=1)
        paid = {each: points @ weights for each, points in wrong[name].items()}
        means = {
            each: evaluation.mean_and_error_bar(1 - values)
            for each, values in {**paid, "worst": worst[name]}.items()
        }
        errors[name] = {
            each: scores.error_entry(mean, error_bar, len(test.labels))
            for each, (mean, error_bar) in means.items()
        }
    best = min(members, key=lambda name: worst[name].mean())
    pair = worst[best], worst[_GAME]
    gain, error_bar = evaluation.paired_difference(*pair)
    interval = list(evaluation.paired_interval(*pair))
    result = {
        "weights": dict(zip(members, map(float, found.weights), strict=True)),
        "value": float(found.value),
        "best_member": best,
        "gain_over_best_member": {"mean": gain, "error_bar": error_bar, "interval": interval},
        "num_examples": len(test.labels),
        "errors": errors,
    }
    files.write_json(path, result, "mixture")
    return files.read_json(path)


def cells(result: dict[str, Any]) -> dict[str, list[str]]:
    """Rows of the report's table."""
    number = result["num_examples"]
    return {
        name: [reporting.error_cell(row[each]["error"], number) for each in HEAD]
        for name, row in result["errors"].items()
    }


def _attack_network(setting, name, stacked, weights, eta) -> PyTree:
    """A network trained against the mixture: its expected error is raised."""
    return train(
        setting,
        f"{name}/attack_network",
        _attacker(setting),
        jnp.float32(eta),
        stacked,
        jnp.asarray(weights),
        num_steps=setting.config.network_steps,
    ).variables


@functools.cache
def _attacker(setting: Setting):
    """`(eta, members [L, ...], weights [L]) -> Defense`."""
    raised = setting.attacker.raised

    def expected(mixed, x, label):
        members, weights = mixed
        logits = ensemble.apply(setting.model.apply, members, x)
        if raised is attacks.log_error:
            return _log_expected_error(logits, label, weights)
        return losses.expected(raised, logits, label, weights)

    def make(eta, members, weights):
        return network_training(setting, expected, eta, (members, weights))

    return make


def _log_expected_error(logits, label, weights):
    """`log sum_k weights_k (1 - p_k(label))`: `[L, C], [], [L] -> []`."""
    return attacks.log_error(mixture.log_probs(logits, weights), label)


def _attacked(setting, stacked, weights, network, *, eta, split) -> dict[str, np.ndarray]:
    """Which member errs at the point that each attack found: `attack -> [N, L]`."""
    apply_fn = jax.tree_util.Partial(setting.model.apply)
    fgsm, _, by_network, auto_pgd = scores.on_classifiers(setting, eta, network)
    arc = evaluation.Attack(("arc",), 20, attacks.arc, ball(eta))
    found = scores.evaluated(
        setting,
        jax.tree_util.Partial(ensemble.apply, apply_fn, stacked),
        weights,
        [fgsm, by_network, auto_pgd, arc],
        split,
        stream=4,
    )
    return scores.wrong(found)


def _solve(tables: list[dict[str, np.ndarray]]) -> games.Equilibrium:
    return games.solve(np.concatenate([_table(each) for each in tables], axis=1))


def _table(wrong: dict[str, np.ndarray]) -> np.ndarray:
    """`[N, M, L]` errors at all points, for `games.solve`."""
    return np.stack(list(wrong.values()), axis=1).astype(np.float64)
