"""Statements about the protocol that compares penalties with the model's error."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import mopo
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats
from test_mopo import ARGS, model

sys.path.insert(0, str(ROOT / "benchmarks/claims"))
import penalties as claim  # noqa: E402


def made_up(rows=100, noise=0.0):
    """Two members, one right and one wrong by 2 e in each entry, with deviations e: predictions and the truth."""
    rng = np.random.default_rng(0)
    truth, wrong = rng.normal(size=(rows, 6)), rng.random((rows, 1)) + noise * rng.random((rows, 6))
    means = jnp.float32(np.stack([truth, truth + 2 * wrong]))
    log_vars = jnp.broadcast_to(jnp.log(jnp.float32(wrong) ** 2), means.shape)
    return means, log_vars, truth


def test_penalties_that_are_multiples_of_the_error_correlate_perfectly():
    means, log_vars, truth = made_up()
    error = claim.errors(means, truth[:, :-1], truth[:, -1])
    u = claim.penalties(means, log_vars, means[0], jnp.zeros(100, int))
    np.testing.assert_allclose(u["pairwise"], 2 * error, rtol=1e-4)
    for name in ("aleatoric", "pairwise", "ensemble_std", "disagreement"):
        np.testing.assert_allclose(list(claim.correlations(u[name], error).values()), 1, atol=1e-5)
    squared = claim.correlations(u["ensemble_variance"], error)
    assert squared["spearman"] > 0.9999 > 0.98 > squared["pearson"], "a square ranks as well, and is no multiple"


def test_a_perfect_model_has_no_error_and_a_constant_penalty_no_correlation():
    truth = np.float32(np.random.default_rng(0).normal(size=(50, 6)))
    means = jnp.stack([truth] * 3)
    np.testing.assert_allclose(claim.errors(means, truth[:, :-1], truth[:, -1]), 0, atol=1e-6)
    u = mopo.aleatoric(means, jnp.zeros_like(means), means[0], None)
    assert claim.correlations(u, np.arange(50)) == {"spearman": None, "pearson": None}
    assert claim.correlations(np.full(50, np.nan), np.arange(50))["pearson"] is None


def test_correlations_know_the_sign_and_the_order():
    error = np.random.default_rng(0).random(200)
    falling = claim.correlations(-np.exp(9 * error), error)
    assert falling["spearman"] == pytest.approx(-1) and -1 < falling["pearson"] < -0.5


def test_rollouts_stop_at_an_end_and_begin_as_told():
    """The longest have all steps."""
    starts = np.float32(np.array([1.2, 0, 0, 0, 0]) + 0.02 * np.random.default_rng(0).normal(size=(30, 5)))
    policy = lambda observations, noise: np.tanh(noise)
    args = dataclasses.replace(ARGS, model_members=4)
    observations, actions = claim.rollouts(args, model(), policy, starts, 4, 0)
    np.testing.assert_array_equal(observations[:30], starts)
    assert observations.shape[1:] == (5,) and actions.shape == (len(observations), 2)
    assert not np.asarray(mopo.ended(args, observations)).any() and 30 < len(observations) <= 120
    ending = dataclasses.replace(args, termination="ant")  # 1.2 is too high for it
    assert len(claim.rollouts(ending, model(), policy, starts, 4, 0)[0]) < 120
    again = claim.rollouts(args, model(), policy, starts, 4, 0)
    assert all((x == y).all() for x, y in zip((observations, actions), again, strict=True))


def test_what_is_compared_is_all_penalties_and_the_shown_steps_correlate_alike():
    data = np.float32(np.random.default_rng(0).normal(size=(300, 5)))
    actions, following = np.tanh(data[:, :2]), data + 0.1
    content = claim.compare(ARGS, model(), data, actions, following, data[:, 0], 0)
    assert content["correlations"].keys() == mopo.PENALTIES.keys() and content["steps"] == 300
    shown = content["shown"]
    expected = stats.spearmanr(shown["pairwise"], shown["error"])[0]
    assert content["correlations"]["pairwise"]["spearman"] == pytest.approx(expected, abs=1e-2)
    following[7] = np.nan  # the simulator may blow up
    assert claim.compare(ARGS, model(), data, actions, following, data[:, 0], 0)["steps"] == 299


def test_the_table_is_made_of_the_files_alone(tmp_path):
    args = claim.Args(out=str(tmp_path), rows=100)
    part = claim.compare(
        ARGS, model(), *(jnp.ones((20, n)) * jnp.arange(20)[:, None] / 20 for n in (5, 2, 5)), np.zeros(20), 0
    )
    content = {"settings": claim.settings(args), "epochs": 3, "model_error": 0.1, "data": part, "rollout": part}
    (tmp_path / "penalties").mkdir()
    (tmp_path / "penalties/a.json").write_text(claim.json.dumps(content))
    claim.report(tmp_path)
    text = (tmp_path / "penalties.md").read_text()
    assert all(f"| {name} |" in text for name in mopo.PENALTIES) and "100 rows, 3 epochs †" in text
    (tmp_path / "penalties/a.json").write_text(claim.json.dumps(content | {"code": claim.code()}))
    claim.report(tmp_path)
    assert "100 rows, 3 epochs\n" in (tmp_path / "penalties.md").read_text()
    assert (tmp_path / "penalties.png").stat().st_size > 1000


def test_errors_take_the_mean_of_all_members():
    means = jax.random.normal(jax.random.key(0), (7, 10, 4))
    truth = np.zeros((10, 4))
    np.testing.assert_allclose(
        claim.errors(means, truth[:, :3], truth[:, 3]), np.linalg.norm(np.mean(means, axis=0), axis=1), rtol=1e-6
    )
