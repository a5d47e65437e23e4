"""All tables and figures in one HTML file that opens from disk without network.

    python benchmarks/report.py        # results/runs -> results/report.html                     (make report)

It is made from the same runs by the same functions as the tables and figures, which lie inside it; every seed links to
its JSON, relative to the file.
"""

import base64
import contextlib
import html
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import plots
import tables

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 85rem; padding: 0 1rem; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #222; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr.average td { font-weight: 600; background: #f4f4f4; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: end; }
figure { margin: 1rem 0; }
figcaption { max-width: 36rem; color: #555; }
img { max-width: 100%; display: block; }
summary { cursor: pointer; }
"""
CAPTIONS = {
    "curves": "Learning curves: mean over seeds, from five seeds on with the 95 % interval of the mean.",
    "profiles": "Performance profiles: the share of runs that score above x, every dataset counting alike.",
    "cost": "Score against the training time of one seed: its share of the group's time, evaluation left out.",
    "tuning": "Expected online performance: the best of k configurations, each dataset tuned for itself.",
}


def table(grid: list[list[Any]], runs: str) -> str:
    """`runs` is the path of the runs' folder from where the report lies."""

    def text(cell) -> str:
        if not isinstance(cell, list):
            return html.escape(str(cell))
        return " ".join(f'<a href="{html.escape(f"{runs}/{path}")}">{name}</a>' for name, path in cell)

    def line(row: list[Any], tag: str) -> str:
        average = str(row[0]).startswith(("mean of ", "IQM of "))
        cells = "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in row)
        return f'<tr class="average">{cells}</tr>' if average else f"<tr>{cells}</tr>"

    head, *body = grid
    lines = "\n".join(line(row, "td") for row in body)
    return f'<div class="wide"><table>\n<thead>{line(head, "th")}</thead>\n<tbody>\n{lines}\n</tbody></table></div>\n'


def picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(path.stem)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def main(runs: Path = tables.ROOT / "results/runs", out: Path = tables.ROOT / "results") -> None:
    """Writes the report of `runs` to `out`/report.html.

    Args:
        runs: folder that the scripts wrote to.
        out: folder for report.html.
    """
    cells, notes = tables.collect(tables.read(runs))
    if not cells:
        sys.exit(f"error: there is no finished run below {runs}; a script's --out says where it writes.")
    way = Path(os.path.relpath(runs, out)).as_posix()
    links = " · ".join(f'<a href="#{html.escape(name)}">{html.escape(name)}</a>' for name in sorted(cells))
    parts = [f"<p>{links}</p>\n<p>Made by <code>make report</code>. What a cell is:</p>\n"]
    parts += [f"<details><summary>benchmarks/tables.py</summary><pre>{html.escape(tables.__doc__)}</pre></details>\n"]
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            plots.main(runs, Path(folder))
        for benchmark, rows in sorted(cells.items()):
            facts, theirs = tables.published(benchmark, rows), tables.original(benchmark, rows)
            parts += [f'<h2 id="{html.escape(benchmark)}">{html.escape(benchmark)}</h2>\n']
            parts += [table(tables.score_grid(rows, facts), way)]
            parts += [f"<p>{tables.ORIGINAL}</p>\n", table(tables.original_grid(theirs), way)] if theirs else []
            told = tables.remarks(notes[benchmark], facts | theirs)
            parts += ["<ul>\n", *(f"<li>{html.escape(x)}</li>\n" for x in told)]
            drawn = plots.files(Path(folder), benchmark, rows, ".svg").items()
            parts += ['</ul>\n<div class="figures">\n', *(picture(path, CAPTIONS[name]) for path, name in drawn)]
            parts += ["</div>\n<details open><summary>the runs, with a link to each seed's JSON</summary>\n"]
            parts += [table(tables.run_grid(rows), way), "</details>\n"]
    for benchmark in sorted(notes.keys() - cells.keys()):
        parts += [f"<h2>{html.escape(benchmark)}: no finished run</h2>\n<ul>\n"]
        parts += [*(f"<li>{html.escape(note)}</li>\n" for note in notes[benchmark]), "</ul>\n"]
    out.mkdir(parents=True, exist_ok=True)
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>SOLO: results</title><style>{STYLE}'
    (out / "report.html").write_text(
        f"{page}</style></head>\n<body><h1>SOLO: results</h1>\n{''.join(parts)}</body></html>\n"
    )
    print(f"{out / 'report.html'}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
