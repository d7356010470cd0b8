"""`autolora compare`."""

from __future__ import annotations

from pathlib import Path

import optuna
from omegaconf import DictConfig

from autolora.commands.output import Output
from autolora.report.tables import as_dict, print_sections, write_page
from autolora.study.results.comparison import compare_sections, read_study, write_comparison


def compare(config: DictConfig, folders: list[str]) -> int:
    """Compare several studies; a page, `comparison.csv` and `comparison.json` go into `out`."""
    output = Output.of(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    paths = list(dict.fromkeys(Path(folder).expanduser() for folder in folders))
    entries = [entry for path in paths for entry in read_study(path)]
    sections = compare_sections(entries)
    out = Path(str(config.out)).expanduser() if config.out else Path("runs") / "comparison"
    written = write_comparison(entries, sections, out)
    facts = [f"{len(paths)} studies", f"{len({entry.recipe for entry in entries})} recipes"]
    page = write_page("Studies compared", facts, sections, out / "index.html")

    def show() -> None:
        if not output.quiet:
            print_sections(sections)
        print("\n" + "\n".join(map(str, [*written, page])))

    output.last(show, {**as_dict(sections[:2]), "files": [*written, page]})
    return 0
