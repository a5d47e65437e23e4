"""Statements about the comparison of scores with official code."""

import importlib
import sys

import dataset as loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tables
from conftest import ALGORITHMS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks/equivalence"))
import compare  # noqa: E402
import paired  # noqa: E402

ENV, SHA = compare.DATA["hopper-medium"]


def content(seed, folder="g", env=ENV, sha256=SHA, script=None, steps=20, **given):
    """The JSON of a finished run of bc.py whose score is 40 + seed at the end."""
    arguments = {"steps": steps, "seeds": [seed], "env": env} | given
    identity = arguments | {"data": sha256, "script": script or tables.fingerprint(str(ALGORITHMS / "bc.py"), {})}
    evaluations = [{"step": step, "score": x, "returns": [x]} for step, x in ((10, 0.0), (steps, 40.0 + seed))]
    return {
        "algorithm": "bc",
        "dataset": {"name": "hopper-medium", "benchmark": "local", "env": env, "sha256": sha256},
        "arguments": arguments,
        "origin": dict.fromkeys(arguments, "command line"),
        "run": identity,
        "machine": {"cpu": "", "device": "cpu", "threads": 1},
        "seed": seed,
        "finished": True,
        "final": evaluations[-1],
        "evaluations": evaluations,
        "path": f"local/hopper-medium/bc/{folder}/seed_{seed}.json",
    }


def ours(*contents):
    scores, stale = compare.ours(tables.collect(list(contents))[0].get("local", {}), "bc", "hopper-medium", [10, 20])
    return scores[:, -1].tolist(), stale


def test_a_copied_folder_makes_no_seeds():
    assert ours(content(0), content(1), content(0, "copy"), content(1, "copy")) == ([40, 41], False)


@pytest.mark.parametrize(
    "other", [{"sha256": "of other rows"}, {"env": "Hopper-v5"}, {"tau": 0.1}, {"steps": 30}], ids=lambda x: str([*x])
)
def test_what_differs_in_more_than_the_seed_is_not_compared(other):
    assert ours(content(0, **other)) == ([], False)
    assert ours(content(0), content(1, "h", **other)) == ([40], False)


def test_runs_of_another_script_count_only_alone_and_say_so():
    assert ours(content(0, script="old")) == ([40], True)
    assert ours(content(0, script="old"), content(1, "h")) == ([41], False)


def test_the_interval_is_welchs_and_of_one_official_seed_that_of_one_more_of_ours():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0])
    delta, low, high = compare.difference(a, b)
    reach = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (delta, low, high) == (a.mean() - b.mean(), reach.low, reach.high)
    delta, low, high = compare.difference(a, b[:1])
    assert high - delta == pytest.approx(4.3027 * a.std(ddof=1) * np.sqrt(4 / 3), rel=1e-4)


def test_a_verdict_needs_the_whole_interval():
    found = [compare.verdict(*x) for x in ((-4.9, 4.9), (-5.1, 1.0), (0.1, 9.0), (-9.0, -0.1), (0.1, 4.0))]
    assert found == ["equivalent", "too few seeds to tell", "different", "different", "equivalent"]


def test_partners_are_compared_seed_by_seed(tmp_path):
    """A difference of 1 to 3 points in each of four seeds, which scatter by tens; files name them in any order."""
    theirs = {0: 10.0, 1: 30.0, 2: 50.0, 3: 70.0, 4: 0.0}  # the last has no partner
    gaps = {3: 1.0, 1: 3.0, 0: 2.0, 2: 2.0}
    for name, scores in (("corl", theirs), ("paired", {seed: theirs[seed] + gap for seed, gap in gaps.items()})):
        rows = [
            f"td3_bc,data,{seed},{step},{score}" for seed, x in scores.items() for step, score in ((5, 0.0), (10, x))
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["algorithm,dataset,seed,step,score_mean", *rows]))
    end, curve = compare.partners(tmp_path)
    reach = scipy.stats.t.ppf(0.975, 3) * np.std([1, 2, 2, 3], ddof=1) / 2
    assert end[3:6] == ["42.0 ± 25.3 (4)", "40.0 ± 25.8 (4)", "1.00"]
    assert end[6:] == pytest.approx([2, 2 - reach, 2 + reach])
    assert curve[2] == "the mean of the curve" and curve[6] == pytest.approx(1)
    assert compare.difference(np.array([12, 33, 52, 71.0]), np.array([10, 30, 50, 70.0]))[1] < -30


@pytest.mark.parametrize("algorithm", paired.PROGRAMS)
def test_a_partner_begins_with_the_networks_that_torch_drew(algorithm, pendulum):
    """Whose parameters() come layer by layer, kernels [out, in], the log of a policy's deviation before all; targets
    begin as copies, everything else as it was."""
    script = importlib.import_module(algorithm)
    args = script.Args(dataset=str(pendulum), env="Pendulum-v1", hidden_dims=(4, 5))
    data = script.prepare(args, loader.load(args.dataset, args.env))
    drawn, other = (script.init(args, data, jax.random.key(seed)) for seed in (0, 1))

    def parameters(network):
        network = network["params"]
        layers = [network[f"Dense_{i}"] for i in range(3)]
        return [
            *([network["log_std"]] if "log_std" in network else []),
            *(x[part] for x in layers for part in ("kernel", "bias")),
        ]

    def critic(i):
        return jax.tree.map(lambda x: x[i], drawn.critics)

    given = {"actor": parameters(drawn.actor)}
    if algorithm == "td3_bc":
        given |= {"critic_1": parameters(critic(0)), "critic_2": parameters(critic(1))}
    if algorithm == "iql":
        given |= {"qf": parameters(critic(0)) + parameters(critic(1)), "vf": parameters(drawn.value)}
    draws = {f"{name}/{i:02}": x.T for name, arrays in given.items() for i, x in enumerate(arrays)}
    begun = paired.begun(algorithm, other, draws)
    for name, x in begun._asdict().items():
        wanted = getattr(other if name.endswith("_opt") else drawn, name)
        assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), x, wanted)), name
