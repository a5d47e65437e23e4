"""Measures mopo_agent.npz, combo_mix.npz and combo_model.npz from OfflineRL-Kit's own code, in float64.

    PYTHONPATH=<folder of torch> python tests/golden/measure_kit.py <OfflineRL-Kit at e3ce697>

Three updates of MOPOPolicy.learn and COMBOPolicy.learn on made-up rows. Every random number comes from the file: what
torch would draw is replaced by what stands under noise/, in the order of drawing. COMBO's values of a state's actions
are put beside each other before their soft maximum, as the code means to do: it throws its reshaped arrays away.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

ROWS, REAL, OBS, ACT, HIDDEN, UPDATES, N = 8, 3, 5, 3, 16, 3, 4
LRS = {"actor_lr": 1e-4, "critic_lr": 3e-4, "alpha_lr": 0.1}
# Name -> policy, hidden layers, log of alpha at the start, what else there is to set. MOPO's alpha is cut at 1.
FILES = {
    "mopo_agent": ("mopo", 2, 0.15, {}),
    "combo_mix": ("combo", 3, -0.3, {"cql_weight": 2.0, "rho_s": "mix"}),
    "combo_model": ("combo", 3, 0.4, {"cql_weight": 0.5, "rho_s": "model"}),
}


def package(name: str, path: Path | None = None, **contents) -> None:
    """A package whose own __init__ is not run: it would ask for environments."""
    sys.modules[name] = module = ModuleType(name)
    module.__path__ = [str(path)] if path else []
    vars(module).update(contents)


def load(root: Path) -> SimpleNamespace:
    package("gym", spaces=SimpleNamespace(Space=object))
    for part in ("", ".dynamics", ".modules", ".nets", ".policy"):
        package(f"offlinerlkit{part}", root / "offlinerlkit" / part.strip("."), BaseDynamics=object)
    policies = sys.modules["offlinerlkit.policy"]
    take = lambda name, kind: getattr(importlib.import_module(f"offlinerlkit.{name}"), kind)
    for name, kind in (("base_policy", "Base"), ("model_free.sac", "SAC"), ("model_free.cql", "CQL")):
        setattr(policies, f"{kind}Policy", take(f"policy.{name}", f"{kind}Policy"))
    return SimpleNamespace(
        mopo=take("policy.model_based.mopo", "MOPOPolicy"),
        combo=take("policy.model_based.combo", "COMBOPolicy"),
        mlp=take("nets.mlp", "MLP"),
        actor=take("modules.actor_module", "ActorProb"),
        critic=take("modules.critic_module", "Critic"),
        gaussian=take("modules.dist_module", "TanhDiagGaussian"),
    )


def layers(network) -> list:
    return [x for x in network.modules() if isinstance(x, torch.nn.Linear)]


def arrays(layer) -> dict[str, np.ndarray]:
    return {"kernel": layer.weight.detach().numpy().T.copy(), "bias": layer.bias.detach().numpy().copy()}


def snapshot(policy) -> dict[str, np.ndarray]:
    heads = {"mean": policy.actor.dist_net.mu, "log_std": policy.actor.dist_net.sigma}
    named = {f"trunk/{i}": x for i, x in enumerate(layers(policy.actor.backbone))} | heads
    file = {f"actor/{name}/{k}": v for name, x in named.items() for k, v in arrays(x).items()}
    for name, suffix in (("critic", ""), ("target_critic", "_old")):
        twins = [layers(getattr(policy, f"critic{i}{suffix}")) for i in (1, 2)]
        for i, pair in enumerate(zip(*twins, strict=True)):
            for k in ("kernel", "bias"):
                file[f"{name}/{i}/{k}"] = np.stack([arrays(x)[k] for x in pair])
    return file | {"log_alpha": policy._log_alpha.detach().numpy().copy()}


def measure(kit, name: str, depth: int, log_alpha: float, settings: dict, seed: int) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    rng, one, several = np.random.default_rng(seed), (UPDATES, ROWS, ACT), (UPDATES, N, ROWS, ACT)
    file = {
        "batch/observations": rng.normal(size=(UPDATES, ROWS, OBS)),
        "batch/actions": np.tanh(rng.normal(size=one)),
        "batch/rewards": rng.normal(size=(UPDATES, ROWS)),
        "batch/next_observations": rng.normal(size=(UPDATES, ROWS, OBS)),
        "batch/terminals": (rng.random((UPDATES, ROWS)) < 0.3).astype(float),
        "noise/action": rng.normal(size=one),
        "noise/next_action": rng.normal(size=one),
    }
    if name == "combo":
        file |= {f"noise/conservative_{x}": rng.normal(size=several) for x in ("action", "next_action")}
        file["noise/random_actions"] = rng.uniform(-1, 1, size=several)
    hidden = [HIDDEN] * depth
    actor = kit.actor(kit.mlp(OBS, hidden), kit.gaussian(HIDDEN, ACT, unbounded=True, conditioned_sigma=True))
    critics = [kit.critic(kit.mlp(OBS + ACT, hidden)) for _ in range(2)]
    adam, log_alpha = torch.optim.Adam, torch.full((1,), log_alpha, requires_grad=True)
    others = {}
    if name == "combo":
        space = SimpleNamespace(low=[-1.0], high=[1.0], shape=(ACT,))
        others = {"action_space": space, "with_lagrange": False, "num_repeart_actions": N} | settings
    policy = getattr(kit, name)(
        None,
        actor,
        *critics,
        adam(actor.parameters(), LRS["actor_lr"]),
        *(adam(critic.parameters(), LRS["critic_lr"]) for critic in critics),
        alpha=(-ACT, log_alpha, adam([log_alpha], LRS["alpha_lr"])),
        **others,
    )
    with torch.no_grad():
        for network in (actor, *critics, policy.critic1_old, policy.critic2_old):
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        if name == "mopo":  # as after any of its updates
            policy._alpha = policy._alpha.clamp(max=1.0)

    file |= {f"init/{k}": v for k, v in snapshot(policy).items()}
    losses: dict[str, list] = {}
    states = slice(REAL if settings.get("rho_s") == "model" else 0, ROWS)
    together, concatenate = lambda x: torch.as_tensor(x[:, states]).transpose(0, 1).reshape(-1, ACT), torch.cat
    for i in range(UPDATES):
        noise = {k[6:]: v[i] for k, v in file.items() if k.startswith("noise/")}
        normals = [torch.as_tensor(noise[x]) for x in ("next_action", "action")]
        if name == "combo":
            normals = [torch.as_tensor(noise[x]) for x in ("action", "next_action")]
            normals += [together(noise[f"conservative_{x}"]) for x in ("action", "next_action")]
        normal = lambda shape, *_, normals=normals, **__: normals.pop(0).reshape(shape)
        uniform = lambda self, *_, noise=noise: self.copy_(together(noise["random_actions"]))
        beside = lambda xs, dim=0: concatenate([x.reshape(-1, N, 1) for x in xs] if len(xs) == 3 else xs, dim)
        rows = {k[6:]: torch.as_tensor(v[i]) for k, v in file.items() if k.startswith("batch/")}
        rows |= {k: rows[k][:, None] for k in ("rewards", "terminals")}
        parts = {k: {x: y[s] for x, y in rows.items()} for k, s in (("real", slice(REAL)), ("fake", slice(REAL, ROWS)))}
        with (
            mock.patch("torch.distributions.normal._standard_normal", normal),
            mock.patch.object(torch.Tensor, "uniform_", uniform),
            mock.patch.object(torch, "FloatTensor", torch.DoubleTensor),
            mock.patch.object(torch, "float32", torch.float64),
            mock.patch.object(torch, "cat", beside),
        ):
            told = policy.learn(parts)
        assert not normals, "OfflineRL-Kit drew less than the file holds"
        told["loss/critic"] = told.pop("loss/critic1") + told.pop("loss/critic2")
        for k, v in told.items():
            losses.setdefault(f"loss/{k[5:]}_loss" if k.startswith("loss/") else f"loss/{k}", []).append(v)
        file |= {f"after{i + 1}/{k}": v for k, v in snapshot(policy).items() if i != 1}
    hp = LRS | {"gamma": 0.99, "tau": 0.005, "target_entropy": -ACT}
    hp |= {"real": REAL, "cql_weight": settings["cql_weight"], "n_actions": N} if name == "combo" else {}
    return file | losses | {f"hp/{k}": np.asarray(float(v)) for k, v in hp.items()}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    kit = load(Path(sys.argv[1]))
    for seed, (name, settings) in enumerate(FILES.items()):
        figures = measure(kit, *settings, seed)
        np.savez(Path(__file__).with_name(f"{name}.npz"), **figures)
        print(name, *(f"{k[5:]} {v}" for k, v in figures.items() if k.startswith("loss/")))
