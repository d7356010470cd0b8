"""What a study costs is told before it runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.evaluation.session import REPEATS
from autolora.evaluation.throughput import Speed
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.paperdoll.world import write_dataset
from autolora.preflight.cost import Renders, cost_section, count_renders, describe_time
from autolora.scoring.eval_prompts import ALL_GROUPS, SEARCH_GROUPS, build_eval_prompts, render_count
from autolora.scoring.settings import ScoringSettings
from autolora.settings import Budget, StudySettings
from autolora.train.run import Run, TrainSettings


def test_what_a_limited_time_is_spent_on_is_told(tmp_path: Path) -> None:
    runs = [Run(name, train=TrainSettings(epochs=2, images_per_concept=150)) for name in ("a", "b")]
    write_dataset(tmp_path / "doll", seed=1, outfits=2, images_per_outfit=6, size=32)
    dataset = load_dataset(DatasetSettings(path=str(tmp_path / "doll")))
    speed = Speed(seconds_per_image=1.0, seconds_per_render=3.0, memory_gib=9.0, memory_of="GPU memory")
    study = StudySettings("night", {"a": {}, "b": {}}, Budget(n_trials=40, minutes=480))
    renders = Renders(before=90.5, checkpoint=50, finalist=200.0, winner=300.0)
    words = cost_section(runs, dataset, renders, speed, study).words  # 600 s and 2 x 50 renders are 15 minutes
    assert "before anything trains the base model renders for at most 5 min, once: its renders are cached" in words
    assert any(line.startswith("33% of the time is rendering") for line in words)
    assert "40 trials like these at most 600 min, less where they overcook" in words
    # 7 checkpoints and 2 recipes with 2 seeds each by 200 renders of 3 s, 4 trainings of 15 minutes, 300 renders more
    assert "finals: at most 185 min, for 7 checkpoints re-scored and 4 recipes trained again" in words
    assert words[-2] == (
        "budget.minutes=480: the search takes 336 of them, for about 23 of 40 trials in full, and the finals the "
        "rest, at least 144"
    )
    assert "too little for all of the finals (185 min)" in words[-1]
    assert len(describe_time(study, 2, 15.0, finals=144.0)) == 1
    short = describe_time(replace(study, budget=Budget(minutes=20)), 2, 15.0, finals=0.0)
    assert "too short for the 2 baselines" in short[-1]
    assert "set budget.minutes=43" in short[-1]  # 30 of them are the search's, 70%
    assert "47% of what they are" in short[-1]
    assert not describe_time(replace(study, budget=Budget()), 2, 15.0, finals=150.0)


def test_all_that_is_drawn_is_counted(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6, size=32)
    dataset = load_dataset(DatasetSettings(path=str(tmp_path / "doll")))
    model, scoring = copy.copy(tiny_model), ScoringSettings(num_negative_renders=10, outfit_prompts=("hat", "glasses"))
    small = RenderSettings(num_inference_steps=6, search_inference_steps=2, size=model.resolution // 2)
    model.settings = replace(model.settings, num_class_images=20, render=small)
    search, every = (
        render_count(build_eval_prompts(dataset, scoring, groups)) for groups in (SEARCH_GROUPS, ALL_GROUPS)
    )
    plain = count_renders([Run("a")], dataset, model, scoring)
    assert (plain.before, plain.checkpoint) == (search + 10, 2 * search)
    assert plain.winner == 3 * REPEATS * 3 * every + 9 * search  # the base model's and two weights; the sweep
    shown = Run("b", train=TrainSettings(prior_preservation_ratio=0.5))
    drawn = count_renders([Run("a"), shown], dataset, model, scoring)
    assert drawn.before - plain.before == 20 * 3 * 4  # in three times as many steps, four times as large
    assert count_renders([shown], replace(dataset, regularization=dataset.pictures), model, scoring) == plain
