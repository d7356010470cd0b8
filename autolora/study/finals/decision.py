"""Which checkpoints the finals score, which one they choose, and which ones tie with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.scoring.scorer import Scorer
from autolora.study.finals.finalist import Finalist


@dataclass(frozen=True)
class Finals:
    """The outcome of the finals."""

    scorer: Scorer | None  # what decided; None: nothing could be measured
    finalists: list[Finalist]  # the best checkpoint of each trial, the winner first
    retrained: dict[int, list[CheckpointResult]]  # by trial, its recipe at several training seeds, its own seed first
    ties: list[int]  # numbers of the trials whose score cannot be told from the winner's
    training_seconds: float = 0.0  # of this process, for training again
    choice: str = ""  # the effect of a person's choice by images, where that was asked for

    @property
    def winner(self) -> Finalist:
        """The checkpoint that is exported."""
        return self.finalists[0]


def within_interval_of_best(ranked: Sequence[tuple[FrozenTrial, TrialFolder]]) -> list[tuple[FrozenTrial, TrialFolder]]:
    """The best trial of the search and those whose interval reaches its own: more renders cannot help the others."""
    best = best_of(ranked[0][1]).score
    scores = [(pair, best_of(pair[1]).score) for pair in ranked]
    return [pair for pair, score in scores if best is None or score is None or score["high"] >= best["low"]]


def checkpoints_to_score(trial_folder: TrialFolder) -> list[CheckpointResult]:
    """A trial's best checkpoint; if that is undercooked, which few renders rank poorly, also the next one.

    On development character 31 (1,596 images) the search preferred, of two undercooked checkpoints, the one before the
    last, which is half as near to the training images.
    """
    best = best_of(trial_folder)
    neighbours = trial_folder.rendered_neighbours(best)
    return [best, *(p for p in neighbours if "undercooked" in best.broken and p.step > best.step)]


def select_winner(
    scorer: Scorer, finalists: Sequence[Finalist], retrained: dict[int, list[CheckpointResult]]
) -> Finals:
    """Choose the winner and the trials that tie with it.

    Of two recipes trained with several seeds the one with the higher mean objective wins if the means lie two seed
    deviations apart; otherwise they tie. Of the remaining checkpoints the highest objective wins, tie or not: the
    earliest of a tie, or the one that bleeds least, is worse by the attribute classifier. (Development character 10:
    the earliest tie shows the character in 67% of renders with its trigger and 11% without, the highest score in 99%
    and 1%.)
    """
    beaten = seed_verdict(retrained)
    remaining = [finalist for finalist in finalists if finalist.trial.number != beaten]
    winner = max(remaining, key=lambda finalist: (finalist.result.objective, -finalist.trial.number))
    others = [finalist for finalist in best_by_trial(finalists) if finalist.trial.number != winner.trial.number]
    ties = [other.trial.number for other in others if other.trial.number != beaten and other.overlaps(winner)]
    return Finals(scorer, [winner, *others], retrained, ties)


def seed_verdict(retrained: dict[int, list[CheckpointResult]]) -> int | None:
    """The trial whose recipe is clearly behind the other's over the training seeds; None if they tie."""
    if len(retrained) != 2 or min(len(results) for results in retrained.values()) < 2:
        return None
    (a, b), objectives = retrained, [[result.objective for result in results] for results in retrained.values()]
    gap = float(np.mean(objectives[0]) - np.mean(objectives[1]))
    deviation = float(np.sqrt(np.mean([np.var(values, ddof=1) for values in objectives])))
    if abs(gap) <= 2 * deviation:
        return None
    return b if gap > 0 else a


def best_of(trial_folder: TrialFolder) -> CheckpointResult:
    """The best checkpoint of a trial that has at least one."""
    best = trial_folder.best_result()
    assert best is not None
    return best


def best_by_trial(finalists: Sequence[Finalist]) -> list[Finalist]:
    """The best checkpoint of each trial, the best trial first."""
    ranked = sorted(finalists, key=lambda finalist: (-finalist.result.objective, finalist.trial.number))
    return list({finalist.trial.number: finalist for finalist in reversed(ranked)}.values())[::-1]
