"""Reads captioned pictures in every layout people have; every problem is found in one pass, with its remedy.

What a path is taken for:
- a `.toml` file: the dataset file of sd-scripts;
- a `.json`, `.jsonl` or `.csv` file: kohya metadata, or an imagefolder's;
- a folder with such a file: the same, its captions win over those beside the pictures; two such files are a problem;
- else a folder with kohya folders `N_class tokens` in it, or a plain folder of pictures with captions beside them.

A picture's concept is the class tokens of the kohya folder it lies in. Elsewhere it is the `class_tokens` of its subset
or the subset's folder in a TOML file, else the name of the whole folder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from autolora.data.images import READING_THREADS, decode, difference_hash, load_image, load_pixels, measure
from autolora.data.layouts.folders import ImageEntry, Listing, list_folder, merge, shown
from autolora.data.layouts.kohya_toml import list_toml
from autolora.data.layouts.metadata_files import METADATA_SUFFIXES, dataset_files, list_metadata
from autolora.errors import DatasetError

__all__ = [
    "READING_THREADS",
    "Picture",
    "Source",
    "list_problems",
    "load_image",
    "load_pixels",
    "read_folder",
    "read_source",
]

_FILE_SUFFIXES = (".toml", *METADATA_SUFFIXES)
_MASK_TOLERANCE = 0.01  # by how much a mask's aspect ratio may differ: sides are whole pixels
_LISTED = 40  # problems shown in full; whoever has more sees the pattern by then


@dataclass(frozen=True)
class Picture:
    """One captioned picture; width and height in pixels as seen (turned upright), `sha256` of the file."""

    path: Path
    caption: str
    concept: str  # the class tokens of its folder `N_class tokens`; a plain folder's name
    width: int
    height: int
    sha256: str
    repeats: int = 1  # how often an epoch shows it, as its folder or dataset file says; recipes go by steps instead
    mask: Path | None = None  # white where the loss counts
    frame: tuple[int, int] | None = None  # width and height it is trained at; None: the model's own square
    perceptual_hash: int | None = None  # its `difference_hash`, by which near-duplicates are known


@dataclass(frozen=True)
class Source:
    """What was read: pictures to train on and for regularization, by folder, then file name; notes for the user."""

    pictures: tuple[Picture, ...]
    regularization: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(path: Path, regularization: Path | None = None) -> Source:
    """Read a dataset in any layout, and a folder of regularization pictures, whose captions may be missing.

    A caption file is a picture's `.txt` or `.caption`, UTF-8; its lines count as one caption. A kohya folder without
    any is captioned with its class tokens. A mask is `NAME.mask.png` or `NAME-masklabel.png` beside the picture, or
    `masks/NAME.png`. Hidden files, files of other kinds and folders whose name starts with `_` are ignored.

    Raises:
        DatasetError: every problem found, a line each: file, problem, remedy.
    """
    path = Path(os.path.expanduser(path))  # which leaves ~nobody as it is
    try:
        listing = merge([_list(path), _list_regularization(regularization)])
        root = path if os.path.isdir(path) else path.parent
        both = {record.path for record in listing.records} & {record.path for record in listing.regularization}
        problems = [*listing.problems, *(f"{shown(p, root)}: both trained and regularization" for p in sorted(both))]
        records = sorted(listing.records, key=_place)
        aside = sorted(listing.regularization, key=_place)
        with ThreadPoolExecutor(READING_THREADS) as pool:
            found = list(pool.map(lambda record: _read_picture(record, root), [*records, *aside]))
    except PermissionError as error:
        raise DatasetError(f"{error.filename}: permission denied: make it readable for your user") from error
    problems += [problem for problem in found if isinstance(problem, str)]
    if problems:
        raise DatasetError(list_problems(str(path), problems))
    pictures = [picture for picture in found if isinstance(picture, Picture)]
    return Source(tuple(pictures[: len(records)]), tuple(pictures[len(records) :]), listing.notes)


def read_folder(root: Path) -> list[Picture]:
    """The pictures to train on that `read_source` finds.

    Raises:
        DatasetError: as `read_source`.
    """
    return list(read_source(root).pictures)


def list_problems(where: str, problems: Iterable[str]) -> str:
    """One message for all problems: one line for one problem, else a line each."""
    lines = list(problems)
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([f"{where}: {len(lines)} problems", *lines[:_LISTED], *more])


def _list(path: Path) -> Listing:
    """What a path holds, in whatever layout."""
    if os.path.isfile(path) and path.suffix.lower() in _FILE_SUFFIXES:
        return list_toml(path) if path.suffix.lower() == ".toml" else list_metadata(path)
    if not os.path.isdir(path):
        raise DatasetError(_not_a_source(path))
    files, notes = dataset_files(path)
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise DatasetError(f"{path}: {names} both list its pictures: give dataset.path={files[0]}, or remove one")
    return merge([list_metadata(files[0]) if files else list_folder(path), Listing(notes=tuple(notes))])


def _list_regularization(path: Path | None) -> Listing:
    if path is None:
        return Listing()
    path = Path(os.path.expanduser(path))
    if not os.path.isdir(path):
        return Listing(problems=(f"{path}: no such folder of pictures: correct dataset.reg_data_dir",))
    listing = list_folder(path, optional=True)
    problems = tuple(f"{path}: {problem}" for problem in listing.problems)
    return replace(listing, records=(), regularization=listing.records, problems=problems)


def _place(record: ImageEntry) -> tuple[str, str]:
    return str(record.path.parent), record.path.name


def _not_a_source(path: Path) -> str:
    """Why the path is no folder of pictures and no file that lists them, with the closest name that exists."""
    if os.path.exists(path):
        return f"{path}: is a file: dataset.path takes a folder of pictures, or a {', '.join(_FILE_SUFFIXES)} file"
    missing = path
    while not os.path.isdir(missing.parent) and missing.parent != missing:
        missing = missing.parent
    try:
        names = [p.name for p in missing.parent.iterdir() if p.is_dir() or p.suffix.lower() in _FILE_SUFFIXES]
    except OSError:
        names = []
    near = difflib.get_close_matches(missing.name, names, 1, cutoff=0.5)
    hint = f"did you mean {missing.parent / near[0]}?" if near else "give dataset.path=FOLDER with captioned pictures"
    return f"{path}: no such {'file' if path.suffix.lower() in _FILE_SUFFIXES else 'folder'}: {hint}"


def _read_picture(record: ImageEntry, root: Path) -> Picture | str:
    """The picture, or its problems with their remedies in one line."""
    problems = [record.problem] if record.problem else []
    width = height = 0
    digest, perceptual_hash = "", 0
    try:
        content = record.path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        image = decode(content)
        width, height, perceptual_hash = *image.size, difference_hash(image)
    except DatasetError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"cannot be read ({error.strerror}): make it readable")
    if record.mask and width:
        problems += _mask_problems(record.mask, width, height)
    if problems:
        return f"{shown(record.path, root)}: {'; '.join(problems)}"
    return Picture(
        path=record.path,
        caption=record.caption,
        concept=record.concept,
        width=width,
        height=height,
        sha256=digest,
        repeats=record.repeats,
        mask=record.mask,
        perceptual_hash=perceptual_hash,
    )


def _mask_problems(mask: Path, width: int, height: int) -> list[str]:
    """What is wrong with the mask of a picture so many pixels wide and high."""
    try:
        mask_width, mask_height = measure(mask.read_bytes())
    except DatasetError as error:
        return [f"its mask {mask.name} is {error}"]
    except OSError as error:
        return [f"its mask {mask.name} cannot be read ({error.strerror}): make it readable"]
    if abs(mask_width * height / (mask_height * width) - 1) <= _MASK_TOLERANCE:
        return []
    sizes = f"{mask_width}x{mask_height}, the picture {width}x{height}"
    return [f"its mask {mask.name} has another shape ({sizes}): cut it like the picture"]
