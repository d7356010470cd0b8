"""How an exported LoRA is written. This module imports no torch, because every command reads its settings first."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.errors import ConfigError

DTYPE_NAMES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class ExportSettings:
    """The number format of an exported file, and whether a second copy is written in diffusers' own format.

    Raises:
        ConfigError: the dtype is unknown.
    """

    dtype: str = "float16"  # one of DTYPE_NAMES
    diffusers: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise ConfigError(f"export.dtype must be one of {', '.join(DTYPE_NAMES)}, got {self.dtype}")
