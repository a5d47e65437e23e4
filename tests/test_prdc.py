"""Statements about PRDC."""

import functools
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import prdc
import pytest
import td3_bc
from conftest import where_all_learn_at_once
from prdc import Args, Tree

SMALL = functools.partial(Args, hidden_dims=(8, 8), batch_size=32)
ARGS = SMALL()
ANY = jnp.zeros(100, int)  # any row will do as one to begin at
init = jax.jit(prdc.init, static_argnums=0)
update = jax.jit(prdc.update, static_argnums=0)
start = jax.jit(jax.vmap(prdc.init, in_axes=(None, None, 0)), static_argnums=0)


def dataset(seed=0, rows=300):
    """Random rows of 5 observations and 2 actions."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return SimpleNamespace(
        observations=3 + 2 * normal(rows, 5),
        actions=np.tanh(normal(rows, 2)),
        rewards=normal(rows),
        next_observations=3 + 2 * normal(rows, 5),
        terminals=rng.random(rows) < 0.1,
        keep=np.ones(rows, bool),
    )


@functools.cache
def setup(args=ARGS):
    """Data, a state whose targets differ from its networks, a batch, noise."""
    keys = jax.random.split(jax.random.key(0), 4)
    data = prdc.prepare(args, dataset())
    state, other = (init(args, data, key) for key in keys[:2])
    state = state._replace(target_actor=other.actor, target_critics=other.critics)
    batch = prdc.sample(args, data, keys[2])
    return data, state, batch, prdc.draw(args, batch, keys[3])


def points_of(args, data):
    return np.hstack([args.beta * np.asarray(data.rows.observations), np.asarray(data.rows.actions)])


def planted(points, args=ARGS):
    """Points with two actions, as a tree."""
    return prdc.plant(args, points[:, :-2], points[:, -2:])


def listed(tree):
    """The tree, once all of its neighbourhoods are."""
    while (tree.reach < 0).any():
        time.sleep(0.01)
    return tree


def both(points):
    """The same points as a tree and as an array."""
    return planted(points), jnp.asarray(points.T)


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


# ------------------------------------------------------------------------------------------ the search


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("size", [5, 3000])
def test_tree_and_comparison_find_the_nearest_row(k, size):
    """As numpy finds it by sorting all distances; of keys whose number is no multiple of what is compared at once."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(size, 7)).astype(np.float32)
    keys = rng.normal(size=(prdc.AT_ONCE * 3 + 1, 7)).astype(np.float32)
    order = np.argsort(np.linalg.norm(keys[:, None].astype(np.float64) - points, axis=-1), axis=1)
    for searched in both(points):
        found = jax.jit(prdc.nearest, static_argnums=0)(SMALL(k=k), searched, jnp.asarray(keys), ANY[: len(keys)])
        np.testing.assert_array_equal(found, points[order[:, k - 1]])


def test_a_tree_of_one_row_or_of_equal_rows_finds_it():
    for size in (1, 40):
        points = np.full((size, 7), 0.3, np.float32)
        np.testing.assert_array_equal(
            prdc.nearest(ARGS, planted(points), jnp.zeros((2, 7)), ANY[:2]), points[:1].repeat(2, 0)
        )


def test_far_from_the_origin_the_nearest_row_is_still_found():
    """Where |x|^2 - 2 x y + |y|^2, the quicker formula, loses it in float32."""
    rng = np.random.default_rng(0)
    points = (100 + 0.01 * rng.normal(size=(1000, 7))).astype(np.float32)
    keys = (points[:50] + 0.001 * rng.normal(size=(50, 7))).astype(np.float32)
    wanted = np.linalg.norm(keys[:, None].astype(np.float64) - points, axis=-1).argmin(axis=1)
    quicker = (points**2).sum(1) - 2 * keys @ points.T
    assert (quicker.argmin(axis=1) != wanted).any()
    for searched in both(points):
        np.testing.assert_array_equal(prdc.nearest(ARGS, searched, jnp.asarray(keys), ANY[: len(keys)]), points[wanted])


@pytest.mark.parametrize("k", [1, 3])
def test_neighbourhoods_spare_most_searches_and_change_no_answer(k):
    """While none is listed, some, and all; whatever row a key is said to belong to; near and far."""
    rng, args = np.random.default_rng(0), SMALL(k=k)
    points = rng.normal(size=(2000, 7)).astype(np.float32)
    tree, asked = listed(planted(points, args)), []
    near, reach = tree.near.copy(), tree.reach.copy()
    query = tree.turned.query
    tree.turned = SimpleNamespace(query=lambda keys, **given: asked.append(len(keys)) or query(keys, **given))
    for call in range(12):
        unlisted = rng.random(len(points)) < 1 - call / 11
        tree.near[:], tree.reach[:] = np.where(unlisted[:, None], 0, near), np.where(unlisted, -1, reach)
        rows = rng.integers(0, len(points), 200)
        keys = points[rows]
        keys[:, 5:] += 0.3 * rng.normal(size=(200, 2))  # what an actor does in the state of the row
        if call % 3 == 2:
            keys += 0.1 * rng.normal(size=keys.shape)
            rows = rng.permutation(rows)
        wanted = np.linalg.norm(keys[:, None].astype(np.float64) - points, axis=-1).argsort(axis=1)[:, k - 1]
        np.testing.assert_array_equal(prdc.search(args, tree, keys.astype(np.float32), rows), wanted)
    near = np.linalg.norm(points[:, None, :5].astype(np.float64) - points[:, :5], axis=-1)
    np.testing.assert_allclose(tree.reach, np.sort(near, axis=1)[:, prdc.NEAR - 1], rtol=1e-6)
    asked.clear()
    prdc.search(args, tree, points, np.arange(len(points)))
    assert sum(asked) < {1: 0.1, 3: 0.8}[k] * len(points)


def test_the_neighbour_of_a_row_is_the_row():
    data, *_ = setup()
    points = points_of(ARGS, data)
    for searched in both(points):
        np.testing.assert_array_equal(
            prdc.nearest(ARGS, searched, jnp.asarray(points), jnp.arange(len(points))), points
        )


def test_with_beta_0_the_nearest_action_of_all_the_data_counts_whatever_the_state():
    args = SMALL(beta=0.0)
    data, state, batch, _ = setup(args)
    actions = prdc.pi(args, state.actor, batch.observations)
    nearest = np.linalg.norm(actions[:, None] - data.rows.actions, axis=-1).argmin(axis=1)
    wanted = ((actions - data.rows.actions[nearest]) ** 2).mean()
    np.testing.assert_allclose(prdc.actor_loss(state.actor, args, state, batch)[1]["dc_loss"], wanted, rtol=1e-5)


def test_a_cpu_gets_a_tree_and_an_accelerator_an_array_of_the_same_points(monkeypatch):
    tree = prdc.prepare(ARGS, dataset()).points
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    array = prdc.prepare(ARGS, dataset()).points
    assert isinstance(tree, Tree) and isinstance(array, jax.Array)
    np.testing.assert_array_equal(tree.points, array.T)


@pytest.mark.parametrize("seeds", [1, 3])
def test_training_is_the_same_with_either_search(seeds, monkeypatch):
    """To rounding, several seeds at once, inside the scan and the branch of the delayed update."""
    data, *_ = setup()
    keys = jax.random.split(jax.random.key(1), seeds)
    ends, train = [], prdc.train if seeds == 1 else where_all_learn_at_once(monkeypatch, prdc, "train", (0, 5))
    for searched in both(points_of(ARGS, data)):
        ends.append(train(ARGS, data._replace(points=searched), start(ARGS, data, keys), keys, 0, 20))
    assert equal(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def test_a_seed_that_has_diverged_does_not_stop_the_others():
    data, *_ = setup()
    keys = jax.random.split(jax.random.key(1), 2)
    sound, broken = start(ARGS, data, keys), start(ARGS, data, keys)
    broken = broken._replace(actor=jax.tree.map(lambda x: x.at[0].set(jnp.nan), broken.actor))
    (sound, _), (broken, _) = (prdc.train(ARGS, data, state, keys, 0, 10) for state in (sound, broken))
    assert equal(*(jax.tree.map(lambda x: x[1], state.actor) for state in (sound, broken)))
    assert all(jnp.isnan(x[0]).all() for x in jax.tree.leaves(broken.actor))


# ------------------------------------------------------------------------------------------ the actor


def test_with_a_large_beta_an_update_is_that_of_td3_bc():
    """Every state being different, the nearest row is the state's own."""
    args = SMALL(beta=1000.0)
    _, state, batch, noise = setup(args)
    theirs = td3_bc.Args(hidden_dims=(8, 8), batch_size=32)
    own = td3_bc.Batch(*batch[:5])
    for step in (0, 1):
        after, metrics = update(args, state, batch, noise, step)
        wanted, figures = jax.jit(td3_bc.update, static_argnums=0)(
            theirs, td3_bc.State(*state, buffer=None), own, td3_bc.Noise(*noise), step
        )
        assert equal(after, wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(metrics["dc_loss"], figures["bc_loss"], rtol=1e-5)


def test_with_alpha_0_the_actor_moves_to_the_neighbours_which_stand_still():
    """The gradient with respect to an action is 2 (pi - a*) / (batch * act), nothing coming through a*."""
    args = SMALL(alpha=0.0)
    _, state, batch, _ = setup(args)
    actions, backward = jax.vjp(lambda actor: prdc.pi(args, actor, batch.observations), state.actor)
    keys = jnp.concatenate([args.beta * batch.observations, actions], axis=1)
    difference = actions - prdc.nearest(args, batch.points, keys, batch.index)[:, -2:]
    assert (jnp.abs(difference) > 0.01).any()
    for searched in both(points_of(args, setup(args)[0])):
        grads, metrics = jax.grad(prdc.actor_loss, has_aux=True)(
            state.actor, args, state, batch._replace(points=searched)
        )
        assert metrics["actor_loss"] == metrics["dc_loss"]
        assert equal(grads, backward(2 * difference / difference.size)[0], rtol=1e-5, atol=1e-8)


def test_the_neighbour_is_sought_with_normalised_observations_and_beta():
    args = SMALL(beta=3.0)
    source, data = dataset(), setup(args)[0]
    expected = (source.observations - source.observations.mean(0)) / (source.observations.std(0) + 1e-3)
    np.testing.assert_allclose(data.points.points[:, :5], 3 * expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(data.points.points[:, 5:], source.actions)


def test_rewards_are_scaled_before_they_are_shifted():
    source = dataset()
    rewards = prdc.prepare(SMALL(reward_scale=10_000.0, reward_shift=-1.0), source).rows.rewards
    np.testing.assert_allclose(rewards, 10_000 * source.rewards - 1, rtol=1e-6)


def test_the_actor_waits_at_every_other_step_and_does_not_search(monkeypatch):
    _, state, batch, noise = setup()
    calls, search = [], prdc.search
    monkeypatch.setattr(prdc, "search", lambda *given: calls.append(given[2].shape) or search(*given))
    first, metrics = prdc.update(ARGS, state, batch, noise, 0)
    assert equal(first.actor, state.actor) and jnp.isnan(metrics["dc_loss"]) and calls == []
    second, metrics = prdc.update(ARGS, first, batch, noise, 1)
    assert not equal(second.actor, state.actor) and metrics["distance"] > 0 and calls == [(32, 7)]
