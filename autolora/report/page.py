"""Writes a report as one web page that holds its images, figures, style and scripts, and needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from autolora.files import write_atomic
from autolora.report.figures.comparison import interval_bars, parameter_effect
from autolora.report.figures.curves import learning_curve, overview, weight_sweep
from autolora.report.figures.embed import drawing_parts, embed, script_json
from autolora.report.figures.pareto import ParetoPoint, is_exported, pareto_figure, pareto_points
from autolora.report.figures.theme import TERM_NAMES
from autolora.report.formatting import parameters
from autolora.report.image_store import ImageStore
from autolora.report.schema import STATES, Effect, Gallery, Report, TrialRow
from autolora.report.selection import compared_trials, leading_trials, ranked_trials
from autolora.report.templating import environment, text_of

CHECKPOINT_IMAGES = 4  # images of a checkpoint that the page shows when it is pointed at

Curve = tuple[TrialRow, str, Markup]  # the trial's name and its figure


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path` (such as `report/index.html`) and return it.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomic(path, render_page(report))
    return path


def render_page(report: Report) -> str:
    """The page as HTML."""
    store, points, compared = ImageStore(), pareto_points(report), compared_trials(report)
    leading, others = _curves(report)
    scored = any(trial.curve for trial in report.trials) or bool(compared)
    data = {
        "gallery": _gallery_data(report.gallery, store) if report.gallery else None,
        "checkpoints": [_checkpoint_data(point, store) for point in points],
        "first": next((place for place, point in enumerate(points) if is_exported(point, report)), 0),
    }
    template = environment().get_template("page.html.jinja")
    return template.render(
        report=report,
        best=report.trial(report.best),
        store=store,
        rows=ranked_trials(report),
        compared=compared,
        bars=embed(interval_bars(compared)) if compared else None,
        curves=leading,
        other_curves=others,
        sweep=embed(weight_sweep(report.sweep, report.weight, report.max_bleed)) if report.sweep else None,
        overview=embed(overview(report.trials, report.best, report.baselines.values())) if scored else None,
        effects=_effects(report),
        stopped=[trial for trial in report.trials if trial.state in ("pruned", "failed")],
        pareto=embed(pareto_figure(report, points), "pareto") if points else None,
        parameters=parameters,
        terms=TERM_NAMES,
        counts={state: count for state in STATES if (count := sum(trial.state == state for trial in report.trials))},
        style=text_of("style.css"),
        script=text_of("page.js"),
        data=lambda: script_json({**data, "images": store.rest()}),
        drawing=drawing_parts() if scored or report.effects else None,
    )


def _gallery_data(gallery: Gallery, store: ImageStore) -> dict[str, Any]:
    """The images by step and by weight of every column, as keys of the store."""
    return {
        "stepWeight": gallery.step_weight,
        "steps": sorted({step for column in gallery.columns for step in column.by_step if step}),
        "weights": sorted({weight for column in gallery.columns for weight in column.by_weight}),
        "columns": [
            {
                "name": column.name,
                "step": column.step,
                "weight": column.weight,
                "steps": {f"{at}": [store.add(image) for image in images] for at, images in column.by_step.items()},
                "weights": {f"{w:g}": [store.add(image) for image in images] for w, images in column.by_weight.items()},
            }
            for column in gallery.columns
        ],
    }


def _checkpoint_data(point: ParetoPoint, store: ImageStore) -> dict[str, Any]:
    """What the page shows of a checkpoint that is pointed at."""
    return {
        "name": point.name,
        "verdict": point.checkpoint.verdict,
        "terms": point.terms,
        "images": store.thumbnails(_evenly(point.checkpoint.renders)),
    }


def _evenly(images: Sequence[Image.Image]) -> list[Image.Image]:
    """At most CHECKPOINT_IMAGES images at equal distances, from the first, with the trigger, to the last, without."""
    if len(images) <= CHECKPOINT_IMAGES:
        return list(images)
    return [images[round(place * (len(images) - 1) / (CHECKPOINT_IMAGES - 1))] for place in range(CHECKPOINT_IMAGES)]


def _curves(report: Report) -> tuple[list[Curve], list[Curve]]:
    """The learning curves of the leading trials, and of the other trials with more than one scored checkpoint."""
    leading = leading_trials(report)
    numbers = {trial.number for _, trial in leading}
    others = [(t.recipe, t) for t in report.trials if len(t.curve) > 1 and t.number not in numbers]

    def draw(trials: Sequence[tuple[str, TrialRow]]) -> list[Curve]:
        return [(trial, name, embed(learning_curve(trial, report.max_bleed))) for name, trial in trials if trial.curve]

    return draw(leading), draw(others)


def _effects(report: Report) -> list[tuple[str, list[tuple[Effect, Markup]]]]:
    """The parameters of each recipe, the most important first, with their figures."""
    by_recipe: dict[str, list[tuple[Effect, Markup]]] = {}
    for effect in sorted(report.effects, key=lambda effect: -(effect.importance.value if effect.importance else 0.0)):
        by_recipe.setdefault(effect.recipe, []).append((effect, embed(parameter_effect(effect))))
    return list(by_recipe.items())
