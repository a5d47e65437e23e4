"""Every update computes what the official implementation computed: losses, parameters and their changes, in float64.

The figures are read from SOLO_GOLDEN (default tests/golden): another file of the same format, with other sizes,
settings and batches, is checked by the same test. FORMATS says what the official names are called here.
"""

import dataclasses
import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(os.environ.get("SOLO_GOLDEN", Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))
SIZES = {"obs_dim", "act_dim", "batch_size", "n_updates"}  # seen in the arrays themselves


@dataclasses.dataclass(frozen=True)
class Format:
    script: str
    networks: dict[str, str]  # in the file -> in State
    noise: dict[str, str] = dataclasses.field(default_factory=dict)  # in the file -> in Noise
    hp: dict[str, str] = dataclasses.field(default_factory=dict)  # in the file -> in Args, where the names differ
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the script takes for granted
    args: dict[str, Any] = dataclasses.field(default_factory=dict)  # flags that choose the official variant
    tolerance: float = 1e-9  # relative


FORMATS = {
    "bc": Format("bc", {"actor": "actor"}, constants={"max_action": 1}),
    "td3_bc": Format(
        "td3_bc",
        {"actor": "actor", "critic": "critics", "target_actor": "target_actor", "target_critic": "target_critics"},
        noise={"target_policy_eps": "target_policy"},
        constants={"max_action": 1},
    ),
}


def arguments(module, form: Format, file: dict[str, np.ndarray]):
    """Args as the file's hp/ keys say; an unknown key fails."""
    fields = {field.name for field in dataclasses.fields(module.Args)}
    layers = {int(key.split("/")[2]) for key in file if key.startswith("init/actor/")}
    values = dict(form.args)
    for key in [key for key in file if key.startswith("hp/")]:
        name, value = form.hp.get(key[3:], key[3:]), file[key].item()
        if name == "hidden":
            values["hidden_dims"] = (value,) * (len(layers) - 1)
        elif name in form.constants:
            assert value == form.constants[name], f"{key} is {value}, which this script does not know"
        elif name in fields:
            values[name] = value
        else:
            assert name in SIZES, f"unknown hyper-parameter {key}"
    return module.Args(**values)


def network(file: dict[str, np.ndarray], prefix: str) -> dict:
    """The parameters below `prefix`, as flax lays them out, in float64."""
    layers: dict[str, dict] = {}
    for key in [key for key in file if key.startswith(prefix + "/") and not key.endswith("_f64")]:
        _, _, layer, part = key.split("/")
        exact = file.get(f"{key}_f64", file[key])
        layers.setdefault(f"Dense_{layer}", {})[part] = jnp.asarray(exact, jnp.float64)
    return {"params": layers}


def close(ours, theirs, tolerance: float, what: str) -> None:
    """Equal relative to the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == np.float64, what
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=what)
    scale = np.nanmax(np.abs(theirs)) if not np.isnan(theirs).all() else 1.0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=what)


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_update_equals_official(path, float64):
    file, form = dict(np.load(path, allow_pickle=False)), FORMATS[path.stem]
    module = importlib.import_module(form.script)
    args = arguments(module, form, file)
    batches = {key.split("/")[1]: value.astype(np.float64) for key, value in file.items() if key.startswith("batch/")}
    rows = SimpleNamespace(**{k: np.zeros((2, *v.shape[2:]), np.float32) for k, v in batches.items()})
    rows.keep, rows.episodes = np.ones(2, bool), np.array([[0, 2]])
    rows.terminals = np.array([False, True])

    state = module.init(args, module.prepare(args, rows), jax.random.key(0))
    state = jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    state = state._replace(**{ours: network(file, f"init/{theirs}") for theirs, ours in form.networks.items()})
    initial = state
    updates = len(batches["observations"])
    step = jax.jit(module.update, static_argnums=0)
    for i in range(updates):
        batch = module.Batch(*(jnp.asarray(batches[name][i]) for name in module.Batch._fields))
        noise = {o: jnp.asarray(file[f"noise/{t}"][i], jnp.float64) for t, o in form.noise.items()}
        state, metrics = step(args, state, batch, module.Noise(**noise), i)
        for key in [key for key in file if key.startswith("loss/") and f"{key}_f64" in file]:
            close(metrics[key[5:]], file[f"{key}_f64"][i], form.tolerance, f"{key} of update {i + 1}")
        for theirs, ours in form.networks.items():
            wanted = network(file, f"after{i + 1}/{theirs}")
            if not wanted["params"]:
                continue
            leaves = (jax.tree.leaves(tree) for tree in (getattr(state, ours), wanted, getattr(initial, ours)))
            for parameter, target, start in zip(*leaves, strict=True):
                what = f"{theirs} after update {i + 1}"
                close(parameter, target, form.tolerance, what)
                # A change that Adam bounds by the learning rate would drown in the parameter: hold it apart. The
                # difference of two float64 numbers near 1 is known to 1e-16, of a change of 1e-4 thus to 1e-12.
                close(parameter - start, target - start, max(form.tolerance, 1e-11), f"change of {what}")


def test_every_file_here_has_a_format():
    assert {path.stem for path in FILES} <= FORMATS.keys()
    assert FILES, f"no .npz in {FOLDER}"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "bc"], ids=lambda path: path.stem)
def test_best_episodes_equal_corl(path):
    import bc

    file = np.load(path, allow_pickle=False)
    rewards, ends, limit = file["filter/rewards"], file["filter/terminals"] == 1, int(file["filter/max_episode_steps"])
    for i, (fraction, discount) in enumerate(zip(file["filter/frac"], file["filter/discount"], strict=True)):
        rows = bc.best(rewards, ends, float(fraction), float(discount), limit)
        np.testing.assert_array_equal(rows, file[f"filter/order{i}"])
