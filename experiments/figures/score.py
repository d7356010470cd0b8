"""Draws how the score works, from the pictures and figures of a finished study: docs/score.svg.

    python -m experiments.figures.score quickstart

Columns are the base model, the first unchanged recipe at its end and the exported LoRA, all at weight 1 and with the
same seeds; rows are what is asked of them; bars are the terms that come of all renders of that kind.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from autolora import config as cfg
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import open_session
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.publish.gallery import SampleRenderer
from autolora.study.definition import define_study
from autolora.study.finals.run import run_finals
from autolora.study.lifecycle import load_started_study
from autolora.study.results.report_data import exhibits_of
from autolora.study.trials import load_trials

OUT = Path(__file__).parents[2] / "docs" / "score.svg"
ROWS = (
    ("trigger", "with the trigger", "fidelity", "Fidelity", "how many pass for the character"),
    ("novel", "in other clothes", "editability", "Editability", "are prompts still followed?"),
    ("class_only", "without the trigger", "bleed_class", "Class bleed", "how many pass for the character even so"),
)
WIDTH, SIDE, ROW, TOP = 980, 112, 134, 64
COLUMNS, BARS = (190, 316, 442), 590  # left edges
BAR = 360  # pixels for 100%
COLOURS = ("#8a8f98", "#c2410c", "#1d6fb8")  # base model, unchanged recipe, exported


@dataclass(frozen=True)
class Shown:
    """One LoRA of the figure: its name, a picture for each row, its figures."""

    name: str
    pictures: Sequence[Image.Image]
    point: CheckpointResult | None


def collect(study_name: str, overrides: Sequence[str]) -> tuple[list[str], list[Shown], float]:
    """The prompt of each row, the three columns, and the limit of class bleed, of a study that has ended."""
    arguments = tuple(overrides)
    config = cfg.compose("tune", list(arguments), study_name)
    definition, own = define_study(config, study_name, arguments)
    study = load_started_study(definition, print)
    with Bars() as bars:
        session = open_session(config, [definition.run(recipe, values) for recipe, values in own.items()], bars)
        found = load_trials(definition, study)
        finals = run_finals(definition, found, session, bars)
        shelf = SampleRenderer.open(session, bars)
        chosen = exhibits_of(found, finals.winner.record, finals.winner.point)
        groups = [sample.group for sample in shelf.samples]
        places = [groups.index(group) for group, *_ in ROWS]
        columns = [Shown("base model", [shelf.base()[i] for i in places], None)]
        points = (chosen[0].record.results[-1], finals.winner.point)
        for name, one, point in zip(("guide's recipe", "exported"), (chosen[0], chosen[-1]), points, strict=True):
            columns.append(Shown(name, [shelf.at(one, 1.0)[i] for i in places], point))
    return [shelf.samples[i].prompt for i in places], columns, session.scoring.max_bleed


def draw(prompts: Sequence[str], columns: Sequence[Shown], limit: float) -> str:
    """The figure as one SVG that needs nothing else."""
    height = TOP + ROW * len(ROWS) + 118
    parts = [f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff" stroke="#d8dce2"/>']
    for left, column, colour in zip(COLUMNS, columns, COLOURS, strict=True):
        parts.append(text(left + SIDE / 2, 38, column.name, size=15, weight=600, fill=colour, anchor="middle"))
    parts.append(text(BARS, 38, "measured over all prompts and seeds", size=15, weight=600))
    for number, (prompt, row) in enumerate(zip(prompts, ROWS, strict=True)):
        top = TOP + ROW * number
        parts += [text(20, top + 40, row[1], size=15, weight=600)]
        parts += [text(20, top + 62 + 17 * i, line, size=12, fill="#5b6470") for i, line in enumerate(lines_of(prompt))]
        parts += [picture(left, top, column.pictures[number]) for left, column in zip(COLUMNS, columns, strict=True)]
        parts += [text(BARS, top + 20, row[3], size=15, weight=600)]
        parts += [text(BARS + BAR, top + 20, row[4], size=12, fill="#5b6470", anchor="end")]
        parts += bars_of(row[2], columns, top + 36, limit if row[2] == "bleed_class" else None)
    parts += footer(columns, TOP + ROW * len(ROWS) + 22, limit)
    body = "\n".join(parts)
    said = (
        "How the score works: pictures with the trigger, in other clothes and without it, and what is measured on them"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}" '
        f'font-family="system-ui, sans-serif">\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, size: int = 13, weight: int = 400, fill: str = "#1c2026", anchor: str = "start"
         ) -> str:  # fmt: skip
    """A line of words."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def lines_of(prompt: str, most: int = 24) -> list[str]:
    """A prompt in lines of at most so many letters, broken between tags."""
    lines = [""]
    for tag in prompt.split(", "):
        joined = f"{lines[-1]}, {tag}" if lines[-1] else tag
        if len(joined) > most and lines[-1]:
            lines[-1] += ","
            lines.append(tag)
        else:
            lines[-1] = joined
    return lines


def picture(x: float, y: float, image: Image.Image) -> str:
    """A picture inside the file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="data:image/webp;base64,{data}"/>'


def bars_of(term: str, columns: Sequence[Shown], top: float, limit: float | None) -> Iterator[str]:
    """A bar with its interval for each LoRA, and the limit where the term has one."""
    for number, (column, colour) in enumerate(zip(columns[1:], COLOURS[1:], strict=True)):
        assert column.point is not None
        y, found = top + 32 * number, column.point.by_weight["1"][term]
        value, low, high = (min(max(found[name], 0.0), 1.0) for name in ("value", "low", "high"))
        yield f'<rect x="{BARS}" y="{y}" width="{BAR}" height="18" rx="3" fill="#eef0f3"/>'
        yield f'<rect x="{BARS}" y="{y}" width="{max(BAR * value, 2):.1f}" height="18" rx="3" fill="{colour}"/>'
        yield f'<path d="M{BARS + BAR * low:.1f} {y + 9}H{BARS + BAR * high:.1f}" stroke="#1c2026" stroke-width="2"/>'
        inside = value > 0.5
        at, fill = (BARS + 8, "#ffffff") if inside else (BARS + BAR * max(value, high) + 8, "#1c2026")
        yield text(at, y + 13.5, f"{value:.0%}", size=12, weight=600, fill=fill)
    if limit is not None:
        x = BARS + BAR * limit
        yield f'<path d="M{x:.1f} {top - 4}v58" stroke="#b91c1c" stroke-width="1.5" stroke-dasharray="4 3"/>'
        yield text(x, top + 68, f"limit {limit:.0%}", size=12, fill="#b91c1c", anchor="middle")


def footer(columns: Sequence[Shown], top: float, limit: float) -> Iterator[str]:
    """The formula, and what it makes of each LoRA."""
    yield f'<path d="M20 {top - 10}H{WIDTH - 20}" stroke="#d8dce2"/>'
    formula = f"score = harmonic mean of fidelity and editability, less the class bleed above {limit:.0%}"
    yield text(20, top + 18, formula, size=15, weight=600)
    yield text(
        20, top + 38, "averaged over weights 0.7 and 1; below every other where a limit is broken", fill="#5b6470"
    )
    for number, (column, colour) in enumerate(zip(columns[1:], COLOURS[1:], strict=True)):
        point = column.point
        assert point is not None and point.score is not None
        words = "{name}: {value:.2f} ({low:.2f} to {high:.2f})".format(name=column.name, **point.score)
        words += f", breaks {', '.join(point.broken)}" if point.broken else ", breaks no limit"
        yield text(20, top + 62 + 20 * number, words, size=14, weight=600, fill=colour)


def main() -> None:
    """Draw the figure of a study named on the command line, with its overrides."""
    study_name, *overrides = sys.argv[1:] or ["quickstart"]
    write_atomic(OUT, draw(*collect(study_name, overrides)))
    print(OUT)


if __name__ == "__main__":
    main()
