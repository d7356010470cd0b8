"""`autolora compare`: several studies side by side."""

from __future__ import annotations

from pathlib import Path

import optuna

from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.files import expand_user
from autolora.report.tables import as_dict, print_sections, write_page
from autolora.study.results.comparison import compare_sections, read_study, write_comparison


def compare(request: Request) -> int:
    """Compare several studies; a page, `comparison.csv` and `comparison.json` go into `out`."""
    output = Output.of(request.settings)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folders = list(dict.fromkeys(expand_user(place) for place in request.places))
    rows = [row for folder in folders for row in read_study(folder)]
    sections = compare_sections(rows)
    out = request.settings.out or Path("runs") / "comparison"
    files = write_comparison(rows, sections, out)
    facts = [f"{len(folders)} studies", f"{len({row.recipe for row in rows})} recipes"]
    page = write_page("Studies compared", facts, sections, out / "index.html")

    def show() -> None:
        if not output.quiet:
            print_sections(sections)
        print("\n" + "\n".join(map(str, [*files, page])))

    output.last(show, {**as_dict(sections[:2]), "files": [*files, page]})
    return 0
