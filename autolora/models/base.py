"""The interface of a base model that training, rendering and scoring use, whatever its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.models.settings import DTYPE_NAMES, ModelSettings

MAX_CHUNKS = 3  # text-encoder windows that a prompt may fill: 225 tokens for CLIP with its 75
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class Context:
    """The conditioning of N images.

    Attributes:
        tokens: (N, tokens, dim), the keys and values of attention.
        pooled: (N, dim), one vector for the whole prompt, in families that have one.
        sizes: (N, 6), original size, crop and target size as SDXL takes them; None: each image is not cropped and has
            the size of its latents.
        mask: (N, tokens) on the CPU, true for the tokens that count; None: all count.
        guidance: (N,), the guidance scale for models that take it as an input; None: 1.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    mask: Tensor | None = None
    guidance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Context:
        return Context(*(None if value is None else value[part] for value in vars(self).values()))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in vars(self).values() if tensor is not None)

    def rows(self) -> list[Context]:
        """Return one context per image."""
        return [self[i : i + 1] for i in range(len(self))]


def stack_contexts(contexts: Sequence[Context]) -> Context:
    """Stack contexts of prompts of different lengths; sizes and guidance must not be set yet.

    With masks, shorter contexts are padded. Without, tokens are repeated to the least common multiple of the lengths,
    because cross-attention over repeated keys equals cross-attention over the keys themselves. So the result of a
    prompt does not depend on the other prompts.
    """
    lengths = [context.tokens.shape[1] for context in contexts]
    masks = [context.mask for context in contexts if context.mask is not None]
    pooled_parts = [context.pooled for context in contexts if context.pooled is not None]
    pooled = torch.cat(pooled_parts) if pooled_parts else None
    if masks:
        padding = [max(lengths) - length for length in lengths]
        tokens = [F.pad(context.tokens, (0, 0, 0, pad)) for context, pad in zip(contexts, padding, strict=True)]
        padded = [F.pad(mask, (0, pad)) for mask, pad in zip(masks, padding, strict=True)]
        return Context(torch.cat(tokens), pooled, mask=torch.cat(padded))
    length = math.lcm(*lengths)
    return Context(torch.cat([c.tokens.repeat(1, length // c.tokens.shape[1], 1) for c in contexts]), pooled)


class BaseModel(Protocol):
    """A frozen latent diffusion model in evaluation mode.

    Shapes: pixels (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), scaled to about unit variance. All are 32-bit floats,
    whatever the dtype of the weights. Timesteps (B,) grow with the noise, up to `train_timesteps`: integers below it
    for a noise schedule that is a table, real numbers for one that is a formula.
    """

    name: str
    settings: ModelSettings
    base_hash: str  # 16 hex digits over the weights
    source: Path | None  # the folder or file that diffusers can load the model from
    vae: Any  # diffusers' VAE
    architecture: str  # the family, such as "sd1"; it decides the names of exported weights
    resolution: int  # pixels; evaluation renders are square
    latent_shape: tuple[int, int, int]  # (C, h, w) at the resolution
    train_timesteps: int
    clip_skip: int | None  # the text encoder's layer that is read, counted from the last; None: the family's default
    text_encoders: dict[str, Any]  # all of them; `modules` has those that LoRA files can contain
    text_encoder_names: tuple[str, ...]
    window_tokens: int  # a prompt's tokens that its text encoder reads at once: 75 for CLIP
    max_prompt_tokens: int  # a prompt's tokens that are read in all, in several windows
    prediction_type: str  # "epsilon", "v_prediction" or "flow"
    guidance_embeds: bool  # the model takes the guidance scale as an input, so that no second prediction is needed
    device: torch.device
    dtype: torch.dtype  # of the weights
    loss_scale: float  # factor on the loss in the backward pass, so that gradients fit the dtype

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to: `unet` or `transformer`, and the text encoders that LoRA files contain."""
        ...

    def on_device(self, *parts: str) -> AbstractContextManager[None]:
        """Keep `vae` or text encoders on the device inside the block; without it, each call moves what it needs."""
        ...

    def keep_on_device(self, *parts: str) -> None:
        """Keep these parts on the device from now on, because an adapter or another program uses them."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels to scaled latents: the posterior's mean, so that the result is deterministic."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to pixels, which may leave [-1, 1] slightly."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts; gradients flow unless the caller turns them off.

        A prompt longer than the text encoder's window is encoded in up to MAX_CHUNKS windows whose tokens are joined.
        """
        ...

    def tokens(self, prompt: str) -> list[str]:
        """Return a prompt's tokens as text, without special tokens and without a length limit."""
        ...

    def enable_gradient_checkpointing(self) -> bool:
        """Recompute layers in the backward pass to save memory; return False if that was already on."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        """Return the model's raw output for noisy latents, in their shape."""
        ...

    def fixed_context(self) -> AbstractContextManager[None]:
        """Allow `predict` to cache what it computes from a context's tokens, as long as it gets the same tensor.

        Only for inference. Adapter weights must not change inside the block.
        """
        ...

    def sample_timesteps(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Sample training timesteps (count,) on the CPU for latents of a shape (C, h, w)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Add noise to latents: sqrt(abar) x + sqrt(1 - abar) noise, or (1 - s) x + s noise for flow matching."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the training target of `predict`.

        It is the noise, v = sqrt(abar) noise - sqrt(1 - abar) x, or the flow noise - x.
        """
        ...

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio (B,): abar / (1 - abar), or ((1 - s) / s)^2; 0 for pure noise."""
        ...

    def sampler(self, name: str, steps: int | None = None, shape: tuple[int, int, int] | None = None) -> Any:
        """Return a new deterministic diffusers scheduler for rendering.

        Args:
            name: one of SAMPLERS.
            steps: the number of denoising steps to prepare; None: none are prepared.
            shape: (C, h, w) of the latents; None: `latent_shape`.

        Raises:
            ConfigError: the model cannot be sampled with this scheduler.
        """
        ...
