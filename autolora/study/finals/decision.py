"""Which checkpoint the finals choose, and which ones tie with it."""

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
    """How the finals went."""

    scorer: Scorer | None  # what decided
    finalists: list[Finalist]  # the best checkpoint of each trial, the winner, with its last word, first
    retrained: dict[int, list[CheckpointResult]]  # by trial, its recipe at several training seeds, its own first
    ties: list[int]  # numbers of the trials that cannot be told from the winner
    training_seconds: float = 0.0  # spent now on training again
    choice: str = ""  # what a person's choice by pictures came to, where one was asked for

    @property
    def winner(self) -> Finalist:
        """What is exported."""
        return self.finalists[0]


def within_interval_of_best(ranked: Sequence[tuple[FrozenTrial, TrialFolder]]) -> list[tuple[FrozenTrial, TrialFolder]]:
    """The first of the search and those whose interval reaches up to its: more renders would not help the others."""
    first = _best(ranked[0][1]).score
    bests = [(pair, _best(pair[1]).score) for pair in ranked]
    return [pair for pair, score in bests if first is None or score is None or score["high"] >= first["low"]]


def checkpoints_to_score(record: TrialFolder) -> list[CheckpointResult]:
    """A trial's best checkpoint; where that is undercooked, which a search's few renders hardly rank, and the next one.

    (Development character 31, 1,596 images: of two undercooked checkpoints the search preferred the one before the
    last, which is half as far on the way to the pictures.)
    """
    best = _best(record)
    return [best, *(p for p in record.around(best) if "undercooked" in best.broken and p.step > best.step)]


def select_winner(scorer: Scorer, field: Sequence[Finalist], retrained: dict[int, list[CheckpointResult]]) -> Finals:
    """Choose the winner and say what cannot be told from it.

    Of two recipes trained with several seeds the better one wins if their mean objectives lie two seed deviations
    apart; otherwise they tie. Of the checkpoints that are left the highest objective wins, tie or not: the earliest of
    a tie, or the one that bleeds least, is the worse choice by the oracle. (Development character 10: the earliest tie
    shows the character in 67% of renders with its trigger and 11% without, the highest score in 99% and 1%.)
    """
    beaten = seed_verdict(retrained)
    left = [one for one in field if one.trial.number != beaten]
    winner = max(left, key=lambda one: (one.point.objective, -one.trial.number))
    others = [one for one in _by_trial(field) if one.trial.number != winner.trial.number]
    same = [one.trial.number for one in others if one.trial.number != beaten and one.overlaps(winner)]
    return Finals(scorer, [winner, *others], retrained, same)


def seed_verdict(retrained: dict[int, list[CheckpointResult]]) -> int | None:
    """The trial whose recipe is clearly behind the other's over the training seeds; None where they tie."""
    if len(retrained) != 2 or min(len(points) for points in retrained.values()) < 2:
        return None
    (a, b), values = retrained, [[p.objective for p in points] for points in retrained.values()]
    gap = float(np.mean(values[0]) - np.mean(values[1]))
    deviation = float(np.sqrt(np.mean([np.var(own, ddof=1) for own in values])))
    if abs(gap) <= 2 * deviation:
        return None
    return b if gap > 0 else a


def _best(record: TrialFolder) -> CheckpointResult:
    best = record.best_result()
    assert best is not None
    return best


def _by_trial(field: Sequence[Finalist]) -> list[Finalist]:
    """The best checkpoint of each trial, the best trial first."""
    ranked = sorted(field, key=lambda one: (-one.point.objective, one.trial.number))
    return list({one.trial.number: one for one in reversed(ranked)}.values())[::-1]
