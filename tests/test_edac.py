"""Statements about EDAC; what it shares with SAC-N follows from the first one and tests/test_sac_n.py."""

import dataclasses
import functools

import edac
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sac_n
from edac import Args, Batch, Data, Noise

ARGS = Args(hidden_dims=(8, 8), batch_size=32, num_critics=5)
N = ARGS.num_critics
update = jax.jit(edac.update, static_argnums=0)


@functools.cache
def setup():
    """A state whose targets differ from its critics, a batch, noise."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    batch = Batch(normal(32, 5), jnp.tanh(normal(32, 2)), normal(32), normal(32, 5), jnp.float32(rng.random(32) > 0.7))
    state = jax.jit(edac.init, static_argnums=0)(ARGS, Data(batch), jax.random.key(0))
    # Heads that begin near 0 give every action the same value: all parameters move.
    move = lambda network: jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), network)
    state = state._replace(**{name: move(getattr(state, name)) for name in ("actor", "critics", "target_critics")})
    return state, batch, Noise(*normal(3, 32, 2))


def diversity(critics):
    _, batch, _ = setup()
    return edac.diversity_loss(edac.q_and_slopes(ARGS, critics, batch.observations, batch.actions)[1])


@pytest.mark.parametrize("critics", [1, 5])
def test_with_eta_0_an_update_is_sac_ns_to_the_bit(critics):
    state, batch, noise = setup()
    members = jax.tree.map(lambda x: x[:critics], (state.critics, state.target_critics))
    args = dataclasses.replace(ARGS, num_critics=critics, eta=0.0)
    state = state._replace(
        critics=members[0], target_critics=members[1], critic_opt=optax.adam(args.critic_lr).init(members[0])
    )
    ours, metrics = update(args, state, batch, noise, 0)
    args = sac_n.Args(hidden_dims=(8, 8), batch_size=32, num_critics=critics)
    theirs, _ = jax.jit(sac_n.update, static_argnums=0)(args, sac_n.State(*state), batch, noise, 0)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jnp.isfinite(ours.critics["params"]["Dense_0"]["kernel"]).all()
    assert (metrics["diversity_loss"] != 0) == (critics > 1)


def test_with_eta_the_critics_move_otherwise():
    state, batch, noise = setup()
    kernels = [
        update(dataclasses.replace(ARGS, eta=eta), state, batch, noise, 0)[0].critics["params"]["Dense_0"]["kernel"]
        for eta in (0.0, 1.0)
    ]
    assert (kernels[0] != kernels[1]).any()


@pytest.mark.parametrize("name", ["draw", "init", "sample", "act"])
def test_the_rest_is_sac_ns_too(name):
    """The same function of the same key."""
    state, batch, _ = setup()
    key, data = jax.random.key(3), Data(batch)
    arguments = {"draw": (batch, key), "init": (data, key), "sample": (data, key), "act": (state, batch.observations)}
    ours = getattr(edac, name)(ARGS, *arguments[name])
    theirs = getattr(sac_n, name)(sac_n.Args(hidden_dims=(8, 8), batch_size=32, num_critics=5), *arguments[name])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_eta_weighs_the_diversity_in_the_critics_loss():
    state, batch, noise = setup()
    losses = [
        edac.critic_loss(state.critics, dataclasses.replace(ARGS, eta=eta), state, batch, noise)[0]
        for eta in (0.0, 1.0, 3.0)
    ]
    np.testing.assert_allclose(np.diff(losses), diversity(state.critics) * np.array([1, 2]), rtol=1e-3)


def test_critics_that_agree_cost_n_and_orthogonal_ones_nothing():
    same = jnp.broadcast_to(jnp.array([3.0, -4.0]), (N, 32, 2)) * jnp.arange(1.0, N + 1)[:, None, None]
    np.testing.assert_allclose(edac.diversity_loss(same), N, rtol=1e-5)  # N (N - 1) pairs over N - 1
    orthogonal = jnp.broadcast_to(jnp.eye(N)[:, None], (N, 32, N))
    np.testing.assert_allclose(edac.diversity_loss(orthogonal), 0, atol=1e-5)
    opposite = jnp.stack([same[0], -same[0]])
    np.testing.assert_allclose(edac.diversity_loss(opposite), -2, rtol=1e-5)


def test_it_is_the_cosine_of_every_pair():
    slopes = np.random.default_rng(0).normal(size=(N, 32, 3))
    pairs = [
        (slopes[i] * slopes[j]).sum(-1) / np.linalg.norm(slopes[i], axis=-1) / np.linalg.norm(slopes[j], axis=-1)
        for i in range(N)
        for j in range(N)
        if i != j
    ]
    np.testing.assert_allclose(
        edac.diversity_loss(jnp.float32(slopes)), np.sum(pairs, axis=0).mean() / (N - 1), rtol=1e-4
    )


def test_values_and_slopes_are_those_of_each_critic_and_row_alone():
    state, batch, _ = setup()
    values, slopes = edac.q_and_slopes(ARGS, state.critics, batch.observations, batch.actions)
    assert values.shape == (N, 32) and slopes.shape == (N, 32, 2)
    critic = edac.Critic(ARGS.hidden_dims)
    for i in range(N):
        alone = jax.tree.map(lambda x, i=i: x[i], state.critics)
        rows = jax.vmap(jax.value_and_grad(critic.apply, argnums=2), in_axes=(None, 0, 0))
        value, slope = rows(alone, batch.observations, batch.actions)
        np.testing.assert_allclose(values[i], value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slopes[i], slope, rtol=1e-4, atol=1e-5)


def test_steps_against_the_diversity_loss_alone_turn_the_critics_apart():
    critics = setup()[0].critics
    step = jax.jit(lambda critics: jax.tree.map(lambda x, g: x - 0.03 * g, critics, jax.grad(diversity)(critics)))
    seen = [float(diversity(critics))]
    for _ in range(20):
        critics = step(critics)
        seen.append(float(diversity(critics)))
    assert seen[-1] < seen[0] - 0.5


def test_a_critic_that_says_the_same_of_every_action_breaks_nothing():
    """Its slope is 0 and has no direction."""
    state, batch, noise = setup()
    first = state.critics["params"]["Dense_0"]["kernel"].at[0, 5:].set(0.0)
    deaf = {"params": state.critics["params"] | {"Dense_0": state.critics["params"]["Dense_0"] | {"kernel": first}}}
    assert jnp.isfinite(diversity(deaf))
    after, metrics = update(ARGS, state._replace(critics=deaf), batch, noise, 0)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
