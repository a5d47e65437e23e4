"""Statements about TD3+BC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import td3_bc
from td3_bc import Args, Batch, Data, Noise

ARGS = Args(hidden_dims=(8, 8), batch_size=32)


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
    state = td3_bc.init(args, Data(batch, jnp.zeros(5), jnp.ones(5)), keys[5])
    other = td3_bc.init(args, Data(batch, jnp.zeros(5), jnp.ones(5)), keys[6])
    state = state._replace(target_actor=other.actor, target_critics=other.critics)
    return state, batch, td3_bc.draw(args, batch, keys[7])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def actor_gradient(args, state, batch):
    return jax.grad(td3_bc.actor_loss, has_aux=True)(state.actor, args, state, batch)[0]


def test_with_alpha_0_the_actor_clones_behaviour():
    state, batch, _ = setup()
    cloning = lambda actor: ((td3_bc.pi(ARGS, actor, batch.observations) - batch.actions) ** 2).mean()
    ours = actor_gradient(Args(hidden_dims=(8, 8), alpha=0.0), state, batch)
    assert equal(ours, jax.grad(cloning)(state.actor), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_the_scale_of_q_does_not_matter_to_the_actor(scale):
    state, batch, _ = setup()
    head = state.critics["params"]["Dense_2"]
    scaled = {"params": state.critics["params"] | {"Dense_2": jax.tree.map(lambda x: scale * x, head)}}
    ours, theirs = (actor_gradient(ARGS, s, batch) for s in (state, state._replace(critics=scaled)))
    assert equal(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_actor_follows_the_first_critic_only():
    state, batch, _ = setup()
    second_changed = jax.tree.map(lambda x: x.at[1].add(1.0), state.critics)
    assert equal(
        actor_gradient(ARGS, state, batch), actor_gradient(ARGS, state._replace(critics=second_changed), batch)
    )


def test_without_discount_the_target_is_the_reward():
    state, batch, noise = setup()
    loss, metrics = td3_bc.critic_loss(state.critics, Args(hidden_dims=(8, 8), discount=0.0), state, batch, noise)
    values = td3_bc.q(ARGS, state.critics, batch.observations, batch.actions)
    np.testing.assert_allclose(loss, ((values - batch.rewards) ** 2).mean(axis=1).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["q_target"], batch.rewards.mean(), rtol=1e-6)


def test_nothing_follows_a_terminal():
    """What stands in next_observations of a terminal row does not matter."""
    state, batch, noise = setup()
    changed = batch.next_observations + 100 * batch.terminals[:, None]
    ours, theirs = (td3_bc.critic_loss(state.critics, ARGS, state, b, noise)[0]
                    for b in (batch, batch._replace(next_observations=changed)))  # fmt: skip
    assert ours == theirs


def test_smoothed_target_actions_stay_in_bounds_and_near_the_policy(monkeypatch):
    state, batch, _ = setup()
    seen, original = [], td3_bc.q
    monkeypatch.setattr(td3_bc, "q", lambda *a: (seen.append(a[3]), original(*a))[1])
    args = Args(hidden_dims=(8, 8), policy_noise=10.0)
    td3_bc.critic_loss(state.critics, args, state, batch, Noise(jax.random.normal(jax.random.key(1), (32, 2))))
    smoothed, policy = seen[0], td3_bc.pi(args, state.target_actor, batch.next_observations)
    assert (jnp.abs(smoothed) <= 1).all() and (jnp.abs(smoothed - policy) <= args.noise_clip + 1e-6).all()
    assert (jnp.abs(smoothed - policy) > 0.4).any(), "the noise is there"


def test_actor_and_targets_move_at_every_second_step_and_critics_at_each():
    args = Args(hidden_dims=(8, 8), tau=1.0)
    start, batch, noise = setup(args)
    first, metrics = td3_bc.update(args, start, batch, noise, 0)
    assert equal(first.actor, start.actor) and equal(first.actor_opt, start.actor_opt)
    assert equal(first.target_actor, start.target_actor) and equal(first.target_critics, start.target_critics)
    assert not equal(first.critics, start.critics) and jnp.isnan(metrics["actor_loss"])
    second, metrics = td3_bc.update(args, first, batch, noise, 1)
    assert not equal(second.actor, first.actor) and not equal(second.critics, first.critics)
    assert equal(second.target_actor, second.actor) and equal(second.target_critics, second.critics), "tau is 1"
    assert not jnp.isnan(metrics["actor_loss"])
    assert (second.actor_opt[0].count, second.critic_opt[0].count) == (1, 2)


def test_the_critics_do_not_feel_the_actors_step():
    start, batch, noise = setup()
    assert equal(
        td3_bc.update(ARGS, start, batch, noise, 0)[0].critics, td3_bc.update(ARGS, start, batch, noise, 1)[0].critics
    )


def test_layers_start_as_pytorch_starts_them():
    """Weights and biases uniform in +-1/sqrt(inputs), two different critics, targets as copies."""
    args = Args(hidden_dims=(256, 256))
    data = Data(
        Batch(*(jnp.zeros((2, n)) if n else jnp.zeros(2) for n in (17, 6, 0, 17, 0))), jnp.zeros(17), jnp.ones(17)
    )
    state = td3_bc.init(args, data, jax.random.key(0))
    for network, inputs in ((state.actor, (17, 256, 256)), (state.critics, (23, 256, 256))):
        for layer, fan_in in enumerate(inputs):
            bound, parameters = fan_in**-0.5, network["params"][f"Dense_{layer}"]
            assert all(0 < jnp.abs(x).max() <= bound for x in parameters.values())
            assert (
                jnp.abs(parameters["kernel"]).max() > 0.95 * bound and jnp.abs(parameters["kernel"].mean()) < bound / 5
            )
    assert equal(state.target_critics, state.critics) and equal(state.target_actor, state.actor)
    assert all((x[0] != x[1]).any() for x in jax.tree.leaves(state.critics))


def test_training_and_acting_normalise_alike():
    """The statistics are those of the rows that are kept, and `act` applies the very same."""
    rng = np.random.default_rng(0)

    class Dataset:
        observations = rng.normal(3, 7, size=(50, 4)).astype(np.float32)
        next_observations = rng.normal(3, 7, size=(50, 4)).astype(np.float32)
        actions, rewards = rng.uniform(-1, 1, (50, 2)).astype(np.float32), rng.normal(size=50).astype(np.float32)
        terminals, keep = np.zeros(50, bool), np.arange(50) < 40

    args = Args(hidden_dims=(8, 8), reward_shift=-1.0)
    data = td3_bc.prepare(args, Dataset)
    kept = Dataset.observations[:40].astype(np.float64)
    expected = (kept - kept.mean(0)) / (kept.std(0) + 1e-3)
    np.testing.assert_allclose(data.rows.observations, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.rows.rewards, Dataset.rewards[:40] - 1, rtol=1e-6)
    state = td3_bc.init(args, data, jax.random.key(0))
    raw = td3_bc.act(args, state, Dataset.observations[:40])
    np.testing.assert_allclose(raw, td3_bc.pi(args, state.actor, data.rows.observations), atol=1e-5)
