"""Candidates of the finals that cost no training: averages along a trial's curve, and copies stronger or weaker."""

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
    record: TrialFolder, best: CheckpointResult, session: Session
) -> tuple[TrialFolder, CheckpointResult] | None:
    """The mean weights of the best checkpoint and those beside it on its curve, as a record beside the trial's.

    Weights averaged along a run often lie flatter, and do better, than each (Izmailov et al. 2018). It is left loaded
    in the adapter where it is made; one made before is read back. None where no neighbour was worth a render.
    """
    own = _beside(record, "average")
    if own.results:
        return own, own.results[0]
    points, latest = record.around(best), record.latest()
    if len(points) < 2 or latest is None:
        return None
    session.context.adapter.load(mean_state([record.load(p) for p in points]))
    loss = sum(p.train_loss for p in points) / len(points)
    return _kept(own, replace(latest, step=best.step, train_loss=loss), session, averaged=[p.step for p in points])


def rescaled(
    record: TrialFolder, p: CheckpointResult, strength: float, session: Session
) -> tuple[TrialFolder, CheckpointResult] | None:
    """A checkpoint whose change of the base model is multiplied by `strength`, as a record beside its own.

    So a LoRA that draws its character at weight 1.25 only is exported as one that does at 1. It is left loaded in the
    adapter where it is made; one made before is read back. None where its trial has no checkpoint to continue from.
    """
    own = _beside(record, f"x{strength:g}")
    if own.results:
        return own, own.results[0]
    latest = record.latest()
    if latest is None:
        return None
    session.context.adapter.load(record.load(p))
    session.context.adapter.rescale(strength)
    checkpoint = replace(latest, step=p.step, train_loss=p.train_loss)
    return _kept(own, checkpoint, session, averaged=p.averaged, strength=strength)


def mean_state(states: Sequence[State]) -> State:
    """Adapters of one kind and size as their mean, tensor by tensor; what is no number of a scale is the first's."""
    first = states[0]
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for key, tensor in first.items()
    }


def _beside(record: TrialFolder, name: str) -> TrialFolder:
    return TrialFolder.open(record.path.with_name(f"{record.path.name}-{name}"), record.run)


def _kept(
    own: TrialFolder, checkpoint: Checkpoint, session: Session, **made: Any
) -> tuple[TrialFolder, CheckpointResult]:
    """What lies in the adapter, as the one point of its record."""
    context = session.context
    checkpoint = replace(
        checkpoint,
        state=context.adapter.state(),
        resume={},
        val_losses=validation_losses(
            context.model, context.dataset, context.latents, context.prompts, context.adapter, 0
        ),
        done=True,
    )
    own.append(checkpoint, replace(from_losses(checkpoint, session.base_losses), **made))
    return own, own.results[0]
