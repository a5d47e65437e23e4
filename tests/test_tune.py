"""Statements about the search of MOPO's design choices; where optuna is missing, those that need none."""

import dataclasses
import json
import subprocess
import sys

import mopo
import pytest
import sweep
import tune
from conftest import ROOT

ARGS = tune.Args(trials=12, steps=40, seeds=(0, 1))
CHOSEN = {"penalty": "pairwise", "penalty_weight": 2.0, "rollout_length": 3, "model_members": 5, "model_elites": 4}


def finished(args, seed, score, **arguments):
    own = {**CHOSEN, "steps": 40, "seeds": [0, 1], "dataset": ARGS.dataset} | arguments
    number = len(list(args.out.glob("**/*.json")))
    path = tune.runs(args) / f"solo/hopper/mopo/group-{number}/seed_{seed}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"finished": True, "arguments": own, "final": {"score": score, "returns": [1.0]}}))


def test_every_penalty_has_bounds_and_every_choice_is_an_argument_of_the_script():
    assert tune.WEIGHTS.keys() == mopo.PENALTIES.keys()
    assert CHOSEN.keys() <= {field.name for field in dataclasses.fields(mopo.Args)}


def test_a_trial_is_one_run_of_the_sweep():
    words = tune.command(ARGS, CHOSEN)
    assert words[1].endswith("sweep.py") and "penalty=pairwise" in words and "rollout-length=3" in words
    flags = tuple(words[words.index("--flags") + 1 :])
    grid = sweep.Args(algorithms=("mopo",), datasets=(ARGS.dataset,), seeds=("0,1",), flags=flags)
    assert len(sweep.expand(sweep.read_grid(grid))) == 1


def test_its_value_is_the_mean_of_the_seeds_of_just_that_run(tmp_path):
    args = dataclasses.replace(ARGS, out=tmp_path)
    finished(args, 0, 10.0)
    finished(dataclasses.replace(args, flags=("rollout-starts=5000",)), 1, 50.0)
    with pytest.raises(RuntimeError, match="1 of 2"):
        tune.score(args, CHOSEN)
    finished(args, 1, 30.0)
    finished(args, 0, 99.0, penalty="aleatoric")
    assert tune.score(args, CHOSEN) == 20.0


def test_without_optuna_one_sentence_says_so(tmp_path):
    code = f"import sys; sys.modules['optuna'] = None; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import tune; "
    done = subprocess.run(
        [sys.executable, "-c", code + "tune.search(tune.Args())"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stderr == (
        "error: optuna is missing, which nothing else here needs: pip install optuna.\n"
    )


def test_ctrl_c_waits_for_the_sweep_which_stops_its_runs(monkeypatch):
    waits = iter([KeyboardInterrupt(), 130])

    class Sweep:
        def __init__(self, command):
            pass

        def wait(self):
            if isinstance(answer := next(waits), BaseException):
                raise answer
            return answer

    monkeypatch.setattr(subprocess, "Popen", Sweep)
    with pytest.raises(KeyboardInterrupt):
        tune.run(ARGS, CHOSEN)
    assert next(waits, None) is None


def test_a_trial_goes_from_the_search_to_a_run_and_back(pendulum, tmp_path):
    """Its value is what the run's JSON says."""
    pytest.importorskip("optuna")
    flags = ("env=Pendulum-v1", "termination=never", "model-epochs=1", "rollout-starts=4", "batch-size=16")
    args = tune.Args(str(pendulum), 1, 10, (0, 1), (*flags, "eval-episodes=1"), tmp_path)
    study = tune.search(args)
    contents = [json.loads(file.read_text()) for file in tmp_path.glob("runs/**/seed_*.json")]
    assert len(contents) == 2 and study.best_value == sum(x["final"]["returns"][0] for x in contents) / 2
    assert contents[0]["arguments"]["penalty"] == study.best_params["penalty"]


def test_a_search_goes_on_where_it_was_stopped(tmp_path):
    """A made-up score: an interrupted trial is tried again with the same choices, a failed one counts."""
    pytest.importorskip("optuna")
    args, seen = dataclasses.replace(ARGS, out=tmp_path), []

    def objective(args, chosen):
        seen.append(chosen)
        if len(seen) == 3:
            raise RuntimeError("a crash")
        if len(seen) == 6:
            raise KeyboardInterrupt
        return chosen["rollout_length"] + 5 * (chosen["penalty"] == "pairwise")

    with pytest.raises(SystemExit):
        tune.search(args, objective)
    study = tune.search(args, objective)
    assert len(seen) == 13 and seen[6] == seen[5]
    assert len({str(x) for x in seen}) == 12, "no other choice is made twice"
    assert study.best_value == max(x["rollout_length"] + 5 * (x["penalty"] == "pairwise") for x in seen[:2] + seen[6:])
    assert all(x["model_elites"] < x["model_members"] for x in seen)
    assert tune.table(study).count("\n") == 2 + 11
    assert len(tune.search(args, objective).trials) == len(study.trials), "and is done"
