"""Statements about XQL."""

import functools
from types import SimpleNamespace

import iql
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xql
from scipy import stats
from xql import Args, Batch, Data, Noise

SMALL = functools.partial(Args, hidden_dims=(8, 8), batch_size=32)
ARGS = SMALL()
init = jax.jit(xql.init, static_argnums=0)
update = jax.jit(xql.update, static_argnums=0)


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
    state = init(args, Data(batch), keys[5])
    state = state._replace(target_critics=init(args, Data(batch), keys[6]).critics)
    return state, batch, xql.draw(args, batch, keys[7])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def change(network):
    return jax.tree.map(lambda x: x + 0.1, network)


def gradient(loss, network, *arguments):
    return jax.grad(loss, has_aux=True)(network, *arguments)[0]


# ------------------------------------------------------------------------------------------ Gumbel regression

QS = jnp.array([-1.0, -0.2, 0.3, 0.5, 1.5])  # of five actions in one state


def slope(args, value):
    """Of the loss of one V against the five."""
    return jax.grad(lambda value: xql.linex(args, QS - value).mean())(value)


def test_near_its_minimum_the_loss_is_a_square():
    u = jnp.array([-0.02, -0.01, 0.0, 0.01])  # m is 0.01, or 0.002 at temperature 5
    for temperature in (1.0, 5.0):
        wanted = (u / temperature) ** 2 / 2 / jnp.exp(0.01 / temperature)
        ours = xql.linex(SMALL(temperature=temperature), u)
        np.testing.assert_allclose(ours, wanted, atol=1e-6, rtol=0.01)


@pytest.mark.parametrize("value", [-0.5, 0.7, 4.0])
def test_the_gradient_is_that_of_the_linex_loss_over_the_largest_exponential(value):
    """The mean of -(e^z - 1) / temperature, over e^m with m at least -1."""
    z = (np.float64(QS) - value) / 0.7
    wanted = -(np.exp(z) - 1).mean() / 0.7 / np.exp(max(z.max(), -1))
    np.testing.assert_allclose(slope(SMALL(temperature=0.7), value), wanted, rtol=1e-4)
    assert (z.max() < -1) == (value == 4.0), "both kinds of m are met"


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_v_is_the_soft_maximum_of_the_datas_q(temperature):
    """temperature log mean exp(Q / temperature) has no slope, and the loss falls towards it from both sides."""
    args = SMALL(temperature=temperature)
    soft = temperature * jnp.log(jnp.exp(QS / temperature).mean())
    np.testing.assert_allclose(slope(args, soft), 0, atol=1e-6)
    assert slope(args, soft - 0.1) < -1e-5 and slope(args, soft + 0.1) > 1e-5


@pytest.mark.parametrize(("temperature", "wanted"), [(0.02, 1.5), (1e3, 0.22)])
def test_v_is_the_best_q_at_a_low_temperature_and_their_mean_at_a_high_one(temperature, wanted):
    low, high, args = -2.0, 2.0, SMALL(temperature=temperature, max_clip=1e3)
    for _ in range(40):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if slope(args, middle) < 0 else (low, middle)
    np.testing.assert_allclose(low, wanted, atol=0.05)


def test_a_q_that_is_clipped_does_not_move_v():
    each = jax.vmap(jax.grad(lambda u: xql.linex(SMALL(temperature=1.0, max_clip=2.0), u[None])[0]))
    np.testing.assert_array_equal(each(jnp.array([1.9, 2.1, 50.0])) != 0, [True, False, False])


def test_a_huge_q_overflows_nothing():
    args = SMALL(temperature=0.01, max_clip=1e6)
    assert jnp.isfinite(xql.linex(args, 1e4 * QS)).all() and jnp.isfinite(slope(args, -100.0))


# ------------------------------------------------------------------------------------------ value


def test_v_learns_from_the_target_critics_only():
    state, batch, noise = setup()
    learned = lambda state: update(ARGS, state, batch, noise, 0)[0].value
    assert equal(learned(state), learned(state._replace(critics=change(state.critics))))
    assert not equal(learned(state), learned(state._replace(target_critics=change(state.critics))))


def test_v_takes_several_steps_on_one_batch():
    """Two of one update are those of two updates, if the targets stay."""
    args, twice = SMALL(tau=0.0, noise=True), SMALL(tau=0.0, noise=True, value_updates=2)
    state, batch, noise = setup(args)
    one = update(args, update(args, state, batch, noise, 0)[0], batch, noise, 1)[0]
    two, metrics = update(twice, state, batch, noise, 0)
    assert equal(one.value, two.value, atol=1e-7) and equal(one.value_opt, two.value_opt, rtol=1e-4, atol=1e-9)
    advantages = xql.q(ARGS, state.target_critics, batch.observations, batch.actions).min(axis=0) - xql.v(
        ARGS, two.value, batch.observations
    )
    np.testing.assert_allclose(metrics["advantage"], advantages.mean(), rtol=1e-5)


def seen_by_v(args, monkeypatch):
    """States and actions whose Q the loss of V asks for."""
    state, batch, noise = setup(args)
    seen, original = [], xql.q
    monkeypatch.setattr(xql, "q", lambda *a: (seen.append(a[2:]), original(*a))[1])
    _, metrics = xql.value_loss(state.value, args, state, batch, noise)
    return seen[0], batch, noise, metrics


def test_noise_moves_the_actions_of_vs_loss_by_at_most_one_half_and_within_bounds(monkeypatch):
    args = SMALL(noise=True, noise_std=0.5)
    (observations, actions), batch, noise, _ = seen_by_v(args, monkeypatch)
    assert equal(observations, batch.observations) and (jnp.abs(actions) <= 1).all()
    moved = jnp.abs(actions - batch.actions)
    assert moved.max() <= 0.5 + 1e-6 and (jnp.abs(0.5 * noise.actions) > 0.5).any()
    inside = (jnp.abs(actions) < 1) & (moved < 0.499)
    np.testing.assert_allclose((actions - batch.actions)[inside], (0.5 * noise.actions)[inside], atol=1e-6)


def test_random_actions_stand_beside_those_of_the_data(monkeypatch):
    """Three of each state, the three of a state together, after the batch."""
    args = SMALL(random_actions=3, noise=True)
    (observations, actions), batch, noise, metrics = seen_by_v(args, monkeypatch)
    assert observations.shape == (128, 5) and noise.random_actions.shape == (96, 2)
    assert equal(observations[:32], batch.observations) and equal(actions[32:], noise.random_actions)
    for i in range(32):
        assert (observations[32 + 3 * i : 35 + 3 * i] == batch.observations[i]).all()
    assert (jnp.abs(noise.random_actions) <= 1).all() and jnp.abs(noise.random_actions).max() > 0.9
    state, _, _ = setup(args)
    np.testing.assert_allclose(metrics["v"], xql.v(args, state.value, batch.observations).mean(), rtol=1e-5)


def test_noise_is_drawn_where_it_is_asked_for():
    assert setup()[2] == Noise()
    assert setup(SMALL(noise=True))[2].random_actions is None


@pytest.mark.parametrize("args", [SMALL(noise=True), SMALL(random_actions=2)], ids=["noise", "random"])
def test_only_v_sees_other_actions_than_the_datas(args):
    """With V standing still, actor and critics step as without."""
    state, batch, noise = setup(args)
    still = dict(value_lr=0.0)
    ours = update(SMALL(noise=args.noise, random_actions=args.random_actions, **still), state, batch, noise, 0)[0]
    plain = update(SMALL(**still), state, batch, Noise(), 0)[0]
    assert equal(ours.actor, plain.actor, rtol=1e-6) and equal(ours.critics, plain.critics, rtol=1e-6)


# ------------------------------------------------------------------------------------------ actor and critics


def test_but_for_the_losses_of_v_and_q_and_layer_norm_it_is_the_authors_iql(monkeypatch):
    """With IQL's expectile for Gumbel regression, and errors below 20, where Huber's loss is half a square."""
    expectile = lambda args, u: jnp.where(u < 0, 0.3, 0.7) * u**2
    monkeypatch.setattr(xql, "linex", expectile)
    args, theirs = SMALL(layer_norm=False), iql.Args(variant="authors", hidden_dims=(8, 8), normalize=False)
    state, batch, noise = setup(args)
    other = iql.State(*state, mean=jnp.zeros(5), std=jnp.ones(5), buffer=None)
    ours = gradient(xql.value_loss, state.value, args, state, batch, noise)
    assert equal(ours, gradient(iql.value_loss, state.value, theirs, other, batch), rtol=1e-5, atol=1e-7)
    ours = gradient(xql.critic_loss, state.critics, args, state, batch)
    half = jax.tree.map(lambda x: x / 2, gradient(iql.critic_loss, state.critics, theirs, state.value, batch))
    assert equal(ours, half, rtol=1e-5, atol=1e-7)
    ours, metrics = xql.update(args, state, batch, noise, 7)
    same, wanted = iql.update(theirs, other, iql.Batch(*batch), iql.Noise(), 7)
    for name in ("actor", "value"):
        assert equal(getattr(ours, name), getattr(same, name), rtol=1e-5, atol=1e-7), name
    for name in ("v", "advantage", "weight", "actor_loss", "q_target"):
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-5, err_msg=name)


def test_an_error_beyond_20_pulls_no_harder():
    """Half a square up to 20, a line of slope 20 from there; summed over the critics."""
    state, batch, _ = setup(SMALL(discount=0.0))
    values = xql.q(ARGS, state.critics, batch.observations, batch.actions)
    loss = lambda error: xql.critic_loss(
        state.critics, SMALL(discount=0.0), state, batch._replace(rewards=values[0] - error)
    )[0]
    zero = xql.critic_loss(state.critics, SMALL(discount=0.0), state, batch._replace(rewards=values[0]))[0]
    apart = jnp.abs(values[1] - values[0]).max()
    assert zero > 0 and apart < 3, "the second critic is a little apart from the first"
    second = lambda error: (0.5 * (values[1] - values[0] + error) ** 2).mean()
    for error in (-3.0, 10.0, 17.0):
        np.testing.assert_allclose(loss(error), 0.5 * error**2 + second(error), rtol=1e-4)
    np.testing.assert_allclose(loss(60.0) - loss(50.0), 2 * 200, rtol=1e-4)
    np.testing.assert_allclose(loss(-60.0) - loss(-50.0), 2 * 200, rtol=1e-4)


def test_the_target_is_the_reward_at_a_terminal_and_goes_on_elsewhere():
    """A row that time has cut is not terminal: it bootstraps."""
    state, batch, _ = setup()
    target = lambda terminals: xql.critic_loss(
        state.critics, ARGS, state, batch._replace(terminals=jnp.full(32, terminals))
    )[1]["q_target"]
    np.testing.assert_allclose(target(1.0), batch.rewards.mean(), rtol=1e-6)
    next_v = xql.v(ARGS, state.value, batch.next_observations)
    np.testing.assert_allclose(target(0.0), (batch.rewards + 0.99 * next_v).mean(), rtol=1e-5)


def test_actor_and_critics_see_v_after_its_step_and_the_targets_before_theirs():
    state, batch, noise = setup()
    after, metrics = update(ARGS, state, batch, noise, 0)
    stepped = state._replace(value=after.value)
    wanted = xql.actor_loss(state.actor, ARGS, stepped, batch, noise)[1]
    wanted |= xql.critic_loss(state.critics, ARGS, stepped, batch)[1]
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    polyak = jax.tree.map(lambda x, target: 0.005 * x + 0.995 * target, after.critics, state.target_critics)
    assert equal(after.target_critics, polyak, rtol=1e-5, atol=1e-7)


def test_with_beta_0_the_policy_clones_behaviour_and_no_action_weighs_more_than_100():
    state, batch, noise = setup()
    log_pi = lambda actor: xql.log_density(*xql.pi(ARGS, actor, batch.observations), batch.actions)
    ours = gradient(xql.actor_loss, state.actor, SMALL(beta=0.0), state, batch, noise)
    assert equal(ours, jax.grad(lambda actor: -log_pi(actor).mean())(state.actor), rtol=1e-5, atol=1e-7)
    loss, _ = xql.actor_loss(state.actor, SMALL(beta=1e6), state, batch, noise)
    values = xql.q(ARGS, state.target_critics, batch.observations, batch.actions).min(axis=0)
    better = values > xql.v(ARGS, state.value, batch.observations)
    np.testing.assert_allclose(loss, -(100 * better * log_pi(state.actor)).mean(), rtol=1e-5)


def test_log_density_is_that_of_a_gaussian_around_tanh():
    state, batch, _ = setup()
    for log_std, bounded in (([-1.0, 0.5], [-1.0, 0.5]), ([-100.0, 100.0], [-5, 2])):
        actor = {"params": state.actor["params"] | {"log_std": jnp.asarray(log_std)}}
        mean, ours = xql.pi(ARGS, actor, 100 * batch.observations)
        assert (jnp.abs(mean) <= 1).all() and equal(ours, jnp.asarray(bounded, jnp.float32))
        wanted = stats.norm.logpdf(batch.actions, mean, np.exp(bounded)).sum(axis=-1)
        np.testing.assert_allclose(xql.log_density(mean, ours, batch.actions), wanted, rtol=1e-5)


def test_the_better_of_two_actions_is_taken():
    """One state, as many actions -0.5 as 0.5, of which the latter pays; cloning would take the middle."""
    sign = np.tile(np.float32([-1, 1]), 200)
    ones = np.ones((400, 1), np.float32)
    batch = Batch(ones, 0.5 * sign[:, None], (sign > 0).astype(np.float32), ones, np.ones(400, np.float32))
    data = jax.tree.map(jnp.asarray, Data(batch))
    lrs = dict(actor_lr=3e-3, critic_lr=3e-3, value_lr=3e-3)
    args = SMALL(temperature=0.2, beta=10.0, steps=1500, tau=0.05, **lrs)
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.jit(jax.vmap(functools.partial(xql.init, args, data)))(keys)
    state, _ = xql.train(args, data, state, keys, 0, 1500)
    state = jax.tree.map(lambda x: x[0], state)
    np.testing.assert_allclose(xql.act(args, state, jnp.ones(1)), 0.5, atol=0.1)
    soft = 0.2 * np.log((1 + np.exp(1 / 0.2)) / 2)  # of Q 0 and 1
    np.testing.assert_allclose(xql.v(args, state.value, jnp.ones(1)), soft, atol=0.05)


def test_the_actors_learning_rate_falls_along_a_cosine():
    """Adam's first step is as long as the learning rate."""
    state, batch, noise = setup()
    for args, shares in ((SMALL(), (1, 0.5, 0)), (SMALL(cosine=False), (1, 1, 1))):
        for number, share in zip((0, 500_000, 1_000_000), shares, strict=True):
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
    ours, plain = (gradient(xql.actor_loss, state.actor, args, state, batch, n) for n in (noise, Noise()))
    assert not equal(ours, plain)
    ones = tuple(map(jnp.ones_like, noise.dropout))
    assert equal(gradient(xql.actor_loss, state.actor, args, state, batch, Noise(ones)), plain, rtol=1e-5, atol=1e-7)
    assert equal(xql.act(args, state, batch.observations), xql.pi(args, state.actor, batch.observations)[0])


def test_layers_start_orthogonal_and_only_v_has_layer_norm():
    args = SMALL(hidden_dims=(64, 64))
    state = init(args, Data(setup()[1]), jax.random.key(0))
    assert equal(state.target_critics, state.critics)
    assert all((x[0] != x[1]).any() for x in jax.tree.leaves(state.critics) if x.ndim > 2)
    for kernel in (state.actor["params"]["Dense_1"]["kernel"], state.critics["params"]["Dense_1"]["kernel"][0]):
        np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(64), atol=1e-5)
    norms = [{name for name in network["params"] if "Norm" in name} for network in (state.actor, state.critics)]
    assert norms == [set(), set()] and {"LayerNorm_0", "LayerNorm_1"} < state.value["params"].keys()
    assert "LayerNorm_0" not in setup(SMALL(layer_norm=False))[0].value["params"]


# ------------------------------------------------------------------------------------------ data


def dataset(lengths, rewards, terminal, keep=None):
    """Episodes of `lengths` rows, of `rewards` a row, ended by a terminal or cut off; states count the rows."""
    stops = np.cumsum(lengths)
    terminals = np.zeros(stops[-1], bool)
    terminals[stops - 1] = terminal
    places = np.arange(stops[-1]) + 10 * np.repeat(np.arange(len(lengths)), lengths)  # episodes start elsewhere
    return SimpleNamespace(
        observations=np.tile(places[:, None], (1, 3)).astype(np.float32),
        next_observations=np.tile(places[:, None] + 1, (1, 3)).astype(np.float32),
        actions=np.ones((stops[-1], 1), np.float32),
        rewards=np.repeat(rewards, lengths).astype(np.float32),
        terminals=terminals,
        keep=np.ones(stops[-1], bool) if keep is None else keep,
    )


def test_scaled_returns_span_the_range_over_the_episodes_of_the_rows_that_are_kept():
    """Returns 10, 40 and 98 (the row that time has cut is left out), and 2 of an unfinished one, which counts."""
    keep = np.arange(82) != 79
    rows = dataset([10, 20, 50, 2], [1, 2, 2, 1], [True, True, False, False], keep)
    scaled = xql.prepare(Args(return_range=1000.0), rows).rows.rewards
    np.testing.assert_allclose(scaled, rows.rewards[keep] * 1000 / (98 - 2), rtol=1e-6)
    assert equal(xql.prepare(Args(), rows).rows.rewards, rows.rewards[keep])


def test_an_episode_ends_at_its_terminal_even_where_the_next_begins_in_the_same_place():
    rows = dataset([3, 3], [1, 2], [True, True])
    rows.observations[3] = rows.next_observations[2]
    np.testing.assert_allclose(xql.prepare(Args(return_range=3.0), rows).rows.rewards, rows.rewards)


def test_rewards_of_equal_returns_are_not_scaled_but_shifted():
    rows = dataset([10, 10], [1, 1], [True, True])
    assert (xql.prepare(Args(return_range=1000.0, reward_shift=-1.0), rows).rows.rewards == 0).all()


def test_actions_stay_off_their_bounds_and_observations_are_as_they_are():
    rows = dataset([4], [1], [True])
    data = xql.prepare(Args(), rows)
    assert (data.rows.actions < 1).all() and (data.rows.actions > 0.9999).all()
    assert equal(data.rows.observations, rows.observations)
