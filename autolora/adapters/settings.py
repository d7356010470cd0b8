"""The settings that every kind of adapter has. This module imports no torch, because the config is read first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autolora.adapters.targets import LINEAR, TARGETS, in_text_encoder
from autolora.errors import ConfigError

if TYPE_CHECKING:
    from torch import Generator

    from autolora.adapters.base import AdaptedLayer


@dataclass(frozen=True)
class SlotCapacity:
    """How many adapters a set holds at once, and the largest rank of each where it holds more than one."""

    slots: int = 1
    max_dim: int = 1


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The settings that every kind of adapter has."""

    packable: ClassVar[bool] = True  # whether several adapters of this kind can train at once on one base model
    kohya_module: ClassVar[str] = "networks.lora"  # the module of kohya's tools that loads its files
    kohya_trainer: ClassVar[str | None] = None  # the module of sd-scripts that trains it; None: `kohya_module`
    kohya_note: ClassVar[str] = ""  # how training by sd-scripts differs
    targets: tuple[str, ...] = LINEAR
    text_encoder: bool = False

    def __post_init__(self) -> None:
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ConfigError(f"adapter.targets must be some of {', '.join(TARGETS)}, got {list(self.targets)}")

    @property
    def max_rank(self) -> int:
        """The largest rank of any layer's change."""
        return 1

    @property
    def n_ranks(self) -> int:
        """How many ranks a training step can be limited to: the multiples of `max_rank / n_ranks`; 1 means no limit."""
        return 1

    def notes(self) -> tuple[str, ...]:
        """Return warnings about these settings that a user should read before training."""
        return ()

    def adapts(self, path: str) -> bool:
        """Return whether the layer of this path is changed: it is a target and lies inside a block of the model."""
        suffixes = tuple(suffix for target in self.targets for suffix in TARGETS[target])
        in_block = path.count(".") > 1
        return in_block and path.endswith(suffixes) and (self.text_encoder or not in_text_encoder(path))

    def kohya_args(self, training: bool = False) -> dict[str, str]:
        """Return the arguments (`network_args`) of the module that loads a file, or of the one that trains it."""
        return {}

    def alpha_in_file(self, dim: int, alpha: float) -> float:
        """Return the alpha of a file, which programs divide by dim."""
        return alpha

    def start(self, layer: AdaptedLayer, path: str, slot: int, capacity: SlotCapacity, generator: Generator) -> None:
        """Give a layer's slot a new change of weight that is zero."""
        raise NotImplementedError
