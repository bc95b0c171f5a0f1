"""The architecture, enforced: imports point down.

`LAYERS` is the diagram, lowest row first. A module imports rows below its own; the files of one
package are siblings and may import each other. What a name means to a newcomer is in the
docstring of `mixjax`.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

LAYERS = (
    ("checks", "_extras", "files", "_fingerprint", "interrupt", "memory", "typing"),
    ("batch", "program", "_softmax", "intervals"),
    ("models", "data", "reporting"),
    ("mixture", "threats"),
    ("ensemble",),
    ("losses",),
    ("attacks", "games"),
    ("defenses", "evaluation"),
    ("checkpoint", "parallel"),
    ("front",),
)

# Above the library, beside each other.
PROGRAMS = ("experiments", "benchmarks")

# Libraries that one place alone may know.
HOMES = {
    "flax": ("mixjax.models",),
    "matplotlib": ("mixjax.reporting", *PROGRAMS),
    "orbax": ("mixjax.checkpoint",),
    "sklearn": ("mixjax.data",),
    "tensorflow_datasets": ("mixjax.data",),
    "torch": ("benchmarks",),
    "tqdm": ("mixjax.front",),
}

ROWS = {f"mixjax.{name}": row for row, names in enumerate(LAYERS) for name in names}


def imported_names(source, module, is_package=False):
    """Absolute dotted names that `source`, the text of `module`, imports anywhere in it.

    `from a import b` counts as `a.b`: whether `b` is a module or a function, it is inside `a`.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = [*parents, *([node.module] if node.module else [])]
            names += [".".join([*origin, alias.name]) for alias in node.names]
    return names


def unit_of(name):
    """What stands in the diagram for a dotted name: `mixjax.attacks` for `mixjax.attacks.pgd`."""
    return ".".join(name.split(".")[: 2 if name.startswith("mixjax.") else 1])


def violations(source, module, is_package=False):
    """One line for each import of `module` that the architecture forbids."""
    own = unit_of(module)
    found = []
    for name in imported_names(source, module, is_package):
        unit = unit_of(name)
        library = unit.split(".")[0]
        if unit == own:
            continue
        if library == "mixjax" and own.startswith("mixjax."):
            if unit not in ROWS:
                found.append(f"{module} imports {name}, which is in no layer")
            elif ROWS[unit] >= ROWS[own]:
                found.append(f"{module} imports {name}, which is not below it")
        elif library == "mixjax" and any(part.startswith("_") for part in name.split(".")):
            if name != "mixjax.__version__":
                found.append(f"{module} imports {name}, which is private")
        elif library in (*PROGRAMS, "tests"):
            found.append(f"{module} imports {name}, which is not below it")
        elif library in HOMES and own not in HOMES[library]:
            found.append(f"{module} imports {name}, known to {', '.join(HOMES[library])} alone")
    return found


def files():
    """Pairs of dotted module name and path, `mixjax` itself left out: it re-exports everything."""
    for folder in ("mixjax", *PROGRAMS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            package = path.name == "__init__.py"
            module = ".".join(relative.parent.parts if package else relative.with_suffix("").parts)
            if module != "mixjax":
                yield module, path


def helpers(program, sources):
    """The modules of `experiments` that one of them imports, and those import, itself left out."""
    found, left = set(), [program]
    while left:
        module = left.pop()
        for name in imported_names(sources[module], module):
            parents = [name.rsplit(".", number)[0] for number in range(2)]
            new = {each for each in (name, *parents) if each in sources} - found - {program}
            found |= new
            left += new
    return found


EXPERIMENTS = {
    module: path.read_text()
    for module, path in files()
    if module.startswith("experiments.") and path.stem != "__init__"
}
RUN = [module for module, text in EXPERIMENTS.items() if "def main(argv=None)" in text]


@pytest.mark.parametrize("module", RUN)
def test_an_experiment_needs_at_most_eight_files_beside_its_own(module):
    needed = helpers(module, EXPERIMENTS)
    assert "experiments.run.program" in needed
    assert len(needed) <= 8, "\n".join(sorted(needed))


def test_what_an_experiment_needs_is_counted_through_others():
    sources = {
        "experiments.a": "from experiments import b\nimport jax",
        "experiments.b": "def f():\n    from experiments.c import g",
        "experiments.c": "import experiments.a",
        "experiments.d": "",
    }
    assert helpers("experiments.a", sources) == {"experiments.b", "experiments.c"}


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("mixjax/reporting", ("python -m", "--run-dir", "argparse")),  # no command line
        ("mixjax/parallel.py", ("opt_state", "MixtureState")),  # no field of a state
    ],
)
def test_a_part_does_not_know_what_is_others_business(folder, words):
    place = ROOT / folder
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        found = [word for word in words if word in path.read_text()]
        assert not found, path


def test_every_import_points_down():
    found = [
        violation
        for module, path in files()
        for violation in violations(path.read_text(), module, path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_the_diagram_names_the_modules_that_exist_and_no_others():
    assert {unit_of(module) for module, _ in files()} == {*ROWS, *PROGRAMS}


def test_no_module_stands_in_two_rows():
    assert len(ROWS) == sum(map(len, LAYERS))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mixjax.losses", "from mixjax import attacks"),
        ("mixjax.losses", "from mixjax.attacks import pgd"),
        ("mixjax.losses", "import mixjax.attacks.gradient_ascent as ga"),
        ("mixjax.losses", "import jax, mixjax.games"),
        ("mixjax.losses", "def f():\n    from mixjax import attacks"),
        ("mixjax.losses", "from .attacks import pgd"),
        ("mixjax.losses", "from . import mixture, attacks"),
        ("mixjax.attacks.pgd", "from ..defenses import mixture"),
        ("mixjax.attacks.pgd", "from .. import games"),
        ("mixjax.threats", "from mixjax import mixture"),
        ("mixjax.evaluation.sandwich", "from mixjax.defenses import adversarial"),
        ("mixjax.defenses.mixture_training", "from mixjax import evaluation"),
        ("mixjax.losses", "import mixjax"),
        ("mixjax.losses", "from mixjax import *"),
        ("mixjax.losses", "from mixjax import __version__"),
        ("mixjax.losses", "from mixjax import unheard_of"),
        ("mixjax.parallel", "from experiments import cifar10_mixture"),
        ("mixjax.parallel", "import benchmarks.training_step"),
        ("benchmarks.training_step", "from experiments.cifar10_mixture import Config"),
        ("experiments.evaluate", "from tests import conftest"),
        ("experiments.evaluate", "from mixjax import _fingerprint"),
        ("benchmarks.timing", "from mixjax.attacks._steps import move"),
        ("mixjax.ensemble", "import flax.linen as nn"),
        ("experiments.evaluate", "from flax import nnx"),
        ("mixjax.evaluation.curves", "import matplotlib.pyplot as plt"),
        ("mixjax.models.resnet", "import torch"),
    ],
)
def test_a_planted_import_is_reported(module, source):
    (violation,) = violations(source, module)
    assert violation.startswith(f"{module} imports ")


def test_a_relative_import_in_a_package_starts_from_the_package_itself():
    assert imported_names("from . import pgd", "mixjax.attacks", True) == ["mixjax.attacks.pgd"]
    assert imported_names("from . import pgd", "mixjax.attacks") == ["mixjax.pgd"]
    assert violations("from ..games import oracle", "mixjax.attacks", True)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "mixjax.losses",
            "import jax\nfrom mixjax import mixture\nfrom mixjax.typing import Array",
        ),
        ("mixjax.attacks.pgd", "from mixjax.attacks.info import AttackInfo\nfrom . import apgd"),
        ("mixjax.attacks.pgd", "from mixjax import checks, losses, threats"),
        ("mixjax.models.resnet", "import flax.linen as nn\nfrom mixjax.models import conv"),
        ("mixjax.data.official", "def f():\n    import tensorflow_datasets as tfds"),
        (
            "experiments.evaluate",
            "import mixjax\nfrom mixjax import attacks, checkpoint",
        ),
        ("experiments.evaluate", "from experiments.cifar10_mixture import Config"),
        ("benchmarks.training_step", "import torch\nfrom mixjax import models"),
        ("mixjax.reporting", "import matplotlib.pyplot as plt"),
    ],
)
def test_an_import_that_points_down_or_beside_is_allowed(module, source):
    assert violations(source, module) == []
