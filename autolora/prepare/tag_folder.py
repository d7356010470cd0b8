"""Captions pictures that have none, by a tagger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autolora.data.captions import join_tags, split_tags, tag_key
from autolora.data.images import load_image
from autolora.data.layouts.folders import CAPTION_SUFFIXES, class_folder, list_folder
from autolora.data.sources import format_problems
from autolora.errors import DatasetError
from autolora.files import write_atomic
from autolora.prepare.tagger import tag_pictures
from autolora.prepare.tagger_base import Tagger, TaggerSettings


def untagged(root: Path) -> list[Path]:
    """The pictures of a kohya-style or plain folder that have no caption file.

    Raises:
        DatasetError: the folder is missing, or holds no pictures as it is.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder of pictures: give dataset.path=FOLDER")
    listing = list_folder(root, captions_optional=True)
    if listing.problems:
        raise DatasetError(format_problems(str(root), listing.problems))
    paths = [entry.path for entry in listing.entries]
    return [path for path in paths if not any(path.with_suffix(suffix).is_file() for suffix in CAPTION_SUFFIXES)]


def tag_folder(
    paths: list[Path], tagger: Tagger, settings: TaggerSettings, advance: Callable[[int], None] | None = None
) -> None:
    """Write a caption beside each picture: the prefix, the words of its kohya folder, then what the tagger sees.

    A batch's captions are written before the next batch is read, so that nothing is lost when it is stopped.

    Raises:
        DatasetError: a picture cannot be read.
        StorageError: a caption cannot be written.
    """
    for start in range(0, len(paths), settings.batch_size):
        batch = paths[start : start + settings.batch_size]
        found = tag_pictures(tagger, [load_image(path) for path in batch], settings)
        for path, tagging in zip(batch, found, strict=True):
            _, words = class_folder(path.parent.name) or (1, "")
            tags: dict[str, str] = {}
            for tag in (*settings.prefix, *words.split(), *split_tags(tagging.caption)):
                tags.setdefault(tag_key(tag), tag)
            write_atomic(path.with_suffix(".txt"), join_tags(tags.values()) + "\n")
        if advance:
            advance(len(batch))
