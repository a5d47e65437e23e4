"""Statements about FQL."""

import functools

import flax
import fql
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fql import Args, Batch, Data

SMALL = {"hidden_dims": (8, 8), "batch_size": 32}
ARGS = Args(**SMALL)
init = jax.jit(fql.init, static_argnums=0)


def setup(args=ARGS, seed=0):
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
    state, other = (init(args, Data(batch), keys[i]) for i in (5, 6))
    return state._replace(target_critics=other.critics), batch, fql.draw(args, batch, keys[7])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def scaled(network, factor, layer="Dense_2"):
    """The network with its last layer multiplied."""
    return {"params": network["params"] | {layer: jax.tree.map(lambda x: factor * x, network["params"][layer])}}


def shifted(network, by):
    """The network with its output shifted."""
    head = network["params"]["Dense_2"]
    return {"params": network["params"] | {"Dense_2": head | {"bias": head["bias"] + by}}}


def actor_gradient(args, state, batch, noise):
    return jax.grad(fql.actor_loss, has_aux=True)(state.actor, args, state, batch, noise)[0]


# ------------------------------------------------------------------------------------------ who feels what


def test_without_q_and_with_alpha_0_the_actor_feels_nothing():
    state, batch, noise = setup()
    flat = state._replace(critics=scaled(state.critics, 0.0))
    zeros = jax.tree.map(jnp.zeros_like, state.actor)
    assert equal(actor_gradient(Args(**SMALL, alpha=0.0), flat, batch, noise), zeros)
    assert not equal(actor_gradient(Args(**SMALL, alpha=0.0), state, batch, noise), zeros), "Q is felt"
    assert not equal(actor_gradient(ARGS, flat, batch, noise), zeros), "the flow is felt"


def test_the_flow_clones_the_data_and_feels_neither_alpha_nor_critics_nor_actor():
    state, batch, noise = setup()
    flow = fql.update(ARGS, state, batch, noise, 0)[0].flow
    changed = state._replace(actor=shifted(state.actor, 1.0), critics=shifted(state.critics, 1.0))
    assert equal(fql.update(Args(**SMALL, alpha=1e6), changed, batch, noise, 0)[0].flow, flow)
    assert not equal(flow, state.flow)


def test_the_actor_does_not_feel_what_the_flow_learns_in_the_same_update():
    state, batch, noise = setup()
    other = noise._replace(x0=noise.x0 + 1, t=noise.t / 2, next_policy=noise.next_policy + 1)
    one, two = (fql.update(ARGS, state, batch, n, 0)[0] for n in (noise, other))
    assert equal(one.actor, two.actor)
    assert not equal(one.flow, two.flow) and not equal(one.critics, two.critics)


def test_beyond_the_bounds_the_actor_feels_the_flow_alone():
    """Q is asked at the clipped action, the imitation error is not clipped."""
    state, batch, noise = setup()
    state = state._replace(actor=shifted(state.actor, 50.0))
    other = state._replace(critics=scaled(state.critics, 100.0))
    gradient = actor_gradient(ARGS, state, batch, noise)
    assert equal(gradient, actor_gradient(ARGS, other, batch, noise))
    assert not equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


@pytest.mark.parametrize("factor", [0.01, 3.0, 1000.0])
def test_normalised_the_scale_of_q_does_not_matter_to_the_actor(factor):
    state, batch, noise = setup()
    stretched = state._replace(critics=scaled(state.critics, factor))
    args = Args(**SMALL, normalize_q_loss=True)
    gradient = actor_gradient(args, state, batch, noise)
    assert equal(actor_gradient(args, stretched, batch, noise), gradient, rtol=1e-3, atol=1e-6)
    assert not equal(actor_gradient(ARGS, stretched, batch, noise), gradient, rtol=1e-3, atol=1e-6)


def test_the_actor_climbs_the_mean_of_the_critics_whatever_the_target_is():
    state, batch, noise = setup()
    mean, least = (actor_gradient(Args(**SMALL, q_agg=agg), state, batch, noise) for agg in ("mean", "min"))
    assert equal(mean, least)
    for member in (0, 1):
        other = state._replace(critics=jax.tree.map(lambda x: x.at[member].multiply(2.0), state.critics))  # noqa: B023
        assert not equal(actor_gradient(ARGS, other, batch, noise), mean), member


# ------------------------------------------------------------------------------------------ the flow


def constant(velocity):
    """A flow network whose velocity is the same everywhere."""
    state, _, _ = setup()
    return shifted(scaled(state.flow, 0.0), velocity)


@pytest.mark.parametrize("velocity", [0.0, 0.7, -3.0])
def test_a_constant_velocity_carries_noise_by_itself(velocity):
    _, batch, noise = setup()
    actions = fql.flow_actions(ARGS, constant(velocity), batch.observations, noise.policy)
    np.testing.assert_allclose(actions, jnp.clip(noise.policy + velocity, -1, 1), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_euler_steps_take_the_velocity_at_their_beginning(steps, monkeypatch):
    """With v = t: 0 + 1/K + ... + (K-1)/K, each for a K-th of the time."""
    monkeypatch.setattr(fql, "v", lambda args, flow, observations, x, t: jnp.broadcast_to(t, x.shape))
    actions = fql.flow_actions(Args(flow_steps=steps), None, jnp.zeros((3, 5)), jnp.zeros((3, 2)))
    np.testing.assert_allclose(actions, np.full((3, 2), (steps - 1) / (2 * steps)), rtol=1e-6)


def test_only_the_end_of_the_flow_is_clipped(monkeypatch):
    """Out by 3 in the first half, back by 3 in the second: noise returns to where it was."""
    out_and_back = lambda args, flow, observations, x, t: jnp.where(t < 0.5, 6.0, -6.0) + 0 * x
    monkeypatch.setattr(fql, "v", out_and_back)
    noise = jnp.linspace(-0.9, 0.9, 8)[:, None]
    np.testing.assert_allclose(fql.flow_actions(ARGS, None, jnp.zeros((8, 5)), noise), noise, atol=1e-5)


def test_two_modes_of_the_data_are_two_modes_of_flow_and_actor():
    """Actions -0.5 and 0.5: a policy that regresses their mean would take 0."""
    args = Args(hidden_dims=(64, 64), batch_size=256, lr=2e-3, alpha=10.0, discount=0.0)
    actions = jnp.where(jnp.arange(512) % 2, 0.5, -0.5)[:, None]
    zeros = jnp.zeros(512)
    data = Data(Batch(jnp.zeros((512, 1)), actions, zeros, jnp.zeros((512, 1)), zeros))
    keys = jax.random.split(jax.random.key(0), 1)
    start = jax.jit(jax.vmap(functools.partial(fql.init, args, data)))(keys)
    state, _ = fql.train(args, data, start, keys, 0, 1500)
    state = jax.tree.map(lambda x: x[0], state)
    noise = jax.random.normal(jax.random.key(1), (1000, 1))
    for policy in (fql.flow_actions(args, state.flow, jnp.zeros((1000, 1)), noise),
                   fql.mu(args, state.actor, jnp.zeros((1000, 1)), noise)):  # fmt: skip
        assert 0.35 < (policy > 0).mean() < 0.65, "both modes"
        assert (jnp.abs(policy) < 0.25).mean() < 0.15 and abs(jnp.abs(policy).mean() - 0.5) < 0.1, "little between them"


# ------------------------------------------------------------------------------------------ the critics


def test_without_discount_the_target_is_the_reward():
    state, batch, noise = setup()
    loss, metrics = fql.critic_loss(state.critics, Args(**SMALL, discount=0.0), state, batch, noise)
    values = fql.q(ARGS, state.critics, batch.observations, batch.actions)
    np.testing.assert_allclose(loss, ((values - batch.rewards) ** 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["q_target"], batch.rewards.mean(), rtol=1e-6)


def test_the_target_is_the_mean_of_the_target_critics_or_their_minimum_at_a_clipped_action():
    state, batch, noise = setup()
    state = state._replace(actor=shifted(state.actor, jnp.array([0.0, 2.0])))
    actions = jnp.clip(fql.mu(ARGS, state.actor, batch.next_observations, noise.next_policy), -1, 1)
    assert (actions == 1).any() and (jnp.abs(actions) < 1).any()
    values = fql.q(ARGS, state.target_critics, batch.next_observations, actions)
    for agg, value in (("mean", values.mean(0)), ("min", values.min(0))):
        metrics = fql.critic_loss(state.critics, Args(**SMALL, q_agg=agg), state, batch, noise)[1]
        y = batch.rewards + 0.99 * (1 - batch.terminals) * value
        np.testing.assert_allclose(metrics["q_target"], y.mean(), rtol=1e-5)


def test_nothing_follows_a_terminal():
    """What stands in next_observations of a terminal row does not matter."""
    state, batch, noise = setup()
    changed = batch._replace(next_observations=batch.next_observations + 100 * batch.terminals[:, None])
    ours, theirs = (fql.critic_loss(state.critics, ARGS, state, b, noise)[0] for b in (batch, changed))
    assert ours == theirs


def test_targets_follow_the_critics_from_before_the_update():
    state, batch, noise = setup(args := Args(**SMALL, tau=0.3))
    new, _ = fql.update(args, state, batch, noise, 0)
    wanted = jax.tree.map(lambda old, target: 0.7 * target + 0.3 * old, state.critics, state.target_critics)
    assert equal(new.target_critics, wanted, rtol=1e-6, atol=1e-7)
    start = state._replace(target_critics=state.critics)
    new, _ = fql.update(args, start, batch, noise, 0)
    assert equal(new.target_critics, start.critics, rtol=1e-6, atol=1e-7) and not equal(new.critics, start.critics)


# ------------------------------------------------------------------------------------------ one update


def test_one_adam_a_network_is_one_adam_over_all():
    """On the sum of the losses, as the official code has it."""
    state, batch, noise = setup()
    adam = optax.adam(ARGS.lr)
    networks = (state.critics, state.flow, state.actor)
    opt = adam.init(networks)

    def total(networks, state):
        losses = (fql.critic_loss, fql.flow_loss, fql.actor_loss)
        return sum(loss(net, ARGS, state, batch, noise)[0] for loss, net in zip(losses, networks, strict=True))

    for step in range(5):
        updates, opt = adam.update(jax.grad(total)(networks, state), opt)
        networks = optax.apply_updates(networks, updates)
        state, _ = fql.update(ARGS, state, batch, noise, step)
        assert equal((state.critics, state.flow, state.actor), networks, rtol=1e-5, atol=1e-7)


def test_networks_start_as_the_official_ones():
    """Glorot-uniform weights, biases 0, LayerNorm in critics only, two of them and different, targets as copies."""
    args = Args(hidden_dims=(256, 256))
    data = Data(Batch(*(jnp.zeros((2, n)) if n else jnp.zeros(2) for n in (17, 6, 0, 17, 0))))
    state = init(args, data, jax.random.key(0))
    for network, sizes in (
        (state.actor, (23, 256, 256, 6)),
        (state.flow, (24, 256, 256, 6)),
        (state.critics, (23, 256, 256, 1)),
    ):
        for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            parameters, bound = network["params"][f"Dense_{layer}"], (6 / (fan_in + fan_out)) ** 0.5
            largest = jnp.abs(parameters["kernel"]).max()
            assert parameters["kernel"].shape[-2:] == (fan_in, fan_out) and 0.95 * bound < largest <= bound
            assert abs(parameters["kernel"].std() - bound / 3**0.5) < 0.1 * bound and (parameters["bias"] == 0).all()
        assert ("LayerNorm_1" in network["params"]) == (network is state.critics)
    assert equal(state.target_critics, state.critics)
    assert (state.critics["params"]["Dense_0"]["kernel"][0] != state.critics["params"]["Dense_0"]["kernel"][1]).any()


def test_actions_of_the_data_lie_a_hair_inside_the_bounds():
    class Dataset:
        observations = next_observations = np.zeros((3, 5), np.float32)
        actions, rewards = np.array([[-1.0], [0.5], [1.0]], np.float32), np.array([-1.0, 0.0, 1.0], np.float32)
        terminals, keep = np.zeros(3, bool), np.array([True, False, True])

    rows = fql.prepare(Args(reward_shift=-1.0), Dataset).rows
    np.testing.assert_allclose(rows.actions[:, 0], [-0.99999, 0.99999], rtol=0, atol=1e-7)
    np.testing.assert_allclose(rows.rewards, [-2.0, 0.0])


# ------------------------------------------------------------------------------------------ acting


def test_acting_is_a_draw_from_the_one_step_policy():
    state, _, _ = setup()
    observations = jax.random.normal(jax.random.key(1), (4, 3, 5))
    noise = jax.vmap(jax.vmap(lambda x: fql.act_noise(state.key, x, 2)))(observations)
    wanted = jnp.clip(fql.mu(ARGS, state.actor, observations, noise), -1, 1)
    np.testing.assert_allclose(fql.act(ARGS, state, observations), wanted, atol=1e-6)
    np.testing.assert_allclose(fql.act(ARGS, state, observations[2, 1]), wanted[2, 1], atol=1e-6)  # wherever it stands


def test_the_noise_of_acting_is_standard_normal_and_new_for_every_observation():
    """Also along an episode whose observations hardly differ, and from one seed to the next."""
    start = jax.random.normal(jax.random.key(1), (5,))
    episode = start + 1e-6 * jnp.arange(5000)[:, None]
    noise = {}
    for seed in (0, 1):
        key = jax.random.key_data(jax.random.key(seed))
        noise[seed] = jax.vmap(lambda x: fql.act_noise(key, x, 2))(episode)  # noqa: B023
        z = np.unique(np.asarray(noise[seed]), axis=0)
        assert len(z) == len(np.unique(np.asarray(episode), axis=0)) > 4000
        np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.08)
        np.testing.assert_allclose(z.mean(0), 0, atol=0.06)
        assert abs(np.corrcoef(noise[seed][:-1, 0], noise[seed][1:, 0])[0, 1]) < 0.06, "from step to step"
    assert abs(np.corrcoef(noise[0][:, 0], noise[1][:, 0])[0, 1]) < 0.06, "from seed to seed"


def test_every_number_of_an_observation_changes_the_noise():
    observation, key = jnp.arange(1.0, 6.0), jax.random.key_data(jax.random.key(0))
    nudged = jnp.where(jnp.eye(5, dtype=bool), jnp.nextafter(observation, jnp.inf), observation)
    swapped = observation[jnp.array([1, 0, 2, 3, 4])]
    draws = jnp.stack([fql.act_noise(key, x, 2) for x in (observation, *nudged, swapped)])
    assert len(np.unique(np.asarray(draws), axis=0)) == 7


def test_the_key_of_acting_outlives_training_and_checkpoints():
    state, batch, noise = setup()
    new, _ = fql.update(ARGS, state, batch, noise, 0)
    restored = flax.serialization.from_bytes(state, flax.serialization.to_bytes(new))
    observations = batch.observations
    assert equal(new.key, state.key) and equal(fql.act(ARGS, restored, observations), fql.act(ARGS, new, observations))
