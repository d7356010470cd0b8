"""Budgets: when no further trial begins, and the plan that is told before."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autolora import config as cfg
from autolora.adapters.kinds import LoRA
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import ConfigError
from autolora.optim.optimizers import AdamW
from autolora.paperdoll.world import write_dataset
from autolora.settings import Budget, StudySettings, build_settings
from autolora.study.budget import describe_plan, may_begin, trials_since_best
from autolora.train.run import Run, TrainSettings

SETTINGS = StudySettings("mona", {"doll-adamw": {}}, Budget(n_trials=9))


def ended(number: int, value: float | None, **attrs: object) -> FrozenTrial:
    """A trial that ended as the number-th; without a value it was pruned."""
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    trial = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
    trial.number, trial.datetime_complete = number, datetime(2026, 1, 1) + timedelta(minutes=number)
    return trial


@pytest.mark.parametrize(
    ("values", "since"),
    [([0.1, 0.2, 0.3], 0), ([0.1, 0.5, 0.3, None, 0.5], 3), ([None, None], 2), ([], 0)],
)
def test_trials_without_a_better_one_are_counted(values: list[float | None], since: int) -> None:
    trials = [ended(number, value) for number, value in enumerate(values)]
    assert trials_since_best(trials[::-1]) == since


def test_recipes_as_they_are_do_not_count_as_standing_still() -> None:
    assert trials_since_best([ended(0, 0.5, baseline="a"), ended(1, 0.3, baseline="b"), ended(2, 0.4)]) == 1


def test_what_ends_a_search() -> None:
    trials = [ended(0, 0.5, step=600), ended(1, 0.4, step=400)]
    assert may_begin(trials, SETTINGS)
    for enough, spent in (
        (Budget(max_images=1001), Budget(max_images=1000)),
        (Budget(max_stale_trials=2), Budget(max_stale_trials=1)),
    ):
        assert may_begin(trials, replace(SETTINGS, budget=enough))
        assert not may_begin(trials, replace(SETTINGS, budget=spent))


def test_the_plan_is_told(tmp_path: Path) -> None:
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6, size=32)
    dataset = load_dataset(DatasetSettings(path=str(tmp_path / "doll")))
    runs = [Run("a", LoRA(), AdamW(), train=TrainSettings(epochs=2, images_per_concept=n)) for n in (600, 1000)]
    plan = describe_plan(replace(SETTINGS, budget=Budget(9, 90, 20000, 6)), runs, dataset, 2)
    assert plan.splitlines() == [
        "9 trials: 2 baselines (1,200 to 2,000 images each) + 7 sampled, 2 workers here",
        "limits: the study ends after 90 minutes in all, its search after 63; "
        "no trial starts after 20,000 images in all; the search ends after 6 trials in a row without a better one",
        "finals: re-score up to 3 finalists, up to 2 checkpoint averages, rescaled copies of the best, "
        "train the best two recipes again with 2 more seeds each",
    ]
    short = replace(SETTINGS, budget=Budget(1), n_finalists=1, try_lora_scales=False, final_seeds=0)
    plan = describe_plan(short, runs[:1], dataset, 1)
    assert plan.splitlines() == [
        "1 trial: 1 baseline (1,200 images each) + 0 sampled",
        "limits: none",
        "finals: re-score up to 1 finalist, up to 1 checkpoint average",
    ]


@pytest.mark.parametrize("name", ["n_trials", "minutes", "max_images", "max_stale_trials"])
def test_impossible_budgets_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"budget.{name} must be"):
        Budget(**{name: 0})


def test_what_budgets_were_called_before_names_what_they_are_called_now(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.minutes is called budget\.minutes now"):
        cfg.compose("tune", ["study.minutes=90"], "quickstart")
    for body, message in (
        ("trials: 3", "study.trials is called budget.n_trials"),
        ("budget: {}", "budget is a key of"),
    ):
        file = tmp_path / "mine.yaml"
        file.write_text(f"# @package _global_\nstudy: {{name: mine, recipes: {{doll-adamw: {{}}}}, {body}}}\n")
        with pytest.raises(ConfigError, match=message):
            build_settings(cfg.compose("tune", [], str(file)))
    with pytest.raises(ConfigError, match=r"did you mean `budget\.minutes`"):
        cfg.compose("tune", ["budget.minuts=90"], "quickstart")
