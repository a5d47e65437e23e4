"""Collects offline datasets where nothing can be downloaded: by the published recipes, seeded, on all cores.

    python benchmarks/collect.py solo/hopper-v5/medium-v0 [more ids ...] --transitions 1000000 --seed 0
    python benchmarks/collect.py --list      # what can be made, from what, in what time; what is there already
    python benchmarks/collect.py --describe  # what those are that are there: results/tables/datasets.md

Ids, where they are made, and by whose recipe:
  solo/<hopper|halfcheetah|walker2d>-v5/<random|medium|medium-replay|medium-expert|random-expert|expert>-v0
                                       Minari datasets; D4RL's locomotion, see collect_locomotion.py
  solo/pointmaze-<umaze|medium|large>-v3/waypoint-v0
                                       Minari datasets; D4RL's maze2d, see collect_pointmaze.py
  cube-single-play-v0 and others       OGBench's own files, training and validation set; see collect_ogbench.py
Minari's root is $MINARI_DATASETS_PATH or ~/.minari/datasets, OGBench's folder $OGBENCH_DATA_DIR or ~/.ogbench/data.
Interrupted, the same command goes on; a dataset that is there already is left alone.

A Minari dataset has exactly --transitions rows: where those of a policy are used up, its last episode is cut off and
marked as truncated, since every episode of Minari's ends. (D4RL leaves that episode in its files, unmarked, and removes
it only from the first half of medium-expert.) Terminations are true ends only; truncations are the time limit and that
cut. Observations and rewards are float32: what the policy saw, and what D4RL stores.

The data is a function of policy file, seed and count, on one machine with one version of MuJoCo and NumPy: it is made
in shards of whole episodes, each a function of policy file, seed and its place in the order, whichever process makes it
and when. They wait in a folder beside the datasets' until all are there. Fewer rows are the beginning of more rows, for
each policy; seeds are independent of one another.
"""

import hashlib
import importlib.metadata
import inspect
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

import collect_locomotion
import collect_ogbench
import collect_pointmaze
import numpy as np
from tables import fail, pipes

LOCOMOTION = [f"solo/{env}/{quality}" for env in collect_locomotion.ENVS for quality in collect_locomotion.FILES]
POINTMAZE = [f"solo/{name}/waypoint-v0" for name in collect_pointmaze.MAZES]
OGBENCH = list(collect_ogbench.COUNTS)
IDS = [*LOCOMOTION, *POINTMAZE, *OGBENCH]
SHARD = 20_000  # rows that a process collects between two files; with another number the data is another
ROWS = 1_000_000
WRITING = 0.6e-3  # seconds that Minari takes to write an episode (measured): the half of hopper-random's time
DESCRIPTION = Path(__file__).parent.parent / "results/tables/datasets.md"
TABLE = "{:39} {:>10} {:>12} {:>11} {:>12} {:>9} {:>8}"


@dataclass(frozen=True)
class Args:
    ids: tuple[str, ...]  # for example solo/hopper-v5/medium-v0 or cube-single-play-v0
    transitions: int | None = None  # rows of each dataset: by default 1,000,000, of OGBench's as many as upstream's
    seed: int = 0  # another seed, other data
    workers: int = os.cpu_count() or 1  # processes that collect; the data does not depend on them
    overwrite: bool = False  # replace a dataset of the same name that was made otherwise
    policies: Path = Path(__file__).parent / "policies"  # folder of <env>-v5-<medium|medium-replay|expert>.npz
    list: bool = False  # show what can be made and what is there
    describe: bool = False  # write what is there to results/tables/datasets.md


# ------------------------------------------------------------------------------------------------------------ shards


class Part(NamedTuple):
    """What one policy contributes to a dataset."""

    rollout: Callable[..., dict[str, np.ndarray]]  # of these arguments, seeds and an amount
    arguments: tuple
    amount: int  # rows; of OGBench's, episodes
    size: int  # the same, of a shard
    key: int  # in the seeds, or medium-expert would start its halves in the same states
    place: int  # in the seeds too: of several with one key
    trial: tuple  # arguments and amount of a short rollout, to show its speed


class Shard(NamedTuple):
    path: Path
    rollout: Callable[..., dict[str, np.ndarray]]
    arguments: tuple
    seeds: np.random.SeedSequence
    amount: int


def divide(part: Part, seed: int, stem: Path) -> list[Shard]:
    shards = []
    for j, start in enumerate(range(0, part.amount, part.size)):
        seeds = np.random.SeedSequence((seed, part.key), spawn_key=(part.place, j))
        path = stem.with_name(f"{stem.name}-{j:05}.npz")
        shards.append(Shard(path, part.rollout, part.arguments, seeds, min(part.size, part.amount - start)))
    return shards


def save(shard: Shard) -> int:
    """Collects a shard; its file is whole or not there."""
    part = shard.path.with_suffix(f".{os.getpid()}")
    with open(part, "wb") as file:
        np.savez(file, **shard.rollout(*shard.arguments, shard.seeds, shard.amount))
    os.replace(part, shard.path)
    return shard.amount


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
    left = sum(shard.amount for shard in shards)
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
    source: str  # what it is made by, in words
    recipe: dict[str, Any]  # what the data is a function of; stored with it, the dataset is recognised by it
    parts: list[Part]
    packages: tuple[str, ...]  # whose versions the data depends on
    write: Callable[["Plan", list[list[Shard]], Path], dict[str, Any]]  # puts shards in place by way of a folder: facts


def plan(id: str, args: Args) -> Plan:
    if id in LOCOMOTION:
        return locomotion(id, args)
    if id in POINTMAZE:
        return pointmaze(id, args)
    if id in OGBENCH:
        return ogbench(id, args)
    fail(f"{id} is not among the datasets that are made here: --list shows them.")


def place(id: str) -> tuple[Path, Path]:
    """The folder of its family, and what a dataset is in it."""
    if id in OGBENCH:
        root = Path(os.environ.get("OGBENCH_DATA_DIR", "~/.ogbench/data")).expanduser().resolve()
        return root, root / f"{id}.npz"
    from minari.storage import get_dataset_path

    root = get_dataset_path().resolve()
    return root, root / id


def made(id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the facts that a dataset keeps; nothing if it is not there, or was not made here."""
    path = place(id)[1]
    try:
        if id in OGBENCH:
            label, other = collect_ogbench.read(path), collect_ogbench.read(validation(path))
            return (label["recipe"], label["facts"]) if label == other else ({}, {})
        kept = json.loads((path / "data" / "metadata.json").read_bytes())
        return kept["solo"], kept.get("solo_facts", {})
    except (OSError, ValueError, KeyError):
        return {}, {}


def collect(plan: Plan, workers: int) -> str:
    """Makes a dataset, and a line of the table about it."""
    from tqdm import tqdm

    began, root = time.perf_counter(), place(plan.id)[0]
    name = hashlib.sha256(json.dumps([plan.recipe, versions(plan), code(plan)]).encode()).hexdigest()[:12]
    work = root.with_name(f"{root.name}.work") / plan.id / name
    work.mkdir(parents=True, exist_ok=True)
    parts = [divide(part, plan.recipe["seed"], work / f"{i:03}") for i, part in enumerate(plan.parts)]
    missing = [shard for shards in parts for shard in shards if not shard.path.exists()]
    amount, new = (sum(shard.amount for shard in shards) for shards in (sum(parts, []), missing))
    unit = " episodes" if plan.id in OGBENCH else " rows"
    with tqdm(total=amount, initial=amount - new, desc=plan.id, unit=unit, unit_scale=True) as bar:
        save_all(missing, workers, bar.update)
    rate = new / (time.perf_counter() - began) * plan.recipe.get("rows", 1)
    facts = plan.write(plan, parts, work)
    shutil.rmtree(work.parent)  # with what other attempts at this id may have left
    with suppress(OSError):
        os.removedirs(work.parent.parent)  # as far up as it is empty
    numbers = (*numbers_of(facts), f"{time.perf_counter() - began:.1f}", f"{rate:,.0f}")
    return TABLE.format(plan.id, *numbers)


def numbers_of(facts: dict[str, Any]) -> list[str]:
    mean, score = (f"{facts[key]:.1f}" if facts.get(key) is not None else "-" for key in ("return", "score"))
    return [f"{facts['episodes']:,}", mean, score, f"{facts['transitions']:,}"]


def versions(plan: Plan) -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in plan.packages]


def code(plan: Plan) -> str:
    files = dict.fromkeys([Path(__file__), *(Path(inspect.getfile(part.rollout)) for part in plan.parts)])
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{' and '.join(f'benchmarks/{file.name}' for file in files)} (sha256 {digest})"


# -------------------------------------------------------------------------------------------------------- locomotion


def policy_files(id: str) -> list[str]:
    _, env, quality = id.split("/")
    return [f"{env}-{name}.npz" for name in collect_locomotion.FILES[quality] if name]


def locomotion(id: str, args: Args) -> Plan:
    _, env, quality = id.split("/")
    rows, env_id = args.transitions or ROWS, collect_locomotion.ENVS[env][0]
    try:
        read = {name: collect_locomotion.read_policies(args.policies / name, env_id) for name in policy_files(id)}
    except ValueError as error:
        fail(str(error))
    policies = []
    for name, share in collect_locomotion.FILES[quality].items():
        found, sha = read[f"{env}-{name}.npz"] if name else ([None], "0")
        policies += [(policy, int(sha, 16), i, share) for i, policy in enumerate(found)]
    bounds, parts = np.cumsum([0] + [share for *_, share in policies]), []
    for i, (policy, sha, number, _) in enumerate(policies):
        amount = int(bounds[i + 1] * rows // bounds[-1] - bounds[i] * rows // bounds[-1])
        trial = (env_id, policy, 2000)
        parts.append(Part(collect_locomotion.rollout, (env_id, policy), amount, SHARD, sha, number, trial))
    recipe = {"seed": args.seed, "transitions": rows, "shard": SHARD}
    recipe["policies"] = {name: sha for name, (_, sha) in read.items()}
    packages = ("gymnasium", "mujoco")
    names = [f"{env}-{name}.npz" if name else "uniform actions" for name in collect_locomotion.FILES[quality]]
    return Plan(id, " + ".join(names), recipe, parts, packages, write_locomotion)


def write_locomotion(plan: Plan, parts: list[list[Shard]], work: Path) -> dict[str, Any]:
    import gymnasium

    env_id, low, high = collect_locomotion.ENVS[plan.id.split("/")[1]]
    spec, files = gymnasium.spec(env_id), " and ".join(plan.recipe["policies"])
    words = [f"sampled actions of {files}"] if files else []
    if any(policy is None for _, policy in (part.arguments for part in plan.parts)):
        words = ["uniform actions", *words]
    data = [episode for shards in parts for episode in episodes(shards)]
    whole = [
        episode["rewards"].sum(dtype=float)
        for episode in data
        if episode["terminations"][-1] or len(episode["rewards"]) == spec.max_episode_steps
    ]
    mean = np.mean(whole) if whole else None
    metadata = {
        "ref_min_score": low,
        "ref_max_score": high,
        "num_episodes_average_score": 100,
        "description": f"{plan.recipe['transitions']:,} transitions in {env_id}, seed {plan.recipe['seed']}: "
        f"{', then '.join(words)}. D4RL's recipe, not D4RL's data, and the reference scores are those of D4RL's v2 "
        "environment. Where the rows of a policy are used up, its last episode is cut off and marked as truncated.",
        "algorithm_name": "SAC" if files else "uniform actions",
    }
    score = None if mean is None else 100 * (mean - low) / (high - low)
    facts = {"made by": plan.source, "episodes": len(data), "transitions": plan.recipe["transitions"]}
    facts |= {"return": mean, "score": score}
    return write_minari(plan, work, data, spec, metadata, facts)


def write_minari(plan: Plan, work: Path, data: list, spec, metadata: dict, facts: dict) -> dict[str, Any]:
    """A Minari dataset, through Minari's own storage."""
    import h5py
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    namespace, path, folder = plan.id.rpartition("/")[0], place(plan.id)[1], work / "dataset"
    if namespace not in list_local_namespaces():
        create_namespace(namespace)
    shutil.rmtree(folder, ignore_errors=True)  # of an interruption
    folder.mkdir()
    storage = MinariStorage.new(folder / "data", env_spec=spec)
    # While the file is held open in HDF5 1.10's layout, Minari's writer goes on in it: 5 KB an episode instead of its
    # default's 15, so that hopper-random (45,000 episodes of a million rows) has 229 MB instead of 700.
    with h5py.File(storage.data_path / "main_data.hdf5", "w", libver="v110", track_order=True):
        storage.update_episodes(EpisodeBuffer(**episode) for episode in data)
    metadata |= {
        "dataset_id": plan.id,
        "minari_version": minari.__version__,
        "dataset_size": storage.get_size(),
        "eval_env_spec": spec.to_json(),
        "author": {"SOLO"},
        "code_permalink": code(plan),
        "requirements": versions(plan),
        "solo": plan.recipe,
        "solo_facts": facts,
    }
    storage.update_metadata(metadata)
    if path.exists():
        shutil.rmtree(path)
    shutil.move(folder, path)
    return facts


# --------------------------------------------------------------------------------------- point mazes, OGBench's sets


def pointmaze(id: str, args: Args) -> Plan:
    name, rows = id.split("/")[1], args.transitions or ROWS
    part = Part(collect_pointmaze.rollout, (name,), rows, SHARD, number_of(id), 0, (name, 2000))
    recipe = {"seed": args.seed, "transitions": rows, "shard": SHARD}
    packages = ("gymnasium", "gymnasium-robotics", "mujoco")
    return Plan(id, "waypoint controller", recipe, [part], packages, write_pointmaze)


def write_pointmaze(plan: Plan, parts: list[list[Shard]], work: Path) -> dict[str, Any]:
    name, rows = plan.id.split("/")[1], plan.recipe["transitions"]
    data, spec = list(episodes(parts[0])), collect_pointmaze.spec(name)
    rewards = sum(episode["rewards"].sum(dtype=float) for episode in data)
    data = [e | {"observations": collect_pointmaze.observed(name, e["observations"])} for e in data]
    metadata = {
        "description": f"{rows:,} transitions in {spec.id}, seed {plan.recipe['seed']}: a waypoint controller on its "
        "way to random goals, rewards for one fixed goal. D4RL's maze2d protocol, not D4RL's data. An episode ends, "
        "truncated, where the controller has reached its own goal; the next goes on in that state.",
        "algorithm_name": "waypoint controller",
    }
    mean = rewards / rows * spec.max_episode_steps  # of as many steps as an evaluation's episode has
    facts = {"made by": plan.source, "episodes": len(data), "transitions": rows, "return": mean}
    return write_minari(plan, work, data, spec, metadata, facts)


def ogbench(id: str, args: Args) -> Plan:
    episodes, length = collect_ogbench.COUNTS[id]
    episodes = -(-args.transitions // (length - 1)) if args.transitions else episodes
    parts = [
        Part(collect_ogbench.rollout, (id, length), n, collect_ogbench.SHARD, number_of(id), i, (id, 101, 1))
        for i, n in enumerate([episodes, max(episodes // 10, 1)])  # training and validation set
    ]
    recipe = {"seed": args.seed, "episodes": episodes, "rows": length, "shard": collect_ogbench.SHARD}
    packages = ("gymnasium", "mujoco", "ogbench")
    return Plan(id, "OGBench's scripted oracle", recipe, parts, packages, write_ogbench)


def write_ogbench(plan: Plan, parts: list[list[Shard]], work: Path) -> dict[str, Any]:
    path, episodes = place(plan.id)[1], plan.recipe["episodes"]
    facts = {"made by": plan.source, "episodes": episodes, "transitions": episodes * (plan.recipe["rows"] - 1)}
    label = {"recipe": plan.recipe, "facts": facts, "versions": versions(plan), "code": code(plan)}
    path.parent.mkdir(parents=True, exist_ok=True)
    targets = [path, validation(path)]
    for shards, target in [*zip(parts, targets, strict=True)][
        ::-1
    ]:  # the training file, which is looked for, comes last
        collect_ogbench.write(work / target.name, [shard.path for shard in shards], label)
        shutil.move(work / target.name, target)
    return facts


def validation(path: Path) -> Path:
    return path.with_stem(f"{path.stem}-val")


def number_of(id: str) -> int:
    return int(hashlib.sha256(id.encode()).hexdigest(), 16)


# -------------------------------------------------------------------------------------------------------------- main


def table(args: Args) -> None:
    """What can be made, with the time that it takes here, estimated from short rollouts in this process."""
    print(f"{'id':39} {'made by':62} {'rows/s':>8} {'minutes':>8}  there already")
    for id in IDS:
        files = policy_files(id) if id in LOCOMOTION else []
        if missing := [name for name in files if not (args.policies / name).is_file()]:
            source, numbers = " + ".join(f"{x} (missing)" if x in missing else x for x in files), ("-", "-")
        else:
            source, *numbers = plan(id, args).source, *speed(plan(id, args), args.workers)
        path, (_, facts) = place(id)[1], made(id)
        there = "made otherwise" if path.exists() else "-"
        if facts:
            parts = [path, validation(path)] if id in OGBENCH else (path / "data").iterdir()
            there = f"{facts['transitions']:,} rows, {sum(file.stat().st_size for file in parts) / 1e6:.1f} MB"
        print(f"{id:39} {source:62} {numbers[0]:>8} {numbers[1]:>8}  {there}")


def speed(plan: Plan, workers: int) -> tuple[str, str]:
    """Rows a second of one process, and minutes that the dataset takes."""
    total, working, ends = 0, 0.0, 0.0
    for i, part in enumerate(plan.parts):
        for _ in range(1 if i else 2):  # the first of all builds the environment
            began = time.perf_counter()
            columns = part.rollout(*part.trial[:-1], np.random.SeedSequence(0), part.trial[-1])
            taken = time.perf_counter() - began
        rows, share = part.amount * plan.recipe.get("rows", 1), 1 / len(columns["actions"])
        total, working = total + rows, working + rows * share * taken
        if plan.id not in OGBENCH:
            ends += rows * share * max(np.sum(columns["terminations"] | columns["truncations"]), 2)
    seconds = working / min(workers, os.cpu_count() or 1) + WRITING * ends
    return f"{total / working:,.0f}", f"{seconds / 60:.1f}"


def describe() -> None:
    """A table of what is there, from what the datasets keep about themselves."""
    lines = [
        "# Datasets collected here",
        "",
        "Made by `python benchmarks/collect.py --describe` from what the datasets keep about themselves. The return is",
        "the mean over whole episodes, in a point maze of as many steps as an evaluation's episode has; normalised, 0",
        "is a random policy and 100 an expert in D4RL's v2 environments. D4RL's episodes are those of its v2 files, of",
        "1,000,000 rows each, but medium-expert of 2,000,000, medium-replay of fewer; their returns were not at hand.",
        "OGBench's sets have, besides, a tenth as many episodes for validation. `--list` says how long each takes.",
        "",
    ]
    rows = [["dataset", "episodes", "mean return", "normalised", "transitions", "seed", "made by", "D4RL's episodes"]]
    for id in IDS:
        recipe, facts = made(id)
        if facts:
            theirs = None
            if id in LOCOMOTION:
                _, env, quality = id.split("/")
                theirs = collect_locomotion.D4RL_EPISODES[env][list(collect_locomotion.FILES).index(quality)]
            cells = [id, *numbers_of(facts), recipe["seed"], facts["made by"], f"{theirs:,}" if theirs else ""]
            rows.append([str(cell) for cell in cells])
    DESCRIPTION.parent.mkdir(parents=True, exist_ok=True)
    DESCRIPTION.write_text("\n".join(lines) + "\n" + pipes(rows))
    print(DESCRIPTION)


def main(argv: list[str] | None = None) -> None:
    import tyro

    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff)
    args = tyro.cli(Args, args=argv, description=__doc__, config=config)
    if args.seed < 0 or (args.transitions is not None and args.transitions < 1) or args.workers < 1:
        fail("--transitions and --workers must be at least 1, --seed at least 0.")
    if not (args.ids or args.list or args.describe):
        fail("name the datasets to make: --list shows them.")
    plans = [plan(id, args) for id in dict.fromkeys(args.ids)]
    for todo in plans:
        path = place(todo.id)[1]
        if path.exists() and made(todo.id)[0] != todo.recipe and not args.overwrite:
            fail(f"{path} was not made by this recipe, policy, seed and count: --overwrite replaces it.")
    if plans:
        print(TABLE.format("id", "episodes", "mean return", "normalised", "transitions", "seconds", "rows/s"))
    for todo in plans:
        if made(todo.id)[0] == todo.recipe:
            print(f"{todo.id:39} is there already")
            continue
        try:
            print(collect(todo, args.workers))
        except (OSError, BrokenExecutor) as error:
            fail(f"{todo.id} is unfinished ({error}): see to that, and the same command goes on from here.")
        except KeyboardInterrupt:
            print(f"{todo.id} is interrupted: the same command goes on from here.", file=sys.stderr)
            sys.exit(130)
    if args.list:
        table(args)
    if args.describe:
        describe()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, or workers would be left behind
    main()
