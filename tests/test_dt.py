"""Statements about the decision transformer."""

import functools

import dataset as loader
import dt
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dt import Args, Batch, Noise

SMALL = functools.partial(Args, embedding_dim=8, num_layers=2, seq_len=4, episode_len=30, batch_size=16)
ARGS = SMALL()
init = jax.jit(dt.init, static_argnums=0)
update = jax.jit(dt.update, static_argnums=0)
pi = jax.jit(dt.pi, static_argnums=0)
act = jax.jit(dt.act, static_argnums=0)
window = jax.jit(dt.window, static_argnums=0)
actor_loss = jax.jit(dt.actor_loss, static_argnums=1)
gradient = jax.jit(jax.grad(dt.actor_loss, has_aux=True), static_argnums=1)


def episodes(lengths, terminal=(), seed=0, **columns):
    """Random episodes of `lengths` rows; those in `terminal` end truly, the others run out of time."""
    rng, stops, rows = np.random.default_rng(seed), np.cumsum(lengths), sum(lengths)
    ends = [np.isin(np.arange(rows), stops[[i in terminal for i in range(len(lengths))]] - 1)]
    ends += [np.isin(np.arange(rows), stops - 1) & ~ends[0]]
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    arrays = dict(observations=3 + 7 * normal(rows, 3), actions=np.tanh(normal(rows, 2)), rewards=normal(rows))
    return loader.from_arrays(**arrays | dict(terminals=ends[0], timeouts=ends[1]) | columns)


DATASET = episodes([3, 12, 1, 6], terminal=(0, 2))


@functools.cache
def setup(args=ARGS):
    """Data, a state whose parameters are all far from 0, a batch that has been cut off here and there."""
    data = dt.prepare(args, DATASET)
    state = init(args, data, jax.random.key(0))
    actor = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), state.actor)
    batch = window(args, data, jnp.array([0, 2, 3, 8, 12, 13, 15, 16]))
    assert 0 < batch.mask.mean() < 1
    return data, state._replace(actor=actor), batch


def equal(a, b, **tolerance):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, **tolerance) if tolerance else (x == y).all() for x, y in pairs)


def moved(batch, name, step):
    return batch._replace(**{name: getattr(batch, name).at[:, step].add(1)})


# ------------------------------------------------------------------------------------------ what an action follows from


@pytest.mark.parametrize("heads", [1, 2])
def test_an_action_follows_from_what_came_before_it_and_from_nothing_later(heads):
    """That of step 2 from R, s of steps 0, 1, 2 and a of steps 0, 1."""
    args = SMALL(num_heads=heads)
    _, state, batch = setup()
    batch = batch._replace(mask=jnp.ones_like(batch.mask))
    action = lambda batch: pi(args, state.actor, batch, Noise())[:, 2]
    for name in ("returns_to_go", "observations", "actions"):
        for step in range(4):
            before = step < 2 or (step == 2 and name != "actions")
            changed = jnp.abs(action(moved(batch, name, step)) - action(batch)).max(axis=-1)
            assert (changed > 0).all() if before else (changed == 0).all(), (name, step)


def test_an_action_follows_from_the_time():
    _, state, batch = setup()
    actions = lambda batch: pi(ARGS, state.actor, batch, Noise())
    assert not equal(actions(batch._replace(time_steps=batch.time_steps + 1)), actions(batch), atol=1e-3)


def test_heads_attend_on_their_own():
    _, state, batch = setup()
    ones, twos = (pi(SMALL(num_heads=n), state.actor, batch, Noise()) for n in (1, 2))
    assert not equal(ones, twos, atol=1e-3)


def test_padding_changes_no_prediction_and_no_gradient():
    """Whatever stands where a sequence was cut off, and however much was cut off."""
    _, state, batch = setup()
    junk = lambda x: jnp.where(batch.mask.reshape(*batch.mask.shape, *[1] * (x.ndim - 2)) > 0, x, 9)
    padded = Batch(*(junk(getattr(batch, name)) for name in Batch._fields[:4]), batch.mask)
    ours, theirs = (gradient(state.actor, ARGS, b, Noise())[0] for b in (batch, padded))
    assert equal(ours, theirs, rtol=1e-4, atol=1e-7)
    valid = batch.mask > 0
    assert equal(pi(ARGS, state.actor, batch, Noise())[valid], pi(ARGS, state.actor, padded, Noise())[valid])
    short = jax.tree.map(lambda x: x[1:2, :1], batch)  # one step is left of it
    alone, cut = pi(ARGS, state.actor, short, Noise()), pi(ARGS, state.actor, batch, Noise())
    assert batch.mask[1].sum() == 1 and equal(alone[0, 0], cut[1, 0], atol=1e-6)


def test_the_loss_is_the_mean_over_padded_steps_too():
    _, state, batch = setup()
    errors = (pi(ARGS, state.actor, batch, Noise()) - batch.actions) ** 2
    loss, _ = actor_loss(state.actor, ARGS, batch, Noise())
    np.testing.assert_allclose(loss, errors[batch.mask > 0].sum() / batch.actions.size, rtol=1e-5)


# ------------------------------------------------------------------------------------------ sequences


def test_returns_to_go_fall_by_the_reward_and_end_in_the_last():
    data = dt.prepare(SMALL(reward_scale=0.1), DATASET)
    for start, stop in DATASET.episodes:
        rewards, returns = 0.1 * DATASET.rewards[start:stop], data.returns_to_go[start:stop]
        np.testing.assert_allclose(returns[:-1] - returns[1:], rewards[:-1], atol=1e-6)
        np.testing.assert_allclose(returns[-1], rewards[-1], atol=1e-6)
        np.testing.assert_array_equal(data.time_steps[start:stop], np.arange(stop - start))


def test_a_sequence_ends_with_its_episode():
    """Terminal or out of time: what follows is another episode, and zeros stand in its place."""
    data, _, _ = setup()
    batch = window(ARGS, data, jnp.arange(22))
    for row, stop in enumerate(np.repeat(DATASET.episodes[:, 1], np.diff(DATASET.episodes)[:, 0])):
        length = min(stop - row, 4)
        np.testing.assert_array_equal(batch.mask[row], np.arange(4) < length)
        np.testing.assert_array_equal(batch.actions[row, :length], DATASET.actions[row : row + length])
        for part in (batch.observations, batch.actions, batch.returns_to_go):
            assert (part[row, length:] == 0).all()


def test_episodes_are_met_as_often_as_they_have_rows():
    """The second has 12 of 22 rows; and a sequence starts at any of them alike."""
    args = SMALL(batch_size=20_000)
    batch = jax.jit(dt.sample, static_argnums=0)(args, setup()[0], jax.random.key(0))
    mean, std = DATASET.observations.mean(0), DATASET.observations.std(0) + 1e-6
    firsts = np.asarray(batch.observations[:, 0]) * std + mean
    rows = np.abs(firsts[:, None] - DATASET.observations).sum(-1).argmin(1)
    np.testing.assert_allclose(np.bincount(rows, minlength=22) / 20_000, 1 / 22, atol=0.006)


def test_an_unfinished_last_episode_has_no_returns_and_is_left_out():
    timeouts = DATASET.timeouts & (np.arange(22) < 21)
    cut = dt.prepare(ARGS, DATASET._replace(timeouts=timeouts))
    assert len(cut.left) == 16 and len(setup()[0].left) == 22
    np.testing.assert_allclose(cut.mean, DATASET.observations.mean(0), rtol=1e-5, err_msg="of all rows, nevertheless")
    only = episodes([7])
    assert len(dt.prepare(ARGS, only._replace(timeouts=np.zeros(7, bool))).left) == 7


def test_rows_that_other_algorithms_leave_out_are_kept():
    assert len(dt.prepare(ARGS, DATASET._replace(keep=np.arange(22) < 5)).left) == 22


def test_an_episode_longer_than_the_table_of_time_steps_is_refused(capsys):
    with pytest.raises(SystemExit):
        dt.prepare(SMALL(episode_len=10), DATASET)
    assert "--episode-len is 10" in capsys.readouterr().err
    dt.prepare(SMALL(episode_len=11), DATASET)  # one more has room, as in D4RL's AntMaze


def test_an_episode_ends_at_a_terminal_also_where_the_recording_goes_on():
    """As in AntMaze's data, whose ant stays at the goal and is paid there: no return counts that twice."""
    goes_on = episodes([8], rewards=np.float32([0, 0, 0, 1, 1, 1, 0, 0]))
    goal = goes_on._replace(terminals=goes_on.rewards == 1)
    np.testing.assert_allclose(dt.prepare(SMALL(reward_scale=1.0), goal).returns_to_go, [1, 1, 1, 1, 1, 1, 0, 0])
    assert dt.prepare(SMALL(reward_scale=1.0), goes_on).returns_to_go[0] == 3


def test_heads_must_share_the_width(capsys):
    with pytest.raises(SystemExit):
        dt.prepare(SMALL(num_heads=3), DATASET)
    assert "--num-heads 3 must divide" in capsys.readouterr().err


def test_the_best_return_of_the_data_is_asked_for_unless_another_is_named():
    best = max(DATASET.rewards[start:stop].sum() for start, stop in DATASET.episodes)
    np.testing.assert_allclose(setup()[0].target_return, best, rtol=1e-5)
    assert dt.prepare(SMALL(target_return=-7.0), DATASET).target_return == -7


# ------------------------------------------------------------------------------------------ updates


def test_the_learning_rate_grows_over_the_warm_up_and_stays():
    rates = [float(dt.learning_rate(Args(), step)) for step in (0, 4_999, 9_999, 10_000, 99_999)]
    np.testing.assert_allclose(rates, [1e-8, 5e-5, 1e-4, 1e-4, 1e-4], rtol=1e-5)


def test_the_gradient_is_no_longer_than_one_quarter():
    _, state, _ = setup()
    for factor, wanted in ((0.5, 0.25), (1e-4, None)):
        grads, norm = dt.clip(ARGS, jax.tree.map(lambda x, f=factor: f * x, state.actor))
        length = np.sqrt(sum((np.float64(x) ** 2).sum() for x in jax.tree.leaves(grads)))
        assert length <= 0.25
        np.testing.assert_allclose(length, wanted or norm, rtol=1e-4)


def test_every_parameter_decays():
    """That of a time-step which the batch lacks does nothing else."""
    _, state, batch = setup()
    args = SMALL(lr=0.1, weight_decay=0.5)
    table = lambda state: state.actor["params"]["timestep_emb"]["embedding"][20]
    after = update(args, state, batch, Noise(), 10_000)[0]
    np.testing.assert_allclose(table(after), 0.95 * table(state), rtol=1e-5)
    plain = update(SMALL(lr=0.1, weight_decay=0.0), state, batch, Noise(), 10_000)[0]
    decay = jax.tree.map(lambda x, y: x - y, plain.actor, after.actor)
    assert equal(decay, jax.tree.map(lambda x: 0.05 * x, state.actor), rtol=1e-3, atol=1e-5)


def test_dropout_is_drawn_for_updates_and_absent_when_acting():
    args = SMALL(dropout=0.25, batch_size=500, num_heads=2)
    data, state, _ = setup(args)
    batch = dt.sample(args, data, jax.random.key(0))
    noise = dt.draw(args, batch, jax.random.key(1))
    assert noise.embedding.shape == (500, 12, 8) and noise.blocks.attention.shape == (500, 2, 2, 12, 12)
    for kept in jax.tree.leaves(noise):
        np.testing.assert_allclose(kept.mean(), 0.75, atol=0.01)
    loss = lambda noise: actor_loss(state.actor, args, batch, noise)[0]
    assert loss(noise) == loss(noise) != loss(dt.draw(args, batch, jax.random.key(2))), "an update is deterministic"
    assert loss(jax.tree.map(jnp.ones_like, noise)) != loss(Noise()), "what is kept is scaled"
    parts = [Noise(embedding=noise.embedding)]
    parts += [Noise(blocks=dt.Kept(**{name: getattr(noise.blocks, name)})) for name in dt.Kept._fields]
    assert len({float(loss(part)) for part in (*parts, Noise())}) == 5, "every one of them is felt"
    assert dt.draw(SMALL(dropout=0.0), batch, jax.random.key(1)) == Noise()


def test_entries_that_share_a_random_number_are_dropped_independently():
    kept = np.asarray(dt.keep(SMALL(dropout=0.25), jax.random.key(0), (10001, 3)))
    pairs = kept.reshape(-1)[:-1].reshape(-1, 2)  # the last of an odd number has one for itself
    np.testing.assert_allclose(pairs.mean(0), 0.75, atol=0.02)
    np.testing.assert_allclose(pairs.all(1).mean(), 0.75**2, atol=0.02)


def test_the_gradient_by_parts_is_the_batchs():
    """Dropout included: every sequence keeps its own."""
    args = SMALL(dropout=0.25, batch_size=24)
    data, state, _ = setup(args)
    batch = dt.sample(args, data, jax.random.key(0))
    noise = dt.draw(args, batch, jax.random.key(1))
    gradient = lambda rows: jax.grad(actor_loss, has_aux=True)(state.actor, args, *rows)
    by_parts, whole = dt.by_parts(gradient, (batch, noise), 8), gradient((batch, noise))
    assert equal(by_parts, whole, rtol=1e-4, atol=1e-7)


def test_what_dropout_keeps_is_scaled_to_the_same_mean():
    kept = jnp.arange(8) % 4 > 0
    np.testing.assert_allclose(dt.drop(SMALL(dropout=0.25), jnp.ones(8), kept), np.where(kept, 1 / 0.75, 0), rtol=1e-6)


def test_layers_start_as_corl_starts_them():
    """N(0, 0.02^2), but the joint layer of queries, keys and values uniform in PyTorch's bounds; biases 0."""
    args = SMALL(embedding_dim=64, num_layers=1, episode_len=1000)
    params = init(args, setup()[0], jax.random.key(0)).actor["params"]
    block = params["block0"]
    for kernel in (block["mlp0"]["kernel"], block["attn_out"]["kernel"], params["timestep_emb"]["embedding"]):
        np.testing.assert_allclose((kernel.std(), kernel.mean()), (0.02, 0), rtol=0.05, atol=1e-3)
    assert params["timestep_emb"]["embedding"].shape == (1004, 64)
    bound = (6 / (4 * 64)) ** 0.5
    assert 0.99 * bound < jnp.abs(block["attn_in"]["kernel"]).max() <= bound
    leaves = jax.tree.leaves_with_path(params)
    assert all((x == 0).all() for path, x in leaves if path[-1].key == "bias")
    assert all((x == 1).all() for path, x in leaves if path[-1].key == "scale")
    assert sum(path[-1].key == "scale" for path, _ in leaves) == 4


# ------------------------------------------------------------------------------------------ acting


def test_a_running_history_acts_as_a_slice_of_the_whole():
    """At every step, the first ones and those after the window has begun to move; what is to come does not matter."""
    args = SMALL(reward_scale=0.1, target_return=5.0)
    data, state, _ = setup(args)
    observations, actions = DATASET.observations[3:15], DATASET.actions[3:15]
    earned = np.concatenate([[0], np.cumsum(DATASET.rewards[3:14])]).astype(np.float32)
    history = dt.begin(state, observations[0])
    assert history.earned.shape == (34,)
    for step in range(12):
        past = slice(max(step - 3, 0), step + 1)
        batch = Batch(
            observations=((observations[past] - data.mean) / data.std)[None],
            actions=np.concatenate([actions[past][:-1], np.zeros((1, 2), np.float32)])[None],
            returns_to_go=0.1 * (5 - earned[past])[None],
            time_steps=np.arange(12)[past][None],
            mask=np.ones((1, len(actions[past])), np.float32),
        )
        history.step[...], history.observations[step], history.earned[step] = step, observations[step], earned[step]
        action = act(args, state, history)
        np.testing.assert_allclose(action, pi(args, state.actor, batch, Noise())[0, -1], rtol=1e-4, atol=1e-5)
        history.observations[step + 1 :], history.earned[step + 1 :], history.actions[step:] = 7, 7, 0.7
        assert equal(act(args, state, history), action)
        history.actions[step] = actions[step]


class Corridor:
    """Pays the action; ends itself or its time after `length` steps."""

    def __init__(self, length, limit):
        self.length, self.limit, self.seeds = length, limit, []

    def reset(self, seed):
        self.seeds.append(seed)
        self.place = 0
        return np.zeros(3), {}

    def step(self, action):
        assert self.place < self.length, "a finished environment is not stepped"
        self.place += 1
        done = self.place == self.length
        info = {"success": done} if self.limit else {}
        return np.full(3, self.place), float(action[0]), done and not self.limit, done and self.limit, info


def test_evaluation_counts_every_episode_once_from_its_own_seed_and_compiles_once():
    """Five episodes in two environments of each of two seeds, of lengths below, at and above the window's."""
    _, state, _ = setup()
    states = jax.tree.map(lambda x: jnp.stack([x, -x]), state)
    traces = []

    def policy(state, history):  # the first number of the observation, the second seed's ten times as much
        traces.append(0)
        current = jnp.take_along_axis(history.observations, history.step[:, None, None], axis=1)[:, 0, :1]
        return (1 + 9 * (state.target_return != setup()[1].target_return)) * current

    envs = [[Corridor(3, False), Corridor(6, True)] for _ in range(2)]
    returns, successes = dt.evaluate(jax.jit(jax.vmap(policy)), states, envs, episodes=5)
    np.testing.assert_array_equal(returns, [[3, 15, 3, 15, 3], [30, 150, 30, 150, 30]])
    assert np.isnan(successes[:, ::2]).all() and successes[:, 1].tolist() == [1, 1], "the last step's"
    assert envs[0][0].seeds == [1000, 1002, 1004] and envs[1][1].seeds[:2] == [1001, 1003]
    assert len(traces) == 1


def test_an_evaluated_history_holds_what_was_seen_done_and_paid():
    _, state, _ = setup()
    histories = []

    def policy(state, history):
        histories.append(jax.tree.map(np.copy, history))
        return np.full((1, 1, 2), 0.1 * len(histories), np.float32)

    dt.evaluate(policy, jax.tree.map(lambda x: x[None], state), [[Corridor(5, False)]], 1)
    assert [int(history.step[0, 0]) for history in histories] == [0, 1, 2, 3, 4]
    last = histories[-1]
    np.testing.assert_array_equal(last.observations[0, 0, :5, 0], range(5))
    np.testing.assert_allclose(last.actions[0, 0, :5, 0], [0.1, 0.2, 0.3, 0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(last.earned[0, 0, :5], [0, 0.1, 0.3, 0.6, 1.0], rtol=1e-6)


def test_no_episode_outlasts_the_table_of_time_steps():
    _, state, _ = setup()
    env = Corridor(10_000, False)
    policy = lambda state, history: np.zeros((1, 1, 2), np.float32)
    dt.evaluate(policy, jax.tree.map(lambda x: x[None], state), [[env]], 1)
    assert 30 <= env.place < 34


def test_the_return_that_is_asked_for_is_the_one_that_is_earned():
    """Episodes of 4 steps in one state: half are actions 0.5 that pay 1, half actions -0.5 that pay nothing."""
    sign = np.repeat(np.where(np.arange(40) % 2, 1, -1), 4).astype(np.float32)
    data = episodes(
        [4] * 40, observations=np.zeros((160, 3), np.float32), actions=0.5 * sign[:, None], rewards=sign > 0
    )
    flags = dict(reward_scale=0.25, warmup_steps=10, lr=3e-3, dropout=0.0, clip_grad=1.0)
    args = SMALL(**flags)
    keys = jax.random.split(jax.random.key(0), 1)
    prepared = dt.prepare(args, data)
    state = jax.vmap(functools.partial(dt.init, args, prepared))(keys)
    state, _ = dt.train(args, prepared, state, keys, 0, 300)
    state = jax.tree.map(lambda x: x[0], state)
    assert state.target_return == 4
    for target, wanted in ((4.0, 0.5), (0.0, -0.5)):
        asked = state._replace(target_return=jnp.float32(target))
        np.testing.assert_allclose(act(args, asked, dt.begin(asked, np.zeros(3, np.float32))), wanted, atol=0.1)
