"""SIGTERM and Ctrl-C as a wish to stop: the loop finishes its step, saves, and ends."""

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Whether a signal has asked the program to stop, and the exit code that says so."""

    def __init__(self) -> None:
        """Nothing has been received yet."""
        self._signal = None

    @property
    def received(self) -> bool:
        """True from the first SIGTERM or SIGINT on."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell has it: 143 for SIGTERM, 130 for SIGINT; 0 for none."""
        return 0 if self._signal is None else 128 + self._signal

    def _receive(self, number, frame):
        del frame
        self._signal = int(number)
        for each in _SIGNALS:  # The next one ends the process at once, even inside compiled code.
            signal.signal(each, signal.SIG_DFL)


class Stopped(SystemExit):
    """The end of a process that a signal has asked for, after what was done is saved."""

    def __init__(self, code: int, where: str) -> None:
        """With the exit `code`, and `where` it stopped, in words that follow "stopped"."""
        super().__init__(code)
        self.where = where


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turns the first SIGTERM or SIGINT inside the `with` block into `interrupt.received`.

    The second one kills the process. The previous handlers are restored after the block. To be used
    in the main thread, with `interrupt.received` read after each step:

        with interruptible() as interrupt:
            for step in range(num_steps):
                state = train(state)
                if interrupt.received:
                    save(state)
                    raise SystemExit(interrupt.exit_code)

    Yields:
      An `Interrupt`.

    Raises:
      ValueError: if called outside the main thread.
    """
    interrupt = Interrupt()
    before = {}
    try:
        for each in _SIGNALS:
            before[each] = signal.signal(each, interrupt._receive)
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
