"""The README's table of results, from the committed `benchmarks/results/*.json`.

    python -m benchmarks.results_table      # rewrites the part of README.md between the markers

A run's `result.json`, or its `evaluation_<budget>.json`, gets in by being copied to
`benchmarks/results/<data>_<what>.json`; the name of the file is the name of the row.
"""

import json
import pathlib

from mixjax import reporting

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def table() -> str:
    """All committed runs as Markdown, in the order of their files' names."""
    results = {}
    for path in sorted(RESULTS.glob("*.json")):
        if "robust_accuracy" in json.loads(path.read_text()):
            results[path.stem.replace("_", " ")] = reporting.read_result(path)
    lines = [reporting.results_table(list(results.values()), list(results))]
    for name, result in results.items():
        lines.append(reporting.difference_line(name, result))
    evaluations = {name: result for name, result in results.items() if "reported_by" in result}
    lines.append(reporting.reported_table(evaluations))
    return "\n".join(filter(None, lines))


def updated(page: str) -> str:
    """The page with its table made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main():
    """Rewrites README.md."""
    page = ROOT / "README.md"
    page.write_text(updated(page.read_text()))


if __name__ == "__main__":
    main()
