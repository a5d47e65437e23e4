"""Statements about SPOT."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spot
import td3_bc
from spot import Args, Batch, Data

ARGS = Args(hidden_dims=(8, 8), vae_hidden_dims=(16, 16), batch_size=32, vae_steps=4, actor_dropout=0.0, num_samples=3)
update = jax.jit(spot.update, static_argnums=0)


@functools.cache
def setup(args=ARGS, seed=0):
    """A state whose targets differ from its networks, a batch, noise."""
    keys = jax.random.split(jax.random.key(seed), 8)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    batch = Batch(
        observations=normal(0, 32, 5),
        actions=jnp.tanh(normal(1, 32, 2)),
        rewards=normal(2, 32),
        next_observations=normal(3, 32, 5),
        terminals=(normal(4, 32) > 0.5).astype(jnp.float32),
    )
    state, other = (spot.init(args, Data(batch, jnp.zeros(5), jnp.ones(5)), keys[i]) for i in (5, 6))
    state = state._replace(target_actor=other.actor, target_critics=other.critics)
    return state, batch, spot.draw(args, batch, keys[7])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


@functools.partial(jax.jit, static_argnums=0)
def actor_gradient(args, state, batch, noise, lambd):
    return jax.grad(spot.actor_loss, has_aux=True)(state.actor, args, state, batch, noise, lambd)[0]


def penalty(args, state, observations, actions, noise):
    error, divergence = spot.nll(args, state.encoder, state.decoder, observations, actions, noise)
    return error + args.beta * divergence


# ------------------------------------------------------------------------------------------ the actor


def test_without_the_penalty_the_actor_climbs_q_at_scale_1():
    """TD3's gradient over mean |Q_1|."""
    state, batch, noise = setup()

    def td3(actor):
        actions = spot.pi(ARGS, actor, batch.observations)
        return -spot.q(ARGS, state.critics, batch.observations, actions)[0].mean()

    scale = jnp.abs(spot.q(ARGS, state.critics, batch.observations, spot.pi(ARGS, state.actor, batch.observations))[0])
    theirs = jax.tree.map(lambda x: x / scale.mean(), jax.grad(td3)(state.actor))
    assert equal(actor_gradient(ARGS, state, batch, noise, 0.0), theirs, rtol=1e-4, atol=1e-7)


def test_under_a_heavy_penalty_the_actor_goes_where_the_data_is_whatever_q_says():
    args = dataclasses.replace(ARGS, lambd=1e6, vae_steps=0, policy_freq=1, actor_lr=1e-2)
    state, batch, noise = setup(args)
    other = state._replace(critics=jax.tree.map(lambda x: -3 * x, state.critics))
    ours, theirs = (actor_gradient(args, x, batch, noise, 1e6) for x in (state, other))
    assert equal(ours, theirs, rtol=1e-2, atol=1.0) and max(jnp.abs(x).max() for x in jax.tree.leaves(ours)) > 1e3
    costs = []
    for step in range(20):
        state, metrics = update(args, state, batch, noise, step)
        costs.append(metrics["nll"])
    assert costs[-1] < 0.9 * costs[0]


@pytest.mark.parametrize("lambd", [0.25, 2.0])
def test_with_distance_to_the_data_for_a_penalty_it_is_td3_bc(lambd, monkeypatch):
    """At alpha = 1 / lambda, where TD3+BC has the same loss over lambda."""
    state, batch, noise = setup()
    distance = lambda args, encoder, decoder, observations, actions, noise: (
        ((actions - batch.actions) ** 2).mean(axis=1),
        jnp.zeros(32),
    )
    monkeypatch.setattr(spot, "nll", distance)
    ours = jax.grad(spot.actor_loss, has_aux=True)(state.actor, ARGS, state, batch, noise, lambd)[0]
    args = td3_bc.Args(hidden_dims=(8, 8), alpha=1 / lambd)
    theirs = jax.grad(td3_bc.actor_loss, has_aux=True)(state.actor, args, state, batch)[0]
    assert equal(ours, jax.tree.map(lambda x: lambd * x, theirs), rtol=1e-4, atol=1e-7)


def test_the_critics_loss_is_td3s():
    state, batch, noise = setup()
    ours = spot.critic_loss(state.critics, ARGS, state, batch, noise, 0.99)
    theirs = td3_bc.critic_loss(state.critics, td3_bc.Args(hidden_dims=(8, 8)), state, batch, noise)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)


# ------------------------------------------------------------------------------------------ the VAE


def test_the_penalty_pulls_at_the_action_through_encoder_and_decoder():
    """Were either cut off, the gradient would be another."""
    state, batch, noise = setup()

    def gradient(encode=lambda x: x, decode=lambda x: x):
        def cost(actions):
            latent = 4
            mean, log_std = spot.Encoder((16, 16), latent).apply(state.encoder, batch.observations, encode(actions))
            codes = mean[:, None] + jnp.exp(log_std)[:, None] * noise.penalty
            several = jnp.broadcast_to(batch.observations[:, None], (32, 3, 5))
            decoded = spot.Decoder((16, 16), 2).apply(state.decoder, several, codes)
            kl = -(1 + jnp.log(jnp.exp(log_std) ** 2) - mean**2 - jnp.exp(log_std) ** 2).mean(-1) / 2
            return (((decoded - decode(actions)[:, None]) ** 2).mean(axis=(1, 2)) + 0.5 * kl).mean()

        return jax.grad(cost)(batch.actions)

    ours = jax.grad(lambda x: penalty(ARGS, state, batch.observations, x, noise.penalty).mean())(batch.actions)
    np.testing.assert_allclose(ours, gradient(), rtol=1e-4, atol=1e-7)
    stop = jax.lax.stop_gradient
    for cut in (gradient(encode=stop), gradient(decode=stop)):
        assert jnp.abs(cut).max() > 1e-4 and not jnp.allclose(ours, cut, rtol=1e-3)


def test_a_code_that_is_the_prior_costs_nothing():
    state, batch, noise = setup()
    heads = {name: jax.tree.map(jnp.zeros_like, state.encoder["params"][name]) for name in ("mean", "log_std")}
    encoder = {"params": state.encoder["params"] | heads}
    _, divergence = spot.nll(ARGS, encoder, state.decoder, batch.observations, batch.actions, noise.penalty)
    assert (divergence == 0).all()
    _, divergence = spot.nll(ARGS, state.encoder, state.decoder, batch.observations, batch.actions, noise.penalty)
    assert (divergence > 0).all()


def test_a_trained_vae_finds_the_datas_actions_likelier_than_others():
    """Two actions are taken in a state, +-0.7 of its sign; none is between."""
    args = dataclasses.replace(ARGS, vae_steps=400, vae_lr=3e-3)
    state, batch, _ = setup(args)
    keys = jax.random.split(jax.random.key(1), 402)
    sides = jnp.sign(jax.random.normal(keys[-1], (32, 1)))
    batch = batch._replace(actions=0.7 * sides * jnp.sign(batch.observations[:, :2]))

    def learn(state, step):
        return spot.update(args, state, batch, spot.draw(args, batch, keys[step]), step)

    state, metrics = jax.jit(lambda state: jax.lax.scan(learn, state, jnp.arange(400)))(state)
    assert metrics["vae_loss"][-20:].mean() < 0.7 * metrics["vae_loss"][:20].mean()
    noise = jax.random.normal(keys[-2], (32, 50, 4))
    cost = lambda actions: penalty(args, state, batch.observations, actions, noise).mean()
    random = jax.random.uniform(keys[-1], (32, 2), minval=-1, maxval=1)
    assert cost(batch.actions) < 0.7 * cost(random) and cost(batch.actions) < cost(-batch.actions * jnp.array([1, -1]))


def test_the_vaes_loss_is_the_mean_penalty_of_the_datas_actions():
    state, batch, noise = setup()
    loss, _ = spot.vae_loss((state.encoder, state.decoder), ARGS, batch, noise)
    costs = penalty(ARGS, state, batch.observations, batch.actions, noise.vae[:, None])
    np.testing.assert_allclose(loss, costs.mean(), rtol=1e-6)


# ------------------------------------------------------------------------------------------ one count of steps


def test_the_vae_is_trained_first_and_stands_still_afterwards():
    """Of the policy's steps every second moves the actor and the targets, beginning with the second."""
    state, batch, noise = setup()
    for step in range(8):
        after, metrics = update(ARGS, state, batch, noise, step)
        moved = {name for name in state._fields if not equal(getattr(state, name), getattr(after, name))}
        if step < 4:
            assert moved == {"encoder", "decoder", "vae_opt"}
        elif step % 2 == 0:
            assert moved == {"critics", "critic_opt"}
        else:
            assert moved == {"critics", "critic_opt", "actor", "actor_opt", "target_actor", "target_critics"}
        known = {name for name, value in metrics.items() if not jnp.isnan(value)}
        assert len(known) == (3, 3, 3, 3, 3, 7, 3, 7)[step] and ("vae_loss" in known) == (step < 4)
        state = after


def test_a_run_that_begins_online_leaves_the_vae_alone():
    args = dataclasses.replace(ARGS, steps=0, online_steps=8)
    state, batch, noise = setup(args)
    after, metrics = update(args, state, batch, noise, 0)
    assert equal(after.encoder, state.encoder) and jnp.isnan(metrics["vae_loss"])
    assert not jnp.isnan(metrics["critic_loss"])


def test_lambda_cools_with_every_online_update_to_its_last_share():
    args = dataclasses.replace(ARGS, lambd=0.5, lambd_end=0.2, online_steps=1_000_000, steps=100)
    lambdas = [spot.cooled(args, jnp.asarray(step)) for step in (0, 99, 100, 100_099, 800_099, 900_000, 2_000_000)]
    np.testing.assert_allclose(lambdas, [0.5, 0.5, 0.5 * (1 - 1e-6), 0.45, 0.1, 0.1, 0.1], rtol=1e-6)
    late = [spot.cooled(dataclasses.replace(args, warmup=500), jnp.asarray(step)) for step in (0, 599, 600, 100_599)]
    np.testing.assert_allclose(late, [0.5, 0.5, lambdas[2], lambdas[3]], rtol=1e-6)
    warm = dataclasses.replace(args, lambd_cool=False)
    assert {float(spot.cooled(warm, jnp.asarray(step))) for step in (0, 100, 2_000_000)} == {0.5}


def test_online_actor_and_critics_get_new_optimisers_once():
    args = dataclasses.replace(ARGS, steps=9, online_steps=8, vae_steps=2)
    state, batch, noise = setup(args)
    state = state._replace(buffer=None)
    counts = []
    for step in range(13):
        state, _ = update(args, state, batch, noise, step)
        counts.append((state.vae_opt[0].count, state.critic_opt[0].count, state.actor_opt[0].count))
    # Step 9 is the first online one; it is also one of the actor's.
    assert counts[1] == (2, 0, 0) and counts[8] == (2, 7, 3) and counts[9] == (2, 1, 1) and counts[12] == (2, 4, 2)
    zeros = lambda opt: jax.tree.map(jnp.zeros_like, opt)
    fresh = state._replace(actor_opt=zeros(state.actor_opt), critic_opt=zeros(state.critic_opt))
    step = lambda state, step, **flags: update(dataclasses.replace(args, **flags), state, batch, noise, step)[0]
    assert equal(step(state, 9), step(fresh, 9)) and not equal(step(state, 11), step(fresh, 11))
    # A warm-up has no updates: the first one after it is number 9 + 4, whether 4 or 5 steps of two environments long.
    for warmup in (4, 5):
        flags = {"warmup": warmup, "num_envs": 2}
        assert equal(step(state, 13, **flags), step(fresh, 13, **flags))
        assert not equal(step(state, 14, **flags), step(fresh, 14, **flags))


def test_online_the_discount_changes_where_another_is_given():
    targets = lambda args: [update(args, *setup(args), step)[1]["q_target"] for step in (9, 10)]
    args = dataclasses.replace(ARGS, steps=10, discount=0.9)
    offline, online = targets(dataclasses.replace(args, online_discount=0.5))
    state, batch, noise = setup(args)
    wanted = [
        spot.critic_loss(state.critics, args, state, batch, noise, discount)[1]["q_target"] for discount in (0.9, 0.5)
    ]
    np.testing.assert_allclose([offline, online], wanted, rtol=1e-5)
    assert offline != online and len(set(map(float, targets(args)))) == 1


def test_noise_on_online_actions_is_bounded():
    args = dataclasses.replace(ARGS, exploration_noise=10.0, noise_clip=0.1)
    state, batch, _ = setup(args)
    still = spot.act(args, state, batch.observations)
    moved = spot.explore(args, state, batch.observations, jax.random.key(0), 0) - still
    assert jnp.abs(moved).max() <= 0.1 + 1e-6 and jnp.median(jnp.abs(moved)) > 0.09


# ------------------------------------------------------------------------------------------ dropout and first weights


def test_dropout_leaves_units_out_of_training_and_of_no_action():
    args = dataclasses.replace(ARGS, hidden_dims=(400, 400), actor_dropout=0.1)
    _, batch, noise = setup(args)
    assert [x.shape for x in noise.masks + noise.target_masks] == [(32, 400)] * 4
    for i, mask in enumerate(noise.masks + noise.target_masks):
        assert set(np.unique(mask)) == {0, np.float32(1 / 0.9)} and abs((mask == 0).mean() - 0.1) < 0.015
        assert all((mask != other).any() for other in (noise.masks + noise.target_masks)[:i])
    args = dataclasses.replace(ARGS, actor_dropout=0.5, vae_steps=0)
    state, batch, noise = setup(args)
    for name, others in (("masks", "actor"), ("target_masks", "critics")):
        cleared = noise._replace(**{name: tuple(jnp.ones_like(x) for x in getattr(noise, name))})
        ours, theirs = (update(args, state, batch, x, 1)[0] for x in (noise, cleared))
        assert not equal(getattr(ours, others), getattr(theirs, others))
    plain = spot.pi(args, state.actor, batch.observations)
    assert equal(spot.act(args, state, batch.observations), plain, rtol=1e-6)
    assert not equal(spot.pi(args, state.actor, batch.observations, noise.masks), plain, rtol=1e-3)


def test_dropout_is_a_factor_of_every_hidden_layer():
    """Before or after the ReLU is the same, for no factor is negative."""
    state, batch, noise = setup(dataclasses.replace(ARGS, actor_dropout=0.5))
    x, layers = batch.observations, state.actor["params"]
    for i, mask in enumerate(noise.masks):
        x = jnp.maximum((x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"]) * mask, 0)
    wanted = jnp.tanh(x @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"])
    np.testing.assert_allclose(
        spot.pi(ARGS, state.actor, batch.observations, noise.masks), wanted, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("actor_w", "critic_w"), [(None, None), (1e-3, 3e-3)])
def test_layers_start_as_pytorch_starts_them_and_output_layers_where_they_are_told(actor_w, critic_w):
    args = Args(actor_init_w=actor_w, critic_init_w=critic_w)
    batch = Batch(*(jnp.zeros((2, n)) if n else jnp.zeros(2) for n in (17, 6, 0, 17, 0)))
    state = jax.jit(spot.init, static_argnums=0)(args, Data(batch, jnp.zeros(17), jnp.ones(17)), jax.random.key(0))
    for network, bounds in (
        (state.actor, {"Dense_0": 17**-0.5, "Dense_1": 1 / 16, "Dense_2": actor_w or 1 / 16}),
        (state.critics, {"Dense_0": 23**-0.5, "Dense_1": 1 / 16, "Dense_2": critic_w or 1 / 16}),
        (state.encoder, {"Dense_0": 23**-0.5} | dict.fromkeys(("Dense_1", "mean", "log_std"), 750**-0.5)),
        (state.decoder, {"Dense_0": 29**-0.5, "Dense_1": 750**-0.5, "Dense_2": 750**-0.5}),
    ):
        assert network["params"].keys() == bounds.keys()
        for layer, bound in bounds.items():
            parameters = network["params"][layer]
            assert 0.95 * bound < jnp.abs(parameters["kernel"]).max() <= bound
            assert 0 < jnp.abs(parameters["bias"]).max() <= bound
    assert equal(state.target_critics, state.critics) and equal(state.target_actor, state.actor)
    assert state.encoder["params"]["mean"]["bias"].shape == (12,), "twice the action's"


def test_steps_that_leave_the_policy_none_are_refused(capsys):
    with pytest.raises(SystemExit):
        spot.prepare(dataclasses.replace(ARGS, steps=4), None)
    assert "--vae-steps" in capsys.readouterr().err
