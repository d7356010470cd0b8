"""`autolora resize FILE`: makes a LoRA file smaller as long as its score holds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from autolora.adapters.formats import layer_weights
from autolora.adapters.read import read_lora, read_metadata, unread
from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.evaluation.lora_files import runs_of_files
from autolora.evaluation.session import open_session
from autolora.export.resize import Resizer, dylora_unit
from autolora.files import expand_user, write_atomic
from autolora.models.load import load_model
from autolora.publish.resize import ResizedFile, check_dims, resize_lora, smallest_that_keeps_score


def resize(request: Request) -> int:
    """Write a LoRA at smaller ranks, score each, and offer the smallest whose score is within the original's interval.

    The ranks are `dims`, or are searched for. The files and `resize.json` go beside the original or into `out`.

    Raises:
        ConfigError: no file, or ranks that cannot be.
        ExportError: the file cannot be read.
        Unmeasurable: nothing can be scored on this dataset.
    """
    settings, output = request.settings, Output.of(request.settings)
    source = expand_user(request.lora)
    folder = request.beside(source)
    model = load_model(settings.model)
    state, metadata = read_lora(source, model), read_metadata(source)
    resizer = Resizer(state, layer_weights(model.modules), dylora_unit(metadata))
    dims = check_dims(settings.dims, resizer)
    with output.bars() as bars:
        session = open_session(settings, request.dataset, runs_of_files({source: state}), bars)
        files = resize_lora(session, resizer, source, metadata, folder, dims, bars)
    content = [file.as_dict() for file in files]
    write_atomic(folder / "resize.json", json.dumps(content, indent=2))
    left_out = unread(source, model)
    output.last(lambda: print_resized(files, left_out), {"files": content, "unread": left_out})
    return 0


def print_resized(files: Sequence[ResizedFile], left_out: str = "") -> None:
    """Print one line for each rank, and the smallest file that keeps the score."""
    if left_out:
        print(f"the smaller files do not hold {left_out}, which autolora does not read")
    table = Table("dim", "MB", "score", "", box=None)
    for file in files:
        verdict = "original" if file.dim is None else ("keeps the score" if file.keeps_score else "loses")
        broken = f", breaks {', '.join(file.broken)}" if file.broken else ""
        table.add_row(str(file.dim or ""), f"{file.megabytes:.2f}", file.score_text, verdict + broken)
    Console().print(table)
    smallest, original = smallest_that_keeps_score(files), files[0]
    if smallest is None:
        tried = ", ".join(str(file.dim) for file in files[1:])
        print(f"of the ranks tried ({tried}) none keeps the score within its interval; use {original.path}")
    else:
        sizes = f"{smallest.megabytes:.2f} of {original.megabytes:.2f} MB"
        print(f"smallest that keeps the score: dim {smallest.dim}, {sizes}\n{smallest.path}")
