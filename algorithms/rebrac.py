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
"""ReBRAC: TD3+BC that pays for leaving the data in the critics' target too, with deeper, normalised critics.

Paper: Tarasov, Kurenkov, Nikulin and Kolesnikov, "Revisiting the Minimalist Approach to Offline Reinforcement
       Learning", NeurIPS 2023, arXiv:2305.09836.
Code:  github.com/corl-team/CORL (algorithms/offline/rebrac.py), which computes what github.com/tinkoff-ai/ReBRAC does;
       OGBench's published scores: github.com/seohongpark/fql (agents/rebrac.py), here --variant fql.

TD3+BC and what years of others' design choices add to it: the squared distance to the action of the data counts in the
actor's loss and, with a weight of its own, in the value of the next action; critics with LayerNorm after each
activation, which bounds what they say of actions that the data lacks; three hidden layers; large batches on locomotion.

    critic  L_Q  = sum_i mean (Q_i(s, a) - y)^2,
            y    = r + discount (1 - d) (min_i Q'_i(s', a') - beta_critic |a' - a'_data|^2),
            a'   = clip(pi'(s') + clip(policy_noise eps, -noise_clip, noise_clip), -1, 1),  eps ~ N(0, I)
    actor   L_pi = mean (beta_actor |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s))),
            lambda = 1 / mean |min_i Q_i(s, pi(s))|, no gradient
    targets theta' <- tau theta + (1 - tau) theta'

|.|^2 is a sum over the dimensions of an action, a'_data the action of the data's next row. Actor and targets move at
every second step; the actor's target follows the actor as it was before its own step, so that it lags behind by one.

What --variant chooses, the default being the dataset's (fql where OGBench's are tuned here, corl elsewhere):
    corl  ReLU; EDAC's initial weights; actor and targets move at the first, third ... step; the actor climbs the
          critics that have just moved, and the critics' target follows them.
    fql   GELU; Glorot's initial weights; actor and targets move at the second, fourth ... step; the actor climbs the
          critics as they were before the step, and the critics' target follows those; L_Q is the mean over the critics;
          an actor that waits moves on by momentum, with a gradient of zero, for one Adam serves all networks; actions
          of the data stay 1e-5 inside the bounds.

Online (--online-steps), as CORL's fine-tuning script: half of every batch from the dataset, the policy's mode acts, the
critics' penalty is dropped and beta_actor falls to half over the phase's first half.

Differences from the official code:
 1. All seeds of a run train in one program, each with its own initial networks, batches and noise.
 2. Episode i of every evaluation starts from reset(seed=1000 + i), for every seed and step, so that evaluations can be
    compared in pairs; CORL: all episodes after one seed(42), at steps 1,000, 6,000 ..., in its fine-tuning at 1, 50,001
    ... and at the end of either phase, with 100 episodes on Adroit too; FQL: without a seed, and after the first step
    too.
 3. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4;
    mazes and Adroit in what Gymnasium-Robotics has of them today, with D4RL's physics, goals and rewards put back
    (dataset.py). Where time has cut an episode without a mark, the next observation is the file's own or, in AntMaze's
    files, which have none, the row's own observation; official: the next row's.
 4. OGBench gives reward and success one step later since its version 1.2; the published scores were made with 1.1.
 5. One Adam a network in either variant: fed with zeros where --variant fql waits, it does what one over all would do.
 6. The next row belongs to another episode where an episode has ended. That matters to no terminal, whose 1 - d is 0,
    and D4RL's rule drops the rows that time has cut with a mark. Those without one stay, and with them a next action of
    another episode beside a next observation of this one; official: both of the other. Minari's and OGBench's rows stay
    too, as they do in the FQL code, which on D4RL's takes the next row that is kept: before a time-out another
    episode's.
 7. Without a published row both betas are 0.01, those of hopper-medium; CORL's defaults, 1, are no published run's.
 8. Online, --variant fql too does as CORL; FQL's script keeps both penalties as they are, draws from old and new rows
    alike (here --offline-ratio None), which share a ring of 2,000,000 or one more than the dataset has, and acts with
    noise (--exploration-noise 0.2, there cut at 0.5). CORL's ring holds 2,000,000 transitions (--buffer-size).
 9. The environments start afresh after every evaluation, from seeds that follow from the step, so that a resumed run
    repeats an undisturbed one to the byte; an episode that this cuts off counts as out of time, and is played to its
    end for the regret alone. An episode that truly ends on the last step that time allows counts as ended; CORL: as out
    of time.
10. Left out: normalised observations, which no published run has; pixels.

Run:   python algorithms/rebrac.py --dataset hopper-medium-v2 --seeds 0 1 2 3 4
       python algorithms/rebrac.py --dataset my_data.hdf5 --env Hopper-v5 --beta-actor 0.01 --beta-critic 0.01
Scores: results/README.md

@inproceedings{tarasov2023revisiting,
  title     = {Revisiting the Minimalist Approach to Offline Reinforcement Learning},
  author    = {Denis Tarasov and Vladislav Kurenkov and Alexander Nikulin and Sergey Kolesnikov},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
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
    batch_size: int = 1024  # transitions a gradient step
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
    offline_ratio: float | None = 0.5  # the dataset's share of an online batch; none: as of all rows, old and new
    buffer_size: int = 1_000_000  # online transitions kept
    warmup: int = 0  # first online steps, without updates
    num_envs: int = 1  # environments of a seed, stepped together
    pretrained: str | None = None  # checkpoint of this script to begin from; with --steps 0 online at once

    variant: Literal["corl", "fql"] = "corl"  # whose networks and order of steps: see above
    beta_actor: float = 0.01  # weight of the distance to the data's action in the actor's loss
    beta_critic: float = 0.01  # weight of the distance to the data's next action in the critics' target
    normalize_q: bool = True  # divide Q by its mean size in the actor's loss, unless --no-normalize-q
    policy_noise: float = 0.2  # standard deviation of the noise on target actions
    noise_clip: float = 0.5  # bound of that noise
    policy_freq: int = 2  # steps between updates of the actor and of all targets
    exploration_noise: float = 0.0  # standard deviation of the noise on online actions
    actor_lr: float = 1e-3  # Adam's, of the actor
    critic_lr: float = 1e-3  # Adam's, of the critics
    hidden_dims: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of actor and critics
    critic_hidden_dims: tuple[int, ...] | None = None  # of the critics, where they differ from the actor's
    layer_norm: bool = True  # normalise the hidden layers of the critics, unless --no-layer-norm
    actor_layer_norm: bool = False  # normalise the hidden layers of the actor
    reward_scale: float = 1.0  # factor of every reward; 100 on D4RL's AntMaze


# Published hyper-parameters: dataset -> (source, what departs from or confirms the defaults). Where the paper's tables
# 10 and 11 say otherwise (hopper-medium, hopper-expert, AntMaze), the configurations that made the scores count.
CORL = "CORL eeeeef2, configs/offline/rebrac"
FQL = "FQL 719d044, agents/rebrac.py; betas and discount: FQL paper, appendix, at second hand"
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{data}-v2": (
            CORL,
            {"beta_actor": actor, "beta_critic": critic, "batch_size": 1024, "actor_lr": 1e-3, "critic_lr": 1e-3},
        )
        for data, actor, critic in (
            ("halfcheetah-random", 0.001, 0.1),
            ("halfcheetah-medium", 0.001, 0.01),
            ("halfcheetah-expert", 0.01, 0.01),
            ("halfcheetah-medium-replay", 0.01, 0.001),
            ("halfcheetah-medium-expert", 0.01, 0.1),
            ("halfcheetah-full-replay", 0.001, 0.1),
            ("hopper-random", 0.001, 0.01),
            ("hopper-medium", 0.01, 0.01),
            ("hopper-expert", 0.1, 0.1),
            ("hopper-medium-replay", 0.05, 0.5),
            ("hopper-medium-expert", 0.1, 0.01),
            ("hopper-full-replay", 0.01, 0.01),
            ("walker2d-random", 0.01, 0.0),
            ("walker2d-medium", 0.05, 0.1),
            ("walker2d-expert", 0.01, 0.5),
            ("walker2d-medium-replay", 0.05, 0.01),
            ("walker2d-medium-expert", 0.01, 0.01),
            ("walker2d-full-replay", 0.01, 0.01),
        )
    },
    **{
        f"maze2d-{size}-v1": (
            CORL,
            {"beta_actor": 0.003, "beta_critic": 0.001, "batch_size": 256, "actor_lr": 3e-4, "critic_lr": 3e-4}
            | {"eval_episodes": 100},
        )
        for size in ("umaze", "medium", "large")
    },
    **{
        f"antmaze-{maze}-v2": (
            CORL,
            {"beta_actor": actor, "beta_critic": critic, "batch_size": 256, "actor_lr": 3e-4, "critic_lr": 5e-5}
            | {"discount": 0.999, "reward_scale": 100.0, "eval_every": 50_000, "eval_episodes": 100},
        )
        for maze, actor, critic in (
            ("umaze", 0.003, 0.002),
            ("umaze-diverse", 0.003, 0.001),
            ("medium-play", 0.001, 0.0005),
            ("medium-diverse", 0.001, 0.0),
            ("large-play", 0.002, 0.001),
            ("large-diverse", 0.002, 0.002),
        )
    },
    **{
        f"{data}-v1": (
            CORL,
            {"beta_actor": actor, "beta_critic": critic, "batch_size": 256, "actor_lr": 3e-4, "critic_lr": 3e-4},
        )
        for data, actor, critic in (
            ("pen-human", 0.1, 0.5),
            ("pen-cloned", 0.05, 0.5),
            ("pen-expert", 0.01, 0.01),
            ("door-human", 0.1, 0.1),
            ("door-cloned", 0.01, 0.1),
            ("door-expert", 0.05, 0.01),
            ("hammer-human", 0.01, 0.5),
            ("hammer-cloned", 0.1, 0.5),
            ("hammer-expert", 0.01, 0.01),
            ("relocate-human", 0.1, 0.01),
            ("relocate-cloned", 0.1, 0.01),
            ("relocate-expert", 0.05, 0.01),
        )
    },
    **{
        f"{data}-singletask{task}-v0": (
            source,
            {"variant": "fql", "beta_actor": actor, "beta_critic": critic, "discount": discount, "batch_size": 256}
            | {"actor_lr": 3e-4, "critic_lr": 3e-4, "hidden_dims": (512, 512, 512, 512)}
            | {"eval_every": 100_000, "eval_episodes": 50},
        )
        for data, actor, critic, discount, source in (
            ("antmaze-large-navigate", 0.001, 0.01, 0.99, FQL),
            ("antmaze-giant-navigate", 0.001, 0.01, 0.995, f"{FQL} (public scripts have beta_actor 0.003)"),
            ("humanoidmaze-medium-navigate", 0.01, 0.01, 0.995, "FQL 719d044, agents/rebrac.py, main.py, README.md"),
            ("humanoidmaze-large-navigate", 0.01, 0.01, 0.995, FQL),
            ("antsoccer-arena-navigate", 0.01, 0.01, 0.995, FQL),
            ("cube-single-play", 1.0, 0.0, 0.99, FQL),
            ("cube-double-play", 0.1, 0.0, 0.99, FQL),
            ("scene-play", 0.1, 0.01, 0.99, FQL),
            ("puzzle-3x3-play", 0.3, 0.01, 0.99, FQL),
            ("puzzle-4x4-play", 0.3, 0.01, 0.99, FQL),
        )
        for task in ("", "-task1", "-task2", "-task3", "-task4", "-task5")  # "": one of the five
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


def uniform(bound: float):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def scaled(scale: float, fan: str):
    """Uniform in +-sqrt(3 scale / fan): with 1/3 and fan_in in +-1/sqrt(inputs), with 1 and fan_avg Glorot's."""
    return nn.initializers.variance_scaling(scale, fan, "uniform")


# How each variant's layers begin: the arguments of nn.Dense, whose default bias is 0.
LAYERS = {
    "corl": {
        "hidden": {"kernel_init": scaled(1 / 3, "fan_in"), "bias_init": nn.initializers.constant(0.1)},
        "actor's head": {"kernel_init": uniform(1e-3), "bias_init": uniform(1e-3)},
        "critic's head": {"kernel_init": uniform(3e-3), "bias_init": uniform(3e-3)},
    },
    "fql": {
        "hidden": {"kernel_init": scaled(1, "fan_avg")},
        "actor's head": {"kernel_init": scaled(0.01, "fan_avg")},
        "critic's head": {"kernel_init": scaled(1, "fan_avg")},
    },
}


def hidden(x, variant: str, hidden_dims: Sequence[int], layer_norm: bool):
    """The hidden layers of a network; the normalisation follows the activation."""
    activation = {"corl": nn.relu, "fql": nn.gelu}[variant]
    for features in hidden_dims:
        x = activation(nn.Dense(features, **LAYERS[variant]["hidden"])(x))
        x = nn.LayerNorm()(x) if layer_norm else x
    return x


class Actor(nn.Module):
    args: Args
    action_dim: int

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> [..., act]
        args = self.args
        x = hidden(observations, args.variant, args.hidden_dims, args.actor_layer_norm)
        return jnp.tanh(nn.Dense(self.action_dim, **LAYERS[args.variant]["actor's head"])(x))


class Critic(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, observations, actions):  # [..., obs], [..., act] -> [...]
        args = self.args
        x = jnp.concatenate([observations, actions], axis=-1)
        x = hidden(x, args.variant, args.critic_hidden_dims or args.hidden_dims, args.layer_norm)
        return nn.Dense(1, **LAYERS[args.variant]["critic's head"])(x).squeeze(-1)


def pi(args: Args, actor, observations):
    """Actions in [-1, 1]: [..., obs] -> [..., act]."""
    action_dim = actor["params"][f"Dense_{len(args.hidden_dims)}"]["bias"].shape[-1]
    return Actor(args, action_dim).apply(actor, observations)


def q(args: Args, critics, observations, actions):
    """Values of every critic, the leading axis of `critics`: [batch, obs], [batch, act] -> [critics, batch]."""
    return jax.vmap(Critic(args).apply, in_axes=(0, None, None))(critics, observations, actions)


# ------------------------------------------------------------------------------------------ algorithm


class Batch(NamedTuple):
    observations: jax.Array  # [batch, obs]
    actions: jax.Array  # [batch, act], in [-1, 1]
    rewards: jax.Array  # [batch], scaled
    next_observations: jax.Array  # [batch, obs]
    next_actions: jax.Array  # [batch, act], the data's
    terminals: jax.Array  # [batch], 1 where the episode truly ended, not where time ran out


class Data(NamedTuple):
    rows: Batch  # the whole dataset
    buffer: Any = None  # what happened online, for `sample`


class Noise(NamedTuple):
    target_policy: jax.Array  # [batch, act], standard normal


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis 2
    target_actor: Any
    target_critics: Any
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    buffer: Any  # what happened online; None without an online phase


def experience(
    args: Args, data: Data, observations, actions, rewards, next_observations, terminals, next_actions=None
) -> Batch:
    """Transitions [n, ...] as the updates see them. Online, where no loss looks at it, the next action is 0."""
    next_actions = jnp.zeros_like(actions) if next_actions is None else next_actions
    return Batch(observations, actions, rewards * args.reward_scale, next_observations, next_actions, terminals)


def prepare(args: Args, dataset) -> Data:
    """The rows that published code trains on, each with the action of the row after it, on the device."""
    bound = 1 - 1e-5 if args.variant == "fql" else 1
    actions = dataset.actions.clip(-bound, bound)
    next_actions = np.concatenate([actions[1:], actions[-1:]])  # before `keep` drops rows between them
    columns = dataset.observations, actions, dataset.rewards, dataset.next_observations, dataset.terminals, next_actions
    rows = experience(args, Data(None), *(column[dataset.keep] for column in columns))
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
    """New networks; the targets start as copies, the buffer is empty."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = data.rows.observations[0], data.rows.actions[0]
    actor = Actor(args, action.shape[-1]).init(actor_key, observation)
    critics = jax.vmap(Critic(args).init, in_axes=(0, None, None))(jax.random.split(critic_key, 2), observation, action)
    actor_opt, critic_opt = optax.adam(args.actor_lr).init(actor), optax.adam(args.critic_lr).init(critics)
    buffer = empty(data.rows, min(args.buffer_size, args.online_steps))
    return State(actor, critics, actor, critics, actor_opt, critic_opt, buffer)


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
    return Noise(target_policy=jax.random.normal(key, batch.actions.shape))


def distance(a, b):
    """The squared one of actions, summed over their dimensions: [..., act], [..., act] -> [...]."""
    return ((a - b) ** 2).sum(axis=-1)


def penalties(args: Args, step: jax.Array):
    """The weights of the actor's and of the critics' penalty in update `step`. Online CORL's actor is let go to half of
    its weight, linearly, and its critics at once."""
    if not args.online_steps:
        return args.beta_actor, args.beta_critic
    left = 1 - (step - args.steps - args.warmup) / args.online_steps
    return args.beta_actor * jnp.clip(left, 0.5, 1), jnp.where(step < args.steps, args.beta_critic, 0.0)


def critic_loss(critics, args: Args, beta, state: State, batch: Batch, noise: Noise):
    smoothing = jnp.clip(args.policy_noise * noise.target_policy, -args.noise_clip, args.noise_clip)
    next_actions = jnp.clip(pi(args, state.target_actor, batch.next_observations) + smoothing, -1, 1)
    next_q = q(args, state.target_critics, batch.next_observations, next_actions).min(axis=0)
    penalty = distance(next_actions, batch.next_actions)  # [batch]
    y = batch.rewards + args.discount * (1 - batch.terminals) * (next_q - beta * penalty)  # [batch]
    values = q(args, critics, batch.observations, batch.actions)  # [2, batch]
    losses = ((values - y) ** 2).mean(axis=1)  # [2]
    loss = losses.mean() if args.variant == "fql" else losses.sum()
    return loss, {"critic_loss": loss, "q": values.mean(), "q_target": y.mean(), "penalty": penalty.mean()}


def actor_loss(actor, args: Args, beta, critics, batch: Batch):
    actions = pi(args, actor, batch.observations)
    values = q(args, critics, batch.observations, actions).min(axis=0)  # [batch]
    weight = 1 / jax.lax.stop_gradient(jnp.abs(values).mean()) if args.normalize_q else jnp.ones_like(values[0])
    bc = distance(actions, batch.actions).mean()
    loss = beta * bc - weight * values.mean()
    return loss, {"actor_loss": loss, "bc_loss": bc, "lambda": weight}


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`, counted from 0. A metric of the actor is NaN where the actor waits."""
    fql = args.variant == "fql"
    beta_actor, beta_critic = penalties(args, step)

    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics, args, beta_critic, state, batch, noise)
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, state.critic_opt)
    metrics |= {"penalty": jnp.where(step < args.steps, metrics["penalty"], jnp.nan)}  # online no next action is known
    critics = optax.apply_updates(state.critics, updates)
    seen = state.critics if fql else critics  # by the actor and the critics' target
    state = state._replace(critics=critics, critic_opt=critic_opt)

    def descend(state: State, grads) -> State:
        updates, actor_opt = optax.adam(args.actor_lr).update(grads, state.actor_opt)
        return state._replace(actor=optax.apply_updates(state.actor, updates), actor_opt=actor_opt)

    def actor_and_targets(state: State):
        grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor, args, beta_actor, seen, batch)
        return descend(state, grads)._replace(
            target_actor=optax.incremental_update(state.actor, state.target_actor, args.tau),  # before its step
            target_critics=optax.incremental_update(seen, state.target_critics, args.tau),
        ), metrics

    def wait(state: State):
        if fql:
            state = descend(state, jax.tree.map(jnp.zeros_like, state.actor))
        return state, dict.fromkeys(("actor_loss", "bc_loss", "lambda"), jnp.full((), jnp.nan, batch.rewards.dtype))

    due = (step + fql) % args.policy_freq == 0  # CORL counts steps from 0 (in epochs of 1,000), FQL from 1
    state, actor_metrics = jax.lax.cond(due, actor_and_targets, wait, state)
    return state, metrics | actor_metrics


def act(args: Args, state: State, observations: jax.Array) -> jax.Array:
    """The policy's mode: [..., obs] -> [..., act] in [-1, 1]."""
    return pi(args, state.actor, observations)


def explore(args: Args, state: State, observations: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """Online, the policy's mode with noise: [envs, obs] -> [envs, act] in [-1, 1]."""
    actions = act(args, state, observations)
    return jnp.clip(actions + args.exploration_noise * jax.random.normal(key, actions.shape), -1, 1)


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
