"""The processes of a test end with it, and no load on the machine makes it fail."""

import sys
import time

import psutil
import pytest

from tests.children import Children

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
time.sleep(1000)
"""


def python(program, *arguments):
    return [sys.executable, "-c", program, *arguments]


def is_alive(pid):
    """Whether it runs: one that is dead and that nobody waits for does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_a_process_has_started_ends_with_it():
    children = Children()
    process = children.start(python(PARENT))
    grandchild = int(process.stdout.readline())
    assert is_alive(grandchild)
    children.end()
    assert process.returncode == -9
    children.wait(lambda: not is_alive(grandchild))


def test_one_that_waits_for_ever_is_given_up_with_what_it_said():
    children = Children(patience=1.0)
    process = children.start(python("import time; print('here', flush=True); time.sleep(1000)"))
    with pytest.raises(AssertionError, match=r"nothing done for \d s\nhere"):
        children.finish(process)
    assert process.returncode == -9


def test_one_that_runs_in_circles_is_given_up():
    children = Children(most=1.0)
    process = children.start(python("while True: pass"))
    with pytest.raises(AssertionError, match=r"\d s of processor time used"):
        children.finish(process)
    assert process.returncode == -9


def test_one_that_works_may_take_longer_than_the_patience():
    """Here one waits for the other, which works: together they do something."""
    children = Children(patience=1.0, least=0.1)
    start = time.monotonic()
    working = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    waiting = children.start(python("import sys; print(sys.stdin.read())"), stdin=-1)
    worker = children.start(python(working))
    children.wait(lambda: worker.poll() is not None)
    assert time.monotonic() - start >= 2
    assert waiting.communicate("that is all") == ("that is all\n", "")
    finished = children.run(python("import sys; print(1); print(2, file=sys.stderr); exit(3)"))
    assert (finished.returncode, finished.stdout, finished.stderr) == (3, "1\n", "2\n")
    children.end()
