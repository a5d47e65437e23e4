"""The online phase: what is stored, what is drawn, when nothing is learned, and how it goes on after a kill."""

import dataclasses
import functools
import importlib
import inspect
import json
import signal
import subprocess
import sys
import time

import dataset as loader
import flax
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import td3_bc
from conftest import CONDS, ONLINE, command, run, sizes, where_all_learn_at_once, write_hdf5
from td3_bc import Args, Batch, Buffer, Data

PHASES = ("--steps", "40", "--online-steps", "400", "--eval-every", "40", "--seeds", "0", "1")


def rows(values) -> Batch:
    """Transitions that can be told by any of their numbers."""
    column = jnp.asarray(values, jnp.float32)
    return Batch(column[:, None], column[:, None], column, column[:, None], column)


@pytest.mark.parametrize(("ratio", "offline"), [(0.0, 0), (0.25, 8), (0.5, 16), (1.0, 32)])
def test_an_online_batch_has_as_many_offline_rows_as_asked(ratio, offline):
    data = Data(rows(-np.arange(1, 9)), jnp.zeros(1), jnp.ones(1), Buffer(rows(np.arange(1, 9)), 3, 3))
    batch = td3_bc.sample(Args(batch_size=32, offline_ratio=ratio), data, jax.random.key(0))
    assert (batch.rewards < 0).sum() == offline and (batch.rewards > 0).sum() == 32 - offline
    assert batch.rewards.max() <= 3, "the other rows of the buffer are not filled yet"
    for column in batch:
        np.testing.assert_array_equal(np.ravel(column), batch.rewards)


def test_without_a_ratio_every_row_old_or_new_is_drawn_alike():
    data = Data(rows(-np.arange(1, 7)), jnp.zeros(1), jnp.ones(1), Buffer(rows(np.arange(1, 9)), 2, 2))
    batch = td3_bc.sample(Args(batch_size=80_000), data, jax.random.key(0))
    values, counts = np.unique(batch.rewards, return_counts=True)
    np.testing.assert_array_equal(values, [-6, -5, -4, -3, -2, -1, 1, 2])
    np.testing.assert_allclose(counts / 80_000, 1 / 8, atol=0.005)
    for column in batch:
        np.testing.assert_array_equal(np.ravel(column), batch.rewards)


def test_offline_the_buffer_changes_nothing():
    """A run with an online phase begins as the one without."""
    data, ends = Data(rows(np.arange(8) / 8), jnp.zeros(1), jnp.ones(1)), []
    keys = jax.random.split(jax.random.key(0), 2)
    for n in (0, 50):
        args = Args(online_steps=n, batch_size=8, hidden_dims=(8, 8))
        state = jax.jit(jax.vmap(functools.partial(td3_bc.init, args, data)))(keys)
        ends.append(td3_bc.train(args, data, state, keys, 0, 4)[0]._replace(buffer=None))
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(one, other)


@functools.cache
def online(name, pendulum, warmup):
    """The state of script `name` before and after ten online steps of two seeds in Pendulum, and what they returned."""
    module = importlib.import_module(name)
    phases = {"steps": 5, "online_steps": 10, "warmup": warmup, "seeds": (0, 1), "batch_size": 4, "buffer_size": 8}
    args = module.Args(dataset=str(pendulum), **(sizes(name) | phases))
    dataset = loader.load(str(pendulum), "Pendulum-v1")
    data, make = module.prepare(args, dataset), functools.partial(loader.make_env, dataset)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jnp.stack([jax.random.key(seed) for seed in args.seeds]))
    state = jax.jit(jax.vmap(module.init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys[:, 0])
    before = jax.tree.map(np.asarray, state)
    after, metrics, episodes = module.interact(args, data, state, make, keys, args.steps, 0, 10, lambda n: None)
    return args, data, before, jax.tree.map(np.asarray, after), metrics, episodes


@pytest.mark.parametrize("name", ONLINE)
def test_online_steps_are_stored_as_the_dataset_is_and_learned_from(name, pendulum):
    args, data, before, after, metrics, episodes = online(name, pendulum, warmup=4)
    assert (before.buffer.size == 0).all() and (after.buffer.size == 8).all(), "the ring is full"
    assert (after.buffer.place == 2).all(), "and goes round"
    stored = after.buffer.rows
    assert np.abs(stored.actions).max() <= 1 and not stored.terminals.any()
    assert (stored.observations[0] != stored.observations[1]).any(), "every seed has its own episodes"
    order = np.roll(np.arange(8), -2)  # from the oldest row on: each begins where the last one ended
    np.testing.assert_array_equal(stored.observations[:, order[1:]], stored.next_observations[:, order[:-1]])
    first = jax.tree.leaves(before.actor)[-1], jax.tree.leaves(after.actor)[-1]
    assert (first[0] != first[1]).any() and np.isfinite(metrics["q"]).all()
    assert [[step for step, _, _ in x] for x in episodes] == [[10], [10]], "one is begun, and played on to its end"


@pytest.mark.parametrize("name", ONLINE)
def test_in_the_warm_up_nothing_learns(name, pendulum):
    _, _, before, after, metrics, _ = online(name, pendulum, warmup=10)
    for ours, theirs in zip(
        jax.tree.leaves(before._replace(buffer=None)), jax.tree.leaves(after._replace(buffer=None)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert all(np.isnan(x).all() for x in metrics.values())


def happening(state):
    """A step of every seed, as `learn` takes it."""
    rows = state.buffer.rows
    columns = rows.observations, rows.actions, rows.rewards, rows.next_observations, rows.terminals
    return [x[:, :1] for x in columns]


class Short(gymnasium.Wrapper):
    """Seven steps an episode, a point each; the third is a success."""

    def reset(self, **given):
        self.steps = 0
        return self.env.reset(**given)

    def step(self, action):
        self.steps += 1
        return self.env.step(action)[0], 1.0, False, self.steps == 7, {"success": self.steps == 3}


def test_an_episode_that_an_evaluation_cuts_off_counts_as_whole_and_is_not_learned_from(pendulum):
    """Left out, it would make regret a matter of the short episodes."""
    args, data, before, after, *_ = online("td3_bc", pendulum, warmup=4)
    make, keys = lambda: Short(gymnasium.make("Pendulum-v1")), jax.random.split(jax.random.key(0), (2, 3))
    args = dataclasses.replace(args, buffer_size=20)
    data = data._replace(buffer=td3_bc.empty(data.rows, 20))
    state = before._replace(buffer=jax.tree.map(lambda x: jnp.stack([x, x]), data.buffer))
    for length, ends in ((10, [7, 10]), (7, [7]), (2, [2])):
        taken = []
        state, _, episodes = td3_bc.interact(args, data, state, make, keys, args.steps, 0, length, taken.append)
        assert episodes == [[[step, 7.0, 1.0] for step in ends]] * 2 and sum(taken) == length
    assert state.buffer.size.tolist() == [19, 19]


@pytest.mark.parametrize("name", ONLINE)
def test_online_a_delayed_update_is_skipped_not_masked(name, pendulum, monkeypatch):
    """Within the `cond` of the warm-up those of `update` survive vmap over seeds, as in `train`."""
    module = importlib.import_module(name)
    if "jax.lax.cond(" not in inspect.getsource(module.update):
        pytest.skip("nothing is delayed")
    args, data, before, after, *_ = online(name, pendulum, warmup=4)
    happened = happening(after)
    learn = jax.make_jaxpr(where_all_learn_at_once(monkeypatch, module, "learn", 0), static_argnums=0)
    program = learn(args, data, before, happened, jax.random.split(jax.random.key(0), 2), args.steps, jnp.array(5))
    assert str(program).count("cond[") == 1 + CONDS.get(name, 1)


@pytest.mark.parametrize("name", ["td3_bc", "wsrl"])
def test_online_a_seed_learns_the_same_where_all_learn_at_once(name, pendulum, monkeypatch):
    """As on an accelerator, to rounding."""
    args, data, before, after, *_ = online(name, pendulum, warmup=4)
    module = importlib.import_module(name)
    happened = happening(after)
    given = args, data, before, happened, jax.random.split(jax.random.key(0), 2), args.steps, 5
    in_turn, _ = module.learn(*given)
    together, _ = where_all_learn_at_once(monkeypatch, module, "learn", 0)(*given)
    for one, other in zip(jax.tree.leaves(in_turn), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def contents(folder) -> dict:
    [checkpoint] = folder.rglob("checkpoint.msgpack")
    return flax.serialization.msgpack_restore(checkpoint.read_bytes())


@pytest.fixture(scope="module")
def undisturbed(pendulum, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done = run(command("td3_bc", pendulum, out, *PHASES))
    assert done.returncode == 0, done.stderr
    return out


def test_killed_online_a_run_ends_in_the_same_bytes(undisturbed, pendulum, tmp_path):
    """The buffer is part of the checkpoint, and episodes start afresh after every evaluation."""
    arguments = command("td3_bc", pendulum, tmp_path, *PHASES)
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    step = lambda: [contents(tmp_path)["step"] for _ in tmp_path.rglob("checkpoint.msgpack")]
    while process.poll() is None and not any(x > 40 for x in step()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and 40 < contents(tmp_path)["step"] < 440
    assert run(arguments).returncode == 0
    one, other = (flax.serialization.msgpack_serialize(contents(x)["state"]) for x in (undisturbed, tmp_path))
    assert one == other


def test_json_holds_both_phases(undisturbed):
    paths = sorted(undisturbed.rglob("seed_*.json"))
    assert len(paths) == 2
    for path in paths:
        content = json.loads(path.read_text())
        assert content["finished"] and content["final"]["step"] == 440
        evaluations = content["evaluations"]
        assert [x["step"] for x in evaluations] == list(range(40, 441, 40))
        assert "episodes" not in evaluations[0] and all("episodes" in x for x in evaluations[1:])
        assert content["regret"] is None, "Pendulum has neither successes nor reference scores"


def test_regret_is_what_is_missing_to_success_or_to_the_reference():
    assert td3_bc.regret([[10, 5.0, 1.0], [20, 5.0, 0.0], [30, 5.0, 0.0]], (0.0, 10.0)) == pytest.approx(2 / 3)
    assert td3_bc.regret([[10, 0.0, None], [20, 5.0, None], [30, 10.0, None]], (0.0, 10.0)) == pytest.approx(0.5)
    assert td3_bc.regret([[10, 0.0, None]], None) is None and td3_bc.regret([], (0.0, 10.0)) is None


def test_a_run_begins_where_another_ended(undisturbed, pendulum, tmp_path):
    """With its networks and optimisers, an empty buffer, and an evaluation before the first step."""
    [checkpoint] = undisturbed.rglob("checkpoint.msgpack")
    flags = ("--steps", "0", "--online-steps", "40", "--warmup", "40", "--pretrained", str(checkpoint))
    done = run(command("td3_bc", pendulum, tmp_path, "--seeds", "0", "1", *flags))
    assert done.returncode == 0, done.stderr
    parent, child = contents(undisturbed), contents(tmp_path)
    assert child["state"]["buffer"]["size"].tolist() == [40, 40], "of its own"
    for x in (parent["state"], child["state"]):
        del x["buffer"]
    assert flax.serialization.msgpack_serialize(parent["state"]) == flax.serialization.msgpack_serialize(child["state"])
    [ours], [theirs] = (
        [json.loads(p.read_text())] for p in (*tmp_path.rglob("*_0.json"), *undisturbed.rglob("*_0.json"))
    )
    assert [x["step"] for x in ours["evaluations"]] == [0, 20, 40]
    assert all(x["returns"] == theirs["final"]["returns"] for x in ours["evaluations"]), "frozen in the warm-up"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--steps", "0"), "--steps and --online-steps are 0"),
        (("--online-steps", "-5"), "--online-steps is -5"),
        (("--warmup", "-1"), "--warmup is -1"),
        (("--online-steps", "9", "--num-envs", "2"), "multiples of --num-envs, 2"),
        (("--num-envs", "0"), "--num-envs is 0"),
        (("--online-steps", "9", "--buffer-size", "0"), "--buffer-size is 0"),
        (("--offline-ratio", "1.5"), "--offline-ratio is 1.5"),
        (("--pretrained", "nowhere.msgpack"), "nowhere.msgpack is no file"),
    ],
)
def test_wrong_arguments_of_the_online_phase_end_in_a_sentence(flags, sentence, pendulum, tmp_path, refused):
    refused(command("td3_bc", pendulum, tmp_path, *flags), sentence)


@pytest.mark.parametrize("change", ["data", "normalize"])
def test_a_parent_that_saw_other_observations_is_refused(change, undisturbed, pendulum, tmp_path, refused):
    """Its policy would act on one scale and learn on another."""
    [checkpoint] = undisturbed.rglob("checkpoint.msgpack")
    flags = ("--seeds", "0", "1", "--pretrained", str(checkpoint))
    if change == "normalize":
        flags = (*flags, "--no-normalize")
    else:
        observations = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
        pendulum = write_hdf5(tmp_path / "other.hdf5", observations=observations)
    refused(command("td3_bc", pendulum, tmp_path, *flags), "normalised otherwise")


def test_a_run_goes_on_as_undisturbed_where_episodes_begin_by_numpys_generator(pendulum, tmp_path, monkeypatch):
    """As those of OGBench's mazes do, which reset(seed=...) leaves alone; a new process has another one."""

    class Drifting(gymnasium.ObservationWrapper):
        def observation(self, observation):
            return observation + np.random.normal(size=3).astype(np.float32)

    def go(out):
        monkeypatch.setattr(sys, "argv", command("td3_bc", pendulum, out, "--steps", "20", "--online-steps", "60")[1:])
        td3_bc.main(td3_bc.interact)

    def interrupt(entry, *_):
        if entry["step"] == 40:
            raise KeyboardInterrupt

    make = loader.make_env
    monkeypatch.setattr(loader, "make_env", lambda *args: Drifting(make(*args)))
    go(tmp_path / "undisturbed")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(td3_bc, "report", interrupt)
        go(tmp_path / "interrupted")
    np.random.seed(7)
    go(tmp_path / "interrupted")
    one, other = (contents(tmp_path / name) for name in ("undisturbed", "interrupted"))
    logs = [[(e["step"], e["returns"], e["episodes"]) for e in json.loads(x["log"])] for x in (one, other)]
    assert logs[0] == logs[1] and logs[0][-1][0] == 80
    assert flax.serialization.msgpack_serialize(one["state"]) == flax.serialization.msgpack_serialize(other["state"])


def test_a_parent_of_other_seeds_is_refused(undisturbed, pendulum, tmp_path, refused):
    [checkpoint] = undisturbed.rglob("checkpoint.msgpack")
    flags = ("--seeds", "0", "2", "--pretrained", str(checkpoint))
    refused(command("td3_bc", pendulum, tmp_path, *flags), "another seeds", "give --pretrained one")
