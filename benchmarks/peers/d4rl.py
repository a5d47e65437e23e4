"""Stands in for d4rl while benchmarks/speed.py times a peer's script: the dataset is the HDF5 file $SPEED_DATA."""

import os

import h5py


def qlearning_dataset(env, *_, **__):
    with h5py.File(os.environ["SPEED_DATA"]) as file:
        data = {key: file[key][:] for key in file}
    following = {"next_observations": data["observations"][1:]}
    return {key: data[key][:-1] for key in ("observations", "actions", "rewards", "terminals")} | following


def get_normalized_score(_, returns):
    return returns
