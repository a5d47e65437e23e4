"""Tables are a function of the JSON files, and say what is missing, unfinished, stale or mixed."""

import csv
import json

import numpy as np
import pytest
import scipy.stats
import tables
from conftest import ALGORITHMS


def write(runs, seed, scores, *, algorithm="bc", group="g", finished=True, script=None, benchmark="D4RL", **arguments):
    """A run's JSON as the scripts write it, with `scores` at steps 10, 20, ..."""
    folder = runs / benchmark / "hopper-medium-v2" / algorithm / group
    folder.mkdir(parents=True, exist_ok=True)
    evaluations = [
        {"step": 10 * (i + 1), "returns": [30.0 * x, 34.0 * x], **({} if benchmark == "raw" else {"score": x})}
        for i, x in enumerate(scores)
    ]
    given = {"seeds": [seed], "steps": 10 * len(scores), **arguments}
    content = {
        "algorithm": algorithm,
        "dataset": {"name": "hopper-medium-v2", "benchmark": benchmark, "kept": 1000},
        "arguments": given,
        "origin": dict.fromkeys(given, "command line"),
        "run": {**given, "script": script or tables.fingerprint(str(ALGORITHMS / f"{algorithm}.py"))},
        "machine": {"cpu": "a processor", "device": "cpu", "threads": 1},
        "seed": seed,
        "finished": finished,
        "steps_per_second": 100.0,
        "final": evaluations[-1],
        "evaluations": evaluations,
    }
    (folder / f"seed_{seed}.json").write_text(json.dumps(content))


def made(runs, tmp_path):
    tables.main(runs, tmp_path / "out")
    return (tmp_path / "out/tables/D4RL.md").read_text()


def test_a_cell_is_mean_deviation_and_from_five_seeds_on_an_interval(tmp_path):
    scores = [40.0, 50.0, 60.0, 55.0, 45.0]
    for seed, score in enumerate(scores[:4]):
        write(tmp_path / "runs", seed, [0.0, score])
    assert f"| {np.mean(scores[:4]):.1f} ± {np.std(scores[:4], ddof=1):.1f} |" in made(tmp_path / "runs", tmp_path)
    write(tmp_path / "runs", 4, [0.0, scores[4]])
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(scores), scipy.stats.sem(scores))
    assert f"50.0 ± 7.9 [{low:.1f}, {high:.1f}]" in made(tmp_path / "runs", tmp_path)


def test_the_same_runs_give_the_same_bytes(tmp_path):
    for seed in range(5):
        write(tmp_path / "runs", seed, [1.0, 2.0 + seed])
    made(tmp_path / "runs", tmp_path / "a"), made(tmp_path / "runs", tmp_path / "b")
    for file in ("tables/D4RL.md", "tables/D4RL.csv", "figures/D4RL.png"):
        assert (tmp_path / "a/out" / file).read_bytes() == (tmp_path / "b/out" / file).read_bytes()


def test_flags_part_columns_and_circumstances_do_not(tmp_path):
    write(tmp_path / "runs", 0, [1.0, 10.0], group="a")
    write(tmp_path / "runs", 1, [1.0, 20.0], group="b", out="elsewhere")
    write(tmp_path / "runs", 0, [1.0, 70.0], group="c", fraction=0.1)
    text = made(tmp_path / "runs", tmp_path)
    assert "`bc --fraction 0.1`" in text and "| 70.0 |" in text


def test_other_code_or_data_is_never_averaged(tmp_path):
    write(tmp_path / "runs", 0, [1.0, 10.0], group="a")
    write(tmp_path / "runs", 1, [1.0, 90.0], group="b", script="another")
    text = made(tmp_path / "runs", tmp_path)
    assert "| 10.0 | 90.0 |" in text and "differs from `bc` in code or data" in text and "has changed since" in text


def test_an_unfinished_run_is_left_out_and_named(tmp_path):
    write(tmp_path / "runs", 0, [1.0, 10.0])
    write(tmp_path / "runs", 1, [1.0, 90.0], finished=False)
    text = made(tmp_path / "runs", tmp_path)
    assert "| 10.0 |" in text and "seed_1.json` is unfinished" in text and "90" not in text


@pytest.mark.parametrize(
    "benchmark, title",
    [("OGBench", "# OGBench\n"), ("OGBench-regenerated", "# OGBench, regenerated: the published recipe, not the")],
)
def test_ogbench_takes_the_mean_of_its_last_three_evaluations(benchmark, title, tmp_path):
    write(tmp_path / "runs", 0, [99.0, 10.0, 20.0, 60.0], benchmark=benchmark)
    tables.main(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / f"out/tables/{benchmark}.md").read_text()
    assert "| 30.0 |" in text and text.startswith(title)


def test_without_references_the_return_is_shown(tmp_path):
    write(tmp_path / "runs", 0, [1.0, 2.0], benchmark="raw")
    tables.main(tmp_path / "runs", tmp_path / "out")
    assert "| 64.0 |" in (tmp_path / "out/tables/raw.md").read_text()
    [row] = csv.DictReader((tmp_path / "out/tables/raw.csv").open())
    assert row["score"] == "" and float(row["return"]) == 64


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no finished run"):
        tables.main(tmp_path, tmp_path / "out")
