"""Offline datasets as plain arrays, the environment that evaluates them, and their reference scores.

    data = load("hopper-medium-v2")                     D4RL: $D4RL_DATASET_DIR or ~/.d4rl/datasets, then its server
    data = load("D4RL/door/human-v2")                   Minari: $MINARI_DATASETS_PATH or ~/.minari/datasets, likewise
    data = load("cube-single-play-singletask-v0")       OGBench: $OGBENCH_DATA_DIR or ~/.ogbench/data, likewise
    data = load("runs/hopper.hdf5", env="Hopper-v5")    a file in D4RL's layout
    env = make_env(data)                                observations as in the data, actions in [-1, 1]
    score = normalized_score(data, returns)             0 = random policy, 100 = expert

A `Dataset` holds every row of its source; `keep` marks those that published code trains on, `rule` says which they are.
What is missing, damaged or not understood ends in a DatasetError before anything is returned. Nothing is unpickled.

Sources: Farama-Foundation/D4RL (d4rl/__init__.py, infos.py, */__init__.py), Farama-Foundation/Minari,
seohongpark/ogbench.
"""

import contextlib
import difflib
import hashlib
import http.client
import json
import os
import urllib.request
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np


class DatasetError(ValueError):
    """One sentence: what is wrong, where, and what to do about it."""


class Dataset(NamedTuple):
    """N transitions in the order of their source, and where they come from. For arrays of your own: `from_arrays`."""

    id: str  # as asked for
    benchmark: str  # D4RL, Minari, solo, OGBench, OGBench-regenerated or local
    name: str  # folder name for results, e.g. hopper-medium-v2
    env: str  # Gymnasium id of the environment that evaluates it; "" where there is none
    rule: str  # which rows `keep` marks, in words
    observations: np.ndarray  # [N, obs] float32
    actions: np.ndarray  # [N, act] float32 in [-1, 1]
    rewards: np.ndarray  # [N] float32
    next_observations: np.ndarray  # [N, obs] float32, the true successors; where the source has none, the row's own
    terminals: np.ndarray  # [N] bool, true ends only
    timeouts: np.ndarray  # [N] bool, cut by a time limit or by the end of a recording
    keep: np.ndarray  # [N] bool, rows that published code trains on
    episodes: np.ndarray  # [E, 2] int64, first row and one past the last; AntMaze's and OGBench's go on after terminals
    reference: tuple[float, float] | None = None  # undiscounted return of a random and of an expert policy
    sha256: str = ""  # of the six arrays up to `timeouts`, with their shapes


class Task(NamedTuple):
    reference: tuple[float, float]  # undiscounted return of a random and of an expert policy
    limit: int | None  # D4RL's, of steps in an episode
    env: str  # the nearest environment that still runs; D4RL's MuJoCo was v2; its mazes, see `_maze`; "": none


def _table(text: str, columns: int) -> dict[str, Task]:
    words = iter(text.split())
    rows = [(*row, None, "")[:5] for row in zip(*[words] * columns, strict=True)]
    return {name: Task((float(low), float(high)), limit and int(limit), env) for name, low, high, limit, env in rows}


# D4RL's tasks by what the names of their datasets begin with: return of a random and of an expert policy, then of those
# that can still be evaluated D4RL's limit and the environment; kitchen's is refused. (The minimum of eval-large-dense
# is upstream's, too.)
TASKS = _table(
    """
    halfcheetah            -280.178953  12135.0             1000  HalfCheetah-v4
    hopper                 -20.272305   3234.3              1000  Hopper-v4
    walker2d               1.629008     4592.3              1000  Walker2d-v4
    ant                    -325.6       3879.7              1000  Ant-v4
    antmaze-umaze          0.0          1.0                  700  AntMaze_UMaze-v4
    antmaze-medium         0.0          1.0                 1000  AntMaze_Medium-v4
    antmaze-large          0.0          1.0                 1000  AntMaze_Large-v4
    maze2d-open-v0         0.01         20.66                150  PointMaze_Open-v3
    maze2d-open-dense-v0   11.17817     27.166538620695782   150  PointMaze_OpenDense-v3
    maze2d-umaze-v1        23.85        161.86               300  PointMaze_UMaze-v3
    maze2d-umaze-dense-v1  68.537689    193.66285642381482   300  PointMaze_UMazeDense-v3
    maze2d-medium-v1       13.13        277.39               600  PointMaze_Medium-v3
    maze2d-medium-dense-v1 44.264742    297.4552547777125    600  PointMaze_MediumDense-v3
    maze2d-large-v1        6.7          273.99               800  PointMaze_Large-v3
    maze2d-large-dense-v1  30.569041    303.4857382709002    800  PointMaze_LargeDense-v3
    pen                    96.262799    3076.8331017826877   100  AdroitHandPen-v1
    hammer                 -274.856578  12794.134825156867   200  AdroitHandHammer-v1
    door                   -56.512833   2880.5693087298737   200  AdroitHandDoor-v1
    relocate               -6.425911    4233.877797728884    200  AdroitHandRelocate-v1
    kitchen                0.0          4.0                  280  FrankaKitchen-v1
    """,
    columns=5,
) | _table(
    """
    antmaze-eval 0.0 1.0  minigrid 0.01442 2.89685  flow-ring -165.22 24.42  flow-merge 118.67993 330.03179
    carla-lane -0.8503839912088142 1023.5784385429523  carla-town -114.81579500772153 2440.1772022247314
    maze2d-umaze-v0 0.94 62.6  maze2d-umaze-dense-v0 23.249793 81.78995240126592
    maze2d-medium-v0 5.77 85.14  maze2d-medium-dense-v0 19.47762 96.03474232952358
    maze2d-large-v0 4.83 191.99  maze2d-large-dense-v0 27.38831 215.09965671563742
    maze2d-eval-umaze-v1 36.63 141.4  maze2d-eval-umaze-dense-v1 56.95455 178.21373133248397
    maze2d-eval-medium-v1 13.07 204.93  maze2d-eval-medium-dense-v1 42.28578 235.5658957482388
    maze2d-eval-large-v1 16.4 302.22  maze2d-eval-large-dense-v1 56.95455 326.09647655082637
    bullet-halfcheetah -1275.766996 2381.6725  bullet-hopper 20.058972 1441.8059623430963
    bullet-walker2d 16.523877 1623.6476303317536  bullet-ant 373.705955 2650.495  bullet-maze2d-open 8.75 64.15
    bullet-maze2d-umaze 32.46 153.99  bullet-maze2d-medium 14.87 238.05  bullet-maze2d-large 1.82 285.92
    """,
    columns=3,
)

D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_LOCOMOTION = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
_ANTMAZES = {  # the words in the names of their files
    "umaze": ("u-maze", False, False),
    "umaze-diverse": ("u-maze", True, True),
    "medium-play": ("big-maze", True, False),
    "medium-diverse": ("big-maze", True, True),
    "large-play": ("hardest-maze", True, False),
    "large-diverse": ("hardest-maze", True, True),
}
# Datasets of current tasks -> their files below D4RL_URL, named as upstream, so that existing downloads are found. The
# files of other versions load by their path.
D4RL_FILES = {
    f"{robot}-{kind}-v{v}": f"gym_mujoco_v{v}/{robot}_{kind.replace('-', '_')}-v{v}.hdf5"
    for robot in ("halfcheetah", "hopper", "walker2d", "ant")
    for kind in _LOCOMOTION
    for v in (1, 2)
}
D4RL_FILES |= {
    f"antmaze-{maze}-v2": f"ant_maze_v2/Ant_maze_{walls}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
    for maze, (walls, starts, goals) in _ANTMAZES.items()
}
D4RL_FILES |= {
    f"maze2d-{maze}{suffix}-v{v}": f"maze2d/maze2d-{maze}-{reward}{'-v1' * v}.hdf5"
    for maze, v in (("open", 0), ("umaze", 1), ("medium", 1), ("large", 1))
    for suffix, reward in (("", "sparse"), ("-dense", "dense"))
}
D4RL_FILES |= {
    f"{hand}-{kind}-v1": f"hand_dapg_v1/{hand}-{kind}-v1.hdf5"
    for hand in ("pen", "hammer", "door", "relocate")
    for kind in ("human", "cloned", "expert")
}
D4RL_FILES |= {
    "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5",
    "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
}


def task(name: str) -> Task | None:
    """D4RL's task of a dataset name: that of the longest beginning."""
    names = [key for key in TASKS if f"{name}-".startswith(f"{key}-")]
    return TASKS[max(names, key=len)] if names else None


def task_of(env: str) -> Task | None:
    """D4RL's task of a locomotion or Adroit environment, whatever its version: Hopper-v5 -> that of hopper."""
    kind = env.rpartition("-v")[0]
    known = [t for t in TASKS.values() if kind and "Maze" not in kind and t.env.rpartition("-v")[0] == kind]
    return known[0] if known else None


# ------------------------------------------------------------------------------------------ the public calls


def load(id: str, env: str | None = None, *, validation: bool = False, compact: bool = False) -> Dataset:
    """Every row of a dataset, checked, with the rows that published code trains on marked.

    Args:
        id: a D4RL name, a Minari id (with its slashes), an OGBench single-task name, or the path of an .hdf5 file.
        env: Gymnasium id that evaluates the data, instead of the known one; required for a path.
        validation: OGBench's validation set instead of its training set.
        compact: OGBench's compact form, which has a row for the last state of a trajectory too; `keep` leaves it out.

    Raises:
        DatasetError: unknown, missing, truncated, empty, NaN or infinite, of the wrong shape, actions out of bounds.
    """
    id = str(id)
    if (validation or compact) and "singletask" not in id.split("-"):
        raise DatasetError(f"{id} is no OGBench dataset: it has neither a validation set nor a compact form.")
    if id.endswith((".hdf5", ".h5")):
        return _load_file(id, env)
    if id in D4RL_FILES:
        return _load_d4rl(id, env)
    if "singletask" in id.split("-"):
        return _load_ogbench(id, env, validation, compact)
    if "/" in id:
        return _load_minari(id, env)
    near = difflib.get_close_matches(id, D4RL_FILES, 1)
    raise DatasetError(
        f"Unknown dataset {id!r}{f' (did you mean {near[0]!r}?)' if near else ''}: give a D4RL name, a Minari id with "
        "its slashes, an OGBench name with 'singletask', or the path of an .hdf5 file."
    )


def from_arrays(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray,
    next_observations: np.ndarray | None = None,
    *,
    keep: np.ndarray | None = None,
    ends: np.ndarray | None = None,
    where: object = "The data",
    **labels,
) -> Dataset:
    """Checks columns of N rows and completes them to a Dataset.

    Args:
        observations, actions: [N, obs] and [N, act], actions in [-1, 1].
        rewards, terminals, timeouts: [N] or (N, 1).
        next_observations: [N, obs]; by default the following row's observation, at an episode's last row its own.
        keep: [N], rows to train on; by default all.
        ends: [N], last rows of episodes; by default terminals | timeouts. The last row of all ends an episode anyway.
        where: what an error sentence calls the source.
        labels: id, benchmark, name, env, rule and reference, as in Dataset; each has a default.

    Raises:
        DatasetError: empty, NaN or infinite, of the wrong shape, actions out of bounds.
    """
    columns = dict(observations=observations, actions=actions, rewards=rewards, terminals=terminals, timeouts=timeouts)
    data = _check(where, **columns, next_observations=next_observations, keep=keep, ends=ends)
    excess = np.abs(data["actions"]).max(1)
    if (excess > 1 + 1e-3).any():
        row = int(np.argmax(excess > 1 + 1e-3))
        raise DatasetError(f"{where} has an action of size {excess[row]:g} at row {row}: actions must lie in [-1, 1].")
    data["actions"] = data["actions"].clip(-1, 1)  # published files hold values a hair beyond

    ends = data["terminals"] | data["timeouts"] if ends is None else data.pop("ends").copy()
    ends[-1] = True
    if next_observations is None:
        data["next_observations"] = np.concatenate([data["observations"][1:], data["observations"][-1:]])
        data["next_observations"][ends] = data["observations"][ends]
    stops = np.flatnonzero(ends) + 1
    data.setdefault("keep", np.ones(len(ends), bool))
    if not data["keep"].any():
        raise DatasetError(f"{where} leaves no row to train on: collect more.")
    data["episodes"] = np.stack([np.append(0, stops[:-1]), stops], 1)

    digest = hashlib.sha256()
    for key in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts"):
        digest.update(f"{key} {data[key].shape} {data[key].dtype}".encode())
        digest.update(np.ascontiguousarray(data[key]))
    labels = {"id": "arrays", "benchmark": "local", "env": "", "rule": "every row", "reference": None} | labels
    return Dataset(**{"name": labels["id"]} | labels, **data, sha256=digest.hexdigest())


def make_env(dataset: Dataset | str, **kwargs):
    """The environment that evaluates a dataset, or the one of a Gymnasium id.

    Observations are the dataset's vector (AntMaze: position and `observation`; PointMaze: `observation`), actions lie
    in [-1, 1]. A D4RL dataset brings D4RL's episode limit, mazes, physics and rewards (`_as_in_d4rl`), a Minari dataset
    its own evaluation environment.

    Args:
        dataset: from `load`, or a Gymnasium id.
        kwargs: for gymnasium.make, e.g. render_mode.

    Raises:
        DatasetError: no such environment, it does not start here, or its observations are not the dataset's.
    """
    from gymnasium.spaces import Box
    from gymnasium.wrappers import RescaleAction, TransformObservation

    if isinstance(dataset, str):
        env_id, shape, offset = dataset, None, 0
        env = _make(env_id, **kwargs)
    else:
        env_id, shape = dataset.env, dataset.observations.shape[1:]
        settings, offset = _d4rl_protocol(dataset)
        env = _make(env_id, dataset, **settings | kwargs)
        env = _as_in_d4rl(env, dataset) if settings else env
    if "singletask" in env_id:
        env = _all_from_seed(env)
    if not isinstance(env.observation_space, Box):
        keys = _keys(env_id, env.observation_space)
        size = sum(env.observation_space[key].shape[0] for key in keys)
        vector = lambda parts: (np.concatenate([parts[key] for key in keys]) + offset).astype(np.float32)
        env = TransformObservation(env, vector, Box(-np.inf, np.inf, (size,), np.float32))
    if shape and env.observation_space.shape != shape:
        shapes = f"{env.observation_space.shape}, the dataset {shape}"
        raise DatasetError(f"{env_id} has observations of shape {shapes} ({dataset.id}): pass one that fits as env.")
    low, high = _bounds(env.action_space, env_id)
    return env if (low == -1).all() and (high == 1).all() else RescaleAction(env, np.float32(-1), np.float32(1))


def normalized_score(dataset: Dataset | Task, returns) -> np.ndarray:
    """Undiscounted returns on D4RL's scale: 0 is a random policy, 100 an expert. Any shape in, the same shape out.

    Raises:
        DatasetError: there are no reference returns.
    """
    if dataset.reference is None:
        raise DatasetError(f"{dataset.id} has no reference returns, so no normalised score: report the raw return.")
    low, high = dataset.reference
    return 100 * (np.asarray(returns, np.float64) - low) / (high - low)


# ------------------------------------------------------------------------------------------ D4RL, local files


def _load_d4rl(id: str, env: str | None) -> Dataset:
    path = _fetch(f"{D4RL_URL}/{D4RL_FILES[id]}", Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")))
    known = task(id)
    labels = {"id": id, "benchmark": "D4RL", "name": id, "env": known.env if env is None else env}
    return _from_hdf5(path, known.limit, **labels, reference=known.reference)


def _load_file(id: str, env: str | None) -> Dataset:
    path = Path(id).expanduser()
    if not path.is_file():
        raise DatasetError(f"{path} does not exist: check the path.")
    if not env:
        raise DatasetError(f"{path} does not say which environment evaluates it: pass its Gymnasium id as env (--env).")
    with _make(env) as made:
        space, limit = made.action_space, made.spec.max_episode_steps
    reference, limit, _ = task_of(env) or (None, limit, env)
    labels = {"id": id, "benchmark": "local", "name": path.stem, "env": env, "reference": reference}
    return _from_hdf5(path, limit, space, **labels)


def _from_hdf5(path: Path, limit: int | None, space=None, **labels) -> Dataset:
    """A file in D4RL's layout. `keep` is what d4rl.qlearning_dataset returns with its defaults, row by row."""
    import h5py

    required = ("observations", "actions", "rewards", "terminals")
    try:
        with h5py.File(path) as file:
            data = {key: file[key][()] for key in (*required, "timeouts", "next_observations") if key in file}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is no readable HDF5 file ({_reason(error)}): download or make it again.") from error
    if missing := [key for key in required if key not in data]:
        raise DatasetError(f"{path} has no {', '.join(missing)}: D4RL's layout needs {', '.join(required)}.")
    data = _check(path, **data)
    rule = "d4rl: neither time-out rows nor the last row"
    if "timeouts" not in data:
        rule = f"d4rl: the file has no timeouts, so neither rows counted as step {limit} nor the last row"
        data["timeouts"] = _counted_timeouts(data["terminals"], limit)
    keep = ~data["timeouts"]
    keep[-1] = False
    # Not every time-out is marked (medium-replay): `keep` follows published code, episodes follow the states. The ant
    # walks on after it has reached its goal, with terminals set all the while, but never a unit in one step.
    walks_on = labels["name"].startswith("antmaze") or labels["env"].startswith("AntMaze")
    ends = data["timeouts"].copy() if walks_on else data["timeouts"] | data["terminals"]
    observations = data["observations"]
    if "next_observations" in data:
        ends[:-1] |= np.abs(data["next_observations"][:-1] - observations[1:]).max(1) > 1e-6
    elif walks_on:
        ends[:-1] |= np.abs(observations[1:, :2] - observations[:-1, :2]).max(1) > 1
    if space is not None:
        data["actions"] = _rescale(data["actions"], space, path)
    return from_arrays(**data, keep=keep, ends=ends, where=path, rule=rule, **labels)


def _counted_timeouts(terminals: np.ndarray, limit: int | None) -> np.ndarray:
    """d4rl's stand-in for missing timeouts; as published, it counts from 1 after a terminal, 0 after a time-out."""
    timeouts, step = np.zeros(len(terminals), bool), 0
    for row, terminal in enumerate(terminals[:-1].tolist()):
        if step + 1 == limit:
            timeouts[row], step = True, 0
        else:
            step = 1 if terminal else step + 1
    return timeouts


def _fetch(url: str, folder: Path) -> Path:
    """The file of `url` in `folder`, downloaded if it is not there and accepted only once complete and readable."""
    import h5py
    from tqdm import tqdm

    path = folder.expanduser() / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(response.headers.get("Content-Length") or 0)
            with part.open("wb") as file, tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := response.read(1 << 20):
                    bar.update(file.write(block))
        if size and part.stat().st_size != size:
            raise OSError(f"{part.stat().st_size} of {size} bytes came")
        if not {".hdf5": h5py.is_hdf5, ".npz": zipfile.is_zipfile}[path.suffix](part):
            raise OSError(f"what came is no {path.suffix} file")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        problem = f"{path} is missing and {url} did not deliver it ({_reason(error)})"
        raise DatasetError(f"{problem}: download it elsewhere and put it there.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------------ Minari


def _load_minari(id: str, env: str | None) -> Dataset:
    import minari

    where, parts = f"Minari dataset {id}", id.split("/")
    try:
        with _quiet():
            source = minari.load_dataset(id, download=parts[0] != "solo")  # local first
        metadata, space = source.storage.metadata, source.observation_space
        env = _minari_env(metadata) if env is None else env
        episodes = list(source.iterate_episodes())
        columns = ("actions", "rewards", "terminations", "truncations")
        actions, rewards, terminals, timeouts = (np.concatenate([getattr(e, key) for e in episodes]) for key in columns)
        ends = np.isin(np.arange(len(rewards)), np.cumsum([len(episode.rewards) for episode in episodes]) - 1)
        timeouts = timeouts | (ends & ~terminals)  # a recording may stop without saying why
    except Exception as error:  # whatever its remote storage or a damaged file raises
        remedy = "where there is a network it is downloaded"
        if parts[0] == "solo":
            remedy = f"`python benchmarks/collect.py {id}` makes it"
        reason = _reason(error).partition(". Use download")[0]
        raise DatasetError(f"{where} is missing or damaged ({reason}): {remedy}.") from error
    vectors = [episode.observations for episode in episodes]  # T + 1 of an episode of T steps
    if hasattr(space, "spaces"):
        keys = _keys(env, space)
        vectors = [np.concatenate([values[key] for key in keys], -1) for values in vectors]
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    reference = None if low is None or high is None else (float(low), float(high))
    if parts[0] == "D4RL" and parts[1] in ("door", "hammer", "relocate", "pen"):
        # The episodes of pen have 200 steps, its stored references 100 (Minari #303).
        reference = None if parts[1] == "pen" else reference or TASKS[parts[1]].reference
    labels = {"id": id, "benchmark": "solo" if parts[0] == "solo" else "Minari", "name": "-".join(parts[1:])}
    return from_arrays(
        np.concatenate([values[:-1] for values in vectors]),
        _rescale(actions, source.action_space, where),
        rewards,
        terminals,
        timeouts,
        np.concatenate([values[1:] for values in vectors]),
        ends=ends,
        where=where,
        **labels | {"env": env, "rule": "minari: every row", "reference": reference},
    )


def _minari_env(metadata: dict) -> str:
    return json.loads(metadata.get("eval_env_spec") or metadata.get("env_spec") or "{}").get("id", "")


# ------------------------------------------------------------------------------------------ OGBench


def _load_ogbench(id: str, env: str | None, validation: bool, compact: bool) -> Dataset:
    words = id.split("-")
    at = words.index("singletask")
    single = "-".join([*words[: at - 1], *words[at:]])  # cube-single-play-singletask-task1-v0 without its "play"
    with _make(single) as made:
        file = f"{OGBENCH_URL}/{'-'.join([*words[:at], words[-1]])}{'-val' * validation}.npz"
        path = _fetch(file, Path(os.environ.get("OGBENCH_DATA_DIR", "~/.ogbench/data")))
        from ogbench.relabel_utils import relabel_dataset
        from ogbench.utils import load_dataset

        try:
            data = load_dataset(path, compact_dataset=compact, add_info=True)
            with np.load(path) as columns:
                regenerated = "solo_recipe" in columns  # which benchmarks/collect.py leaves in what it makes
            relabel_dataset(single, made, data)
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            problem = f"{path} is no readable .npz file with all that {single} needs ({_reason(error)})"
            raise DatasetError(f"{problem}: download or make it again.") from error
    # A trajectory's last row in the file is only a successor; `terminals` marks the row before it (in the compact form,
    # which keeps it, both), and neither means success or failure. The masks do: trajectories go on after a success.
    benchmark = "OGBench-regenerated" if regenerated else "OGBench"
    labels = {"id": id, "benchmark": benchmark, "name": id, "env": env or single, "where": path}
    labels["rule"] = "ogbench: every row with a successor"
    columns = [data[key] for key in ("observations", "actions", "rewards")]
    columns += [data["masks"] == 0, data["terminals"] == 1]
    if compact:
        return from_arrays(*columns, keep=data["valids"] == 1, ends=data["valids"] == 0, **labels)
    return from_arrays(*columns, data["next_observations"], ends=columns[-1], **labels)


# ------------------------------------------------------------------------------------------ environments


@contextlib.contextmanager
def _quiet():
    """Without Gymnasium's remarks on old versions (D4RL needs them) and on spaces that Minari stored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(out of date|precision lowered)")
        yield


def _make(env: str, dataset: Dataset | None = None, **kwargs):
    """gymnasium.make, or Minari's own evaluation environment, with failures turned into sentences."""
    import gymnasium

    if not env:
        raise DatasetError(f"{dataset.id if dataset else 'It'} has no environment here: pass a Gymnasium id as env.")
    try:
        if "singletask" in env:
            import ogbench  # noqa: F401  registers its environments
        elif env.startswith(("AntMaze", "PointMaze", "AdroitHand", "FrankaKitchen", "Fetch", "HandManipulate")):
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)
        with _quiet():
            if dataset and dataset.benchmark in ("Minari", "solo"):
                import minari

                source = minari.load_dataset(dataset.id)
                if env == _minari_env(source.storage.metadata):
                    return source.recover_environment(eval_env=True, **kwargs)
            return gymnasium.make(env, **kwargs)
    except ImportError as error:
        raise DatasetError(f"{env} needs what is not installed ({_reason(error)}): see requirements.txt.") from error
    except Exception as error:  # whatever an environment raises when it is built
        kitchen = "it needs mujoco 3.10 or older, and has 59 numbers where D4RL's data has 60"
        remedy = kitchen if env.startswith("FrankaKitchen") else "check its id and arguments"
        raise DatasetError(f"{env} does not start here ({_reason(error)}): {remedy}.") from error


def _keys(env: str, space) -> tuple[str, ...]:
    """The entries of a Dict observation that make up the dataset's vector, in order."""
    keys = tuple(getattr(space, "keys", tuple)())
    if env.startswith("AntMaze"):
        keys = ("achieved_goal", "observation")  # D4RL's 29 numbers
    elif env.startswith(("PointMaze", "FrankaKitchen")):
        keys = ("observation",)
    if not keys or any(len(space[key].shape or ()) != 1 for key in keys):
        raise DatasetError(f"{env or 'The data'} has observations in {space}: only vectors and Dicts of them will do.")
    return keys


def _d4rl_protocol(dataset: Dataset) -> tuple[dict, np.ndarray | int]:
    """Arguments that make an environment follow D4RL, and what its observations lack to D4RL's."""
    known = {"D4RL": task(dataset.name), "local": task_of(dataset.env)}.get(dataset.benchmark)
    if not known or known.env.rpartition("-v")[0] != dataset.env.rpartition("-v")[0]:
        return {}, 0
    settings = {"max_episode_steps": known.limit}
    if dataset.env == "Ant-v4" and dataset.observations[:, 27:].any():
        settings["use_contact_forces"] = True
    if "Maze" not in dataset.env:
        return settings, 0
    maze = _maze(dataset.env)
    return settings | maze.settings, np.pad(maze.shift, (0, dataset.observations.shape[1] - 2))


def _all_from_seed(env):
    """OGBench's environments draw from numpy's global generator, too: with a seed, a reset seeds it, so that an episode
    depends on nothing that went before."""
    import gymnasium

    class AllFromSeed(gymnasium.Wrapper):
        def reset(self, *, seed=None, **given):
            if seed is not None:
                np.random.seed(seed)
            return super().reset(seed=seed, **given)

    return AllFromSeed(env)


class Maze(NamedTuple):
    settings: dict  # for gymnasium.make
    shift: np.ndarray  # [2], from its positions to D4RL's
    goal: np.ndarray  # [2], the goal's cell, in D4RL's positions
    starts: np.ndarray  # [n, 2], cells in which an episode may begin, likewise


def _maze(env: str) -> Maze:
    """D4RL's maze: gymnasium-robotics' walls with D4RL's start and goal, turned until the axes point the same way.

    gymnasium-robotics has its origin at the centre, and y falls with the row. D4RL's ant starts at the origin, and y
    grows with the row; in maze2d x is the row, y the column, and the centre of cell i lies at i - 0.2.
    """
    from gymnasium_robotics.envs.maze import maps

    names = {"Open": "OPEN", "UMaze": "U_MAZE", "Medium": "MEDIUM_MAZE", "Large": "LARGE_MAZE"}
    size = next(size for size in names if f"_{size}" in env)
    cells = np.array(getattr(maps, names[size]), object)
    if env.startswith("AntMaze"):
        row, column = goal = {"UMaze": (3, 1), "Medium": (6, 6), "Large": (7, 9)}[size]
        cells[1, 1], cells[goal] = maps.RESET, maps.GOAL
        settings = {"maze_map": cells[::-1].tolist(), "continuing_task": False}
        place = 4.0 * np.array([column - 1, row - 1])
        return Maze(settings, 2.0 * np.array(cells.shape[::-1]) - 6, place, np.zeros((1, 2)))
    goal = {"Open": (2, 3), "UMaze": (1, 1), "Medium": (6, 6), "Large": (7, 9)}[size]
    cells[goal] = maps.GOAL
    settings = {"maze_map": np.rot90(cells).tolist(), "reset_target": False}
    return Maze(settings, np.array(cells.shape) / 2 - 0.7, np.array(goal, float), np.argwhere(cells != 1).astype(float))


def _as_in_d4rl(env, dataset: Dataset):
    """The environment of a D4RL task with what it does otherwise than D4RL's put back: mazes and hands below; D4RL's
    ant has zeros for contact forces."""
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformObservation

    if "Maze" in dataset.env:
        return _in_maze(env, dataset.env)
    if dataset.env.startswith("AdroitHand"):
        return _in_hand(env, dataset.env)
    if dataset.env == "Ant-v4" and (env.observation_space.shape, dataset.observations.shape[1]) == ((27,), 111):
        return TransformObservation(env, lambda x: np.pad(x, (0, 84)), Box(-np.inf, np.inf, (111,), np.float64))
    return env


def _in_maze(env, name: str):
    """A maze whose goal is reached within 0.5, not 0.45; in maze2d the goal is a point, and every cell a start. AntMaze
    also has D4RL's ant, which is a fifth as strong and decides half as often, and its starts and goals. (D4RL:
    locomotion/{assets/ant.xml,maze_env.py,goal_reaching_env.py}, pointmaze/maze_model.py.)"""
    import gymnasium

    inner, maze, ant = env.unwrapped, _maze(name), name.startswith("AntMaze")
    agent = inner.ant_env if ant else inner.point_env
    if ant:
        physics = agent.model
        physics.actuator_gear[:, 0], physics.opt.timestep, physics.geom_solimp[:, :3] = 30, 0.02, (0.8, 0.8, 0.01)

    class InMaze(gymnasium.Wrapper):
        def reset(self, **given):
            _, info = super().reset(**given)
            rng, goal = inner.np_random, maze.goal
            if ant:
                goal = np.maximum(goal + rng.uniform(0, 1, 2) + rng.uniform(0, 0.5, 2), 0)
            position = agent.init_qpos + rng.uniform(-0.1, 0.1, agent.model.nq)
            position[:2] += maze.starts[rng.integers(len(maze.starts))] - maze.shift - agent.init_qpos[:2]
            agent.set_state(position, 0.1 * rng.normal(size=agent.model.nv))
            inner.goal = goal - maze.shift
            inner.update_target_site_pos()
            return inner._get_obs(np.concatenate([agent.data.qpos, agent.data.qvel])), info

        def step(self, action):
            observation, _, _, truncated, info = super().step(action)
            distance = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"])
            reached = bool(distance <= 0.5)
            reward = np.exp(-distance) if "Dense" in name else float(reached)
            return observation, reward, ant and reached, truncated, info | {"success": reached}

    return InMaze(env)


def _in_hand(env, name: str):
    """A hand that pays for its distance from the object, for which it is paid in version 1 of gymnasium-robotics'
    environments; an episode ends where the pen has fallen. (D4RL: hand_manipulation_suite/*_v0.py.)"""
    import gymnasium

    inner = env.unwrapped

    class InHand(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            places, sites = inner.data.xpos, inner.data.site_xpos
            if "Pen" in name:
                terminated = bool(places[inner.obj_body_id][2] < 0.075)
            elif "Door" in name and name.endswith("-v1"):
                reward -= 0.2 * np.linalg.norm(sites[inner.grasp_site_id] - sites[inner.handle_site_id])
            elif name.endswith("-v1"):
                reward -= 0.2 * np.linalg.norm(sites[inner.S_grasp_site_id] - places[inner.obj_body_id])
            return observation, reward, terminated, truncated, info

    return InHand(env)


# ------------------------------------------------------------------------------------------ checking


def _check(where, **columns) -> dict[str, np.ndarray]:
    """The columns that are not None as float32 [N, n] or [N], flags as bool [N] (any number but 0 is a flag)."""
    rows = len(columns["observations"]) if np.ndim(columns["observations"]) else 0
    if not rows:
        raise DatasetError(f"{where} holds no transitions: download or collect it again.")
    checked = {}
    for key, value in columns.items():
        if value is None:
            continue
        try:
            with np.errstate(over="ignore"):
                value = np.asarray(value).astype(np.float32 if np.asarray(value).dtype != bool else bool, copy=False)
        except (TypeError, ValueError):
            raise DatasetError(f"{where} has {key} that are not numbers: only vectors are supported.") from None
        vectors = key in ("observations", "actions", "next_observations")
        if not vectors and value.shape[1:] == (1,):
            value = value[:, 0]
        if value.ndim != 1 + vectors or len(value) != rows or 0 in value.shape:
            expected = f"({rows}, n)" if vectors else f"({rows},)"
            raise DatasetError(f"{where} has {key} of shape {value.shape} instead of {expected}: make it again.")
        if not np.isfinite(value).all():
            row = int(np.argmin(np.isfinite(value).reshape(rows, -1).all(1)))
            raise DatasetError(f"{where} has NaN or infinity in {key}, first at row {row}: leave out that episode.")
        checked[key] = value.astype(np.float32 if vectors or key == "rewards" else bool, copy=False)
    if "next_observations" in checked and checked["next_observations"].shape != checked["observations"].shape:
        raise DatasetError(f"{where} has next_observations of another shape than its observations: make it again.")
    return checked


def _bounds(space, where) -> tuple[np.ndarray, np.ndarray]:
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or low.ndim != 1 or not np.isfinite([low, high]).all():
        raise DatasetError(f"{where} has actions in {space}: only vectors with finite bounds are supported.")
    return low, high


def _rescale(actions: np.ndarray, space, where) -> np.ndarray:
    """Actions within the bounds of `space` -> [-1, 1]."""
    low, high = _bounds(space, where)
    if actions.shape[1:] != low.shape:
        shapes = f"{actions.shape}, its environment takes {low.shape}"
        raise DatasetError(f"{where} has actions of shape {shapes}: check env.")
    return actions if (low == -1).all() and (high == 1).all() else (actions - (low + high) / 2) / ((high - low) / 2)


def _reason(error: BaseException) -> str:
    """The first line of an error, to stand inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
