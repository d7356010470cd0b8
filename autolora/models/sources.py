"""Finds a base model: a folder, a single file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from autolora.errors import ModelError
from autolora.files import expand_user
from autolora.models.folders import check_folder, expected, with_article
from autolora.models.single_files import recognize_file
from autolora.paperdoll.weights import BASE

_HUB: Any = huggingface_hub
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DOWNLOADED_FILES = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.jinja", "*/*.safetensors")


def find_source(path: str, family: str) -> Path:
    """Return the folder or file of a model of this family.

    Raises:
        ModelError: there is none, or it is another kind of model; the message says which.
    """
    if path == "paperdoll":
        if not BASE.is_dir():
            raise ModelError(f"the packaged paper-doll model is missing ({BASE}): install autolora again")
        return BASE
    source = _from_hub(path, family) if is_on_hub(path) else expand_user(path)
    if source.is_file():
        recognized = recognize_file(source).family
        if recognized != family:
            raise ModelError(
                f"model.path={source} is {with_article(recognized)} checkpoint: set model.family={recognized}; "
                f"{expected(family)}"
            )
    else:
        check_folder(source, family)
    return source


def is_on_hub(path: str) -> bool:
    """Return whether a path names a repository of the hub, because nothing of that name is on this machine."""
    source = expand_user(path)
    return not source.exists() and _HUB_ID.fullmatch(path) is not None and not source.parent.is_dir()


def _from_hub(repository: str, family: str) -> Path:
    """Return a repository's local folder: from the hub if it can be reached, else from its cache.

    Raises:
        ModelError: the repository is in neither.
    """
    try:
        return Path(_HUB.snapshot_download(repository, allow_patterns=_DOWNLOADED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        try:
            return Path(_HUB.snapshot_download(repository, allow_patterns=_DOWNLOADED_FILES, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"model.path={repository} is not a folder, not a file and not in the cache of the Hugging Face hub "
                f"({huggingface_hub.constants.HF_HUB_CACHE}), and it cannot be loaded from the hub ({reason}): "
                f"give a path, or run once with HF_HUB_OFFLINE=0 in the environment to download it; {expected(family)}"
            ) from error
