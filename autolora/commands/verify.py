"""Proves anyone's LoRA file: `autolora export verify=FILE`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from autolora import config as cfg
from autolora.commands.output import Output
from autolora.errors import ExportError
from autolora.export.compatibility import CompatibilityResult, check_compatibility
from autolora.models.load import load_model


def verify_file(config: DictConfig) -> int:
    """Show which programs read a file, and that they all make the same of it.

    Raises:
        ExportError: no program reads it, or one that does makes something else of a layer, which is named.
    """
    output, path = Output.of(config), Path(str(config.verify)).expanduser()
    model = load_model(cfg.model_settings(config))
    with output.bars() as bars, bars.task(f"reading {path.name}", None) as advance:
        layers, found = check_compatibility(path, model, advance)
    read_by = {one.program: one.verdict for one in found}
    output.last(lambda: print_readings(path, layers, model.name, found), {"file": path, "read_by": read_by})
    wrong = [one for one in found if one.differs]
    if wrong:
        raise ExportError(f"{path} is not the same everywhere: {wrong[0].program}: {wrong[0].differs}")
    if not any(one.alike for one in found):
        raise ExportError(f"{path} is read by none of {', '.join(one.program for one in found)}")
    return 0


def print_readings(path: Path, layers: int, model: str, found: list[CompatibilityResult]) -> None:
    """A line a program."""
    print(f"{path}: {layers} layers on {model}")
    table = Table("program", "reads it", "", box=None)
    for one in found:
        table.add_row(one.program, one.verdict, one.differs or one.unread or f"to within {one.apart:.1e}")
    Console().print(table)
