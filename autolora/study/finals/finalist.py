"""What the finals score, and what they scored."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from autolora.evaluation.result import CheckpointResult, ties
from autolora.evaluation.trial_folder import TrialFolder


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to score, or its recipe to train again with another seed up to the same number of images."""

    trial: FrozenTrial
    trial_folder: TrialFolder
    result: CheckpointResult  # as the search scored it
    seed_offset: int | None = None  # is added to the recipe's training seed; None: the checkpoint itself is scored

    @property
    def name(self) -> str:
        """The candidate in words, for logs."""
        trial = f"trial {self.trial.number}"
        if self.seed_offset is None:
            return f"{trial}, {self.result.describe_place}"
        return f"{trial} trained again with seed {self.seed_offset}"

    @property
    def key(self) -> str:
        """The name under which the study `<study>/finals` keeps its score."""
        return self.trial_folder.key(self.result) + (f"+{self.seed_offset}" if self.seed_offset else "")


@dataclass(frozen=True)
class Finalist:
    """A checkpoint as the finals scored it: of a trial of the search, or of its recipe at another training seed."""

    trial: FrozenTrial
    trial_folder: TrialFolder
    result: CheckpointResult

    @property
    def key(self) -> str:
        """The name of its checkpoint among all checkpoints of the study."""
        return self.trial_folder.key(self.result)

    def overlaps(self, other: Finalist) -> bool:
        """Whether the intervals of the two scores overlap."""
        return ties(self.result, other.result)
