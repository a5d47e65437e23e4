"""Many runs until all are done: algorithms x datasets x groups of seeds x flags, each the process of a script.

    python benchmarks/sweep.py --grid benchmarks/grids/gym_mujoco.toml --dry-run   # the runs, what is done, the time
    python benchmarks/sweep.py --grid benchmarks/grids/gym_mujoco.toml
    python benchmarks/sweep.py --algorithms bc td3_bc --datasets hopper-medium-v2 "data/my.hdf5 --env Hopper-v5" \\
        --seeds 0,1,2,3,4 5,6,7,8,9 --flags steps=50000 td3_bc.alpha=1,2.5,5 hidden-dims="256 256,64 64"

A group of seeds trains together in one process. A flag with several values multiplies the runs; <algorithm>.<flag>
concerns that algorithm alone; true and false switch. A grid file holds the same as TOML: algorithms, datasets, seeds
and [flags], with [flags.<algorithm>]; the command line wins over it. A dataset is what follows --dataset, or flags of
its own: "--env Hopper-v5" for a script that acts online.

Stop it however you like, even by kill -9: the same command goes on, in the middle of runs too. A run that crashes is
started again from its checkpoint, at most --retries times, then reported with the end of its log, and the rest goes on.
The exit code is 0 when all runs are done, 1 when one failed, 130 when stopped. A run is done when --out holds finished
JSON of all its seeds with the same arguments and script; where the script has changed, it starts over. Whoever changes
the data deletes its runs. Logs lie in <out>/logs; a run's log is locked while it runs, so that no second sweep starts
it too.

Without a GPU every run is held to one core, and there are as many at a time as cores: together they train more steps
than one run on all of them; with fewer --jobs each has its share of the cores. With GPUs there is one run a GPU, or
with more --jobs as many, which share its memory.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tables
from tables import fail

ALGORITHMS = tables.ROOT / "algorithms"


@dataclass(frozen=True)
class Args:
    grid: Path | None = None  # TOML file, see benchmarks/grids
    algorithms: tuple[str, ...] = ()  # names of scripts
    datasets: tuple[str, ...] = ()  # each a name, or a path and its --env
    seeds: tuple[str, ...] = ()  # groups, the seeds of one divided by commas
    flags: tuple[str, ...] = ()  # flag=value,value of the scripts, or algorithm.flag=value,value
    out: Path = tables.ROOT / "results/runs"  # where the scripts write
    jobs: int = 0  # runs at a time; 0: one a GPU, without any one a core
    retries: int = 2  # new starts of a run that crashes
    shard: str = "1/1"  # the i-th of n parts of the runs, for job arrays
    engine: Literal["local", "ray"] = (
        "local"  # processes here, or tasks of the Ray cluster that this machine is part of
    )
    cpus_per_run: float = 1  # with Ray
    gpus_per_run: float = 0  # with Ray; 0.25: four runs share a GPU
    dry_run: bool = False  # print the runs, what is done and how long the rest takes


# -------------------------------------------------------------------------------------------------- which runs


class Run(NamedTuple):
    algorithm: str
    words: tuple[str, ...]  # of its command line, without --out
    digest: str = ""  # of its arguments as resolved

    def __str__(self) -> str:
        return shlex.join([self.algorithm, *self.words])

    def log(self, out: Path) -> Path:
        return out / "logs" / f"{self.algorithm}-{Path(self.words[1]).stem}-{self.digest}.log"


def read_grid(args: Args) -> dict[str, Any]:
    """The grid file with the command line over it."""
    grid: dict[str, Any] = {"algorithms": [], "datasets": [], "seeds": [[0]], "flags": {}}
    if args.grid:
        try:
            content = tomllib.loads(args.grid.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            fail(f"{args.grid} cannot be read as a grid ({error}).")
        if unknown := sorted(content.keys() - grid.keys()):
            fail(f"{args.grid} has {', '.join(unknown)}; a grid has {', '.join(grid)}.")
        if wrong := [k for k, v in content.items() if not isinstance(v, type(grid[k]))]:
            fail(f"{wrong[0]} in {args.grid} must be a {'table' if wrong[0] == 'flags' else 'list'}.")
        grid |= content | {"flags": underscored(content.get("flags", {}))}
    grid |= {k: list(getattr(args, k)) for k in ("algorithms", "datasets") if getattr(args, k)}
    if args.seeds:
        grid["seeds"] = [group.split(",") for group in args.seeds]
    for flag in args.flags:
        name, equals, values = flag.partition("=")
        if not equals:
            fail(f"--flags {flag}: write flag=value, or flag=value,value for a run each.")
        algorithm, dot, name = name.rpartition(".")
        place = grid["flags"].setdefault(algorithm, {}) if dot else grid["flags"]
        place[name.replace("-", "_")] = values.split(",")
    named = [*grid["algorithms"], *(k for k, v in grid["flags"].items() if isinstance(v, dict))]
    if unknown := sorted(name for name in named if not (ALGORITHMS / f"{name}.py").exists()):
        there = sorted(path.stem for path in ALGORITHMS.glob("*.py") if path.stem != "dataset")
        fail(f"There is no algorithm {', '.join(unknown)}: there are {', '.join(there)}.")
    for name in ("algorithms", "datasets"):
        if not all(grid[name] or [""]):
            fail(f"No {name}: name them with --{name} or in a --grid.")
    if not all(isinstance(group, list) for group in grid["seeds"]):
        fail(f"seeds = {grid['seeds']} in the grid: write a list of groups that train together, [[0, 1, 2]].")
    return grid


def underscored(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags by the name that their script's Args has, as the command line's are."""
    return {k.replace("-", "_"): underscored(v) if isinstance(v, dict) else v for k, v in flags.items()}


def expand(grid: dict[str, Any]) -> list[Run]:
    """Every combination, in the order of the grid."""
    runs = []
    for algorithm, dataset, seeds in itertools.product(grid["algorithms"], grid["datasets"], grid["seeds"]):
        data = shlex.split(dataset)
        data = data if data[0].startswith("--") else ["--dataset", *data]
        flags = {k: v for k, v in grid["flags"].items() if not isinstance(v, dict)} | grid["flags"].get(algorithm, {})
        choices = [values if isinstance(values, list) else [values] for values in flags.values()]
        for values in itertools.product(*choices):
            given = [word for flag in zip(flags, values, strict=True) for word in flag_words(*flag)]
            runs.append(Run(algorithm, (*data, "--seeds", *map(str, seeds), *given)))
    return list(dict.fromkeys(runs))


def flag_words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if str(value).lower() in ("true", "false"):
        return [f"--{flag}" if str(value).lower() == "true" else f"--no-{flag}"]
    return [f"--{flag}", *(map(str, value) if isinstance(value, list) else str(value).split())]


def part(runs: list[Run], shard: str) -> list[Run]:
    i, _, n = shard.partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        fail(f"--shard {shard}: write i/n, for example 1/8 for the first of eight parts.")
    return runs[int(i) - 1 :: int(n)]


# -------------------------------------------------------------------------------------- what is done, and how long

RESOLVE = """
import dataclasses, importlib, json, sys
for algorithm, words in json.load(sys.stdin):
    script = importlib.import_module(algorithm)
    arguments = dataclasses.asdict(script.parse(words)[0])
    print(json.dumps([arguments, script.fingerprint(script.__file__, arguments)]), flush=True)
"""


def deciding(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that part one run from another."""
    return {k: v for k, v in arguments.items() if k not in ("out", "resume", "untuned", "wandb", "video")}


class Plan(NamedTuple):
    """A run's arguments as its script resolves them, and the hash of the script."""

    arguments: dict[str, Any]
    script: str

    @property
    def steps(self) -> int:
        """The last step of the run, that of an online phase where it has one."""
        return self.arguments["steps"] + self.arguments.get("online_steps", 0)

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(deciding(self.arguments), sort_keys=True).encode()).hexdigest()[:8]

    def asked(self, content: dict[str, Any]) -> bool:
        """Whether these arguments made that JSON, which names a parent's checkpoint and a model by their hash."""
        mine, theirs = deciding(self.arguments), deciding(content["arguments"])
        for name in mine.keys() & {"pretrained", "dynamics"}:
            if mine[name] and Path(mine[name]).is_file():
                mine[name] = hashlib.sha256(Path(mine[name]).read_bytes()).hexdigest()
        return mine == theirs

    def same(self, content: dict[str, Any]) -> bool:
        return self.asked(content) and self.script == content["run"]["script"]


def resolve(runs: list[Run]) -> dict[Run, Plan]:
    """Asks the scripts, so that a flag that one of them does not know is found before anything runs. Of commands that
    come to the same run, in whatever words, the first stays."""
    asked = json.dumps([(run.algorithm, run.words) for run in runs])
    path = os.pathsep.join([str(ALGORITHMS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    answer = subprocess.run(
        [sys.executable, "-c", RESOLVE], input=asked, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    if len(answer) < len(runs):
        fail(f"Not a command of the script's: {runs[len(answer)]}")
    plans: dict[tuple[str, str], tuple[Run, Plan]] = {}
    for run, line in zip(runs, answer, strict=True):
        plan = Plan(*json.loads(line))
        plans.setdefault((run.algorithm, plan.digest()), (run._replace(digest=plan.digest()), plan))
    return dict(plans.values())


def fraction(run: Run, plan: Plan, contents: list[dict[str, Any]]) -> float:
    """How much of a run its JSON says is done; 1 only when every seed is finished."""
    done = dict.fromkeys(plan.arguments["seeds"], 0.0)
    for content in contents:
        if content["algorithm"] == run.algorithm and content["seed"] in done and plan.same(content):
            step = content["evaluations"][-1]["step"] if content["evaluations"] else 0
            done[content["seed"]] = 1.0 if content["finished"] else min(0.99, step / plan.steps)
    return min(done.values())


def start_over(run: Run, plan: Plan, contents: list[dict[str, Any]], out: Path) -> None:
    """Removes the checkpoint of a run whose script has changed since: the script would refuse to go on from it."""
    for content in contents:
        if content["algorithm"] == run.algorithm and plan.asked(content) and not plan.same(content):
            (out / content["path"]).with_name("checkpoint.msgpack").unlink(missing_ok=True)


class Speed(NamedTuple):
    """What a step took in a run of the past."""

    algorithm: str
    dataset: Any
    seeds: int
    seconds: float


def speeds(contents: list[dict[str, Any]]) -> list[Speed]:
    known = []
    for content in contents:
        arguments, last = content["arguments"], content["evaluations"][-1] if content["evaluations"] else {}
        if "wall_seconds" in last and last["step"]:  # an online script begins with an evaluation at step 0
            seconds = last["wall_seconds"] / last["step"]
            known.append(Speed(content["algorithm"], arguments.get("dataset"), len(arguments["seeds"]), seconds))
    return known


def seconds(run: Run, plan: Plan, known: list[Speed]) -> float:
    """What the whole run will take, from the most similar runs of the past; NaN without any."""
    known = [x for x in known if x.algorithm == run.algorithm]
    for alike in (
        lambda x: (x.dataset, x.seeds) == (plan.arguments.get("dataset"), len(plan.arguments["seeds"])),
        lambda x: x.seeds == len(plan.arguments["seeds"]),
        lambda x: True,
    ):
        if some := [x.seconds for x in known if alike(x)]:
            return plan.steps * float(np.median(some))
    return float("nan")


def duration(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "unknown"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "under 1 min"


# ------------------------------------------------------------------------------------------------------- engines
# An engine yields (event, run, detail): "started"; "done"; "crashed", to be started again; "failed", for good.

Event = tuple[Literal["started", "done", "crashed", "failed"], Run, str]


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        named = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return [name for name in named if name not in ("", "-1", "NoDevFiles")]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    return [str(i) for i in range(listed.count("GPU "))]


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def settings(slot: int, jobs: int, devices: list[str], cores: list[int]) -> tuple[dict[str, str], list[int]]:
    """Environment and cores of the run in place `slot` of `jobs`: its GPU and its share of that one's memory, or its
    cores and as many threads. JAX would else take three quarters of a GPU, and XLA all cores, for every run."""
    if devices:
        environment = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
        if jobs > len(devices):
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-jobs // len(devices)):.3f}"
        return environment, cores
    share = max(1, len(cores) // jobs)
    first = slot * share % len(cores)
    return threads(share), cores[first : first + share]


def threads(count: int) -> dict[str, str]:
    """What XLA (NPROC) and numpy size their threads by."""
    names = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(count))


def local(runs: list[Run], args: Args, jobs: int, devices: list[str]) -> Generator[Event]:
    """Processes on this machine, `jobs` at a time."""
    waiting, running, free, starts = deque(runs), {}, list(range(jobs)), defaultdict(int)
    try:
        while waiting or running:
            for run in list(waiting)[: len(waiting) if free else 0]:
                if free and (process := start(run, args.out, *settings(free[0], jobs, devices, cores()))):
                    waiting.remove(run)
                    running[run] = process, free.pop(0)
                    starts[run] += 1
                    yield "started", run, ""
            for run, (process, slot) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[run]
                free.append(slot)
                if code == 0:
                    yield "done", run, ""
                elif code != 2 and starts[run] <= args.retries:  # 2: its user is to do something about it
                    waiting.append(run)
                    yield "crashed", run, f"exit code {code}"
                else:
                    yield "failed", run, f"exit code {code}"
            time.sleep(0.2)
    finally:
        for stop in (signal.SIGINT, signal.SIGTERM) if running else ():  # once is enough
            signal.signal(stop, signal.SIG_IGN)
        for process, _ in running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10  # a chunk of training may last longer, but nothing is lost by a kill
        while time.monotonic() < deadline and any(process.poll() is None for process, _ in running.values()):
            time.sleep(0.1)
        for process, _ in running.values():
            process.kill()


def start(run: Run, out: Path, environment: dict[str, str], cores: list[int]) -> subprocess.Popen | None:
    """The script's process, in a session of its own, so that Ctrl-C reaches it through the sweep alone. None while
    another process runs it: the lock on the log is the child's too, and lasts as long as it lives."""
    command = [sys.executable, str(ALGORITHMS / f"{run.algorithm}.py"), *run.words, "--out", str(out)]
    path = run.log(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:  # storage that knows no locks
            print(f"{path} cannot be locked ({error}): start no second sweep of the same runs.", file=sys.stderr)
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    if hasattr(os, "sched_setaffinity"):  # not by a preexec_fn: its fork runs hooks, and a Ctrl-C in a hook is lost
        os.sched_setaffinity(process.pid, cores)
    return process


def cluster(args: Args) -> int:
    """Joins the Ray cluster; how many runs it takes at a time."""
    try:
        import ray
    except ModuleNotFoundError:
        fail("--engine ray needs Ray on every node: pip install ray.")
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except ConnectionError as error:
        fail(f"There is no Ray cluster ({str(error).splitlines()[0]}): start one with `ray start --head`.")
    has, wanted = ray.cluster_resources(), {"CPU": args.cpus_per_run, "GPU": args.gpus_per_run}
    return max(1, min(int(has.get(name, 0) / each) for name, each in wanted.items() if each))


def on_ray(runs: list[Run], args: Args, jobs: int) -> Generator[Event]:
    """Every run is a Ray task: Ray finds it a place and starts it again when its node is lost. The task brings the
    script to the node and the results back; data is found there as it would be here. The checkpoint stays in the node's
    temporary folder: with TMPDIR on storage that the nodes share, a run goes on elsewhere where it was."""
    import ray

    retries = args.retries

    def work(name: str, sources: dict[str, str], words: list[str], environment: dict[str, str], folder: str):
        """On the node: the exit code, the log, and the results by path. It is sent by value, and its arguments are of
        Python's own types, since this file is not there."""
        place = Path(tempfile.gettempdir(), f"solo-sweep-{os.getuid()}", name)
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "log", "ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # until a process that outlived its task is through
            for file, source in sources.items():
                (place / file).write_text(source)
            command = [sys.executable, str(place / next(iter(sources))), *words, "--out", str(place / "out")]
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            options |= {"env": os.environ | environment, "cwd": folder if Path(folder).is_dir() else place}
            for _ in range(1 + retries):
                process = subprocess.Popen(command, **options)
                try:
                    while (code := process.poll()) is None:  # an interruption does not end a wait()
                        time.sleep(0.1)
                finally:  # when the driver cancels; a kill loses nothing
                    process.kill()
                if code in (0, 2):
                    break
        results = [x for x in (place / "out").rglob("*.*") if x.is_file() and x.suffix not in (".msgpack", ".part")]
        there = {str(path.relative_to(place / "out")): path.read_bytes() for path in results}
        return code, (place / "log").read_bytes(), there

    folders = ("D4RL_DATASET_DIR", "MINARI_DATASETS_PATH", "OGBENCH_DATA_DIR")
    environment = {k: os.environ[k] for k in folders if k in os.environ} | threads(max(1, int(args.cpus_per_run)))
    if 0 < args.gpus_per_run < 1:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * args.gpus_per_run:.3f}"
    resources = {"num_cpus": args.cpus_per_run, "num_gpus": args.gpus_per_run, "max_retries": args.retries}
    task, tasks = ray.remote(**resources)(work), {}
    for run in runs:
        sources = {f"{name}.py": (ALGORITHMS / f"{name}.py").read_text() for name in (run.algorithm, "dataset")}
        name = f"{run.log(args.out).stem}-{hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:8]}"
        tasks[task.remote(name, sources, list(run.words), environment, os.getcwd())] = run
    queue = iter(runs)  # Ray does not say when a task starts: it takes them in this order, `jobs` at a time
    try:
        yield from (("started", run, "") for run in itertools.islice(queue, jobs))
        while tasks:
            for done in ray.wait(list(tasks), timeout=1)[0]:
                run = tasks.pop(done)
                try:
                    code, log, results = ray.get(done)
                    for name, content in {str(run.log(args.out).relative_to(args.out)): log, **results}.items():
                        path = args.out / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(content)
                    yield ("done", run, "") if code == 0 else ("failed", run, f"exit code {code}")
                except ray.exceptions.RayError as error:
                    yield "failed", run, str(error).splitlines()[0]
                yield from (("started", other, "") for other in itertools.islice(queue, 1))
    finally:
        for task in tasks:
            ray.cancel(task)
        if tasks:
            ray.wait(list(tasks), num_returns=len(tasks), timeout=10)


# ---------------------------------------------------------------------------------------------------------- main


def main(args: Args) -> int:
    if args.jobs < 0:
        fail(f"--jobs is {args.jobs}; it must be at least 1, or 0 for as many as there are GPUs or cores.")
    plans, contents = resolve(expand(read_grid(args))), tables.read(args.out)
    runs = part(list(plans), args.shard)
    known, devices = speeds(contents), gpus()
    jobs = cluster(args) if args.engine == "ray" else args.jobs or len(devices) or len(cores())
    before = {run: fraction(run, plans[run], contents) for run in runs}
    time_left = lambda run: seconds(run, plans[run], known) * (1 - before[run])
    left = {run: time_left(run) for run in runs if before[run] < 1}
    if args.dry_run:
        for run in runs:
            state = f"{before[run]:.0%} done, " * (before[run] > 0) + duration(left[run]) if run in left else "done"
            print(f"{state:>24}  {run}")
    where = "Ray" if args.engine == "ray" else f"{len(devices)} GPUs" if devices else f"{len(cores())} cores"
    print(f"{len(runs)} runs, {len(runs) - len(left)} done; {jobs} at a time on {where}; {ahead(left, {}, jobs)}")
    if args.dry_run or not left:
        return 0

    for run in left:
        start_over(run, plans[run], contents, args.out)
    began, failed = {}, {}
    for stop in (signal.SIGTERM, signal.SIGINT):  # a job's time limit is a Ctrl-C; a shell's & may have both ignored
        signal.signal(stop, signal.default_int_handler)
    events = on_ray(list(left), args, jobs) if args.engine == "ray" else local(list(left), args, jobs, devices)
    try:
        for event, run, detail in events:
            elapsed = time.monotonic() - began.pop(run) if run in began else 0
            if event == "started":
                began[run] = time.monotonic()
            elif event in ("done", "failed"):
                del left[run]
            if event == "failed":
                failed[run] = detail
            if event == "done" and elapsed:
                arguments, detail = plans[run].arguments, duration(elapsed)
                step = elapsed / (plans[run].steps * (1 - before[run]))
                known.append(Speed(run.algorithm, arguments.get("dataset"), len(arguments["seeds"]), step))
                left = {other: time_left(other) for other in left}
            counts = (
                f"{len(runs) - len(left) - len(failed)} of {len(runs)} done, {len(began)} running, {len(failed)} failed"
            )
            detail = f" ({detail})" if detail else ""
            print(f"[{counts}, {ahead(left, began, jobs)}] {event}: {run}{detail}", flush=True)
    except KeyboardInterrupt:
        events.close()
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    for run, detail in failed.items():
        path = run.log(args.out)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else ["(no log came back)"]
        end = "\n".join(f"  {line}" for line in lines[-12:])
        print(f"\nfailed: {run} ({detail}); {path} ends with\n{end}", file=sys.stderr)
    return int(bool(failed))


def ahead(left: dict[Run, float], began: dict[Run, float], jobs: int) -> str:
    """The time until all is done, in words."""
    rest = [max(0.0, x - (time.monotonic() - began[run] if run in began else 0)) for run, x in left.items()]
    total = sum(x for x in rest if np.isfinite(x)) / min(jobs, max(1, len(rest)))
    unknown = ", ".join(sorted({run.algorithm for run, x in left.items() if not np.isfinite(x)}))
    if not unknown:
        return f"{duration(total)} left"
    return f"{duration(total) if total else 'unknown time'} left without {unknown}: no run of the past"


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))))
