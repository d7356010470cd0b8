"""The finals: the best checkpoints judged again with fresh seeds, the best recipes trained again with other seeds.

Both are trials of a study of their own, `<study>/finals`, so that what was merely lucky in the search wins nothing.
The winner alone is then asked what decides nothing: every group of probes, and more weights. What the study's minutes
are too few for is left out, training again first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from autolora.errors import MemoryFull, StudyError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session, final_scorer
from autolora.evaluation.trial_folder import TrialFolder
from autolora.progress import Bars
from autolora.study.budget import worked_seconds
from autolora.study.definition import StudyDefinition
from autolora.study.finals.candidates import average, rescaled
from autolora.study.finals.decision import (
    Finals,
    _best,
    _by_trial,
    checkpoints_to_score,
    select_winner,
    within_interval_of_best,
)
from autolora.study.finals.finalist import Finalist
from autolora.study.finals.finals_runner import FinalsRunner
from autolora.study.settings import RETRAINED_RECIPES, STRONGER, WEAKER


def run_finals(
    definition: StudyDefinition,
    found: Sequence[tuple[FrozenTrial, TrialFolder]],
    session: Session,
    bars: Bars,
    weigh: Callable[[Finals], Finals] = lambda finals: finals,
) -> Finals:
    """Judge the best trials' checkpoints again, train the two best recipes again, and choose.

    What was judged before is read back from the study `<study>/finals`. Where nothing can be measured the checkpoint of
    the lowest validation loss wins.

    Args:
        plan: the study.
        found: its trials with scored checkpoints.
        work: what they are judged with.
        bars: where progress is shown.
        weigh: has the last say about the winner, before it gets its last word.

    Raises:
        StudyError: no trial has a scored checkpoint yet.
        MemoryFull: the GPU's memory is too small to judge any.
    """
    if not found:
        raise StudyError("no trial of this study has a scored checkpoint yet; run it longer")
    ranked = sorted(found, key=lambda pair: pair[1].best_objective(), reverse=True)[: definition.settings.n_finalists]
    if not definition.human_preference:  # a person has something to choose from in any case
        ranked = within_interval_of_best(ranked)
    if session.scorer is None:
        choice = "nothing could be rendered that a person might choose by" if definition.human_preference else ""
        return Finals(None, [Finalist(trial, record, _best(record)) for trial, record in ranked], {}, [], choice=choice)
    searched = worked_seconds(trial for trial, _ in found)
    stage = FinalsRunner(
        definition,
        session,
        final_scorer(session.scorer, session, bars),
        bars,
        definition.settings.finals_seconds(searched),
    )
    field = stage.judge([(trial, record, p, None) for trial, record in ranked for p in checkpoints_to_score(record)])
    if not field:
        raise MemoryFull(f"the finals could judge no checkpoint: {stage.too_large()}")
    leaders = _by_trial(field)[:RETRAINED_RECIPES]
    seeds = range(1, definition.settings.final_seeds + 1)
    means = [
        (one.trial, average(one.record, one.point, session))
        for one in leaders
        if definition.settings.average_checkpoints
    ]
    field += stage.judge([(trial, *mean, None) for trial, mean in means if mean])
    field += rescale_while_better(stage, _by_trial(field)[0], session) if definition.settings.try_lora_scales else []
    again = stage.judge([(one.trial, one.record, one.point, seed) for seed in seeds for one in leaders])
    points: dict[int, list[CheckpointResult]] = {}
    for other in again:
        points.setdefault(other.trial.number, []).append(other.point)
    retrained = {n: [one.point, *points[n]] for one in leaders if (n := one.trial.number) in points}
    finals = weigh(select_winner(stage.deciding, [*field, *again], retrained))
    winner = stage.full_evaluation(finals.winner)
    return replace(finals, finalists=[winner, *finals.finalists[1:]], training_seconds=stage.training_seconds)


def rescale_while_better(stage: FinalsRunner, leader: Finalist, session: Session) -> list[Finalist]:
    """The best one with its strength multiplied: down if too strong, or shown but bleeding or stiff; else up."""
    best, found = leader.point, []
    too_strong = "too_strong" in best.broken or (
        "undercooked" not in best.broken and bool({"bleed_class", "editability"} & set(best.broken))
    )
    for strength in WEAKER if too_strong else STRONGER:
        copy = rescaled(leader.record, leader.point, strength, session)
        judged = stage.judge([(leader.trial, *copy, None)]) if copy else []
        found += judged
        if not judged or judged[0].point.objective <= best.objective:
            break
        best = judged[0].point
    return found
