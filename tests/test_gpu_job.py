"""Statements about the job for a GPU machine without a network."""

import os
import shutil
import subprocess
import tarfile

import pytest
from conftest import ROOT


@pytest.mark.skipif(not shutil.which("bash"), reason="a bash script")
def test_a_call_leaves_json_of_all_runs_and_the_checkpoints_of_unfinished_ones(tmp_path):
    """Of those, only what this call left: an earlier one may have had more."""
    for folder in ("benchmarks", "results/speed", "data/gpu/timed", "out"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks/gpu_job.sh", tmp_path / "benchmarks")
    (tmp_path / "data/gpu/began").touch()
    (tmp_path / "out/state.ab").write_text("of an earlier call")
    runs = tmp_path / "data/gpu/runs"
    for name, finished in (("done", "true true"), ("begun", "false false"), ("odd", "true false")):
        (runs / name).mkdir(parents=True)
        (runs / name / "checkpoint.msgpack").touch()
        for seed, word in enumerate(finished.split()):
            (runs / name / f"seed_{seed}.json").write_text(f'{{\n"finished": {word}\n}}')
    script = tmp_path / "benchmarks/gpu_job.sh"
    subprocess.run(["bash", script, "pack"], env=os.environ | {"OUT": str(tmp_path / "out")}, check=True)
    kept = {path.parent.name for path in runs.rglob("checkpoint.msgpack")}
    with tarfile.open(tmp_path / "out/json.tgz") as json, tarfile.open(tmp_path / "out/state.aa") as state:
        assert sum(name.endswith(".json") for name in json.getnames()) == 6
        assert sorted(state.getnames()) == ["runs/begun/checkpoint.msgpack", "runs/odd/checkpoint.msgpack"]
    assert kept == {"begun", "odd"} and not (tmp_path / "out/state.ab").exists()
