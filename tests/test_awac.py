"""Statements about AWAC."""

import functools

import awac
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from awac import Args, Batch, Data
from scipy import stats

SMALL = functools.partial(Args, hidden_dims=(8, 8), batch_size=32)
ARGS = SMALL()
init = jax.jit(awac.init, static_argnums=0)
update = jax.jit(awac.update, static_argnums=0)


@functools.cache
def setup(args=ARGS, seed=0):
    """A state whose targets differ from its critics, a batch, noise."""
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
    state = init(args, data, keys[5])
    state = state._replace(target_critics=init(args, data, keys[6]).critics)
    return state, batch, awac.draw(args, batch, keys[7])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def with_log_std(state, log_std):
    return state._replace(actor={"params": state.actor["params"] | {"log_std": jnp.asarray(log_std)}})


@functools.partial(jax.jit, static_argnums=0)
def actor_gradient(args, state, batch, noise):
    return jax.grad(awac.actor_loss, has_aux=True)(state.actor, args, state, batch, noise)[0]


def log_pi(actor, batch):
    return awac.log_density(*awac.pi(ARGS, actor, batch.observations), batch.actions)


# ------------------------------------------------------------------------------------------ the actor


@pytest.mark.parametrize("weights", ["exp", "softmax"])
def test_at_a_high_temperature_the_actor_clones_behaviour(weights):
    state, batch, noise = setup()
    cloning = jax.grad(lambda actor: -log_pi(actor, batch).mean())(state.actor)
    assert equal(actor_gradient(SMALL(temperature=1e8, weights=weights), state, batch, noise), cloning, rtol=1e-4)
    assert not equal(actor_gradient(SMALL(temperature=0.1, weights=weights), state, batch, noise), cloning, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.01, 0.3333, 10.0])
def test_weights_lie_between_0_and_100_and_those_of_the_authors_add_up_to_the_batch(temperature):
    advantages = jnp.linspace(-0.5, 3, 32)
    weights = awac.weigh(SMALL(temperature=temperature), advantages)
    assert ((weights > 0) & (weights <= 100)).all() and (jnp.diff(weights) >= 0).all()
    np.testing.assert_allclose(weights, np.minimum(np.exp(np.float64(advantages) / temperature), 100), rtol=1e-4)
    weights = awac.weigh(SMALL(temperature=temperature, weights="softmax"), advantages)
    np.testing.assert_allclose(weights.sum(), 32, rtol=1e-5)


def test_the_authors_weights_do_not_change_with_a_constant_in_the_advantage():
    advantages = jnp.linspace(-1, 2, 32)
    ours, theirs = (awac.weigh(SMALL(weights="softmax"), advantages + shift) for shift in (0, 5))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_action_is_worth_what_the_smaller_critic_gives_it_more_than_an_action_of_the_policy():
    state, batch, noise = setup()
    mean, log_std = awac.pi(ARGS, state.actor, batch.observations)
    drawn = jnp.clip(mean + jnp.exp(log_std) * noise.policy, -1, 1)
    assert (jnp.abs(drawn) == 1).any(), "the clip is felt"
    smaller = lambda actions: awac.q(ARGS, state.critics, batch.observations, actions).min(axis=0)
    advantages = smaller(batch.actions) - smaller(drawn)
    loss, metrics = awac.actor_loss(state.actor, ARGS, state, batch, noise)
    np.testing.assert_allclose(metrics["advantage"], advantages.mean(), rtol=1e-4)
    np.testing.assert_allclose(loss, -(jnp.exp(advantages) * log_pi(state.actor, batch)).mean(), rtol=1e-5)


def test_the_actor_does_not_follow_the_critics_gradient():
    """Its gradient is that of a likelihood with constant weights: nothing passes through the drawn action."""
    state, batch, noise = setup()
    drawn = awac.sampled(ARGS, state.actor, batch.observations, noise.policy)
    smaller = lambda actions: awac.q(ARGS, state.critics, batch.observations, actions).min(axis=0)
    weights = awac.weigh(ARGS, smaller(batch.actions) - smaller(drawn))
    wanted = jax.grad(lambda actor: -(weights * log_pi(actor, batch)).mean())(state.actor)
    assert equal(actor_gradient(ARGS, state, batch, noise), wanted, rtol=1e-4, atol=1e-6)


def test_the_actor_is_judged_by_the_critics_after_their_step():
    state, batch, noise = setup()
    after, metrics = update(ARGS, state, batch, noise, 0)
    wanted = awac.actor_loss(state.actor, ARGS, state._replace(critics=after.critics), batch, noise)[1]
    before = awac.actor_loss(state.actor, ARGS, state, batch, noise)[1]
    np.testing.assert_allclose(metrics["actor_loss"], wanted["actor_loss"], rtol=1e-5)
    assert not np.isclose(metrics["actor_loss"], before["actor_loss"], rtol=1e-5)


def test_log_density_is_that_of_a_gaussian_that_is_not_squashed():
    state, batch, _ = setup()
    mean, log_std = awac.pi(ARGS, with_log_std(state, [-1.0, 0.5]).actor, 100 * batch.observations)
    assert (jnp.abs(mean) > 1).any(), "the mean has no bounds"
    wanted = stats.norm.logpdf(batch.actions, mean, np.exp([-1.0, 0.5])).sum(axis=-1)
    np.testing.assert_allclose(awac.log_density(mean, log_std, batch.actions), wanted, rtol=1e-5)
    for log_std, bound in ((-100.0, -20), (100.0, 2)):
        assert (awac.pi(ARGS, with_log_std(state, [log_std] * 2).actor, batch.observations)[1] == bound).all()


def test_the_better_of_two_actions_is_taken():
    """One state, as many actions -0.5 as 0.5, of which the latter pays; cloning would take the middle."""
    sign = np.tile(np.float32([-1, 1]), 200)
    ones = np.ones((400, 1), np.float32)
    batch = Batch(ones, 0.5 * sign[:, None], (sign > 0).astype(np.float32), ones, np.ones(400, np.float32))
    data = jax.tree.map(jnp.asarray, Data(batch, np.zeros(1), np.ones(1)))
    args = SMALL(temperature=0.1, steps=1500, lr=3e-3)
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.jit(jax.vmap(functools.partial(awac.init, args, data)))(keys)
    state, _ = awac.train(args, data, state, keys, 0, 1500)
    np.testing.assert_allclose(awac.act(args, jax.tree.map(lambda x: x[0], state), jnp.ones(1)), 0.5, atol=0.1)


# ------------------------------------------------------------------------------------------ the critics


def test_without_discount_the_target_is_the_reward():
    state, batch, noise = setup()
    loss, metrics = awac.critic_loss(state.critics, SMALL(discount=0.0), state, batch, noise)
    values = awac.q(ARGS, state.critics, batch.observations, batch.actions)
    np.testing.assert_allclose(loss, ((values - batch.rewards) ** 2).mean(axis=1).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["q_target"], batch.rewards.mean(), rtol=1e-6)


def test_the_target_asks_the_policy_at_the_next_observation(monkeypatch):
    """And not at the present one, which is far from it here; the deviation is next to nothing."""
    state, batch, noise = setup()
    batch = batch._replace(next_observations=-batch.observations)
    state = with_log_std(state, [-20.0, -20.0])
    seen, original = [], awac.q
    monkeypatch.setattr(awac, "q", lambda *a: (seen.append(a[2:]), original(*a))[1])
    awac.critic_loss(state.critics, ARGS, state, batch, noise)
    observations, actions = seen[0]
    there, here = (awac.pi(ARGS, state.actor, x)[0].clip(-1, 1) for x in (-batch.observations, batch.observations))
    assert (observations == batch.next_observations).all() and jnp.abs(there - here).max() > 0.1
    np.testing.assert_allclose(actions, there, atol=1e-6)


def test_the_target_takes_the_smaller_target_critic_and_no_entropy():
    state, batch, noise = setup()
    head = state.target_critics["params"]["Dense_2"]
    level = {"Dense_2": head | {"bias": head["bias"] + jnp.array([[0.0], [0.4]])}}  # on average as high as the first
    state = state._replace(target_critics={"params": state.target_critics["params"] | level})
    batch = batch._replace(terminals=jnp.zeros(32))
    actions = awac.sampled(ARGS, state.actor, batch.next_observations, noise.next_policy)
    values = awac.q(ARGS, state.target_critics, batch.next_observations, actions)
    assert (values[0] < values[1]).any() and (values[0] > values[1]).any()
    metrics = awac.critic_loss(state.critics, ARGS, state, batch, noise)[1]
    wanted = (batch.rewards + 0.99 * jnp.minimum(*values)).mean()
    np.testing.assert_allclose(metrics["q_target"], wanted, rtol=1e-5)


def test_nothing_follows_a_terminal():
    """What stands in next_observations of a terminal row does not matter; a row that time has cut bootstraps."""
    state, batch, noise = setup()
    loss = lambda batch: awac.critic_loss(state.critics, ARGS, state, batch, noise)[0]
    changed = lambda rows: batch._replace(next_observations=batch.next_observations + 100 * rows[:, None])
    assert loss(changed(batch.terminals)) == loss(batch) != loss(changed(1 - batch.terminals))


def test_the_critics_do_not_feel_the_actors_step():
    state, batch, noise = setup()
    step = lambda **flags: update(SMALL(**flags), state, batch, noise, 0)[0].critics
    assert equal(step(), step(temperature=0.01, weights="softmax"))
    assert not equal(step(), state.critics)


def test_after_four_updates_the_targets_are_those_of_four_polyak_steps():
    args = SMALL(tau=0.3)
    state, batch, noise = setup(args)
    targets = state.target_critics
    for step in range(4):
        state, _ = update(args, state, batch, noise, step)
        targets = jax.tree.map(lambda x, target: 0.3 * x + 0.7 * target, state.critics, targets)
    assert equal(state.target_critics, targets, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------ start and use


def test_layers_start_as_pytorch_starts_them():
    """Weights and biases uniform in +-1/sqrt(inputs), deviation 1, two different critics, targets as copies."""
    zeros = Batch(*(jnp.zeros((2, n)) if n else jnp.zeros(2) for n in (17, 6, 0, 17, 0)))
    state = init(Args(), Data(zeros, jnp.zeros(17), jnp.ones(17)), jax.random.key(0))
    for network, inputs in ((state.actor, (17, 256, 256, 256)), (state.critics, (23, 256, 256, 256))):
        assert f"Dense_{len(inputs)}" not in network["params"], "three hidden layers"
        for layer, fan_in in enumerate(inputs):
            parameters = network["params"][f"Dense_{layer}"]
            assert all(0 < jnp.abs(x).max() <= fan_in**-0.5 for x in parameters.values())
            assert jnp.abs(parameters["kernel"]).max() > 0.95 * fan_in**-0.5
    assert equal(state.actor["params"]["log_std"], jnp.zeros(6)) and equal(state.target_critics, state.critics)
    assert all((x[0] != x[1]).any() for x in jax.tree.leaves(state.critics))
    assert equal(state.actor_opt, optax.adam(3e-4).init(state.actor))


def test_training_and_acting_normalise_alike_and_rewards_are_shifted():
    rng = np.random.default_rng(0)

    class Dataset:
        observations = rng.normal(3, 7, size=(50, 4)).astype(np.float32)
        next_observations = rng.normal(3, 7, size=(50, 4)).astype(np.float32)
        actions, rewards = rng.uniform(-1, 1, (50, 2)).astype(np.float32), rng.normal(size=50).astype(np.float32)
        terminals, keep = np.zeros(50, bool), np.arange(50) < 40

    args = SMALL(reward_shift=-1.0)
    data = awac.prepare(args, Dataset)
    kept = Dataset.observations[:40].astype(np.float64)
    np.testing.assert_allclose(data.rows.observations, (kept - kept.mean(0)) / (kept.std(0) + 1e-3), atol=1e-5)
    np.testing.assert_allclose(data.rows.rewards, Dataset.rewards[:40] - 1, rtol=1e-6)
    state = init(args, data, jax.random.key(0))
    mean, _ = awac.pi(args, state.actor, data.rows.observations)
    np.testing.assert_allclose(awac.act(args, state, Dataset.observations[:40]), mean.clip(-1, 1), atol=1e-5)
