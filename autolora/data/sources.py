"""Reads captioned images in every supported layout; all problems are reported at once, each with its remedy.

How a path is read:
- a `.toml` file: a dataset file of sd-scripts;
- a `.json`, `.jsonl` or `.csv` file: kohya metadata, or the metadata of a Hugging Face imagefolder;
- a folder with one such file: that file, whose captions replace the caption files; two such files are an error;
- any other folder: kohya folders `N_class tokens`, or a plain folder of images with caption files beside them.

The concept of an image is the class tokens of its kohya folder. In a TOML file it is the `class_tokens` of the subset,
else the name of the subset's folder. In every other case it is the name of the dataset's folder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from autolora.data.captions import split_tags
from autolora.data.images import READING_THREADS, decode, difference_hash, measure
from autolora.data.layouts.folders import ImageEntry, Listing, display_path, image_files, list_folder, merge
from autolora.data.layouts.kohya_toml import list_toml
from autolora.data.layouts.metadata_files import METADATA_SUFFIXES, list_metadata, metadata_files
from autolora.errors import DatasetError
from autolora.files import expand_user, is_text

_FILE_SUFFIXES = (".toml", *METADATA_SUFFIXES)
_MASK_TOLERANCE = 0.01  # allowed relative difference of a mask's aspect ratio: sides are whole pixels
_MOST_LINES = 40  # problems that a message lists; the others are only counted


@dataclass(frozen=True)
class Picture:
    """One training image with its caption; sizes in pixels."""

    path: Path
    caption: str
    concept: str  # class tokens of its folder `N_class tokens`, or the name of a plain folder
    width: int  # after EXIF rotation
    height: int
    sha256: str  # of the file
    repeats: int = 1  # times per epoch by its folder or dataset file; used if train.images_per_concept is not set
    mask: Path | None = None  # the loss counts where the mask is white
    bucket: tuple[int, int] | None = None  # width and height in training; None: the model's own square
    perceptual_hash: int | None = None  # its `difference_hash`, which finds near-duplicates

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The parts of the caption between commas, in order."""
        return split_tags(self.caption)


@dataclass(frozen=True)
class SourceImages:
    """The images of a dataset, sorted by folder, then file name, with notes for the user."""

    pictures: tuple[Picture, ...]
    regularization: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(path: Path, regularization: Path | None = None) -> SourceImages:
    """Read a dataset in any layout, and optionally a folder of regularization images.

    A caption file is `NAME.txt` or `NAME.caption` in UTF-8; its lines are joined into one caption. Images of a kohya
    folder without any caption file get its class tokens as caption. Regularization images need no captions. A mask is
    `NAME.mask.png` or `NAME-masklabel.png` beside the image, or `masks/NAME.png`. Hidden files, files of other kinds
    and folders whose name starts with `_` are ignored.

    Raises:
        DatasetError: all problems, one per line: file, problem, remedy.
    """
    path = expand_user(path)
    try:
        listing = merge([_list_source(path), _list_regularization(regularization)])
        root = path if os.path.isdir(path) else path.parent
        in_both = {entry.path for entry in listing.entries} & {entry.path for entry in listing.regularization}
        problems = [
            *listing.problems,
            *(f"{display_path(p, root)}: listed for training and for regularization" for p in sorted(in_both)),
        ]
        training_entries = sorted(listing.entries, key=_sort_key)
        other_entries = sorted(listing.regularization, key=_sort_key)
        with ThreadPoolExecutor(READING_THREADS) as pool:
            results = list(pool.map(lambda entry: _read_picture(entry, root), [*training_entries, *other_entries]))
    except PermissionError as error:
        raise DatasetError(f"{error.filename}: permission denied: make it readable for your user") from error
    problems += [problem for problem in results if isinstance(problem, str)]
    if problems:
        raise DatasetError(format_problems(str(path), problems))
    pictures = [picture for picture in results if isinstance(picture, Picture)]
    count = len(training_entries)
    return SourceImages(tuple(pictures[:count]), tuple(pictures[count:]), listing.notes)


def read_folder(root: Path) -> list[Picture]:
    """The training images that `read_source` finds.

    Raises:
        DatasetError: as `read_source`.
    """
    return list(read_source(root).pictures)


def format_problems(where: str, problems: Iterable[str]) -> str:
    """One message for all problems: a single line for one problem, else one line per problem."""
    lines = list(problems)
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    more = [f"... and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "\n  ".join([f"{where}: {len(lines)} problems", *lines[:_MOST_LINES], *more])


def _list_source(path: Path) -> Listing:
    """The entries of a path in any layout."""
    if os.path.isfile(path) and path.suffix.lower() in _FILE_SUFFIXES:
        return list_toml(path) if path.suffix.lower() == ".toml" else list_metadata(path)
    if not os.path.isdir(path):
        raise DatasetError(_unusable_path(path))
    files, notes = metadata_files(path)
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise DatasetError(f"{path}: {names} both list its images: set dataset.path={files[0]}, or remove one of them")
    return merge([list_metadata(files[0]) if files else list_folder(path), Listing(notes=tuple(notes))])


def _list_regularization(path: Path | None) -> Listing:
    if path is None:
        return Listing()
    path = expand_user(path)
    if not os.path.isdir(path):
        return Listing(problems=(f"{path}: the folder does not exist: correct dataset.reg_data_dir",))
    listing = list_folder(path, captions_optional=True)
    problems = tuple(f"{path}: {problem}" for problem in listing.problems)
    return replace(listing, entries=(), regularization=listing.entries, problems=problems)


def _sort_key(entry: ImageEntry) -> tuple[str, str]:
    return str(entry.path.parent), entry.path.name


def _unusable_path(path: Path) -> str:
    """Why the path is neither a folder nor a dataset file, with the most similar name that exists."""
    if os.path.exists(path):
        return f"{path}: is a file: dataset.path takes a folder of images, or a {', '.join(_FILE_SUFFIXES)} file"
    missing = path
    while not os.path.isdir(missing.parent) and missing.parent != missing:
        missing = missing.parent
    try:
        names = [p.name for p in missing.parent.iterdir() if p.is_dir() or p.suffix.lower() in _FILE_SUFFIXES]
    except OSError:
        names = []
    similar = difflib.get_close_matches(missing.name, names, 1, cutoff=0.5)
    if not similar and os.access(missing.parent, os.R_OK) and image_files(missing.parent):
        hint = f"there are images in {missing.parent}: set dataset.path={missing.parent}"
    elif similar:
        hint = f"did you mean {missing.parent / similar[0]}?"
    else:
        hint = "set dataset.path=FOLDER to a folder of captioned images"
    return f"{path}: no such {'file' if path.suffix.lower() in _FILE_SUFFIXES else 'folder'}: {hint}"


def _read_picture(entry: ImageEntry, root: Path) -> Picture | str:
    """The image of an entry, or one line with all its problems and their remedies."""
    problems = [entry.problem] if entry.problem else []
    problems += [] if is_text(str(entry.path)) else ["its path is not UTF-8 text: rename its folder or the file"]
    width = height = 0
    digest, perceptual_hash = "", 0
    try:
        content = entry.path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        image = decode(content)
        width, height, perceptual_hash = *image.size, difference_hash(image)
    except DatasetError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"cannot be read ({error.strerror}): make it readable")
    if entry.mask and width:
        problems += _mask_problems(entry.mask, width, height)
    if problems:
        return f"{display_path(entry.path, root)}: {'; '.join(problems)}"
    return Picture(
        path=entry.path,
        caption=entry.caption,
        concept=entry.concept,
        width=width,
        height=height,
        sha256=digest,
        repeats=entry.repeats,
        mask=entry.mask,
        perceptual_hash=perceptual_hash,
    )


def _mask_problems(mask: Path, width: int, height: int) -> list[str]:
    """The problems of the mask of an image of width x height pixels."""
    try:
        mask_width, mask_height = measure(mask.read_bytes())
    except DatasetError as error:
        return [f"its mask {mask.name} is {error}"]
    except OSError as error:
        return [f"its mask {mask.name} cannot be read ({error.strerror}): make it readable"]
    if abs(mask_width * height / (mask_height * width) - 1) <= _MASK_TOLERANCE:
        return []
    sizes = f"{mask_width}x{mask_height}, the image {width}x{height}"
    return [f"its mask {mask.name} has another aspect ratio ({sizes}): crop it like the image"]
