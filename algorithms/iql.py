# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "flax>=0.12",
#   "gymnasium[mujoco]>=1.2",
#   "h5py>=3.12",
#   "jax>=0.7",
#   "minari[hdf5,hf]>=0.5.3",
#   "moviepy>=2.1",
#   "numpy>=2.0",
#   "optax>=0.2.5",
#   "tqdm>=4.66",
#   "tyro>=1.0",
#   "wandb>=0.20",
# ]
# ///
"""IQL: implicit Q-learning, which values the best actions of the data without asking for any other action.

Paper: Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022,
       arXiv:2110.06169.
Code:  github.com/ikostrikov/implicit_q_learning (learner.py, critic.py, actor.py, policy.py);
       github.com/corl-team/CORL (algorithms/offline/iql.py); github.com/seohongpark/fql (agents/iql.py).

V(s) is an expectile of the Q of the actions that the data took in s: towards 1 it is the best of them, and still none
but actions of the data are ever evaluated. Q follows from V, and the policy clones the actions that were better than V
says, each weighted by the exponential of its advantage.

    value   L_V  = mean |expectile - 1[u < 0]| u^2,   u = min_i Q'_i(s, a) - V(s)
    critic  L_Q  = sum_i mean (Q_i(s, a) - y)^2 / 2,  y = r + discount (1 - d) V(s')
    actor   L_pi = -mean min(exp(beta A), 100) log pi(a|s),  A = min_i Q'_i(s, a) - V(s)
            pi(.|s) = N(tanh(mean(s)), exp(log_std)^2), log_std a vector of its own; lr falls as 1 + cos(pi t / T)
    targets Q' <- tau Q + (1 - tau) Q'

Three implementations made the published tables, and they differ. `--variant` follows one of them:

                        corl (default)        authors               fql
    V in y and A        before its step       after its step        before its step
    Q in A              target                target                online
    L_Q                 half of the sum       the sum               the sum
    Q' follows          Q after its step      Q after its step      Q before its step
    mean, log_std       tanh, in [-20, 2]     tanh, in [-5, 2]      unbounded, in [-5, 2]
    hidden layers       ReLU                  ReLU                  GELU
    first weights       PyTorch's             orthogonal            Glorot's, actions near 0
    actions of the data as they are           below 1 by 1e-5       below 1 by 1e-5

CORL's is the default, for it made the table that belongs to TUNED's rows for D4RL. FQL's made OGBench's table; what
else that takes (four wide layers, LayerNorm, a constant lr, a standard deviation of 1) are flags, which TUNED sets.
Its code can also extract the policy another way, here --ddpgbc w: follow Q itself, held to the data,

    L_pi = -mean min_i Q_i(s, a') / mean |min_i Q_i(s, a')| - w mean log pi(a|s),  a' ~ pi(s) or its mean, clipped

Online (--online-steps) samples of the policy act, one update a step; the actor, whose learning rate the cosine has
brought to 0, learns at the full one again. Actions are then kept as those of the data are; authors and FQL cut at 1.

Differences from the official code:
 1. All seeds of a run train in one program, each with its own initial networks, batches and noise.
 2. Episode i of every evaluation starts from reset(seed=1000 + i), for every seed and step, so that evaluations can be
    compared in pairs; official: the run's seed, once (authors), at every evaluation (CORL), or none (FQL).
 3. --return-range 1000 (the authors' scaling of locomotion's rewards) measures returns over the episodes of the data as
    they were recorded, without those that were cut off; CORL cuts at terminals and every 1,000 rows after the time-out
    rows are gone, so that its pieces drift across the 999 rows that a full episode has left; the authors lack those
    rows too, and count what was cut off.
 4. FQL has one Adam for all networks; here every network has its own, which computes the same. OGBench gives reward and
    success one step later since its version 1.2; its published scores were made with 1.1. Online, FQL's script keeps
    old and new rows in one ring of 2,000,000, or of one more than the dataset has, so that on humanoidmaze new rows
    replace the dataset's; here the dataset stays whole.
 5. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4;
    mazes and Adroit in what Gymnasium-Robotics has of them today, with D4RL's physics, goals and rewards put back
    (dataset.py). Where time has cut an episode without a mark, the next observation is the file's own or, in AntMaze's
    files, which have none, the row's own observation; official: the next row's. Mean and deviation of the observations
    are summed in float64; official: in float32, over 1,000,000 rows off by 1e-4 to 1e-1 of a deviation.
 6. Online the actor's learning rate is at once the full one. The authors' fine-tuning has it in both phases (here
    --no-cosine); CORL's climbs the cosine back from 0. And CORL acts with dropout on, here it is off.
 7. The environments start afresh after every evaluation, from seeds that follow from the step, so that a resumed run
    repeats an undisturbed one to the byte; an episode that this cuts off counts as out of time, and is played to its
    end for the regret alone. An episode that truly ends on the last step that time allows counts as ended; CORL: as out
    of time.

Run:   python algorithms/iql.py --dataset hopper-medium-replay-v2 --seeds 0 1 2 3 4
       python algorithms/iql.py --dataset walker2d-medium-v2 --variant authors --no-normalize --return-range 1000
Scores: results/README.md

@inproceedings{kostrikov2022offline,
  title     = {Offline Reinforcement Learning with Implicit {Q}-Learning},
  author    = {Ilya Kostrikov and Ashvin Nair and Sergey Levine},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
}
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

# ------------------------------------------------------------------------------------------ arguments


@dataclasses.dataclass(frozen=True)
class Args:
    dataset: str = "hopper-medium-v2"  # D4RL name, Minari id, OGBench name, or path of a D4RL-layout .hdf5
    env: str | None = None  # Gymnasium id to evaluate in; a path needs it, the others know theirs
    seeds: tuple[int, ...] = (0,)  # these seeds train together
    steps: int = 1_000_000  # gradient steps
    batch_size: int = 256  # transitions a gradient step
    discount: float = 0.99  # of the return that the critics estimate
    tau: float = 0.005  # share of the network that a target takes over at each of its updates
    eval_every: int = 5_000  # steps between evaluations; each is also a checkpoint
    eval_episodes: int = 10  # episodes an evaluation
    out: str = "results/runs"  # folder of checkpoints and JSON
    resume: bool = True  # go on from the checkpoint of the same command, unless --no-resume
    untuned: bool = False  # leave the dataset's published hyper-parameters out
    wandb: bool = False  # log to Weights & Biases (without an account: WANDB_MODE=offline)
    video: int = 0  # after training, film this many episodes of every seed

    online_steps: int = 0  # environment steps of fine-tuning after the gradient steps, an update each
    offline_ratio: float | None = None  # the dataset's share of an online batch; none: as of all rows, old and new
    buffer_size: int = 1_000_000  # online transitions kept
    warmup: int = 0  # first online steps, without updates
    num_envs: int = 1  # environments of a seed, stepped together
    pretrained: str | None = None  # checkpoint of this script to begin from; with --steps 0 online at once

    variant: Literal["corl", "authors", "fql"] = "corl"  # whose order of updates and networks; see the table above
    expectile: float = 0.7  # of Q that V estimates: 0.5 the mean of the data's actions, towards 1 the best
    beta: float = 3.0  # inverse temperature of the weights: 0 clones all actions alike
    policy: Literal["gaussian", "unit", "deterministic"] = "gaussian"  # std learned, std 1, or squared error
    ddpgbc: float = 0.0  # above 0: the policy follows Q itself, with cloning weighted by this
    policy_dropout: float = 0.0  # share of the actor's hidden units that an update leaves out
    exploration_noise: float = 0.03  # online standard deviation of --policy deterministic's actions
    cosine: bool = True  # the actor's learning rate falls to 0 over the offline steps, unless --no-cosine
    actor_lr: float = 3e-4  # Adam's, of the actor
    critic_lr: float = 3e-4  # Adam's, of Q
    value_lr: float = 3e-4  # Adam's, of V
    hidden_dims: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    layer_norm: bool = False  # LayerNorm after every hidden layer of Q and V
    actor_layer_norm: bool = False  # LayerNorm after every hidden layer of the actor
    normalize: bool = True  # observations to mean 0 and standard deviation 1, unless --no-normalize
    return_range: float = 0.0  # rewards are scaled until the episodes' returns span this; 0 leaves them
    reward_shift: float = 0.0  # added to every reward; -1 on AntMaze


# Published hyper-parameters: dataset -> (source, what departs from or confirms the defaults).
CORL = "CORL eeeeef2, configs/offline/iql"
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{env}-{kind}-v2": (CORL, {"expectile": 0.7, "beta": 3.0})
        for env in ("halfcheetah", "hopper", "walker2d")
        for kind in ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
    },
    **{
        f"hopper-{kind}-v2": (CORL, {"policy": "deterministic", "tau": 0.001, "return_range": 1000.0})
        for kind in ("medium", "medium-replay")
    },
    "hopper-medium-expert-v2": (CORL, {"expectile": 0.5, "beta": 6.0}),
    **{
        f"maze2d-{size}{kind}-v1": (CORL, {"expectile": 0.7, "beta": 3.0, "eval_episodes": 100})
        for size in ("umaze", "medium", "large")
        for kind in ("", "-dense")
    },
    **{
        f"antmaze-{maze}-v2": (CORL, {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0, "eval_episodes": 100})
        for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"{hand}-{kind}-v1": (CORL, {"expectile": 0.8, "beta": 3.0, "policy_dropout": 0.1})
        for hand in ("pen", "door", "hammer", "relocate")
        for kind in ("human", "cloned", "expert")
    },
}
# CORL has no kitchen; the authors have, with another preparation of the data. (For the record: dataset.py has no
# environment for it.)
TUNED |= {
    f"kitchen-{kind}-v0": (
        "implicit_q_learning 09d7002, configs/kitchen_config.py",
        {"variant": "authors", "expectile": 0.7, "beta": 0.5, "policy_dropout": 0.1, "normalize": False},
    )
    for kind in ("complete", "partial", "mixed")
}
# The README of the FQL repository gives beta for humanoidmaze-medium; the others stand in the appendix of its paper,
# read in a later paper that quotes it.
TUNED |= {
    f"{family}-singletask{task}-v0": (
        "FQL 719d044, agents/iql.py and main.py; beta: arXiv:2502.02538, as quoted",
        {"variant": "fql", "expectile": 0.9, "beta": beta, "discount": discount, "policy": "unit", "cosine": False}
        | {"hidden_dims": (512,) * 4, "layer_norm": True, "normalize": False}
        | {"eval_every": 100_000, "eval_episodes": 50},
    )
    for beta, discount, families in (
        (10.0, 0.99, ("antmaze-large-navigate", "scene-play", "puzzle-3x3-play")),
        (10.0, 0.995, ("antmaze-giant-navigate", "humanoidmaze-medium-navigate", "humanoidmaze-large-navigate")),
        (3.0, 0.99, ("puzzle-4x4-play",)),
        (1.0, 0.99, ("cube-single-play",)),
        (1.0, 0.995, ("antsoccer-arena-navigate",)),
        (0.3, 0.99, ("cube-double-play",)),
    )
    for family in families
    for task in ("", "-task1", "-task2", "-task3", "-task4", "-task5")
}
# Datasets collected here borrow the row of D4RL's dataset of the same environment and quality.
TUNED |= {
    f"solo/{env}-v5/{kind}-v0": (f"{TUNED[row][0]}, row {row}", TUNED[row][1])
    for env in ("halfcheetah", "hopper", "walker2d")
    for kind in ("random", "medium", "expert", "medium-replay", "medium-expert")
    for row in (f"{env}-{kind}-v2",)
}


def tuned(dataset: str) -> Args:
    """The published arguments for `dataset`; the defaults where none are published."""
    return dataclasses.replace(Args(dataset=dataset), **TUNED.get(dataset, ("", {}))[1])


# ------------------------------------------------------------------------------------------ networks


# >>> orthogonal (home: cql.py)
def orthogonal(scale: float):
    """Orthogonal first weights, one matrix after another: with jaxlib 0.10 on two cores, batches of them that are
    factored at once wait for each other's threads for ever."""
    initial = nn.initializers.orthogonal(scale)

    def weights(key, shape, dtype=jnp.float32):
        return jax.custom_batching.sequential_vmap(lambda key: initial(key, shape, dtype))(key)

    return weights


# <<< orthogonal


def dense(args: Args, features: int, inputs: int, scale: float = 1.0) -> nn.Dense:
    """A layer with the first weights of the variant; only FQL's know a scale."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -(inputs**-0.5), inputs**-0.5)

    if args.variant == "corl":
        return nn.Dense(features, kernel_init=uniform, bias_init=uniform)
    glorot = nn.initializers.variance_scaling(scale, "fan_avg", "uniform")
    return nn.Dense(features, kernel_init=orthogonal(2**0.5) if args.variant == "authors" else glorot)


def mlp(args: Args, x, outputs: int, layer_norm: bool, masks: Sequence[jax.Array] = (), scale: float = 1.0):
    """Hidden layers and a linear one, as part of the module that calls it: [..., inputs] -> [..., outputs]."""
    for i, features in enumerate(args.hidden_dims):
        x = dense(args, features, x.shape[-1])(x)
        x = nn.gelu(x) if args.variant == "fql" else nn.relu(x)
        x = nn.LayerNorm()(x) if layer_norm else x
        x = x * masks[i] if masks else x
    return dense(args, outputs, x.shape[-1], scale)(x)


class Actor(nn.Module):
    args: Args
    action_dim: int

    @nn.compact
    def __call__(self, observations, masks=()):  # [..., obs] -> mean [..., act], log of the standard deviation [act]
        mean = mlp(self.args, observations, self.action_dim, self.args.actor_layer_norm, masks, scale=0.01)
        if self.args.variant != "fql":
            mean = jnp.tanh(mean)
        log_std = jnp.zeros(self.action_dim)
        if self.args.policy == "gaussian":
            log_std = self.param("log_std", nn.initializers.zeros, log_std.shape)
        return mean, jnp.clip(log_std, -20 if self.args.variant == "corl" else -5, 2)


class Critic(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, observations, actions):  # [..., obs], [..., act] -> [...]
        x = jnp.concatenate([observations, actions], axis=-1)
        return mlp(self.args, x, 1, self.args.layer_norm).squeeze(-1)


class Value(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> [...]
        return mlp(self.args, observations, 1, self.args.layer_norm).squeeze(-1)


def pi(args: Args, actor, observations, masks: Sequence[jax.Array] = ()):
    """Mean and log of the standard deviation of the policy: [..., obs] -> [..., act], [act]."""
    action_dim = actor["params"][f"Dense_{len(args.hidden_dims)}"]["bias"].shape[-1]
    return Actor(args, action_dim).apply(actor, observations, masks)


def q(args: Args, critics, observations, actions):
    """Values of every critic, the leading axis of `critics`: [batch, obs], [batch, act] -> [critics, batch]."""
    return jax.vmap(Critic(args).apply, in_axes=(0, None, None))(critics, observations, actions)


def v(args: Args, value, observations):
    """[..., obs] -> [...]."""
    return Value(args).apply(value, observations)


def log_density(mean, log_std, actions):
    """Of a Gaussian with independent dimensions, not squashed: [..., act] -> [...]."""
    z = (actions - mean) / jnp.exp(log_std)
    return -(z**2 / 2 + log_std + jnp.log(2 * jnp.pi) / 2).sum(-1)


# ------------------------------------------------------------------------------------------ algorithm


class Batch(NamedTuple):
    observations: jax.Array  # [batch, obs], normalised
    actions: jax.Array  # [batch, act], in [-1, 1]
    rewards: jax.Array  # [batch]
    next_observations: jax.Array  # [batch, obs], normalised
    terminals: jax.Array  # [batch], 1 where the episode truly ended, not where time ran out


class Data(NamedTuple):
    rows: Batch  # the whole dataset
    mean: jax.Array  # [obs], of the raw observations
    std: jax.Array  # [obs]
    scale: jax.Array  # of rewards
    buffer: Any = None  # what happened online, for `sample`


class Noise(NamedTuple):
    dropout: tuple[jax.Array, ...] = ()  # [batch, width] a hidden layer of the actor: 0, or 1 over the share kept
    policy: jax.Array | None = None  # [batch, act], standard normal; of --ddpgbc with a learned deviation


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis 2
    target_critics: Any
    value: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    mean: jax.Array  # [obs], for `act`, which sees raw observations
    std: jax.Array  # [obs]
    buffer: Any  # what happened online; None without an online phase


# >>> return_spread (home: iql.py)
def return_spread(rewards: np.ndarray, terminals: np.ndarray, episodes: np.ndarray) -> float:
    """The best less the worst return of an episode. One that did not end and is not as long as the longest was cut off
    and does not count."""
    starts, stops = episodes.T
    whole = terminals[stops - 1] | (stops - starts == (stops - starts).max())
    return float(np.ptp(np.add.reduceat(rewards.astype(np.float64), starts)[whole]))


# <<< return_spread


def experience(args: Args, data: Data, observations, actions, rewards, next_observations, terminals) -> Batch:
    """Transitions [n, ...] as the updates see them, of the dataset and of the environment alike."""
    normal, bound = lambda x: (x - data.mean) / data.std, 1.0 if args.variant == "corl" else 1 - 1e-5
    rewards = data.scale * rewards + args.reward_shift
    return Batch(normal(observations), actions.clip(-bound, bound), rewards, normal(next_observations), terminals)


def prepare(args: Args, dataset) -> Data:
    """The rows that published code trains on, with normalised observations, on the device."""
    columns = dataset.observations, dataset.actions, dataset.rewards, dataset.next_observations, dataset.terminals
    observations, *others = (column[dataset.keep] for column in columns)
    mean, std, scale = np.zeros(observations.shape[-1]), np.ones(observations.shape[-1]), 1.0
    if args.normalize:
        mean, std = observations.mean(0, dtype=np.float64), observations.std(0, dtype=np.float64) + 1e-3
    if args.return_range:
        spread = return_spread(dataset.rewards, dataset.terminals, dataset.episodes)
        scale = args.return_range / spread if spread else 1.0  # without a spread there is nothing to scale
    data = Data(None, mean, std, scale)
    data = data._replace(rows=experience(args, data, observations, *others))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), data)


# >>> buffer (home: sac.py)
class Buffer(NamedTuple):
    """What happened online, in a ring."""

    rows: Batch  # [capacity, ...]
    place: jax.Array  # where the next transition goes
    size: jax.Array  # rows filled


def empty(rows: Batch, capacity: int) -> Buffer | None:
    """For transitions of the shapes of `rows`; None for none at all."""
    if not capacity:
        return None
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), rows)
    return Buffer(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def insert(buffer: Buffer, rows: Batch) -> Buffer:
    """`rows` [n, ...] in the place of the oldest."""
    capacity, n = len(buffer.rows.rewards), len(rows.rewards)
    places = (buffer.place + jnp.arange(n)) % capacity
    rows = jax.tree.map(lambda x, new: x.at[places].set(new), buffer.rows, rows)
    return Buffer(rows, (buffer.place + n) % capacity, jnp.minimum(buffer.size + n, capacity))


# <<< buffer


def init(args: Args, data: Data, key: jax.Array) -> State:
    """New networks; the target critics start as copies, the buffer is empty."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    observation, action = data.rows.observations[0], data.rows.actions[0]
    actor = Actor(args, action.shape[-1]).init(actor_key, observation)
    critics = jax.vmap(Critic(args).init, in_axes=(0, None, None))(jax.random.split(critic_key, 2), observation, action)
    value = Value(args).init(value_key, observation)
    actor_opt, critic_opt, value_opt = (
        optax.adam(lr).init(network)
        for lr, network in ((args.actor_lr, actor), (args.critic_lr, critics), (args.value_lr, value))
    )
    buffer = empty(data.rows, min(args.buffer_size, args.online_steps))
    return State(actor, critics, critics, value, actor_opt, critic_opt, value_opt, data.mean, data.std, buffer)


# >>> sample (home: td3_bc.py)
def sample(args: Args, data: Data, key: jax.Array) -> Batch:
    """Uniform with replacement: from the dataset, and online from the buffer too, as --offline-ratio says."""
    n, size, buffer = len(data.rows.rewards), args.batch_size, data.buffer
    if buffer is None:
        places = jax.random.randint(key, (size,), 0, n)
        return jax.tree.map(lambda rows: rows[places], data.rows)
    if args.offline_ratio is None:  # one pool
        places = jax.random.randint(key, (size,), 0, n + buffer.size)
        old, new = jnp.minimum(places, n - 1), jnp.maximum(places - n, 0)
        choose = jax.vmap(lambda place, row, other: jnp.where(place < n, row, other))
        return jax.tree.map(lambda rows, others: choose(places, rows[old], others[new]), data.rows, buffer.rows)
    old_key, new_key = jax.random.split(key)
    old = jax.random.randint(old_key, (int(size * args.offline_ratio),), 0, n)
    new = jax.random.randint(new_key, (size - len(old),), 0, buffer.size)
    return jax.tree.map(lambda rows, others: jnp.concatenate([rows[old], others[new]]), data.rows, buffer.rows)


# <<< sample


def draw(args: Args, batch: Batch, key: jax.Array) -> Noise:
    policy_key, *keys = jax.random.split(key, 1 + len(args.hidden_dims))
    kept, layers = 1 - args.policy_dropout, zip(keys, args.hidden_dims, strict=True)
    masks = tuple(jax.random.bernoulli(k, kept, (len(batch.rewards), width)) / kept for k, width in layers)
    return Noise(masks if args.policy_dropout else (), jax.random.normal(policy_key, batch.actions.shape))


def value_loss(value, args: Args, state: State, batch: Batch):
    target = q(args, state.target_critics, batch.observations, batch.actions).min(axis=0)  # [batch]
    values = v(args, value, batch.observations)
    u = target - values
    loss = (jnp.where(u < 0, 1 - args.expectile, args.expectile) * u**2).mean()
    return loss, {"value_loss": loss, "v": values.mean()}


def critic_loss(critics, args: Args, value, batch: Batch):
    next_v = v(args, value, batch.next_observations)
    y = batch.rewards + args.discount * (1 - batch.terminals) * next_v  # [batch]
    values = q(args, critics, batch.observations, batch.actions)  # [2, batch]
    loss = ((values - y) ** 2).mean(axis=1).sum() / (2 if args.variant == "corl" else 1)
    return loss, {"critic_loss": loss, "q": values.mean(), "q_target": y.mean()}


def actor_loss(actor, args: Args, critics, value, batch: Batch, noise: Noise):
    values = q(args, critics, batch.observations, batch.actions).min(axis=0)
    advantages = values - v(args, value, batch.observations)  # [batch]
    weights = jnp.minimum(jnp.exp(args.beta * advantages), 100)
    mean, log_std = pi(args, actor, batch.observations, noise.dropout)
    if args.policy == "deterministic":
        log_pi = -((mean - batch.actions) ** 2).sum(axis=-1)
    else:
        log_pi = log_density(mean, log_std, batch.actions)
    loss = -(weights * log_pi).mean()
    return loss, {"actor_loss": loss, "advantage": advantages.mean(), "weight": weights.mean(), "log_pi": log_pi.mean()}


def ddpgbc_loss(actor, args: Args, critics, value, batch: Batch, noise: Noise):
    """Instead of `actor_loss`; V has no part in it."""
    mean, log_std = pi(args, actor, batch.observations, noise.dropout)
    actions = mean + jnp.exp(log_std) * noise.policy if args.policy == "gaussian" else mean
    values = q(args, critics, batch.observations, actions.clip(-1, 1)).min(axis=0)  # [batch]
    scale = jax.lax.stop_gradient(jnp.abs(values).mean())
    log_pi = log_density(mean, log_std, batch.actions)
    loss = -values.mean() / scale - args.ddpgbc * log_pi.mean()
    return loss, {"actor_loss": loss, "q_policy": values.mean(), "log_pi": log_pi.mean()}


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`, counted from 0. The networks of `state` are those before it."""
    grads, metrics = jax.grad(value_loss, has_aux=True)(state.value, args, state, batch)
    updates, value_opt = optax.adam(args.value_lr).update(grads, state.value_opt)
    value = optax.apply_updates(state.value, updates)
    judge = value if args.variant == "authors" else state.value  # the V in y and A

    grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critics, args, judge, batch)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, state.critic_opt)
    critics = optax.apply_updates(state.critics, updates)

    advocates = state.critics if args.variant == "fql" else state.target_critics  # the Q in A
    loss = ddpgbc_loss if args.ddpgbc else actor_loss
    grads, actor_metrics = jax.grad(loss, has_aux=True)(state.actor, args, advocates, judge, batch, noise)
    lr = args.actor_lr
    if args.cosine:  # online it stays where it began
        lr = jnp.where(step < args.steps, optax.cosine_decay_schedule(lr, max(args.steps, 1))(step), lr)
    updates, actor_opt = optax.adam(lr).update(grads, state.actor_opt)
    actor = optax.apply_updates(state.actor, updates)

    leaders = state.critics if args.variant == "fql" else critics
    targets = optax.incremental_update(leaders, state.target_critics, args.tau)
    moved = State(actor, critics, targets, value, actor_opt, critic_opt, value_opt, state.mean, state.std, state.buffer)
    return moved, metrics | critic_metrics | actor_metrics


def act(args: Args, state: State, observations: jax.Array) -> jax.Array:
    """The policy's mode for raw observations: [..., obs] -> [..., act] in [-1, 1]."""
    mean, _ = pi(args, state.actor, (observations - state.mean) / state.std)
    return mean.clip(-1, 1)


def explore(args: Args, state: State, observations: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """A sample of the policy, of a deterministic one with noise: [envs, obs] -> [envs, act] in [-1, 1]."""
    mean, log_std = pi(args, state.actor, (observations - state.mean) / state.std)
    std = args.exploration_noise if args.policy == "deterministic" else jnp.exp(log_std)
    return jnp.clip(mean + std * jax.random.normal(key, mean.shape), -1, 1)


# ------------------------------------------------------------------------------------------ training and evaluation
# Between the marks stand blocks that several scripts share, equal to the byte: edit one at its home, then `make sync`.


# >>> each_seed (home: td3_bc.py)
def each_seed(function):
    """`function` of every seed's arguments: of all at once (vmap), but on a CPU of one after another. That is faster
    there, since one seed's arrays fit the cache, and leaves no number of a seed to depend on the others."""
    in_turn = lambda *trees: jax.lax.map(lambda tree: function(*tree), trees)
    return in_turn if jax.default_backend() == "cpu" else jax.vmap(function)


# <<< each_seed


# >>> train (home: td3_bc.py)
@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def train(args: Args, data: Data, state: State, keys: jax.Array, start: jax.Array, steps: int):
    """`steps` updates of every seed. State, keys and metrics have a leading axis of seeds; the step has none, so that a
    lax.cond on it remains a branch. All randomness of an update follows from its seed's key and its number."""

    def train_seed(state, key):
        def one_update(state, step):
            sample_key, draw_key = jax.random.split(jax.random.fold_in(key, step))
            batch = sample(args, data, sample_key)
            return update(args, state, batch, draw(args, batch, draw_key), step)

        state, metrics = jax.lax.scan(one_update, state, start + jnp.arange(steps))
        return state, jax.tree.map(lambda x: jnp.nanmean(x, axis=0), metrics)

    return each_seed(train_seed)(state, keys)


# <<< train


# >>> interact (home: sac.py)
@functools.partial(jax.jit, static_argnums=0)
def choose(args: Args, state: State, observations: jax.Array, keys: jax.Array, step: jax.Array) -> jax.Array:
    """Actions [seeds, envs, act] for the steps from `step` on."""
    return jax.vmap(lambda state, x, key: explore(args, state, x, jax.random.fold_in(key, step), step))(
        state, observations, keys
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def learn(args: Args, data: Data, state: State, happened, keys: jax.Array, first: jax.Array, step: jax.Array):
    """Stores what happened on the way to `step`, arrays [seeds, envs, ...] for `experience`; after the warm-up, updates
    as many times as there are environments. Update numbers go on from `first`, those of the offline phase. The step has
    no axis of seeds: a lax.cond on it remains a branch."""
    store = lambda state, happened: state._replace(buffer=insert(state.buffer, experience(args, data, *happened)))
    state = jax.vmap(store)(state, happened)
    steps = first + step - args.num_envs + jnp.arange(args.num_envs)

    def prepare_update(buffer, key, step):
        sample_key, draw_key = jax.random.split(jax.random.fold_in(key, step))
        batch = sample(args, data._replace(buffer=buffer), sample_key)
        return batch, draw(args, batch, draw_key)

    def learn_seed(state, given):
        return jax.lax.scan(lambda state, x: update(args, state, *x[0], x[1]), state, (given, steps))

    def updates(state):
        given = jax.vmap(jax.vmap(prepare_update, (None, None, 0)), (0, 0, None))(state.buffer, keys, steps)
        learned, metrics = each_seed(learn_seed)(state._replace(buffer=None), given)
        return learned._replace(buffer=state.buffer), jax.tree.map(lambda x: jnp.nanmean(x, axis=1), metrics)

    def none(state):
        return state, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(updates, state)[1])

    return jax.lax.cond(step > args.warmup, updates, none, state)


def reset(env, seed: int, step: int, slot: int) -> np.ndarray:
    """A new episode whose start follows from the run's seed, the step and the environment's number."""
    return env.reset(seed=int(np.random.SeedSequence([seed, step, slot]).generate_state(1)[0]))[0].astype(np.float32)


def interact(args: Args, data: Data, state: State, make, keys, first: int, step: int, length: int, progress):
    """`length` environment steps of every seed from online step `step` on, in fresh episodes of environments that
    `make()` makes, with the updates between them. Also returns the means of the metrics, and of every seed the episodes
    that began: [online step, return, success or None, which that at any step makes]. Those that run when the steps are
    over are played to their end by the policy as it stands; nothing is stored or learned of that."""
    envs = [[make() for _ in range(args.num_envs)] for _ in args.seeds]
    observations = np.stack(
        [[reset(x, args.seeds[i], step, j) for j, x in enumerate(row)] for i, row in enumerate(envs)]
    )
    returns, successes = np.zeros(observations.shape[:2]), np.full(observations.shape[:2], np.nan)  # [seeds, envs]
    running, end, episodes, history = np.ones(returns.shape, bool), step + length, [[] for _ in envs], []
    while running.any():
        actions = np.asarray(choose(args, state, observations, keys[:, 2], step))
        step += args.num_envs
        rewards, terminals = np.zeros(actions.shape[:2], np.float32), np.zeros(actions.shape[:2], np.float32)
        successors, following = observations.copy(), observations.copy()  # they differ where an episode has ended
        for i, j in np.argwhere(running):
            successors[i, j], rewards[i, j], terminals[i, j], truncated, info = envs[i][j].step(actions[i, j])
            following[i, j], returns[i, j] = successors[i, j], returns[i, j] + rewards[i, j]
            successes[i, j] = np.fmax(successes[i, j], info.get("success", np.nan))
            if terminals[i, j] or truncated:
                success = None if np.isnan(successes[i, j]) else float(successes[i, j])
                episodes[i].append([min(step, end), float(returns[i, j]), success])
                following[i, j], returns[i, j], successes[i, j] = envs[i][j].reset()[0], 0.0, np.nan
                running[i, j] = step < end
        if step <= end:
            happened = (observations, actions, rewards, successors, terminals)
            state, metrics = learn(args, data, state, happened, keys[:, 1], first, step)
            history.append(metrics)
            progress(args.num_envs)
        observations = following
    metrics = {k: np.stack([x[k] for x in jax.device_get(history)]) for k in history[0]}  # [steps, seeds]
    return state, {k: np.asarray(jnp.nanmean(v, axis=0)) for k, v in metrics.items()}, episodes


# <<< interact


# >>> evaluate (home: td3_bc.py)
def evaluate(policy, state, envs: Sequence[Sequence[Any]], episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted returns and successes (NaN where the environment knows none), [seeds, episodes] each. envs[i] plays
    the policy of seed i, episode k from reset(seed=1000 + k); `policy` maps (state, [seeds, envs, obs]) to
    [seeds, envs, act]; a finished environment waits for the others."""
    returns, successes = np.zeros((len(envs), episodes)), np.full((len(envs), episodes), np.nan)
    slots = len(envs[0])
    for first in range(0, episodes, slots):
        np.random.seed(1000 + first)  # some environments draw from numpy's global generator
        alive = np.zeros((len(envs), slots), bool)
        alive[:, : episodes - first] = True
        resets = [[env.reset(seed=1000 + first + slot)[0] for slot, env in enumerate(row)] for row in envs]
        observations = np.asarray(resets, np.float32)  # [seeds, slots, obs]
        while alive.any():
            actions = np.asarray(policy(state, observations))
            for i, slot in np.argwhere(alive):
                observation, reward, terminated, truncated, info = envs[i][slot].step(actions[i, slot])
                observations[i, slot] = observation
                returns[i, first + slot] += reward
                successes[i, first + slot] = info.get("success", np.nan)  # the last step's counts
                alive[i, slot] = not (terminated or truncated)
    return returns, successes


# <<< evaluate


# ------------------------------------------------------------------------------------------ bookkeeping
# Nothing below changes a number, but that main chooses the keys that start and train a seed.


# >>> fail (home: td3_bc.py)
def fail(sentence: str):
    """Ends the program for a mistake of its user's: one sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


# <<< fail


# >>> check (home: td3_bc.py)
def check(args: Args) -> None:
    """Refuses arguments that no run can have."""
    lengths, sizes = ("steps", "online_steps", "warmup"), ("batch_size", "eval_every", "eval_episodes", "num_envs")
    sizes += ("buffer_size", "num_critics", "subset_size", "utd", "n_actions", "num_samples", "model_members")
    sizes += ("model_elites", "model_epochs", "rollout_starts", "rollout_interval", "rollout_length", "rollout_retain")
    sizes += ("policy_freq", "target_period", "value_updates", "k", "seq_len", "num_layers", "num_heads")
    sizes += ("flow_steps", "subset")
    flag = lambda name: f"--{name.replace('_', '-')}"
    for name in lengths + sizes:
        if (value := getattr(args, name, None)) is not None and value < (name in sizes):
            fail(f"{flag(name)} is {value}; it must be at least {int(name in sizes)}.")
    for part, whole in (("subset_size", "num_critics"), ("model_elites", "model_members")):
        if getattr(args, part, 0) > getattr(args, whole, sys.maxsize):
            fail(f"{flag(part)} is {getattr(args, part)}; it must not be above {flag(whole)}, {getattr(args, whole)}.")
    for name in ("offline_ratio", "real_ratio"):
        if not 0 <= (getattr(args, name, None) or 0) <= 1:
            fail(f"{flag(name)} is {getattr(args, name)}; it must lie between 0 and 1.")
    if not last(args):
        fail(f"--steps {'and --online-steps are' if hasattr(args, 'online_steps') else 'is'} 0: nothing is trained.")
    if not args.seeds or len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed < 2**32 for seed in args.seeds):
        fail(f"--seeds {' '.join(map(str, args.seeds))}: give one or more different seeds from 0 to 2**32 - 1.")


# <<< check


# >>> parse (home: td3_bc.py)
def parse(argv: Sequence[str] | None = None) -> tuple[Args, dict[str, str]]:
    """The command line over TUNED over the defaults; and whence each argument has its value."""
    import tyro

    argv = sys.argv[1:] if argv is None else list(argv)
    flags = [flag for flag in argv if flag not in ("-h", "--help")]
    # Both --flag and --no-flag are understood, since TUNED may set either; help shows the one that changes something.
    config = (tyro.conf.FlagCreatePairsOff,) if flags != argv else ()
    cli = functools.partial(tyro.cli, Args, description=__doc__.partition("\n@")[0])
    asked = cli(args=flags)
    default = Args(dataset=asked.dataset) if asked.untuned else tuned(asked.dataset)
    args = cli(args=argv, default=default, config=config)
    check(args)
    source, values = ("", {}) if args.untuned else TUNED.get(args.dataset, ("", {}))
    origin = {name: source if name in values else "default" for name in dataclasses.asdict(args)}
    origin |= {
        k: "command line" for k in origin if getattr(args, k) != getattr(Args() if k == "dataset" else default, k)
    }
    return args, origin


# <<< parse


# >>> fingerprint (home: td3_bc.py)
def fingerprint(script: str, arguments: dict[str, Any]) -> str:
    """SHA-256 of the code that decides the numbers of a run with these arguments: what stands above the bookkeeping,
    less imports, the table of tuned values (the resolved ones count), comments, docstrings and layout; and without
    online steps less the block of that phase."""
    text = Path(script).read_text().partition("- bookkeeping")[0]
    if arguments.get("online_steps") == 0:
        text = re.sub("# >>> interact.*# <<< interact", "", text, flags=re.DOTALL)
    tree = ast.parse(text)
    tree.body = [
        x for x in tree.body if not isinstance(x, ast.Import | ast.ImportFrom) and "TUNED" not in ast.unparse(x)
    ]
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


# <<< fingerprint


# >>> checkpoint (home: td3_bc.py)
def identity(args: Args, dataset_sha256: str) -> dict[str, Any]:
    """All that decides a run's numbers but dataset.py and what is installed: with these, two runs of one identity are
    equal to the byte on one machine."""
    aside = ("dataset", "out", "resume", "untuned", "wandb", "video")
    arguments = {k: v for k, v in dataclasses.asdict(args).items() if k not in aside}
    for name in arguments.keys() & {"pretrained", "dynamics"}:  # by content: a folder means nothing elsewhere
        if arguments[name]:
            arguments[name] = hashlib.sha256(Path(arguments[name]).read_bytes()).hexdigest()
    return json.loads(json.dumps({**arguments, "data": dataset_sha256, "script": fingerprint(__file__, arguments)}))


def save(path: Path, run: dict[str, Any], state: State, step: int, log: list) -> None:
    """Replaces the checkpoint at once: whoever kills the run at any moment finds the old or the new one, whole."""
    state = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
    content = {"run": json.dumps(run), "state": state, "step": step, "log": json.dumps(log)}
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(flax.serialization.msgpack_serialize(content))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def restore(path: Path, run: dict[str, Any], state: State, parent: bool = False) -> tuple[State, int, list]:
    """The checkpoint's state, step and log; refused unless it belongs to `run` and is shaped as `state`. Of a parent, a
    run that this one begins from, only the seeds must be the same, and its buffer stays behind."""
    remedy = "give --pretrained one with the same seeds and networks" if parent else "--no-resume starts over"
    try:
        content = flax.serialization.msgpack_restore(path.read_bytes())
        theirs = json.loads(content["run"])
        if parent:
            theirs = run | {"seeds": theirs["seeds"]}
            content["state"]["buffer"] = flax.serialization.to_state_dict(state)["buffer"]
        restored = flax.serialization.from_state_dict(state, content["state"])
    except Exception as error:
        fail(f"The checkpoint {path} cannot be read ({error}); {remedy}.")
    differ = sorted(k for k in run.keys() | theirs.keys() if run.get(k) != theirs.get(k))
    if differ:
        fail(f"The checkpoint {path} was written with another {' and '.join(differ)}; {remedy}.")
    for (place, ours), leaf in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(restored), strict=True):
        if (ours.shape, ours.dtype) != (leaf.shape, leaf.dtype):
            shapes = f"{leaf.dtype}{leaf.shape}, not {ours.dtype}{ours.shape}"
            fail(f"The checkpoint {path} holds {jax.tree_util.keystr(place)} as {shapes}; {remedy}.")
    return jax.tree.map(jnp.asarray, restored), content["step"], json.loads(content["log"])


# <<< checkpoint


# >>> record (home: td3_bc.py)
def last(args: Args) -> int:
    """The last step of a run: of the online phase, which an online script counts on, or of the only one."""
    return args.steps + getattr(args, "online_steps", 0)


def machine() -> dict[str, Any]:
    """Where and with what a run is computed."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    packages = ("jax", "flax", "optax", "numpy", "gymnasium", "mujoco", "minari")
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu.partition("model name\t: ")[2].partition("\n")[0] or platform.processor(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None) or "the device's own",
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else "",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }


def group(args: Args, run: dict[str, Any], benchmark: str, name: str) -> Path:
    """The folder of a group of seeds: other seeds or arguments, another group."""
    digest = hashlib.sha256(json.dumps({k: run[k] for k in sorted(run.keys() - {"data", "script"})}).encode())
    seeds = "-".join(map(str, args.seeds))
    return Path(args.out, benchmark, name, Path(__file__).stem, f"seeds-{seeds}-{digest.hexdigest()[:8]}")


def finished(folder: Path, args: Args, run: dict[str, Any]) -> bool:
    files = [folder / f"seed_{seed}.json" for seed in args.seeds]
    contents = [json.loads(file.read_text()) for file in files if file.exists()]
    return len(contents) == len(files) and all(x["finished"] and x["run"] == run for x in contents)


def evaluation(log, step, started, training, returns, successes, score, metrics, episodes=None) -> dict[str, Any]:
    """What the log keeps of an evaluation of all seeds; `started` is a reading of time.perf_counter, `training` the
    seconds of it, `episodes` those that ended online since the last evaluation."""
    return {
        "step": step,
        "wall_seconds": (log[-1]["wall_seconds"] if log else 0.0) + time.perf_counter() - started,
        "train_seconds": training,
        "returns": returns.tolist(),
        "successes": None if np.isnan(successes).any() else successes.tolist(),
        "score": None if score is None else score.mean(axis=1).tolist(),
        "metrics": {k: [float(x) if np.isfinite(x) else None for x in v] for k, v in metrics.items()},
        "episodes": episodes,
    }


def regret(episodes: list, reference) -> float | None:
    """By how much the online episodes, [step, return, success], fell short of success or of score 100, in the mean."""
    if episodes and episodes[0][2] is not None:
        return float(np.mean([1 - success for _, _, success in episodes]))
    if episodes and reference:
        return float(np.mean([(reference[1] - value) / np.ptp(reference) for _, value, _ in episodes]))
    return None


def record(folder: Path, args: Args, header: dict[str, Any], log: list) -> None:
    """One JSON a seed, derived from the checkpoint's log."""
    lengths = np.diff([0] + [entry["step"] for entry in log])
    speeds = [length / entry["train_seconds"] for entry, length in zip(log, lengths, strict=True) if length]
    for i, seed in enumerate(args.seeds):
        shared, own = ("step", "wall_seconds", "train_seconds"), ("returns", "successes", "score", "episodes")
        evaluations = [
            {k: entry[k] for k in shared}
            | {k: entry[k][i] for k in own if entry[k] is not None}
            | {"metrics": {k: v[i] for k, v in entry["metrics"].items()}}
            for entry in log
        ]
        episodes = [episode for entry in log for episode in (entry["episodes"] or [[]] * len(args.seeds))[i]]
        content = {
            **header,
            "seed": seed,
            "finished": bool(log) and log[-1]["step"] == last(args),
            "steps_per_second": float(np.median(speeds)) if speeds else None,  # of the whole group
            "regret": regret(episodes, header["dataset"]["reference"]),
            "final": {k: v for k, v in evaluations[-1].items() if k != "metrics"} if log else None,
            "evaluations": evaluations,
        }
        if memory := jax.devices()[0].memory_stats():  # of an accelerator
            content["device_peak_bytes"] = memory["peak_bytes_in_use"]
        part = folder / f"seed_{seed}.part"
        part.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in content.items()) + "\n}\n")
        os.replace(part, folder / f"seed_{seed}.json")


def loggers(args: Args, header: dict[str, Any], folder: Path) -> list:
    """A run of Weights & Biases for every seed, if they are asked for; the same one where a run goes on."""
    if not args.wandb:
        return []
    try:
        import wandb
    except ModuleNotFoundError:
        fail("--wandb needs Weights & Biases: pip install wandb.")

    project, group = os.environ.get("WANDB_PROJECT", "solo"), "/".join(folder.parts[-3:])
    shared = {"project": project, "group": group, "config": header, "reinit": "create_new"}
    known = [hashlib.sha256(json.dumps([header["run"], seed]).encode()).hexdigest()[:16] for seed in args.seeds]
    again = [{"id": x, "resume": "allow"} if args.resume else {} for x in known]
    return [wandb.init(name=f"seed {seed}", **x, **shared) for seed, x in zip(args.seeds, again, strict=True)]


def report(entry: dict[str, Any], bar, loggers: list) -> None:
    """The progress bar shows the means over seeds, Weights & Biases every seed's numbers."""
    figures = {"return": np.mean(entry["returns"], axis=1)} | ({"score": entry["score"]} if entry["score"] else {})
    bar.update(entry["step"] - bar.n)
    bar.set_postfix({k: f"{np.mean(v):.1f}" for k, v in figures.items()})
    for i, logger in enumerate(loggers):
        values = {f"evaluation/{k}": v[i] for k, v in figures.items()}
        logger.log(values | {f"train/{k}": v[i] for k, v in entry["metrics"].items()}, step=entry["step"])
        if entry["step"] == bar.total:
            logger.finish()


def film(args: Args, policy, state, make, folder: Path) -> None:
    """Records `args.video` episodes of every seed, the first ones of an evaluation, as mp4."""
    from gymnasium.wrappers import RecordVideo

    camera = functools.partial(RecordVideo, video_folder=str(folder), episode_trigger=lambda _: True)
    try:
        envs = [[camera(make(render_mode="rgb_array"), name_prefix=f"seed-{seed}")] for seed in args.seeds]
        evaluate(policy, state, envs, args.video)
        for [env] in envs:
            env.close()
    except Exception as error:  # of whatever draws here: OpenGL, MuJoCo, ffmpeg
        fail(f"No video can be drawn here ({error}): the same command with MUJOCO_GL=egl or MUJOCO_GL=osmesa may.")
    print(f"  videos: {folder}")


def conclude(args: Args, log: list) -> None:
    for i, seed in enumerate(args.seeds):
        score = "" if log[-1]["score"] is None else f", score {log[-1]['score'][i]:.1f}"
        print(f"  seed {seed}: mean return {np.mean(log[-1]['returns'][i]):.1f}{score}")


# <<< record


# >>> host (home: td3_bc.py)
@functools.partial(jax.jit, static_argnums=(0, 4))
def batches(args: Args, data: Data, keys: jax.Array, start: jax.Array, steps: int) -> Batch:
    """What `train` samples for `steps` updates, [seeds, steps, ...], where the data are."""
    one = lambda key, step: sample(args, data, jax.random.split(jax.random.fold_in(key, step))[0])
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, start + jnp.arange(steps))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_on(args: Args, state: State, given: Batch, keys: jax.Array, start: jax.Array):
    """The updates of `train` on batches [seeds, steps, ...]; metrics [seeds, steps]."""

    def train_seed(state, given, key):
        def one_update(state, x):
            batch, step = x
            draw_key = jax.random.split(jax.random.fold_in(key, step))[1]
            return update(args, state, batch, draw(args, batch, draw_key), step)

        return jax.lax.scan(one_update, state, (given, start + jnp.arange(len(jax.tree.leaves(given)[0]))))

    return each_seed(train_seed)(state, given, keys)


def train_from_host(args: Args, data: Data, state: State, keys: jax.Array, start: int, steps: int, block: int = 100):
    """As `train`, to the bit on a CPU, with data that the host keeps: while the device is at `block` updates, a thread
    samples and sends the batches of the next."""
    host, device = jax.devices("cpu")[0], jax.devices()[0]
    host_keys, end, history = jax.device_put(keys, host), start + steps, []
    bring = lambda first: jax.device_put(batches(args, data, host_keys, first, min(block, end - first)), device)
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(bring, start)
        for first in range(start, end, block):
            given = ahead.result()
            if first + block < end:
                ahead = thread.submit(bring, first + block)
            state, metrics = jax.block_until_ready(train_on(args, state, given, keys, first))
            history.append(metrics)
    return state, jax.tree.map(lambda *x: jnp.nanmean(jnp.concatenate(x, axis=1), axis=1), *history)


def room() -> int:
    """Bytes of the accelerator's memory; without one there is no end to them."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", sys.maxsize)


def place(args: Args, dataset):
    """Which function trains, and its data: on the device, or, where the dataset would take more than half of it, on the
    host."""
    size = sum(x.nbytes for x in dataset if isinstance(x, np.ndarray))
    if size <= room() // 2:
        return train, prepare(args, dataset)
    much = (
        f"{size / 2**30:.1f} GiB of data are more than half of the {room() / 2**30:.1f} GiB that JAX has of the device"
    )
    if getattr(args, "online_steps", 0) or any(hasattr(args, name) for name in ("model_members", "k")):
        fail(f"{much}, which only offline learning from batches can do without: take a part, or JAX_PLATFORMS=cpu.")
    print(f"  {much}: the host samples them")
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        return train_from_host, jax.device_put(prepare(args, dataset), host)


# <<< host


# >>> aside (home: td3_bc.py)
stage: Any = None  # policy and environments, in a process that evaluates


def set_stage(args: Args, dataset) -> None:
    """Begins a process that evaluates, on the CPU. Ctrl-C is for its parent, and it does not outlive that."""
    global stage
    import dataset as loader

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    jax.config.update("jax_platforms", "cpu")
    envs = [loader.make_env(dataset) for _ in range(min(args.eval_episodes, 10))]
    stage = jax.jit(jax.vmap(functools.partial(act, args))), [envs]


def perform(args: Args, state: State):
    policy, envs = stage
    return evaluate(policy, state, envs, args.eval_episodes)


def evaluators(args: Args, dataset, threads: int) -> ProcessPoolExecutor:
    """Processes that evaluate, one a seed as far as there are threads for them."""
    count = min(len(args.seeds), max(1, threads - 1))
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=set_stage, initargs=(args, dataset))


def evaluate_aside(args: Args, processes: ProcessPoolExecutor, state: State) -> tuple[np.ndarray, np.ndarray]:
    """`evaluate`, each seed in one of the processes."""
    state = jax.tree.map(np.asarray, state._replace(buffer=None) if hasattr(state, "buffer") else state)
    one = lambda i: jax.tree.map(lambda x: x[i : i + 1], state)
    try:
        parts = [processes.submit(perform, args, one(i)) for i in range(len(args.seeds))]
        returns, successes = zip(*(part.result() for part in parts), strict=True)
    except BrokenExecutor:
        sys.exit("error: A process that evaluates has died (of too little memory?); the same command goes on.")
    return np.concatenate(returns), np.concatenate(successes)


# <<< aside


# >>> main (home: td3_bc.py)
def timed(trainer, *given):
    """What it returns, when it is computed, and the seconds that it took."""
    began = time.perf_counter()
    results = jax.block_until_ready(trainer(*given))
    return results, time.perf_counter() - began


def main(interact=None) -> None:
    """`interact` is the online phase, of a script that has one."""
    args: Any  # only some scripts have the arguments of an online phase
    args, origin = parse()
    try:
        import dataset as loader
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing: dataset.py belongs beside this script, and what its header names is needed.")

    if interact and args.online_steps and (args.online_steps % args.num_envs or args.eval_every % args.num_envs):
        fail(f"--online-steps and --eval-every must be multiples of --num-envs, {args.num_envs}.")
    for name in ("pretrained", "dynamics"):
        if (file := getattr(args, name, None)) and not Path(file).is_file():
            fail(f"--{name} {file} is no file; both a checkpoint and a model end in .msgpack.")
    # The second start of the same program need not compile.
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache/solo/jax"))
    try:
        whole = loader.load(args.dataset, args.env)
        few = {k: v[:1000] for k, v in whole._asdict().items() if isinstance(v, np.ndarray)}
        dataset = whole._replace(**few)  # all that an environment asks of it; the whole is dropped below
        make = functools.partial(loader.make_env, dataset)
        envs = [[make() for _ in range(min(args.eval_episodes, 10))] for _ in args.seeds]
    except loader.DatasetError as error:
        fail(str(error))
    run = identity(args, dataset.sha256)
    folder = group(args, run, dataset.benchmark, dataset.name)
    checkpoint = folder / "checkpoint.msgpack"
    about = {k: v for k, v in dataset._asdict().items() if not isinstance(v, np.ndarray)}
    about |= {"rows": len(whole.rewards), "kept": int(whole.keep.sum()), "episodes": len(whole.episodes)}
    given = {k: v for k, v in dataclasses.asdict(args).items() if k != "out"}
    arguments = given | {k: run[k] for k in given.keys() & {"pretrained", "dynamics"}}
    header = {"algorithm": Path(__file__).stem, "dataset": about, "arguments": arguments}
    header |= {"origin": origin, "run": run, "machine": machine()}
    print(f"{header['algorithm']} on {dataset.name}: {about['kept']:,} of {about['rows']:,} rows ({dataset.rule})")
    for source in dict.fromkeys(origin.values()):
        print(f"  {source}: " + ", ".join(f"{k} {getattr(args, k)}" for k in origin if origin[k] == source))
    if args.steps + getattr(args, "warmup", 0) >= last(args) > args.steps:
        print(f"  nothing is learned online: --warmup {args.warmup} takes all of --online-steps {args.online_steps}")
    print(f"  results: {folder}")
    done = args.resume and finished(folder, args, run)
    if done and not args.video:
        return print("This run is finished; --no-resume repeats it.")
    if done and not checkpoint.exists():
        fail(f"This run is finished, but {checkpoint} is gone: there is nothing to film unless --no-resume repeats it.")

    trainer, data = place(args, whole)
    del whole
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jnp.stack([jax.random.key(seed) for seed in args.seeds]))
    state = jax.jit(jax.vmap(init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys[:, 0])
    policy = jax.jit(jax.vmap(functools.partial(act, args)))
    step, log, ahead, thread, processes = 0, [], None, None, None
    if jax.default_backend() != "cpu":  # the accelerator trains on, told by the thread, while the processes evaluate
        thread, processes = ThreadPoolExecutor(1), evaluators(args, dataset, header["machine"]["threads"])
    if run.get("pretrained"):
        state, header["pretrained_steps"], _ = restore(Path(args.pretrained), run, state, parent=True)
        others = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))  # or it would draw as the parent drew
        keys = others(keys, header["pretrained_steps"])
        statistics = lambda x: [getattr(x, name) for name in ("mean", "std") if hasattr(x, name)]
        if not all(map(np.allclose, statistics(state), statistics(data))):
            fail(f"--pretrained {args.pretrained} saw observations of other data, or normalised otherwise, than these.")
    if args.resume and checkpoint.exists():
        state, step, log = restore(checkpoint, run, state)
    if trainer is train_from_host:  # it was drawn where the data are
        state = jax.device_put(state, jax.devices()[0])
    folder.mkdir(parents=True, exist_ok=True)
    if not done:  # a film changes nothing in a finished run's JSON
        record(folder, args, header, log)
    logs = [] if done else loggers(args, header, folder)
    bar = tqdm(total=last(args), initial=step, unit="step", mininterval=0.5 if sys.stderr.isatty() else 30)
    try:
        while step < last(args):
            started, metrics, episodes = time.perf_counter(), {}, None
            if step < args.steps:
                length = min(args.eval_every, args.steps - step)
                results = ahead.result() if ahead else timed(trainer, args, data, state, keys[:, 1], step, length)
                (state, metrics), training = results
            elif not log:  # nothing was trained here: the first evaluation is of what the run begins with
                length, training = 0, 0.0
            else:
                online, length = step - args.steps, min(args.eval_every, last(args) - step)
                np.random.seed(np.random.SeedSequence([*args.seeds, step]).generate_state(1)[0])  # as in `evaluate`
                out = interact(args, data, state, make, keys, args.steps, online, length, bar.update)
                state, metrics, episodes = jax.block_until_ready(out)
                training = time.perf_counter() - started
            step, ahead, seen = step + length, None, state
            if thread and step < args.steps:  # it learns on, while a copy is evaluated
                seen = jax.tree.map(np.array, state)
                length = min(args.eval_every, args.steps - step)
                ahead = thread.submit(timed, trainer, args, data, state, keys[:, 1], step, length)
            if processes:
                returns, successes = evaluate_aside(args, processes, seen)
            else:
                returns, successes = evaluate(policy, seen, envs, args.eval_episodes)
            score = loader.normalized_score(dataset, returns) if dataset.reference else None
            if dataset.benchmark.startswith("OGBench"):  # its score is the success rate, in percent
                score = 100 * successes
            log.append(evaluation(log, step, started, training, returns, successes, score, metrics, episodes))
            save(checkpoint, run, seen, step, log)
            record(folder, args, header, log)
            report(log[-1], bar, logs)
    except KeyboardInterrupt:
        for child in active_children():  # or their evaluations would be waited for
            child.kill()
        again = "the same command" if args.resume else "the same command without --no-resume"
        print(f"\nStopped; {again} goes on from step {log[-1]['step'] if log else 0:,}.", file=sys.stderr)
        sys.exit(130)
    bar.close()
    conclude(args, log)
    if args.video:
        film(args, policy, state, make, folder / "video")


# <<< main


if __name__ == "__main__":
    main(interact)
