"""Tables from the JSON that the scripts wrote, and from nothing else but published numbers to stand beside.

    python benchmarks/tables.py        # results/runs -> results/tables                          (make tables)

Every benchmark has tables of its own, since scores on different data do not compare: <benchmark>.md, .tex and .csv,
and <benchmark>-seeds.csv with a row a seed. A row is a dataset, trained for --steps or, where that was not given, for
each algorithm's own steps, as in published tables; a column an algorithm with the flags that depart from its tuned
values. A cell is the mean over seeds of the score at the last evaluation (OGBench: of the last three, the protocol of
its published tables), with the standard deviation over seeds (n - 1) and, from five seeds on, the 95 % t-interval of
the mean; where a dataset has no reference returns, the raw return.

Below the datasets of a suite stand the mean over them and the interquartile mean over all their seeds (the mean of the
middle half; Agarwal et al., 2021, arXiv:2108.13264), from five seeds on with the 95 % interval of a bootstrap that
redraws the seeds of each dataset (2,000 times; simulated, it covers the truth in 90 of 100 cases with five seeds, in 94
with ten). Both need every dataset of the suite, with the same --steps.

Published numbers (benchmarks/published) stand only beside runs on the same benchmark and dataset, of as many steps
where both say how many; those for tasks whose data was regenerated here have a table of their own. What lacks seeds, is
unfinished, stale (its script has changed since) or mixed is named below the table, and printed where a benchmark has no
table yet; what differs in more than the seed is never averaged. The same runs give the same bytes.

Runs with an online phase have tables of their own, <benchmark>-online: a cell is the score at the switch -> the score
at the end, and the regret: by how much the episodes on the way fell short of success or of score 100, in the mean, as
a share. Their steps are those before the switch + those after it. So have model-based runs, <benchmark>-model-based,
whose second table has the model's error: the elites' mean squared error of (s' - s, r), each in its own units, on the
rows held out; and those whose model is the environment's simulator, <benchmark>-simulator.

The second table of a benchmark says how each cell came about: episodes an evaluation; whether the figure is a score or
a raw return; where hyper-parameters other than the defaults are from; how many configurations of the algorithm have
runs here on that dataset, and how many its authors searched where they say; rows trained on; steps/s of a whole group
of seeds, which train together, without evaluation, and the seconds of training that fall to one seed, compilation and
all; the machine. Speeds are of runs that other work may have shared the machine with: benchmarks/speed.py measures.
"""

import ast
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import scipy.stats

ROOT = Path(__file__).parent.parent
TITLES = {
    "local": "Data from public policies, and 25 human demonstrations; not D4RL",
    "solo": "Data collected here after D4RL's recipe; not D4RL's data",
    "solo-online": "From offline to online, on data collected here",
    "solo-model-based": "Model-based, on data collected here",
    "solo-simulator": "With the simulator as the model, on data collected here",
    "online": "SAC online, whose snapshots collected the data",
    "OGBench-regenerated": "OGBench, regenerated: the published recipe, not the published data; success counts one "
    "step later, as in ogbench 1.2, than where the published scores come from",
}
CELL = (
    "mean score of the last evaluation ± standard deviation over seeds [95 % interval, from five seeds on]",
    "mean score at the switch to the environment → at the end ± standard deviation over seeds [95 % interval, from "
    "five seeds on], regret: by how much the online episodes fell short of success or of score 100, as a mean share",
)
ORIGINAL = (
    "Published for these tasks, on the data of the benchmark's authors: another benchmark, to look up, not to rank."
)
# Arguments that say where, how long and how often, but not what is computed: they do not part columns.
CIRCUMSTANCES = {"dataset", "env", "seeds", "steps", "eval_every", "eval_episodes", "out", "resume", "wandb", "video"}
CIRCUMSTANCES |= {"snapshots", "online_steps", "pretrained", "dynamics"}
SUITES = {
    "gym-mujoco": {"halfcheetah", "hopper", "walker2d", "ant"},
    "maze2d": {"maze2d", "pointmaze"},
    "antmaze": {"antmaze"},
    "adroit": {"pen", "door", "hammer", "relocate"},
    "kitchen": {"kitchen"},
}


def fail(sentence: str) -> NoReturn:
    """Ends the program for a mistake of its user's: one sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


# >>> fingerprint (home: td3_bc.py)
def fingerprint(script: str, arguments: dict[str, Any]) -> str:
    """SHA-256 of the code that decides the numbers of a run with these arguments: what stands above the bookkeeping,
    less imports, the table of tuned values (the resolved ones count), comments, docstrings and layout; and without
    online steps less the block of that phase."""
    text = Path(script).read_text().partition("- bookkeeping")[0]
    if arguments.get("online_steps") == 0:
        text = re.sub("# >>> interact.*# <<< interact", "", text, flags=re.DOTALL)
    tree = ast.parse(text)
    tree.body = [
        x for x in tree.body if not isinstance(x, ast.Import | ast.ImportFrom) and "TUNED" not in ast.unparse(x)
    ]
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


# <<< fingerprint


# ---------------------------------------------------------------------------------------------------------- runs


@dataclasses.dataclass
class Cell:
    """Runs of one algorithm on one dataset that differ in their seeds alone."""

    runs: list[dict[str, Any]]
    stale: bool

    @property
    def scores(self) -> np.ndarray:  # [seeds]
        return np.array([points(run)[-last(run) :].mean() for run in self.runs])

    def mean_of(self, name: str) -> float | None:
        """Of `before`, the score at the switch, or `regret`, over the seeds; None offline."""
        values = [_before(run) if name == "before" else run.get("regret") for run in self.runs]
        return None if None in values else float(np.mean(values))

    @property
    def scored(self) -> bool:
        return all("score" in run["final"] for run in self.runs)


OWN = (0, 0)  # steps of an algorithm's own
Row = tuple[str, tuple[int, int]]  # dataset, steps before and after the switch that were asked for, or OWN
Rows = dict[Row, dict[str, Cell]]


def read(runs: Path) -> list[dict[str, Any]]:
    """Every seed's JSON, in the order of the paths, seed 2 before seed 10."""
    contents, numbers = [], re.compile(r"(\d+)")
    natural = lambda path: [int(x) if x.isdigit() else x for x in numbers.split(path.as_posix())]
    for path in sorted(runs.rglob("seed_*.json"), key=natural):
        try:
            contents.append(json.loads(path.read_text()) | {"path": path.relative_to(runs).as_posix()})
        except json.JSONDecodeError:
            sys.exit(f"error: {path} is not JSON; delete it and run its command again.")
    return contents


def column(run: dict[str, Any]) -> str:
    """The algorithm, with the flags that were given and matter; where a dataset has its own environment, another one
    does."""
    aside = CIRCUMSTANCES - (
        {"env"} if run["arguments"].get("dataset") and run["dataset"]["benchmark"] != "local" else set()
    )
    given = [k for k, v in run.get("origin", {}).items() if v == "command line" and k not in aside]
    return " ".join([run["algorithm"], *(_flag(k, run["arguments"][k]) for k in sorted(given))])


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def points(run: dict[str, Any]) -> np.ndarray:
    """Score, or raw return, of every evaluation."""
    return np.array([x["score"] if "score" in x else np.mean(x["returns"]) for x in run["evaluations"]])


def duration(run: dict[str, Any]) -> tuple[int, int]:
    """Steps before and after the switch; those of a run that it began from count too."""
    arguments = run["arguments"]
    return arguments["steps"] + run.get("pretrained_steps", 0), arguments.get("online_steps", 0)


def last(run: dict[str, Any]) -> int:
    """How many evaluations the figure is the mean of: on OGBench, offline, three, the protocol of its tables."""
    return 3 if run["dataset"]["benchmark"].startswith("OGBench") and not duration(run)[1] else 1


def benchmark_of(run: dict[str, Any]) -> str:
    has = run["arguments"].get
    kinds = {
        "-online": duration(run)[1],
        "-simulator": has("simulator"),
        "-model-based": has("model_members"),
        "": True,
    }
    return run["dataset"]["benchmark"] + next(kind for kind, holds in kinds.items() if holds)


def _before(run: dict[str, Any]) -> float | None:
    at_switch = [i for i, x in enumerate(run["evaluations"]) if x["step"] == run["arguments"]["steps"]]
    return points(run)[at_switch[0]] if duration(run)[1] and at_switch else None


def collect(contents: list[dict[str, Any]]) -> tuple[dict[str, Rows], dict[str, list[str]]]:
    """Benchmark -> (dataset, steps) -> column -> Cell; and benchmark -> what is left out, stale or mixed."""
    cells: dict = defaultdict(lambda: defaultdict(dict))
    notes: dict = defaultdict(list)
    current = functools.cache(lambda script, offline: fingerprint(script, {"online_steps": 0} if offline else {}))

    def stale(run):
        script = ROOT / f"algorithms/{run['algorithm']}.py"
        offline = run["arguments"].get("online_steps") == 0
        return not script.exists() or current(str(script), offline) != run["run"]["script"]

    for run in sorted(contents, key=stale):  # a stale run yields the plain column to a fresh one
        note = notes[benchmark_of(run)].append
        folder = run["path"].rpartition("/")[0]
        there = {other["seed"] for other in contents if other["path"].rpartition("/")[0] == folder}
        for seed in sorted(set(run["arguments"]["seeds"]) - there):
            note(f"`{folder}`: seed {seed} is missing.")
        if not run["finished"]:
            done = run["evaluations"][-1]["step"] if run["evaluations"] else 0
            whole = run["arguments"]["steps"] + duration(run)[1]
            note(f"`{run['path']}` is unfinished, at step {done:,} of {whole:,}, and left out.")
            continue
        if len(run["evaluations"]) < last(run):
            note(f"`{run['path']}` has but {len(run['evaluations'])} of the {last(run)} evaluations to be averaged.")
        origin = run.get("origin", {"steps": "command line"})  # SAC has no tuned values, and says no origins
        asked = "command line" in (origin["steps"], origin.get("online_steps"))
        row, name = (run["dataset"]["name"], duration(run) if asked else OWN), column(run)
        place = cells[benchmark_of(run)][row]
        # Never average what differs in more than the seed: it has a column of its own.
        for variant in (name, *(f"{name} ({i})" for i in range(2, 999))):
            if variant not in place:
                place[variant] = Cell([], stale(run))
                if variant != name:
                    note(f"{row[0]}: `{variant}` differs from `{name}` in {_differences(run, place[name].runs[0])}.")
            elif _differences(run, place[variant].runs[0]):
                continue
            break
        twin = next((other for other in place[variant].runs if other["seed"] == run["seed"]), None)
        if twin:
            note(f"`{run['path']}` is left out: seed {run['seed']} counts once, from `{twin['path']}`.")
            continue
        place[variant].runs.append(run)
    for benchmark, rows in cells.items():
        for (dataset, steps), row in list(rows.items()):  # with what was trained as long without being asked
            own = rows.get((dataset, OWN), {}) if steps != OWN else {}
            for name, cell in own.items():
                if duration(cell.runs[0]) == steps:
                    row.setdefault(name, cell)
            if own and all(row.get(name) is cell for name, cell in own.items()):
                del rows[dataset, OWN]
        notes[benchmark] += _stale(rows) + _few_seeds(rows) + _mixtures(rows)
    return cells, {benchmark: list(dict.fromkeys(found)) for benchmark, found in notes.items()}


def _differences(run: dict[str, Any], other: dict[str, Any]) -> str:
    mine, theirs = run["run"], other["run"]
    return " and ".join(sorted(k for k in (mine.keys() | theirs.keys()) - {"seeds"} if mine.get(k) != theirs.get(k)))


def _stale(rows: Rows) -> list[str]:
    found = defaultdict(list)
    for (dataset, _), row in sorted(rows.items()):
        for cell in row.values():
            found[cell.runs[0]["algorithm"]] += [dataset] if cell.stale else []
    changed = {name: ", ".join(dict.fromkeys(datasets)) for name, datasets in sorted(found.items()) if datasets}
    return [f"{name}.py has changed since its runs on {datasets} (†)." for name, datasets in changed.items()]


def _few_seeds(rows: Rows) -> list[str]:
    """Cells with fewer seeds than their neighbours."""
    found = []
    for (dataset, _), row in sorted(rows.items()):
        most = max(len(cell.runs) for cell in row.values())
        few = [f"`{name}` {len(cell.runs)}" for name, cell in sorted(row.items()) if len(cell.runs) < most]
        found += [f"{dataset}: fewer seeds than the others' {most}: {', '.join(few)}."] if few else []
    return found


def _mixtures(rows: Rows) -> list[str]:
    """Datasets of which runs had different data of one name (what is collected on another machine has other bytes), and
    cells whose seeds were not all trained with one installation on one kind of machine."""
    found, data = [], defaultdict(lambda: defaultdict(set))
    for (dataset, _), row in sorted(rows.items()):
        for name, cell in sorted(row.items()):
            data[dataset][cell.runs[0]["run"].get("data")].add(f"`{name}`, {_steps(duration(cell.runs[0]))} steps")
    for dataset, names in data.items():
        parts = sorted((sorted(x) for x in names.values()), key=lambda x: (-len(x), x))
        if len(parts) > 1:
            parts = "; ".join(map(", ".join, parts))
            found.append(f"{dataset}: one recipe, but not the same bytes. Runs on each: {parts}.")
    for (dataset, _), row in sorted(rows.items()):
        for name, cell in sorted(row.items()):
            seen = defaultdict(set)
            for run in cell.runs:
                for k, v in (run["machine"] | run["machine"].get("versions", {})).items():
                    if k not in ("commit", "versions"):
                        seen[k].add(str(v))
            mixed = [f"{k} ({', '.join(sorted(v))})" for k, v in sorted(seen.items()) if len(v) > 1]
            found += [f"{dataset}: `{name}` mixes {', '.join(mixed)}."] if mixed else []
    return found


def columns(rows: Rows) -> list[str]:
    return sorted({name for row in rows.values() for name in row})


def steps_in(*rows: dict[str, Cell]) -> str:
    """The number of steps in some rows; `own` where the algorithms differ in it."""
    found = {duration(run) for row in rows for cell in row.values() for run in cell.runs}
    return _steps(found.pop()) if len(found) == 1 else "own"


def _steps(lengths: tuple[int, int]) -> str:
    return " + ".join(f"{n:,}" for n in (lengths if lengths[1] else lengths[:1]))


def suite(dataset: str) -> str:
    """The suite whose datasets are averaged: D4RL's, or the five tasks of an OGBench dataset. The name that means one
    of the five is a suite of its own, or that task would count twice."""
    if re.search(r"-singletask-v\d+$", dataset):
        return dataset
    if "-singletask" in dataset:
        return dataset.partition("-singletask")[0]
    words = dataset.lower().split("-")
    return next((name for word in words for name, words in SUITES.items() if word in words), "other")


def speed(run: dict[str, Any]) -> float:
    """Steps/s of all seeds of a program, without evaluation: of the median time between evaluations, which leaves
    compilation out. With an online phase, whose warm-up is quicker than the rest, it is the mean."""
    if not duration(run)[1]:
        return run["steps_per_second"]
    return run["final"]["step"] / sum(x["train_seconds"] for x in run["evaluations"])


def seconds_a_seed(run: dict[str, Any]) -> float:
    """Time of training, compilation and all, shared among the seeds that trained together."""
    seconds = [x.get("train_seconds") for x in run["evaluations"]]
    spent = run["final"]["step"] / speed(run) if None in seconds else sum(seconds)  # old runs have their speed alone
    return spent / len(run["arguments"]["seeds"])


def machine(run: dict[str, Any]) -> str:
    device, cpu, threads = (run["machine"][key] for key in ("device", "cpu", "threads"))
    return f"{cpu}, {threads} thread{'s' * (threads > 1)}" if device == "cpu" and cpu else device


# ---------------------------------------------------------------------------------------------------- statistics


def interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95 % t-interval of the mean."""
    reach = scipy.stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores))
    return scores.mean() - reach, scores.mean() + reach


def mean(datasets: list[np.ndarray]) -> np.ndarray:
    """Of the datasets' means: a list of [..., seeds] -> [...]."""
    return np.mean([scores.mean(axis=-1) for scores in datasets], axis=0)


def iqm(datasets: list[np.ndarray]) -> np.ndarray:
    """Mean of the middle half of all scores, where every dataset counts alike: a list of [..., seeds] -> [...]."""
    most = np.lcm.reduce([scores.shape[-1] for scores in datasets])
    alike = [np.repeat(scores, most // scores.shape[-1], axis=-1) for scores in datasets]
    return scipy.stats.trim_mean(np.concatenate(alike, axis=-1), 0.25, axis=-1)


def bootstrap(datasets: list[np.ndarray], statistic, draws: int = 2000) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic when the seeds of each dataset are redrawn."""
    rng = np.random.default_rng(0)
    redrawn = [scores[rng.integers(len(scores), size=(draws, len(scores)))] for scores in datasets]
    return tuple(np.percentile(statistic(redrawn), [2.5, 97.5], axis=0))


# ------------------------------------------------------------------------------------------------------- content


class Figure(NamedTuple):
    """What a table says in one place."""

    mean: float
    std: float | None = None  # over seeds
    interval: tuple[float, float] | None = None
    seeds: int | None = None
    stale: bool = False
    before: float | None = None  # at the switch to the online phase
    regret: float | None = None

    def __str__(self) -> str:
        text = f"{self.before:.1f} → " if self.before is not None else ""
        text += f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")
        text += " [{:.1f}, {:.1f}]".format(*self.interval) if self.interval else ""
        text += f", regret {self.regret:.2f}" if self.regret is not None else ""
        return text + (" †" if self.stale else "")


class Line(NamedTuple):
    label: str  # a dataset, or what is averaged
    steps: str
    figures: dict[str, Figure]  # by column


def published(benchmark: str, rows: Rows) -> dict[str, list[dict[str, str]]]:
    """Label -> the published rows for what was run here: the same benchmark, column and dataset."""
    ran = {(dataset, column) for (dataset, _), row in rows.items() for column in row}
    return _facts(benchmark, lambda fact: (fact["dataset"], fact["column"]) in ran)


def original(benchmark: str, rows: Rows) -> dict[str, list[dict[str, str]]]:
    """Label -> the published rows for tasks whose data was regenerated here, on the data of their authors."""
    name, regenerated, _ = benchmark.partition("-regenerated")
    tasks = {dataset for dataset, _ in rows}
    return _facts(name, lambda fact: bool(regenerated) and fact["dataset"] in tasks)


def _facts(benchmark: str, wanted: Callable[[dict[str, str]], bool]) -> dict[str, list[dict[str, str]]]:
    path, found = Path(__file__).parent / f"published/{benchmark}.csv", defaultdict(list)
    for fact in csv.DictReader(path.open()) if path.exists() else ():
        if wanted(fact):
            found[fact["label"]].append(fact)
    return found


def as_long(fact: dict[str, str], steps: tuple[int, int]) -> bool:
    """Whether a published number may stand in a row of so many steps: not beside a shorter or longer training."""
    return steps == OWN or fact["steps"] in ("", " + ".join(map(str, steps if steps[1] else steps[:1])))


def headings(rows: Rows, facts: dict[str, list[dict[str, str]]]) -> list[str]:
    """The columns, each followed by its published ones."""
    beside = lambda name: [label for label, found in facts.items() if found[0]["column"] == name]
    return [heading for name in columns(rows) for heading in (name, *beside(name))]


def lines(rows: Rows, facts: dict[str, list[dict[str, str]]]) -> list[Line]:
    """The datasets of each suite, then what is averaged over them; at the end over all suites."""
    suites, everything, found = defaultdict(list), defaultdict(list), []
    for dataset, steps in sorted(rows):
        suites[suite(dataset), steps].append((dataset, steps))
        everything[steps] += [(dataset, steps)] * (suite(dataset) != dataset)
    for (name, _), keys in sorted(suites.items()):
        found += [_dataset(key, rows[key], facts) for key in keys] + _averages(name, keys, rows, facts)
    for steps, keys in sorted(everything.items()):
        if sum(at == steps for _, at in suites) > 1:
            found += _averages("all", keys, rows, facts)
    return found


def _dataset(key: Row, row: dict[str, Cell], facts: dict[str, list[dict[str, str]]]) -> Line:
    figures = {}
    for name, cell in row.items():
        scores, n = cell.scores, len(cell.runs)
        std, reach = scores.std(ddof=1) if n > 1 else None, interval(scores) if n >= 5 else None
        figures[name] = Figure(scores.mean(), std, reach, n, cell.stale, *map(cell.mean_of, ("before", "regret")))
    for label, found in facts.items():
        for fact in found:
            if fact["dataset"] == key[0] and fact["column"] in row and as_long(fact, key[1]):
                std, seeds = float(fact["std"]) if fact["std"] else None, int(fact["seeds"]) if fact["seeds"] else None
                phases = (float(fact[k]) if fact.get(k) else None for k in ("before", "regret"))
                figures[label] = Figure(float(fact["score"]), std, None, seeds, False, *phases)
    return Line(key[0], steps_in(row), figures)


def _averages(name: str, keys: list[Row], rows: Rows, facts: dict[str, list[dict[str, str]]]) -> list[Line]:
    """Over two datasets or more, for the columns that have them all."""
    means, middles = {}, {}
    if len(keys) < 2:
        return []
    for column in columns(rows):
        cells = [rows[key][column] for key in keys if column in rows[key]]
        if len(cells) == len(keys) and all(cell.scored for cell in cells):
            scores, stale = [cell.scores for cell in cells], any(cell.stale for cell in cells)
            n = min(map(len, scores))
            for statistic, figures in ((mean, means), (iqm, middles)):
                reach = bootstrap(scores, statistic) if n >= 5 else None
                figures[column] = Figure(float(statistic(scores)), None, reach, n, stale)
    for label, found in facts.items():
        scores = {fact["dataset"]: float(fact["score"]) for fact in found if as_long(fact, keys[0][1])}
        if found[0]["column"] in means and all(dataset in scores for dataset, _ in keys):
            means[label] = Figure(float(np.mean([scores[dataset] for dataset, _ in keys])))
    label, steps = f"{name} ({len(keys)} datasets)", steps_in(*(rows[key] for key in keys))
    return [Line(f"mean of {label}", steps, means), Line(f"IQM of {label}", steps, middles)] if means else []


def score_grid(rows: Rows, facts: dict[str, list[dict[str, str]]]) -> list[list[Any]]:
    """The table of scores as text; the first row is its head."""
    heads = headings(rows, facts)
    body = [
        [line.label, line.steps, *(str(line.figures[head]) if head in line.figures else "" for head in heads)]
        for line in lines(rows, facts)
    ]
    return [["dataset", "steps", *heads], *body]


def run_grid(rows: Rows) -> list[list[Any]]:
    """How each cell came about. The seeds are a list of (text, path below the runs' folder)."""
    grid = [["dataset", "steps", "algorithm", "seeds", "episodes", "figure", "hyper-parameters", "configurations"]]
    grid[0] += ["rows", "group steps/s", "s/seed", "machine"]
    modelled = any("model_members" in cell.runs[0]["arguments"] for row in rows.values() for cell in row.values())
    grid[0] += ["model's error"] if modelled else []
    search = csv.DictReader((Path(__file__).parent / "published/searched.csv").open())
    searched = {(x["column"], x["suite"]): x["configurations"] for x in search}
    for (dataset, _), row in sorted(rows.items()):
        tried = defaultdict(set)
        for name, cell in row.items():
            tried[cell.runs[0]["algorithm"]].add(name.partition(" (")[0])
        for name, cell in sorted(row.items()):
            first = cell.runs[0]
            sources = sorted({v for v in first.get("origin", {}).values() if v not in ("default", "command line")})
            theirs = searched.get((first["algorithm"], suite(dataset))) if sources else None
            count = f"{len(tried[first['algorithm']])} here" + (f", {theirs} by its authors" if theirs else "")
            grid.append(
                [
                    dataset,
                    _steps(duration(first)),
                    name,
                    [(str(run["seed"]), run["path"]) for run in cell.runs],
                ]
            )
            grid[-1] += [len(first["final"]["returns"]), "score" if cell.scored else "return"]
            grid[-1] += [f"tuned: {'; '.join(sources)}" if sources else "untuned", count]
            grid[-1] += [f"{first['dataset']['kept']:,}" if "kept" in first["dataset"] else "online"]
            grid[-1] += [f"{np.mean([speed(run) for run in cell.runs]):.0f}"]
            grid[-1] += [f"{np.mean([seconds_a_seed(run) for run in cell.runs]):.0f}"]
            grid[-1] += [machine(first)]
            error = first["evaluations"][-1].get("metrics", {}).get("model_error")
            grid[-1] += ["none" if error is None else f"{error:.3g}"] if modelled else []
    return grid


def original_grid(theirs: dict[str, list[dict[str, str]]]) -> list[list[str]]:
    cells = {(x["dataset"], label): f"{x['score']} ± {x['std']}" for label, found in theirs.items() for x in found}
    tasks = sorted({dataset for dataset, _ in cells})
    return [["dataset", *theirs], *([task, *(cells.get((task, label), "") for label in theirs)] for task in tasks)]


def remarks(notes: list[str], published: dict[str, list[dict[str, str]]]) -> list[str]:
    """What stands below a benchmark's table."""
    told = []
    for label, found in published.items():
        say = lambda key, found=found: ", ".join(sorted({fact[key] for fact in found if fact[key]})) or "not said"
        facts = f"evaluation: {say('statistic')}; steps: {say('steps')}; seeds: {say('seeds')}; {say('reference')}"
        told.append(f"{label}: published. {facts}.")
    return [*notes, *told]


# ------------------------------------------------------------------------------------------------------- writing


def markdown(grid: list[list[Any]], runs: str) -> str:
    """A pipe table; `runs` is the path of the runs' folder from where the table lies."""

    def text(cell) -> str:
        if not isinstance(cell, list):
            return str(cell).replace("|", "\\|")
        groups = defaultdict(list)  # the seeds that trained together lie in one folder
        for name, path in cell:
            groups[path.rpartition("/")[0]].append(name)
        return " ".join(f"[{' '.join(names)}]({runs}/{folder})" for folder, names in groups.items())

    return pipes([[text(cell) for cell in row] for row in grid])


def pipes(rows: list[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


def latex(grid: list[list[Any]]) -> str:
    """A tabular that needs the package booktabs."""

    def text(cell) -> str:
        for raw, escaped in (("\\", "\\textbackslash "), *((x, "\\" + x) for x in "_&%#$")):
            cell = cell.replace(raw, escaped)
        return cell.replace("--", "{-}{-}").replace("±", "$\\pm$").replace("†", "$^\\dagger$")

    head, *body = [" & ".join(map(text, row)) + r" \\" for row in grid]
    frame = [r"\begin{tabular}{lr" + "r" * (len(grid[0]) - 2) + "}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*frame, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(grid: Iterable[Iterable[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(grid)
    return file.getvalue()


def phase(rows: Rows) -> list[str]:
    """What only runs with an online phase have."""
    online = any(duration(cell.runs[0])[1] for row in rows.values() for cell in row.values())
    return ["before", "regret"] if online else []


def wide(rows: Rows, facts: dict[str, list[dict[str, str]]]) -> list[list[Any]]:
    """The table of scores as numbers."""
    heads, parts = headings(rows, facts), ["mean", "std", "low", "high", "seeds", *phase(rows)]
    grid = [["dataset", "steps", *(f"{head} {part}" for head in heads for part in parts)]]
    for line in lines(rows, facts):
        grid.append([line.label, line.steps.replace(",", "")])
        for head in heads:
            figure = line.figures.get(head)
            low, high = figure.interval if figure and figure.interval else (None, None)
            numbers = (figure.mean, figure.std, low, high) if figure else (None,) * 4
            grid[-1] += ["" if x is None else f"{x:.4f}" for x in numbers]
            grid[-1] += ["" if figure is None or figure.seeds is None else figure.seeds]
            online = [getattr(figure, part, None) for part in phase(rows)]
            grid[-1] += ["" if x is None else f"{x:.4f}" for x in online]
    return grid


def long(rows: Rows) -> list[list[Any]]:
    """A row a seed."""
    grid = [["dataset", "steps", "algorithm", "seed", "episodes", "score", "return", *phase(rows), "json"]]
    for (dataset, _), row in sorted(rows.items()):
        for name, cell in sorted(row.items()):
            for run, score in zip(cell.runs, cell.scores, strict=True):
                returns = run["final"]["returns"]
                numbers = [score if cell.scored else None, np.mean(returns)]
                numbers += [{"before": _before(run), "regret": run.get("regret")}[part] for part in phase(rows)]
                numbers = ["" if x is None else f"{x:.4f}" for x in numbers]
                steps = " + ".join(map(str, duration(run)[: 1 + bool(duration(run)[1])]))
                grid.append([dataset, steps, name, run["seed"], len(returns), *numbers, run["path"]])
    return grid


def main(runs: Path = ROOT / "results/runs", out: Path = ROOT / "results", show: bool = False) -> None:
    """Writes the tables of `runs` to `out`/tables.

    Args:
        runs: folder that the scripts wrote to.
        out: folder for tables/.
        show: print the tables too.
    """
    cells, notes = collect(read(runs))
    for benchmark in sorted(notes.keys() - cells.keys()):
        print("\n".join([f"{benchmark} has no finished run:", *(f"- {note}" for note in notes[benchmark])]))
    if not cells:
        sys.exit(f"error: there is no finished run below {runs}; a script's --out says where it writes.")
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    way = Path(os.path.relpath(runs, folder)).as_posix()
    for benchmark, rows in sorted(cells.items()):
        facts, theirs = published(benchmark, rows), original(benchmark, rows)
        scores = score_grid(rows, facts)
        name = benchmark.replace("-online", ", offline to online").replace("-model-based", ", model-based")
        name = name.replace("-simulator", ", with the simulator as the model")
        text = f"# {TITLES.get(benchmark, name)}\n\n"
        cell = CELL[bool(phase(rows))]
        if benchmark.startswith("OGBench") and not phase(rows):
            cell = cell.replace("the last evaluation", "the last three evaluations")
        text += f"Made by `make tables`. A cell: {cell}. Empty: not run. †: the script was edited "
        text += "after this run ([what changed](../README.md#edited-since)).\n\n"
        text += f"![learning curves](../figures/{benchmark}.png)\n\n{markdown(scores, way)}\n"
        text += markdown(run_grid(rows), way)
        text += f"\n{ORIGINAL}\n\n{pipes(original_grid(theirs))}" if theirs else ""
        text += "".join(f"\n- {remark}" for remark in remarks(notes[benchmark], facts | theirs))
        contents = {f"{benchmark}.md": text.rstrip() + "\n", f"{benchmark}.tex": latex(scores)}
        contents[f"{benchmark}.csv"] = comma_separated(wide(rows, facts))
        contents[f"{benchmark}-seeds.csv"] = comma_separated(long(rows))
        for name, content in contents.items():
            (folder / name).write_text(content)
        print(text if show else f"{benchmark}: {folder / benchmark}.md, .tex, .csv, -seeds.csv")


if __name__ == "__main__":
    import tyro

    tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))
