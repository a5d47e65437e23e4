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
"""DT: decision transformer, which predicts the action that follows from a history and the return that is asked for.

Paper: Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas and Mordatch, "Decision Transformer: Reinforcement
       Learning via Sequence Modeling", NeurIPS 2021, arXiv:2106.01345.
Code:  github.com/corl-team/CORL (algorithms/offline/dt.py);
       the authors' own: github.com/kzl/decision-transformer (gym).

There are no values and no bootstrapping. An episode is a sequence of tokens R_0, s_0, a_0, R_1, s_1, a_1, ...: R_t is
the return-to-go, the sum of the rewards from step t to the episode's end. A causal transformer learns which action
follows s_t, given the last steps and R_t. To act, ask for a high return: R_0 = target_return, R_{t+1} = R_t - r_t.

    actor   L    = mean over batch, steps and action dimensions of mask (pi(..., R_t, s_t) - a_t)^2,
            mask = 0 where a sequence was cut off by the end of its episode
    step    g <- g min(1, clip_grad / |g|), AdamW with weight decay on all parameters, lr grows over warmup_steps

    token   LayerNorm(W x + b + e_t), e_t a learned embedding of the step; then dropout
    block   x + drop(attention(LayerNorm x)), x + drop(W' gelu(W LayerNorm x)); after the last one a LayerNorm
    action  tanh(W x + b) of the tokens of s_t

A sequence is cut from the data at a row drawn uniformly, so that long episodes are met as often as they have rows.

CORL's code is followed, for it made the table that TUNED's rows belong to, with batches of 4,096. The authors' has
batches of 64 and an lr of 1e-4 (the defaults here), ReLU, a loss that is the mean over the steps that are no padding,
and pads sequences on the left.

Differences from the official code:
 1. All seeds of a run train in one program, each with its own initial network, batches and noise.
 2. Episode i of every evaluation starts from reset(seed=1000 + i), for every seed and step, so that evaluations can be
    compared in pairs; CORL: seed 42, once an evaluation, after updates 1, 5,001 ... and the last.
 3. Episodes end at a terminal, and else with those of dataset.py, where the states say so. CORL cuts where a terminal
    or time-out is marked: it joins episodes where none is (parts of medium-replay). As there, every row at the goal of
    AntMaze is an episode, an unfinished last episode is left out, and no other row is, whatever rule a run prints.
 4. A run asks for one return, the largest of those that CORL's configs ask for, which is the one that its table shows;
    where none is published, for the best return of the data. Evaluation with another is another run.
 5. An evaluated episode goes on until its environment ends it, or to the end of the table of embedded steps, which has
    seq_len rows more than an episode; CORL stops after episode_len steps. D4RL's environments end no later.
 6. What dropout leaves out is drawn from 16 bits an entry, so that its share is met to 1/65,536.
 7. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4;
    mazes and Adroit in what Gymnasium-Robotics has of them today, with D4RL's physics, goals and rewards put back
    (dataset.py). Mean and deviation of the observations are summed in float64; official: in float32, over 1,000,000
    rows off by 1e-4 to 1e-1 of a deviation.

Run:   python algorithms/dt.py --dataset hopper-medium-v2 --seeds 0 1 2 3
       python algorithms/dt.py --dataset hopper-medium-v2 --untuned --target-return 3600     # for a CPU
Scores: results/README.md

@inproceedings{chen2021decision,
  title     = {Decision Transformer: Reinforcement Learning via Sequence Modeling},
  author    = {Lili Chen and Kevin Lu and Aravind Rajeswaran and Kimin Lee and Aditya Grover and Michael Laskin and
               Pieter Abbeel and Aravind Srinivas and Igor Mordatch},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021},
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
    steps: int = 100_000  # gradient steps
    batch_size: int = 64  # sequences a gradient step
    eval_every: int = 10_000  # steps between evaluations; each is also a checkpoint
    eval_episodes: int = 100  # episodes an evaluation
    out: str = "results/runs"  # folder of checkpoints and JSON
    resume: bool = True  # go on from the checkpoint of the same command, unless --no-resume
    untuned: bool = False  # leave the dataset's published hyper-parameters out
    wandb: bool = False  # log to Weights & Biases (without an account: WANDB_MODE=offline)
    video: int = 0  # after training, film this many episodes of every seed

    seq_len: int = 20  # steps that the transformer sees, of three tokens each
    episode_len: int = 1_000  # longest episode; each of its steps has an embedding
    embedding_dim: int = 128  # width of the transformer
    num_layers: int = 3  # blocks
    num_heads: int = 1  # of every attention
    dropout: float = 0.1  # share of tokens, attention weights and branches that an update leaves out
    lr: float = 1e-4  # AdamW's, after the warm-up
    warmup_steps: int = 10_000  # updates over which the learning rate grows
    weight_decay: float = 1e-4  # AdamW's
    clip_grad: float = 0.25  # largest norm of the gradient
    reward_scale: float = 0.001  # factor on returns, so that they are about as large as other inputs
    target_return: float | None = None  # return that evaluation asks for; by default the best of the data


# Published hyper-parameters: dataset -> (source, what departs from or confirms the defaults).
CORL = "CORL eeeeef2, configs/offline/dt"
BATCH = {"batch_size": 4096, "lr": 8e-4, "eval_every": 5_000}
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{env}-{kind}-v2": (CORL, BATCH | {"target_return": target})
        for env, target in (("halfcheetah", 12000.0), ("hopper", 3600.0), ("walker2d", 5000.0))
        for kind in ("medium", "medium-replay", "medium-expert")
    },
    **{
        f"maze2d-{size}-v1": (CORL, BATCH | {"target_return": 280.0, "reward_scale": 1.0})
        for size in ("umaze", "medium", "large")
    },
    **{
        f"antmaze-{maze}-v2": (CORL, {"target_return": 1.0, "reward_scale": 1.0})
        for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"{hand}-{kind}-v1": (CORL, BATCH | {"target_return": target, "reward_scale": 1.0})
        for hand, target in (("pen", 3100.0), ("door", 2900.0), ("hammer", 12800.0), ("relocate", 4300.0))
        for kind in ("human", "cloned", "expert")
    },
}
# Datasets collected here borrow the row of D4RL's dataset of the same environment and quality.
TUNED |= {
    f"solo/{env}-v5/{kind}-v0": (f"{TUNED[row][0]}, row {row}", TUNED[row][1])
    for env in ("halfcheetah", "hopper", "walker2d")
    for kind in ("medium", "medium-replay", "medium-expert")
    for row in (f"{env}-{kind}-v2",)
}


def tuned(dataset: str) -> Args:
    """The published arguments for `dataset`; the defaults where none are published."""
    return dataclasses.replace(Args(dataset=dataset), **TUNED.get(dataset, ("", {}))[1])


# ------------------------------------------------------------------------------------------ networks


def dense(features: int, name: str, kernel_init=None):
    """A layer, by default of weights N(0, 0.02^2) and biases 0, as a product of two matrices: with a third axis the
    weights' gradient takes a CPU twice as long."""
    layer = nn.Dense(features, kernel_init=kernel_init or nn.initializers.normal(0.02), name=name)
    return lambda x: layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, name=name)  # as PyTorch's


def drop(args: Args, x, kept):
    """Zeros where not `kept`, the rest scaled to keep the mean; all of x where nothing was drawn."""
    return x if kept is None else jnp.where(kept, x / (1 - args.dropout), 0)


class Block(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, x, seen, kept):  # [..., tokens, width], [..., tokens, tokens] -> [..., tokens, width]
        args, width = self.args, x.shape[-1]
        split = lambda x: x.reshape(*x.shape[:-1], args.num_heads, -1)  # [..., tokens, heads, width / heads]
        xavier = nn.initializers.xavier_uniform()  # CORL's initialisation does not reach this layer; this is PyTorch's
        joint = dense(3 * width, "attn_in", xavier)(layer_norm("norm1")(x))
        queries, keys, values = (split(x) for x in jnp.split(joint, 3, axis=-1))
        scores = jnp.einsum("...qhw,...khw->...hqk", queries, keys) / queries.shape[-1] ** 0.5
        weights = nn.softmax(jnp.where(seen[..., None, :, :], scores, -jnp.inf))
        heads = jnp.einsum("...hqk,...khw->...qhw", drop(args, weights, kept.attention), values)
        x = x + drop(args, dense(width, "attn_out")(heads.reshape(x.shape)), kept.attended)
        hidden = nn.gelu(dense(4 * width, "mlp0")(layer_norm("norm2")(x)), approximate=False)
        return x + drop(args, dense(width, "mlp1")(hidden), kept.mlp)


class Transformer(nn.Module):
    args: Args
    action_dim: int

    @nn.compact
    def __call__(self, batch, noise):  # -> [..., seq_len, act], the action predicted at every step
        args, width = self.args, self.args.embedding_dim
        table = nn.Embed(
            args.episode_len + args.seq_len, width, embedding_init=nn.initializers.normal(0.02), name="timestep_emb"
        )
        triples = [  # R_t, s_t, a_t
            dense(width, "return_emb")(batch.returns_to_go[..., None]),
            dense(width, "state_emb")(batch.observations),
            dense(width, "action_emb")(batch.actions),
        ]
        x = jnp.stack(triples, axis=-2) + table(batch.time_steps)[..., None, :]  # [..., seq_len, 3, width]
        x = x.reshape(*x.shape[:-3], -1, width)  # [..., tokens, width]
        x = drop(args, layer_norm("emb_norm")(x), noise.embedding)
        past = jnp.tri(x.shape[-2], dtype=bool)  # a token sees itself and those before it, but no padding
        seen = past & (jnp.repeat(batch.mask, 3, axis=-1) > 0)[..., None, :]  # [..., tokens, tokens]
        for i in range(args.num_layers):
            x = Block(args, name=f"block{i}")(x, seen, jax.tree.map(lambda kept, i=i: kept[:, i], noise.blocks))
        states = layer_norm("out_norm")(x)[..., 1::3, :]
        return jnp.tanh(dense(self.action_dim, "action_head")(states))


def pi(args: Args, actor, batch, noise):
    """Actions in [-1, 1] that follow every step of the sequences: Batch -> [..., seq_len, act]."""
    action_dim = actor["params"]["action_head"]["bias"].shape[-1]
    return Transformer(args, action_dim).apply(actor, batch, noise)


# ------------------------------------------------------------------------------------------ algorithm


class Batch(NamedTuple):
    observations: jax.Array  # [batch, seq_len, obs], normalised
    actions: jax.Array  # [batch, seq_len, act], in [-1, 1]
    returns_to_go: jax.Array  # [batch, seq_len], scaled
    time_steps: jax.Array  # [batch, seq_len], integers, counted from the episode's start
    mask: jax.Array  # [batch, seq_len], 1 where the step is one of the episode, 0 after its end; so is all else there


class Data(NamedTuple):
    """All rows of the episodes, one after the other."""

    observations: jax.Array  # [rows, obs], normalised
    actions: jax.Array  # [rows, act]
    returns_to_go: jax.Array  # [rows], scaled
    time_steps: jax.Array  # [rows]
    left: jax.Array  # [rows], how many rows its episode has from this one on
    mean: jax.Array  # [obs], of the raw observations
    std: jax.Array  # [obs]
    target_return: jax.Array  # what evaluation asks for, not scaled


class Kept(NamedTuple):
    """What dropout keeps in the blocks."""

    attention: jax.Array | None = None  # [batch, blocks, heads, tokens, tokens]
    attended: jax.Array | None = None  # [batch, blocks, tokens, width]
    mlp: jax.Array | None = None  # [batch, blocks, tokens, width]


class Noise(NamedTuple):
    embedding: jax.Array | None = None  # [batch, tokens, width], which dropout keeps
    blocks: Kept = Kept()


class State(NamedTuple):
    actor: Any
    actor_opt: optax.OptState
    mean: jax.Array  # [obs], for `act`, which sees raw observations and rewards
    std: jax.Array  # [obs]
    target_return: jax.Array


class History(NamedTuple):
    """Episodes under way, with room for all their steps; `act` reads none that is still to come."""

    observations: Any  # [..., steps, obs], raw
    actions: Any  # [..., steps, act]
    earned: Any  # [..., steps], sum of the rewards before a step
    step: Any  # [...], the one to act in


def prepare(args: Args, dataset) -> Data:
    """The rows of all episodes but an unfinished last one, with normalised observations, on the device."""
    if args.embedding_dim % args.num_heads:
        fail(f"--num-heads {args.num_heads} must divide --embedding-dim, {args.embedding_dim}.")
    ends = dataset.terminals.astype(bool)
    ends[dataset.episodes[:, 1] - 1] = True
    stops = np.flatnonzero(ends) + 1
    finished = dataset.terminals[-1] or dataset.timeouts[-1] or len(stops) == 1
    stops = stops if finished else stops[:-1]
    starts = np.append(0, stops[:-1])
    lengths, rows = stops - starts, np.arange(stops[-1])
    if lengths.max() > args.episode_len + 1:  # D4RL's AntMaze has a step more than its limit
        fail(f"--episode-len is {args.episode_len}, but the data has an episode of {lengths.max()} steps.")
    mean, std = dataset.observations.mean(0, dtype=np.float64), dataset.observations.std(0, dtype=np.float64) + 1e-6
    rewards = dataset.rewards[rows].astype(np.float64)
    earned = np.cumsum(rewards)
    returns_to_go = np.repeat(earned[stops - 1], lengths) - earned + rewards
    best = returns_to_go[starts].max() if args.target_return is None else args.target_return
    floats = (dataset.observations[rows] - mean) / std, dataset.actions[rows], args.reward_scale * returns_to_go
    integers = rows - np.repeat(starts, lengths), np.repeat(stops, lengths) - rows
    as_type = lambda dtype, *arrays: (jnp.asarray(x, dtype) for x in arrays)
    return Data(*as_type(jnp.float32, *floats), *as_type(jnp.int32, *integers), *as_type(jnp.float32, mean, std, best))


def window(args: Args, data: Data, rows: jax.Array) -> Batch:
    """The sequences that start at `rows`, padded with zeros where their episode ends: [batch] -> Batch."""
    steps = jnp.arange(args.seq_len)
    mask = steps < data.left[rows][:, None]  # [batch, seq_len]
    places = jnp.minimum(rows[:, None] + steps, len(data.left) - 1)
    take = lambda x: jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 1)), x[places], 0)
    sequences = (take(x) for x in (data.observations, data.actions, data.returns_to_go))
    return Batch(*sequences, data.time_steps[rows][:, None] + steps, mask.astype(data.returns_to_go.dtype))


def init(args: Args, data: Data, key: jax.Array) -> State:
    """A new network."""
    batch = window(args, data, jnp.zeros(1, jnp.int32))
    actor = Transformer(args, data.actions.shape[-1]).init(key, batch, Noise())
    return State(actor, optax.adamw(args.lr).init(actor), data.mean, data.std, data.target_return)


def sample(args: Args, data: Data, key: jax.Array) -> Batch:
    """Sequences from any row, uniform with replacement."""
    return window(args, data, jax.random.randint(key, (args.batch_size,), 0, len(data.left)))


def keep(args: Args, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """True but for a share `dropout`, to the precision of 16 random bits; one number drawn for two entries takes a CPU
    a quarter of the time."""
    size = math.prod(shape)
    bits = jax.lax.bitcast_convert_type(jax.random.bits(key, (-(-size // 2),)), jnp.uint16).reshape(-1)
    return (bits[:size] < jnp.uint16((1 - args.dropout) * 2**16)).reshape(shape)


def draw(args: Args, batch: Batch, key: jax.Array) -> Noise:
    if not args.dropout:
        return Noise()
    size, tokens, blocks = len(batch.mask), 3 * args.seq_len, args.num_layers
    branch = size, blocks, tokens, args.embedding_dim
    shapes = (size, *branch[2:]), (size, blocks, args.num_heads, tokens, tokens), branch, branch
    keys = jax.random.split(key, len(shapes))
    embedding, *blocks = (keep(args, k, x) for k, x in zip(keys, shapes, strict=True))
    return Noise(embedding, Kept(*blocks))


def actor_loss(actor, args: Args, batch: Batch, noise: Noise):
    errors = (pi(args, actor, batch, noise) - batch.actions) ** 2  # [batch, seq_len, act]
    loss = (errors * batch.mask[..., None]).mean()  # over padded steps too
    return loss, {"actor_loss": loss}


def learning_rate(args: Args, step):
    return args.lr * jnp.minimum((step + 1) / args.warmup_steps, 1)


def clip(args: Args, grads):
    """The gradient, no longer than `clip_grad`, and how long it was. (optax's has no 1e-6, PyTorch's has.)"""
    norm = jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads)))
    return jax.tree.map(lambda x: x * jnp.minimum(args.clip_grad / (norm + 1e-6), 1), grads), norm


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


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`, counted from 0."""
    gradient = lambda rows: jax.grad(actor_loss, has_aux=True)(state.actor, args, *rows)
    grads, metrics = by_parts(gradient, (batch, noise), 8)
    grads, norm = clip(args, grads)
    adamw = optax.adamw(learning_rate(args, step), weight_decay=args.weight_decay)
    updates, actor_opt = adamw.update(grads, state.actor_opt, state.actor)
    actor = optax.apply_updates(state.actor, updates)
    return state._replace(actor=actor, actor_opt=actor_opt), metrics | {"grad_norm": norm}


def begin(state: State, observations) -> History:
    """Episodes in their first step: [..., obs] -> History, on the host, where an evaluation goes on writing."""
    actor, observations = state.actor["params"], np.asarray(observations)
    steps, action_dim = actor["timestep_emb"]["embedding"].shape[-2], actor["action_head"]["bias"].shape[-1]
    zeros = lambda *shape: np.zeros((*observations.shape[:-1], *shape), observations.dtype)
    history = History(zeros(steps, observations.shape[-1]), zeros(steps, action_dim), zeros(steps), zeros().astype(int))
    history.observations[..., 0, :] = observations
    return history


def act(args: Args, state: State, history: History) -> jax.Array:
    """The action of every episode's current step, given the last `seq_len`: [..., act] in [-1, 1]."""
    first = jnp.maximum(history.step - args.seq_len + 1, 0)  # [...]
    time_steps = first[..., None] + jnp.arange(args.seq_len)  # [..., seq_len]; what is to come stands at the end
    take = lambda x, steps: jnp.take_along_axis(x, steps[..., None], axis=-2)
    observations = (take(history.observations, time_steps) - state.mean) / state.std
    returns_to_go = args.reward_scale * (state.target_return - jnp.take_along_axis(history.earned, time_steps, axis=-1))
    batch = Batch(
        observations, take(history.actions, time_steps), returns_to_go, time_steps, jnp.ones_like(returns_to_go)
    )
    actions = pi(args, state.actor, batch, Noise())  # [..., seq_len, act]
    return take(actions, (history.step - first)[..., None])[..., 0, :]


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


def evaluate(policy, state, envs: Sequence[Sequence[Any]], episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """What the other scripts' `evaluate` does, but `policy` maps (state, History of [seeds, envs]) to
    [seeds, envs, act]. All histories are as long as any can become, so that the policy is compiled once."""
    returns, successes = np.zeros((len(envs), episodes)), np.full((len(envs), episodes), np.nan)
    slots = len(envs[0])
    for first in range(0, episodes, slots):
        np.random.seed(1000 + first)  # some environments draw from numpy's global generator
        alive = np.zeros((len(envs), slots), bool)
        alive[:, : episodes - first] = True
        resets = [[env.reset(seed=1000 + first + slot)[0] for slot, env in enumerate(row)] for row in envs]
        history = begin(state, np.asarray(resets, state.mean.dtype))
        for step in range(history.earned.shape[-1] - 1):
            if not alive.any():
                break
            history.step[:] = step
            actions = np.asarray(policy(state, history))
            history.actions[:, :, step] = actions
            for i, slot in np.argwhere(alive):
                observation, reward, terminated, truncated, info = envs[i][slot].step(actions[i, slot])
                history.observations[i, slot, step + 1] = observation
                history.earned[i, slot, step + 1] = history.earned[i, slot, step] + reward
                returns[i, first + slot] += reward
                successes[i, first + slot] = info.get("success", np.nan)  # the last step's counts
                alive[i, slot] = not (terminated or truncated)
    return returns, successes


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
    main()
