"""Statements about WSRL. That its online phase stores, draws and waits as it should is test_online.py's."""

import dataclasses
import functools
import importlib.util

import dataset as loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wsrl
from conftest import ROOT, write_hdf5
from wsrl import Args, Batch, Buffer, Data, Noise, OnlineNoise

spec = importlib.util.spec_from_file_location("claim", ROOT / "benchmarks/claims/wsrl.py")
claim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claim)

ARGS = Args(hidden_dims=(8, 8), num_critics=4, n_actions=3, batch_size=32, utd=4)
update = jax.jit(wsrl.update, static_argnums=0)


def rows(size, seed=0) -> Batch:
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(size, 5)), np.tanh(rng.normal(size=(size, 2))), rng.normal(size=size)
    columns += rng.normal(size=(size, 5)), rng.random(size) > 0.7, rng.normal(size=size)
    return Batch(*(jnp.asarray(x, jnp.float32) for x in columns))


@functools.cache
def networks(args):
    """A state whose targets differ from its critics."""
    state, rng = wsrl.init(args, Data(rows(2)), jax.random.key(0)), np.random.default_rng(0)
    move = lambda network: jax.tree.map(lambda x: x + jnp.float32(0.2 * rng.normal(size=x.shape)), network)
    names = ("actor", "critics", "target_critics")
    return state._replace(**{name: move(getattr(state, name)) for name in names}, buffer=None)


def offline(args=ARGS, seed=0) -> tuple[wsrl.State, Batch, Noise]:
    batch = rows(args.batch_size, seed)
    return networks(args), batch, wsrl.draw(args, batch, jax.random.key(seed))


def online(args=ARGS, seed=0) -> tuple[wsrl.State, Batch, OnlineNoise]:
    batch = jax.tree.map(lambda x: x.reshape(args.utd, -1, *x.shape[1:]), rows(args.utd * args.batch_size, seed))
    return networks(args), batch, wsrl.draw(args, batch, jax.random.key(seed))


def distance(a, b):
    """Of two networks, over all parameters."""
    return float(sum(((x - y) ** 2).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) ** 0.5)


# ------------------------------------------------------------------------------------------ networks


def test_ten_trunks_share_one_head():
    args = dataclasses.replace(ARGS, num_critics=10)
    params = wsrl.init(args, Data(rows(2)), jax.random.key(0)).critics["params"]
    assert params["head"]["kernel"].shape == (8, 1)
    assert all(x.shape[0] == 10 for x in jax.tree.leaves(params["trunk"]))
    kernels = params["trunk"]["Dense_0"]["kernel"]
    assert all((kernels[0] != kernels[i]).any() for i in range(1, 10))


def test_the_drawn_critics_are_those_of_all():
    state, batch, _ = offline()
    everyone = wsrl.q(ARGS, state.critics, batch.observations, batch.actions)
    two = wsrl.q(ARGS, wsrl.some(state.critics, jnp.array([3, 1])), batch.observations, batch.actions)
    np.testing.assert_allclose(two, everyone[jnp.array([3, 1])], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ pre-training


def gap(args, batch, noise):
    state = networks(ARGS)
    chosen = wsrl.choices(args, state, batch, noise.uniform, noise.gap_policy, noise.gap_next_policy)
    return wsrl.gaps(wsrl.some(state.critics, noise.gap_subset), args, chosen)[0]


def test_without_a_return_to_hold_on_to_calql_is_cql():
    _, batch, noise = offline()
    calibrated = dataclasses.replace(ARGS, calibrated=True)
    unbounded = batch._replace(mc_returns=jnp.full(32, -jnp.inf))
    np.testing.assert_array_equal(gap(calibrated, unbounded, noise), gap(ARGS, batch, noise))
    assert (gap(calibrated, batch, noise) >= gap(ARGS, batch, noise)).all()


def test_above_all_values_the_return_takes_the_policys_actions_out_of_the_gradient():
    """The uniform actions and the data's are never bounded: their part of the gradient stays."""
    state, batch, noise = offline()
    args = dataclasses.replace(ARGS, calibrated=True, importance_sampling=False)
    high = batch._replace(mc_returns=jnp.full(32, 1e3))
    chosen = wsrl.choices(args, state, high, noise.uniform, noise.gap_policy, noise.gap_next_policy)
    loss = lambda actions: wsrl.gaps(state.critics, args, chosen._replace(actions=actions))[0].mean()
    gradient = jnp.abs(jax.grad(loss)(chosen.actions)).sum(axis=(0, 2))  # of data, 3 uniform, 6 of the policy
    assert gradient[0] > 0 and (gradient[4:] == 0).all()


def test_the_multiplier_grows_while_the_gap_is_too_wide():
    state, batch, _ = offline()
    for target, direction in ((-1e3, 1), (1e3, -1)):
        args = dataclasses.replace(ARGS, lagrange=True, target_gap=target)
        after, _ = update(args, state, batch, wsrl.draw(args, batch, jax.random.key(1)), 0)
        assert jnp.sign(after.multiplier - state.multiplier) == direction


def test_returns_end_with_the_episode_and_a_failure_lasts_for_ever():
    """The card's example: -5, -5, +5, and an episode of nothing but failure; a third that time cut off."""
    rewards = np.array([-5.0, -5, 5, -5, -5, -5, 5])
    ends = np.array([False, False, True, False, True, False, True])
    found = wsrl.returns_to_go(Args(sparse=True), rewards, ends)
    ahead = -5 + 0.99 * 5
    np.testing.assert_allclose(found, [-5 + 0.99 * ahead, ahead, 5, -500, -500, ahead, 5])
    found = wsrl.returns_to_go(Args(sparse=False), rewards, ends)
    np.testing.assert_allclose(found[3:5], [-5 - 0.99 * 5, -5])


def test_the_datas_trajectories_end_at_goals_and_where_rows_are_left_out(tmp_path):
    """AntMaze's episodes walk on after a goal; what comes after it, without another, is a failure of its own."""
    terminals, keep = np.arange(200) == 4, np.arange(200) % 20 != 19
    replaced = {"rewards": terminals.astype(np.float32), "terminals": terminals, "timeouts": np.arange(200) % 20 == 19}
    data = loader.load(str(write_hdf5(tmp_path / "data.hdf5", **replaced)), "Pendulum-v1")
    data = data._replace(keep=keep, episodes=np.stack([np.arange(0, 200, 20), np.arange(20, 201, 20)], axis=1))
    args = dataclasses.replace(ARGS, calibrated=True, sparse=True, reward_scale=10.0, reward_shift=-5.0)
    found = wsrl.prepare(args, data).rows
    np.testing.assert_allclose(found.mc_returns[:5][::-1], 5 * 0.99 ** np.arange(5) - 500 * (1 - 0.99 ** np.arange(5)))
    assert len(found.rewards) == keep.sum() and (found.mc_returns[5:] == -500).all()


def test_a_pretraining_step_moves_every_network_once():
    state, batch, noise = offline()
    after, _ = update(ARGS, state, batch, noise, 0)
    assert after.actor_opt[0].count == after.critic_opt[0].count == after.temperature_opt[0].count == 1
    polyak = jax.tree.map(lambda new, old: 0.005 * new + 0.995 * old, after.critics, state.target_critics)
    assert distance(after.target_critics, polyak) < 1e-5


# ------------------------------------------------------------------------------------------ online


def test_an_online_update_moves_the_targets_with_every_critic_step():
    state, batch, noise = online()
    after, _ = update(ARGS, state, batch, noise, 0)
    assert after.critic_opt[0].count == after.actor_opt[0].count == ARGS.utd + 1, "all are called every time"
    still = dataclasses.replace(ARGS, adam_drift=False)
    after, _ = update(still, state, batch, noise, 0)
    assert (after.critic_opt[0].count, after.actor_opt[0].count, after.temperature_opt[0].count) == (ARGS.utd, 1, 1)


def test_momentum_carries_the_actor_sqrt_5_times_as_far():
    """Under the same gradient at every update: Adam's steps are a ratio of its two moments, which decay in between."""
    state, ones = networks(ARGS), jax.tree.map(jnp.ones_like, networks(ARGS).actor)

    def reach(args):
        def sub_steps(state, _):
            for _ in range(ARGS.utd):
                state = wsrl.descend(args, state)
            return wsrl.descend(args, state, actor=ones), None

        return distance(jax.jit(lambda state: jax.lax.scan(sub_steps, state, length=3000))(state)[0].actor, state.actor)

    ratio = reach(ARGS) / reach(dataclasses.replace(ARGS, adam_drift=False))
    assert ratio == pytest.approx(5**0.5, rel=0.01)


def test_with_two_critics_and_one_step_it_is_sac_with_a_shared_head_and_no_entropy_in_the_target():
    args = dataclasses.replace(ARGS, utd=1, num_critics=2)
    state, batch, noise = online(args)
    [one], both = [jax.tree.map(lambda x: x[0], batch)], noise._replace(target_subset=jnp.array([[0, 1]]))
    _, metrics = update(args, state, batch, both, 0)
    actions, _ = wsrl.pi(args, state.actor, one.next_observations, noise.next_policy[0])
    next_q = wsrl.q(args, state.target_critics, one.next_observations, actions).min(axis=0)
    y = one.rewards + args.discount * (1 - one.terminals) * next_q
    values = wsrl.q(args, state.critics, one.observations, one.actions)
    np.testing.assert_allclose(metrics["critic_loss"], ((values - y) ** 2).mean(), rtol=1e-4)


def test_the_largest_of_several_next_actions_is_the_target():
    args = dataclasses.replace(ARGS, online_max_target_backup=True)
    state, batch, noise = online(args)
    assert noise.next_policy.shape == (4, 3, 32, 2)
    one, subset = jax.tree.map(lambda x: x[0], batch), noise.target_subset[0]
    several = wsrl.target(args, state, one, noise.next_policy[0], subset)
    alone = [wsrl.target(args, state, one, x, subset) for x in noise.next_policy[0]]
    np.testing.assert_allclose(several, np.max(alone, axis=0), rtol=1e-5, atol=1e-5)


def test_after_the_switch_no_row_of_the_dataset_is_seen():
    data = Data(rows(50), Buffer(rows(50, seed=1)._replace(rewards=jnp.full(50, 7.0)), 20, 20))
    batch = wsrl.sample(ARGS, data, jax.random.key(0))
    assert batch.rewards.shape == (4, 32) and (batch.rewards == 7).all()
    kept = wsrl.sample(dataclasses.replace(ARGS, keep_gap=True, offline_ratio=0.5), data, jax.random.key(0))
    assert kept.rewards.shape == (32,) and (kept.rewards == 7).sum() == 16


# ---------------------------------------------------------------------------------------------------- the claim


def test_the_claims_table_says_by_how_much_scores_fall_in_the_first_steps_with_updates():
    """Two seeds that stand at 30 and 40 at the switch; what lies outside the horizon does not count."""
    args = claim.Args(online_steps=4000, horizon=2000, variants=("no warm-up", "plain"))
    scores = np.array([[30.0, 99, 20, 10, 50], [40.0, 99, 30, 24, 60]])
    before = np.array([20_000]), np.array([[30.0], [40.0]])
    after = {"no warm-up": (np.arange(0, 5000, 1000), scores, np.array([0.5, 0.7]))}
    row = claim.table(args, before, after).splitlines()[-1]
    # Updates begin at 1,024: the evaluations at 2,000 and 3,000 count, with means of 15 and 27.
    assert row == (
        "| no warm-up | 1,024 | 35.0 ± 7.1 | 21.0 ± 8.5 | -14.0 (-15, -13) | 17.0 ± 9.9 | 17.0 ± 9.9 | "
        "55.0 ± 7.1 (2,976) | 0.60 |"
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"variants": ("warm",)}, "no variant 'warm'"),
        ({"online_steps": 7000}, "The 3000 steps after the longest warm-up, 5000, need"),
        ({"eval_every": 4000}, "need an evaluation"),
    ],
)
def test_the_claim_refuses_before_it_trains_what_it_could_not_tabulate(given, sentence, capsys, monkeypatch):
    monkeypatch.setattr(claim, "run", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SystemExit):
        claim.main(dataclasses.replace(claim.Args(), **given))
    assert sentence in capsys.readouterr().err
