"""The tables of Hamm 2018 in `RESULTS.md`, from the committed `results/hamm_*.json`.

`python -m experiments.results_page` writes that page. The `result.json` of `attack_network` or
`minimax_defense` gets in by being copied there; errors stand with Wilson's 95 % interval in
brackets and what the paper's tables say in square ones, T4 for table 4. Files
`hamm_further_*.json` of other lengths, widths, seeds and settings of the second share one table.
Of `hamm_digits_equal_compute*.json`, which differ in their seed alone, the mean over the seeds is
shown, in brackets with its 95 % interval.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence

from experiments.hamm_2018 import mixtures
from experiments.hamm_2018.reports import ATTACKS, cost_table
from experiments.hamm_2018.settings import PAPER
from experiments.hamm_2018.variants import said
from mixjax import evaluation, reporting

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
_UNEQUAL = (
    "All rows but Adv FGSM1, which goes on from the first, took equally many steps, which is not "
    "equal work; what a step cost was not recorded.\n"
)
EQUAL_COMPUTE = "hamm_digits_equal_compute"
_KNOWN = {"clean": "no attack", "fgsm": "FGSM", "auto_pgd": "AutoPGD"}


def table() -> str:
    """All committed runs as Markdown, in the order of their files' names."""
    parts, others, of_seeds = [], {}, []
    for path in sorted(RESULTS.glob("hamm_*.json")):
        result = json.loads(path.read_text())
        if path.stem.startswith("hamm_further_"):
            others[path.stem] = result
            continue
        if path.stem.startswith(EQUAL_COMPUTE):
            of_seeds.append(result)
            continue
        parts.append(f"{_origin(path.stem, result)}\n")
        if "attacked" in result:
            parts.append(attackers(result))
        else:
            parts += [*defences(result), verdict(result)]
    if of_seeds:
        parts.append(equal_compute(of_seeds))
    return "\n".join([*parts, further(others)])


def attackers(result: dict) -> str:
    """What attack networks reach against classifiers without defence, one column for each."""
    columns = result["attacked"]

    def cells(error_of):
        return [
            reporting.error_cell(error_of(each), each["num_examples"]) for each in columns.values()
        ]

    rows = {name: cells(lambda each, field=field: each[field]) for field, name in _KNOWN.items()}
    for name in next(iter(columns.values()))["attack_networks"]:
        rows[f"attack network, {name}"] = cells(
            lambda each, name=name: each["attack_networks"][name][1][-1]
        )
    return reporting.rate_table("error under", list(columns), rows)


def defences(result: dict) -> list[str]:
    """Every classifier under every attack, one table for each radius, and the mixtures."""
    parts, number = [], result["num_examples"]
    for eta, rows in result["errors"].items():
        paper = PAPER.get(result["dataset"], {}).get(float(eta), {})
        cells = {
            name: [_cell(row.get(each), number, paper.get(name, {}).get(each)) for each in ATTACKS]
            for name, row in rows.items()
        }
        parts.append(reporting.rate_table(f"eta = {eta}", list(ATTACKS.values()), cells))
        if eta in result.get("mixtures", {}):
            mixed = result["mixtures"][eta]
            head = [ATTACKS.get(each, each.upper()) for each in mixtures.HEAD]
            parts.append(reporting.rate_table("mixtures", head, mixtures.cells(mixed)))
            weights = ", ".join(f"{name} {value:.2f}" for name, value in mixed["weights"].items())
            parts.append(f"The game's weights: {weights}; {mixed['num_examples']} examples.\n")
    if "training_cost" in result:
        parts.append(cost_table(result["training_cost"]))
    else:
        parts.append(_UNEQUAL)
    return parts


def further(results: dict[str, dict]) -> str:
    """The errors of other runs, one row for each classifier and radius, and how they were made."""
    rows, words = {}, {}
    for name, result in results.items():
        config = result["config"]
        words.setdefault(said(config), []).append(name)
        for eta, errors in result["errors"].items():
            setting = (
                f"{config['dataset']}, eta = {eta}, width {config['width']}, {config['steps']} "
                f"steps, gamma {config['penalty']:g}, seed {result['provenance']['seed']}"
            )
            for classifier, found in errors.items():
                row = f"[{setting}]({_path(name)}): {classifier}"
                cells = [_cell(found.get(each), result["num_examples"]) for each in ATTACKS]
                rows[row] = cells
    table = reporting.rate_table("further runs", list(ATTACKS.values()), rows)
    if len(words) == 1:
        return f"{table}\nAll of these: {next(iter(words))}\n"
    lines = [f"{', '.join(names)}: {text}\n" for text, names in words.items()]
    return "\n".join([table, *lines])


def equal_compute(results: Sequence[dict]) -> str:
    """What several seeds err at one cost of training, and seed by seed against Minimax."""
    parts = [f"{_origin(EQUAL_COMPUTE, results[0], seeds=len(results))}\n"]
    for eta in results[0]["errors"]:
        errors = [each["errors"][eta] for each in results]
        rows = _means(errors, ATTACKS)
        for name, cells in rows.items():
            more = [
                each[name]["worst"]["error"] - each["Minimax"]["worst"]["error"] for each in errors
            ]
            cells.append("" if name == "Minimax" else _mean(more))
        head = [*ATTACKS.values(), "worst, minus Minimax"]
        runs = f"{EQUAL_COMPUTE.replace('_', ' ')}, seeds: {len(results)}"
        corner = f"[{runs}]({_path(EQUAL_COMPUTE)}), eta = {eta}"
        parts.append(reporting.rate_table(corner, head, rows))
        mixed = [each["mixtures"][eta] for each in results]
        head = [ATTACKS.get(each, each.upper()) for each in mixtures.HEAD]
        rows = _means([each["errors"] for each in mixed], mixtures.HEAD)
        parts.append(reporting.rate_table("mixtures", head, rows))
        gain = _mean([each["gain_over_best_member"]["mean"] for each in mixed])
        parts.append(
            "By how much the game's mixture errs less than its best member under the worst of "
            f"these, on the same {mixed[0]['num_examples']} examples: {gain}.\n"
        )
    parts.append(cost_table(results[0]["training_cost"]))
    return "\n".join(parts)


def _means(errors: Sequence[dict], attacks: Iterable[str]) -> dict[str, list[str]]:
    """The cells of each classifier: `errors` holds `classifier -> attack -> error` of each seed."""
    return {
        name: [_rate([each[name][attack]["error"] for each in errors]) for attack in attacks]
        for name in errors[0]
    }


def _mean(values: Sequence[float], lowest: float = -1.0) -> str:
    mean, (low, high) = evaluation.over_seeds(values)
    return f"{mean:.3f} ({max(low, lowest):.3f} to {min(high, 1.0):.3f})"


def _rate(values: Sequence[float]) -> str:
    """As `_mean`, of what is at least 0: Student's interval knows no bounds."""
    return _mean(values, lowest=0.0)


def verdict(result: dict) -> str:
    """Whether the column of the attack network says anything: the gate."""
    if result["attack_network_is_strong"]:
        return "The attack network breaks what has no defence: it can judge one.\n"
    return (
        "The attack network does not break what has no defence (.9): it is too weak to judge one.\n"
    )


def _cell(found, number, published=None) -> str:
    return reporting.error_cell(found["error"] if found else None, number, published)


def _path(name: str) -> str:
    return f"results/{name}.json"


def _origin(name: str, result: dict, seeds: int = 1) -> str:
    config, origin = result["config"], result["provenance"]
    runs = f"seeds: {seeds}" if seeds > 1 else f"one run, seed {origin['seed']}"
    return (
        f"[{name}]({_path(name)}): {config['dataset']}, classifiers of width "
        f"{config['width']}, {config['steps']} steps of {config['batch_size']} examples, attack "
        f"networks {config['network_steps']}; {runs}. {said(config)}"
    )
