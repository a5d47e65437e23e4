"""Collects offline datasets where nothing can be downloaded: D4RL's recipe, rolled out here, into Minari datasets.

    python benchmarks/collect.py solo/hopper-v5/medium-v0 [more ids ...] --transitions 1000000 --seed 0 --workers 2
    python benchmarks/collect.py --list   # what can be made, from which policy, in what time; what is there already

Ids are solo/<hopper|halfcheetah|walker2d>-v5/<random|medium|medium-replay|medium-expert|random-expert|expert>-v0. The
result lies in Minari's root ($MINARI_DATASETS_PATH or ~/.minari/datasets), for every Minari tool and `dataset.load`.
Interrupted, the same command goes on; a dataset that is there already is left alone.

The recipe is D4RL's (Fu et al., 2020, arXiv:2004.07219; github.com/Farama-Foundation/D4RL), but the environments are
Gymnasium's v5 and the policies our own: no score on this data is a D4RL score.
  random          uniform actions
  medium, expert  sampled actions of a SAC policy: stopped part-way, and trained
  medium-replay   the same number of rows from each of several checkpoints, the first to the last. (D4RL's is the
                  replay buffer of the run that led to the medium policy.)
  medium-expert   half the rows medium, then half expert. (D4RL's is both of its files, 2M rows: --transitions 2000000
                  gives here, row for row, medium and expert of one million each.)
  random-expert   a twentieth of the rows random, then expert: most episodes are random, most rows are not, so that an
                  imitator stumbles where every episode begins. (D4RL's, for Ant only, has half and half.)

A dataset has exactly --transitions rows: where those of a policy are used up, its last episode is cut off and marked as
truncated, since every episode of Minari's ends. (D4RL leaves that episode in its files, unmarked, and removes it only
from the first half of medium-expert.) Terminations are true ends only; truncations are the time limit and that cut.
Observations and rewards are float32: what the policy saw, and what D4RL stores.

The data is a function of policy file, seed and count, on one machine with one version of MuJoCo and NumPy: it is made
in shards of whole episodes, each a function of policy file, seed and its place in the order, whichever process makes it
and when. They wait in a folder beside Minari's root until all are there. Fewer rows are the beginning of more rows, for
each policy; seeds are independent of one another.
"""

import functools
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ENVS = {  # Gymnasium id; D4RL's returns of a random and of an expert policy (infos.py)
    "hopper-v5": ("Hopper-v5", -20.272305, 3234.3),
    "halfcheetah-v5": ("HalfCheetah-v5", -280.178953, 12135.0),
    "walker2d-v5": ("Walker2d-v5", 1.629008, 4592.3),
}
FILES = {  # the policies of a quality and their shares of its rows, in the order of the rows; None: uniform actions
    "random-v0": {None: 1},
    "medium-v0": {"medium": 1},
    "medium-replay-v0": {"medium-replay": 1},
    "medium-expert-v0": {"medium": 1, "expert": 1},
    "random-expert-v0": {None: 1, "expert": 19},
    "expert-v0": {"expert": 1},
}
IDS = [f"solo/{env}/{quality}" for env in ENVS for quality in FILES]
SHARD = 20_000  # rows that a process collects between two files; with another number the data is another
WRITING = 0.6e-3  # seconds that Minari takes to write an episode (measured): the half of hopper-random's time
TABLE = "{:37} {:>10} {:>12} {:>11} {:>12} {:>9} {:>8}"


@dataclass(frozen=True)
class Args:
    ids: tuple[str, ...]  # for example solo/hopper-v5/medium-v0
    transitions: int = 1_000_000  # rows of each dataset
    seed: int = 0  # another seed, other data
    workers: int = 2  # processes that collect; the data does not depend on them
    overwrite: bool = False  # replace a dataset of the same name that was made otherwise
    policies: Path = Path(__file__).parent / "policies"  # folder of <env>-v5-<medium|medium-replay|expert>.npz
    list: bool = False  # show what can be made and what is there


def fail(sentence: str):
    """Ends the program for a mistake of its user's: one sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


# ------------------------------------------------------------------------------------------------------------ policy


class Policy(NamedTuple):
    """Layers of weights [in, out] and bias [out], float32."""

    hidden: list  # each with a relu
    mean: tuple
    log_std: tuple


def act(policy: Policy, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Sampled actions: [..., obs], [..., act] -> [..., act]."""
    x = observation
    for weights, bias in policy.hidden:
        x = np.maximum(x @ weights + bias, 0)
    mean, log_std = (x @ weights + bias for weights, bias in (policy.mean, policy.log_std))
    return np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise)


def read_policies(path: Path, env_id: str) -> tuple[list[Policy], str]:
    """The checkpoints in a policy file (a single one where its arrays lack that leading axis), and the file's hash."""
    if not path.is_file():
        fail(f"there is no policy {path}: train it with algorithms/sac.py, or name its folder with --policies.")
    try:
        raw, env, policies = path.read_bytes(), make(env_id), []
        arrays = dict(np.load(io.BytesIO(raw)))  # never unpickles
        meta = json.loads(str(arrays.pop("meta")))
        depth = sum(name[0] == "W" and name[1:].isdigit() for name in arrays)
        layers = [[arrays.pop(f"{kind}{i}").astype(np.float32) for kind in "Wb"] for i in (*range(depth), "_log_std")]
        if layers[0][0].ndim == 2:
            layers = [[array[None] for array in layer] for layer in layers]
        for checkpoint in zip(*(zip(*layer, strict=True) for layer in layers), strict=True):
            *hidden, mean, log_std = checkpoint
            policies.append(Policy(hidden, mean, log_std))
            action = act(policies[-1], np.ones(env.observation_space.shape, np.float32), np.float32(1))
            if action.shape != env.action_space.shape or not np.isfinite(action).all():
                raise ValueError("its actions do not fit")
        if (meta["env"].split("-")[0], meta["hidden"], meta["squash"]) != (env_id.split("-")[0], "relu", "tanh"):
            raise ValueError(f"its meta says {meta}")
        for name, array in arrays.items():  # normalisation, say, must not be passed over, unless it does nothing
            if np.any(array != {"obs_mean": 0, "obs_std": 1}.get(name)):
                raise ValueError(f"it needs {name}")
    except Exception as error:  # whatever a damaged file raises
        fail(f"{path} is not understood as a policy of {env_id} ({error or type(error).__name__}): replace it.")
    return policies, hashlib.sha256(raw).hexdigest()


# ---------------------------------------------------------------------------------------------------------- episodes


class Shard(NamedTuple):
    path: Path
    env_id: str
    policy: Policy | None  # None: uniform actions
    seeds: np.random.SeedSequence
    rows: int


@functools.cache  # once a process, since MuJoCo complains about HalfCheetah's own model every time
def make(env_id: str):
    import gymnasium

    return gymnasium.make(env_id, disable_env_checker=True)


def rollout(env_id: str, policy: Policy | None, seeds: np.random.SeedSequence, rows: int) -> dict[str, np.ndarray]:
    """Whole episodes until there are `rows` transitions; T steps have T + 1 observations.

    One environment and one observation at a time: of the 15 us that a policy takes, beside MuJoCo's 25 to 75, a batch
    would save 9, and lose more by ending in as many episodes beyond `rows` as it has environments.
    """
    env, rng = make(env_id), np.random.default_rng(seeds)
    low, high = env.action_space.low, env.action_space.high
    env.reset(seed=int(rng.integers(2**31)))  # every reset below draws from this
    observations, steps = [], []
    while len(steps) < rows:
        observations.append(env.reset()[0].astype(np.float32))
        over = False
        while not over:
            if policy is None:
                action = rng.uniform(low, high).astype(np.float32)
            else:
                action = act(policy, observations[-1], rng.standard_normal(low.shape, np.float32))
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation.astype(np.float32))
            steps.append((action, reward, terminated, truncated))
            over = terminated or truncated
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    return {
        "observations": np.array(observations),  # [rows + episodes, obs]
        "actions": np.array(actions),  # [rows, act]
        "rewards": np.array(rewards, np.float32),  # [rows]
        "terminations": np.array(terminations, bool),  # [rows]
        "truncations": np.array(truncations, bool),  # [rows]
    }


def save(shard: Shard) -> int:
    """Collects a shard; its file is whole or not there."""
    part = shard.path.with_suffix(f".{os.getpid()}")
    with open(part, "wb") as file:
        np.savez(file, **rollout(*shard[1:]))
    os.replace(part, shard.path)
    return shard.rows


def start_worker() -> None:
    """Ctrl-C is for the parent alone: its workers finish their shards first. But none outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def save_all(shards: list[Shard], workers: int, report: Callable[[int], Any]) -> None:
    # One thread of linear algebra a process: faster, and no sum depends on the number of cores.
    os.environ |= dict.fromkeys(["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"], "1")
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        try:
            for future in as_completed([pool.submit(save, shard) for shard in shards]):
                report(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def episodes(shards: list[Shard]) -> Iterator[dict[str, np.ndarray]]:
    """The episodes of one policy in order, up to the rows that its shards stand for: they hold some more."""
    left = sum(shard.rows for shard in shards)
    for shard in shards:
        with np.load(shard.path) as file:
            arrays = dict(file)
        observations = arrays.pop("observations")
        ends = np.flatnonzero(arrays["terminations"] | arrays["truncations"]) + 1
        for i, (start, end) in enumerate(pairwise([0, *ends])):
            stop = min(end, start + left)
            if stop == start:
                return
            episode = {name: array[start:stop] for name, array in arrays.items()}
            episode["truncations"][-1] |= stop < end  # cut off
            yield {"observations": observations[start + i : stop + i + 1], **episode}
            left -= stop - start


# ---------------------------------------------------------------------------------------------------------- datasets


class Plan(NamedTuple):
    id: str
    env: str  # of ENVS
    recipe: dict[str, Any]  # what the data is a function of; stored in the metadata, the dataset is recognised by it
    policies: list[tuple[Policy | None, int, int, int]]  # and each one's file, as a number, place in the file, share


def plan(id: str, args: Args) -> Plan:
    if id not in IDS:
        fail(f"{id} is not among the datasets that are made here: --list shows them.")
    _, env, quality = id.split("/")
    read = {name: read_policies(args.policies / name, ENVS[env][0]) for name in policy_files(id)}
    policies = []
    for name, share in FILES[quality].items():
        found, sha = read[f"{env}-{name}.npz"] if name else ([None], "0")
        policies += [(policy, int(sha, 16), i, share) for i, policy in enumerate(found)]
    recipe = {"seed": args.seed, "transitions": args.transitions, "shard": SHARD}
    return Plan(id, env, recipe | {"policies": {name: sha for name, (_, sha) in read.items()}}, policies)


def policy_files(id: str) -> list[str]:
    _, env, quality = id.split("/")
    return [f"{env}-{name}.npz" for name in FILES[quality] if name]


def divide(plan: Plan, folder: Path) -> list[list[Shard]]:
    """The shards of every policy."""
    total, parts = plan.recipe["transitions"], []
    bounds = np.cumsum([0] + [share for *_, share in plan.policies])
    for i, (policy, file, place, _) in enumerate(plan.policies):
        rows = int(bounds[i + 1] * total // bounds[-1] - bounds[i] * total // bounds[-1])
        sizes = [min(SHARD, rows - start) for start in range(0, rows, SHARD)]
        # The file's hash is in the seeds, or medium-expert would start its halves in the same states.
        seeds = [np.random.SeedSequence((plan.recipe["seed"], file), spawn_key=(place, j)) for j in range(len(sizes))]
        paths = [folder / f"{i:03}-{j:05}.npz" for j in range(len(sizes))]
        parts.append([Shard(p, ENVS[plan.env][0], policy, s, n) for p, s, n in zip(paths, seeds, sizes, strict=True)])
    return parts


def versions() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in ("gymnasium", "mujoco")]


def code() -> str:
    return f"benchmarks/collect.py (sha256 {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()})"


def collect(plan: Plan, root: Path, workers: int) -> str:
    """Makes a dataset, and a line of the table about it."""
    from tqdm import tqdm

    began, rows = time.perf_counter(), plan.recipe["transitions"]
    name = hashlib.sha256(json.dumps([plan.recipe, versions(), code()]).encode()).hexdigest()[:12]
    work = root.with_name(f"{root.name}.work") / plan.id / name
    work.mkdir(parents=True, exist_ok=True)
    parts = divide(plan, work)
    missing = [shard for shards in parts for shard in shards if not shard.path.exists()]
    new = sum(shard.rows for shard in missing)
    with tqdm(total=rows, initial=rows - new, desc=plan.id, unit=" rows", unit_scale=True) as bar:
        save_all(missing, workers, bar.update)
    rate = new / (time.perf_counter() - began)
    data = [episode for shards in parts for episode in episodes(shards)]
    write(plan, work / "dataset", data)
    if (root / plan.id).exists():
        shutil.rmtree(root / plan.id)
    shutil.move(work / "dataset", root / plan.id)
    shutil.rmtree(work.parent)  # with what other attempts at this id may have left
    with suppress(OSError):
        os.removedirs(work.parent.parent)  # as far up as it is empty
    env_id, low, high = ENVS[plan.env]
    limit = make(env_id).spec.max_episode_steps
    whole = [e["rewards"].sum(dtype=float) for e in data if e["terminations"][-1] or len(e["rewards"]) == limit]
    mean, seconds = np.mean(whole) if whole else np.nan, time.perf_counter() - began
    score = 100 * (mean - low) / (high - low)
    numbers = f"{len(data):,}", f"{mean:.1f}", f"{score:.1f}", f"{rows:,}", f"{seconds:.1f}", f"{rate:,.0f}"
    return TABLE.format(plan.id, *numbers)


def write(plan: Plan, folder: Path, data: list[dict[str, np.ndarray]]) -> None:
    """A Minari dataset, through Minari's own storage."""
    import gymnasium
    import h5py
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = plan.id.rpartition("/")[0]
    if namespace not in list_local_namespaces():
        create_namespace(namespace)
    shutil.rmtree(folder, ignore_errors=True)  # of an interruption
    folder.mkdir()
    env_id, low, high = ENVS[plan.env]
    spec, files = gymnasium.spec(env_id), " and ".join(plan.recipe["policies"])
    parts = [f"sampled actions of {files}"] if files else []
    if any(policy is None for policy, *_ in plan.policies):
        parts = ["uniform actions", *parts]
    storage = MinariStorage.new(folder / "data", env_spec=spec)
    # While the file is held open in HDF5 1.10's layout, Minari's writer goes on in it: 5 KB an episode instead of its
    # default's 15, so that hopper-random (45,000 episodes of a million rows) has 229 MB instead of 700.
    with h5py.File(storage.data_path / "main_data.hdf5", "w", libver="v110", track_order=True):
        storage.update_episodes(EpisodeBuffer(**episode) for episode in data)
    metadata = {
        "dataset_id": plan.id,
        "minari_version": minari.__version__,
        "dataset_size": storage.get_size(),
        "eval_env_spec": spec.to_json(),
        "ref_min_score": low,
        "ref_max_score": high,
        "num_episodes_average_score": 100,
        "description": f"{plan.recipe['transitions']:,} transitions in {env_id}, seed {plan.recipe['seed']}: "
        f"{', then '.join(parts)}. D4RL's recipe, not D4RL's data, and the "
        "reference scores are those of D4RL's v2 environment. Where the rows of a policy are used up, its last episode "
        "is cut off and marked as truncated.",
        "author": {"SOLO"},
        "algorithm_name": "SAC" if files else "uniform actions",
        "code_permalink": code(),
        "requirements": versions(),
        "solo": plan.recipe,
    }
    storage.update_metadata(metadata)


# -------------------------------------------------------------------------------------------------------------- main


def metadata(root: Path, id: str) -> dict[str, Any]:
    try:
        return json.loads((root / id / "data" / "metadata.json").read_bytes())
    except (OSError, ValueError):
        return {}


def table(args: Args, root: Path) -> None:
    """What can be made, with the time that it takes here, estimated from one short rollout in this process."""
    print(f"{'id':37} {'policy':62} {'steps/s':>8} {'minutes':>8}  there already")
    for id in IDS:
        speed, minutes, missing = "-", "-", [name for name in policy_files(id) if not (args.policies / name).is_file()]
        if not missing:
            policy = plan(id, args).policies[0][0]
            began = time.perf_counter()
            ends = rollout(ENVS[id.split("/")[1]][0], policy, np.random.SeedSequence(0), 2_000)["terminations"]
            rate, workers = len(ends) / (time.perf_counter() - began), min(args.workers, os.cpu_count() or 1)
            seconds = args.transitions * (1 / rate / workers + WRITING * max(ends.sum(), 2) / len(ends))
            speed, minutes = f"{rate:,.0f}", f"{seconds / 60:.1f}"
        source = " + ".join(f"{name} (missing)" if name in missing else name for name in policy_files(id)) or "uniform"
        found = metadata(root, id)
        there = f"{found['total_steps']:,} rows, {found['dataset_size']} MB" if "dataset_size" in found else "-"
        print(f"{id:37} {source:62} {speed:>8} {minutes:>8}  {there}")


def main(argv: list[str] | None = None) -> None:
    import tyro

    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff)
    args = tyro.cli(Args, args=argv, description=__doc__, config=config)
    if args.seed < 0 or args.transitions < 1 or args.workers < 1:
        fail("--transitions and --workers must be at least 1, --seed at least 0.")
    if not args.ids and not args.list:
        fail("name the datasets to make: --list shows them.")
    plans = [plan(id, args) for id in dict.fromkeys(args.ids)]
    from minari.storage import get_dataset_path

    root = get_dataset_path().resolve()
    if args.list:
        return table(args, root)
    for id, _, recipe, _ in plans:
        if (root / id).exists() and metadata(root, id).get("solo") != recipe and not args.overwrite:
            fail(f"{root / id} is of another policy, seed or count: --overwrite replaces it.")
    print(TABLE.format("id", "episodes", "mean return", "normalised", "transitions", "seconds", "steps/s"))
    for todo in plans:
        if metadata(root, todo.id).get("solo") == todo.recipe:
            print(f"{todo.id:37} is there already")
            continue
        try:
            print(collect(todo, root, args.workers))
        except (OSError, BrokenExecutor) as error:
            fail(f"{todo.id} is unfinished ({error}): see to that, and the same command goes on from here.")
        except KeyboardInterrupt:
            print(f"{todo.id} is interrupted: the same command goes on from here.", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, or workers would be left behind
    main()
