"""Frozen encoders that turn pictures and prompts into unit vectors of one space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autolora.errors import ConfigError
from autolora.scoring.intervals import Array


class Encoder(Protocol):
    """What the terms need of an encoder; rows are unit vectors."""

    name: str

    def images(self, pictures: NDArray[np.uint8]) -> Array:
        """(N, H, W, 3) uint8 -> (N, D)."""
        ...

    def texts(self, prompts: Sequence[str]) -> Array:
        """N prompts -> (N, D)."""
        ...


class OpenClip:
    """Any open_clip model with both towers, on the CPU or the GPU at hand."""

    def __init__(self, name: str) -> None:
        import open_clip

        self.model, _, _ = open_clip.create_model_and_transforms(name)
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.name = name
        visual = self.model.visual
        side = visual.image_size
        self.side: tuple[int, int] = (side, side) if isinstance(side, int) else (side[0], side[1])
        self.mean = torch.tensor(visual.image_mean or (0.481, 0.458, 0.408)).view(1, 3, 1, 1)
        self.std = torch.tensor(visual.image_std or (0.269, 0.261, 0.276)).view(1, 3, 1, 1)

    @torch.inference_mode()
    def images(self, pictures: NDArray[np.uint8]) -> Array:
        """(N, H, W, 3) uint8 -> (N, D) unit vectors."""
        rows = []
        for start in range(0, len(pictures), 64):
            pixels = (
                torch.from_numpy(np.ascontiguousarray(pictures[start : start + 64])).permute(0, 3, 1, 2).float() / 255
            )
            if tuple(pixels.shape[-2:]) != self.side:
                pixels = F.interpolate(pixels, self.side, mode="bicubic", antialias=True).clamp(0, 1)
            rows.append(self.model.encode_image((pixels - self.mean) / self.std, normalize=True))
        return _array(torch.cat(rows))

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Array:
        """N prompts -> (N, D) unit vectors."""
        return _array(self.model.encode_text(self.tokenizer(list(prompts)), normalize=True))


def _array(rows: Tensor) -> Array:
    return np.asarray(rows.double().cpu().numpy())


@lru_cache(maxsize=2)
def load_encoder(name: str) -> OpenClip:
    """Load an encoder by its name in `scoring.encoder`.

    Raises:
        ConfigError: the folder is missing or is no open_clip folder.
    """
    from autolora.paperdoll.weights import CLIP

    folder = CLIP if name == "paperdoll" else Path(name.removeprefix("local-dir:")).expanduser()
    if name != "paperdoll" and not name.startswith("local-dir:"):
        raise ConfigError(f"scoring.encoder={name}: expected `paperdoll` or `local-dir:FOLDER` of an open_clip model")
    if not (folder / "open_clip_config.json").is_file():
        raise ConfigError(
            f"scoring.encoder={name}: no open_clip_config.json in {folder}; give an open_clip model's folder"
        )
    return OpenClip(f"local-dir:{folder}")
