"""Writes a report as one web page: pictures, charts and style inside it, nothing fetched, no script needed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from autolora.files import write_atomic
from autolora.report import charts
from autolora.report.content import Report, TrialRow
from autolora.scoring.intervals import Estimate

TEMPLATES = Path(__file__).parent / "templates"
LOSSLESS_UP_TO = 128  # pixels; larger pictures go in as WebP, else a page of them would weigh tens of megabytes
TERM_NAMES = {"fidelity": "fidelity", "likeness": "likeness", "editability": "editability", "bleed_class": "bleed"}
CONSTRAINT_NAMES = {"bleed_class": "bleed", "editability": "stiff", "bleed_cross": "mixed up", "memorisation": "copied"}


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path` (such as `report/index.html`) and return it.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomic(path, render_page(report))
    return path


def render_page(report: Report) -> str:
    """The whole page as HTML."""
    best = report.trial(report.best)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            best=best,
            rows=ranked(report),
            compared=compared(report),
            curves=[
                (trial, name, charts.learning_curve(trial, report.bleed_limit)) for name, trial in _leading(report)
            ],
            other_curves=[
                (trial, trial.recipe, charts.learning_curve(trial, report.bleed_limit))
                for trial in report.trials
                if len(trial.curve) > 1 and trial.number not in {t.number for _, t in _leading(report)}
            ],
            sweep=charts.weight_sweep(report.sweep, report.weight, report.bleed_limit) if report.sweep else "",
            overview=charts.overview(report.trials, report.best, report.baselines.values()),
            legend=charts.legend(),
            interval=charts.interval,
            parameters=parameters,
            terms=TERM_NAMES,
            series=charts.SERIES,
            counts={
                state: count
                for state in ("complete", "pruned", "failed", "running")
                if (count := _count(report, state))
            },
            style=style(),
        )
    )


def environment() -> Environment:
    """What renders the templates, with the filters that they use."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "duration": duration,
        "number": number,
        "data_uri": data_uri,
        "pixelated": lambda image: max(image.size) <= LOSSLESS_UP_TO,
        "constraint": lambda name: CONSTRAINT_NAMES.get(name, name.replace("_", " ")),
    }
    return made


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


def parameters(values: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """(full name, short name, value) of what was drawn; a last part that two share keeps its group."""
    keys = {key: key.rpartition("/")[2] for key in values}
    lasts = [key.rpartition(".")[2] for key in keys.values()]
    return [
        (path, last if lasts.count(last) == 1 else path, number(values[key]))
        for (key, path), last in zip(keys.items(), lasts, strict=True)
    ]


def number(value: object) -> str:
    """A value as a person writes it: three significant digits for fractions, `none` for None."""
    if value is None:
        return "none"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def data_uri(image: Image.Image) -> str:
    """The picture as text to put into the page."""
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_UP_TO:
        image.convert("RGB").save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.convert("RGB").save(buffer, "WEBP", quality=88)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
