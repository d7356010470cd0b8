"""A checkpoint that the finals score."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from autolora.evaluation.result import CheckpointResult, ties
from autolora.evaluation.trial_folder import TrialFolder


@dataclass(frozen=True)
class Finalist:
    """A checkpoint as the finals judged it: of a trial of the search, or of its recipe at another training seed."""

    trial: FrozenTrial
    record: TrialFolder
    point: CheckpointResult

    def overlaps(self, other: Finalist) -> bool:
        """Whether the two scores' intervals overlap."""
        return ties(self.point, other.point)


Candidate = tuple[
    FrozenTrial, TrialFolder, CheckpointResult, int | None
]  # a checkpoint, or its recipe at another training seed


def _name(asked: Candidate) -> str:
    """For a person."""
    source, _, before, seed = asked
    return f"trial {source.number}" + (
        f", {before.describe_place}" if seed is None else f" trained again with seed {seed}"
    )


def _key(asked: Candidate) -> str:
    _, record, before, seed = asked
    return record.key(before) + (f"+{seed}" if seed else "")
