"""What does the storage of a study cost? Workers on one PostgreSQL server, with 10, 100 and 1,000 stored trials.

    python -m experiments.speed.storage

It starts a server of its own. A worker does for each trial what it does in a study: it takes the trial from the queue,
samples its parameters, reports and asks for pruning at each checkpoint, sends heartbeats, and ends the trial. Where it
would train, it sleeps, for eight seconds per trial instead of a minute: the rest of its time is the overhead. Workers
start one after the other, as in a study. They share the cores of this machine with the server, which real workers would
not. Writes experiments/results/storage/storage.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.provenance import provenance
from autolora.settings import Budget, StudySettings
from autolora.study.optuna_internals import storage_of, study_id_of, trial_id_of
from autolora.study.sampler import PerTrialSeededTPE
from autolora.study.search.leases import TrialLeases
from autolora.study.search.queue import Queue
from autolora.study.storage import open_storage
from autolora.study.trials import keep_constraints
from experiments.common import results
from experiments.common.arguments import argument_parser
from tests.study.postgres import postgres

WORKERS = (2, 4, 8)
STORED = (10, 100, 1000)
TRIALS_OF_WORKER = 4
CHECKPOINTS = 8
SLEEP = 1.0  # seconds before each checkpoint
MINUTE = 60.0  # seconds of the trial that the overhead is compared with
OUT = results.RESULTS / "storage" / "storage.json"


def study_of(url: str, name: str) -> optuna.Study:
    """Open the study as a worker does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2)
    storage, sampler = open_storage(url, print), PerTrialSeededTPE(0, 8)
    return optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, pruner=pruner, direction="maximize", load_if_exists=True
    )


def sample(trial: Trial) -> float:
    """Sample seven keys, as many as the quickstart's largest recipe has, and return a score that depends on them."""
    values = [trial.suggest_float(f"key{i}", 0, 1) for i in range(7)]
    return float(-np.square(np.asarray(values) - 0.5).sum())


def store(url: str, name: str, count: int) -> None:
    """Add trials that have ended to the study."""
    rng = np.random.default_rng(0)
    unit = optuna.distributions.FloatDistribution(0, 1)
    trials = []
    for _ in range(count):
        values = {f"key{i}": float(rng.uniform()) for i in range(7)}
        score = float(-sum((v - 0.5) ** 2 for v in values.values()))
        steps = dict.fromkeys(range(1, CHECKPOINTS + 1), score)
        trials.append(
            optuna.create_trial(
                params=values, distributions=dict.fromkeys(values, unit), value=score, intermediate_values=steps
            )
        )
    study_of(url, name).add_trials(trials)


def work(url: str, name: str, trials: int, delay: float, gate: Any, seconds: Any) -> None:
    """Run the trials of one worker; put the seconds of overhead of each, and its processor seconds, into a queue.

    Args:
        url: of the storage.
        name: of the study.
        trials: the number of trials of the whole study.
        delay: seconds before the worker starts.
        gate: a barrier at which all workers wait for each other.
        seconds: the queue.
    """
    study = study_of(url, name)
    settings = StudySettings(name, {}, Budget(trials))
    took = []
    storage, study_id = storage_of(study), study_id_of(study)
    with TrialLeases(storage, study_id, settings.heartbeat_interval, settings.grace_period, print) as leases:
        queue = Queue(study, settings, leases, Bars())
        study.get_trials()  # a worker reads the whole study once, at its first access
        gate.wait()
        time.sleep(delay)
        for _ in range(TRIALS_OF_WORKER):
            began, computed = time.perf_counter(), time.process_time()
            trial = queue.next()
            assert trial is not None
            score, trial_id = sample(trial), trial_id_of(trial)
            trial.set_user_attr("uid", str(trial.number))
            for step in range(1, CHECKPOINTS + 1):
                time.sleep(SLEEP)
                assert leases.holds(trial_id) and leases.holds(trial_id)
                trial.set_user_attr("scoring_seconds", 1.0)
                trial.report(score, step)
                trial.should_prune()
            keep_constraints(storage, trial, dict.fromkeys("abcdef", 0.0))
            leases.end(trial_id)
            study.tell(trial, score, state=TrialState.COMPLETE)
            took.append((time.perf_counter() - began - CHECKPOINTS * SLEEP, time.process_time() - computed))
    seconds.put(took)


def measure(url: str, workers: int, stored: int) -> dict[str, float]:
    """Return the seconds of overhead per trial with several workers at once."""
    name = f"{workers}-{stored}"
    forked = multiprocessing.get_context("fork")  # this process holds no connection that a child could inherit
    before = forked.Process(target=store, args=(url, name, stored))
    before.start()
    before.join()
    gate, seconds = forked.Barrier(workers), forked.SimpleQueue()
    trials = stored + workers * TRIALS_OF_WORKER
    delays = [CHECKPOINTS * SLEEP * place / workers for place in range(workers)]
    started = [forked.Process(target=work, args=(url, name, trials, delay, gate, seconds)) for delay in delays]
    for process in started:
        process.start()
    took = [trial for _ in started for trial in seconds.get()]
    for process in started:
        process.join()
    low, median, high = (round(float(q), 3) for q in np.quantile([wall for wall, _ in took], [0.25, 0.5, 0.75]))
    computed = round(float(np.median([processor for _, processor in took])), 3)
    return {
        "workers": workers,
        "stored": stored,
        "trials": len(took),
        "seconds": median,
        "low": low,
        "high": high,
        "computed": computed,
        "of_a_minute": round(median / MINUTE, 4),
    }


def main() -> None:
    """Measure every number of workers with every number of stored trials."""
    parser = argument_parser(__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=OUT, help="the file to write")
    args = parser.parse_args()
    rows = []
    with postgres() as server:
        for workers in WORKERS:
            for stored in STORED:
                rows.append(measure(server.url, workers, stored))
                print(rows[-1], flush=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    facts = {**provenance(), "load": load}
    write_atomic(args.out, json.dumps({**facts, "trials": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
