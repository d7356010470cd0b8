"""Checkpoints: a run's adapter and everything that is needed to continue training exactly."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autolora.adapters.base import NormStats, State
from autolora.errors import BrokenFile, StudyError
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
        BrokenFile: the file is broken.
        StudyError: it cannot be read, or belongs to another run.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        fingerprint = content.pop("fingerprint")
        content["norms"] = NormStats(**content["norms"]) if content["norms"] else None
        checkpoint = Checkpoint(run=run, **content)
        numbers = [checkpoint.step, checkpoint.epoch, checkpoint.train_loss, checkpoint.seconds, *checkpoint.val_losses]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("a step or a loss is no number")
        if not all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.state.values()):
            raise TypeError("it holds no adapter")
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error}); mend that and run the same command again") from error
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BrokenFile(f"{path} is broken ({reason}): restore it from a copy, or delete it to begin anew") from error
    if fingerprint != run.fingerprint():
        raise StudyError(f"{path} belongs to another recipe than {run.name}; delete it or use another study name")
    return checkpoint
