"""The dataset file of sd-scripts (TOML): `[general]` < `[[datasets]]` < `[[datasets.subsets]]`."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autolora.data.layouts.folders import (
    CAPTION_SUFFIXES,
    ImageEntry,
    Listing,
    class_folder,
    list_pictures,
    merge,
    shown,
)
from autolora.data.layouts.metadata_files import METADATA_SUFFIXES, list_metadata

_KINDS: dict[str, tuple[type, str]] = {  # what is read, and what it must be
    "image_dir": (str, "text"),
    "metadata_file": (str, "text"),
    "conditioning_data_dir": (str, "text"),
    "class_tokens": (str, "text"),
    "caption_extension": (str, "text"),
    "caption_prefix": (str, "text"),
    "caption_suffix": (str, "text"),
    "num_repeats": (int, "a whole number"),
    "is_reg": (bool, "true or false"),
}
_ELSEWHERE = {  # what autolora is told elsewhere
    "keep_tokens": "set train.keep_tokens={}",
    "shuffle_caption": "set train.shuffle_caption={}",
    "caption_dropout_rate": "set train.caption_dropout_rate={}",
    "caption_tag_dropout_rate": "set train.caption_tag_dropout_rate={}",
    "flip_aug": "set train.flip_aug={}",
    "batch_size": "set train.batch_size={}",
    "resolution": "set model.resolution to a size that the base model was made for",
    "enable_bucket": "set dataset.buckets.count, 1 for squares only",
    "bucket_no_upscale": "set dataset.bucket_upscale, false to leave small pictures out",
    "bucket_reso_steps": "set dataset.buckets.bucket_reso_steps={}",
    "min_bucket_reso": "set dataset.buckets.min_bucket_reso={}",
    "max_bucket_reso": "set dataset.buckets.max_bucket_reso={}",
    "validation_split": "set dataset.validation_split={}",
    "validation_seed": "set dataset.seed={}",
    "alpha_mask": "save the masks beside the pictures, as NAME.mask.png",
}
_UNUSED = (
    *("cache_info", "caption_dropout_every_n_epochs", "caption_separator"),
    *("color_aug", "custom_attributes", "debug_dataset", "enable_wildcard"),
    *("face_crop_aug_range", "keep_tokens_separator", "max_token_length", "network_multiplier"),
    *("prior_loss_weight", "random_crop", "resize_interpolation", "secondary_separator", "skip_image_resolution"),
    *("system_prompt", "token_warmup_min", "token_warmup_step"),
)


def list_toml(file: Path) -> Listing:
    """The pictures of all subsets that a dataset file names.

    Relative folders start at the file's folder, or where that has none of the name, at the working directory. Where
    several subsets name a picture, the first has it. Without `caption_extension` both `.txt` and `.caption` are read.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        return Listing(problems=("not UTF-8 text: save it as UTF-8",))
    except tomllib.TOMLDecodeError as error:
        return Listing(problems=(f"broken TOML: {error}: correct it (Windows paths: use / or 'single quotes')",))
    notes = [_unknown(key, ("general", "datasets")) for key in document if key not in ("general", "datasets")]
    general, datasets = document.get("general", {}), document.get("datasets", [])
    if not isinstance(general, dict):
        return Listing(problems=("general is no table: write its keys below [general]",))
    if not _is_tables(datasets):
        return Listing(problems=("datasets is no list of tables: write [[datasets]], with two brackets",))
    listings = []
    for number, dataset in enumerate(datasets, 1):
        subsets = dataset.pop("subsets", [])
        if not _is_tables(subsets):
            return Listing(problems=("subsets is no list of tables: write [[datasets.subsets]], with two brackets",))
        for count, subset in enumerate(subsets, 1):
            where = f"subset {count}" if len(datasets) == 1 else f"dataset {number} subset {count}"
            listings.append(_list_subset({**general, **dataset, **subset}, where, file.parent))
    if not listings:
        return Listing(problems=("no pictures: add [[datasets]] and below it [[datasets.subsets]] with image_dir",))
    return _without_copies(merge([Listing(notes=tuple(notes)), *listings]), file.parent)


def _list_subset(keys: Mapping[str, Any], where: str, base: Path) -> Listing:
    """The pictures of one subset."""
    notes = [note for key, value in keys.items() if (note := _note(key, value))]
    problems = _wrong_values(keys)
    folders: dict[str, Path] = {}
    for key in ("image_dir", "conditioning_data_dir", "metadata_file"):
        if isinstance(keys.get(key), str):
            folders[key] = _locate(base, keys[key])
            if not (os.path.isfile if key == "metadata_file" else os.path.isdir)(folders[key]):
                problems.append(f"{key} `{keys[key]}` does not exist, neither here nor below {base}: correct it")
    if not {"image_dir", "metadata_file"} & keys.keys():
        problems.append("no image_dir: add image_dir = 'FOLDER'")
    if problems:
        return Listing(problems=tuple(f"{where}: {problem}" for problem in problems), notes=tuple(notes))
    folder, masks, metadata = (folders.get(key) for key in ("image_dir", "conditioning_data_dir", "metadata_file"))
    tokens, repeats = str(keys.get("class_tokens", "")), int(keys.get("num_repeats", 1))
    if metadata:
        listing = list_metadata(metadata, folder, concept=tokens, repeats=repeats, masks=masks)
    else:
        assert folder
        extension = keys.get("caption_extension")
        listing = list_pictures(
            folder,
            base,
            concept=tokens,
            repeats=repeats,
            fallback=tokens or (class_folder(folder.name) or (1, ""))[1],
            optional=bool(keys.get("is_reg")),
            suffixes=("." + extension.lstrip("."),) if extension else CAPTION_SUFFIXES,
            masks=masks,
        )
        if not listing.records and not listing.problems:
            listing = Listing(problems=(f"{where}: no images in {shown(folder, base)}: subfolders are not searched",))
    ends = [str(keys.get(key, "")).strip() for key in ("caption_prefix", "caption_suffix")]
    records = tuple(replace(r, caption=" ".join(filter(None, (ends[0], r.caption, ends[1])))) for r in listing.records)
    listing = replace(listing, records=records, notes=(*notes, *listing.notes))
    return replace(listing, records=(), regularization=records) if keys.get("is_reg") else listing


def _wrong_values(keys: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of the keys that are read."""
    problems = [
        f"{key}={_written(keys[key])}: must be {meaning}"
        for key, (kind, meaning) in _KINDS.items()
        if key in keys and type(keys[key]) is not kind
    ]
    repeats, extension, metadata = (keys.get(key) for key in ("num_repeats", "caption_extension", "metadata_file"))
    if type(repeats) is int and repeats < 1:
        problems.append(f"num_repeats={repeats}: must be at least 1; remove the subset to leave it out")
    if isinstance(extension, str) and not (extension.strip(". ") and Path(extension).name == extension):
        problems.append(f"caption_extension={_written(extension)}: must be a file's ending, such as .txt")
    if isinstance(metadata, str) and Path(metadata).suffix.lower() not in METADATA_SUFFIXES:
        problems.append(f"metadata_file={_written(metadata)}: must be a {', '.join(METADATA_SUFFIXES)} file")
    return problems


def _note(key: str, value: Any) -> str:
    """What to tell about a key that is not read; nothing about what is read or switched off."""
    if key in _KINDS:
        return ""
    if key in _ELSEWHERE:
        return f"{key}={_written(value)} in the file: {_ELSEWHERE[key].format(_written(value))}"
    if key in _UNUSED:
        return f"{key}={_written(value)} in the file is not used" if value else ""
    return _unknown(key, (*_KINDS, *_ELSEWHERE, *_UNUSED))


def _unknown(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"{key} in the file is unknown" + (f": did you mean {near[0]}?" if near else "")


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _locate(base: Path, written: str) -> Path:
    """A path in the file, which may be relative to the file's folder or to the working directory."""
    path = Path(os.path.expanduser(written))
    return base / path if os.path.exists(base / path) or not os.path.exists(path) else path


def _without_copies(listing: Listing, base: Path) -> Listing:
    """Each picture once: several resolutions of a folder are several subsets in such files, and one here."""
    notes = list(dict.fromkeys(listing.notes))

    def first(records: tuple[ImageEntry, ...]) -> tuple[ImageEntry, ...]:
        kept: dict[Path, ImageEntry] = {}
        for record in records:
            kept.setdefault(record.path, record)
        folders = dict.fromkeys(r.path.parent for r in records if kept[r.path] is not r)
        notes.extend(f"{shown(f, base)}: in several subsets, of which the first counts" for f in folders)
        return tuple(kept.values())

    return replace(
        listing, records=first(listing.records), regularization=first(listing.regularization), notes=tuple(notes)
    )
