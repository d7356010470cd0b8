"""`autolora tag`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.commands.output import Output
from autolora.errors import DatasetError
from autolora.prepare.tag_folder import tag_folder, untagged
from autolora.prepare.tagger import load_tagger


def tag(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Write a caption beside every picture that has none; captions that are there stay as they are."""
    settings, path = cfg.tagger_settings(config), cfg.dataset_settings(config).path
    if not path.strip():
        raise DatasetError("no pictures given: add dataset.path=FOLDER")
    paths = untagged(Path(path).expanduser())
    tagger = load_tagger(settings.path) if paths else None
    with Output.of(config).bars() as bars, bars.task("tagging", len(paths)) as advance:
        if tagger:
            tag_folder(paths, tagger, settings, advance)
    print(f"wrote {len(paths)} captions; `autolora check dataset.path={path}` shows what they say")
    return 0
