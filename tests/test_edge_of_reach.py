"""Statements about the claim of RAVL's paper: the plane and its oracle, and what the agents learn there."""

import dataclasses
import functools
import json
import sys
from types import SimpleNamespace

import flax
import gymnasium
import jax
import jax.numpy as jnp
import mopo
import numpy as np
import pytest
import ravl
from conftest import ROOT, command, run, write_hdf5

sys.path.insert(0, str(ROOT / "benchmarks/claims"))
import edge_of_reach as claim  # noqa: E402

FAILING = ("no pessimism", "dynamics penalty")
ARGS = claim.Toy(seeds=(0,), steps=7000, every=700)


def states(rows=50, bound=claim.REACH):
    return jnp.float32(np.random.default_rng(0).uniform(-bound, bound, (rows, 2)))


def test_the_oracle_is_the_sum_of_the_best_paths_rewards():
    """Over 3,000 steps, one by one; no random policy has more."""
    start, totals = states(), []
    rng = np.random.default_rng(1)
    for choose in (lambda s: -s / claim.STRIDE, lambda s: rng.uniform(-1, 1, s.shape)):
        at, total = np.float64(start), 0
        for t in range(3000):
            at = at + claim.STRIDE * np.clip(choose(at), -1, 1)
            total += 0.99**t * claim.SCALE * np.exp(-(at**2).sum(1) / (2 * claim.WIDTH**2))
        totals.append(total)
    np.testing.assert_allclose(claim.oracle(start, 0.99), totals[0], rtol=1e-4)
    assert (totals[0] > totals[1]).all()


@pytest.mark.parametrize("script", [ravl, mopo])
def test_rollouts_update_no_state_at_the_edge_of_reach_and_lead_there(script):
    """Even those of a policy that runs outwards as fast as it can."""
    args = script.Args(**claim.SIZES)
    data = claim.dataset(script)
    state = script.init(args, data, jax.random.key(0))
    actor = jax.tree.map(jnp.zeros_like, state.actor)
    actor["params"]["mean"]["bias"] = jnp.array([9.0, 9.0])
    batch = script.sample(args, data, jax.random.key(1))
    with claim.perfect(script):
        rows, valid, _ = script.roll(args, actor, batch, jax.random.key(2))
    assert valid.all() and not claim.edge(rows.observations).any()
    assert 0.05 < claim.edge(rows.next_observations).mean() < 1 / claim.LENGTH
    np.testing.assert_array_equal(rows.next_observations, rows.observations + claim.STRIDE * rows.actions)
    np.testing.assert_allclose(rows.rewards, claim.reward(rows.next_observations), rtol=1e-6)


def test_of_a_perfect_model_every_penalty_is_zero_or_says_nothing():
    """u is 0, and so is any multiple; those that divide by a variance have none to divide by."""
    means, log_vars = claim.predict(mopo.Args(), None, states(), states(bound=1.0))
    members = jnp.zeros(50, int)
    for name, penalty in mopo.PENALTIES.items():
        u = penalty(means, log_vars, means[0], members)
        assert jnp.isnan(u).all() if name in ("log_likelihood", "leave_one_out") else (u == 0).all(), name


def test_the_oracle_replaces_the_learned_value_of_steps_over_the_edge_alone():
    args = ravl.Args(**claim.SIZES, env=claim.ORACLE)  # at (4, 0) the next step is over the edge, at (0, 0) it is not
    at, actions = jnp.array([[claim.INSIDE, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    means, _ = claim.predict(args, None, at, actions)
    following = means[0, :, :2]
    assert claim.ended(args, following).tolist() == [True, False]
    assert not claim.ended(dataclasses.replace(args, env=None), following).any()
    value = claim.oracle(following, 0.99)
    np.testing.assert_allclose(means[0, :, 2], claim.reward(following) + 0.99 * value * jnp.array([1, 0]), rtol=1e-6)


@functools.cache
def learned(name):
    """Values explode after the policy has failed: twice as long for the failing agents."""
    return claim.learn(dataclasses.replace(ARGS, steps=14_000) if name in FAILING else ARGS, name)


@pytest.mark.parametrize("name", [*FAILING, "oracle at the edge", "RAVL"])
def test_without_pessimism_the_policy_fails_and_with_it_or_with_oracle_values_it_does_not(name):
    """Whether or not the model's uncertainty is penalised. Where it fails, values pass what any policy can earn."""
    content, (_, _, most) = learned(name), claim.truth(0.99)
    returns, values = np.array(content["return"]), np.array(content["inside"])
    assert (returns[-1] < 0.5).all() if name in FAILING else (returns[-2:] > 0.9).all(), returns
    assert (values[-1] > 1.5 * most).all() if name in FAILING else (values < most).all(), values


def test_the_penalised_agent_begins_with_the_same_networks():
    data, key = claim.dataset(ravl), jax.random.key(0)
    states = [claim.begin(name, claim.AGENTS[name][0].Args(**claim.SIZES), data, key) for name in FAILING]
    ours, theirs = (jax.tree.leaves((x.actor, x.target_critics)) for x in states)
    assert all((x[:2] == y[:2]).all() for x, y in zip(ours, theirs, strict=True))


def test_the_gap_of_the_critics_is_larger_at_the_edge():
    content = learned("RAVL")
    assert (np.array(content["gap_edge"][-1]) > np.array(content["gap_inside"][-1])).all()


def test_the_table_and_plots_are_made_of_the_files_alone(tmp_path, capsys):
    args = dataclasses.replace(ARGS, steps=20, every=10, out=str(tmp_path), agents=("no pessimism", "dynamics penalty"))
    claim.toy(args)
    first = (tmp_path / "edge_of_reach.md").read_bytes(), (tmp_path / "edge_of_reach.png").read_bytes()
    capsys.readouterr()
    claim.toy(args)
    assert capsys.readouterr().out.count("done before") == 2
    assert first == ((tmp_path / "edge_of_reach.md").read_bytes(), (tmp_path / "edge_of_reach.png").read_bytes())
    content = json.loads((tmp_path / "edge_of_reach/toy-dynamics-penalty.json").read_text())
    assert np.shape(content["return"]) == (3, 1) and np.shape(content["map"]) == (1, 31, 31)
    assert "| dynamics penalty |" in first[0].decode()


def test_an_agent_of_another_script_is_marked_and_run_again_and_one_of_other_lengths_left_out(tmp_path, capsys):
    args = dataclasses.replace(ARGS, steps=20, every=10, out=str(tmp_path), agents=("no pessimism", "dynamics penalty"))
    claim.toy(args)
    file = tmp_path / "edge_of_reach/toy-dynamics-penalty.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"code": ["older"]}))
    claim.report(tmp_path)
    assert "| dynamics penalty † |" in (tmp_path / "edge_of_reach.md").read_text()
    claim.toy(args)
    assert json.loads(file.read_text())["code"] == content["code"]
    claim.toy(dataclasses.replace(args, steps=10, agents=("dynamics penalty",)))
    assert "dynamics penalty ran otherwise than no pessimism, and is left out." in capsys.readouterr().out
    assert "dynamics penalty" not in (tmp_path / "edge_of_reach.md").read_text()


def test_runs_in_the_simulator_become_a_table_and_a_plot(tmp_path):
    """Of the mean return of an evaluation's episodes, a row a seed."""
    (tmp_path / "edge_of_reach").mkdir()
    metrics = {"q": 7.0, "q_gap": None, "model_length": None}  # as where a value diverges
    for seed in (0, 1):
        log = [{"step": s, "returns": [seed, s], "metrics": metrics, "wall_seconds": s} for s in (10, 20)]
        run = {"seed": seed, "dataset": {"name": "d"}, "arguments": {}, "evaluations": log}
        run["arguments"] = {"simulator": "Hopper-v5", "rollout_starts": 9, "rollout_length": 2}
        run["run"] = {"script": claim.code("ravl", plane=False)[0]}
        (tmp_path / f"seed_{seed}.json").write_text(json.dumps(run))
    content = claim.simulated(tmp_path)
    assert content["returns"] == [[5, 10], [5.5, 10.5]] and content["steps"] == [10, 20] and content["seconds"] == 20
    for name in "de":
        (tmp_path / f"edge_of_reach/mujoco-{name}-ravl.json").write_text(json.dumps(content | {"dataset": name}))
    claim.report(tmp_path)
    for name in "de":
        assert f"Rollouts from {name}, 20 updates, 2 seeds." in (tmp_path / "edge_of_reach.md").read_text()
    assert (
        "| RAVL | 10.2 ± 0.4 | 10.2 ± 0.4 | 7.00 ± 0.00 | 7.00 ± 0.00 | nan"
        in (tmp_path / "edge_of_reach.md").read_text()
    )
    assert (tmp_path / "edge_of_reach-mujoco.png").exists() and not (tmp_path / "edge_of_reach.png").exists()


def test_what_a_policy_earns_is_its_discounted_return_and_its_value_what_it_believes(tmp_path):
    """From the first states of four episodes, step by step in the environment; of a run of both seeds."""
    env = gymnasium.make("Hopper-v5")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(4)], np.float32)
    rows = {"observations": starts, "actions": np.zeros((4, 3), np.float32), "rewards": np.ones(4, np.float32)}
    rows |= {"terminals": np.zeros(4, bool), "timeouts": np.zeros(4, bool), "next_observations": starts}
    arguments = command("ravl", write_hdf5(tmp_path / "data.hdf5", **rows), tmp_path, "--seeds", "0", "1")
    assert run([*arguments, "--env", "Hopper-v5", "--simulator", "Hopper-v5"]).returncode == 0
    [checkpoint] = tmp_path.rglob("checkpoint.msgpack")
    told = claim.earned(checkpoint.parent, states=4, steps=50)
    trained = flax.serialization.msgpack_restore(checkpoint.read_bytes())["state"]
    args = ravl.Args(hidden_dims=(8, 8))
    for i in range(2):
        actor, critics = (jax.tree.map(lambda x, i=i: x[i], trained[name]) for name in ("actor", "critics"))
        act = lambda x, actor=actor: np.asarray(ravl.act(args, SimpleNamespace(actor=actor), x))
        totals = []
        for seed in range(4):
            (x, _), total = env.reset(seed=seed), 0.0
            for t in range(50):
                x, reward, end, _, _ = env.step(act(np.float32(x)))
                total += 0.99**t * reward
                if end:
                    break
            totals.append(total)
        np.testing.assert_allclose(told["earned"][i], np.mean(totals), rtol=0.01)
        values = ravl.q(args, critics, starts, act(starts)).min(axis=0)
        np.testing.assert_allclose(told["value"][i], values.mean(), atol=0.01)
    assert told["earned"][0] != told["earned"][1]


def test_the_simulators_command_names_no_folder_of_this_machine():
    """The unpessimistic agent differs by the critics alone; that of long rollouts sees as many steps."""
    bare, without, long = (claim.command(claim.Mujoco(), name) for name in claim.Mujoco().agents)
    assert without == [*bare, "--num-critics", "2", "--eta", "0"]
    assert long == [*bare[:-1], "200", "--rollout-length", "50", "--num-critics", "2", "--eta", "0"]
    assert not any(str(ROOT) in word for word in bare[1:])
