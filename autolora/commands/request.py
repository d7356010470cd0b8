"""What one command was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autolora.data.concepts import Dataset, is_in_dataset, load_dataset
from autolora.errors import ConfigError
from autolora.files import check_writable
from autolora.models.folders import ENCODERS
from autolora.settings import Settings


@dataclass(frozen=True)
class Request:
    """The settings of a command, its dataset, and the files or folders that it was given."""

    settings: Settings
    places: tuple[str, ...] = ()

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset, read once.

        Raises:
            DatasetError: every problem of the dataset.
        """
        return load_dataset(self.settings.dataset)

    def check_places(self, *keys: str) -> None:
        """Refuse to write results among the images, where they would be read as images or concepts.

        Args:
            keys: of the places, `out` (also where it is not given) and `cache`.

        Raises:
            ConfigError: a place lies in the dataset's folder.
        """
        for key, place in {"out": self.settings.folder, "cache": self.settings.cache}.items():
            if key in keys and is_in_dataset(self.dataset, place):
                own = f"{key}={place} lies in the dataset's own folder, which is never changed"
                raise ConfigError(f"{own}: choose another {key}=FOLDER")

    def beside(self, file: Path) -> Path:
        """The folder for results about a file: `out`, else the file's own, unless the dataset's images lie there."""
        if self.settings.out or not is_in_dataset(self.dataset, file.parent):
            return self.settings.out or file.parent
        return Path("runs") / f"{file.stem}-{self.dataset.name}"

    def check_model(self) -> None:
        """Refuse a missing base model, or one of another family; a repository of the hub is not looked up.

        Raises:
            ModelError: says what the path is, what is expected and what to do.
        """
        from autolora.models.sources import find_source, is_on_hub

        model = self.settings.model
        if model.family in ENCODERS and not is_on_hub(model.path):
            find_source(model.path, model.family)

    def check_writable(self) -> None:
        """Refuse `out` and `cache` where they cannot be written, before anything loads.

        Raises:
            StorageError: which one and why.
        """
        for folder in (self.settings.folder, self.settings.cache):
            check_writable(folder)

    @property
    def lora(self) -> str:
        """The LoRA file, folder or pattern that the command was given.

        Raises:
            ConfigError: none was given.
        """
        if self.settings.lora is None:
            raise ConfigError("no LoRA given: name the file after the command, or write lora=FILE")
        return self.settings.lora
