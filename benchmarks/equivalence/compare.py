"""Is our score the official code's score? Curves of both on the same data, budget and evaluation, and the difference.

    python benchmarks/equivalence/compare.py   # -> results/tables/equivalence.*, results/figures/equivalence.png

corl.csv holds every evaluation of CORL's own programs (commit eeeeef2) on data rolled out from public policies, fql.csv
of FQL's (719d044): ten episodes from reset(seed=1000..1009), mode action, or a draw where FQL draws; see README.md
beside them. Ours are the finished runs below results/runs/local of the same dataset and evaluations, with the flags
that FLAGS names and no other.

The margin, +-5 normalised points at the end and for the mean over all evaluations (the area under the curve), was set
before the first run of ours: the scores are equivalent if the 95 % interval of the difference of the means over seeds
lies within it. That the interval is Welch's was decided while our runs were under way, before any were compared:
nothing but the episodes' starts pairs seed k of one code with seed k of the other. Where the official code has a single
seed, its spread is taken to be ours, and the interval says where one more seed of ours would lie. An interval that
holds 0 but reaches beyond +-5 says that there are too few seeds to tell; one that lies beyond 0 is a difference, and a
defect of ours until its cause is found.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.stats

ROOT = Path(__file__).parent.parent.parent
MARGIN = 5.0  # normalised points
# What the official runs had beside our defaults.
FLAGS = {
    "fql": {"alpha": 100.0, "lr": 1e-3, "hidden_dims": [256, 256]},
    "iql": {"return_range": 1000.0},
    "rebrac": {"batch_size": 256, "beta_actor": 0.1, "beta_critic": 0.1},
}
CIRCUMSTANCES = {"dataset", "env", "seeds", "steps", "eval_every", "eval_episodes", "out"}


def official(folder: Path) -> dict[tuple[str, str], list[dict[int, float]]]:
    """(algorithm, dataset) -> scores by step, {step: score} of every seed that ran to the algorithm's last step."""
    curves: dict = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                curves[row["algorithm"], row["dataset"]][row["seed"]][int(row["step"])] = float(row["score_mean"])
    last = {
        algorithm: max(x for key, s in curves.items() if key[0] == algorithm for y in s.values() for x in y)
        for algorithm, _ in curves
    }
    whole = {key: [seed for seed in seeds.values() if last[key[0]] in seed] for key, seeds in curves.items()}
    return {key: seeds for key, seeds in whole.items() if seeds}


def ours(runs: Path, algorithm: str, dataset: str, steps: list[int]) -> np.ndarray:
    """Scores [seeds, evaluations] of finished runs with these evaluations and the official runs' settings."""
    curves = []
    for path in sorted((runs / dataset / algorithm).rglob("seed_*.json")):
        run = json.loads(path.read_text())
        given = {k for k, v in run["origin"].items() if v == "command line"} - CIRCUMSTANCES
        same = {k: run["arguments"][k] for k in given} == FLAGS.get(algorithm, {})
        if run["finished"] and same and [x["step"] for x in run["evaluations"]] == steps:
            curves.append([x["score"] for x in run["evaluations"]])
    return np.array(curves)


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of a minus mean of b, and its 95 % interval: Welch's, or, b being one value, that of one more value of a."""
    if len(b) == 1:
        reach = scipy.stats.t.ppf(0.975, len(a) - 1) * a.std(ddof=1) * np.sqrt(1 + 1 / len(a))
        return a.mean() - b[0], a.mean() - b[0] - reach, a.mean() - b[0] + reach
    reach = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return a.mean() - b.mean(), reach.low, reach.high


def summary(scores: np.ndarray) -> str:
    spread = f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{spread} ({len(scores)})"


def verdict(low: float, high: float) -> str:
    if low >= -MARGIN and high <= MARGIN:
        return "equivalent"
    return "different" if low > 0 or high < 0 else "too few seeds to tell"


def main() -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    pairs = []
    for (algorithm, dataset), seeds in sorted(official(Path(__file__).parent).items()):
        steps = sorted(seeds[0])
        mine = ours(ROOT / "results/runs/local", algorithm, dataset, steps)
        if len(mine):
            pairs.append((algorithm, dataset, steps, mine, np.array([[seed[x] for x in steps] for seed in seeds])))
    lines = [
        "# Score equivalence with official code",
        "",
        "Made by `python benchmarks/equivalence/compare.py`, which says how. The official code is",
        "CORL's, for FQL its authors'.",
        "",
    ]
    lines += ["![curves](../figures/equivalence.png)", ""]
    head = "| algorithm | dataset (public-policy pack) | at | ours (seeds) | official (seeds) | difference [95 %] | |"
    lines += [head, "|---" * 7 + "|"]
    rows = []
    for algorithm, dataset, _, mine, theirs in pairs:
        for place, pick in (("the end", lambda x: x[:, -1]), ("the mean of the curve", lambda x: x.mean(axis=1))):
            a, b = pick(mine), pick(theirs)
            delta, low, high = difference(a, b)
            line = f"| {algorithm} | {dataset} | {place} | {summary(a)} | {summary(b)} |"
            lines.append(f"{line} {delta:+.1f} [{low:.1f}, {high:.1f}] | {verdict(low, high)} |")
            code = "FQL" if algorithm == "fql" else "CORL"
            rows.append([algorithm, dataset, place, summary(a), code, summary(b), delta, low, high, verdict(low, high)])
    (ROOT / "results/tables").mkdir(parents=True, exist_ok=True)
    (ROOT / "results/tables/equivalence.md").write_text("\n".join(lines) + "\n")
    with open(ROOT / "results/tables/equivalence.csv", "w", newline="") as file:
        names = ("algorithm", "dataset", "at", "ours", "code", "official", "difference", "low", "high", "verdict")
        csv.writer(file, lineterminator="\n").writerows([names, *rows])

    rows, columns = -(-len(pairs) // 3), min(len(pairs), 3)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(pairs) :]:
        axis.remove()
    for axis, (algorithm, dataset, steps, mine, theirs) in zip(axes.flat, pairs, strict=False):
        for name, scores, colour in (("official", theirs, "#D55E00"), ("ours", mine, "#0072B2")):
            x = np.array(steps) / 1000
            axis.plot(x, scores.T, color=colour, alpha=0.35, linewidth=0.8)
            axis.plot(
                x,
                scores.mean(axis=0),
                color=colour,
                linewidth=2,
                label=f"{name}, {len(scores)} seed" + "s" * (len(scores) > 1),
            )
        axis.set(title=f"{algorithm}\n{dataset}", xlabel="thousand steps", ylabel="score")
        axis.legend(frameon=False, fontsize="small")
        axis.spines[["top", "right"]].set_visible(False)
    (ROOT / "results/figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(ROOT / "results/figures/equivalence.png", dpi=110, metadata={"Software": None})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
