"""`autolora captions`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.data.caption_recipe import apply_captions, caption_changes
from autolora.data.captions_copy import write_copy
from autolora.data.concepts import load_dataset


def captions(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Show what the caption recipe changes; with `out=FOLDER` write the pictures with their new captions there."""
    dataset = load_dataset(cfg.dataset_settings(config))
    run = cfg.build_run(config)
    edited = apply_captions(run.captions, dataset, run.train.seed, run.train.keep_tokens, held_out=True)
    changes = caption_changes(dataset, edited)
    for picture, old, new in changes:
        print(f"{picture.concept}/{picture.path.name}\n  - {old}\n  + {new}")
    print(f"{len(changes)} of {len(edited.pictures) + len(edited.held_out)} captions change")
    if not config.out:
        print("nothing is written: add out=FOLDER for a copy of the pictures with these captions")
        return 0
    out = Path(str(config.out)).expanduser()
    print(f"wrote {write_copy(edited, out)} pictures with captions to {out}")
    return 0
