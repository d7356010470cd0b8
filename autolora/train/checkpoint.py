"""Checkpoints: a run's adapter and everything that is needed to continue training exactly."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autolora.adapters.base import NormStats, State
from autolora.errors import StudyError
from autolora.files import atomic_path
from autolora.train.run import Run


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at one moment."""

    run: Run
    step: int  # images shown so far
    epoch: float
    state: State  # the adapter
    resume: dict[str, Any]  # what the slot needs to continue
    train_loss: float
    val_losses: tuple[float, ...]  # by timestep, low noise first
    norms: NormStats | None
    seconds: float  # of training, without renders and scores
    done: bool
    diverged: bool

    @property
    def val_loss(self) -> float:
        """The mean of the validation losses."""
        return sum(self.val_losses) / len(self.val_losses)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    content = {name: value for name, value in vars(checkpoint).items() if name != "run"}
    content["norms"] = asdict(checkpoint.norms) if checkpoint.norms else None
    content["fingerprint"] = checkpoint.run.fingerprint()
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load(path: Path, run: Run) -> Checkpoint:
    """Read a checkpoint of a run.

    Raises:
        StudyError: the file is broken or belongs to another run.
    """
    try:
        content = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}); delete it and run the same command again") from error
    if content.pop("fingerprint") != run.fingerprint():
        raise StudyError(f"{path} belongs to another recipe than {run.name}; delete it or use another study name")
    content["norms"] = NormStats(**content["norms"]) if content["norms"] else None
    return Checkpoint(run=run, **content)
