"""Z-Image (Tongyi Lab 2025): a language model's tokens and a picture's in one stream, at six billion weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from autolora.models.base import Context
from autolora.models.flow import FlowModel

QWEN_TOKENS = 512


class ZImage(FlowModel):
    """A frozen model of Z-Image layout; see `BaseModel` for shapes.

    It counts time from noise to picture, and predicts picture - noise. Its LoRA files hold no text encoder.
    """

    architecture = "z_image"

    def _prompt_tokens(self) -> int:
        """Those of the language model that its chat template leaves."""
        tokenizer = self.tokenizers["text_encoder"]
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return QWEN_TOKENS - len(tokenizer(asked).input_ids)

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """N prompts -> the language model's states before its last layer, of as many tokens as each has."""
        with self._precision():
            found, _ = self.pipeline.encode_prompt(
                list(prompts), self.device, do_classifier_free_guidance=False, max_sequence_length=QWEN_TOKENS
            )
        lengths = torch.tensor([len(one) for one in found], device=self.device)
        tokens = pad_sequence(found, batch_first=True)
        return Context(tokens, mask=torch.arange(tokens.shape[1], device=self.device) < lengths[:, None])

    def _flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        if context.mask is None:
            raise ValueError("Z-Image needs the mask of its prompts' context")
        found = self.transformer(
            list(noisy[:, :, None]),
            1 - self._level(timesteps),
            [tokens[mask] for tokens, mask in zip(context.tokens, context.mask, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(found)[:, :, 0]
