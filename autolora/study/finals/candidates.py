"""Candidates of the finals that need no training: averages of a trial's checkpoints, and rescaled copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from autolora.adapters.base import State
from autolora.evaluation.result import CheckpointResult, from_losses
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.train.checkpoint import Checkpoint
from autolora.train.loss import validation_losses


def average(
    trial_folder: TrialFolder, best: CheckpointResult, session: Session
) -> tuple[TrialFolder, CheckpointResult] | None:
    """The mean weights of the best checkpoint and its neighbours in training, in a folder beside the trial's.

    Weights averaged along a run often lie in a flatter minimum and generalize better (Izmailov et al. 2018). A new
    average is left loaded in the adapter; one that exists is read back. None if no neighbour was rendered.
    """
    folder = _folder_beside(trial_folder, "average")
    if folder.results:
        return folder, folder.results[0]
    results = trial_folder.rendered_neighbours(best)
    if len(results) < 2:
        return None
    session.context.adapter.load(mean_state([trial_folder.load(result) for result in results]))
    train_loss = sum(result.train_loss for result in results) / len(results)
    return _append_adapter(folder, best.step, train_loss, session, averaged=[result.step for result in results])


def rescaled(
    trial_folder: TrialFolder, result: CheckpointResult, strength: float, session: Session
) -> tuple[TrialFolder, CheckpointResult]:
    """A checkpoint whose change of the base model is multiplied by `strength`, in a folder beside its own.

    A LoRA that shows its character only at weight 1.25 is then exported as one that does so at weight 1. A new copy is
    left loaded in the adapter; one that exists is read back.
    """
    folder = _folder_beside(trial_folder, f"x{strength:g}")
    if folder.results:
        return folder, folder.results[0]
    session.context.adapter.load(trial_folder.load(result))
    session.context.adapter.rescale(strength)
    return _append_adapter(folder, result.step, result.train_loss, session, averaged=result.averaged, strength=strength)


def mean_state(states: Sequence[State]) -> State:
    """The mean of adapters of one kind and size, tensor by tensor; integer tensors are the first adapter's."""
    first = states[0]
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for key, tensor in first.items()
    }


def _folder_beside(trial_folder: TrialFolder, suffix: str) -> TrialFolder:
    path = trial_folder.path
    return TrialFolder.open_or_begin(path.with_name(f"{path.name}-{suffix}"), trial_folder.run, print)


def _append_adapter(
    folder: TrialFolder, step: int, train_loss: float, session: Session, **changes: Any
) -> tuple[TrialFolder, CheckpointResult]:
    """Write the loaded adapter as the only checkpoint of a folder; `changes` say how it was made."""
    context = session.context
    losses = validation_losses(context.model, context.dataset, context.latents, context.prompts, context.adapter, 0)
    checkpoint = Checkpoint(
        run=folder.run,
        step=step,
        epoch=0.0,
        state=context.adapter.state(),
        resume={},
        train_loss=train_loss,
        val_losses=losses,
        norms=None,
        seconds=0.0,
        done=True,
        diverged=False,
    )
    folder.append(checkpoint, replace(from_losses(checkpoint, session.base_losses), **changes))
    return folder, folder.results[0]
