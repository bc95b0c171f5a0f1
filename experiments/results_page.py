"""`RESULTS.md`, from the committed `results/*.json`, and the numbers of the other pages from them.

    python -m experiments.results_page      # writes RESULTS.md, refreshes README.md and docs/

A run's `result.json`, or its `evaluation_<budget>.json`, gets in by being copied to
`results/<data>_<what>.json`; the name of the file is the name of the row. Runs that
differ in their seed alone are `<data>_<what>_seed_<n>.json`, seed 0 without the ending: only the
first has a row of its own, and all of them together one of the table over seeds.
"""

import json
import pathlib
import re
import statistics
from collections.abc import Iterator

from experiments import page_numbers
from experiments.hamm_2018 import tables as hamm
from experiments.meunier_2021 import tables as meunier
from experiments.pinot_2020 import tables as pinot
from mixjax import files, reporting

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "RESULTS.md"
SEED = re.compile(r"_seed_\d+$")

_INTRODUCTION = """\
# Results

Written by `python -m experiments.results_page` from the files in [results](results); a test holds
the two together. Each file names its command, commit, seed, versions, device and seconds.
"""
_ROBUSTNESS = """\
- Robust accuracy: per example the lowest exact expected accuracy over all attack runs, on average.
- Every row states its number of attack runs, which is the same for every L.
- In brackets stands Wilson's 95 % interval over the examples; it knows nothing of another seed.
- The lower bound is the weighted sum of what the members keep, each by itself. It stands only where
  each member met the whole suite.
- *Single* is one classifier trained at the cost of the mixture of the same name.
- *Jpeg copy*: trained and tested on a JPEG copy of CIFAR-10. Compare these rows with each other
  only: they are runs of about an hour of a narrow network on one or two CPU cores.
- *Resumed*: the minutes leave out what came before the run was stopped and resumed.
"""
_GAMES_WITH_NETWORKS = """\
- Errors of classifiers trained by the defences of Hamm 2018, radii for pixels in [-1, 1].
- The runs on MNIST are short, of a narrow classifier, on 17 435 images; the paper's numbers, in
  square brackets with their table, come from 50 000 steps at width 32.
- They are single runs, and equal steps are not equal work: a step of Minimax differentiates a
  gradient. No row of these is claimed to be better than another.
- On digits each row cost the same, and five seeds were trained: mean over the seeds, in brackets
  its 95 % interval; differences seed by seed.
- AttNet-curr judges only where the row without defence errs at least .9; a line says whether.
- A row with a low error under FGSM-curr and a high one under AutoPGD hides its gradients.
- *Worst of all* counts the attacks of this table, not all that are possible.
"""
_GPU_PROGRAMS = """\
- `benchmarks.gpu_program` compiles for an H100 and reads the optimised program: nothing has run.
- *Training*: a step on a ResNet18 of width 64 with PGD-10, convolutions in bfloat16.
- *At best*: 600 TFLOP/s, 3 TB/s and 2 microseconds a kernel, whichever takes longest.
- A fault is a convolution in groups, in another type, or one that cuDNN does not compute.
"""
_SPEED = """\
- Both sides run in one process on the same weights, batch and threads, first shown to agree.
- The median over the repeats stands with the lowest and the highest; above 1 mixjax is faster.
- *Attack throughput*, *training step*: ResNet18 of width 64, batch 32, PGD-10.
- *Attack peers*: a small network on 128 digits, or ResNet18 of width 16 on 16 images.
- *Minimax step*: the MNIST classifier and attack network of Hamm 2018 at full width.
- *Cost of members*: times as long for L members, turn by turn; *attack members* without PyTorch.
"""

_SUITE_RUNS = """\
- Of the rows of [members one after another](#members-one-after-another), digits, seed 0,
  where every example met every run: means over those on which a line was run.
- *Passes*: through single networks, a gradient being two. *Alone*: the best of its runs.
- *Lost without*: what the suite leaves more if the line is left out.
- *Taken*: where it is among the runs that take anything when each next run is the one that takes
  most per pass. The order of the suite follows from it; Square and PGD stand last.
"""
_AUTOATTACK = """\
- One small ResNet on digits, the same weights in PyTorch; times with compiling, on two cores.
- *Share*: of the time of torchattacks' four attacks, and of their processor time.
"""
_LAYERS = """\
- Milliseconds of one convolution, of its input gradient and of its kernel gradient, ours / those of
  PyTorch's oneDNN in the layout that it is fastest with / those of XLA's matrix product of as many
  multiplications alone, without the copies around it; medians of turns in one run.
- The last table: one layer by every way that XLA has to compute it, and large products of both.
"""
_MAPS = ["forward", "input gradient", "kernel gradient"]
_SOLVERS = """\
- The game of the synthetic problem on one thread: each example's attacker picks one candidate.
- Iterative solvers take the fewest steps, a power of two, that end within .001 of the value.
- The certificate is computed from both strategies alone; the oracle gives no attack and has none.
"""


def mixtures() -> str:
    """All committed runs of mixtures as Markdown, in the order of their files' names."""
    results, links, of_all_seeds = {}, {}, {}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if "robust_accuracy" in found and "table_1" not in found:  # of boosting: a table of its own
            result = reporting.read_result(path)
            name = SEED.sub("", path.stem).replace("_", " ")
            of_all_seeds.setdefault(name, []).append(result)
            if not SEED.search(path.stem):
                results[name] = result
                links[name] = f"[{name}](results/{path.name})"
    lines = [reporting.results_table(list(results.values()), list(links.values()))]
    for name, result in results.items():
        if len(of_all_seeds[name]) >= pinot.FEWEST_SEEDS:
            lines.append(reporting.difference_line(name, result))
    evaluations = {  # with an error bar
        name: result
        for name, result in results.items()
        if "apgd_expected_loss" in (reported := result.get("reported_by", {}))
        and reported["num_examples"] > 1
    }
    lines.append(reporting.reported_table(evaluations))
    lines.append(over_seeds(of_all_seeds))
    lines.append(reporting.training_table(results))
    return "\n".join(filter(None, lines))


def over_seeds(results: dict[str, list[dict]]) -> str:
    """Mean over the seeds and its interval, where there are five at least, as Markdown.

    Raises:
      ValueError: if two runs of one name have the same seed, or differ in more than their seed.
    """
    rows = {}
    for name, runs in results.items():
        if len(runs) < pinot.FEWEST_SEEDS:
            continue
        seeds = [run["provenance"]["seed"] for run in runs]
        configs = [{**run["config"], "seed": None} for run in runs]
        if len(set(seeds)) < len(seeds) or any(config != configs[0] for config in configs):
            raise ValueError(f"{name}: its runs must differ in their seed and in nothing else")
        cells_of = pinot.rate_cell, pinot.rate_cell, pinot.mean_cell
        columns = {
            "clean %": [run["clean_accuracy"] for run in runs],
            "robust %": [run["robust_accuracy"]["worst"] for run in runs],
            "minus single %": [
                run["versus_single"]["difference"] for run in runs if "versus_single" in run
            ],
        }
        cells = [
            cell(values) if len(values) == len(runs) else ""
            for values, cell in zip(columns.values(), cells_of, strict=True)
        ]
        rows[name] = [str(len(runs)), *cells]
    head = ["seeds", "clean %", "robust %", "robust minus that of the single classifier %"]
    return reporting.rate_table("mean over seeds (95 % interval)", head, rows) if rows else ""


def speed() -> str:
    """All committed ratios of speed as Markdown: median, lowest and highest over the repeats."""
    rows, costs = {}, {}
    for path in sorted(RESULTS.glob("*.json")):
        found, link = json.loads(path.read_text()), f"[{path.stem.replace('_', ' ')}]"
        link += f"(results/{path.name})"
        for name, *ratios in comparisons(found):
            rows[f"{link}: {name}"] = [_spread(ratio) for ratio in ratios]
        for cost in found.get("cost_of_members", []):
            name = f"{cost['case']}, L = {cost['members']} over L = {cost['over']}"
            costs[f"{link}: {name}"] = [_spread(cost)]
    fast = reporting.rate_table("", ["times as fast", "in processor time"], rows)
    return f"{fast}\n{reporting.rate_table('', ['cost of members'], costs)}"


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
    for peer in ("torch eager", "torch compile"):
        ratios = found.get("times_as_fast_as_" + peer.removesuffix(" eager").replace(" ", "_"), {})
        for step, ratio in ratios.items():
            yield f"{step} beside {peer}", ratio["seconds"], ratio["cpu_seconds"]


def suite_runs() -> str:
    """What each line of the suite adds, as Markdown; what leaves least alone first."""
    parts = []
    for path in sorted(RESULTS.glob("suite_runs*.json")):
        found = json.loads(path.read_text())
        lines = sorted(found["lines"].items(), key=lambda entry: entry[1]["leaves_alone"])
        rows = {
            line: [
                f"{each['passes']:.0f}",
                f"{100 * each['leaves_alone']:.1f}",
                f"{100 * each['lost_without']:.2f}",
                f"{each['in_greedy']} of {each['subjects']}",
            ]
            for line, each in lines
        }
        head = ["passes", "alone %", "lost without %", "taken"]
        parts.append(reporting.rate_table(f"[{path.stem}](results/{path.name})", head, rows))
    return "\n".join(parts)


def autoattack() -> str:
    """The budgets of the suite beside AutoAttack in PyTorch, as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("autoattack*.json")):
        found = json.loads(path.read_text())
        rows = {
            name: [
                f"{100 * each['robust_accuracy']['mean']:.2f}",
                f"{each['seconds']:.1f}",
                f"{each['cpu_seconds']:.1f}",
                f"{each['share_of_their_seconds']:.2f}",
                f"{each['share_of_their_cpu_seconds']:.2f}",
            ]
            for name, each in found["summary"].items()
        }
        settings = found["settings"]
        words = f"{settings['norm']} {settings['epsilon']:g}, {settings['examples']} examples, "
        corner = f"[{words}seeds: {settings['seeds']}](results/{path.name})"
        head = ["robust %", "seconds", "processor seconds", "share", "share of processor time"]
        parts.append(reporting.rate_table(corner, head, rows))
    return "\n".join(parts)


def layers() -> str:
    """Each convolution beside PyTorch's, as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("convolutions*.json")):
        found, rows = json.loads(path.read_text()), {}
        for case in found["cases"]:
            kinds = ("milliseconds", "torch_milliseconds", "product_milliseconds")
            cell = " / ".join(f"{case[kind]['median']:.1f}" for kind in kinds)
            rows.setdefault(case["layer"], []).append(cell)
        corner = f"[{found['threads']['number']} cores](results/{path.name})"
        parts.append(reporting.rate_table(corner, _MAPS, rows))
    for path in sorted(RESULTS.glob("ways*.json")):
        found = json.loads(path.read_text())
        rows = {
            way: [f"{each['median']:.1f}" for each in maps.values()]
            for way, maps in found["milliseconds"].items()
        }
        for side, rate in found["gigaflops_of_large_products"].items():
            rows[f"large products, {side}"] = [f"{rate['median']:.0f} GFLOP/s", "", ""]
        corner = f"[{found['layer']}](results/{path.name})"
        parts.append(reporting.rate_table(corner, _MAPS, rows))
    return "\n".join(parts)


def solvers() -> str:
    """What each solver of a game takes until it is within the tolerance, as Markdown."""
    parts = []
    for path in sorted(RESULTS.glob("game_solvers*.json")):
        found = json.loads(path.read_text())
        rows = {
            case["solver"]: [
                f"{case['num_steps']}" if "num_steps" in case else "",
                f"{statistics.median(case['cpu_seconds']):.2f}",
                f"{case['excess']:.1e}",
                "" if case["gap"] is None else f"{case['gap']:.1e}",
            ]
            for case in found["cases"]
        }
        settings = found["settings"]
        corner = (
            f"[{settings['examples']} examples, {settings['candidates']} candidates, "
            f"{settings['members']} members](results/{path.name})"
        )
        head = ["steps", "seconds of processor time", "risk above the value", "own certificate"]
        parts.append(reporting.rate_table(corner, head, rows))
    return "\n".join(parts)


def gpu_programs() -> str:
    """What the programs compiled for a GPU do, as Markdown."""
    rows = {}
    for path in sorted(RESULTS.glob("gpu_program*.json")):
        for case in json.loads(path.read_text())["cases"]:
            link = f"[{case['program']}, L = {case['members']}](results/{path.name})"
            rows[f"{link}, batch {case['batch_size']}"] = [
                f"{case['kernels']}",
                f"{case['operations'] / 1e12:.2f}",
                f"{case['bytes'] / 1e9:.1f}",
                f"{1e3 * case['seconds_at_best']:.1f}",
                f"{case['memory']['temporaries'] / 2**30:.2f}",
                f"{len(case['faults'])}",
            ]
    head = ["kernels", "TFLOP", "GB moved", "ms at best", "GiB of temporaries", "faults"]
    return reporting.rate_table("", head, rows)


def _spread(ratio):
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


SECTIONS = (
    ("Mixtures and single classifiers under attack", _ROBUSTNESS, mixtures),
    ("Attacks that see the members", pinot.BLINDNESS, pinot.blindness),
    ("Members one after another", pinot.MEMBERS, pinot.members),
    ("What each run of the suite adds", _SUITE_RUNS, suite_runs),
    ("Games in the plane", meunier.INTRODUCTION, meunier.tables),
    ("Penalised attackers", pinot.PENALTIES, pinot.penalties),
    ("Machine vs machine", _GAMES_WITH_NETWORKS, hamm.table),
    ("Speed beside other libraries", _SPEED, speed),
    ("Budgets of the suite beside AutoAttack", _AUTOATTACK, autoattack),
    ("Convolutions beside PyTorch's", _LAYERS, layers),
    ("Speed of the solvers of a game", _SOLVERS, solvers),
    ("Programs for a GPU that is not there", _GPU_PROGRAMS, gpu_programs),
)


def page() -> str:
    """The text of `RESULTS.md`."""
    parts = [f"## {title}\n\n{words}\n{make()}" for title, words, make in SECTIONS]
    return "\n".join([_INTRODUCTION, *parts])


def main():
    """Writes RESULTS.md and refreshes the numbers of the other pages."""
    files.write(PAGE, page())
    for path in page_numbers.pages():
        files.write(path, page_numbers.refreshed(path.read_text(), path.parent))


if __name__ == "__main__":
    main()
