"""Searches MOPO's design choices by Bayesian optimisation: penalty, its weight, length of rollouts, number of models.

    pip install optuna
    python benchmarks/tune.py --dataset solo/hopper-v5/medium-replay-v0 --trials 30 --steps 20000   # repeat it to go on

After Lu, Ball, Parker-Holder, Osborne and Roberts, "Revisiting Design Choices in Offline Model-Based Reinforcement
Learning" (arXiv:2110.04135), who search the same four by CASMOPOLITAN; here it is optuna's TPE, which takes names and
numbers alike. The weight is searched on a logarithmic scale for every penalty by itself, since penalties differ by
orders of magnitude. A trial is a run of algorithms/mopo.py by benchmarks/sweep.py, which starts a run that crashes
again and does not repeat a finished one; its value is the mean of its seeds' last scores (returns, where the dataset
has no reference).

The score is of the environment: what is found this way was selected online and is no offline result, as in the paper.
All trials lie in <out>/optuna.db; one that was interrupted is tried again first, and goes on from its checkpoint.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tables import fail, fingerprint, pipes

ROOT = Path(__file__).parent.parent
WEIGHTS = {  # bounds of lambda: u is near 1 for the first four on Hopper, and above 10 for log_likelihood
    "aleatoric": (0.1, 20.0),
    "pairwise": (0.1, 50.0),
    "ensemble_std": (0.1, 20.0),
    "ensemble_variance": (0.1, 50.0),
    "log_likelihood": (0.001, 1.0),
    "leave_one_out": (0.01, 5.0),
    "disagreement": (0.1, 50.0),
}


@dataclasses.dataclass(frozen=True)
class Args:
    dataset: str = "solo/hopper-v5/medium-replay-v0"
    trials: int = 30  # in all, those of earlier starts included
    steps: int = 20_000  # gradient steps of a trial
    seeds: tuple[int, ...] = (0,)  # of a trial, whose mean counts
    flags: tuple[str, ...] = ("model-epochs=10", "rollout-starts=2000")  # flag=value of mopo.py, the same in all trials
    out: Path = ROOT / "results/tune"  # folder of the study and its runs
    seed: int = 0  # of the search


def choose(trial) -> dict[str, Any]:
    """Arguments of mopo.py, of an optuna trial."""
    penalty = trial.suggest_categorical("penalty", list(WEIGHTS))
    members = trial.suggest_int("model_members", 3, 15, step=2)
    return {
        "penalty": penalty,
        "penalty_weight": trial.suggest_float(f"penalty_weight.{penalty}", *WEIGHTS[penalty], log=True),
        "rollout_length": trial.suggest_int("rollout_length", 1, 50, log=True),
        "model_members": members,
        "model_elites": max(2, round(5 / 7 * members)),  # the share of the defaults
    }


def command(args: Args, chosen: dict[str, Any]) -> list[str]:
    """Of the sweep that is one trial."""
    flags = [f"steps={args.steps}", f"eval-every={max(1, args.steps // 10)}", *args.flags]
    flags += [f"{k.replace('_', '-')}={v}" for k, v in chosen.items()]
    script = [sys.executable, str(ROOT / "benchmarks/sweep.py"), "--algorithms", "mopo", "--datasets", args.dataset]
    return [*script, "--seeds", ",".join(map(str, args.seeds)), "--out", str(runs(args)), "--flags", *flags]


def name(args: Args) -> str:
    """Of the study: another task is another study, and so is another mopo.py."""
    script = fingerprint(str(ROOT / "algorithms/mopo.py"), {})
    return json.dumps([args.dataset, args.steps, args.seeds, args.flags, script])


def runs(args: Args) -> Path:
    """The folder of the study's runs."""
    return args.out / "runs" / hashlib.sha256(name(args).encode()).hexdigest()[:8]


def score(args: Args, chosen: dict[str, Any]) -> float:
    """The mean over seeds of the last evaluation, of the finished run with the chosen arguments."""
    found = []
    for file in sorted(runs(args).glob("**/mopo/**/seed_*.json")):
        content = json.loads(file.read_text())
        if content["finished"] and all(content["arguments"][k] == v for k, v in chosen.items()):
            final = content["final"]
            found.append(final["score"] if "score" in final else np.mean(final["returns"]))
    if len(found) != len(args.seeds):
        raise RuntimeError(f"{len(found)} of {len(args.seeds)} seeds of {chosen} are finished")
    return float(np.mean(found))


def run(args: Args, chosen: dict[str, Any]) -> float:
    sweep = subprocess.Popen(command(args, chosen))
    try:
        code = sweep.wait()
    except KeyboardInterrupt:  # the sweep had it too, and stops its runs
        code = sweep.wait()
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"the sweep ended with exit code {code}")
    return score(args, chosen)


def search(args: Args, objective: Callable[[Args, dict[str, Any]], float] = run):
    """The optuna study after `trials` trials; a trial that fails counts, one that was interrupted is tried again."""
    try:
        import optuna
    except ModuleNotFoundError:
        fail("optuna is missing, which nothing else here needs: pip install optuna.")
    args.out.mkdir(parents=True, exist_ok=True)
    place = f"sqlite:///{args.out / 'optuna.db'}"
    study = optuna.create_study(storage=place, study_name=name(args), direction="maximize", load_if_exists=True)
    # A new start must not repeat the first one's choices.
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + 1000 * len(study.trials))
    state = optuna.trial.TrialState
    for trial in study.get_trials(states=(state.RUNNING,)):  # of a start that was stopped
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        study.tell(trial.number, state=state.FAIL)

    def attempt(trial) -> float:
        try:
            return objective(args, choose(trial))
        except KeyboardInterrupt:  # which optuna takes for a failure of the trial
            sys.exit(130)

    def left() -> bool:
        ended = study.get_trials(deepcopy=False, states=(state.COMPLETE, state.FAIL))
        first = [trial for trial in ended if "again" not in trial.user_attrs]
        return len(first) < args.trials or bool(study.get_trials(deepcopy=False, states=(state.WAITING,)))

    while left():
        study.optimize(attempt, n_trials=1, catch=(RuntimeError,))
    return study


def table(study) -> str:
    rows = [("score", "penalty", "weight", "length", "members")]
    done = [trial for trial in study.trials if trial.value is not None]
    for trial in sorted(done, key=lambda trial: -trial.value):
        x = trial.params
        weight = x[f"penalty_weight.{x['penalty']}"]
        length, members = str(x["rollout_length"]), str(x["model_members"])
        rows.append((f"{trial.value:.1f}", x["penalty"], f"{weight:.3g}", length, members))
    return pipes(rows)


if __name__ == "__main__":
    import tyro

    print(table(search(tyro.cli(Args, description=__doc__))))
