"""SDXL and its derivatives: two text encoders, a pooled prompt embedding, and the size and crop of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autolora.models.base import Context
from autolora.models.stable_diffusion import StableDiffusion, check_penultimate


class StableDiffusionXL(StableDiffusion):
    """A frozen model with the layout of SDXL (Podell et al. 2023); see `BaseModel` for shapes."""

    architecture = "sdxl"

    def _context(self, outputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Return both encoders' states before their last layer, concatenated, and the second's pooled projection."""
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return tokens, outputs[-1].text_embeds

    def _check_clip_skip(self) -> None:
        check_penultimate(self.clip_skip, "SDXL")
        self.clip_skip = None  # diffusers uses the layer before the last by default

    def _added_conditions(self, noisy: Tensor, context: Context) -> dict[str, Tensor] | None:
        if context.pooled is None:
            raise ValueError("SDXL needs the pooled context of its prompts")
        sizes = context.sizes
        if sizes is None:
            height, width = (side * self.pixels_per_latent for side in noisy.shape[2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device).expand(len(noisy), 6)
        return {"text_embeds": context.pooled, "time_ids": sizes}
