"""How Sphinx builds the documentation: `make docs` writes it to `build/docs`, without a network."""

import pathlib
import re

import mixjax

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Pages of the root that are pages of the site as well, and where links to them lead.
FROM_ROOT = {"results": "RESULTS.md", "contributing": "CONTRIBUTING.md", "changes": "CHANGELOG.md"}

project = "mixjax"
author = "The mixjax authors"
copyright = author
release = version = mixjax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["notebooks"]
html_theme = "furo"
html_title = f"mixjax {release}"
html_copy_source = False
myst_heading_anchors = 3

default_role = "code"  # of `x` in docstrings, as in Markdown
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
napoleon_attr_annotations = False
napoleon_use_ivar = True


def from_markdown(app, what, name, thing, options, lines):
    """What docstrings write as Markdown does, in reStructuredText, which Sphinx reads."""
    inside, found = False, []
    for place, line in enumerate(lines):
        if line.strip() == "```":
            inside = not inside
            found += ["::", ""] if inside else [""]
        elif inside:
            found.append(f"    {line}")
        elif line.endswith(":") and not any(each[:4].strip() for each in lines[place + 1 :][:2]):
            found.append(f"{line}:")  # a block of code follows
        else:
            found.append(re.sub(r"(`[^`]+`)(\w)?", _apart, line))
    lines[:] = found


def with_pages_of_the_root(app, name, source):
    """The text of a page of the root in the place of the link to it; links that lead there."""
    text = source[0]
    if name in FROM_ROOT:
        app.env.note_dependency(str(ROOT / FROM_ROOT[name]))
        text = (ROOT / FROM_ROOT[name]).read_text()
        text = re.sub(r"\]\((?!#|\w+:)", "](../", text)
    for page, path in FROM_ROOT.items():
        text = re.sub(rf"\]\(((?:\.\./)*)\.\./{path}", rf"](\1{page}.md", text)
    text = re.sub(r"\]\(\.\./docs(/|(?=\)))", "](./", text)
    folder = (ROOT / "docs" / name).parent

    def without_folders(match):
        """The site holds no folders of the repository: their names stay."""
        return match[1] if (folder / match[2]).is_dir() else match[0]

    source[0] = re.sub(r"\[([^\]]+)\]\(([^)#\s:]+)\)", without_folders, text)


def without_fields(app, what, name, thing, skip, options):
    """Fields of a NamedTuple are listed as its attributes; Sphinx would list them once more."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def _apart(match):
    """A code word and the letter right after it, which reStructuredText wants apart."""
    return match[1] + (rf"\ {match[2]}" if match[2] else "")


def setup(app):
    """Docstrings are read before Napoleon takes them apart."""
    app.connect("source-read", with_pages_of_the_root)
    app.connect("autodoc-skip-member", without_fields)
    app.connect("autodoc-process-docstring", from_markdown, priority=400)
