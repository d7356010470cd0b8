"""Reads folders of captioned pictures; every problem is found in one pass and named with its remedy."""

from __future__ import annotations

import difflib
import hashlib
import io
import re
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from autolora.data.captions import split_tags
from autolora.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")
READING_THREADS = 4  # Pillow decodes without Python's lock
_NOT_YET_READ = (".avif", ".jxl", ".gif", ".tif", ".tiff", ".heic", ".heif")
_REPEATS_FOLDER = re.compile(r"^(\d+)_(.*)$", re.DOTALL)
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
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


def read_folder(root: Path) -> list[Picture]:
    """Read a kohya-style folder (`N_class tokens/`; N is not used) or a plain folder of captioned pictures.

    A caption is the `.txt` or `.caption` file with the picture's name, UTF-8; its lines count as one caption.
    Hidden files, files of other kinds and folders whose name starts with `_` are ignored.
    Sorted by folder, then by file name.

    Raises:
        DatasetError: every problem found, a line each: file, problem, remedy.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise DatasetError(_not_a_folder(root))
    try:
        folders, problems = _concept_folders(root)
        images = [(path, concept) for folder, concept in folders for path in _files(folder, IMAGE_SUFFIXES)]
        problems += [
            f"{path.relative_to(root)}: {path.suffix} pictures cannot be read yet: save it as .png"
            for folder, _ in folders
            for path in _files(folder, _NOT_YET_READ)
        ]
        with ThreadPoolExecutor(READING_THREADS) as pool:
            found = list(pool.map(lambda image: _read_picture(image[0], image[1], root), images))
    except PermissionError as error:
        raise DatasetError(f"{error.filename}: permission denied: make it readable for your user") from error
    problems += [problem for problem in found if isinstance(problem, str)]
    if problems:
        raise DatasetError(list_problems(str(root), problems))
    return [picture for picture in found if isinstance(picture, Picture)]


def list_problems(where: str, problems: Iterable[str]) -> str:
    """One message for all problems: one line for one problem, else a line each."""
    lines = list(problems)
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([f"{where}: {len(lines)} problems", *lines[:_LISTED], *more])


def load_image(path: Path) -> Image.Image:
    """The picture upright (EXIF), RGB, transparency flattened on white; the first frame of an animation.

    Raises:
        DatasetError: the file is gone or broken.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip them instead of scaling
                image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except _DECODE_ERRORS as error:
        raise DatasetError(f"{path}: cannot be read any more ({error}): restore the file and run again") from error


def load_pixels(path: Path, width: int, height: int | None = None) -> NDArray[np.uint8]:
    """The picture as (height, width, 3) uint8 RGB: resized to cover the frame, then cropped at its centre.

    Without a height the frame is square.

    Raises:
        DatasetError: the file is gone or broken.
    """
    frame = (width, width if height is None else height)
    return np.array(ImageOps.fit(load_image(path), frame, Image.Resampling.LANCZOS))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The visible files of some kinds in a folder, sorted by name on every system alike."""
    visible = (p for p in folder.iterdir() if not p.name.startswith("."))
    return sorted((p for p in visible if p.suffix.lower() in suffixes and p.is_file()), key=lambda p: p.name)


def _concept_folders(root: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """The folders to read with their concept's name, and what is wrong with the layout."""
    subfolders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))), key=str)
    numbered = {p: " ".join(match[2].split()) for p in subfolders if (match := _REPEATS_FOLDER.match(p.name))}
    loose = _files(root, IMAGE_SUFFIXES)
    others = [p for p in subfolders if p not in numbered and _files(p, IMAGE_SUFFIXES)]
    problems = [
        f"{p.name}: a folder of pictures without a number, so its concept would be missed: rename it to "
        f"`1_{p.name}`, or to `_{p.name}` to leave it out"
        for p in others
    ]
    if not numbered:
        if not loose and not problems:
            problems.append(_no_images(root))
        elif not loose:
            problems.append("no pictures in the folder itself and no folder `N_class tokens` in it")
        return ([(root, root.resolve().name)] if loose else []), problems
    problems += [f"{p.name}: lies beside the concept folders: move it into one of them" for p in loose]
    for folder, concept in numbered.items():
        if not concept:
            problems.append(f"{folder.name}: no class tokens after the number: rename it, such as `{folder.name}mona`")
        elif not _files(folder, IMAGE_SUFFIXES) and not _files(folder, _NOT_YET_READ):
            problems.append(f"{folder.name}: no images: add pictures with captions or remove the folder")
    return list(numbered.items()), problems


def _no_images(root: Path) -> str:
    """What to do about a folder without pictures; kohya users often name the folder above the right one."""
    strange = _files(root, _NOT_YET_READ)
    if strange:
        return f"no images that can be read: {strange[0].name} and its like must be saved as .png first"
    for below in sorted(p for p in root.iterdir() if p.is_dir()):
        if any(p.is_dir() and _REPEATS_FOLDER.match(p.name) for p in below.iterdir()):
            return f"no images here, but there are in `{below.name}`: give dataset.path={below}"
    return (
        f"no images: put {', '.join(s[1:] for s in IMAGE_SUFFIXES)} files with captions (same name, .txt) "
        "into the folder, or into one folder for each outfit, such as `10_mona dress`"
    )


def _not_a_folder(root: Path) -> str:
    """Why the path is not a folder of pictures, with the closest name that exists."""
    if root.exists():
        return f"{root}: is a file: dataset.path takes a folder of pictures with captions"
    missing = root
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        names = [p.name for p in missing.parent.iterdir() if p.is_dir()]
    except OSError:
        names = []
    near = difflib.get_close_matches(missing.name, names, 1, cutoff=0.5)
    hint = f"did you mean {missing.parent / near[0]}?" if near else "give dataset.path=FOLDER with captioned pictures"
    return f"{root}: no such folder: {hint}"


def _read_caption(path: Path) -> tuple[str, str]:
    """The caption of a picture and what is wrong with it; one of the two is empty."""
    beside = [p for suffix in CAPTION_SUFFIXES for p in (path.with_suffix(suffix), path.with_suffix(suffix.upper()))]
    # one file answers to both spellings where the file system ignores case
    texts: dict[str, str] = {}
    for file in beside:
        if not file.is_file():
            continue
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            return "", f"its caption {file.name} is not UTF-8 text: save it as UTF-8"
        except OSError as error:
            return "", f"its caption {file.name} cannot be read ({error.strerror}): make it readable"
        caption = ", ".join(stripped for line in lines if (stripped := line.strip(" \t,")))
        texts.setdefault(caption, file.name)
    if not texts:
        return "", f"no caption: write its tags into {path.stem}.txt beside it"
    if len({split_tags(text) for text in texts}) > 1:
        return "", f"{' and '.join(texts.values())} say different things: keep one of them"
    caption = next(iter(texts))
    if not split_tags(caption):
        return "", f"its caption {texts[caption]} is empty: write its tags into it"
    return caption, ""


def _read_picture(path: Path, concept: str, root: Path) -> Picture | str:
    """The picture, or its problems with their remedies in one line."""
    caption, trouble = _read_caption(path)
    problems = [trouble] if trouble else []
    width = height = 0
    digest = ""
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            width, height = ImageOps.exif_transpose(image).size  # decodes the whole picture
    except UnidentifiedImageError:
        kind = "an empty file" if path.stat().st_size == 0 else "broken, or no picture at all"
        problems.append(f"{kind}: replace or remove it")
    except _DECODE_ERRORS as error:
        problems.append(
            f"broken ({str(error).splitlines()[0] if str(error) else 'not decodable'}): replace or remove it"
        )
    if problems:
        return f"{path.relative_to(root)}: {'; '.join(problems)}"
    return Picture(path, caption, concept, width, height, digest)
