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
from optuna.trial import TrialState

from autolora import config as cfg
from autolora.commands.launch import own_gpu, worker_command
from autolora.config import ROOT
from autolora.models.load import load_model
from autolora.paperdoll.world import write_dataset
from autolora.settings import build_settings
from autolora.study.definition import define_study
from autolora.study.lifecycle import open_study
from tests import tiny
from tests.study.search import chaos

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

FEW_RENDERS = """
model: {resolution: 32, render: {num_inference_steps: 1, search_inference_steps: 1}}
scoring:
  {trigger_prompts: [smile], outfit_prompts: [hat, glasses], class_prompts: [smile], unrelated_prompts: [city],
   weights: [1.0], num_negative_renders: 8, num_class_renders: 2, seeds_per_class_prompt: 1, n_bootstrap: 20}
"""


def launched(tmp_path: Path, workers: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """So many workers that are to join a study."""
    command = [sys.executable, "-m", "autolora.commands.launch", "-m", f"worker=range({workers})", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOLORA_STORAGE": f"sqlite:///{tmp_path}/hush.db"}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_each_job_is_a_worker(launcher: str, tmp_path: Path) -> None:
    done = launched(tmp_path, 2, "study=mona", f"hydra/launcher={launcher}")
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.err"))
    said = done.stderr + logs
    assert said.count("autolora: no study mona in sqlite:///") >= 2, said  # each spoke for itself
    assert done.returncode != 0
    assert not [path for path in tmp_path.rglob("*.yaml") if "hush" in path.read_text()]


def test_a_launched_worker_runs_a_study_to_its_end(tmp_path: Path) -> None:
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6, size=32)
    model, study = tiny.save_tiny(tmp_path / "model"), tmp_path / "tiny.yaml"
    definition = chaos.STUDY.replace(f"n_trials: {chaos.TRIALS}", "n_trials: 3")
    study.write_text(f"{definition}{FEW_RENDERS}cache: {tmp_path}/cache\n")
    places = [f"out={tmp_path}/run", f"dataset.path={tmp_path}/doll", f"model.path={model}"]
    config = cfg.compose("tune", places, str(study))
    config.storage = f"sqlite:///{tmp_path}/hush.db"
    settings = build_settings(config, str(study), places)
    begun = open_study(define_study(settings), load_model(settings.model).base_hash, print)
    done = launched(tmp_path, 1, "study=chaos", *places, "hydra/launcher=joblib")
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in begun.trials] == [TrialState.COMPLETE] * 3
    assert len({trial.user_attrs["uid"] for trial in begun.trials}) == 3
    assert (done.stdout + done.stderr).count("study chaos: no trial is left") == 1


def test_what_slurm_is_asked_for() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str((ROOT / "conf" / "launch").resolve()), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "study=mona", "worker=3", "out=/scratch/mona", "dataset.path=/data/mona"]
        config = compose("workers", overrides=overrides, return_hydra_config=True)
    asked = config.hydra.launcher
    assert asked._target_.endswith("SlurmLauncher") and asked.gpus_per_node == 1 and asked.signal_delay_s == 120
    given = ["study=mona", "out=/scratch/mona", "dataset.path=/data/mona"]
    assert worker_command(config)[1:] == ["-P", "-m", "autolora.cli", "worker", *given]


def test_workers_of_one_machine_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [own_gpu(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["2", "5", "2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_gpu(0) == {}
