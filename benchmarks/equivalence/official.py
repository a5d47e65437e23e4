"""Scores of CORL's own programs, on the data and with the evaluations that ours have: adds rows to corl.csv.

    git clone https://github.com/corl-team/CORL && git -C CORL checkout eeeeef2
    pip install torch "gymnasium[mujoco]" h5py tqdm                       # in an environment of its own
    taskset -c 0 python benchmarks/equivalence/official.py --corl CORL --algorithm td3_bc --seeds 2 3 4 \
        --data data/hopper-medium.hdf5 --env Hopper-v4

The program's `train()` runs as it stands, for 50,000 steps, evaluated every 10,000. What it imports and nobody has any
more is stood in for here: gym's old interface around a Gymnasium environment, whose k-th episode of an evaluation
begins with reset(seed=1000 + k); d4rl's qlearning_dataset, which drops time-out rows; wandb, which keeps the scores;
pyrallis, which has nothing to parse. IQL's rewards are scaled by the range of returns before time-out rows are dropped:
CORL does it after, and takes two episodes for one where it no longer sees the end. Rows are added when a seed is
through; one that is there is not run again.
"""

import argparse
import csv
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import h5py
import numpy as np

CURVES = Path(__file__).parent / "corl.csv"
PROGRAMS = {
    "bc": ("any_percent_bc.py", {"frac": 1.0}),
    "td3_bc": ("td3_bc.py", {}),
    "iql": ("iql.py", {"normalize_reward": False}),  # done in `dataset`, by episodes as they were
}
REFERENCE = {"Hopper-v4": (-20.272305, 3234.3), "HalfCheetah-v4": (-280.178953, 12135.0)}  # D4RL's, of 0 and 100


class Old(gymnasium.Wrapper):
    """Gym's interface of 2019, and D4RL's scores; remembers the returns since the last seed."""

    def seed(self, _):
        self.returns, self.since = [], time.perf_counter()

    def reset(self):
        self.returns.append(0.0)
        return self.env.reset(seed=999 + len(self.returns))[0]

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.returns[-1] += float(reward)
        return observation, reward, terminated or truncated, info

    def get_normalized_score(self, value):
        low, high = REFERENCE[self.unwrapped.spec.id]
        return (value - low) / (high - low)


class Changed(gymnasium.Wrapper):
    """The same with other observations."""

    def __init__(self, env, function):
        super().__init__(env)
        self.function = function

    def reset(self):
        return self.function(self.env.reset())

    def step(self, action):
        observation, *rest = self.env.step(action)
        return self.function(observation), *rest

    def __getattr__(self, name):
        return getattr(self.env, name)


def dataset(path: Path, scaled: bool) -> dict[str, np.ndarray]:
    """The rows that are no time-outs; `scaled`: returns of whole episodes then differ by 1,000 at most."""
    with h5py.File(path) as file:
        data = {name: file[name][:] for name in file}
    timeouts, terminals = data["timeouts"].astype(bool), data["terminals"].astype(bool)
    if scaled:
        stops = np.flatnonzero(timeouts | terminals) + 1
        episodes = zip([0, *stops[:-1]], stops, strict=True)  # but one that the end of the file cut off
        whole = [sum(data["rewards"][i:j].tolist()) for i, j in episodes if terminals[j - 1] or j - i == 1000]
        data["rewards"] /= max(whole) - min(whole)
        data["rewards"] *= 1000
    names = ("observations", "actions", "next_observations", "rewards", "terminals")
    return {name: data[name][~timeouts] for name in names}


def modules(env: Old, path: Path, scaled: bool, log) -> dict[str, ModuleType]:
    """What stands in, by name."""
    contents = {
        "gym": {"Env": gymnasium.Env, "make": lambda _: env, "wrappers": SimpleNamespace(TransformObservation=Changed)},
        "d4rl": {"qlearning_dataset": lambda _: dataset(path, scaled)},
        "wandb": {"init": lambda **_: None, "run": SimpleNamespace(save=lambda: None), "log": log},
        "pyrallis": {"wrap": lambda: lambda train: train},
    }
    found = {name: ModuleType(name) for name in contents}
    for name, module in found.items():
        vars(module).update(contents[name])
    return found


def load(corl: Path, algorithm: str, data: Path, seed: int, env: Old, log) -> tuple[ModuleType, Any]:
    """CORL's program and its settings for 50,000 steps."""
    file, own = PROGRAMS[algorithm]
    sys.modules.update(modules(env, data, algorithm == "iql", log))
    spec = importlib.util.spec_from_file_location("program", corl / "algorithms/offline" / file)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    settings = {"env": data.stem, "seed": seed, "max_timesteps": 50_000, "eval_freq": 10_000, "device": "cpu"}
    return program, program.TrainConfig(**settings | own)


def run(args: argparse.Namespace, seed: int) -> list[list]:
    """The rows of corl.csv of one seed."""
    env, rows = Old(gymnasium.make(args.env)), []
    began, apart = time.perf_counter(), 0.0  # seconds of evaluations

    def log(values, step):
        nonlocal apart
        if "d4rl_normalized_score" in values:
            now, mean = time.perf_counter(), np.mean(env.returns)
            score = 100 * env.get_normalized_score(mean)
            assert len(env.returns) == 10 and abs(score - values["d4rl_normalized_score"]) < 1e-6
            apart += now - env.since
            shown = " ".join(f"{x:.6f}" for x in env.returns), f"{mean:.6f}", f"{score:.4f}"
            rows.append([args.algorithm, args.data.stem, seed, step, *shown, f"{step / (now - began - apart):.1f}"])
            print(*rows[-1], flush=True)

    program, config = load(args.corl, args.algorithm, args.data, seed, env, log)
    program.train(config)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corl", type=Path, required=True)
    parser.add_argument("--algorithm", choices=PROGRAMS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env", choices=REFERENCE, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for seed in args.seeds:
        with open(CURVES) as file:
            there = {(x["algorithm"], x["dataset"], x["seed"]) for x in csv.DictReader(file)}
        if (args.algorithm, args.data.stem, str(seed)) not in there:
            rows = run(args, seed)
            with open(CURVES, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
