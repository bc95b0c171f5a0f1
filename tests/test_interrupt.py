"""The first SIGTERM or SIGINT is a wish, the second one an end."""

import os
import signal
import sys
import threading

import pytest

from mixjax import checkpoint
from mixjax.interrupt import interruptible

LOOP = """
import sys, time
from mixjax.interrupt import interruptible

with interruptible() as interrupt:
    print("ready", flush=True)
    for step in range(10_000):
        time.sleep(0.01)
        if interrupt.received and sys.argv[1] == "polite":
            print("saved", flush=True)
            raise SystemExit(interrupt.exit_code)
        if interrupt.received:
            print("deaf", flush=True)
"""


def start(children, manner):
    process = children.start([sys.executable, "-c", LOOP, manner])
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_lets_the_step_finish_and_sets_the_exit_code(children, number, exit_code):
    process = start(children, "polite")
    process.send_signal(number)
    output, _ = children.finish(process)
    assert (output, process.returncode) == ("saved\n", exit_code)


def test_a_second_signal_kills(children):
    process = start(children, "deaf")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "deaf\n"
    process.send_signal(signal.SIGTERM)
    children.finish(process)
    assert process.returncode == -signal.SIGTERM


def test_nothing_is_received_until_a_signal_comes_and_the_old_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with interruptible() as interrupt:
        assert (interrupt.received, interrupt.exit_code) == (False, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (interrupt.received, interrupt.exit_code) == (True, 143)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_old_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_it_says_so():
    errors = []

    def enter():
        try:
            with interruptible():
                pass
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


def test_checkpoints_offer_the_same_context():
    assert checkpoint.interruptible is interruptible
