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
"""SAC: online maximum-entropy actor-critic with a learned temperature; it makes the behaviour policies of our datasets.

Paper: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, arXiv:1812.05905.
Code:  github.com/rail-berkeley/softlearning at 1d56928 of 2019 (softlearning/algorithms/sac.py), which is close to the
       paper's; later versions changed order, actor, temperature and warm-up.

A policy that is paid for its entropy as well as for reward explores by itself. The price of entropy, alpha, follows
from a target: minus the number of action dimensions.

    critic  L_Q  = sum_i mean (Q_i(s, a) - y)^2 / 2,
            y    = r + discount (1 - d) (min_i Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    actor   L_pi = mean alpha log pi(a|s) - min_i Q_i(s, a),  a = tanh(mean + std eps) ~ pi(s)
    alpha   L    = -log(alpha) mean (log pi(a|s) + target entropy),  no gradient through the policy
    targets theta' <- tau theta + (1 - tau) theta'

Differences from the official code:
 1. The losses of one update follow one another (critic, actor with the new critics, alpha); official: all three at the
    parameters before the update.
 2. `--num-envs` environments of a seed step together, with as many updates between their steps as there are
    environments: one update an environment step, as in the official code, but of a policy up to num_envs - 1 older.
 3. All seeds of a run train in one program, each with its own networks, environments and buffer.
 4. The environments start afresh after every evaluation, from seeds that follow from the step, so that a resumed run
    repeats an undisturbed one to the byte; an episode that this cuts off counts as out of time, and is played to its
    end for the regret alone.
 5. Episode i of every evaluation starts from reset(seed=1000 + i) and takes the mode of the policy.

Run:   python algorithms/sac.py --env Hopper-v5 --steps 250000
Scores: results/README.md

@article{haarnoja2018applications,
  title   = {Soft Actor-Critic Algorithms and Applications},
  author  = {Tuomas Haarnoja and Aurick Zhou and Kristian Hartikainen and George Tucker and Sehoon Ha and Jie Tan and
             Vikash Kumar and Henry Zhu and Abhishek Gupta and Pieter Abbeel and Sergey Levine},
  journal = {arXiv preprint arXiv:1812.05905},
  year    = {2018},
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
import subprocess
import sys
import time
from collections.abc import Sequence
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
    env: str = "Hopper-v5"  # Gymnasium id
    seeds: tuple[int, ...] = (0,)  # these seeds train together
    steps: int = 1_000_000  # environment steps, and after the warm-up as many gradient steps
    batch_size: int = 256  # transitions a gradient step
    discount: float = 0.99  # of the return that the critics estimate
    tau: float = 0.005  # share of the network that a target takes over at each of its updates
    eval_every: int = 10_000  # steps between evaluations; each is also a checkpoint
    eval_episodes: int = 10  # episodes an evaluation
    out: str = "results/runs"  # folder of checkpoints and JSON
    resume: bool = True  # go on from the checkpoint of the same command
    wandb: bool = False  # log to Weights & Biases (without an account: WANDB_MODE=offline)
    video: int = 0  # after training, film this many episodes of every seed
    snapshots: bool = False  # keep the policy of every evaluation as .npz, for benchmarks/collect.py

    num_envs: int = 1  # environments of a seed, stepped together
    warmup: int = 1_000  # first steps, with uniform actions and no updates
    buffer_size: int = 1_000_000  # transitions that the replay buffer holds
    lr: float = 3e-4  # Adam's, of actor, critics and alpha
    hidden_dims: tuple[int, ...] = (256, 256)  # widths of the hidden layers of actor and critics


# ------------------------------------------------------------------------------------------ networks


def dense(features: int) -> nn.Dense:
    """Keras's default layer: Glorot-uniform weights, biases 0."""
    return nn.Dense(features, kernel_init=nn.initializers.glorot_uniform())


class Actor(nn.Module):
    hidden_dims: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> mean and log of the standard deviation, [..., act] each
        x = observations
        for features in self.hidden_dims:
            x = nn.relu(dense(features)(x))
        return dense(self.action_dim)(x), jnp.clip(dense(self.action_dim)(x), -20, 2)


class Critic(nn.Module):
    hidden_dims: Sequence[int]

    @nn.compact
    def __call__(self, observations, actions):  # [..., obs], [..., act] -> [...]
        x = jnp.concatenate([observations, actions], axis=-1)
        for features in self.hidden_dims:
            x = nn.relu(dense(features)(x))
        return dense(1)(x).squeeze(-1)


def gaussian(args: Args, actor, observations):
    """The policy before its tanh: [..., obs] -> mean and log of the standard deviation, [..., act] each."""
    action_dim = actor["params"][f"Dense_{len(args.hidden_dims)}"]["bias"].shape[-1]
    return Actor(args.hidden_dims, action_dim).apply(actor, observations)


def pi(args: Args, actor, observations, noise):
    """Actions tanh(mean + std noise) and the logarithm of their density: [..., act], [...]."""
    mean, log_std = gaussian(args, actor, observations)
    raw = mean + jnp.exp(log_std) * noise
    log_normal = (-(noise**2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2).sum(-1)
    log_slope = (2 * (jnp.log(2.0) - raw - nn.softplus(-2 * raw))).sum(-1)  # of tanh: log(1 - tanh(raw)^2)
    return jnp.tanh(raw), log_normal - log_slope


def q(args: Args, critics, observations, actions):
    """Values of every critic, the leading axis of `critics`: [batch, obs], [batch, act] -> [critics, batch]."""
    return jax.vmap(Critic(args.hidden_dims).apply, in_axes=(0, None, None))(critics, observations, actions)


# ------------------------------------------------------------------------------------------ algorithm


class Batch(NamedTuple):
    observations: jax.Array  # [batch, obs]
    actions: jax.Array  # [batch, act], in [-1, 1]
    rewards: jax.Array  # [batch]
    next_observations: jax.Array  # [batch, obs]
    terminals: jax.Array  # [batch], 1 where the episode truly ended, not where time ran out


class Data(NamedTuple):
    buffer: Any


class Noise(NamedTuple):
    next_policy: jax.Array  # [batch, act], standard normal
    policy: jax.Array  # [batch, act], standard normal


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis 2
    target_critics: Any
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    buffer: Any


def prepare(args: Args, obs_dim: int, action_dim: int) -> Data:
    """No data yet, but its shapes."""
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    row = Batch(zeros((1, obs_dim)), zeros((1, action_dim)), zeros(1), zeros((1, obs_dim)), zeros(1))
    return Data(empty(row, min(args.buffer_size, args.steps)))


def experience(args: Args, data: Data, observations, actions, rewards, next_observations, terminals) -> Batch:
    """Transitions [n, ...] as the environment returned them."""
    return Batch(observations, actions, rewards, next_observations, terminals)


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
    """New networks; the targets start as copies, alpha at 1; the buffer is empty."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = data.buffer.rows.observations[0], data.buffer.rows.actions[0]
    actor = Actor(args.hidden_dims, action.shape[-1]).init(actor_key, observation)
    critics = jax.vmap(Critic(args.hidden_dims).init, in_axes=(0, None, None))(
        jax.random.split(critic_key, 2), observation, action
    )
    log_alpha, adam = jnp.zeros(()), optax.adam(args.lr)
    optimisers = adam.init(actor), adam.init(critics), adam.init(log_alpha)
    return State(actor, critics, critics, log_alpha, *optimisers, data.buffer)


def sample(args: Args, data: Data, key: jax.Array) -> Batch:
    """Uniform with replacement."""
    rows = jax.random.randint(key, (args.batch_size,), 0, data.buffer.size)
    return jax.tree.map(lambda x: x[rows], data.buffer.rows)


def draw(args: Args, batch: Batch, key: jax.Array) -> Noise:
    next_key, key = jax.random.split(key)
    return Noise(jax.random.normal(next_key, batch.actions.shape), jax.random.normal(key, batch.actions.shape))


def critic_loss(critics, args: Args, state: State, batch: Batch, noise: Noise):
    next_actions, log_pi = pi(args, state.actor, batch.next_observations, noise.next_policy)
    next_q = q(args, state.target_critics, batch.next_observations, next_actions).min(axis=0)
    next_v = next_q - jnp.exp(state.log_alpha) * log_pi
    y = batch.rewards + args.discount * (1 - batch.terminals) * next_v  # [batch]
    values = q(args, critics, batch.observations, batch.actions)  # [2, batch]
    loss = ((values - y) ** 2).mean(axis=1).sum() / 2
    return loss, {"critic_loss": loss, "q": values.mean(), "q_target": y.mean()}


def actor_loss(actor, args: Args, state: State, batch: Batch, noise: Noise):
    actions, log_pi = pi(args, actor, batch.observations, noise.policy)
    values = q(args, state.critics, batch.observations, actions).min(axis=0)
    loss = (jnp.exp(state.log_alpha) * log_pi - values).mean()
    return loss, {"actor_loss": loss, "entropy": -log_pi.mean()}


def alpha_loss(log_alpha, entropy, target_entropy):
    return log_alpha * (entropy - target_entropy)


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`: critics, actor, alpha, targets. The number itself changes nothing."""
    adam = optax.adam(args.lr)

    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics, args, state, batch, noise)
    updates, critic_opt = adam.update(grads, state.critic_opt)
    state = state._replace(critics=optax.apply_updates(state.critics, updates), critic_opt=critic_opt)

    grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(state.actor, args, state, batch, noise)
    updates, actor_opt = adam.update(grads, state.actor_opt)
    state = state._replace(actor=optax.apply_updates(state.actor, updates), actor_opt=actor_opt)

    grad = jax.grad(alpha_loss)(state.log_alpha, actor_metrics["entropy"], -batch.actions.shape[-1])
    updates, alpha_opt = adam.update(grad, state.alpha_opt)
    state = state._replace(log_alpha=optax.apply_updates(state.log_alpha, updates), alpha_opt=alpha_opt)

    targets = optax.incremental_update(state.critics, state.target_critics, args.tau)
    return state._replace(target_critics=targets), metrics | actor_metrics | {"alpha": jnp.exp(state.log_alpha)}


def act(args: Args, state: State, observations: jax.Array) -> jax.Array:
    """The policy's mode: [..., obs] -> [..., act] in [-1, 1]."""
    return jnp.tanh(gaussian(args, state.actor, observations)[0])


def explore(args: Args, state: State, observations: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """Uniform in the warm-up, then samples of the policy: [envs, obs] -> [envs, act] in [-1, 1]."""
    mean, log_std = gaussian(args, state.actor, observations)
    actions = jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))
    return jnp.where(step < args.warmup, jax.random.uniform(key, mean.shape, minval=-1, maxval=1), actions)


# ------------------------------------------------------------------------------------------ training and evaluation
# Between the marks stand blocks that several scripts share, equal to the byte: edit one at its home, then `make sync`.


# >>> each_seed (home: td3_bc.py)
def each_seed(function):
    """`function` of every seed's arguments: of all at once (vmap), but on a CPU of one after another. That is faster
    there, since one seed's arrays fit the cache, and leaves no number of a seed to depend on the others."""
    in_turn = lambda *trees: jax.lax.map(lambda tree: function(*tree), trees)
    return in_turn if jax.default_backend() == "cpu" else jax.vmap(function)


# <<< each_seed


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


def snapshot(path: Path, args: Args, actor, seed: int, curve: list) -> None:
    """One seed's policy as plain weights in float16: W0 [in, out], b0, ...; the last of these is the mean, W_log_std
    stands beside it. `meta` is JSON: what made it, and the curve [step, mean return of the mode] that led to it."""
    layers = [actor["params"][f"Dense_{i}"] for i in range(len(args.hidden_dims) + 2)]
    names = [*map(str, range(len(args.hidden_dims) + 1)), "_log_std"]
    arrays = {f"W{name}": layer["kernel"] for name, layer in zip(names, layers, strict=True)}
    arrays |= {f"b{name}": layer["bias"] for name, layer in zip(names, layers, strict=True)}
    meta = {"env": args.env, "hidden": "relu", "squash": "tanh", "seed": seed, "step": curve[-1][0], "curve": curve}
    meta["command"] = f"python algorithms/{Path(__file__).name} {' '.join(sys.argv[1:])}"
    np.savez_compressed(path, meta=json.dumps(meta), **{k: np.asarray(v, np.float16) for k, v in arrays.items()})


def main() -> None:
    import tyro

    args = tyro.cli(Args, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    check(args)
    try:
        import dataset as loader
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing: dataset.py belongs beside this script, and what its header names is needed.")

    if args.steps % args.num_envs or args.eval_every % args.num_envs:
        fail(f"--steps and --eval-every must be multiples of --num-envs, {args.num_envs}.")
    # The second start of the same program need not compile.
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache/solo/jax"))
    try:
        make = functools.partial(loader.make_env, args.env)
        evaluators = [[make() for _ in range(min(args.eval_episodes, 10))] for _ in args.seeds]
    except loader.DatasetError as error:
        fail(str(error))
    run, task = identity(args, ""), loader.task_of(args.env)
    folder = group(args, run, "online", args.env)
    checkpoint = folder / "checkpoint.msgpack"
    about = {"id": args.env, "benchmark": "online", "name": args.env, "env": args.env}
    about |= {"reference": task.reference if task else None}
    # Where this machine keeps results means nothing elsewhere.
    arguments = {k: v for k, v in dataclasses.asdict(args).items() if k != "out"}
    header = {"algorithm": Path(__file__).stem, "dataset": about, "arguments": arguments}
    header |= {"run": run, "machine": machine()}
    print(f"{header['algorithm']} in {args.env}\n  results: {folder}")
    done = args.resume and finished(folder, args, run)
    if done and not args.video:
        return print("This run is finished; --no-resume repeats it.")
    if done and not checkpoint.exists():
        fail(f"This run is finished, but {checkpoint} is gone: there is nothing to film unless --no-resume repeats it.")

    observation_space, action_space = evaluators[0][0].observation_space, evaluators[0][0].action_space
    data = prepare(args, observation_space.shape[0], action_space.shape[0])
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jnp.stack([jax.random.key(seed) for seed in args.seeds]))
    state = jax.jit(jax.vmap(init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys[:, 0])
    policy = jax.jit(jax.vmap(functools.partial(act, args)))
    step, log = 0, []
    if args.resume and checkpoint.exists():
        state, step, log = restore(checkpoint, run, state)
    folder.mkdir(parents=True, exist_ok=True)
    if not done:  # a film changes nothing in a finished run's JSON
        record(folder, args, header, log)
    logs = [] if done else loggers(args, header, folder)
    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=0.5 if sys.stderr.isatty() else 30)
    try:
        while step < args.steps:
            started, length = time.perf_counter(), min(args.eval_every, args.steps - step)
            np.random.seed(np.random.SeedSequence([*args.seeds, step]).generate_state(1)[0])  # as in `evaluate`
            state, metrics, _ = interact(args, data, state, make, keys, 0, step, length, bar.update)
            jax.block_until_ready(state)
            step, training = step + length, time.perf_counter() - started
            returns, successes = evaluate(policy, state, evaluators, args.eval_episodes)
            score = loader.normalized_score(task, returns) if task else None
            log.append(evaluation(log, step, started, training, returns, successes, score, metrics))
            for i, seed in enumerate(args.seeds if args.snapshots else ()):
                actor = jax.tree.map(lambda x, i=i: np.asarray(x[i]), state.actor)
                path = folder / f"policy_seed_{seed}_step_{step:07d}.npz"
                curve = [[entry["step"], round(float(np.mean(entry["returns"][i])), 1)] for entry in log]
                snapshot(path, args, actor, seed, curve)
            save(checkpoint, run, state, step, log)
            record(folder, args, header, log)
            report(log[-1], bar, logs)
    except KeyboardInterrupt:
        again = "the same command" if args.resume else "the same command without --no-resume"
        print(f"\nStopped; {again} goes on from step {log[-1]['step'] if log else 0:,}.", file=sys.stderr)
        sys.exit(130)
    bar.close()
    conclude(args, log)
    if args.video:
        film(args, policy, state, make, folder / "video")


if __name__ == "__main__":
    main()
