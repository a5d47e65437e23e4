"""What the tests share: the scripts, a tiny dataset, and how a script is run as a user would."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ALGORITHMS = ROOT / "algorithms"
sys.path.insert(0, str(ALGORITHMS))
sys.path.insert(0, str(ROOT / "benchmarks"))
# Most of the tests' time is compiling, of programs that then run for moments: here and in the processes.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"  # Minari's store: without a network it is asked for half a minute
SCRIPTS = sorted(path.stem for path in ALGORITHMS.glob("*.py") if path.stem != "dataset")
OFFLINE = [name for name in SCRIPTS if hasattr(importlib.import_module(name).Args, "dataset")]
ONLINE = [name for name in OFFLINE if hasattr(importlib.import_module(name).Args, "online_steps")]
# Short enough for a test, long enough for two evaluations.
SHORT = ("--steps", "40", "--eval-every", "20", "--eval-episodes", "2", "--batch-size", "16")
# Of a model that learns next to nothing; Pendulum's episodes end only by time.
MODEL = {"hidden_dims": (8, 8), "termination": "never", "model_members": 3, "model_elites": 2, "model_epochs": 2}
MODEL |= {"model_hidden_dims": (8, 8), "rollout_starts": 16, "rollout_length": 2, "rollout_interval": 10}
SIZES = {  # of small networks, where more than hidden_dims makes them so
    "a2pr": {"hidden_dims": (8, 8), "critic_hidden_dims": (8, 8), "vae_hidden_dims": (8, 8)},
    "dt": {"embedding_dim": 8, "num_layers": 1, "seq_len": 4},
    "combo": MODEL | {"real_ratio": 0.5, "n_actions": 2},
    "morel": MODEL | {"real_ratio": 0.25, "num_critics": 3},
    "mopo": MODEL | {"real_ratio": 0.25},
    "ravl": MODEL | {"real_ratio": 0.25, "num_critics": 3},
    "rlpd": {"hidden_dims": (8, 8), "num_critics": 3, "utd": 2, "steps": 20, "online_steps": 20, "warmup": 10},
    "spot": {"hidden_dims": (8, 8), "vae_hidden_dims": (8, 8), "vae_steps": 4},
    "wsrl": {"hidden_dims": (8, 8), "num_critics": 3, "n_actions": 2, "utd": 2}
    | {"steps": 20, "online_steps": 20, "warmup": 10},
}

CONDS = {"spot": 3}  # branches in an update that waits for something, where it is not the only one


def sizes(name: str) -> dict:
    """Arguments that make the networks of script `name` small."""
    return SIZES.get(name, {"hidden_dims": (8, 8)})


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    """No test touches the user's own folders; the processes of a session share their compiled programs."""
    home = tmp_path_factory.mktemp("home")
    for name in ("D4RL_DATASET_DIR", "MINARI_DATASETS_PATH", "OGBENCH_DATA_DIR"):
        os.environ[name] = str(home / name.lower())
    session = tmp_path_factory.getbasetemp()
    session = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session  # of all workers
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(session / "programs")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Compiled programs are dropped after a module: thousands of them exhaust a process's memory mappings."""
    yield
    jax.clear_caches()


def write_hdf5(path: Path, **replaced) -> Path:
    """Ten episodes of Pendulum-v1's shapes in D4RL's layout, five ended by a terminal; None leaves an array out."""
    rng, rows = np.random.default_rng(0), 200
    arrays = {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-2, 2, size=(rows, 1)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.arange(rows) % 40 == 19,
        "timeouts": np.arange(rows) % 40 == 39,
    } | replaced
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    return path


@pytest.fixture(scope="session")
def pendulum(tmp_path_factory) -> Path:
    return write_hdf5(tmp_path_factory.mktemp("data") / "pendulum.hdf5")


def command(name: str, pendulum: Path, out: Path, *flags: str) -> list[str]:
    """The command line of a short run of script `name`."""
    data = ("--dataset", str(pendulum)) if name in OFFLINE else ("--warmup", "10")
    script = str(ALGORITHMS / f"{name}.py")
    small = [x for k, v in sizes(name).items() for x in (f"--{k.replace('_', '-')}", *map(str, np.atleast_1d(v)))]
    return [sys.executable, script, *data, "--env", "Pendulum-v1", "--out", str(out), *SHORT, *small, *flags]


def where_all_learn_at_once(monkeypatch, module, name: str, static: int | tuple[int, ...]):
    """Function `name` of a script, compiled as it is on an accelerator, over all seeds at once. Of functions that were
    traced before, JAX would remember the programs, which have the seeds in turn."""
    asked = []
    monkeypatch.setattr(module, "each_seed", lambda function: asked.append(function) or jax.vmap(function))

    def anew(*given):
        out = getattr(module, name).__wrapped__(*given)
        assert asked, "a program of seeds in turn was remembered"
        return out

    jax.clear_caches()
    return jax.jit(anew, static_argnums=static)


def run(arguments: list[str], **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=900, **kwargs)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Checks that a script answers a command line with one sentence that holds `words`, exit code 2 and no traceback.
    In this process, for to start another takes longer."""

    def refused(arguments: list[str], *words: str) -> None:
        script = importlib.import_module(Path(arguments[1]).stem)
        monkeypatch.setattr(sys, "argv", arguments[1:])
        with pytest.raises(SystemExit) as ended:
            takes = inspect.signature(script.main).parameters
            script.main(*[script.interact for _ in takes if script.__name__ in ONLINE])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in said
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and lines[0].endswith((".", "…")), said
        for word in words:
            assert word in lines[0], lines[0]

    return refused
