"""Stacks the snapshots of a SAC run on its way up to medium into one file, which medium-replay rolls out.

    python benchmarks/policies/pack.py <folder>/policy_seed_1_step_0090000.npz <env>-v5-medium-replay.npz

The first file is the snapshot that is the medium policy. It comes last; before it come those of the same seed in the
same folder with fewer steps, ten in all at even distances, or as many as there are.
"""

import json
import sys
from pathlib import Path

import numpy as np


def pack(medium: Path, out: Path) -> list[int]:
    """Writes `out` and returns the steps of its checkpoints."""
    stem = medium.name.rpartition("_")[0]
    on_the_way = sorted(path for path in medium.parent.glob(f"{stem}_*.npz") if path.name <= medium.name)
    chosen = np.unique(np.linspace(0, len(on_the_way) - 1, 10).round().astype(int))
    checkpoints = [dict(np.load(on_the_way[i])) for i in chosen]
    metas = [json.loads(str(arrays.pop("meta"))) for arrays in checkpoints]
    stacked = {name: np.stack([arrays[name] for arrays in checkpoints]) for name in checkpoints[0]}
    steps = [meta["step"] for meta in metas]
    np.savez_compressed(out, meta=json.dumps(metas[-1] | {"step": steps}), **stacked)
    return steps


if __name__ == "__main__":
    print("steps", *pack(*map(Path, sys.argv[1:])))
