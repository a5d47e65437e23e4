"""Statements about behaviour cloning."""

import functools
from types import SimpleNamespace

import bc
import jax
import jax.numpy as jnp
import numpy as np
from bc import Args


def episodes(lengths, rewards, terminal):
    """A dataset of episodes of `lengths` rows, of `rewards` a row, ended by a terminal or by time."""
    stops = np.cumsum(lengths)
    rows = stops[-1]
    last = np.zeros(rows, bool)
    last[stops - 1] = True
    terminals = last & np.repeat(terminal, lengths)
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        observations=rng.normal(size=(rows, 3)).astype(np.float32),
        actions=np.repeat(np.arange(len(lengths)) / 100, lengths).astype(np.float32)[:, None],  # the episode's number
        rewards=np.repeat(rewards, lengths).astype(np.float32),
        terminals=terminals,
        keep=~(last & ~terminals),  # D4RL's rule: time-out rows are dropped
        episodes=np.stack([stops - lengths, stops], 1),
    )


def cloned(args, dataset) -> list[int]:
    """Numbers of the episodes whose rows are cloned, in order."""
    numbers = np.rint(100 * np.asarray(bc.prepare(args, dataset).rows.actions[:, 0])).astype(int)
    return list(dict.fromkeys(numbers.tolist()))


def test_a_tenth_of_20_episodes_is_the_best_two():
    rng = np.random.default_rng(1)
    returns = rng.permutation(20)
    dataset = episodes([5] * 20, returns / 5, [True] * 20)
    best = np.argsort(returns)[::-1]
    assert cloned(Args(fraction=0.1), dataset) == best[:2].tolist()
    assert cloned(Args(fraction=0.001), dataset) == best[:1].tolist()


def test_with_fraction_1_all_rows_are_cloned_but_an_unfinished_end():
    dataset = episodes([5, 7, 3], [1, 2, 3], [True, True, False])
    data = bc.prepare(Args(), dataset)
    assert sorted(data.rows.actions[:, 0].tolist()) == sorted(dataset.actions[:12, 0].tolist())
    assert len(bc.prepare(Args(split="episodes"), dataset).rows.actions) == 14, "true episodes: all kept rows"


def test_data_without_a_whole_episode_is_cloned_as_it_is():
    """Of less than 1,000 rows, say, whose episodes only time ends."""
    np.testing.assert_array_equal(bc.best(np.ones(7), np.zeros(7, bool), 1.0, 0.99, 1000), np.arange(7))


def test_corls_split_drifts_where_time_ends_episodes_and_ours_does_not():
    """After the time-out row is dropped, 1,000-step episodes have 999 rows; CORL goes on cutting every 1,000."""
    dataset = episodes([1000] * 12, np.arange(12), [False] * 12)
    assert cloned(Args(fraction=0.1, split="episodes"), dataset) == [11]
    assert cloned(Args(fraction=0.1), dataset) == [10, 11], "CORL's best piece holds rows of two episodes"


def test_the_discount_ranks_episodes():
    """Early rewards count more: 1 at once beats 2 after ten steps at discount 0.9, not at 1."""
    dataset = episodes([11, 11], [0, 0], [True, True])
    dataset.rewards[0], dataset.rewards[21] = 1, 2
    assert cloned(Args(fraction=0.5, discount=0.9), dataset) == [0]
    assert cloned(Args(fraction=0.5, discount=1.0), dataset) == [1]


def linear_expert(rows=2000):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(rows, 4)).astype(np.float32)
    dataset = episodes([100] * (rows // 100), np.ones(rows // 100), [True] * (rows // 100))
    dataset.observations = observations
    dataset.actions = np.tanh(observations @ rng.normal(size=(4, 2)) / 2).astype(np.float32)
    return dataset


def test_a_linear_expert_is_learned():
    args = Args(hidden_dims=(32, 32), batch_size=64, lr=1e-3)
    data = bc.prepare(args, linear_expert())
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.vmap(functools.partial(bc.init, args, data))(keys)
    state, metrics = bc.train(args, data, state, keys, 0, 3000)
    _, metrics = bc.train(args, data, state, keys, 3000, 100)
    assert metrics["actor_loss"][0] < 1e-3


def test_normalisation_can_be_folded_into_the_first_layer():
    args = Args(hidden_dims=(8, 8))
    dataset = linear_expert()
    dataset.observations = 5 * dataset.observations + 2
    state = bc.init(args, bc.prepare(args, dataset), jax.random.key(0))
    first = state.actor["params"]["Dense_0"]
    kernel = first["kernel"] / state.std[:, None]
    folded = {
        "params": state.actor["params"] | {"Dense_0": {"kernel": kernel, "bias": first["bias"] - state.mean @ kernel}}
    }
    plain = state._replace(actor=folded, mean=jnp.zeros(4), std=jnp.ones(4))
    raw = dataset.observations[:50]
    np.testing.assert_allclose(bc.act(args, state, raw), bc.act(args, plain, raw), atol=1e-5)


def test_scanned_steps_are_single_steps():
    """The chunk does what somebody's own loop does with the same keys."""
    args = Args(hidden_dims=(8, 8), batch_size=16)
    data = bc.prepare(args, linear_expert())
    key = jax.random.key(7)
    state = bc.init(args, data, key)
    stacked = jax.tree.map(lambda x: jnp.array(x)[None], state)
    scanned, _ = bc.train(args, data, stacked, key[None], 0, 10)
    for step in range(10):
        sample_key, draw_key = jax.random.split(jax.random.fold_in(key, step))
        batch = bc.sample(args, data, sample_key)
        state, _ = bc.update(args, state, batch, bc.draw(args, batch, draw_key), step)
    for one, many in zip(jax.tree.leaves(state), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, many[0], rtol=1e-5, atol=1e-7)
