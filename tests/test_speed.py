"""benchmarks/speed.py: what it counts, and that it runs a script."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mopo
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import speed

OBS, ACT, WIDTH, BATCH = 17, 6, 256, 256


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return speed.made_up(tmp_path_factory.mktemp("speed") / "data.hdf5", rows=2000)


def test_products_in_a_loop_count_as_often_as_it_runs():
    def program(x):
        inner = lambda x, _: (x @ jnp.ones((4, 4)), None)
        return jax.jit(lambda x: jax.lax.scan(inner, x, None, length=5)[0])(x) @ jnp.ones((4, 2))

    found = speed.products(jax.make_jaxpr(program)(jnp.ones((3, 4))).jaxpr)
    assert sorted(found.values()) == [1, 5]
    assert sum(speed.operations(x) * n for x, n in found.items()) == 2 * 3 * 4 * 4 * 5 + 2 * 3 * 4 * 2


def test_a_batch_of_products_counts_each():
    program = jax.make_jaxpr(lambda x, y: jnp.einsum("bij,bjk->bik", x, y))(jnp.ones((7, 2, 3)), jnp.ones((7, 3, 5)))
    [product] = speed.products(program.jaxpr)
    assert speed.operations(product) == 7 * 2 * 2 * 3 * 5


def test_an_update_of_td3_bc_has_the_products_that_one_counts_by_hand(data):
    """A layer is one product forward, one for its weights and one for its inputs; the inputs of a network that learns
    need none. Every second step the actor learns, through one critic."""
    layers = lambda inputs, outputs: [inputs * WIDTH, WIDTH * WIDTH, WIDTH * outputs]
    actor, critic = layers(OBS, ACT), layers(OBS + ACT, 1)
    learn = lambda network: 3 * sum(network) - network[0]
    always = sum(actor) + 2 * sum(critic) + 2 * learn(critic)
    delayed = learn(actor) + 2 * sum(critic)
    found = speed.of_an_update("td3_bc", data)
    assert sum(speed.operations(x) * n for x, n in found.items()) == 2 * BATCH * (always + delayed / 2)
    assert speed.alone(found) > 0


def test_a_rollout_of_mopo_asks_the_policy_and_all_models_at_every_step(data):
    """As many rollouts an update as by default, and otherwise its update is SAC's."""
    layers = lambda inputs, width, count, outputs: inputs * width + count * width * width + width * outputs
    policy, model = layers(OBS, WIDTH, 1, 2 * ACT), layers(OBS + ACT, 200, 3, 2 * (OBS + 1))
    operations = lambda *x: sum(speed.operations(x) * n for x, n in speed.of_an_update(*x).items())
    update = operations("mopo", data)
    assert update == operations("sac", data)
    asked = mopo.Args.rollout_length * (policy + mopo.Args.model_members * model)
    assert operations("mopo", data, [0], speed.rollouts("mopo", 20)) == update + 2 * 20 * 50 * asked


def test_a_script_is_timed_by_what_it_writes(data):
    ballast = np.ones(100_000_000)  # 800 MB of this process, of which the script's peak must know nothing
    result = speed.start("bc", data, [], chunk=20, chunks=3)
    assert result["memory_mb"] < 700 < ballast.nbytes / 2**20
    assert all(result[x] > 0 for x in ("steps_per_second", "process_seconds", "evaluation_seconds", "memory_mb"))
    assert result["process_seconds"] > result["compile_seconds"] + 40 / result["steps_per_second"]


PEER = """
import time
import d4rl, gym, ogbench, wandb

rows = d4rl.qlearning_dataset(gym.make("halfcheetah-medium-v2"))
same = gym.make("halfcheetah-medium-v2").get_dataset()
_, train, _ = ogbench.make_env_and_datasets("cube-single-play-singletask-v0")
assert (rows["next_observations"] == rows["observations"][1:].tolist() + [same["observations"][-1].tolist()]).all()
assert (train["masks"] == 1 - same["terminals"]).all()
envs = gym.vector.make("halfcheetah-medium-v2", num_envs=3)
assert envs.reset().shape == (3, *envs.single_observation_space.shape)
while True:
    time.sleep(0.01)
    wandb.log({"loss": 0.0})
    wandb.log({"score": 0.0})  # of an evaluation, which is no update
"""


def test_a_peers_script_runs_on_the_stand_ins_and_says_how_fast_it_is(data, tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    environment = os.environ | {"PYTHONPATH": str(speed.ROOT / "benchmarks/peers"), "SPEED_DATA": str(data)}
    environment |= {"SPEED_SECONDS": "0.3", "SPEED_UNIT": "5"}
    command = [sys.executable, str(tmp_path / "peer.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "updates a second: " in done.stdout, done.stderr
    assert 50 < float(done.stdout.split()[-1]) <= 500, "five updates a log, at most a hundred logs a second"


def test_peers_are_timed_beside_scripts_of_ours():
    for _, files in speed.PEERS.values():
        assert files.keys() <= set(speed.SCRIPTS)


def test_every_script_is_in_the_table():
    algorithms = {path.stem for path in (speed.ROOT / "algorithms").glob("*.py")} - {"dataset"}
    assert {*speed.SCRIPTS, "prdc"} == algorithms, "PRDC has a table of its own"


@pytest.mark.parametrize("script", sorted(set(speed.SCRIPTS) - set(speed.ONLINE)))
def test_what_trains_offline_is_timed_without_an_online_phase(script):
    """Which may be 500,000 steps by default."""
    args, _ = importlib.import_module(script).parse(["--dataset", "data.hdf5", *speed.FLAGS.get(script, [])])
    assert getattr(args, "online_steps", 0) == 0
