"""Statements about ReBRAC."""

import dataclasses

import dataset as loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rebrac
import td3_bc
from conftest import write_hdf5
from rebrac import Args, Batch, Data

ARGS = Args(hidden_dims=(8, 8, 8), batch_size=32)
FQL = dataclasses.replace(ARGS, variant="fql")
update = jax.jit(rebrac.update, static_argnums=0)
BOTH = pytest.mark.parametrize("args", [ARGS, FQL], ids=lambda args: args.variant)


def setup(args=ARGS, seed=0):
    """A state whose targets differ from its networks, a batch, noise."""
    keys = jax.random.split(jax.random.key(seed), 9)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    batch = Batch(
        observations=normal(0, 32, 5),
        actions=jnp.tanh(normal(1, 32, 2)),
        rewards=normal(2, 32),
        next_observations=normal(3, 32, 5),
        next_actions=jnp.tanh(normal(4, 32, 2)),
        terminals=(normal(5, 32) > 0.5).astype(jnp.float32),
    )
    # Heads that begin near 0 give every row the same action: all parameters move.
    start, networks = rebrac.init(args, Data(batch), keys[6]), ("actor", "critics", "target_actor", "target_critics")
    moved = {
        name: jax.tree.map(lambda x, key=key: x + 0.3 * jax.random.normal(key, x.shape), getattr(start, name))
        for name, key in zip(networks, jax.random.split(keys[7], 4), strict=True)
    }
    state = start._replace(**moved)
    return state, batch, rebrac.draw(args, batch, keys[8])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def actor_gradient(args, state, batch):
    return jax.grad(rebrac.actor_loss, has_aux=True)(state.actor, args, args.beta_actor, state.critics, batch)[0]


def replace_head(critics, change):
    """The critics with `change` applied to their last layer, [2, ...] each of kernel and bias."""
    return {"params": critics["params"] | {"Dense_3": jax.tree.map(change, critics["params"]["Dense_3"])}}


def dataset(**columns):
    return loader.from_arrays(**{"timeouts": np.zeros(len(columns["rewards"]), bool)} | columns)


# ------------------------------------------------------------------------------------------ what it adds to TD3+BC


def test_without_its_additions_the_critics_are_td3s():
    args = Args(hidden_dims=(8, 8), layer_norm=False, beta_critic=0.0)
    state, batch, noise = setup(args)
    ours = jax.grad(rebrac.critic_loss, has_aux=True)(state.critics, args, 0.0, state, batch, noise)[0]
    theirs = jax.grad(td3_bc.critic_loss, has_aux=True)(
        state.critics, td3_bc.Args(hidden_dims=(8, 8)), state, batch, noise
    )[0]
    assert equal(ours, theirs, rtol=1e-5, atol=1e-7)


def test_where_the_first_critic_is_the_smaller_one_the_actor_is_td3_bcs():
    """Which divides the loss by the weight of cloning, and clones the mean over an action's dimensions, here two."""
    alpha = 2.5
    args = Args(hidden_dims=(8, 8), layer_norm=False, beta_actor=1 / (2 * alpha))
    state, batch, _ = setup(args)
    head = state.critics["params"]["Dense_2"]
    lifted = {"Dense_2": head | {"bias": head["bias"].at[1].add(100.0)}}
    state = state._replace(critics={"params": state.critics["params"] | lifted})
    theirs = jax.grad(td3_bc.actor_loss, has_aux=True)(
        state.actor, td3_bc.Args(hidden_dims=(8, 8), alpha=alpha), state, batch
    )[0]
    assert equal(jax.tree.map(lambda x: alpha * x, actor_gradient(args, state, batch)), theirs, rtol=1e-4, atol=1e-6)


def test_the_actor_follows_the_smaller_critic_of_each_row():
    state, batch, _ = setup()
    actions = rebrac.pi(ARGS, state.actor, batch.observations)
    values = rebrac.q(ARGS, state.critics, batch.observations, actions)
    assert (values[0] < values[1]).any() and (values[0] > values[1]).any()
    loss, metrics = rebrac.actor_loss(state.actor, ARGS, 0.0, state.critics, batch)
    smaller = jnp.minimum(values[0], values[1])
    np.testing.assert_allclose(loss, -smaller.mean() / jnp.abs(smaller).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["bc_loss"], ((actions - batch.actions) ** 2).sum() / 32, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_the_scale_of_q_does_not_matter_to_the_actor(scale):
    state, batch, _ = setup()
    scaled = state._replace(critics=replace_head(state.critics, lambda x: scale * x))
    assert equal(actor_gradient(ARGS, state, batch), actor_gradient(ARGS, scaled, batch), rtol=1e-4, atol=1e-6)
    plain = dataclasses.replace(ARGS, normalize_q=False)
    assert not equal(actor_gradient(plain, state, batch), actor_gradient(plain, scaled, batch), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------ the target


@BOTH
def test_the_penalty_lowers_the_target_of_rows_that_go_on(args):
    """By discount * beta_critic * the squared distance to the data's next action, summed over its dimensions."""
    state, batch, noise = setup(args)
    targets = [rebrac.critic_loss(state.critics, args, beta, state, batch, noise)[1] for beta in (0.0, 0.5)]
    smoothing = jnp.clip(0.2 * noise.target_policy, -0.5, 0.5)
    next_actions = jnp.clip(rebrac.pi(args, state.target_actor, batch.next_observations) + smoothing, -1, 1)
    penalty = (1 - batch.terminals) * ((next_actions - batch.next_actions) ** 2).sum(axis=1)
    difference = targets[0]["q_target"] - targets[1]["q_target"]
    np.testing.assert_allclose(difference, 0.99 * 0.5 * penalty.mean(), rtol=1e-4)


def test_nothing_follows_a_terminal():
    """Neither the next observation nor the next action of a terminal row matters."""
    state, batch, noise = setup()
    ended = batch.terminals[:, None]
    changed = batch._replace(
        next_observations=batch.next_observations + 100 * ended, next_actions=batch.next_actions + 100 * ended
    )
    ours, theirs = (
        rebrac.critic_loss(state.critics, ARGS, ARGS.beta_critic, state, b, noise)[0] for b in (batch, changed)
    )
    assert ours == theirs


def test_smoothed_target_actions_stay_in_bounds_and_near_the_policy(monkeypatch):
    state, batch, noise = setup()
    seen, original = [], rebrac.q
    monkeypatch.setattr(rebrac, "q", lambda *a: (seen.append(a[3]), original(*a))[1])
    args = dataclasses.replace(ARGS, policy_noise=10.0)
    rebrac.critic_loss(state.critics, args, args.beta_critic, state, batch, noise)
    smoothed, policy = seen[0], rebrac.pi(args, state.target_actor, batch.next_observations)
    assert (jnp.abs(smoothed) <= 1).all() and (jnp.abs(smoothed - policy) <= args.noise_clip + 1e-6).all()
    assert (jnp.abs(smoothed - policy) > 0.4).any(), "the noise is there"
    assert (jnp.abs(policy) > 1 - args.noise_clip).any(), "and would leave the bounds"


def test_the_next_action_is_that_of_the_next_row_under_d4rls_rule(tmp_path):
    """Also across an episode's end; the rows that time has cut are dropped after that, and so is the last row."""
    kept = loader.load(str(write_hdf5(tmp_path / "data.hdf5")), "Pendulum-v1")
    rows = rebrac.prepare(ARGS, kept).rows
    wanted = [(kept.actions[i], kept.actions[i + 1]) for i in range(len(kept.rewards) - 1) if not kept.timeouts[i]]
    np.testing.assert_array_equal(rows.actions, [action for action, _ in wanted])
    np.testing.assert_array_equal(rows.next_actions, [following for _, following in wanted])
    assert rows.terminals.sum() == kept.terminals.sum() == 5


def test_rewards_are_scaled_and_the_fql_code_keeps_actions_off_the_bounds():
    columns = dict(
        observations=np.zeros((3, 2)), actions=[[-1.0], [0.5], [1.0]], rewards=[1.0, 0, 2], terminals=[0, 0, 1]
    )
    rows = rebrac.prepare(dataclasses.replace(ARGS, reward_scale=100.0), dataset(**columns)).rows
    assert rows.rewards.tolist() == [100, 0, 200] and rows.actions.ravel().tolist() == [-1, 0.5, 1]
    rows = rebrac.prepare(FQL, dataset(**columns)).rows
    np.testing.assert_allclose(rows.actions.ravel(), [-0.99999, 0.5, 0.99999], rtol=1e-7)
    assert rows.next_actions.ravel().tolist() == [*rows.actions.ravel().tolist()[1:], rows.actions[2, 0]]


# ------------------------------------------------------------------------------------------ the order of an update


def run(args, steps, state=None):
    """States after 0, 1, ... updates of one batch, and the metrics between them."""
    start, batch, noise = setup(args)
    states, metrics = [start if state is None else state(start)], []
    for step in range(steps):
        after, figures = update(args, states[-1], batch, noise, step)
        states, metrics = [*states, after], [*metrics, figures]
    return states, metrics


def test_corls_actor_and_targets_move_at_the_first_third_and_fifth_step():
    states, metrics = run(ARGS, 5)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        waits = step % 2 == 1
        assert not equal(after.critics, before.critics)
        for name in ("actor", "actor_opt", "target_actor", "target_critics"):
            assert equal(getattr(after, name), getattr(before, name)) == waits, (step, name)
        assert jnp.isnan(metrics[step]["actor_loss"]) == waits
    assert (states[5].actor_opt[0].count, states[5].critic_opt[0].count) == (3, 5)


def test_fqls_actor_gets_gradients_at_the_second_and_fourth_step_and_drifts_between():
    """One Adam over all networks: it counts every step, and momentum carries a waiting actor on."""
    states, metrics = run(FQL, 4)
    assert equal(states[1].actor, states[0].actor), "nothing to drift with yet"
    for step, (before, after) in enumerate(zip(states[1:], states[2:], strict=False), 1):
        waits = step % 2 == 0
        assert not equal(after.actor, before.actor)
        assert jnp.isnan(metrics[step]["actor_loss"]) == waits
        assert equal(after.target_actor, before.target_actor) == waits
        assert equal(after.target_critics, before.target_critics) == waits
    assert (states[4].actor_opt[0].count, states[4].critic_opt[0].count) == (4, 4)


def test_the_actors_target_lags_and_the_critics_target_does_not():
    """With tau 1 a target is what it follows: CORL's critics after their step, everything else before it."""
    [before, after], _ = run(dataclasses.replace(ARGS, tau=1.0), 1)
    assert equal(after.target_actor, before.actor) and equal(after.target_critics, after.critics)
    [_, before, after], _ = run(dataclasses.replace(FQL, tau=1.0), 2)
    assert equal(after.target_actor, before.actor) and equal(after.target_critics, before.critics)


def test_the_very_first_update_leaves_the_actors_target_where_it_is():
    fresh = lambda state: state._replace(target_actor=state.actor)
    [before, after], _ = run(ARGS, 1, fresh)
    assert equal(after.target_actor, before.target_actor, rtol=1e-6) and not equal(after.actor, before.actor)


def test_corls_actor_climbs_the_critics_that_have_just_moved_and_fqls_those_before():
    state, batch, noise = setup()
    after, metrics = update(ARGS, state, batch, noise, 0)
    np.testing.assert_allclose(
        metrics["actor_loss"], rebrac.actor_loss(state.actor, ARGS, ARGS.beta_actor, after.critics, batch)[0], rtol=1e-5
    )
    state, batch, noise = setup(FQL)
    _, metrics = update(FQL, state, batch, noise, 1)
    np.testing.assert_allclose(
        metrics["actor_loss"], rebrac.actor_loss(state.actor, FQL, FQL.beta_actor, state.critics, batch)[0], rtol=1e-5
    )


def test_fqls_critic_loss_is_half_of_corls():
    state, batch, noise = setup()
    sums, means = (
        rebrac.critic_loss(state.critics, args, args.beta_critic, state, batch, noise)[1]["critic_loss"]
        for args in (dataclasses.replace(ARGS, discount=0.0), dataclasses.replace(FQL, discount=0.0))
    )
    values = rebrac.q(ARGS, state.critics, batch.observations, batch.actions)
    np.testing.assert_allclose(sums, ((values - batch.rewards) ** 2).mean(axis=1).sum(), rtol=1e-5)
    values = rebrac.q(FQL, state.critics, batch.observations, batch.actions)
    np.testing.assert_allclose(means, ((values - batch.rewards) ** 2).mean(), rtol=1e-5)


# ------------------------------------------------------------------------------------------ networks


def fresh(args, obs=17, act=6):
    zeros = jnp.zeros
    batch = Batch(zeros((2, obs)), zeros((2, act)), zeros(2), zeros((2, obs)), zeros((2, act)), zeros(2))
    return rebrac.init(args, Data(batch), jax.random.key(0))


@BOTH
def test_what_reaches_a_critics_head_has_mean_0_and_variance_1(args):
    """The normalisation comes last, after the activation: before it, nothing would be below ReLU's 0."""
    args = dataclasses.replace(args, hidden_dims=(64, 64, 64))
    critic = jax.tree.map(lambda x: x[0], fresh(args).critics)
    inputs = jax.random.normal(jax.random.key(1), (50, 17)), jax.random.normal(jax.random.key(2), (50, 6))
    _, seen = rebrac.Critic(args).apply(critic, *inputs, capture_intermediates=True, mutable="intermediates")
    [last] = seen["intermediates"]["LayerNorm_2"]["__call__"]
    np.testing.assert_allclose(last.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(last.var(axis=1), 1, rtol=1e-3)
    head = critic["params"]["Dense_3"]
    [values] = seen["intermediates"]["Dense_3"]["__call__"]
    np.testing.assert_allclose(last @ head["kernel"] + head["bias"], values, atol=1e-5)


def test_only_the_critics_are_normalised_unless_asked_otherwise():
    normalised = lambda network: any("LayerNorm" in name for name in network["params"])
    state = fresh(ARGS)
    assert normalised(state.critics) and not normalised(state.actor)
    state = fresh(dataclasses.replace(ARGS, layer_norm=False, actor_layer_norm=True))
    assert normalised(state.actor) and not normalised(state.critics)


def test_the_critics_can_be_deeper_than_the_actor():
    state = fresh(Args(hidden_dims=(8, 8), critic_hidden_dims=(16, 16, 16)))
    assert {"Dense_2"} == state.actor["params"].keys() - {"Dense_0", "Dense_1"}
    assert state.critics["params"]["Dense_3"]["kernel"].shape == (2, 16, 1)


@BOTH
def test_layers_start_as_in_the_variants_code(args):
    """Kernels uniform within a bound, hidden biases alike; two different critics, targets as copies."""
    state = fresh(dataclasses.replace(args, hidden_dims=(256, 256, 256)))
    for network, inputs, outputs, head in ((state.actor, 17, 6, 1e-3), (state.critics, 23, 1, 3e-3)):
        sizes = [inputs, 256, 256, 256, outputs]
        for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            kernel, bias = (network["params"][f"Dense_{layer}"][part] for part in ("kernel", "bias"))
            if args.variant == "corl":
                bound = head if layer == 3 else fan_in**-0.5
                assert (0 < jnp.abs(bias).max() <= head) if layer == 3 else (bias == jnp.float32(0.1)).all()
            else:
                small = network is state.actor and layer == 3
                bound = (6 / (fan_in + fan_out)) ** 0.5 * (0.1 if small else 1)  # a hundredth of the variance
                assert (bias == 0).all()
            assert 0.95 * bound < jnp.abs(kernel).max() <= bound * (1 + 1e-6)
            assert jnp.abs(kernel.mean()) < bound / 5
    assert equal(state.target_critics, state.critics) and equal(state.target_actor, state.actor)
    kernels = [layer["kernel"] for name, layer in state.critics["params"].items() if "Dense" in name]
    assert all((x[0] != x[1]).any() for x in kernels)


def test_ogbench_runs_the_fql_code_and_everything_else_corls():
    for name, (_, values) in rebrac.TUNED.items():
        assert (rebrac.tuned(name).variant == "fql") == ("singletask" in name)
        assert {"beta_actor", "beta_critic", "batch_size", "actor_lr", "critic_lr"} <= values.keys()
    assert len(rebrac.TUNED) == 39 + 60 + 15
