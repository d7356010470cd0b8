"""What a study costs on this machine, and what a limited time is spent on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autolora.data.concepts import Dataset
from autolora.report.sections import Section
from autolora.study.finals import LEADERS
from autolora.study.settings import StudySettings
from autolora.study.speed import Speed
from autolora.train.run import Run


def cost_section(
    runs: Sequence[Run],
    dataset: Dataset,
    renders: int,
    final_renders: float,
    speed: Speed,
    study: StudySettings | None,
) -> Section:
    """What each recipe costs on this machine, and the study at most.

    Args:
        runs: the recipes as they are.
        dataset: what they train on.
        renders: pictures that judge one checkpoint.
        final_renders: those that judge one in the finals, which render in more steps, in as many of the former.
        speed: as measured.
        study: None for a single run.
    """
    rows, minutes, judging = [], [], 0.0
    for run in runs:
        images = run.steps_per_epoch(dataset) * run.train.epochs
        checkpoints = run.train.epochs * run.train.checkpoints_per_epoch
        minutes.append((images * speed.seconds_per_image + checkpoints * renders * speed.seconds_per_render) / 60)
        judging += checkpoints * renders * speed.seconds_per_render / 60
        rows.append((run.name, images, run.optimizer_steps(dataset), checkpoints, checkpoints * renders, minutes[-1]))
    words = [
        f"measured here: {speed.seconds_per_image:.3g} s for an image trained on, {speed.seconds_per_render:.3g} s for "
        f"one rendered, {speed.memory_gib:.1f} GiB of {speed.memory_of}",
        "rendered is what judges every checkpoint in full; a study spends less, as most are settled by a part of it",
    ]
    each = sum(minutes) / len(minutes)
    words.append(f"{judging / sum(minutes):.0%} of the time is rendering; model.render.search_steps lowers that")
    if study:
        total = math.ceil(study.budget.trials * each)
        words.append(f"{study.budget.trials} trials like these take at most {total} min, those that overcook less")
        words.append(finals_in_words(study, each, final_renders * speed.seconds_per_render / 60))
        words += time_in_words(study, len(runs), each)
    columns = ("recipe", "steps", "optimizer steps", "checkpoints", "renders", "minutes")
    return Section("Cost", columns, tuple(rows), tuple(words))


def finals_in_words(study: StudySettings, minutes_each: float, minutes_judging: float) -> str:
    """How long the finals take at most, for trials of so many minutes and checkpoints judged in so many."""
    checkpoints = study.finalists + (LEADERS if study.average else 0)
    again = LEADERS * study.retrain_seeds
    minutes = (checkpoints + again) * minutes_judging + again * minutes_each
    training = f" and {again} trained again" if again else ""
    return f"finals: at most {math.ceil(minutes)} min, for {checkpoints} checkpoints judged again{training}"


def time_in_words(study: StudySettings, recipes: int, minutes_each: float) -> list[str]:
    """What `budget.minutes` will be spent on, for trials of so many minutes; nothing where time is no limit."""
    limit = study.budget.minutes
    if limit is None:
        return []
    fit = min(study.budget.trials, math.ceil(study.search_minutes / minutes_each))  # the last is ended, however late
    kept = limit - study.search_minutes
    said = [
        f"budget.minutes={limit:g}: the search takes {study.search_minutes:g} of them, for about {fit} of "
        f"{study.budget.trials} trials in full" + (f", and the finals {kept:g}" if kept else "")
    ]
    if fit < recipes:
        said.append(
            f"that is too little for the {recipes} recipes as they are, which come first: raise budget.minutes, leave "
            "some out with ~study.recipes.NAME, or lower train.epochs or train.steps_per_concept"
        )
    return said
