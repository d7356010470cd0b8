"""Hydra launchers start workers: joblib and submitit for real on this machine, Slurm up to what it would be given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from autolora.config import ROOT
from autolora.study.launch import own_gpu, worker_command


def launched(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Two workers that are to join a study which nobody started."""
    command = [sys.executable, "-m", "autolora.study.launch", "-m", "study=mona", "worker=range(2)", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOLORA_STORAGE": f"sqlite:///{tmp_path}/hush.db"}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_each_job_is_a_worker(launcher: str, tmp_path: Path) -> None:
    done = launched(tmp_path, f"hydra/launcher={launcher}")
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.err"))
    said = done.stderr + logs
    assert said.count("autolora: no study mona in sqlite:///") >= 2, said  # each spoke for itself
    assert done.returncode != 0
    assert not [path for path in tmp_path.rglob("*.yaml") if "hush" in path.read_text()]


def test_what_slurm_is_asked_for() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str((ROOT / "conf" / "launch").resolve()), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "study=mona", "worker=3", "out=/scratch/mona", "dataset.path=/data/mona"]
        config = compose("workers", overrides=overrides, return_hydra_config=True)
    asked = config.hydra.launcher
    assert asked._target_.endswith("SlurmLauncher") and asked.gpus_per_node == 1 and asked.signal_delay_s == 120
    given = ["study=mona", "out=/scratch/mona", "dataset.path=/data/mona"]
    assert worker_command(config)[1:] == ["-m", "autolora.cli", "worker", *given]


def test_workers_of_one_machine_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [own_gpu(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["2", "5", "2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_gpu(0) == {}
