"""Statements about IQL."""

import functools
from types import SimpleNamespace

import iql
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iql import Args, Batch, Data, Noise
from scipy import stats

SMALL = functools.partial(Args, hidden_dims=(8, 8), batch_size=32)
ARGS = SMALL()
init = jax.jit(iql.init, static_argnums=0)
update = jax.jit(iql.update, static_argnums=0)


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
    data = Data(batch, jnp.zeros(5), jnp.ones(5), 1.0)
    state = init(args, data, keys[5])
    state = state._replace(target_critics=init(args, data, keys[6]).critics)
    return state, batch, iql.draw(args, batch, keys[7])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def change(network):
    return jax.tree.map(lambda x: x + 0.1, network)


def with_log_std(state, log_std):
    return state._replace(actor={"params": state.actor["params"] | {"log_std": jnp.asarray(log_std)}})


@functools.partial(jax.jit, static_argnums=(0, 4))
def actor_gradient(args, state, batch, noise, loss=iql.actor_loss):
    return jax.grad(loss, has_aux=True)(state.actor, args, state.critics, state.value, batch, noise)[0]


# ------------------------------------------------------------------------------------------ value


def test_at_expectile_one_half_v_regresses_to_the_mean():
    state, batch, _ = setup()
    loss, _ = iql.value_loss(state.value, SMALL(expectile=0.5), state, batch)
    target = iql.q(ARGS, state.target_critics, batch.observations, batch.actions).min(axis=0)
    np.testing.assert_allclose(loss, ((target - iql.v(ARGS, state.value, batch.observations)) ** 2).mean() / 2)


@pytest.mark.parametrize(("expectile", "wanted"), [(0.5, 0.0), (0.999, 1.0)])
def test_towards_expectile_1_v_is_the_best_of_the_data(expectile, wanted, monkeypatch):
    """One state, Q evenly spread over [-1, 1]."""
    args = SMALL(expectile=expectile)
    state, batch, _ = setup()
    batch = batch._replace(observations=jnp.ones((32, 5)))
    spread = jnp.linspace(-1, 1, 32)[None]
    monkeypatch.setattr(iql, "q", lambda *_: spread)
    step = jax.jit(lambda value: jax.tree.map(
        lambda x, g: x - 0.3 * g, value, jax.grad(iql.value_loss, has_aux=True)(value, args, state, batch)[0]
    ))  # fmt: skip
    value = jax.lax.fori_loop(0, 3000, lambda _, value: step(value), state.value)
    np.testing.assert_allclose(iql.v(args, value, batch.observations), wanted, atol=0.1)


def test_v_learns_from_the_target_critics_only():
    state, batch, noise = setup()
    learned = lambda state: update(ARGS, state, batch, noise, 0)[0].value
    assert equal(learned(state), learned(state._replace(critics=change(state.critics))))
    assert not equal(learned(state), learned(state._replace(target_critics=change(state.critics))))


# ------------------------------------------------------------------------------------------ critic


@pytest.mark.parametrize("variant", ["corl", "fql"])
def test_q_feels_neither_the_step_of_v_nor_that_of_the_policy(variant):
    state, batch, noise = setup(SMALL(variant=variant))
    step = lambda **flags: update(SMALL(variant=variant, **flags), state, batch, noise, 0)[0].critics
    assert equal(step(), step(expectile=0.9, value_lr=1.0, beta=10.0, actor_lr=1.0))


def test_the_target_is_the_reward_at_a_terminal_and_goes_on_elsewhere():
    """A row that time has cut is not terminal: it bootstraps."""
    state, batch, _ = setup()
    target = lambda terminals: iql.critic_loss(
        state.critics, ARGS, state.value, batch._replace(terminals=jnp.full(32, terminals))
    )[1]["q_target"]
    np.testing.assert_allclose(target(1.0), batch.rewards.mean(), rtol=1e-6)
    next_v = iql.v(ARGS, state.value, batch.next_observations)
    np.testing.assert_allclose(target(0.0), (batch.rewards + 0.99 * next_v).mean(), rtol=1e-5)


# ------------------------------------------------------------------------------------------ policy


def test_log_density_is_that_of_a_gaussian_around_tanh():
    state, batch, _ = setup()
    state = with_log_std(state, [-1.0, 0.5])
    mean, log_std = iql.pi(ARGS, state.actor, batch.observations)
    assert (jnp.abs(mean) < 1).all()
    wanted = stats.norm.logpdf(batch.actions, mean, np.exp([-1.0, 0.5])).sum(axis=-1)
    np.testing.assert_allclose(iql.log_density(mean, log_std, batch.actions), wanted, rtol=1e-5)


@pytest.mark.parametrize(("variant", "lowest"), [("corl", -20), ("authors", -5), ("fql", -5)])
def test_the_deviation_is_bounded(variant, lowest):
    args = SMALL(variant=variant)
    state, batch, _ = setup(args)
    for log_std, bound in ((-100.0, lowest), (100.0, 2)):
        assert (iql.pi(args, with_log_std(state, [log_std] * 2).actor, batch.observations)[1] == bound).all()


def test_with_beta_0_the_policy_clones_behaviour():
    state, batch, noise = setup()
    cloning = lambda actor: -iql.log_density(*iql.pi(ARGS, actor, batch.observations), batch.actions).mean()
    assert equal(actor_gradient(SMALL(beta=0.0), state, batch, noise), jax.grad(cloning)(state.actor), rtol=1e-5)


def test_no_action_weighs_more_than_100():
    """At a huge beta the weights are 100 where the action is better than V, 0 where it is worse."""
    state, batch, noise = setup()
    loss, metrics = iql.actor_loss(state.actor, SMALL(beta=1e6), state.critics, state.value, batch, noise)
    better = iql.q(ARGS, state.critics, batch.observations, batch.actions).min(0) > iql.v(
        ARGS, state.value, batch.observations
    )
    log_pi = iql.log_density(*iql.pi(ARGS, state.actor, batch.observations), batch.actions)
    np.testing.assert_allclose(metrics["weight"], 100 * better.mean(), rtol=1e-6)
    np.testing.assert_allclose(loss, -(100 * better * log_pi).mean(), rtol=1e-5)


def test_a_deterministic_policy_is_a_gaussian_of_deviation_1_but_for_a_factor():
    args = SMALL(policy="unit")
    state, batch, noise = setup(args)
    unit, deterministic = (actor_gradient(SMALL(policy=p), state, batch, noise) for p in ("unit", "deterministic"))
    assert "log_std" not in state.actor["params"]
    assert equal(deterministic, jax.tree.map(lambda x: 2 * x, unit), rtol=1e-5)


def test_the_better_of_two_actions_is_taken():
    """One state, as many actions -0.5 as 0.5, of which the latter pays; cloning would take the middle."""
    sign = np.tile(np.float32([-1, 1]), 200)
    ones = np.ones((400, 1), np.float32)
    batch = Batch(ones, 0.5 * sign[:, None], (sign > 0).astype(np.float32), ones, np.ones(400, np.float32))
    data = jax.tree.map(jnp.asarray, Data(batch, np.zeros(1), np.ones(1), np.ones(())))
    args = SMALL(beta=10.0, steps=1500, actor_lr=3e-3, critic_lr=3e-3, value_lr=3e-3, tau=0.05)
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.jit(jax.vmap(functools.partial(iql.init, args, data)))(keys)
    state, _ = iql.train(args, data, state, keys, 0, 1500)
    np.testing.assert_allclose(iql.act(args, jax.tree.map(lambda x: x[0], state), jnp.ones(1)), 0.5, atol=0.1)


def test_the_actors_learning_rate_falls_along_a_cosine():
    """Adam's first step is as long as the learning rate."""
    state, batch, noise = setup()
    for args, shares in ((SMALL(), (1, 0.5, 0, 1)), (SMALL(cosine=False), (1, 1, 1, 1))):
        for number, share in zip((0, 500_000, 999_999, 1_000_000), shares, strict=True):  # the last is online
            bias = update(args, state, batch, noise, number)[0].actor["params"]["Dense_2"]["bias"]
            moved = jnp.abs(bias - state.actor["params"]["Dense_2"]["bias"])
            np.testing.assert_allclose(moved, share * 3e-4, rtol=1e-3, atol=1e-8)


def test_dropout_is_drawn_for_updates_and_absent_when_acting():
    args = SMALL(policy_dropout=0.25, hidden_dims=(300, 200))
    state, batch, noise = setup(args)
    for mask, width in zip(noise.dropout, args.hidden_dims, strict=True):
        assert mask.shape == (32, width)
        np.testing.assert_allclose(np.unique(mask), [0, 1 / 0.75], rtol=1e-6)
        np.testing.assert_allclose((mask == 0).mean(), 0.25, atol=0.03)
    gradient = lambda noise: actor_gradient(args, state, batch, noise)
    assert equal(gradient(noise), gradient(noise)), "an update is deterministic"
    assert not equal(gradient(noise), gradient(iql.draw(args, batch, jax.random.key(1))))
    assert equal(iql.act(args, state, batch.observations), iql.pi(args, state.actor, batch.observations)[0])
    ones = tuple(map(jnp.ones_like, noise.dropout))
    assert equal(gradient(noise._replace(dropout=ones)), gradient(Noise()), rtol=1e-5)
    assert setup()[2].dropout == ()


def test_the_scale_of_q_does_not_matter_to_ddpgbc():
    args = SMALL(ddpgbc=0.3)
    state, batch, noise = setup()
    head = state.critics["params"]["Dense_2"]
    scaled = {"params": state.critics["params"] | {"Dense_2": jax.tree.map(lambda x: 7 * x, head)}}
    gradient = lambda state: actor_gradient(args, state, batch, noise, iql.ddpgbc_loss)
    assert equal(gradient(state), gradient(state._replace(critics=scaled)), rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------ the three variants

still = functools.partial(SMALL, tau=1.0, value_lr=0.0)  # V stays, targets become what they follow


def test_without_a_step_of_v_corl_and_the_authors_compute_the_same():
    """But for the critics' loss, of which CORL takes half."""
    state, batch, noise = setup()
    ours, theirs = (update(still(variant=variant), state, batch, noise, 0) for variant in ("corl", "authors"))
    assert equal(ours[0].actor, theirs[0].actor) and equal(ours[0].critics, theirs[0].critics, atol=1e-6)
    np.testing.assert_allclose(theirs[1]["critic_loss"], 2 * ours[1]["critic_loss"], rtol=1e-6)


def test_only_the_authors_see_v_after_its_step():
    state, batch, noise = setup()
    ours, theirs = (update(SMALL(variant=variant), state, batch, noise, 0)[1] for variant in ("corl", "authors"))
    assert ours["value_loss"] == theirs["value_loss"]
    assert ours["advantage"] != theirs["advantage"] and ours["q_target"] != theirs["q_target"]


@pytest.mark.parametrize("variant", ["corl", "authors", "fql"])
def test_only_fql_looks_at_the_critics_before_their_step(variant):
    """Its targets follow them, and its advantage is theirs; otherwise targets follow the step, and have the say."""
    start, batch, noise = setup(SMALL(variant=variant))
    state, metrics = update(still(variant=variant), start, batch, noise, 0)
    assert not equal(state.critics, start.critics)
    assert equal(state.target_critics, start.critics if variant == "fql" else state.critics)
    judges = start.critics if variant == "fql" else start.target_critics
    advantages = iql.q(still(variant=variant), judges, batch.observations, batch.actions).min(axis=0) - iql.v(
        still(variant=variant), start.value, batch.observations
    )
    np.testing.assert_allclose(metrics["advantage"], advantages.mean(), rtol=1e-5)


def test_networks_start_as_their_variant_starts_them():
    """PyTorch's uniform; orthogonal with gain sqrt(2); Glorot's uniform with actions near 0. Targets are copies."""
    zeros = Batch(*(jnp.zeros((2, n)) if n else jnp.zeros(2) for n in (17, 6, 0, 17, 0)))
    start = lambda variant: init(
        SMALL(variant=variant, hidden_dims=(64, 64)), Data(zeros, jnp.zeros(17), jnp.ones(17), 1.0), jax.random.key(0)
    )
    bound = lambda layer: float(jnp.abs(layer["kernel"]).max())
    corl, authors, fql = start("corl"), start("authors"), start("fql")
    for state in (corl, authors, fql):
        assert equal(state.target_critics, state.critics)
        assert all((x[0] != x[1]).any() for x in jax.tree.leaves(state.critics) if x.ndim > 2)
        assert equal(state.actor["params"]["log_std"], jnp.zeros(6))
    layers = corl.value["params"]
    for layer, inputs in (("Dense_0", 17), ("Dense_1", 64), ("Dense_2", 64)):
        assert 0.9 < bound(layers[layer]) * inputs**0.5 <= 1 and jnp.abs(layers[layer]["bias"]).max() > 0
    kernel = authors.actor["params"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(64), atol=1e-5)
    layers = fql.actor["params"]
    assert 0.95 < bound(layers["Dense_1"]) / (6 / 128) ** 0.5 <= 1
    assert 0.95 < bound(layers["Dense_2"]) / (0.06 / 70) ** 0.5 <= 1
    for state in (authors, fql):
        assert all((x == 0).all() for x in jax.tree.leaves(state.value) if x.ndim == 1)


# ------------------------------------------------------------------------------------------ data


def episodes(lengths, rewards, terminal):
    """Episodes of `lengths` rows, of `rewards` a row, ended by a terminal or cut off."""
    stops = np.cumsum(lengths)
    terminals = np.zeros(stops[-1], bool)
    terminals[stops - 1] = terminal
    return SimpleNamespace(
        observations=np.zeros((stops[-1], 3), np.float32),
        next_observations=np.zeros((stops[-1], 3), np.float32),
        actions=np.ones((stops[-1], 1), np.float32),
        rewards=np.repeat(rewards, lengths).astype(np.float32),
        terminals=terminals,
        keep=np.ones(stops[-1], bool),
        episodes=np.stack([stops - lengths, stops], 1),
    )


def test_scaled_returns_span_the_range_over_the_episodes_that_were_not_cut_off():
    """Returns 10, 40, 100 (as long as can be), and 2 of an unfinished one, which does not count."""
    dataset = episodes([10, 20, 50, 2], [1, 2, 2, 1], [True, True, False, False])
    rewards = iql.prepare(Args(return_range=1000.0), dataset).rows.rewards
    np.testing.assert_allclose(rewards, dataset.rewards * 1000 / (100 - 10), rtol=1e-6)
    assert equal(iql.prepare(Args(), dataset).rows.rewards, dataset.rewards)


def test_rewards_of_equal_returns_are_not_scaled_but_shifted():
    dataset = episodes([10, 10], [1, 1], [True, True])
    data = iql.prepare(Args(return_range=1000.0, reward_shift=-1.0), dataset)
    assert (data.rows.rewards == 0).all()


def test_only_corl_keeps_actions_at_their_bounds():
    actions = lambda variant: iql.prepare(Args(variant=variant), episodes([4], [1], [True])).rows.actions
    assert (actions("corl") == 1).all() and (actions("authors") < 1).all() and (actions("fql") > 0.9999).all()
