"""Training against several attacks at once: fixed ones and networks that learn meanwhile."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from mixjax import attacks, checks, games, losses
from mixjax.batch import mean_over
from mixjax.defenses.classifier import (
    ClassifierInfo,
    ClassifierState,
    attack_classifier,
    dropout_key,
)
from mixjax.defenses.mixture_training import Defense, apply_in_training
from mixjax.models import Model
from mixjax.threats import Threat
from mixjax.typing import Array, Bounds


def against_several(
    model: Model,
    optimizer: optax.GradientTransformation,
    threat: Threat,
    fixed_attacks: Sequence[Callable],
    *,
    networks: Sequence[Model] = (),
    ascent: optax.GradientTransformation | None = None,
    temperature: float | Array | None = None,
    per_example: bool = False,
    move: Callable[..., Array] = attacks.follow,
    bounds: Bounds = (0.0, 1.0),
    data_axis: str | None = None,
) -> Defense:
    """Descends the worst of several attacks, attack networks that learn meanwhile among them.

    `min_u max{f(u, z_1(u)), .., f(u, z_m(u)), max_v f(u, z(u, v)), ..}`: every network ascends its
    own loss, then the classifier descends the maximum, or its smooth relaxation
    `temperature log mean_j exp(f_j / temperature)`, which is the entropic game over attacks.

    Args:
      model: the classifier.
      optimizer: of its parameters, learning rate included.
      threat: the attacker's ball, in the units of the images.
      fixed_attacks: each `(key, loss_fn, x, threat) -> (x_adv, info)` on one example, against the
        classifier before the step.
      networks: attack networks, trained beside the classifier.
      ascent: optimiser of the networks' parameters, learning rate included.
      temperature: of the relaxation, positive, in units of the loss; None is the maximum itself.
      per_example: whether each example has its own worst attack; else the batch has one, as in
        the paper.
      move: what is made of a network's output, `attacks.follow` or `attacks.squash`.
      bounds: lowest and highest value of an input.
      data_axis: mapped axis over which a batch is spread; `step` then gets this device's part.

    Returns:
      A `Defense` with `ClassifierState` and `ClassifierInfo`; `state.opponent` is a tuple of the
      networks' variables.

    Raises:
      ValueError: if there is no attack at all, networks have no `ascent`, or `temperature` is not
        positive.

    References:
      Hamm, Machine vs machine: minimax-optimal defense against adversarial examples, 2018,
      eqs. 20 and 21.
      Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 4.2.

    Example:
      >>> import functools, jax, jax.numpy as jnp, optax
      >>> from mixjax import attacks, defenses, models, threats
      >>> def fgsm(key, loss_fn, x, threat):
      ...     return attacks.fgsm(loss_fn, x, threat)
      >>> pgd = functools.partial(attacks.pgd, num_steps=2, step_size=0.1)
      >>> model = models.linear(2, input_shape=(3,))
      >>> defense = defenses.against_several(model, optax.sgd(0.1), threats.linf(0.1), [fgsm, pgd])
      >>> images, labels = jnp.array([[0.1, 0.9, 0.2], [0.8, 0.1, 0.3]]), jnp.array([0, 1])
      >>> state, info = jax.jit(defense.step)(defense.init(jax.random.key(0)), images, labels)
      >>> int(state.step)
      1
    """
    checks.threat(threat=threat)
    for attack in fixed_attacks:
        checks.function("attacks.pgd", fixed_attacks=attack)
    if not fixed_attacks and not networks:
        raise ValueError("fixed_attacks must not be empty without networks, got none of both")
    if networks and ascent is None:
        raise ValueError(f"ascent must be an optimiser for {len(networks)} networks, got None")
    if temperature is not None:
        checks.positive(temperature=temperature)
    networks = tuple(networks)

    def losses_of(variables, key, points, labels):
        """Losses `[M, N]` at `M` batches of attacked inputs; the statistics are the last one's."""
        table = []
        for index, attacked in enumerate(points):
            own_key = jax.random.fold_in(key, index)
            logits, variables = apply_in_training(model, variables, attacked, own_key)
            table.append(jax.vmap(losses.cross_entropy)(logits, labels))
        return jnp.stack(table), variables

    def risk(table):
        # The batch's worst attack is that of the whole batch: the mean comes before the maximum.
        table = table.T if per_example else mean_over(data_axis, jnp.mean(table, axis=1))[None]
        one, table = jnp.ones(1, table.dtype), table[:, :, None]
        if temperature is None:
            return games.adversarial_risk(one, table)
        return games.entropic_risk(one, table, temperature)

    def network_points(params, state, key, images, labels):
        return [
            attacks.attack_network_batch(
                network,
                {**variables, "params": v},
                jax.random.fold_in(key, index),
                images,
                labels,
                threat,
                move=move,
                bounds=bounds,
            )[0]
            for index, (network, variables, v) in enumerate(
                zip(networks, state.opponent, params, strict=True)
            )
        ]

    def init(key):
        model_key, network_key, train_key = jax.random.split(key, 3)
        variables = model.init(model_key)
        opponent = tuple(
            network.init(jax.random.fold_in(network_key, index))
            for index, network in enumerate(networks)
        )
        opt_state = (
            optimizer.init(variables["params"]),
            () if ascent is None else ascent.init(_params(opponent)),
        )
        return ClassifierState(variables, opponent, opt_state, train_key, jnp.zeros((), jnp.int32))

    def step(state, images, labels):
        key = jax.random.fold_in(state.key, state.step)
        network_key, attack_key = jax.random.split(key)
        model_key = dropout_key(key, data_axis)
        if data_axis is not None:  # dropout of its own on each device
            network_key = jax.random.fold_in(network_key, jax.lax.axis_index(data_axis))
        u_opt_state, v_opt_state = state.opt_state
        networks_params = _params(state.opponent)
        if ascent is not None and networks:

            def own_losses(params):
                points = network_points(params, state, network_key, images, labels)
                table, _ = losses_of(state.variables, model_key, points, labels)
                return -jnp.sum(jnp.mean(table, axis=1))

            gradient = mean_over(data_axis, jax.grad(own_losses)(networks_params))
            updates, v_opt_state = ascent.update(gradient, v_opt_state, networks_params)
            networks_params = jax.tree.map(jnp.add, networks_params, updates)

        points = network_points(networks_params, state, network_key, images, labels)
        for index, attack in enumerate(fixed_attacks):
            key = jax.random.fold_in(attack_key, index)
            attacked = attack_classifier(
                model, state.variables, attack, key, images, labels, threat, data_axis=data_axis
            )
            points.append(attacked)

        def objective(params):
            table, new = losses_of({**state.variables, "params": params}, model_key, points, labels)
            return risk(table), new

        params = state.variables["params"]
        found, gradient = jax.value_and_grad(objective, has_aux=True)(params)
        (value, new), gradient = mean_over(data_axis, (found, gradient))
        updates, u_opt_state = optimizer.update(gradient, u_opt_state, params)
        opponent = tuple(
            {**variables, "params": v}
            for variables, v in zip(state.opponent, networks_params, strict=True)
        )
        state = ClassifierState(
            variables={**new, "params": optax.apply_updates(params, updates)},
            opponent=opponent,
            opt_state=(u_opt_state, v_opt_state),
            key=state.key,
            step=state.step + 1,
        )
        return state, ClassifierInfo(value, jnp.zeros_like(value))

    return Defense(init, step)


def _params(opponent):
    return tuple(variables["params"] for variables in opponent)
