"""Is our score the official code's score? Curves of both on the same data, budget and evaluation, and the difference.

    python benchmarks/equivalence/compare.py   # -> results/tables/equivalence.*, results/figures/equivalence.png

corl.csv holds every evaluation of CORL's own programs (commit eeeeef2) on data rolled out from public policies, fql.csv
of FQL's (719d044): ten episodes from reset(seed=1000..1009), mode action, or a draw where FQL draws; see README.md
beside them. Ours are the finished runs below results/runs/local on the data that DATA names, with the same
evaluations, the flags that FLAGS names and no other; as in benchmarks/tables.py a seed counts once, what differs in
more than the seed is not averaged, and what the script has since changed is marked (†).

The margin, +-5 normalised points at the end and for the mean over all evaluations (the area under the curve), was set
before the first run of ours: the scores are equivalent if the 95 % interval of the difference of the means over seeds
lies within it. That the interval is Welch's was decided while our runs were under way, before any were compared:
nothing but the episodes' starts pairs seed k of one code with seed k of the other. Where the official code has a single
seed, its spread is taken to be ours, and the interval says where one more seed of ours would lie. An interval that
holds 0 but reaches beyond +-5 says that there are too few seeds to tell; one that lies beyond 0 is a difference, and a
defect of ours until its cause is found, though one in twenty will by chance alone. Where seeds scatter by more than
codes may differ, paired.csv holds runs of ours from CORL's own draws (see paired.py): seed k of one code is then a
partner of seed k of the other, and the interval is that of their differences.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.stats

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables  # noqa: E402

MARGIN = 5.0  # normalised points
PLACES = {"the end": lambda x: x[:, -1], "the mean of the curve": lambda x: x.mean(axis=1)}  # of scores [seeds, steps]
# What the official runs had beside our defaults.
FLAGS = {
    "fql": {"alpha": 100.0, "lr": 1e-3, "hidden_dims": [256, 256]},
    "iql": {"return_range": 1000.0},
    "rebrac": {"batch_size": 256, "beta_actor": 0.1, "beta_critic": 0.1},
}
# What both were trained on and evaluated in: the environment, and the SHA-256 of the loaded arrays.
DATA = {
    "halfcheetah-medium": ("HalfCheetah-v4", "714427c23c94fce40e126600adbcca1bcf67f6d21d22fddd73d1decb4da28ee3"),
    "hopper-medium": ("Hopper-v4", "966fd4e1cb634e62b24b527649b922542156bde598597821a0318eae6ebe637b"),
    "hopper-medium-expert": ("Hopper-v4", "93691e0f3222fc5f4e8b50b9333bae616c74c8b29dbdfd0d97d5e69246121a06"),
}


def read(path: Path) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """(algorithm, dataset) -> seed -> {step: score}."""
    curves: dict = defaultdict(lambda: defaultdict(dict))
    with open(path) as file:
        for row in csv.DictReader(file):
            curves[row["algorithm"], row["dataset"]][row["seed"]][int(row["step"])] = float(row["score_mean"])
    return curves


def official(folder: Path) -> dict[tuple[str, str], list[dict[int, float]]]:
    """(algorithm, dataset) -> scores by step, {step: score} of every seed that ran to the algorithm's last step."""
    curves: dict = defaultdict(dict)
    for name in ("corl", "fql"):
        curves |= read(folder / f"{name}.csv")
    last = {
        algorithm: max(x for key, s in curves.items() if key[0] == algorithm for y in s.values() for x in y)
        for algorithm, _ in curves
    }
    whole = {key: [seed for seed in seeds.values() if last[key[0]] in seed] for key, seeds in curves.items()}
    return {key: seeds for key, seeds in whole.items() if seeds}


def ours(rows: tables.Rows, algorithm: str, dataset: str, steps: list[int]) -> tuple[np.ndarray, bool]:
    """Scores [seeds, evaluations] of the cell with these evaluations and the official runs' settings; is it stale?"""
    for cell in rows.get((dataset, (steps[-1], 0)), {}).values():
        run = cell.runs[0]
        given = {k for k, v in run["origin"].items() if v == "command line"} - tables.CIRCUMSTANCES
        same = run["algorithm"] == algorithm and {k: run["arguments"][k] for k in given} == FLAGS.get(algorithm, {})
        same = same and DATA[dataset] == (run["dataset"]["env"], run["dataset"]["sha256"])
        if same and [x["step"] for x in run["evaluations"]] == steps:
            return np.array([tables.points(run) for run in cell.runs]), cell.stale
    return np.empty((0, len(steps))), False


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


def interval(delta: float, low: float, high: float) -> str:
    return f"{delta:+.1f} [{low:.1f}, {high:.1f}]"


def partners(folder: Path) -> list[list]:
    """Of paired.csv: algorithm, dataset, place, ours, official, correlation, difference, low and high, where both codes
    have the same initial weights, batches and noise, seed by seed."""
    found, theirs = [], read(folder / "corl.csv")
    for (algorithm, dataset), seeds in sorted(read(folder / "paired.csv").items()):
        both = [np.array([[*of[seed].values()] for seed in seeds]) for of in (seeds, theirs[algorithm, dataset])]
        for place, pick in PLACES.items():
            a, b = map(pick, both)
            reach = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
            row = [algorithm, dataset, place, summary(a), summary(b), f"{np.corrcoef(a, b)[0, 1]:.2f}"]
            found.append([*row, (a - b).mean(), reach.low, reach.high])
    return found


def main() -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    pairs, rows = [], tables.collect(tables.read(ROOT / "results/runs"))[0]["local"]
    for (algorithm, dataset), seeds in sorted(official(Path(__file__).parent).items()):
        steps = sorted(seeds[0])
        mine, stale = ours(rows, algorithm, dataset, steps)
        if len(mine):
            theirs = np.array([[seed[x] for x in steps] for seed in seeds])
            pairs.append((algorithm, dataset, steps, mine, theirs, " †" * stale))
    lines = [
        "# Score equivalence with official code",
        "",
        "Made by `python benchmarks/equivalence/compare.py`, which says how. The official code is",
        "CORL's, for FQL its authors'. By chance alone one interval in twenty misses 0.",
        "",
    ]
    lines += ["![curves](../figures/equivalence.png)", ""]
    grid = [
        ["algorithm", "dataset (public-policy pack)", "at", "ours (seeds)", "official (seeds)", "difference [95 %]", ""]
    ]
    found = []
    for algorithm, dataset, _, mine, theirs, mark in pairs:
        for place, pick in PLACES.items():
            a, b = pick(mine), pick(theirs)
            delta, low, high = difference(a, b)
            gap = interval(delta, low, high)
            grid.append([algorithm, dataset, place, summary(a) + mark, summary(b), gap, verdict(low, high)])
            code = "FQL" if algorithm == "fql" else "CORL"
            found.append(
                [algorithm, dataset, place, summary(a) + mark, code, summary(b), delta, low, high, verdict(low, high)]
            )
    if any(mark for *_, mark in pairs):
        lines.append("†: the script has changed since. Its golden figures are checked at every commit.\n")
    (ROOT / "results/tables").mkdir(parents=True, exist_ok=True)
    lines += [tables.pipes(grid), "## With CORL's own draws", ""]
    lines += ["The same initial weights, batches and noise in both codes, seed by seed: `paired.py`.", ""]
    paired = partners(Path(__file__).parent)
    head = ["algorithm", "dataset", "at", "ours (seeds)", "official", "correlation", "difference [95 %]", ""]
    lines.append(tables.pipes([head, *([*x[:6], interval(*x[6:]), verdict(*x[7:])] for x in paired)]))
    for algorithm, dataset, place, a, b, _, *gap in paired:
        found.append([algorithm, dataset, f"{place}, same draws", a, "CORL", b, *gap, verdict(*gap[1:])])
    (ROOT / "results/tables/equivalence.md").write_text("\n".join(lines))
    with open(ROOT / "results/tables/equivalence.csv", "w", newline="") as file:
        names = ("algorithm", "dataset", "at", "ours", "code", "official", "difference", "low", "high", "verdict")
        csv.writer(file, lineterminator="\n").writerows([names, *found])

    height, columns = -(-len(pairs) // 3), min(len(pairs), 3)
    figure, axes = plt.subplots(
        height, columns, figsize=(3.6 * columns, 3 * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(pairs) :]:
        axis.remove()
    for axis, (algorithm, dataset, steps, mine, theirs, _) in zip(axes.flat, pairs, strict=False):
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
