"""What one command was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autolora.data.concepts import Dataset, load_dataset
from autolora.errors import ConfigError
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

    @property
    def lora(self) -> str:
        """The LoRA file, folder or pattern that the command was given.

        Raises:
            ConfigError: none was given.
        """
        if self.settings.lora is None:
            raise ConfigError("no LoRA given: name the file after the command, or write lora=FILE")
        return self.settings.lora
