"""Flux.1 (Black Forest Labs 2024): T5's tokens, CLIP's summary of a prompt, and guidance that is told."""

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
    """A frozen model of Flux layout; see `BaseModel` for shapes.

    Its transformer reads squares of 2 x 2 latent cells as tokens. Flux-dev is distilled: it is told the guidance, 1 in
    training, as a LoRA is to change the model and not what guidance makes of it. Schnell is not told any.
    """

    architecture = "flux"
    adapted_encoders = ("text_encoder",)

    def __init__(self, parts: FlowParts, name: str, settings: ModelSettings) -> None:
        super().__init__(parts, name, settings)
        self.guidance_embeds = bool(self.transformer.config.guidance_embeds)
        if self.guidance_embeds and settings.render.negative_prompt:
            raise ConfigError(
                "model.render.negative_prompt: a model that is told its guidance reads none; leave it empty"
            )

    def _prompt_tokens(self) -> int:
        """T5's but the one that ends."""
        return T5_TOKENS - 1

    def _read(self, prompts: list[str]) -> Context:
        """T5's tokens, and CLIP's summary of the whole."""
        tokens, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=T5_TOKENS)
        return Context(tokens, pooled)

    def _flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
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
            img_ids=_places(rows, columns).to(noisy),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(packed.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)


def _places(rows: int, columns: int) -> Tensor:
    """Where each of a picture's tokens stands, (rows * columns, 3): 0, its row, its column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
