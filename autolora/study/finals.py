"""The finals: the best checkpoints judged again with fresh seeds, the best recipes trained again with other seeds.

Both are trials of a study of their own, `<study>/finals`, so that what was merely lucky in the search wins nothing.
The winner alone is then asked what decides nothing: every group of probes, and more weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.adapters.base import State
from autolora.errors import StudyError, Unmeasurable
from autolora.progress import Bars
from autolora.scoring.encoders import load_second_encoder
from autolora.scoring.probes import DECIDING_GROUPS
from autolora.scoring.scorecard import Scorecard, recommended_weight, score
from autolora.scoring.scorer import Scorer, with_encoder, with_fresh_probes
from autolora.study.averaging import average
from autolora.study.plan import Plan
from autolora.study.storage import open_storage
from autolora.study.trial import DIVERGED, Point, Record, judged, ties, unrendered
from autolora.study.workbench import Workbench
from autolora.train import checkpoint as checkpoints
from autolora.train.loop import Assignment, Slot, train

SWEEP_WEIGHTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
REPEATS = 4  # seeds per prompt, as a multiple of the search's
LEADERS = 2  # recipes that are trained again


@dataclass(frozen=True)
class Finalist:
    """A checkpoint as the finals judged it: of a trial of the search, or of its recipe at another training seed."""

    trial: FrozenTrial
    record: Record
    point: Point

    def overlaps(self, other: Finalist) -> bool:
        """Whether the two scores' intervals overlap."""
        return ties(self.point, other.point)


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
    """
    if not found:
        raise StudyError("no trial of this study has a scored checkpoint yet; run it longer")
    ranked = sorted(found, key=lambda pair: pair[1].best_objective(), reverse=True)[: plan.settings.finalists]
    if not plan.preference:  # a person has something to choose from in any case
        ranked = in_reach(ranked)
    if work.scorer is None:
        choice = "nothing could be rendered that a person might choose by" if plan.preference else ""
        return Finals(None, [Finalist(trial, record, _best(record)) for trial, record in ranked], {}, [], choice=choice)
    stage = Stage(plan, work, final_scorer(work.scorer, work, bars), bars)
    field = stage.judge([(trial, record, _best(record), None) for trial, record in ranked])
    leaders = _by_trial(field)[:LEADERS]
    seeds = range(1, plan.settings.retrain_seeds + 1)
    means = [(one.trial, average(one.record, one.point, work)) for one in leaders if plan.settings.average]
    field += stage.judge([(trial, *mean, None) for trial, mean in means if mean])
    again = stage.judge([(one.trial, one.record, one.point, seed) for one in leaders for seed in seeds])
    retrained = {
        one.trial.number: [one.point, *(other.point for other in again if other.trial.number == one.trial.number)]
        for one in leaders
        if seeds
    }
    finals = weigh(conclude(stage.deciding, [*field, *again], retrained))
    winner = stage.last_word(finals.winner)
    return replace(finals, finalists=[winner, *finals.finalists[1:]], training_seconds=stage.training_seconds)


def in_reach(ranked: Sequence[tuple[FrozenTrial, Record]]) -> list[tuple[FrozenTrial, Record]]:
    """The first of the search and those whose interval reaches up to its: more renders would not help the others."""
    first = _best(ranked[0][1]).score
    bests = [(pair, _best(pair[1]).score) for pair in ranked]
    return [pair for pair, score in bests if first is None or score is None or score["high"] >= first["low"]]


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


Asked = tuple[FrozenTrial, Record, Point, int | None]  # a checkpoint, or its recipe at another training seed


class Stage:
    """Works off the trials of the study `<study>/finals`, and continues what was interrupted."""

    def __init__(self, plan: Plan, work: Workbench, scorer: Scorer, bars: Bars) -> None:
        self.plan, self.work, self.scorer, self.bars = plan, work, scorer, bars
        self.deciding = scorer.only(*DECIDING_GROUPS)
        self.training_seconds = 0.0
        self.study = optuna.create_study(
            storage=open_storage(plan.storage, bars.say),
            study_name=f"{plan.settings.name}/finals",
            direction="maximize",
            load_if_exists=True,
        )

    def judge(self, asked: Sequence[Asked]) -> list[Finalist]:
        """The checkpoints as the finals judge them; those that diverged are left out."""
        entries = {_key(one): one for one in asked}
        known = {trial.user_attrs["key"] for trial in self.study.get_trials(deepcopy=False)}
        for key in entries:
            if key not in known:
                self.study.enqueue_trial({}, user_attrs={"key": key})
        while (trial := self._claim(set(entries))) is not None:
            self._work_off(trial, entries[trial.user_attrs["key"]])
        done = {t.user_attrs["key"]: t.user_attrs for t in self.study.get_trials(deepcopy=False)}
        return [
            Finalist(one[0], self._record(one), Point(**done[key]["point"]))
            for key, one in entries.items()
            if "point" in done[key]
        ]

    def _claim(self, keys: set[str]) -> Trial | None:
        """A trial that was interrupted, else the next one in the queue."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs["key"] in keys:
                return Trial(self.study, frozen._trial_id)
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return self.study.ask()
        return None

    def _record(self, asked: Asked) -> Record:
        """Where a checkpoint lies: with its trial, or beside it where it was trained with another seed."""
        _, record, _, seed = asked
        if seed is None:
            return record
        run = replace(record.run, train=replace(record.run.train, seed=record.run.train.seed + seed))
        return Record.open(self.plan.files.fetch(f"{record.folder.name}-seed{run.train.seed}"), run)

    def _work_off(self, trial: Trial, asked: Asked) -> None:
        source, record, before, seed = asked
        if seed is None:
            found: Point | None = judged(before, self._score(record.load(before), self.deciding))
        else:
            found = self._train_again(self._record(asked), before.step, f"trial {source.number}, seed {seed}")
        for name, broken_by in (found.constraints if found else {"diverged": 1.0}).items():
            trial.set_constraint(name, broken_by)
        if found:
            words = f"trial {source.number}" + (f" trained again with seed {seed}" if seed else "")
            self.bars.say(f"finals: {words}, {found.place}: {found.words}")
            trial.set_user_attr("point", asdict(found))
        self.study.tell(trial, found.objective if found else DIVERGED)

    def _score(self, state: State, scorer: Scorer) -> Scorecard:
        self.work.bench.adapter.load(state)
        return self.work.score(scorer, self.bars)

    def last_word(self, one: Finalist) -> Finalist:
        """The same with every term, the terms at many weights by the search's probes, and the weight to recommend."""
        key = f"last word on {one.record.key(one.point)}"
        known = self.study.user_attrs.get(key)
        if known is not None:
            return replace(one, point=Point(**known))
        assert self.work.scorer is not None
        state = one.record.load(one.point)
        self.work.bench.adapter.load(state)
        pictures = self.work.render(self.scorer, self.bars)
        point = judged(one.point, score(self.scorer, pictures))
        tags, tag_bleed = self.work.tag_bleed(self.scorer, pictures)
        swept = self._score(state, self.work.scorer.at(*SWEEP_WEIGHTS)).by_weight
        weight = recommended_weight(swept, self.scorer.settings)
        sweep = {w: {name: term.as_dict() for name, term in terms.items()} for w, terms in swept.items()}
        point = replace(point, weight=weight, sweep=sweep, tags=tags, tag_bleed=tag_bleed)
        self.study.set_user_attr(key, asdict(point))
        return replace(one, point=point)

    def _train_again(self, record: Record, step: int, words: str) -> Point | None:
        """Train a recipe up to a step and judge it there; None where it diverged."""
        latest = record.latest()
        waiting = iter([Assignment(record.run, latest)])
        bar = self.bars.add(f"training again ({words})", step)

        def on_step(slot: Slot) -> None:
            self.bars.set(bar, slot.step)

        for (slot,) in train(lambda: next(waiting, None), self.work.bench, on_step):
            checkpoint = slot.checkpoint
            assert checkpoint is not None
            if checkpoint.step < step and not checkpoint.diverged:
                checkpoints.save(checkpoint, record.folder / "latest.pt")
                continue
            self.training_seconds += slot.seconds - (latest.seconds if latest else 0.0)
            slot.stop()
            if checkpoint.diverged:
                break
            if not record.curve:
                blank = unrendered(checkpoint, self.work.base_losses)
                record.add(checkpoint, judged(blank, self._score(checkpoint.state, self.deciding)))
                self.plan.files.send(record.folder.name)
        self.bars.remove(bar)
        return record.best()


def _key(asked: Asked) -> str:
    _, record, before, seed = asked
    return record.key(before) + (f"+{seed}" if seed else "")
