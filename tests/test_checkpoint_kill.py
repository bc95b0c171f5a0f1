"""A run that saves at every step is killed with SIGKILL again and again, and loses nothing."""

import json
import sys

RUN = '''
import json, os, pathlib, signal, sys, time, traceback
import jax
import jax.numpy as jnp
import numpy as np
from mixjax import checkpoint

folder = pathlib.Path(sys.argv[1])
log = folder / "log"


def start():
    return {"x": jnp.zeros(200_000), "key": jax.random.key(5), "step": jnp.int32(0)}


@jax.jit
def advance(state):
    x = state["x"] * 0.9 + jnp.sin(state["step"])
    return {"x": x, "key": state["key"], "step": state["step"] + 1}


def train(directory, num_steps):
    """Says in the log what it restored and each step that it has saved."""
    with checkpoint.open(directory, {"seed": 5}, num_latest=2, num_best=2) as manager:
        state, first, skipped = start(), 0, []
        if checkpoint.steps(manager):
            state, first, skipped = checkpoint.restore(manager, state)
        with log.open("a") as lines:
            print(json.dumps(["restored", first, int(state["step"]), skipped]), file=lines)
            for step in range(first + 1, num_steps + 1):
                state = advance(state)
                accuracy = float(np.sin(step))
                checkpoint.save(manager, step, state, {"robust_accuracy": accuracy})
                print(json.dumps(["saved", step]), file=lines, flush=True)
    return state


def in_a_process_of_its_own(job, delay=None):
    """Forked before JAX starts: no second import. Killed `delay` seconds after its first save."""
    size = log.stat().st_size if log.exists() else 0
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    if delay is not None:
        while b"saved" not in (log.read_bytes()[size:] if log.exists() else b""):
            time.sleep(0.002)
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                sys.exit("the run ended by itself")
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(event, number):
    """Trains until the given file operation in the folder is about to happen."""
    left = number

    def hook(name, arguments):
        nonlocal left
        if name == event and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train(folder / "killed", 10_000)


def compare():
    resumed = train(folder / "killed", last_step + 2)
    log.unlink()
    straight = train(folder / "straight", last_step + 2)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), resumed, straight)
    (folder / "same.json").write_text(json.dumps(same))


def last_saved():
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("]")]
    return max(step for kind, step, *_ in entries if kind == "saved")


codes = []
for delay in (0.0, 0.2):
    codes.append(in_a_process_of_its_own(lambda: train(folder / "killed", 10_000), delay))
for event, number in (("os.rename", 6), ("os.remove", 15)):
    codes.append(in_a_process_of_its_own(lambda: killed_at(event, number)))
last_step = last_saved()
(folder / "history.json").write_text(json.dumps([codes, log.read_text()]))
codes.append(in_a_process_of_its_own(compare))
sys.exit(codes[-1])
'''


def test_after_every_kill_the_run_goes_on_from_the_step_before_and_ends_with_the_same_numbers(
    children, tmp_path
):
    finished = children.run([sys.executable, "-c", RUN, str(tmp_path)])
    assert finished.returncode == 0, finished.stderr
    codes, log = json.loads((tmp_path / "history.json").read_text())
    assert codes == [-9] * 4
    saved = 0
    for kind, step, *rest in map(json.loads, log.splitlines()):
        if kind == "restored":
            # `save` returns while the files are being written: only the last one may be lost.
            assert saved - 1 <= step <= saved + 1
            assert rest == [step, []]
        saved = step
    assert json.loads((tmp_path / "same.json").read_text()) == {
        "x": True,
        "key": True,
        "step": True,
    }
