"""Numbers in the text of a page that come from committed results, and stay true.

A number is a link to the file that it comes from, and the link's title says where in it:

    the suite leaves [32.5 %](results/digits_boosted_pair.json "robust_accuracy/worst")

The keys are parted by `/`; a key may contain it where no shorter one is there, and of a list the
place counts. `over seeds: KEYS` is the mean over the files that differ in their seed alone,
`over seeds, low: KEYS` and `high` the ends of its interval. What stands in brackets after the keys
is done to the value: `robust_accuracy/worst [1 -]`, `[abs]`. A text with `%` shows a hundred times
the value; as many decimals stand there as stood there before.
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from mixjax import evaluation

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINK = re.compile(
    r'\[(?P<text>[^\]\[]*)\]\((?P<path>[^)\s]*results/[^)\s]+\.json) "(?P<keys>[^"]+)"\)'
)
_NUMBER = re.compile(r"[-+]?(\d[\d ]*\d|\d)?(\.(?P<decimals>\d+))?(?=\D|$)")
_OVER_SEEDS = re.compile(r"over seeds(, (?P<end>low|high))?: ")
_DONE = re.compile(r" \[(?P<what>1 -|abs)\]$")


def pages() -> list[pathlib.Path]:
    """The pages whose numbers come from files."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def refreshed(text: str, folder: pathlib.Path) -> str:
    """The text of a page with every number as its file has it.

    Args:
      text: of the page.
      folder: where the page lies, from which its links start.

    Raises:
      ValueError: if a file or a key is not there, or a link's text holds no number.
    """

    def link(match):
        value = _value(folder / match["path"], match["keys"])
        return match[0].replace(match["text"], shown(match["text"], value), 1)

    return _LINK.sub(link, text)


def numbers(text: str) -> list[str]:
    """The texts of all links that name a key."""
    return [match["text"] for match in _LINK.finditer(text)]


def shown(text: str, value: Any) -> str:
    """`text` with its one number replaced: `("32.5 %", 0.3245) -> "32.5 %"`."""
    places = [match for match in _NUMBER.finditer(text) if match[0].strip()]
    if len(places) != 1:
        raise ValueError(f"text must hold one number, got {text!r}")
    (place,) = places
    decimals = len(place["decimals"] or "")
    value = 100 * value if "%" in text else value
    number = f"{value:.{decimals}f}".removeprefix("0" if place[0].startswith(".") else "")
    return text[: place.start()] + number + text[place.end() :]


def _value(path: pathlib.Path, keys: str) -> Any:
    done, of_seeds = _DONE.search(keys), _OVER_SEEDS.match(keys)
    plain = _OVER_SEEDS.sub("", _DONE.sub("", keys))
    if of_seeds:
        others = path.parent.glob(f"{path.stem}_seed_*.json")
        mean, (low, high) = evaluation.over_seeds(
            [_looked_up(each, plain) for each in (path, *others)]
        )
        value = {None: mean, "low": low, "high": high}[of_seeds["end"]]
    else:
        value = _looked_up(path, plain)
    return {None: value, "1 -": 1 - value, "abs": abs(value)}[done["what"] if done else None]


def _looked_up(path: pathlib.Path, keys: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path} is linked and does not exist")
    found = list(_at(json.loads(path.read_text()), keys))
    if not found:
        raise ValueError(f"{path} holds nothing at {keys}")
    return found[0]


def _at(value: Any, keys: str) -> Iterator[Any]:
    if not keys:
        yield value
        return
    parts = keys.split("/")
    for number in range(1, len(parts) + 1):
        key, rest = "/".join(parts[:number]), "/".join(parts[number:])
        if isinstance(value, dict) and key in value:
            yield from _at(value[key], rest)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            yield from _at(value[int(key)], rest)
