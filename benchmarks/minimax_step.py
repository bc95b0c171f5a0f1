"""Steps through the gradient of a gradient, mixjax against PyTorch with `create_graph=True`.

    python -m benchmarks.minimax_step      # 3 minutes; needs g++ for torch.compile

A Sens step (FGSM on the batch, then descent of the loss and `gamma / 2 sum_i |df/dz_i|^2`), a
minimax step (the attack network ascends, the classifier descends `f + 1/2 |df/dv|^2`; both from the
old point as algorithm 1 is printed, or with `--order alternating` the classifier at the new `v`)
and, to compare with, a plain one on clean images: the MNIST classifier of Hamm 2018 and an attack
network of the size there, with the direction and bounds of `attacks.follow`; Adam for both players.
The plain step is also timed beside `torch.compile`, which has no gradient of a gradient. Before
anything is timed, losses and gradients of both sides are compared. Each step's operations are given
as a share of what plain matrix products reach in the same turn. Then, with mixjax alone: how many
times as long the gradient of the minimax objective takes as the plain one, through a ResNet18.
"""

import argparse
import functools
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import comparison, cost, setting, timing
from mixjax import (
    attacks,
    checks,
    defenses,
    files,
    games,
    losses,
    memory,
    models,
    reporting,
    threats,
)

PROGRAM = "benchmarks.minimax_step"
NUM_CLASSES, SHAPE = 10, (28, 28, 1)
EPSILON, PENALTY, RATES = 0.15, 1.0, (1e-4, 1e-3)
TOLERANCE = 1e-3  # of losses and of gradients' Euclidean distance, as a part of the gradient
MAX_RESNET_RATIO = 6.0


def main(argv=None):
    """Compares, times, prints, writes."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    flags = parse(argv)
    memory.keep()
    start, load = time.perf_counter(), [os.getloadavg()[0]]
    try:
        from benchmarks import peer_players
    except ModuleNotFoundError as error:
        setting.fail(PROGRAM, f"{error}: pip install -e '.[bench]'")
    peer_players.start(setting.num_threads())
    problem = Problem(flags)
    try:
        agreement = compare(problem, peer_players)
        comparison.check_compiler()
        cases = [cost.matrix_case("float32")]
        for name in STEPS:
            cases.append(timing.Case(f"torch {name}", 0, problem.theirs(peer_players, name)))
            cases.append(timing.Case(f"mixjax {name}", 0, problem.ours(name)))
        compiled = problem.theirs(peer_players, "plain", compiled=True)
        cases += [timing.Case("torch compile plain", 0, compiled), *resnet_cases(flags)]
        timings = timing.interleave(
            cases,
            num_repeats=flags.repeats,
            min_seconds=flags.seconds,
            tell=comparison.tell,
        )
    except ValueError as error:
        setting.fail(PROGRAM, error)
    load.append(os.getloadavg()[0])
    result = {
        "benchmark": "minimax_step",
        "settings": {key: value for key, value in vars(flags).items() if key != "output"},
        "threads": {"number": setting.num_threads(), "how": comparison.THREADS},
        "load_before_and_after": load,
        "agreement": agreement,
        **summary(timings, {name: problem.operations(name) for name in STEPS}),
    }
    command = comparison.argv_of(PROGRAM, argv)
    origin = reporting.provenance(command, flags.seed, time.perf_counter() - start)
    origin["versions"]["torch"] = peer_players.version()
    files.write_json(flags.output, {**result, "provenance": origin})
    print(table(result))


def parse(argv) -> argparse.Namespace:
    """The command line. Bad input: one line, exit code 2."""
    parser = setting.Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("--width", type=int, default=32, help="channels of the classifier's first convolution")
    add("--hidden", type=int, default=300, help="units of the attack network's layers")
    add("--batch-size", type=int, default=128)
    add("--resnet-width", type=int, default=16)
    add("--resnet-batch-size", type=int, default=16)
    add(
        "--order",
        choices=("simultaneous", "alternating"),
        default="simultaneous",
        help="of the minimax step",
    )
    add("--repeats", type=int, default=3, help="turns of each program")
    add("--seconds", type=float, default=1.0, help="least duration of a turn")
    add("--seed", type=int, default=0)
    add("--output", type=pathlib.Path, default=setting.RESULTS / "minimax_step-cpu.json")
    flags = parser.parse_args(argv)
    with parser.checking():
        names = "width hidden batch_size resnet_width resnet_batch_size repeats".split()
        checks.at_least(1, **{name: getattr(flags, name) for name in names})
        checks.seed(seed=flags.seed)
        checks.non_negative(seconds=flags.seconds)
        setting.check_output(flags.output)
    return flags


def fgsm(key, loss_fn, x, threat):
    """FGSM in the form that defences take."""
    del key
    return attacks.fgsm(loss_fn, x, threat)


def stay(key, loss_fn, x, threat):
    """No attack."""
    del key, loss_fn, threat
    return x, ()


class Problem:
    """One classifier, one attack network and one batch, for both sides."""

    def __init__(self, flags: argparse.Namespace):
        """Weights and images from the seed."""
        generator = np.random.default_rng(flags.seed)
        self.images = generator.uniform(size=(flags.batch_size, *SHAPE)).astype(np.float32)
        self.labels = (np.arange(flags.batch_size) % NUM_CLASSES).astype(np.int32)
        self.model = models.mnist_cnn(NUM_CLASSES, flags.width, input_shape=SHAPE)
        self.network = models.attack_network(
            NUM_CLASSES, input_shape=SHAPE, hidden=(flags.hidden,) * 3
        )
        self.key = jax.random.key(flags.seed)
        self.order = flags.order

    def defense(self, name: str, descent, ascent) -> defenses.Defense:
        """A defence by its name, with these optimisers."""
        threat = threats.linf(EPSILON)
        if name == "minimax":
            method = functools.partial(
                games.minimax,
                descent=descent,
                ascent=ascent,
                penalty=PENALTY,
                order=self.order,
            )
            return defenses.against_network(self.model, self.network, method, threat)
        if name == "sens":
            return defenses.sensitivity(self.model, descent, threat, fgsm)
        return defenses.learning_with_adversary(self.model, descent, threat, stay)

    def state(self, name: str, defense: defenses.Defense):
        """A fresh state with the common weights."""
        state = defense.init(jax.random.fold_in(self.key, 2))
        state = state._replace(variables=self.model.init(jax.random.fold_in(self.key, 0)))
        if name == "minimax":
            opponent = self.network.init(jax.random.fold_in(self.key, 1))
            state = state._replace(opponent=opponent)
        return state

    def ours(self, name: str):
        """`prepare` of mixjax's case."""

        def prepare():
            defense = self.defense(name, *(optax.adam(rate) for rate in RATES))
            state = self.state(name, defense)
            batch = jax.device_put((self.images, self.labels))
            compiled = jax.jit(defense.step, donate_argnums=0).lower(state, *batch).compile()

            def call():
                nonlocal state
                state, info = jax.block_until_ready(compiled(state, *batch))
                return float(info[0])

            return call

        return prepare

    def operations(self, name: str) -> float:
        """Floating-point operations of a step."""
        defense = self.defense(name, *(optax.adam(rate) for rate in RATES))

        def step(*arguments):
            return jax.tree.leaves(defense.step(*arguments))

        return cost.counted_operations(step, self.state(name, defense), self.images, self.labels)

    def peer(self, module):
        """PyTorch's side with the common weights."""
        networks = [
            model.init(jax.random.fold_in(self.key, number))["params"]
            for number, model in enumerate((self.model, self.network))
        ]
        networks = jax.device_get(networks)
        return module.Peer(*networks, self.images, self.labels, EPSILON, PENALTY, RATES)

    def theirs(self, module, name: str, *, compiled: bool = False):
        """`prepare` of PyTorch's case."""

        def prepare():
            peer = self.peer(module)

            def call():
                if name != "minimax":
                    return peer.descend(getattr(peer, name)())
                if self.order == "alternating":
                    peer.ascend(peer.slopes())
                    return peer.descend(peer.minimax())
                found = peer.minimax()
                peer.ascend(found[2])
                return peer.descend(found)

            if compiled:
                peer.compile()
                call()  # compiles; the time includes one run
            return call

        return prepare


STEPS = ("plain", "sens", "minimax")


def compare(problem: Problem, module) -> dict:
    """Both sides' losses and gradients on the same weights, the attack network held still.

    Raises:
      ValueError: if they differ by more than the tolerance.
    """
    found = {}
    for name in STEPS:
        defense = problem.defense(name, optax.sgd(1.0), optax.sgd(0.0))
        state = problem.state(name, defense)
        new, info = jax.jit(defense.step)(state, problem.images, problem.labels)
        ours = jax.tree.map(
            lambda a, b: np.asarray(a - b), state.variables["params"], new.variables["params"]
        )
        theirs = getattr(problem.peer(module), name)()
        loss = (
            float(info.f + info.penalty) if name == "minimax" else float(info.loss + info.penalty)
        )
        difference = jax.tree.map(np.subtract, ours, module.gradient(theirs))
        distance = float(optax.tree.norm(difference) / optax.tree.norm(ours))
        found[name] = {
            "loss": loss,
            "torch_loss": theirs[0].item(),
            "relative_distance_of_gradients": distance,
            "tolerance": TOLERANCE,
        }
        if not (abs(loss - theirs[0].item()) <= TOLERANCE * abs(loss) and distance <= TOLERANCE):
            raise ValueError(f"{name} steps differ, nothing was timed: {found[name]}")
    return found


def resnet_cases(flags: argparse.Namespace) -> list[timing.Case]:
    """Gradients in a ResNet18's parameters: of `f`, and of `f + penalty / 2 |df/dv|^2`."""
    shape, threat = (32, 32, 3), threats.linf(8 / 255)
    model = models.resnet18(NUM_CLASSES, flags.resnet_width, input_shape=shape)
    network = models.attack_network(NUM_CLASSES, input_shape=shape, hidden=(flags.hidden,) * 3)
    generator = np.random.default_rng(flags.seed)
    images = generator.uniform(size=(flags.resnet_batch_size, *shape)).astype(np.float32)
    labels = jnp.arange(len(images)) % NUM_CLASSES
    key = jax.random.key(flags.seed)
    variables, opponent = model.init(key), network.init(key)

    def f(u, v, images):
        attacked, _ = attacks.attack_network_batch(
            network, {"params": v}, None, images, labels, threat
        )
        logits, _ = model.apply({**variables, "params": u}, attacked, train=True)
        return jnp.mean(jax.vmap(losses.cross_entropy)(logits, labels))

    def penalized(u, v, images):
        value, slope = jax.value_and_grad(f, argnums=1)(u, v, images)
        return value + PENALTY / 2 * optax.tree.norm(slope, squared=True)

    def case(name, objective):
        def prepare():
            arguments = variables["params"], opponent["params"], images
            compiled = jax.jit(jax.value_and_grad(objective)).lower(*arguments).compile()
            return lambda: float(jax.block_until_ready(compiled(*arguments))[0])

        return timing.Case(name, 0, prepare)

    return [case("resnet18 plain", f), case("resnet18 penalized", penalized)]


def summary(timings: list[timing.Timing], operations: dict[str, float]) -> dict:
    """Seconds of all cases, ours against theirs, shares of the matrix rate, the ResNet's ratio."""
    found = {each.case.name: each for each in timings}
    rates = [cost.matrix_rate(seconds) for seconds in found.pop("matrix products").seconds]
    cases = [
        {
            "case": name,
            "seconds": each.seconds,
            "cpu_seconds": each.cpu_seconds,
            "compile_seconds": each.compile_seconds,
            "loss": each.loss,
        }
        for name, each in found.items()
    ]

    def ratio(one, other):
        pair = found[one], found[other]
        return {
            "seconds": timing.ratio(*pair)._asdict(),
            "cpu_seconds": timing.ratio(*pair, cpu=True)._asdict(),
        }

    def share(name, side):
        turns = zip(found[f"{side} {name}"].seconds, rates, strict=True)
        return timing.spread([operations[name] / seconds / rate for seconds, rate in turns])

    return {
        "cases": cases,
        "times_as_fast_as_torch": {
            name: ratio(f"torch {name}", f"mixjax {name}") for name in STEPS
        },
        "times_as_fast_as_torch_compile": {"plain": ratio("torch compile plain", "mixjax plain")},
        "operations": operations,
        "matrix_rate": timing.spread(rates)._asdict(),
        "share_of_matrix_rate": {
            name: {side: share(name, side)._asdict() for side in ("mixjax", "torch")}
            for name in STEPS
        },
        "resnet18_penalized_over_plain": ratio("resnet18 penalized", "resnet18 plain"),
        "resnet18_limit": MAX_RESNET_RATIO,
    }


def table(result: dict) -> str:
    """The ratios, in processor time, as lines of text."""
    lines = [
        f"{name}: mixjax is {_text(each)} times as fast as {peer}"
        for peer in ("torch", "torch_compile")
        for name, each in result[f"times_as_fast_as_{peer}"].items()
    ]
    for name, sides in result["share_of_matrix_rate"].items():
        shares = ", ".join(f"{side} {each['median']:.2f}" for side, each in sides.items())
        lines.append(f"{name}, share of the matrix rate: {shares}")
    text = _text(result["resnet18_penalized_over_plain"])
    return "\n".join([*lines, f"ResNet18: the gradient of the gradient costs {text} plain ones"])


def _text(ratio):
    return "{median:.3g} ({low:.3g} to {high:.3g})".format(**ratio["cpu_seconds"])


if __name__ == "__main__":
    main()
