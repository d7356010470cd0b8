"""Scores the candidates of the finals one after the other, as trials of the study `<study>/finals`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from time import sleep

import optuna
import torch
from optuna.trial import Trial, TrialState

from autolora.errors import MemoryFull, memory_full
from autolora.evaluation.result import DIVERGED, WholeResult
from autolora.publish.closing import evaluation_seconds
from autolora.received import parser
from autolora.study.budget import STEP, StudyClock
from autolora.study.definition import StudyDefinition
from autolora.study.finals.evaluator import CandidateEvaluator
from autolora.study.finals.finalist import Candidate, Finalist
from autolora.study.optuna_internals import storage_of, study_id_of, trial_id_of
from autolora.study.received import CandidateAttributes, check_study
from autolora.study.search.leases import TrialLeases
from autolora.study.storage import open_storage

TOOK = "seconds"  # user attribute: the time that a candidate took
FULL = "memory"  # user attribute: why the GPU's memory was too small for a candidate


class FinalsRunner:
    """Works off the trials of the study `<study>/finals`, and continues what was interrupted."""

    def __init__(
        self,
        definition: StudyDefinition,
        evaluator: CandidateEvaluator,
        clock: StudyClock,
    ) -> None:
        self.evaluator, self.bars, self.clock = evaluator, evaluator.bars, clock
        self.settings = definition.settings
        self.study = check_study(
            optuna.create_study(
                storage=open_storage(definition.storage, self.bars.log),
                study_name=f"{definition.settings.name}/finals",
                direction="maximize",
                load_if_exists=True,
            ),
            CandidateAttributes,
        )

    def judge(self, candidates: Sequence[Candidate]) -> list[Finalist]:
        """Score the candidates; those that diverge, or lack memory or time, are left out."""
        by_key = {candidate.key: candidate for candidate in candidates}
        trials = self.study.get_trials(deepcopy=False)
        queued = {trial.user_attrs["key"] for trial in trials if FULL not in trial.user_attrs}
        for key in by_key:
            if key not in queued:
                self.study.enqueue_trial({}, user_attrs={"key": key})
        with self._leases() as leases:
            while (trial := self._claim(set(by_key), leases)) is not None:
                self._run(trial, by_key[trial.user_attrs["key"]])
                leases.forget(trial_id_of(trial))
        attributes = {t.user_attrs["key"]: t.user_attrs for t in self.study.get_trials(deepcopy=False)}
        return [
            Finalist(
                candidate.trial,
                self.evaluator.folder_of(candidate),
                parser(WholeResult).validate_python(attributes[key]["point"]),
            )
            for key, candidate in by_key.items()
            if "point" in attributes[key]
        ]

    def full_evaluation(self, finalist: Finalist) -> Finalist:
        """The finalist with every term and its recommended weight; read back if that was evaluated before.

        As it was scored last where the study has no time for it.
        """
        key = f"full evaluation of {finalist.key} in {self.evaluator.session.export.dtype}"
        stored = self.study.user_attrs.get(key)
        if stored is not None:
            return replace(finalist, result=parser(WholeResult).validate_python(stored))
        if self.clock.finals_left() < evaluation_seconds(self.evaluator.session):
            return finalist
        result = self.evaluator.full_evaluation(finalist)
        self.study.set_user_attr(key, asdict(result))
        return replace(finalist, result=result)

    def memory_error(self) -> str:
        """Why the last candidate that lacked memory was left out."""
        errors: list[str] = [t.user_attrs[FULL] for t in self.study.get_trials(deepcopy=False) if FULL in t.user_attrs]
        return errors[-1] if errors else "all of them diverged"

    def _leases(self) -> TrialLeases:
        """The leases of this process, so that two that hold the finals of one study share the candidates."""
        storage, settings = storage_of(self.study), self.settings
        return TrialLeases(
            storage, study_id_of(self.study), settings.heartbeat_interval, settings.grace_period, self.bars.log
        )

    def _claim(self, keys: set[str], leases: TrialLeases) -> Trial | None:
        """The next of the candidates, also one whose process is gone; it waits while other processes score the last."""
        while True:
            unended = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
            asked = [trial for trial in unended if trial.user_attrs["key"] in keys]
            running = [trial for trial in asked if trial.state is TrialState.RUNNING]
            if leases.reclaim(running):
                continue
            for frozen in asked:
                if frozen.state is TrialState.WAITING and leases.take(trial_id_of(frozen)):
                    return Trial(self.study, trial_id_of(frozen))
            if not running:
                return None
            with self.bars.task("waiting for another process that holds the finals", None):
                sleep(min(5.0, self.settings.heartbeat_interval))

    def _has_time(self, candidate: Candidate) -> bool:
        """Whether the candidate fits into the time that is left.

        What it and the full evaluation take is estimated by the first candidate, which is always scored.
        """
        took: list[float] = [
            trial.user_attrs[TOOK] for trial in self.study.get_trials(deepcopy=False) if TOOK in trial.user_attrs
        ]
        if not took:
            return True
        searched = candidate.trial.user_attrs
        seconds_per_image: float = searched.get("training_seconds", 0.0) / max(1, searched.get(STEP, 1))
        training = seconds_per_image * candidate.result.step if candidate.seed_offset else 0.0
        full = took[0] * self.evaluator.full_evaluation_renders / self.evaluator.deciding.num_renders
        return bool(took[0] + training + full <= self.clock.finals_left())

    def _run(self, trial: Trial, candidate: Candidate) -> None:
        began = time.perf_counter()
        if not self._has_time(candidate):
            return self._leave_out(trial, candidate, "there is no time for it within budget.minutes")
        try:
            result = self.evaluator.evaluate(candidate)
        except (MemoryFull, torch.OutOfMemoryError) as error:
            trial.set_user_attr(FULL, memory_full(error))  # with other settings it is tried again
            return self._leave_out(trial, candidate, memory_full(error))
        for name, violation in (result.constraints if result else {"diverged": 1.0}).items():
            trial.set_constraint(name, violation)
        if result:
            self.bars.log(f"finals: {candidate.name}: {result.summary}")
            trial.set_user_attr("point", asdict(result))
        trial.set_user_attr(TOOK, time.perf_counter() - began)
        self.clock.beat()
        self.study.tell(trial, result.objective if result else DIVERGED, skip_if_finished=True)

    def _leave_out(self, trial: Trial, candidate: Candidate, reason: str) -> None:
        self.bars.log(f"finals: {candidate.name} is left out: {reason}")
        self.study.tell(trial, state=TrialState.FAIL)
