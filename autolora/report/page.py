"""Writes a report as one web page: pictures, charts, style and script inside it, nothing fetched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from autolora.files import write_atomic
from autolora.report import charts
from autolora.report.formatting import counted, duration, format_estimate, number, parameters
from autolora.report.image_store import LOSSLESS_UP_TO, ImageStore, data_uri
from autolora.report.pareto import Dot, dots, figure, library
from autolora.report.schema import STATES, Column, Effect, Gallery, Report, Sample, TrialRow
from autolora.scoring.intervals import Estimate
from autolora.scoring.metrics import METRICS, constraint_label

TEMPLATES = Path(__file__).parent / "templates"
TERM_NAMES = {metric.name: metric.label for metric in METRICS if metric.in_report}
HOVERED = 4  # pictures shown of a checkpoint under the pointer


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path` (such as `report/index.html`) and return it.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomic(path, render_page(report))
    return path


def render_page(report: Report) -> str:
    """The whole page as HTML."""
    best, album, shown = report.trial(report.best), ImageStore(), dots(report)
    data = {
        "gallery": _gallery_data(report.gallery, album) if report.gallery else None,
        "checkpoints": [_hovered(one, album) for one in shown],
        "pareto": figure(report, shown) if shown else None,
    }
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            best=best,
            album=album,
            rows=ranked(report),
            compared=compared(report),
            curves=[(trial, name, _curve(report, trial)) for name, trial in _leading(report)],
            other_curves=[
                (trial, trial.recipe, _curve(report, trial))
                for trial in report.trials
                if len(trial.curve) > 1 and trial.number not in {t.number for _, t in _leading(report)}
            ],
            sweep=charts.weight_sweep(report.sweep, report.weight, report.max_bleed) if report.sweep else "",
            overview=charts.overview(report.trials, report.best, report.baselines.values()),
            effects=_effects(report),
            stopped=[trial for trial in report.trials if trial.state in ("pruned", "failed")],
            dots=shown,
            legend=charts.legend(),
            interval=charts.interval,
            parameters=parameters,
            terms=TERM_NAMES,
            series=charts.SERIES,
            counts={state: count for state in STATES if (count := _count(report, state))},
            style=style(),
            script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
            plotly=library() if shown else "",
            data=lambda: _json({**data, "pictures": album.rest()}),
        )
    )


def _gallery_data(gallery: Gallery, album: ImageStore) -> dict[str, Any]:
    """The pictures by step and by weight of every column, as keys of the album."""
    return {
        "stepWeight": gallery.step_weight,
        "steps": sorted({step for column in gallery.columns for step in column.by_step if step}),
        "weights": sorted({weight for column in gallery.columns for weight in column.by_weight}),
        "columns": [
            {
                "name": column.name,
                "step": column.step,
                "weight": column.weight,
                "steps": {f"{step}": [album.add(image) for image in own] for step, own in column.by_step.items()},
                "weights": {f"{w:g}": [album.add(image) for image in own] for w, own in column.by_weight.items()},
            }
            for column in gallery.columns
        ],
    }


def _hovered(one: Dot, album: ImageStore) -> dict[str, Any]:
    """What is shown of the checkpoint under the pointer."""
    return {
        "words": one.words,
        "verdict": one.point.verdict,
        "terms": one.terms,
        "pictures": album.thumbnails(_spread(one.point.renders)),
    }


def _spread(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """At most HOVERED pictures, from the first to the last: with the trigger to without."""
    if len(pictures) <= HOVERED:
        return list(pictures)
    return [pictures[round(place * (len(pictures) - 1) / (HOVERED - 1))] for place in range(HOVERED)]


def _effects(report: Report) -> list[tuple[str, list[tuple[Effect, Markup]]]]:
    """Each recipe's parameters, the most important first, with their charts."""
    by_recipe: dict[str, list[tuple[Effect, Markup]]] = {}
    for one in sorted(report.effects, key=lambda e: -(e.importance.value if e.importance else 0.0)):
        by_recipe.setdefault(one.recipe, []).append((one, charts.effect(one)))
    return list(by_recipe.items())


def _curve(report: Report, trial: TrialRow) -> Markup:
    return charts.learning_curve(trial, report.max_bleed)


def _json(content: object) -> Markup:
    """JSON that may stand in a script element: nothing in it can end that."""
    return Markup(json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))


def environment(escaped: bool = True) -> Environment:
    """What renders the templates, with the filters that they use; only what is no HTML goes without escapes."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "counted": counted,
        "duration": duration,
        "number": number,
        "format_estimate": format_estimate,
        "data_uri": data_uri,
        "pixelated": lambda image: max(image.size) <= LOSSLESS_UP_TO,
        "groupby_in_order": groups,
        "first_shown": first_shown,
        "first_of": first_of,
        "constraint": constraint_label,
    }
    return made


def groups(items: Sequence[Sample], attribute: str) -> list[tuple[str, list[tuple[int, Sample]]]]:
    """Numbered items by an attribute, in the order of their first ones."""
    found: dict[str, list[tuple[int, Sample]]] = {}
    for number_, item in enumerate(items):
        found.setdefault(getattr(item, attribute), []).append((number_, item))
    return list(found.items())


def first_shown(column: Column, sample: int) -> Image.Image:
    """A column's picture of a sample before any slider is moved: at its weight, else at its step, else its last."""
    own = column.by_weight.get(column.weight) or column.by_step.get(column.step) or list(column.by_step.values())[-1]
    return own[sample]


def first_of(found: Sequence[Dot], best: TrialRow | None) -> int:
    """The place of the exported checkpoint, else the first."""
    places = [i for i, one in enumerate(found) if best and one.trial is best and one.point.at == best.best_step]
    return places[0] if places else 0


def style() -> Markup:
    """The style sheet of every page."""
    return Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))


def ranked(report: Report) -> list[TrialRow]:
    """Trials as the table lists them: the exported one, then those that break nothing, each by score."""

    def rank(trial: TrialRow) -> tuple[bool, bool, bool, float, int]:
        value = trial.score.value if trial.score else -math.inf
        return trial.number != report.best, trial.score is None, bool(trial.broken), -value, trial.number

    return sorted(report.trials, key=rank)


@dataclass(frozen=True)
class Compared:
    """A trial's terms at its best checkpoint and, for a recipe as it is, where they were when it ended."""

    name: str
    trial: TrialRow
    terms: Mapping[str, Estimate]
    ends: Mapping[str, float]


def compared(report: Report) -> list[Compared]:
    """The exported trial and the baselines, with the names they go by."""
    found = []
    for name, trial in _leading(report):
        if trial.score is not None:
            last = trial.curve[-1] if trial.curve and trial.number != report.best else None
            ends = {key: float(getattr(last, key)) for key in charts.SERIES} if last else {}
            found.append(Compared(name, trial, {"score": trial.score, **trial.terms}, ends))
    return found


def _leading(report: Report) -> list[tuple[str, TrialRow]]:
    """The trials that matter most: the exported one, then each baseline once."""
    best = report.trial(report.best)
    found = [] if best is None else [("exported", best)]
    for name, number_ in report.baselines.items():
        trial = report.trial(number_)
        if trial is not None and trial is not best:
            found.append((name, trial))
    return found


def _count(report: Report, state: str) -> int:
    return sum(trial.state == state for trial in report.trials)
