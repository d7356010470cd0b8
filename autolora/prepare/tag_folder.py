"""Writes captions for images without one, with a tagger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autolora.data.captions import join_tags, split_tags, tag_key
from autolora.data.images import load_image
from autolora.data.layouts.folders import CAPTION_SUFFIXES, class_folder, list_folder
from autolora.data.sources import format_problems
from autolora.errors import DatasetError
from autolora.files import write_atomic
from autolora.prepare.tagger import tag_images
from autolora.prepare.tagger_base import Tagger, TaggerSettings


def untagged(root: Path) -> list[Path]:
    """The images without a caption file, in kohya folders or a plain folder.

    Raises:
        DatasetError: the folder does not exist, or its images cannot be listed.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: the folder does not exist: set dataset.path=FOLDER to a folder of images")
    listing = list_folder(root, captions_optional=True)
    if listing.problems:
        raise DatasetError(format_problems(str(root), listing.problems))
    paths = [entry.path for entry in listing.entries]
    return [path for path in paths if not any(path.with_suffix(suffix).is_file() for suffix in CAPTION_SUFFIXES)]


def tag_folder(
    paths: list[Path], tagger: Tagger, settings: TaggerSettings, advance: Callable[[int], None] | None = None
) -> None:
    """Write a caption beside each image: the prefix, the words of its kohya folder, then the tagger's tags.

    The captions of a batch are written before the next batch is read, so that an interruption loses at most one batch.

    Args:
        paths: the images.
        tagger: finds the tags.
        settings: thresholds, spelling and batch size.
        advance: called with the number of images of each finished batch.

    Raises:
        DatasetError: an image cannot be read.
        StorageError: a caption cannot be written.
    """
    for start in range(0, len(paths), settings.batch_size):
        batch = paths[start : start + settings.batch_size]
        taggings = tag_images(tagger, [load_image(path) for path in batch], settings)
        for path, tagging in zip(batch, taggings, strict=True):
            _, words = class_folder(path.parent.name) or (1, "")
            tags: dict[str, str] = {}
            for tag in (*settings.prefix, *words.split(), *split_tags(tagging.caption)):
                tags.setdefault(tag_key(tag), tag)
            write_atomic(path.with_suffix(".txt"), join_tags(tags.values()) + "\n")
        if advance:
            advance(len(batch))
