"""What one command was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autolora.data.concepts import Dataset, load_dataset
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

    def check_model(self) -> None:
        """Refuse a missing base model, or one of another family; a repository of the hub is not looked up.

        Raises:
            ModelError: says what the path is, what is expected and what to do.
        """
        from autolora.models.sources import find_source, is_on_hub

        model = self.settings.model
        if model.family in ENCODERS and not is_on_hub(model.path):
            find_source(model.path, model.family)

    def check_places(self) -> None:
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
