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
"""SAC-N: soft actor-critic that trusts the smallest of N critics, and with N large enough needs nothing else offline.

Paper: An, Moon, Kim and Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", NeurIPS
       2021, arXiv:2110.01548.
Code:  github.com/corl-team/CORL (algorithms/offline/sac_n.py); the authors' github.com/snu-mllab/EDAC differs: see 1.

Critics that start differently agree where the data has taught them and scatter elsewhere, so that the smallest of many
is a lower bound of Q that is low where the data is silent. The rest is SAC with its learned temperature.

    alpha   L    = -log(alpha) mean (log pi(a|s) + target entropy),  no gradient through the policy
    actor   L_pi = mean alpha log pi(a|s) - min_i Q_i(s, a),  a = tanh(mean + std eps) ~ pi(s)
    critic  L_Q  = sum_i mean (Q_i(s, a) - y)^2,
            y    = r + discount (1 - d) (min_i Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    targets theta' <- tau theta + (1 - tau) theta'

in this order, each with what the ones above have changed.

LB-SAC (Nikulin et al., "Q-Ensemble for Offline RL: Don't Scale the Ensemble, Scale the Batch Size", arXiv:2211.11092)
is this with batches of 10,000, learning rates of 3e-4 sqrt(10,000 / 256), there 0.0018, PyTorch's initial weights, and
fewer critics and steps:

    python algorithms/sac_n.py --dataset hopper-medium-replay-v2 --batch-size 10000 --actor-lr 0.0018
        --critic-lr 0.0018 --alpha-lr 0.0018 --no-edac-init --num-critics 20 --steps 150000

    critics, thousand steps  random   medium   expert   medium-replay  medium-expert  full-replay
    halfcheetah              2, 300   4, 300   6, 350        4, 300        8, 300        4, 300
    hopper                   25, 250  25, 200  50, 450      20, 150       40, 150       25, 150
    walker2d                 15, 150  10, 150  30, 350       4, 350       10, 300        4, 350

(CORL eeeeef2, configs/offline/lb-sac; the authors' github.com/tinkoff-ai/lb-sac has 10 critics on two medium-replays,
and 350 thousand steps but on hopper-expert, 500.) walker2d-expert keeps EDAC's initial weights. Two things of CORL's
lb_sac.py are not here: the mean over the critics instead of the sum, which Adam makes the same but for its epsilon, and
hopper-medium's LayerNorm.

Differences from the official code:
 1. None in the update (CORL's). The authors take all three losses at the parameters before the update; their initial
    weights have other bounds than CORL's, which are used: its critics' are uniform in +-1/sqrt(outputs).
 2. All seeds of a run train in one program, each with its own initial networks, batches and noise.
 3. Episode i of every evaluation starts from reset(seed=1000 + i), for every seed and step, so that evaluations can be
    compared in pairs, at steps 5,000, 10,000 ...; CORL: after one seed(42), at steps 1,000, 6,000 ...
 4. D4RL's locomotion data was made with MuJoCo environments of version 2; they are evaluated in Gymnasium's version 4;
    mazes and Adroit in what Gymnasium-Robotics has of them today, with D4RL's physics, goals and rewards put back
    (dataset.py). Where time has cut an episode without a mark, the next observation is the file's own or, in AntMaze's
    files, which have none, the row's own observation; official: the next row's.
 5. Left out: scaled rewards, which no configuration has; Q at random actions, which was drawn for the log.

Run:   python algorithms/sac_n.py --dataset halfcheetah-medium-v2 --seeds 0 1 2 3
       python algorithms/sac_n.py --dataset my_data.hdf5 --env HalfCheetah-v5 --num-critics 10
Scores: results/README.md

@inproceedings{an2021uncertainty,
  title     = {Uncertainty-Based Offline Reinforcement Learning with Diversified {Q}-Ensemble},
  author    = {Gaon An and Seungyong Moon and Jang-Hyun Kim and Hyun Oh Song},
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

    num_critics: int = 10  # critics, whose smallest value counts
    actor_lr: float = 3e-4  # Adam's, of the actor
    critic_lr: float = 3e-4  # Adam's, of the critics
    alpha_lr: float = 3e-4  # Adam's, of alpha
    hidden_dims: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of actor and critics
    edac_init: bool = True  # small heads and hidden biases of 0.1 at first, unless --no-edac-init


# Published hyper-parameters: dataset -> (source, what departs from or confirms the defaults).
CORL, LB_SAC = "CORL eeeeef2, configs/offline/sac_n", "lb-sac 7253267, configs/sac-n"
KINDS = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{env}-{kind}-v2": (LB_SAC if kind in ("random", "expert", "full-replay") else CORL, {"num_critics": critics})
        for env, sizes in (
            ("halfcheetah", (10, 10, 10, 10, 10, 10)),
            ("hopper", (500, 500, 500, 200, 200, 200)),
            ("walker2d", (20, 20, 100, 20, 20, 20)),
        )
        for kind, critics in zip(KINDS, sizes, strict=True)
    },
    **{f"maze2d-{size}-v1": (CORL, {"num_critics": 25}) for size in ("umaze", "medium", "large")},
    **{
        f"antmaze-{maze}-v2": (CORL, {"num_critics": 25})
        for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{
        f"{hand}-{kind}-v1": (CORL, {"num_critics": 100})
        for hand in ("pen", "door", "hammer", "relocate")
        for kind in ("human", "cloned", "expert")
    },
}
# Datasets collected here borrow the row of D4RL's dataset of the same environment and quality.
TUNED |= {
    f"solo/{env}-v5/{kind}-v0": (f"{TUNED[row][0]}, row {row}", TUNED[row][1])
    for env in ("halfcheetah", "hopper", "walker2d")
    for kind in KINDS[:-1]
    for row in (f"{env}-{kind}-v2",)
}


def tuned(dataset: str) -> Args:
    """The published arguments for `dataset`; the defaults where none are published."""
    return dataclasses.replace(Args(dataset=dataset), **TUNED.get(dataset, ("", {}))[1])


# ------------------------------------------------------------------------------------------ networks


def dense(features: int, bound: float, bias: float | None = None, name: str | None = None) -> nn.Dense:
    """Weights uniform in +-bound, and biases too unless they have one value."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    bias_init = uniform if bias is None else nn.initializers.constant(bias)
    return nn.Dense(features, kernel_init=uniform, bias_init=bias_init, name=name)


class Actor(nn.Module):
    args: Args
    action_dim: int

    @nn.compact
    def __call__(self, observations):  # [..., obs] -> mean and log of the standard deviation, [..., act] each
        x, small = observations, self.args.edac_init
        for features in self.args.hidden_dims:
            x = nn.relu(dense(features, x.shape[-1] ** -0.5, 0.1 if small else None)(x))
        head = 1e-3 if small else x.shape[-1] ** -0.5
        mean, log_std = (dense(self.action_dim, head, name=name)(x) for name in ("mean", "log_std"))
        return mean, jnp.clip(log_std, -5, 2)


class Critic(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, observations, actions):  # [..., obs], [..., act] -> [...]
        x, small = jnp.concatenate([observations, actions], axis=-1), self.args.edac_init
        for features in self.args.hidden_dims:  # the bounds are of the outputs, in CORL too
            x = nn.relu(dense(features, features**-0.5, 0.1 if small else None)(x))
        return dense(1, 3e-3 if small else 1.0)(x).squeeze(-1)


def gaussian(args: Args, actor, observations):
    """The policy before its tanh: [..., obs] -> mean and log of the standard deviation, [..., act] each."""
    return Actor(args, actor["params"]["mean"]["bias"].shape[-1]).apply(actor, observations)


def pi(args: Args, actor, observations, noise):
    """Actions tanh(mean + std noise) and the logarithm of their density: [..., act], [...]."""
    mean, log_std = gaussian(args, actor, observations)
    actions = jnp.tanh(mean + jnp.exp(log_std) * noise)
    log_normal = (-(noise**2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2).sum(-1)
    return actions, log_normal - jnp.log(1 - actions**2 + 1e-6).sum(-1)


def q(args: Args, critics, observations, actions):
    """Values of every critic, the leading axis of `critics`: [batch, obs], [batch, act] -> [critics, batch]."""
    return jax.vmap(Critic(args).apply, in_axes=(0, None, None))(critics, observations, actions)


# ------------------------------------------------------------------------------------------ algorithm


class Batch(NamedTuple):
    observations: jax.Array  # [batch, obs]
    actions: jax.Array  # [batch, act], in [-1, 1]
    rewards: jax.Array  # [batch]
    next_observations: jax.Array  # [batch, obs]
    terminals: jax.Array  # [batch], 1 where the episode truly ended, not where time ran out


class Data(NamedTuple):
    rows: Batch  # the whole dataset


class Noise(NamedTuple):
    alpha_policy: jax.Array  # [batch, act], standard normal, as the others: a ~ pi(s) that alpha judges
    policy: jax.Array  # [batch, act]
    next_policy: jax.Array  # [batch, act]


class State(NamedTuple):
    actor: Any
    critics: Any  # leading axis N
    target_critics: Any
    log_alpha: jax.Array
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


def prepare(args: Args, dataset) -> Data:
    """The rows that published code trains on, as they are, on the device."""
    rows = Batch(*(getattr(dataset, name)[dataset.keep] for name in Batch._fields))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), Data(rows))


def init(args: Args, data: Data, key: jax.Array) -> State:
    """New networks; the targets start as copies, alpha at 1."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = data.rows.observations[0], data.rows.actions[0]
    actor = Actor(args, action.shape[-1]).init(actor_key, observation)
    keys = jax.random.split(critic_key, args.num_critics)
    critics = jax.vmap(Critic(args).init, in_axes=(0, None, None))(keys, observation, action)
    learned = ((args.actor_lr, actor), (args.critic_lr, critics), (args.alpha_lr, jnp.zeros(())))
    optimisers = (optax.adam(lr).init(parameters) for lr, parameters in learned)
    return State(actor, critics, critics, jnp.zeros(()), *optimisers)


def sample(args: Args, data: Data, key: jax.Array) -> Batch:
    """Uniform with replacement."""
    rows = jax.random.randint(key, (args.batch_size,), 0, len(data.rows.rewards))
    return jax.tree.map(lambda x: x[rows], data.rows)


def draw(args: Args, batch: Batch, key: jax.Array) -> Noise:
    return Noise(*jax.random.normal(key, (3, *batch.actions.shape)))


def alpha_loss(log_alpha, args: Args, state: State, batch: Batch, noise: Noise):
    _, log_pi = pi(args, state.actor, batch.observations, noise.alpha_policy)
    loss = -log_alpha * (log_pi.mean() - batch.actions.shape[-1])
    return loss, {"alpha_loss": loss}


def actor_loss(actor, args: Args, state: State, batch: Batch, noise: Noise):
    actions, log_pi = pi(args, actor, batch.observations, noise.policy)
    values = q(args, state.critics, batch.observations, actions)  # [N, batch]
    loss = (jnp.exp(state.log_alpha) * log_pi - values.min(axis=0)).mean()
    return loss, {"actor_loss": loss, "entropy": -log_pi.mean(), "q_std": values.std(axis=0, ddof=1).mean()}


def critic_loss(critics, args: Args, state: State, batch: Batch, noise: Noise):
    next_actions, log_pi = pi(args, state.actor, batch.next_observations, noise.next_policy)
    next_q = q(args, state.target_critics, batch.next_observations, next_actions).min(axis=0)  # [batch]
    next_v = next_q - jnp.exp(state.log_alpha) * log_pi
    y = batch.rewards + args.discount * (1 - batch.terminals) * next_v
    values = q(args, critics, batch.observations, batch.actions)  # [N, batch]
    loss = ((values - y) ** 2).mean(axis=1).sum()
    return loss, {"critic_loss": loss, "q": values.mean(), "q_target": y.mean()}


def update(args: Args, state: State, batch: Batch, noise: Noise, step: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Update number `step`: alpha, actor, critics, targets. The number itself changes nothing."""
    adam = optax.adam(args.alpha_lr)
    grad, metrics = jax.grad(alpha_loss, has_aux=True)(state.log_alpha, args, state, batch, noise)
    updates, alpha_opt = adam.update(grad, state.alpha_opt)
    state = state._replace(log_alpha=optax.apply_updates(state.log_alpha, updates), alpha_opt=alpha_opt)

    adam = optax.adam(args.actor_lr)
    grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(state.actor, args, state, batch, noise)
    updates, actor_opt = adam.update(grads, state.actor_opt)
    state = state._replace(actor=optax.apply_updates(state.actor, updates), actor_opt=actor_opt)

    adam = optax.adam(args.critic_lr)
    grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critics, args, state, batch, noise)
    updates, critic_opt = adam.update(grads, state.critic_opt)
    state = state._replace(critics=optax.apply_updates(state.critics, updates), critic_opt=critic_opt)

    targets = optax.incremental_update(state.critics, state.target_critics, args.tau)
    metrics |= actor_metrics | critic_metrics | {"alpha": jnp.exp(state.log_alpha)}
    return state._replace(target_critics=targets), metrics


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
