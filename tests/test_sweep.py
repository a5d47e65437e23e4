"""A sweep starts every run once, goes on after any stop, and says what failed. Most of it on a script without JAX."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import sweep
import tables
from conftest import ALGORITHMS, ROOT, command, run

# Counts --steps and --online-steps, one in 10 ms, notes each in a file, resumes from it, and dies as --die says.
COUNTER = """
import argparse, json, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Args:
    dataset: str; seeds: list; steps: int; online_steps: int; speed: float; die: str; out: str

def parse(words):
    parser = argparse.ArgumentParser()
    for name, kind, default in (("dataset", str, ""), ("steps", int, 20), ("online-steps", int, 0),
                                ("speed", float, 1.0), ("die", str, "")):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", default="")
    return Args(**vars(parser.parse_args(words))), {}

def fingerprint(path, arguments):
    return Path(path).read_text()

def main(args):
    folder = Path(args.out, "local", args.dataset, "counter", f"{args.seeds}-{args.speed}-{args.die}")
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "steps"
    step = len(notes.read_text().split()) if notes.exists() else 0
    if args.die == "refused":
        sys.exit(2)
    print("from", step, flush=True)
    last = args.steps + args.online_steps
    if step == args.steps == 0:  # as an online script, which begins with an evaluation
        record(args, folder, 0, last)
    while step < last:
        time.sleep(0.01 / args.speed)
        step += 1
        with open(notes, "a") as file:
            file.write(f"{step}\\n")
        if step % 10 == 0:
            record(args, folder, step, last)
        if args.die == "once" and step == 15 or args.die == "always":
            print("the end is near", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

def record(args, folder, step, last):
    for seed in args.seeds:
        entry = {"step": step, "wall_seconds": step / 100, "train_seconds": 0.1, "returns": [1.0], "score": 1.0}
        content = {
            "algorithm": "counter", "dataset": {"name": args.dataset, "benchmark": "local"}, "seed": seed,
            "arguments": vars(args), "run": {"script": fingerprint(__file__, vars(args))}, "finished": step >= last,
            "evaluations": [entry], "final": entry,
        }
        part = folder / f"seed_{seed}.part"  # a second sweep may read the JSON at any moment
        part.write_text(json.dumps(content))
        os.replace(part, folder / f"seed_{seed}.json")

if __name__ == "__main__":
    main(parse(sys.argv[1:])[0])
"""


@pytest.fixture
def counter(tmp_path, monkeypatch):
    """Sweeps of a folder of algorithms that holds the counter alone; the function runs one in this process."""
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms/counter.py").write_text(COUNTER)
    monkeypatch.setattr(sweep, "ALGORITHMS", tmp_path / "algorithms")

    def run(*flags, datasets=("a", "b", "c"), jobs=2, **rest):
        args = {"algorithms": ("counter",), "datasets": datasets, "out": tmp_path / "out", "jobs": jobs, "flags": flags}
        return sweep.main(sweep.Args(**(args | rest)))

    return run


def steps(tmp_path) -> dict[str, list[int]]:
    """Every step that was made, by dataset, in the order of making."""
    return {x.parent.parent.parent.name: list(map(int, x.read_text().split())) for x in tmp_path.rglob("steps")}


# ----------------------------------------------------------------------------------------------------- expansion


def test_a_grid_is_every_combination(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("""
        algorithms = ["bc", "td3_bc"]
        datasets = ["hopper-medium-v2", "my.hdf5 --env Hopper-v5"]
        seeds = [[0, 1], [2, 3]]
        [flags]
        steps = 1000
        normalize = [true, false]
        [flags.td3_bc]
        alpha = [1.0, 2.5, 5.0]
        hidden_dims = [[64, 64]]
    """)
    runs = [str(run) for run in sweep.expand(sweep.read_grid(sweep.Args(grid=path)))]
    assert len(runs) == len(set(runs)) == 2 * 2 * 2 + 2 * 2 * 2 * 3
    assert "bc --dataset my.hdf5 --env Hopper-v5 --seeds 2 3 --steps 1000 --no-normalize" in runs
    last = "--dataset hopper-medium-v2 --seeds 0 1 --steps 1000 --normalize --alpha 2.5 --hidden-dims 64 64"
    assert f"td3_bc {last}" in runs


def test_the_command_line_says_the_same_and_wins(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text('algorithms = ["bc"]\ndatasets = ["a"]\n[flags]\nsteps = 7\nbatch_size = 8\n')
    flags = ("steps=9,10", "td3_bc.hidden-dims=64 64", "normalize=false")
    given = sweep.Args(grid=path, algorithms=("bc", "td3_bc"), datasets=("--env X",), seeds=("0,1", "2"), flags=flags)
    runs = [str(run) for run in sweep.expand(sweep.read_grid(given))]
    assert len(runs) == 8 and "bc --env X --seeds 2 --steps 10 --batch-size 8 --no-normalize" in runs
    assert "td3_bc --env X --seeds 0 1 --steps 9 --batch-size 8 --no-normalize --hidden-dims 64 64" in runs


@pytest.mark.parametrize("name", ["pretrained", "dynamics"])
def test_a_run_is_done_whose_json_has_the_hash_of_what_it_began_from(name, tmp_path):
    file = tmp_path / "some.msgpack"
    file.write_bytes(b"weights")
    plan = sweep.Plan({"steps": 1, "out": "here", name: str(file)}, "script")
    content = {"arguments": {"steps": 1, name: hashlib.sha256(b"weights").hexdigest()}}
    assert plan.asked(content)
    file.write_bytes(b"other weights")
    assert not plan.asked(content)


def test_commands_that_come_to_the_same_run_run_once(tmp_path, capsys):
    """Other words for a value, a default that is said, another order of flags; in a grid and over it, too."""
    some = {"algorithms": ("bc",), "datasets": ("a",), "out": tmp_path, "dry_run": True}
    assert sweep.main(sweep.Args(**some, flags=("lr=0.001,1e-3,3e-4",))) == 0
    assert "2 runs, 0 done" in capsys.readouterr().out
    words = ("--dataset", "a"), ("--dataset", "a", "--batch-size", "256"), ("--batch-size", "256", "--dataset", "a")
    [run] = sweep.resolve([sweep.Run("bc", x) for x in words])
    assert run.words == words[0]
    grid = tmp_path / "grid.toml"
    grid.write_text('algorithms = ["bc"]\ndatasets = ["a"]\n[flags]\neval-every = [1000, 2000]\n')
    assert len(sweep.expand(sweep.read_grid(sweep.Args(grid=grid, flags=("eval-every=5000",))))) == 1


def test_shards_part_the_runs():
    runs = sweep.expand({"algorithms": ["bc"], "datasets": list("abcdefg"), "seeds": [[0]], "flags": {}})
    parts = [sweep.part(runs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(sum(parts, [])) == sorted(runs) and {len(x) for x in parts} == {2, 3}


def test_the_scripts_understand_every_grid():
    """One run of each grid, algorithm and kind of dataset."""
    grids = sorted((ROOT / "benchmarks/grids").glob("*.toml"))
    runs = [run for grid in grids for run in sweep.expand(sweep.read_grid(sweep.Args(grid=grid)))]
    some = {(run.algorithm, run.words[1].split("-")[0], run.words[2:]): run for run in runs}.values()
    assert grids and all(len(plan.arguments["seeds"]) >= 5 for plan in sweep.resolve(list(some)).values())


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"algorithms": ("td3_cb",), "datasets": ("a",)}, "td3_bc"),
        ({"algorithms": ("bc",)}, "--datasets"),
        ({"algorithms": ("bc",), "datasets": ("a",), "flags": ("alpha",)}, "flag=value"),
        ({"algorithms": ("bc",), "datasets": ("a",), "shard": "0/3"}, "--shard 0/3"),
        ({"algorithms": ("bc",), "datasets": ("",)}, "--datasets"),
        ({"algorithms": ("bc",), "datasets": ("a",), "flags": ("td3bc.alpha=1",)}, "no algorithm td3bc"),
        ({"algorithms": ("bc",), "datasets": ("a",), "jobs": -1}, "--jobs is -1"),
        ({"grid": ROOT / "no-grid.toml"}, "no-grid.toml"),
        ({"algorithms": ("bc",), "datasets": ("a",), "flags": ("alpha=1",)}, "bc --dataset a --seeds 0 --alpha 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_sentence_before_anything_runs(args, word, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        sweep.main(sweep.Args(**args, out=tmp_path))
    assert stop.value.code == 2 and word in capfd.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ['datasets = "hopper-medium-v2"', "flags = []"], ids=lambda line: line.split()[0])
def test_a_grid_has_lists_and_a_table(line, tmp_path, capfd):
    grid = tmp_path / "grid.toml"
    grid.write_text(line)
    with pytest.raises(SystemExit):
        sweep.main(sweep.Args(grid=grid, out=tmp_path / "out"))
    assert f"{line.split()[0]} in {grid} must be a" in capfd.readouterr().err


def test_seeds_of_a_grid_are_groups(tmp_path, capfd):
    grid = tmp_path / "grid.toml"
    grid.write_text('algorithms = ["bc"]\ndatasets = ["a"]\nseeds = [0, 1]\n')
    with pytest.raises(SystemExit):
        sweep.main(sweep.Args(grid=grid, out=tmp_path / "out"))
    assert "a list of groups" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ done and not done


def test_what_is_done_is_not_run_again_and_the_rest_is_timed(counter, tmp_path, capsys):
    assert counter(datasets=("a",)) == 0
    capsys.readouterr()
    assert counter(dry_run=True, datasets=("a", "b")) == 0
    out = capsys.readouterr().out
    assert "done  counter --dataset a --seeds 0\n" in out and "under 1 min  counter --dataset b --seeds 0\n" in out
    assert "2 runs, 1 done; 2 at a time" in out and steps(tmp_path).keys() == {"a"}
    assert counter(datasets=("a", "b")) == 0
    assert steps(tmp_path) == {x: list(range(1, 21)) for x in "ab"}


def test_other_arguments_seeds_or_code_are_not_done(counter, tmp_path, capsys):
    counter(datasets=("a",))
    capsys.readouterr()
    for flags, seeds in (("speed=2",), ()), ((), ("1",)):
        counter(*flags, seeds=seeds, datasets=("a",), dry_run=True)
        assert "1 runs, 0 done" in capsys.readouterr().out
    script = tmp_path / "algorithms/counter.py"
    script.write_text(script.read_text() + "# changed\n")
    counter(datasets=("a",), dry_run=True)
    assert "1 runs, 0 done" in capsys.readouterr().out


def test_a_group_is_done_when_all_its_seeds_are(counter, tmp_path, capsys):
    counter(datasets=("a",), seeds=("0,1",))
    [path] = tmp_path.rglob("seed_1.json")
    path.unlink()
    capsys.readouterr()
    counter(datasets=("a",), seeds=("0,1",), dry_run=True)
    assert "1 runs, 0 done" in capsys.readouterr().out


def test_online_steps_count_too(counter, tmp_path, capsys):
    """Of a run without others, too, whose first evaluation is at step 0: its time, and how much of it is done."""
    words = ["--dataset", "a", "--seeds", "0", "--steps", "0", "--online-steps", "20"]
    asked = sweep.Run("counter", tuple(words))
    [plan] = sweep.resolve([asked]).values()
    at = lambda step: {**content, "finished": False, "evaluations": [{"step": step, "wall_seconds": step / 100}]}
    assert counter("steps=0", "online-steps=20", datasets=("a", "b"), jobs=1) == 0
    assert capsys.readouterr().out.count("done: ") == 2 and steps(tmp_path).keys() == {"a", "b"}
    content = next(x for x in tables.read(tmp_path / "out") if x["dataset"]["name"] == "a")
    assert [sweep.fraction(asked, plan, [at(step)]) for step in (0, 5)] == [0, 0.25]
    assert sweep.speeds([at(0)]) == [] and sweep.seconds(asked, plan, sweep.speeds([at(10)])) == pytest.approx(0.2)


def test_an_unknown_time_is_said(counter, capsys):
    counter(dry_run=True)
    assert "unknown time left without counter: no run of the past" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- crashes and stops


def test_a_killed_run_goes_on_from_where_it_was(counter, tmp_path, capsys):
    assert counter("die=once", datasets=("a", "b")) == 0
    assert steps(tmp_path) == {x: list(range(1, 21)) for x in "ab"}, "no step is lost, none is made twice"
    assert capsys.readouterr().out.count("crashed") == 2


def test_a_run_that_always_crashes_is_reported_and_the_rest_goes_on(counter, tmp_path, capsys):
    assert counter("die=always,never", datasets=("a", "b"), retries=2) == 1
    told = capsys.readouterr()
    assert [told.out.count(f"] {event}: ") for event in ("crashed", "failed", "done")] == [4, 2, 2]
    assert "failed: counter --dataset a --seeds 0 --die always (exit code -9)" in told.err
    assert told.err.count("  the end is near") == 6, "the log of every start"


def test_what_the_user_must_mend_is_not_tried_again(counter, capsys):
    assert counter("die=refused", datasets=("a",)) == 1
    told = capsys.readouterr()
    assert "crashed" not in told.out and told.out.count("started") == 1


def process(tmp_path, *flags):
    """The same sweep as a process of its own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import sweep, pathlib\n"
    program += f"sweep.ALGORITHMS = pathlib.Path({str(tmp_path / 'algorithms')!r})\n"
    program += (
        f"datasets, out, flags = ('a', 'b', 'c'), pathlib.Path({str(tmp_path / 'out')!r}), {('steps=100', *flags)}\n"
    )
    program += (
        "sys.exit(sweep.main(sweep.Args(algorithms=('counter',), datasets=datasets, out=out, jobs=2, flags=flags)))"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_sweep_ends_its_runs_and_goes_on(by, counter, tmp_path):
    first = process(tmp_path)
    _wait(first, lambda: sum(map(len, steps(tmp_path).values())) >= 30)
    first.send_signal(by)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    before = steps(tmp_path)
    time.sleep(0.3)
    assert steps(tmp_path) == before and sum(map(len, before.values())) < 300, "nothing runs on"
    second = process(tmp_path)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and "3 of 3 done, 0 running, 0 failed" in out
    assert steps(tmp_path) == {x: list(range(1, 101)) for x in "abc"}


def test_a_killed_sweep_leaves_nothing_to_be_done_twice(counter, tmp_path):
    """Its runs live on; the next sweep waits for them."""
    first = process(tmp_path)
    _wait(first, lambda: sum(map(len, steps(tmp_path).values())) >= 10)
    first.kill()
    second = process(tmp_path)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and "3 of 3 done, 0 running, 0 failed" in out
    assert steps(tmp_path) == {x: list(range(1, 101)) for x in "abc"}


def test_a_run_has_its_cores_or_its_share_of_a_gpu():
    environment, cores = sweep.settings(1, 2, [], [0, 1, 2, 3])
    assert cores == [2, 3] and set(environment.values()) == {"2"}
    assert [sweep.settings(slot, 4, [], [0, 1])[1] for slot in range(4)] == [[0], [1], [0], [1]]
    environment = sweep.settings(3, 4, ["0", "1"], [0, 1, 2, 3])[0]
    assert environment == {"CUDA_VISIBLE_DEVICES": "1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert sweep.settings(0, 2, ["0", "1"], [0])[0] == {"CUDA_VISIBLE_DEVICES": "0"}


def test_on_ray_a_lost_node_loses_nothing_and_nothing_is_done_twice(counter, tmp_path, monkeypatch, capsys):
    """A cluster of two nodes on this machine; one is killed in the middle of its run."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    scratch = Path(tempfile.mkdtemp(prefix="solo-", dir="/tmp"))  # Ray's sockets want a short path
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "algorithms/dataset.py").write_text("")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)

    def lose_a_node():
        while len(steps(scratch)) < 2:  # a run on each
            time.sleep(0.01)
        cluster.remove_node(nodes[1], allow_graceful=False)

    killer = threading.Thread(target=lose_a_node)
    try:
        killer.start()
        assert counter("steps=150", datasets=("a", "b", "c"), engine="ray") == 0
        killer.join()
        deadline = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) > 2:
            assert time.monotonic() < deadline, "the node lives"
            time.sleep(0.1)
        assert steps(scratch) == {x: list(range(1, 151)) for x in "abc"}
        contents = tables.read(tmp_path / "out")
        assert sorted(x["dataset"]["name"] for x in contents) == ["a", "b", "c"] and all(
            x["finished"] for x in contents
        )
        logs = [path.read_text() for path in (tmp_path / "out/logs").glob("*.log")]
        starts = sorted(int(line.split()[1]) for log in logs for line in log.splitlines() if line.startswith("from "))
        assert starts[:3] == [0, 0, 0] and any(0 < start < 150 for start in starts), "one went on where it was killed"
        assert "1 of 3 done, 1 running" in capsys.readouterr().out
        assert counter("die=always", "steps=150", datasets=("a",), engine="ray", retries=1) == 1
        assert capsys.readouterr().err.count("  the end is near") == 2

        def interrupt():
            while "d" not in steps(scratch):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        assert counter("steps=3000", datasets=("d",), engine="ray") == 130
        before = steps(scratch)["d"]
        time.sleep(1)
        assert steps(scratch)["d"] == before and len(before) < 3000, "nothing runs on"
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ the real scripts


def test_killed_and_interrupted_real_runs_end_in_the_same_numbers(pendulum, tmp_path):
    """Two groups of seeds, a core each: SIGKILL for a run, then SIGINT for the sweep."""
    words = ["--algorithms", "bc", "--datasets", f"{pendulum} --env Pendulum-v1", "--seeds", "0,1", "2"]
    words += ["--flags", "steps=400", "eval-every=5", "eval-episodes=2", "batch-size=16", "hidden-dims=8 8"]
    program = [sys.executable, str(ROOT / "benchmarks/sweep.py"), *words, "--jobs", "2", "--out", str(tmp_path / "out")]
    first = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints = lambda: len(list((tmp_path / "out").rglob("checkpoint.msgpack")))
    _wait(first, lambda: checkpoints() == 2)
    before = _children(first.pid)
    os.kill(before[0], signal.SIGKILL)
    _wait(first, lambda: set(_children(first.pid)) - set(before))  # it has been started again
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "crashed" in out
    second = subprocess.run(program, capture_output=True, text=True)
    assert second.returncode == 0 and "2 of 2 done, 0 running, 0 failed" in second.stdout
    shutil.move(tmp_path / "out", tmp_path / "disturbed")
    assert subprocess.run(program, capture_output=True).returncode == 0
    results = [_returns(tmp_path / name) for name in ("out", "disturbed")]
    assert len(results[0]) == 3 and results[0] == results[1]
    assert tables.collect(tables.read(tmp_path / "out"))[1]["local"] == []


def _wait(process, condition) -> None:
    """For a condition, as long as the process lives; a failed test leaves no process behind."""
    deadline = time.monotonic() + 300
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGINT)
            pytest.fail(f"the sweep ended or hangs: {process.communicate(timeout=60)[0]}")
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    return [int(x) for x in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def _returns(out) -> dict[str, list]:
    contents = {str(x.relative_to(out)): json.loads(x.read_text()) for x in out.rglob("seed_*.json")}
    return {path: [(x["step"], x["returns"], x["metrics"]) for x in c["evaluations"]] for path, c in contents.items()}


def test_the_counter_speaks_as_the_scripts_do(pendulum, tmp_path):
    """What the sweep asks of a script, parse and fingerprint, and what it reads of its JSON."""
    arguments = command("bc", pendulum, tmp_path)
    assert run(arguments).returncode == 0
    [content] = tables.read(tmp_path)
    asked = sweep.Run("bc", tuple(arguments[2:]))
    [plan] = sweep.resolve([asked]).values()
    assert plan.same(content) and sweep.fraction(asked, plan, [content]) == 1
    [speed] = sweep.speeds([content])
    assert (speed.algorithm, speed.dataset, speed.seeds) == ("bc", str(pendulum), 1) and speed.seconds > 0


def test_a_run_whose_script_has_changed_starts_over(pendulum, tmp_path, monkeypatch, capsys):
    """The script itself would refuse the checkpoint."""
    shutil.copytree(ALGORITHMS, tmp_path / "algorithms", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sweep, "ALGORITHMS", tmp_path / "algorithms")
    flags = ("steps=40", "eval-every=20", "eval-episodes=1", "batch-size=16", "hidden-dims=8 8")
    data = (f"{pendulum} --env Pendulum-v1",)
    args = sweep.Args(algorithms=("bc",), datasets=data, flags=flags, out=tmp_path / "out", jobs=1)
    assert sweep.main(args) == 0
    capsys.readouterr()
    [before] = tables.read(tmp_path / "out")
    script = tmp_path / "algorithms/bc.py"
    script.write_text(script.read_text().replace("batch.actions) ** 2).mean()", "batch.actions) ** 2).mean() * 1.5"))
    assert sweep.main(args) == 0 and "1 runs, 0 done" in capsys.readouterr().out
    [after] = tables.read(tmp_path / "out")
    assert after["finished"] and after["run"]["script"] != before["run"]["script"]
