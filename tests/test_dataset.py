"""algorithms/dataset.py promises: rows, successors, episodes, references, environments, sentences for bad input."""

import copy
import os
import socket
import sys
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SOLO_SHARED", ROOT.parent / "shared")) / "data"
sys.path.insert(0, str(ROOT / "algorithms"))

import dataset  # noqa: E402
from dataset import DatasetError, from_arrays, load, make_env, normalized_score  # noqa: E402

ARRAYS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Every data folder, and the current one (MuJoCo leaves its log there), is an empty one; there is no network."""
    for variable in ("D4RL_DATASET_DIR", "MINARI_DATASETS_PATH", "OGBENCH_DATA_DIR", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network in tests")))
    return tmp_path


def columns(rows=30, seed=0, obs=11, act=3, **changes):
    """Columns of a file in D4RL's layout; a column changed to None is left out."""
    random = np.random.default_rng(seed)
    made = {
        "observations": random.normal(size=(rows, obs)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, act)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": random.random(rows) < 0.1,
        "timeouts": random.random(rows) < 0.1,
    } | changes
    return {key: np.asarray(value) for key, value in made.items() if value is not None}


def write(path, values):
    with h5py.File(path, "w") as file:
        for key, value in values.items():
            file[key] = value
    return str(path)


def flags(rows, *where):
    return np.isin(np.arange(rows), where)


# ------------------------------------------------------------------------------------------------- the rule of D4RL


def qlearning_rows(terminals, timeouts, limit):
    """The rows that d4rl.qlearning_dataset returns, as the card describes its loop."""
    rows, step = [], 0
    for i in range(len(terminals) - 1):
        final = bool(timeouts[i]) if timeouts is not None else step == limit - 1
        if final:
            step = 0
            continue
        if bool(terminals[i]):
            step = 0
        rows.append(i)
        step += 1
    return rows


HAND_MADE = {  # terminals, timeouts, rows kept, episodes
    "a terminal": (flags(6, 2), flags(6), [0, 1, 2, 3, 4], [[0, 3], [3, 6]]),
    "a time-out": (flags(6), flags(6, 2), [0, 1, 3, 4], [[0, 3], [3, 6]]),
    "both in one row": (flags(6, 2), flags(6, 2), [0, 1, 3, 4], [[0, 3], [3, 6]]),
    "a finished tail": (flags(6), flags(6, 2, 5), [0, 1, 3, 4], [[0, 3], [3, 6]]),
    "nothing marked": (flags(6), flags(6), [0, 1, 2, 3, 4], [[0, 6]]),
    "terminal, time-out, tail": (flags(9, 2), flags(9, 5), [0, 1, 2, 3, 4, 6, 7], [[0, 3], [3, 6], [6, 9]]),
    "terminals in a row": (flags(6, 1, 2, 3), flags(6), [0, 1, 2, 3, 4], [[0, 2], [2, 3], [3, 4], [4, 6]]),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_hand_made_files_keep_the_rows_of_d4rl(case, home):
    terminals, timeouts, kept, episodes = HAND_MADE[case]
    data = load(write(home / "x.hdf5", columns(len(terminals), terminals=terminals, timeouts=timeouts)), "Hopper-v5")
    assert np.flatnonzero(data.keep).tolist() == kept == qlearning_rows(terminals, timeouts, None)
    assert data.episodes.tolist() == episodes and data.episodes.dtype == np.int64


@pytest.mark.parametrize("form", [bool, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("column", [False, True], ids=["flat", "column"])
def test_flags_and_rewards_may_have_any_type_and_stand_in_a_column(form, column, home):
    plain = columns(200)
    scale = 0.5 if form in (np.float32, np.float64) else 1  # any float but 0 is a flag
    other = dict(plain)
    for key in ("terminals", "timeouts"):
        other[key] = (plain[key] * scale).astype(form)
    if column:
        other |= {key: other[key][:, None] for key in ("rewards", "terminals", "timeouts")}
    expected = load(write(home / "plain.hdf5", plain), "Hopper-v5")
    assert load(write(home / "other.hdf5", other), "Hopper-v5").sha256 == expected.sha256


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [None, 1, 2, 3, 7, 50])
def test_random_files_keep_the_rows_of_d4rl(limit, seed, home):
    """Time-outs counted where the file has none, with the count that goes on from 1 after a terminal."""
    random = np.random.default_rng(seed)
    values = columns(random.integers(2, 300), seed, terminals=None)
    rows = len(values["rewards"])
    values["terminals"] = random.random(rows) < random.choice([0, 0.02, 0.2, 0.7])
    timeouts = None if limit else random.random(rows) < random.choice([0, 0.1, 0.5])
    values = {k: v for k, v in (values | {"timeouts": timeouts}).items() if v is not None}
    kept = qlearning_rows(values["terminals"], timeouts, limit)
    made = lambda: dataset._from_hdf5(Path(write(home / "x.hdf5", values)), limit, id="x", name="x", env="")
    if not kept:
        with pytest.raises(DatasetError, match="no row to train on"):
            made()
        return
    data = made()
    assert np.flatnonzero(data.keep).tolist() == kept
    assert_successors(data)


def test_the_counted_time_out_comes_one_step_early_after_a_terminal(home):
    values = columns(3000, terminals=flags(3000, 99), timeouts=None)
    data = load(write(home / "x.hdf5", values), "Hopper-v5")
    assert np.flatnonzero(data.timeouts).tolist() == [1098, 2098]  # 99 + 999, then whole thousands
    assert "step 1000" in data.rule


def assert_successors(data):
    """Within an episode the next row, at its end the row itself: no row sees another episode."""
    first, stop = data.episodes.T
    assert first[0] == 0 and stop[-1] == len(data.rewards) and (first[1:] == stop[:-1]).all() and (first < stop).all()
    last = np.isin(np.arange(len(data.rewards)), stop - 1)
    successor = np.where(last, np.arange(len(last)), np.arange(len(last)) + 1)
    np.testing.assert_array_equal(data.next_observations, data.observations[successor])
    np.testing.assert_array_equal(last, data.terminals | data.timeouts | flags(len(last), len(last) - 1))


def test_next_observations_of_the_file_are_the_true_successors(home):
    values = columns(50)
    successors = np.random.default_rng(1).normal(size=(50, 11)).astype(np.float32)
    data = load(write(home / "x.hdf5", values | {"next_observations": successors}), "Hopper-v5")
    np.testing.assert_array_equal(data.next_observations, successors)


def test_an_unmarked_jump_of_the_state_ends_an_episode_but_keeps_its_rows(home):
    values = columns(9, terminals=flags(9), timeouts=flags(9))
    values["next_observations"] = np.concatenate([values["observations"][1:], values["observations"][:1]])
    values["next_observations"][4] += 1
    data = load(write(home / "x.hdf5", values), "Hopper-v5")
    assert data.episodes.tolist() == [[0, 5], [5, 9]] and data.keep.sum() == 8 and not data.timeouts.any()


def test_antmaze_trajectories_end_at_jumps_and_not_at_repeated_terminals(home):
    observations = np.zeros((12, 29), np.float32)
    observations[:, 0] = [0, 0.3, 0.6, 0.9, 1.2, 1.5, 20, 20.3, 20.6, 20.9, 21.2, 21.5]
    values = columns(12, act=8, observations=observations, terminals=flags(12, 2, 3, 4), timeouts=flags(12))
    write(home / dataset.D4RL_FILES["antmaze-umaze-v2"].rsplit("/")[-1], values)
    data = load("antmaze-umaze-v2")
    assert data.episodes.tolist() == [[0, 6], [6, 12]] and data.terminals.sum() == 3
    np.testing.assert_array_equal(data.next_observations[2:5], observations[3:6])
    np.testing.assert_array_equal(data.next_observations[5], observations[5])


def test_all_columns_come_back_in_their_types(home):
    values = columns(40)
    data = load(write(home / "x.hdf5", values), "Hopper-v5")
    for key in ("observations", "actions", "rewards", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(data, key), values[key])
    assert {getattr(data, key).dtype for key in ARRAYS[:4]} == {np.dtype(np.float32)}
    assert data.terminals.dtype == data.timeouts.dtype == data.keep.dtype == bool
    assert (data.benchmark, data.name, data.env) == ("local", "x", "Hopper-v5")


@pytest.mark.parametrize("key", ARRAYS)
def test_the_hash_changes_with_every_array(key):
    values = columns(20)
    values["next_observations"] = values["observations"] + 1
    other = values | {key: values[key].copy()}
    other[key].flat[7] = ~other[key].flat[7] if other[key].dtype == bool else other[key].flat[7] / 2
    assert from_arrays(**values).sha256 == from_arrays(**values).sha256 != from_arrays(**other).sha256


def test_a_dataset_of_own_arrays_needs_nothing_else():
    data = from_arrays(**columns(10), id="mine")
    assert (data.id, data.name, data.benchmark, data.rule, data.reference) == (
        "mine",
        "mine",
        "local",
        "every row",
        None,
    )
    assert data.keep.all()
    with pytest.raises(DatasetError, match="keep of shape"):
        from_arrays(**columns(10), keep=np.ones(9))


# -------------------------------------------------------------------------------------------------------- bad input


def nan(key, row, value=np.nan):
    values = columns(20)
    values[key] = values[key].copy()
    values[key][row] = value
    return values


BAD = {
    "no rewards": (columns(20, rewards=None), "has no rewards"),
    "no terminals": (columns(20, terminals=None), "has no terminals"),
    "no rows": (columns(0), "no transitions"),
    "one row": (columns(1, terminals=[0], timeouts=[0]), "no row to train on"),
    "unequal lengths": (columns(20, actions=np.zeros((19, 3))), r"actions of shape \(19, 3\)"),
    "observations of rank 1": (columns(20, observations=np.zeros(20)), r"observations of shape \(20,\)"),
    "observations of rank 4": (columns(20, observations=np.zeros((20, 7, 7, 3))), "observations of shape"),
    "rewards of rank 2": (columns(20, rewards=np.zeros((20, 2))), "rewards of shape"),
    "scalar rewards": (columns(20, rewards=0.0), "rewards of shape"),
    "timeouts too short": (columns(20, timeouts=np.zeros(3)), "timeouts of shape"),
    "other next_observations": (columns(20, next_observations=np.zeros((20, 4))), "next_observations of another shape"),
    "words": (columns(20, rewards=np.array([b"x"] * 20)), "not numbers"),
    "NaN": (nan("observations", 7), "NaN or infinity in observations, first at row 7"),
    "infinity": (nan("rewards", 3, np.inf), "NaN or infinity in rewards, first at row 3"),
    "NaN in flags": (columns(20, terminals=np.full(20, np.nan)), "in terminals, first at row 0"),
    "too large for float32": (columns(20, rewards=np.full(20, 1e300)), "infinity in rewards, first at row 0"),
    "action out of bounds": (nan("actions", 5, 1.5), "size 1.5 at row 5"),
    "actions of another size": (columns(20, act=2), r"takes \(3,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_ends_in_one_sentence_that_names_it(case, home):
    values, sentence = BAD[case]
    path = write(home / "bad.hdf5", values)
    with pytest.raises(DatasetError, match=sentence) as caught:
        load(path, "Hopper-v5")
    assert "bad.hdf5" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 10, 1000, -8], ids=["empty", "ten bytes", "cut", "last bytes missing"])
def test_a_truncated_file_ends_in_one_sentence(size, home):
    path = Path(write(home / "cut.hdf5", columns(500)))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DatasetError, match="cut.hdf5 is no readable HDF5 file"):
        load(str(path), "Hopper-v5")


def test_nothing_is_unpickled(home):
    pytest.importorskip("ogbench")
    evil = home / "pointmaze-medium-navigate-v0.npz"
    np.savez(evil, observations=np.array([{}], object), actions=np.zeros((1, 1)), terminals=np.ones(1))
    with pytest.raises(DatasetError, match=r"navigate-v0.npz is no readable .npz file .*allow_pickle"):
        load("pointmaze-medium-navigate-singletask-v0")


@pytest.mark.parametrize(
    ("id", "env", "sentence"),
    [
        ("hopper-medium-v9", None, "did you mean 'hopper-medium-v2'"),
        ("nothing", None, "Unknown dataset 'nothing'"),
        ("nowhere/x.hdf5", "Hopper-v5", "x.hdf5 does not exist"),
        ("hopper-medium-v2", None, "gym_mujoco_v2/hopper_medium-v2.hdf5 did not deliver it .*: download it elsewhere"),
        ("cube-single-play-singletask-v0", None, "ogbench/cube-single-play-v0.npz did not deliver it"),
        ("cube-single-play-singletask-task9-v0", None, "cube-single-singletask-task9-v0 does not start here"),
        ("D4RL/pen/nobody-v7", None, "Minari dataset D4RL/pen/nobody-v7 is missing or damaged"),
        ("solo/x-v5/y-v0", None, "not found locally .*: `python benchmarks/collect.py solo/x-v5/y-v0` makes it"),
    ],
)
def test_what_is_not_there_ends_in_one_sentence(id, env, sentence, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no network\nin tests")

    monkeypatch.setattr("minari.storage.hosting.download_dataset", refuse)
    with pytest.raises(DatasetError, match=sentence) as caught:
        load(id, env)
    assert "\n" not in str(caught.value)


def test_a_file_needs_an_environment(home):
    with pytest.raises(DatasetError, match="pass its Gymnasium id as env"):
        load(write(home / "x.hdf5", columns()))
    with pytest.raises(DatasetError, match="Hopper-v99 does not start here"):
        load(write(home / "x.hdf5", columns()), "Hopper-v99")


# ---------------------------------------------------------------------------------------------------------- download


class Response:
    """Answers like urlopen, from memory."""

    def __init__(self, body, size):
        self.body, self.headers = body, {"Content-Length": size}

    def read(self, size):
        block, self.body = self.body[:size], self.body[size:]
        return block

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def serve(monkeypatch, body, size=None):
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(body, size or len(body)))


def test_a_download_is_accepted_whole_and_then_found_locally(home, monkeypatch):
    body = Path(write(home / "source.h5", columns(60, obs=17, act=6))).read_bytes()
    serve(monkeypatch, body)
    first = load("halfcheetah-medium-v2")
    serve(monkeypatch, b"")
    assert (home / "halfcheetah_medium-v2.hdf5").read_bytes() == body
    assert load("halfcheetah-medium-v2").sha256 == first.sha256
    assert (first.benchmark, first.name, first.env) == ("D4RL", "halfcheetah-medium-v2", "HalfCheetah-v4")
    assert first.reference == (-280.178953, 12135.0)


@pytest.mark.parametrize(
    ("body", "missing", "problem"),
    [
        (b"<html>moved</html>", 0, "what came is no .hdf5 file"),
        (None, 5, "of .* bytes came"),
        (b"half", 4, "4 of 8 bytes"),
    ],
)
def test_a_download_cut_short_or_of_something_else_leaves_nothing(body, missing, problem, home, monkeypatch):
    source = Path(write(home / "source.h5", columns()))
    body = body or source.read_bytes()
    source.unlink()
    serve(monkeypatch, body, len(body) + missing)
    with pytest.raises(DatasetError, match=f"hopper_medium-v2.hdf5 did not deliver it .*{problem}"):
        load("hopper-medium-v2")
    assert not list(home.iterdir())


# -------------------------------------------------------------------------------------------------- reference scores


@pytest.mark.parametrize("name", dataset.TASKS)
def test_the_references_score_0_and_100(name):
    reference = dataset.TASKS[name].reference
    data = from_arrays(**columns(5), reference=reference)
    np.testing.assert_allclose(normalized_score(data, reference), [0, 100], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "returns", "score"),
    [
        ("hopper-medium-v2", 3234.3, 100),
        ("halfcheetah-full-replay-v1", 0, 2.2567),
        ("walker2d-random-v0", 4592.3, 100),
        ("antmaze-large-diverse-v2", 0.5, 50),
        ("kitchen-mixed-v0", 3, 75),
        ("maze2d-umaze-v1", 161.86, 100),
        ("maze2d-umaze-v0", 62.6, 100),
        ("maze2d-umaze-dense-v1", 193.66285642381482, 100),
        ("maze2d-open-dense-v0", 11.17817, 0),
        ("maze2d-eval-large-dense-v1", 56.95455, 0),
        ("pen-cloned-v1", 3076.8331017826877, 100),
        ("relocate-human-v0", -6.425911, 0),
        ("carla-town-full-v0", 2440.1772022247314, 100),
        ("bullet-maze2d-large-v0", 285.92, 100),
        ("minigrid-fourrooms-random-v0", 0.01442, 0),
    ],
)
def test_published_references(name, returns, score):
    data = from_arrays(**columns(5), reference=dataset.task(name).reference)
    assert normalized_score(data, returns) == pytest.approx(score, abs=1e-4)


def test_every_d4rl_name_has_an_address_a_reference_a_limit_and_an_environment():
    assert len(dataset.D4RL_FILES) == len(set(dataset.D4RL_FILES.values())) == 48 + 6 + 8 + 12 + 3
    for name in dataset.D4RL_FILES:
        (low, high), limit, env = dataset.task(name)
        assert low < high and limit > 0 and env


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hopper-full-replay-v2", "gym_mujoco_v2/hopper_full_replay-v2"),
        ("walker2d-medium-replay-v2", "gym_mujoco_v2/walker2d_medium_replay-v2"),
        ("maze2d-open-dense-v0", "maze2d/maze2d-open-dense"),
        (
            "antmaze-large-play-v2",
            "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed",
        ),
        ("antmaze-umaze-v2", "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed"),
        ("maze2d-medium-v1", "maze2d/maze2d-medium-sparse-v1"),
        ("door-human-v1", "hand_dapg_v1/door-human-v1"),
    ],
)
def test_published_addresses(name, file):
    assert dataset.D4RL_FILES[name] == f"{file}.hdf5"


@pytest.mark.parametrize(
    ("env", "name"),
    [("Hopper-v2", "hopper"), ("HalfCheetah-v5", "halfcheetah"), ("Ant-v4", "ant"), ("AdroitHandPen-v1", "pen")]
    + [("PointMaze_UMaze-v3", None), ("AntMaze_UMaze-v4", None), ("Pendulum-v1", None)],
)
def test_a_file_is_scored_like_the_d4rl_tasks_of_its_environment(env, name):
    assert dataset.task_of(env) == dataset.TASKS.get(name)


def test_no_reference_no_score():
    with pytest.raises(DatasetError, match="no reference"):
        normalized_score(from_arrays(**columns(5)), 0)


# ------------------------------------------------------------------------------------------------------------ Minari


def collect(id, lengths, env="Hopper-v5", obs=11, space=None, bound=1.0, **metadata):
    """A Minari dataset of random episodes; every third ends by a time-out. Returns the episodes."""
    random, episodes = np.random.default_rng(0), []
    for number, steps in enumerate(lengths):
        observations = random.normal(size=(steps + 1, obs)).astype(np.float32)
        if space:
            goals = {"achieved_goal": observations[:, :2], "desired_goal": observations[:, :2] + 1}
            observations = goals | {"observation": observations[:, 2:]}
        episodes.append(
            EpisodeBuffer(
                id=number,
                observations=observations,
                actions=random.uniform(-bound, bound, (steps, 3)).astype(np.float32),
                rewards=list(random.normal(size=steps)),
                terminations=[False] * (steps - 1) + [number % 3 != 0],
                truncations=[False] * (steps - 1) + [number % 3 == 0],
                infos={},
            )
        )
    box = gymnasium.spaces.Box(-bound, bound, (3,))
    space = space or gymnasium.spaces.Box(-np.inf, np.inf, (obs,))
    with pytest.warns(UserWarning):  # that we give no description
        made = minari.create_dataset_from_buffers(id, episodes, env=env, observation_space=space, action_space=box)
    made.storage.update_metadata(metadata)
    return made


def test_minari_episodes_come_back_whole():
    source = collect("solo/hopper-v5/medium-v0", [3, 1, 5, 4], ref_min_score=-20.272305, ref_max_score=3234.3)
    data, episodes = load("solo/hopper-v5/medium-v0"), list(source.iterate_episodes())
    join = lambda parts: np.concatenate(list(parts)).astype(np.float32)
    np.testing.assert_array_equal(data.observations, join(e.observations[:-1] for e in episodes))
    np.testing.assert_array_equal(data.next_observations, join(e.observations[1:] for e in episodes))
    np.testing.assert_array_equal(data.actions, join(e.actions for e in episodes))
    np.testing.assert_array_equal(data.rewards, join(e.rewards for e in episodes))
    np.testing.assert_array_equal(data.terminals, join(e.terminations for e in episodes))
    np.testing.assert_array_equal(data.timeouts, join(e.truncations for e in episodes))
    assert data.episodes.tolist() == [[0, 3], [3, 4], [4, 9], [9, 13]] and data.keep.all()
    assert (data.benchmark, data.name, data.env) == ("solo", "hopper-v5-medium-v0", "Hopper-v5")
    assert data.reference == dataset.TASKS["hopper"].reference and data.rule == "minari: every row"


@pytest.mark.parametrize(
    ("env", "keys"),
    [("AntMaze_UMaze-v4", ["achieved_goal", "observation"]), ("PointMaze_UMaze-v3", ["observation"])],
)
def test_minari_goal_observations_become_the_vector_of_d4rl(env, keys):
    gymnasium.register_envs(__import__("gymnasium_robotics"))
    box = lambda size: gymnasium.spaces.Box(-np.inf, np.inf, (size,))
    space = gymnasium.spaces.Dict(achieved_goal=box(2), desired_goal=box(2), observation=box(4))
    episode = next(iter(collect("D4RL/maze/umaze-v1", [6, 2], env, 6, space)))
    data = load("D4RL/maze/umaze-v1")
    expected = np.concatenate([episode.observations[key] for key in keys], -1)
    np.testing.assert_array_equal(data.observations[:6], expected[:-1])
    np.testing.assert_array_equal(data.next_observations[:6], expected[1:])
    assert (data.env, data.benchmark, data.name) == (env, "Minari", "maze-umaze-v1")


def test_minari_and_a_flat_file_of_the_same_roll_outs_give_the_same_transitions(home):
    collect("solo/hopper-v5/small-v0", [7, 4, 9, 5])
    data = load("solo/hopper-v5/small-v0")
    flat = {key: getattr(data, key) for key in ARRAYS if key != "next_observations"}
    file = load(write(home / "flat.hdf5", flat), "Hopper-v5")
    kept = data.keep & ~data.timeouts
    kept[-1] = False
    np.testing.assert_array_equal(file.keep, kept)
    for key in ARRAYS:
        rows = kept & ~data.terminals if key == "next_observations" else kept
        np.testing.assert_array_equal(getattr(file, key)[rows], getattr(data, key)[rows])
    np.testing.assert_array_equal(file.episodes, data.episodes)


def test_actions_are_scaled_by_the_bounds_of_their_space(home):
    source = collect("solo/pendulum/random-v0", [5, 5], bound=2.0)
    actions = np.concatenate([episode.actions for episode in source])
    np.testing.assert_allclose(load("solo/pendulum/random-v0").actions, actions / 2)
    torques = np.linspace(-2, 2, 20)[:, None]
    file = write(home / "pendulum.hdf5", columns(20, obs=3, actions=torques))
    np.testing.assert_allclose(load(file, "Pendulum-v1").actions, torques / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(4),
        gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(4)]),
        gymnasium.spaces.Dict(inner=gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2))),
        gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8),
    ],
    ids=["discrete", "tuple", "nested", "image"],
)
def test_observations_that_are_no_vectors_end_in_one_sentence(space):
    space.seed(0)
    sample = [space.sample() for _ in range(4)]
    if isinstance(space, gymnasium.spaces.Tuple):
        sample = (np.array([s[0] for s in sample]),)
    elif isinstance(space, gymnasium.spaces.Dict):
        sample = {"inner": {"a": np.array([s["inner"]["a"] for s in sample])}}
    ending = dict(rewards=[0.0] * 3, terminations=[False, False, True], truncations=[False] * 3, infos={})
    episode = EpisodeBuffer(id=0, observations=sample, actions=np.zeros((3, 3), np.float32), **ending)
    box = gymnasium.spaces.Box(-1, 1, (3,))
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("solo/odd/x-v0", [episode], observation_space=space, action_space=box)
    with pytest.raises(DatasetError, match="only vectors|observations of shape|not numbers|is damaged"):
        load("solo/odd/x-v0")


def test_actions_a_hair_beyond_the_bounds_are_clipped(home):
    data = load(write(home / "x.hdf5", columns(20, actions=np.full((20, 3), 1.0005))), "Hopper-v5")
    assert (data.actions == 1).all()


def test_the_environment_asked_for_wins_over_the_stored_one():
    collect("solo/hopper-v5/other-v0", [5])
    assert load("solo/hopper-v5/other-v0", env="Hopper-v4").env == "Hopper-v4"


@pytest.mark.parametrize(
    ("id", "stored", "unstored"),
    [
        ("D4RL/pen/human-v2", None, None),  # 200 steps an episode, references of 100
        ("D4RL/door/human-v2", (1.0, 2.0), dataset.TASKS["door"].reference),
        ("mujoco/hopper/medium-v0", (1.0, 2.0), None),
    ],
)
def test_minari_references(id, stored, unstored):
    source = collect(id, [5])
    assert load(id).reference == unstored
    source.storage.update_metadata({"ref_min_score": 1.0, "ref_max_score": 2.0})
    assert load(id).reference == stored


@pytest.mark.parametrize("damage", ["cut", "episode", "column", "metadata"])
def test_a_damaged_minari_dataset_ends_in_one_sentence(damage, home):
    folder = collect("solo/hopper-v5/bad-v0", [5, 5, 5]).storage.data_path
    path = folder / "main_data.hdf5"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "metadata":
        (folder / "metadata.json").write_text("{")
    else:
        with h5py.File(path, "a") as file:
            if damage == "episode":
                del file["episode_1"]
            else:
                file["episode_1/rewards"].resize((4,))
    with pytest.raises(DatasetError, match="solo/hopper-v5/bad-v0") as caught:
        load("solo/hopper-v5/bad-v0")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- OGBench


def ogbench_file(path, episodes, rows, seed=0, **label):
    """Point-mass trajectories in OGBench's layout; positions cover the maze, so that some rows reach the goal."""
    random, size = np.random.default_rng(seed), episodes * rows
    positions = random.uniform(0, 24, (size, 2)).astype(np.float32)
    np.savez(
        path,
        observations=positions,
        actions=random.uniform(-1, 1, (size, 2)).astype(np.float32),
        terminals=np.arange(size) % rows == rows - 1,
        qpos=positions,
        qvel=np.zeros((size, 2), np.float32),
        **label,
    )


@pytest.mark.parametrize("label", [{}, {"solo_recipe": "{}"}])
def test_ogbench_rows_are_those_of_its_own_loader(label, home):
    ogbench = pytest.importorskip("ogbench")
    for suffix in ("", "-val"):
        ogbench_file(home / f"pointmaze-medium-navigate-v0{suffix}.npz", 10, 1001, **label)
    name = "pointmaze-medium-navigate-singletask-task1-v0"
    data, (_, theirs, _) = load(name), ogbench.make_env_and_datasets(name, dataset_dir=str(home))
    for key in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(data, key), theirs[key])
    assert data.benchmark == ("OGBench-regenerated" if label else "OGBench")  # never in one table
    np.testing.assert_array_equal(data.terminals, theirs["masks"] == 0)
    np.testing.assert_array_equal(data.timeouts, theirs["terminals"] == 1)
    assert len(data.rewards) == 10_000 and data.keep.all() and data.reference is None
    assert np.flatnonzero(data.timeouts).tolist() == list(range(999, 10_000, 1000))
    assert data.episodes.tolist() == [[k * 1000, (k + 1) * 1000] for k in range(10)]
    np.testing.assert_array_equal(
        data.next_observations[:-1][~data.timeouts[:-1]], data.observations[1:][~data.timeouts[:-1]]
    )
    assert 0 < data.terminals.sum() < 1000 and (data.terminals == (data.rewards == 0)).all()
    assert make_env(data).observation_space.shape == data.observations.shape[1:]


@pytest.mark.parametrize("validation", [False, True])
def test_ogbenchs_compact_form_and_validation_set_are_those_of_its_own_loader(validation, home):
    ogbench = pytest.importorskip("ogbench")
    for suffix, seed in (("", 0), ("-val", 1)):
        ogbench_file(home / f"pointmaze-medium-navigate-v0{suffix}.npz", 10, 1001, seed)
    name = "pointmaze-medium-navigate-singletask-task1-v0"
    made = ogbench.make_env_and_datasets(name, dataset_dir=str(home), compact_dataset=True)
    data, theirs = load(name, validation=validation, compact=True), made[1 + validation]
    for key in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(data, key), theirs[key])
    np.testing.assert_array_equal(data.keep, theirs["valids"] == 1)
    np.testing.assert_array_equal(data.timeouts, theirs["terminals"] == 1)
    np.testing.assert_array_equal(data.terminals, theirs["masks"] == 0)
    assert data.episodes.tolist() == [[k * 1001, (k + 1) * 1001] for k in range(10)]
    regular = load(name, validation=validation)
    for key in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(data, key)[data.keep], getattr(regular, key))


def test_only_ogbench_has_a_validation_set_and_a_compact_form():
    for flags in ({"validation": True}, {"compact": True}):
        with pytest.raises(DatasetError, match="is no OGBench dataset"):
            load("hopper-medium-v2", **flags)


@pytest.mark.parametrize("damage", ["cut", "column", "tail"])
def test_a_bad_ogbench_file_ends_in_one_sentence(damage, home):
    path = home / "pointmaze-medium-navigate-v0.npz"
    ogbench_file(path, 2, 11)
    values = dict(np.load(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "column":
        del values["qpos"]
        np.savez(path, **values)
    else:
        np.savez(path, **{key: value[:-3] for key, value in values.items()})
    with pytest.raises(DatasetError, match="pointmaze-medium-navigate-v0.npz"):
        load("pointmaze-medium-navigate-singletask-v0")


def test_without_ogbench_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(DatasetError, match="needs what is not installed .*ogbench"):
        load("cube-single-play-singletask-v0")


# ------------------------------------------------------------------------------------------------------ environments


def d4rl(name, obs, act):
    """An empty-handed dataset of a D4RL name."""
    env = dataset.task(name).env
    return from_arrays(**columns(5, obs=obs, act=act), id=name, benchmark="D4RL", env=env)


@pytest.mark.parametrize(
    ("name", "obs", "act", "limit"),
    [
        ("hopper-medium-v2", 11, 3, 1000),
        ("ant-medium-v2", 111, 8, 1000),
        ("antmaze-umaze-v2", 29, 8, 700),
        ("maze2d-large-dense-v1", 4, 2, 800),
        ("pen-human-v1", 45, 24, 100),
    ],
)
def test_a_d4rl_name_brings_its_shapes_and_its_limit(name, obs, act, limit):
    env = make_env(d4rl(name, obs, act))
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (obs,) and env.action_space.shape == (act,)
    assert env.spec.max_episode_steps == limit
    env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("name", "obs", "act", "goal"),
    [("antmaze-umaze-v2", 29, 8, (0, 8)), ("antmaze-large-play-v2", 29, 8, (32, 24))]
    + [("maze2d-umaze-v1", 4, 2, (1, 1)), ("maze2d-large-v1", 4, 2, (7, 9)), ("maze2d-open-v0", 4, 2, (2, 3))],
)
def test_d4rl_mazes_have_start_and_goal_where_d4rl_has_them(name, obs, act, goal):
    """The ant's goal up to 1.5 beyond the corner of its cell, at another place in every episode; the ball's a point,
    and its start near a cell's."""
    env, seen = make_env(d4rl(name, obs, act)), []
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        inner = env.unwrapped
        agent = inner.ant_env if "ant" in name else inner.point_env
        seen.append(inner.goal + observation[:2] - agent.data.qpos[:2])
        start = observation[:2] if "ant" in name else observation[:2] - observation[:2].round()
        assert (np.abs(start) <= 0.101).all() and (env.reset(seed=seed)[0] == observation).all()
        assert 0 < np.abs(observation[obs // 2 + 1 :]).max() < 0.6, "it moves a little"
    beyond = np.array(seen) - goal
    if "ant" in name:
        assert (beyond >= -1e-6).all() and (beyond <= 1.5).all() and np.ptp(beyond, axis=0).min() > 0.5
    else:
        np.testing.assert_allclose(beyond, 0, atol=1e-6)


@pytest.mark.parametrize(("name", "obs", "act"), [("antmaze-umaze-v2", 29, 8), ("maze2d-umaze-v1", 4, 2)])
def test_half_a_unit_from_the_goal_is_near_enough(name, obs, act):
    """Which ends AntMaze's episodes, and pays in maze2d as long as it lasts."""
    env = make_env(d4rl(name, obs, act))
    for distance, near in ((0.47, True), (0.6, False)):
        env.reset(seed=0)
        inner = env.unwrapped
        agent = inner.ant_env if "ant" in name else inner.point_env
        position = agent.init_qpos.copy()
        position[:2] = inner.goal + [distance, 0]
        agent.set_state(position, np.zeros(agent.model.nv))
        _, reward, terminated, _, info = env.step(np.zeros(act, np.float32))
        assert (reward, terminated, info["success"]) == (float(near), near and "ant" in name, near)


def test_dense_maze2d_pays_for_the_distance():
    env = make_env(d4rl("maze2d-umaze-dense-v1", 4, 2))
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.zeros(2, np.float32))
    np.testing.assert_allclose(reward, np.exp(-np.linalg.norm(observation[:2] - 1)), rtol=1e-5)


def test_the_ant_of_d4rls_mazes_is_d4rls():
    """Motors of 30, ten decisions a second: the figures of its ant.xml."""
    ant = make_env(d4rl("antmaze-umaze-v2", 29, 8)).unwrapped.ant_env
    assert (ant.model.actuator_gear[:, 0] == 30).all() and ant.dt == pytest.approx(0.1)
    np.testing.assert_allclose(ant.model.geom_solimp[:, :3], np.tile([0.8, 0.8, 0.01], (ant.model.ngeom, 1)))


@pytest.mark.parametrize(
    ("name", "obs", "act"), [("door-human-v1", 39, 28), ("hammer-human-v1", 46, 26), ("relocate-human-v1", 39, 30)]
)
def test_hands_pay_for_distance_from_the_object_as_in_d4rl(name, obs, act):
    """A tenth of it is taken off: what remains of the reward is the rest of its formula, in D4RL's v0 files."""
    env = make_env(d4rl(name, obs, act))
    env.reset(seed=0)
    inner = env.unwrapped
    _, reward, *_ = env.step(np.zeros(act, np.float32))
    at, sites, speed = inner.data.xpos, inner.data.site_xpos, inner.data.qvel
    norm = np.linalg.norm
    if "door" in name:
        palm, thing = sites[inner.grasp_site_id], sites[inner.handle_site_id]
        rest = -0.1 * (inner.data.qpos[inner.door_hinge_addrs] - 1.57) ** 2 - 1e-5 * (speed**2).sum()
    else:
        palm, thing = sites[inner.S_grasp_site_id], at[inner.obj_body_id]
        target, rest = sites[inner.target_obj_site_id], 0.0
        if "hammer" in name:
            rest = -norm(sites[inner.tool_site_id] - target) - 10 * norm(target - sites[inner.goal_site_id])
            rest -= 1e-2 * norm(speed)
    np.testing.assert_allclose(reward, -0.1 * norm(palm - thing) + rest, rtol=1e-5)
    assert norm(palm - thing) > 0.1


def test_an_episode_ends_where_the_pen_has_fallen():
    env, rng = make_env(d4rl("pen-human-v1", 45, 24)), np.random.default_rng(0)
    fallen = []
    for seed in range(5):
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 24).astype(np.float32))
            over = terminated or truncated
            assert terminated == (env.unwrapped.data.xpos[env.unwrapped.obj_body_id][2] < 0.075)
        fallen.append(terminated)
    assert any(fallen)


def test_an_ant_whose_data_has_no_contact_forces_feels_none():
    """As D4RL's version 2, whose last 84 numbers are all 0."""
    env = make_env(d4rl("ant-medium-v2", 111, 8)._replace(observations=np.zeros((5, 111), np.float32)))
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(env.action_space.sample())
    assert observation.shape == (111,) and not observation[27:].any() and observation[:27].all()


def test_maze2d_axes_are_row_and_column():
    env = make_env(d4rl("maze2d-umaze-v1", 4, 2))
    env.reset(seed=0)
    for action, axis in (([1, 0], 2), ([0, 1], 3)):
        env.reset(seed=0)
        before, after = env.step(np.zeros(2, np.float32))[0], env.step(np.array(action, np.float32))[0]
        assert np.argmax(after[2:] - before[2:]) + 2 == axis


def test_where_an_ogbench_episode_starts_follows_from_its_seed_alone():
    """Whatever was drawn from numpy's global generator before."""
    env = make_env("pointmaze-medium-singletask-v0")
    first, _ = env.reset(seed=7)
    env.reset(seed=8)
    np.random.rand(3)
    np.testing.assert_array_equal(env.reset(seed=7)[0], first)
    assert (env.reset(seed=9)[0] != first).any()


def test_actions_of_the_environment_lie_between_minus_one_and_one():
    env = make_env("Pendulum-v1")
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    env.reset(seed=0)
    env.step(np.array([0.5], np.float32))
    assert env.unwrapped.last_u == 1.0


def test_a_minari_dataset_brings_its_own_evaluation_environment():
    spec = copy.deepcopy(gymnasium.spec("Hopper-v5"))
    spec.max_episode_steps = 77
    collect("solo/hopper-v5/short-v0", [5], env=spec)
    data = load("solo/hopper-v5/short-v0")
    assert make_env(data).spec.max_episode_steps == 77 and make_env("Hopper-v5").spec.max_episode_steps == 1000


def test_old_environments_come_without_a_warning(recwarn):
    make_env("Hopper-v4")
    assert not [warning for warning in recwarn if "out of date" in str(warning.message)]


@pytest.mark.parametrize(
    ("name", "obs", "act", "sentence"),
    [
        ("carla-lane-v0", 6912, 2, "carla-lane-v0 has no environment here"),
        ("hopper-medium-v2", 12, 3, r"Hopper-v4 has observations of shape \(11,\), the dataset \(12,\)"),
        ("kitchen-mixed-v0", 60, 9, "FrankaKitchen-v1 .*it needs mujoco 3.10 or older"),
    ],
)
def test_an_environment_that_does_not_serve_ends_in_one_sentence(name, obs, act, sentence):
    with pytest.raises(DatasetError, match=sentence):
        make_env(d4rl(name, obs, act))


@pytest.mark.parametrize("env", ["", "Nope-v0", "CartPole-v1"])
def test_unknown_or_discrete_environments_are_refused(env):
    with pytest.raises(DatasetError):
        make_env(env)


# -------------------------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize(
    ("name", "env", "rows", "kept", "episodes"),
    [
        ("halfcheetah-medium", "HalfCheetah-v4", 100_000, 99_900, 100),
        ("hopper-random", "Hopper-v4", 100_000, 99_999, 4_533),
        ("hopper-medium", "Hopper-v4", 100_000, None, 220),
        ("door-human", "AdroitHandDoor-v1", 6_729, 6_704, 25),
        ("pen-expert", "AdroitHandPen-v1", 20_000, 19_800, 200),
        ("pointmaze-umaze", "PointMaze_UMaze-v3", 100_000, 98_618, 1_382),
    ],
)
def test_real_files(name, env, rows, kept, episodes):
    path = SHARED / f"{name}.hdf5"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    data = load(str(path), env)
    with h5py.File(path) as file:
        expected = qlearning_rows(file["terminals"][()], file["timeouts"][()], None)
        np.testing.assert_array_equal(data.next_observations, file["next_observations"][()])
    assert np.flatnonzero(data.keep).tolist() == expected
    assert (len(data.rewards), len(data.episodes)) == (rows, episodes) and (kept is None or data.keep.sum() == kept)
    inner = data.keep & ~data.terminals
    inner[-1] = False
    np.testing.assert_array_equal(data.next_observations[:-1][inner[:-1]], data.observations[1:][inner[:-1]])
