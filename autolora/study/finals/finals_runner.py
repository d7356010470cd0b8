"""What the finals judge, one checkpoint after the other: trials of the study `<study>/finals`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import optuna
import torch
from optuna.trial import Trial, TrialState

from autolora.adapters.base import State
from autolora.errors import MemoryFull, memory_full
from autolora.evaluation.result import DIVERGED, CheckpointResult, from_losses, with_scorecard
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.write import DTYPES, as_in_file
from autolora.progress import Bars
from autolora.scoring.probes import DECIDING_GROUPS
from autolora.scoring.scorecard import Scorecard, recommended_weight, score
from autolora.scoring.scorer import Scorer
from autolora.study.budget import STEP
from autolora.study.definition import StudyDefinition
from autolora.study.finals.finalist import Candidate, Finalist, _key, _name
from autolora.study.settings import SWEEP_WEIGHTS
from autolora.study.storage import open_storage
from autolora.train import checkpoint as checkpoints
from autolora.train.loop import Job, TrainingSlot, train

TOOK = "seconds"  # user attribute: how long a checkpoint took
FULL = "memory"  # user attribute: why the GPU's memory was too small for it


class FinalsRunner:
    """Works off the trials of the study `<study>/finals`, and continues what was interrupted."""

    def __init__(
        self, definition: StudyDefinition, session: Session, scorer: Scorer, bars: Bars, seconds: float = math.inf
    ) -> None:
        self.definition, self.session, self.scorer, self.bars = definition, session, scorer, bars
        self.seconds = seconds  # that it may take in all
        self.deciding = scorer.only(*DECIDING_GROUPS)
        self.training_seconds = 0.0
        self.study = optuna.create_study(
            storage=open_storage(definition.storage, bars.log),
            study_name=f"{definition.settings.name}/finals",
            direction="maximize",
            load_if_exists=True,
        )

    def judge(self, asked: Sequence[Candidate]) -> list[Finalist]:
        """The checkpoints as the finals judge them, without those that diverge or lack memory or time."""
        entries = {_key(one): one for one in asked}
        trials = self.study.get_trials(deepcopy=False)
        known = {trial.user_attrs["key"] for trial in trials if FULL not in trial.user_attrs}
        for key in entries:
            if key not in known:
                self.study.enqueue_trial({}, user_attrs={"key": key})
        while (trial := self._claim(set(entries))) is not None:
            self._work_off(trial, entries[trial.user_attrs["key"]])
        done = {t.user_attrs["key"]: t.user_attrs for t in self.study.get_trials(deepcopy=False)}
        return [
            Finalist(one[0], self._record(one), CheckpointResult(**done[key]["point"]))
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

    def _record(self, asked: Candidate) -> TrialFolder:
        """Where a checkpoint lies: with its trial, or beside it where it was trained with another seed."""
        _, record, _, seed = asked
        if seed is None:
            return record
        run = replace(record.run, train=replace(record.run.train, seed=record.run.train.seed + seed))
        return TrialFolder.open(self.definition.trial_files.fetch(f"{record.path.name}-seed{run.train.seed}"), run)

    def _has_time(self, asked: Candidate) -> bool:
        """Whether what is asked and the winner's last word fit into the time left, by what the finals took so far.

        The first one always does.
        """
        source, _, before, seed = asked
        took: list[float] = [
            trial.user_attrs[TOOK] for trial in self.study.get_trials(deepcopy=False) if TOOK in trial.user_attrs
        ]
        if not took:
            return True
        each: float = source.user_attrs.get("training_seconds", 0.0) / max(1, source.user_attrs.get(STEP, 1))
        judging = took[0] * (1 + self._last_renders() / self.deciding.renders)
        return sum(took) + judging + (each * before.step if seed else 0.0) <= self.seconds

    def _last_renders(self) -> int:
        """Of the winner's last word: all groups of probes, and more weights."""
        assert self.session.scorer is not None
        return self.scorer.renders + self.session.scorer.at(*SWEEP_WEIGHTS).renders

    def _work_off(self, trial: Trial, asked: Candidate) -> None:
        began = time.perf_counter()
        if not self._has_time(asked):
            return self._leave_out(trial, asked, "there is no time for it within budget.minutes")
        try:
            found = self._found(asked)
        except (MemoryFull, torch.OutOfMemoryError) as error:
            trial.set_user_attr(FULL, memory_full(error))  # with other settings it is tried again
            return self._leave_out(trial, asked, memory_full(error))
        for name, broken_by in (found.constraints if found else {"diverged": 1.0}).items():
            trial.set_constraint(name, broken_by)
        if found:
            self.bars.log(f"finals: {_name(asked)}: {found.summary}")
            trial.set_user_attr("point", asdict(found))
        trial.set_user_attr(TOOK, time.perf_counter() - began)
        self.study.tell(trial, found.objective if found else DIVERGED)

    def _leave_out(self, trial: Trial, asked: Candidate, why: str) -> None:
        self.bars.log(f"finals: {_name(asked)} is left out: {why}")
        self.study.tell(trial, state=TrialState.FAIL)

    def _found(self, asked: Candidate) -> CheckpointResult | None:
        """A checkpoint, or its recipe at another training seed, as it is judged; None where that diverged."""
        _, record, before, seed = asked
        if seed is None:
            return with_scorecard(before, self._score(record.load(before), self.deciding))
        return self._train_again(self._record(asked), before.step, _name(asked))

    def _score(self, state: State, scorer: Scorer) -> Scorecard:
        self.session.context.adapter.load(state)
        return self.session.score(scorer, self.bars)

    def too_large(self) -> str:
        """Why the last checkpoint that found no memory found none."""
        reasons: list[str] = [t.user_attrs[FULL] for t in self.study.get_trials(deepcopy=False) if FULL in t.user_attrs]
        return reasons[-1] if reasons else "all of them diverged"

    def full_evaluation(self, one: Finalist) -> Finalist:
        """The same with every term, the terms at many weights by the search's probes, and the weight to recommend.

        It is about the adapter as its file will hold it, rounded.
        """
        export = self.session.export.dtype
        key = f"last word on {one.record.key(one.point)} in {export}"
        known = self.study.user_attrs.get(key)
        if known is not None:
            return replace(one, point=CheckpointResult(**known))
        assert self.session.scorer is not None
        state = as_in_file(one.record.load(one.point), self.session.context.model, DTYPES[export])
        self.session.context.adapter.load(state)
        pictures = self.session.render(self.scorer, self.bars)
        point = with_scorecard(one.point, score(self.scorer, pictures))
        tags, tag_bleed = self.session.tag_bleed(self.scorer, pictures)
        swept = self._score(state, self.session.scorer.at(*SWEEP_WEIGHTS)).by_weight
        weight = recommended_weight(swept, self.scorer.settings)
        sweep = {w: {name: term.as_dict() for name, term in terms.items()} for w, terms in swept.items()}
        point = replace(point, weight=weight, sweep=sweep, tags=tags, tag_bleed=tag_bleed)
        self.study.set_user_attr(key, asdict(point))
        return replace(one, point=point)

    def _train_again(self, record: TrialFolder, step: int, words: str) -> CheckpointResult | None:
        """Train a recipe up to a step and judge it there; None where it diverged."""
        latest = record.latest()
        waiting = iter([Job(record.run, latest)])
        bar = self.bars.add(words, step)

        def on_step(slot: TrainingSlot) -> None:
            self.bars.set(bar, slot.step)

        for (slot,) in train(lambda: next(waiting, None), self.session.context, on_step):
            checkpoint = slot.checkpoint
            assert checkpoint is not None
            if checkpoint.step < step and not checkpoint.diverged:
                checkpoints.save(checkpoint, record.path / "latest.pt")
                continue
            self.training_seconds += slot.seconds - (latest.seconds if latest else 0.0)
            slot.stop()
            if checkpoint.diverged:
                break
            if not record.results:
                blank = from_losses(checkpoint, self.session.base_losses)
                record.append(checkpoint, with_scorecard(blank, self._score(checkpoint.state, self.deciding)))
                self.definition.trial_files.send(record.path.name)
        self.bars.remove(bar)
        return record.best_result()
