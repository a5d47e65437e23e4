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
"""CQL: soft actor-critic whose critics are pushed down where the policy would like to go and up where the data is.

Paper: Kumar, Zhou, Tucker and Levine, "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020,
       arXiv:2006.04779.
Code:  github.com/corl-team/CORL (algorithms/offline/cql.py), which follows github.com/young-geng/CQL; its scores are
       the ones to compare with. The authors' own, github.com/aviralkumar2907/CQL, differs: see below.

Q of an action that the data lacks is a guess, and a policy that climbs Q finds the guesses that are too high. CQL adds
to the critics' loss the gap between a soft maximum of Q over actions and Q of the data's action. The soft maximum, log
of the integral of exp Q(s, a), is estimated from n uniform actions, n of pi(s) and n of pi(s'), each over its density.

    gap_i(s, a) = log sum_j exp(Q_i(s, a_j) - log density(a_j)) - Q_i(s, a),  bounded where --gap-min says so
    critic  L_Q  = sum_i mean (Q_i(s, a) - y)^2 + cql_alpha mean gap_i,
            y    = r + discount (1 - d) min_i Q'_i(s', a'),  a' ~ pi(s');
            --max-target-backup: the largest of n such values
    actor   L_pi = mean alpha log pi(a|s) - min_i Q_i(s, a),  a = tanh(mean + std eps) ~ pi(s)
    alpha   L    = -log(alpha) mean (log pi(a|s) + target entropy),  no gradient through the policy
    targets theta' <- tau theta + (1 - tau) theta'

With --lagrange the weight cql_alpha is multiplied by alpha', which grows while the gap is above target_gap:

    L_Q : alpha' cql_alpha (mean gap_i - target_gap),  alpha' L = minus the mean of that over the critics

All losses are taken at the parameters before the update.

Online (--online-steps) nothing changes but where rows come from: samples of the policy act, one update a step, on rows
of the dataset and of what happens.

What it costs, and how that is kept low: the 3 n + 1 actions of a state pass through each critic in one product a layer;
the policy's layers are computed once a state, not once an action; and on a CPU a few states at a time go forward and
backward, so that what the layers hand on stays in its cache. No number changes but by rounding.

Differences from the official code:
 1. All seeds of a run train in one program, each with its own initial networks, batches and noise.
 2. Episode i of every evaluation starts from reset(seed=1000 + i), for every seed and step, so that evaluations can be
    compared in pairs; CORL: the run's seed.
 3. --return-range 1000 (hopper-medium alone has it) measures returns over the episodes of the data as they were
    recorded, without those that were cut off; CORL cuts at terminals and every 1,000 rows after the time-out rows are
    gone, so that its pieces drift across the 999 rows that a full episode has left.
 4. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4;
    mazes and Adroit in what Gymnasium-Robotics has of them today, with D4RL's physics, goals and rewards put back
    (dataset.py). Where time has cut an episode without a mark, the next observation is the file's own or, in AntMaze's
    files, which have none, the row's own observation; official: the next row's. Mean and deviation of the observations
    are summed in float64; official: in float32, over 1,000,000 rows off by 1e-4 to 1e-1 of a deviation.
 5. Online the networks are those of the offline script; CORL's fine-tuning script has others (output layers of scale
    sqrt 2, the actor's hidden layers orthogonal of that scale with biases 0, five hidden layers in both critics of
    AntMaze), and for the hands other values: --no-normalize --max-target-backup --gap-min -200.
 6. The environments start afresh after every evaluation, from seeds that follow from the step, so that a resumed run
    repeats an undisturbed one to the byte; an episode that this cuts off counts as out of time, and is played to its
    end for the regret alone. An episode that truly ends on the last step that time allows counts as ended; CORL: as out
    of time.
 7. Left out: cloning in the first steps (no configuration of CORL's has it; the authors' script clones for 40,000
    steps) and initial weights that are not orthogonal.

The authors' code moves alpha first and lets the policy's loss have the new one, holds alpha' (cql_alpha gap -
target_gap) instead of alpha' cql_alpha (gap - target_gap), takes the largest target of each critic before the smaller
critic, and starts from other weights with alpha' = 1; CORL's alpha' starts at e. CORL built the second critic of its
AntMaze runs with three hidden layers beside the first one's five; --second-critic-layers 3 does so, and TUNED says it.

Run:   python algorithms/cql.py --dataset hopper-medium-v2 --seeds 0 1 2 3
       python algorithms/cql.py --dataset my_data.hdf5 --env Hopper-v5 --lagrange --target-gap 5
Scores: results/README.md

@inproceedings{kumar2020conservative,
  title     = {Conservative {Q}-Learning for Offline Reinforcement Learning},
  author    = {Aviral Kumar and Aurick Zhou and George Tucker and Sergey Levine},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020},
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

    cql_alpha: float = 10.0  # weight of the gap in the critics' loss
    n_actions: int = 10  # sampled actions of each of the three kinds
    temperature: float = 1.0  # of the soft maximum; towards 0 it is the maximum
    importance_sampling: bool = True  # divide by the sampled actions' densities, unless --no-importance-sampling
    gap_min: float | None = None  # lower bound of a transition's gap
    gap_max: float | None = None  # upper bound of a transition's gap
    lagrange: bool = False  # learn a factor of cql_alpha that keeps the gap at target_gap
    target_gap: float = 5.0  # the gap that --lagrange aims at
    max_target_backup: bool = False  # target: the largest value of n actions, not that of one
    backup_entropy: bool = False  # the target's value pays for entropy, as SAC's does
    tune_alpha: bool = True  # learn alpha from the target entropy, unless --no-tune-alpha
    alpha_multiplier: float = 1.0  # factor of alpha
    target_period: int = 1  # steps between updates of the targets
    actor_lr: float = 3e-5  # Adam's, of the actor and of alpha
    critic_lr: float = 3e-4  # Adam's, of the critics and of alpha'
    hidden_dims: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of actor and critics
    critic_hidden_dims: tuple[int, ...] | None = None  # of the critics, where they differ from the actor's
    second_critic_layers: int | None = None  # hidden layers of the second critic, if fewer
    normalize: bool = True  # observations to mean 0 and standard deviation 1, unless --no-normalize
    return_range: float = 0.0  # rewards are scaled until the episodes' returns span this; 0 leaves them
    reward_scale: float = 1.0  # factor of every reward
    reward_shift: float = 0.0  # added to every reward after that


# Published hyper-parameters: dataset -> (source, what departs from or confirms the defaults).
CORL = "CORL eeeeef2, configs/offline/cql"
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{env}-{kind}-v2": (
            CORL,
            {"cql_alpha": 10.0, "actor_lr": 3e-5} | ({"return_range": 1000.0} if env + kind == "hoppermedium" else {}),
        )
        for env in ("halfcheetah", "hopper", "walker2d")
        for kind in ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
    },
    **{
        f"maze2d-{size}{kind}-v1": (
            CORL,
            {"cql_alpha": 10.0, "actor_lr": 3e-5, "lagrange": True, "target_gap": 5.0, "eval_episodes": 100},
        )
        for size in ("umaze", "medium", "large")
        for kind in ("", "-dense")
    },
    **{
        f"antmaze-{maze}-v2": (
            CORL,
            {"cql_alpha": 5.0, "actor_lr": 1e-4, "lagrange": True, "target_gap": 0.8, "gap_min": -200.0}
            | {"max_target_backup": True, "critic_hidden_dims": (256,) * 5, "second_critic_layers": 3}
            | {"normalize": False, "reward_scale": 10.0, "reward_shift": -5.0}
            | {"eval_every": 50_000, "eval_episodes": 100},
        )
        for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"{hand}-{kind}-v1": (CORL, {"cql_alpha": 1.0, "actor_lr": 1e-4})
        for hand in ("pen", "door", "hammer", "relocate")
        for kind in ("human", "cloned", "expert")
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


def dense(features: int, inputs: int) -> nn.Dense:
    """PyTorch's default layer: weights and biases uniform in +-1/sqrt(inputs)."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -(inputs**-0.5), inputs**-0.5)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)


class Actor(nn.Module):
    hidden_dims: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> mean and log of the standard deviation, [..., act] each
        x = observations
        for features in self.hidden_dims:
            x = nn.relu(dense(features, x.shape[-1])(x))
        glorot = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")  # a hundredth of it
        mean, log_std = jnp.split(nn.Dense(2 * self.action_dim, kernel_init=glorot)(x), 2, axis=-1)
        multiplier = self.param("log_std_multiplier", nn.initializers.constant(1.0), ())
        offset = self.param("log_std_offset", nn.initializers.constant(-1.0), ())
        return mean, jnp.clip(multiplier * log_std + offset, -20, 2)


class Critic(nn.Module):
    hidden_dims: Sequence[int]

    @nn.compact
    def __call__(self, observations, actions, layers=None):  # [..., obs], [..., act] -> [...]
        observations = jnp.broadcast_to(observations, (*actions.shape[:-1], observations.shape[-1]))
        x = jnp.concatenate([observations, actions], axis=-1)
        for i, features in enumerate(self.hidden_dims):
            y = nn.relu(nn.Dense(features, kernel_init=orthogonal(2**0.5))(x))
            x = y if i == 0 or layers is None else jnp.where(i < layers, y, x)  # past its last layer, a critic waits
        return nn.Dense(1, kernel_init=orthogonal(0.01))(x).squeeze(-1)


def gaussian(args: Args, actor, observations):
    """The policy before its tanh: [..., obs] -> mean and log of the standard deviation, [..., act] each."""
    action_dim = actor["params"][f"Dense_{len(args.hidden_dims)}"]["bias"].shape[-1] // 2
    return Actor(args.hidden_dims, action_dim).apply(actor, observations)


def pi(args: Args, actor, observations, noise):
    """Actions tanh(mean + std noise) and the logarithm of their density: [..., act], [...]."""
    mean, log_std = gaussian(args, actor, observations)
    raw = mean + jnp.exp(log_std) * noise
    log_normal = (-(noise**2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2).sum(-1)
    log_slope = (2 * (jnp.log(2.0) - raw - nn.softplus(-2 * raw))).sum(-1)  # of tanh: log(1 - tanh(raw)^2)
    return jnp.tanh(raw), log_normal - log_slope


def q(args: Args, critics, observations, actions):
    """Values of every critic, the leading axis of `critics`: [..., obs], [..., act] -> [critics, ...]."""
    critic = Critic(args.critic_hidden_dims or args.hidden_dims)
    if args.second_critic_layers is None:
        return jax.vmap(critic.apply, in_axes=(0, None, None))(critics, observations, actions)
    layers = jnp.array([len(critic.hidden_dims), args.second_critic_layers])
    return jax.vmap(critic.apply, in_axes=(0, None, None, 0))(critics, observations, actions, layers)


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
    policy: jax.Array  # [batch, act], standard normal as all but the next
    uniform: jax.Array  # [batch, n, act], actions in [-1, 1)
    gap_policy: jax.Array  # [batch, n, act]
    gap_next_policy: jax.Array  # [batch, n, act]
    next_policy: jax.Array  # [batch, act]; with --max-target-backup [batch, n, act]


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis 2
    target_critics: Any
    log_alpha: jax.Array
    log_alpha_prime: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    alpha_prime_opt: optax.OptState
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
    normal, rewards = lambda x: (x - data.mean) / data.std, data.scale * rewards + args.reward_shift
    return Batch(normal(observations), actions, rewards, normal(next_observations), terminals)


def prepare(args: Args, dataset) -> Data:
    """The rows that published code trains on, with normalised observations, on the device."""
    columns = dataset.observations, dataset.actions, dataset.rewards, dataset.next_observations, dataset.terminals
    observations, *others = (column[dataset.keep] for column in columns)
    mean, std, scale = np.zeros(observations.shape[-1]), np.ones(observations.shape[-1]), args.reward_scale
    if args.normalize:
        mean, std = observations.mean(0, dtype=np.float64), observations.std(0, dtype=np.float64) + 1e-3
    if args.return_range:
        spread = return_spread(dataset.rewards, dataset.terminals, dataset.episodes)
        scale *= args.return_range / spread if spread else 1.0  # without a spread there is nothing to scale
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
    """New networks; the targets start as copies, alpha at 1 and alpha' at e; the buffer is empty."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = data.rows.observations[0], data.rows.actions[0]
    actor = Actor(args.hidden_dims, action.shape[-1]).init(actor_key, observation)
    critics = jax.vmap(Critic(args.critic_hidden_dims or args.hidden_dims).init, in_axes=(0, None, None))(
        jax.random.split(critic_key, 2), observation, action
    )
    log_alpha, log_alpha_prime = jnp.zeros(()), jnp.ones(())
    learned = ((args.actor_lr, actor), (args.critic_lr, critics))
    learned += ((args.actor_lr, log_alpha), (args.critic_lr, log_alpha_prime))
    optimisers = (optax.adam(lr).init(parameters) for lr, parameters in learned)
    buffer = empty(data.rows, min(args.buffer_size, args.online_steps))
    return State(actor, critics, critics, log_alpha, log_alpha_prime, *optimisers, data.mean, data.std, buffer)


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
    one, several = batch.actions.shape, (len(batch.actions), args.n_actions, batch.actions.shape[-1])
    shapes = Noise(one, several, several, several, several if args.max_target_backup else one)
    keys = Noise(*jax.random.split(key, 5))
    noise = Noise(*map(jax.random.normal, keys, shapes))
    return noise._replace(uniform=jax.random.uniform(keys.uniform, several, minval=-1, maxval=1))


def alpha(args: Args, state: State):
    """alpha, the price of being sure."""
    return args.alpha_multiplier * jnp.exp(state.log_alpha)


def target(args: Args, state: State, batch: Batch, noise: Noise):
    """y: [batch]."""
    several = args.max_target_backup
    observations = batch.next_observations[:, None] if several else batch.next_observations  # [batch, (1,) obs]
    actions, log_pi = pi(args, state.actor, observations, noise.next_policy)  # [batch, (n,) act], [batch, (n)]
    next_q = q(args, state.target_critics, observations, actions).min(axis=0)  # [batch, (n)]
    if several:
        best = next_q.argmax(axis=1, keepdims=True)
        next_q, log_pi = (jnp.take_along_axis(x, best, axis=1).squeeze(1) for x in (next_q, log_pi))
    next_v = next_q - alpha(args, state) * log_pi if args.backup_entropy else next_q
    return batch.rewards + args.discount * (1 - batch.terminals) * next_v, {"next_v": next_v.mean()}


class Choices(NamedTuple):
    """What the critics are asked about each state, and what for."""

    observations: jax.Array  # [batch, obs]
    actions: jax.Array  # [batch, 1 + 3 n, act]: of the data, uniform, of pi(s'), of pi(s)
    log_densities: jax.Array  # [batch, 3 n], of all but the data's
    y: jax.Array  # [batch], what Q of the data's should be


def choices(args: Args, state: State, batch: Batch, noise: Noise, y: jax.Array) -> Choices:
    # The policy sees a state once, [batch, 1, obs], for its n actions.
    next_actions, next_log_pi = pi(args, state.actor, batch.next_observations[:, None], noise.gap_next_policy)
    actions, log_pi = pi(args, state.actor, batch.observations[:, None], noise.gap_policy)
    uniform = jnp.full_like(log_pi, -batch.actions.shape[-1] * np.log(2))
    return Choices(
        batch.observations,
        jnp.concatenate([batch.actions[:, None], noise.uniform, next_actions, actions], axis=1),
        jnp.concatenate([uniform, next_log_pi, log_pi], axis=1),
        y,
    )


def alpha_prime(log_alpha_prime):
    return jnp.clip(jnp.exp(log_alpha_prime), 0, 1e6)


def critic_loss(critics, args: Args, state: State, rows: Choices):
    values = q(args, critics, rows.observations[:, None], rows.actions)  # [2, batch, 1 + 3 n]
    data, sampled = values[..., 0], values[..., 1:]
    terms = sampled - rows.log_densities if args.importance_sampling else values
    soft_maximum = args.temperature * nn.logsumexp(terms / args.temperature, axis=-1)  # [2, batch]
    gap = jnp.clip(soft_maximum - data, args.gap_min, args.gap_max).mean(axis=1)  # [2]
    td = ((data - rows.y) ** 2).mean(axis=1)  # [2]
    cql = args.cql_alpha * gap
    if args.lagrange:
        cql = alpha_prime(state.log_alpha_prime) * args.cql_alpha * (gap - args.target_gap)
    parts = zip(("q_uniform", "q_next_policy", "q_policy"), jnp.split(sampled, 3, axis=-1), strict=True)
    metrics = {"td_loss": td, "cql_loss": cql, "gap": gap, "q": data} | dict(parts)
    return (td + cql).sum(), {name: x.mean() for name, x in metrics.items()}


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


def actor_loss(actor, args: Args, state: State, batch: Batch, noise: Noise):
    actions, log_pi = pi(args, actor, batch.observations, noise.policy)
    values = q(args, state.critics, batch.observations, actions).min(axis=0)
    loss = (alpha(args, state) * log_pi - values).mean()
    return loss, {"actor_loss": loss, "log_pi": log_pi.mean()}


def alpha_loss(log_alpha, log_pi, target_entropy):
    return -log_alpha * (log_pi + target_entropy)


def alpha_prime_loss(log_alpha_prime, args: Args, gap):
    return -alpha_prime(log_alpha_prime) * args.cql_alpha * (gap - args.target_gap)


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`, counted from 0: all gradients at `state`, then all steps."""
    y, metrics = target(args, state, batch, noise)
    gradient = lambda rows: jax.grad(critic_loss, has_aux=True)(state.critics, args, state, rows)
    critic_grads, critic_metrics = by_parts(gradient, choices(args, state, batch, noise, y))
    actor_grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(state.actor, args, state, batch, noise)
    metrics |= critic_metrics | actor_metrics | {"alpha": alpha(args, state)}

    adam, critic_adam = optax.adam(args.actor_lr), optax.adam(args.critic_lr)
    updates, critic_opt = critic_adam.update(critic_grads, state.critic_opt)
    critics = optax.apply_updates(state.critics, updates)
    updates, actor_opt = adam.update(actor_grads, state.actor_opt)
    actor = optax.apply_updates(state.actor, updates)
    after = state._replace(critics=critics, critic_opt=critic_opt, actor=actor, actor_opt=actor_opt)
    if args.tune_alpha:
        loss, grad = jax.value_and_grad(alpha_loss)(state.log_alpha, metrics["log_pi"], -batch.actions.shape[-1])
        updates, alpha_opt = adam.update(grad, state.alpha_opt)
        after = after._replace(log_alpha=optax.apply_updates(state.log_alpha, updates), alpha_opt=alpha_opt)
        metrics |= {"alpha_loss": loss}
    if args.lagrange:
        loss, grad = jax.value_and_grad(alpha_prime_loss)(state.log_alpha_prime, args, metrics["gap"])
        updates, opt = critic_adam.update(grad, state.alpha_prime_opt)
        log_alpha_prime = optax.apply_updates(state.log_alpha_prime, updates)
        after = after._replace(log_alpha_prime=log_alpha_prime, alpha_prime_opt=opt)
        metrics |= {"alpha_prime": alpha_prime(state.log_alpha_prime), "alpha_prime_loss": loss}

    follow = lambda targets: optax.incremental_update(critics, targets, args.tau)
    due = (step + 1) % args.target_period == 0
    targets = jax.lax.cond(due, follow, lambda targets: targets, state.target_critics)
    return after._replace(target_critics=targets), metrics


def act(args: Args, state: State, observations: jax.Array) -> jax.Array:
    """The policy's mode for raw observations: [..., obs] -> [..., act] in [-1, 1]."""
    return jnp.tanh(gaussian(args, state.actor, (observations - state.mean) / state.std)[0])


def explore(args: Args, state: State, observations: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """A sample of the policy: [envs, obs] -> [envs, act] in [-1, 1]."""
    mean, log_std = gaussian(args, state.actor, (observations - state.mean) / state.std)
    return jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))


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
