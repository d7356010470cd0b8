"""A study: asks for recipes, trains and scores them, stops what cannot win, and can be continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora.progress import Bars
from autolora.study.plan import Plan
from autolora.study.space import suggest
from autolora.study.trial import DIVERGED, Record
from autolora.study.workbench import Workbench
from autolora.train.loop import Assignment, Slot, train


class Driver:
    """Feeds the training loop with trials and judges every checkpoint it yields."""

    def __init__(self, plan: Plan, study: optuna.Study, work: Workbench, bars: Bars) -> None:
        self.plan, self.study, self.work, self.bars = plan, study, work, bars
        self.trials: dict[int, tuple[Trial, Record]] = {}  # by slot
        self.seen = [p for _, record in records(plan, study) for p in record.curve]
        self.began = time.monotonic()
        self.scoring_seconds = 0.0
        self.study_bar = bars.add(f"study {plan.settings.name}", plan.settings.trials, self._finished())
        self.trial_bar = bars.add("trial", None)

    def _finished(self) -> int:
        return len(
            self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        )

    def next_run(self) -> Assignment | None:
        """An interrupted trial first, then the next one asked of the study, until the budget is spent."""
        settings = self.plan.settings
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if all(trial._trial_id != frozen._trial_id for trial, _ in self.trials.values()):
                return self._assign(Trial(self.study, frozen._trial_id))
        minutes = (time.monotonic() - self.began) / 60
        if self._finished() >= settings.trials or minutes >= settings.search_minutes:
            return None
        return self._assign(self.study.ask())

    def _assign(self, trial: Trial) -> Assignment:
        recipe, values = suggest(trial, self.plan.space)
        run = self.plan.run(recipe, values)
        uid = trial.user_attrs.get("uid")
        if uid is None:
            uid = uuid.uuid4().hex[:12]
            trial.set_user_attr("uid", uid)
            trial.set_user_attr("recipe", recipe)
        record = Record.open(self.plan.folder / "trials" / uid, run)
        self.trials[0] = (trial, record)
        shown = ", ".join(
            f"{k.split('.')[-1]} {v:.3g}" if isinstance(v, float) else f"{k.split('.')[-1]} {v}"
            for k, v in values.items()
        )
        kind = "unchanged" if trial.user_attrs.get("baseline") else shown
        self.bars.say(f"trial {trial.number}: {recipe} ({kind})" + (", continued" if record.curve else ""))
        latest = record.latest() if record.curve else None
        return Assignment(run, latest)

    def on_step(self, slot: Slot) -> None:
        """Move the bars."""
        trial, _ = self.trials[slot.index]
        self.bars.total(self.trial_bar, slot.total_steps)
        self.bars.set(self.trial_bar, slot.step, f"trial {trial.number} ({slot.run.name})")

    def judge(self, slot: Slot) -> None:
        """Score a checkpoint, keep it, and end the trial where that is right."""
        trial, record = self.trials[slot.index]
        checkpoint = slot.checkpoint
        assert checkpoint is not None
        if checkpoint.diverged:
            trial.set_user_attr("reason", f"diverged at step {checkpoint.step}: the loss is no longer a number")
            return self._finish(slot, TrialState.COMPLETE)
        if record.scored_step() != checkpoint.step:
            began = time.perf_counter()
            new = self.work.measure(checkpoint, record.curve, self.seen, self.bars, record.samples)
            record.add(checkpoint, new)
            self.seen.append(new)
            self.scoring_seconds += time.perf_counter() - began
        best = record.best()
        assert best is not None
        number = len(record.curve)
        if number not in self.study.trials[trial.number].intermediate_values:
            trial.report(best.objective, number)
        self.bars.say(f"  step {checkpoint.step}: {record.curve[-1].words}")
        if record.hopelessly_overcooked(self.plan.settings.patience) and not checkpoint.done:
            trial.set_user_attr("reason", f"overcooked after step {record.overcooked_step()}")
            self._finish(slot, TrialState.COMPLETE)
        elif checkpoint.done:
            step = record.overcooked_step()
            trial.set_user_attr("reason", f"overcooked after step {step}" if step else "trained to its end")
            self._finish(slot, TrialState.COMPLETE)
        elif not trial.user_attrs.get("baseline") and trial.should_prune():
            trial.set_user_attr("reason", f"pruned at step {checkpoint.step}: behind the other trials")
            self._finish(slot, TrialState.PRUNED)

    def _finish(self, slot: Slot, state: TrialState) -> None:
        trial, record = self.trials.pop(slot.index)
        best = record.best()
        add_seconds(self.study, slot.seconds, self.scoring_seconds)
        self.scoring_seconds = 0.0
        for name, broken_by in (best.constraints if best else {"diverged": 1.0}).items():
            trial.set_constraint(name, broken_by)
        value = best.objective if best else DIVERGED
        self.study.tell(trial, value if state is TrialState.COMPLETE else None, state=state, skip_if_finished=True)
        self.bars.say(f"  {self.study.trials[trial.number].user_attrs['reason']}")
        self.bars.set(self.study_bar, self._finished())
        slot.stop()


def run_study(
    plan: Plan, study: optuna.Study, work: Workbench, bars: Bars, heard: Callable[[bool], None] = lambda ended: None
) -> Driver:
    """Run trials until the budget is spent; `heard` is called after every checkpoint, with whether its trial ended."""
    driver = Driver(plan, study, work, bars)
    for ready in train(driver.next_run, work.bench, driver.on_step):
        for slot in ready:
            driver.judge(slot)
            heard(slot.index not in driver.trials)
    return driver


def spent_seconds(study: optuna.Study) -> float:
    """Seconds that training and scoring took, however often the study was continued."""
    return float(sum(study.user_attrs.get(f"{part}_seconds", 0.0) for part in ("training", "scoring")))


def add_seconds(study: optuna.Study, training: float, scoring: float) -> None:
    """Count time that was spent on a study."""
    for part, seconds in (("training", training), ("scoring", scoring)):
        study.set_user_attr(f"{part}_seconds", study.user_attrs.get(f"{part}_seconds", 0.0) + seconds)


def records(plan: Plan, study: optuna.Study) -> list[tuple[FrozenTrial, Record]]:
    """Every trial that has a scored checkpoint, with its record."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        uid = trial.user_attrs.get("uid")
        if uid and (plan.folder / "trials" / uid / "curve.json").is_file():
            recipe = trial.user_attrs["recipe"]
            prefix = f"{recipe}/"
            values = {k.removeprefix(prefix): v for k, v in trial.params.items() if k.startswith(prefix)}
            found.append((trial, Record.open(plan.folder / "trials" / uid, plan.run(recipe, values))))
    return [(trial, record) for trial, record in found if record.curve]
