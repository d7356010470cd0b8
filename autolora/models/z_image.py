"""Z-Image (Tongyi Lab 2025): a language model's tokens and a picture's in one stream, at six billion weights."""

from __future__ import annotations

import torch
from torch import Tensor

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
        return QWEN_TOKENS - len(self.tokenizers["text_encoder"](self._asked("")).input_ids)

    def _asked(self, prompt: str) -> str:
        """A prompt as a user's message, as Z-Image's pipeline puts it."""
        template = self.tokenizers["text_encoder"].apply_chat_template
        messages = [{"role": "user", "content": prompt}]
        found: str = template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return found

    def _read(self, prompts: list[str]) -> Context:
        """The language model's states before its last layer, of as many tokens as the longest prompt has."""
        asked = [self._asked(prompt) for prompt in prompts]
        tokenizer, told = self.tokenizers["text_encoder"], {"truncation": True, "max_length": QWEN_TOKENS}
        read = tokenizer(asked, padding="longest", padding_side="right", return_tensors="pt", **told)
        # No mask: each token reads only those before it, and what fills a prompt up comes after it.
        output = self.text_encoders["text_encoder"](read.input_ids.to(self.device), output_hidden_states=True)
        return Context(output.hidden_states[-2], mask=read.attention_mask.bool())

    def _flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        if context.mask is None:
            raise ValueError("Z-Image needs the mask of its prompts' context")
        lengths = context.mask.sum(1).tolist()
        found = self.transformer(
            list(noisy[:, :, None]),
            1 - self._level(timesteps),
            [tokens[:length] for tokens, length in zip(context.tokens, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(found)[:, :, 0]
