"""The Jinja environment of the pages and the model card, its filters, and the style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from autolora.report.formatting import counted, duration, format_estimate, number
from autolora.report.image_store import data_uri
from autolora.report.schema import Column, CurvePoint, Sample
from autolora.scoring.metrics import constraint_label

TEMPLATES = Path(__file__).parent / "templates"


def environment(escaped: bool = True) -> Environment:
    """The environment that renders the templates.

    Args:
        escaped: whether values are escaped for HTML; only a template of another format goes without.
    """
    result = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escaped,
        finalize=None if escaped else _in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters |= {
        "counted": counted,
        "duration": duration,
        "number": number,
        "format_estimate": format_estimate,
        "data_uri": data_uri,
        "groups": groups,
        "first_image": first_image,
        "term": term_text,
        "code": _in_code,
        "percent": lambda value: f"{100 * min(max(value, 0.0), 1.0):.0f}%",
        "constraint": constraint_label,
    }
    return result


def _in_markdown(value: object) -> object:
    """A value that breaks no table of Markdown and is no HTML: tags and names come from datasets of others."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return " ".join(value.replace("<", "&lt;").replace("|", "\\|").splitlines())


def _in_code(value: str) -> Markup:
    """A value between the backticks of a code span of Markdown, where HTML is only text."""
    return Markup(" ".join(value.replace("`", "'").replace("|", "\\|").splitlines()))


def text_of(name: str) -> Markup:
    """A style sheet or a script of the pages, which is put into them as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def groups(samples: Sequence[Sample]) -> list[tuple[str, list[tuple[int, Sample]]]]:
    """The samples with their places, by group, in the order in which the groups first occur."""
    result: dict[str, list[tuple[int, Sample]]] = {}
    for place, sample in enumerate(samples):
        result.setdefault(sample.group, []).append((place, sample))
    return list(result.items())


def term_text(point: CurvePoint, term: str) -> str:
    """A term of a checkpoint with its interval, or without one if none is known; a dash if it was not measured."""
    if term in point.terms:
        return format_estimate(point.terms[term])
    value = float(getattr(point, term, math.nan))
    return f"{value:.2f}" if math.isfinite(value) else "-"


def first_image(column: Column, sample: int) -> Image.Image:
    """The image of a sample before any slider is moved: at the column's weight, else at its step, else its last."""
    images = column.by_weight.get(column.weight) or column.by_step.get(column.step) or list(column.by_step.values())[-1]
    return images[sample]
