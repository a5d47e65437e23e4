"""Statements about RLPD."""

import dataclasses
import functools
import json
import signal
import subprocess
import time
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlpd
import sac
from conftest import command, run
from rlpd import Args, Batch, Data, Noise

ARGS = Args(hidden_dims=(8, 8), batch_size=8, utd=3, num_critics=4, online_steps=50, warmup=10)
update = jax.jit(rlpd.update, static_argnums=0)


def setup(args=ARGS, seed=0):
    """A state whose targets differ from its critics, a batch of all critic steps, noise."""
    rng, rows = np.random.default_rng(seed), args.utd * args.batch_size
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    ends = jnp.float32(rng.random(rows) > 0.7)
    batch = Batch(normal(rows, 5), jnp.tanh(normal(rows, 2)), normal(rows), normal(rows, 5), ends)
    state = jax.jit(rlpd.init, static_argnums=0)(args, Data(batch), jax.random.key(seed))
    move = lambda network: jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), network)
    state = state._replace(**{name: move(getattr(state, name)) for name in ("actor", "critics", "target_critics")})
    return state, batch, rlpd.draw(args, batch, jax.random.key(seed + 1))


def target(args, state, batch, noise, subset):
    return rlpd.critic_loss(state.critics, args, state, batch, noise, subset)[1]["q_target"]


def equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance) if tolerance else np.testing.assert_array_equal(x, y)


def differ(a, b):
    return all((x != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 1])
def test_every_batch_of_an_update_holds_the_datasets_share(ratio):
    """And of the ring only what is filled."""
    args = Args(batch_size=256, utd=5, offline_ratio=ratio, online_steps=50)
    row = lambda n, value: Batch(*(jnp.full(shape, value) for shape in ((n, 3), (n, 1), (n,), (n, 3), (n,))))
    buffer = rlpd.empty(row(1, 0.0), 50)
    buffer = buffer._replace(rows=jax.tree.map(lambda x: x + jnp.nan, buffer.rows))
    buffer = rlpd.insert(buffer, row(7, 1.0))
    batch = jax.jit(rlpd.sample, static_argnums=0)(args, Data(row(30, 0.0), buffer), jax.random.key(0))
    assert batch.rewards.shape == (5 * 256,) and batch.observations.shape == (5 * 256, 3)
    for x in batch:
        np.testing.assert_array_equal((x.reshape(5, 256, -1)[..., 0] == 0).sum(axis=1), 256 * ratio)
        assert jnp.isfinite(x).all()
    offline = rlpd.sample(args, Data(row(30, 0.0)), jax.random.key(0))
    assert offline.rewards.shape == (5 * 256,) and (offline.rewards == 0).all()


def test_rows_are_drawn_anew_for_every_batch_and_stay_whole():
    args, count = Args(batch_size=64, utd=4), jnp.arange(500.0)
    rows = Batch(count[:, None], count[:, None], count, count[:, None], count)
    buffer = rlpd.insert(rlpd.empty(rows, 500), jax.tree.map(lambda x: x + 500, rows))
    batch = rlpd.sample(args, Data(rows, buffer), jax.random.key(0))
    for x in batch:
        np.testing.assert_array_equal(x.reshape(-1), batch.rewards)
    batches = batch.rewards.reshape(4, 64)
    assert len(jnp.unique(batches)) > 200 and (batches[0] != batches[1]).mean() > 0.9


def test_with_two_critics_one_step_and_no_layer_norm_the_critics_learn_as_sacs():
    """Density, target, loss, critics and targets after the update; the order of the subset does not matter."""
    args = dataclasses.replace(ARGS, utd=1, num_critics=2, layer_norm=False)
    state, batch, noise = setup(args)
    names = {"mean": "Dense_2", "log_std": "Dense_3", "head": "Dense_2"}
    renamed = lambda network: {"params": {names.get(k, k): v for k, v in network["params"].items()}}
    theirs = [renamed(x) for x in (state.actor, state.critics, state.target_critics)]
    adam = sac.optax.adam(3e-4)
    theirs = sac.State(*theirs, state.log_alpha, *map(adam.init, (*theirs[:2], state.log_alpha)), None)
    their_args, drawn = sac.Args(hidden_dims=(8, 8)), sac.Noise(noise.next_policy[0], noise.policy)
    equal(
        rlpd.pi(args, state.actor, batch.observations, noise.policy),
        sac.pi(their_args, theirs.actor, batch.observations, noise.policy),
    )
    wanted, after = sac.critic_loss(theirs.critics, their_args, theirs, batch, drawn)[1], []
    for subset in ([0, 1], [1, 0]):
        noise = noise._replace(subset=jnp.array([subset]))
        ours, metrics = update(args, state, batch, noise, 0)
        assert all(np.isclose(metrics[name], wanted[name], rtol=1e-5) for name in wanted)
        after.append((renamed(ours.critics), renamed(ours.target_critics)))
    equal(after[0], after[1])
    their_state, _ = jax.jit(sac.update, static_argnums=0)(their_args, theirs, batch, drawn, 0)
    equal(after[0], (their_state.critics, their_state.target_critics), rtol=1e-4, atol=1e-6)


def test_an_update_is_its_critic_steps_one_after_another():
    """Each on its own batch, noise and subset; here with an actor and an alpha that stand still."""
    args = dataclasses.replace(ARGS, actor_lr=0.0, alpha_lr=0.0)
    state, batch, noise = setup(args)
    once, _ = update(args, state, batch, noise, 0)
    for i in range(3):
        part = jax.tree.map(lambda x, i=i: x.reshape(3, 8, *x.shape[1:])[i], batch)
        drawn = Noise(noise.next_policy[i : i + 1], noise.subset[i : i + 1], noise.policy)
        state, _ = update(dataclasses.replace(args, utd=1), state, part, drawn, i)
    equal((once.critics, once.target_critics), (state.critics, state.target_critics), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("utd", [1, 3])
def test_targets_follow_every_critic_step_and_the_actor_moves_once(utd):
    args = dataclasses.replace(ARGS, utd=utd, critic_lr=0.0, tau=0.5)
    state, batch, noise = setup(args)
    after, _ = update(args, state, batch, noise, 0)
    counts = (after.critic_opt[0].count, after.actor_opt[0].count, after.alpha_opt[0].count)
    assert counts == (utd, 1, 1)
    # Critics that stand still: each step leaves half of the distance to them.
    left = jax.tree.map(lambda x, y: x + 0.5**utd * (y - x), state.critics, state.target_critics)
    equal(after.target_critics, left, rtol=1e-5, atol=1e-6)


def test_the_actor_learns_from_the_last_batch_alone_and_moves_nothing_else():
    args = dataclasses.replace(ARGS, critic_lr=0.0, alpha_lr=0.0, tau=0.0)
    state, batch, noise = setup(args)
    after, metrics = update(args, state, batch, noise, 0)
    assert differ(after.actor, state.actor)
    for name in ("critics", "target_critics", "log_alpha"):
        equal(getattr(after, name), getattr(state, name))
    earlier = batch._replace(observations=batch.observations.at[:16].add(1.0))
    equal(update(args, state, earlier, noise, 0)[0].actor, after.actor)
    later = batch._replace(observations=batch.observations.at[16:].add(1.0))
    assert differ(update(args, state, later, noise, 0)[0].actor_opt[0].mu, after.actor_opt[0].mu)
    last = jax.tree.map(lambda x: x[16:], batch)
    np.testing.assert_allclose(
        metrics["actor_loss"], rlpd.actor_loss(state.actor, args, state, last, noise.policy)[0], rtol=1e-5
    )


def test_with_alpha_0_the_actor_climbs_the_mean_of_all_critics():
    state, batch, noise = setup(dataclasses.replace(ARGS, utd=1))
    state = state._replace(log_alpha=jnp.array(-jnp.inf))
    actions, _ = rlpd.pi(ARGS, state.actor, batch.observations, noise.policy)
    values = rlpd.q(ARGS, state.critics, batch.observations, actions)
    assert values.shape == (4, 8)
    loss, _ = rlpd.actor_loss(state.actor, ARGS, state, batch, noise.policy)
    np.testing.assert_allclose(loss, -values.mean(), rtol=1e-5)


@pytest.mark.parametrize("backup_entropy", [True, False])
def test_a_terminal_rows_target_is_its_reward(backup_entropy):
    """Whatever the networks say of what stands behind it."""
    args = dataclasses.replace(ARGS, utd=1, backup_entropy=backup_entropy)
    state, batch, noise = setup(args)
    state = state._replace(target_critics=jax.tree.map(lambda x: 1e6 * x, state.target_critics))
    ended = batch._replace(terminals=jnp.ones(8))
    assert target(args, state, ended, noise.next_policy[0], noise.subset[0]) == ended.rewards.mean()


def test_the_targets_entropy_is_a_choice():
    state, batch, noise = setup(dataclasses.replace(ARGS, utd=1))
    state = state._replace(log_alpha=jnp.log(0.3))
    paid, unpaid = (
        target(dataclasses.replace(ARGS, backup_entropy=flag), state, batch, noise.next_policy[0], noise.subset[0])
        for flag in (True, False)
    )
    _, log_pi = rlpd.pi(ARGS, state.actor, batch.next_observations, noise.next_policy[0])
    np.testing.assert_allclose(paid - unpaid, -0.99 * 0.3 * ((1 - batch.terminals) * log_pi).mean(), rtol=1e-4)


def test_the_subset_has_distinct_members_and_reaches_all():
    args = dataclasses.replace(ARGS, utd=50, num_critics=5, subset_size=2, batch_size=1)
    _, _, noise = setup(args)
    assert noise.subset.shape == (50, 2) and noise.next_policy.shape == (50, 1, 2) and noise.policy.shape == (1, 2)
    assert (noise.subset[:, 0] != noise.subset[:, 1]).all()
    assert len(jnp.unique(noise.subset, axis=0)) > 10, "drawn anew for every critic step"
    assert set(np.asarray(noise.subset).flat) == set(range(5))


def test_only_the_subsets_targets_are_asked_and_their_smallest_counts():
    state, batch, noise = setup(dataclasses.replace(ARGS, utd=1, subset_size=1, backup_entropy=False))
    args, drawn = dataclasses.replace(ARGS, backup_entropy=False), noise.next_policy[0]
    lame = jax.tree.map(lambda x: x.at[3].set(jnp.nan), state.target_critics)
    lame = state._replace(target_critics=lame)
    assert jnp.isfinite(target(args, lame, batch, drawn, jnp.array([0, 2])))
    assert jnp.isnan(target(args, lame, batch, drawn, jnp.array([0, 3])))
    next_actions, _ = rlpd.pi(args, state.actor, batch.next_observations, drawn)
    next_q = rlpd.q(args, state.target_critics, batch.next_observations, next_actions)[jnp.array([0, 2])].min(axis=0)
    y = batch.rewards + 0.99 * (1 - batch.terminals) * next_q
    np.testing.assert_allclose(target(args, state, batch, drawn, jnp.array([0, 2])), y.mean(), rtol=1e-4)


def test_layer_norm_bounds_what_a_critic_says_of_any_action():
    state, batch, _ = setup(dataclasses.replace(ARGS, utd=1))
    last, head = state.critics["params"]["LayerNorm_1"], state.critics["params"]["head"]
    norm = functools.partial(jnp.linalg.norm, axis=1)
    features = jnp.sqrt(8.0) * jnp.abs(last["scale"]).max(axis=1) + norm(last["bias"])  # after LayerNorm
    bound = norm(head["kernel"][..., 0]) * features + jnp.abs(head["bias"][:, 0])  # [4]
    far = 1e4 * batch.actions
    assert (jnp.abs(rlpd.q(ARGS, state.critics, batch.observations, far)) <= bound[:, None]).all()
    assert all(len(x) == 4 for x in last.values()), "a LayerNorm for every member"
    free = dataclasses.replace(ARGS, layer_norm=False)
    assert (jnp.abs(rlpd.q(free, state.critics, batch.observations, far)) > bound[:, None]).any()


@pytest.mark.parametrize(("gap", "direction"), [(-1.0, 1), (1.0, -1)])
def test_alpha_rises_when_the_policy_is_too_sure_of_itself(gap, direction):
    """The target is minus half the action's dimensions."""
    args = dataclasses.replace(ARGS, utd=1, actor_lr=0.0)
    state, batch, noise = setup(args)
    head = state.actor["params"]["log_std"]
    entropy = lambda bias: -rlpd.pi(args, actor(bias), batch.observations, noise.policy)[1].mean()
    actor = lambda bias: {"params": state.actor["params"] | {"log_std": head | {"bias": head["bias"] + bias}}}
    shift = min(np.linspace(-6, 2, 400), key=lambda bias: abs(entropy(bias) - (-1 + gap)))
    assert abs(entropy(shift) - (-1 + gap)) < 0.1
    after, _ = update(args, state._replace(actor=actor(shift)), batch, noise, 0)
    assert jnp.sign(after.log_alpha) == direction


def test_rewards_are_shifted_in_the_dataset_and_online_alike():
    args, rng = dataclasses.replace(ARGS, reward_shift=-1.0), np.random.default_rng(0)
    columns = {name: rng.normal(size=(6, 3)) for name in ("observations", "next_observations")}
    rewards, keep = rng.normal(size=6), np.arange(6) < 4
    edge = np.array([[-1.0], [1.0], [0.5], [0], [0], [0]])
    data = SimpleNamespace(**columns, actions=edge, rewards=rewards, terminals=np.zeros(6), keep=keep)
    rows = rlpd.prepare(args, data).rows
    np.testing.assert_allclose(rows.rewards, rewards[:4] - 1, rtol=1e-6)
    np.testing.assert_allclose(rows.observations, columns["observations"][:4], rtol=1e-6)
    np.testing.assert_allclose(rows.actions[:, 0], [-1 + 1e-5, 1 - 1e-5, 0.5, 0], atol=1e-7)
    online = rlpd.experience(args, None, *(columns["observations"],) * 2, rewards, *(columns["observations"],) * 2)
    np.testing.assert_allclose(online.rewards, rewards - 1)


def test_it_explores_uniformly_at_first_and_then_as_the_policy():
    state, _, _ = setup()
    state = state._replace(actor=jax.tree.map(lambda x: 0 * x, state.actor))
    state.actor["params"]["mean"]["bias"] = jnp.array([2.0, -2.0])  # and a standard deviation of 1
    explore = jax.jit(functools.partial(rlpd.explore, ARGS))
    early, late = (explore(state, jnp.zeros((2000, 5)), jax.random.key(0), step) for step in (9, 10))
    np.testing.assert_allclose(early.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(early.var(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(jnp.arctanh(late).mean(axis=0), [2, -2], atol=0.1)
    np.testing.assert_allclose(jnp.arctanh(late).std(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(rlpd.act(ARGS, state, jnp.zeros((1, 5))), jnp.tanh(jnp.array([[2.0, -2.0]])), rtol=1e-5)


ONLINE = ("--steps", "0", "--online-steps", "300", "--eval-every", "30", "--warmup", "20", "--seeds", "0", "1")


def outcome(out):
    """State as bytes, step and evaluations of a run."""
    content = flax.serialization.msgpack_restore(next(out.rglob("checkpoint.msgpack")).read_bytes())
    log = [[x["step"], x["returns"], x["metrics"], x["episodes"]] for x in json.loads(content["log"])]
    return flax.serialization.msgpack_serialize(content["state"]), content["step"], log


@pytest.fixture(scope="module")
def undisturbed(pendulum, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done = run(command("rlpd", pendulum, out, *ONLINE))
    assert done.returncode == 0, done.stderr
    return out


def test_without_pre_training_it_begins_in_the_environment(undisturbed):
    """An update after every step from the warm-up on, of two critic steps each, and everything is kept."""
    _, step, log = outcome(undisturbed)
    assert step == 300 and [entry[0] for entry in log] == list(range(0, 301, 30))
    assert log[0][2] == {} and all(np.isfinite(log[1][2]["critic_loss"] + log[-1][2]["actor_loss"]))
    state = flax.serialization.msgpack_restore(next(undisturbed.rglob("checkpoint.msgpack")).read_bytes())["state"]
    assert state["critic_opt"]["0"]["count"].tolist() == [560, 560]
    assert state["actor_opt"]["0"]["count"].tolist() == [280, 280]
    assert state["buffer"]["size"].tolist() == [300, 300]
    assert (state["buffer"]["rows"]["observations"][0] != state["buffer"]["rows"]["observations"][1]).any()


def test_killed_online_a_run_ends_in_the_same_bytes(undisturbed, pendulum, tmp_path):
    arguments = command("rlpd", pendulum, tmp_path, *ONLINE)
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (list(tmp_path.rglob("*.msgpack")) and outcome(tmp_path)[1] >= 60):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 60 <= outcome(tmp_path)[1] < 300
    assert run(arguments).returncode == 0
    assert outcome(tmp_path) == outcome(undisturbed)
