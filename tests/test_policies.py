"""The committed behaviour policies are what their files say they are."""

import json
from pathlib import Path

import collect_locomotion
import gymnasium
import numpy as np
import pytest
import sac

FILES = sorted((Path(__file__).parent.parent / "benchmarks/policies").glob("*.npz"))


@pytest.mark.parametrize("path", [path for path in FILES if "replay" not in path.stem], ids=lambda path: path.stem)
def test_a_policy_read_back_scores_what_its_curve_says(path):
    """To a tenth, or to two standard errors of ten episodes that scatter more: float16 has rounded its weights, and
    what walks on the edge of falling magnifies that."""
    meta = json.loads(str(np.load(path)["meta"]))
    [policy], _ = collect_locomotion.read_policies(path, meta["env"])
    mode = lambda _, observations: collect_locomotion.act(policy, observations, np.float32(0))
    returns, _ = sac.evaluate(mode, None, [[gymnasium.make(meta["env"]) for _ in range(10)]], 10)
    step, curve = meta["curve"][-1]
    scatter = 2 * returns.std(ddof=1) / len(returns[0]) ** 0.5
    assert step == meta["step"] and returns.mean() == pytest.approx(curve, rel=0.1, abs=scatter)


def test_all_policies_together_are_small():
    assert FILES and sum(path.stat().st_size for path in FILES) < 12e6
