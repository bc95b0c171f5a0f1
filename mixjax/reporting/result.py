"""`result.json`: the outcome of a run, checked before it is written and after it is read."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mixjax import checks, files
from mixjax.reporting.origin import without_paths

RESULT = "result.json"
_FIELDS = (
    "dataset",
    "num_members",
    "weights",
    "clean_accuracy",
    "robust_accuracy",
    "sandwich",
    "members",
    "averaged",
    "num_examples",
    "error_bar",
    "config",
    "provenance",
)
_PROVENANCE = ("command", "commit", "seed", "versions", "device", "seconds")
_ROUNDING = 1e-6


def write_result(
    run_dir: str | os.PathLike, result: Mapping[str, Any], file: str = RESULT
) -> dict[str, Any]:
    """Checks `result` and writes it as `result.json`, whole or not at all.

    Args:
      run_dir: folder of the run.
      result: dict as in `check_result`. Absolute paths in its config are cut short.
      file: another name for another result of the same run.

    Returns:
      The result as it was written, of plain Python values.

    Raises:
      ValueError: naming the entry that is missing, not finite, or contradicts another one.
    """
    plain = files.plain(result, "result")
    check_result(plain)
    plain["config"] = without_paths(plain["config"])
    files.write_json(pathlib.Path(run_dir) / file, plain, "result")
    return plain


def read_result(path: str | os.PathLike) -> dict[str, Any]:
    """The result in the file `path`, or in the `result.json` of the folder `path`.

    Raises:
      ValueError: if it is not JSON or not a result.
    """
    path = pathlib.Path(path)
    result = files.read_json(path / RESULT if path.is_dir() else path)
    check_result(result)
    return result


def read_evaluations(
    folders: Mapping[str, str | os.PathLike],
) -> dict[str, dict[str, dict[str, Any]]]:
    """`budget -> name -> evaluation` from the files `evaluation_<budget>.json` of some runs.

    Args:
      folders: `name -> folder` of each run.

    Raises:
      ValueError: if one is not JSON or not a result.
    """
    found = {}
    for name, folder in folders.items():
        for path in sorted(pathlib.Path(folder).glob("evaluation_*.json")):
            budget = path.stem.removeprefix("evaluation_")
            found.setdefault(budget, {})[name] = read_result(path)
    return found


def check_result(result: Mapping[str, Any]) -> None:
    """Checks that `result` has every field, in its range, and contradicts itself nowhere.

    Args:
      result: dict of plain values: `dataset`, `num_members`, `weights` `[L]`; accuracies in
        [0, 1]: `clean_accuracy`, `robust_accuracy` with one entry for each attack and `worst`,
        `sandwich` (`lower`, `upper`), `members` (a list of L) and `averaged` with
        `clean_accuracy` and `robust_accuracy` each; `num_examples`; `error_bar`, standard errors
        of `clean` and of each entry of `robust_accuracy`; `config`; `provenance`. Others may be
        added: `interval`, `[low, high]` around each of these; `attacks.<name>.num_examples` says
        that an attack met other examples than the rest, so that its accuracy may be anywhere.

    Raises:
      ValueError: naming the entry.
    """
    _check_fields(result, _FIELDS, "result")
    _check_fields(result["provenance"], _PROVENANCE, "result.provenance")
    if not isinstance(result["dataset"], str):
        raise ValueError(f"result.dataset must be a name, got {result['dataset']}")
    checks.at_least(
        1,
        **{f"result.{name}": _number(result, name) for name in ("num_members", "num_examples")},
    )
    checks.simplex(**{"result.weights": result["weights"]})
    for name in ("weights", "members"):
        if len(result[name]) != result["num_members"]:
            raise ValueError(
                f"result.{name} must have num_members = {result['num_members']} entries, "
                f"got {len(result[name])}"
            )
    _check_accuracies(result)
    _check_error_bars(result)
    _check_intervals(result)


def _check_accuracies(result):
    robust, sandwich = result["robust_accuracy"], result["sandwich"]
    _check_fields(robust, ("worst",), "result.robust_accuracy")
    _check_fields(sandwich, ("lower", "upper"), "result.sandwich")
    _check_accuracy("result.clean_accuracy", result["clean_accuracy"])
    for name, accuracies in (("robust_accuracy", robust), ("sandwich", sandwich)):
        for entry, accuracy in accuracies.items():
            _check_accuracy(f"result.{name}.{entry}", accuracy)
    alone = {f"result.members[{k}]": member for k, member in enumerate(result["members"])}
    for name, accuracies in (alone | {"result.averaged": result["averaged"]}).items():
        _check_fields(accuracies, ("clean_accuracy", "robust_accuracy"), name)
        _check_accuracy(f"{name}.clean_accuracy", accuracies["clean_accuracy"])
        _check_accuracy(f"{name}.robust_accuracy", accuracies["robust_accuracy"])
    above = {"clean_accuracy": result["clean_accuracy"], "sandwich.upper": sandwich["upper"]}
    attacks = result.get("attacks", {})
    above |= {
        f"robust_accuracy.{attack}": accuracy
        for attack, accuracy in robust.items()
        if attacks.get(attack, {}).get("num_examples") in (None, result["num_examples"])
    }
    for name, accuracy in above.items():
        _check_order("robust_accuracy.worst", robust["worst"], name, accuracy)
    _check_order("sandwich.lower", sandwich["lower"], "robust_accuracy.worst", robust["worst"])


def _check_error_bars(result):
    names = ("clean", *result["robust_accuracy"])
    _check_fields(result["error_bar"], names, "result.error_bar")
    checks.non_negative(
        **{f"result.error_bar.{name}": _number(result["error_bar"], name) for name in names}
    )


def _check_intervals(result):
    if "interval" not in result:  # results of older versions
        return
    accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
    _check_fields(result["interval"], accuracies, "result.interval")
    for name, accuracy in accuracies.items():
        interval = result["interval"][name]
        if not isinstance(interval, list | tuple) or len(interval) != 2:
            raise ValueError(f"result.interval.{name} must be [low, high], got {interval!r}")
        for end in interval:
            _check_accuracy(f"result.interval.{name}", end)
        low, high = interval
        _check_order(f"interval.{name}[0]", low, "its accuracy", accuracy)
        _check_order(f"its accuracy {name}", accuracy, f"interval.{name}[1]", high)


def _check_fields(value, names, what):
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a dict of {', '.join(names)}, got {value!r}")
    if missing := [name for name in names if name not in value]:
        raise ValueError(f"{what} must hold {', '.join(missing)}")


def _number(values, name):
    if isinstance(values[name], bool) or not isinstance(values[name], int | float):
        raise ValueError(f"{name} must be a number, got {values[name]!r}")
    return values[name]


def _check_accuracy(name, value):
    if not -_ROUNDING <= _number({name: value}, name) <= 1 + _ROUNDING:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def _check_order(name, value, above, limit):
    if value > limit + _ROUNDING:
        raise ValueError(f"result.{name} = {value} must not exceed {above} = {limit}")
