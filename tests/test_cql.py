"""Statements about CQL."""

import dataclasses
import functools
import os
import sys

import cql
import dataset as loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sac
import scipy.stats
from conftest import ALGORITHMS, run, write_hdf5
from cql import Args, Batch, Data

ARGS = Args(hidden_dims=(8, 8), batch_size=32, n_actions=4)
init = jax.jit(cql.init, static_argnums=0)
update = jax.jit(cql.update, static_argnums=0)


@functools.cache
def networks(critic_hidden_dims=None, second_critic_layers=None):
    """A state whose targets differ from its critics."""
    args = dataclasses.replace(ARGS, critic_hidden_dims=critic_hidden_dims, second_critic_layers=second_critic_layers)
    row = Batch(jnp.zeros((1, 5)), jnp.zeros((1, 2)), jnp.zeros(1), jnp.zeros((1, 5)), jnp.zeros(1))
    state = init(args, Data(row, jnp.zeros(5), jnp.ones(5), 1.0), jax.random.key(0))
    rng = np.random.default_rng(0)  # heads that begin near 0 give every action the same value: all parameters move
    move = lambda network: jax.tree.map(lambda x: x + jnp.float32(0.3 * rng.normal(size=x.shape)), network)
    names = ("actor", "critics", "target_critics")
    return state._replace(**{name: move(getattr(state, name)) for name in names})


def setup(args=ARGS):
    """A state, a batch, noise."""
    rng, rows = np.random.default_rng(1), args.batch_size
    batch = Batch(
        observations=rng.normal(size=(rows, 5)),
        actions=np.tanh(rng.normal(size=(rows, 2))),
        rewards=rng.normal(size=rows),
        next_observations=rng.normal(size=(rows, 5)),
        terminals=rng.random(rows) > 0.7,
    )
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    noise = cql.draw(args, batch, jax.random.key(1))
    return networks(args.critic_hidden_dims, args.second_critic_layers), batch, noise


@functools.partial(jax.jit, static_argnums=0)
def rows_of(args, state, batch, noise):
    return cql.choices(args, state, batch, noise, cql.target(args, state, batch, noise)[0])


@functools.partial(jax.jit, static_argnums=0)
def gradient(args, state, rows):
    return jax.grad(cql.critic_loss, has_aux=True)(state.critics, args, state, rows)


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def constant(critics, value):
    """Critics that say `value` of everything."""
    head = sorted(critics["params"])[-1]
    last = {"kernel": 0 * critics["params"][head]["kernel"], "bias": jnp.full((2, 1), value)}
    return {"params": critics["params"] | {head: last}}


# ------------------------------------------------------------------------------------------ the gap


def test_without_the_gap_the_critics_are_sacs_without_entropy():
    args = dataclasses.replace(ARGS, cql_alpha=0.0)
    state, batch, noise = setup(args)
    ours, metrics = gradient(args, state, rows_of(args, state, batch, noise))
    actions, _ = cql.pi(args, state.actor, batch.next_observations, noise.next_policy)
    next_q = sac.q(sac.Args(hidden_dims=(8, 8)), state.target_critics, batch.next_observations, actions).min(axis=0)
    y = batch.rewards + 0.99 * (1 - batch.terminals) * next_q

    def sacs(critics):
        values = sac.q(sac.Args(hidden_dims=(8, 8)), critics, batch.observations, batch.actions)
        return ((values - y) ** 2).mean(axis=1).sum()

    loss, theirs = jax.jit(jax.value_and_grad(sacs))(state.critics)
    np.testing.assert_allclose(2 * metrics["td_loss"], loss, rtol=1e-5)
    assert equal(ours, theirs, rtol=1e-4, atol=1e-6)


def test_with_backup_entropy_the_target_is_sacs():
    args = dataclasses.replace(ARGS, backup_entropy=True, alpha_multiplier=0.7)
    state, batch, noise = setup(args)
    y, _ = cql.target(args, state, batch, noise)
    plain, _ = cql.target(dataclasses.replace(args, backup_entropy=False), state, batch, noise)
    _, log_pi = cql.pi(args, state.actor, batch.next_observations, noise.next_policy)
    np.testing.assert_allclose(y, plain - 0.99 * (1 - batch.terminals) * 0.7 * log_pi, rtol=1e-4, atol=1e-5)


def test_where_q_is_constant_the_gap_is_the_size_of_the_action_space():
    """Uniform actions alone: log(n) + dimensions * log 2, whatever Q is; with the others, the densities' inverses."""
    state, batch, noise = setup()
    rows = rows_of(ARGS, state, batch, noise)
    assert (rows.log_densities[:, :4] == jnp.float32(-2 * np.log(2))).all()
    uniform = rows._replace(actions=rows.actions[:, :13], log_densities=jnp.tile(rows.log_densities[:, :4], 3))
    wanted = scipy.special.logsumexp(-np.asarray(rows.log_densities, np.float64), axis=1).mean()
    for value in (0.0, 7.0):
        flat = constant(state.critics, value)
        np.testing.assert_allclose(cql.critic_loss(flat, ARGS, state, rows)[1]["gap"], wanted, rtol=1e-5)
        np.testing.assert_allclose(
            cql.critic_loss(flat, ARGS, state, uniform)[1]["gap"], np.log(12) + 2 * np.log(2), rtol=1e-5
        )


def test_without_densities_the_datas_action_is_among_the_others():
    args = dataclasses.replace(ARGS, importance_sampling=False)
    state, batch, noise = setup(args)
    rows = rows_of(args, state, batch, noise)
    _, metrics = cql.critic_loss(constant(state.critics, 7.0), args, state, rows)
    np.testing.assert_allclose(metrics["gap"], np.log(3 * 4 + 1), rtol=1e-5)


def test_the_soft_maximum_turns_into_the_maximum_as_it_cools():
    args = dataclasses.replace(ARGS, importance_sampling=False, temperature=1e-4)
    state, batch, noise = setup(args)
    rows = rows_of(args, state, batch, noise)
    values = cql.q(args, state.critics, rows.observations[:, None], rows.actions)
    _, metrics = cql.critic_loss(state.critics, args, state, rows)
    np.testing.assert_allclose(metrics["gap"], (values.max(axis=-1) - values[..., 0]).mean(), atol=2e-3)


@pytest.mark.parametrize(("bounds", "wanted"), [({}, -10 / 32), ({"gap_max": -50.0}, 0.0), ({"gap_min": 50.0}, 0.0)])
def test_q_of_the_data_is_pushed_up_by_the_weight_of_the_gap_unless_a_bound_cuts_it(bounds, wanted, monkeypatch):
    """Where Q fits its target, so that nothing else moves it."""
    args = dataclasses.replace(ARGS, **bounds)
    state, batch, noise = setup(args)
    rows = rows_of(args, state, batch, noise)
    values = cql.q(args, state.critics, rows.observations[:, None], rows.actions)
    rows = rows._replace(y=values[0, :, 0])
    monkeypatch.setattr(cql, "q", lambda args, critics, *_: critics)
    grad, _ = jax.grad(cql.critic_loss, has_aux=True)(values.at[1].set(values[0]), args, state, rows)
    np.testing.assert_allclose(grad[..., 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(grad.sum(axis=-1), 0, atol=1e-5)  # what the data gains, the samples lose


def test_actions_of_the_next_state_are_judged_in_this_state():
    state, batch, noise = setup()
    rows = rows_of(ARGS, state, batch, noise)
    actions, log_pi = cql.pi(ARGS, state.actor, batch.next_observations[:, None], noise.gap_next_policy)
    np.testing.assert_allclose(rows.actions[:, 5:9], actions, atol=1e-5)
    np.testing.assert_allclose(rows.log_densities[:, 4:8], log_pi, atol=1e-4)
    np.testing.assert_array_equal(rows.observations, batch.observations)


# ------------------------------------------------------------------------------------------ alpha and alpha'


def test_alpha_prime_rises_while_the_gap_is_above_its_target():
    for target_gap, direction in ((-100.0, 1), (100.0, -1)):
        args = dataclasses.replace(ARGS, lagrange=True, target_gap=target_gap)
        state, batch, noise = setup(args)
        after, metrics = update(args, state, batch, noise, 0)
        assert jnp.sign(after.log_alpha_prime - state.log_alpha_prime) == direction
        np.testing.assert_allclose(metrics["alpha_prime"], np.e, rtol=1e-6)
        np.testing.assert_allclose(metrics["cql_loss"], np.e * 10 * (metrics["gap"] - target_gap), rtol=1e-4)


def test_alpha_prime_feels_nothing_but_the_gap():
    args = dataclasses.replace(ARGS, lagrange=True)
    state, batch, noise = setup(args)
    # Adam's mean of gradients: its first step of a scalar is the learning rate, whatever the gradient.
    mean = lambda batch: update(args, state, batch, noise, 0)[0].alpha_prime_opt[0].mu
    np.testing.assert_array_equal(mean(batch), mean(batch._replace(rewards=100 + batch.rewards)))


def test_with_alpha_prime_1_and_target_gap_0_the_lagrange_version_is_the_plain_one():
    args = dataclasses.replace(ARGS, lagrange=True, target_gap=0.0)
    state, batch, noise = setup(args)
    state = state._replace(log_alpha_prime=jnp.zeros(()))
    lagrange, plain = (update(x, state, batch, noise, 0)[0] for x in (args, ARGS))
    assert equal(lagrange.critics, plain.critics)
    assert lagrange.log_alpha_prime != 0 and plain.log_alpha_prime == 0


def test_alpha_rises_when_the_policy_is_too_sure_of_itself():
    for log_pi, direction in ((5.0, 1), (-5.0, -1)):  # the target entropy is -2
        assert jnp.sign(-jax.grad(cql.alpha_loss)(jnp.zeros(()), log_pi, -2)) == direction


def test_alpha_stays_where_it_is_unless_it_is_learned():
    args = dataclasses.replace(ARGS, tune_alpha=False, alpha_multiplier=0.3)
    after, metrics = update(args, *setup(args), 0)
    assert after.log_alpha == 0
    np.testing.assert_allclose(metrics["alpha"], 0.3, rtol=1e-6)


# ------------------------------------------------------------------------------------------ actor and targets


def test_the_actor_feels_the_gap_only_through_the_critics():
    """Nothing is differentiated through the sampled actions or their densities."""
    state, batch, noise = setup()
    other = noise._replace(gap_policy=-noise.gap_policy, gap_next_policy=0 * noise.gap_next_policy)
    actors = [
        update(args, state, batch, x, 0)[0].actor
        for args, x in ((ARGS, noise), (ARGS, other), (dataclasses.replace(ARGS, cql_alpha=0.0), noise))
    ]
    assert equal(actors[0], actors[1]) and equal(actors[0], actors[2])
    assert not equal(actors[0], state.actor)


def test_every_loss_is_taken_before_any_step():
    """A critic's or alpha's learning rate changes nothing in the actor's step, nor the actor's in the critics'."""
    state, batch, noise = setup()
    step = lambda **rates: update(dataclasses.replace(ARGS, **rates), state, batch, noise, 0)[0]
    assert equal(step().actor, step(critic_lr=1.0).actor)
    assert equal(step().critics, step(actor_lr=1.0).critics)


def test_the_largest_of_several_next_actions_makes_the_target():
    args = dataclasses.replace(ARGS, max_target_backup=True)
    state, batch, noise = setup(args)
    y, _ = cql.target(args, state, batch, noise)
    each = []
    for i in range(4):
        actions, _ = cql.pi(args, state.actor, batch.next_observations, noise.next_policy[:, i])
        each.append(cql.q(args, state.target_critics, batch.next_observations, actions).min(axis=0))
    np.testing.assert_allclose(y, batch.rewards + 0.99 * (1 - batch.terminals) * np.max(each, axis=0), rtol=1e-4)


def test_targets_follow_at_every_period():
    args = dataclasses.replace(ARGS, target_period=3)
    state, batch, noise = setup(args)
    for step in range(6):
        after, _ = update(args, state, batch, noise, step)
        assert equal(after.target_critics, state.target_critics) == (step % 3 != 2)
        state = after
    polyak = jax.tree.map(lambda new, old: 0.005 * new + 0.995 * old, after.critics, setup(args)[0].target_critics)
    assert not equal(polyak, after.target_critics, atol=1e-7), "they have moved twice"


# ------------------------------------------------------------------------------------------ how it is computed


@pytest.mark.parametrize("batch_size", [32, 30])
def test_a_few_states_at_a_time_are_the_whole_batch(batch_size):
    args = dataclasses.replace(ARGS, batch_size=batch_size, lagrange=True)
    state, batch, noise = setup(args)
    rows = rows_of(args, state, batch, noise)
    pieces = jax.jit(functools.partial(cql.by_parts, functools.partial(gradient, args, state)))(rows)
    whole = gradient(args, state, rows)
    assert equal(pieces, whole, rtol=1e-4, atol=1e-5)


def test_all_actions_of_a_state_at_once_are_each_alone():
    state, batch, noise = setup()
    rows = rows_of(ARGS, state, batch, noise)
    together = cql.q(ARGS, state.critics, rows.observations[:, None], rows.actions)
    assert together.shape == (2, 32, 13)
    for i in range(13):
        alone = cql.q(ARGS, state.critics, rows.observations, rows.actions[:, i])
        np.testing.assert_allclose(together[..., i], alone, rtol=1e-5, atol=1e-5)


def test_the_density_is_scipys_normal_through_tanh():
    state, batch, noise = setup()
    actions, log_pi = cql.pi(ARGS, state.actor, batch.observations, noise.policy)
    mean, log_std = (np.asarray(x, np.float64) for x in cql.gaussian(ARGS, state.actor, batch.observations))
    raw = mean + np.exp(log_std) * np.asarray(noise.policy, np.float64)
    expected = scipy.stats.norm.logpdf(raw, mean, np.exp(log_std)) - np.log1p(-(np.tanh(raw) ** 2))
    np.testing.assert_allclose(log_pi, expected.sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actions, np.tanh(raw), atol=1e-5)


# ------------------------------------------------------------------------------------------ networks and data


def fresh(obs=17, act=6, **flags):
    args, zeros = Args(**flags), jnp.zeros
    batch = Batch(zeros((2, obs)), zeros((2, act)), zeros(2), zeros((2, obs)), zeros(2))
    return init(args, Data(batch, zeros(obs), jnp.ones(obs), 1.0), jax.random.key(0))


def test_critics_start_orthogonal_and_the_policy_as_in_pytorch_with_a_small_head():
    state = fresh()
    for layer in range(4):
        kernel, gain = state.critics["params"][f"Dense_{layer}"]["kernel"], 0.01 if layer == 3 else 2**0.5
        for one in kernel:
            small = one if one.shape[0] < one.shape[1] else one.T
            np.testing.assert_allclose(small @ small.T, gain**2 * np.eye(len(small)), atol=1e-4)
        assert (state.critics["params"][f"Dense_{layer}"]["bias"] == 0).all() and (kernel[0] != kernel[1]).any()
    actor = state.actor["params"]
    for layer, inputs in enumerate((17, 256, 256)):
        for part in actor[f"Dense_{layer}"].values():
            assert 0.9 * inputs**-0.5 < jnp.abs(part).max() <= inputs**-0.5
    bound = 0.01 * (6 / (256 + 12)) ** 0.5
    assert 0.95 * bound < jnp.abs(actor["Dense_3"]["kernel"]).max() <= bound and (actor["Dense_3"]["bias"] == 0).all()
    assert (actor["log_std_multiplier"], actor["log_std_offset"]) == (1, -1)
    assert equal(state.critics, state.target_critics) and (state.log_alpha, state.log_alpha_prime) == (0, 1)


def test_a_second_critic_with_fewer_layers_is_the_critic_that_lacks_them():
    """CORL's on AntMaze. What it lacks is never trained."""
    args = dataclasses.replace(ARGS, critic_hidden_dims=(8,) * 5, second_critic_layers=3)
    state, batch, noise = setup(args)
    values = cql.q(args, state.critics, batch.observations, batch.actions)
    layers = state.critics["params"]
    kept = {"Dense_0": "Dense_0", "Dense_1": "Dense_1", "Dense_2": "Dense_2", "Dense_5": "Dense_3"}
    shallow = {"params": {new: jax.tree.map(lambda x: x[1], layers[old]) for old, new in kept.items()}}
    np.testing.assert_allclose(
        values[1], cql.Critic((8,) * 3).apply(shallow, batch.observations, batch.actions), rtol=1e-5, atol=1e-6
    )
    deep = jax.tree.map(lambda x: x[0], state.critics)
    np.testing.assert_allclose(
        values[0], cql.Critic((8,) * 5).apply(deep, batch.observations, batch.actions), rtol=1e-5, atol=1e-6
    )
    after, _ = update(args, state, batch, noise, 0)
    for layer in ("Dense_3", "Dense_4"):
        moved = after.critics["params"][layer]["kernel"] != layers[layer]["kernel"]
        assert moved[0].any() and not moved[1].any()


def test_rewards_are_scaled_by_the_range_of_returns_then_by_the_factor_then_shifted(tmp_path):
    data = loader.load(str(write_hdf5(tmp_path / "data.hdf5")), "Pendulum-v1")
    returns = [data.rewards[start:stop].sum(dtype=np.float64) for start, stop in data.episodes]
    prepared = functools.partial(cql.prepare, dataset=data)
    kept = data.rewards[data.keep]
    args = Args(return_range=1000.0, reward_scale=10.0, reward_shift=-5.0)
    np.testing.assert_allclose(prepared(args).rows.rewards, 1e4 / np.ptp(returns) * kept - 5, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(prepared(Args()).rows.rewards, kept)


MANY = """
import jax, cql
weights = lambda key: [cql.orthogonal(1.0)(key, shape) for shape in ((256, 256), (14, 256), (256, 256))]
critics = lambda key: jax.vmap(weights)(jax.random.split(key, 2))
jax.block_until_ready(jax.jit(jax.vmap(critics))(jax.random.split(jax.random.key(0), 3)))
"""


def test_the_first_weights_of_many_seeds_are_drawn_without_a_deadlock():
    """Several batched factorisations in one program never end where there are two threads (jaxlib 0.10.2)."""
    done = run([sys.executable, "-c", MANY], cwd=ALGORITHMS, env=os.environ | {"NPROC": "2"})
    assert done.returncode == 0, done.stderr
