"""BC, TD3+BC and IQL with CORL's own draws: adds rows to paired.csv, whose seed k begins with the weights of CORL's
seed k and takes the same batches and the same noise.

    taskset -c 0 python benchmarks/equivalence/paired.py --corl CORL --python peer/bin/python --algorithm td3_bc \
        --data data/halfcheetah-medium.hdf5 --env HalfCheetah-v4 --seeds 0 1 2 3 4

Scores of so short a training depend on the seed more than on anything else. Where two programs that draw for themselves
can only be compared by means over many seeds, here each seed has its partner in corl.csv (see official.py, with whose
environment `--python` makes the draws). Rounding tells the two apart after some thousand steps, so that partners end
near each other, not in the same score; what is left of the difference is the programs'.
"""

import argparse
import csv
import functools
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TABLE = Path(__file__).parent / "paired.csv"
STEPS, EVERY = 50_000, 10_000
# The class of CORL's that learns, its networks, and what our script is given to do the same.
PROGRAMS = {
    "bc": ("BC", ("actor",), {}),
    "td3_bc": ("TD3_BC", ("actor", "critic_1", "critic_2"), {}),
    "iql": ("ImplicitQLearning", ("actor", "qf", "vf"), {"return_range": 1000.0}),  # qf are both critics
}


def draw(args: argparse.Namespace, file: str) -> None:
    """What CORL's `train()` draws, by running it with updates that do nothing but draw. Needs torch."""
    import gymnasium
    import official
    import torch

    [seed] = args.seeds
    env = official.Old(gymnasium.make(args.env))
    program, config = official.load(args.corl, args.algorithm, args.data, seed, env, lambda *_, **__: None)
    config.max_timesteps, config.eval_freq = STEPS, STEPS + 1
    name, networks, _ = PROGRAMS[args.algorithm]
    learner, found = getattr(program, name), {"rows": []}
    randint, begin, fill = np.random.randint, learner.__init__, program.ReplayBuffer.load_d4rl_dataset

    def rows(*given, **named):
        found["rows"].append(randint(*given, **named))
        return found["rows"][-1]

    def filled(self, data):
        fill(self, data)
        found["actions"] = self._actions[: self._size].numpy()

    def initial(self, *given, **named):
        begin(self, *given, **named)
        for network in networks:
            for i, array in enumerate(getattr(self, network).parameters()):
                found[f"{network}/{i:02}"] = array.detach().numpy().copy()

    def update(_, batch):
        if args.algorithm == "td3_bc":
            found.setdefault("noise", []).append(torch.randn_like(batch[1]).numpy())
        return {}

    np.random.randint, program.ReplayBuffer.load_d4rl_dataset = rows, filled
    learner.__init__, learner.train = initial, update
    program.train(config)
    np.savez(file, **found)


def begun(algorithm: str, state, draws):
    """The state with the drawn networks, the targets among them."""
    import jax
    import jax.numpy as jnp

    def arrays(name):  # in the order of torch's parameters()
        return [jnp.asarray(draws[key]) for key in sorted(draws) if key.startswith(f"{name}/")]

    def network(arrays):  # torch has [out, in], and the log of a policy's deviation before all layers
        params = {"log_std": arrays.pop(0)} if len(arrays) % 2 else {}
        pairs = enumerate(zip(arrays[::2], arrays[1::2], strict=True))
        return {"params": params | {f"Dense_{i}": {"kernel": kernel.T, "bias": bias} for i, (kernel, bias) in pairs}}

    found = {"actor": network(arrays("actor"))}
    if algorithm != "bc":
        both = arrays("qf") or arrays("critic_1") + arrays("critic_2")
        critics = map(network, (both[: len(both) // 2], both[len(both) // 2 :]))
        found["critics"] = jax.tree.map(lambda *x: jnp.stack(x), *critics)
    if algorithm == "iql":
        found["value"] = network(arrays("vf"))
    found |= {f"target_{name}": x for name, x in found.items() if f"target_{name}" in state._fields}
    same = lambda new, old: jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, old)
    assert all(same(x, getattr(state, name)) for name, x in found.items())
    return state._replace(**found)


def train(args: argparse.Namespace, draws, seed: int) -> list[list]:
    """The rows of paired.csv of one seed."""
    import dataset as loader
    import jax
    import jax.numpy as jnp

    script = importlib.import_module(args.algorithm)
    given = script.Args(dataset=str(args.data), env=args.env, steps=STEPS, **PROGRAMS[args.algorithm][2])
    dataset = loader.load(given.dataset, given.env)
    data = script.prepare(given, dataset)
    places = {action.tobytes(): i for i, action in enumerate(np.asarray(data.rows.actions))}  # CORL's BC sorts rows
    assert len(places) == len(data.rows.actions) == len(draws["actions"]), "an action tells its row"
    rows = np.array([places[action.tobytes()] for action in draws["actions"]])[draws["rows"]]
    envs = [[loader.make_env(dataset) for _ in range(10)]]
    policy = jax.jit(jax.vmap(functools.partial(script.act, given)))
    state = begun(args.algorithm, script.init(given, data, jax.random.key(0)), draws)

    @jax.jit
    def updates(state, rows, noise, first):
        def one(state, x):
            rows, noise, step = x
            batch = jax.tree.map(lambda x: x[rows], data.rows)
            return script.update(given, state, batch, script.Noise(*noise), step)[0], None

        return jax.lax.scan(one, state, (rows, noise, first + jnp.arange(EVERY)))[0]

    lines = []
    for step in range(0, STEPS, EVERY):
        chunk = slice(step, step + EVERY)
        state = updates(state, rows[chunk], [draws[x][chunk] for x in draws if x == "noise"], step)
        returns, _ = script.evaluate(policy, jax.tree.map(lambda x: x[None], state), envs, 10)
        score = loader.normalized_score(dataset, returns).mean()
        lines.append([args.algorithm, args.data.stem, seed, step + EVERY, f"{returns.mean():.6f}", f"{score:.4f}"])
        print(*lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corl", type=Path, required=True)
    parser.add_argument("--python", help="of an environment as official.py needs it")
    parser.add_argument("--algorithm", choices=PROGRAMS, required=True)
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
        there = {(row["algorithm"], row["dataset"], int(row["seed"])) for row in csv.DictReader(file)}
    for seed in args.seeds:
        if (args.algorithm, args.data.stem, seed) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = os.path.join(folder, "draws.npz")
            command = [args.python, "-W", "ignore", __file__, "--corl", args.corl, "--data", args.data]
            command += ["--algorithm", args.algorithm, "--env", args.env, "--seeds", str(seed), "--draw", place]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with np.load(place) as file:
                lines = train(args, dict(file), seed)
        with open(TABLE, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    main()
