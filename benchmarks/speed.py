"""How fast the scripts are, how near that is to what the machine can do, and how much faster than a peer.

    taskset -c 0 python benchmarks/speed.py scripts --only td3_bc iql    # steps/s, compile time, memory, products alone
    taskset -c 0 python benchmarks/speed.py scaling                      # with seeds, rows, batch and ensemble
    taskset -c 0 python benchmarks/speed.py search                       # PRDC: the nearest neighbours' share of a step
    taskset -c 0 python benchmarks/speed.py parts                        # CQL: its gradient by parts of a batch
    taskset -c 0 python benchmarks/speed.py host                         # data that the host keeps and samples
    taskset -c 0 python benchmarks/speed.py peer --name corl --path CORL --python venv/bin/python    # in turn: A B A B
    taskset -c 0 python benchmarks/speed.py versions --before HEAD~1 --only dt      # in turn with an older commit
    python benchmarks/speed.py table                                     # results/tables/speed.md from all of these

Each writes JSON to results/speed, one file a measurement, with the machine's name in it. A script runs as a process of
its own on made-up data of HalfCheetah's shapes; what it writes about itself has the times. The unit is an update of one
seed (an environment step where a script only learns online), a chunk some seconds of them, a figure the median of the
chunks after the first, which holds the compilation; beside a peer, whose own is a mean, it is the mean. `scripts`
starts a script twice, the second time with a compilation cache that the first has filled; the table has the faster one.
A script with a model begins as many rollouts a step as by default, 50, all of them at the beginning of a chunk; one
that learns in the environment takes an update a step. On an accelerator, training overlaps with evaluation, whose
seconds are then what it takes longer. Memory is the process's, on an accelerator the device's. On a shared machine
times scatter: what was measured in one go, the share of the products and the ratio to a peer, means more than steps/s.
What was measured before its script last changed is marked (†) where the JSON has the script's hash. XLA's flags and
JAX's precision of products, where the environment sets them, part measurements.
"""

import collections
import functools
import hashlib
import importlib
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tables

ROOT = Path(__file__).parent.parent
OUT, TABLE = ROOT / "results/speed", ROOT / "results/tables/speed.md"
sys.path.insert(0, str(ROOT / "algorithms"))

MODELS = ("mopo", "morel", "combo", "ravl")  # roll out every so many updates
# What is not the default here: sizes that a peer is measured with, and phases that are left out.
FLAGS = {
    "sac_n": ["--num-critics", "10"],
    "edac": ["--num-critics", "10"],
    "spot": ["--vae-steps", "0"],  # the policy's updates
    "wsrl": ["--online-steps", "0"],  # the pre-training's
    "rlpd": ["--warmup", "100", "--utd", "1"],  # an update a step, as SAC
    "sac": ["--warmup", "100"],
    **dict.fromkeys(MODELS, ["--model-epochs", "1"]),
}
SHAPES = 17, 6  # HalfCheetah's observations and actions
ONLINE = ("sac", "rlpd")  # learn in the environment only
# PRDC's cost depends on the data, and random rows have no neighbours worth the name: `search` times it on real ones.
SCRIPTS = ("bc", "td3_bc", "awac", "iql", "xql", "rebrac", "fql", "dt", "a2pr", "spot", "cql", "cal_ql")
SCRIPTS += ("sac_n", "edac", "wsrl", "mopo", "morel", "combo", "ravl", *ONLINE)
arguments = lambda script: {} if script in ONLINE else {"online_steps": 0}  # which the hash depends on
current = lambda script: tables.fingerprint(str(ROOT / f"algorithms/{script}.py"), arguments(script))
CODES = {"corl": "CORL", "unifloral": "Unifloral", "jax-corl": "JAX-CORL", "fql": "FQL, its authors'"}
# Peers: the folder of a peer's scripts, and for each of ours its file, the flags that bring it nearest to the same
# work, and how many updates lie between its logs. What Unifloral calls an update of TD3+BC or ReBRAC are two of the
# critics.
TORCH = ["--device", "{device}"]
FQL = ["--agent={path}/agents/fql.py", "--env_name=singletask", "--eval_interval=0", "--log_interval=150"]
UNIFLORAL = ["--log", "--eval-final-episodes", "0", "--eval-interval"]
PEERS: dict[str, tuple[str, dict[str, tuple[str, list[str], int]]]] = {
    "corl": (
        "algorithms/offline",
        {
            "bc": ("any_percent_bc.py", TORCH, 1),
            "td3_bc": ("td3_bc.py", TORCH, 1),
            "awac": ("awac.py", TORCH, 1),
            "iql": ("iql.py", TORCH, 1),
            "cql": ("cql.py", TORCH, 1),
            "sac_n": ("sac_n.py", [*TORCH, "--num_critics", "10", "--log_every", "1"], 1),
            "edac": ("edac.py", [*TORCH, "--num_critics", "10", "--log_every", "1"], 1),
            "dt": ("dt.py", [*TORCH, "--batch_size", "64"], 1),
            "rebrac": ("rebrac.py", ["--num_updates_on_epoch", "100"], 100),
        },
    ),
    "unifloral": (
        "algorithms",
        {
            "bc": ("bc.py", [*UNIFLORAL, "4000"], 4000),
            "td3_bc": ("td3_bc.py", [*UNIFLORAL, "500"], 1000),
            "iql": ("iql.py", [*UNIFLORAL, "800"], 800),
            "rebrac": ("rebrac.py", [*UNIFLORAL, "50"], 100),
            "sac_n": ("sac_n.py", [*UNIFLORAL, "100"], 100),
            "edac": ("edac.py", [*UNIFLORAL, "50"], 50),
        },
    ),
    "jax-corl": (
        "algos",
        {
            "td3_bc": ("td3bc.py", ["log_interval=100"], 800),
            "iql": ("iql.py", ["log_interval=100", "layer_norm=False"], 800),
            "xql": ("xql.py", ["log_interval=100"], 800),
            "dt": ("dt.py", ["eval_interval=30", "num_eval_episodes=1", "max_eval_ep_len=1"], 30),
        },
    ),
    "fql": ("", {"fql": ("main.py", FQL, 150)}),
}


def machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = cpu.partition("model name\t: ")[2].partition("\n")[0] or platform.processor()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    import jax

    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else "CPU"
    chosen = [os.environ[x] for x in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION") if os.environ.get(x)]
    return {"cpu": name, "threads": threads, "device": kind} | ({"chosen": " ".join(chosen)} if chosen else {})


def write(kind: str, name: str, result: dict[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"kind": kind, "name": name, "machine": machine(), **result}
    device, threads = result["machine"]["device"], result["machine"]["threads"]
    place = f"{result['machine']['cpu']} {threads} threads" if device == "CPU" else device
    place = re.sub(r"\(R\)| Processor", "", place).replace(" ", "-")
    place += "".join(f"-{hashlib.sha256(x.encode()).hexdigest()[:6]}" for x in [result["machine"].get("chosen")] if x)
    (OUT / f"{kind}-{name}-{place}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


# ------------------------------------------------------------------------------------------ the script itself


def made_up(path: Path, rows: int = 100_000) -> Path:
    """Random transitions of HalfCheetah's shapes, in episodes of 1,000 steps."""
    import h5py

    obs, act = SHAPES
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(rows, obs)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, act)).astype(np.float32)
        file["rewards"], file["terminals"] = rng.normal(size=rows).astype(np.float32), np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 1000 == 999
    return path


def rollouts(script: str, interval: int) -> list[str]:
    """The flags with which a script with a model rolls out once in `interval` updates, as much as by default."""
    if script not in MODELS:
        return []
    args = importlib.import_module(script).Args()
    starts = interval * args.rollout_starts // args.rollout_interval
    return ["--rollout-interval", str(interval), "--rollout-starts", str(starts)]


# Linux lets a child's peak memory begin with its parent's: between this process and a script's stands a small one.
PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def start(
    script: str, data: Path, flags: list[str], chunk: int, chunks: int = 5, root: Path = ROOT
) -> dict[str, float]:
    """One run of a script, in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=data.parent))
    flags = [*flags, *rollouts(script, chunk)]
    length = ["--online-steps" if script == "rlpd" else "--steps", str(chunk * chunks)]
    command = [sys.executable, str(root / f"algorithms/{script}.py"), "--out", str(folder), *length, *flags]
    command += ["--env", "HalfCheetah-v5"] if script == "sac" else ["--dataset", str(data), "--env", "HalfCheetah-v5"]
    command += ["--eval-every", str(chunk), "--eval-episodes", "10"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(data.parent / "cache")}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # or this process would have left it nothing
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    seconds = time.perf_counter() - began
    content = json.loads(sorted(folder.rglob("seed_*.json"))[0].read_text())
    log = [x for x in content["evaluations"] if x["step"]]
    chunks = [x["train_seconds"] for x in log]
    evaluations = np.diff([0.0] + [x["wall_seconds"] for x in log]) - chunks
    usual = float(np.median(chunks[1:]))
    return {
        "steps_per_second": chunk / usual,
        "mean_steps_per_second": chunk / float(np.mean(chunks[1:])),
        "compile_seconds": chunks[0] - usual,
        "process_seconds": seconds,
        "evaluation_seconds": float(np.median(evaluations[1:])),
        "memory_mb": content.get("device_peak_bytes", int(done.stdout) * 1024) / 2**20,
    }


# ------------------------------------------------------------------------------------------ its matrix products


def products(jaxpr, times: int = 1) -> collections.Counter:
    """How often a program multiplies which shapes: {(left, right, dimension numbers): times}."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (x.aval.shape for x in equation.invars)
            found[left, right, equation.params["dimension_numbers"]] += times
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found.update(products(inner, times * length))
    return found


def operations(product) -> float:
    """Floating-point operations of one product."""
    left, right, ((inner, _), (batch, _)) = product
    size = lambda axes, shape: float(np.prod([shape[i] for i in axes], initial=1.0))
    return 2 * np.prod(left) * np.prod(right) / size(inner, left) / size(batch, left)


def of_an_update(script: str, data: Path, steps: Sequence[int] = range(1, 5), flags: Sequence[str] = ()) -> dict:
    """The products of an update, on average over `steps` (some networks learn every second step only)."""
    import jax
    import tyro

    module = importlib.import_module(script)
    loader = importlib.import_module("dataset")
    where = ["--env", "HalfCheetah-v5", "--out", str(data.parent / "models")]
    where += [] if script == "sac" else ["--dataset", str(data)]
    args = tyro.cli(module.Args, args=[*where, *FLAGS.get(script, []), *flags])
    given = SHAPES if script == "sac" else [loader.load(args.dataset, args.env)]
    prepared, key = module.prepare(args, *given), jax.random.key(0)
    state = jax.eval_shape(functools.partial(module.init, args), prepared, key)

    def update(step, data, state, key):
        data = data._replace(buffer=state.buffer) if script in ONLINE else data
        batch = module.sample(args, data, key)
        return module.update(args, state, batch, module.draw(args, batch, key), step)

    branch, found = jax.lax.cond, collections.Counter()
    try:  # the step is known: take the branch that it takes
        jax.lax.cond = lambda p, yes, no, *x: branch(p, yes, no, *x) if traced(p) else (yes if p else no)(*x)
        for step in steps:
            program = jax.make_jaxpr(functools.partial(update, step))(prepared, state, key)
            found.update(products(program.jaxpr))
    finally:
        jax.lax.cond = branch
    return {product: times / len(steps) for product, times in found.items()}


def traced(x) -> bool:
    import jax

    return isinstance(x, jax.core.Tracer)


def alone(products: dict[tuple, float], repeats: int = 0) -> float:
    """Seconds that an update would take if it were these products, one after another in one program; of `repeats`
    updates, or of as many as take a moment."""
    import jax
    import jax.numpy as jnp

    repeats = repeats or max(1, int(3e10 / sum(operations(x) * n for x, n in products.items())))
    counts = [(product, max(1, round(n * repeats))) for product, n in products.items()]
    draw = lambda shape: jnp.asarray(np.random.default_rng(0).normal(size=shape) / 16, jnp.float32)
    operands = {x: (draw(x[0]), draw(x[1])) for x, _ in counts}

    @jax.jit
    def run(operands):
        carry = jnp.zeros(())
        for product, count in counts:

            def once(_, carry, product=product):  # each depends on the one before, so that none is left out
                left, right = operands[product]
                return carry + 1e-9 * jax.lax.dot_general(left + carry, right, product[2]).ravel()[0]

            carry = jax.lax.fori_loop(0, count, once, carry)
        return carry

    run(operands).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run(operands).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) / repeats


def scripts(only: tuple[str, ...] = SCRIPTS) -> None:
    """Steps/s, compile time, second start, memory, and the share of the time that matrix products alone would take."""
    import jax

    with tempfile.TemporaryDirectory() as name:
        data = made_up(Path(name, "data.hdf5"))
        for script in only:
            result: dict[str, Any] = {"flags": FLAGS.get(script, []), "script": current(script)}
            found = of_an_update(script, data)
            work = sum(operations(x) * n for x, n in found.items())
            chunk = int(np.clip(1.5e11 / work, 6, 2000)) * (1 if jax.default_backend() == "cpu" else 10)
            repeats = 0
            if script in ONLINE:
                chunk = 1000  # of environment steps, an episode: what is cut off would be played to its end
            if script in MODELS:  # one of a chunk's updates is preceded by its rollouts
                once, repeats = of_an_update(script, data, [0], rollouts(script, chunk)), chunk
                found = {x: ((chunk - 1) * found.get(x, 0) + once.get(x, 0)) / chunk for x in found | once}
                work = sum(operations(x) * n for x, n in found.items())
            result |= {"gflop": work / 1e9, "products_seconds": [alone(found, repeats)]}
            result |= {"first_start": start(script, data, result["flags"], chunk)}
            result |= {"second_start": start(script, data, result["flags"], chunk)}
            result["products_seconds"].append(alone(found, repeats))
            best = max(result[x]["steps_per_second"] for x in ("first_start", "second_start"))
            result["share"] = min(result["products_seconds"]) * best
            write("script", script, result)
            shutil.rmtree(Path(name, "cache"), ignore_errors=True)


def scaling() -> None:
    """Seed-steps/s and memory with the number of seeds, rows, the batch and the ensemble."""
    import jax

    with tempfile.TemporaryDirectory() as name:
        for script, flag, values in (
            ("td3_bc", "seeds", (1, 2, 5, 10, 20)),
            ("td3_bc", "rows", (10_000, 100_000, 1_000_000, 4_000_000)),
            ("td3_bc", "batch-size", (64, 256, 1024, 4096)),
            ("sac_n", "num-critics", (2, 10, 50, 200)),
        ):
            points = {}
            for value in values:
                rows, seeds = value if flag == "rows" else 100_000, value if flag == "seeds" else 1
                data = made_up(Path(name, "data.hdf5"), rows)
                flags = {"rows": [], "seeds": ["--seeds", *map(str, range(value))]}.get(flag, [f"--{flag}", str(value)])
                chunk = {"batch-size": 40_000 // value, "num-critics": max(4, 200 // value), "seeds": 800 // value}
                faster = 1 if jax.default_backend() == "cpu" else 20
                point = start(script, data, flags, faster * chunk.get(flag, 500))
                points[value] = point | {"seed_steps_per_second": seeds * point["steps_per_second"]}
            write("scaling", f"{script}-{flag}", {"points": points})


def search(datasets: tuple[str, ...] = ("solo/hopper-v5/medium-expert-v0",)):
    """PRDC: how much of a training's time, from its first step on, goes to the search for nearest neighbours."""
    import jax
    import prdc

    loader, chunk, untimed = importlib.import_module("dataset"), 2000, prdc.search
    for dataset in datasets:
        args = prdc.tuned(dataset)
        data, spent = prdc.prepare(args, loader.load(dataset, None)), [0.0]

        def timed(*given, spent=spent):
            began = time.perf_counter()
            found = untimed(*given)
            spent[0] += time.perf_counter() - began
            return found

        prdc.search = timed
        keys = jax.random.split(jax.random.key(0), 1)
        state = jax.jit(jax.vmap(prdc.init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys)
        prdc.train.lower(args, data, state, keys, 0, chunk).compile()
        points = []
        for step in range(0, 8 * chunk, chunk):
            spent[0], began = 0.0, time.perf_counter()
            state, _ = jax.block_until_ready(prdc.train(args, data, state, keys, step, chunk))
            seconds = time.perf_counter() - began
            points.append({"step": step, "steps_per_second": chunk / seconds, "share": spent[0] / seconds})
        told = {"script": current("prdc"), "rows": len(data.rows.rewards), "points": points[1:]}
        write("search", dataset.replace("/", "-"), told)


def parts(sizes: tuple[int, ...] = (256, 64, 16, 4), rounds: int = 3, chunk: int = 20) -> None:
    """CQL: updates/s with the critics' gradient taken of so many states at a time; 256 are the whole batch."""
    import cql
    import jax

    with tempfile.TemporaryDirectory() as name:
        args = cql.Args(dataset=str(made_up(Path(name, "data.hdf5"))), env="HalfCheetah-v5")
        data = cql.prepare(args, importlib.import_module("dataset").load(args.dataset, args.env))
        keys = jax.random.split(jax.random.key(0), 1)
        state = jax.jit(jax.vmap(cql.init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys)
        programs = {}
        for size in sizes:
            jax.clear_caches()  # or the first trace would serve all
            cql.by_parts.__defaults__ = (size,)
            train = jax.jit(inspect.unwrap(cql.train), static_argnums=(0, 5))
            programs[size] = train.lower(args, data, state, keys, 0, chunk).compile()
        points = collections.defaultdict(list)
        for size in [*sizes] * rounds:
            began = time.perf_counter()
            jax.block_until_ready(programs[size](data, state, keys, 0))
            points[size].append(chunk / (time.perf_counter() - began))
        write("parts", "cql", {"points": points})


def host(seeds: tuple[int, ...] = (1, 10), rows: int = 1_000_000, rounds: int = 3, chunk: int = 1000) -> None:
    """TD3+BC: seconds that the host takes to sample for an update, and updates/s with data that it keeps in turn with
    data on the device; on a CPU that is the same memory, and the sampling takes its time from the training."""
    import jax
    import td3_bc

    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    with tempfile.TemporaryDirectory() as name:
        data = made_up(Path(name, "data.hdf5"), rows)
        dataset = importlib.import_module("dataset").load(str(data), "HalfCheetah-v5")
        args, points = td3_bc.Args(dataset=str(data), env="HalfCheetah-v5"), {}
        here = td3_bc.prepare(args, dataset)
        there = jax.device_put(here, cpu)
        for count in seeds:
            keys = jax.random.split(jax.random.key(0), count)
            state = jax.jit(jax.vmap(td3_bc.init, in_axes=(None, None, 0)), static_argnums=0)(args, here, keys)
            state, times, host_keys = (
                jax.device_put(state, device),
                collections.defaultdict(list),
                jax.device_put(keys, cpu),
            )
            for _ in range(rounds + 1):  # the first one compiles
                for learn, where in ((td3_bc.train, here), (td3_bc.train_from_host, there)):
                    began = time.perf_counter()
                    state, _ = jax.block_until_ready(learn(args, where, state, keys, 0, chunk))
                    times[learn.__name__].append(chunk / (time.perf_counter() - began))
                began = time.perf_counter()
                jax.block_until_ready(td3_bc.batches(args, there, host_keys, 0, 100))
                times["sampling_seconds"].append((time.perf_counter() - began) / 100)
            points[count] = {key: value[1:] for key, value in times.items()}
        write("host", "td3_bc", {"script": current("td3_bc"), "rows": rows, "points": points})


def peer(
    name: Literal["corl", "unifloral", "jax-corl", "fql"],
    path: Path,
    python: Path,
    only: tuple[str, ...] = (),
    rounds: int = 3,
    seconds: float = 12,
) -> None:
    """A peer's scripts, those of a copy of its repository at `path`, in turn with ours: A B A B. `python` has what they
    need, besides numpy, h5py and gymnasium (corl-team/CORL: torch, pyrallis, tqdm; its ReBRAC jax 0.4.25, flax, optax,
    chex instead of torch; EmptyJackson/unifloral: jax, flax, optax, distrax, tyro; nissymori/JAX-CORL: jax, flax,
    optax, distrax, omegaconf, pydantic, tqdm; seohongpark/fql: its requirements but ogbench); benchmarks/peers stands
    in for d4rl, gym, ogbench and wandb."""
    import jax

    path, python = path.absolute(), python.absolute()  # they run in a folder of their own
    commit = subprocess.run(["git", "-C", path, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    tell = "import importlib.metadata as m; print(*(f'{x.name} {x.version}' for x in m.distributions() if x.name in "
    tell += "('torch', 'jax')))"
    versions = subprocess.run([python, "-c", tell], check=True, capture_output=True, text=True)
    its = {"commit": commit.stdout.strip(), "versions": versions.stdout.strip()}
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    where, files = PEERS[name]
    with tempfile.TemporaryDirectory() as folder:
        data = made_up(Path(folder, "data.hdf5"))
        for script in only or files:
            file, flags, unit = files[script]
            environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks/peers"), "SPEED_DATA": str(data)}
            environment |= {"SPEED_SECONDS": str(seconds), "SPEED_UNIT": str(unit)}
            environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # or this process would have left it nothing
            work = sum(operations(x) * n for x, n in of_an_update(script, data).items())
            chunk = int(np.clip(3e11 / work, 10, 4000))
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(start(script, data, FLAGS.get(script, []), chunk)["mean_steps_per_second"])
                command = [str(python), str(path / where / file), *(x.format(path=path, device=device) for x in flags)]
                done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
                if "updates a second: " not in done.stdout:
                    sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
                theirs.append(float(done.stdout.split("updates a second: ")[1].split()[0]))
            result = {"flags": flags, "script": current(script), "ours": ours, "theirs": theirs}
            write("peer", f"{name}-{script}", its | result)


def versions(before: str, only: tuple[str, ...], seeds: int = 1, rounds: int = 3) -> None:
    """Scripts as they stood at commit `before` in turn with those of today: A B A B."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", before], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as name:
        data, root = made_up(Path(name, "data.hdf5")), Path(name, "before")
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(root), before], check=True)
        try:
            for script in only:
                work = sum(operations(x) * n for x, n in of_an_update(script, data).items())
                chunk = max(6, int(np.clip(2e11 / work, 6, 4000)) // seeds)
                flags = [*FLAGS.get(script, []), "--seeds", *map(str, range(seeds))]
                pairs = [[start(script, data, flags, chunk, root=x) for x in (ROOT, root)] for _ in range(rounds)]
                ours, theirs = ([seeds * x["steps_per_second"] for x in side] for side in zip(*pairs, strict=True))
                result = {"before": commit.stdout.strip(), "seeds": seeds, "ours": ours, "theirs": theirs}
                write("version", f"{script}-{seeds}-{commit.stdout.strip()}", result)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(root)], check=True)


# ------------------------------------------------------------------------------------------ the table


def read(kind: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(OUT.glob(f"{kind}-*.json"))]


def place(x: dict[str, Any]) -> str:
    cpu, threads, device = (x["machine"][key] for key in ("cpu", "threads", "device"))
    chosen = f", {x['machine']['chosen']}" if "chosen" in x["machine"] else ""
    return (f"{cpu}, {threads} thread{'s' * (threads > 1)}" if device == "CPU" else device) + chosen


def figure(x: float) -> str:
    """Three digits, and all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return tables.pipes([head, *rows]) + "\n"


IN_TURN = "in turn, A B A B; the interval is that of the mean log ratio (95 %, t)."


def ratio(x: dict[str, Any]) -> np.ndarray:
    """Of ours to theirs: the lower end of its interval, itself, the upper end."""
    from scipy import stats

    ratios = np.log(np.divide(x["ours"], x["theirs"]))
    half = stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(ddof=1) / len(ratios) ** 0.5
    return np.exp(ratios.mean() + half * np.array([-1, 0, 1]))


def in_turn(x: dict[str, Any]) -> list[str]:
    """Means of both sides, and the ratio with its interval."""
    low, middle, high = ratio(x)
    return [*(figure(np.mean(x[side])) for side in ("ours", "theirs")), f"{middle:.2f} [{low:.2f}, {high:.2f}]"]


def plot(path: Path) -> None:
    """How many times a peer's updates/s ours makes, and how ours scale, on the machine of most measurements."""
    import plots

    [(most, _)] = collections.Counter(place(x) for x in read("peer")).most_common(1)
    canvas, (left, right) = plots.plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    found = sorted((x for x in read("peer") if place(x) == most), key=lambda x: ratio(x)[1])
    codes = sorted({x["name"].rpartition("-")[0] for x in found})
    for i, x in enumerate(found):
        code, _, script = x["name"].rpartition("-")
        look = {"color": plots.COLOURS[codes.index(code)], "marker": plots.MARKERS[codes.index(code)]}
        low, middle, high = ratio(x)
        left.plot([low, high], [i, i], color=look["color"])
        left.plot(middle, i, linestyle="", label=CODES[code], **look)
    left.axvline(1, color="grey", linewidth=0.8)
    left.set(xscale="log", xlabel="updates/s, ours over the peer's, 95 % interval", title=most)
    left.set_yticks(range(len(found)), [x["name"].rpartition("-")[2] for x in found])
    ticks = (0.5, 1, 2, 3, 5, 8)
    left.set_xticks(ticks, [f"{x:g}" for x in ticks])
    left.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    left.legend(once.values(), once.keys())
    for i, x in enumerate(x for x in read("scaling") if place(x) == most):
        points = {int(value): y["seed_steps_per_second"] for value, y in x["points"].items()}
        script, _, flag = x["name"].partition("-")
        look = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
        right.plot([*points], [*points.values()], label=f"{script}: {flag.replace('-', ' ')}", **look)
    right.set(xscale="log", yscale="log", xlabel="value of the flag", ylabel="updates/s of all seeds", title="Scaling")
    if read("scaling"):
        right.legend()
    plots.save(canvas, path)


def table() -> None:
    """Writes results/tables/speed.md."""
    text = "# Speed\n\nMade by `python benchmarks/speed.py table`, whose docstring says what was timed.\n\n"
    text += "## Every script\n\nOne seed. Products: the same matrix products alone, as a share of the time that a step "
    text += (
        "takes; above 100 % the compiler has joined or left out some; empty where they were not yet counted. †: the "
    )
    text += "script was edited after this measurement, or it is older than the hash that tells.\n\n"
    rows = []
    fastest = lambda x: max(x[start]["steps_per_second"] for start in ("first_start", "second_start"))
    for x in sorted(read("script"), key=lambda x: (place(x), -fastest(x))):
        first, second, speed = x["first_start"], x["second_start"], fastest(x)
        stale = " †" * (x.get("script") != current(x["name"]))
        row = [f"{x['name']} {' '.join(x['flags'])}".strip() + stale, place(x), figure(speed)]
        row += [f"{x['gflop']:.2f}", f"{x['gflop'] * speed:.0f}", f"{x['share']:.0%}"] if "gflop" in x else [""] * 3
        row += [f"{y['compile_seconds']:.1f}" if y["compile_seconds"] > 0 else "" for y in (first, second)]
        rows.append([*row, f"{second['process_seconds']:.0f}", f"{second['evaluation_seconds']:.1f}"])
        rows[-1].append(f"{second['memory_mb']:,.0f}")
    head = "script; on; steps/s; GFLOP a step; GFLOP/s; products; compiles, s; second start, s; process, s"
    text += markdown(f"{head}; evaluation of ten episodes, s; memory, MB".split("; "), rows)

    if read("peer"):
        plot(TABLE.parent.parent / "figures/speed")
        text += f"## Beside peers\n\n![ratios and scaling](../figures/speed.png)\n\nUpdates/s {IN_TURN}"
        text += " With: its commit and library; empty where they were not yet recorded.\n\n"
        rows = []
        for x in read("peer"):
            code, _, script = x["name"].rpartition("-")
            stale = " †" * (x.get("script") != current(script))
            its = " ".join([CODES[code], x.get("commit", "")]).strip()
            rows.append([script + stale, its, x.get("versions", ""), place(x), *in_turn(x)])
        text += markdown(["script", "peer", "with", "on", "ours", "its", "ratio"], sorted(rows))

    if read("version"):
        text += f"## Beside itself, before a change\n\nSeed-steps/s {IN_TURN}\n\n"
        rows = [[x["name"].split("-")[0], x["before"], str(x["seeds"]), place(x), *in_turn(x)] for x in read("version")]
        text += markdown(["script", "before", "seeds", "on", "now", "then", "ratio"], rows)

    if read("scaling"):
        text += "## Scaling\n\n"
        rows = [
            [x["name"], place(x), f"{int(value):,}", figure(y["seed_steps_per_second"]), f"{y['memory_mb']:,.0f}"]
            for x in read("scaling")
            for value, y in x["points"].items()
        ]
        text += markdown(["script and flag", "on", "value", "seed-steps/s", "memory, MB"], rows)

    if read("search"):
        text += "## PRDC's search\n\nThe share of the time that the search takes, and steps/s, from a step on.\n\n"
        found = read("search")
        steps = [y["step"] for y in found[0]["points"]]
        rows = [
            [
                x["name"] + " †" * (x.get("script") != current("prdc")),
                place(x),
                f"{x['rows']:,}",
                *(f"{y['share']:.0%}, {y['steps_per_second']:.0f}/s" for y in x["points"]),
            ]
            for x in found
        ]
        text += markdown(["dataset", "on", "rows", *(f"step {step:,}" for step in steps)], rows)

    for x in read("host"):
        stale = " †" * (x.get("script") != current("td3_bc"))
        text += (
            f"## Data that the host keeps\n\nTD3+BC{stale}, {x['rows']:,} rows ({place(x)}). Medians of updates/s of "
        )
        text += "every seed, and of what sampling takes for an update of all.\n\n"
        middle = lambda y, key: float(np.median(y[key]))
        rows = [
            [value, figure(middle(y, "train")), figure(middle(y, "train_from_host"))]
            + [f"{1e6 * middle(y, 'sampling_seconds'):.0f}"]
            for value, y in x["points"].items()
        ]
        text += markdown(["seeds", "on the device", "with the host", "sampling alone, us"], rows)

    for x in read("parts"):
        text += f"## CQL's gradient by parts\n\nUpdates/s with so many states at a time ({place(x)}); medians.\n\n"
        text += markdown([*x["points"]], [[figure(float(np.median(y))) for y in x["points"].values()]])
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    import tyro

    commands = {f.__name__: f for f in (scripts, scaling, search, parts, host, peer, versions, table)}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    if sys.argv[1] != "table":
        table()
