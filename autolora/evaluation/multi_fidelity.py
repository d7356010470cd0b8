"""Multi-fidelity scoring: renders are made only where they can change a decision.

The order is: validation loss, renders at the strongest weight, renders at all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autolora.evaluation.result import RISEN, CheckpointResult, unpromising_result, with_scorecard
from autolora.scoring.scorecard import Scorecard
from autolora.scoring.settings import ScoringSettings

MIN_RENDERED = 5  # checkpoints that reached some likeness, before validation loss may replace renders


def evaluate_progressively(
    blank: CheckpointResult,
    trial_results: Sequence[CheckpointResult],
    study_results: Sequence[CheckpointResult],
    settings: ScoringSettings,
    score_at: Callable[[Sequence[float]], Scorecard],
) -> CheckpointResult:
    """Score a checkpoint with as few renders as the search needs.

    Args:
        blank: its result from the losses alone.
        trial_results: the results of its trial so far.
        study_results: those of all trials, its own among them.
        settings: weights and limits.
        score_at: renders and scores at some weights; it keeps what it has rendered.
    """
    if predicted_undercooked(blank.val_ratio, study_results, settings):
        return unpromising_result(blank, trial_results, settings.min_fidelity)
    card = score_at([max(settings.weights)])
    best = max(study_results, key=lambda result: result.objective, default=None)
    if len(settings.weights) > 1 and not can_stop_early(card, best, settings):
        card = score_at(settings.weights)
    return with_scorecard(blank, card)


def predicted_undercooked(
    val_ratio: float, study_results: Sequence[CheckpointResult], settings: ScoringSettings
) -> bool:
    """Whether the validation loss of a checkpoint shows that it is undercooked, so that no render is needed.

    Within a study likeness follows validation loss (Spearman -.75 to -.96 on four development characters). So a
    checkpoint is undercooked if its loss is above that of every rendered checkpoint that was not certainly undercooked.

    Args:
        val_ratio: its validation loss relative to the base model's.
        study_results: the results of the study so far.
        settings: the limit on fidelity.
    """
    ratios = [
        result.val_ratio for result in study_results if result.by_weight and not certainly_undercooked(result, settings)
    ]
    return len(ratios) >= MIN_RENDERED and val_ratio > RISEN * max(ratios)


def certainly_undercooked(result: CheckpointResult, settings: ScoringSettings) -> bool:
    """Whether the whole interval of fidelity is below its limit at the strongest weight."""
    return result.by_weight[max(result.by_weight, key=float)]["fidelity"]["high"] < settings.min_fidelity


def can_stop_early(card: Scorecard, best: CheckpointResult | None, settings: ScoringSettings) -> bool:
    """Whether more renders cannot change the decision about a checkpoint.

    That is so if it certainly breaks a limit, or cannot reach the best checkpoint so far that breaks none.

    Args:
        card: the scores at the strongest weight alone, where the score is usually highest.
        best: the best result of the study so far.
        settings: the limits.
    """
    terms = card.by_weight[max(card.by_weight, key=float)]
    if terms["fidelity"].high < settings.min_fidelity or terms["bleed_class"].low > settings.max_bleed:
        return True
    return best is not None and best.score is not None and not best.broken and card.score.high < best.score["low"]
