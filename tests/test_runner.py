"""The runner's blocks, on one script: arguments, resume, checkpoints, refusals. What is wrong ends in one sentence."""

import functools
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dataset as loader
import flax
import iql
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import td3_bc
from conftest import ALGORITHMS, command, run, sizes, write_hdf5

LONGER = ("--steps", "1600", "--eval-every", "20", "--seeds", "0", "1")


def outcome(out) -> tuple[bytes, list]:
    """A finished run's state, byte by byte, and its returns."""
    [checkpoint] = out.rglob("checkpoint.msgpack")
    content = flax.serialization.msgpack_restore(checkpoint.read_bytes())
    assert content["step"] == json.loads(content["run"])["steps"]
    returns = [[x["step"], x["returns"], x["metrics"]] for x in json.loads(content["log"])]
    return flax.serialization.msgpack_serialize(content["state"]), returns


@pytest.fixture(scope="module")
def undisturbed(pendulum, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done = run(command("td3_bc", pendulum, out, *LONGER))
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_repeats_to_the_byte(undisturbed, pendulum, tmp_path):
    run(command("td3_bc", pendulum, tmp_path, *LONGER))
    assert outcome(tmp_path) == outcome(undisturbed)


def test_killed_five_times_a_run_ends_in_the_same_bytes(undisturbed, pendulum, tmp_path):
    """SIGKILL at random moments, the same command each time."""
    random.seed(0)
    kills = 0
    while kills < 5:
        before = len(list(tmp_path.rglob("*.msgpack"))) and step_of(tmp_path)
        process = subprocess.Popen(command("td3_bc", pendulum, tmp_path, *LONGER), stderr=subprocess.DEVNULL)
        while process.poll() is None and step_of(tmp_path) <= before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert step_of(tmp_path) > before, "each attempt goes on where the last one was killed"
    assert step_of(tmp_path) < 1600, "the kills must come before the end"
    done = run(command("td3_bc", pendulum, tmp_path, *LONGER))
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path) == outcome(undisturbed)


# The second of two devices is told to be an accelerator; a process that evaluates imports the script anew.
ACCELERATOR = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
real = jax.devices
jax.devices = lambda *kind: real(*kind) if kind else real()[::-1]
jax.config.update("jax_default_device", real()[1])
jax.default_backend = lambda: "gpu"
import td3_bc
td3_bc.evaluate = None  # which is for the other processes
td3_bc.room = lambda: {room}
sys.argv = {arguments}
td3_bc.main(td3_bc.interact)
"""


def on_an_accelerator(arguments, room=sys.maxsize) -> dict:
    """What subprocess needs to run it there."""
    code = ACCELERATOR.format(arguments=arguments[1:], room=room)
    return {"args": [sys.executable, "-c", code], "env": os.environ | {"PYTHONPATH": str(ALGORITHMS)}}


@pytest.mark.parametrize("room", [sys.maxsize, 10_000], ids=["data fit", "data do not fit"])
def test_an_accelerator_learns_what_a_cpu_does_while_processes_evaluate(room, pendulum, tmp_path):
    """To rounding. Where the data do not fit, the host samples, by itself."""
    assert run(command("td3_bc", pendulum, tmp_path / "alone", "--seeds", "0", "1")).returncode == 0
    arguments = command("td3_bc", pendulum, tmp_path / "accelerator", "--seeds", "0", "1")
    done = subprocess.run(**on_an_accelerator(arguments, room), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("the host samples them" in done.stdout) == (room == 10_000)
    (state, log), (ours, its_log) = outcome(tmp_path / "alone"), outcome(tmp_path / "accelerator")
    leaves = (jax.tree.leaves(flax.serialization.msgpack_restore(x)) for x in (state, ours))
    for one, two in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
    assert [x[0] for x in log] == [x[0] for x in its_log] and len(log) > 1
    np.testing.assert_allclose([x[1] for x in log], [x[1] for x in its_log], rtol=1e-3)


@pytest.mark.parametrize("name", ["td3_bc", "dt"])  # batches of rows and of sequences
def test_data_that_stay_with_the_host_train_to_the_same_bytes(name, pendulum):
    """Blocks of 8 updates, and a rest."""
    module = importlib.import_module(name)
    args = module.Args(batch_size=16, **sizes(name))
    data = module.prepare(args, loader.load(str(pendulum), "Pendulum-v1"))
    start = jax.jit(jax.vmap(functools.partial(module.init, args), in_axes=(None, 0)))
    keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for seed in (0, 1)]))
    here, metrics = module.train(args, data, start(data, keys[:, 0]), keys[:, 1], 3, 20)
    there, ours = module.train_from_host(args, data, start(data, keys[:, 0]), keys[:, 1], 3, 20, block=8)
    for one, other in zip(*map(jax.tree.leaves, (here, there)), strict=True):
        assert one.tobytes() == other.tobytes()
    for key, value in metrics.items():
        assert jnp.allclose(value, ours[key], equal_nan=True, rtol=1e-5)


def test_what_needs_all_data_at_once_is_refused_where_they_do_not_fit(pendulum, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(td3_bc, "room", lambda: 10_000)
    refused(command("td3_bc", pendulum, tmp_path, "--online-steps", "20"), "more than half")


def read_proc(file: Path) -> str:
    """A file of /proc, empty once its process or thread has ended."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def evaluators_of(pid: int) -> set[str]:
    """Process ids of a run's children that evaluate."""
    lists = [read_proc(file) for file in Path(f"/proc/{pid}/task").glob("*/children")]
    line = lambda child: read_proc(Path(f"/proc/{child}/cmdline"))
    return {child for children in lists for child in children.split() if "spawn_main" in line(child)}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_processes_that_evaluate_do_not_outlive_their_run(how, pendulum, tmp_path):
    """Nor does a stopped run wait for what they still had to do."""
    arguments = command("td3_bc", pendulum, tmp_path, "--seeds", "0", "1", "--eval-episodes", "1000000")
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # which `nohup make test &` ignores
    process = subprocess.Popen(**on_an_accelerator(arguments), stderr=subprocess.DEVNULL, preexec_fn=heed)
    while not (children := evaluators_of(process.pid)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(timeout=60) == (130 if how == signal.SIGINT else -how)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.05)


def step_of(out) -> int:
    for path in out.rglob("checkpoint.msgpack"):
        return flax.serialization.msgpack_restore(path.read_bytes())["step"]
    return 0


def test_a_finished_run_is_not_repeated(undisturbed, pendulum):
    [checkpoint] = undisturbed.rglob("checkpoint.msgpack")
    before = checkpoint.stat().st_mtime_ns
    done = run(command("td3_bc", pendulum, undisturbed, *LONGER))
    assert done.returncode == 0 and "finished" in done.stdout
    assert checkpoint.stat().st_mtime_ns == before


def test_other_seeds_or_arguments_are_another_group(pendulum, tmp_path):
    for flags in (("--seeds", "0"), ("--seeds", "1"), ("--seeds", "0", "--alpha", "1")):
        assert run(command("td3_bc", pendulum, tmp_path, *flags)).returncode == 0
    assert len(list(tmp_path.rglob("checkpoint.msgpack"))) == 3


@pytest.fixture(scope="module")
def short(pendulum, tmp_path_factory):
    out = tmp_path_factory.mktemp("short")
    assert run(command("td3_bc", pendulum, out)).returncode == 0
    return out


def test_which_keys_start_and_train_a_seed(short, pendulum, tmp_path):
    """main's choice, which the hash of a script does not see: another would make other numbers."""
    args, _ = td3_bc.parse(command("td3_bc", pendulum, tmp_path)[2:])
    data = td3_bc.prepare(args, loader.load(str(pendulum), "Pendulum-v1"))
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jnp.stack([jax.random.key(0)]))
    state = jax.jit(jax.vmap(td3_bc.init, in_axes=(None, None, 0)), static_argnums=0)(args, data, keys[:, 0])
    for step in (0, 20):
        state, _ = td3_bc.train(args, data, state, keys[:, 1], step, 20)
    state = flax.serialization.to_state_dict(jax.tree.map(np.asarray, state))
    assert flax.serialization.msgpack_serialize(state) == outcome(short)[0]


@pytest.mark.parametrize("change", ["data", "script", "shapes", "truncated"])
def test_a_checkpoint_of_another_run_is_refused(change, short, pendulum, tmp_path, refused):
    shutil.copytree(short, tmp_path / "out")
    arguments = command("td3_bc", pendulum, tmp_path / "out")
    [checkpoint] = tmp_path.rglob("checkpoint.msgpack")
    content = flax.serialization.msgpack_restore(checkpoint.read_bytes())
    theirs = json.loads(content["run"])
    if change == "shapes":  # flax.serialization.from_bytes alone would take it
        content["state"]["mean"] = np.zeros((1, 7), np.float32)
    content["run"] = json.dumps(theirs | ({change: "another"} if change in theirs else {}))
    content["step"] = 20
    whole = flax.serialization.msgpack_serialize(content)
    checkpoint.write_bytes(whole[:100] if change == "truncated" else whole)
    for file in tmp_path.rglob("seed_0.json"):
        file.unlink()
    before = checkpoint.read_bytes()
    refused(arguments, "checkpoint", {"truncated": "read", "shapes": "mean"}.get(change, change))
    assert checkpoint.read_bytes() == before
    if change == "truncated":
        assert run([*arguments, "--no-resume"]).returncode == 0


def test_a_finished_run_without_its_checkpoint_is_not_trained_again_for_a_film(short, pendulum, tmp_path, refused):
    """Its JSON stays as it is; checkpoints are in no fresh clone."""
    shutil.copytree(short, tmp_path / "out")
    [checkpoint], [result] = tmp_path.rglob("checkpoint.msgpack"), tmp_path.rglob("seed_0.json")
    checkpoint.unlink()
    before = result.read_bytes()
    refused(command("td3_bc", pendulum, tmp_path / "out", "--video", "1"), "checkpoint.msgpack is gone")
    assert result.read_bytes() == before


BAD = {
    "missing file": (None, "no-such-file.hdf5"),
    "truncated file": ("truncate", "no readable HDF5"),
    "not HDF5": ("text", "no readable HDF5"),
    "no rows": ({k: np.zeros((0, 3), np.float32) for k in ("observations",)}, "no transitions"),
    "not a number": ({"rewards": np.where(np.arange(200) == 7, np.nan, 0.0)}, "rewards"),
    "infinite": ({"observations": np.full((200, 3), np.inf, np.float32)}, "observations"),
    "rank": ({"observations": np.zeros((200, 3, 2), np.float32)}, "observations"),
    "lengths": ({"rewards": np.zeros(199, np.float32)}, "rewards"),
    "missing key": ({"actions": None}, "actions"),
    "actions out of bounds": ({"actions": np.full((200, 1), 3.0, np.float32)}, "actions"),
    "another environment's shape": ({"observations": np.zeros((200, 5), np.float32)}, "Pendulum-v1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_ends_in_one_sentence(case, tmp_path, refused):
    change, word = BAD[case]
    path = tmp_path / ("no-such-file.hdf5" if change is None else "pendulum.hdf5")
    if change == "text":
        path.write_text("observations, actions, rewards")
    elif change is not None:
        write_hdf5(path, **(change if isinstance(change, dict) else {}))
    if change == "truncate":
        path.write_bytes(path.read_bytes()[:2000])
    refused(command("td3_bc", path, tmp_path / "out"), word)
    assert not (tmp_path / "out").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dataset", "hoper-medium-v2"), ("hoper-medium-v2",)),
        (("--env", "Pendulum-v99"), ("Pendulum-v99",)),
        (("--steps", "0"), ("--steps",)),
        (("--seeds", "1", "1"), ("--seeds",)),
        (("--offline-ratio", "1.5"), ("--offline-ratio", "between 0 and 1")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) and len(value) > 1 else None,
)
def test_bad_arguments_end_in_one_sentence(flags, words, pendulum, tmp_path, refused):
    refused(command("td3_bc", pendulum, tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("sac", ("--eval-every", "0")),
        ("sac", ("--seeds", "-1")),
        ("rlpd", ("--num-critics", "1")),
        ("mopo", ("--rollout-interval", "0")),
        ("mopo", ("--model-elites", "9")),
        ("fql", ("--flow-steps", "0")),
        ("wsrl", ("--subset", "0")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_sizes_that_no_run_can_have_end_in_one_sentence(script, flags, pendulum, tmp_path, refused):
    arguments = command("td3_bc", pendulum, tmp_path / "out", *flags)
    arguments[1] = arguments[1].replace("td3_bc", script)
    if script == "sac":
        arguments = [*arguments[:2], "--env", "Pendulum-v1", "--out", str(tmp_path / "out"), *flags]
    refused(arguments, flags[0])
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_value_is_named(pendulum, tmp_path):
    done = run(command("td3_bc", pendulum, tmp_path / "out", "--alpha", "much"))
    assert done.returncode == 2 and "--alpha" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_line_wins_over_tuned_values_and_those_over_defaults():
    flags = ("--dataset", "antmaze-umaze-v2", "--alpha", "1")
    args, origin = td3_bc.parse(flags)
    assert (args.alpha, args.reward_shift, args.tau) == (1.0, -1.0, 0.005)
    assert origin["alpha"] == "command line" and "CORL" in origin["reward_shift"] and origin["tau"] == "default"
    assert td3_bc.parse([*flags, "--no-normalize"])[0].normalize is False
    args, origin = td3_bc.parse([*flags, "--untuned"])
    assert (args.alpha, args.reward_shift) == (1.0, 0.0) and origin["reward_shift"] == "default"


def test_a_flag_wins_over_a_tuned_switch_both_ways():
    flags = ("--dataset", "cube-single-play-singletask-v0")
    assert iql.tuned(flags[1]).layer_norm and not iql.parse([*flags, "--no-layer-norm"])[0].layer_norm
    assert iql.parse([*flags, "--layer-norm"])[0].layer_norm


def test_the_fingerprint_sees_what_is_computed_and_nothing_else(tmp_path):
    script = tmp_path / "script.py"
    source = (ALGORITHMS / "td3_bc.py").read_text()
    script.write_text(source)
    original, online = (td3_bc.fingerprint(str(script), {"online_steps": n}) for n in (0, 100))
    script.write_text(source.replace("TD3+BC: TD3 with", "TD3+BC, that is TD3 with").replace("  # lambda", ""))
    assert script.read_text() != source and td3_bc.fingerprint(str(script), {"online_steps": 0}) == original
    script.write_text(source.replace("- lambda", "-").replace("-weight * values", "-2 * weight * values"))
    assert td3_bc.fingerprint(str(script), {"online_steps": 0}) != original
    script.write_text(source.replace("step > args.warmup", "step >= args.warmup"))  # which only the online phase reads
    assert td3_bc.fingerprint(str(script), {"online_steps": 0}) == original
    assert td3_bc.fingerprint(str(script), {"online_steps": 100}) != online


class Countdown:
    """Ends after `length` steps, pays 1 a step and the action; remembers the seed of its reset."""

    def __init__(self, length):
        self.length, self.seeds, self.finished = length, [], False

    def reset(self, seed):
        self.seeds.append(seed)
        self.left, self.finished = self.length + seed % 2, False
        return np.zeros(3), {}

    def step(self, action):
        assert not self.finished, "a finished environment is not stepped"
        self.left -= 1
        self.finished, known = self.left == 0, self.length == 7
        terminated, truncated = (self.finished and not known), (self.finished and known)
        return np.zeros(3), 1.0 + float(action[0]), terminated, truncated, {"success": self.finished} if known else {}


def test_evaluation_counts_every_episode_once_from_its_own_seed():
    envs = [[Countdown(length) for length in (3, 7)] for _ in range(2)]
    policy = lambda state, observations: np.zeros((2, 2, 1)) + np.array([0.0, 1.0])[:, None, None]
    returns, successes = td3_bc.evaluate(policy, None, envs, episodes=5)
    assert np.isnan(successes[:, ::2]).all() and successes[:, 1].tolist() == [1, 1], "the last step's"
    np.testing.assert_array_equal(returns, [[3, 8, 3, 8, 3], [6, 16, 6, 16, 6]])
    assert envs[0][0].seeds == [1000, 1002, 1004] and envs[1][1].seeds[:2] == [1001, 1003]


def test_weights_and_biases_logs_offline(pendulum, tmp_path):
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    arguments = command("bc", pendulum, tmp_path / "out", "--seeds", "0", "1", "--wandb")
    done = run(arguments, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_weights_and_biases_project_is_solo_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: given["project"]))
    project = lambda: td3_bc.loggers(td3_bc.Args(wandb=True), {"run": {}}, Path("local/data/td3_bc/seeds"))
    assert project() == ["solo"]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert project() == ["mine"]


def test_without_weights_and_biases_a_run_that_asks_for_it_ends_in_one_sentence(
    pendulum, tmp_path, monkeypatch, refused
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(command("td3_bc", pendulum, tmp_path, "--wandb"), "pip install wandb")


def test_a_run_that_goes_on_goes_on_in_its_weights_and_biases(monkeypatch):
    started = lambda seeds, resume=True, script="a": td3_bc.loggers(
        td3_bc.Args(seeds=seeds, resume=resume, wandb=True),
        {"run": {"script": script}},
        Path("local/data/td3_bc/seeds"),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: given.get("id")))
    (zero, one), again, [other] = started((0, 1)), started((0, 1)), started((0,), script="b")
    assert again == [zero, one] and len({zero, one, other}) == 3
    assert started((0,), resume=False) == [None]


def test_interrupted_it_says_how_to_go_on(pendulum, tmp_path):
    arguments = command("td3_bc", pendulum, tmp_path, "--steps", "1000000", "--eval-every", "20")
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # which `nohup make test &` ignores
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while not step_of(tmp_path):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "same command goes on" in stderr and "Traceback" not in stderr
