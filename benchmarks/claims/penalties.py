"""How each uncertainty penalty of MOPO correlates with the true error of the model, as Lu, Ball, Parker-Holder, Osborne
and Roberts ask in "Revisiting Design Choices in Offline Model-Based Reinforcement Learning" (arXiv:2110.04135).

    python benchmarks/claims/penalties.py                                     # minutes on a core
    python benchmarks/claims/penalties.py --rows 200000 --epochs 50           # nearer to a model as it is used
    -> results/claims/penalties.md and .png, from results/claims/penalties/*.json; what is finished is not repeated

The model of algorithms/mopo.py learns rows of a dataset. Its penalties are then held against its errors on

    data      rows of the same dataset that it has not seen
    rollout   what it imagines from states of the dataset, where a policy of benchmarks/policies acts, --length
              steps on; every step is repeated by the simulator, set to the imagined state (ravl.py's `simulate`)

    error = |mean_i mu_i(s, a) - (s', r)|, of the next observation and the reward in their own units, as penalties are

Spearman's correlation asks whether a penalty ranks steps as the error does, which is all that a threshold needs;
Pearson's whether it is a multiple of the error, which a penalty on the reward should be. The protocol follows a
description of the paper's (its code is not public): the policy, the error and all sizes were chosen here.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from scipy import stats

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "algorithms"), str(ROOT / "benchmarks")]

import collect_locomotion  # noqa: E402
import mopo  # noqa: E402
import ravl  # noqa: E402
from tables import fingerprint, pipes  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Args:
    dataset: str = "solo/hopper-v5/medium-replay-v0"
    simulator: str = "Hopper-v5"  # Gymnasium id
    policy: str = "benchmarks/policies/hopper-v5-medium.npz"  # who acts in rollouts
    rows: int = 20_000  # rows of the dataset that the model learns, at random
    epochs: int | None = 20  # of the model, at most; none: until it improves no more
    seed: int = 0  # of rows, model and rollouts
    length: int = 20  # steps of a rollout
    starts: int = 2_000  # rollouts
    steps: int = 5_000  # compared, at random, of the data and of the rollouts each
    out: str = str(ROOT / "results/claims")  # folder of table, plot and JSON


def settings(args: Args) -> dict:
    aside = ("out",)
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(args).items() if k not in aside}))


def code() -> list[str]:
    """Hashes of what decides the numbers: model and penalties, simulator, protocol."""
    own = (errors, correlations, imagined, rollouts, compare, measure)
    protocol = hashlib.sha256("".join(map(inspect.getsource, own)).encode()).hexdigest()
    return [fingerprint(str(ROOT / f"algorithms/{name}.py"), {}) for name in ("mopo", "ravl")] + [protocol]


# ------------------------------------------------------------------------------------------ measuring


def penalties(means, log_vars, samples, members) -> dict:
    """All of them, [n] each."""
    return {name: penalty(means, log_vars, samples, members) for name, penalty in mopo.PENALTIES.items()}


def errors(means, next_observations, rewards):
    """|mean_i mu_i - (s', r)| [n], of means [members, n, obs + 1]."""
    truth = np.concatenate([next_observations, np.asarray(rewards)[:, None]], axis=1)
    return np.linalg.norm(np.asarray(means).mean(axis=0) - truth, axis=1)


def correlations(u, error) -> dict[str, float | None]:
    """None where u is constant, or not always a number."""
    u, error = np.asarray(u, np.float64), np.asarray(error, np.float64)
    if not np.isfinite(u).all() or np.ptp(u) == 0:
        return {"spearman": None, "pearson": None}
    return {"spearman": float(stats.spearmanr(u, error)[0]), "pearson": float(stats.pearsonr(u, error)[0])}


@functools.partial(jax.jit, static_argnums=0)
def imagined(args: mopo.Args, dynamics, observations, actions, key):
    """Predictions of all members, and the sample of a random elite, which u may ask for."""
    member_key, noise_key = jax.random.split(key)
    means, log_vars = mopo.predict(args, dynamics, observations, actions)
    members = dynamics.elites[jax.random.randint(member_key, (len(observations),), 0, len(dynamics.elites))]
    samples = mopo.sampled(means, log_vars, members, jax.random.normal(noise_key, means.shape[1:]))
    return means, samples, penalties(means, log_vars, samples, members), mopo.ended(args, samples[:, :-1])


def rollouts(args: mopo.Args, dynamics, policy, starts, length: int, seed: int):
    """Observations and actions [n, ...] of all steps before an end; `policy` maps observations and normal noise."""
    rng, observations, alive, steps = np.random.default_rng(seed), np.float32(starts), np.ones(len(starts), bool), []
    dim = dynamics.mean.shape[-1] - observations.shape[-1]
    for key in jax.random.split(jax.random.key(seed), length):
        actions = np.float32(policy(observations, rng.normal(size=(len(observations), dim))))
        steps.append((observations[alive], actions[alive]))
        _, samples, _, ends = imagined(args, dynamics, observations, actions, key)
        observations = np.asarray(samples[:, :-1])
        alive = alive & ~np.asarray(ends) & np.isfinite(observations).all(axis=1)
    return tuple(np.concatenate(x) for x in zip(*steps, strict=True))


def compare(args: mopo.Args, dynamics, observations, actions, next_observations, rewards, seed: int) -> dict:
    """Correlations, and up to 400 steps' errors and penalties for the plot; steps whose truth is no number are left
    out."""
    means, _, u, _ = imagined(args, dynamics, observations, actions, jax.random.key(seed))
    error = errors(means, next_observations, rewards)
    valid = np.isfinite(error)
    u, error = {k: np.asarray(x)[valid] for k, x in u.items()}, error[valid]
    return {
        "steps": len(error),
        "error": [float(x) for x in np.quantile(error, (0.5, 0.95))],
        "correlations": {k: correlations(x, error) for k, x in u.items()},
        "shown": {k: [float(f"{y:.4g}") for y in x[:400]] for k, x in {"error": error, **u}.items()},
    }


def measure(args: Args) -> dict:
    import dataset as loader

    data, started = loader.load(args.dataset, None), time.perf_counter()
    own = mopo.Args(dataset=args.dataset, model_epochs=args.epochs, model_seed=args.seed)
    order = np.random.default_rng(args.seed).permutation(np.flatnonzero(mopo.true_rows(data)))
    seen, unseen = order[: args.rows], order[args.rows :][: args.steps]
    columns = (data.observations, data.actions, data.rewards, data.next_observations)
    epochs = []
    dynamics = mopo.fit_dynamics(own, *(x[seen] for x in columns), lambda fit: epochs.append(fit.stale))
    observations, actions, rewards, following = (x[unseen] for x in columns)
    on_data = compare(own, dynamics, observations, actions, following, rewards, args.seed)

    policies, _ = collect_locomotion.read_policies(ROOT / args.policy, args.simulator)
    policy = functools.partial(collect_locomotion.act, policies[-1])
    rng = np.random.default_rng(args.seed)
    starts = data.observations[rng.choice(seen, args.starts)]
    states, actions = rollouts(own, dynamics, policy, starts, args.length, args.seed)
    some = rng.permutation(len(states))[: args.steps]
    states, actions = states[some], actions[some]
    following, rewards, _ = ravl.simulate(args.simulator, states, actions)
    return {
        "settings": settings(args),
        "code": code(),
        "seconds": round(time.perf_counter() - started, 1),
        "epochs": len(epochs),
        "model_error": float(dynamics.errors[dynamics.elites].mean()),
        "data": on_data,
        "rollout": compare(own, dynamics, states, actions, following, rewards, args.seed),
    }


# ------------------------------------------------------------------------------------------ table and plot


def table(content: dict) -> str:
    number = lambda x: "none" if x is None else f"{x:.2f}"
    head = ["u", "Spearman, data", "Pearson, data", "Spearman, rollout", "Pearson, rollout"]
    kinds = [(part, kind) for part in ("data", "rollout") for kind in ("spearman", "pearson")]
    order = sorted(mopo.PENALTIES, key=lambda u: -(content["rollout"]["correlations"][u]["spearman"] or -1))
    lines = [[u, *(number(content[part]["correlations"][u][kind]) for part, kind in kinds)] for u in order]
    own, stale = content["settings"], " †" * (content.get("code") != code())
    error = {part: "{:.3f} ({:.3f})".format(*content[part]["error"]) for part in ("data", "rollout")}
    return (
        f"## {own['dataset']}, {own['rows']:,} rows, {content['epochs']} epochs{stale}\n\nHold-out error of the elites "
        f"{content['model_error']:.4f}. {content['data']['steps']:,} unseen steps of the data, with a median error (95 "
        f"% quantile) of {error['data']}, and {content['rollout']['steps']:,} of rollouts of {own['length']} steps, "
        f"with {error['rollout']}. One model and seed {own['seed']}: no spread.\n\n{pipes([head, *lines])}\n"
    )


def plot(content: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained")
    for axis, u in zip(axes.flat, mopo.PENALTIES, strict=False):
        for i, part in enumerate(("data", "rollout")):
            shown = content[part]["shown"]
            axis.loglog(shown["error"], shown[u], ".", color=f"C{i}", markersize=3, alpha=0.5, label=part)
        axis.set(title=u, xlabel="error", ylabel="u")
    axes[0, 0].legend()
    for i, part in enumerate(("data", "rollout")):
        heights = [content[part]["correlations"][u]["spearman"] or 0 for u in mopo.PENALTIES]
        axes[1, 3].barh(np.arange(len(heights)) + 0.4 * i, heights, height=0.4, color=f"C{i}")
    axes[1, 3].set_yticks(np.arange(len(heights)) + 0.2, list(mopo.PENALTIES))
    axes[1, 3].set(xlabel="Spearman's correlation", xlim=(-1, 1))
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def report(out: Path) -> None:
    """One table of all that was measured; the plot is of the largest number of rows, then of epochs."""
    contents = [json.loads(file.read_text()) for file in (out / "penalties").glob("*.json")]
    contents.sort(key=lambda x: (x["settings"]["rows"], x["epochs"], x["settings"]["dataset"]), reverse=True)
    text = (
        "# Penalties and the model's error\n\nMade by `python benchmarks/claims/penalties.py`, which says what is "
        "compared. †: a script was edited since.\n\n![penalties over errors](penalties.png)\n\n"
    )
    text += "".join(map(table, contents))
    plot(contents[0], out / "penalties.png")
    (out / "penalties.md").write_text(text.rstrip() + "\n")
    print(text)


def main(args: Args) -> None:
    digest = hashlib.sha256(json.dumps(settings(args)).encode()).hexdigest()[:8]
    file = Path(args.out, "penalties", f"{args.dataset.replace('/', '-')}-{digest}.json")
    if not file.exists() or json.loads(file.read_text()).get("code") != code():
        content = measure(args)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content) + "\n")
    report(Path(args.out))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
