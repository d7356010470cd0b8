"""Z-Image (Tongyi Lab 2025): a language model's tokens and image tokens in one stream; six billion weights."""

from __future__ import annotations

import torch
from torch import Tensor

from autolora.models.base import Context
from autolora.models.flow import FlowModel

QWEN_TOKENS = 512


class ZImage(FlowModel):
    """A frozen model with the layout of Z-Image; see `BaseModel` for shapes.

    Its time runs from noise to image, and it predicts image - noise. Its LoRA files contain no text encoder.
    """

    architecture = "z_image"

    def _prompt_tokens(self) -> int:
        """The language model's limit without the tokens of the chat template."""
        return QWEN_TOKENS - len(self.tokenizers["text_encoder"](self._chat_message("")).input_ids)

    def _chat_message(self, prompt: str) -> str:
        """Format a prompt as a user's message, as Z-Image's pipeline does."""
        template = self.tokenizers["text_encoder"].apply_chat_template
        messages = [{"role": "user", "content": prompt}]
        message: str = template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return message

    def _context(self, prompts: list[str]) -> Context:
        """Return the language model's states before its last layer, padded to the longest prompt."""
        messages = [self._chat_message(prompt) for prompt in prompts]
        tokenizer, options = self.tokenizers["text_encoder"], {"truncation": True, "max_length": QWEN_TOKENS}
        encoded = tokenizer(messages, padding="longest", padding_side="right", return_tensors="pt", **options)
        # No mask is needed: a token attends only to earlier tokens, and padding comes last.
        output = self.text_encoders["text_encoder"](encoded.input_ids.to(self.device), output_hidden_states=True)
        return Context(output.hidden_states[-2], mask=encoded.attention_mask.bool())

    def _predict_flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        if context.mask is None:
            raise ValueError("Z-Image needs the mask of its prompts' context")
        lengths = context.mask.sum(1).tolist()
        predictions = self.transformer(
            list(noisy[:, :, None]),
            1 - self._level(timesteps),
            [tokens[:length] for tokens, length in zip(context.tokens, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(predictions)[:, :, 0]
