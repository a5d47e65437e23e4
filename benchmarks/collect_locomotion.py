"""D4RL's locomotion datasets, rolled out here from our own policies.

`python benchmarks/collect.py solo/hopper-v5/medium-v0` makes a Minari dataset. The recipe is D4RL's (Fu et al., 2020,
arXiv:2004.07219; github.com/Farama-Foundation/D4RL), but the environments are Gymnasium's v5 and the policies our own:
no score on this data is a D4RL score.
  random          uniform actions
  medium, expert  sampled actions of a SAC policy: stopped part-way, and trained
  medium-replay   the same number of rows from each of up to ten checkpoints on the way to medium, the first to the
                  last. (D4RL's is the replay buffer of the run that led to the medium policy.)
  medium-expert   half the rows medium, then half expert. (D4RL's is both of its files, 2M rows: --transitions 2000000
                  gives here, row for row, medium and expert of one million each.)
  random-expert   a twentieth of the rows random, then expert: most episodes are random, most rows are not, so that an
                  imitator stumbles where every episode begins. (D4RL's, for Ant only, has half and half.)
"""

import functools
import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

ENVS = {  # Gymnasium id; D4RL's returns of a random and of an expert policy (infos.py)
    "hopper-v5": ("Hopper-v5", -20.272305, 3234.3),
    "halfcheetah-v5": ("HalfCheetah-v5", -280.178953, 12135.0),
    "walker2d-v5": ("Walker2d-v5", 1.629008, 4592.3),
}
# The policies of a quality and their shares of its rows, in the order of the rows; None: uniform actions.
FILES: dict[str, dict[str | None, int]] = {
    "random-v0": {None: 1},
    "medium-v0": {"medium": 1},
    "medium-replay-v0": {"medium-replay": 1},
    "medium-expert-v0": {"medium": 1, "expert": 1},
    "random-expert-v0": {None: 1, "expert": 19},
    "expert-v0": {"expert": 1},
}
# Episodes of D4RL's v2 files, in the order of FILES (tensorflow.org/datasets/catalog/d4rl_mujoco_hopper and others).
D4RL_EPISODES = {
    "hopper-v5": (45240, 2187, 2041, 3214, None, 1028),
    "halfcheetah-v5": (1000, 1000, 202, 2000, None, 1000),
    "walker2d-v5": (48908, 1191, 1093, 2191, None, 1001),
}


# ------------------------------------------------------------------------------------------------------------ policy


class Policy(NamedTuple):
    """Layers of weights [in, out] and bias [out], float32."""

    hidden: list  # each with a relu
    mean: tuple
    log_std: tuple


def act(policy: Policy, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Sampled actions: [..., obs], [..., act] -> [..., act]."""
    x = observation
    for weights, bias in policy.hidden:
        x = np.maximum(x @ weights + bias, 0)
    mean, log_std = (x @ weights + bias for weights, bias in (policy.mean, policy.log_std))
    return np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise)


def read_policies(path: Path, env_id: str) -> tuple[list[Policy], str]:
    """The checkpoints in a policy file (a single one where its arrays lack that leading axis), and the file's hash.

    Raises:
        ValueError: missing, damaged, or of something else.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no policy {path}: train it with algorithms/sac.py, or name its folder with --policies."
        )
    try:
        raw, env, policies = path.read_bytes(), make(env_id), []
        arrays = dict(np.load(io.BytesIO(raw)))  # never unpickles
        meta = json.loads(str(arrays.pop("meta")))
        depth = sum(name[0] == "W" and name[1:].isdigit() for name in arrays)
        layers = [[arrays.pop(f"{kind}{i}").astype(np.float32) for kind in "Wb"] for i in (*range(depth), "_log_std")]
        if layers[0][0].ndim == 2:
            layers = [[array[None] for array in layer] for layer in layers]
        for checkpoint in zip(*(zip(*layer, strict=True) for layer in layers), strict=True):
            *hidden, mean, log_std = checkpoint
            policies.append(Policy(hidden, mean, log_std))
            action = act(policies[-1], np.ones(env.observation_space.shape, np.float32), np.float32(1))
            if action.shape != env.action_space.shape or not np.isfinite(action).all():
                raise ValueError("its actions do not fit")
        if (meta["env"].split("-")[0], meta["hidden"], meta["squash"]) != (env_id.split("-")[0], "relu", "tanh"):
            raise ValueError(f"its meta says {meta}")
        for name, array in arrays.items():  # normalisation, say, must not be passed over, unless it does nothing
            if np.any(array != {"obs_mean": 0, "obs_std": 1}.get(name)):
                raise ValueError(f"it needs {name}")
    except Exception as error:  # whatever a damaged file raises
        reason = f"{path} is not understood as a policy of {env_id} ({error or type(error).__name__})"
        raise ValueError(f"{reason}: replace it.") from error
    return policies, hashlib.sha256(raw).hexdigest()


# ---------------------------------------------------------------------------------------------------------- episodes


@functools.cache  # once a process, since MuJoCo complains about HalfCheetah's own model every time
def make(env_id: str):
    import gymnasium

    return gymnasium.make(env_id, disable_env_checker=True)


def rollout(env_id: str, policy: Policy | None, seeds: np.random.SeedSequence, rows: int) -> dict[str, np.ndarray]:
    """Whole episodes until there are `rows` transitions; T steps have T + 1 observations.

    One environment and one observation at a time: of the 15 us that a policy takes, beside MuJoCo's 25 to 75, a batch
    would save 9, and lose more by ending in as many episodes beyond `rows` as it has environments.
    """
    env, rng = make(env_id), np.random.default_rng(seeds)
    low, high = env.action_space.low, env.action_space.high
    env.reset(seed=int(rng.integers(2**31)))  # every reset below draws from this
    observations, steps = [], []
    while len(steps) < rows:
        observations.append(env.reset()[0].astype(np.float32))
        over = False
        while not over:
            if policy is None:
                action = rng.uniform(low, high).astype(np.float32)
            else:
                action = act(policy, observations[-1], rng.standard_normal(low.shape, np.float32))
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation.astype(np.float32))
            steps.append((action, reward, terminated, truncated))
            over = terminated or truncated
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    return {
        "observations": np.array(observations),  # [rows + episodes, obs]
        "actions": np.array(actions),  # [rows, act]
        "rewards": np.array(rewards, np.float32),  # [rows]
        "terminations": np.array(terminations, bool),  # [rows]
        "truncations": np.array(truncations, bool),  # [rows]
    }
