"""`autolora verify FILE`: shows which programs read a LoRA file, and whether they read it alike."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.errors import printable
from autolora.export.compatibility import CompatibilityReport, check_compatibility
from autolora.files import expand_user
from autolora.models.load import load_model


def verify(request: Request) -> int:
    """Show how each program reads a file.

    Raises:
        ConfigError: no file was given.
        ExportError: no program reads the file, or one reads it differently.
    """
    output, path = Output.of(request.settings), expand_user(request.lora)
    model = load_model(request.settings.model)
    with output.bars() as bars, bars.task(f"reading {path.name}", None) as advance:
        report = check_compatibility(path, model, advance)
    read_by = {result.program: result.verdict for result in report.results}
    output.last(lambda: print_report(report, model.name), {"file": path, "read_by": read_by, "unread": report.unread})
    report.check()
    return 0


def print_report(report: CompatibilityReport, model: str) -> None:
    """Print one line for each program."""
    print(f"{report.path}: {report.layers} layers on {model}")
    table = Table("program", "reads it", "", box=None)
    for result in report.results:
        detail = result.difference or result.unreadable or f"largest error {result.max_error:.1e}"
        table.add_row(result.program, result.verdict, printable(detail))
    Console().print(table)
    if report.unread:
        print(f"not compared, because autolora does not read it: {report.unread}")
