"""Workers as jobs of a Hydra launcher (joblib, submitit for Slurm, Ray): `python -m autolora.commands.launch -m ...`.

A launcher only starts workers; which trial is whose is between them and the study's storage.
"""

from __future__ import annotations

import os
import subprocess
import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from autolora.config import ROOT
from autolora.study.search.local_workers import visible_gpus


def worker_command(config: DictConfig) -> list[str]:
    """The command line of a worker of the study that was named."""
    own = {key: OmegaConf.select(config, key) for key in ("out", "dataset.path", "model.path")}
    arguments = [f"{key}={value}" for key, value in own.items() if value is not None]
    return [sys.executable, "-P", "-m", "autolora.cli", "worker", f"study={config.study}", *arguments]


def own_gpu(worker: int) -> dict[str, str]:
    """What a worker has in its environment: one GPU, where several of its machine's are visible."""
    gpus = visible_gpus()
    return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}


@hydra.main(version_base="1.3", config_path=str((ROOT / "conf" / "launch").resolve()), config_name="workers")
def launch(config: DictConfig) -> None:
    """Be one worker until no trial is left; what it said of a failure is in the job's output."""
    # Not by leaving the process: Ray would take that for a lost machine, and start it over and over.
    subprocess.run(worker_command(config), env={**os.environ, **own_gpu(config.worker)}, check=True)


if __name__ == "__main__":
    launch()
