"""The finals: the best checkpoints judged again with fresh seeds, the best recipes trained again with other seeds.

Both are trials of a study of their own, `<study>/finals`, so that what was merely lucky in the search wins nothing.
The winner alone is then asked what decides nothing: every group of probes, and more weights. What the study's minutes
are too few for is left out, training again first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import FrozenTrial

from autolora.errors import MemoryFull, StudyError, Unmeasurable
from autolora.progress import Bars
from autolora.scoring.encoders import load_second_encoder
from autolora.scoring.scorer import Scorer, with_encoder, with_fresh_probes
from autolora.study.candidates import average, rescaled
from autolora.study.claims import worked_seconds
from autolora.study.plan import Plan
from autolora.study.stage import Finalist, Stage
from autolora.study.trial import Point, Record
from autolora.study.workbench import Workbench

REPEATS = 4  # seeds per prompt, as a multiple of the search's
LEADERS = 2  # recipes that are trained again
STRONGER, WEAKER = (1.25, 1.5), (0.8,)  # what a LoRA's strength is multiplied by as long as that makes it better


@dataclass(frozen=True)
class Finals:
    """How the finals went."""

    scorer: Scorer | None  # what decided
    finalists: list[Finalist]  # the best checkpoint of each trial, the winner, with its last word, first
    retrained: dict[int, list[Point]]  # by trial, its recipe at several training seeds, its own first
    ties: list[int]  # numbers of the trials that cannot be told from the winner
    training_seconds: float = 0.0  # spent now on training again
    choice: str = ""  # what a person's choice by pictures came to, where one was asked for

    @property
    def winner(self) -> Finalist:
        """What is exported."""
        return self.finalists[0]


def final_scorer(search: Scorer, work: Workbench, bars: Bars) -> Scorer:
    """The search's score with seeds of its own and more of them, all groups of probes and a second encoder."""
    bench, second = work.bench, search.settings.second_encoder
    with bars.task("rendering the base model for the finals", None) as advance:
        scorer = with_fresh_probes(search, bench.dataset, work.renders, bench.adapter, REPEATS, advance)
    if second is None:
        return scorer
    try:
        return replace(scorer, second=with_encoder(scorer, load_second_encoder(second, bench.model)))
    except Unmeasurable as error:  # by that encoder; the first one knows what it sees
        bars.say(f"{error}; going on without a second opinion")
        return scorer


def hold_finals(
    plan: Plan,
    found: Sequence[tuple[FrozenTrial, Record]],
    work: Workbench,
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
    ranked = sorted(found, key=lambda pair: pair[1].best_objective(), reverse=True)[: plan.settings.finalists]
    if not plan.preference:  # a person has something to choose from in any case
        ranked = in_reach(ranked)
    if work.scorer is None:
        choice = "nothing could be rendered that a person might choose by" if plan.preference else ""
        return Finals(None, [Finalist(trial, record, _best(record)) for trial, record in ranked], {}, [], choice=choice)
    searched = worked_seconds(trial for trial, _ in found)
    stage = Stage(plan, work, final_scorer(work.scorer, work, bars), bars, plan.settings.finals_seconds(searched))
    field = stage.judge([(trial, record, p, None) for trial, record in ranked for p in to_judge(record)])
    if not field:
        raise MemoryFull(f"the finals could judge no checkpoint: {stage.too_large()}")
    leaders = _by_trial(field)[:LEADERS]
    seeds = range(1, plan.settings.retrain_seeds + 1)
    means = [(one.trial, average(one.record, one.point, work)) for one in leaders if plan.settings.average]
    field += stage.judge([(trial, *mean, None) for trial, mean in means if mean])
    field += rescaled_while_better(stage, _by_trial(field)[0], work) if plan.settings.rescale else []
    again = stage.judge([(one.trial, one.record, one.point, seed) for seed in seeds for one in leaders])
    points: dict[int, list[Point]] = {}
    for other in again:
        points.setdefault(other.trial.number, []).append(other.point)
    retrained = {n: [one.point, *points[n]] for one in leaders if (n := one.trial.number) in points}
    finals = weigh(conclude(stage.deciding, [*field, *again], retrained))
    winner = stage.last_word(finals.winner)
    return replace(finals, finalists=[winner, *finals.finalists[1:]], training_seconds=stage.training_seconds)


def in_reach(ranked: Sequence[tuple[FrozenTrial, Record]]) -> list[tuple[FrozenTrial, Record]]:
    """The first of the search and those whose interval reaches up to its: more renders would not help the others."""
    first = _best(ranked[0][1]).score
    bests = [(pair, _best(pair[1]).score) for pair in ranked]
    return [pair for pair, score in bests if first is None or score is None or score["high"] >= first["low"]]


def to_judge(record: Record) -> list[Point]:
    """A trial's best checkpoint; where that is undercooked, which a search's few renders hardly rank, and the next one.

    (Development character 31, 1,596 images: of two undercooked checkpoints the search preferred the one before the
    last, which is half as far on the way to the pictures.)
    """
    best = _best(record)
    return [best, *(p for p in record.around(best) if "undercooked" in best.broken and p.step > best.step)]


def rescaled_while_better(stage: Stage, leader: Finalist, work: Workbench) -> list[Finalist]:
    """The best one with its strength multiplied: down if too strong, or shown but bleeding or stiff; else up."""
    best, found = leader.point, []
    too_strong = "too_strong" in best.broken or (
        "undercooked" not in best.broken and bool({"bleed_class", "editability"} & set(best.broken))
    )
    for strength in WEAKER if too_strong else STRONGER:
        copy = rescaled(leader.record, leader.point, strength, work)
        judged = stage.judge([(leader.trial, *copy, None)]) if copy else []
        found += judged
        if not judged or judged[0].point.objective <= best.objective:
            break
        best = judged[0].point
    return found


def conclude(scorer: Scorer, field: Sequence[Finalist], retrained: dict[int, list[Point]]) -> Finals:
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


def seed_verdict(retrained: dict[int, list[Point]]) -> int | None:
    """The trial whose recipe is clearly behind the other's over the training seeds; None where they tie."""
    if len(retrained) != 2 or min(len(points) for points in retrained.values()) < 2:
        return None
    (a, b), values = retrained, [[p.objective for p in points] for points in retrained.values()]
    gap = float(np.mean(values[0]) - np.mean(values[1]))
    deviation = float(np.sqrt(np.mean([np.var(own, ddof=1) for own in values])))
    if abs(gap) <= 2 * deviation:
        return None
    return b if gap > 0 else a


def _best(record: Record) -> Point:
    best = record.best()
    assert best is not None
    return best


def _by_trial(field: Sequence[Finalist]) -> list[Finalist]:
    """The best checkpoint of each trial, the best trial first."""
    ranked = sorted(field, key=lambda one: (-one.point.objective, one.trial.number))
    return list({one.trial.number: one for one in reversed(ranked)}.values())[::-1]
