"""Every update computes what the official implementation computed: losses, parameters and their changes, in float64.

The figures are read from SOLO_GOLDEN (default tests/golden): another file of the same format, with other sizes,
settings and batches, is checked by the same test. FORMATS says what the official names are called here. `make parity`
writes the largest error of every script to results/parity.json (SOLO_PARITY names the file).
"""

import dataclasses
import functools
import importlib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(os.environ.get("SOLO_GOLDEN", Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))
PARTS = {"dynamics", "mopo", "combo_mix", "combo_model"}  # figures that have tests of their own below
# Seen in the arrays themselves.
SIZES = {"hidden", "obs_dim", "act_dim", "action_dim", "batch_size", "n_updates"}
SIZES |= {
    "vae_hidden",
    "actor_n_hiddens",
    "critic_n_hiddens",
    "actor_fc_scale",
    "policy_n_hidden_layers",
    "q_n_hidden_layers",
}


@dataclasses.dataclass(frozen=True)
class Format:
    script: str
    networks: dict[str, str]  # in the file ("": it has no other) -> in State
    noise: dict[str, str] = dataclasses.field(default_factory=dict)  # in the file -> in Noise
    hp: dict[str, str] = dataclasses.field(default_factory=dict)  # in the file -> in Args (several: "a b"), if renamed
    depths: dict[str, str] = dataclasses.field(default_factory=dict)  # in Args -> the network of that depth, if several
    choices: dict[str, tuple] = dataclasses.field(default_factory=dict)  # in Args -> what the file's 0, 1, ... mean
    batch: dict[str, str] = dataclasses.field(default_factory=dict)  # in the file -> in Batch, if renamed
    # In the file -> in metrics (of several with one name the mean); None: nowhere.
    losses: dict[str, str | None] = dataclasses.field(default_factory=dict)
    unreported: float = np.nan  # what the file has for a loss where the official code reports none
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the script takes for granted
    args: dict[str, Any] = dataclasses.field(default_factory=dict)  # flags that choose the official variant
    shared_head: bool = False  # the hidden layers of a network are a part of their own, beside an output layer for all
    slices: bool = False  # a batch is taken apart into [utd, rows, ...]
    absent: tuple[str, ...] = ()  # of Batch, which the file lacks since no loss depends on it
    entropy: float = 1.0  # the target entropy is minus this for every dimension of an action
    online: tuple[str, ...] = ()  # in the file: whether its updates are online ones, and how many came before
    tolerance: float = 1e-9  # relative


TD3 = {"actor": "actor", "critic": "critics", "target_actor": "target_actor", "target_critic": "target_critics"}
IQL = {"actor": "actor", "critic": "critics", "target_critic": "target_critics", "value": "value"}
FQL_IQL_HP = {"lr": "actor_lr critic_lr value_lr", "const_std": "policy"}
FQL_IQL_LOSSES = {
    "value/value_loss": "value_loss",
    "value/v_mean": "v",
    "critic/critic_loss": "critic_loss",
    "critic/q_mean": "q_target",
    "actor/actor_loss": "actor_loss",
    "actor/bc_log_prob": "log_pi",
} | dict.fromkeys(
    ("value/v_max", "value/v_min", "critic/q_max", "critic/q_min", "grad/max", "grad/min", "grad/norm")
    + ("actor/mse", "actor/std")
)
SAC_N = Format(
    "sac_n",
    {"actor": "actor", "critic": "critics", "target_critic": "target_critics", "log_alpha": "log_alpha"},
    noise={"eps_alpha": "alpha_policy", "eps_actor": "policy", "eps_next": "next_policy"},
    hp={
        "gamma": "discount",
        "actor_learning_rate": "actor_lr",
        "critic_learning_rate": "critic_lr",
        "alpha_learning_rate": "alpha_lr",
    },
    depths={"hidden_dims": "critic"},  # the actor's two heads stand beside each other
    losses={"batch_entropy": "entropy", "q_policy_std": "q_std", "q_random_std": None},  # the last for the log
    constants={"log_std_min": -5, "log_std_max": 2, "max_action": 1},
)
CQL = Format(
    "cql",
    {
        "actor": "actor",
        "critic": "critics",
        "target_critic": "target_critics",
        "log_alpha": "log_alpha",
        "log_alpha_prime": "log_alpha_prime",
    },
    noise={
        "eps_policy": "policy",
        "eps_next": "next_policy",
        "random_actions": "uniform",
        "eps_cql_current": "gap_policy",
        "eps_cql_next": "gap_next_policy",
    },
    hp={
        "policy_lr": "actor_lr",
        "qf_lr": "critic_lr",
        "soft_target_update_rate": "tau",
        "target_update_period": "target_period",
        "use_automatic_entropy_tuning": "tune_alpha",
        "cql_n_actions": "n_actions",
        "cql_importance_sample": "importance_sampling",
        "cql_lagrange": "lagrange",
        "cql_target_action_gap": "target_gap",
        "cql_temp": "temperature",
        "cql_max_target_backup": "max_target_backup",
        "cql_clip_diff_min": "gap_min",
        "cql_clip_diff_max": "gap_max",
    },
    depths={"hidden_dims": "actor", "critic_hidden_dims": "critic"},
    losses={"policy_loss": "actor_loss", "average_target_q": "next_v"}
    | {f"qf{i}_loss": "td_loss" for i in (1, 2)}
    | {f"cql_min_qf{i}_loss": "cql_loss" for i in (1, 2)}
    | {f"cql_qf{i}_diff": "gap" for i in (1, 2)}
    | {f"average_qf{i}": "q" for i in (1, 2)}
    | {f"cql_q{i}_rand": "q_uniform" for i in (1, 2)}
    | {f"cql_q{i}_current_actions": "q_policy" for i in (1, 2)}
    | {f"cql_q{i}_next_actions": "q_next_policy" for i in (1, 2)}
    | {f"cql_std_q{i}": None for i in (1, 2)},  # for the log
    constants={"log_std_min": -20, "log_std_max": 2, "max_action": 1},
)
WSRL = Format(
    "wsrl",
    {"actor": "actor", "critic": "critics", "target_critic": "target_critics", "temperature": "temperature"},
    noise={
        "next_action": "next_policy",
        "subsample": "target_subset",
        "actor_action": "policy",
        "temp_action": "temperature_policy",
    },
    hp={"N": "num_critics", "M": "subset", "max_target_backup": "online_max_target_backup"},
    depths={"hidden_dims": "actor/trunk", "critic_hidden_dims": "critic/trunk"},
    losses={
        "critic/critic_loss": "critic_loss",
        "critic/predicted_qs": "q",
        "critic/target_qs": "q_target",
        "actor/actor_loss": "actor_loss",
        "actor/entropy": "entropy",
        "actor/temperature": "temperature",
        "temperature/temperature_loss": "temperature_loss",
    }
    | dict.fromkeys(("actor/actions_mse", "actor/actor_nll")),
    shared_head=True,
    slices=True,
    absent=("mc_returns",),
)
WSRL_PRETRAIN = dataclasses.replace(
    WSRL,
    networks=WSRL.networks | {"cql_alpha_lagrange": "multiplier"},
    noise=WSRL.noise
    | {
        "subsample_target": "target_subset",
        "cql_uniform": "uniform",
        "cql_current": "gap_policy",
        "cql_next": "gap_next_policy",
        "subsample_cql": "gap_subset",
        "alpha_cql_uniform": "multiplier_uniform",
        "alpha_cql_current": "multiplier_policy",
        "alpha_cql_next": "multiplier_next_policy",
        "alpha_subsample_cql": "multiplier_subset",
    },
    hp={
        "N": "num_critics",
        "M": "subset",
        "cql_n_actions": "n_actions",
        "importance_sample": "importance_sampling",
        "autotune_alpha": "lagrange",
        "target_action_gap": "target_gap",
        "cql_temp": "cql_temperature",
        "use_calql": "calibrated",
        "cql_alpha_lr": "multiplier_lr",
    },
    losses=WSRL.losses
    | {
        "critic/td_loss": "td_loss",
        "critic/cql_loss": "cql_loss",
        "critic/cql_alpha": "cql_alpha",
        "critic/cql_diff": "gap",
        "critic/cql_ood_values": "soft_maximum",
        "cql_alpha_lagrange/cql_alpha_loss": "multiplier_loss",
        "cql_alpha_lagrange/cql_alpha_lagrange_multiplier": "cql_alpha",
        "critic/calql_bound_rate": None,  # which the official code counts in float32
    },
    slices=False,
)
FORMATS = {
    "awac": Format(
        "awac",
        {"actor": "actor", "critic": "critics", "target_critic": "target_critics"},
        noise={"eps_next": "next_policy", "eps_policy": "policy"},
        hp={"gamma": "discount", "awac_lambda": "temperature", "learning_rate": "lr"},
        constants={"exp_adv_max": 100, "log_std_min": -20, "log_std_max": 2, "max_action": 1},
    ),
    "bc": Format("bc", {"actor": "actor"}, constants={"max_action": 1}),
    "dt": Format(
        "dt",
        {"": "actor"},
        hp={"learning_rate": "lr"},
        batch={"states": "observations"},
        losses={"train_loss": "actor_loss"} | dict.fromkeys(("lr_used", "learning_rate_next")),  # seen in what changes
        constants={"max_action": 1, "ln_eps": 1e-5, "adam_b1": 0.9, "adam_b2": 0.999, "adam_eps": 1e-8},
        tolerance=1e-8,
    ),
    "td3_bc": Format(
        "td3_bc",
        TD3,
        noise={"target_policy_eps": "target_policy"},
        constants={"max_action": 1},
    ),
    "prdc": Format(
        "prdc",
        TD3,
        noise={"target_action": "target_policy"},
        losses={"combined_loss": "actor_loss", "actor_loss": None, "Q_value": "q_policy", "lmbda": "lambda"},
        unreported=0,
        absent=("index",),
        constants={"max_action": 1},
        args={"normalize": False},
    ),
    "a2pr": Format(
        "a2pr",
        TD3 | {"value": "value", "vae": "vae"},
        noise={"target_action": "target_policy", "vae": "vae", "actor_vae": "guide"},
        depths={"hidden_dims": "actor", "critic_hidden_dims": "critic", "vae_hidden_dims": "vae/decoder"},
        losses={
            "KL_loss": "kl_loss",
            "combined_loss": "actor_loss",
            "actor_loss": None,  # a part of the combined one
            "Q_value": "q_policy",
            "lmbda": "lambda",
            "target_Q": "q_target",
            "targ_Q": None,  # of the value's target, before the minimum
        },
        unreported=0,
        constants={"max_action": 1},
    ),
    "fql": Format(
        "fql",
        {
            "actor_onestep_flow": "actor",
            "actor_bc_flow": "flow",
            "critic": "critics",
            "target_critic": "target_critics",
        },
        noise={"next_action": "next_policy", "x0": "x0", "t": "t", "onestep": "policy"},
        hp={"q_agg_min": "q_agg"},
        choices={"q_agg": ("mean", "min")},
        losses={
            "critic/critic_loss": "critic_loss",
            "critic/q_mean": "q",
            "actor/bc_flow_loss": "flow_loss",
            "actor/distill_loss": "distill_loss",
            "actor/q_loss": "q_loss",
            "actor/q": "q_policy",
        }
        | dict.fromkeys(("critic/q_max", "critic/q_min", "grad/max", "grad/min", "grad/norm"))
        | dict.fromkeys(("actor/actor_loss", "actor/mse")),  # a sum of the above, and what is drawn for the log only
        constants={"ln_eps": 1e-6, "adam_eps": 1e-8},
    ),
    "rebrac": Format(
        "rebrac",
        TD3,
        noise={"target_policy_eps": "target_policy"},
        hp={
            "actor_learning_rate": "actor_lr",
            "critic_learning_rate": "critic_lr",
            "gamma": "discount",
            "actor_bc_coef": "beta_actor",
            "critic_bc_coef": "beta_critic",
            "actor_ln": "actor_layer_norm",
            "critic_ln": "layer_norm",
        },
        depths={"hidden_dims": "actor", "critic_hidden_dims": "critic"},
        losses={"bc_mse_policy": "bc_loss"} | dict.fromkeys(("q_min", "action_mse", "bc_mse_random")),  # for the log
        constants={"max_action": 1, "num_critics": 2, "ln_eps": 1e-6},
        args={"variant": "corl"},
    ),
    "fql_rebrac": Format(
        "rebrac",
        TD3,
        noise={"target_policy": "target_policy"},
        hp={
            "lr": "actor_lr critic_lr",
            "alpha_actor": "beta_actor",
            "alpha_critic": "beta_critic",
            "actor_freq": "policy_freq",
            "actor_noise": "policy_noise",
            "actor_noise_clip": "noise_clip",
        },
        depths={"hidden_dims": "actor", "critic_hidden_dims": "critic"},
        losses={
            "critic/critic_loss": "critic_loss",
            "critic/q_mean": "q",
            "actor/total_loss": "actor_loss",
            "actor/mse": "bc_loss",
        }
        | dict.fromkeys(("critic/q_max", "critic/q_min", "grad/max", "grad/min", "grad/norm"))
        | dict.fromkeys(("actor/actor_loss", "actor/bc_loss", "actor/std")),  # parts of the total; a constant
        constants={"tanh_squash": 1, "ln_eps": 1e-6, "adam_eps": 1e-8},
        args={"variant": "fql"},
    ),
    "sac_n": SAC_N,
    "edac": dataclasses.replace(SAC_N, script="edac", losses=SAC_N.losses | {"diag_diversity": "diversity_loss"}),
    "mopo_agent": Format(  # measured by golden/measure_kit.py
        "mopo",
        {"actor": "actor", "critic": "critics", "target_critic": "target_critics", "log_alpha": "log_alpha"},
        noise={"action": "policy", "next_action": "next_policy"},
        hp={"gamma": "discount"},
        depths={"hidden_dims": "critic"},
        losses={"alpha_loss": None},  # seen in what it changes
        args={"real_ratio": 1.0},  # the file's rows are a whole batch
    ),
    "ravl": dataclasses.replace(
        SAC_N,
        script="ravl",
        noise={"alpha_action": "alpha_policy", "actor_action": "policy", "next_action": "next_policy"},
        losses=SAC_N.losses | {"q_policy_mean": "q_policy"},
        args={"real_ratio": 1.0},  # the file's rows are a whole batch
    ),
    "rlpd": Format(
        "rlpd",
        {"actor": "actor", "critic": "critics", "target_critic": "target_critics", "log_temp": "log_alpha"},
        noise={"next_action": "next_policy", "subsample": "subset", "actor_action": "policy"},
        hp={"N": "num_critics", "M": "subset_size", "temp_lr": "alpha_lr"},
        depths={"hidden_dims": "critic/trunk"},
        losses={"temperature": "alpha", "temperature_loss": "alpha_loss"},
        entropy=0.5,
    ),
    "wsrl": WSRL,
    "wsrl_antmaze": dataclasses.replace(WSRL, args={"free_std": True}),
    "wsrl_pretrain": dataclasses.replace(WSRL_PRETRAIN, args={"free_std": True}),
    "wsrl_pretrain_fixed": WSRL_PRETRAIN,
    "cql": CQL,
    "cql_antmaze": dataclasses.replace(CQL, args={"second_critic_layers": 3}),  # these two: golden/measure_cql.py
    "cql_unweighted": CQL,
    "cal_ql": dataclasses.replace(
        CQL,
        script="cal_ql",
        losses=CQL.losses
        | {f"bound_rate_cql_q{i}_{kind}_actions": "bound_rate" for i in (1, 2) for kind in ("current", "next")},
    ),
    "spot": Format(
        "spot",
        TD3 | {"vae_encoder": "encoder", "vae_decoder": "decoder"},
        noise={"vae_eps": "vae", "target_policy_eps": "target_policy", "elbo_eps": "penalty"},
        hp={"discount": "discount online_discount", "max_online_steps": "online_steps"},
        depths={"hidden_dims": "actor", "vae_hidden_dims": "vae_decoder"},
        losses={"neg_log_beta_mean": "nll", "neg_log_beta_max": "nll_max", "lambd": "lambda"}
        | dict.fromkeys(
            ("vae_loss", "vae_reconstruction_loss", "vae_KL_loss")
        ),  # of other updates: a test of their own
        constants={"log_std_min": -4, "log_std_max": 15, "max_action": 1},
        args={"vae_steps": 0, "actor_dropout": 0.0, "buffer_size": 1},
        online=("is_online", "online_it_start"),
    ),
    "iql": Format(
        "iql",
        IQL,
        hp={"iql_tau": "expectile", "max_timesteps": "steps", "vf_lr": "value_lr", "qf_lr": "critic_lr"},
        losses={"q_loss": "critic_loss"}
        | dict.fromkeys(("actor_lr_used", "diag_adv_positive", "diag_weight_clipped")),  # they explain the figures
        constants={"exp_adv_max": 100, "log_std_min": -20, "log_std_max": 2, "max_action": 1},
    ),
    "iql_official": Format(
        "iql",
        IQL,
        hp={"temperature": "beta", "max_steps": "steps"},
        losses={"adv_mean": "advantage", "q1": None, "q2": None},  # their mean is a metric
        constants={"weight_clip": 100, "log_std_min": -5, "log_std_max": 2},
        args={"variant": "authors"},
    ),
    "fql_iql": Format(
        "iql",
        IQL,
        hp=FQL_IQL_HP | {"alpha": "beta"},
        choices={"policy": ("gaussian", "unit")},
        losses=FQL_IQL_LOSSES | {"actor/adv": "advantage"},
        constants={"actor_loss_ddpgbc": 0, "ln_eps": 1e-6, "adam_eps": 1e-8},
        args={"variant": "fql", "cosine": False},
    ),
    "fql_iql_ddpgbc": Format(
        "iql",
        IQL,
        noise={"actor_action": "policy"},
        hp=FQL_IQL_HP | {"alpha": "ddpgbc"},
        choices={"policy": ("gaussian", "unit")},
        losses=FQL_IQL_LOSSES
        | {"actor/q_mean": "q_policy"}
        | dict.fromkeys(("actor/q_loss", "actor/bc_loss", "actor/q_abs_mean")),  # parts of actor_loss
        constants={"actor_loss_ddpgbc": 1, "ln_eps": 1e-6, "adam_eps": 1e-8},
        args={"variant": "fql", "cosine": False},
    ),
    "xql": Format(
        "xql",
        IQL,
        noise={"action_noise_eps": "actions", "random_actions": "random_actions"},
        hp={
            "temperature": "beta",
            "loss_temp": "temperature",
            "layernorm": "layer_norm",
            "sample_random_times": "random_actions",
            "num_v_updates": "value_updates",
            "max_steps": "steps",
        },
        losses={"adv_mean": "advantage", "q1": None, "q2": None},  # their mean is a metric
        constants={"double": 1, "grad_pen": 0, "lambda_gp": 1, "huber_delta": 20, "weight_clip": 100}
        | {"log_std_min": -5, "log_std_max": 2, "ln_eps": 1e-6},
    ),
}


# The code that a file was measured from, at which commit.
SOURCES = {
    **dict.fromkeys(("awac", "bc", "cal_ql", "cql", "cql_antmaze", "cql_unweighted", "dt", "edac"), "CORL eeeeef2"),
    **dict.fromkeys(("iql", "rebrac", "sac_n", "spot", "td3_bc"), "CORL eeeeef2"),
    **dict.fromkeys(("fql", "fql_iql", "fql_iql_ddpgbc", "fql_rebrac"), "FQL 719d044"),
    **dict.fromkeys(("wsrl", "wsrl_antmaze", "wsrl_pretrain", "wsrl_pretrain_fixed"), "zhouzypaul/wsrl 891ee35"),
    "a2pr": "ltlhuuu/A2PR f92a2a4",
    "mopo_agent": "OfflineRL-Kit e3ce697",
    **dict.fromkeys(("combo_mix", "combo_model"), "OfflineRL-Kit e3ce697, its reshape mended"),
    "iql_official": "ikostrikov/implicit_q_learning 09d7002",
    "prdc": "LAMDA-RL/PRDC 9f38464",
    "ravl": "anyasims/edge-of-reach 18b5085",
    "rlpd": "ikostrikov/rlpd c90fd4b",
    "xql": "Div99/XQL dff09af",
}


def arguments(module, form: Format, file: dict[str, np.ndarray]):
    """Args as the file's hp/ keys say; an unknown key fails."""
    fields = {field.name: type(field.default) for field in dataclasses.fields(module.Args)}
    fields = {name: kind if kind is not type(None) else lambda x: x for name, kind in fields.items()}  # as it is
    values = dict(form.args)
    widths = form.depths or {"hidden_dims": next(iter(form.networks))}
    for dims, part in widths.items() if "hidden_dims" in fields else ():
        layers = [x for x in file if x.startswith(f"init/{part}/") and x.endswith("/kernel")]
        hidden = sorted(layers) if part.endswith("/trunk") else sorted(layers)[:-1]  # a trunk has no output layer
        values[dims] = tuple(file[layer].shape[-1] for layer in hidden)
    for key in [key for key in file if key.startswith("hp/")]:
        name, value = form.hp.get(key[3:], key[3:]), file[key].item()
        if name in form.constants:
            assert value == form.constants[name], f"{key} is {value}, which this script does not know"
        elif name == "target_entropy" and name not in fields:
            dimensions = file["batch/actions"].shape[-1]
            assert value == -form.entropy * dimensions, f"{form.script}.py aims at another entropy"
        elif name in form.choices:
            values[name] = form.choices[name][int(value)]
        elif fields.keys() >= set(name.split()):
            values |= {part: fields[part](value) for part in name.split()}
        else:
            assert name in SIZES or name in form.online, f"unknown hyper-parameter {key}"
    if "num_critics" in fields and "num_critics" not in values:  # then it is seen in the arrays
        values["num_critics"] = len(file["init/critic/0/kernel"])
    return module.Args(**values)


def numbered(form: Format, file: dict[str, np.ndarray], args):
    """Args and the number of the file's first update. Online updates are counted on from the offline ones, of which
    there are then as many as leave the delayed updates where the file has them."""
    if not form.online:
        return args, 0
    online, before = (file[f"hp/{name}"].item() for name in form.online)
    assert online or not before, "no online update comes before an offline one"
    args = dataclasses.replace(args, steps=-before % args.policy_freq) if online else args
    return args, args.steps + before if online else 0


def network(file: dict[str, np.ndarray], prefix: str, shared_head: bool = False) -> dict | jax.Array:
    """The parameters below `prefix`, as flax lays them out, in float64; or the one that `prefix` names."""
    if prefix in file:
        return jnp.asarray(file.get(f"{prefix}_f64", file[prefix]), jnp.float64).squeeze()  # PyTorch's alpha is [1]
    params: dict[str, Any] = {}
    for key in dict.fromkeys(key.removesuffix("_f64") for key in file if key.startswith(prefix + "/")):
        path = key.removeprefix(prefix + "/")
        *path, part = (path if shared_head else path.removeprefix("trunk/")).split("/")
        exact = jnp.asarray(file.get(f"{key}_f64", file.get(key)), jnp.float64)
        if not path:  # a vector beside the layers: log_std, which some call log_stds
            params[part.removesuffix("s")] = exact
            continue
        if path[-1].isdigit():
            path[-1] = f"{'LayerNorm' if part.startswith('ln_') else 'Dense'}_{path[-1]}"
        layer = functools.reduce(lambda place, name: place.setdefault(name, {}), path, params)
        layer[part.removeprefix("ln_")] = exact
    return {"params": params}


def data_of(file: dict[str, np.ndarray], batches: dict[str, np.ndarray]) -> SimpleNamespace:
    """The dataset that the file holds, or one episode of two rows of the sizes of its batches."""
    held = {k.partition("/")[2]: value for k, value in file.items() if k.startswith(("data/", "dataset/"))}
    size = len(held.get("observations", range(2)))
    rows = {k: np.zeros((size, *v.shape[2:]), np.float32) for k, v in batches.items()}
    rows |= {"terminals": np.arange(size) == size - 1, "timeouts": np.zeros(size)} | held
    rows |= {name: rows[name] > 0 for name in ("terminals", "timeouts")}
    stops = np.flatnonzero(np.append((rows["terminals"] | rows["timeouts"])[:-1], True)) + 1
    episodes = np.stack([np.append(0, stops[:-1]), stops], 1)
    return SimpleNamespace(**rows, keep=np.ones(size, bool), episodes=episodes)


def exact(x):
    """Numbers with a point in float64, others as they are."""
    return jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)


def close(ours, theirs, tolerance: float, what: str) -> float:
    """Equal relative to the largest entry; the error."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == np.float64, what
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=what)
    scale = np.nanmax(np.abs(theirs)) if not np.isnan(theirs).all() else 1.0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=what)
    return 0.0 if np.isnan(theirs).all() or not scale else float(np.nanmax(np.abs(ours - theirs)) / scale)


def record(script: str, name: str, errors: list[float]) -> None:
    """Keeps the largest error of the script beside the code that file `name` was measured from."""
    if "SOLO_PARITY" not in os.environ:
        return
    path = Path(os.environ["SOLO_PARITY"])
    content = json.loads(path.read_text()) if path.exists() else {}
    known = content.setdefault(script, {})
    known[SOURCES[name]] = max(*errors, known.get(SOURCES[name], 0.0))
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in PARTS], ids=lambda path: path.stem)
def test_update_equals_official(path, float64):
    file, form = dict(np.load(path, allow_pickle=False)), FORMATS[path.stem]
    module = importlib.import_module(form.script)
    args, first = numbered(form, file, arguments(module, form, file))
    batches = {key[6:]: value for key, value in file.items() if key.startswith("batch/")}
    batches = {form.batch.get(name, name): exact(value) for name, value in batches.items()}
    data = module.prepare(args, data_of(file, batches))
    state = jax.tree.map(exact, module.init(args, data, jax.random.key(0)))
    read = lambda moment, name: network(file, f"{moment}/{name}".rstrip("/"), form.shared_head)
    held = {o: read("init", t) for t, o in form.networks.items()}
    state = state._replace(**{k: v for k, v in held.items() if not isinstance(v, dict) or v["params"]})
    initial, errors = state, []
    updates = len(batches["observations"])
    step = jax.jit(module.update, static_argnums=0)
    for i in range(updates):
        given = {name: jnp.zeros(batches["rewards"].shape, int) for name in form.absent} | batches
        batch = module.Batch(
            *(jnp.asarray(given[x][i]) if x in given else getattr(data, x) for x in module.Batch._fields)
        )
        if form.slices:
            batch = jax.tree.map(lambda x: x.reshape(args.utd, -1, *x.shape[1:]), batch)
        drawn = {o: file[f"noise/{t}"][i] for t, o in form.noise.items() if f"noise/{t}" in file}
        kinds = jax.eval_shape(functools.partial(module.draw, args), batch, jax.random.key(0))
        noise = {o: jnp.asarray(x[0] if len(x) == 1 else x, getattr(kinds, o).dtype) for o, x in drawn.items()}
        state, metrics = step(args, state, batch, type(kinds)(**noise), first + i)
        wanted: dict[str, list] = {}
        for key in [key for key in file if key.startswith("loss/") and not key.endswith("_f64")]:
            figure = file.get(f"{key}_f64", file[key])[i]
            if (metric := form.losses.get(key[5:], key[5:])) and np.any(figure != form.unreported):
                wanted.setdefault(metric, []).append(figure)
        for metric, values in wanted.items():
            computed = metrics.get(metric, np.zeros(()))  # what is switched off counts 0 there, and is no metric here
            errors.append(close(computed, np.mean(values, axis=0), form.tolerance, f"{metric} of update {i + 1}"))
        for theirs, ours in form.networks.items():
            wanted = read(f"after{i + 1}", theirs)
            if isinstance(wanted, dict) and not wanted["params"]:
                continue
            leaves = (jax.tree.leaves(tree) for tree in (getattr(state, ours), wanted, getattr(initial, ours)))
            for parameter, target, start in zip(*leaves, strict=True):
                what = f"{theirs} after update {i + 1}"
                errors.append(close(parameter, target, form.tolerance, what))
                # A change that Adam bounds by the learning rate would drown in the parameter: hold it apart. The
                # difference of two float64 numbers near 1 is known to 1e-16, of a change of 1e-4 thus to 1e-12.
                close(parameter - start, target - start, max(form.tolerance, 1e-11), f"change of {what}")
    networks = {key.split("/")[1].removesuffix("_f64") for key in file if re.match(r"after\d+/", key)}
    assert networks <= form.networks.keys() or "" in form.networks, "one is not compared"
    record(form.script, path.stem, errors)


def test_every_file_here_has_a_format():
    there = {path.stem for path in FILES}
    assert there <= FORMATS.keys() | PARTS and FORMATS.keys() <= SOURCES.keys()
    assert there == FORMATS.keys() | PARTS or "SOLO_GOLDEN" in os.environ, f"a file is missing in {FOLDER}"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "bc"], ids=lambda path: path.stem)
def test_best_episodes_equal_corl(path):
    import bc

    file = np.load(path, allow_pickle=False)
    rewards, ends, limit = file["filter/rewards"], file["filter/terminals"] == 1, int(file["filter/max_episode_steps"])
    for i, (fraction, discount) in enumerate(zip(file["filter/frac"], file["filter/discount"], strict=True)):
        rows = bc.best(rewards, ends, float(fraction), float(discount), limit)
        np.testing.assert_array_equal(rows, file[f"filter/order{i}"])


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "fql"], ids=lambda path: path.stem)
def test_one_step_and_flow_policy_act_as_official_fql(path, float64):
    import fql

    file = dict(np.load(path, allow_pickle=False))
    args = arguments(fql, FORMATS["fql"], file)
    actor, flow = network(file, "after3/actor_onestep_flow"), network(file, "after3/actor_bc_flow")
    inputs = jnp.asarray(file["eval/observations"]), jnp.asarray(file["eval/noise"])
    close(jnp.clip(fql.mu(args, actor, *inputs), -1, 1), file["eval/actions"], 1e-9, "actions")
    close(fql.flow_actions(args, flow, *inputs), file["eval/flow_actions"], 1e-9, "flow_actions")


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "prdc"], ids=lambda path: path.stem)
def test_tree_and_comparison_find_the_official_neighbours(path, float64):
    import prdc

    file = dict(np.load(path, allow_pickle=False))
    args, keys = arguments(prdc, FORMATS["prdc"], file), jnp.asarray(file["neighbour/key"])
    points = np.hstack([args.beta * file["dataset/observations"], file["dataset/actions"]])
    for searched in (prdc.plant(args, *np.split(points, [5], axis=1)), jnp.asarray(points.T)):
        neighbours = prdc.nearest(args, searched, keys, jnp.arange(len(keys)))
        np.testing.assert_array_equal(neighbours, points[file["neighbour/index"].astype(int)])
        close(jnp.linalg.norm(neighbours - keys, axis=1), file["neighbour/distance"], 1e-9, "distance")


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "spot"], ids=lambda path: path.stem)
def test_updates_of_the_vae_equal_corls(path, float64):
    """Its losses, parameters and their changes; nothing else moves."""
    import spot

    file = dict(np.load(path, allow_pickle=False))
    updates = len(file["batch/observations"])
    args = dataclasses.replace(arguments(spot, FORMATS["spot"], file), vae_steps=updates, steps=updates + 1)
    batches = {name: exact(file[f"batch/{name}"]) for name in spot.Batch._fields}
    start = jax.tree.map(exact, spot.init(args, spot.prepare(args, data_of(file, batches)), jax.random.key(0)))
    initial = tuple(network(file, f"init/vae_{part}") for part in ("encoder", "decoder"))
    state = start._replace(encoder=initial[0], decoder=initial[1])
    for i in range(updates):
        batch = spot.Batch(*(x[i] for x in batches.values()))
        noise = spot.Noise(jnp.asarray(file["noise/vae_eps"][i], jnp.float64), None, None)
        zeros = jnp.zeros_like
        noise = noise._replace(target_policy=zeros(batch.actions), penalty=zeros(noise.vae[:, None]))
        state, metrics = jax.jit(spot.update, static_argnums=0)(args, state, batch, noise, i)
        for name, ours in (("vae", "vae"), ("vae_reconstruction", "reconstruction"), ("vae_KL", "kl")):
            close(metrics[f"{ours}_loss"], file[f"loss/{name}_loss_f64"][i], 1e-9, f"{name} of update {i + 1}")
        if f"vae_after{i + 1}/vae_decoder/0/kernel" in file:
            wanted = tuple(network(file, f"vae_after{i + 1}/vae_{part}") for part in ("encoder", "decoder"))
            trees = (state.encoder, state.decoder), wanted, initial
            for parameter, target, before in zip(*map(jax.tree.leaves, trees), strict=True):
                close(parameter, target, 1e-9, f"VAE after update {i + 1}")
                close(parameter - before, target - before, 1e-9, f"change of the VAE after update {i + 1}")
    still = start._replace(encoder=None, decoder=None, vae_opt=None)
    for x, y in zip(
        *map(jax.tree.leaves, (still, state._replace(encoder=None, decoder=None, vae_opt=None))), strict=True
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "cal_ql"], ids=lambda path: path.stem)
def test_returns_to_go_equal_corl(path):
    """Of pieces that end at a terminal, where the next row starts elsewhere, or at the step limit."""
    import cal_ql

    file = np.load(path, allow_pickle=False)
    rewards, ends, age = file["mc/rewards"], file["mc/terminals"] == 1, 0
    ends[:-1] |= np.linalg.norm(file["mc/observations"][1:] - file["mc/next_observations"][:-1], axis=1) > 1e-6
    ends[-1] = True
    for i in range(len(ends)):
        age += 1
        ends[i] |= age == file["mc/max_episode_steps"]
        age *= not ends[i]
    for failure, name in ((file["mc/failure_reward"].item(), "sparse"), (None, "dense")):
        returns = cal_ql.returns_to_go(rewards, ends, file["mc/discount"].item(), failure)
        np.testing.assert_allclose(returns, file[f"mc/returns_{name}"], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "dt"], ids=lambda path: path.stem)
def test_sequences_are_cut_and_padded_as_by_corl(path):
    """From its trajectories, at its starts."""
    import dt

    file = dict(np.load(path, allow_pickle=False))
    args = arguments(dt, FORMATS["dt"], file)
    data = data_of(file, {})
    prepared = dt.prepare(args, data)
    np.testing.assert_allclose(prepared.mean, file["data/state_mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prepared.std, file["data/state_std"], rtol=1e-5)
    rows = np.bincount(np.repeat(np.arange(len(data.episodes)), np.diff(data.episodes)[:, 0])) / len(prepared.left)
    np.testing.assert_allclose(rows, file["data/sampling_probability"])
    starts = data.episodes[file["batch/trajectory_index"], 0] + file["batch/start_index"]  # [updates, batch]
    for i in range(len(starts)):
        batch = dt.window(args, prepared, jnp.asarray(starts[i]))
        for ours, theirs in zip(batch, ("states", "actions", "returns_to_go", "time_steps", "mask"), strict=True):
            np.testing.assert_allclose(ours, file[f"batch/{theirs}"][i], atol=3e-6, err_msg=theirs)


class Recording:
    """Plays recorded observations and rewards, whatever is done; notes what was done."""

    def __init__(self, observations, rewards):
        self.observations, self.rewards, self.actions = observations, rewards, []

    def reset(self, seed):
        return self.observations[0], {}

    def step(self, action):
        self.actions.append(action)
        done = len(self.actions)
        return self.observations[done], self.rewards[done - 1], done == len(self.rewards), False, {}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "dt"], ids=lambda path: path.stem)
def test_an_evaluation_acts_as_corls_rollout(path, float64):
    """Whose observations are normalised and rewards scaled before it sees them."""
    import dt

    file = dict(np.load(path, allow_pickle=False))
    args = dataclasses.replace(arguments(dt, FORMATS["dt"], file), reward_scale=1.0)
    state = dt.init(args, dt.prepare(args, data_of(file, {})), jax.random.key(0))
    zeros = jnp.zeros(file["rollout/states"].shape[-1])
    state = state._replace(
        actor=network(file, "after3"), mean=zeros, std=zeros + 1, target_return=file["rollout/scaled_target_return"]
    )
    length = int(file["rollout/length"])
    env = Recording(file["rollout/states"].astype(np.float64), file["rollout/rewards"][:length].astype(np.float64))
    policy = jax.jit(jax.vmap(functools.partial(dt.act, args)))
    returns, _ = dt.evaluate(policy, jax.tree.map(lambda x: jnp.asarray(x)[None], state), [[env]], 1)
    close(np.array(env.actions), file["rollout/actions_f64"], 1e-8, "actions")
    np.testing.assert_allclose(returns, [[file["rollout/rewards"][:length].sum()]], rtol=1e-6)


@pytest.mark.parametrize("path", [x for x in FILES if x.stem.startswith("combo_")], ids=lambda path: path.stem)
def test_an_update_of_combo_equals_offlinerl_kits(path, float64):
    """Measured by golden/measure_kit.py. The rows of the rollouts stand in the buffer, and none are due."""
    import combo

    file = dict(np.load(path, allow_pickle=False))
    names = ("actor_lr", "critic_lr", "alpha_lr", "gamma", "tau", "target_entropy", "real", "cql_weight", "n_actions")
    *lrs, discount, tau, entropy, real, weight, actions = (x.item() for x in known(file, *names))
    _, size, dimensions = file["batch/actions"].shape
    assert entropy == -dimensions
    args = combo.Args(
        **dict(zip(names[:3], lrs, strict=True)),
        **{"discount": discount, "tau": tau, "cql_alpha": weight, "n_actions": int(actions)},
        **{"batch_size": size, "real_ratio": (real + 0.5) / size, "rho": path.stem.removeprefix("combo_")},
        **{"hidden_dims": (16, 16, 16), "model_hidden_dims": (), "termination": "never"},
        **{"rollout_starts": size - int(real), "rollout_length": 1, "rollout_retain": 1},
    )
    batches = [combo.Rows(*(exact(file[f"batch/{x}"][i]) for x in combo.Rows._fields)) for i in range(3)]
    outputs = batches[0].observations.shape[-1] + 1
    zeros = jnp.zeros(outputs)
    member = combo.Member((), outputs).init(jax.random.key(0), jnp.zeros(outputs - 1 + dimensions))
    ensemble = combo.Ensemble(jax.tree.map(lambda x: x[None], member), zeros, zeros)
    model = combo.Dynamics(ensemble, jnp.zeros(()), jnp.ones(()), jnp.zeros(1, int), jnp.zeros(1))
    data = combo.Data(batches[0], batches[0].observations, model)
    networks = {"actor": "actor", "critic": "critics", "target_critic": "target_critics", "log_alpha": "log_alpha"}
    held, errors = {ours: network(file, f"init/{theirs}") for theirs, ours in networks.items()}, []
    state = jax.tree.map(exact, combo.init(args, data, jax.random.key(0)))._replace(**held)
    for i, rows in enumerate(batches):
        first, rest = (jax.tree.map(lambda x, s=s: x[s], rows) for s in (slice(int(real)), slice(int(real), None)))
        state = state._replace(buffer=combo.Buffer(rest, jnp.int32(0), jnp.int32(size - real)))
        batch = combo.Batch(*first, data.starts, model)
        noise = {
            x: exact(file[f"noise/{y}"][i])
            for x, y in (
                ("policy", "action"),
                ("next_policy", "next_action"),
                ("uniform", "random_actions"),
                ("gap_policy", "conservative_action"),
                ("gap_next_policy", "conservative_next_action"),
            )
        }
        drawn = combo.draw(args, batch, jax.random.key(i))._replace(**noise, places=jnp.arange(len(rest.rewards)))
        state, metrics = jax.jit(combo.update, static_argnums=0)(args, state, batch, drawn, 1 + i)
        for name in ("actor_loss", "critic_loss", "alpha"):
            errors.append(close(metrics[name], file[f"loss/{name}"][i], 1e-9, f"{name} of update {i + 1}"))
        for theirs, ours in networks.items() if i != 1 else ():
            wanted = network(file, f"after{i + 1}/{theirs}")
            for x, y, start in zip(*map(jax.tree.leaves, (getattr(state, ours), wanted, held[ours])), strict=True):
                errors.append(close(x, y, 1e-9, f"{theirs} after update {i + 1}"))
                close(x - start, y - start, 1e-9, f"change of {theirs} after update {i + 1}")
    record("combo", path.stem, errors)


def known(file: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    """The hyper-parameters of the file, which has no others."""
    assert {key[3:] for key in file if key.startswith("hp/")} == set(names)
    return [file[f"hp/{name}"] for name in names]


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "dynamics"], ids=lambda path: path.stem)
def test_the_dynamics_model_learns_and_predicts_as_ravls(path, float64):
    """Losses, gradients, parameters and their changes, hold-out errors, elites, a step; its scaling is given."""
    import mopo
    import optax

    file = dict(np.load(path, allow_pickle=False))
    names = ("lr", "weight_decay", "filter_clip", "num_elites", "logvar_bound_coef")
    lr, decay, clip, elites, bound = known(file, *names)
    assert bound == 0.01, "model_loss has no other"
    widths = tuple(file[key].shape[-1] for key in sorted(file) if key.startswith("init/") and key.endswith("kernel"))[
        2:
    ]
    args = mopo.Args(model_hidden_dims=widths, model_lr=lr.item(), model_clip=clip.item(), model_elites=int(elites))
    args = dataclasses.replace(args, model_weight_decay=tuple(decay.tolist()), termination="hopper")

    def ensemble(moment):
        params = network(file, f"{moment}/ensemble")["params"]
        low, high = params.pop("min_logvar"), params.pop("max_logvar")
        params["log_var"] = params.pop("logvar")
        return mopo.Ensemble({"params": params}, low, high)

    def alike(ours, theirs, tolerance, what):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            close(x, y, tolerance, what)

    s, a, r, following = (
        exact(file[f"batch/{x}"]) for x in ("observations", "actions", "rewards", "next_observations")
    )
    scale = (np.concatenate([file[f"filter/{x}_{y}"] for x in ("obs", "act")]) for y in ("mean", "std"))
    model = initial = mopo.Dynamics(ensemble("init"), *map(exact, scale), jnp.arange(int(elites)), None)
    inputs, targets = mopo.scaled(args, model, jnp.hstack([s, a])), jnp.hstack([following - s, r[:, None]])
    adam = optax.adam(args.model_lr)
    opt = adam.init(model.ensemble)
    for i, rows in enumerate(file["batch/index"].astype(int)):
        errors = mopo.holdout_errors(args, model.ensemble, inputs[:8], targets[:8])
        close(errors, file["loss/val_mse"][i], 1e-9, f"hold-out errors before update {i + 1}")
        grad = jax.grad(mopo.model_loss, has_aux=True)
        grads, told = grad(model.ensemble, args, inputs[rows], targets[rows])
        close(told["nll"], file["loss/nll_per_member"][i], 1e-9, f"likelihoods of update {i + 1}")
        close(told["nll"].sum(), file["loss/nll_total"][i], 1e-9, f"their sum of update {i + 1}")
        close(told["loss"], file["loss/total"][i], 1e-9, f"loss of update {i + 1}")
        if i == 0:  # theirs is without the decay, which their optimiser adds
            still = dataclasses.replace(args, model_weight_decay=(0.0,) * len(decay))
            alike(grad(model.ensemble, still, inputs[rows], targets[rows])[0], ensemble("grad"), 1e-9, "gradient")
        updates, opt = adam.update(grads, opt)
        model = model._replace(ensemble=optax.apply_updates(model.ensemble, updates))
        if i in (0, 2):
            after, change = ensemble(f"after{i + 1}"), lambda x: jax.tree.map(jnp.subtract, x, initial.ensemble)
            alike(model.ensemble, after, 1e-9, f"after update {i + 1}")
            # Where a gradient is near Adam's epsilon its last digits show: the figures' own check saw 1e-10 there.
            alike(change(model.ensemble), change(after), 1e-7, f"change after update {i + 1}")

    means, log_vars = mopo.predict(args, model, exact(file["predict/observations"]), exact(file["predict/actions"]))
    close(means.swapaxes(0, 1), file["predict/mean"], 1e-9, "means")
    close(log_vars.swapaxes(0, 1), file["predict/logvar"], 1e-9, "log-variances")
    errors = mopo.holdout_errors(args, model.ensemble, inputs[:8], targets[:8])
    close(errors, file["predict/val_mse_after3"], 1e-9, "hold-out errors")
    np.testing.assert_array_equal(jnp.argsort(errors)[: int(elites)], file["predict/elites"])
    members = jnp.asarray(file["step/elite_pick"].astype(int))  # counted among all members
    noise = exact(file["step/noise"])[jnp.arange(len(members)), members]
    step = mopo.sampled(means, log_vars, members, noise)
    close(step[:, :-1], file["step/next_observations"], 1e-9, "next observations")
    close(step[:, -1], file["step/rewards"], 1e-9, "rewards")
    for name in ("hopper", "walker2d", "halfcheetah"):
        ours = mopo.ended(dataclasses.replace(args, termination=name), exact(file["done/observations"]))
        np.testing.assert_array_equal(ours, file[f"done/{name}"] == 1, err_msg=name)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "mopo"], ids=lambda path: path.stem)
def test_an_imagined_step_is_penalised_as_by_official_mopo(path, float64):
    """Given what the members predict, of which the official code has the reward first."""
    import mopo

    file = dict(np.load(path, allow_pickle=False))
    weight, elites = known(file, "penalty_coeff", "elites")
    last = lambda x: exact(np.concatenate([x[..., 1:], x[..., :1]], axis=-1))
    means, log_vars, noise = last(file["model/mean_delta"]), jnp.log(last(file["model/var"])), last(file["noise/eps"])
    means = means.at[..., :-1].add(file["batch/observations"])
    members = jnp.asarray(file["noise/model_index"].astype(int))
    assert np.isin(members, elites).all()
    sample = mopo.sampled(means, log_vars, members, noise[members, jnp.arange(len(members))])
    close(sample[:, :-1], file["out/next_observations"], 1e-9, "next observations")
    close(sample[:, -1], file["out/unpenalized_rewards"], 1e-9, "rewards")
    close(sample[:, -1], file["out/none/rewards"], 1e-9, "rewards with weight 0")
    for ours, theirs in (("aleatoric", "learned_var"), ("disagreement", "disagreement")):
        u = mopo.PENALTIES[ours](means, log_vars, sample, members)
        close(u, file[f"out/{theirs}/penalty"].reshape(-1), 1e-9, ours)
        close(sample[:, -1] - weight * u, file[f"out/{theirs}/rewards"], 1e-9, f"rewards less {ours}")
    for name in ("hopper", "walker2d", "halfcheetah"):
        args = mopo.Args(termination=name)
        np.testing.assert_array_equal(mopo.ended(args, sample[:, :-1]), file[f"done/{name}"] == 1, err_msg=name)
        observations = file["termination/observations"]
        # The official Hopper ends above 100 but not below -100.
        amiss = (observations[:, 1:] <= -100).any(1) & (name == "hopper")
        np.testing.assert_array_equal(
            mopo.ended(args, exact(observations)), (file[f"termination/{name}"] == 1) | amiss, err_msg=name
        )
        assert amiss.any() or name != "hopper"
