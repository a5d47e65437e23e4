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
"""MOReL: rollouts of a learned model in a pessimistic MDP, which halts where the members of the model disagree.

Paper: Kidambi, Rajeswaran, Netrapalli and Joachims, "MOReL: Model-Based Offline Reinforcement Learning", NeurIPS 2020,
       arXiv:2005.05951.
Code:  github.com/aravindr93/mjrl, branch v2 (projects/morel), which plans by natural policy gradient;
       github.com/EmptyJackson/unifloral (algorithms/morel.py), which learns off policy. This is an off-policy one.

An action is unknown where two members of the ensemble predict next observations further apart than anywhere in the
dataset, divided by a coefficient. What is unknown leads to HALT, the worst there is. In the paper a policy's value in
that pessimistic MDP bounds its true one from below, up to the model's error where it is known: what does well in it
does well.

    model   as of mopo.py; (s', r) ~ N(mu_i, exp l_i) of a random elite i,  d = ends(s')
    halt    U(s, a) = max_ij |mu_i(s, a) - mu_j(s, a)| of next observations, over all members;
            U > max_D U / pessimism:  d = 1, r = min_D r - penalty
    alpha   L    = -log(alpha) mean (log pi(a|s) + target entropy),  no gradient through the policy
    actor   L_pi = mean alpha log pi(a|s) - min_i Q_i(s, a),  a = tanh(mean + std eps) ~ pi(s)
    targets theta' <- tau theta + (1 - tau) theta'
    critic  L_Q  = sum_i mean (Q_i(s, a) - y)^2,
            y    = r + discount (1 - d) (min_i Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')

in this order, each with what the ones above have changed, on batches of int(0.01 * 256) = 2 rows of the dataset and 254
of rollouts. The log's model_halt is the share of imagined steps that halt, model_u the mean of U.

No run here is tuned: the paper's numbers are of another planner, and Unifloral's threshold is another one (see 1).
pessimism is mjrl's of hopper-medium, the rest Unifloral's defaults, but for how often and long it evaluates.

Differences from the official code:
 1. mjrl's planner is left out: 500 natural-gradient steps on rollouts of 700 steps from first states, each in one of
    four deterministic members, of a policy that begins as a clone of the data's. The agent is Unifloral's, on short
    rollouts from any state of the dataset; the threshold is mjrl's. Unifloral's compares predictions of different
    inputs and is so large that hardly anything halts.
 2. HALT costs once, min_D r - penalty, and ends the rollout, as in Unifloral; in the paper its reward is -kappa for
    ever, and mjrl's configurations only cut the rollout there and bootstrap.
 3. Disagreement is that of all members, as in mjrl, and of observations as they are: mjrl scales Hopper's velocities by
    0.02 before anything else.
 4. The model is mopo.py's, with what that says of rows without a true next observation and of where episodes
    end; all model-based scripts here share it. A step to what is no finite number is left out, and ends the rollout.
    Rollouts end at true ends and the buffer has no empty rows; Unifloral's go on, and most of its buffer stays empty.
 5. One model serves all seeds of a run; its own is --model-seed. All seeds train in one program, each with its own
    initial networks, rollouts, batches and noise.
 6. Episode i of every evaluation starts from reset(seed=1000 + i), for every seed and step, and the policy's mode acts;
    Unifloral samples.
 7. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4.

Run:   python algorithms/morel.py --dataset hopper-medium-v2 --seeds 0 1 2 3 4
       python algorithms/morel.py --dataset my_data.hdf5 --env Hopper-v5 --pessimism 1
       on two cores: --model-epochs 10 --rollout-starts 5000 --steps 50000
Scores: results/README.md

@inproceedings{kidambi2020morel,
  title     = {{MOReL}: Model-Based Offline Reinforcement Learning},
  author    = {Rahul Kidambi and Aravind Rajeswaran and Praneeth Netrapalli and Thorsten Joachims},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020},
}
"""

import ast
import contextlib
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
    steps: int = 3_000_000  # gradient steps
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

    dynamics: str | None = None  # file of a trained model; none: the one beside the results, or a new one
    termination: Literal["hopper", "halfcheetah", "walker2d", "ant", "never"] | None = None  # none: as the name says
    model_seed: int = 0  # of the model, which all seeds share
    model_members: int = 7  # networks of the model
    model_elites: int = 5  # of them those with the smallest hold-out error, which imagine
    model_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)  # widths of the hidden layers of a member
    model_lr: float = 1e-3  # Adam's, of the model
    model_batch_size: int = 256  # rows a member and step of the model's training
    model_weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4, 1e-4)  # by layer; last both heads
    model_clip: float = 0.0  # bound of the model's scaled inputs; 0: none
    model_patience: int = 5  # epochs in a row that improve no member by 1 %, after which the training ends
    model_epochs: int | None = None  # at most so many; none: no bound

    rollout_starts: int = 50_000  # rollouts begun at a time, in states of the dataset
    rollout_interval: int = 1_000  # gradient steps between them
    rollout_length: int = 5  # steps of a rollout
    rollout_retain: int = 5  # the buffer holds the rollouts of so many times
    real_ratio: float = 0.01  # share of a batch from the dataset
    pessimism: float = 3.0  # divides the largest disagreement in the dataset to the one that halts; 0: nothing halts
    halt_penalty: float = 200.0  # below the smallest reward of the dataset is the reward of halting
    num_critics: int = 10  # critics, whose smallest value counts
    actor_lr: float = 1e-4  # Adam's, of the actor
    critic_lr: float = 1e-4  # Adam's, of the critics
    alpha_lr: float = 1e-4  # Adam's, of alpha
    hidden_dims: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of actor and critics


# Published hyper-parameters: none that were found with this agent and this threshold.
TUNED: dict[str, tuple[str, dict[str, Any]]] = {}


def tuned(dataset: str) -> Args:
    """The published arguments for `dataset`; the defaults where none are published."""
    return dataclasses.replace(Args(dataset=dataset), **TUNED.get(dataset, ("", {}))[1])


# ------------------------------------------------------------------------------------------ networks


def head(features: int, bound: float, name: str | None = None) -> nn.Dense:
    """Weights and biases uniform in +-bound. Other layers have flax's weights and biases of 0.1."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform, name=name)


class Actor(nn.Module):
    hidden_dims: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> mean and log of the standard deviation, [..., act] each
        x = observations
        for features in self.hidden_dims:
            x = nn.relu(nn.Dense(features, bias_init=nn.initializers.constant(0.1))(x))
        mean, log_std = (head(self.action_dim, 1e-3, name)(x) for name in ("mean", "log_std"))
        return mean, jnp.clip(log_std, -5, 2)


class Critic(nn.Module):
    hidden_dims: Sequence[int]

    @nn.compact
    def __call__(self, observations, actions):  # [..., obs], [..., act] -> [...]
        x = jnp.concatenate([observations, actions], axis=-1)
        for features in self.hidden_dims:
            x = nn.relu(nn.Dense(features, bias_init=nn.initializers.constant(0.1))(x))
        return head(1, 3e-3)(x).squeeze(-1)


def gaussian(args: Args, actor, observations):
    """The policy before its tanh: [..., obs] -> mean and log of the standard deviation, [..., act] each."""
    return Actor(args.hidden_dims, actor["params"]["mean"]["bias"].shape[-1]).apply(actor, observations)


def pi(args: Args, actor, observations, noise):
    """Actions tanh(mean + std noise) and the logarithm of their density: [..., act], [...]."""
    mean, log_std = gaussian(args, actor, observations)
    raw = mean + jnp.exp(log_std) * noise
    log_normal = -(noise**2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2
    log_slope = 2 * (jnp.log(2.0) - raw - nn.softplus(-2 * raw))  # of tanh
    return jnp.tanh(raw), (log_normal - log_slope).sum(-1)


def q(args: Args, critics, observations, actions):
    """Values of every critic, the leading axis of `critics`: [batch, obs], [batch, act] -> [critics, batch]."""
    return jax.vmap(Critic(args.hidden_dims).apply, in_axes=(0, None, None))(critics, observations, actions)


# ------------------------------------------------------------------------------------------ the model


# >>> dynamics (home: mopo.py)
class Member(nn.Module):
    """A network of the ensemble: the mean of what a step changes, and of its reward, with their log-variance."""

    hidden_dims: Sequence[int]
    outputs: int  # obs + 1

    @nn.compact
    def __call__(self, x):  # [..., obs + act], scaled -> mean and log-variance without bounds, [..., obs + 1] each
        layer = lambda features, name=None: nn.Dense(
            features, kernel_init=nn.initializers.truncated_normal(x.shape[-1] ** -0.5 / 2), name=name
        )
        for features in self.hidden_dims:
            x = nn.silu(layer(features)(x))
        return layer(self.outputs, "mean")(x), layer(self.outputs, "log_var")(x)


class Ensemble(NamedTuple):
    """What is learned by gradients."""

    members: Any  # leading axis of members
    min_log_var: jax.Array  # [obs + 1], of all members
    max_log_var: jax.Array  # [obs + 1]


class Dynamics(NamedTuple):
    """A trained model."""

    ensemble: Ensemble
    mean: jax.Array  # [obs + act], of the inputs
    std: jax.Array  # [obs + act]
    elites: jax.Array  # [elites], which members
    errors: jax.Array  # [members], mean squared error of what is held out


def outputs(args: Args, ensemble: Ensemble, inputs):
    """Means and log-variances of every member [members, n, obs + 1], for scaled inputs [members, n, obs + act] of each,
    or [n, obs + act] of all."""
    member = Member(args.model_hidden_dims, ensemble.min_log_var.shape[-1])
    means, log_vars = jax.vmap(member.apply, in_axes=(0, 0 if inputs.ndim == 3 else None))(ensemble.members, inputs)
    log_vars = ensemble.max_log_var - nn.softplus(ensemble.max_log_var - log_vars)
    return means, ensemble.min_log_var + nn.softplus(log_vars - ensemble.min_log_var)


def scaled(args: Args, dynamics: Dynamics, inputs):
    inputs = (inputs - dynamics.mean) / dynamics.std
    return jnp.clip(inputs, -args.model_clip, args.model_clip) if args.model_clip else inputs


def predict(args: Args, dynamics: Dynamics, observations, actions):
    """Every member's mean of (next observation, reward) and its log-variance, [members, n, obs + 1] each."""
    inputs = scaled(args, dynamics, jnp.concatenate([observations, actions], axis=-1))
    means, log_vars = outputs(args, dynamics.ensemble, inputs)
    return means.at[..., :-1].add(observations), log_vars


def sampled(means, log_vars, members, noise):
    """(next observation, reward) of one member a row: [members, n, dim], log-variances, [n], [n, dim] -> [n, dim]."""
    pick = lambda x: jnp.take_along_axis(x, members[None, :, None], axis=0)[0]
    return pick(means) + jnp.exp(pick(log_vars) / 2) * noise


def hopper(x):
    """Whether an episode goes on after observations [..., obs]."""
    return (jnp.abs(x[..., 1:]) < 100).all(-1) & (x[..., 0] > 0.7) & (jnp.abs(x[..., 1]) < 0.2)


def walker2d(x):
    return (x[..., 0] > 0.8) & (x[..., 0] < 2.0) & (jnp.abs(x[..., 1]) < 1)


def ant(x):
    return (x[..., 0] >= 0.2) & (x[..., 0] <= 1.0)


HEALTHY = {"hopper": hopper, "walker2d": walker2d, "ant": ant}
HEALTHY |= dict.fromkeys(("halfcheetah", "never"), lambda x: jnp.ones(x.shape[:-1], bool))


def ended(args: Args, next_observations):
    """Whether an episode ends: [..., obs] -> [...], by --termination or the environment's name."""
    words = re.split(r"[^a-z0-9]", (args.env or args.dataset).lower())
    kind = args.termination or next((word for word in words if word in HEALTHY), None)
    if kind is None:
        fail(f"Where episodes of {args.env or args.dataset} end is not known; --termination names a rule that fits.")
    return ~HEALTHY[kind](next_observations)


def model_loss(ensemble: Ensemble, args: Args, inputs, targets):
    """Of inputs [members, batch, obs + act], scaled, and targets [members, batch, obs + 1]. Also the likelihoods'."""
    means, log_vars = outputs(args, ensemble, inputs)
    nll = ((means - targets) ** 2 * jnp.exp(-log_vars) + log_vars).mean(axis=(1, 2))  # [members]
    bounds = 0.01 * (ensemble.max_log_var - ensemble.min_log_var).sum()
    kernels = [layer["kernel"] for _, layer in sorted(ensemble.members["params"].items()) if "kernel" in layer]
    *hidden, log_var, mean = kernels  # Dense_0, Dense_1, ..., log_var, mean
    *decays, mean_decay, log_var_decay = args.model_weight_decay
    weights = [*zip(decays, hidden, strict=False), (mean_decay, mean), (log_var_decay, log_var)]
    decay = sum(weight / 2 * (kernel**2).sum() for weight, kernel in weights)
    return nll.sum() + bounds + decay, {"nll": nll, "loss": nll.sum() + bounds}


def holdout_errors(args: Args, ensemble: Ensemble, inputs, targets):
    """Mean squared errors of the members' means [members], of scaled inputs [n, obs + act], targets [n, obs + 1]."""
    return ((outputs(args, ensemble, inputs)[0] - targets) ** 2).mean(axis=(1, 2))


class Fit(NamedTuple):
    """What one epoch leaves to the next."""

    ensemble: Ensemble
    opt: optax.OptState
    best: Any  # every member where its hold-out error was smallest
    errors: jax.Array  # [members], those errors
    rows: jax.Array  # [members, n], with replacement
    stale: jax.Array  # epochs since any member has improved


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def epoch(args: Args, fit: Fit, train, held_out, key) -> Fit:
    """Every member sees its own rows in a new order. `train` and `held_out` are pairs of inputs and targets."""
    size = min(args.model_batch_size, fit.rows.shape[1])
    rows = jax.random.permutation(key, fit.rows, axis=1, independent=True)
    batches = rows[:, : rows.shape[1] // size * size].reshape(len(rows), -1, size).swapaxes(0, 1)

    def step(carry, rows):  # [members, batch]
        ensemble, opt = carry
        grads, _ = jax.grad(model_loss, has_aux=True)(ensemble, args, *(x[rows] for x in train))
        updates, opt = optax.adam(args.model_lr).update(grads, opt)
        return (optax.apply_updates(ensemble, updates), opt), None

    (ensemble, opt), _ = jax.lax.scan(step, (fit.ensemble, fit.opt), batches)
    errors = holdout_errors(args, ensemble, *held_out)
    better = (fit.errors - errors) / fit.errors > 0.01
    choose = lambda new, old: jax.tree.map(lambda x, y: jax.vmap(jnp.where)(better, x, y), new, old)
    best, stale = choose(ensemble.members, fit.best), jnp.where(better.any(), 0, fit.stale + 1)
    return Fit(ensemble, opt, best, choose(errors, fit.errors), rows, stale)


def fit_dynamics(args: Args, observations, actions, rewards, next_observations, progress=lambda fit: None) -> Dynamics:
    """Trains the model on rows [n, ...] until its hold-out error stands still; `progress` hears of every epoch."""
    init_key, split_key, rows_key, epoch_key = jax.random.split(jax.random.key(args.model_seed), 4)
    inputs = np.concatenate([observations, actions], axis=1)
    targets = np.concatenate([next_observations - observations, rewards[:, None]], axis=1)
    order = np.asarray(jax.random.permutation(split_key, len(inputs)))
    held_out, rest = np.split(order, [min(len(inputs) // 5, 1000)])
    mean, std = inputs[rest].mean(0, dtype=np.float64), inputs[rest].std(0, dtype=np.float64)
    std[std < 1e-12] = 1.0
    device = lambda x: jnp.asarray(x, jnp.float32)
    dynamics = Dynamics(None, device(mean), device(std), None, None)
    pair = lambda rows: (scaled(args, dynamics, device(inputs[rows])), device(targets[rows]))
    train, held_out = pair(rest), pair(held_out)

    member = Member(args.model_hidden_dims, targets.shape[1])
    members = jax.vmap(member.init, in_axes=(0, None))(jax.random.split(init_key, args.model_members), train[0][0])
    bound = jnp.ones(targets.shape[1])
    ensemble = Ensemble(members, -10.0 * bound, 0.5 * bound)
    rows = jax.random.randint(rows_key, (args.model_members, len(rest)), 0, len(rest))
    errors, copy = jnp.full(args.model_members, 1e10), jax.tree.map(jnp.copy, members)
    fit, epochs = Fit(ensemble, optax.adam(args.model_lr).init(ensemble), copy, errors, rows, jnp.zeros((), int)), 0
    while fit.stale < args.model_patience and epochs != args.model_epochs:
        fit, epochs = epoch(args, fit, train, held_out, jax.random.fold_in(epoch_key, epochs)), epochs + 1
        progress(fit)
    # The bounds of the log-variance are all members' and stay as they ended, as in the official codes.
    elites = jnp.argsort(fit.errors)[: args.model_elites]
    return dynamics._replace(ensemble=fit.ensemble._replace(members=fit.best), elites=elites, errors=fit.errors)


def true_rows(dataset) -> np.ndarray:
    """Those of `keep` whose next observation is true. Where the source has none, the dataset repeats the row's own at
    the end of an episode, which a model would learn."""
    true, last = np.array(dataset.keep, bool), np.asarray(dataset.episodes)[:, 1].astype(int) - 1
    true[last] &= (dataset.next_observations[last] != dataset.observations[last]).any(axis=1)
    return true


# <<< dynamics


# ------------------------------------------------------------------------------------------ algorithm


# >>> rollouts (home: mopo.py)
class Rows(NamedTuple):
    """Transitions, of the dataset or imagined."""

    observations: jax.Array  # [n, obs]
    actions: jax.Array  # [n, act], in [-1, 1]
    rewards: jax.Array  # [n]
    next_observations: jax.Array  # [n, obs]
    terminals: jax.Array  # [n], 1 where the episode truly ended, not where time ran out


class Batch(NamedTuple):
    """Rows of the dataset, and what rollouts need."""

    observations: jax.Array  # [real, obs]
    actions: jax.Array  # [real, act]
    rewards: jax.Array  # [real]
    next_observations: jax.Array  # [real, obs]
    terminals: jax.Array  # [real]
    starts: jax.Array | None = None  # [N, obs], all states in which a rollout may begin
    dynamics: Any = None  # of which `imagine` makes a step


class Data(NamedTuple):
    rows: Rows  # the whole dataset
    starts: jax.Array | None  # its observations; no rollouts, no starts
    dynamics: Any


class Buffer(NamedTuple):
    """What was imagined, in a ring."""

    rows: Rows  # [capacity, ...]
    place: jax.Array  # where the next transition goes
    size: jax.Array  # rows filled


def real_rows(args: Args) -> int:
    """Rows of the dataset in a batch."""
    return int(args.batch_size * args.real_ratio)


def empty(args: Args, rows: Rows) -> Buffer | None:
    """For rollouts with the shapes of `rows`; None without any."""
    if args.real_ratio == 1:
        return None
    capacity = args.rollout_starts * args.rollout_length * args.rollout_retain
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), rows)
    return Buffer(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def push(buffer: Buffer, rows: Rows, valid) -> Buffer:
    """Those of `rows` [n, ...] that are valid [n], in the places of the oldest."""
    capacity, count = len(buffer.rows.rewards), valid.sum(dtype=jnp.int32)
    places = jnp.where(valid, (buffer.place + jnp.cumsum(valid) - 1) % capacity, capacity)  # there is no such place
    rows = jax.tree.map(lambda x, new: x.at[places].set(new, mode="drop"), buffer.rows, rows)
    return Buffer(rows, (buffer.place + count) % capacity, jnp.minimum(buffer.size + count, capacity))


def roll(args: Args, actor, batch: Batch, key):
    """Rollouts: rows [length * starts, ...]; which of them are valid, finite and not past the end of an episode; and
    what `imagine` tells of each."""
    start_key, key = jax.random.split(key)
    starts = jax.random.randint(start_key, (args.rollout_starts,), 0, len(batch.starts))

    def step(carry, key):
        observations, alive = carry
        policy_key, model_key = jax.random.split(key)
        noise = jax.random.normal(policy_key, (args.rollout_starts, batch.actions.shape[-1]))
        actions, _ = pi(args, actor, observations, noise)
        next_observations, rewards, terminals, told = imagine(args, batch.dynamics, observations, actions, model_key)
        rows = Rows(observations, actions, rewards, next_observations, terminals.astype(rewards.dtype))
        alive &= jnp.isfinite(rewards) & jnp.isfinite(next_observations).all(axis=-1)  # a model may lose itself
        return (next_observations, alive & ~terminals), (rows, alive, told)

    carry = batch.starts[starts], jnp.ones(args.rollout_starts, bool)
    _, out = jax.lax.scan(step, carry, jax.random.split(key, args.rollout_length))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def refreshed(args: Args, state, batch: Batch, key, buffer: Buffer):
    """The buffer with new rollouts of the policy, and the mean of what is told of them; `stale` has none."""
    rows, valid, told = roll(args, state.actor, batch, key)
    mean = lambda x: jnp.where(valid, x, 0).sum() / valid.sum()
    lengths = valid.sum() / args.rollout_starts
    return push(buffer, rows, valid), {f"model_{k}": mean(x) for k, x in told.items()} | {"model_length": lengths}


def stale(args: Args, state, batch: Batch, key, buffer: Buffer):
    told = jax.eval_shape(functools.partial(refreshed, args), state, batch, key, buffer)[1]
    return buffer, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), told)


def mixed(args: Args, buffer: Buffer | None, batch: Batch, places) -> Rows:
    """The batch's rows of the dataset and those of the buffer that random bits choose."""
    real = Rows(*batch[: len(Rows._fields)])
    if buffer is None:
        return real
    places = places % jnp.maximum(buffer.size, 1).astype(places.dtype)
    none = jnp.where(buffer.size > 0, 0, jnp.nan)  # a model that imagines no finite step must not go unseen
    return jax.tree.map(lambda x, rows: jnp.concatenate([x, rows[places] + none]), real, buffer.rows)


# <<< rollouts


class World(NamedTuple):
    """The pessimistic MDP, in the place of a model."""

    dynamics: Dynamics
    threshold: jax.Array  # the disagreement that halts
    halt_reward: jax.Array


class Noise(NamedTuple):
    alpha_policy: jax.Array  # [batch, act], standard normal, as the others: a ~ pi(s) that alpha judges
    policy: jax.Array  # [batch, act]
    next_policy: jax.Array  # [batch, act]
    places: jax.Array | None = None  # [batch - real] random bits, which say what rows of the buffer
    rollouts: jax.Array | None = None  # a key: the numbers are too many to draw them where no rollout is due


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis N
    target_critics: Any
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    buffer: Buffer | None


def prepare(args: Args, dataset) -> Data:
    """The rows that published code trains on, as they are, and the pessimistic MDP, on the device."""
    rows = Rows(*(jnp.asarray(getattr(dataset, x)[dataset.keep], jnp.float32) for x in Rows._fields))
    if args.real_ratio == 1:
        return Data(rows, None, None)
    ended(args, rows.observations[:1])  # or it says what is missing, before anything is trained
    return Data(rows, rows.observations, pessimistic(args, trained(args, dataset), rows))


def init(args: Args, data: Data, key: jax.Array) -> State:
    """New networks; the targets start as copies, alpha at 1, the buffer is empty."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = data.rows.observations[0], data.rows.actions[0]
    actor = Actor(args.hidden_dims, action.shape[-1]).init(actor_key, observation)
    keys = jax.random.split(critic_key, args.num_critics)
    critics = jax.vmap(Critic(args.hidden_dims).init, in_axes=(0, None, None))(keys, observation, action)
    learned = ((args.actor_lr, actor), (args.critic_lr, critics), (args.alpha_lr, jnp.zeros(())))
    optimisers = (optax.adam(lr, eps=1e-5).init(parameters) for lr, parameters in learned)
    return State(actor, critics, critics, jnp.zeros(()), *optimisers, empty(args, data.rows))


def sample(args: Args, data: Data, key: jax.Array) -> Batch:
    """The dataset's part, uniform with replacement."""
    places = jax.random.randint(key, (real_rows(args),), 0, len(data.rows.rewards))
    return Batch(*(x[places] for x in data.rows), data.starts, data.dynamics)


def draw(args: Args, batch: Batch, key: jax.Array) -> Noise:
    policy_key, places_key, rollouts_key = jax.random.split(key, 3)
    policy = jax.random.normal(policy_key, (3, args.batch_size, batch.actions.shape[-1]))
    return Noise(*policy, jax.random.bits(places_key, (args.batch_size - real_rows(args),)), rollouts_key)


def disagreement(means):
    """U: the largest distance of two members' next observations: [members, n, obs + 1] -> [n]."""
    norm = lambda x: jnp.sqrt((x**2).sum(axis=-1))
    return jnp.stack([norm((means - mean)[..., :-1]).max(axis=0) for mean in means]).max(axis=0)


def pessimistic(args: Args, dynamics: Dynamics, rows: Rows) -> World:
    """The model, with the threshold and the reward of halting that the dataset gives."""
    largest = lambda observations, actions: disagreement(predict(args, dynamics, observations, actions)[0]).max()
    largest, n = jax.jit(largest), len(rows.rewards)
    parts = [largest(rows.observations[i : i + 4096], rows.actions[i : i + 4096]) for i in range(0, n, 4096)]
    threshold = jnp.stack(parts).max() / args.pessimism if args.pessimism else jnp.full((), jnp.inf)
    return World(dynamics, threshold, rows.rewards.min() - args.halt_penalty)


def imagine(args: Args, world: World, observations, actions, key):
    """A step as the policy sees it: next observations, rewards, terminals; and, for the log, U and what halted."""
    member_key, noise_key = jax.random.split(key)
    means, log_vars = predict(args, world.dynamics, observations, actions)
    elites = world.dynamics.elites
    members = elites[jax.random.randint(member_key, (len(observations),), 0, len(elites))]
    sample = sampled(means, log_vars, members, jax.random.normal(noise_key, means.shape[1:]))
    u = disagreement(means)
    halted = ~(u <= world.threshold)  # nor is known where a member gives no number
    next_observations, rewards = sample[:, :-1], jnp.where(halted, world.halt_reward, sample[:, -1])
    told = {"reward": rewards, "u": u, "halt": halted.astype(rewards.dtype)}
    return next_observations, rewards, halted | ended(args, next_observations), told


def alpha_loss(log_alpha, args: Args, state: State, rows: Rows, noise: Noise):
    _, log_pi = pi(args, state.actor, rows.observations, noise.alpha_policy)
    loss = -log_alpha * (log_pi.mean() - rows.actions.shape[-1])
    return loss, {"alpha_loss": loss}


def actor_loss(actor, args: Args, state: State, rows: Rows, noise: Noise):
    actions, log_pi = pi(args, actor, rows.observations, noise.policy)
    values = q(args, state.critics, rows.observations, actions)  # [N, batch]
    loss = (jnp.exp(state.log_alpha) * log_pi - values.min(axis=0)).mean()
    return loss, {
        "actor_loss": loss,
        "entropy": -log_pi.mean(),
        "q_std": values.std(axis=0, ddof=1).mean(),
        "q_policy": values.mean(),
    }


def critic_loss(critics, args: Args, state: State, rows: Rows, noise: Noise):
    next_actions, log_pi = pi(args, state.actor, rows.next_observations, noise.next_policy)
    next_q = q(args, state.target_critics, rows.next_observations, next_actions).min(axis=0)  # [batch]
    next_v = next_q - jnp.exp(state.log_alpha) * log_pi
    y = rows.rewards + args.discount * (1 - rows.terminals) * next_v
    values = q(args, critics, rows.observations, rows.actions)  # [N, batch]
    loss = ((values - y) ** 2).mean(axis=1).sum()
    return loss, {"critic_loss": loss, "q": values.mean(), "q_target": y.mean()}


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`, counted from 0: rollouts if they are due, then alpha, actor, targets, critics. What is said
    of the rollouts is NaN where none were due."""
    told = {}
    if args.real_ratio < 1:
        branches = (
            functools.partial(f, args, state._replace(buffer=None), batch, noise.rollouts) for f in (refreshed, stale)
        )
        buffer, told = jax.lax.cond(step % args.rollout_interval == 0, *branches, state.buffer)
        state = state._replace(buffer=buffer)
        model = batch.dynamics.dynamics
        told["model_error"] = model.errors[model.elites].mean()
    rows = mixed(args, state.buffer, batch, noise.places)

    adam = optax.adam(args.alpha_lr, eps=1e-5)
    grad, metrics = jax.grad(alpha_loss, has_aux=True)(state.log_alpha, args, state, rows, noise)
    updates, alpha_opt = adam.update(grad, state.alpha_opt)
    state = state._replace(log_alpha=optax.apply_updates(state.log_alpha, updates), alpha_opt=alpha_opt)

    adam = optax.adam(args.actor_lr, eps=1e-5)
    grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(state.actor, args, state, rows, noise)
    updates, actor_opt = adam.update(grads, state.actor_opt)
    targets = optax.incremental_update(state.critics, state.target_critics, args.tau)
    actor = optax.apply_updates(state.actor, updates)
    state = state._replace(actor=actor, actor_opt=actor_opt, target_critics=targets)

    adam = optax.adam(args.critic_lr, eps=1e-5)
    grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critics, args, state, rows, noise)
    updates, critic_opt = adam.update(grads, state.critic_opt)
    state = state._replace(critics=optax.apply_updates(state.critics, updates), critic_opt=critic_opt)
    metrics |= told | actor_metrics | critic_metrics | {"alpha": jnp.exp(state.log_alpha)}
    return state, metrics


def act(args: Args, state: State, observations: jax.Array) -> jax.Array:
    """The policy's mode: [..., obs] -> [..., act] in [-1, 1]."""
    return jnp.tanh(gaussian(args, state.actor, observations)[0])


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


# >>> dynamics_file (home: mopo.py)
def trained(args: Args, dataset) -> Dynamics:
    """The model of the dataset: from its file, or trained now, with a progress bar, and kept. Data without a name and a
    hash, as arrays of one's own, keep none."""
    settings = {k: v for k, v in dataclasses.asdict(args).items() if k.startswith("model_")}
    settings = json.loads(json.dumps({**settings, "data": getattr(dataset, "sha256", None)}))
    if args.dynamics:
        return read_dynamics(Path(args.dynamics), settings)
    rows = true_rows(dataset)
    columns = ("observations", "actions", "rewards", "next_observations")
    fit = functools.partial(fit_dynamics, args, *(getattr(dataset, name)[rows] for name in columns))
    if settings["data"] is None:
        return usable(fit(), rows.sum())

    code = Path(__file__).read_text().partition("# >>> dynamics ")[2].partition("# <<< dynamics\n")[0]
    digest = hashlib.sha256((json.dumps(settings) + code).encode()).hexdigest()[:16]
    path = Path(args.out, dataset.benchmark, dataset.name, "dynamics", f"{digest}.msgpack")
    if not path.exists():
        from tqdm import tqdm

        pace = 0.5 if sys.stderr.isatty() else 30
        with tqdm(total=args.model_epochs, unit="epoch", desc="  dynamics", mininterval=pace) as bar:

            def progress(fit: Fit):
                error = np.sort(fit.errors)[: args.model_elites].mean()
                bar.set_postfix(error=f"{error:.5f}", stale=int(fit.stale), refresh=False)
                bar.update()

            try:
                dynamics = usable(fit(progress), rows.sum())
            except KeyboardInterrupt:
                print("\nStopped; the same command trains the model from its start.", file=sys.stderr)
                sys.exit(130)
        dynamics = jax.tree.map(np.asarray, flax.serialization.to_state_dict(dynamics))
        content = flax.serialization.msgpack_serialize({"settings": json.dumps(settings), "dynamics": dynamics})
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(content)
        with contextlib.suppress(FileExistsError):  # of two that trained it at once the first stays
            os.link(part, path)
        part.unlink()
    return read_dynamics(path, settings)


def usable(dynamics: Dynamics, rows: int) -> Dynamics:
    """Refuses a model that would imagine with its initial parameters, no epoch having brought better ones."""
    if not (dynamics.errors[dynamics.elites] < 1e10).all():
        fail(
            f"The dynamics model learned nothing from {rows} rows: a hold-out error is no number below 1e10; give it "
            "five rows or more, and observations and rewards of a smaller scale."
        )
    return dynamics


def read_dynamics(path: Path, settings: dict[str, Any]) -> Dynamics:
    """The model in a file; refused unless it was trained on the same data with the same settings."""
    try:
        content = flax.serialization.msgpack_restore(path.read_bytes())
        theirs = json.loads(content["settings"])
        none = Dynamics(Ensemble(None, None, None), *[None] * 4)
        dynamics = jax.tree.map(jnp.asarray, flax.serialization.from_state_dict(none, content["dynamics"]))
    except Exception as error:
        fail(f"The dynamics model {path} cannot be read ({error}); without --dynamics one is trained.")
    differ = sorted(k for k in settings.keys() | theirs.keys() if settings.get(k) != theirs.get(k))
    if differ:
        fail(f"The dynamics model {path} was trained with another {' and '.join(differ)}; without --dynamics one is.")
    errors = ", ".join(f"{x:.5f}" for x in np.asarray(dynamics.errors))
    print(f"  dynamics: {path}, hold-out errors {errors}, elites {' '.join(map(str, dynamics.elites))}")
    return dynamics


# <<< dynamics_file


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
    main()
