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
"""WSRL: offline-to-online without keeping the data: pre-train with pessimism, act a while, then learn from that alone.

Paper: Zhou, Peng, Li, Levine and Kumar, "Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline
       Data", ICLR 2025, arXiv:2412.07762.
Code:  github.com/zhouzypaul/wsrl (finetune.py; wsrl/agents/{sac,cql,calql}.py; experiments/configs).

A pre-trained critic knows the values of the data's actions, not of those that its policy takes. Fine-tuned at once on
its own first steps, it forgets more than it learns; so offline data is usually kept and mixed in. WSRL lets the frozen
policy act for `--warmup` steps into an empty buffer instead: what the first updates see is what the policy does. After
that it is SAC with an ensemble of critics and many updates a step, and neither pessimism nor offline data.

Before the switch, Cal-QL (--calibrated) or CQL with an ensemble; i, j run over all critics, i* over two drawn ones:

    critic  L_Q  = mean_j mean (Q_j(s, a) - y)^2 + cql_alpha mean_i* gap_i*(s, a),
            y    = r + discount (1 - d) max over n actions a' ~ pi(s') of min_i* Q'_i*(s', a')
            gap_i = log sum_k exp(Q_i(s, a_k) - log density(a_k)) - Q_i(s, a), a_k: n uniform, n of pi(s), n of pi(s');
            --calibrated: Q_i of the policy's actions no lower than the return that the data's action led to;
            --no-importance-sampling: Q_i(s, a) is one of the sum, which becomes a mean
    actor   L_pi = mean temperature log pi(a|s) - min_j Q_j(s, a),  a = tanh(mean + std eps) ~ pi(s)
    temperature L = temperature (entropy of pi(s') - target entropy),  softplus keeps it above 0
    targets theta' <- tau theta + (1 - tau) theta'

all at the parameters before the update. --lagrange: cql_alpha is a multiplier that grows while the gap is above
target_gap. After the switch an update is `--utd` critic steps, each on a batch of its own,

            L_Q  = mean_j mean (Q_j(s, a) - y)^2,  y = r + discount (1 - d) min_i* Q'_i*(s', a'),  a' ~ pi(s')

(--online-max-target-backup: the largest of n), then one step of actor and temperature on all of these rows. With
--keep-gap nothing changes at the switch but the source of the rows: plain fine-tuning, one pre-training update a step.
(With --calibrated the data's rows are bounded, the new ones are not: cal_ql.py knows their returns online.)

What made the published numbers, and is not in the paper: each network has an Adam of its own, but every step calls all
of them, with a gradient of 0 for those whose turn it is not. Momentum keeps them moving: under a constant gradient the
actor goes sqrt(utd + 1) times as far an update. --no-adam-drift stops it. And the critics, each with hidden layers of
its own, share one output layer.

Differences from the official code:
 1. All seeds of a run train in one program, each with its own networks, environments and buffer.
 2. Of ten critics the target and the gap need the two that were drawn: only those are computed.
 3. Episode i of every evaluation starts from reset(seed=1000 + i); official: one environment goes on, seed + 1000.
 4. The environments start afresh after every evaluation, from seeds that follow from the step, so that a resumed run
    repeats an undisturbed one to the byte; an episode that this cuts off counts as out of time, and is played to its
    end for the regret alone.
 5. `--warmup` is taken at its word, also below the 1,024 steps that the official code waits at least.
 6. With --offline-ratio above 0 every slice of a batch is mixed; official: the first slices online, the last offline.
 7. The gap is not bounded (no official configuration bounds it), and the policy is not cloned.
 8. Adroit's binary tasks, whose data is not D4RL's, are not loaded; their values would be steps 20,000, cql_alpha 1,
    reward_scale 10, reward_shift 5, hidden_dims 512 512, critic_hidden_dims 512 512 512, with --calibrated. Nor are
    AntMaze's ultra mazes.
 9. Kitchen's values are for the record: dataset.py has no environment for it. The official loader ends an episode where
    the reward is 4.
10. With --calibrated, rows after the data's last end of an episode stay; the official loader drops them.
11. The buffer holds 1,000,000 transitions, not 2,000,000: more than the published 500,000 steps store.
12. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4;
    AntMaze in what Gymnasium-Robotics has of it today, with D4RL's physics, goals and rewards put back (dataset.py).
    Where time has cut an episode without a mark, the next observation is the file's own or, in AntMaze's files, which
    have none, the row's own observation; official: the next row's, but with --calibrated the file's too.

Run:   python algorithms/wsrl.py --dataset hopper-medium-v2 --seeds 0 1 2
       python algorithms/wsrl.py --dataset hopper-medium-v2 --steps 0 --pretrained <checkpoint.msgpack> --warmup 0
Scores: results/README.md

@inproceedings{zhou2025efficient,
  title     = {Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data},
  author    = {Zhiyuan Zhou and Andy Peng and Qiyang Li and Sergey Levine and Aviral Kumar},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
}
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
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
from typing import Any, NamedTuple

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
    steps: int = 250_000  # gradient steps of the pre-training
    batch_size: int = 256  # transitions a gradient step
    discount: float = 0.99  # of the return that the critics estimate
    tau: float = 0.005  # share of the network that a target takes over at each of its updates
    eval_every: int = 20_000  # steps between evaluations; each is also a checkpoint
    eval_episodes: int = 20  # episodes an evaluation
    out: str = "results/runs"  # folder of checkpoints and JSON
    resume: bool = True  # go on from the checkpoint of the same command, unless --no-resume
    untuned: bool = False  # leave the dataset's published hyper-parameters out
    wandb: bool = False  # log to Weights & Biases (without an account: WANDB_MODE=offline)
    video: int = 0  # after training, film this many episodes of every seed

    online_steps: int = 500_000  # environment steps of fine-tuning after the gradient steps, an update each
    offline_ratio: float | None = 0.0  # the dataset's share of an online batch; none: as of all rows, old and new
    buffer_size: int = 1_000_000  # online transitions kept
    warmup: int = 5_000  # first online steps, of the frozen policy
    num_envs: int = 1  # environments of a seed, stepped together
    pretrained: str | None = None  # checkpoint of this script to begin from; with --steps 0 online at once

    num_critics: int = 10  # members of the ensemble
    subset: int = 2  # members that a target or a gap is computed with, drawn with replacement
    utd: int = 4  # critic steps an online update, of batch_size rows each
    keep_gap: bool = False  # plain fine-tuning: online too the pre-training's update, one a step
    adam_drift: bool = True  # let momentum move networks whose turn it is not, unless --no-adam-drift
    online_max_target_backup: bool = False  # online target: the largest value of n actions, not that of one
    max_target_backup: bool = True  # pre-training target: the same, unless --no-max-target-backup
    calibrated: bool = False  # Cal-QL: the gap counts the policy's actions no lower than the data's return
    sparse: bool = False  # an episode of nothing but its lowest reward is taken to go on so for ever
    cql_alpha: float = 5.0  # weight of the gap
    n_actions: int = 10  # sampled actions of each kind, n above
    cql_temperature: float = 1.0  # of the soft maximum; towards 0 it is the maximum
    importance_sampling: bool = True  # divide by the sampled actions' densities, unless --no-importance-sampling
    lagrange: bool = False  # learn the weight of the gap so that the gap is target_gap
    target_gap: float = 1.0  # the gap that --lagrange aims at
    actor_lr: float = 1e-4  # Adam's, of the actor
    critic_lr: float = 3e-4  # Adam's, of the critics
    temperature_lr: float = 1e-4  # Adam's, of the temperature
    multiplier_lr: float = 3e-4  # Adam's, of the multiplier
    hidden_dims: tuple[int, ...] = (256, 256)  # widths of the hidden layers of actor and critics
    critic_hidden_dims: tuple[int, ...] | None = None  # of the critics, where they differ from the actor's
    last_scale: float = 1e-2  # of the first weights of the last hidden layer, which LayerNorm then hides
    free_std: bool = False  # the policy's standard deviation is a vector of its own, not of the state
    reward_scale: float = 1.0  # factor of every reward
    reward_shift: float = 0.0  # added to every reward after that


# Published hyper-parameters: dataset -> (source, what departs from or confirms the defaults).
WSRL = "WSRL 891ee35, experiments"
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{env}-{kind}-v2": (WSRL, {"steps": 250_000, "online_steps": 500_000, "cql_alpha": 5.0})
        for env in ("halfcheetah", "hopper", "walker2d")
        for kind in ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
    },
    **{
        f"antmaze-{maze}-v2": (
            WSRL,
            {"steps": 1_000_000, "online_steps": 500_000, "calibrated": True, "lagrange": True, "target_gap": 0.8}
            | {"online_max_target_backup": True, "free_std": True, "critic_hidden_dims": (256,) * 4}
            | {"reward_scale": 10.0, "reward_shift": -5.0, "sparse": True},
        )
        for maze in ("medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"kitchen-{kind}-v0": (
            WSRL,
            {"steps": 250_000, "online_steps": 500_000, "calibrated": True, "importance_sampling": False}
            | {"hidden_dims": (512,) * 3, "last_scale": 2**0.5, "reward_shift": -4.0},
        )
        for kind in ("complete", "partial", "mixed")
    },
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

BOUND = 0.99999  # of actions, of the data and of the policy


def dense(features: int, scale: float = 2**0.5, name: str | None = None) -> nn.Dense:
    """Orthogonal weights, biases 0."""
    return nn.Dense(features, kernel_init=orthogonal(scale), name=name)


class Trunk(nn.Module):
    hidden_dims: Sequence[int]
    last_scale: float

    @nn.compact
    def __call__(self, x):  # [..., inputs] -> [..., width]
        for i, features in enumerate(self.hidden_dims, start=1):
            x = dense(features, self.last_scale if i == len(self.hidden_dims) else 2**0.5)(x)
            x = nn.relu(nn.LayerNorm()(x))
        return x


class Actor(nn.Module):
    args: Args
    action_dim: int

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> mean, standard deviation, [..., act] each
        x = Trunk(self.args.hidden_dims, self.args.last_scale, name="trunk")(observations)
        mean = dense(self.action_dim, name="mean")(x)
        if self.args.free_std:
            log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,)) + jnp.zeros_like(mean)
        else:
            log_std = dense(self.action_dim, name="log_std")(x)
        return mean, jnp.clip(jnp.exp(log_std), 1e-5, 10.0)


class Critics(nn.Module):
    """An ensemble with hidden layers of its members' own and one output layer for all."""

    args: Args
    members: int

    @nn.compact
    def __call__(self, observations, actions):  # [..., obs], [..., act] -> [members, ...]
        observations = jnp.broadcast_to(observations, (*actions.shape[:-1], observations.shape[-1]))
        x = jnp.concatenate([observations, actions], axis=-1)
        x = jnp.broadcast_to(x, (self.members, *x.shape))  # else the members' products come out transposed
        trunks = nn.vmap(Trunk, {"params": 0}, {"params": True}, axis_size=self.members)
        x = trunks(self.args.critic_hidden_dims or self.args.hidden_dims, self.args.last_scale, name="trunk")(x)
        return dense(1, name="head")(x).squeeze(-1)


def gaussian(args: Args, actor, observations):
    """The policy before its tanh: [..., obs] -> mean and standard deviation, [..., act] each."""
    return Actor(args, actor["params"]["mean"]["bias"].shape[-1]).apply(actor, observations)


def pi(args: Args, actor, observations, noise):
    """Actions tanh(mean + std noise) and the logarithm of their density: [..., act], [...], for noise [..., act]."""
    mean, std = gaussian(args, actor, observations)
    raw = mean + std * noise
    log_normal = (-(noise**2) / 2 - jnp.log(std) - jnp.log(2 * jnp.pi) / 2).sum(-1)
    log_slope = (2 * (jnp.log(2.0) - raw - nn.softplus(-2 * raw))).sum(-1)  # of tanh: log(1 - tanh(raw)^2)
    return jnp.tanh(raw), log_normal - log_slope


def q(args: Args, critics, observations, actions):
    """Values of every critic of `critics`: [..., obs], [..., act] -> [critics, ...]."""
    members = jax.tree.leaves(critics["params"]["trunk"])[0].shape[0]
    return Critics(args, members).apply(critics, observations, actions)


def some(critics, members):
    """The critics of these numbers, with the output layer of all."""
    trunk = jax.tree.map(lambda x: x[members], critics["params"]["trunk"])
    return {"params": critics["params"] | {"trunk": trunk}}


# ------------------------------------------------------------------------------------------ algorithm


class Batch(NamedTuple):
    """Online, each has a leading axis of slices, one a critic step."""

    observations: jax.Array  # [batch, obs]
    actions: jax.Array  # [batch, act], in [-1, 1]
    rewards: jax.Array  # [batch]
    next_observations: jax.Array  # [batch, obs]
    terminals: jax.Array  # [batch], 1 where the episode truly ended, not where time ran out
    mc_returns: jax.Array  # [batch], discounted, from here to the end of the episode; online -inf: no bound


class Data(NamedTuple):
    rows: Batch  # the whole dataset
    buffer: Any = None  # what happened online, for `sample`


class Noise(NamedTuple):
    """Of the pre-training. Normals with an axis n lead with it; `uniform` holds actions in [-1, 1)."""

    next_policy: jax.Array  # [(n,) batch, act]: n with --max-target-backup
    target_subset: jax.Array  # [subset], of the critics
    policy: jax.Array  # [batch, act]
    temperature_policy: jax.Array  # [(n,) batch, act]
    uniform: jax.Array  # [batch, n, act]
    gap_policy: jax.Array  # [n, batch, act]
    gap_next_policy: jax.Array  # [n, batch, act]
    gap_subset: jax.Array  # [subset]
    multiplier_uniform: jax.Array | None = None  # the same four, drawn anew for the multiplier's loss
    multiplier_policy: jax.Array | None = None
    multiplier_next_policy: jax.Array | None = None
    multiplier_subset: jax.Array | None = None


class OnlineNoise(NamedTuple):
    next_policy: jax.Array  # [utd, (n,) batch, act]: n with --online-max-target-backup
    target_subset: jax.Array  # [utd, subset]
    policy: jax.Array  # [utd batch, act]
    temperature_policy: jax.Array  # [(n,) utd batch, act]


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis of the members, but for the output layer
    target_critics: Any
    temperature: jax.Array  # before its softplus, as the multiplier
    multiplier: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    temperature_opt: optax.OptState
    multiplier_opt: optax.OptState
    buffer: Any  # what happened online; None without an online phase


def returns_to_go(args: Args, rewards, ends) -> np.ndarray:
    """Discounted rewards from each row to the next that `ends` marks, without a value for what a time-out leaves:
    [rows]. Where a sparse trajectory saw only the lowest reward, that for ever."""
    returns, worst, stops = np.zeros(len(rewards)), rewards.min(), np.flatnonzero(ends) + 1
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        total = 0.0
        for row in reversed(range(start, stop)):
            total = returns[row] = rewards[row] + args.discount * total
        if args.sparse and (rewards[start:stop] == worst).all():
            returns[start:stop] = worst / (1 - args.discount)
    return returns


def experience(args: Args, data: Data, observations, actions, rewards, next_observations, terminals) -> Batch:
    """Transitions [n, ...] as the updates see them, of the dataset and of the environment alike."""
    rewards = args.reward_scale * rewards + args.reward_shift
    unbounded = jnp.full_like(rewards, -jnp.inf)
    return Batch(observations, actions.clip(-BOUND, BOUND), rewards, next_observations, terminals, unbounded)


def prepare(args: Args, dataset) -> Data:
    """The rows that published code trains on, on the device."""
    columns = dataset.observations, dataset.actions, dataset.rewards, dataset.next_observations, dataset.terminals
    rows = experience(args, Data(None), *(column[dataset.keep] for column in columns))
    if args.calibrated:
        ends = dataset.terminals.astype(bool)
        ends[dataset.episodes[:, 1] - 1] = True
        ends[:-1] |= ~dataset.keep[1:]  # what would follow is left out
        returns = returns_to_go(args, np.asarray(rows.rewards, np.float64), ends[dataset.keep])
        rows = rows._replace(mc_returns=returns)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), Data(rows))


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
    """New networks; the targets start as copies, temperature and multiplier at 1; the buffer is empty."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = data.rows.observations[0], data.rows.actions[0]
    actor = Actor(args, action.shape[-1]).init(actor_key, observation)
    critics = Critics(args, args.num_critics).init(critic_key, observation, action)
    one = jnp.log(jnp.e - jnp.ones(()))
    learned = (args.actor_lr, actor), (args.critic_lr, critics), (args.temperature_lr, one), (args.multiplier_lr, one)
    optimisers = (optax.adam(lr).init(parameters) for lr, parameters in learned)
    buffer = empty(data.rows, min(args.buffer_size, args.online_steps))
    return State(actor, critics, critics, one, one, *optimisers, buffer)


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


one_slice = sample


def sample(args: Args, data: Data, key: jax.Array) -> Batch:
    """Offline a batch, online a slice for each critic step of an update; with --keep-gap always a batch."""
    if data.buffer is None or args.keep_gap:
        return one_slice(args, data, key)
    return jax.vmap(lambda key: one_slice(args, data, key))(jax.random.split(key, args.utd))


def draw(args: Args, batch: Batch, key: jax.Array) -> Noise | OnlineNoise:
    """For a batch of the pre-training or, where it has slices, of the online phase."""
    keys, n, shape = jax.random.split(key, 12), args.n_actions, batch.actions.shape  # [(utd,) batch, act]
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    subset = lambda i, *shape: jax.random.randint(keys[i], (*shape, args.subset), 0, args.num_critics)
    if batch.rewards.ndim > 1:
        (utd, *row), rows = shape, (shape[0] * shape[1], shape[-1])
        several = (n,) if args.online_max_target_backup else ()
        policies = normal(2, *rows), normal(3, *several, *rows)
        return OnlineNoise(normal(0, utd, *several, *row), subset(1, utd), *policies)
    several = (n,) if args.max_target_backup else ()

    def gap(i):
        uniform = jax.random.uniform(keys[i], (shape[0], n, shape[1]), minval=-1, maxval=1)
        return uniform, normal(i + 1, n, *shape), normal(i + 2, n, *shape), subset(i + 3)

    first = normal(0, *several, *shape), subset(1), normal(2, *shape), normal(3, *several, *shape)
    return Noise(*first, *gap(4), *(gap(8) if args.lagrange else ()))


def target(args: Args, state: State, batch: Batch, noise, subset):
    """y: [batch]. With noise [n, batch, act] the value of s' is the largest of n actions'."""
    actions, _ = pi(args, state.actor, batch.next_observations, noise)
    next_q = q(args, some(state.target_critics, subset), batch.next_observations, actions).min(axis=0)  # [(n,) batch]
    next_q = next_q.max(axis=0) if next_q.ndim > 1 else next_q
    return batch.rewards + args.discount * (1 - batch.terminals) * next_q


def td_loss(critics, args: Args, batch: Batch, y):
    values = q(args, critics, batch.observations, batch.actions)  # [critics, batch]
    loss = ((values - y) ** 2).mean()
    return loss, {"td_loss": loss, "q": values.mean(), "q_target": y.mean()}


class Choices(NamedTuple):
    """What the critics are asked about each state."""

    observations: jax.Array  # [batch, obs]
    actions: jax.Array  # [batch, 1 + 3 n, act]: of the data, uniform, of pi(s), of pi(s')
    log_densities: jax.Array  # [batch, 3 n], of all but the data's
    bounds: jax.Array  # [batch], below which the policy's actions are not counted


def choices(args: Args, state: State, batch: Batch, uniform, noise, next_noise) -> Choices:
    actions, log_pi = pi(args, state.actor, batch.observations, noise)  # [n, batch, act], [n, batch]
    next_actions, next_log_pi = pi(args, state.actor, batch.next_observations, next_noise)
    swap = lambda x: jnp.swapaxes(x, 0, 1)
    log_uniform = jnp.full(uniform.shape[:2], -uniform.shape[-1] * np.log(2), uniform.dtype)
    return Choices(
        batch.observations,
        jnp.concatenate([batch.actions[:, None], uniform, swap(actions), swap(next_actions)], axis=1),
        jnp.concatenate([log_uniform, swap(log_pi), swap(next_log_pi)], axis=1),
        batch.mc_returns if args.calibrated else jnp.full_like(batch.rewards, -jnp.inf),
    )


def gaps(critics, args: Args, rows: Choices):
    """How far the soft maximum over actions lies above the data's action: [critics, batch]."""
    values = q(args, critics, rows.observations[:, None], rows.actions)  # [critics, batch, 1 + 3 n]
    data, uniform, policy = jnp.split(values, (1, 1 + args.n_actions), axis=-1)
    sampled = jnp.concatenate([uniform, jnp.maximum(policy, rows.bounds[:, None])], axis=-1)
    if args.importance_sampling:
        terms = sampled - rows.log_densities
    else:
        terms = jnp.concatenate([sampled, data], axis=-1) - args.cql_temperature * np.log(values.shape[-1])
    soft_maximum = args.cql_temperature * nn.logsumexp(terms / args.cql_temperature, axis=-1)
    return soft_maximum - data[..., 0], soft_maximum


def gap_loss(critics, args: Args, state: State, rows: Choices):
    gap, soft_maximum = gaps(critics, args, rows)
    weight = nn.softplus(state.multiplier) if args.lagrange else args.cql_alpha
    loss = gap.mean() - (args.target_gap if args.lagrange else 0.0)
    metrics = {"cql_loss": loss, "gap": gap.mean(), "soft_maximum": soft_maximum.mean(), "cql_alpha": weight + 0 * loss}
    return weight * loss, metrics


# >>> by_parts (home: cql.py)
def by_parts(gradient, rows, most: int = 16):
    """gradient(rows), a mean over rows. What the layers hand on for all choices of a batch, tens of megabytes, leaves a
    CPU's cache: there `most` states at a time go forward and backward, and the mean over all is the same."""
    if jax.default_backend() != "cpu":
        return gradient(rows)
    size = math.gcd(len(jax.tree.leaves(rows)[0]), most)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts)))
    add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None)
    total, _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda x: x / len(jax.tree.leaves(parts)[0]), total)


# <<< by_parts


def actor_loss(actor, args: Args, state: State, observations, noise):
    actions, log_pi = pi(args, actor, observations, noise)
    values = q(args, state.critics, observations, actions).min(axis=0)
    loss = (nn.softplus(state.temperature) * log_pi).mean() - values.mean()
    return loss, {"actor_loss": loss, "entropy": -log_pi.mean(), "temperature": nn.softplus(state.temperature)}


def temperature_loss(temperature, args: Args, state: State, next_observations, noise):
    _, log_pi = pi(args, state.actor, next_observations, noise)
    loss = nn.softplus(temperature) * (-log_pi.mean() + noise.shape[-1])  # target entropy: minus an action's dimensions
    return loss, {"temperature_loss": loss}


def multiplier_loss(multiplier, args: Args, gap):
    return -nn.softplus(multiplier) * (gap - args.target_gap)


def policy_gradients(args: Args, state: State, batch: Batch, noise):
    """Of actor and temperature."""
    gradient = lambda rows: jax.grad(actor_loss, has_aux=True)(state.actor, args, state, *rows)
    actor_grads, metrics = by_parts(gradient, (batch.observations, noise.policy), 128)
    inputs = args, state, batch.next_observations, noise.temperature_policy
    temperature_grad, more = jax.grad(temperature_loss, has_aux=True)(state.temperature, *inputs)
    return {"actor": actor_grads, "temperature": temperature_grad}, metrics | more


def descend(args: Args, state: State, **grads) -> State:
    """An Adam step of the networks that have a gradient; with --adam-drift of all, the others' being 0."""
    for name in ("actor", "critics", "temperature", "multiplier"):
        if name in grads or (args.adam_drift and name != "multiplier"):
            parameters, prefix = getattr(state, name), name.removesuffix("s")
            grad = grads.get(name, jax.tree.map(jnp.zeros_like, parameters))
            adam, opt = optax.adam(getattr(args, f"{prefix}_lr")), getattr(state, f"{prefix}_opt")
            updates, opt = adam.update(grad, opt)
            state = state._replace(**{name: optax.apply_updates(parameters, updates), f"{prefix}_opt": opt})
    return state


def follow(args: Args, state: State) -> State:
    return state._replace(target_critics=optax.incremental_update(state.critics, state.target_critics, args.tau))


def pretrain(args: Args, state: State, batch: Batch, noise: Noise) -> tuple[State, dict[str, jax.Array]]:
    """Cal-QL or CQL: all gradients at `state`, then all steps."""
    y = target(args, state, batch, noise.next_policy, noise.target_subset)
    td_grads, td_metrics = jax.grad(td_loss, has_aux=True)(state.critics, args, batch, y)
    rows = choices(args, state, batch, noise.uniform, noise.gap_policy, noise.gap_next_policy)
    drawn, spread = jax.vjp(lambda critics: some(critics, noise.gap_subset), state.critics)
    gradient = lambda rows: jax.grad(gap_loss, has_aux=True)(drawn, args, state, rows)
    gap_grads, gap_metrics = by_parts(gradient, rows)
    grads, metrics = policy_gradients(args, state, batch, noise)
    grads |= {"critics": jax.tree.map(jnp.add, td_grads, spread(gap_grads)[0])}
    metrics |= td_metrics | gap_metrics
    metrics |= {"critic_loss": metrics["td_loss"] + metrics["cql_alpha"] * metrics["cql_loss"]}
    if args.lagrange:
        again = noise.multiplier_uniform, noise.multiplier_policy, noise.multiplier_next_policy
        rows, critics = choices(args, state, batch, *again), some(state.critics, noise.multiplier_subset)
        gap = by_parts(lambda rows: gaps(critics, args, rows)[0].mean(), rows)
        loss, grads["multiplier"] = jax.value_and_grad(multiplier_loss)(state.multiplier, args, gap)
        metrics |= {"multiplier_loss": loss}
    return follow(args, descend(args, state, **grads)), metrics


def fine_tune(args: Args, state: State, batch: Batch, noise: OnlineNoise) -> tuple[State, dict[str, jax.Array]]:
    """SAC with many critic steps: one a slice of the batch, then one of actor and temperature on all of it."""

    def critic_step(state: State, given):
        batch, noise, subset = given
        y = target(args, state, batch, noise, subset)
        grads, metrics = jax.grad(td_loss, has_aux=True)(state.critics, args, batch, y)
        return follow(args, descend(args, state, critics=grads)), metrics

    state, metrics = jax.lax.scan(critic_step, state, (batch, noise.next_policy, noise.target_subset))
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    grads, policy_metrics = policy_gradients(args, state, batch, noise)
    metrics = jax.tree.map(jnp.mean, metrics) | policy_metrics
    return descend(args, state, **grads), metrics | {"critic_loss": metrics["td_loss"]}


def update(args: Args, state: State, batch: Batch, noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`, which changes nothing: online if the batch has slices, else of the pre-training."""
    return (fine_tune if batch.rewards.ndim > 1 else pretrain)(args, state, batch, noise)


def act(args: Args, state: State, observations: jax.Array) -> jax.Array:
    """The policy's mode: [..., obs] -> [..., act] in [-1, 1]."""
    return jnp.tanh(gaussian(args, state.actor, observations)[0]).clip(-BOUND, BOUND)


def explore(args: Args, state: State, observations: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """A sample of the policy: [envs, obs] -> [envs, act] in [-1, 1]."""
    mean, std = gaussian(args, state.actor, observations)
    return jnp.tanh(mean + std * jax.random.normal(key, mean.shape)).clip(-BOUND, BOUND)


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
