"""Tables with notes, an image and a figure, shown alike in a terminal, as JSON and as one web page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from PIL import Image
from rich.console import Console
from rich.table import Table

from autolora.files import write_atomic
from autolora.report.figures.embed import drawing_parts, embed
from autolora.report.formatting import number
from autolora.report.templating import environment, text_of

Cell = str | int | float | None


@dataclass(frozen=True)
class Section:
    """One table with its title, notes, image and figure; a row has a cell for each column.

    Raises:
        ValueError: a row has too few or too many cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: tuple[str, ...] = ()  # notes below the table, a line each
    image: Image.Image | None = None
    figure: go.Figure | None = None
    most: int = 40  # rows shown in a terminal; JSON and page have all

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: every row needs {len(self.columns)} cells")


def print_sections(sections: Sequence[Section], console: Console | None = None) -> None:
    """Print every section as a table with its notes below."""
    console = console or Console()
    for section in sections:
        console.print(f"\n[bold]{section.title}[/bold]", highlight=False)
        if section.rows:
            console.print(_table(section))
        if len(section.rows) > section.most:
            console.print(f"... and {len(section.rows) - section.most} more", markup=False, highlight=False)
        for line in section.words:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(section: Section) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(section.columns):
        is_number = all(isinstance(row[place], int | float) for row in section.rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in section.rows[: section.most]:
        table.add_row(*("" if cell is None else number(cell) for cell in row))
    return table


def as_dict(sections: Sequence[Section]) -> dict[str, object]:
    """The sections by title: a list of rows, each by column, and the notes."""
    return {
        section.title: {
            "rows": [dict(zip(section.columns, row, strict=True)) for row in section.rows],
            "words": list(section.words),
        }
        for section in sections
    }


def write_page(title: str, facts: Sequence[str], sections: Sequence[Section], path: Path) -> Path:
    """Write the sections as one web page that holds their images and figures; return `path`.

    Raises:
        StorageError: the file cannot be written.
    """
    drawing = drawing_parts() if any(section.figure is not None for section in sections) else None
    template = environment().get_template("sections.html.jinja")
    style = text_of("style.css")
    page = template.render(title=title, facts=facts, sections=sections, style=style, embed=embed, drawing=drawing)
    write_atomic(path, page)
    return path
