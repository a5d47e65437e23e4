"""benchmarks/collect*.py: the data is a function of policy, seed and count, and what it says about episodes is true."""

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
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "policies"), str(BENCHMARKS.parent / "algorithms")]
import collect  # noqa: E402
import collect_locomotion  # noqa: E402
import collect_ogbench  # noqa: E402
import collect_pointmaze  # noqa: E402
import dataset  # noqa: E402
import pack  # noqa: E402

MEDIUM, RANDOM, SHARD = "solo/hopper-v5/medium-v0", "solo/hopper-v5/random-v0", 250
MAZE, NAVIGATE = "solo/pointmaze-umaze-v3/waypoint-v0", "pointmaze-medium-navigate-v0"


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
        patch.setenv("OGBENCH_DATA_DIR", str(root))
        patch.setattr(collect, "SHARD", shard)
        patch.setattr(collect_ogbench, "SHARD", 1)
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
    policy = collect_locomotion.read_policies(policies / "hopper-v5-medium.npz", "Hopper-v5")[0][0]
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
        assert collect_locomotion.act(policy, observation, noise)[c] == pytest.approx(expected, rel=1e-5)
    assert collect_locomotion.act(policy, observation, noise).dtype == np.float32


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


def test_medium_replay_is_packed_from_snapshots_on_the_way_to_medium(tmp_path):
    for step in range(10, 260, 10):
        tiny(tmp_path / f"policy_seed_1_step_{step:03}.npz", "Hopper-v5", 11, 3, b2=np.full(3, step, np.float16))
        with np.load(tmp_path / f"policy_seed_1_step_{step:03}.npz") as file:
            arrays = dict(file)
        arrays["meta"] = json.dumps(json.loads(str(arrays["meta"])) | {"step": step})
        np.savez(tmp_path / f"policy_seed_1_step_{step:03}.npz", **arrays)
    tiny(tmp_path / "policy_seed_2_step_010.npz", "Hopper-v5", 11, 3)
    out = tmp_path / "hopper-v5-medium-replay.npz"
    steps = pack.pack(tmp_path / "policy_seed_1_step_190.npz", out)
    assert steps == [10, 30, 50, 70, 90, 110, 130, 150, 170, 190]
    found = collect_locomotion.read_policies(out, "Hopper-v5")[0]
    assert [float(policy.mean[1][0]) for policy in found] == steps
    assert pack.pack(tmp_path / "policy_seed_1_step_030.npz", out) == [10, 20, 30]


# -------------------------------------------------------------------------------------------------------- point mazes


@pytest.fixture(scope="module")
def maze(policies, tmp_path_factory):
    root = tmp_path_factory.mktemp("maze") / "datasets"
    run(policies, root, MAZE, "--transitions", 1500, "--workers", 1, shard=1000)
    return root


def test_a_maze_is_a_function_of_its_seed(policies, maze, tmp_path):
    run(policies, tmp_path / "two", MAZE, "--transitions", 1500, "--workers", 2, shard=1000)
    assert (maze / MAZE / "data/main_data.hdf5").read_bytes() == (
        tmp_path / "two" / MAZE / "data/main_data.hdf5"
    ).read_bytes()
    run(policies, tmp_path / "other", MAZE, "--transitions", 1500, "--seed", 1, shard=1000)
    ours, others = (dataset_of(root)[MAZE] for root in (maze, tmp_path / "other"))
    assert ours.observations.shape == others.observations.shape and (ours.observations != others.observations).any()


def dataset_of(root):
    """What `dataset.load` makes of the ids below a root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        return {MAZE: dataset.load(MAZE)}


def test_a_maze_goes_on_where_a_goal_was_reached_and_never_terminates(maze, monkeypatch):
    data = list(load(maze, MAZE, monkeypatch))
    assert sum(map(len, data)) == 1500 and len(data) > 10
    jumps = 0
    for episode, following in zip(data[:-1], data[1:], strict=True):
        jumps += (episode.observations["observation"][-1] != following.observations["observation"][0]).any()
    assert jumps == 1  # where the second shard begins
    for episode in data:
        assert not episode.terminations.any() and np.flatnonzero(episode.truncations).tolist() == [len(episode) - 1]
    assert max(map(len, data)) <= 300


def test_a_maze_rewards_one_fixed_goal_and_its_evaluation_has_it_too(maze, monkeypatch):
    """Played again in that environment, the actions give the observations; the rewards are those of D4RL's cell."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(maze))
    data = dataset.load(MAZE)
    env = dataset.make_env(data)
    assert (data.benchmark, data.name, data.env) == ("solo", "pointmaze-umaze-v3-waypoint-v0", "PointMaze_UMaze-v3")
    assert data.reference is None and env.spec.max_episode_steps == 300
    base = env.unwrapped
    goal = base.maze.cell_rowcol_to_xy(np.array([1, 1]))
    distances = np.linalg.norm(data.next_observations[:, :2] - goal, axis=1)
    np.testing.assert_array_equal(data.rewards, distances <= 0.45)
    assert 0 < data.rewards.mean() < 0.5
    for seed in range(5):
        env.reset(seed=seed)
        assert (np.abs(base.goal - goal) <= 0.25).all()
    base.point_env.set_state(data.observations[0, :2].astype(float), data.observations[0, 2:].astype(float))
    for action, observation in zip(data.actions[:200], data.next_observations, strict=False):
        np.testing.assert_allclose(env.step(action)[0], observation, atol=1e-4)


def test_minari_recovers_the_maze(maze, monkeypatch):
    data = load(maze, MAZE, monkeypatch)
    env, episode = data.recover_environment(eval_env=True), data[0]
    assert env.spec.max_episode_steps == 300 and env.observation_space == data.observation_space
    first = {key: value[0] for key, value in episode.observations.items()}
    assert data.observation_space.contains(first) and data.action_space.contains(episode.actions[0])
    np.testing.assert_array_equal(first["achieved_goal"], first["observation"][:2])
    assert (first["desired_goal"] == env.unwrapped.maze.cell_rowcol_to_xy(np.array([1, 1]))).all()


@pytest.mark.parametrize("name", collect_pointmaze.MAZES)
def test_a_path_goes_through_neighbouring_free_cells_and_is_shortest(name):
    walls = np.array(collect_pointmaze.make(name).unwrapped.maze.maze_map, object) == 1
    free = [(int(i), int(j)) for i, j in np.argwhere(~walls)]
    distance = np.where(np.eye(len(free), dtype=bool), 0, 99)
    near = np.abs(np.array(free)[:, None] - free).sum(-1) == 1
    for _ in free:
        distance = np.minimum(distance, np.where(near[:, :, None], distance[None] + 1, 99).min(1))
    for i, start in enumerate(free):
        for j, end in enumerate(free):
            cells = collect_pointmaze.path(free, start, end)
            assert cells[-1] == end and set(cells) <= set(free) and len(cells) == max(distance[i, j], 1)
            steps = np.abs(np.diff([start, *cells], axis=0)).sum(1)
            assert (steps == 1).all() or start == end


# ------------------------------------------------------------------------------------------------------------ OGBench


@pytest.fixture(scope="module")
def navigate(policies, tmp_path_factory):
    """The folder of an undisturbed point-maze set of three training episodes and a validation episode."""
    root = tmp_path_factory.mktemp("ogbench") / "data"
    run(policies, root, NAVIGATE, "--transitions", 2500, "--workers", 1)
    return root


def test_ogbench_sets_are_a_function_of_their_seed(policies, navigate, tmp_path):
    run(policies, tmp_path / "two", NAVIGATE, "--transitions", 2500, "--workers", 2)
    run(policies, tmp_path / "other", NAVIGATE, "--transitions", 2500, "--seed", 1)
    for suffix in ("", "-val"):
        name = f"{NAVIGATE}{suffix}.npz"
        assert (tmp_path / "two" / name).read_bytes() == (navigate / name).read_bytes()
        ours, others = np.load(navigate / name), np.load(tmp_path / "other" / name)
        assert (ours["observations"] != others["observations"]).any(1).all()


def test_an_interrupted_ogbench_set_goes_on(policies, navigate, tmp_path, monkeypatch):
    save_all = collect.save_all
    monkeypatch.setattr(collect, "save_all", lambda shards, *rest: save_all(shards[:2], *rest))
    monkeypatch.setattr(collect_ogbench, "write", None)
    with pytest.raises(TypeError):  # after two of four shards
        run(policies, tmp_path / "data", NAVIGATE, "--transitions", 2500)
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(collect, "save_all", lambda shards, *rest: (seen.extend(shards), save_all(shards, *rest)))
    run(policies, tmp_path / "data", NAVIGATE, "--transitions", 2500)
    assert len(seen) == 2
    for suffix in ("", "-val"):
        name = f"{NAVIGATE}{suffix}.npz"
        assert (tmp_path / "data" / name).read_bytes() == (navigate / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # no work folder is left


def test_ogbenchs_own_loader_reads_it_and_ours_says_that_it_is_not_published(navigate, monkeypatch):
    import ogbench

    monkeypatch.setenv("OGBENCH_DATA_DIR", str(navigate))
    name = "pointmaze-medium-navigate-singletask-task1-v0"
    data, (_, train, val) = dataset.load(name), ogbench.make_env_and_datasets(name, dataset_dir=str(navigate))
    assert (data.benchmark, data.name) == ("OGBench-regenerated", name)
    for key in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(data, key), train[key])
    np.testing.assert_array_equal(data.terminals, train["masks"] == 0)
    assert len(train["rewards"]) == 3000 and len(val["rewards"]) == 1000
    assert dataset.make_env(data).observation_space.shape == data.observations.shape[1:]


def test_a_published_ogbench_file_is_not_overwritten(policies, navigate, tmp_path, capsys):
    for suffix in ("", "-val"):
        arrays = {key: value for key, value in np.load(navigate / f"{NAVIGATE}{suffix}.npz").items()}
        np.savez(tmp_path / f"{NAVIGATE}{suffix}.npz", **{k: v for k, v in arrays.items() if k != "solo_recipe"})
    with pytest.raises(SystemExit) as end:
        run(policies, tmp_path, NAVIGATE, "--transitions", 2500)
    assert end.value.code == 2 and "--overwrite" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OGBENCH_DATA_DIR", str(tmp_path))
        assert dataset.load("pointmaze-medium-navigate-singletask-v0").benchmark == "OGBench"


def test_points_walk_towards_goals(navigate):
    """Noise of 0.5 on a unit direction, actions clipped, and a step of 0.2 times the action."""
    file = np.load(navigate / f"{NAVIGATE}.npz")
    inner = ~file["terminals"][:-1]
    np.testing.assert_array_equal(file["observations"], file["qpos"])
    moved = np.diff(file["observations"], axis=0)[inner]
    free = np.abs(moved - 0.2 * file["actions"][:-1][inner]).max(1) < 1e-4
    assert free.mean() > 0.8 and np.abs(file["actions"]).max() == 1  # the rest runs into walls
    visited = {(round(x / 4), round(y / 4)) for x, y in file["observations"]}
    assert len(visited) > 15  # of 26 free cells


def test_goals_are_not_the_insides_of_corridors():
    walls = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    free, goals = collect_ogbench.cells(walls)
    assert sorted(free) == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)] and sorted(goals) == [(1, 1), (1, 3), (3, 1)]
    for maze, sizes in {"medium": (26, 21), "large": (46, 22), "giant": (86, 46), "teleport": (45, 24)}.items():
        env = collect_ogbench.make(f"pointmaze-{maze}-navigate-v0", 11)
        assert tuple(map(len, collect_ogbench.cells(env.unwrapped.maze_map))) == sizes


KEYS = {"observations": np.float32, "actions": np.float32, "terminals": bool, "qpos": np.float32, "qvel": np.float32}


@pytest.mark.parametrize("name", [name for name in collect_ogbench.COUNTS if "play" in name])
def test_an_arm_repeats_what_its_rows_say(name, tmp_path, monkeypatch):
    """A row's action leads from its state to the next row's observation; the relabelled reward is the environment's."""
    import ogbench
    from ogbench.relabel_utils import relabel_dataset

    columns = collect_ogbench.rollout(name, 121, np.random.SeedSequence(3), 2)
    buttons = {"button_states": np.int64} if name.startswith(("scene", "puzzle")) else {}
    assert {key: value.dtype for key, value in columns.items()} == KEYS | buttons
    assert np.flatnonzero(columns["terminals"]).tolist() == [120, 241] and np.abs(columns["actions"]).max() <= 1
    again = collect_ogbench.rollout(name, 121, np.random.SeedSequence(3), 1)
    for key, value in again.items():
        np.testing.assert_array_equal(value, columns[key][:121])

    monkeypatch.setenv("OGBENCH_DATA_DIR", str(tmp_path))
    for suffix in ("", "-val"):
        np.savez(tmp_path / f"{name}{suffix}.npz", **columns)
    single = name.replace("-v0", "-singletask-task2-v0")
    ours, (_, theirs, _) = dataset.load(single), ogbench.make_env_and_datasets(single, dataset_dir=str(tmp_path))
    for key in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(ours, key), theirs[key])
    np.testing.assert_array_equal(ours.terminals, theirs["masks"] == 0)

    task = name.replace("-play-", "-singletask-")
    env = ogbench.make_env_and_datasets(name.replace("-v0", "-singletask-v0"), env_only=True)
    env.reset(seed=0)
    relabel_dataset(task, env, columns)
    env.reset(seed=0)
    for row in range(0, 242, 24):
        extra = [columns["button_states"][row]] if buttons else []
        env.unwrapped.set_state(columns["qpos"][row].astype(float), columns["qvel"][row].astype(float), *extra)
        assert env.step(columns["actions"][row])[1] == columns["rewards"][row]
        if row not in (120, 241):  # joint angles: 14 of the observation's numbers are the arm's
            np.testing.assert_allclose(
                env.unwrapped.compute_observation()[:6], columns["observations"][row + 1, :6], atol=1e-3
            )


def test_a_scene_whose_cube_is_out_of_sight_is_done_again():
    steps = [{"qpos": np.r_[np.zeros(14), 0.4, y, z]} for y, z in [(0.0, 0.02), (-0.31, 0.07), (0.28, 0.02)]]
    assert collect_ogbench.in_sight(steps)
    for y, z in [(0.29, 0.02), (-0.31, 0.05), (-0.3, 0.09)]:
        assert not collect_ogbench.in_sight([*steps, {"qpos": np.r_[np.zeros(14), 0.4, y, z]}])


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


def test_list_says_what_can_be_made(policies, medium, monkeypatch, capsys):
    few = [MEDIUM, RANDOM, "solo/walker2d-v5/medium-v0", MAZE, NAVIGATE, "cube-single-play-v0"]
    assert set(few) < set(collect.IDS)
    monkeypatch.setattr(collect, "IDS", few)
    run(policies, medium, "--list")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {"id", *few}
    assert "1,100 rows" in lines[MEDIUM] and "(missing)" not in lines[MEDIUM]
    assert "walker2d-v5-medium.npz (missing)" in lines["solo/walker2d-v5/medium-v0"]
    for id in (MAZE, NAVIGATE, "cube-single-play-v0"):
        *_, speed, minutes, there = lines[id].split()
        assert float(speed.replace(",", "")) > 1 and float(minutes) > 0 and there == "-"


def test_describe_writes_what_is_there(policies, medium, navigate, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "DESCRIPTION", tmp_path / "tables/datasets.md")
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(navigate))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(medium))
    collect.describe()
    rows = [line.split(" | ") for line in collect.DESCRIPTION.read_text().splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == [MEDIUM, NAVIGATE]
    data = load(medium, MEDIUM, monkeypatch)
    whole = [e.rewards.sum(dtype=float) for e in data if e.terminations[-1] or len(e) == 1000]
    score = 100 * (np.mean(whole) + 20.272305) / (3234.3 + 20.272305)
    assert rows[1][1:5] == [f"{len(data)}", f"{np.mean(whole):.1f}", f"{score:.1f}", "1,100"]
    assert rows[1][-1] == "2,187 |"  # D4RL's episodes
    assert rows[2][1:5] == ["3", "-", "-", "3,000"]


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["solo/hopper-v5/mediun-v0"], "--list"),
        ([RANDOM, "solo/walker2d-v5/medium-v0"], "walker2d-v5-medium.npz"),
        ([], "--list"),
        ([RANDOM, "--transitions", "0"], "--transitions"),
        (["pointmaze-medium-stitch-v0"], "--list"),
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
