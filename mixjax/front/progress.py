"""A progress bar with the time that is left, on standard error."""

import io
import sys
from typing import Any, Self

import tqdm


def bar(*items: Any, **settings: Any) -> tqdm.tqdm:
    """A bar of `tqdm`; to a file, which keeps every line, it writes once in ten seconds."""
    # A notebook's stream is no terminal either, but shows one line: it is no `TextIOWrapper`.
    is_file = isinstance(sys.stderr, io.TextIOWrapper) and not sys.stderr.isatty()
    return tqdm.tqdm(*items, mininterval=10.0 if is_file else 0.1, **settings)


class Bars:
    """One bar after the other, one for each name; none at all if they are off."""

    def __init__(self, shown: bool = True, *, name: str = "", unit: str = "run") -> None:
        """Whether anything is `shown`, what stands before each name, and what is counted."""
        self.name, self._shown, self._unit = name, shown, unit
        self._bar, self._current = None, ""

    def show(self, name: str, num_done: int, num_all: int) -> None:
        """Moves the bar of `name`; until something is done, compiling is what takes the time."""
        if not self._shown:
            return
        if name != self._current or self._bar is None:
            self.close()
            told = f"{self.name}, {name}" if self.name else name
            self._bar = bar(total=num_all, desc=told, unit=self._unit, postfix="compiling")
            self._current = name
        if num_done:
            self._bar.set_postfix_str("", refresh=False)
        self._bar.update(num_done - self._bar.n)

    def close(self) -> None:
        """Ends the last bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        """The bars themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the last bar."""
        self.close()
