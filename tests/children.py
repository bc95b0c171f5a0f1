"""Processes that tests start: watched by what they do, not by the clock, and ended in any case.

On a loaded machine a process takes as long as it takes, so a limit in seconds fails a test that is
right. These are given up in two cases only: when all of a test's processes together have used less
than `least` seconds of processor time in the last `patience` seconds (they wait for something that
does not come), or when they have used more than `most` (they run in circles).
"""

import contextlib
import os
import signal
import subprocess
import time

import psutil


class Children:
    """The processes of one test, each the leader of a group that dies with the test."""

    def __init__(self, *, patience=120.0, least=0.5, most=1200.0):
        """Limits in seconds, the last two of processor time."""
        self._patience, self._least, self._most = patience, least, most
        self._processes = []
        self._used = {}  # processor time by process, also of those that have ended

    def start(self, command, **options):
        """A `subprocess.Popen` with both outputs as text in pipes where `options` do not differ."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, start_new_session=True, **pipes | options)
        self._processes.append(process)
        return process

    def run(self, command, **options):
        """A `subprocess.CompletedProcess`."""
        process = self.start(command, **options)
        output, error = self.finish(process)
        return subprocess.CompletedProcess(command, process.returncode, output, error)

    def finish(self, process):
        """What the process writes until it ends: `(output, error)`."""
        written = []

        def ended():
            with contextlib.suppress(subprocess.TimeoutExpired):
                written[:] = process.communicate(timeout=0.2)
            return bool(written)

        self.wait(ended)
        return tuple(written)

    def wait(self, condition):
        """Asks `condition()` until it holds; `AssertionError` where the processes are given up."""
        since, before, asked = time.monotonic(), self._seconds(), time.monotonic()
        while not condition():
            time.sleep(0.01)
            now = time.monotonic()
            if now - asked < min(1.0, self._patience / 4):
                continue
            used, asked = self._seconds(), now
            if used >= before + self._least:
                since, before = now, used
            if used > self._most:
                raise AssertionError(self._last_words(f"{used:.0f} s of processor time used"))
            if now - since > self._patience:
                raise AssertionError(self._last_words(f"nothing done for {now - since:.0f} s"))

    def end(self):
        """Kills what is left of every group: the processes and what they have started."""
        self._kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _kill(self):
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _seconds(self):
        """Processor time of all processes so far, with that of the processes they started."""
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for each in (parent, *parent.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        times = each.cpu_times()
                        self._used[each.pid, each.create_time()] = times.user + times.system
        return sum(self._used.values())

    def _last_words(self, reason):
        """Ends the processes: the reason, and what each of them has written."""
        self._kill()
        written = [process.communicate() for process in self._processes]
        return "\n".join([reason, *(text for texts in written for text in texts if text)])
