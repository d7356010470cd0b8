"""What a storage costs a trial: workers on one PostgreSQL, with 10, 100 and 1,000 trials already stored.

`python -m experiments.speed.storage [FILE.json]` starts a server of its own and writes to FILE, or to
experiments/results/storage/storage.json. A trial is what a worker asks of the storage for one: it is taken from the queue,
drawn, reported and judged for pruning at each checkpoint, kept by heartbeats, and told. Where a worker would train it
sleeps, eight seconds a trial instead of a minute: the other time is overhead. Workers begin one after the other, as
they do; all share this machine's cores with the server, as they would not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.provenance import provenance
from autolora.study.search.leases import TrialLeases
from autolora.study.search.queue import Queue
from autolora.study.search.sampler import PerTrialSeededTPE
from autolora.study.settings import Budget, StudySettings
from autolora.study.storage import open_storage
from autolora.study.trials import keep_constraints
from tests.study.postgres import postgres

WORKERS = (2, 4, 8)
STORED = (10, 100, 1000)
EACH = 4  # trials a worker runs
CHECKPOINTS = 8
ASLEEP = 1.0  # seconds before each checkpoint
MINUTE = 60.0  # seconds of the trial that the overhead is compared with
OUT = Path(__file__).parents[1] / "results" / "storage" / "storage.json"


def study_of(url: str, name: str) -> optuna.Study:
    """The study as a worker opens it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2)
    storage, sampler = open_storage(url, print), PerTrialSeededTPE(0, 8)
    return optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, pruner=pruner, direction="maximize", load_if_exists=True
    )


def drawn(trial: Trial) -> float:
    """Seven keys, as in the quickstart's largest recipe, and a score that follows from them."""
    values = [trial.suggest_float(f"key{i}", 0, 1) for i in range(7)]
    return float(-np.square(np.asarray(values) - 0.5).sum())


def store(url: str, name: str, count: int) -> None:
    """Trials that ended before."""
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
    """A worker's trials; puts the seconds of each, and how many of them this process computed."""
    study = study_of(url, name)
    settings = StudySettings(name, {}, Budget(trials))
    took = []
    with TrialLeases(
        study._storage, study._study_id, settings.heartbeat_interval, settings.grace_period, print
    ) as leases:
        queue = Queue(study, settings, leases, Bars())
        study.get_trials()  # the first look at a study reads all of it, once in a worker's life
        gate.wait()
        time.sleep(delay)
        for _ in range(EACH):
            began, computed = time.perf_counter(), time.process_time()
            trial = queue.next()
            assert trial is not None
            score = drawn(trial)
            trial.set_user_attr("uid", str(trial.number))
            for step in range(1, CHECKPOINTS + 1):
                time.sleep(ASLEEP)
                assert leases.holds(trial._trial_id) and leases.holds(trial._trial_id)
                trial.set_user_attr("scoring_seconds", 1.0)
                trial.report(score, step)
                trial.should_prune()
            keep_constraints(study._storage, trial, dict.fromkeys("abcdef", 0.0))
            leases.end(trial._trial_id)
            study.tell(trial, score, state=TrialState.COMPLETE)
            took.append((time.perf_counter() - began - CHECKPOINTS * ASLEEP, time.process_time() - computed))
    seconds.put(took)


def measure(url: str, workers: int, stored: int) -> dict[str, float]:
    """The seconds of a trial, by several workers at once."""
    name = f"{workers}-{stored}"
    forked = multiprocessing.get_context("fork")  # this process holds no connection that a child could inherit
    before = forked.Process(target=store, args=(url, name, stored))
    before.start()
    before.join()
    gate, seconds = forked.Barrier(workers), forked.SimpleQueue()
    trials = stored + workers * EACH
    delays = [CHECKPOINTS * ASLEEP * place / workers for place in range(workers)]
    started = [forked.Process(target=work, args=(url, name, trials, delay, gate, seconds)) for delay in delays]
    for process in started:
        process.start()
    took = [one for _ in started for one in seconds.get()]
    for process in started:
        process.join()
    low, median, high = (round(float(q), 3) for q in np.quantile([wall for wall, _ in took], [0.25, 0.5, 0.75]))
    computed = round(float(np.median([own for _, own in took])), 3)
    return {"workers": workers, "stored": stored, "trials": len(took), "seconds": median, "low": low, "high": high,
            "computed": computed, "of_a_minute": round(median / MINUTE, 4)}  # fmt: skip


def main() -> None:
    """Measure all of it."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    rows = []
    with postgres() as server:
        for workers in WORKERS:
            for stored in STORED:
                rows.append(measure(server.url, workers, stored))
                print(rows[-1], flush=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    facts = {**provenance(), "load": load}
    write_atomic(out, json.dumps({**facts, "trials": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
