"""The README's tables of results and of speed, from the committed `results/*.json`.

    python -m experiments.results_table      # rewrites the parts of README.md between the markers

A run's `result.json`, or its `evaluation_<budget>.json`, gets in by being copied to
`results/<data>_<what>.json`; the name of the file is the name of the row. Runs that
differ in their seed alone are `<data>_<what>_seed_<n>.json`, seed 0 without the ending: only the
first has a row of its own, and all of them together one of the table over seeds.
"""

import json
import pathlib
import re
from collections.abc import Iterator

from mixjax import evaluation, reporting

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SEED = re.compile(r"_seed_\d+$")
DAGGER = " †"


def table() -> str:
    """All committed runs as Markdown, in the order of their files' names."""
    results, of_all_seeds = {}, {}
    for path in sorted(RESULTS.glob("*.json")):
        if "robust_accuracy" in json.loads(path.read_text()):
            result = reporting.read_result(path)
            name = SEED.sub("", path.stem).replace("_", " ") + DAGGER * by_loss(result)
            of_all_seeds.setdefault(name, []).append(result)
            if not SEED.search(path.stem):
                results[name] = result
    lines = [reporting.results_table(list(results.values()), list(results))]
    for name, result in results.items():
        lines.append(reporting.difference_line(name, result))
    evaluations = {  # with an error bar
        name: result
        for name, result in results.items()
        if result.get("reported_by", {"num_examples": 0})["num_examples"] > 1
    }
    lines.append(reporting.reported_table(evaluations))
    lines.append(over_seeds(of_all_seeds))
    lines.append(reporting.training_table(results))
    return "\n".join(filter(None, lines))


def by_loss(result: dict) -> bool:
    """Whether the attacks still returned the point of highest loss: such results hold no interval.

    Their command gives other numbers today.
    """
    return "interval" not in result


def over_seeds(results: dict[str, list[dict]]) -> str:
    """Mean over the seeds and its interval, where there are five at least, as Markdown.

    Raises:
      ValueError: if two runs of one name have the same seed, or differ in more than their seed.
    """
    rows = {}
    for name, runs in results.items():
        if len(runs) < 5:
            continue
        seeds = [run["provenance"]["seed"] for run in runs]
        configs = [{**run["config"], "seed": None} for run in runs]
        if len(set(seeds)) < len(seeds) or any(config != configs[0] for config in configs):
            raise ValueError(f"{name}: its runs must differ in their seed and in nothing else")
        columns = {
            "clean %": [run["clean_accuracy"] for run in runs],
            "robust %": [run["robust_accuracy"]["worst"] for run in runs],
            "minus single %": [
                run["versus_single"]["difference"] for run in runs if "versus_single" in run
            ],
        }
        cells = [_over(values) if len(values) == len(runs) else "" for values in columns.values()]
        rows[name] = [str(len(runs)), *cells]
    head = ["seeds", "clean %", "robust %", "robust minus that of the single classifier %"]
    return reporting.rate_table("mean over seeds (95 % interval)", head, rows) if rows else ""


def _over(values):
    mean, (low, high) = evaluation.over_seeds(values)
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def speed() -> str:
    """All committed ratios of speed as Markdown: median, lowest and highest over the repeats."""
    rows = {}
    for path in sorted(RESULTS.glob("*.json")):
        for name, *ratios in comparisons(json.loads(path.read_text())):
            link = f"[{path.stem.replace('_', ' ')}](results/{path.name})"
            rows[f"{link}: {name}"] = [_spread(ratio) for ratio in ratios]
    return reporting.rate_table("", ["times as fast", "in processor time"], rows)


def comparisons(found: dict) -> Iterator[tuple[str, dict, dict]]:
    """`(what beside what, ratio of speeds, the same in processor time)` in a benchmark's result."""
    for case in found.get("cases", []):
        for peer, ratio in case.get("times_as_fast_as", {}).items():
            processor = case["cpu_times_as_fast_as"][peer]
            yield f"{case['case']} beside {peer}, L = {case['members']}", ratio, processor
        if case.get("library", "mixjax") != "mixjax":
            ratio = case["mixjax_times_as_fast"]
            processor = case["mixjax_times_as_fast_in_processor_time"]
            yield f"{case['attack']} beside {case['library']}", ratio, processor
    for step, ratio in found.get("times_as_fast_as_torch", {}).items():
        yield f"{step} beside torch eager", ratio["seconds"], ratio["cpu_seconds"]


def _spread(ratio):
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


TABLES = {"results": table, "speed": speed}


def updated(page: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        begin, end = (f"<!-- {name}: {side} -->\n" for side in ("begin", "end"))
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}{make()}{end}{after}"
    return page


def main():
    """Rewrites README.md."""
    page = ROOT / "README.md"
    page.write_text(updated(page.read_text()))


if __name__ == "__main__":
    main()
