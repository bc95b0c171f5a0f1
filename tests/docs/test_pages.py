"""The documentation is whole: every page is reached, every link leads somewhere, notebooks run."""

import doctest
import json
import pathlib
import re

import matplotlib.pyplot as plt
import pytest

import mixjax
from mixjax import evaluation, models

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
# The first cell of each notebook, and what the test puts in its place.
SHORT = {
    "attack_a_mixture": {"num_images": 8, "num_steps": 2},
    "train_a_mixture": {
        "num_images": 32,
        "num_epochs": 1,
        "num_attack_steps": 1,
        "architecture": models.linear,
    },
}


def anchors(text):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def broken(text, folder):
    """Targets of relative links in `text` that do not exist, or whose page has no such heading."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            continue
        place = folder / path
        if not place.exists() or (anchor and anchor not in anchors(place.read_text())):
            found.append(target)
    return found


def toctrees(page):
    """Pages that the tables of contents of a page name."""
    for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                yield page.parent / f"{line}.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_of_a_page_leads_somewhere(page):
    assert broken(page.read_text(), page.parent) == []


def test_a_link_to_a_heading_that_is_not_there_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# On a table\n")
    text = "[x](a.md#on-a-table) [y](a.md#gone) [z](b.md) [w](https://a.b/c#d)"
    assert broken(text, tmp_path) == ["a.md#gone", "b.md"]


def test_every_page_is_reached_from_the_first_one():
    reached, ahead = set(), [DOCS / "index.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead += [each for each in toctrees(page) if each not in reached]
    assert reached == {*PAGES}


def test_every_public_module_is_in_the_reference():
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    missing = [name for name in mixjax.__all__ if f"mixjax.{name}\n" not in text]
    assert missing == []


def test_every_figure_stands_in_the_gallery_below_its_command():
    page = (DOCS / "gallery.md").read_text()
    sections = page.split("\n## ")[1:]
    shown = [re.findall(r"\]\(gallery/([^)]+)\)", section) for section in sections]
    assert {name for names in shown for name in names} == {
        path.name for path in (DOCS / "gallery").glob("*.png")
    }
    for section in sections:
        (command,) = re.findall(r"`python -m ([\w.]+)", section)
        assert (ROOT / f"{command.replace('.', '/')}.py").exists()


def test_the_readme_is_one_page():
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 8192 and len(text.splitlines()) <= 100


def test_the_readme_runs_with_one_attack_in_the_place_of_the_quick_suite(monkeypatch):
    short = evaluation.QUICK._replace(lines=("pgd_expected_loss",))
    monkeypatch.setattr(evaluation, "QUICK", short)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=flags)
    assert result.failed == 0 and result.attempted > 10


@pytest.mark.parametrize("page", sorted((DOCS / "papers").glob("*.md")), ids=lambda page: page.stem)
def test_a_section_of_results_has_at_most_ten_statements(page):
    sections = [each for each in page.read_text().split("\n## ")[1:] if "results/" in each]
    assert sections
    for section in sections:
        assert len([line for line in section.splitlines() if line.startswith("- ")]) <= 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_short_form(path):
    """Without its cells tagged "long", which attack by the whole suite, and without outputs."""
    names = {"__name__": "notebook"}
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        tags = cell["metadata"].get("tags", [])
        if "long" not in tags:
            exec(compile("".join(cell["source"]), f"{path.name}", "exec"), names)
        if "parameters" in tags:
            assert {*SHORT[path.stem]} <= {*names}
            names.update(SHORT[path.stem])
    plt.close("all")
    assert {*SHORT} == {notebook.stem for notebook in NOTEBOOKS}
