"""`autolora train`: one recipe from its first step to the exported LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autolora import api
from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.errors import UNMEASURED_EXIT_CODE, BrokenFile
from autolora.evaluation.identity import check_folder, identity_of, recipe_owner
from autolora.files import write_atomic
from autolora.received import read_json
from autolora.study.definition import adapter_notes
from autolora.study.results.summary import describe_copies, plain_lora_as_dict


def _finished(path: Path) -> dict[str, Any] | None:
    """What a finished training wrote last; None if it is missing or broken, so that it is written again."""
    try:
        return read_json(path, dict[str, Any])
    except BrokenFile:
        return None


def train(request: Request) -> int:
    """Train one recipe, score every checkpoint, export the best; the same command continues it."""
    settings, output = request.settings, Output.of(request.settings)
    run, folder = settings.run, settings.folder
    check_folder(folder, recipe_owner(run, identity_of(settings, request.dataset)))  # before a model is loaded
    if (finished := _finished(folder / "score.json")) is not None:
        output.last(f"{folder} is finished; choose another out=FOLDER to train again", finished)
        return 0
    with output.bars() as bars:
        for note in adapter_notes([run]):
            bars.log(note)
        session = api.open_session(settings, [run], dataset=request.dataset, bars=bars)
        for result in api.train_recipe(session, run, folder, bars=bars):
            bars.log(f"{result.step} images: {result.summary}")
        exported = api.export_best(session, run, folder, bars=bars)
    plain_lora, roundtrip = exported.plain_lora, exported.roundtrip
    facts = exported.facts | ({"plain": plain_lora_as_dict(plain_lora, roundtrip)} if plain_lora else {})
    write_atomic(folder / "score.json", json.dumps(facts, indent=2))
    best = exported.checkpoint
    lines = [f"best checkpoint: {best.describe_place}, {best.summary}", f"LoRA: {exported.path}"]
    lines += [f"for diffusers: {exported.diffusers.parent}"] if exported.diffusers else []
    lines += describe_copies(plain_lora, roundtrip, best.score["value"] if best.score else None)
    output.last("\n".join(lines), {**facts, "export": exported.path})
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0
