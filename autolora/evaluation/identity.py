"""What must stay the same while a run or a study is continued, as it decides scores; whose results a folder holds.

Paths are left out: another machine may have the same images elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from autolora.data.concepts import Dataset
from autolora.data.sources import Picture
from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.settings import Settings
from autolora.train.run import Run

FILE = "run.json"
_FOUND_IN_IMAGES = ("path", "reg_data_dir", "trigger", "class_word", "concepts")  # the dataset as it was read has these
_NO_RESULT = {  # settings that change speed, memory or words only
    "dataset": _FOUND_IN_IMAGES,
    "model": ("path", "name", "gradient_checkpointing", "offload", "render.batch_size"),
    "scoring": ("tagger",),
}
_PATHS = ("model.vae", "scoring.encoder", "scoring.second_encoder")  # of them only the last part is compared


@dataclass(frozen=True)
class Owner:
    """What a folder's results belong to: a study or a recipe, by its name and by what must not change."""

    kind: str
    name: str
    identity: Mapping[str, str]


def identity_of(settings: Settings, dataset: Dataset | None = None) -> dict[str, str]:
    """Every setting that decides a score, and the content of the images if they are given, as text by name."""
    identity = {}
    for part, left_out in _NO_RESULT.items():
        for key, value in _flat(dataclasses.asdict(getattr(settings, part)), left_out):
            name = f"{part}.{key}"
            identity[name] = _text(Path(value).name if name in _PATHS and value else value)
    return identity | (_images(dataset) if dataset else {})


def run_identity(run: Run, left_out: Collection[str] = (), prefix: str = "") -> dict[str, str]:
    """Every setting of a run, without some keys, as text by name."""
    kinds = {part: type(getattr(run, part)).__name__ for part in ("adapter", "optimizer", "schedule")}
    settings = [(key, value) for key, value in run.settings().items() if key != "name"]
    return {f"{prefix}{key}": _text(value) for key, value in (*kinds.items(), *_flat(dict(settings), left_out))}


def recipe_owner(run: Run, identity: Mapping[str, str]) -> Owner:
    """One recipe as the owner of its folder, with the settings and images that it is trained and scored on."""
    return Owner("recipe", run.name, {**identity, **run_identity(run)})


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs of what both know, one line each."""
    return [f"{key}: was {old[key]}, now {new[key]}" for key in old if key in new and old[key] != new[key]]


def check_folder(folder: Path, owner: Owner) -> bool:
    """Whether a folder is known to hold this owner's results.

    Raises:
        StudyError: it holds the results of another, or of the same with other settings or images.
    """
    path = folder / FILE
    try:
        held = TypeAdapter(Owner).validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValidationError) as error:
        raise StudyError(f"{path} cannot be read; choose another out=FOLDER, or delete this file") from error
    if (held.kind, held.name) != (owner.kind, owner.name):
        raise StudyError(
            f"{folder} holds the results of {held.kind} {held.name}, which {owner.kind} {owner.name} would replace; "
            "choose another out=FOLDER"
        )
    if changed := changes(held.identity, owner.identity):
        raise StudyError(
            f"{owner.kind} {owner.name} in {folder} was started differently ({'; '.join(changed)}); undo the change, "
            "or start another with out=OTHER_FOLDER"
        )
    return True


def claim_folder(folder: Path, owner: Owner) -> None:
    """Note in a folder whose results it holds.

    Raises:
        StudyError: as `check_folder`.
        StorageError: the folder cannot be written.
    """
    if not check_folder(folder, owner):
        write_atomic(folder / FILE, json.dumps(dataclasses.asdict(owner), indent=1, ensure_ascii=False) + "\n")


def _images(dataset: Dataset) -> dict[str, str]:
    """The content of the images, their captions, and what was found in them."""
    trained = [(concept.trigger, picture) for concept in dataset.concepts for picture in concept.pictures]
    validation, class_images = dataset.validation, dataset.regularization
    return {
        "training images": _digest(_content(picture, trigger) for trigger, picture in trained),
        "validation images": _digest(_content(picture) for picture in validation),
        "captions": _digest(f"{p.sha256} {p.caption}" for p in (*dataset.pictures, *validation)),
        "regularization images": _digest(f"{_content(picture)} {picture.caption}" for picture in class_images),
        "triggers": _text(sorted({dataset.trigger, *(concept.trigger for concept in dataset.concepts)})),
        "class word": _text(dataset.class_word),
    }


def _content(picture: Picture, trigger: str = "") -> str:
    mask = hashlib.sha256(picture.mask.read_bytes()).hexdigest() if picture.mask else ""
    return f"{picture.sha256} {picture.repeats} {mask} {trigger}"


def _digest(lines: Iterable[str]) -> str:
    """The number of lines, and a hash that does not depend on their order."""
    ordered = sorted(lines)
    digest = hashlib.sha256("\n".join(ordered).encode()).hexdigest()
    return f"{len(ordered)} ({digest[:8]})"


def _flat(values: Mapping[str, Any], left_out: Collection[str], above: str = "") -> list[tuple[str, Any]]:
    """The values of nested dicts by their dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{above}{key}"
        if name in left_out:
            continue
        found += _flat(value, left_out, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
