"""Statements about RAVL; its losses are EDAC's (test_edac.py), its model and rollouts MOPO's (test_mopo.py)."""

import dataclasses
import functools
from types import SimpleNamespace

import edac
import gymnasium
import jax
import jax.numpy as jnp
import mopo
import numpy as np
import pytest
import ravl
from conftest import where_all_learn_at_once
from ravl import Args, Data, Rows

SIZES = {"hidden_dims": (8, 8), "batch_size": 32, "num_critics": 5}
MODEL = {"model_hidden_dims": (16, 16), "model_members": 4, "model_elites": 2, "termination": "hopper"}
ARGS = Args(**SIZES, **MODEL, rollout_starts=20, rollout_length=3, rollout_interval=4, real_ratio=0.25)
update = jax.jit(ravl.update, static_argnums=0)


@functools.cache
def setup(args=ARGS, seed=0):
    """Data of healthy hoppers with a model that has learned nothing, a state whose targets differ, a batch, noise."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    observations = jnp.eye(11)[0] * 1.25 + 0.02 * normal(50, 11)
    rows = Rows(observations, jnp.tanh(normal(50, 3)), normal(50), observations, jnp.float32(rng.random(50) > 0.8))
    keys = jax.random.split(jax.random.key(seed), 4)
    members = jax.vmap(ravl.Member((16, 16), 12).init, in_axes=(0, None))(keys, jnp.zeros(14))
    ensemble = ravl.Ensemble(members, jnp.full(12, -9.0), jnp.full(12, -4.0))
    dynamics = ravl.Dynamics(ensemble, jnp.zeros(14), jnp.ones(14), jnp.array([3, 1]), jnp.array([4.0, 2, 3, 1]))
    data = Data(rows, rows.observations, None if args.simulator else dynamics)
    state = jax.jit(ravl.init, static_argnums=0)(args, data, jax.random.key(seed))
    # Heads that begin near 0 give every action the same value: all parameters move.
    move = lambda network: jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), network)
    state = state._replace(**{name: move(getattr(state, name)) for name in ("actor", "critics", "target_critics")})
    batch = ravl.sample(args, data, jax.random.key(1))
    return data, state, batch, ravl.draw(args, batch, jax.random.key(2))


def equal(a, b):
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_on_the_dataset_alone_it_is_edac_and_without_eta_sac_n(eta):
    """To the bit, and nothing is imagined."""
    args = dataclasses.replace(ARGS, real_ratio=1.0, eta=eta)
    _, state, batch, noise = setup(args)
    assert state.buffer is None and len(batch.rewards) == 32
    ours, _ = update(args, state, batch, noise, 0)
    theirs, _ = jax.jit(edac.update, static_argnums=0)(
        edac.Args(**SIZES, eta=eta), edac.State(*state[:7]), edac.Batch(*batch[:5]), edac.Noise(*noise[:3]), 0
    )
    assert equal(ours[:7], tuple(theirs))


def test_what_it_learns_from_is_the_dataset_and_the_rollouts():
    """An update on the mixed rows equals one whose batch they are."""
    _, state, batch, noise = setup()
    after, metrics = update(ARGS, state, batch, noise, 0)
    rows = ravl.mixed(ARGS, after.buffer, batch, noise.places)
    assert len(rows.rewards) == 32 and (rows.rewards[:8] == batch.rewards).all()
    alone = dataclasses.replace(ARGS, real_ratio=1.0)
    again, same = update(alone, state._replace(buffer=None), ravl.Batch(*rows), noise, 0)
    for x, y in zip(jax.tree.leaves(after[:7]), jax.tree.leaves(again[:7]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["critic_loss"], same["critic_loss"], rtol=1e-5)


def test_a_rollout_has_the_models_rewards_and_no_penalty():
    data, _, _, _ = setup()
    repeat = lambda x: jnp.repeat(x[:1], 4000, axis=0)
    given = repeat(data.rows.observations), repeat(data.rows.actions)
    following, rewards, ends, told = ravl.imagine(ARGS, data.dynamics, *given, jax.random.key(0))
    means, log_vars = ravl.predict(ARGS, data.dynamics, given[0][:1], given[1][:1])
    elites = data.dynamics.elites
    assert told.keys() == {"reward"} and (told["reward"] == rewards).all()
    sample = jnp.concatenate([following, rewards[:, None]], axis=1)
    np.testing.assert_allclose(sample.mean(0), means[elites, 0].mean(0), atol=0.02)
    np.testing.assert_allclose(sample.var(0), mopo.total_variance(means[elites, 0], log_vars[elites, 0]), rtol=0.15)
    np.testing.assert_array_equal(ends, ravl.ended(ARGS, following))


def test_only_elites_have_a_say():
    data, _, _, _ = setup()
    given = data.rows.observations, data.rows.actions, jax.random.key(0)
    before = ravl.imagine(ARGS, data.dynamics, *given)
    for member, same in ((0, True), (2, True), (1, False), (3, False)):
        members = jax.tree.map(lambda x, i=member: x.at[i].add(1.0), data.dynamics.ensemble.members)
        changed = data.dynamics._replace(ensemble=data.dynamics.ensemble._replace(members=members))
        assert equal(before, ravl.imagine(ARGS, changed, *given)) == same


def test_alpha_rises_where_the_entropy_is_below_its_target():
    """Which is minus the dimension of an action unless it is given."""
    _, state, batch, noise = setup(dataclasses.replace(ARGS, real_ratio=1.0))
    alpha, gradient = {}, {}
    for target in (None, -3.0, -2.0, -50.0, 50.0):
        args = dataclasses.replace(ARGS, real_ratio=1.0, target_entropy=target)
        after, metrics = update(args, state, batch, noise, 0)
        alpha[target], gradient[target] = float(metrics["alpha"]), float(after.alpha_opt[0].mu)
    assert gradient[None] == gradient[-3.0] != gradient[-2.0] and alpha[-50.0] < 1 < alpha[50.0]


def test_the_effective_penalty_is_the_mean_less_the_smallest_critic():
    _, state, batch, noise = setup(dataclasses.replace(ARGS, real_ratio=1.0))
    args = dataclasses.replace(ARGS, real_ratio=1.0)
    _, told = ravl.critic_loss(state.critics, args, state, Rows(*batch[:5]), noise)
    values = ravl.q(args, state.critics, batch.observations, batch.actions)
    np.testing.assert_allclose(told["q_gap"], (values.mean(0) - values.min(0)).mean(), rtol=1e-5)
    agreed = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), state.critics)
    assert ravl.critic_loss(agreed, args, state, Rows(*batch[:5]), noise)[1]["q_gap"] < 1e-5


# ------------------------------------------------------------------------------------------ the true dynamics


@functools.cache
def steps(name):
    """Real steps with random actions: observations, actions, next observations, rewards, ends."""
    env, rng, rows = gymnasium.make(name), np.random.default_rng(0), []
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        for _ in range(30):
            action = np.float32(rng.uniform(-1, 1, env.action_space.shape))
            following, reward, ended, _, _ = env.step(action)
            if np.abs(observation).max() < 9.99:  # velocities are clipped at 10
                rows.append((np.float32(observation), action, following, reward, ended))
            observation = following
            if ended:
                break
    return tuple(map(np.array, zip(*rows, strict=True)))


@pytest.mark.parametrize("name", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Walker2d-v4"])
def test_the_simulator_repeats_real_steps_from_their_observations(name):
    observations, actions, following, rewards, ends = steps(name)
    ours = ravl.simulate(name, observations, actions)
    np.testing.assert_allclose(ours[0], following, atol=1e-4)
    np.testing.assert_allclose(ours[1], rewards, atol=0.08 if name.startswith("Ant") else 1e-4)
    np.testing.assert_array_equal(ours[2], ends)


@pytest.mark.parametrize("name", ["Pendulum-v1", "Walker2d-v5", "NoSuchHopper-v9"])
def test_a_simulator_that_does_not_fit_the_data_is_refused(name, capsys):
    data, _, _, _ = setup()
    columns = {x: np.asarray(getattr(data.rows, x)) for x in Rows._fields}
    with pytest.raises(SystemExit):
        ravl.prepare(dataclasses.replace(ARGS, simulator=name), SimpleNamespace(**columns, keep=slice(None)))
    assert f"--simulator {name}" in capsys.readouterr().err


def test_a_simulator_of_other_actions_is_refused(capsys):
    """Walker2d and HalfCheetah have observations of one size; here the actions are too few."""
    columns = {"observations": np.zeros((4, 17)), "actions": np.zeros((4, 5)), "rewards": np.zeros(4)}
    columns |= {"next_observations": np.zeros((4, 17)), "terminals": np.zeros(4)}
    with pytest.raises(SystemExit):
        ravl.prepare(dataclasses.replace(ARGS, simulator="Walker2d-v5"), SimpleNamespace(**columns, keep=slice(None)))
    assert "other observations or actions" in capsys.readouterr().err


def test_where_the_simulation_is_unstable_a_step_is_no_number():
    """MuJoCo begins anew there by itself, which would pass for a step to the start."""
    observations, actions, *_ = (x[:3].copy() for x in steps("HalfCheetah-v5"))
    observations[1, -1] = 1e12
    following, rewards, ends = ravl.simulate("HalfCheetah-v5", observations, actions)
    assert np.isfinite(following).all(axis=1).tolist() == np.isfinite(rewards).tolist() == [True, False, True]


def test_a_step_of_the_simulator_does_not_depend_on_those_before():
    observations, actions, *_ = steps("Hopper-v5")
    forth, back = (
        ravl.simulate("Hopper-v5", observations, actions),
        ravl.simulate("Hopper-v5", observations[::-1], actions[::-1]),
    )
    for x, y in zip(forth, back, strict=True):
        assert x.tobytes() == y[::-1].tobytes()


def test_training_in_the_simulator_runs_in_one_program_and_chunks_do_not_show(monkeypatch):
    """No model; rollouts are real steps; seeds alone, in turn and together."""
    args = dataclasses.replace(ARGS, simulator="Hopper-v5", rollout_starts=4)
    data, _, _, _ = setup(args)
    keys = jax.random.split(jax.random.key(0), 2)
    start = jax.jit(jax.vmap(functools.partial(ravl.init, args), in_axes=(None, 0)))
    once, metrics = ravl.train(args, data, start(data, keys), keys, 0, 8)
    half, _ = ravl.train(args, data, start(data, keys), keys, 0, 3)
    twice, _ = ravl.train(args, data, half, keys, 3, 5)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(*map(jax.tree.leaves, (once, twice)), strict=True))
    buffer = jax.tree.map(lambda x: np.asarray(x[0]), once.buffer)
    rows = jax.tree.map(lambda x: x[: buffer.size], buffer.rows)
    assert 8 <= buffer.size <= 24
    following, rewards, ends = ravl.simulate("Hopper-v5", rows.observations, rows.actions)
    np.testing.assert_allclose(rows.next_observations, following, atol=1e-4)
    np.testing.assert_allclose(rows.rewards, rewards, atol=1e-4)
    np.testing.assert_array_equal(rows.terminals, ends)
    assert "model_error" not in metrics and np.isfinite(metrics["model_reward"]).all()
    train = where_all_learn_at_once(monkeypatch, ravl, "train", (0, 5))
    together, _ = train(args, data, start(data, keys), keys, 0, 8)
    for x, y in zip(jax.tree.leaves(once.actor), jax.tree.leaves(together.actor), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
