"""Reads the dataset files of sd-scripts (TOML).

Keys in `[[datasets.subsets]]` override those in `[[datasets]]`, and these override those in `[general]`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autolora.data.captions import join_tags, split_tags
from autolora.data.layouts.folders import (
    CAPTION_SUFFIXES,
    ImageEntry,
    Listing,
    class_folder,
    display_path,
    list_images,
    merge,
)
from autolora.data.layouts.metadata_files import METADATA_SUFFIXES, list_metadata
from autolora.errors import ConfigError
from autolora.files import expand_user, on_disk

_READ_KEYS: dict[str, tuple[type, str]] = {  # keys that are read, with their type
    "image_dir": (str, "text"),
    "metadata_file": (str, "text"),
    "conditioning_data_dir": (str, "text"),
    "class_tokens": (str, "text"),
    "caption_extension": (str, "text"),
    "caption_prefix": (str, "text"),
    "caption_suffix": (str, "text"),
    "num_repeats": (int, "a whole number"),
    "is_reg": (bool, "true or false"),
    "enable_wildcard": (bool, "true or false"),
    "keep_tokens_separator": (str, "text"),
    "secondary_separator": (str, "text"),
    "caption_separator": (str, "text"),
}
_AUTOLORA_KEYS = {  # keys that are not read, with the autolora setting to use instead
    "keep_tokens": "set train.keep_tokens={}",
    "shuffle_caption": "set train.shuffle_caption={}",
    "caption_dropout_rate": "set train.caption_dropout_rate={}",
    "caption_tag_dropout_rate": "set train.caption_tag_dropout_rate={}",
    "flip_aug": "set train.flip_aug={}",
    "batch_size": "set train.batch_size={}",
    "resolution": "set model.resolution to a resolution that the base model was trained at",
    "enable_bucket": "set dataset.buckets.count, 1 for squares only",
    "bucket_no_upscale": "set dataset.bucket_upscale, false to leave small images out",
    "bucket_reso_steps": "set dataset.buckets.bucket_reso_steps={}",
    "min_bucket_reso": "set dataset.buckets.min_bucket_reso={}",
    "max_bucket_reso": "set dataset.buckets.max_bucket_reso={}",
    "validation_split": "set dataset.validation_split={}",
    "validation_seed": "set dataset.seed={}",
    "alpha_mask": "save the masks beside the images, as NAME.mask.png",
}
_IGNORED_KEYS = (
    *("cache_info", "caption_dropout_every_n_epochs", "color_aug", "custom_attributes", "debug_dataset"),
    *("face_crop_aug_range", "max_token_length", "network_multiplier"),
    *("prior_loss_weight", "random_crop", "resize_interpolation", "skip_image_resolution"),
    *("system_prompt", "token_warmup_min", "token_warmup_step"),
)
_SEPARATORS = ("keep_tokens_separator", "secondary_separator", "caption_separator")
_WILDCARD = re.compile(r"\{[^{}]*\|[^{}]*\}")


def list_toml(file: Path) -> Listing:
    """List the images of all subsets of a dataset file.

    Relative folders are looked up in the file's folder first, then in the working directory. An image in several
    subsets belongs to the first of them. Without `caption_extension`, both `.txt` and `.caption` files are read.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        return Listing(problems=("not UTF-8 text: save it as UTF-8",))
    except RecursionError:
        return Listing(problems=("TOML that is nested too deeply: correct it",))
    except ValueError as error:
        return Listing(problems=(f"broken TOML: {error}: correct it (Windows paths: use / or 'single quotes')",))
    notes = [_unknown_key(key, ("general", "datasets")) for key in document if key not in ("general", "datasets")]
    general, datasets = document.get("general", {}), document.get("datasets", [])
    if not isinstance(general, dict):
        return Listing(problems=("general is not a table: write its keys below [general]",))
    if not _is_tables(datasets):
        return Listing(problems=("datasets is not a list of tables: write [[datasets]], with two brackets",))
    listings = []
    for number, dataset in enumerate(datasets, 1):
        subsets = dataset.pop("subsets", [])
        if not _is_tables(subsets):
            problem = "subsets is not a list of tables: write [[datasets.subsets]], with two brackets"
            return Listing(problems=(problem,))
        for count, subset in enumerate(subsets, 1):
            where = f"subset {count}" if len(datasets) == 1 else f"dataset {number} subset {count}"
            listings.append(_list_subset({**general, **dataset, **subset}, where, file.parent))
    if not listings:
        return Listing(problems=("no images: add [[datasets]] and below it [[datasets.subsets]] with image_dir",))
    return _without_copies(merge([Listing(notes=tuple(notes)), *listings]), file.parent)


def _list_subset(keys: Mapping[str, Any], where: str, base: Path) -> Listing:
    """The images of one subset.

    Args:
        keys: the subset's keys, with those of its dataset and of `[general]`.
        where: the subset's name in messages.
        base: the folder of the dataset file.
    """
    notes = [note for key, value in keys.items() if (note := _note(key, value))]
    problems = _wrong_values(keys)
    folders: dict[str, Path] = {}
    for key in ("image_dir", "conditioning_data_dir", "metadata_file"):
        if isinstance(keys.get(key), str):
            folders[key] = _resolve(base, keys[key])
            if not (os.path.isfile if key == "metadata_file" else os.path.isdir)(folders[key]):
                places = f"neither in {base} nor in the working directory"
                problems.append(f"{key} `{keys[key]}` does not exist, {places}: correct it")
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
        listing = list_images(
            folder,
            base,
            concept=tokens,
            repeats=repeats,
            fallback=tokens or (class_folder(folder.name) or (1, ""))[1],
            captions_optional=bool(keys.get("is_reg")),
            suffixes=("." + extension.lstrip("."),) if extension else CAPTION_SUFFIXES,
            masks=masks,
        )
        if not listing.entries and not listing.problems:
            problem = f"{where}: no images in {display_path(folder, base)}: subfolders are not searched"
            listing = Listing(problems=(problem,))
    entries, separated = _separate_tags(listing.entries, keys)
    listing = replace(listing, entries=entries)
    notes += [f"{where}: {separated}"] if separated else []
    prefix, suffix = (str(keys.get(key, "")).strip() for key in ("caption_prefix", "caption_suffix"))
    entries = tuple(replace(e, caption=" ".join(filter(None, (prefix, e.caption, suffix)))) for e in listing.entries)
    listing = replace(listing, entries=entries, notes=(*notes, *listing.notes))
    return replace(listing, entries=(), regularization=entries) if keys.get("is_reg") else listing


def _separate_tags(entries: Sequence[ImageEntry], keys: Mapping[str, Any]) -> tuple[tuple[ImageEntry, ...], str]:
    """The entries with commas for every separator that the file names, and a note on tags that were to be kept.

    A caption with a wildcard such as `{red|blue} dress`, which sd-scripts replaces anew each time, is a problem.
    """
    separators, keep = [keys[key] for key in _SEPARATORS if keys.get(key)], str(keys.get("keep_tokens_separator", ""))
    separated, kept = [], set()

    def tags(text: str) -> tuple[str, ...]:
        for separator in separators:
            text = text.replace(separator, ",")
        return split_tags(text)

    for entry in entries:
        caption, problem = join_tags(tags(entry.caption)) if separators else entry.caption, entry.problem
        wildcard = _WILDCARD.search(caption) if keys.get("enable_wildcard") else None
        if wildcard:
            problem = problem or f"its caption holds the wildcard `{wildcard[0]}`: write one of its words instead"
        elif not caption and not problem:
            problem = "its caption holds separators only: write its tags into it"
        if keep and keep in entry.caption:
            kept.add(len(tags(entry.caption.partition(keep)[0])))
        separated.append(replace(entry, caption=caption, problem=problem))
    note = (
        f"the tags before `{keep}` may be shuffled and dropped unless you set train.keep_tokens={min(kept, default=0)}"
    )
    return tuple(separated), note if kept else ""


def _wrong_values(keys: Mapping[str, Any]) -> list[str]:
    """The problems with the values of the keys that are read."""
    problems = [
        f"{key}={_as_json(keys[key])}: must be {meaning}"
        for key, (kind, meaning) in _READ_KEYS.items()
        if key in keys and type(keys[key]) is not kind
    ]
    repeats, extension, metadata = (keys.get(key) for key in ("num_repeats", "caption_extension", "metadata_file"))
    if type(repeats) is int and repeats < 1:
        problems.append(f"num_repeats={repeats}: must be at least 1; remove the subset to leave it out")
    if isinstance(extension, str) and not (extension.strip(". ") and Path(extension).name == extension):
        problems.append(f"caption_extension={_as_json(extension)}: must be a file extension, such as .txt")
    if isinstance(metadata, str) and Path(metadata).suffix.lower() not in METADATA_SUFFIXES:
        problems.append(f"metadata_file={_as_json(metadata)}: must be a {', '.join(METADATA_SUFFIXES)} file")
    return problems


def _note(key: str, value: Any) -> str:
    """A note for the user on a key that is not read; empty for keys that are read or switched off."""
    if key in _READ_KEYS:
        return ""
    if key in _AUTOLORA_KEYS:
        return f"{key}={_as_json(value)} in the file is not read: {_AUTOLORA_KEYS[key].format(_as_json(value))}"
    if key in _IGNORED_KEYS:
        return f"{key}={_as_json(value)} in the file is not used" if value else ""
    return _unknown_key(key, (*_READ_KEYS, *_AUTOLORA_KEYS, *_IGNORED_KEYS))


def _unknown_key(key: str, names: tuple[str, ...]) -> str:
    similar = difflib.get_close_matches(key, names, 1)
    return f"{key} in the file is unknown" + (f": did you mean {similar[0]}?" if similar else "")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _resolve(base: Path, written: str) -> Path:
    """A path of the file, relative to the file's folder or else to the working directory."""
    path = Path(written)
    with suppress(ConfigError):  # of no user: told as any other path that does not exist
        path = expand_user(written)
    beside = on_disk(base / path)
    return beside if os.path.exists(beside) or not os.path.exists(path) else path


def _without_copies(listing: Listing, base: Path) -> Listing:
    """Each image once: sd-scripts lists a folder once per resolution, which would show its images several times."""
    notes = list(dict.fromkeys(listing.notes))

    def unique(entries: tuple[ImageEntry, ...]) -> tuple[ImageEntry, ...]:
        first: dict[Path, ImageEntry] = {}
        for entry in entries:
            first.setdefault(entry.path, entry)
        folders = dict.fromkeys(e.path.parent for e in entries if first[e.path] is not e)
        notes.extend(f"{display_path(f, base)}: in several subsets, only the first is used" for f in folders)
        return tuple(first.values())

    entries, regularization = unique(listing.entries), unique(listing.regularization)
    return replace(listing, entries=entries, regularization=regularization, notes=tuple(notes))
