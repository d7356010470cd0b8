"""`autolora tag`: captions for images that have none."""

from __future__ import annotations

from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.errors import DatasetError
from autolora.files import expand_user
from autolora.prepare.tag_folder import tag_folder, untagged
from autolora.prepare.tagger import load_tagger


def tag(request: Request) -> int:
    """Write a caption beside every image that has none; existing captions stay as they are."""
    tagger_settings, path = request.settings.tagger, request.settings.dataset.path
    if not path.strip():
        raise DatasetError("no images given: add dataset.path=FOLDER")
    paths = untagged(expand_user(path))
    tagger = load_tagger(tagger_settings.path) if paths else None
    with Output.of(request.settings).bars() as bars, bars.task("tagging", len(paths)) as advance:
        if tagger:
            tag_folder(paths, tagger, tagger_settings, advance)
    print(f"wrote {len(paths)} captions; `autolora check dataset.path={path}` shows what they say")
    return 0
