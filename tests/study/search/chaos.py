"""Workers that are killed at random: `main`, which a test runs in a process of its own.

It loads a tiny model once and forks workers, each of which joins the study as `autolora worker` does and trains for
real; what they measure is the validation loss. A worker is killed whenever some more checkpoints are scored.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import LoRA
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.progress import Bars
from autolora.settings import build_settings
from autolora.study.budget import StudyClock
from autolora.study.definition import StudyDefinition, define_study
from autolora.study.lifecycle import join_study, open_study
from autolora.study.running import RunningStudy
from autolora.study.search.worker import run_study
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.loss import validation_losses
from autolora.train.slot import TrainingContext
from tests import tiny

TRIALS = 12
CHECKPOINTS = 4  # of each trial
STUDY = f"""# @package _global_
defaults: [override /model: paperdoll, override /scoring: paperdoll]
budget: {{n_trials: {TRIALS}}}
study:
  name: chaos
  heartbeat_interval: 0.5
  grace_period: 5
  recipes:
    doll-adamw:
      optimizer.lr: {{log: [1.0e-4, 1.0e-2]}}
      adapter.dim: {{choice: [2, 4]}}
train:
  {{epochs: {CHECKPOINTS}, images_per_concept: 4, min_character_images: 0, batch_size: 4}}
adapter: {{dim: 2, alpha: 2}}
optimizer: {{lr: 1.0e-3}}
"""
BASE_HASH = "tiny"


@dataclass(frozen=True)
class Settings:
    """What happens: `outage` are the commands that crash the database, half-way, and start it again."""

    folder: str
    pictures: str
    storage: str | None
    workers: int
    kills: int
    seed: int
    outage: list[list[str]]


class ScoredByLoss(Session):
    """Writes down what it measures; otherwise a workbench whose pictures cannot be measured."""

    def measure(self, checkpoint: Checkpoint, *rest: Any) -> CheckpointResult:
        note(Path("measured"), f"{checkpoint.run.fingerprint()} {checkpoint.step}")
        return super().measure(checkpoint, *rest)


class Said(Bars):
    """Bars whose words go to a file."""

    def log(self, line: str) -> None:
        note(Path("said"), f"{os.getpid()} {line}")


def note(path: Path, line: str) -> None:
    """Append a line, whole also if several processes do."""
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def planned(settings: Settings) -> StudyDefinition:
    """The study."""
    study = Path(settings.folder) / "chaos.yaml"
    study.write_text(STUDY)
    arguments = [f"out={settings.folder}", f"dataset.path={settings.pictures}"]
    config = cfg.compose("tune", arguments, str(study))
    if settings.storage:
        config.storage = settings.storage
    return define_study(build_settings(config, str(study), arguments))


def open_tiny_session(settings: Settings) -> Session:
    """A tiny model; validation loss is what there is to score."""
    model = tiny.load_tiny(tiny.save_tiny(Path(settings.folder) / "model"))
    dataset = load_dataset(DatasetSettings(path=settings.pictures))
    adapter = attach(model.modules, LoRA(dim=4, alpha=2))
    context = TrainingContext(
        model, adapter, dataset, LatentCache(model, Path(settings.folder) / "cache"), PromptCache(model)
    )
    losses = validation_losses(model, dataset, context.latents, context.prompts, adapter)
    nothing: Any = None
    return ScoredByLoss(context, nothing, nothing, nothing, (), None, "by validation loss alone", losses)


def forked(session: Callable[[], None]) -> int:
    """Run in a child process; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        session()
        code = 0
    except BaseException:
        note(Path("said"), f"{os.getpid()} {traceback.format_exc()}")
    finally:
        os._exit(code)


def start(definition: StudyDefinition) -> None:
    """What `autolora tune` does first, and the recipes of this study, all of them known."""
    study = open_study(definition, BASE_HASH, print)
    rng = random.Random(0)
    for _ in range(TRIALS - 1):
        values = {"optimizer.lr": 10 ** rng.uniform(-4, -2), "adapter.dim": rng.choice([2, 4])}
        named = {f"doll-adamw/{key}": value for key, value in values.items()}
        study.enqueue_trial(named, user_attrs={"baseline": "doll-adamw"})


def run(
    definition: StudyDefinition, study: optuna.Study, session: Session, bars: Bars, machine: str | None = None
) -> None:
    """What `autolora worker` does."""
    clock = StudyClock(study, definition.settings, time.time())
    run_study(RunningStudy(definition, study, session, bars, clock), machine)


def lines(path: Path) -> int:
    """How many lines a file has so far."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for(words: str) -> None:
    """Wait until a worker has said so."""
    while words not in Path("said").read_text():
        time.sleep(0.02)


def main(settings: Settings) -> None:
    """Start, kill, start again, wait for the end."""
    os.chdir(settings.folder)
    torch.set_num_threads(1)
    definition = planned(settings)
    session = open_tiny_session(settings)
    assert os.waitstatus_to_exitcode(os.waitpid(forked(lambda: start(definition)), 0)[1]) == 0
    rng, born = random.Random(settings.seed), 0

    def worker() -> int:
        nonlocal born
        born += 1
        machine = f"elsewhere-{born}" if born % 2 else None  # half of them can only be missed by their heartbeats
        bars = Said()
        return forked(lambda: run(definition, join_study(definition, BASE_HASH, bars.log), session, bars, machine))

    alive = [worker() for _ in range(settings.workers)]
    for kill in range(settings.kills):
        while lines(Path("measured")) < (kill + 1) * TRIALS * CHECKPOINTS * 5 // 6 // settings.kills:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2))
        victim = alive.pop(rng.randrange(len(alive)))
        os.kill(victim, signal.SIGKILL)
        assert os.waitpid(victim, 0)[1] == signal.SIGKILL, "it had ended already"
        note(Path("killed"), str(victim))
        if settings.outage and kill == settings.kills // 2:
            crash, start_again = settings.outage
            subprocess.run(crash, check=True, stdout=subprocess.DEVNULL)
            wait_for("waiting for it")  # however quick the server is, a worker notices
            subprocess.run(start_again, check=True, stdout=subprocess.DEVNULL)
            wait_for("is reachable again")
        alive.append(worker())
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in alive]
    assert codes == [0] * settings.workers, codes
