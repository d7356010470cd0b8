"""`autolora captions`: what a caption recipe changes."""

from __future__ import annotations

from autolora.commands.request import Request
from autolora.data.caption_recipe import apply_captions, caption_changes
from autolora.data.captions_copy import write_copy
from autolora.errors import printable


def captions(request: Request) -> int:
    """Show what the caption recipe changes; with `out=FOLDER` write the images with their new captions there."""
    dataset, run = request.dataset, request.settings.run
    edited = apply_captions(run.captions, dataset, run.train.seed, run.train.keep_tokens, validation=True)
    changes = caption_changes(dataset, edited)
    for picture, old, new in changes:
        print(printable(f"{picture.concept}/{picture.path.name}\n  - {old}\n  + {new}"))
    print(f"{len(changes)} of {len(edited.pictures) + len(edited.validation)} captions change")
    out = request.settings.out
    if out is None:
        print("nothing is written: add out=FOLDER for a copy of the images with these captions")
        return 0
    print(f"wrote {write_copy(edited, out)} images with captions to {out}")
    return 0
