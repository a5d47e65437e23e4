"""Statements about SAC and its way through environments."""

import signal
import subprocess
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sac
import scipy.stats
from conftest import command, run
from sac import Args, Batch

ARGS = Args(hidden_dims=(8, 8), batch_size=32, steps=100)


def setup(seed=0):
    keys = jax.random.split(jax.random.key(seed), 7)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    batch = Batch(normal(0, 32, 3), jnp.tanh(normal(1, 32, 2)), normal(2, 32), normal(3, 32, 3), jnp.zeros(32))
    state = sac.init(ARGS, sac.prepare(ARGS, 3, 2), keys[4])
    return state, batch, sac.draw(ARGS, batch, keys[5])


def test_the_density_is_scipys_normal_through_tanh():
    state, batch, noise = setup()
    actions, log_pi = sac.pi(ARGS, state.actor, batch.observations, noise.policy)
    mean, log_std = (np.asarray(x, np.float64) for x in sac.gaussian(ARGS, state.actor, batch.observations))
    raw = mean + np.exp(log_std) * np.asarray(noise.policy, np.float64)
    expected = scipy.stats.norm.logpdf(raw, mean, np.exp(log_std)) - np.log1p(-(np.tanh(raw) ** 2))
    np.testing.assert_allclose(log_pi, expected.sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actions, np.tanh(raw), atol=1e-5)


def test_the_density_stays_finite_where_tanh_saturates():
    state, batch, _ = setup()
    _, log_pi = sac.pi(ARGS, state.actor, 1000 * batch.observations, 20 * jnp.ones((32, 2)))
    assert jnp.isfinite(log_pi).all()


def test_alpha_rises_when_the_policy_is_too_sure_of_itself():
    for entropy, direction in ((-5.0, 1), (5.0, -1)):  # the target is -2
        gradient = jax.grad(sac.alpha_loss)(jnp.zeros(()), entropy, -2)
        assert jnp.sign(-gradient) == direction


def test_with_alpha_0_the_actor_climbs_the_smaller_critic():
    state, batch, noise = setup()
    state = state._replace(log_alpha=jnp.array(-jnp.inf))
    actions, _ = sac.pi(ARGS, state.actor, batch.observations, noise.policy)
    smaller = sac.q(ARGS, state.critics, batch.observations, actions).min(axis=0)
    loss, _ = sac.actor_loss(state.actor, ARGS, state, batch, noise)
    np.testing.assert_allclose(loss, -smaller.mean(), rtol=1e-5)


def test_a_terminal_ends_the_target_and_entropy_is_paid_for():
    state, batch, noise = setup()
    ended = batch._replace(terminals=jnp.ones(32))
    _, metrics = sac.critic_loss(state.critics, ARGS, state, ended, noise)
    np.testing.assert_allclose(metrics["q_target"], batch.rewards.mean(), rtol=1e-5)
    states = [state._replace(log_alpha=jnp.log(alpha)) for alpha in (1.0, 2.0, 3.0)]
    targets = [sac.critic_loss(state.critics, ARGS, x, batch, noise)[1]["q_target"] for x in states]
    _, log_pi = sac.pi(ARGS, state.actor, batch.next_observations, noise.next_policy)
    np.testing.assert_allclose(np.diff(targets), -0.99 * log_pi.mean(), rtol=1e-3)


def test_an_update_moves_everything_once():
    """By Adam's first step: critics, then the actor under them, alpha by the actor's entropy, and targets last."""
    state, batch, noise = setup()
    after, _ = sac.update(ARGS, state, batch, noise, 0)
    adam, between = optax.adam(ARGS.lr), state._replace(critics=after.critics)
    moved = lambda grads, old: optax.apply_updates(old, adam.update(grads, adam.init(old))[0])
    critics, _ = jax.grad(sac.critic_loss, has_aux=True)(state.critics, ARGS, state, batch, noise)
    actor, told = jax.grad(sac.actor_loss, has_aux=True)(state.actor, ARGS, between, batch, noise)
    alpha = jax.grad(sac.alpha_loss)(state.log_alpha, told["entropy"], -2)
    polyak = jax.tree.map(lambda new, old: 0.005 * new + 0.995 * old, after.critics, state.target_critics)
    wanted = moved(critics, state.critics), moved(actor, state.actor), moved(alpha, state.log_alpha), polyak
    ours = after.critics, after.actor, after.log_alpha, after.target_critics
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_the_ring_reaches_its_capacity_and_forgets_the_oldest():
    buffer = sac.prepare(Args(steps=100, buffer_size=7), 1, 1).buffer
    for i in range(9):
        row = Batch(*(jnp.full(shape, float(i)) for shape in ((1, 1), (1, 1), (1,), (1, 1), (1,))))
        buffer = sac.insert(buffer, row)
        assert buffer.size == min(i + 1, 7)
    assert sorted(buffer.rows.rewards.tolist()) == [2, 3, 4, 5, 6, 7, 8]
    drawn = [sac.sample(Args(batch_size=256), sac.Data(buffer), jax.random.key(i)).rewards for i in range(3)]
    assert set(np.concatenate(drawn).tolist()) == {2, 3, 4, 5, 6, 7, 8}


class Corridor:
    """Counts its steps from 0 at every reset; ends truly after `length` steps, or by time after `limit`."""

    def __init__(self, length, limit):
        self.length, self.limit, self.episode = length, limit, -1

    def reset(self, seed=None):
        self.place, self.episode = 0, self.episode + 1
        return np.array([self.episode, self.place], np.float32), {}

    def step(self, action):
        self.place += 1
        state = np.array([self.episode, self.place], np.float32)
        return state, float(self.place), self.place == self.length, self.place == self.limit, {}


@pytest.mark.parametrize(("length", "limit"), [(3, 99), (99, 3)])
def test_what_is_stored_is_what_happened(length, limit):
    """True successors at terminals and time-outs alike; only a true end is a terminal; no transition spans a reset."""
    args = Args(seeds=(0,), steps=8, num_envs=2, warmup=100, hidden_dims=(8, 8))
    data, keys = sac.prepare(args, 2, 1), jax.random.split(jax.random.key(0), 3)[None]
    state = jax.jit(jax.vmap(sac.init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys[:, 0])
    before = jax.tree.map(np.asarray, state._replace(buffer=None))
    make = lambda: Corridor(length, limit)
    state, metrics, [episodes] = sac.interact(args, data, state, make, keys, 0, 0, 8, lambda n: None)
    rows = jax.tree.map(lambda x: np.asarray(x[0]), state.buffer.rows)
    assert state.buffer.size[0] == 8 and np.abs(rows.actions).max() <= 1 and len(np.unique(rows.actions)) == 8
    np.testing.assert_array_equal(rows.observations[::2], [[0, 0], [0, 1], [0, 2], [1, 0]])
    np.testing.assert_array_equal(rows.next_observations[::2], [[0, 1], [0, 2], [0, 3], [1, 1]])
    np.testing.assert_array_equal(rows.terminals[::2], [0, 0, length == 3, 0])
    np.testing.assert_array_equal(rows.rewards[::2], [1, 2, 3, 1])
    ended, played_on = [[6, 6.0, None]] * 2, [[8, 6.0, None]] * 2  # of both environments, after three steps each
    assert episodes == ended + played_on
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state._replace(buffer=None)), strict=True):
        np.testing.assert_array_equal(a, b, err_msg="no update in the warm-up")
    assert np.isnan(metrics["critic_loss"]).all()


def test_after_the_warm_up_there_is_an_update_an_environment_step():
    args = Args(seeds=(0, 1), steps=40, num_envs=4, warmup=8, hidden_dims=(8, 8), batch_size=4)
    data, keys = (
        sac.prepare(args, 2, 1),
        jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(jax.random.key(0))),
    )
    state = jax.jit(jax.vmap(sac.init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys[:, 0])
    state, _, _ = sac.interact(args, data, state, lambda: Corridor(99, 5), keys, 0, 0, 40, lambda n: None)
    assert state.actor_opt[0].count.tolist() == [32, 32] and state.buffer.size.tolist() == [40, 40]


def test_killed_once_a_run_ends_in_the_same_bytes(pendulum, tmp_path):
    """Buffer, environments and all: they start afresh at every evaluation, so nothing is lost with the process."""
    flags = ("--steps", "600", "--eval-every", "60", "--num-envs", "2", "--warmup", "100")
    undisturbed, killed = (command("sac", pendulum, tmp_path / name, *flags) for name in ("undisturbed", "killed"))
    assert run(undisturbed).returncode == 0
    process = subprocess.Popen(killed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "killed").rglob("*.msgpack")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    contents = lambda name: flax.serialization.msgpack_restore(next((tmp_path / name).rglob("*.msgpack")).read_bytes())
    assert 0 < contents("killed")["step"] < 600
    assert run(killed).returncode == 0
    one, other = contents("undisturbed"), contents("killed")
    assert flax.serialization.msgpack_serialize(one["state"]) == flax.serialization.msgpack_serialize(other["state"])
