"""The claim of RAVL (arXiv:2402.12527): with perfect dynamics and short rollouts, an agent without pessimism
about values fails at the edge of reach, where a penalty for the model's uncertainty is zero; one with it does not.

    python benchmarks/claims/edge_of_reach.py toy      # five minutes on a core; with --seeds 0 one, as in a test
    python benchmarks/claims/edge_of_reach.py mujoco   # two hours there: algorithms/ravl.py in the simulator
    -> results/claims/edge_of_reach.md and .png, from results/claims/edge_of_reach/*.json; repeated, it goes on

Toy: a plane, s' = s + STRIDE a, |a| <= 1 in both coordinates, r = SCALE exp(-|s'|^2 / 2 WIDTH^2). The dataset is one
step with a random action from states of the square |s| <= BOX; rollouts have LENGTH steps. After LENGTH - 1 steps a
state is within |s| <= BOX + (LENGTH - 1) STRIDE, so that nothing beyond is ever updated: those are the states at the
edge of reach. The best policy walks towards 0 in both coordinates, so that V* is a sum, not an estimate. The agents are
algorithms/ravl.py and mopo.py, whose model is replaced by the plane itself:

    no pessimism        ravl.py with two critics and eta 0: MBPO's SAC
    dynamics penalty    mopo.py, whose u is exactly 0 for an ensemble of perfect members, at any weight
    oracle at the edge  no pessimism, but targets of steps over the edge are r + discount V*(s')
    RAVL                ravl.py with ten critics and eta 1
    other weights       no pessimism from initial weights as of mopo.py, PyTorch's, which are larger; the others begin
                        with those of ravl.py, mopo.py too

The paper's toy is in no source that was at hand: that it is a plane, that the dataset is a part of it, the agents and
the oracle follow its figures' captions; reward, sizes and lengths were chosen here.

MuJoCo: ravl.py with --simulator on a dataset collected here, so that the dynamics are perfect: RAVL, no pessimism, to
which a penalty for the model's uncertainty would add nothing, and that again in rollouts ten times as long, a tenth as
many, which move the edge of reach away.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "results/claims"
sys.path[:0] = [str(ROOT / "algorithms"), str(ROOT / "benchmarks")]

import mopo  # noqa: E402
import ravl  # noqa: E402
from dataset import load  # noqa: E402
from tables import fingerprint, pipes  # noqa: E402

# ------------------------------------------------------------------------------------------ the plane

BOX, STRIDE, LENGTH, WIDTH, SCALE = 2.0, 1.0, 3, 2.0, 0.2
INSIDE, REACH = BOX + (LENGTH - 1) * STRIDE, BOX + LENGTH * STRIDE
HORIZON, ROWS = 60, 2000  # steps of an episode, rows of the dataset
ORACLE = "oracle"  # in --env, which means nothing else here
SIZES = {
    "dataset": "plane",
    "hidden_dims": (64, 64),
    "batch_size": 128,
    "tau": 0.01,
    "rollout_starts": 1000,
    "rollout_interval": 200,
    "rollout_length": LENGTH,
} | dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), 1e-3)
SAC = {"num_critics": 2, "eta": 0.0}
AGENTS = {  # the script, its arguments, the script that draws the initial weights
    "no pessimism": (ravl, SAC, ravl),
    "dynamics penalty": (mopo, {"penalty_weight": 5.0}, ravl),
    "oracle at the edge": (ravl, SAC | {"env": ORACLE}, ravl),
    "RAVL": (ravl, {"num_critics": 10, "eta": 1.0}, ravl),
    "no pessimism, other weights": (ravl, SAC, mopo),
}


def reward(next_states):
    """[..., 2] -> [...]"""
    return SCALE * jnp.exp(-(next_states**2).sum(axis=-1) / (2 * WIDTH**2))


def edge(states):
    """Whether states [..., 2] can be reached by the last step of a rollout only."""
    return jnp.abs(states).max(axis=-1) > INSIDE + 1e-5


def best_path(states, steps: int):
    """The states after each of `steps` of the best policy, [steps, ..., 2]: no other is nearer in either coordinate."""
    left = jnp.abs(states) - STRIDE * jnp.arange(1, steps + 1).reshape(-1, *[1] * states.ndim)
    return jnp.maximum(left, 0)


def oracle(states, discount: float):
    """V*: sum_t discount^t r_t of the best policy, [..., 2] -> [...]; where it has arrived, a geometric series."""
    steps = 1 + int(np.ceil(2 * REACH / STRIDE))
    rewards = reward(best_path(states, steps))
    powers = (discount ** jnp.arange(steps)).reshape(-1, *[1] * (rewards.ndim - 1))
    return (powers * rewards).sum(axis=0) + discount**steps / (1 - discount) * rewards[-1]


def predict(args, dynamics, observations, actions):
    """The plane as an ensemble of two perfect members, in the place of a script's `predict`."""
    following = observations + STRIDE * actions
    rewards = reward(following)
    if args.env == ORACLE:  # `ended` drops the learned value of such a step
        rewards += jnp.where(edge(following), args.discount * oracle(following, args.discount), 0)
    means = jnp.concatenate([following, rewards[:, None]], axis=1)
    return jnp.stack([means] * 2), jnp.full((2, *means.shape), -jnp.inf)


def ended(args, next_observations):
    return edge(next_observations) & (args.env == ORACLE)


def dataset(script):
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(-BOX, BOX, (ROWS, 2)), rng.uniform(-1, 1, (ROWS, 2))
    following = states + STRIDE * actions
    columns = states, actions, reward(following), following, np.zeros(ROWS)
    rows = script.Rows(*(jnp.asarray(x, jnp.float32) for x in columns))
    perfect = script.Dynamics(script.Ensemble({}, jnp.zeros(3), jnp.zeros(3)), None, None, jnp.arange(2), jnp.zeros(2))
    return script.Data(rows, rows.observations, perfect)


def perfect(script) -> contextlib.AbstractContextManager:
    return mock.patch.multiple(script, predict=predict, ended=ended)


# ------------------------------------------------------------------------------------------ the toy


@dataclasses.dataclass(frozen=True)
class Toy:
    """The plane."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of every agent
    steps: int = 20_000  # gradient steps
    every: int = 1_000  # steps between measurements
    out: str = str(OUT)  # folder of table, plot and JSON
    agents: tuple[str, ...] = tuple(AGENTS)  # by name


def grid(side: int):
    """States of the whole reach, [side, side, 2], x along the second axis."""
    line = jnp.linspace(-REACH, REACH, side)
    return jnp.stack(jnp.meshgrid(line, line), axis=-1)


def path(script, args, state, starts):
    """States of the policy's mode, from `starts` [..., 2]: [HORIZON, ..., 2]."""

    def step(states, _):
        states = states + STRIDE * script.act(args, state, states)
        return states, states

    return jax.lax.scan(step, starts, None, HORIZON)[1]


def measure(script, args, state, starts, side: int = 31) -> dict:
    """The policy's return, of the best policy's 1; the agent's values, min_i Q_i(s, mode), on the grid, and their mean
    over its states within reach and at the edge; of these, too, mean_i Q_i - min_i Q_i."""
    states = grid(side)
    values = script.q(args, state.critics, states, script.act(args, state, states))
    gap, values, outside = values.mean(axis=0) - values.min(axis=0), values.min(axis=0), edge(states)
    mean = lambda x, where: jnp.where(where, x, 0).sum() / where.sum()
    total = lambda states: reward(states).sum(axis=0).mean()
    return {
        "return": total(path(script, args, state, starts)) / total(best_path(starts, HORIZON)),
        "values": values,
        "inside": mean(values, ~outside),
        "edge": mean(values, outside),
        "gap_inside": mean(gap, ~outside),
        "gap_edge": mean(gap, outside),
    }


def settings(args: Toy, name: str) -> dict:
    world = {"box": BOX, "stride": STRIDE, "length": LENGTH, "width": WIDTH, "scale": SCALE, "rows": ROWS}
    script, flags, weights = AGENTS[name]
    run = {"script": script.__name__, "weights": weights.__name__, "flags": SIZES | flags}
    run |= {"seeds": args.seeds, "steps": args.steps}
    return json.loads(json.dumps({**world, **run, "every": args.every}))


def code(*names: str, plane: bool = True) -> list[str]:
    """Hashes of what decides the numbers of these scripts, and of the plane or the simulator and what is measured."""
    scripts = [fingerprint(str(ROOT / f"algorithms/{name}.py"), {}) for name in names]
    own = (reward, edge, best_path, oracle, predict, ended, dataset, grid, path, measure, begin) if plane else (earned,)
    return [*scripts, hashlib.sha256("".join(map(inspect.getsource, own)).encode()).hexdigest()]


def begin(name: str, args, data, key):
    """New networks, whoever draws them."""
    script, _, weights = AGENTS[name]
    state = script.init(args, data, key)
    if script is weights:
        return state
    drawn = weights.init(weights.Args(**SIZES, **(SAC if weights is ravl else {})), data, key)
    return state._replace(actor=drawn.actor, critics=drawn.critics, target_critics=drawn.critics)


def learn(args: Toy, name: str) -> dict:
    """Trains one agent: settings, and measurements [measurements, seeds]; of the values the last map."""
    script, flags, _ = AGENTS[name]
    own = script.Args(**SIZES, **flags)  # with the published length, of which mopo.py's learning rate takes note
    data = dataset(script)
    keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for seed in args.seeds]))
    state = jax.jit(jax.vmap(functools.partial(begin, name, own), in_axes=(None, 0)))(data, keys[:, 0])
    look = jax.jit(jax.vmap(lambda state: measure(script, own, state, data.starts[:200])))
    started, log, steps = time.perf_counter(), [look(state)], range(args.every, args.steps + 1, args.every)
    with perfect(script):
        for step in steps:
            state, _ = script.train(own, data, state, keys[:, 1], step - args.every, args.every)
            log.append(look(state))
    short = lambda x, digits: np.round(np.asarray(x, np.float64), digits).tolist()
    curves = {k: short([x[k] for x in log], 4) for k in log[0] if k != "values"}
    corners = jnp.array([[x, y] for x in (-BOX, BOX) for y in (-BOX, BOX)]) * 0.9
    paths = jax.jit(jax.vmap(lambda state: path(script, own, state, corners)))(state)
    return {
        "settings": settings(args, name),
        "code": code(script.__name__, AGENTS[name][2].__name__),
        "seconds": round(time.perf_counter() - started, 1),
        "discount": own.discount,
        "steps": [0, *steps],
        **curves,
        "map": short(log[-1]["values"], 2),
        "paths": short(paths, 2),  # [seeds, HORIZON, starts, 2]
    }


def toy(args: Toy) -> None:
    folder = Path(args.out, "edge_of_reach")
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.agents:
        file = folder / f"toy-{slug(name)}.json"
        if file.exists():
            before = json.loads(file.read_text())
            if before["settings"] == settings(args, name) and not stale(before):
                print(f"{name}: done before")
                continue
        content = learn(args, name)
        file.write_text(json.dumps(content) + "\n")
        print(
            f"{name}: return {np.mean(content['return'][-1]):.2f} of the best, {content['seconds']:.0f} s", flush=True
        )
    report(Path(args.out))


# ------------------------------------------------------------------------------------------ the simulator


@dataclasses.dataclass(frozen=True)
class Mujoco:
    """The true dynamics of one task."""

    dataset: str = "solo/hopper-v5/medium-v0"  # whose states rollouts begin in
    simulator: str = "Hopper-v5"  # Gymnasium id
    seeds: tuple[int, ...] = (0, 1, 2)  # of every agent, in one process
    steps: int = 40_000  # gradient steps
    eval_every: int = 4_000  # steps between evaluations
    agents: tuple[str, ...] = ("RAVL", "no pessimism", "no pessimism, long rollouts")  # by name
    out: str = str(OUT)  # folder of table, plot and JSON
    runs: str = "results/runs"  # folder of the runs, below that of the repository
    jobs: int = 1  # agents that train at once, each on a core of its own


STARTS = ("--rollout-starts", "2000")  # every 1,000 steps, five steps each: a simulator's step takes 50 us
TWO = ("--num-critics", "2", "--eta", "0")
SIMULATED = {
    "RAVL": STARTS,
    "no pessimism": (*STARTS, *TWO),
    "no pessimism, long rollouts": ("--rollout-starts", "200", "--rollout-length", "50", *TWO),
}


def command(args: Mujoco, name: str) -> list[str]:
    lengths = ("--steps", args.steps, "--eval-every", args.eval_every)
    flags = ("--dataset", args.dataset, "--simulator", args.simulator, "--seeds", *args.seeds, *lengths)
    script = [sys.executable, "algorithms/ravl.py"]
    return [*script, *map(str, flags), "--out", args.runs, *SIMULATED[name]]


def simulated(folder: Path) -> dict:
    """Steps [evaluations], returns, scores and values [seeds, evaluations] of a finished run."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed_*.json"))]
    number = lambda x: np.nan if x is None else x  # JSON has no NaN
    every = lambda get: [[number(get(x)) for x in run["evaluations"]] for run in runs]
    return {
        "seeds": [run["seed"] for run in runs],
        "dataset": runs[0]["dataset"]["name"],
        "simulator": runs[0]["arguments"]["simulator"],
        "rolled_out": runs[0]["arguments"]["rollout_starts"] * runs[0]["arguments"]["rollout_length"],
        "code": [runs[0]["run"]["script"], *code(plane=False)],
        "steps": every(lambda x: x["step"])[0],
        "returns": every(lambda x: float(np.mean(x["returns"]))),
        "q": every(lambda x: x["metrics"]["q"]),
        "q_gap": every(lambda x: x["metrics"]["q_gap"]),
        "model_length": every(lambda x: x["metrics"]["model_length"]),
        "seconds": runs[0]["evaluations"][-1]["wall_seconds"],
    }


def earned(folder: Path, states: int = 200, steps: int = 500) -> dict:
    """Of a run's checkpoint: the mean of min_i Q_i(s, mode) over states of the dataset, and of what the mode earns from
    them in the simulator, discounted, [seeds] each."""
    run = json.loads(next(folder.glob("seed_*.json")).read_text())
    flags = {k: tuple(v) if isinstance(v, list) else v for k, v in run["arguments"].items()}
    args = ravl.Args(**flags)
    rows = load(args.dataset, args.env).observations
    starts = rows[np.random.default_rng(0).choice(len(rows), states, replace=False)]
    trained = flax.serialization.msgpack_restore((folder / "checkpoint.msgpack").read_bytes())["state"]
    act = jax.jit(lambda actor, x: ravl.act(args, SimpleNamespace(actor=actor), x))
    told = {"value": [], "earned": []}
    for i in range(len(args.seeds)):
        actor, critics = (jax.tree.map(lambda x, i=i: x[i], trained[name]) for name in ("actor", "critics"))
        values = ravl.q(args, critics, starts, act(actor, starts)).min(axis=0)
        x, going, total = starts.copy(), np.ones(states, bool), np.zeros(states)
        for step in range(steps):
            x[going], rewards, ends = ravl.simulate(args.simulator, x[going], np.asarray(act(actor, x))[going])
            total[going] += args.discount**step * rewards
            going[going] = ~ends & ~np.isnan(rewards)
        told["value"].append(round(float(values.mean()), 2))
        told["earned"].append(round(float(np.nanmean(total)), 2))
    return told


def mujoco(args: Mujoco) -> None:
    cores = sorted(os.sched_getaffinity(0))
    folder = Path(args.out, "edge_of_reach")
    folder.mkdir(parents=True, exist_ok=True)

    def start(i: int, name: str) -> subprocess.Popen:  # relative paths, so that no JSON names this machine's folders
        process = subprocess.Popen(command(args, name), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if args.jobs > 1:
            os.sched_setaffinity(process.pid, {cores[i % len(cores)]})
        return process

    waiting = list(enumerate(args.agents))
    while waiting:
        now, waiting = waiting[: args.jobs], waiting[args.jobs :]
        for name, process in [(name, start(i, name)) for i, name in now]:
            printed = process.communicate()[0]
            if process.returncode:
                sys.exit(f"error: {name} ended with exit code {process.returncode}; the same command goes on.")
            results = ROOT / printed.split("results: ")[1].splitlines()[0]
            content = simulated(results)
            file = folder / f"mujoco-{content['dataset']}-{slug(name)}.json"
            if (results / "checkpoint.msgpack").exists():
                content |= earned(results)
            elif file.exists():  # a run that was finished elsewhere: its checkpoint is not in the repository
                content = json.loads(file.read_text()) | content
            file.write_text(json.dumps(content) + "\n")
    report(Path(args.out))


# ------------------------------------------------------------------------------------------ table and plot


CONDITIONS = {"box", "stride", "length", "width", "scale", "rows", "seeds", "steps", "every", "dataset", "simulator"}
CONDITIONS |= {"rolled_out"}


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()


def stale(content: dict) -> bool:
    """Whether a script has changed since."""
    if "settings" not in content:
        return content.get("code") != code("ravl", plane=False)
    return content.get("code") != code(content["settings"]["script"], content["settings"]["weights"])


def found(out: Path, part: str, names) -> dict[str, dict]:
    """What is finished, by name, with a dagger where a script has changed since; those alone that ran as the first."""
    files = {name: out / "edge_of_reach" / f"{part}-{slug(name)}.json" for name in names}
    contents = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    conditions = lambda x: {k: v for k, v in x.get("settings", x).items() if k in CONDITIONS}
    alike = {name: x for name, x in contents.items() if conditions(x) == conditions(next(iter(contents.values())))}
    for name in contents.keys() - alike.keys():
        print(f"{name} ran otherwise than {next(iter(contents))}, and is left out.")
    return {name + " †" * stale(x): x for name, x in alike.items()}


def spread(values) -> str:
    values = np.asarray(values)
    digits = 2 if abs(values.mean()) < 10 else 1
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


def truth(discount: float, side: int = 31) -> tuple[float, float, float]:
    """V* in the mean within reach and at the edge, and at most."""
    values, outside = np.asarray(oracle(grid(side), discount)), np.asarray(edge(grid(side)))
    return values[~outside].mean(), values[outside].mean(), values.max()


def toy_table(agents: dict[str, dict]) -> str:
    own = next(iter(agents.values()))
    inside, outside, most = truth(own["discount"])
    head = ["agent", "return, of the best policy's 1", "seeds that end below 0.5", "largest on the way"]
    head += ["value within reach", "value at the edge", "gap within reach", "gap at the edge"]
    lines = [
        [name, spread(x["return"][-1]), f"{sum(np.array(x['return'][-1]) < 0.5)} of {len(x['return'][-1])}"]
        + [spread(np.max(x["return"], axis=0))]
        + [spread(x[k][-1]) for k in ("inside", "edge", "gap_inside", "gap_edge")]
        for name, x in agents.items()
    ]
    lines.append(["best policy", "1", "", "", f"{inside:.2f}", f"{outside:.2f}", "", ""])
    return (
        f"## On a plane\n\n{own['steps'][-1]:,} updates, {len(own['settings']['seeds'])} seeds: mean ± standard "
        f"deviation, at the end. A value is min_i Q_i(s, mode of the policy); none can truly be above {most:.1f}. A "
        f"gap is mean_i Q_i - min_i Q_i.\n\n{pipes([head, *lines])}"
    )


def mujoco_table(agents: dict[str, dict]) -> str:
    own = next(iter(agents.values()))
    head = ["agent", "return at the end", "largest return", "mean Q of a batch at the end", "largest", "gap at the end"]
    head += ["value of the data's states", "what the policy earns from them"]
    last = lambda x, k: spread([y[-1] for y in x[k]])
    most = lambda x, k: spread(np.max(x[k], axis=1))
    lines = [
        [name, last(x, "returns"), most(x, "returns"), last(x, "q"), most(x, "q"), last(x, "q_gap")]
        + [spread(x[k]) if k in x else "" for k in ("value", "earned")]
        for name, x in agents.items()
    ]
    seeds = f"{len(own['seeds'])} seed{'s' * (len(own['seeds']) > 1)}"
    return f"Rollouts from {own['dataset']}, {own['steps'][-1]:,} updates, {seeds}.\n\n{pipes([head, *lines])}\n"


def lines(axis, steps, values, color, label):
    """Thin lines of seeds, a thick one of their mean; values [seeds, steps]."""
    axis.plot(steps, np.mean(values, axis=0), color=color, linewidth=2, label=label)
    axis.plot(steps, np.transpose(values), color=color, linewidth=0.6, alpha=0.4)


def toy_plot(agents: dict[str, dict], file: Path) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(agents), figsize=(3.2 * len(agents), 6.4), layout="constrained", squeeze=False)
    discount = next(iter(agents.values()))["discount"]
    most = truth(discount)[2]
    norm = matplotlib.colors.LogNorm(most / 10, 10 * most)
    extent = (-REACH, REACH) * 2
    for axis, (name, x) in zip(axes[0], agents.items(), strict=True):
        image = axis.imshow(x["map"][0], origin="lower", extent=extent, norm=norm, cmap="magma")
        for size, style in ((BOX, ":"), (INSIDE, "--")):
            axis.add_patch(plt.Rectangle((-size, -size), 2 * size, 2 * size, fill=False, color="gray", linestyle=style))
        for states in np.swapaxes(x["paths"][0], 0, 1):
            axis.plot(*states.T, color="cyan", linewidth=1)
        axis.set(title=name, xlim=extent[:2], ylim=extent[:2])
    axes[0][0].set_ylabel("values, seed 0; dotted: data;\nbeyond dashed: edge of reach")
    figure.colorbar(image, ax=axes[0], label="min Q", extend="both")
    plots = ("return", "return, of the best"), ("inside", "value within reach"), ("edge", "value at the edge")
    for axis, (key, label) in zip(axes[1], plots, strict=False):
        for i, (name, x) in enumerate(agents.items()):
            lines(axis, np.array(x["steps"]) / 1000, np.transpose(x[key]), f"C{i}", name)
        axis.set(xlabel="thousand updates", ylabel=label)
        if key != "return":
            axis.set_yscale("symlog", linthresh=most)
    for axis, value in zip(axes[1][1:], truth(discount)[:2], strict=False):
        axis.axhline(value, color="black", linestyle=":", label="V*")
    for axis in axes[1][3:]:
        axis.axis("off")
    if len(agents) > 3:
        axes[1][3].legend(*axes[1][1].get_legend_handles_labels(), loc="center")
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


def mujoco_plot(worlds: dict[str, dict[str, dict]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(worlds), 2, figsize=(8, 3.4 * len(worlds)), layout="constrained", squeeze=False)
    for row, (world, agents) in zip(axes, worlds.items(), strict=True):
        for axis, key, label in zip(row, ("returns", "q"), ("return", "mean Q of a batch"), strict=True):
            for name, x in agents.items():
                color = f"C{[*SIMULATED].index(name.removesuffix(' †'))}"
                lines(axis, np.array(x["steps"]) / 1000, x[key], color, name)
            axis.set(xlabel="thousand updates", ylabel=label, title=world)
        row[0].legend()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


def report(out: Path) -> None:
    """Table and plots of all that is finished."""
    import matplotlib

    matplotlib.use("agg")
    text = (
        "# RAVL's claim\n\nMade by `python benchmarks/claims/edge_of_reach.py`, which says what is compared. What the "
        "numbers say stands in [results/](../README.md). †: a script was edited since.\n\n"
    )
    if agents := found(out, "toy", AGENTS):
        text += "![values and curves](edge_of_reach.png)\n\n" + toy_table(agents)
        toy_plot(agents, out / "edge_of_reach.png")
    files = sorted((out / "edge_of_reach").glob("mujoco-*.json"))
    names = dict.fromkeys(json.loads(file.read_text())["dataset"] for file in files)
    if worlds := {name: x for name in names if (x := found(out, f"mujoco-{name}", SIMULATED))}:
        text += "\n## In the simulator itself\n\nA value is min_i Q_i(s, mode of the policy), of 200 states of the "
        text += "dataset; what the policy earns is its mode's discounted return, over 500 steps of the simulator.\n\n"
        text += "![returns and values](edge_of_reach-mujoco.png)\n"
        text += "".join(f"\n{mujoco_table(agents)}" for agents in worlds.values())
        mujoco_plot(worlds, out / "edge_of_reach-mujoco.png")
    (out / "edge_of_reach.md").write_text(text)
    print(text)


if __name__ == "__main__":
    import tyro

    args = tyro.extras.subcommand_cli_from_dict({"toy": Toy, "mujoco": Mujoco}, description=__doc__)
    (toy if isinstance(args, Toy) else mujoco)(args)
