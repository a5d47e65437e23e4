"""Statements about A2PR."""

import functools

import a2pr
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from a2pr import VAE, Args, Batch, Data

SMALL = functools.partial(
    Args, hidden_dims=(8, 8), critic_hidden_dims=(8, 8), vae_hidden_dims=(8, 8), batch_size=32, mask=0.7, vae_weight=1.5
)
ARGS = SMALL()
init = jax.jit(a2pr.init, static_argnums=0)
update = jax.jit(a2pr.update, static_argnums=0)


@functools.cache
def setup(seed=0):
    """A state whose targets differ from its networks, a batch, noise."""
    keys = jax.random.split(jax.random.key(seed), 8)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    batch = Batch(
        observations=normal(0, 32, 5),
        actions=jnp.tanh(normal(1, 32, 2)),
        rewards=normal(2, 32),
        next_observations=normal(3, 32, 5),
        terminals=(normal(4, 32) > 0.5).astype(jnp.float32),
    )
    data = Data(batch, jnp.zeros(5), jnp.ones(5))
    state, other = init(ARGS, data, keys[5]), init(ARGS, data, keys[6])
    # Critics of a larger scale than at the start, so that their ranking of actions is not drowned in V's error.
    state = state._replace(
        critics=jax.tree.map(lambda x: 3 * x, state.critics),
        target_actor=other.actor,
        target_critics=jax.tree.map(lambda x: 3 * x, other.critics),
    )
    return state, batch, a2pr.draw(ARGS, batch, keys[7])


setup()  # or a program that asks first would keep its tracers


@functools.cache
def judged():
    """V and the advantage of the data's actions, by the state's own networks: both signs occur."""
    state, batch, _ = setup()
    values = jnp.median(a2pr.first_q(ARGS, state.critics, batch.observations, batch.actions)) * jnp.ones(32)
    return values, a2pr.first_q(ARGS, state.critics, batch.observations, batch.actions) - values


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


@functools.partial(jax.jit, static_argnums=0)
def actor_loss(args, values, advantage, state=None):
    """Gradient and metrics of the actor's loss."""
    start, batch, noise = setup()
    state = start if state is None else state
    return jax.grad(a2pr.actor_loss, has_aux=True)(state.actor, args, state, batch, noise, values, advantage)


def bc_gradient(weights, aims, detached=True):
    """Gradient of mean weights (pi - aims)^2; `aims` maps the actor's actions to what it imitates."""
    state, batch, _ = setup()

    def loss(actor):
        actions = a2pr.pi(ARGS, actor, batch.observations)
        aimed = aims(jax.lax.stop_gradient(actions) if detached else actions)
        return (weights[:, None] * (actions - aimed) ** 2).mean()

    return jax.grad(loss)(state.actor)


def guides(actions):
    state, batch, noise = setup()
    return VAE(ARGS.vae_hidden_dims).apply(state.vae, batch.observations, actions, noise.guide)[0]


def guides_now():
    """The VAE's proposals for the actor's actions, and their advantage."""
    state, batch, _ = setup()
    proposed = guides(a2pr.pi(ARGS, state.actor, batch.observations))
    return proposed, a2pr.first_q(ARGS, state.critics, batch.observations, proposed) - judged()[0]


# ------------------------------------------------------------------------------------------ what is imitated


def test_each_row_imitates_the_better_of_two_actions_or_none():
    """Row by row in Python. All four cases occur: guide or data, held or free."""
    state, batch, _ = setup()
    values, advantage = judged()
    proposed, guide_advantage = guides_now()
    actions = a2pr.pi(ARGS, state.actor, batch.observations)
    total, cases = 0.0, set()
    for row in range(32):
        guided = bool(guide_advantage[row] >= advantage[row])
        held = bool(guide_advantage[row] >= 0 or advantage[row] > 0)
        aim = proposed[row] if guided else batch.actions[row]
        total += (ARGS.mask if held else 0.0) * float(((actions[row] - aim) ** 2).sum())
        cases.add((guided, held))
    assert len(cases) == 4
    _, metrics = actor_loss(ARGS, values, advantage)
    np.testing.assert_allclose(metrics["bc_loss"], total / 64, rtol=1e-5)


def test_without_mask_the_actor_climbs_q_alone():
    state, batch, _ = setup()
    grads, metrics = actor_loss(SMALL(mask=0.0), *judged())
    assert metrics["bc_loss"] == 0 and metrics["actor_loss"] == -metrics["lambda"] * metrics["q_policy"]

    def climb(actor):
        actions = a2pr.pi(ARGS, actor, batch.observations)
        return -metrics["lambda"] * a2pr.first_q(ARGS, state.critics, batch.observations, actions).mean()

    assert equal(grads, jax.grad(climb)(state.actor), rtol=1e-4, atol=1e-7)


def test_where_the_datas_actions_are_best_it_is_td3_bc_with_weight_mask():
    state, batch, _ = setup()
    grads, metrics = actor_loss(SMALL(alpha=0.0), judged()[0], jnp.full(32, jnp.inf))
    assert metrics["guided"] == 0 and metrics["held"] == 1
    wanted = bc_gradient(jnp.full(32, ARGS.mask), lambda actions: batch.actions)
    assert equal(grads, wanted, rtol=1e-4, atol=1e-7)


def test_a_tie_goes_to_the_vae():
    """To critics of zeros all actions are alike; whether they are good is asked differently of the two."""
    state, *_ = setup()
    blind = state._replace(critics=jax.tree.map(jnp.zeros_like, state.critics))
    _, metrics = actor_loss(ARGS, jnp.zeros(32), jnp.zeros(32), blind)
    assert metrics["guided"] == 1 and metrics["held"] == 1, "a guide that equals V is good"
    assert vae_loss(jnp.zeros(32))[1]["good"] == 0, "an action of the data that equals V is not"


def test_where_neither_action_beats_v_nothing_is_imitated():
    _, metrics = actor_loss(ARGS, jnp.full(32, 1e6), jnp.full(32, -1e6))
    assert metrics["held"] == 0 and metrics["bc_loss"] == 0


def test_the_gradient_passes_through_the_vaes_proposal():
    grads, metrics = actor_loss(SMALL(alpha=0.0), jnp.full(32, -1e6), jnp.full(32, -jnp.inf))
    assert metrics["guided"] == 1 and metrics["held"] == 1
    weights = jnp.full(32, ARGS.mask)
    assert equal(grads, bc_gradient(weights, guides, detached=False), rtol=1e-4, atol=1e-7)
    assert not equal(grads, bc_gradient(weights, guides), rtol=1e-2)


# ------------------------------------------------------------------------------------------ the VAE


def vae_loss(advantage, vae=None):
    state, batch, noise = setup()
    return jax.grad(a2pr.vae_loss, has_aux=True)(vae or state.vae, ARGS, batch, noise, advantage)


def test_the_vae_learns_from_the_actions_that_are_better_than_v():
    """Rows that are not count as zeros in the mean; their actions might be anything."""
    state, batch, noise = setup()
    _, advantage = judged()
    good = advantage > 0
    assert 0 < good.sum() < 32
    actions, mean, log_std = VAE(ARGS.vae_hidden_dims).apply(state.vae, batch.observations, batch.actions, noise.vae)
    errors = np.asarray(1.5 * (actions - batch.actions) ** 2)[np.asarray(good)]
    divergence = np.log(np.exp(-log_std)) + (np.exp(2 * log_std) + mean**2 - 1) / 2  # of N(mean, std) from N(0, 1)
    _, metrics = vae_loss(advantage)
    np.testing.assert_allclose(metrics["recon_loss"], errors.sum() / 64, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_loss"], divergence.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["vae_loss"], errors.sum() / 64 + 0.5 * divergence.mean(), rtol=1e-5)


def test_where_no_action_is_good_the_vae_only_approaches_its_prior():
    grads, metrics = vae_loss(jnp.zeros(32))  # as good as V is not better
    assert metrics["recon_loss"] == 0 and metrics["vae_loss"] == 0.5 * metrics["kl_loss"]
    assert all((x == 0).all() for x in jax.tree.leaves(grads["params"]["decoder"]))
    assert all((x != 0).any() for x in jax.tree.leaves(grads["params"]["mean"]))


@pytest.mark.parametrize(("bias", "bound"), [(-100.0, -4.0), (100.0, 15.0)])
def test_the_codes_deviation_is_bounded(bias, bound):
    state, batch, noise = setup()
    layer = state.vae["params"]["log_std"]["Dense_0"]
    shifted = {"log_std": {"Dense_0": layer | {"bias": layer["bias"] + bias}}}
    vae = {"params": state.vae["params"] | shifted}
    actions, _, log_std = VAE(ARGS.vae_hidden_dims).apply(vae, batch.observations, batch.actions, noise.vae)
    assert log_std.shape == (32, 4) and (log_std == bound).all() and (jnp.abs(actions) <= 1).all()


# ------------------------------------------------------------------------------------------ the order of an update


def test_v_learns_the_lower_of_two_targets():
    """The target critics', and that of the critics after their step; never more than what the critics learn."""
    state, batch, noise = setup()
    after, metrics = update(ARGS, state, batch, noise, 0)
    next_actions = a2pr.smoothed_actions(ARGS, state, batch, noise)
    y, online = (a2pr.target(ARGS, c, batch, next_actions) for c in (state.target_critics, after.critics))
    assert (online < y).any() and (online > y).any()
    values = a2pr.v(ARGS, state.value, batch.observations)
    np.testing.assert_allclose(metrics["value_loss"], ((values - jnp.minimum(y, online)) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["q_target"], y.mean(), rtol=1e-5)


def test_advantages_are_of_the_critics_after_and_of_v_before_their_step():
    state, batch, noise = setup()
    after, metrics = update(SMALL(critic_lr=0.03, value_lr=0.1), state, batch, noise, 0)
    good = lambda critics, value: (
        a2pr.first_q(ARGS, critics, batch.observations, batch.actions) > a2pr.v(ARGS, value, batch.observations)
    ).mean()
    assert metrics["good"] == good(after.critics, state.value)
    assert metrics["good"] not in (good(state.critics, state.value), good(after.critics, after.value))


def test_the_actor_is_guided_by_the_vae_after_its_step():
    state, batch, noise = setup()
    after, metrics = update(SMALL(vae_lr=0.1), state, batch, noise, 1)
    values = a2pr.v(ARGS, state.value, batch.observations)
    advantage = a2pr.first_q(ARGS, after.critics, batch.observations, batch.actions) - values
    seen = state._replace(critics=after.critics, vae=after.vae)
    np.testing.assert_allclose(metrics["bc_loss"], actor_loss(ARGS, values, advantage, seen)[1]["bc_loss"], rtol=1e-4)
    stale = actor_loss(ARGS, values, advantage, seen._replace(vae=state.vae))[1]["bc_loss"]
    assert not np.isclose(metrics["bc_loss"], stale, rtol=1e-3)


def test_the_critics_feel_neither_v_nor_the_vae_nor_the_actor():
    state, batch, noise = setup()
    step = lambda number=0, **flags: update(SMALL(**flags), state, batch, noise, number)[0].critics
    assert equal(step(), step(1, value_lr=1.0, vae_lr=1.0, actor_lr=1.0, mask=3.0))


def test_actor_and_targets_move_at_every_second_step_and_the_rest_at_each():
    args = SMALL(tau=1.0)
    start, batch, noise = setup()
    first, metrics = update(args, start, batch, noise, 0)
    for name in ("actor", "actor_opt", "target_actor", "target_critics"):
        assert equal(getattr(first, name), getattr(start, name)), name
    assert jnp.isnan(metrics["actor_loss"]) and not jnp.isnan(metrics["vae_loss"])
    second, metrics = update(args, first, batch, noise, 1)
    for name in ("critics", "value", "vae"):
        assert not equal(getattr(first, name), getattr(start, name)), name
        assert not equal(getattr(second, name), getattr(first, name)), name
    assert equal(second.target_actor, second.actor) and equal(second.target_critics, second.critics), "tau is 1"
    assert not equal(second.actor, first.actor) and not jnp.isnan(metrics["actor_loss"])
    counts = (second.actor_opt, second.critic_opt, second.value_opt, second.vae_opt)
    assert [opt[0].count for opt in counts] == [1, 2, 2, 2]


def test_nothing_follows_a_terminal():
    """What stands in next_observations of a terminal row matters to no network."""
    state, batch, noise = setup()
    changed = batch._replace(next_observations=batch.next_observations + 100 * batch.terminals[:, None])
    assert equal(*(update(ARGS, state, b, noise, 1)[0] for b in (batch, changed)))


def test_networks_are_as_deep_as_published_and_start_as_pytorch_starts_them():
    """Three, four and two hidden layers; weights and biases uniform in +-1/sqrt(inputs); a code of 2 act numbers."""
    zeros = Batch(*(jnp.zeros((2, n)) if n else jnp.zeros(2) for n in (17, 6, 0, 17, 0)))
    state = init(Args(), Data(zeros, jnp.zeros(17), jnp.ones(17)), jax.random.key(0))
    vae = state.vae["params"]
    widths = {
        "actor": (state.actor["params"], (17, 256, 256, 256, 6)),
        "critics": (state.critics["params"], (23, 256, 256, 256, 256, 1)),
        "value": (state.value["params"], (17, 256, 256, 256, 256, 1)),
        "encoder": (vae["encoder"], (23, 750, 750)),
        "mean": (vae["mean"], (750, 12)),
        "log_std": (vae["log_std"], (750, 12)),
        "decoder": (vae["decoder"], (17 + 12, 750, 750, 6)),
    }
    for name, (network, sizes) in widths.items():
        assert len(network) == len(sizes) - 1, name
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            kernel, bias = network[f"Dense_{layer}"]["kernel"], network[f"Dense_{layer}"]["bias"]
            assert kernel.shape[-2:] == (inputs, outputs), name
            assert 0.9 < jnp.abs(kernel).max() * inputs**0.5 <= 1.0001 and 0 < jnp.abs(bias).max() <= inputs**-0.5
    assert equal(state.target_critics, state.critics) and equal(state.target_actor, state.actor)
    assert all((x[0] != x[1]).any() for x in jax.tree.leaves(state.critics))
