"""Statements about COMBO; its model and rollouts are MOPO's (tests/test_mopo.py)."""

import dataclasses
import functools
from types import SimpleNamespace

import combo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combo import Args, Batch, Data, Rows
from scipy.special import logsumexp

MODEL = {"model_hidden_dims": (16, 16), "model_members": 4, "model_elites": 2, "termination": "hopper"}
ARGS = Args(hidden_dims=(8, 8), batch_size=32, **MODEL, rollout_starts=20, rollout_length=3, rollout_interval=4)
REAL, N = 16, 10
update = jax.jit(combo.update, static_argnums=0)


@functools.cache
def setup():
    """Data of healthy hoppers with a model that has learned nothing, a state whose targets differ, a batch, noise."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    observations = jnp.array([1.2, 0, 0, 0, 0]) + 0.05 * normal(50, 5)
    rows = Rows(observations, jnp.tanh(normal(50, 2)), normal(50), observations, jnp.float32(rng.random(50) > 0.8))
    keys = jax.random.split(jax.random.key(0), 4)
    members = jax.vmap(combo.Member((16, 16), 6).init, in_axes=(0, None))(keys, jnp.zeros(7))
    ensemble = combo.Ensemble(members, jnp.full(6, -5.0), jnp.full(6, -3.0))
    dynamics = combo.Dynamics(ensemble, jnp.zeros(7), jnp.ones(7), jnp.array([3, 1]), jnp.array([4.0, 2, 3, 1]))
    data = Data(rows, rows.observations, dynamics)
    state, other = (jax.jit(combo.init, static_argnums=0)(ARGS, data, jax.random.key(i)) for i in (0, 1))
    state = state._replace(target_critics=other.critics)
    batch = combo.sample(ARGS, data, jax.random.key(1))
    return data, state, batch, combo.draw(ARGS, batch, jax.random.key(2))


def mixed():
    """A batch's rows: 16 of the dataset, 16 of rollouts."""
    _, state, batch, noise = setup()
    buffer, _ = combo.refreshed(ARGS, state, batch, noise.rollouts, state.buffer)
    return combo.mixed(ARGS, buffer, batch, noise.places)


def moved(args, state=None):
    _, first, batch, noise = setup()
    return update(args, first if state is None else state, batch, noise, 0)


def test_the_gap_is_the_soft_maximum_of_thirty_actions_of_every_state_and_critic_less_the_datasets_value():
    """One critic and one state at a time."""
    _, state, _, noise = setup()
    value, policy = (jax.jit(f, static_argnums=0) for f in (combo.q, combo.pi))
    rows, expected = mixed(), []
    for i in range(2):
        critic, soft = jax.tree.map(lambda x, i=i: x[i : i + 1], state.critics), []
        for n in range(32):
            at = lambda x, n=n: jnp.broadcast_to(x[n], (N, 5))
            s, following, terms = at(rows.observations), at(rows.next_observations), []
            for where, eps in ((s, noise.gap_policy[:, n]), (following, noise.gap_next_policy[:, n])):
                actions, log_pi = policy(ARGS, state.actor, where, eps)
                terms += (value(ARGS, critic, s, actions)[0] - log_pi).tolist()
            terms += (value(ARGS, critic, s, noise.uniform[:, n])[0] - np.log(0.25)).tolist()
            assert len(terms) == 3 * N
            soft.append(logsumexp(terms))
        dataset = value(ARGS, critic, rows.observations[:REAL], rows.actions[:REAL])
        expected.append(np.mean(soft) - dataset.mean())
    loss, told = combo.critic_loss(state.critics, ARGS, state, rows, noise)
    np.testing.assert_allclose(told["gap"], np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(loss - told["td_loss"], ARGS.cql_alpha * np.sum(expected), rtol=1e-4)


def gap(args, others, dataset_values):
    densities = jnp.linspace(-2, 2, 3 * N * 32).reshape(3 * N, 32)
    return combo.conservative(args, others, densities, dataset_values)


def values():
    rng = np.random.default_rng(0)
    return jnp.float32(rng.normal(size=(2, 3 * N, 32))), jnp.float32(rng.normal(size=(2, REAL)))


def test_every_imagined_action_is_pushed_down_and_every_row_of_the_dataset_up():
    down, up = jax.grad(lambda *x: gap(ARGS, *x).sum(), argnums=(0, 1))(*values())
    assert (down > 0).all() and (up < 0).all()
    np.testing.assert_allclose(down.sum(1), 1 / 32, rtol=1e-4)  # of every state the same weight, as of every row
    np.testing.assert_allclose(up, -1 / REAL, rtol=1e-5)
    down, _ = jax.grad(lambda *x: gap(ARGS, *x)[0], argnums=(0, 1))(*values())
    assert (down[1] == 0).all(), "critics do not mix"


def test_a_constant_added_to_all_values_changes_nothing():
    others, dataset_values = values()
    np.testing.assert_allclose(gap(ARGS, others + 7, dataset_values + 7), gap(ARGS, others, dataset_values), atol=1e-5)


def test_rho_says_of_which_states():
    """Of the rollouts, which stand behind the rows of the dataset, or of all."""
    others, dataset_values = values()
    model = dataclasses.replace(ARGS, rho="model")
    down = jax.grad(lambda x: gap(model, x, dataset_values).sum())(others)
    assert (down[..., :REAL] == 0).all() and (down[..., REAL:] > 0).all()
    assert (gap(model, others, dataset_values) != gap(ARGS, others, dataset_values)).all()


def test_without_the_term_it_is_a_deterministic_backup_on_the_mixed_batch():
    """The target knows no entropy: alpha does not change it, terminals cut it."""
    _, state, _, noise = setup()
    args, rows = dataclasses.replace(ARGS, cql_alpha=0.0), mixed()
    loss, told = combo.critic_loss(state.critics, args, state, rows, noise)
    assert loss == told["td_loss"]
    hot = state._replace(log_alpha=jnp.array(3.0))
    assert combo.critic_loss(state.critics, args, hot, rows, noise)[0] == loss
    actions, _ = combo.pi(args, state.actor, rows.next_observations, noise.next_policy)
    next_q = combo.q(args, state.target_critics, rows.next_observations, actions).min(0)
    y = rows.rewards + 0.99 * (1 - rows.terminals) * next_q
    values = combo.q(args, state.critics, rows.observations, rows.actions)
    np.testing.assert_allclose(loss, sum(((v - y) ** 2).mean() for v in values), rtol=1e-5)


def test_the_term_moves_critics_and_not_the_actor():
    some, none = moved(ARGS)[0], moved(dataclasses.replace(ARGS, cql_alpha=0.0))[0]
    same = lambda x, y: all((a == b).all() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
    assert same(some.actor, none.actor) and some.log_alpha == none.log_alpha and not same(some.critics, none.critics)


def test_an_update_takes_its_losses_in_order():
    """The actor sees the old critics, the critics the new actor."""
    _, state, batch, noise = setup()
    after, metrics = moved(ARGS)
    rows = combo.mixed(ARGS, after.buffer, batch, noise.places)
    loss, told = combo.actor_loss(state.actor, ARGS, state, rows, noise)
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-5)
    between = state._replace(actor=after.actor, log_alpha=after.log_alpha)
    loss, _ = combo.critic_loss(state.critics, ARGS, between, rows, noise)
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-5)
    assert (rows.rewards[:REAL] == batch.rewards).all() and len(rows.rewards) == 32
    wanted = optax.incremental_update(after.critics, state.target_critics, 0.005)
    for x, y in zip(jax.tree.leaves(after.target_critics), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_rollouts_carry_the_reward_of_an_elite():
    data, _, _, _ = setup()
    given = data.rows.observations, data.rows.actions, jax.random.key(0)
    following, rewards, ends, told = combo.imagine(ARGS, data.dynamics, *given)
    assert (told["reward"] == rewards).all() and (ends == combo.ended(ARGS, following)).all()
    for member, same in ((0, True), (2, True), (1, False), (3, False)):
        members = jax.tree.map(lambda x, i=member: x.at[i].add(1.0), data.dynamics.ensemble.members)
        changed = data.dynamics._replace(ensemble=data.dynamics.ensemble._replace(members=members))
        assert (combo.imagine(ARGS, changed, *given)[1] == rewards).all() == same


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0])
def test_a_batch_needs_rows_of_both_kinds(ratio, capsys):
    data, _, _, _ = setup()
    columns = {x: np.asarray(getattr(data.rows, x)) for x in Rows._fields}
    with pytest.raises(SystemExit):
        combo.prepare(dataclasses.replace(ARGS, real_ratio=ratio), SimpleNamespace(**columns, keep=slice(None)))
    assert "--real-ratio" in capsys.readouterr().err


def test_its_half_of_the_dataset_is_a_batch_of_128():
    assert combo.real_rows(Args()) == 128 and Batch._fields[:5] == Rows._fields
