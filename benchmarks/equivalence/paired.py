"""TD3+BC with CORL's own draws: adds rows to paired.csv, whose seed k begins with the weights of CORL's seed k and
takes the same batches and the same noise.

    taskset -c 0 python benchmarks/equivalence/paired.py --corl CORL --python peer/bin/python \
        --data data/halfcheetah-medium.hdf5 --env HalfCheetah-v4 --seeds 0 1 2 3 4

Scores of so short a training depend on the seed more than on anything else. Where two programs that draw for themselves
can only be compared by means over many seeds, here each seed has its partner in corl.csv (see official.py, with whose
environment `--python` makes the draws). Rounding tells the two apart after some thousand steps, so that partners end
near each other, not in the same score; what is left of the difference is the programs'.
"""

import argparse
import csv
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TABLE = Path(__file__).parent / "paired.csv"
STEPS, EVERY = 50_000, 10_000
NETWORKS = ("actor", "critic_1", "critic_2")


def draw(args: argparse.Namespace, file: str) -> None:
    """What CORL's `train()` draws, by running it with updates that do nothing but draw. Needs torch."""
    import gymnasium
    import official
    import torch

    [seed] = args.seeds
    env = official.Old(gymnasium.make(args.env))
    program, config = official.load(args.corl, "td3_bc", args.data, seed, env, lambda *_, **__: None)
    config.max_timesteps, config.eval_freq = STEPS, STEPS + 1
    found: dict[str, list] = {"rows": [], "noise": []}
    randint, begin = np.random.randint, program.TD3_BC.__init__

    def rows(*given, **named):
        found["rows"].append(randint(*given, **named))
        return found["rows"][-1]

    def initial(self, *given, **named):
        begin(self, *given, **named)
        for name in NETWORKS:
            for i, array in enumerate(getattr(self, name).parameters()):
                found[f"{name}/{i}"] = array.detach().numpy().copy()

    def update(_, batch):
        found["noise"].append(torch.randn_like(batch[1]).numpy())
        return {}

    np.random.randint, program.TD3_BC.__init__, program.TD3_BC.train = rows, initial, update
    program.train(config)
    np.savez(file, **found)


def train(args: argparse.Namespace, draws, seed: int) -> list[list]:
    """The rows of paired.csv of one seed."""
    import dataset as loader
    import jax
    import jax.numpy as jnp
    import td3_bc

    given = td3_bc.Args(dataset=str(args.data), env=args.env)
    dataset = loader.load(given.dataset, given.env)
    data = td3_bc.prepare(given, dataset)
    envs = [[loader.make_env(dataset) for _ in range(10)]]
    policy = jax.jit(jax.vmap(functools.partial(td3_bc.act, given)))

    def network(name):  # torch keeps [out, in]
        arrays = [jnp.asarray(draws[f"{name}/{i}"]) for i in range(6)]
        return {"params": {f"Dense_{i}": {"kernel": arrays[2 * i].T, "bias": arrays[2 * i + 1]} for i in range(3)}}

    actor, *critics = map(network, NETWORKS)
    critics = jax.tree.map(lambda *x: jnp.stack(x), *critics)
    networks = {"actor": actor, "critics": critics, "target_actor": actor, "target_critics": critics}
    state = td3_bc.init(given, data, jax.random.key(0))._replace(**networks)

    @jax.jit
    def updates(state, rows, noise, first):
        def one(state, x):
            rows, noise, step = x
            batch = jax.tree.map(lambda x: x[rows], data.rows)
            return td3_bc.update(given, state, batch, td3_bc.Noise(noise), step)[0], None

        return jax.lax.scan(one, state, (rows, noise, first + jnp.arange(EVERY)))[0]

    lines, rows, noise = [], draws["rows"], draws["noise"]
    for step in range(0, STEPS, EVERY):
        chunk = slice(step, step + EVERY)
        state = updates(state, rows[chunk], noise[chunk], step)
        returns, _ = td3_bc.evaluate(policy, jax.tree.map(lambda x: x[None], state), envs, 10)
        score = loader.normalized_score(dataset, returns).mean()
        lines.append(["td3_bc", args.data.stem, seed, step + EVERY, f"{returns.mean():.6f}", f"{score:.4f}"])
        print(*lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corl", type=Path, required=True)
    parser.add_argument("--python", help="of an environment as official.py needs it")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--draw", help=argparse.SUPPRESS)  # the file in which `draw` leaves its work, in --python
    args = parser.parse_args()
    if args.draw:
        return draw(args, args.draw)
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "algorithms"))
    if not TABLE.exists():
        TABLE.write_text("algorithm,dataset,seed,step,return_mean,score_mean\n")
    with open(TABLE) as file:
        there = {(row["dataset"], int(row["seed"])) for row in csv.DictReader(file)}
    for seed in args.seeds:
        if (args.data.stem, seed) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = os.path.join(folder, "draws.npz")
            command = [args.python, "-W", "ignore", __file__, "--corl", args.corl, "--data", args.data]
            command += ["--env", args.env, "--seeds", str(seed), "--draw", place]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with np.load(place) as file:
                lines = train(args, dict(file), seed)
        with open(TABLE, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    main()
