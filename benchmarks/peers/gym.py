"""Stands in for gym while benchmarks/speed.py times a peer's script, to which evaluation is not to cost anything."""

import os

import h5py
import numpy as np
from gymnasium import Env, spaces

__all__ = ["Env", "make", "spaces", "wrappers"]


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
            return {key: file[key][:] for key in file}


def make(_) -> Env:
    return Still()


class wrappers:  # noqa: N801, a module there
    TransformObservation = staticmethod(lambda env, _: env)
    TransformReward = staticmethod(lambda env, _: env)
