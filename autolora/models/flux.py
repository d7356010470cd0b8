"""Flux.1 (Black Forest Labs 2024): T5's tokens, CLIP's pooled embedding, and guidance as an input of the model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autolora.errors import ConfigError
from autolora.models.base import Context
from autolora.models.flow import PATCH, FlowModel
from autolora.models.flow_parts import FlowParts
from autolora.models.settings import ModelSettings

T5_TOKENS = 512


class Flux(FlowModel):
    """A frozen model with the layout of Flux; see `BaseModel` for shapes.

    Its transformer takes squares of 2 x 2 latent cells as tokens. Flux-dev is distilled and takes the guidance scale as
    an input. Training uses 1, so that a LoRA changes the model and not the effect of guidance. Schnell has no such
    input.
    """

    architecture = "flux"
    adapted_encoders = ("text_encoder",)

    def __init__(self, parts: FlowParts, name: str, settings: ModelSettings) -> None:
        super().__init__(parts, name, settings)
        self.guidance_embeds = bool(self.transformer.config.guidance_embeds)
        if self.guidance_embeds and settings.render.negative_prompt:
            raise ConfigError(
                "model.render.negative_prompt: a guidance-distilled model takes no negative prompt; leave it empty"
            )

    def _prompt_tokens(self) -> int:
        """T5's limit without its end token."""
        return T5_TOKENS - 1

    def _context(self, prompts: list[str]) -> Context:
        """Return T5's tokens and CLIP's pooled embedding."""
        tokens, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=T5_TOKENS)
        return Context(tokens, pooled)

    def _predict_flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        rows, columns = noisy.shape[2] // PATCH, noisy.shape[3] // PATCH
        guidance = None
        if self.guidance_embeds:
            guidance = timesteps.new_ones(len(noisy)) if context.guidance is None else context.guidance
        packed = self.transformer(
            hidden_states=F.pixel_unshuffle(noisy, PATCH).flatten(2).transpose(1, 2),
            timestep=self._level(timesteps),
            guidance=guidance,
            pooled_projections=context.pooled,
            encoder_hidden_states=context.tokens,
            txt_ids=noisy.new_zeros(context.tokens.shape[1], 3),
            img_ids=_positions(rows, columns).to(noisy),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(packed.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)


def _positions(rows: int, columns: int) -> Tensor:
    """Return the position of each image token, (rows * columns, 3): 0, row, column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
