"""Everything that a finished study found, as flat names and values, so that two studies can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from safetensors import safe_open

from autolora.errors import StudyError
from autolora.renamed_keys import RENAMED_KEYS

# Names that were changed since the commit before the refactoring: config keys of sampled parameters are translated by
# `autolora.renamed_keys`, these are the fields and terms of result files.
RENAMED_FIELDS = {
    "capture": "bleed_rate",
    "leaks": "bleed_by_prompt",
}
TEXTS = {"verdict", "remedy", "reason", "unmeasurable", "choice", "read_by", "command", "space"}
PATHS = {"export", "diffusers", "path"}
TIMES = {"seconds", "training_seconds", "scoring_seconds", "worked"}
RANDOM = {"uid", "owner", "token"}
METADATA = ("ss_", "sshs_", "modelspec.")
METADATA_LEFT_OUT = ("ss_training_", "modelspec.date", "modelspec.description")  # times, and a sentence
Outcome = dict[str, Any]


def study_outcome(folder: Path) -> Outcome:
    """Return every value of a finished study by a name that is the same in every checkout.

    Names start with `best/`, `trial N/`, `search/`, `finals/` or `result/`. A tensor stands as its type, shape and
    SHA-256. The files of `best/` are the exported LoRA and, for some adapter kinds, a plain LoRA beside it.

    Raises:
        StudyError: the study has no exported file.
    """
    result = json.loads((folder / "result.json").read_text("utf-8"))
    (name, *others) = sorted(optuna.get_all_study_names(_storage(folder)), key=len)
    search = optuna.load_study(study_name=name, storage=_storage(folder))
    numbers = {trial.user_attrs["uid"]: trial.number for trial in search.trials}
    outcome: Outcome = dict(_flat("result", result))
    exported = sorted((folder / "best").glob("*.safetensors"))
    if not exported:
        raise StudyError(f"{folder} has no exported file")
    for path in exported:
        outcome |= dict(_tensors(f"best/tensor/{path.stem}", path))
        outcome |= dict(_metadata(f"best/metadata/{path.stem}", path))
    for path in sorted((folder / "trials").rglob("*")):
        place = _numbered(str(path.relative_to(folder / "trials")), numbers)
        if path.suffix == ".safetensors":
            outcome |= dict(_tensors(place, path))
        elif path.name == "curve.json":
            outcome |= dict(_flat(place, json.loads(path.read_text("utf-8"))))
    for study_name in (name, *others):
        study = optuna.load_study(study_name=study_name, storage=_storage(folder))
        prefix = study_name.removeprefix(name).lstrip("/") or "search"
        for trial in study.trials:
            outcome |= dict(_trial(f"{prefix}/trial {trial.number}", trial, numbers))
        for value in study.user_attrs.values():
            if isinstance(value, dict) and "objective" in value:  # the winner with every term
                outcome |= dict(_flat(f"{prefix}/full evaluation", value))
    return outcome


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ or that only one of two outcomes has, with both values."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, 'missing')} -> {after.get(name, 'missing')}"
        for name in names
        if name not in before or name not in after or repr(before[name]) != repr(after[name])
    ]


def _storage(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def _numbered(text: str, numbers: Mapping[str, int]) -> str:
    """A text with trials by their numbers instead of by their random names."""
    for uid, number in numbers.items():
        text = text.replace(uid, f"trial {number}")
    return text


def _trial(place: str, trial: optuna.trial.FrozenTrial, numbers: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    yield f"{place}/state", trial.state.name
    yield f"{place}/values", repr(trial.values)
    for name, value in sorted(trial.params.items()):
        recipe, _, key = name.partition("/")
        yield f"{place}/parameter/{recipe}/{RENAMED_KEYS.get(key, key)}", repr(value)
    for step, objective in trial.intermediate_values.items():
        yield f"{place}/intermediate/{step}", repr(objective)
    for name, violation in trial.system_attrs.items():
        if name.startswith("constraints:"):
            yield f"{place}/constraint/{_field(name.removeprefix('constraints:'))}", repr(violation)
    attributes = {k: v for k, v in trial.user_attrs.items() if not isinstance(v, str)}
    if scored := trial.user_attrs.get("key"):  # the checkpoint that the finals scored
        yield f"{place}/key", _numbered(scored, numbers)
    yield from _flat(place, attributes)


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists; texts, paths, times and random names are left out, numbers stand as `repr`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in TEXTS | PATHS | TIMES | RANDOM:
                yield from _flat(f"{place}/{_field(name)}", inner)
    elif isinstance(value, list):
        yield f"{place}/length", len(value)
        for i, inner in enumerate(value):
            yield from _flat(f"{place}/{i}", inner)
    else:
        yield place, repr(value)


def _field(name: str) -> str:
    return RENAMED_FIELDS.get(name, name)


def _tensors(place: str, path: Path) -> Iterator[tuple[str, str]]:
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = hashlib.sha256(data).hexdigest()[:16]
            yield f"{place}/{name}", f"{tensor.dtype} {tuple(tensor.shape)} {digest}"


def _metadata(place: str, path: Path) -> Iterator[tuple[str, str]]:
    with safe_open(path, "pt") as file:
        for name, value in sorted(file.metadata().items()):
            if name.startswith(METADATA) and not name.startswith(METADATA_LEFT_OUT):
                short = value if len(value) < 80 else hashlib.sha256(value.encode()).hexdigest()[:16]
                yield f"{place}/{name}", re.sub(r"\s+", " ", short)
