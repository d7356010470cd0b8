"""SDXL and its derivatives: two text encoders, a prompt as a whole, and how a picture was cropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autolora.models.base import Context
from autolora.models.stable_diffusion import StableDiffusion, check_penultimate


class StableDiffusionXL(StableDiffusion):
    """A frozen model of SDXL layout (Podell et al. 2023); see `BaseModel` for shapes."""

    architecture = "sdxl"

    def _read(self, outputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Both encoders' states before their last layer, joined; the second's projection of the whole."""
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return tokens, outputs[-1].text_embeds

    def _check_clip_skip(self) -> None:
        check_penultimate(self.clip_skip, "SDXL")
        self.clip_skip = None  # as diffusers calls the layer that it reads of itself

    def _told(self, noisy: Tensor, context: Context) -> dict[str, Tensor] | None:
        if context.pooled is None:
            raise ValueError("SDXL needs the pooled context of its prompts")
        sizes = context.sizes
        if sizes is None:
            height, width = (side * self.cell for side in noisy.shape[2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device).expand(len(noisy), 6)
        return {"text_embeds": context.pooled, "time_ids": sizes}
