"""Files that list pictures with their captions: kohya metadata (JSON, JSONL) and Hugging Face imagefolder (JSONL, CSV).

kohya JSON is `{image: {"caption", "tags"}}`, its JSONL has `image_path` in place of the key; an imagefolder's rows have
`file_name` and `text` (or `caption`). Other fields are not read.
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
from autolora.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from autolora.data.layouts.folders import (
    ImageEntry,
    Listing,
    concept_of,
    files_of,
    find_masks,
    mask_of,
    one_line,
    picture_files,
    shown,
    summarize_list,
)
from autolora.errors import DatasetError

METADATA_SUFFIXES = (".json", ".jsonl", ".csv")
_PATH_FIELDS = ("image_path", "file_name")
Row = tuple[str, Mapping[str, Any]]  # where it stands, as messages name it, and its fields


def dataset_files(root: Path) -> tuple[list[Path], list[str]]:
    """The files in a folder that list its pictures, and notes on those that look as if they might.

    They are `metadata.csv`, `metadata.jsonl`, and every `.json` and `.jsonl` with the fields of kohya metadata or of an
    imagefolder, or that is broken; but for names that start with `.` or `_` and JSON files with a picture's name.
    """
    stems = {name for path in picture_files(root) for name in (path.stem, path.name)}
    found, notes = [], []
    for path in files_of(root, (*METADATA_SUFFIXES, ".toml")):
        if path.name.startswith("_") or path.stem in stems:
            continue
        if path.suffix.lower() == ".toml":
            notes.append(f"{path.name}: not read; if it describes the dataset, give dataset.path={path}")
        elif path.name.lower() in ("metadata.csv", "metadata.jsonl") or _is_metadata(path):
            found.append(path)
        else:
            notes.append(f"{path.name}: not read, it lists no pictures with captions")
    return found, notes


def _is_metadata(path: Path) -> bool:
    """Whether a JSON or JSONL file lists pictures, or is broken, so that one cannot tell."""
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
    """The pictures that a metadata file lists.

    Args:
        file: one of `METADATA_SUFFIXES`.
        root: where relative paths start, by default the file's folder.
        concept: of pictures whose folder's name tells no class tokens, by default the root's name.
        repeats: by default what the picture's folder tells.
        masks: the folder of the masks, by default beside the pictures.
    """
    root = root or file.parent
    try:
        rows, problems = _read_rows(file)
    except DatasetError as error:
        return Listing(problems=(str(error),))
    if missing := _missing_column(rows, file.name):
        return Listing(problems=(*problems, missing))
    otherwise, _ = concept_of(root, concept)
    records: dict[Path, ImageEntry] = {}
    folders = {root: (concept_of(root, otherwise), find_masks(root, masks))}
    places: dict[Path, str] = {}
    for where, fields in rows:
        key = next((fields[name] for name in _PATH_FIELDS if fields.get(name) is not None), None)
        try:
            path = _find_picture(root, key)
        except DatasetError as error:
            problems.append(f"{where}: {error}")
            continue
        if path in places:
            problems.append(f"{where}: `{key}` is listed already ({places[path]}): remove one of the two")
            continue
        places[path] = where
        caption, trouble = _caption(fields, where)
        if path.parent not in folders:
            folders[path.parent] = concept_of(path.parent, otherwise), find_masks(path.parent, masks)
        (name, own_repeats), masks_of = folders[path.parent]
        mask, mask_trouble = mask_of(path, masks_of)
        trouble = "; ".join(filter(None, (trouble, mask_trouble)))
        records[path] = ImageEntry(path, caption, name, own_repeats if repeats is None else repeats, mask, trouble)
    left_out = sorted(shown(p, root) for folder in folders for p in picture_files(folder) if p not in places)
    notes = (f"not in {file.name} and so left out: {summarize_list(left_out)}",) if left_out else ()
    return Listing(tuple(records.values()), problems=tuple(problems), notes=notes)


def _find_picture(root: Path, key: Any) -> Path:
    """The picture that a row means; its suffix may be missing.

    Absolute paths may be from before the folder moved: they are looked up below the root by their end, the longest
    that exists there.

    Raises:
        DatasetError: there is none, or it cannot be told which; the message leaves out the row.
    """
    if not isinstance(key, str) or not key.strip():
        raise DatasetError(f"no path of a picture, got {key!r}: write it, or remove the entry")
    parts = PurePosixPath(key.replace("\\", "/")).parts
    absolute = PurePosixPath(key).is_absolute() or PureWindowsPath(key).is_absolute()
    for start in range(len(parts) if absolute else 1):
        path = root / os.path.normpath(Path(*parts[start:]))
        if path.is_relative_to(root.absolute()):
            path = root / path.relative_to(root.absolute())
        added = [Path(f"{path}{s}") for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper())]
        found = [p for p in [path] if os.path.isfile(p)] or [p for p in added if os.path.isfile(p)]
        if len(found) > 1 and not found[0].samefile(found[1]):
            raise DatasetError(f"`{key}` may be {found[0].name} or {found[1].name}: write its suffix")
        if found and found[0].suffix.lower() in UNREAD_SUFFIXES:
            raise DatasetError(f"`{key}`: {found[0].suffix} pictures cannot be read yet: save it as .png")
        if found and found[0].suffix.lower() not in IMAGE_SUFFIXES:
            raise DatasetError(f"`{key}` is no picture: correct the path or remove the entry")
        if found:
            return found[0]
    raise DatasetError(f"`{key}` does not exist: correct the path or remove the entry")


def _caption(fields: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The caption of a row and what is wrong with it; kohya's tags follow its caption, as its trainer joins them."""
    names = ("caption", "tags") if "image_path" in fields else ("text",) if "text" in fields else ("caption",)
    texts = {name: fields[name] for name in names if fields.get(name) is not None}
    for name, text in texts.items():
        if not isinstance(text, str):
            return "", f"its {name} in {where} is {_kind(text)}: write text in quotes"
    caption = ", ".join(line for text in texts.values() if (line := one_line(text)))
    if not split_tags(caption):
        return "", f"its caption in {where} is empty: write its tags into it"
    return caption, ""


def _missing_column(rows: Sequence[Row], name: str) -> str:
    """What no row has, though one cannot do without it; empty if nothing."""
    if not rows:
        return f"{name}: lists no pictures: add them, or remove the file"
    columns = dict.fromkeys(column for _, fields in rows for column in fields if column is not None)
    captions = ("caption", "tags") if "image_path" in columns else ("text", "caption")
    for wanted, meaning in ((_PATH_FIELDS, "the pictures' paths"), (captions, "the captions")):
        if columns.keys().isdisjoint(wanted):
            listed = f"it has {', '.join(columns)}"
            return f"{name}: no column `{wanted[0]}` or `{wanted[1]}`, {listed}: rename the one with {meaning}"
    return ""


def _read_rows(file: Path) -> tuple[list[Row], list[str]]:
    """The rows of a metadata file, and what is wrong with single ones.

    Raises:
        DatasetError: nothing of the file can be read.
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
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): JSON strings may hold its other line ends
        where = f"{name} line {number}"
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: broken JSON ({error.msg}): correct it")
            continue
        if isinstance(fields, dict):
            rows.append((where, fields))
        else:
            problems.append(f"{where}: expected an object, got {_kind(fields)}: write a file_name and its text")
    return rows, problems


def _csv_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    rows: list[Row] = []
    problems = []
    try:
        reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
        for fields in reader:
            where = f"{name} line {reader.line_num}"
            rows.append((where, fields))
            if None in fields:
                problems.append(f"{where}: more fields than columns: put its caption into double quotes")
    except csv.Error as error:
        raise DatasetError(f"{name} line {reader.reader.line_num}: broken CSV ({error}): correct it") from error
    return rows, problems


def _kind(value: Any) -> str:
    """What a JSON value is, for a message."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
