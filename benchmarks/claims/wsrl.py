"""The claim of WSRL (arXiv:2412.07762): without offline data, plain fine-tuning drops at the switch to the environment;
warmed up it does not, and with a warm-up of no length it does again.

    python benchmarks/claims/wsrl.py   # -> results/claims/wsrl.md, wsrl.png; a second time it goes on where it stopped

One pre-training (algorithms/wsrl.py, CQL with an ensemble), from which every variant begins with the same networks and
an empty buffer:

    warm-up 5,000        WSRL as published: the frozen policy acts 5,000 steps, then many updates a step
    no warm-up           the same with a warm-up of no length: the official code still waits for a batch of 1,024 steps
    from the first step  the same, and does not wait: the first updates see little but copies of a few steps
    plain                the pre-training's own update goes on, one a step, on what happens online alone
    plain, data kept     the same with half of every batch from the dataset

A variant drops if its mean score over the first `--horizon` steps with updates lies below that at the switch; the table
has the difference, in the mean and of every seed, from five seeds on with its 95 % interval (t), the lowest evaluation
of that stretch, which is low by chance too, and the last. At the end variants differ in how much they have learned: the
table has the number of steps with updates beside the score. The regret is of all online episodes, those of the warm-up
too, which nothing is learned from at first. Smaller than the paper (250,000 steps before the switch, 300,000 and more
after it): what holds here is said about these lengths and this dataset.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from tables import fail, interval, pipes  # noqa: E402

VARIANTS = {
    "warm-up 5,000": ("--warmup", "5000"),
    "no warm-up": ("--warmup", "1024"),
    "from the first step": ("--warmup", "0"),
    "plain": ("--warmup", "256", "--keep-gap"),  # here, too, the official code waits for the online part of a batch
    "plain, data kept": ("--warmup", "128", "--keep-gap", "--offline-ratio", "0.5"),
}


@dataclasses.dataclass(frozen=True)
class Args:
    dataset: str = "solo/hopper-v5/medium-v0"  # what is pre-trained on
    seeds: tuple[int, ...] = (0, 1, 2)  # of every variant
    steps: int = 20_000  # gradient steps before the switch
    online_steps: int = 8_000  # environment steps after it
    eval_every: int = 1_000  # steps between evaluations after the switch
    horizon: int = 3_000  # first updates in which a drop is looked for
    variants: tuple[str, ...] = ("warm-up 5,000", "no warm-up", "plain")  # of the above, by name
    jobs: int = 1  # variants that run at once


def command(args: Args, *flags: str) -> list[str]:
    seeds = map(str, args.seeds)
    script = [sys.executable, "algorithms/wsrl.py", "--dataset", args.dataset, "--seeds", *seeds]
    return [*script, "--eval-episodes", "10", *flags]


def pretraining(args: Args) -> list[str]:
    return command(args, "--steps", str(args.steps), "--online-steps", "0", "--eval-every", "2500")


def variant(args: Args, checkpoint: Path, flags: tuple[str, ...]) -> list[str]:
    lengths = ("--steps", "0", "--online-steps", str(args.online_steps), "--eval-every", str(args.eval_every))
    return command(args, "--pretrained", str(checkpoint), *lengths, *flags)


def run(arguments: list[str], core: int | None = None) -> Path:
    """Runs a script, on one core if one is given, and returns the folder of its results, below that of the repository,
    so that no JSON names this machine's folders. What is finished is not repeated, what was interrupted goes on."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    printed = process.communicate()[0]
    if process.returncode:
        sys.exit(f"error: {' '.join(arguments)} ended with exit code {process.returncode}; the same command goes on.")
    return Path(printed.split("results: ")[1].splitlines()[0])


def curves(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [evaluations], scores [seeds, evaluations] and regrets [seeds] of a finished run."""
    runs = [json.loads(path.read_text()) for path in sorted((ROOT / folder).glob("seed_*.json"))]
    steps = np.array([x["step"] for x in runs[0]["evaluations"]])
    return (
        steps,
        np.array([[x["score"] for x in r["evaluations"]] for r in runs]),
        np.array([r["regret"] for r in runs], float),
    )


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def asked(args: Args) -> str:
    """The command of this table."""
    words = ["python", "benchmarks/claims/wsrl.py"]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name != "jobs" and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def table(args: Args, before: tuple, after: dict[str, tuple]) -> str:
    rows = [["variant", "first update at", "at the switch", "mean in the horizon", "change", "lowest", "last of it"]]
    rows[0] += ["end of the run", "regret"]
    for name, (steps, scores, regrets) in after.items():
        start = int(VARIANTS[name][1])  # updates begin after the warm-up
        early = scores[:, (steps > start) & (steps <= start + args.horizon)]
        end = f"{spread(scores[:, -1])} ({args.online_steps - start:,})"
        change = early.mean(axis=1) - scores[:, 0]
        fall = f"{change.mean():+.1f} ({', '.join(f'{x:+.0f}' for x in change)})"
        if len(change) >= 5:
            fall += " [{:.1f}, {:.1f}]".format(*interval(change))
        cells = [spread(scores[:, 0]), spread(early.mean(axis=1)), fall, spread(early.min(axis=1))]
        rows.append([name, f"{start:,}", *cells, spread(early[:, -1]), end, f"{regrets.mean():.2f}"])
    head = (
        f"# WSRL's claim, on {args.dataset}\n\nMade by `{asked(args)}`, which says what a row is. "
        f"{before[0][-1]:,} gradient steps before the switch, {args.online_steps:,} environment steps after it, "
        f"{len(before[1])} seeds: mean ± standard deviation of the normalised score; the horizon is the first "
        f"{args.horizon:,} steps with updates; in brackets, after how many of them the run ends.\n\n"
        "![curves](wsrl.png)\n\n"
    )
    return head + pipes(rows)


def plot(before: tuple, after: dict[str, tuple], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    switch = before[0][-1]
    axis.plot(before[0] / 1000, before[1].mean(axis=0), color="black", linewidth=2, label="pre-training")
    axis.plot(before[0] / 1000, before[1].T, color="black", linewidth=0.7, alpha=0.3)
    for i, (name, (steps, scores, _)) in enumerate(after.items()):
        axis.plot((switch + steps) / 1000, scores.mean(axis=0), color=f"C{i}", linewidth=2, label=name)
        axis.plot((switch + steps) / 1000, scores.T, color=f"C{i}", linewidth=0.7, alpha=0.3)
    axis.axvline(switch / 1000, color="gray", linestyle=":")
    axis.set(xlabel="thousand steps, online after the dotted line", ylabel="normalised score")
    axis.legend()
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(args: Args) -> None:
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        fail(f"There is no variant '{unknown[0]}'; there are {', '.join(VARIANTS)}.")
    late = max(int(VARIANTS[name][1]) for name in args.variants)
    if args.eval_every > args.horizon or args.online_steps < late + args.horizon:
        fail(f"The {args.horizon} steps after the longest warm-up, {late}, need an evaluation, and must be run.")
    parent = run(pretraining(args))
    commands = [variant(args, parent / "checkpoint.msgpack", VARIANTS[name]) for name in args.variants]
    cores = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(args.jobs) as pool:  # a run a core, if several run at once
        places = [cores[i % len(cores)] if args.jobs > 1 else None for i in range(len(commands))]
        folders = list(pool.map(run, commands, places))
    before, after = curves(parent), dict(zip(args.variants, map(curves, folders), strict=True))
    out = ROOT / "results/claims"
    out.mkdir(parents=True, exist_ok=True)
    (out / "wsrl.md").write_text(table(args, before, after))
    plot(before, after, out / "wsrl.png")
    print(table(args, before, after))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
