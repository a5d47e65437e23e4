"""Stands in for gym while benchmarks/speed.py times a peer's script, to which evaluation is not to cost anything."""

import os
from types import SimpleNamespace

import h5py
import numpy as np
from gymnasium import Env, spaces

__all__ = ["Env", "make", "spaces", "vector", "wrappers"]


class Still(Env):
    """Has the spaces of the data in $SPEED_DATA; every episode ends with its first step."""

    def __init__(self):
        with h5py.File(os.environ["SPEED_DATA"]) as file:
            obs, act = file["observations"].shape[1], file["actions"].shape[1]
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs,), np.float32)
        self.action_space = spaces.Box(-1, 1, (act,), np.float32)

    def seed(self, _):
        pass

    def reset(self):
        return np.zeros(self.observation_space.shape, np.float32)

    def step(self, _):
        return self.reset(), 0.0, True, {}

    def get_normalized_score(self, _):
        return 0.0

    def get_dataset(self):
        with h5py.File(os.environ["SPEED_DATA"]) as file:
            data = {key: file[key][:] for key in file}
        return data | {"next_observations": np.roll(data["observations"], -1, axis=0)}


def make(_) -> Env:
    return Still()


class Vector:
    """Has no steps at all."""

    def __init__(self, num_envs):
        self.env_fns = [lambda: SimpleNamespace(spec=SimpleNamespace(max_episode_steps=0))] * num_envs
        self.single_observation_space, self.single_action_space = Still().observation_space, Still().action_space

    def reset(self):
        return np.zeros((len(self.env_fns), *self.single_observation_space.shape), np.float32)


vector = SimpleNamespace(make=lambda _, num_envs: Vector(num_envs))


class wrappers:  # noqa: N801, a module there
    TransformObservation = staticmethod(lambda env, _: env)
    TransformReward = staticmethod(lambda env, _: env)
