"""Draws how the score works, from the images and figures of a finished study: docs/score.svg.

    python -m experiments.figures.score quickstart

Columns are the base model, the first baseline at its end and the exported LoRA, all at LoRA weight 1 and with the same
seeds. Rows are the kinds of prompts. Bars are the terms of the score over all renders of that kind.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from autolora.errors import StudyError
from autolora.evaluation.result import CheckpointResult
from autolora.files import write_atomic
from autolora.publish.gallery import GROUPS
from autolora.publish.gallery_files import read_gallery
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.results.outcome import read_outcome
from autolora.study.trials import load_trial_results
from experiments.common.arguments import argument_parser
from experiments.common.training import settings_of

OUT = Path(__file__).parents[2] / "docs" / "score.svg"
# A row: its group of prompts, its title, its term, the term's title, and what the term says.
ROWS = (
    ("trigger", "with the trigger", "fidelity", "Fidelity", "how many pass for the character"),
    ("novel", "in other clothes", "editability", "Editability", "are prompts still followed?"),
    ("class_only", "without the trigger", "bleed_class", "Class bleed", "how many still pass for the character"),
)
WIDTH, SIDE, ROW, TOP = 980, 112, 134, 64
COLUMNS, BARS = (190, 316, 442), 590  # left edges
BAR = 360  # pixels for 100%
COLOURS = ("#8a8f98", "#c2410c", "#1d6fb8")  # base model, baseline, exported


@dataclass(frozen=True)
class Column:
    """One model of the figure: its name, an image for each row, and its result."""

    name: str
    images: Sequence[Image.Image]
    result: CheckpointResult | None  # None: the base model


def collect(study_name: str, overrides: Sequence[str]) -> tuple[list[str], list[Column], float]:
    """Return the prompt of each row, the three columns, and the limit of class bleed, of a finished study.

    Raises:
        StudyError: the study has not ended.
    """
    settings = settings_of(*overrides, study=study_name)
    definition = define_study(settings)
    study = load_started_study(definition, print)
    outcome = read_outcome(definition, study)
    if outcome is None:
        raise StudyError(f"study {study_name} has not ended: run `autolora tune {study_name}` first")
    baseline = next(
        results.results[-1]
        for trial, results in load_trial_results(definition, study)
        if trial.user_attrs.get("baseline") and results.results
    )
    gallery = read_gallery(outcome.images.gallery, definition.folder)
    titles = [sample.group for sample in gallery.samples]
    places = [titles.index(GROUPS[group]) for group, *_ in ROWS]
    base, first, *_, best = gallery.columns
    columns = [Column("base model", [base.by_step[0][i] for i in places], None)]
    loras = (("guide's recipe", first, baseline), ("exported", best, outcome.winner.result))
    columns += [Column(name, [column.by_weight[1.0][i] for i in places], result) for name, column, result in loras]
    return [gallery.samples[i].prompt for i in places], columns, settings.scoring.max_bleed


def draw(prompts: Sequence[str], columns: Sequence[Column], limit: float) -> str:
    """Return the figure as one SVG file that needs no other file."""
    height = TOP + ROW * len(ROWS) + 118
    parts = [f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff" stroke="#d8dce2"/>']
    for left, column, colour in zip(COLUMNS, columns, COLOURS, strict=True):
        parts.append(text(left + SIDE / 2, 38, column.name, size=15, weight=600, fill=colour, anchor="middle"))
    parts.append(text(BARS, 38, "measured over all prompts and seeds", size=15, weight=600))
    for number, (prompt, row) in enumerate(zip(prompts, ROWS, strict=True)):
        top = TOP + ROW * number
        parts += [text(20, top + 40, row[1], size=15, weight=600)]
        parts += [text(20, top + 62 + 17 * i, line, size=12, fill="#5b6470") for i, line in enumerate(lines_of(prompt))]
        parts += [
            embedded_image(left, top, column.images[number]) for left, column in zip(COLUMNS, columns, strict=True)
        ]
        parts += [text(BARS, top + 20, row[3], size=15, weight=600)]
        parts += [text(BARS + BAR, top + 20, row[4], size=12, fill="#5b6470", anchor="end")]
        parts += bars_of(row[2], columns, top + 36, limit if row[2] == "bleed_class" else None)
    parts += footer(columns, TOP + ROW * len(ROWS) + 22, limit)
    body = "\n".join(parts)
    label = (
        "How the score works: images with the trigger, in other clothes and without it, and what is measured on them"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" '
        f'font-family="system-ui, sans-serif">\n{body}\n</svg>\n'
    )


def text(
    x: float, y: float, words: str, size: int = 13, weight: int = 400, fill: str = "#1c2026", anchor: str = "start"
) -> str:
    """Return a line of text as an SVG element."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def lines_of(prompt: str, most: int = 24) -> list[str]:
    """Break a prompt between its tags into lines of at most `most` letters."""
    lines = [""]
    for tag in prompt.split(", "):
        joined = f"{lines[-1]}, {tag}" if lines[-1] else tag
        if len(joined) > most and lines[-1]:
            lines[-1] += ","
            lines.append(tag)
        else:
            lines[-1] = joined
    return lines


def embedded_image(x: float, y: float, image: Image.Image) -> str:
    """Return an image as an SVG element that contains its data."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="data:image/webp;base64,{data}"/>'


def bars_of(term: str, columns: Sequence[Column], top: float, limit: float | None) -> Iterator[str]:
    """Yield a bar with its interval for each LoRA, and the limit where the term has one."""
    for number, (column, colour) in enumerate(zip(columns[1:], COLOURS[1:], strict=True)):
        assert column.result is not None
        y, estimate = top + 32 * number, column.result.by_weight["1"][term]
        value, low, high = (min(max(estimate[name], 0.0), 1.0) for name in ("value", "low", "high"))
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


def footer(columns: Sequence[Column], top: float, limit: float) -> Iterator[str]:
    """Yield the formula, and the score of each LoRA."""
    yield f'<path d="M20 {top - 10}H{WIDTH - 20}" stroke="#d8dce2"/>'
    formula = f"score = harmonic mean of fidelity and editability, less the class bleed above {limit:.0%}"
    yield text(20, top + 18, formula, size=15, weight=600)
    yield text(
        20, top + 38, "averaged over LoRA weights 0.7 and 1; with a broken limit below every other", fill="#5b6470"
    )
    for number, (column, colour) in enumerate(zip(columns[1:], COLOURS[1:], strict=True)):
        result = column.result
        assert result is not None and result.score is not None
        words = "{name}: {value:.2f} ({low:.2f} to {high:.2f})".format(name=column.name, **result.score)
        words += f", breaks {', '.join(result.broken)}" if result.broken else ", breaks no limit"
        yield text(20, top + 62 + 20 * number, words, size=14, weight=600, fill=colour)


def main() -> None:
    """Draw the figure of a study."""
    parser = argument_parser(__doc__)
    parser.add_argument("study", nargs="?", default="quickstart", help="one of studies/, or the path of a .yaml file")
    parser.add_argument("overrides", nargs="*", help="the study's overrides, key=value")
    args = parser.parse_args()
    write_atomic(OUT, draw(*collect(args.study, args.overrides)))
    print(OUT)


if __name__ == "__main__":
    main()
