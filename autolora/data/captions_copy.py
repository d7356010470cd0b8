"""Writes a dataset's images with edited captions into a new folder."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from autolora.data.captions import unescape_tag
from autolora.data.concepts import Dataset, is_in_dataset
from autolora.data.images import load_image
from autolora.data.sources import Picture
from autolora.errors import DatasetError
from autolora.files import atomic_path, write_atomic


def write_copy(dataset: Dataset, out: Path) -> int:
    """Write every training and validation image as `1_concept/NAME.png`, with `NAME.txt` and its mask beside it.

    Images are hard links if the disk supports them, so that a copy takes no space. Returns the number of images.

    Raises:
        DatasetError: `out` is not an empty folder, or lies in the dataset's folder; an image is missing.
        StorageError: the disk is full or the folder cannot be written; everything written is removed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not an empty folder: choose another or remove it")
    pictures = [*dataset.pictures, *dataset.validation]
    if is_in_dataset(dataset, out):
        raise DatasetError(f"{out} lies in the dataset's own folder, which is never changed: choose another")
    folders = {picture.concept: out / f"1_{_folder_name(picture.concept)}" for picture in pictures}
    taken: set[str] = set()
    try:
        for picture in pictures:
            _write_picture(picture, _unused_path(folders[picture.concept] / picture.path.stem, taken))
    except BaseException:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)  # so that the same command can run again
        raise
    return len(pictures)


def _write_picture(picture: Picture, target: Path) -> None:
    """Write one image, its mask and its caption to a path given without a suffix."""
    _link(picture.path, target.with_name(target.name + picture.path.suffix))
    if picture.mask is not None:
        _link_mask(picture.mask, target.with_name(f"{target.name}.mask.png"))
    write_atomic(target.with_name(f"{target.name}.txt"), picture.caption + "\n")


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy on another disk or a file system without links."""
    if not source.is_file():
        raise DatasetError(f"{source}: is missing: restore the file and run again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source.resolve(), target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _link_mask(source: Path, target: Path) -> None:
    """Link a PNG mask, or convert another one, because a mask beside an image must be a PNG file."""
    if source.suffix.lower() == ".png":
        return _link(source, target)
    with atomic_path(target) as temporary:
        load_image(source).convert("L").save(temporary, "PNG")


def _folder_name(concept: str) -> str:
    """A concept's name without characters that a folder name may not have."""
    return re.sub(r'[\\/:*?"<>|]', "_", unescape_tag(concept))


def _unused_path(path: Path, taken: set[str]) -> Path:
    """The path, with a number appended if its name is taken: captions are found by the name without its suffix."""
    candidate, number = path, 2
    while str(candidate).casefold() in taken:
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    taken.add(str(candidate).casefold())
    return candidate
