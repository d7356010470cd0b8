"""What a study costs on this machine, and what a limited time is spent on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autolora.data.concepts import Dataset
from autolora.evaluation.session import REPEATS
from autolora.evaluation.throughput import Speed
from autolora.models.base import BaseModel
from autolora.report.formatting import counted
from autolora.report.tables import Section
from autolora.scoring.eval_prompts import ALL_GROUPS, DECIDING_GROUPS, SEARCH_GROUPS, build_eval_prompts, render_count
from autolora.scoring.settings import ScoringSettings
from autolora.settings import RETRAINED_RECIPES, STRONGER, SWEEP_WEIGHTS, StudySettings
from autolora.train.run import Run


@dataclass(frozen=True)
class Renders:
    """The number of renders, in units of one render of the search."""

    before: float  # by the base model before anything trains, with the class images; they are cached
    checkpoint: float  # to score a checkpoint in full
    finalist: float  # to score a checkpoint in the finals
    winner: float  # by the base model for the finals, and for the full evaluation of the winner


def count_renders(runs: Sequence[Run], dataset: Dataset, model: BaseModel, scoring: ScoringSettings) -> Renders:
    """Count the renders of a study of some recipes."""
    settings, weights = model.settings.render, len(scoring.weights)
    search, deciding, every = (
        render_count(build_eval_prompts(dataset, scoring, groups))
        for groups in (SEARCH_GROUPS, DECIDING_GROUPS, ALL_GROUPS)
    )
    slower = settings.num_inference_steps / settings.search.num_inference_steps
    larger = (model.resolution / settings.side(model.resolution)) ** 2
    renders_class_images = not dataset.regularization and any(run.train.shows_class_pictures for run in runs)
    return Renders(
        before=search
        + scoring.num_negative_renders
        + renders_class_images * slower * larger * model.settings.num_class_images,
        checkpoint=search * weights,
        finalist=slower * REPEATS * deciding * weights,
        winner=slower * REPEATS * every * (1 + weights) + search * len(SWEEP_WEIGHTS),
    )


def cost_section(
    runs: Sequence[Run],
    dataset: Dataset,
    renders: Renders,
    speed: Speed,
    study: StudySettings | None,
) -> Section:
    """What each recipe costs on this machine, and the study at most.

    Args:
        runs: the recipes unchanged.
        dataset: what they train on.
        renders: as counted.
        speed: as measured.
        study: None for a single run.
    """
    rows, minutes, judging = [], [], 0.0
    per_render = speed.seconds_per_render / 60
    for run in runs:
        images = run.images_per_epoch(dataset) * run.train.epochs
        checkpoints = run.train.epochs * run.train.checkpoints_per_epoch
        drawn = checkpoints * renders.checkpoint
        minutes.append(images * speed.seconds_per_image / 60 + drawn * per_render)
        judging += drawn * per_render
        rows.append((run.name, images, run.optimizer_steps(dataset), checkpoints, round(drawn), minutes[-1]))
    words = [
        f"measured here: {speed.seconds_per_image:.3g} s for an image trained on, {speed.seconds_per_render:.3g} s for "
        f"one rendered, {speed.memory_gib:.1f} GiB of {speed.memory_of}",
        "the renders score every checkpoint in full; a study needs fewer, as part of them settles most checkpoints",
    ]
    each = sum(minutes) / len(minutes)
    share = judging / sum(minutes)
    lower = "model.render.size and model.render.search_inference_steps lower that"
    words.append(f"{share:.0%} of the time is rendering; {lower}")
    before = math.ceil(renders.before * per_render)
    words.append(
        f"before anything trains the base model renders for at most {before} min, once: its renders are cached"
    )
    if study:
        total = math.ceil(study.budget.n_trials * each)
        words.append(
            f"{counted(study.budget.n_trials, 'trial')} like these at most {total} min, less where they overcook"
        )
        finals = finals_minutes(study, each, renders.finalist * per_render) + renders.winner * per_render
        words.append(describe_finals(study, finals))
        words += describe_time(study, len(runs), each, finals)
    columns = ("recipe", "images", "optimizer steps", "checkpoints", "renders", "minutes")
    return Section("Cost", columns, tuple(rows), tuple(words))


def finals_minutes(study: StudySettings, minutes_each: float, minutes_scoring: float) -> float:
    """The minutes that the finals take at most.

    Args:
        study: with the number of finalists.
        minutes_each: of training one trial.
        minutes_scoring: of scoring one checkpoint.
    """
    retrained = RETRAINED_RECIPES * study.final_seeds
    return (_rescored(study) + retrained) * minutes_scoring + retrained * minutes_each


def _rescored(study: StudySettings) -> int:
    """The number of checkpoints that the finals score again, at most."""
    averages = RETRAINED_RECIPES if study.average_checkpoints else 0
    return study.n_finalists + averages + (len(STRONGER) if study.try_lora_scales else 0)


def describe_finals(study: StudySettings, minutes: float) -> str:
    """What the finals do in so many minutes."""
    retrained = RETRAINED_RECIPES * study.final_seeds
    training = f" and {counted(retrained, 'recipe')} trained again" if retrained else ""
    return (
        f"finals: at most {math.ceil(minutes)} min, for {counted(_rescored(study), 'checkpoint')} re-scored{training}"
    )


def describe_time(study: StudySettings, baselines: int, minutes_each: float, finals: float) -> list[str]:
    """What `budget.minutes` is spent on, and what to change where it is too little; empty without that limit.

    Args:
        study: with its budget.
        baselines: the number of recipes, which come first.
        minutes_each: of a trial.
        finals: minutes that the finals take at most.
    """
    limit = study.budget.minutes
    if limit is None:
        return []
    search = study.search_minutes
    fit = min(study.budget.n_trials, math.ceil(search / minutes_each))  # the last trial is ended, however late
    rest = f", and the finals the rest, at least {limit - search:g}" if study.final_seeds else ""
    lines = [
        f"budget.minutes={limit:g}: the search takes {search:g} of them, for about {fit} of {study.budget.n_trials} "
        f"trials in full{rest}"
    ]
    if study.final_seeds and limit - search < finals:
        lines.append(
            f"the rest is too little for all of the finals ({math.ceil(finals)} min): what does not fit is left out, "
            "training again first; study.final_seeds=1 asks for less"
        )
    if fit < baselines:
        needed = math.ceil(baselines * minutes_each / search * limit)
        lines.append(
            f"the search is too short for the {baselines} baselines, which come first: set budget.minutes={needed}, "
            f"leave some out with ~study.recipes.NAME, or train on fewer images by train.epochs or "
            f"train.images_per_concept, {search / (baselines * minutes_each):.0%} of what they are"
        )
    return lines
