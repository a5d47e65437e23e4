"""Statements about MOReL; its model and rollouts are MOPO's (tests/test_mopo.py)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import morel
import numpy as np
import optax
import pytest
import sac_n
from morel import Args, Data, Rows, World
from scipy import stats

SIZES = {"hidden_dims": (8, 8), "batch_size": 32, "num_critics": 5}
MODEL = {"model_hidden_dims": (16, 16), "model_members": 4, "model_elites": 2, "termination": "hopper"}
ARGS = Args(**SIZES, **MODEL, rollout_starts=20, rollout_length=3, rollout_interval=4, real_ratio=0.25, pessimism=1.5)
update = jax.jit(morel.update, static_argnums=0)


@functools.cache
def setup(args=ARGS):
    """Data of healthy hoppers with a model that has learned nothing, a state whose targets differ, a batch, noise."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    observations = jnp.array([1.2, 0, 0, 0, 0]) + 0.05 * normal(50, 5)
    rows = Rows(observations, jnp.tanh(normal(50, 2)), normal(50), observations, jnp.float32(rng.random(50) > 0.8))
    keys = jax.random.split(jax.random.key(0), 4)
    members = jax.vmap(morel.Member((16, 16), 6).init, in_axes=(0, None))(keys, jnp.zeros(7))
    ensemble = morel.Ensemble(members, jnp.full(6, -9.0), jnp.full(6, -5.0))
    dynamics = morel.Dynamics(ensemble, jnp.zeros(7), jnp.ones(7), jnp.array([3, 1]), jnp.array([4.0, 2, 3, 1]))
    data = Data(rows, rows.observations, morel.pessimistic(args, dynamics, rows))
    state, other = (jax.jit(morel.init, static_argnums=0)(args, data, jax.random.key(i)) for i in (0, 1))
    state = state._replace(target_critics=other.critics)
    batch = morel.sample(args, data, jax.random.key(1))
    return data, state, batch, morel.draw(args, batch, jax.random.key(2))


def imagined(world, args=ARGS):
    data, _, _, _ = setup()
    return morel.imagine(args, world, data.rows.observations, data.rows.actions, jax.random.key(0))


def test_disagreement_is_the_largest_distance_of_two_members_next_observations():
    """Not of their rewards, which come last; whatever the order of the members."""
    means = np.float32(np.random.default_rng(0).normal(size=(5, 7, 4)))
    u = [max(np.linalg.norm(x[:3] - y[:3]) for x in means[:, n] for y in means[:, n]) for n in range(7)]
    np.testing.assert_allclose(morel.disagreement(jnp.array(means)), u, rtol=1e-5)
    np.testing.assert_allclose(morel.disagreement(jnp.array(means[[3, 0, 4, 1, 2]])), u, rtol=1e-5)
    rewards = means + np.arange(5)[:, None, None] * np.eye(4, dtype=np.float32)[3]
    np.testing.assert_allclose(morel.disagreement(jnp.array(rewards)), u, rtol=1e-5)
    assert (morel.disagreement(jnp.array(means[[0, 0, 0]])) == 0).all()


@pytest.mark.parametrize("pessimism", [1.0, 3.0])
def test_the_threshold_is_the_datasets_largest_disagreement_over_the_coefficient(pessimism):
    """With coefficient 1 no row of the dataset halts, with another those above."""
    data, *_ = setup()
    args = dataclasses.replace(ARGS, pessimism=pessimism)
    world = morel.pessimistic(args, data.dynamics.dynamics, data.rows)
    u = morel.disagreement(morel.predict(args, world.dynamics, data.rows.observations, data.rows.actions)[0])
    np.testing.assert_allclose(world.threshold, u.max() / pessimism, rtol=1e-5)
    assert world.halt_reward == data.rows.rewards.min() - 200
    halts = imagined(world._replace(threshold=1.0001 * world.threshold))[3][
        "halt"
    ]  # the largest itself, but for rounding
    assert halts.any() == (pessimism > 1) and halts.sum() == (u > 1.0001 * world.threshold).sum()


def test_the_threshold_counts_every_row_of_a_long_dataset(monkeypatch):
    """It is computed in parts of 4096."""
    data, *_ = setup()
    rows = jax.tree.map(lambda x: jnp.concatenate([jnp.repeat(x[:1], 8999, axis=0), 10 + x[:1]]), data.rows)
    args = dataclasses.replace(ARGS, pessimism=1.0)
    last = morel.disagreement(morel.predict(args, data.dynamics.dynamics, rows.observations[-1:], rows.actions[-1:])[0])
    np.testing.assert_allclose(morel.pessimistic(args, data.dynamics.dynamics, rows).threshold, last[0], rtol=1e-5)


def test_what_is_unknown_halts_with_the_worst_reward_and_the_rest_is_the_models():
    data, *_ = setup()
    free, halting = (imagined(data.dynamics._replace(threshold=jnp.array(x))) for x in (jnp.inf, 0.0))
    some = imagined(data.dynamics)
    u = some[3]["u"]
    halted = u > data.dynamics.threshold
    assert halted.any() and not halted.all()
    for following, *_ in (free, halting):
        np.testing.assert_array_equal(following, some[0])  # halting changes the reward and the end alone
    np.testing.assert_array_equal(some[1], jnp.where(halted, data.dynamics.halt_reward, free[1]))
    np.testing.assert_array_equal(some[2], halted | free[2])
    assert halting[2].all() and (halting[1] == data.dynamics.halt_reward).all()
    np.testing.assert_array_equal(free[2], morel.ended(ARGS, free[0]))


def test_without_pessimism_or_disagreement_nothing_halts():
    data, *_ = setup()
    none = dataclasses.replace(ARGS, pessimism=0.0)
    assert morel.pessimistic(none, data.dynamics.dynamics, data.rows).threshold == jnp.inf
    model = data.dynamics.dynamics
    members = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), model.ensemble.members)
    agreed = model._replace(ensemble=model.ensemble._replace(members=members))
    assert not imagined(World(agreed, jnp.array(1e-6), data.dynamics.halt_reward))[3]["halt"].any()


def test_a_rollout_ends_where_it_halts():
    """Nothing follows a halting row, which is stored itself."""
    data, state, batch, noise = setup()
    rows, valid, told = morel.roll(ARGS, state.actor, batch, noise.rollouts)
    valid, halt, ends = (x.reshape(3, 20) for x in (valid, told["halt"], rows.terminals))
    assert (halt[0] > 0).any() and not (valid[1:] & (ends[:-1] > 0)).any()
    assert (valid[0]).all() and (ends[halt > 0] == 1).all()
    buffer, told = morel.refreshed(ARGS, state, batch, noise.rollouts, state.buffer)
    stored = buffer.rows.rewards[: buffer.size]
    np.testing.assert_allclose((stored == data.dynamics.halt_reward).mean(), told["model_halt"], rtol=1e-5)


def test_an_update_is_alpha_actor_targets_critics():
    """Targets move towards the critics before those move; on the dataset alone losses, in that order, are SAC-N's."""
    args = dataclasses.replace(ARGS, real_ratio=1.0)
    data, state, _, _ = setup()
    state = state._replace(buffer=None)
    batch = morel.sample(args, data, jax.random.key(1))
    noise = morel.draw(args, batch, jax.random.key(2))
    after, metrics = update(args, state, batch, noise, 0)
    targets = optax.incremental_update(state.critics, state.target_critics, args.tau)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.target_critics, targets)
    theirs = sac_n.Args(**SIZES, actor_lr=args.actor_lr, alpha_lr=args.alpha_lr)
    before, rows, draws = sac_n.State(*state[:7]), sac_n.Batch(*batch[:5]), sac_n.Noise(*noise[:3])
    _, told = jax.jit(sac_n.update, static_argnums=0)(theirs, before, rows, draws, 0)
    for name in ("alpha_loss", "actor_loss", "entropy", "q_std"):
        close(metrics[name], told[name], rtol=1e-3)
    slope = jax.jit(jax.grad(sac_n.actor_loss, has_aux=True), static_argnums=1)
    grads, _ = slope(state.actor, theirs, before._replace(log_alpha=after.log_alpha), rows, draws)
    updates, _ = optax.adam(args.actor_lr, eps=1e-5).update(grads, state.actor_opt)
    jax.tree.map(close, after.actor, optax.apply_updates(state.actor, updates))
    assert after.log_alpha != state.log_alpha
    between = before._replace(actor=after.actor, log_alpha=after.log_alpha, target_critics=targets)
    slope = jax.jit(jax.value_and_grad(sac_n.critic_loss, has_aux=True), static_argnums=1)
    (loss, _), grads = slope(state.critics, theirs, between, rows, draws)
    close(metrics["critic_loss"], loss)
    updates, _ = optax.adam(args.critic_lr, eps=1e-5).update(grads, state.critic_opt)
    jax.tree.map(close, after.critics, optax.apply_updates(state.critics, updates))


def test_the_networks_density_is_that_of_a_squashed_gaussian_in_its_tails_too():
    data, state, _, _ = setup()
    noise = 4 * jax.random.normal(jax.random.key(0), (50, 2))
    mean, log_std = (np.float64(x) for x in morel.gaussian(ARGS, state.actor, data.rows.observations))
    actions, log_pi = morel.pi(ARGS, state.actor, data.rows.observations, noise)
    raw = mean + np.exp(log_std) * np.float64(noise)
    wanted = stats.norm(mean, np.exp(log_std)).logpdf(raw) - np.log(1 / np.cosh(raw) ** 2)
    np.testing.assert_allclose(actions, np.tanh(raw), atol=1e-5)
    np.testing.assert_allclose(log_pi, wanted.sum(1), rtol=1e-3, atol=1e-3)
