"""The average of a trial's best checkpoint with its neighbours: a candidate of the finals that costs no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from autolora.adapters.base import State
from autolora.study.trial import Point, Record, unrendered
from autolora.study.workbench import Workbench
from autolora.train.loss import validation_losses


def average(record: Record, best: Point, work: Workbench) -> tuple[Record, Point] | None:
    """The mean weights of the best checkpoint and those beside it on its curve, as a record beside the trial's.

    Weights averaged along a run often lie flatter, and do better, than each (Izmailov et al. 2018). It is left loaded
    in the adapter where it is made; one made before is read back. None where no neighbour was worth a render.
    """
    own = Record.open(record.folder.with_name(f"{record.folder.name}-average"), record.run)
    if own.curve:
        return own, own.curve[0]
    points, latest, bench = record.around(best), record.latest(), work.bench
    if len(points) < 2 or latest is None:
        return None
    state = mean_state([record.load(p) for p in points])
    bench.adapter.load(state)
    checkpoint = replace(
        latest,
        step=best.step,
        state=state,
        resume={},
        train_loss=sum(p.train_loss for p in points) / len(points),
        val_losses=validation_losses(bench.model, bench.dataset, bench.latents, bench.prompts, bench.adapter, 0),
        done=True,
    )
    own.add(checkpoint, replace(unrendered(checkpoint, work.base_losses), averaged=[p.step for p in points]))
    return own, own.curve[0]


def mean_state(states: Sequence[State]) -> State:
    """Adapters of one kind and size as their mean, tensor by tensor; what is no number of a scale is the first's."""
    first = states[0]
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for key, tensor in first.items()
    }
