"""Tables and learning curves from the JSON that the scripts wrote, and from nothing else.

    python benchmarks/tables.py        # results/runs -> results/tables and results/figures      (make tables)

Every benchmark has a table of its own, since scores on different data do not compare. A row is a dataset and a number
of steps, a column an algorithm with the flags that depart from its tuned values. A cell is the mean over seeds of the
score at the last evaluation (OGBench: of the last three, the protocol of its published tables), with the standard
deviation over seeds (n - 1) and, from five seeds on, the 95 % t-interval of the mean; where a dataset has no reference
returns, the raw return. What is unfinished is left out and named; a run of a script that has since changed is named.
The same runs give the same bytes.
"""

import ast
import csv
import dataclasses
import hashlib
import io
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

ROOT = Path(__file__).parent.parent
LAST = {"OGBench": 3, "OGBench-regenerated": 3}  # evaluations that a score is the mean of; elsewhere 1
TITLES = {"OGBench-regenerated": "OGBench, regenerated: the published recipe, not the published data"}
# Arguments that say where, how long and how often, but not what is computed: they do not part columns.
CIRCUMSTANCES = {"dataset", "env", "seeds", "steps", "eval_every", "eval_episodes", "out", "resume", "wandb", "video"}
CIRCUMSTANCES |= {"snapshots"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's


# >>> fingerprint (home: td3_bc.py)
def fingerprint(script: str) -> str:
    """SHA-256 of the code that decides a run's numbers: what stands above the bookkeeping, less imports, the table of
    tuned values (the resolved ones count), comments, docstrings and layout."""
    tree = ast.parse(Path(script).read_text().partition("- bookkeeping")[0])
    tree.body = [
        x for x in tree.body if not isinstance(x, ast.Import | ast.ImportFrom) and "TUNED" not in ast.unparse(x)
    ]
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            literal = [isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant) for x in node.body]
            node.body = [x for x, skip in zip(node.body, literal, strict=True) if not skip]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


# <<< fingerprint


def read(runs: Path) -> list[dict[str, Any]]:
    """Every seed's JSON, in the order of the paths."""
    contents = []
    for path in sorted(runs.rglob("seed_*.json")):
        try:
            contents.append(json.loads(path.read_text()) | {"path": path.relative_to(runs).as_posix()})
        except json.JSONDecodeError:
            sys.exit(f"error: {path} is not JSON; delete it and run its command again.")
    return contents


def column(run: dict[str, Any]) -> str:
    """The algorithm, with the flags that were given and matter."""
    given = [k for k, v in run.get("origin", {}).items() if v == "command line" and k not in CIRCUMSTANCES]
    flags = [f"--{k.replace('_', '-')} {_flag(run['arguments'][k])}".rstrip() for k in sorted(given)]
    return " ".join([run["algorithm"], *flags])


def _flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is True else str(value)


def points(run: dict[str, Any]) -> np.ndarray:
    """Score, or raw return, of every evaluation."""
    return np.array([x["score"] if "score" in x else np.mean(x["returns"]) for x in run["evaluations"]])


@dataclasses.dataclass
class Cell:
    """Runs of one algorithm on one dataset that differ in their seeds alone."""

    runs: list[dict[str, Any]]

    @property
    def scores(self) -> np.ndarray:  # [seeds]
        return np.array([points(run)[-LAST.get(run["dataset"]["benchmark"], 1) :].mean() for run in self.runs])

    def __str__(self) -> str:
        scores, text = self.scores, f"{self.scores.mean():.1f}"
        if len(scores) > 1:
            text += f" ± {scores.std(ddof=1):.1f}"
        if len(scores) >= 5:
            low, high = interval(scores)
            text += f" [{low:.1f}, {high:.1f}]"
        return text


def interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95 % t-interval of the mean."""
    reach = scipy.stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores))
    return scores.mean() - reach, scores.mean() + reach


def collect(contents: list[dict[str, Any]]) -> tuple[dict[str, dict[tuple, dict[str, Cell]]], dict[str, list[str]]]:
    """Benchmark -> (dataset, steps) -> column -> Cell; and benchmark -> notes on what is left out or stale."""
    cells: dict = defaultdict(lambda: defaultdict(dict))
    notes: dict = defaultdict(list)
    current = {path.stem: fingerprint(str(path)) for path in (ROOT / "algorithms").glob("*.py")}
    for run in contents:
        benchmark = run["dataset"]["benchmark"]
        if not run["finished"]:
            notes[benchmark].append(f"`{run['path']}` is unfinished and left out.")
            continue
        row, name = (run["dataset"]["name"], run["arguments"]["steps"]), column(run)
        # Never average what differs in more than the seed: other code or other data has a column of its own.
        same = lambda other, run=run: {**run["run"], "seeds": 0} == {**other["run"], "seeds": 0}
        variants = [name, *(f"{name} ({i})" for i in range(2, 99))]
        place = next(x for x in variants if x not in cells[benchmark][row] or same(cells[benchmark][row][x].runs[0]))
        cells[benchmark][row].setdefault(place, Cell([])).runs.append(run)
        if place != name and len(cells[benchmark][row][place].runs) == 1:
            notes[benchmark].append(f"{row[0]}: `{place}` differs from `{name}` in code or data.")
        if current.get(run["algorithm"]) != run["run"]["script"]:
            notes[benchmark].append(f"`{run['path']}`: {run['algorithm']}.py has changed since.")
    return cells, notes


def markdown(benchmark: str, rows: dict[tuple, dict[str, Cell]], notes: list[str]) -> str:
    names = sorted({name for row in rows.values() for name in row})
    lines = [
        f"# {TITLES.get(benchmark, benchmark)}",
        "",
        "Made by `make tables` from results/runs; see benchmarks/tables.py for what a cell is.",
    ]
    lines += ["", f"![learning curves](../figures/{benchmark}.png)", ""]
    lines += ["| dataset | steps | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines += ["|---" * (2 + len(names)) + "|"]
    for (dataset, steps), row in sorted(rows.items()):
        cells = [str(row[name]) if name in row else "" for name in names]
        lines.append(f"| {dataset} | {steps:,} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| dataset | steps | algorithm | seeds | episodes | figure | hyper-parameters | rows | steps/s | machine |",
    ]
    lines += ["|---" * 10 + "|"]
    for (dataset, steps), row in sorted(rows.items()):
        for name, cell in sorted(row.items()):
            first = cell.runs[0]
            seeds = " ".join(str(run["seed"]) for run in cell.runs)
            sources = sorted({v for v in first.get("origin", {}).values() if v not in ("default", "command line")})
            machine = f"{first['machine']['cpu'] or first['machine']['device']}, threads: {first['machine']['threads']}"
            facts = [dataset, f"{steps:,}", f"`{name}`", seeds, len(first["final"]["returns"])]
            facts += ["score" if "score" in first["final"] else "return", "; ".join(sources) or "untuned"]
            facts += [f"{first['dataset'].get('kept', 0):,}" if "kept" in first["dataset"] else "online"]
            facts += [f"{np.mean([run['steps_per_second'] for run in cell.runs]):.0f}", machine]
            lines.append("| " + " | ".join(map(str, facts)) + " |")
    if notes:
        lines += ["", *(f"- {note}" for note in dict.fromkeys(notes))]
    return "\n".join(lines) + "\n"


def long_csv(rows: dict[tuple, dict[str, Cell]]) -> str:
    """A row a seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dataset", "steps", "algorithm", "seed", "episodes", "score", "return", "json"])
    for (dataset, steps), row in sorted(rows.items()):
        for name, cell in sorted(row.items()):
            for run, score in zip(cell.runs, cell.scores, strict=True):
                final = run["final"]
                scored = f"{score:.4f}" if "score" in final else ""
                facts = [dataset, steps, name, run["seed"], len(final["returns"]), scored]
                writer.writerow([*facts, f"{np.mean(final['returns']):.4f}", run["path"]])
    return file.getvalue()


def curves(benchmark: str, rows: dict[tuple, dict[str, Cell]], path: Path) -> None:
    """A panel a dataset: the mean over seeds, the seeds behind it, from five seeds on the interval as a band."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = sorted({name for row in rows.values() for name in row})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    columns = min(len(rows), 3)
    height = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(4.2 * columns, 3 * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(rows) :]:
        axis.remove()
    for axis, ((dataset, steps), row) in zip(axes.flat, sorted(rows.items()), strict=False):
        for name, cell in sorted(row.items()):
            x = np.array([evaluation["step"] for evaluation in cell.runs[0]["evaluations"]]) / 1000
            y = np.stack([points(run) for run in cell.runs])  # [seeds, evaluations]
            axis.plot(x, y.T, color=colours[name], alpha=0.2, linewidth=0.7)
            axis.plot(x, y.mean(axis=0), color=colours[name], label=name, linewidth=2, marker="o", markersize=3)
            if len(y) >= 5:
                low, high = zip(*(interval(scores) for scores in y.T), strict=True)
                axis.fill_between(x, low, high, color=colours[name], alpha=0.15, linewidth=0)
        figures = {"score" if "score" in run["final"] else "return" for cell in row.values() for run in cell.runs}
        axis.set(title=f"{dataset}, {steps:,} steps", xlabel="thousand steps", ylabel=" and ".join(sorted(figures)))
        axis.legend(fontsize="small", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(runs: Path = ROOT / "results/runs", out: Path = ROOT / "results", show: bool = False) -> None:
    """Writes the tables of `runs` to `out`/tables and the curves to `out`/figures.

    Args:
        runs: folder that the scripts wrote to.
        out: folder for tables/ and figures/.
        show: print the tables too.
    """
    cells, notes = collect(read(runs))
    if not cells:
        sys.exit(f"error: there is no finished run below {runs}; a script's --out says where it writes.")
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for benchmark, rows in sorted(cells.items()):
        text = markdown(benchmark, rows, notes[benchmark])
        (out / "tables" / f"{benchmark}.md").write_text(text)
        (out / "tables" / f"{benchmark}.csv").write_text(long_csv(rows))
        curves(benchmark, rows, out / "figures" / f"{benchmark}.png")
        print(text if show else f"{benchmark}: {out / 'tables' / benchmark}.md, {out / 'figures' / benchmark}.png")


if __name__ == "__main__":
    import tyro

    tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))
