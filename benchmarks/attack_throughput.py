"""PGD on the expected loss of a mixture, mixjax against PyTorch, on the same ResNet18s.

    python -m benchmarks.attack_throughput --members 1 4

compares a jitted `attacks.pgd`, vmapped over the examples, with PyTorch's loop over the members.
About 15 minutes on 2 CPU cores; `--width 16 --batch-size 8` gives an impression in one.
"""

import jax
import jax.numpy as jnp

from benchmarks import comparison, cost, setting
from mixjax import ensemble, losses


def main(argv=None):
    """Times the attack."""
    comparison.run(
        "attack_throughput",
        "PGD on the expected loss of a mixture, mixjax against PyTorch",
        argv,
        ours,
        theirs,
        cost.attack_operations,
    )


def ours(flags, problem: setting.Problem, convolution: str):
    """`prepare` of mixjax's case."""
    model, attack = setting.build_model(flags, convolution), setting.pgd(problem.num_steps)

    def attack_all(variables, weights, key, images, labels):
        def attack_one(key, x, label):
            def member_loss(variables, x):
                return losses.cross_entropy(model.apply(variables, x), label)

            def loss_fn(x):
                return ensemble.expectation(member_loss, variables, weights, x)

            return attack(key, loss_fn, x, setting.threat())

        keys = jax.random.split(key, images.shape[0])
        attacked, info = jax.vmap(attack_one)(keys, images, labels)
        return attacked, jnp.mean(info.loss)

    def prepare():
        given = (problem.variables, problem.weights, jax.random.key(flags.seed))
        arguments = jax.device_put((*given, problem.images, problem.labels))
        compiled = jax.jit(attack_all).lower(*arguments).compile()

        def call():
            return float(jax.block_until_ready(compiled(*arguments))[1])

        return call

    return prepare


def theirs(peer):
    """PyTorch's call."""
    return peer.attack


if __name__ == "__main__":
    main()
