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
from autolora.scoring.probes import ALL_GROUPS, DECIDING_GROUPS, SEARCH_GROUPS, build_probes, render_count
from autolora.scoring.settings import ScoringSettings
from autolora.settings import RETRAINED_RECIPES, STRONGER, SWEEP_WEIGHTS, StudySettings
from autolora.train.run import Run


@dataclass(frozen=True)
class Renders:
    """How many pictures are drawn, each in as many of the search's renders as it takes the time of."""

    before: float  # the base model's own, class pictures among them, before anything trains; they are kept
    checkpoint: float  # to judge a checkpoint in full
    finalist: float  # to judge one again in the finals
    winner: float  # the base model's for the finals, and what only their winner is asked


def count_renders(runs: Sequence[Run], dataset: Dataset, model: BaseModel, scoring: ScoringSettings) -> Renders:
    """The pictures that a study of some recipes draws."""
    settings, weights = model.settings.render, len(scoring.weights)
    search, deciding, every = (
        render_count(build_probes(dataset, scoring, groups)) for groups in (SEARCH_GROUPS, DECIDING_GROUPS, ALL_GROUPS)
    )
    slower = settings.num_inference_steps / settings.search.num_inference_steps
    larger = (model.resolution / settings.side(model.resolution)) ** 2
    drawn = not dataset.regularization and any(run.train.shows_class_pictures for run in runs)
    return Renders(
        before=search + scoring.num_negative_renders + drawn * slower * larger * model.settings.num_class_images,
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
        runs: the recipes as they are.
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
        "rendered is what judges every checkpoint in full; a study spends less, as most are settled by a part of it",
    ]
    each = sum(minutes) / len(minutes)
    share = judging / sum(minutes)
    lower = "model.render.size and model.render.search_inference_steps lower that"
    words.append(f"{share:.0%} of the time is rendering; {lower}")
    before = math.ceil(renders.before * per_render)
    words.append(f"before anything trains the base model draws for at most {before} min, once: its pictures are kept")
    if study:
        total = math.ceil(study.budget.n_trials * each)
        words.append(
            f"{counted(study.budget.n_trials, 'trial')} like these at most {total} min, less where they overcook"
        )
        finals = finals_minutes(study, each, renders.finalist * per_render) + renders.winner * per_render
        words.append(finals_in_words(study, finals))
        words += time_in_words(study, len(runs), each, finals)
    columns = ("recipe", "steps", "optimizer steps", "checkpoints", "renders", "minutes")
    return Section("Cost", columns, tuple(rows), tuple(words))


def finals_minutes(study: StudySettings, minutes_each: float, minutes_judging: float) -> float:
    """How long the finals take at most, for trials of so many minutes and checkpoints judged in so many."""
    again = RETRAINED_RECIPES * study.final_seeds
    return (_judged_again(study) + again) * minutes_judging + again * minutes_each


def _judged_again(study: StudySettings) -> int:
    return (
        study.n_finalists
        + (RETRAINED_RECIPES if study.average_checkpoints else 0)
        + (len(STRONGER) if study.try_lora_scales else 0)
    )


def finals_in_words(study: StudySettings, minutes: float) -> str:
    """What the finals do in so many minutes."""
    again = RETRAINED_RECIPES * study.final_seeds
    training = f" and {again} trained again" if again else ""
    again_judged = counted(_judged_again(study), "checkpoint")
    return f"finals: at most {math.ceil(minutes)} min, for {again_judged} judged again{training}"


def time_in_words(study: StudySettings, recipes: int, minutes_each: float, finals: float) -> list[str]:
    """What `budget.minutes` will be spent on, and what to change where it is too little; nothing where it is no limit.

    Args:
        study: with its limits.
        recipes: that come first, as they are.
        minutes_each: of a trial.
        finals: minutes that they take at most.
    """
    limit = study.budget.minutes
    if limit is None:
        return []
    search = study.search_minutes
    fit = min(study.budget.n_trials, math.ceil(search / minutes_each))  # the last is ended, however late
    kept = f", and the finals what is left, {limit - search:g} at least" if study.final_seeds else ""
    said = [
        f"budget.minutes={limit:g}: the search takes {search:g} of them, for about {fit} of {study.budget.n_trials} "
        f"trials in full{kept}"
    ]
    if study.final_seeds and limit - search < finals:
        said.append(
            f"what is left is too little for all of the finals ({math.ceil(finals)} min): what does not fit is left "
            "out, training again first; study.final_seeds=1 asks for less"
        )
    if fit < recipes:
        needed = math.ceil(recipes * minutes_each / search * limit)
        said.append(
            f"the search is too short for the {recipes} recipes as they are, which come first: set "
            f"budget.minutes={needed}, leave some out with ~study.recipes.NAME, or train on fewer pictures by "
            f"train.epochs or train.images_per_concept, {search / (recipes * minutes_each):.0%} of what they are"
        )
    return said
