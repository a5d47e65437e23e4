"""Tables and figures are a function of the JSON files, and say what is missing, unfinished, stale or mixed."""

import csv
import json
import re

import numpy as np
import plots
import pytest
import report
import scipy.stats
import tables
from conftest import ALGORITHMS, ROOT

ARCHIVES = ROOT.parent / "shared/data/scores"  # scores that others published, seed by seed
needs_archives = pytest.mark.skipif(not ARCHIVES.exists(), reason="the archives are not here")


def write(runs, seed, scores, *, algorithm="bc", group="g", dataset="hopper-medium-v2", benchmark="local", **rest):
    """A run's JSON as the scripts write it, with `scores` at steps 10, 20, ..."""
    folder = runs / benchmark / dataset / algorithm / group
    folder.mkdir(parents=True, exist_ok=True)
    evaluations = [
        {
            "step": 10 * (i + 1),
            "train_seconds": 1.0,
            "returns": [30.0 * x, 34.0 * x],
            **({} if benchmark == "raw" else {"score": x}),
        }
        for i, x in enumerate(scores)
    ]
    finished, script = rest.pop("finished", True), rest.pop("script", None)
    own_steps = rest.pop("own_steps", False)
    source, cpu, data = rest.pop("source", None), rest.pop("cpu", "a processor"), rest.pop("data", "rows")
    given = {"seeds": [seed], "steps": 10 * len(scores), **rest}
    content = {
        "algorithm": algorithm,
        "dataset": {"name": dataset, "benchmark": benchmark, "kept": 1000},
        "arguments": {**given, "tau": 0.1},
        "origin": {**dict.fromkeys(given, "command line"), "tau": source or "default"},
        "run": {k: v for k, v in given.items() if k != "out"}
        | {"data": data, "script": script or tables.fingerprint(str(ALGORITHMS / f"{algorithm}.py"), given)},
        "machine": {"cpu": cpu, "device": "cpu", "threads": 1},
        "seed": seed,
        "finished": finished,
        "steps_per_second": 100.0,
        "final": evaluations[-1],
        "evaluations": evaluations,
    }
    if own_steps:
        content["origin"]["steps"] = "default"
    (folder / f"seed_{seed}.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def made(runs, benchmark="local"):
    """The Markdown, and the table of scores as dataset -> column -> cell."""
    tables.main(runs, runs.parent / "out")
    text = (runs.parent / f"out/tables/{benchmark}.md").read_text()
    head, _, *body = [line.strip("| ").split(" | ") for line in text.split("\n\n")[3].splitlines()]
    return text, {row[0]: dict(zip(head, row + [""] * len(head), strict=False)) for row in body}


# -------------------------------------------------------------------------------------------------------- a cell


def test_the_time_of_an_online_run_counts_every_step_not_the_quick_ones_of_the_warmup():
    """12 steps in 20 s for two seeds, of which most took 1 s."""
    run = {
        "arguments": {"seeds": [0, 1], "steps": 4, "online_steps": 8},
        "steps_per_second": 4.0,
        "final": {"step": 12},
    }
    run["evaluations"] = [{"train_seconds": x} for x in (1.0, 1.0, 18.0)]
    assert tables.speed(run) == 0.6 and tables.seconds_a_seed(run) == pytest.approx(10)
    offline = {**run, "arguments": {"seeds": [0, 1], "steps": 12}}
    assert tables.speed(offline) == 4 and tables.seconds_a_seed(offline) == pytest.approx(10)


def test_seconds_a_seed_are_those_that_training_took_however_its_speed_changed():
    """Three chunks of 4 steps: their median would make 3 s of 20. A run that kept no seconds has its speed alone."""
    run = {"arguments": {"seeds": [0, 1], "steps": 12}, "steps_per_second": 4.0, "final": {"step": 12}}
    timed = {**run, "evaluations": [{"train_seconds": x} for x in (18.0, 1.0, 1.0)]}
    assert tables.seconds_a_seed(timed) == 10 and tables.seconds_a_seed({**run, "evaluations": [{}]}) == 1.5


def test_a_cell_is_mean_deviation_and_from_five_seeds_on_an_interval(runs):
    scores = [40.0, 50.0, 60.0, 55.0, 45.0]
    for seed, score in enumerate(scores[:4]):
        write(runs, seed, [0.0, score])
    expected = f"{np.mean(scores[:4]):.1f} ± {np.std(scores[:4], ddof=1):.1f}"
    assert made(runs)[1]["hopper-medium-v2"]["bc"] == expected
    write(runs, 4, [0.0, scores[4]])
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(scores), scipy.stats.sem(scores))
    assert made(runs)[1]["hopper-medium-v2"]["bc"] == f"50.0 ± 7.9 [{low:.1f}, {high:.1f}]"


@pytest.mark.parametrize("benchmark", ["OGBench", "OGBench-regenerated"])
def test_ogbench_takes_the_mean_of_its_last_three_evaluations(benchmark, runs):
    write(runs, 0, [99.0, 10.0, 20.0, 60.0], benchmark=benchmark)
    text, table = made(runs, benchmark)
    assert table["hopper-medium-v2"]["bc"] == "30.0" and "to be averaged" not in text
    write(runs, 1, [99.0, 10.0], benchmark=benchmark, dataset="another", online_steps=10, steps=10)
    write(runs, 0, [10.0], benchmark=benchmark, dataset="another")
    assert "seed_0.json` has but 1 of the 3 evaluations to be averaged." in made(runs, benchmark)[0]
    text, table = made(runs, f"{benchmark}-online")
    assert table["another"]["bc"] == "99.0 → 10.0" and "three" not in text, "online the last alone"


def test_without_references_the_return_is_shown_and_not_averaged(runs):
    for dataset in ("hopper-a", "hopper-b"):
        write(runs, 0, [1.0, 2.0], benchmark="raw", dataset=dataset)
    assert made(runs, "raw")[1].keys() == {"hopper-a", "hopper-b"}
    row, _ = csv.DictReader((runs.parent / "out/tables/raw-seeds.csv").open())
    assert row["score"] == "" and float(row["return"]) == 64


def test_flags_part_columns_and_circumstances_do_not(runs):
    write(runs, 0, [1.0, 10.0], group="a")
    write(runs, 1, [1.0, 20.0], group="b", out="elsewhere")
    write(runs, 0, [1.0, 70.0], group="c", fraction=0.1, normalize=False)
    row = made(runs)[1]["hopper-medium-v2"]
    assert row["bc --fraction 0.1 --no-normalize"] == "70.0" and row["bc"] == "15.0 ± 7.1"


# ------------------------------------------------------------------------------------- what is wrong with the runs


def test_other_code_or_data_is_never_averaged_and_the_fresh_run_comes_first(runs):
    write(runs, 0, [1.0, 90.0], group="a", script="another")
    write(runs, 1, [1.0, 10.0], group="b")
    write(runs, 2, [1.0, 20.0], group="c", data="other rows")
    text, table = made(runs)
    assert [table["hopper-medium-v2"][name] for name in ("bc", "bc (2)", "bc (3)")] == ["10.0", "20.0", "90.0 †"]
    assert "`bc (2)` differs from `bc` in data." in text and "`bc (3)` differs from `bc` in script." in text
    assert "bc.py has changed since its runs on hopper-medium-v2 (†)." in text


def test_an_unfinished_run_is_left_out_and_named(runs):
    write(runs, 0, [1.0, 10.0])
    write(runs, 1, [1.0, 90.0], finished=False, steps=50)
    text, table = made(runs)
    assert table["hopper-medium-v2"]["bc"] == "10.0"
    assert "seed_1.json` is unfinished, at step 20 of 50, and left out." in text


def test_different_data_of_one_name_is_named(runs):
    """Collected anew, a dataset has the same name and other bytes; also where the runs stand in different rows."""
    for algorithm, data in (("bc", "old"), ("td3_bc", "old"), ("iql", "new")):
        write(runs, 0, [1.0, 10.0], algorithm=algorithm, data=data)
    write(runs, 0, [1.0, 10.0], steps=20_000, group="h", data="new")
    parts = "`bc`, 20 steps, `td3_bc`, 20 steps; `bc`, 20,000 steps, `iql`, 20 steps."
    assert f"hopper-medium-v2: one recipe, but not the same bytes. Runs on each: {parts}" in made(runs)[0]


def test_missing_datasets_and_seeds_are_named(runs):
    for seed in range(2):
        write(runs, seed, [1.0, 10.0], seeds=[0, 1, 2])
    write(runs, 0, [1.0, 20.0], algorithm="iql")
    write(runs, 0, [1.0, 20.0], algorithm="iql", dataset="pen-human-v1")
    text, table = made(runs)
    assert "local/hopper-medium-v2/bc/g`: seed 2 is missing." in text
    assert table["pen-human-v1"]["bc"] == "" and "Empty: not run." in text
    assert "hopper-medium-v2: fewer seeds than the others' 2: `iql` 1." in text


def test_a_seed_that_was_trained_twice_counts_once(runs):
    write(runs, 0, [1.0, 10.0], group="a")
    write(runs, 0, [1.0, 12.0], group="b")
    text, table = made(runs)
    assert table["hopper-medium-v2"]["bc"] == "10.0" and "b/seed_0.json` is left out: seed 0 counts once" in text


def test_a_mixture_of_machines_is_named(runs):
    write(runs, 0, [1.0, 10.0])
    write(runs, 1, [1.0, 12.0], cpu="another")
    assert "hopper-medium-v2: `bc` mixes cpu (a processor, another)." in made(runs)[0]


def test_no_run_is_one_sentence(tmp_path):
    for program in (tables, plots, report):
        with pytest.raises(SystemExit, match="no finished run"):
            program.main(tmp_path, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ averages, sources


def test_a_suite_is_averaged_over_all_of_its_datasets_or_not_at_all(runs):
    for dataset, score in (("hopper-a", 10.0), ("walker2d-a", 20.0), ("halfcheetah-a", 90.0), ("pen-a", 0.0)):
        write(runs, 0, [score], dataset=dataset)
        if dataset != "hopper-a":
            write(runs, 0, [score], dataset=dataset, algorithm="iql")
    table = made(runs)[1]
    assert (
        table["mean of gym-mujoco (3 datasets)"]["bc"] == "40.0" and table["mean of all (4 datasets)"]["bc"] == "30.0"
    )
    assert table["mean of gym-mujoco (3 datasets)"]["iql"] == ""
    assert table["IQM of all (4 datasets)"]["bc"] == "15.0", "the mean of the two in the middle"


def test_each_algorithm_stands_with_its_own_steps_unless_they_were_asked_for(runs):
    write(runs, 0, [60.0])
    write(runs, 0, [10.0, 50.0, 70.0], algorithm="dt", own_steps=True)
    write(runs, 0, [10.0, 90.0], algorithm="iql", own_steps=True)
    text, _ = made(runs)
    assert "| hopper-medium-v2 | own |  | 70.0 | 90.0 |" in text and "| hopper-medium-v2 | 10 | 60.0 |  |  |" in text


def test_the_five_tasks_of_an_ogbench_dataset_are_a_suite():
    assert tables.suite("cube-single-play-singletask-task3-v0") == "cube-single-play"
    assert tables.suite("cube-single-play-singletask-v0") == "cube-single-play-singletask-v0", "one of the five"
    assert tables.suite("hopper-v5-medium-v0") == "gym-mujoco" and tables.suite("D4RL-door-human-v2") == "adroit"


def test_published_numbers_stand_only_beside_runs_on_the_same_benchmark(runs):
    for benchmark in ("D4RL", "local"):
        write(runs, 0, [60.0], benchmark=benchmark, own_steps=True)
    assert made(runs, "D4RL")[1]["hopper-medium-v2"] == {
        **{"dataset": "hopper-medium-v2", "steps": "10", "bc": "60.0"},
        "BC, CORL": "53.5 ± 1.8",
    }
    assert "BC, CORL: published." in made(runs, "D4RL")[0] and "CORL" not in made(runs, "local")[0]


def test_what_is_published_for_regenerated_tasks_has_a_table_of_its_own(runs):
    """Their authors' data is another benchmark than ours, made after their recipe."""
    task = "cube-single-play-singletask-task2-v0"
    write(runs, 0, [60.0], benchmark="OGBench-regenerated", dataset=task, algorithm="fql", own_steps=True)
    text, table = made(runs, "OGBench-regenerated")
    assert table[task].keys() == {"dataset", "steps", "fql"}
    assert (
        f"{tables.ORIGINAL}\n\n| dataset | BC, FQL paper | FQL, FQL paper | IQL, FQL paper | ReBRAC, FQL paper |"
        in text
    )
    assert f"| {task} | 3 ± 1 | 97 ± 2 | 85 ± 8 | 92 ± 4 |" in text
    assert "FQL, FQL paper: published. evaluation: mean of the last three; steps: 1000000; seeds: 8" in text


@pytest.mark.parametrize(("steps", "beside"), [(1_000_000, "53.5 ± 1.8"), (50_000, "")])
def test_published_numbers_stand_only_beside_runs_of_as_many_steps(steps, beside, runs):
    write(runs, 0, [60.0], benchmark="D4RL", steps=steps)
    assert made(runs, "D4RL")[1]["hopper-medium-v2"]["BC, CORL"] == beside


def test_another_environment_than_the_datasets_parts_columns(runs):
    write(runs, 0, [60.0], benchmark="D4RL", dataset="hopper-medium-v2", own_steps=True)
    path = next(runs.rglob("seed_0.json"))
    content = json.loads(path.read_text())
    for benchmark, column in (("D4RL", "bc --env Hopper-v5"), ("local", "bc")):
        content["dataset"]["benchmark"] = benchmark
        content["arguments"] |= {"dataset": "hopper-medium-v2", "env": "Hopper-v5"}
        content["origin"] |= {"env": "command line"}
        assert tables.column(content) == column
    content["arguments"]["dataset"] = None
    assert tables.column(content) == "bc", "of a script that has an environment alone"


def test_as_many_steps_in_all_but_another_switch_are_another_row(runs):
    write(runs, 0, [1.0, 2.0, 3.0], algorithm="iql", steps=20, online_steps=10)
    write(runs, 0, [1.0, 2.0, 3.0], algorithm="td3_bc", steps=0, online_steps=30)
    text, _ = made(runs, "local-online")
    assert "| hopper-medium-v2 | 20 + 10 | 2.0 → 3.0 |  |" in text and "| 0 + 30 |  |" in text


def test_published_fine_tuning_has_its_score_at_the_switch_and_its_regret(runs):
    million = {"steps": 1_000_000, "online_steps": 1_000_000}
    write(runs, 0, [60.0, 70.0], algorithm="iql", dataset="antmaze-umaze-v2", benchmark="D4RL", **million)
    assert made(runs, "D4RL-online")[1]["antmaze-umaze-v2"]["IQL, CORL"] == "77.0 → 96.5 ± 1.1, regret 0.07"


def test_model_based_runs_have_a_table_of_their_own_with_the_models_error(runs):
    write(runs, 0, [60.0], algorithm="mopo", benchmark="D4RL", model_members=7)
    write(runs, 0, [60.0], algorithm="bc", benchmark="D4RL")
    path = next(runs.rglob("mopo/*/seed_0.json"))
    content = json.loads(path.read_text())
    content["evaluations"][-1]["metrics"] = {"model_error": 0.01234}
    path.write_text(json.dumps(content))
    text, scores = made(runs, "D4RL-model-based")
    assert scores["hopper-medium-v2"]["mopo --model-members 7"] == "60.0"
    assert "| model's error |" in text and "| 0.0123 |" in text and "# D4RL, model-based" in text
    assert "mopo" not in made(runs, "D4RL")[0] and "error" not in made(runs, "D4RL")[0]
    write(runs, 0, [60.0], algorithm="ravl", benchmark="D4RL", model_members=7, simulator="Hopper-v5", group="h")
    assert "ravl" in made(runs, "D4RL-simulator")[0] and "ravl" not in made(runs, "D4RL-model-based")[0]


def test_tuned_and_searched_are_told(runs):
    write(runs, 0, [60.0], algorithm="rebrac", source="CORL eeeeef2, configs/offline/rebrac")
    write(runs, 0, [60.0], algorithm="bc", fraction=0.1)
    write(runs, 0, [60.0], algorithm="bc", fraction=0.2, group="h")
    text, _ = made(runs)
    assert "| tuned: CORL eeeeef2, configs/offline/rebrac | 1 here, 20 by its authors |" in text
    assert text.count("| untuned | 2 here |") == 2


# ---------------------------------------------------------------------------------------------------- statistics


def test_intervals_cover_the_truth():
    """Ten datasets of known distributions: from ten seeds on as often as they say, with five a little less."""
    rng = np.random.default_rng(1)
    centre, spread = rng.uniform(0, 100, 10), rng.uniform(2, 15, 10)
    population = lambda seeds: [c + s * rng.standard_normal(seeds) for c, s in zip(centre, spread, strict=True)]
    truth = {tables.mean: centre.mean(), tables.iqm: tables.iqm(population(200_000))}
    for seeds, least in ((5, 0.85), (10, 0.91)):
        covered = dict.fromkeys(truth, 0)
        for _ in range(200):
            sample = population(seeds)
            for statistic, value in truth.items():
                low, high = tables.bootstrap(sample, statistic, 300)
                covered[statistic] += low <= value <= high
        assert all(least <= count / 200 <= 0.99 for count in covered.values()), covered


def test_the_mean_counts_datasets_alike_and_the_iqm_takes_the_middle_half():
    datasets = [np.array([0.0, 0.0, 0.0, 8.0]), np.array([1.0, 1.0, 100.0, 1.0])]
    assert tables.mean(datasets) == (2 + 25.75) / 2
    assert tables.iqm(datasets) == np.sort(np.concatenate(datasets))[2:6].mean()
    assert tables.iqm([np.full(5, 10.0), np.full(20, 90.0)]) == 50, "however many seeds each has"


def test_the_best_of_k_is_what_trying_k_yields():
    scores, rng = np.array([3.0, 50.0, 10.0, 40.0]), np.random.default_rng(0)
    expected = plots.best_of(scores)
    assert expected[0] == scores.mean()
    for k in (2, 3, 4):
        tries = rng.choice(scores, (200_000, k)).max(axis=1)
        assert abs(tries.mean() - expected[k - 1]) < 5 * tries.std() / np.sqrt(len(tries))


def test_a_profile_is_the_share_above():
    datasets = [np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0, 6.0])]
    np.testing.assert_allclose(plots.profile(datasets, np.array([0.0, 1.5, 4.5])), [1, 0.75, 0.25])


@needs_archives
def test_the_archive_of_the_rebrac_paper_gives_the_papers_numbers():
    """Means and deviations over ten seeds (arXiv:2305.09836, which cuts off the second decimal), and its Table 9: the
    expected best of k configurations."""
    archive = json.loads((ARCHIVES / "rebrac_profiles_data.json").read_text())["data"]
    rows = csv.DictReader((ARCHIVES.parent.parent / "published/offline.csv").open())
    printed = {(x["algorithm"], x["dataset"]): x for x in rows if x["source"] == "ReBRAC paper"}
    compared = 0
    for algorithm in ("IQL", "TD3 + BC"):
        for dataset, scores in archive[algorithm].items():
            while isinstance(scores, dict):  # by hyper-parameters
                [scores] = scores.values()
            theirs = printed[algorithm.replace(" ", ""), dataset]
            assert abs(np.mean(scores) - float(theirs["score"])) < 0.11
            if algorithm == "IQL":  # two of TD3+BC's deviations are printed otherwise
                assert abs(np.std(scores, ddof=1) - float(theirs["std"])) < 0.11
            compared += 1
    assert compared == 72

    tried = json.loads((ARCHIVES / "rebrac_eop_domains.json").read_text())["data"]
    for algorithm, table in {
        "TD3 + BC": {1: 49.8, 2: 61.0, 3: 65.3, 5: 67.8},
        "IQL": {1: 65.0, 2: 69.9, 3: 71.7, 5: 72.9, 10: 73.6, 15: 73.8, 20: 74.0},
        "ReBRAC": {1: 62.0, 2: 70.6, 3: 73.3, 5: 74.8, 10: 75.6, 15: 75.8, 20: 76.0},
    }.items():
        best = plots.best_of(np.array(tried[algorithm]["Locomotion"]))
        assert all(abs(best[k - 1] - value) < 0.051 for k, value in table.items())


@needs_archives
def test_an_interval_on_real_scores_is_scipys():
    """One dataset, so that scipy's own bootstrap does the same."""
    archive = json.loads((ARCHIVES / "rebrac_profiles_data.json").read_text())["data"]["ReBRAC"]
    scores = np.array(archive["antmaze-large-play-v2"]["0.002"]["0.001"], float)
    theirs = scipy.stats.bootstrap(
        (scores,), lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis), method="percentile", rng=0
    ).confidence_interval
    np.testing.assert_allclose(tables.bootstrap([scores], tables.iqm, 20_000), theirs, atol=1.0)


# ---------------------------------------------------------------------------------------------------------- files


def test_the_same_runs_give_the_same_bytes(runs):
    for dataset in ("hopper-a", "walker2d-a"):
        for seed in range(5):
            for algorithm in ("bc", "iql"):
                write(runs, seed, [1.0, 2.0 + seed], algorithm=algorithm, dataset=dataset)
                for group, lr in (("h", 0.3), ("i", 0.5)):
                    write(runs, seed, [1.0, 3.0], algorithm=algorithm, dataset=dataset, group=group, lr=lr)
    for name in "ab":
        tables.main(runs, runs.parent / name)
        plots.main(runs, runs.parent / name)
    first, second = (
        {x.relative_to(y): x.read_bytes() for x in y.rglob("*.*")} for y in (runs.parent / n for n in "ab")
    )
    assert first == second
    suffixes = [".csv", ".md", ".tex", "-seeds.csv"], [".png", ".svg"]
    parts = ["", "-profiles", "-cost", "-tuning"]
    assert {str(x) for x in first} == {f"tables/local{x}" for x in suffixes[0]} | {
        f"figures/local{part}{x}" for part in parts for x in suffixes[1]
    }


def test_costs_are_drawn_of_the_machine_of_most_runs_alone(runs, monkeypatch):
    """The third algorithm ran on another, and is named as left out."""
    for algorithm, cpu in (("bc", "fast"), ("iql", "fast"), ("td3_bc", "slow")):
        write(runs, 0, [1.0, 2.0], algorithm=algorithm, cpu=cpu)
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    cells, _ = tables.collect(tables.read(runs))
    plots.cost(cells["local"], (20, 0), runs)
    [axis] = figures[0].axes
    assert axis.get_xlabel() == "seconds of training a seed (fast, 1 thread)"
    assert [line.get_label() for line in axis.lines] == ["bc", "iql"]
    assert "without td3_bc" in figures[0].get_suptitle()


def test_columns_of_one_dataset_differ_in_colour(runs):
    """As long as there are colours, whatever other datasets have."""
    names = [f"a{i}" for i in range(14)]
    rows = {("x", tables.OWN): dict.fromkeys(names[::2]), ("y", tables.OWN): dict.fromkeys(names[1::2])}
    styles = plots.style(names, rows)
    for row in rows.values():
        assert len({styles[name]["color"] for name in row}) == 7
    assert len({(x["color"], x["linestyle"]) for x in styles.values()}) == 14


def test_profiles_compare_on_common_datasets(runs):
    for algorithm, datasets in {"bc": "abcd", "iql": "abc", "td3_bc": "d"}.items():
        for dataset in datasets:
            write(runs, 0, [1.0], algorithm=algorithm, dataset=f"hopper-{dataset}")
    rows = tables.collect(tables.read(runs))[0]["local"]
    keys, names = plots.common(rows, (10, 0), ["bc", "iql", "td3_bc"])
    assert [dataset for dataset, _ in keys] == ["hopper-a", "hopper-b", "hopper-c"] and names == ["bc", "iql"]


def test_every_column_that_is_not_drawn_is_named(runs):
    for i in range(20):
        write(runs, 0, [1.0], group=str(i), lr=i / 10)
    rows = tables.collect(tables.read(runs))[0]["local"]
    assert len(plots.drawn(rows)) == 14
    left_out = plots.without(plots.drawn(rows), tables.columns(rows))
    assert all(name in plots.drawn(rows) or name.split()[-1] in left_out for name in tables.columns(rows))


def test_steps_that_were_asked_for_stand_beside_as_many_of_an_algorithms_own(runs):
    write(runs, 0, [1.0, 2.0], own_steps=True)
    write(runs, 0, [1.0, 3.0], algorithm="iql")
    text, cells = made(runs)
    assert cells["hopper-medium-v2"] == {"dataset": "hopper-medium-v2", "steps": "20", "bc": "2.0", "iql": "3.0"}
    assert text.count("| hopper-medium-v2 | 20 | 2.0 | 3.0 |") == 1


def test_a_benchmark_without_a_finished_run_is_named(runs, capsys):
    write(runs, 0, [1.0])
    write(runs, 0, [1.0], benchmark="D4RL", finished=False, steps=100)
    tables.main(runs, runs.parent / "out")
    assert "D4RL has no finished run" in capsys.readouterr().out
    report.main(runs, runs.parent)
    assert "D4RL: no finished run" in (runs.parent / "report.html").read_text()


def test_latex_has_nothing_that_latex_does_not_print(runs):
    write(runs, 0, [1.0, 2.0], algorithm="td3_bc", lr=0.3)
    write(runs, 1, [1.0, 4.0], algorithm="td3_bc", lr=0.3)
    tables.main(runs, runs.parent / "out")
    text = (runs.parent / "out/tables/local.tex").read_text()
    assert r"td3\_bc {-}{-}lr 0.3 \\" in text and r"3.0 $\pm$ 1.4 \\" in text and text.isascii()


def test_the_report_needs_nothing_but_itself_and_the_runs(runs):
    for seed in range(5):
        write(runs, seed, [1.0, 2.0 + seed])
    report.main(runs, runs.parent)
    text = (runs.parent / "report.html").read_text()
    links = [link for link in re.findall('(?:href|src)="([^"]*)"', text) if not link.startswith("#")]
    assert all(link.startswith("data:image/svg+xml;base64,") or (runs.parent / link).is_file() for link in links)
    assert {link for link in links if "json" in link} == {f"runs/{x.relative_to(runs)}" for x in runs.rglob("*.json")}
    assert "<td>4.0 ± 1.6 [2.0, 6.0]</td>" in text
