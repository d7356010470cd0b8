"""Reads files that list images with captions: kohya metadata and Hugging Face imagefolder metadata.

kohya's JSON is `{image: {"caption", "tags"}}`; its JSONL has the field `image_path` instead of the key. The rows of an
imagefolder (JSONL or CSV) have `file_name` and `text` (or `caption`). Other fields are not read.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from autolora.data.captions import split_tags
from autolora.data.images import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from autolora.data.layouts.folders import (
    ImageEntry,
    Listing,
    concept_of,
    display_path,
    files_of,
    find_masks,
    image_files,
    mask_of,
    one_line,
    summarize_list,
)
from autolora.errors import DatasetError
from autolora.files import on_disk

METADATA_SUFFIXES = (".json", ".jsonl", ".csv")
_CSV_SEPARATORS = (",", ";", "\t")
_PATH_FIELDS = ("image_path", "file_name")
Row = tuple[str, Mapping[str, Any]]  # its place for messages, such as `metadata.csv line 2`, and its fields


def metadata_files(root: Path) -> tuple[list[Path], list[str]]:
    """The metadata files in a folder, and notes on similar files that are not read.

    Metadata files are `metadata.csv`, `metadata.jsonl`, and every `.json` and `.jsonl` file that is broken or has the
    fields of kohya metadata or of an imagefolder. Files whose name starts with `.` or `_` and JSON files with the name
    of an image are ignored.
    """
    image_names = {name for path in image_files(root) for name in (path.stem, path.name)}
    files, notes = [], []
    for path in files_of(root, (*METADATA_SUFFIXES, ".toml")):
        if path.name.startswith("_") or path.stem in image_names:
            continue
        if path.suffix.lower() == ".toml":
            notes.append(f"{path.name}: not read; if it describes the dataset, set dataset.path={path}")
        elif path.name.lower() in ("metadata.csv", "metadata.jsonl") or _is_metadata(path):
            files.append(path)
        else:
            notes.append(f"{path.name}: not read, it lists no images with captions")
    return files, notes


def _is_metadata(path: Path) -> bool:
    """Whether a JSON or JSONL file lists images; True for a broken file, which is then reported as a problem."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return False
    try:
        rows, _ = _read_rows(path)
    except DatasetError:
        return True
    fields = {name for _, row in rows for name in row}
    return not fields.isdisjoint({"caption", "tags"} if suffix == ".json" else _PATH_FIELDS)


def list_metadata(
    file: Path, root: Path | None = None, *, concept: str = "", repeats: int | None = None, masks: Path | None = None
) -> Listing:
    """List the images of a metadata file.

    Args:
        file: one of `METADATA_SUFFIXES`.
        root: relative paths start here; default: the file's folder.
        concept: of images whose folder's name holds no class tokens; default: the root's name.
        repeats: default: the repeats in the name of the image's folder.
        masks: the folder of the masks; default: beside the images.
    """
    root = root or file.parent
    try:
        rows, problems = _read_rows(file)
    except DatasetError as error:
        return Listing(problems=(str(error),))
    if missing := _missing_column(rows, file.name):
        return Listing(problems=(*problems, missing))
    default, _ = concept_of(root, concept)
    entries: dict[Path, ImageEntry] = {}
    folders = {root: (concept_of(root, default), find_masks(root, masks))}
    places: dict[Path, str] = {}
    for where, fields in rows:
        key = next((fields[name] for name in _PATH_FIELDS if fields.get(name) is not None), None)
        try:
            path = _find_image(root, key)
        except DatasetError as error:
            problems.append(f"{where}: {error}")
            continue
        if path in places:
            problems.append(f"{where}: `{key}` is listed already ({places[path]}): remove one of the two")
            continue
        places[path] = where
        caption, caption_problem = _caption(fields, where)
        if path.parent not in folders:
            folders[path.parent] = concept_of(path.parent, default), find_masks(path.parent, masks)
        (name, folder_repeats), masks_by_stem = folders[path.parent]
        mask, mask_problem = mask_of(path, masks_by_stem)
        problem = "; ".join(filter(None, (caption_problem, mask_problem)))
        count = folder_repeats if repeats is None else repeats
        entries[path] = ImageEntry(path, caption, name, count, mask, problem)
    unlisted = sorted(display_path(p, root) for folder in folders for p in image_files(folder) if p not in places)
    notes = (f"not listed in {file.name}, so left out: {summarize_list(unlisted)}",) if unlisted else ()
    return Listing(tuple(entries.values()), problems=tuple(problems), notes=notes)


def _find_image(root: Path, key: Any) -> Path:
    """The image that a row names; the name may lack its suffix.

    An absolute path may date from before the folder was moved. The longest end of it that exists below the root is
    used.

    Raises:
        DatasetError: no image or several images match; the message does not name the row.
    """
    if not isinstance(key, str) or not key.strip():
        raise DatasetError(f"no image path, got {key!r}: write it, or remove the entry")
    parts = PurePosixPath(key.replace("\\", "/")).parts
    absolute = PurePosixPath(key).is_absolute() or PureWindowsPath(key).is_absolute()
    for start in range(len(parts) if absolute else 1):
        path = root / os.path.normpath(Path(*parts[start:]))
        if path.is_relative_to(root.absolute()):
            path = root / path.relative_to(root.absolute())
        path = on_disk(path)
        with_suffix = [on_disk(Path(f"{path}{s}")) for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper())]
        matches = [p for p in [path] if os.path.isfile(p)] or [p for p in with_suffix if os.path.isfile(p)]
        if len(matches) > 1 and not matches[0].samefile(matches[1]):
            raise DatasetError(f"`{key}` may be {matches[0].name} or {matches[1].name}: write its suffix")
        if matches and matches[0].suffix.lower() in UNSUPPORTED_SUFFIXES:
            raise DatasetError(f"`{key}`: {matches[0].suffix} images are not supported: save it as .png")
        if matches and matches[0].suffix.lower() not in IMAGE_SUFFIXES:
            raise DatasetError(f"`{key}` is not an image: correct the path or remove the entry")
        if matches:
            return matches[0]
    raise DatasetError(f"`{key}` does not exist: correct the path or remove the entry")


def _caption(fields: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The caption of a row and the problem with it; kohya's tags follow its caption, in the order its trainer uses."""
    names = ("caption", "tags") if "image_path" in fields else ("text",) if "text" in fields else ("caption",)
    texts = {name: fields[name] for name in names if fields.get(name) is not None}
    for name, text in texts.items():
        if not isinstance(text, str):
            return "", f"its {name} in {where} is {_kind(text)}: write text in quotes"
    caption = ", ".join(line for text in texts.values() if (line := one_line(text)))
    if "\0" in caption:
        return "", f"its caption in {where} holds a NUL character: remove it"
    if not split_tags(caption):
        return "", f"its caption in {where} is empty: write its tags into it"
    return caption, ""


def _missing_column(rows: Sequence[Row], name: str) -> str:
    """The problem that no row has an image path, or none has a caption; empty if there is no such problem."""
    if not rows:
        return f"{name}: lists no images: add them, or remove the file"
    columns = dict.fromkeys(column for _, fields in rows for column in fields if column is not None)
    captions = ("caption", "tags") if "image_path" in columns else ("text", "caption")
    for required, meaning in ((_PATH_FIELDS, "the image paths"), (captions, "the captions")):
        if columns.keys().isdisjoint(required):
            present = f"it has {', '.join(columns)}"
            return f"{name}: no column `{required[0]}` or `{required[1]}`, {present}: rename the one with {meaning}"
    return ""


def _read_rows(file: Path) -> tuple[list[Row], list[str]]:
    """The rows of a metadata file, and the problems of single rows.

    Raises:
        DatasetError: the whole file is unreadable.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file.name}: not UTF-8 text: save it as UTF-8") from error
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
    return readers[file.suffix.lower()](text, file.name)


def _json_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{name} line {error.lineno}: broken JSON ({error.msg}): correct it") from error
    except (RecursionError, ValueError) as error:
        raise DatasetError(
            f"{name}: JSON that is nested too deeply, or a number that is too long: correct it"
        ) from error
    if not isinstance(document, dict):
        return [], [f"{name}: expected an object of images, got {_kind(document)}: write {{image: {{caption, tags}}}}"]
    problems = [f"{name}: `{key}` is listed more than once: keep one of them" for key in repeated]
    rows: list[Row] = []
    for key, value in document.items():
        if isinstance(value, dict):
            rows.append((name, {**value, "image_path": key}))
        else:
            problems.append(f"{name}: `{key}` is {_kind(value)}: write an object with its caption and tags")
    return rows, problems


def _jsonl_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    problems = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split inside JSON strings
        where = f"{name} line {number}"
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: broken JSON ({error.msg}): correct it")
            continue
        except (RecursionError, ValueError):
            problems.append(f"{where}: JSON that is nested too deeply, or a number that is too long: correct it")
            continue
        if isinstance(fields, dict):
            rows.append((where, fields))
        else:
            problems.append(f"{where}: expected an object, got {_kind(fields)}: write a file_name and its text")
    return rows, problems


def _csv_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    head = text.partition("\n")[0]
    separator = max(_CSV_SEPARATORS, key=head.count)  # of spreadsheets in many languages a semicolon
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[Row] = []
    problems = []
    try:
        reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
        for fields in reader:
            where = f"{name} line {reader.line_num}"
            rows.append((where, fields))
            if None in fields:
                problems.append(f"{where}: more fields than columns: put the caption in double quotes")
    except csv.Error as error:
        raise DatasetError(f"{name} line {reader.reader.line_num}: broken CSV ({error}): correct it") from error
    return rows, problems


def _kind(value: Any) -> str:
    """The type of a JSON value, for messages."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
