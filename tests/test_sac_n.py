"""Statements about SAC-N."""

import dataclasses
import functools
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sac
import sac_n
import scipy.stats
from sac_n import Args, Batch, Data, Noise

ARGS = Args(hidden_dims=(8, 8), batch_size=32, num_critics=5)
init = jax.jit(sac_n.init, static_argnums=0)
update = jax.jit(sac_n.update, static_argnums=0)


@functools.cache
def setup(args=ARGS):
    """A state whose targets differ from its critics, a batch, noise."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    batch = Batch(normal(32, 5), jnp.tanh(normal(32, 2)), normal(32), normal(32, 5), jnp.float32(rng.random(32) > 0.7))
    state = init(args, Data(batch), jax.random.key(0))
    # Heads that begin near 0 give every action the same value: all parameters move.
    move = lambda network: jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), network)
    state = state._replace(**{name: move(getattr(state, name)) for name in ("actor", "critics", "target_critics")})
    return state, batch, Noise(*normal(3, 32, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss(name, args, *rest):
    return getattr(sac_n, f"{name}_loss")(*rest[:1], args, *rest[1:])


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


# ------------------------------------------------------------------------------------------ many critics


def test_with_two_critics_the_critics_loss_is_twice_sacs(monkeypatch):
    """SAC halves the squares. The policies are parametrised otherwise: here both say the same."""
    args = dataclasses.replace(ARGS, num_critics=2)
    state, batch, noise = setup(args)
    spoken = sac_n.pi(args, state.actor, batch.next_observations, noise.next_policy)
    monkeypatch.setattr(sac, "pi", lambda *_: spoken)
    sacs = jax.grad(sac.critic_loss, has_aux=True)(state.critics, sac.Args(hidden_dims=(8, 8)), state, batch, noise)
    ours = jax.grad(sac_n.critic_loss, has_aux=True)(state.critics, args, state, batch, noise)
    assert equal(ours[0], jax.tree.map(lambda x: 2 * x, sacs[0]), rtol=1e-4, atol=1e-6)
    for name, factor in (("critic_loss", 2), ("q", 1), ("q_target", 1)):
        np.testing.assert_allclose(ours[1][name], factor * sacs[1][name], rtol=1e-5)


def test_the_smallest_of_all_target_critics_makes_the_target():
    state, batch, noise = setup()
    _, metrics = loss("critic", ARGS, state.critics, state, batch, noise)
    actions, log_pi = sac_n.pi(ARGS, state.actor, batch.next_observations, noise.next_policy)
    each = [
        sac_n.Critic(ARGS).apply(
            jax.tree.map(lambda x, i=i: x[i], state.target_critics), batch.next_observations, actions
        )
        for i in range(5)
    ]
    y = batch.rewards + 0.99 * (1 - batch.terminals) * (np.min(each, axis=0) - log_pi)
    np.testing.assert_allclose(metrics["q_target"], y.mean(), rtol=2e-3)  # float32, near the edge of tanh
    assert len(set(np.argmin(each, axis=0))) > 2, "several critics are the smallest somewhere"


def test_the_order_of_the_critics_matters_to_nothing():
    state, batch, noise = setup()
    order = jnp.array([3, 0, 4, 1, 2])
    turn = lambda tree: jax.tree.map(lambda x: x[order] if x.ndim else x, tree)
    turned = state._replace(critics=turn(state.critics), target_critics=turn(state.target_critics))
    after, metrics = update(ARGS, state, batch, noise, 0)
    after_turned, metrics_turned = update(ARGS, turned, batch, noise, 0)
    assert equal(metrics, metrics_turned, rtol=1e-4) and equal(after.actor, after_turned.actor, atol=1e-6)
    assert equal(turn(after.critics), after_turned.critics, atol=1e-6)


def test_a_critic_learns_as_if_it_were_alone():
    """The loss is a sum: another critic changes a critic's step only through the smallest target."""
    state, batch, noise = setup()
    after, _ = update(ARGS, state, batch, noise, 0)
    head = jax.tree.map(lambda x: x.at[1:].add(5.0), state.critics["params"]["Dense_2"])
    others = state._replace(critics={"params": state.critics["params"] | {"Dense_2": head}})
    actor_stays = dataclasses.replace(ARGS, actor_lr=0.0)
    after, after_others = (update(actor_stays, x, batch, noise, 0)[0].critics for x in (state, others))
    first = lambda critics: jax.tree.map(lambda x: x[0], critics)
    assert equal(first(after), first(after_others), atol=1e-7) and not equal(first(after), first(state.critics))


def test_more_critics_never_raise_the_target():
    state, batch, noise = setup()
    targets = []
    for n in range(1, 6):
        fewer = state._replace(target_critics=jax.tree.map(lambda x, n=n: x[:n], state.target_critics))
        targets.append(sac_n.critic_loss(state.critics, ARGS, fewer, batch, noise)[1]["q_target"])
    assert (np.diff(targets) <= 0).all() and targets[-1] < targets[0]


def test_the_actor_climbs_the_smallest_critic_and_is_paid_for_entropy():
    state, batch, noise = setup()
    actions, log_pi = sac_n.pi(ARGS, state.actor, batch.observations, noise.policy)
    smallest = sac_n.q(ARGS, state.critics, batch.observations, actions).min(axis=0)
    for alpha in (0.0, 1.0, 3.0):
        value, _ = loss("actor", ARGS, state.actor, state._replace(log_alpha=jnp.log(alpha)), batch, noise)
        np.testing.assert_allclose(value, (alpha * log_pi - smallest).mean(), rtol=2e-3)  # as above


# ------------------------------------------------------------------------------------------ order and alpha


def test_alpha_moves_first_then_the_actor_then_the_critics():
    """Each step has what the ones before it have changed, and nothing of what comes after."""
    state, batch, noise = setup()
    step = lambda **rates: update(dataclasses.replace(ARGS, **rates), state, batch, noise, 0)[0]
    plain = step()
    assert equal(step(actor_lr=0.1, critic_lr=0.1).log_alpha, plain.log_alpha)
    assert equal(step(critic_lr=0.1).actor, plain.actor) and not equal(step(alpha_lr=1.0).actor, plain.actor)
    assert not equal(step(actor_lr=0.1).critics, plain.critics) and not equal(step(alpha_lr=1.0).critics, plain.critics)


def test_alpha_rises_when_the_policy_is_too_sure_of_itself(monkeypatch):
    state, batch, noise = setup()
    for log_pi, direction in ((5.0, 1), (-5.0, -1)):  # the target entropy is -2
        monkeypatch.setattr(sac_n, "pi", lambda *_, log_pi=log_pi: (None, jnp.full(32, log_pi)))
        gradient, _ = jax.grad(sac_n.alpha_loss, has_aux=True)(state.log_alpha, ARGS, state, batch, noise)
        assert jnp.sign(-gradient) == direction


def test_every_draw_has_a_use_of_its_own():
    state, batch, noise = setup()
    plain, _ = update(ARGS, state, batch, noise, 0)
    changed = lambda name: update(ARGS, state, batch, noise._replace(**{name: 0 * noise.policy}), 0)[0]
    assert not equal(changed("alpha_policy").log_alpha, plain.log_alpha)
    after = changed("policy")
    assert equal(after.log_alpha, plain.log_alpha) and not equal(after.actor, plain.actor)
    after = changed("next_policy")
    assert equal(after.actor, plain.actor) and not equal(after.critics, plain.critics)


def test_a_terminal_ends_the_target():
    state, batch, noise = setup()
    _, metrics = loss("critic", ARGS, state.critics, state, batch._replace(terminals=jnp.ones(32)), noise)
    np.testing.assert_allclose(metrics["q_target"], batch.rewards.mean(), rtol=1e-5)


# ------------------------------------------------------------------------------------------ the policy's density


def test_the_density_is_scipys_normal_through_tanh():
    state, batch, noise = setup()
    actions, log_pi = sac_n.pi(ARGS, state.actor, batch.observations, noise.policy)
    mean, log_std = (np.asarray(x, np.float64) for x in sac_n.gaussian(ARGS, state.actor, batch.observations))
    raw = mean + np.exp(log_std) * np.asarray(noise.policy, np.float64)
    expected = scipy.stats.norm.logpdf(raw, mean, np.exp(log_std)) - np.log(1 - np.tanh(raw) ** 2 + 1e-6)
    np.testing.assert_allclose(log_pi, expected.sum(-1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(actions, np.tanh(raw), atol=1e-5)


def test_the_density_integrates_to_1(monkeypatch):
    """Over the actions of one dimension, by the noise that leads to each."""
    mean, log_std = jnp.array([[0.3]]), jnp.array([[-0.5]])
    monkeypatch.setattr(sac_n, "gaussian", lambda *_: (mean, log_std))
    actions = jnp.linspace(-0.9999, 0.9999, 200_001)[:, None]
    _, log_pi = sac_n.pi(ARGS, None, None, (jnp.arctanh(actions) - mean) / jnp.exp(log_std))
    np.testing.assert_allclose(jnp.trapezoid(jnp.exp(log_pi), actions[:, 0]), 1, atol=2e-3)


# ------------------------------------------------------------------------------------------ networks and presets


def fresh(obs=17, act=6, **flags):
    args, zeros = Args(**flags), jnp.zeros
    return init(
        args, Data(Batch(zeros((2, obs)), zeros((2, act)), zeros(2), zeros((2, obs)), zeros(2))), jax.random.key(0)
    )


@pytest.mark.parametrize("edac_init", [True, False])
def test_layers_start_as_in_corls_code(edac_init):
    """Uniform within a bound: the actor's of the inputs, the critics' of the outputs; every critic another one."""
    state = fresh(edac_init=edac_init, num_critics=4)
    layers = {f"Dense_{i}": (n**-0.5, 0.1) for i, n in enumerate((17, 256, 256))}
    layers |= dict.fromkeys(("mean", "log_std"), (1e-3 if edac_init else 1 / 16, None))
    critics = {f"Dense_{i}": (1 / 16, 0.1) for i in range(3)} | {"Dense_3": (3e-3 if edac_init else 1.0, None)}
    for network, bounds in ((state.actor, layers), (state.critics, critics)):
        assert network["params"].keys() == bounds.keys()
        for name, (bound, bias) in bounds.items():
            kernel, biases = network["params"][name]["kernel"], network["params"][name]["bias"]
            assert 0.9 * bound < jnp.abs(kernel).max() <= bound * (1 + 1e-6)
            if bias and edac_init:
                assert (biases == jnp.float32(bias)).all()
            else:
                assert 0 < jnp.abs(biases).max() <= bound * (1 + 1e-6)
    for kernel in (layer["kernel"] for layer in state.critics["params"].values()):
        assert len(np.unique(np.asarray(kernel).reshape(4, -1)[:, 0])) == 4
    assert equal(state.critics, state.target_critics) and state.log_alpha == 0


def test_observations_and_rewards_stay_as_they_are():
    columns = {name: np.random.default_rng(0).normal(size=(6, 2)) for name in Batch._fields}
    dataset = type("Rows", (), columns | {"keep": np.array([1, 1, 0, 1, 1, 1], bool)})
    rows = sac_n.prepare(ARGS, dataset).rows
    for name, values in columns.items():
        np.testing.assert_allclose(getattr(rows, name), values[[0, 1, 3, 4, 5]], rtol=1e-6)


def test_the_command_for_lb_sac_in_the_docstring_is_its_preset():
    text = sac_n.__doc__.partition("python algorithms/sac_n.py ")[2].partition("\n\n")[0]
    args, _ = sac_n.parse(shlex.split(text))
    assert (args.batch_size, args.num_critics, args.steps, args.edac_init) == (10_000, 20, 150_000, False)
    assert args.actor_lr == args.critic_lr == args.alpha_lr == pytest.approx(3e-4 * (10_000 / 256) ** 0.5, rel=0.05)


def test_a_batch_may_be_larger_than_the_data():
    args = dataclasses.replace(ARGS, batch_size=10_000)
    rows = sac_n.sample(args, Data(setup()[1]), jax.random.key(0))
    assert rows.rewards.shape == (10_000,) and len(np.unique(rows.rewards)) == 32
