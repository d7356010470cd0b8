"""Folders as people lay them out: kohya's `N_class tokens/`, or one plain folder; captions and masks beside pictures.

Each reader, here and in `metadata_layout` and `toml_layout`, yields the same `Listing`; nothing is decoded yet.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autolora.data.captions import split_tags
from autolora.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES

CAPTION_SUFFIXES = (".txt", ".caption")
_CLASS_FOLDER = re.compile(r"(\d+)_(.*)", re.DOTALL)
_MASK_ENDINGS = (".mask.png", "-masklabel.png")
_MASK_FOLDER = "masks"


@dataclass(frozen=True)
class ImageEntry:
    """A picture as its layout lists it; `problem` says what is wrong with its caption or mask."""

    path: Path
    caption: str
    concept: str
    repeats: int = 1
    mask: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class Listing:
    """What a layout holds: pictures to train on, pictures for regularization, problems, and notes for the user."""

    records: tuple[ImageEntry, ...] = ()
    regularization: tuple[ImageEntry, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def merge(listings: Iterable[Listing]) -> Listing:
    """The listings one after the other."""
    parts = list(listings)
    names = [field.name for field in dataclasses.fields(Listing)]
    return Listing(**{name: tuple(item for part in parts for item in getattr(part, name)) for name in names})


def class_folder(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens of a kohya folder's name `N_class tokens`, else None."""
    match = _CLASS_FOLDER.fullmatch(name)
    return (int(match[1]), " ".join(match[2].split())) if match else None


def concept_of(folder: Path, otherwise: str = "") -> tuple[str, int]:
    """Concept and repeats that a folder's name tells; other names are the concept, unless one is given."""
    name = folder.resolve().name
    repeats, tokens = class_folder(name) or (1, "")
    return (tokens, max(1, repeats)) if tokens else (otherwise or name, 1)


def shown(path: Path, root: Path) -> str:
    """A path as messages name it: below the root without the root."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def summarize_list(names: Sequence[str], most: int = 3) -> str:
    """A few names of a longer list: `a, b, c and 7 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def list_folder(root: Path, optional: bool = False) -> Listing:
    """A folder of kohya folders, or a plain folder of pictures.

    Files whose name starts with `.` and folders whose name starts with `.` or `_` are ignored.

    Args:
        optional: pictures without a caption are captioned with their class tokens, or their folder's words.
    """
    folders = [path for path in subfolders(root) if path.name != _MASK_FOLDER]
    numbered = [path for path in folders if class_folder(path.name)]
    loose = picture_files(root)
    problems = [
        f"{path.name}: a folder of pictures without a number, so its concept would be missed: rename it to "
        f"`1_{path.name}`, or to `_{path.name}` to leave it out"
        for path in folders
        if path not in numbered and picture_files(path)
    ]
    if not numbered:
        if loose:
            words = " ".join(root.resolve().name.replace("_", " ").split())
            plain = list_pictures(root, root, fallback=words if optional else "", optional=optional)
            return merge([Listing(problems=tuple(problems)), plain])
        if below := _folder_below(root):
            return Listing(problems=(f"no images here, but there are in `{below.name}`: give dataset.path={below}",))
        nothing = "no pictures in the folder itself and no folder `N_class tokens` in it" if problems else _empty(root)
        return Listing(problems=(*problems, nothing))
    problems += [f"{path.name}: lies beside the concept folders: move it into one of them" for path in loose]
    return merge([Listing(problems=tuple(problems)), *(_list_class_folder(path, root, optional) for path in numbered)])


def _list_class_folder(folder: Path, root: Path, optional: bool) -> Listing:
    repeats, tokens = class_folder(folder.name) or (1, "")
    if not tokens:
        problem = f"no class tokens after the number: rename it, such as `{folder.name}mona`"
    elif repeats < 1:
        problem = f"0 repeats: rename it to `1_{tokens}`, or to `_{tokens}` to leave it out"
    elif not files_of(folder, IMAGE_SUFFIXES + UNREAD_SUFFIXES):
        problem = "no images: add pictures with captions or remove the folder"
    else:
        return list_pictures(folder, root, fallback=tokens, optional=optional)
    return Listing(problems=(f"{folder.name}: {problem}",))


def list_pictures(
    folder: Path,
    root: Path,
    *,
    concept: str = "",
    repeats: int | None = None,
    fallback: str = "",
    optional: bool = False,
    suffixes: Sequence[str] = CAPTION_SUFFIXES,
    masks: Path | None = None,
) -> Listing:
    """The pictures that lie directly in a folder.

    Args:
        root: messages name paths from here.
        concept: of a folder whose name tells no class tokens; by default its name.
        repeats: by default what the folder's name tells.
        fallback: the caption of all pictures where none of the folder has a caption file.
        optional: the fallback is also the caption of single pictures without a caption file.
        suffixes: of caption files.
        masks: the folder of the masks, by default beside the pictures.
    """
    paths = picture_files(folder)
    captions, masks_of = _by_stem(folder, suffixes), find_masks(folder, masks)
    uncaptioned = bool(fallback) and bool(paths) and not any(path.stem in captions for path in paths)
    name, own_repeats = concept_of(folder, concept)
    records = []
    for path in paths:
        if path.stem not in captions and fallback and (optional or uncaptioned):
            caption, trouble = fallback, ""
        else:
            caption, trouble = _read_caption(path, captions.get(path.stem, []), suffixes[0])
        mask, mask_trouble = mask_of(path, masks_of)
        problem = "; ".join(filter(None, (trouble, mask_trouble)))
        records.append(ImageEntry(path, caption, name, own_repeats if repeats is None else repeats, mask, problem))
    unread = [
        f"{shown(path, root)}: {path.suffix} pictures cannot be read yet: save it as .png"
        for path in files_of(folder, UNREAD_SUFFIXES)
    ]
    notes = []
    if uncaptioned:
        notes.append(f"{shown(folder, root)}: no caption files, so every picture is captioned `{fallback}`")
    if masks and (bare := [record.path.name for record in records if not record.mask and not record.problem]):
        notes.append(f"{shown(masks, root)}: no mask for {summarize_list(bare)}: their whole area counts")
    stray = [path.name for stem in masks_of.keys() - {path.stem for path in paths} for path in masks_of[stem]]
    if stray and not masks:
        notes.append(f"{shown(folder, root)}: taken for masks, but of no picture: {summarize_list(sorted(stray))}")
    return Listing(tuple(records), problems=tuple(unread), notes=tuple(notes))


def files_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The visible files of some kinds in a folder, sorted by name on every system alike."""
    return [folder / name for name in _names(folder) if os.path.splitext(name)[1].lower() in suffixes]


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())


def _by_stem(folder: Path, endings: Iterable[str]) -> dict[str, list[Path]]:
    """The visible files in a folder whose names end so, in the endings' order, by the name of their picture."""
    found: dict[str, list[Path]] = {}
    names = _names(folder)
    for ending in endings:
        for name in names:
            if name.lower().endswith(ending.lower()):
                found.setdefault(name[: -len(ending)], []).append(folder / name)
    return found


def picture_files(folder: Path) -> list[Path]:
    """The visible pictures in a folder, masks left out, sorted by name."""
    return [path for path in files_of(folder, IMAGE_SUFFIXES) if not path.name.lower().endswith(_MASK_ENDINGS)]


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder that are not set aside by a `.` or `_` before their name, sorted."""
    return sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))), key=str)


def find_masks(folder: Path, masks: Path | None = None) -> dict[str, list[Path]]:
    """The masks of a folder's pictures, by the picture's name without its suffix.

    They are `NAME.mask.png` or `NAME-masklabel.png` beside the picture, or `masks/NAME.png`; or NAME in `masks`.
    """
    if masks:
        return _by_stem(masks, IMAGE_SUFFIXES)
    found = _by_stem(folder, _MASK_ENDINGS)
    if os.path.isdir(folder / _MASK_FOLDER):
        for stem, paths in _by_stem(folder / _MASK_FOLDER, (".png",)).items():
            found.setdefault(stem, []).extend(paths)
    return found


def mask_of(path: Path, masks: Mapping[str, Sequence[Path]]) -> tuple[Path | None, str]:
    """The mask of a picture, if it has one, and what is wrong with it."""
    found = masks.get(path.stem, ())
    if len(found) > 1:
        return None, f"{' and '.join(shown(mask, path.parent) for mask in found)} are both its mask: keep one of them"
    return (found[0], "") if found else (None, "")


def one_line(text: str) -> str:
    """A caption's lines as one caption, without empty ends."""
    return ", ".join(stripped for line in text.splitlines() if (stripped := line.strip(" \t,")))


def _read_caption(path: Path, files: Sequence[Path], suffix: str) -> tuple[str, str]:
    """The caption of a picture and what is wrong with it; one of the two is empty."""
    texts: dict[str, str] = {}
    for file in files:
        try:
            texts.setdefault(one_line(file.read_text(encoding="utf-8-sig")), file.name)
        except UnicodeDecodeError:
            return "", f"its caption {file.name} is not UTF-8 text: save it as UTF-8"
        except OSError as error:
            return "", f"its caption {file.name} cannot be read ({error.strerror}): make it readable"
    if not texts:
        return "", f"no caption: write its tags into {path.stem}{suffix} beside it"
    if len({split_tags(text) for text in texts}) > 1:
        return "", f"{' and '.join(texts.values())} say different things: keep one of them"
    caption = next(iter(texts))
    if not split_tags(caption):
        return "", f"its caption {texts[caption]} is empty: write its tags into it"
    return caption, ""


def _folder_below(root: Path) -> Path | None:
    """The folder that is meant, where the one above it was given, as kohya's users often do."""
    for below in subfolders(root):
        if any(class_folder(p.name) for p in below.iterdir() if p.is_dir()) or any(below.glob("metadata.*")):
            return below
    return None


def _empty(root: Path) -> str:
    """What to do about a folder without pictures."""
    strange = files_of(root, UNREAD_SUFFIXES)
    if strange:
        return f"no images that can be read: {strange[0].name} and its like must be saved as .png first"
    return (
        f"no images: put {', '.join(s[1:] for s in IMAGE_SUFFIXES)} files with captions (same name, .txt) "
        "into the folder, or into one folder for each outfit, such as `10_mona dress`"
    )
