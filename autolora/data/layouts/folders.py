"""Lists images in folders: kohya's `N_class tokens/` or one plain folder, with captions and masks beside the images.

Every reader, here and in `metadata_files` and `kohya_toml`, returns a `Listing`; no image is decoded yet.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autolora.data.captions import split_tags
from autolora.data.images import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from autolora.files import composed

CAPTION_SUFFIXES = (".txt", ".caption")
_ANY_IMAGE = IMAGE_SUFFIXES + UNSUPPORTED_SUFFIXES
_CLASS_FOLDER = re.compile(r"(\d+)_(.*)", re.DOTALL)
_MASK_ENDINGS = (".mask.png", "-masklabel.png")
_MASK_FOLDER = "masks"


@dataclass(frozen=True)
class ImageEntry:
    """An image as its layout lists it; `problem` describes a faulty caption or mask and is empty if there is none."""

    path: Path
    caption: str
    concept: str
    repeats: int = 1
    mask: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class Listing:
    """The content of a layout: training images, regularization images, problems, and notes for the user."""

    entries: tuple[ImageEntry, ...] = ()
    regularization: tuple[ImageEntry, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def merge(listings: Iterable[Listing]) -> Listing:
    """The listings, concatenated."""
    parts = list(listings)
    names = [field.name for field in dataclasses.fields(Listing)]
    return Listing(**{name: tuple(item for part in parts for item in getattr(part, name)) for name in names})


def class_folder(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens in the name of a kohya folder `N_class tokens`; None for other names."""
    match = _CLASS_FOLDER.fullmatch(name)
    return (int(match[1]), " ".join(composed(match[2]).split())) if match else None


def concept_of(folder: Path, default: str = "") -> tuple[str, int]:
    """Concept and repeats of a folder: those in a kohya folder's name, else `default` or the whole name, once."""
    name = composed(folder.resolve().name)
    repeats, tokens = class_folder(name) or (1, "")
    return (tokens, max(1, repeats)) if tokens else (default or name, 1)


def display_path(path: Path, root: Path) -> str:
    """A path for messages: relative to the root if it lies below it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def summarize_list(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list and the number of the others: `a, b, c and 7 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def list_folder(root: Path, captions_optional: bool = False) -> Listing:
    """List a folder of kohya folders, or a plain folder of images.

    Files whose name starts with `.` and folders whose name starts with `.` or `_` are ignored.

    Args:
        root: the folder.
        captions_optional: images without a caption get the class tokens, or the words of the folder's name.
    """
    folders = [path for path in subfolders(root) if path.name != _MASK_FOLDER]
    numbered = [path for path in folders if class_folder(path.name)]
    loose = image_files(root)
    problems = [
        f"{path.name}: a folder of images without a number, which would not be read: rename it to "
        f"`1_{path.name}`, or to `_{path.name}` to leave it out"
        for path in folders
        if path not in numbered and _holds_images(path)
    ]
    if not numbered:
        if loose:
            fallback = " ".join(root.resolve().name.replace("_", " ").split()) if captions_optional else ""
            plain = list_images(root, root, fallback=fallback, captions_optional=captions_optional)
            return merge([Listing(problems=tuple(problems)), plain])
        if below := _dataset_below(root):
            problem = f"no images here, but there are in `{display_path(below, root)}`: set dataset.path={below}"
            return Listing(problems=(problem,))
        nothing = "no images in the folder and no folder `N_class tokens` in it" if problems else _no_images(root)
        return Listing(problems=(*problems, nothing))
    problems += [f"{path.name}: lies beside the concept folders: move it into one of them" for path in loose]
    listings = [_list_class_folder(path, root, captions_optional) for path in numbered]
    return merge([Listing(problems=tuple(problems)), *listings])


def _list_class_folder(folder: Path, root: Path, captions_optional: bool) -> Listing:
    repeats, tokens = class_folder(folder.name) or (1, "")
    if not tokens:
        problem = f"no class tokens after the number: rename it, for example to `{folder.name}mona`"
    elif repeats < 1:
        problem = f"0 repeats: rename it to `1_{tokens}`, or to `_{tokens}` to leave it out"
    elif not files_of(folder, _ANY_IMAGE):
        problem = "no images: add captioned images or remove the folder"
    else:
        return list_images(folder, root, fallback=tokens, captions_optional=captions_optional)
    return Listing(problems=(f"{folder.name}: {problem}",))


def list_images(
    folder: Path,
    root: Path,
    *,
    concept: str = "",
    repeats: int | None = None,
    fallback: str = "",
    captions_optional: bool = False,
    suffixes: Sequence[str] = CAPTION_SUFFIXES,
    masks: Path | None = None,
) -> Listing:
    """List the images directly in a folder, without its subfolders.

    Args:
        folder: the folder.
        root: messages show paths relative to this folder.
        concept: used if the folder's name holds no class tokens; default: the name.
        repeats: default: the repeats in the folder's name.
        fallback: the caption of all images if none of them has a caption file.
        captions_optional: single images without a caption file get the fallback too.
        suffixes: of caption files.
        masks: the folder of the masks; default: beside the images.
    """
    paths = image_files(folder)
    captions, masks_by_stem = by_stem(folder, suffixes), find_masks(folder, masks)
    files = {path: [file for stem in stems_of(path) for file in captions.get(stem, [])] for path in paths}
    uncaptioned = bool(fallback) and bool(paths) and not any(files.values())
    name, folder_repeats = concept_of(folder, concept)
    entries = []
    for path in paths:
        if not files[path] and fallback and (captions_optional or uncaptioned):
            caption, caption_problem = fallback, ""
        else:
            caption, caption_problem = _read_caption(path, files[path], suffixes[0])
        mask, mask_problem = mask_of(path, masks_by_stem)
        problem = "; ".join(filter(None, (caption_problem, mask_problem)))
        count = folder_repeats if repeats is None else repeats
        entries.append(ImageEntry(path, caption, name, count, mask, problem))
    unsupported = [
        f"{display_path(path, root)}: {path.suffix} images are not supported: save it as .png"
        for path in files_of(folder, UNSUPPORTED_SUFFIXES)
    ]
    notes = []
    if uncaptioned:
        notes.append(f"{display_path(folder, root)}: no caption files, so every image gets the caption `{fallback}`")
    if masks and (unmasked := [entry.path.name for entry in entries if not entry.mask and not entry.problem]):
        notes.append(f"{display_path(masks, root)}: no mask for {summarize_list(unmasked)}: the whole image counts")
    stems = {composed(path.stem) for path in paths}
    unused = [path.name for stem in masks_by_stem.keys() - stems for path in masks_by_stem[stem]]
    if unused and not masks:
        notes.append(f"{display_path(folder, root)}: masks without an image: {summarize_list(sorted(unused))}")
    orphans = captions.keys() - {stem for path in files_of(folder, _ANY_IMAGE) for stem in stems_of(path)}
    if orphans and paths:
        names = sorted(path.name for stem in orphans for path in captions[stem])
        notes.append(f"{display_path(folder, root)}: captions without an image: {summarize_list(names)}")
    if folder != root and (left_out := [path.name for path in subfolders(folder) if _holds_images(path)]):
        notes.append(f"{display_path(folder, root)}: images in folders below are not read: {summarize_list(left_out)}")
    return Listing(tuple(entries), problems=tuple(unsupported), notes=tuple(notes))


def files_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The visible files in a folder with one of the suffixes, sorted by name, in the same order on every system."""
    return [folder / name for name in _names(folder) if os.path.splitext(name)[1].lower() in suffixes]


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())


def by_stem(folder: Path, endings: Iterable[str]) -> dict[str, list[Path]]:
    """The visible files of a folder by their name without its ending, in the order of the endings."""
    paths: dict[str, list[Path]] = {}
    names = _names(folder)
    for ending in endings:
        for name in names:
            if name.lower().endswith(ending.lower()):
                paths.setdefault(composed(name[: -len(ending)]), []).append(folder / name)
    return paths


def stems_of(image: Path) -> tuple[str, str]:
    """The names that a caption of an image may have without its ending: `a` and `a.png`."""
    return composed(image.stem), composed(image.name)


def image_files(folder: Path) -> list[Path]:
    """The visible images in a folder, without masks, sorted by name."""
    return [path for path in files_of(folder, IMAGE_SUFFIXES) if not path.name.lower().endswith(_MASK_ENDINGS)]


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder whose name does not start with `.` or `_`, sorted."""
    return sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))), key=str)


def _holds_images(folder: Path) -> bool:
    """Whether there are images in a folder or anywhere below it, outside of folders of masks."""
    return folder.name != _MASK_FOLDER and (
        bool(image_files(folder)) or any(_holds_images(below) for below in subfolders(folder) if not below.is_symlink())
    )


def find_masks(folder: Path, masks: Path | None = None) -> dict[str, list[Path]]:
    """The masks of a folder's images, by the image's name without its suffix.

    Without `masks` they are `NAME.mask.png` or `NAME-masklabel.png` beside the image, or `masks/NAME.png`. With
    `masks`, the folder of the masks, they are images of the same name in it.
    """
    if masks:
        return by_stem(masks, IMAGE_SUFFIXES)
    paths = by_stem(folder, _MASK_ENDINGS)
    if os.path.isdir(folder / _MASK_FOLDER):
        for stem, more in by_stem(folder / _MASK_FOLDER, (".png",)).items():
            paths.setdefault(stem, []).extend(more)
    return paths


def mask_of(path: Path, masks: Mapping[str, Sequence[Path]]) -> tuple[Path | None, str]:
    """The mask of an image or None, and the problem with it or an empty text."""
    candidates = masks.get(composed(path.stem), ())
    if len(candidates) > 1:
        names = " and ".join(display_path(mask, path.parent) for mask in candidates)
        return None, f"{names} are both its mask: keep one of them"
    return (candidates[0], "") if candidates else (None, "")


def one_line(text: str) -> str:
    """The lines of a caption joined by commas, without white space and commas at their ends, and byte order marks."""
    lines = composed(text.replace("\ufeff", "")).splitlines()  # editors leave such marks, invisible, also inside a text
    return ", ".join(stripped for line in lines if (stripped := line.strip(" \t,")))


def _read_caption(path: Path, files: Sequence[Path], suffix: str) -> tuple[str, str]:
    """The caption of an image and the problem with it; one of the two is empty."""
    texts: dict[str, str] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
            if "\0" in text:
                return "", f"its caption {file.name} holds NUL bytes, perhaps as UTF-16 text does: save it as UTF-8"
            texts.setdefault(one_line(text), file.name)
        except UnicodeDecodeError:
            return "", f"its caption {file.name} is not UTF-8 text: save it as UTF-8"
        except OSError as error:
            return "", f"its caption {file.name} cannot be read ({error.strerror}): make it readable"
    if not texts:
        return "", f"no caption: write its tags into {path.stem}{suffix} beside it"
    if len({split_tags(text) for text in texts}) > 1:
        return "", f"{' and '.join(texts.values())} hold different captions: keep one of them"
    caption = next(iter(texts))
    if not split_tags(caption):
        return "", f"its caption {texts[caption]} is empty: write its tags into it"
    return caption, ""


def _dataset_below(root: Path) -> Path | None:
    """The first subfolder that holds kohya folders or metadata, else the only one that holds images."""
    for below in subfolders(root):
        if any(class_folder(p.name) for p in below.iterdir() if p.is_dir()) or any(below.glob("metadata.*")):
            return below
    holding = [below for below in subfolders(root) if _holds_images(below)]
    only = holding[0] if len(holding) == 1 else None
    return only if only is None or image_files(only) else _dataset_below(only)


def _no_images(root: Path) -> str:
    """What to do about a folder without images."""
    unsupported = files_of(root, UNSUPPORTED_SUFFIXES)
    if unsupported:
        return f"no supported images: save {unsupported[0].name} and files like it as .png"
    if os.access(above := root.resolve().parent, os.R_OK) and image_files(above):
        return f"no images here, but there are in the folder above: set dataset.path={above}"
    return (
        f"no images: put {', '.join(s[1:] for s in IMAGE_SUFFIXES)} files with captions (same name, .txt) "
        "into the folder, or into one folder per outfit, such as `10_mona dress`"
    )
