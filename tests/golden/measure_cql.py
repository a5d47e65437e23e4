"""Measures cql_antmaze.npz and cql_unweighted.npz from CORL's own code, in float64; cql.npz came with the project.

    PYTHONPATH=<folder of torch> python tests/golden/measure_cql.py <CORL at eeeeef2>/algorithms/offline/cql.py

Three updates of ContinuousCQL.train on made-up rows. Every random number comes from the file: what torch would draw is
replaced by what stands under noise/, in the order of drawing.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

ROWS, OBS, ACT, HIDDEN, UPDATES, N = 8, 5, 3, 16, 3, 4
DEFAULTS = {
    "discount": 0.99,
    "alpha_multiplier": 1.0,
    "use_automatic_entropy_tuning": True,
    "backup_entropy": False,
    "policy_lr": 1e-4,
    "qf_lr": 3e-4,
    "soft_target_update_rate": 5e-3,
    "target_update_period": 1,
    "cql_n_actions": N,
    "cql_importance_sample": True,
    "cql_lagrange": False,
    "cql_target_action_gap": -1.0,
    "cql_temp": 1.0,
    "cql_alpha": 5.0,
    "cql_max_target_backup": False,
    "cql_clip_diff_min": -np.inf,
    "cql_clip_diff_max": np.inf,
}
# Name -> hidden layers of each critic, what departs from the above. The bounds cut some gaps and not others.
FILES = {
    "cql_antmaze": (
        (5, 3),
        {"cql_lagrange": True, "cql_target_action_gap": 0.8, "cql_max_target_backup": True, "cql_clip_diff_min": 4.3},
    ),
    "cql_unweighted": (
        (3, 3),
        {"cql_importance_sample": False, "use_automatic_entropy_tuning": False, "backup_entropy": True}
        | {"alpha_multiplier": 0.4, "target_update_period": 2, "cql_temp": 0.7, "cql_clip_diff_max": 2.0},
    ),
}


def load(path: str) -> ModuleType:
    """CORL's classes with another width, which is written into them; what only runs environments is left out."""
    for name in ("d4rl", "gym", "wandb", "pyrallis"):
        sys.modules[name] = SimpleNamespace(Env=object, wrap=lambda: lambda function: function)
    module = sys.modules["corl"] = ModuleType("corl")
    exec(Path(path).read_text().replace("256", str(HIDDEN)), vars(module))
    return module


def parameters(sequence, depth: int) -> dict[str, np.ndarray]:
    """kernel and bias of every layer; zeros for hidden layers that this network lacks and its twin has."""
    layers = [layer for layer in sequence if hasattr(layer, "weight")]
    arrays = {}
    for i in range(depth + 1):
        missing = len(layers) - 1 <= i < depth
        layer = layers[-1] if i == depth else layers[min(i, len(layers) - 2)]
        kernel, bias = (x.detach().numpy().copy() for x in (layer.weight.T, layer.bias))
        arrays |= {f"{i}/kernel": 0 * kernel if missing else kernel, f"{i}/bias": 0 * bias if missing else bias}
    return arrays


def snapshot(trainer, depth: int) -> dict[str, np.ndarray]:
    arrays = {f"actor/{k}": v for k, v in parameters(trainer.actor.base_network, 3).items()}
    for name in ("log_std_multiplier", "log_std_offset"):
        arrays[f"actor/{name}"] = getattr(trainer.actor, name).constant.detach().numpy().copy()
    for name in ("critic", "target_critic"):
        twins = [parameters(getattr(trainer, f"{name}_{i}").network, depth) for i in (1, 2)]
        arrays |= {f"{name}/{key}": np.stack([twin[key] for twin in twins]) for key in twins[0]}
    for name in ("log_alpha", "log_alpha_prime"):
        scalar = getattr(trainer, name)
        arrays[name] = np.zeros(()) if scalar is None else scalar.constant.detach().numpy().copy()
    return arrays


def measure(corl, depths: tuple[int, int], settings: dict, seed: int) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    rng, several = np.random.default_rng(seed), (UPDATES, ROWS, N, ACT)
    one = (UPDATES, ROWS, ACT)
    file = {
        "batch/observations": rng.normal(size=(UPDATES, ROWS, OBS)),
        "batch/actions": np.tanh(rng.normal(size=one)),
        "batch/rewards": rng.normal(size=(UPDATES, ROWS)),
        "batch/next_observations": rng.normal(size=(UPDATES, ROWS, OBS)),
        "batch/terminals": (rng.random((UPDATES, ROWS)) < 0.3).astype(float),
        "noise/eps_policy": rng.normal(size=one),
        "noise/eps_next": rng.normal(size=several if settings["cql_max_target_backup"] else one),
        "noise/random_actions": rng.uniform(-1, 1, size=several),
        "noise/eps_cql_current": rng.normal(size=several),
        "noise/eps_cql_next": rng.normal(size=several),
    }
    critics = [corl.FullyConnectedQFunction(OBS, ACT, True, depth).double() for depth in depths]
    actor = corl.TanhGaussianPolicy(OBS, ACT, 1.0, orthogonal_init=True).double()
    with torch.no_grad():
        for network in (actor, *critics):
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    adam = torch.optim.Adam
    trainer = corl.ContinuousCQL(
        critics[0],
        adam(critics[0].parameters(), settings["qf_lr"]),
        critics[1],
        adam(critics[1].parameters(), settings["qf_lr"]),
        actor,
        adam(actor.parameters(), settings["policy_lr"]),
        target_entropy=-ACT,
        bc_steps=0,
        **settings,
    )
    with torch.no_grad():
        for scalar in (trainer.log_alpha, trainer.log_alpha_prime):
            if scalar is not None:
                scalar.double()
        for target in (trainer.target_critic_1, trainer.target_critic_2):
            for parameter in target.parameters():
                parameter += 0.3 * torch.randn_like(parameter)

    tensor = lambda name, i: torch.as_tensor(file[name][i])
    file |= {f"init/{k}": v for k, v in snapshot(trainer, max(depths)).items()}
    losses: dict[str, list] = {}
    for i in range(UPDATES):
        normals = [tensor(f"noise/eps_{x}", i) for x in ("cql_next", "cql_current", "next", "policy")]
        normal = lambda shape, normals=normals, **_: normals.pop().reshape(shape)
        uniform = lambda self, *_, i=i: self.copy_(tensor("noise/random_actions", i))
        rows = [
            tensor(f"batch/{x}", i) for x in ("observations", "actions", "rewards", "next_observations", "terminals")
        ]
        rows[2], rows[4] = rows[2][:, None], rows[4][:, None]
        with (
            mock.patch("torch.distributions.normal._standard_normal", normal),
            mock.patch.object(torch.Tensor, "uniform_", uniform),
        ):
            for name, value in trainer.train(rows).items():
                losses.setdefault(f"loss/{name}", []).append(float(value))
        assert not normals, "CORL drew less than the file holds"
        file |= {f"after{i + 1}/{k}": v for k, v in snapshot(trainer, max(depths)).items() if i != 1}
    sizes = {"obs_dim": OBS, "act_dim": ACT, "hidden": HIDDEN, "policy_n_hidden_layers": 3, "batch_size": ROWS}
    sizes |= {"q_n_hidden_layers": depths[0], "target_entropy": -ACT, "log_std_min": -20, "log_std_max": 2}
    hp = settings | sizes | {"max_action": 1, "n_updates": UPDATES}
    return file | losses | {f"hp/{k}": np.asarray(float(v)) for k, v in hp.items()}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    corl = load(sys.argv[1])
    for seed, (name, (depths, changes)) in enumerate(FILES.items()):
        figures = measure(corl, depths, DEFAULTS | changes, seed)
        np.savez(Path(__file__).with_name(f"{name}.npz"), **figures)
        print(name, *(f"{k[5:]} {v}" for k, v in figures.items() if k.startswith("loss/cql_qf")))
