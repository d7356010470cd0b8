"""Where a base model lies: a folder, a single file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from autolora.errors import ModelError
from autolora.models.folders import article, check_folder, expected
from autolora.models.single_files import recognise_file
from autolora.paperdoll.weights import BASE

_HUB: Any = huggingface_hub
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.jinja", "*/*.safetensors")


def find_source(path: str, family: str) -> Path:
    """The folder or file of a model of this family.

    Raises:
        ModelError: there is none, or it is of another kind, with what was found.
    """
    if path == "paperdoll":
        if not BASE.is_dir():
            raise ModelError(f"the packaged paper-doll model is missing ({BASE}): install autolora again")
        return BASE
    source = Path(path).expanduser()
    if not source.exists() and _HUB_ID.fullmatch(path) and not source.parent.is_dir():
        source = _from_hub(path, family)
    if source.is_file():
        found = recognise_file(source).family
        if found != family:
            raise ModelError(
                f"model.path={source} is {article(found)} checkpoint: set model.family={found}; {expected(family)}"
            )
    else:
        check_folder(source, family)
    return source


def _from_hub(repository: str, family: str) -> Path:
    """A repository's folder: from the hub where it can be reached, else from its cache.

    Raises:
        ModelError: it is in neither.
    """
    try:
        return Path(_HUB.snapshot_download(repository, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        try:
            return Path(_HUB.snapshot_download(repository, allow_patterns=_WANTED, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"model.path={repository} is neither a folder or file here nor in the cache of the Hugging Face hub "
                f"({huggingface_hub.constants.HF_HUB_CACHE}), and the hub gives no such model ({reason}): give a path, "
                f"or run once with HF_HUB_OFFLINE=0 in the environment to have it downloaded; {expected(family)}"
            ) from error
