"""A progress bar with the time that is left, on standard error."""

from typing import Self

import tqdm


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
            self._bar = tqdm.tqdm(total=num_all, desc=told, unit=self._unit, postfix="compiling")
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
