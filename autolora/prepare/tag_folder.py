"""Writes captions for images without one, with a tagger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from autolora.data.captions import join_tags, split_tags, tag_key
from autolora.data.images import load_image
from autolora.data.layouts.folders import CAPTION_SUFFIXES, by_stem, class_folder, display_path, list_folder, stems_of
from autolora.data.sources import format_problems
from autolora.errors import DatasetError
from autolora.files import composed, is_text, write_atomic
from autolora.prepare.tagger import tag_images
from autolora.prepare.tagger_base import Tagger, TaggerSettings


def untagged(root: Path) -> list[Path]:
    """The images without a caption file, in kohya folders or a plain folder.

    Raises:
        DatasetError: the folder does not exist, its images cannot be listed, or two of them would share a caption.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: the folder does not exist: set dataset.path=FOLDER to a folder of images")
    listing = list_folder(root, captions_optional=True)
    if listing.problems:
        raise DatasetError(format_problems(str(root), listing.problems))
    paths = [entry.path for entry in listing.entries]
    captions = {folder: by_stem(folder, CAPTION_SUFFIXES) for folder in {path.parent for path in paths}}
    bare = [path for path in paths if not any(stem in captions[path.parent] for stem in stems_of(path))]
    images = Counter(map(_caption_name, paths))
    problems = [
        f"{display_path(path, root)}: another image of this name has the same caption {path.stem}.txt: rename one"
        if images[_caption_name(path)] > 1
        else f"{display_path(path, root)}: its path is not UTF-8 text: rename its folder or the file"
        for path in bare
        if images[_caption_name(path)] > 1 or not is_text(str(path))
    ]
    if problems:
        raise DatasetError(format_problems(str(root), problems))
    return bare


def _caption_name(image: Path) -> tuple[Path, str]:
    """The folder and the name of an image's caption, in which case does not count, as on Windows and macOS."""
    return image.parent, composed(image.stem).casefold()


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
