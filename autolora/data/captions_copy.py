"""Writes a dataset's pictures and edited captions into a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from autolora.data.captions import unescape_tag
from autolora.data.concepts import Dataset
from autolora.data.images import load_image
from autolora.data.sources import Picture
from autolora.errors import DatasetError
from autolora.files import atomic_path, write_atomic


def write_copy(dataset: Dataset, out: Path) -> int:
    """Write every picture, the held-out ones too, as `1_concept/NAME.png` with `NAME.txt`, and masks beside them.

    Pictures are hard links where the disk allows it, so that a copy takes no room. Returns how many there are.

    Raises:
        DatasetError: `out` is not an empty folder, or lies in the dataset's own; a picture is gone.
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not an empty folder: choose another or remove it")
    pictures = [*dataset.pictures, *dataset.validation]
    own = {folder.resolve() for folder in (dataset.root, *(picture.path.parent for picture in pictures))}
    if not own.isdisjoint((out.resolve(), *out.resolve().parents)):
        raise DatasetError(f"{out} lies in the dataset's own folder, which is left as it is: choose another")
    folders = {picture.concept: out / f"1_{_file_name(picture.concept)}" for picture in pictures}
    taken: set[str] = set()
    try:
        for picture in pictures:
            _write_picture(picture, _free_name(folders[picture.concept] / picture.path.stem, taken))
    except BaseException:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)  # so that the same command can run again
        raise
    return len(pictures)


def _write_picture(picture: Picture, target: Path) -> None:
    """Write one picture under a path without its suffix."""
    _link(picture.path, target.with_name(target.name + picture.path.suffix))
    if picture.mask is not None:
        _link_mask(picture.mask, target.with_name(f"{target.name}.mask.png"))
    write_atomic(target.with_name(f"{target.name}.txt"), picture.caption + "\n")


def _link(source: Path, target: Path) -> None:
    """A hard link, else a copy: other disks and some file systems take no links."""
    if not source.is_file():
        raise DatasetError(f"{source}: is gone: restore the file and run again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source.resolve(), target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _link_mask(source: Path, target: Path) -> None:
    """As `_link`; a mask beside a picture must be a PNG file."""
    if source.suffix.lower() == ".png":
        return _link(source, target)
    with atomic_path(target) as temporary:
        load_image(source).convert("L").save(temporary, "PNG")


def _file_name(concept: str) -> str:
    """A concept's name as a folder's, whatever tag it comes from."""
    return re.sub(r'[\\/:*?"<>|]', "_", unescape_tag(concept))


def _free_name(wanted: Path, taken: set[str]) -> Path:
    """The path, numbered where one of its name is there already: captions go by the name without its suffix."""
    path, number = wanted, 2
    while str(path).casefold() in taken:
        path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    taken.add(str(path).casefold())
    return path
