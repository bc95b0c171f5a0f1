"""One step of Algorithm 2 that updates all members, mixjax against PyTorch, on the same ResNet18s.

    python -m benchmarks.training_step --members 1

A step attacks the batch by PGD on the expected loss, BatchNorm in evaluation mode, and takes an
SGD step of every member on it, BatchNorm in training mode. About 5 minutes on 2 CPU cores.
"""

import jax
import jax.numpy as jnp
import optax

from benchmarks import comparison, cost, setting
from mixjax import defenses

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


def main(argv=None):
    """Times the training step."""
    comparison.run(
        "training_step",
        "one step of Algorithm 2 that updates all members, mixjax against PyTorch",
        argv,
        ours,
        theirs,
        cost.training_operations,
    )


def ours(flags, problem: setting.Problem, convolution: str):
    """`prepare` of mixjax's case."""
    defense = defenses.mixture(
        setting.build_model(flags, convolution),
        optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
        ),
        setting.threat(),
        setting.pgd(problem.num_steps),
        num_members=len(problem.weights),
        update="all",
    )

    def prepare():
        state = defense.init(jax.random.key(flags.seed))
        variables = jax.tree.map(jnp.asarray, problem.variables)
        average = jax.tree.map(jnp.copy, variables)  # its own buffers: both are donated
        state = state._replace(variables=variables, average=average)
        batch = jax.device_put((problem.images, problem.labels))
        compiled = jax.jit(defense.step, donate_argnums=0).lower(state, *batch).compile()

        def call():
            nonlocal state
            state, info = jax.block_until_ready(compiled(state, *batch))
            return float(info.loss)

        return call

    return prepare


def theirs(peer):
    """PyTorch's call."""
    return lambda: peer.training_step(LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)


if __name__ == "__main__":
    main()
