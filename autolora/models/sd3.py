"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): two CLIP text encoders and T5 beside one transformer."""

from __future__ import annotations

from torch import Tensor

from autolora.models.base import Context
from autolora.models.flow import FlowModel

T5_TOKENS = 256


class StableDiffusion3(FlowModel):
    """A frozen model of SD3 layout; see `BaseModel` for shapes."""

    architecture = "sd3"
    adapted_encoders = ("text_encoder", "text_encoder_2")

    def _prompt_tokens(self) -> int:
        """T5's but the one that ends; CLIP reads the first 75 of its own."""
        return T5_TOKENS - 1

    def _read(self, prompts: list[str]) -> Context:
        """CLIP's and T5's tokens one after the other, and CLIP's two projections of the whole."""
        told = {"do_classifier_free_guidance": False, "max_sequence_length": T5_TOKENS}
        tokens, _, pooled, _ = self.pipeline.encode_prompt(prompts, None, None, device=self.device, **told)
        return Context(tokens, pooled)

    def _flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        output: Tensor = self.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=context.tokens,
            pooled_projections=context.pooled,
            return_dict=False,
        )[0]
        return output

    def _levels(self, steps: int) -> None:
        return None
