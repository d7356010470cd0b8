"""A study: asks for recipes, trains and scores them, stops what cannot win, and can be continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.progress import Bars
from autolora.study.space import Space, as_text, difference, parse_space, suggest
from autolora.study.trial import Record, point
from autolora.study.workbench import Workbench
from autolora.train.loop import Assignment, Slot, train
from autolora.train.run import Run

DIVERGED = -10.0  # a finite value below any score, so that the sampler learns to stay away


@dataclass(frozen=True)
class Plan:
    """A study's fixed parts: its settings, its space, its folder and how a trial's run is composed."""

    settings: cfg.StudySettings
    space: Space
    folder: Path
    study_name: str
    arguments: tuple[str, ...]

    def run(self, recipe: str, values: dict[str, Any]) -> Run:
        """The run of a recipe with some keys set."""
        overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
        composed = cfg.compose("tune", [f"recipe={recipe}", *self.arguments, *overrides], self.study_name)
        return cfg.build_run(composed)

    def own_values(self, recipe: str) -> dict[str, Any]:
        """A recipe's own value of every key that the study varies."""
        composed = cfg.compose("tune", [f"recipe={recipe}", *self.arguments], self.study_name)
        values = {}
        for key in self.space[recipe]:
            node: Any = composed
            for part in key.split("."):
                if not isinstance(node, DictConfig) or part not in node:
                    raise ConfigError(f"study.recipes.{recipe}.{key}: recipe {recipe} has no key `{key}`")
                node = node[part]
            values[key] = node
        return values


def make_plan(config: DictConfig, study_name: str, arguments: Sequence[str]) -> tuple[Plan, dict[str, dict[str, Any]]]:
    """Check a study before anything loads; returns it with each recipe's own values.

    Raises:
        ConfigError: every range or recipe that cannot be, all at once.
    """
    settings = cfg.study_settings(config)
    space = parse_space(settings.recipes)
    plan = Plan(settings, space, cfg.run_folder(config, settings.name), study_name, tuple(arguments))
    own, mistakes = {}, []
    for recipe, keys in space.items():
        try:
            own[recipe] = plan.own_values(recipe)
        except ConfigError as error:
            mistakes.append(str(error))
            continue
        for key, values in keys.items():
            if own[recipe][key] not in values:
                mistakes.append(
                    f"study.recipes.{recipe}.{key}: the recipe's own {own[recipe][key]} is outside {values.text()}"
                )
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return plan, own


def open_study(plan: Plan, own: dict[str, dict[str, Any]], identity: dict[str, str]) -> optuna.Study:
    """Create the study, or continue it where its space, dataset and model are unchanged.

    Raises:
        StudyError: what changed, and what to do.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    settings = plan.settings
    sampler = optuna.samplers.TPESampler(
        multivariate=True,
        group=True,
        n_startup_trials=settings.startup_trials,
        seed=settings.seed,
    )
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(
            f"sqlite:///{plan.folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
        ),
        study_name=settings.name,
        sampler=sampler,
        pruner=optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2),
        direction="maximize",
        load_if_exists=True,
    )
    new = {**as_text(plan.space), **identity}
    old = study.user_attrs.get("space")
    if old is None:
        study.set_user_attr("space", new)
        for recipe, values in own.items():
            named = {f"{recipe}/{key}": value for key, value in values.items()}
            study.enqueue_trial({"recipe": recipe, **named}, user_attrs={"baseline": recipe})
    elif old != new:
        changed = "; ".join(difference(old, new))
        raise StudyError(f"study {settings.name} in {plan.folder} was started differently ({changed}); "
                         "undo the change, or start another with out=OTHER_FOLDER")  # fmt: skip
    return study


class Driver:
    """Feeds the training loop with trials and judges every checkpoint it yields."""

    def __init__(self, plan: Plan, study: optuna.Study, work: Workbench, bars: Bars) -> None:
        self.plan, self.study, self.work, self.bars = plan, study, work, bars
        self.trials: dict[int, tuple[Trial, Record]] = {}  # by slot
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
        if self._finished() >= settings.trials or (settings.minutes is not None and minutes >= settings.minutes):
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
            record.add(checkpoint, point(checkpoint, self.work.score(self.bars), self.work.base_losses))
            self.scoring_seconds += time.perf_counter() - began
        best = record.best()
        assert best is not None
        number = len(record.curve)
        if number not in self.study.trials[trial.number].intermediate_values:
            trial.report(best.objective, number)
        self.bars.say(
            f"  step {checkpoint.step}: score {record.curve[-1].score['value']:.3f}  {record.curve[-1].verdict}"
        )
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
        self.study.set_user_attr("training_seconds", self.study.user_attrs.get("training_seconds", 0.0) + slot.seconds)
        self.study.set_user_attr(
            "scoring_seconds", self.study.user_attrs.get("scoring_seconds", 0.0) + self.scoring_seconds
        )
        self.scoring_seconds = 0.0
        for name, broken_by in (best.constraints if best else {"diverged": 1.0}).items():
            trial.set_constraint(name, broken_by)
        value = best.objective if best else DIVERGED
        self.study.tell(trial, value if state is TrialState.COMPLETE else None, state=state, skip_if_finished=True)
        self.bars.say(f"  {self.study.trials[trial.number].user_attrs['reason']}")
        self.bars.set(self.study_bar, self._finished())
        slot.stop()


def run_study(plan: Plan, study: optuna.Study, work: Workbench, bars: Bars) -> Driver:
    """Run trials until the budget is spent."""
    driver = Driver(plan, study, work, bars)
    for ready in train(driver.next_run, work.bench, driver.on_step):
        for slot in ready:
            driver.judge(slot)
    return driver


def spent_seconds(study: optuna.Study) -> float:
    """Seconds that the study's trials took, training and scoring, however often it was continued."""
    return float(study.user_attrs.get("training_seconds", 0.0) + study.user_attrs.get("scoring_seconds", 0.0))


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
