"""How fast a script trains: steps a second beside the same matrix products alone, compile time, second start.

    taskset -c 0 python benchmarks/speed.py --script td3_bc      # -> results/speed/td3_bc-<threads>-threads.json

The script runs as a process, twice, with a compilation cache that is empty at first; its own JSON has the times. A
chunk is 1,000 steps of one seed on made-up data of HalfCheetah's shapes; the first of a run holds the compilation. The
products are those of TD3+BC's update, batch 256, two critics and an actor of 2 x 256, one after the other in one
program. On a shared machine the times scatter: only the ratio, taken in one go, means something.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
CHUNK, CHUNKS, ROWS, OBS, ACT, BATCH, WIDTH = 1000, 6, 100_000, 17, 6, 256, 256


def data(path: Path) -> None:
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(ROWS, OBS)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (ROWS, ACT)).astype(np.float32)
        file["rewards"], file["terminals"] = rng.normal(size=ROWS), np.zeros(ROWS, bool)
        file["timeouts"] = np.arange(ROWS) % 1000 == 999


def start(script: str, folder: Path, name: str) -> dict[str, float]:
    """One run of a script in a process of its own."""
    command = [sys.executable, str(ROOT / f"algorithms/{script}.py"), "--dataset", str(folder / "data.hdf5")]
    command += ["--env", "HalfCheetah-v5", "--steps", str(CHUNK * CHUNKS), "--eval-every", str(CHUNK)]
    command += ["--eval-episodes", "1", "--out", str(folder / name)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    [path] = (folder / name).rglob("seed_0.json")
    chunks = [x["train_seconds"] for x in json.loads(path.read_text())["evaluations"]]
    usual = float(np.median(chunks[1:]))
    return {"steps_per_second": CHUNK / usual, "compile_seconds": chunks[0] - usual, "process_seconds": seconds}


def products() -> float:
    """Updates a second if an update were nothing but its matrix products, forward and backward."""
    import jax
    import jax.numpy as jnp

    def network(inputs, outputs):  # of one forward pass: (rows, inner, columns)
        return [(BATCH, inputs, WIDTH), (BATCH, WIDTH, WIDTH), (BATCH, WIDTH, outputs)]

    actor, critic = network(OBS, ACT), network(OBS + ACT, 1)
    # A forward pass is one product a layer; a backward pass one for the weights and one for the inputs.
    target, update = actor + 2 * critic, 2 * 3 * critic
    delayed = 3 * actor + 2 * critic  # every second step; the critic only leads the gradient through
    shapes = 2 * (target + update) + delayed  # two steps
    operands = {shape: (jnp.ones(shape[:2]) / 16, jnp.ones(shape[1:]) / 16) for shape in set(shapes)}

    @jax.jit
    def run(operands):
        def step(carry, _):
            for shape in shapes:  # each depends on the one before, so that none is left out
                a, b = operands[shape]
                carry = carry + 1e-9 * ((a + carry) @ b)[0, 0]
            return carry, None

        return jax.lax.scan(step, 0.0, None, length=CHUNK // 2)[0]

    run(operands).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run(operands).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return CHUNK / float(np.median(seconds))


def main(script: str = "td3_bc", out: Path = ROOT / "results/speed") -> None:
    """Times `script` and writes a JSON to `out`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data(folder / "data.hdf5")
        bound = [products()]
        first, second = start(script, folder, "first"), start(script, folder, "second")
        bound.append(products())
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result = {
        "script": script,
        "cpu": cpu.partition("model name\t: ")[2].partition("\n")[0] or platform.processor(),
        "threads": threads,
        "first_start": first,
        "second_start": second,
        "products_per_second": bound,  # before and after the runs
        "share_of_the_products": max(first["steps_per_second"], second["steps_per_second"]) / max(bound),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{script}-{threads}-threads.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
