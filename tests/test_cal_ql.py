"""Statements about Cal-QL. What it shares with CQL is stated of cql.py and held equal to it here."""

import dataclasses
import functools

import cal_ql
import cql
import dataset as loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cal_ql import Args, Batch, Data
from conftest import write_hdf5

ARGS = Args(hidden_dims=(8, 8), batch_size=32, n_actions=4)
init = jax.jit(cal_ql.init, static_argnums=0)
update = jax.jit(cal_ql.update, static_argnums=0)


@functools.cache
def setup(args=ARGS):
    """A state whose targets differ from its critics, a batch whose returns lie among the values, noise."""
    rng, rows = np.random.default_rng(1), args.batch_size
    batch = Batch(
        observations=rng.normal(size=(rows, 5)),
        actions=np.tanh(rng.normal(size=(rows, 2))),
        rewards=rng.normal(size=rows),
        next_observations=rng.normal(size=(rows, 5)),
        terminals=rng.random(rows) > 0.7,
        mc_returns=rng.normal(size=rows),
    )
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    data = Data(batch, jnp.zeros(5), jnp.ones(5))
    state = init(args, data, jax.random.key(0))._replace(target_critics=init(args, data, jax.random.key(1)).critics)
    return state, batch, cal_ql.draw(args, batch, jax.random.key(1))


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def plain(args: Args) -> cql.Args:
    """CQL's arguments with the same values."""
    names = {field.name for field in dataclasses.fields(cql.Args)}
    return cql.Args(**{name: value for name, value in dataclasses.asdict(args).items() if name in names})


@functools.partial(jax.jit, static_argnums=0)
def rows_of(args, state, batch, noise):
    return cal_ql.choices(args, state, batch, noise, cal_ql.target(args, state, batch, noise)[0])


@functools.partial(jax.jit, static_argnums=0)
def gradient(args, state, rows):
    return jax.grad(cal_ql.critic_loss, has_aux=True)(state.critics, args, state, rows)


# ------------------------------------------------------------------------------------------ the calibration


@pytest.mark.parametrize("flags", [{}, {"lagrange": True, "max_target_backup": True}, {"importance_sampling": False}])
def test_without_a_bound_the_critics_loss_is_cqls(flags):
    args = dataclasses.replace(ARGS, **flags)
    state, batch, noise = setup(args)
    rows = rows_of(args, state, batch._replace(mc_returns=jnp.full(32, -jnp.inf)), noise)
    ours, metrics = gradient(args, state, rows)
    theirs, wanted = jax.jit(jax.grad(cql.critic_loss, has_aux=True), static_argnums=1)(
        state.critics, plain(args), cql.State(*state), cql.Choices(*(getattr(rows, x) for x in cql.Choices._fields))
    )
    assert equal(ours, theirs) and metrics.pop("bound_rate") == 0
    assert metrics.keys() == wanted.keys() and equal(metrics, wanted)


def test_online_without_calibration_an_update_is_cqls():
    """To the byte; offline it differs by the bound alone."""
    args = dataclasses.replace(ARGS, lagrange=True, max_target_backup=True, steps=10)
    state, batch, noise = setup(args)
    theirs = jax.jit(cql.update, static_argnums=0)(
        plain(args), cql.State(*state), cql.Batch(*batch[:5]), cql.Noise(*noise), 10
    )
    ours, metrics = update(args, state, batch, noise, 10)
    assert equal(tuple(ours), tuple(theirs[0])) and metrics.pop("bound_rate") == 0 and equal(metrics, theirs[1])
    unbounded = batch._replace(mc_returns=jnp.full(32, -jnp.inf))
    assert equal(update(args, state, unbounded, noise, 9)[0], ours)
    bounded, metrics = update(args, state, batch, noise, 9)
    assert equal(bounded.actor, ours.actor) and not equal(bounded.critics, ours.critics)
    assert 0.05 < metrics["bound_rate"] < 0.95
    still, _ = update(dataclasses.replace(args, calibrate_online=True), state, batch, noise, 10)
    assert equal(still, bounded)


@pytest.mark.parametrize("importance_sampling", [True, False])
def test_under_a_large_bound_the_policys_actions_count_as_the_bound_and_pass_no_gradient_on(
    importance_sampling, monkeypatch
):
    args = dataclasses.replace(ARGS, importance_sampling=importance_sampling)
    state, batch, noise = setup(args)
    rows = rows_of(args, state, batch._replace(mc_returns=jnp.full(32, 50.0)), noise)
    values = cal_ql.q(args, state.critics, rows.observations[:, None], rows.actions)
    monkeypatch.setattr(cal_ql, "q", lambda args, critics, *_: critics)
    grad, metrics = jax.grad(cal_ql.critic_loss, has_aux=True)(values, args, state, rows)
    assert (grad[..., 5:] == 0).all() and (grad[..., :5] != 0).all()
    assert metrics["q_policy"] == metrics["q_next_policy"] == 50 and metrics["bound_rate"] == 1
    other = values.at[..., 5:].add(-jnp.arange(8.0))
    assert cal_ql.critic_loss(other, args, state, rows)[0] == cal_ql.critic_loss(values, args, state, rows)[0]


def test_neither_the_datas_nor_a_uniform_action_is_ever_bounded(monkeypatch):
    state, batch, noise = setup()
    rows = rows_of(ARGS, state, batch, noise)
    assert (rows.bounds[:, :5] == -jnp.inf).all()
    assert (rows.bounds[:, 5:] == batch.mc_returns[:, None]).all()
    values = cal_ql.q(ARGS, state.critics, rows.observations[:, None], rows.actions)
    monkeypatch.setattr(cal_ql, "q", lambda args, critics, *_: critics)
    _, metrics = cal_ql.critic_loss(values, ARGS, state, rows)
    np.testing.assert_allclose(metrics["q"], values[..., 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["q_uniform"], values[..., 1:5].mean(), rtol=1e-5)
    bounded = np.maximum(values[..., 5:], batch.mc_returns[:, None])
    np.testing.assert_allclose((metrics["q_policy"] + metrics["q_next_policy"]) / 2, bounded.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["bound_rate"], (bounded > values[..., 5:]).mean(), rtol=1e-6)


# ------------------------------------------------------------------------------------------ returns


def test_returns_are_discounted_sums_and_failure_lasts_for_ever():
    ends = np.array([False, False, True])
    rewards = np.array([-5.0, -5.0, 5.0], np.float32)
    wanted = [-5 + 0.99 * (-5 + 0.99 * 5), -5 + 0.99 * 5, 5]
    np.testing.assert_allclose(cal_ql.returns_to_go(rewards, ends, 0.99, -5.0), wanted, rtol=1e-12)
    failed = np.full(3, -5.0, np.float32)
    np.testing.assert_allclose(cal_ql.returns_to_go(failed, ends, 0.99, -5.0), [-500, -500, -500], rtol=1e-12)
    np.testing.assert_allclose(cal_ql.returns_to_go(failed, ends, 0.99)[::-1], [-5, -9.95, -14.8505], rtol=1e-12)


@pytest.mark.parametrize("failure", [None, 0.0])
def test_the_datas_returns_are_those_of_what_is_kept_of_an_episode(tmp_path, failure):
    """Up to a terminal, a time-out row that is left out, or the end; against a plain loop."""
    rng = np.random.default_rng(0)
    replaced = {"rewards": (rng.random(200) > 0.8).astype(np.float32), "terminals": np.arange(200) % 40 == 19}
    data = loader.load(str(write_hdf5(tmp_path / "data.hdf5", **replaced)), "Pendulum-v1")
    keep = data.keep & (np.arange(200) % 7 != 6)
    args = Args(reward_scale=10.0, reward_shift=-5.0, failure_reward=failure)
    prepared = cal_ql.prepare(args, data._replace(keep=keep)).rows
    wanted = []
    for row in np.flatnonzero(keep):
        piece = [row]
        while not data.terminals[piece[-1]] and piece[-1] % 20 != 19 and piece[-1] < 199 and keep[piece[-1] + 1]:
            piece.append(piece[-1] + 1)
        rewards = 10.0 * data.rewards[piece] - 5
        total = rewards @ 0.99 ** np.arange(len(piece))
        wanted.append(-500.0 if failure == 0 and rewards[-1] == -5 else total)
    np.testing.assert_allclose(prepared.mc_returns, wanted, rtol=1e-5)
    np.testing.assert_allclose(prepared.rewards, 10 * data.rewards[keep] - 5, rtol=1e-6)


def test_online_failure_is_known_by_the_reward_as_it_is_stored():
    """Whatever the scale: in float32, not in Python's floats."""
    _, rows, *_ = setup()
    for scale, failure in ((0.1, 0.1), (0.3, 0.7), (10.0, 0.0)):
        args = dataclasses.replace(ARGS, reward_scale=scale, failure_reward=failure)
        column = jnp.full(2, failure, jnp.float32)
        happened = rows.observations[:2], rows.actions[:2], column, rows.observations[2:4], jnp.ones(2)
        stored = cal_ql.experience(args, Data(None, jnp.zeros(5), jnp.ones(5)), *happened)
        buffer = cal_ql.insert(cal_ql.empty(stored, 10), stored)
        returns = jax.jit(cal_ql.settle, static_argnums=0)(args, buffer)[:2]
        np.testing.assert_allclose(returns, stored.rewards / (1 - args.discount), rtol=1e-6)


@pytest.mark.parametrize(
    ("num_envs", "capacity", "failure"), [(1, 60, None), (1, 17, -4.0), (2, 60, -4.0), (3, 17, None)]
)
def test_online_a_row_has_its_return_once_its_episode_is_over(num_envs, capacity, failure):
    """By a terminal or by time, in each of several environments, also when the ring has come round; what still goes on,
    or has ended by time just now, of which the next row tells, bounds nothing. Against a plain loop."""
    rng, steps, scale = np.random.default_rng(0), 20, {"reward_scale": 10.0, "reward_shift": -5.0}
    args = dataclasses.replace(ARGS, num_envs=num_envs, failure_reward=failure and 0.1, **scale)
    data = Data(None, jnp.full(5, 0.3), jnp.full(5, 0.7))
    buffer, happened = cal_ql.empty(setup()[1], capacity), []
    observations = rng.normal(size=(num_envs, 5)).astype(np.float32)
    for _ in range(steps):
        successors, resets = rng.normal(size=(2, num_envs, 5)).astype(np.float32)
        rewards = rng.choice(np.float32([0.1, 0.7]), num_envs)
        terminals, timeouts = rng.random((2, num_envs)) < 0.15
        rows = (observations, np.zeros((num_envs, 2)), rewards, successors, terminals.astype(np.float32))
        buffer = cal_ql.insert(buffer, jax.jit(cal_ql.experience, static_argnums=0)(args, data, *rows))
        happened.append((10 * rewards - 5, terminals, timeouts))
        observations = np.where((terminals | timeouts)[:, None], resets, successors)
    returns = jax.jit(cal_ql.settle, static_argnums=0)(args, buffer)
    for number in range(max(0, steps * num_envs - capacity), steps * num_envs):
        (step, env), total, weight = divmod(number, num_envs), 0.0, 1.0
        while True:
            reward, terminal, timeout = (x[env] for x in happened[step])
            if not terminal and step == steps - 1:
                total = -np.inf
                break
            total, weight, step = total + weight * reward, weight * 0.99, step + 1
            if terminal or timeout:
                total = -4 / (1 - 0.99) if failure is not None and reward < 0 else total
                break
        np.testing.assert_allclose(returns[number % capacity], total, rtol=1e-4, err_msg=f"row {number}")


class Timed:
    """Ends by time after 40 steps; pays 1 a step."""

    def reset(self, seed=0):
        self.rng, self.steps = np.random.default_rng(seed), 0
        return self.rng.normal(size=5), {}

    def step(self, action):
        self.steps += 1
        return self.rng.normal(size=5), 1.0, False, self.steps == 40, {}


@pytest.mark.parametrize("calibrate", [True, False])
def test_online_what_is_over_bounds_the_policys_actions_from_the_next_hundred_on(calibrate):
    """In the loop itself, where two environments' episodes last 80 online steps; at step 200 two are over in each."""
    args = dataclasses.replace(
        ARGS, seeds=(0,), steps=0, online_steps=240, buffer_size=240, num_envs=2, calibrate_online=calibrate, warmup=210
    )
    data = Data(jax.tree.map(jnp.asarray, setup()[1]), jnp.zeros(5), jnp.ones(5))
    state = jax.vmap(init, in_axes=(None, None, 0))(args, data, jax.random.split(jax.random.key(0), 1))
    keys = jax.random.split(jax.random.key(1), 3)[None]
    state, _, _ = cal_ql.interact(args, data, state, Timed, keys, 0, 0, 230, lambda steps: None)
    [returns], number = state.buffer.rows.mc_returns, np.arange(240)
    wanted = np.where(calibrate & (number < 160), (1 - 0.99 ** (40 - number // 2 % 40)) / (1 - 0.99), -np.inf)
    np.testing.assert_allclose(returns[:230], wanted[:230], rtol=1e-5)


def test_an_online_batch_holds_its_share_of_old_rows():
    args = dataclasses.replace(ARGS, offline_ratio=0.3, online_steps=8)
    _, batch, _ = setup()
    data = Data(batch._replace(rewards=jnp.zeros(32)), jnp.zeros(5), jnp.ones(5))
    buffer = cal_ql.insert(cal_ql.empty(batch, 8), jax.tree.map(lambda x: x[:1] * 0 + 1, batch))
    drawn = cal_ql.sample(args, data._replace(buffer=buffer), jax.random.key(0))
    assert (drawn.rewards == 0).sum() == int(32 * 0.3) and (drawn.rewards == 1).sum() == 32 - int(32 * 0.3)


# ------------------------------------------------------------------------------------------ networks


def test_every_layer_starts_orthogonal():
    """Of both networks, output layers included; biases at 0."""
    zeros, args = jnp.zeros, Args(critic_hidden_dims=(256,) * 5)
    batch = Batch(zeros((2, 17)), zeros((2, 6)), zeros(2), zeros((2, 17)), zeros(2), zeros(2))
    state = init(args, Data(batch, zeros(17), jnp.ones(17)), jax.random.key(0))
    actor, critics = state.actor["params"], state.critics["params"]
    layers = [actor[f"Dense_{i}"] for i in range(4)]
    layers += [jax.tree.map(lambda x, k=k: x[k], critics[f"Dense_{i}"]) for i in range(6) for k in range(2)]
    assert len(actor) == 6 and len(critics) == 6
    for layer in layers:
        small = layer["kernel"] if np.less(*layer["kernel"].shape) else layer["kernel"].T
        np.testing.assert_allclose(small @ small.T, 2 * np.eye(len(small)), atol=1e-4)
        assert (layer["bias"] == 0).all()
    assert (actor["log_std_multiplier"], actor["log_std_offset"]) == (1, -1)
    assert equal(state.critics, state.target_critics) and (state.log_alpha, state.log_alpha_prime) == (0, 1)
    assert all((x[0] != x[1]).any() for name, x in ((n, v["kernel"]) for n, v in critics.items()))
