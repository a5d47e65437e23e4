"""benchmarks/collect.py: the data is a function of policy, seed and count, and what it says about episodes is true."""

import json
import math
import subprocess
import sys
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import collect  # noqa: E402

MEDIUM, RANDOM, SHARD = "solo/hopper-v5/medium-v0", "solo/hopper-v5/random-v0", 250


def tiny(path, env, obs, act, lead=(), **changes):
    """A small random policy; `lead` is the axis of its checkpoints."""
    rng = np.random.default_rng(act)
    arrays = {}
    for name, (rows, columns) in {"0": (obs, 8), "1": (8, 8), "2": (8, act), "_log_std": (8, act)}.items():
        arrays[f"W{name}"] = rng.normal(0, 0.5, (*lead, rows, columns)).astype(np.float16)
        arrays[f"b{name}"] = rng.normal(0, 0.5, (*lead, columns)).astype(np.float16)
    meta = json.dumps({"env": env, "hidden": "relu", "squash": "tanh"})
    np.savez(path, **(arrays | {"meta": meta} | changes))


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    tiny(folder / "hopper-v5-medium.npz", "Hopper-v5", 11, 3)
    tiny(folder / "hopper-v5-expert.npz", "Hopper-v5", 11, 3, b2=np.ones(3, np.float32))
    tiny(folder / "halfcheetah-v5-medium.npz", "HalfCheetah-v5", 17, 6)
    bias = np.array([[3.0] * 3, [-3.0] * 3, [3.0] * 3])  # checkpoints that are told apart by the sign of their actions
    still = {
        "W2": np.zeros((3, 8, 3)),
        "b2": bias,
        "W_log_std": np.zeros((3, 8, 3)),
        "b_log_std": np.full((3, 3), -99.0),
    }
    tiny(folder / "hopper-v5-medium-replay.npz", "Hopper-v5", 11, 3, (3,), **still)
    return folder


def run(policies, root, *arguments, shard=SHARD):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        patch.setattr(collect, "SHARD", shard)
        collect.main([*map(str, arguments), "--policies", str(policies)])


@pytest.fixture(scope="module")
def medium(policies, tmp_path_factory):
    """The root of an undisturbed dataset of 1,100 rows."""
    root = tmp_path_factory.mktemp("undisturbed") / "datasets"
    run(policies, root, MEDIUM, "--transitions", 1100, "--workers", 1)
    return root


def read(root, id=MEDIUM):
    """The episodes as bytes: what equality to the byte is about."""
    with h5py.File(root / id / "data" / "main_data.hdf5") as file:
        return [{key: data[()].tobytes() for key, data in episode.items()} for episode in file.values()]


def load(root, id, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return minari.load_dataset(id)


# ------------------------------------------------------------------------------------------------------------ policy


def test_actions_are_those_of_the_formula(policies):
    policy = collect.read_policies(policies / "hopper-v5-medium.npz", "Hopper-v5")[0][0]
    policy.log_std[1][:] = [99, -99, 0]  # beyond both bounds of log_std
    arrays = np.load(policies / "hopper-v5-medium.npz")
    observation, noise = np.linspace(-1, 2, 11, dtype=np.float32), np.array([1e-3, 0.5, -1], np.float32)
    x = list(map(float, observation))
    for i in "01":
        weights, bias = arrays[f"W{i}"].astype(float), arrays[f"b{i}"].astype(float)
        x = [max(0.0, sum(x[r] * weights[r, c] for r in range(len(x))) + bias[c]) for c in range(8)]
    for c, log_std in enumerate([2.0, -20.0, sum(x[r] * float(arrays["W_log_std"][r, 2]) for r in range(8))]):
        mean = sum(x[r] * float(arrays["W2"][r, c]) for r in range(8)) + float(arrays["b2"][c])
        expected = math.tanh(mean + math.exp(log_std) * float(noise[c]))
        assert collect.act(policy, observation, noise)[c] == pytest.approx(expected, rel=1e-5)
    assert collect.act(policy, observation, noise).dtype == np.float32


# --------------------------------------------------------------------------------------------- a function of the seed


def test_same_seed_same_bytes_whatever_the_workers(policies, medium, tmp_path):
    run(policies, tmp_path / "two", MEDIUM, "--transitions", 1100, "--workers", 2)
    assert read(tmp_path / "two") == read(medium)
    run(policies, tmp_path / "other", MEDIUM, "--transitions", 1100, "--seed", 1)
    assert read(tmp_path / "other") != read(medium)


def test_interrupted_and_continued_is_undisturbed(policies, medium, tmp_path, monkeypatch, capsys):
    save_all = collect.save_all

    def interrupted(shards, workers, report):
        def stop(rows):
            raise KeyboardInterrupt

        save_all(shards, workers, stop)

    monkeypatch.setattr(collect, "save_all", interrupted)
    with pytest.raises(SystemExit) as end:
        run(policies, tmp_path / "datasets", MEDIUM, "--transitions", 1100, "--workers", 1)
    assert end.value.code == 130 and "goes on" in capsys.readouterr().err
    assert not (tmp_path / "datasets" / MEDIUM).exists()
    kept = sorted((tmp_path / "datasets.work" / MEDIUM).glob("*/*.npz"))
    (kept[0].parent / "dataset").mkdir()  # stopped also while it wrote,
    kept[0].with_suffix(".999").write_bytes(kept.pop(0).read_bytes()[:99])  # and in the middle of a shard
    kept[0].with_name("000-00000.npz").unlink()
    seen = []
    monkeypatch.setattr(collect, "save_all", lambda shards, *rest: (seen.extend(shards), save_all(shards, *rest)))
    run(policies, tmp_path / "datasets", MEDIUM, "--transitions", 1100, "--workers", 2)
    assert len(seen) == 5 - len(kept) and not {shard.path for shard in seen} & set(kept)
    assert read(tmp_path / "datasets") == read(medium)
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]  # no work folder is left


def test_a_dataset_is_recognised_or_kept_from_being_replaced(policies, medium, tmp_path, capsys):
    root = tmp_path / "datasets"
    run(policies, root, RANDOM, "--transitions", 50)
    before, when = read(root, RANDOM), (root / RANDOM / "data" / "main_data.hdf5").stat().st_mtime_ns
    run(policies, root, RANDOM, "--transitions", 50, "--overwrite")
    assert "there already" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        run(policies, root, RANDOM, "--transitions", 50, "--seed", 1)
    assert end.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert (root / RANDOM / "data" / "main_data.hdf5").stat().st_mtime_ns == when
    run(policies, root, RANDOM, "--transitions", 50, "--seed", 1, "--overwrite")
    assert read(root, RANDOM) != before


# ---------------------------------------------------------------------------------------------------------- episodes


def test_episodes_are_what_the_environment_does(policies, tmp_path, monkeypatch):
    """Played again, the actions give the observations, rewards and ends; only the last episode is cut off."""
    rows = 600
    run(policies, tmp_path / "datasets", RANDOM, "--transitions", rows)
    data = list(load(tmp_path / "datasets", RANDOM, monkeypatch))
    env, left = gymnasium.make("Hopper-v5"), iter(data)
    for j in range(3):
        seeds = np.random.SeedSequence((0, 0), spawn_key=(0, j))
        env.reset(seed=int(np.random.default_rng(seeds).integers(2**31)))
        played = 0
        while played < SHARD and (episode := next(left, None)) is not None:
            observations, steps = [env.reset()[0]], []
            for action in episode.actions:
                observation, *step, _ = env.step(action)
                observations.append(observation)
                steps.append(step)
            rewards, terminated, truncated = map(np.array, zip(*steps, strict=True))
            np.testing.assert_array_equal(episode.observations, np.array(observations, np.float32))
            np.testing.assert_array_equal(episode.rewards, rewards.astype(np.float32))
            assert episode.rewards.sum(dtype=float) == pytest.approx(rewards.sum())
            np.testing.assert_array_equal(episode.terminations, terminated)
            assert not truncated.any() and not terminated[:-1].any()
            assert bool(episode.truncations[-1]) == (not terminated[-1]) and not episode.truncations[:-1].any()
            played += len(steps)
    assert next(left, None) is None and sum(map(len, data)) == rows
    assert sum(episode.truncations.any() for episode in data) <= 1


def test_a_time_limit_is_no_terminal(policies, tmp_path, monkeypatch):
    id = "solo/halfcheetah-v5/medium-v0"
    run(policies, tmp_path / "datasets", id, "--transitions", 2500, shard=2000)
    data = list(load(tmp_path / "datasets", id, monkeypatch))
    assert [len(episode) for episode in data] == [1000, 1000, 500]
    for episode in data:
        assert not episode.terminations.any()
        assert episode.truncations.tolist() == [False] * (len(episode) - 1) + [True]


def test_medium_replay_gives_every_checkpoint_its_share(policies, tmp_path, monkeypatch):
    id = "solo/hopper-v5/medium-replay-v0"
    run(policies, tmp_path / "datasets", id, "--transitions", 302)
    data = list(load(tmp_path / "datasets", id, monkeypatch))
    signs = np.sign(np.concatenate([episode.actions for episode in data]))
    np.testing.assert_array_equal(signs, np.repeat([1, -1, 1], [100, 101, 101])[:, None] * np.ones((1, 3)))
    ends = np.cumsum([len(episode) for episode in data])
    assert {100, 201, 302} <= set(ends.tolist())
    first, second = data[0], data[np.searchsorted(ends, 100) + 1]
    assert (first.observations[0] != second.observations[0]).any()  # not from the same states again


def test_medium_expert_is_medium_then_expert(policies, medium, tmp_path, monkeypatch):
    id = "solo/hopper-v5/medium-expert-v0"
    run(policies, tmp_path / "datasets", id, "--transitions", 601)
    alone, both = load(medium, MEDIUM, monkeypatch), load(tmp_path / "datasets", id, monkeypatch)
    actions = np.concatenate([episode.actions for episode in both])
    assert len(actions) == 601
    np.testing.assert_array_equal(actions[:300], np.concatenate([episode.actions for episode in alone])[:300])
    expert = list(both)[np.cumsum([len(episode) for episode in both]).tolist().index(300) + 1]
    assert (expert.observations[0] != both[0].observations[0]).any()  # not from the same states again


# ------------------------------------------------------------------------------------------------------------ Minari


def test_minari_reads_it(policies, medium, monkeypatch):
    from minari.cli import app
    from typer.testing import CliRunner

    data = load(medium, MEDIUM, monkeypatch)
    assert data.total_steps == 1100 == sum(map(len, data)) and data.total_episodes == len(list(data))
    saved = data.storage.metadata
    assert (saved["ref_min_score"], saved["ref_max_score"]) == (-20.272305, 3234.3)
    assert minari.get_normalized_score(data, np.array(3234.3)) == 1
    assert data.recover_environment().spec.id == data.recover_environment(eval_env=True).spec.id == "Hopper-v5"
    assert {"author", "code_permalink", "algorithm_name", "description", "requirements"} <= saved.keys()
    assert saved["solo"]["policies"].keys() == {"hopper-v5-medium.npz"} and saved["solo"]["seed"] == 0
    for episode in data:
        assert data.observation_space.contains(episode.observations[0])
        assert data.action_space.contains(episode.actions[0]) and np.abs(episode.actions).max() <= 1
    for command in (["list", "local"], ["show", MEDIUM]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0 and "hopper" in result.output


def test_list_says_what_can_be_made(policies, medium, capsys):
    run(policies, medium, "--list")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {"id", *collect.IDS}
    assert "1,100 rows" in lines[MEDIUM] and "(missing)" not in lines[MEDIUM]
    assert "walker2d-v5-medium.npz (missing)" in lines["solo/walker2d-v5/medium-v0"]


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["solo/hopper-v5/mediun-v0"], "--list"),
        ([RANDOM, "solo/walker2d-v5/medium-v0"], "walker2d-v5-medium.npz"),
        ([], "--list"),
        ([RANDOM, "--transitions", "0"], "--transitions"),
    ],
)
def test_a_mistake_ends_in_one_sentence(policies, tmp_path, capsys, arguments, says):
    with pytest.raises(SystemExit) as end:
        run(policies, tmp_path / "datasets", *arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, says",
    [
        ({"obs_mean": np.ones(11)}, "obs_mean"),
        ({"W0": np.ones((17, 8))}, "not understood"),
        ({"b2": np.full(3, np.nan)}, "do not fit"),
        ({"meta": '{"env": "Walker2d-v5", "hidden": "relu", "squash": "tanh"}'}, "Walker2d"),
        ({"meta": np.array([{}], object)}, "pickle"),
        (None, "not understood"),
    ],
)
def test_a_damaged_policy_ends_in_one_sentence(tmp_path, capsys, change, says):
    tiny(path := tmp_path / "hopper-v5-medium.npz", "Hopper-v5", 11, 3, **(change or {}))
    if change is None:
        path.write_bytes(path.read_bytes()[:999])
    with pytest.raises(SystemExit) as end:
        run(tmp_path, tmp_path / "datasets", MEDIUM)
    error = capsys.readouterr().err
    assert end.value.code == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "datasets").exists()


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    command = [sys.executable, BENCHMARKS / "collect.py", RANDOM, "--transitions", "100", "--workers", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    header, line = (text.split() for text in result.stdout.splitlines())
    assert line[0] == RANDOM and line[4] == "100" and float(line[2]) > 0
