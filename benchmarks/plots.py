"""Figures from the JSON that the scripts wrote: the same runs as the tables, the same bytes from the same runs.

    python benchmarks/plots.py         # results/runs -> results/figures, .png and .svg          (make tables)

For every benchmark, as far as its runs allow; with rows of several lengths, those below the first have one file a
length, named -<steps>:
  <benchmark>            learning curves, a panel a dataset: the mean over seeds, from five seeds on its 95 % interval
  <benchmark>-profiles   performance profiles: the share of runs that score above x, every dataset counting alike
                         (Agarwal et al., 2021, arXiv:2108.13264), from five seeds on with the bootstrap's 95 % band
  <benchmark>-cost       mean score against the seconds of training that one seed takes, on the machine of most runs
  <benchmark>-tuning     expected online performance: what the best of k configurations scores, for whoever can try k of
                         them in the environment (Kurenkov and Kolesnikov, 2022, arXiv:2110.04156); from three on
Profiles, cost and tuning compare on common datasets with the same --steps; columns that lack too many of them, and
those beyond fourteen, are left out, and the title names them. Colours are Okabe and Ito's, which the colour-blind tell
apart.
"""

import re
import sys
import textwrap
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import tables

matplotlib.use("agg")
import matplotlib.pyplot as plt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
plt.rcParams |= {"svg.hashsalt": "solo", "font.size": 10, "legend.frameon": False, "savefig.dpi": 110}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}


def style(names: list[str], rows: tables.Rows) -> dict[str, dict[str, str]]:
    """A colour for each column, which those beside it on a dataset lack as long as there are colours, and dashes where
    it serves a second time."""
    dashes, given = ("-", "--", ":", "-."), {}
    for name in names:
        beside = [given[other] for row in rows.values() if name in row for other in row if other in given]
        taken = list(given.values())
        given[name] = min((beside.count(x), taken.count(x), i, x) for i, x in enumerate(COLOURS))[-1]
    again = {name: list(given.values())[:i].count(given[name]) for i, name in enumerate(given)}
    return {name: {"color": given[name], "linestyle": dashes[again[name] % len(dashes)]} for name in given}


def drawn(rows: tables.Rows) -> list[str]:
    """Fourteen columns, which is all colours and two kinds of dashes; those without flags go first."""
    names = tables.columns(rows)
    chosen = sorted(names, key=lambda name: " " in name)[:14]
    return [name for name in names if name in chosen]


def common(rows: tables.Rows, steps: tuple[int, int], names: list[str]) -> tuple[list[tables.Row], list[str]]:
    """Datasets that were run with all of some columns, and those columns: the sparsest leave one after the other, and
    of all these selections the one that holds most cells is taken."""
    here = {key: row for key, row in sorted(rows.items()) if key[1] == steps}
    has = lambda key, name: name in here[key] and here[key][name].scored
    selections, names = [([], [])], list(names)
    while names:
        selections.append(([key for key in here if all(has(key, name) for name in names)], list(names)))
        names.remove(min(reversed(names), key=lambda name: sum(has(key, name) for key in here)))
    return max(selections, key=lambda selection: len(selection[0]) * len(selection[1]))


def title(axis, rows: tables.Rows, keys: list[tables.Row], names: list[str], candidates: list[str]) -> None:
    """How much is compared, and what had to be left out."""
    steps = tables.steps_in(*({name: rows[key][name] for name in names} for key in keys))
    text = f"{len(keys)} dataset{'s' * (len(keys) > 1)}, {steps} steps"
    axis.figure.suptitle(text + without(names, candidates), fontsize="medium")


def without(names: list[str], candidates: list[str]) -> str:
    missing = [name for name in candidates if name not in names]
    return "\n".join(["", *textwrap.wrap(f"without {', '.join(missing)}", 60)] if missing else [])


def save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_name(f"{path.name}.png"), metadata={"Software": None})
    figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None, "Creator": None})
    plt.close(figure)


# ------------------------------------------------------------------------------------------------ learning curves


def curves(rows: tables.Rows, path: Path) -> None:
    """A panel a dataset; the seeds themselves where they are few or the columns are."""
    names, wide = drawn(rows), 2 if len(rows) == 4 else min(len(rows), 3)
    styles, high = style(names, rows), -(-len(rows) // wide)
    size = (4 * wide, 2.7 * high + 0.5)
    figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(rows) :]:
        axis.remove()
    for axis, ((dataset, _), row) in zip(axes.flat, sorted(rows.items()), strict=False):
        for name in (name for name in names if name in row):
            runs = row[name].runs
            x = np.array([evaluation["step"] for evaluation in runs[0]["evaluations"]]) / 1000
            y = np.stack([tables.points(run) for run in runs])  # [seeds, evaluations]
            axis.plot(x, y.mean(axis=0), linewidth=2, label=name, **styles[name])
            if len(y) < 5 or len(row) <= 3:
                axis.plot(x, y.T, alpha=0.25, linewidth=0.7, **styles[name])
            if len(y) >= 5:
                low, top = zip(*(tables.interval(scores) for scores in y.T), strict=True)
                axis.fill_between(x, low, top, color=styles[name]["color"], alpha=0.15, linewidth=0)
        for switch in {
            run["arguments"]["steps"] for cell in row.values() for run in cell.runs if tables.duration(run)[1]
        }:
            axis.axvline(switch / 1000, color="gray", linestyle=":", linewidth=1)  # from here on online
        kinds = {"score" if cell.scored else "return" for cell in row.values()}
        axis.set(
            title=f"{dataset}\n{tables.steps_in(row)} steps",
            xlabel="thousand steps",
            ylabel=" and ".join(sorted(kinds)),
        )
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    fitting = int(12 * size[0] / (max(map(len, names)) + 8))  # beside each other, at this font's twelve letters an inch
    columns = max(1, min(len(names), 2 * wide, fitting))
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns)
    if left_out := without(names, tables.columns(rows)):
        figure.suptitle(left_out.strip(), fontsize="small")
    save(figure, path)


# ----------------------------------------------------------------------------------------------- profiles and cost


def profile(datasets: list[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Share of seeds above each threshold, averaged over datasets: a list of [..., seeds] -> [..., thresholds]."""
    return np.mean([(scores[..., None] > thresholds).mean(axis=-2) for scores in datasets], axis=0)


def profiles(rows: tables.Rows, steps: tuple[int, int], path: Path) -> None:
    keys, names = common(rows, steps, drawn(rows))
    if len(keys) < 2:
        return
    scores = {name: [rows[key][name].scores for key in keys] for name in names}
    values = np.concatenate([x for datasets in scores.values() for x in datasets])
    thresholds = np.linspace(min(0, values.min()), values.max(), 201)
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    styles = style(drawn(rows), rows)
    for name in names:
        looks = styles[name]
        axis.plot(thresholds, profile(scores[name], thresholds), label=name, linewidth=2, **looks)
        if min(map(len, scores[name])) >= 5:
            low, top = tables.bootstrap(scores[name], lambda datasets: profile(datasets, thresholds), 500)
            axis.fill_between(thresholds, low, top, color=looks["color"], alpha=0.15, linewidth=0)
    axis.set(xlabel="score x", ylabel="share of runs above x", ylim=(0, 1.02))
    title(axis, rows, keys, names, tables.columns(rows))
    figure.legend(loc="outside right center")
    save(figure, path)


def ran(cell: tables.Cell) -> set[str]:
    """The machines of a cell's seeds."""
    return {tables.machine(run) for run in cell.runs}


def cost(rows: tables.Rows, steps: tuple[int, int], path: Path) -> None:
    """Of the cells whose seeds all ran on the machine on which most did: seconds on two machines do not compare."""
    candidates = drawn(rows)
    counted = Counter(
        machine
        for (_, at), row in sorted(rows.items())
        if at == steps
        for cell in row.values()
        for machine in ran(cell)
    )
    [(where, _)] = counted.most_common(1)
    here = {key: {name: cell for name, cell in row.items() if ran(cell) == {where}} for key, row in rows.items()}
    keys, names = common(here, steps, candidates)
    if len(names) < 2:
        return
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for name in names:
        cells, place = [rows[key][name] for key in keys], candidates.index(name)
        scores, runs = [cell.scores for cell in cells], [run for cell in cells for run in cell.runs]
        x, y = np.mean([tables.seconds_a_seed(run) for run in runs]), tables.mean(scores)
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
        axis.plot(x, y, marker, color=colour, markersize=7, label=textwrap.fill(name, 24, break_on_hyphens=False))
        if min(map(len, scores)) >= 5:
            low, top = tables.bootstrap(scores, tables.mean)
            axis.errorbar(x, y, [[y - low], [top - y]], capsize=3, color=colour)
    axis.set(xlabel=f"seconds of training a seed ({where})", ylabel="mean score", xscale="log")
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    title(axis, rows, keys, names, tables.columns(rows))
    figure.legend(loc="outside right center")
    save(figure, path)


# --------------------------------------------------------------------------------------------------------- tuning


def best_of(scores: np.ndarray) -> np.ndarray:
    """Expected score of the best of k = 1 .. n configurations, drawn with replacement from the n that were run, as in
    the published curves: [..., configurations] -> [..., k]."""
    n = scores.shape[-1]
    k, i = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)
    weights = (i / n) ** k - ((i - 1) / n) ** k  # [k, i]: the chance that the best of k is the i-th from below
    return np.sort(scores, axis=-1) @ weights.T


def tuning(rows: tables.Rows, steps: tuple[int, int], path: Path) -> None:
    """Each dataset is tuned for itself; the curve is the mean over datasets. The band, from five seeds on, is the 95 %
    interval of a bootstrap that redraws the seeds of each configuration: other configurations are another question."""
    configurations = defaultdict(list)
    for name in tables.columns(rows):
        if not re.search(r" \(\d+\)$", name):  # other code or data is no configuration
            configurations[name.partition(" ")[0]].append(name)
    ours = {algorithm: common(rows, steps, names) for algorithm, names in sorted(configurations.items())}
    ours = {algorithm: selection for algorithm, selection in ours.items() if len(selection[1]) > 2}
    keys = sorted(set.intersection(*(set(keys) for keys, _ in ours.values()))) if ours else []
    if not keys:
        return
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    styles = style(list(dict.fromkeys([*drawn(rows), *ours])), rows)
    for algorithm, (_, names) in ours.items():
        scores, shape = [rows[key][name].scores for key in keys for name in names], (len(keys), len(names))

        def expected(scores: list[np.ndarray], shape=shape) -> np.ndarray:  # [..., seeds] each -> [..., k]
            means = np.stack([x.mean(axis=-1) for x in scores], axis=-1)
            return best_of(means.reshape(*means.shape[:-1], *shape)).mean(axis=-2)

        k, looks, label = np.arange(1, len(names) + 1), styles[algorithm], f"{algorithm} ({len(names)} configurations)"
        axis.plot(k, expected(scores), marker="o", markersize=4, label=label, **looks)
        if min(map(len, scores)) >= 5:
            low, top = tables.bootstrap(scores, expected)
            axis.fill_between(k, low, top, color=looks["color"], alpha=0.15, linewidth=0)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axis.set(xlabel="configurations tried online, k", ylabel="expected best score")
    title(axis, rows, keys, [name for _, names in ours.values() for name in names], [])
    axis.legend()
    save(figure, path)


# ----------------------------------------------------------------------------------------------------------- main


def figures(out: Path, benchmark: str, rows: tables.Rows) -> dict[tuple, Path]:
    """What may be drawn, and where it goes: (function, steps where it wants them) -> path without suffix."""
    every = sorted({steps for _, steps in rows})
    paths = {(curves,): out / "figures" / benchmark}
    for steps in every:
        for draw in (profiles, cost, tuning):
            length = "own" if steps == tables.OWN else "+".join(str(n) for n in steps if n)
            suffix = f"-{length}" if len(every) > 1 else ""
            paths[draw, steps] = out / "figures" / f"{benchmark}-{draw.__name__}{suffix}"
    return paths


def files(out: Path, benchmark: str, rows: tables.Rows, suffix: str) -> dict[Path, str]:
    """The figures of a benchmark that were drawn, and which each is."""
    paths = figures(out, benchmark, rows).items()
    named = {path.with_name(path.name + suffix): draw.__name__ for (draw, *_), path in paths}
    return {path: name for path, name in named.items() if path.exists()}


def main(runs: Path = tables.ROOT / "results/runs", out: Path = tables.ROOT / "results") -> None:
    """Writes the figures of `runs` to `out`/figures.

    Args:
        runs: folder that the scripts wrote to.
        out: folder for figures/.
    """
    cells, _ = tables.collect(tables.read(runs))
    if not cells:
        sys.exit(f"error: there is no finished run below {runs}; a script's --out says where it writes.")
    for benchmark, rows in sorted(cells.items()):
        for name in ("", *(f"-{draw.__name__}*" for draw in (profiles, cost, tuning))):  # of runs that are gone
            for path in (out / "figures").glob(f"{benchmark}{name}.[ps][nv]g"):
                path.unlink()
        for (draw, *steps), path in figures(out, benchmark, rows).items():
            draw(rows, *steps, path)
        print(f"{benchmark}: {', '.join(path.name for path in files(out, benchmark, rows, '.png'))}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
