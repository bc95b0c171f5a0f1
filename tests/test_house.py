"""What keeps the house: one style in the library, a lock that fits, links that lead somewhere."""

import ast
import importlib
import inspect
import pathlib
import re
import sys
import tomllib
import types

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mixjax

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "mixjax").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = ("mixjax", "experiments", "benchmarks", "tests")
PYTHONS = ("3.11", "3.12")  # the oldest, and the first with the newest JAX

CALLS = {"attack", "evaluate", "load", "predict", "train"}  # all else in `mixjax` are modules

# Imports and calls that the library leaves to its caller, by the attribute's last name.
FORBIDDEN_MODULES = ("logging", "pickle", "cloudpickle", "dill", "joblib")
FORBIDDEN_CALLS = ("print", "warn", "breakpoint")

# A step over several devices, and what a primitive does outside of any compiled program.
MAY_COMPILE = (
    "mixjax/parallel.py",
    "mixjax/models/conv.py",
    "mixjax/program.py",  # of a program that is whole: so JAX keeps what it has traced of it
    "mixjax/evaluation/batches.py",  # a loop over batches on the host calls compiled code
    "mixjax/evaluation/diagnostics.py",
    "mixjax/evaluation/security.py",
    "mixjax/front/classifiers.py",
    "mixjax/front/stored.py",
    "mixjax/front/sequence.py",
    "mixjax/front/training.py",
)


def forbidden_uses(source):
    """Lines of `source` that print, warn, log, unpickle or stop for a debugger."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            bad = any(alias.name.split(".")[0] in FORBIDDEN_MODULES for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            bad = (node.module or "").split(".")[0] in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            bad = (function.id if isinstance(function, ast.Name) else name) in FORBIDDEN_CALLS
        else:
            bad = False
        if bad:
            lines.append(node.lineno)
    return lines


def jit_uses(source):
    """Lines of `source` that compile: `jax.jit`, `jit`, `pmap`, as a call or as a decorator."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in ("jit", "pmap"))
        or (isinstance(node, ast.Name) and node.id in ("jit", "pmap"))
    ]


def things_by_name(source):
    """Lines of `source` that ask `threats` for what a string says: `getattr(threats, name)`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("getattr", "hasattr", "vars")
        and ast.unparse(node.args[0]).split(".")[-1] == "threats"
    ]


def shadows(source, name):
    """Whether the module `name` defines something of its own name, which its package then hides."""
    return any(
        name.lstrip("_") == node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


def imported_libraries(source):
    """First names of everything that `source` imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


def undocumented(source):
    """Names of `source`'s public functions, classes and methods that have no docstring."""
    tree = ast.parse(source)
    names = [] if ast.get_docstring(tree) else ["the module"]

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                if not ast.get_docstring(node):
                    names.append(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return names


def untyped(module, package="mixjax"):
    """`f(x)` or `C.f ->` of each parameter and result without a type of what is public in `module`.

    What it took from private modules of `package` counts as well.
    """
    found = []

    def visit(name, function):
        signature = inspect.signature(function)
        found.extend(
            f"{name}({parameter.name})"
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
        )
        if signature.return_annotation is signature.empty:
            found.append(f"{name} ->")

    for name, thing in vars(module).items():
        home = (getattr(thing, "__module__", None) or "").split(".")[0]
        is_made = "<locals>" in getattr(thing, "__qualname__", "")  # by a function, with its type
        if name.startswith("_") or home != package or not callable(thing) or is_made:
            continue
        if not inspect.isclass(thing):
            visit(name, thing)
            continue
        for attribute, value in vars(thing).items():
            method = value.fget if isinstance(value, property) else value
            method = getattr(method, "__func__", method)  # of a class method or static method
            if not attribute.startswith("_") and inspect.isfunction(method):
                visit(f"{name}.{attribute}", method)
    return found


def public_modules():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in LIBRARY]
    names = [name.removesuffix(".__init__") for name in names]
    return [name for name in names if "._" not in name]


def broken_links(text, folder):
    """Relative targets of Markdown links and images in `text` that do not exist in `folder`."""
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)
    paths = [target.split("#")[0] for target in targets if "://" not in target]
    return [path for path in paths if path and not (folder / path).exists()]


def locked(text, python):
    """The lock's exact version of each package for one version of Python on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux"}
    pins = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            ((operator, version),) = [(s.operator, s.version) for s in pin.specifier]
            assert operator == "==" and pin.url is None, line
            if pin.marker is None or pin.marker.evaluate(environment):
                assert pin.name not in pins, f"two versions of {pin.name} on Python {python}"
                pins[canonicalize_name(pin.name)] = version
    return pins


def unlocked(requirements, pins):
    """Requirements that no version in `pins` meets."""
    wanted = [Requirement(requirement) for requirement in requirements]
    return [
        str(want)
        for want in wanted
        if not want.specifier.contains(pins.get(canonicalize_name(want.name), "0"), True)
        or canonicalize_name(want.name) not in pins
    ]


def relative(path):
    return str(path.relative_to(ROOT))


def found_in(paths, look):
    """`file -> what` of the files in which `look` finds something in the text."""
    found = {relative(path): look(path.read_text()) for path in paths}
    return {path: what for path, what in found.items() if what}


def test_everything_public_is_documented():
    assert found_in(LIBRARY, undocumented) == {}


def test_everything_public_has_types():
    found = {name: untyped(importlib.import_module(name)) for name in public_modules()}
    assert {name: what for name, what in found.items() if what} == {}


def test_what_has_no_type_is_found_in_a_planted_module():
    source = """
import contextlib, functools
def f(x: int, *args, y=1, **numbers: int): ...
def _f(x): ...
def g() -> int: ...
h = functools.partial(g, 1)
@contextlib.contextmanager
def k(x): ...
class A:
    field: int
    def __init__(self, x): ...
    def method(self, x): ...
    @property
    def value(self): ...
    @classmethod
    def make(cls, x: int) -> int: ...
    @staticmethod
    def fixed(self: int, x): ...
class _B:
    def method(self, x): ...
"""
    module = types.ModuleType("planted")
    exec(source, vars(module))
    wanted = ["f(args)", "f(y)", "f ->", "k(x)", "k ->", "A.method(x)", "A.method ->"]
    assert untyped(module, "planted") == [*wanted, "A.value ->", "A.fixed(x)", "A.fixed ->"]
    assert {"mixjax", "mixjax.checkpoint", "mixjax.reporting.tables"} <= {*public_modules()}
    assert "mixjax.attacks._steps" not in public_modules()


def test_the_library_does_not_print_warn_log_or_pickle():
    assert found_in(LIBRARY, forbidden_uses) == {}


def test_the_caller_compiles():
    assert {*found_in(LIBRARY, jit_uses)} <= {*MAY_COMPILE}


def test_a_threat_is_made_by_a_function_or_found_in_the_table_of_names():
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found_in(paths, things_by_name) == {}
    assert things_by_name("x = 1\ngetattr(threats, name)(0.1)") == [2]
    assert things_by_name("getattr(mixjax.threats, 'l2')") == [1]
    assert things_by_name("threats.BY_NAME['l2'](0.1)\ngetattr(config, 'threats')") == []


def test_no_function_has_the_name_of_its_own_module():
    """`mixjax.attacks.square` is one thing, whoever imported what before."""
    found = {relative(path) for path in LIBRARY if shadows(path.read_text(), path.stem)}
    assert not found
    assert shadows("def f(): ...\nclass g: ...", "g") and shadows("def f(): ...", "_f")
    assert not shadows("from a import f\ndef g():\n    def f(): ...", "f")


def test_two_things_have_two_names():
    """But a network and the attack that it makes, a loss and the training that lowers it."""
    places = {}
    packages = ("attacks", "data", "defenses", "evaluation", "games", "losses", "models")
    for package in packages:
        module = importlib.import_module(f"mixjax.{package}")
        for name, thing in vars(module).items():
            is_ours = callable(thing) and thing.__module__.startswith("mixjax.")
            if is_ours and not name.startswith("_"):
                places.setdefault(name, set()).add(thing)
    twice = {name for name, things in places.items() if len(things) > 1}
    assert twice == {"attack_network", "trades"}


def test_only_the_fixture_children_starts_processes():
    def starts(text):
        return {"subprocess", "multiprocessing"} & imported_libraries(text)

    assert {*found_in(TESTS, starts)} == {"tests/children.py"}


def test_what_chex_does_is_not_done_by_hand():
    """At least 20 files of tests use it; the project's plan says "chex-tested unit functions"."""
    using = [path for path in TESTS if "chex" in imported_libraries(path.read_text())]
    assert len([path for path in using if path.name.startswith("test_")]) >= 20


def test_what_the_library_must_not_do_is_found_in_a_planted_text():
    assert forbidden_uses("x = 1\nprint(x)") == [2]
    assert forbidden_uses("import warnings\nwarnings.warn('x')") == [2]
    assert forbidden_uses("from warnings import warn\nwarn('x')") == [2]
    assert forbidden_uses("def f():\n    import pickle") == [2]
    assert forbidden_uses("from logging import getLogger") == [1]
    assert forbidden_uses("jax.debug.print('{}', x)") == [1]
    assert forbidden_uses("import warnings\nfingerprint(1)\nblueprint.x") == []
    assert jit_uses("@jax.jit\ndef f(x): ...") == [1]
    assert jit_uses("g = functools.partial(jit, f)") == [1]
    assert jit_uses("jitter(x)\n'jit'") == []
    assert imported_libraries("import a.b, c\ndef f():\n    from d.e import g") == {"a", "c", "d"}


def test_what_is_undocumented_is_found_in_a_planted_text():
    source = '''"""Text."""
def f(): "Text."
def g(): ...
def _h(): ...
class A:
    """Text."""
    def method(self): ...
    def _private(self): ...
'''
    assert undocumented(source) == ["g", "A.method"]
    assert undocumented("x = 1") == ["the module"]


def test_importing_mixjax_imports_nothing_heavy_and_its_parts_only_when_used(children):
    program = """if True:
        import sys, mixjax
        assert not {"jax", "flax", "orbax", "matplotlib"} & {*sys.modules}, "import mixjax"
        import mixjax.data, mixjax.attacks, mixjax.losses
        assert not {"tensorflow_datasets", "tensorflow", "matplotlib"} & {*sys.modules}, "data"
        assert not {"flax", "orbax"} & {*sys.modules}, "attacks"
    """
    result = children.run([sys.executable, "-c", program], cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_a_submodule_is_an_attribute_of_mixjax():
    for name in {*mixjax.__all__} - CALLS:
        assert getattr(mixjax, name) is importlib.import_module(f"mixjax.{name}")


def test_every_public_submodule_is_listed():
    names = {path.relative_to(ROOT / "mixjax").parts[0].removesuffix(".py") for path in LIBRARY}
    public = {name for name in names if not name.startswith("_")} - {"py.typed"}
    assert public | CALLS == {*mixjax.__all__, "typing"}


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'mixjax' has no attribute 'unheard_of'"):
        _ = mixjax.unheard_of


def test_the_library_says_why_in_comments():
    """Whole-line comments are at least a fiftieth of its lines that are not empty."""
    lines = [line.strip() for path in LIBRARY for line in path.read_text().splitlines()]
    lines = [line for line in lines if line]
    assert sum(line.startswith("#") for line in lines) >= 0.02 * len(lines)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_requirement(python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = locked((ROOT / "requirements.lock").read_text(), python)
    extras = project["optional-dependencies"]
    assert extras["all"] == ["mixjax[train,data,report]"]
    assert extras["test"][:2] == ["mixjax[all]", "mixjax[docs]"]
    names = ("train", "data", "report", "docs")
    requirements = project["dependencies"] + sum(
        (extras[name] for name in names), extras["test"][2:]
    )
    assert unlocked(requirements, pins) == []


def test_an_unmet_requirement_is_found_in_a_planted_lock():
    pins = locked("# comment\njax==0.10.2 ; python_full_version < '3.12'\noptax==0.2.8", "3.11")
    assert pins == {"jax": "0.10.2", "optax": "0.2.8"}
    assert unlocked(["jax>=0.10", "optax>=0.3", "flax"], pins) == ["optax>=0.3", "flax"]
    with pytest.raises(AssertionError, match="jax>=1"):
        locked("jax>=1", "3.11")
    with pytest.raises(AssertionError, match="two versions of jax"):
        locked("jax==1\njax==2", "3.11")


def test_the_base_dependencies_install_without_an_accelerator():
    for python in PYTHONS:
        names = locked((ROOT / "requirements.lock").read_text(), python)
        assert not [name for name in names if re.search("cuda|nvidia|tensorflow$|torch", name)]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_relative_link_leads_somewhere(page):
    assert broken_links((ROOT / page).read_text(), ROOT) == []


def test_a_broken_link_is_found_in_a_planted_page():
    text = "[a](LICENSE) [b](gone.md#part) ![c](x/y.png 'title') [d](https://a.b/c) [e](#part)"
    assert broken_links(text, ROOT) == ["gone.md", "x/y.png"]


def test_every_make_command_in_the_pages_is_a_target():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pages = [(ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md")]
    commands = re.findall(r"(?:^|`)make ([a-z]+)", "\n".join(pages), re.MULTILINE)
    assert {"demo", "test"} <= {*commands} <= {*targets}


def test_the_changelog_begins_with_the_version_of_the_package():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and heading[1] == mixjax.__version__
