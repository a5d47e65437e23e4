"""Statements about the model, its rollouts and MOPO."""

import dataclasses
import functools
import itertools
import subprocess
import time

import gymnasium
import jax
import jax.numpy as jnp
import mopo
import numpy as np
import pytest
from conftest import command, run
from mopo import Args, Buffer, Dynamics, Ensemble, Rows
from scipy import stats
from test_runner import outcome, step_of

ARGS = Args(
    hidden_dims=(8, 8),
    batch_size=32,
    termination="hopper",
    model_hidden_dims=(16, 16),
    model_members=4,
    model_elites=2,
    rollout_starts=20,
    rollout_length=3,
    rollout_retain=2,
    rollout_interval=4,
    real_ratio=0.25,
)
update = jax.jit(mopo.update, static_argnums=0)


@functools.cache
def model(args=ARGS):
    """A model of five observations and two actions that has learned nothing yet."""
    keys = jax.random.split(jax.random.key(0), args.model_members)
    members = jax.vmap(mopo.Member(args.model_hidden_dims, 6).init, in_axes=(0, None))(keys, jnp.zeros(7))
    move = lambda x, key: x + 0.1 * jax.random.normal(key, x.shape)
    leaves, tree = jax.tree.flatten(members)
    members = tree.unflatten(map(move, leaves, jax.random.split(jax.random.key(1), len(leaves))))
    ensemble = Ensemble(members, jnp.full(6, -3.0), jnp.full(6, 0.5))
    return Dynamics(ensemble, 0.1 * jnp.ones(7), 2 * jnp.ones(7), jnp.array([3, 1]), jnp.array([4.0, 2, 3, 1]))


@functools.cache
def setup(args=ARGS):
    """Data of healthy hoppers, a state, a batch, noise."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))
    observations = jnp.array([1.2, 0, 0, 0, 0]) + 0.05 * normal(50, 5)
    rows = Rows(observations, jnp.tanh(normal(50, 2)), normal(50), observations + 0.01 * normal(50, 5), jnp.zeros(50))
    data = mopo.Data(rows, observations, model())
    state = jax.jit(mopo.init, static_argnums=0)(args, data, jax.random.key(0))
    batch = mopo.sample(args, data, jax.random.key(1))
    return data, state, batch, mopo.draw(args, batch, jax.random.key(2))


def equal(a, b):
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ------------------------------------------------------------------------------------------ the model


def linear(rows=1000):
    """Rows of s' = s + B a, r = sum of a, with an input that never changes."""
    rng = np.random.default_rng(0)
    s, a = np.float32(rng.normal(size=(rows, 3))), np.float32(rng.uniform(-1, 1, size=(rows, 2)))
    s[:, 2] = 7.0
    change = a @ np.array([[0.5, -1.0, 0], [1.0, 0.3, 0]], np.float32)
    return s, a, a.sum(1), s + change


SMALL = dataclasses.replace(ARGS, model_hidden_dims=(32,), model_members=2, model_elites=1, model_batch_size=32)


@functools.cache
def learned():
    heard = []
    fit = mopo.fit_dynamics(
        dataclasses.replace(SMALL, model_epochs=60), *linear(), lambda fit: heard.append(np.array(fit.errors))
    )
    return fit, np.array(heard)


def test_a_linear_system_is_learned_in_seconds():
    dynamics, errors = learned()
    assert dynamics.errors.min() < 1e-3 < errors[0].min()
    s, a, r, following = linear()
    means, log_vars = mopo.predict(SMALL, dynamics, s, a)
    np.testing.assert_allclose(means[dynamics.elites[0], :, :3], following, atol=0.15)
    np.testing.assert_allclose(means[dynamics.elites[0], :, 3], r, atol=0.15)
    assert log_vars.mean() < -3, "and it knows that it does"


def test_training_repeats_and_its_seed_matters():
    args = dataclasses.replace(SMALL, model_epochs=2)
    first, second = (mopo.fit_dynamics(args, *linear(200)) for _ in range(2))
    assert equal(first, second)
    other = mopo.fit_dynamics(dataclasses.replace(args, model_seed=1), *linear(200))
    assert not equal(first, other)


def test_members_keep_the_parameters_of_their_smallest_error_and_the_best_are_elites():
    dynamics, errors = learned()
    best = np.full(2, 1e10)
    for now in errors:  # what an epoch leaves never rises
        assert (now <= best).all()
        best = now
    np.testing.assert_array_equal(dynamics.errors, best)
    assert dynamics.elites.tolist() == [np.argmin(best)]


def test_training_stops_when_no_member_improves(monkeypatch):
    """After five epochs in a row; an improvement by less than one per cent is none."""
    seen, errors = [], iter([[9.0, 8], [8.99, 8], [8.98, 7], *[[8.97, 6.99]] * 9])
    monkeypatch.setattr(mopo, "holdout_errors", lambda *_: jnp.array(next(errors)))
    monkeypatch.setattr(mopo, "epoch", mopo.epoch.__wrapped__)  # not compiled: every epoch asks anew
    args = dataclasses.replace(SMALL, model_batch_size=256)
    dynamics = mopo.fit_dynamics(args, *linear(100), lambda fit: seen.append(int(fit.stale)))
    assert seen == [0, 1, 0, 1, 2, 3, 4, 5]
    assert dynamics.errors.tolist() == [9.0, 7.0]


def test_what_is_held_out_is_not_seen(monkeypatch):
    """A fifth, at most a thousand rows; inputs are scaled by what is left, a constant one by 1."""
    parts = []
    original = mopo.epoch
    monkeypatch.setattr(
        mopo,
        "epoch",
        lambda a, fit, train, out, key: parts.append((train, out, fit.rows)) or original(a, fit, train, out, key),
    )
    for rows, expected in ((500, 100), (6000, 1000)):
        dynamics = mopo.fit_dynamics(dataclasses.replace(SMALL, model_epochs=1), *linear(rows))
        (train, held_out, drawn) = parts.pop()
        assert len(held_out[0]) == expected and len(train[0]) == rows - expected
        every = np.concatenate([train[1], held_out[1]])
        assert len(np.unique(every, axis=0)) == rows, "no row is in both"
        np.testing.assert_allclose(train[0][:, :2].mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(train[0][:, :2].std(0), 1, atol=1e-4)
        assert dynamics.std[2] == 1 and (train[0][:, 2] == 0).all()
        assert drawn.shape == (2, rows - expected)


def test_every_member_has_its_own_bootstrap_which_epochs_only_reorder():
    """Rows with replacement: some twice, about one in e not at all."""
    args, fits = dataclasses.replace(SMALL, model_epochs=2), []
    mopo.fit_dynamics(args, *linear(), lambda fit: fits.append(np.array(fit.rows)))
    assert (fits[0] != fits[1]).any() and (np.sort(fits[0]) == np.sort(fits[1])).all()
    assert (np.sort(fits[0][0]) != np.sort(fits[0][1])).any()
    assert abs(len(np.unique(fits[0][0])) / 800 - (1 - np.exp(-1))) < 0.05


def test_the_log_variance_stays_within_its_bounds_and_rises_with_its_input():
    raw = jnp.linspace(-30, 30, 101)
    head = lambda x: (
        {"mean": {"kernel": jnp.zeros((1, 1, 6)), "bias": jnp.zeros((1, 6))}}
        | {"log_var": {"kernel": jnp.zeros((1, 1, 6)), "bias": jnp.full((1, 6), x)}}
    )
    args = dataclasses.replace(ARGS, model_hidden_dims=())
    bounds = jnp.full(6, -10.0), jnp.full(6, 0.5)
    values = jnp.stack(
        [mopo.outputs(args, Ensemble({"params": head(x)}, *bounds), jnp.zeros((1, 1)))[1][0, 0, 0] for x in raw]
    )
    # The upper bound is a hair permeable: the lower one is laid on last. The lowest values are equal in float32.
    assert (values >= -10).all() and (values < 0.5 + 1e-4).all() and (jnp.diff(values) >= 0).all()
    np.testing.assert_allclose(values[50], -10 + np.log1p(np.exp(10 + 0.5 - np.log1p(np.exp(0.5)))), rtol=1e-5)


def test_the_loss_is_the_likelihood_the_decay_and_the_bounds():
    rng = np.random.default_rng(0)
    inputs, targets = jnp.float32(rng.normal(size=(4, 9, 7))), jnp.float32(rng.normal(size=(4, 9, 6)))
    ensemble = model().ensemble
    loss, told = mopo.model_loss(ensemble, ARGS, inputs, targets)
    means, log_vars = mopo.outputs(ARGS, ensemble, inputs)
    density = stats.norm(means, np.exp(log_vars / 2)).logpdf(targets)
    np.testing.assert_allclose(told["nll"], (-2 * density - np.log(2 * np.pi)).mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(told["loss"], told["nll"].sum() + 0.01 * 6 * 3.5, rtol=1e-5)
    weights = {"Dense_0": 2.5e-5, "Dense_1": 5e-5, "mean": 1e-4, "log_var": 1e-4}
    decay = sum(w * (ensemble.members["params"][k]["kernel"] ** 2).sum() / 2 for k, w in weights.items())
    np.testing.assert_allclose(loss - told["loss"], decay, rtol=1e-2)


def test_a_member_predicts_the_same_whatever_the_others_are():
    dynamics, observations, actions = model(), jnp.ones((4, 5)), jnp.zeros((4, 2))
    before = mopo.predict(ARGS, dynamics, observations, actions)
    moved = jax.tree.map(lambda x: x.at[2].add(1.0), dynamics.ensemble.members)
    after = mopo.predict(
        ARGS, dynamics._replace(ensemble=dynamics.ensemble._replace(members=moved)), observations, actions
    )
    for x, y in zip(before, after, strict=True):
        assert (x[2] != y[2]).any() and (jnp.delete(x, 2, axis=0) == jnp.delete(y, 2, axis=0)).all()


def test_rows_without_a_true_next_observation_train_no_model():
    """Where an episode's last row repeats itself; where the source knows better, terminals stay."""
    from dataset import from_arrays

    rng = np.random.default_rng(0)
    columns = rng.normal(size=(9, 2)), rng.uniform(-1, 1, (9, 1)), np.zeros(9), np.arange(9) == 3, np.arange(9) == 6
    assert mopo.true_rows(from_arrays(*columns)).tolist() == [True, True, True, False, True, True, False, True, False]
    assert mopo.true_rows(from_arrays(*columns, rng.normal(size=(9, 2)))).all()
    keep = np.arange(9) != 6
    assert (mopo.true_rows(from_arrays(*columns, rng.normal(size=(9, 2)), keep=keep)) == keep).all()


@pytest.mark.parametrize("name", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Hopper-v4", "Ant-v4"])
def test_episodes_end_where_the_environments_do(name):
    """On every step of some episodes with random actions, some of them large."""
    env, args = gymnasium.make(name), Args(env=name)
    rng, steps, ends = np.random.default_rng(0), [], []
    for seed in range(12):
        env.reset(seed=seed)
        for _ in range(200):
            observation, _, terminated, _, _ = env.step(rng.uniform(-1, 1, env.action_space.shape) * (1 + seed % 2))
            steps.append(observation)
            ends.append(terminated)
            if terminated:
                break
    ours = np.asarray(mopo.ended(args, jnp.float32(np.array(steps))))
    np.testing.assert_array_equal(ours, ends)
    assert any(ends) or name == "HalfCheetah-v5" or name.startswith("Ant")


@pytest.mark.parametrize("name", ["Ant-v5", "Ant-v4"])
def test_an_ant_that_falls_or_flies_has_ended(name):
    """Random actions seldom end its episodes: it is thrown to the ground, from which it bounces."""
    env, rng, steps, ends = gymnasium.make(name).unwrapped, np.random.default_rng(0), [], []
    env.reset(seed=0)
    for height, speed in itertools.product((0.3, 0.6, 1.0), (0, -5, -20, -40)):
        positions, velocities = env.init_qpos.copy(), env.init_qvel.copy()
        positions[2], velocities[2] = height, speed
        env.set_state(positions, velocities)
        for _ in range(4):
            observation, _, terminated, _, _ = env.step(rng.uniform(-1, 1, 8))
            steps.append(observation)
            ends.append(terminated)
    steps = np.array(steps)
    np.testing.assert_array_equal(mopo.ended(Args(env=name), jnp.float32(steps)), ends)
    assert any(end and x[0] < 0.2 for x, end in zip(steps, ends, strict=True))
    assert any(end and x[0] > 1 for x, end in zip(steps, ends, strict=True)) and not all(ends)


def test_a_hopper_ends_as_its_bounds_say():
    x = jnp.array([1.2, 0, 0, 0, 0, 0])
    for changed, end in ((x, False), (x.at[2].set(-150), True), (x.at[2].set(150), True), (x.at[0].set(0.69), True)):
        assert mopo.ended(Args(env="Hopper-v5"), changed) == end


def test_the_environment_is_known_by_its_name_or_refused(capsys):
    dims = jnp.zeros((1, 17))
    for args in (
        Args("solo/walker2d-v5/medium-v0"),
        Args("x.hdf5", env="Walker2d-v4"),
        Args("x.hdf5", termination="ant"),
    ):
        assert mopo.ended(args, dims)  # at height 0
    assert not mopo.ended(Args("halfcheetah-medium-v2"), dims)
    for args in (Args("antmaze-umaze-v2"), Args("hopper.hdf5", env="Pendulum-v1")):
        with pytest.raises(SystemExit):
            mopo.ended(args, dims)
        assert "--termination" in capsys.readouterr().err


def test_the_model_is_kept_and_refused_where_it_does_not_fit(pendulum, tmp_path, monkeypatch, capsys):
    import dataset as loader

    data = loader.load(str(pendulum), "Pendulum-v1")
    args = dataclasses.replace(SMALL, dataset=str(pendulum), out=str(tmp_path), model_epochs=1)
    first = mopo.trained(args, data)
    [path] = tmp_path.rglob("*.msgpack")
    assert path.parent == tmp_path / "local/pendulum/dynamics"
    monkeypatch.setattr(mopo, "fit_dynamics", lambda *_: pytest.fail("it is there"))
    assert equal(first, mopo.trained(args, data))
    elsewhere = dataclasses.replace(args, dynamics=str(path), out=str(tmp_path / "other"))
    assert equal(first, mopo.trained(elsewhere, data))
    capsys.readouterr()
    for wrong, word in (
        ((dataclasses.replace(elsewhere, model_members=3), data), "model_members"),
        ((elsewhere, data._replace(sha256="another")), "data"),
        ((dataclasses.replace(elsewhere, dynamics=str(pendulum)), data), "cannot be read"),
        ((dataclasses.replace(elsewhere, dynamics="nowhere"), data), "cannot be read"),
    ):
        with pytest.raises(SystemExit):
            mopo.trained(*wrong)
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


def test_the_model_is_trained_on_the_rows_whose_next_observation_is_true(pendulum, tmp_path, monkeypatch):
    """The file's source has none at the end of an episode: those rows are left out."""
    import dataset as loader

    data, seen = loader.load(str(pendulum), "Pendulum-v1"), []
    true = mopo.true_rows(data)
    assert 0 < (data.keep & ~true).sum() < 0.1 * len(true)
    fit = mopo.fit_dynamics
    monkeypatch.setattr(mopo, "fit_dynamics", lambda args, *rows: seen.append(rows[:4]) or fit(args, *rows))
    mopo.trained(dataclasses.replace(SMALL, dataset=str(pendulum), out=str(tmp_path), model_epochs=1), data)
    for rows, name in zip(seen[0], ("observations", "actions", "rewards", "next_observations"), strict=True):
        np.testing.assert_array_equal(rows, getattr(data, name)[true])


def test_of_two_runs_that_train_the_model_at_once_both_go_on_with_the_first_ones(pendulum, tmp_path, monkeypatch):
    import dataset as loader

    data = loader.load(str(pendulum), "Pendulum-v1")
    args, fit = dataclasses.replace(SMALL, dataset=str(pendulum), out=str(tmp_path), model_epochs=1), mopo.fit_dynamics

    def overtaken(*rows):
        monkeypatch.setattr(mopo, "fit_dynamics", fit)
        others.append(mopo.trained(args, data))
        own = fit(*rows)
        return own._replace(mean=own.mean + 1)

    others = []
    monkeypatch.setattr(mopo, "fit_dynamics", overtaken)
    assert equal(mopo.trained(args, data), others[0]) and len(list(tmp_path.rglob("dynamics/*"))) == 1


@pytest.mark.parametrize("scale, rows", [(1e6, 1000), (1.0, 4)])
def test_a_model_that_learned_nothing_is_refused_and_not_kept(scale, rows, tmp_path, capsys):
    """Of rewards whose square is beyond all measure, or of so few rows that none is held out."""
    import dataset as loader

    observations, actions, rewards, following = (x[:rows] for x in linear(1000))
    ends = np.zeros(rows)
    data = loader.from_arrays(observations, actions, rewards * scale, ends, ends, following)
    for sha256 in (None, "hash"):
        with pytest.raises(SystemExit):
            mopo.trained(dataclasses.replace(SMALL, out=str(tmp_path)), data._replace(sha256=sha256))
        assert f"learned nothing from {rows} rows" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.msgpack"))


def test_killed_a_run_ends_in_the_same_bytes_and_so_does_one_with_anothers_model(pendulum, tmp_path):
    """The model is trained once: the second start and the second run find it."""
    longer = ("--steps", "600", "--eval-every", "20")
    undisturbed, killed, other = (tmp_path / name for name in ("undisturbed", "killed", "other"))
    assert run(command("mopo", pendulum, undisturbed, *longer)).returncode == 0
    with subprocess.Popen(command("mopo", pendulum, killed, *longer), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and step_of(killed) < 40:
            time.sleep(0.01)
        process.kill()
    [model] = killed.rglob("dynamics/*.msgpack")
    before = model.stat().st_mtime_ns
    assert 0 < step_of(killed) < 600
    assert run(command("mopo", pendulum, killed, *longer)).returncode == 0
    assert model.stat().st_mtime_ns == before
    assert outcome(killed) == outcome(undisturbed)
    assert run(command("mopo", pendulum, other, *longer, "--dynamics", str(model))).returncode == 0
    assert outcome(other) == outcome(undisturbed) and not list(other.rglob("dynamics"))


# ------------------------------------------------------------------------------------------ penalties


@functools.cache
def predictions(members=5, rows=7, dims=4):
    rng = np.random.default_rng(0)
    means, log_vars = rng.normal(size=(members, rows, dims)), rng.normal(size=(members, rows, dims))
    return tuple(map(jnp.float32, (means, log_vars, rng.normal(size=(rows, dims))))) + (jnp.arange(rows) % members,)


def by_hand(name, means, log_vars, sample, member):
    """From the paper's definitions, member by member and row by row."""
    means, stds = np.float64(means), np.exp(np.float64(log_vars) / 2)
    members, rows, dims = means.shape
    u = np.zeros(rows)
    for n in range(rows):
        m, s = means[:, n], stds[:, n]
        mixture = (s**2 + m**2).mean(0) - m.mean(0) ** 2
        if name == "aleatoric":
            u[n] = max(np.linalg.norm(x) for x in s)
        if name == "pairwise":
            u[n] = max(np.linalg.norm(x - y) for x in m for y in m)
        if name == "ensemble_std":
            u[n] = np.linalg.norm(np.sqrt(mixture))
        if name == "ensemble_variance":
            u[n] = np.linalg.norm(mixture)
        if name == "log_likelihood":
            u[n] = np.var(
                [stats.multivariate_normal(x, np.diag(y**2)).logpdf(sample[n]) for x, y in zip(m, s, strict=True)]
            )
        if name == "leave_one_out":
            i, others = member[n], np.arange(members) != member[n]
            mu, S = m[others].mean(0), (s[others] ** 2 + m[others] ** 2).mean(0) - m[others].mean(0) ** 2
            u[n] = 0.5 * (np.log(S / s[i] ** 2) + (s[i] ** 2 + (m[i] - mu) ** 2) / S - 1).sum()
        if name == "disagreement":
            u[n] = max(np.linalg.norm(x[:-1] - m.mean(0)[:-1]) for x in m)
    return u


@pytest.mark.parametrize("name", mopo.PENALTIES)
def test_a_penalty_is_what_its_formula_says(name):
    given = predictions()
    u = mopo.PENALTIES[name](*given)
    np.testing.assert_allclose(u, by_hand(name, *given), rtol=1e-4)
    assert (u >= 0).all()


@pytest.mark.parametrize("name", mopo.PENALTIES)
def test_a_penalty_does_not_depend_on_the_order_of_the_members(name):
    means, log_vars, sample, member = predictions()
    order = jnp.array([3, 0, 4, 1, 2])
    shuffled = mopo.PENALTIES[name](means[order], log_vars[order], sample, jnp.argsort(order)[member])
    np.testing.assert_allclose(shuffled, mopo.PENALTIES[name](means, log_vars, sample, member), rtol=1e-5)


def test_a_member_left_out_may_be_far_from_the_others_that_agree():
    """In float32, by the formula in float64: the difference of two squares would be lost."""
    rng = np.random.default_rng(0)
    means = (0.003 * rng.normal(size=(7, 200, 4))).astype(np.float32)
    means[0] += 50
    log_vars, member = np.full((7, 200, 4), -9.0, np.float32), np.zeros(200, int)
    u = mopo.leave_one_out(jnp.asarray(means), jnp.asarray(log_vars), None, jnp.asarray(member))
    mu, own = means[1:].mean(0, dtype=np.float64), np.exp(-9.0)
    S = own + means[1:].var(0, dtype=np.float64)
    wanted = 0.5 * (np.log(S / own) + (own + (means[0] - mu) ** 2) / S - 1).sum(-1)
    np.testing.assert_allclose(u, wanted, rtol=1e-4)


def test_members_that_are_one_disagree_on_nothing():
    means, log_vars, sample, member = predictions()
    same = jnp.broadcast_to(means[:1], means.shape), jnp.broadcast_to(log_vars[:1], means.shape), sample, member
    for name in ("pairwise", "log_likelihood", "leave_one_out", "disagreement"):
        np.testing.assert_allclose(mopo.PENALTIES[name](*same), 0, atol=1e-6, err_msg=name)
    noise = jnp.linalg.norm(jnp.exp(log_vars[0]), axis=-1)
    np.testing.assert_allclose(mopo.ensemble_variance(*same), noise, rtol=1e-5)


def test_the_aleatoric_penalty_is_no_less_than_any_members_noise_and_grows_with_all():
    means, log_vars, *rest = predictions()
    u = mopo.aleatoric(means, log_vars, *rest)
    assert (u >= jnp.linalg.norm(jnp.exp(log_vars / 2), axis=-1) - 1e-5).all()
    np.testing.assert_allclose(mopo.aleatoric(means, log_vars + 2 * np.log(3), *rest), 3 * u, rtol=1e-5)


# ------------------------------------------------------------------------------------------ rollouts


def numbered(n, first=0):
    """Rows that carry a number."""
    x = jnp.arange(first, first + n, dtype=jnp.float32)
    return Rows(x[:, None], x[:, None], x, x[:, None], x)


def test_the_buffer_holds_the_newest_rows_and_no_others():
    """Against a plain list, for any number of valid rows."""
    buffer = Buffer(jax.tree.map(jnp.zeros_like, numbered(10)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    rng, kept = np.random.default_rng(0), []
    for first in range(1, 60, 6):
        valid = rng.random(6) > 0.4
        buffer = mopo.push(buffer, numbered(6, first), jnp.array(valid))
        kept = (kept + (first + np.flatnonzero(valid)).tolist())[-10:]
        assert sorted(buffer.rows.rewards[: buffer.size].tolist()) == kept
        for column in jax.tree.leaves(buffer.rows):
            np.testing.assert_array_equal(column.reshape(-1), buffer.rows.rewards)


def test_after_six_pushes_into_room_for_five_the_first_is_gone():
    buffer = Buffer(jax.tree.map(jnp.zeros_like, numbered(20)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    for i in range(6):
        buffer = mopo.push(buffer, numbered(4, 1 + 4 * i), jnp.ones(4, bool))
    assert sorted(buffer.rows.rewards.tolist()) == list(range(5, 25))


def test_a_batch_takes_only_filled_rows_of_the_buffer():
    data, state, batch, noise = setup()
    zeros = jax.tree.map(jnp.zeros_like, state.buffer)
    buffer = mopo.push(zeros, jax.tree.map(lambda x: x + 100.0, data.rows), jnp.arange(50) < 7)
    rows = mopo.mixed(ARGS, buffer, batch, noise.places)
    assert len(rows.rewards) == 32 and mopo.real_rows(ARGS) == 8 and mopo.real_rows(Args()) == 12
    np.testing.assert_array_equal(rows.rewards[:8], batch.rewards)
    assert set(rows.rewards[8:].tolist()) == set((data.rows.rewards[:7] + 100).tolist())


def test_a_buffer_that_nothing_finite_came_into_is_no_number():
    """Zeros would pass for experience."""
    _, state, batch, noise = setup()
    rows = mopo.mixed(ARGS, jax.tree.map(jnp.zeros_like, state.buffer), batch, noise.places)
    np.testing.assert_array_equal(rows.rewards[:8], batch.rewards)
    assert all(jnp.isnan(x[8:]).all() for x in rows)


def test_to_leave_one_member_out_takes_two(tmp_path, pendulum, refused):
    refused(
        command("mopo", pendulum, tmp_path, "--penalty", "leave_one_out", "--model-members", "1"), "--model-members"
    )


def test_a_rollout_that_ends_at_step_k_gives_k_rows(monkeypatch):
    """Every step raises the first entry by one; the episode of start i ends at i, what follows is not stored."""

    def imagine(args, dynamics, observations, actions, key):
        following = observations.at[:, 0].add(1.0)
        return following, jnp.ones(len(actions)), following[:, 0] >= following[:, 1], {"u": following[:, 0]}

    monkeypatch.setattr(mopo, "imagine", imagine)
    _, state, batch, _ = setup()
    ends = jnp.arange(20) % 5 + 1.0
    starts = jnp.zeros((20, 5)).at[:, 1].set(ends)
    monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.arange(20))
    rows, valid, _ = mopo.roll(ARGS, state.actor, batch._replace(starts=starts), jax.random.key(0))
    lengths = jnp.minimum(ends, ARGS.rollout_length)
    np.testing.assert_array_equal(valid.reshape(3, 20).sum(0), lengths)
    stored = jax.tree.map(lambda x: x[valid], rows)
    assert stored.terminals.sum() == (ends <= 3).sum()
    assert (stored.next_observations[:, 0] <= stored.next_observations[:, 1]).all()
    buffer, told = mopo.refreshed(ARGS, state, batch._replace(starts=starts), jax.random.key(0), state.buffer)
    assert buffer.size == lengths.sum() and told["model_length"] == lengths.mean()
    np.testing.assert_allclose(told["model_u"], stored.next_observations[:, 0].mean(), rtol=1e-6)


def test_a_step_to_no_number_is_left_out_and_ends_the_rollout(monkeypatch):
    def imagine(args, dynamics, observations, actions, key):
        return observations * jnp.nan, jnp.zeros(len(actions)), jnp.zeros(len(actions), bool), {}

    monkeypatch.setattr(mopo, "imagine", imagine)
    _, state, batch, noise = setup()
    assert not mopo.roll(ARGS, state.actor, batch, noise.rollouts)[1].any()


def test_rows_of_a_rollout_hang_together():
    """What follows a row is the next one's observation; the first ones are the dataset's."""
    data, state, batch, noise = setup()
    rows, valid, _ = mopo.roll(ARGS, state.actor, batch, noise.rollouts)
    rows, valid = jax.tree.map(lambda x: x.reshape(3, 20, *x.shape[1:]), (rows, valid))
    np.testing.assert_array_equal(rows.next_observations[:-1], rows.observations[1:])
    assert valid[0].all() and not (valid[1:] & ~valid[:-1]).any()
    np.testing.assert_array_equal(valid[1:], valid[:-1] & (rows.terminals[:-1] == 0))
    known = {tuple(x) for x in data.rows.observations.tolist()}
    assert all(tuple(x) in known for x in rows.observations[0].tolist())


def test_an_imagined_step_is_a_sample_of_an_elite_less_the_penalty():
    data, state, batch, _ = setup()
    observations, actions = data.rows.observations, data.rows.actions
    n = 4000
    repeat = lambda x: jnp.repeat(x[:1], n, axis=0)
    following, rewards, terminals, told = mopo.imagine(
        ARGS, data.dynamics, repeat(observations), repeat(actions), jax.random.key(0)
    )
    means, log_vars = mopo.predict(ARGS, data.dynamics, observations[:1], actions[:1])
    np.testing.assert_allclose(told["u"], jnp.linalg.norm(jnp.exp(log_vars / 2), axis=-1).max(), rtol=1e-4)  # of all
    np.testing.assert_allclose(rewards, told["reward"] - 0.5 * told["u"], rtol=1e-4, atol=1e-5)
    elite = data.dynamics.elites
    sample = jnp.concatenate([following, told["reward"][:, None]], axis=1)
    np.testing.assert_allclose(sample.mean(0), means[elite, 0].mean(0), atol=0.1)
    np.testing.assert_allclose(sample.var(0), mopo.total_variance(means[elite, 0], log_vars[elite, 0]), rtol=0.15)
    np.testing.assert_array_equal(terminals, mopo.ended(ARGS, following))


def test_without_a_weight_all_penalties_store_the_models_reward():
    data, state, batch, noise = setup()
    stored = []
    for name in mopo.PENALTIES:
        args = dataclasses.replace(ARGS, penalty=name, penalty_weight=0.0)
        rows, valid, told = mopo.roll(args, state.actor, batch, noise.rollouts)
        np.testing.assert_array_equal(rows.rewards, told["reward"])
        stored.append(rows)
    assert all(equal(rows, stored[0]) for rows in stored)


def test_rollouts_come_every_interval():
    data, state, batch, noise = setup()
    sizes = []
    for step in range(10):
        state, metrics = update(ARGS, state, batch, noise, step)
        sizes.append(int(state.buffer.size))
        assert bool(jnp.isnan(metrics["model_u"])) == (step % 4 != 0)
        assert metrics["model_error"] == 1.5, "of the elites"
    assert sizes[0] == sizes[3] < sizes[4] == sizes[7] <= sizes[8] <= 20 * 3 * 2


# ------------------------------------------------------------------------------------------ the agent


def test_an_update_takes_its_losses_in_order():
    """Critics see the old actor and alpha, the actor the new critics and the old alpha, alpha the old actor."""
    data, state, batch, noise = setup()
    after, metrics = update(ARGS, state, batch, noise, 0)
    rows = mopo.mixed(ARGS, after.buffer, batch, noise.places)
    old = state._replace(buffer=after.buffer)
    np.testing.assert_allclose(
        metrics["critic_loss"], mopo.critic_loss(state.critics, ARGS, old, rows, noise)[0], rtol=1e-5
    )
    between = old._replace(critics=after.critics)
    loss, told = mopo.actor_loss(state.actor, ARGS, between, rows, noise)
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(after.log_alpha, -np.sign(told["entropy"] + 2) * ARGS.alpha_lr, rtol=1e-4)
    np.testing.assert_allclose(after.alpha_opt[0].mu, 0.1 * (told["entropy"] + 2), rtol=1e-4)
    for new, old, target in zip(
        *map(jax.tree.leaves, (after.critics, state.critics, after.target_critics)), strict=True
    ):
        np.testing.assert_allclose(target, 0.005 * new + 0.995 * old, rtol=1e-5, atol=1e-7)


def test_alpha_stays_below_one_and_the_actors_learning_rate_falls_to_0():
    data, state, batch, noise = setup()
    assert mopo.temperature(state._replace(log_alpha=jnp.array(3.0))) == 1
    args = dataclasses.replace(ARGS, steps=4000)
    state = state._replace(buffer=update(args, state, batch, noise, 0)[0].buffer)  # with rollouts in it
    moved = []
    for step in (999, 1000, 2000, 3000):
        after, _ = update(args, state, batch, noise, step)
        change = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), after.actor, state.actor)
        moved.append(float(max(jax.tree.leaves(change))))
    np.testing.assert_allclose(np.array(moved) / 1e-4, [1, 0.8536, 0.5, 0.1464], rtol=0.05)


def test_terminal_rows_are_worth_their_reward():
    data, state, batch, noise = setup(dataclasses.replace(ARGS, real_ratio=1.0))
    args = dataclasses.replace(ARGS, real_ratio=1.0)
    batch = batch._replace(terminals=jnp.ones(32))
    assert state.buffer is None, "nothing but the dataset, and no rollouts"
    _, metrics = update(args, state, batch, noise, 0)
    np.testing.assert_allclose(metrics["q_target"], batch.rewards.mean(), rtol=1e-5)


def test_the_model_does_not_learn_from_the_agent():
    data, state, batch, noise = setup()

    def loss(ensemble):
        given = batch._replace(dynamics=batch.dynamics._replace(ensemble=ensemble))
        new, metrics = mopo.update(ARGS, state, given, noise, 0)
        return metrics["critic_loss"]

    changed = jax.jit(loss)(jax.tree.map(lambda x: x + 0.1, batch.dynamics.ensemble))
    assert changed != jax.jit(loss)(batch.dynamics.ensemble), "what it says reaches the critics"
    assert "dynamics" not in mopo.State._fields, "and nothing of it is in what an update changes"


def test_the_networks_density_is_that_of_a_squashed_gaussian():
    data, state, _, _ = setup()
    observations, noise = data.rows.observations, 0.5 * jax.random.normal(jax.random.key(0), (50, 2))
    actions, log_pi = mopo.pi(ARGS, state.actor, observations, noise)
    mean, log_std = mopo.gaussian(ARGS, state.actor, observations)
    raw = np.arctanh(np.float64(actions))
    wanted = stats.norm(mean, np.exp(log_std)).logpdf(raw) - np.log(1 - np.float64(actions) ** 2)
    np.testing.assert_allclose(log_pi, wanted.sum(1), rtol=1e-3, atol=1e-3)
