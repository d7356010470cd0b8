"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): a transformer with two CLIP text encoders and T5."""

from __future__ import annotations

from torch import Tensor

from autolora.models.base import Context
from autolora.models.flow import FlowModel

T5_TOKENS = 256


class StableDiffusion3(FlowModel):
    """A frozen model with the layout of SD3; see `BaseModel` for shapes."""

    architecture = "sd3"
    adapted_encoders = ("text_encoder", "text_encoder_2")

    def _prompt_tokens(self) -> int:
        """T5's limit without its end token; CLIP reads only the first 75 tokens."""
        return T5_TOKENS - 1

    def _context(self, prompts: list[str]) -> Context:
        """Return CLIP's and T5's tokens concatenated, and CLIP's two pooled projections."""
        options = {"do_classifier_free_guidance": False, "max_sequence_length": T5_TOKENS}
        tokens, _, pooled, _ = self.pipeline.encode_prompt(prompts, None, None, device=self.device, **options)
        return Context(tokens, pooled)

    def _predict_flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
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
