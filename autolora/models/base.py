"""What training, rendering and scoring need of a base model, whatever its family."""

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

MAX_CHUNKS = 3  # windows of the text encoder that a prompt may fill: 225 tokens of CLIP's 75
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class Context:
    """What a model is told of N pictures, besides their noise.

    `tokens` (N, tokens, dim) is what attention reads; with a `mask` (N, tokens), on the CPU, only the first ones of
    each prompt, where it is true. Families that also take a prompt as a whole have `pooled` (N, dim). Those that are
    told how a picture was cropped read `sizes` (N, 6), as `size_ids` gives them; without, each picture is whole and of
    the size of its latents. Those distilled to draw as with guidance read how much, `guidance` (N,); without, 1.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    mask: Tensor | None = None
    guidance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Context:
        return Context(*(None if one is None else one[part] for one in vars(self).values()))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(one.nbytes for one in vars(self).values() if one is not None)

    def rows(self) -> list[Context]:
        """One for each picture."""
        return [self[i : i + 1] for i in range(len(self))]


def stack_contexts(contexts: Sequence[Context]) -> Context:
    """Contexts of prompts of several lengths as one; they have neither sizes nor guidance yet.

    With masks, shorter ones are padded. Else tokens are repeated to a common multiple of the lengths: cross-attention
    over repeated keys is that over the keys themselves. So no prompt depends on what it is stacked with.
    """
    lengths = [context.tokens.shape[1] for context in contexts]
    masks = [context.mask for context in contexts if context.mask is not None]
    pooled = [context.pooled for context in contexts if context.pooled is not None]
    whole = torch.cat(pooled) if pooled else None
    if masks:
        room = [max(lengths) - length for length in lengths]
        tokens = [F.pad(one.tokens, (0, 0, 0, more)) for one, more in zip(contexts, room, strict=True)]
        padded = [F.pad(mask, (0, more)) for mask, more in zip(masks, room, strict=True)]
        return Context(torch.cat(tokens), whole, mask=torch.cat(padded))
    length = math.lcm(*lengths)
    return Context(torch.cat([c.tokens.repeat(1, length // c.tokens.shape[1], 1) for c in contexts]), whole)


class BaseModel(Protocol):
    """A frozen latent diffusion model in evaluation mode.

    Shapes: pixels (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), scaled to about unit variance. All are 32-bit floats,
    whatever the weights are. Timesteps (B,) grow with the noise, up to `train_timesteps`: whole numbers below it where
    a noise schedule is a table, any number where it is a formula.
    """

    name: str
    settings: ModelSettings  # as it was loaded
    base_hash: str  # 16 hex digits over the weights
    source: Path | None  # the folder or file that diffusers can load it from
    vae: Any  # diffusers'
    architecture: str  # the family, as "sd1"; naming of exported files follows it
    resolution: int  # pixels; pictures are square
    latent_shape: tuple[int, int, int]  # (C, h, w)
    train_timesteps: int
    clip_skip: int | None  # the text encoder's layer that is read, from the last; None: the family's usual one
    text_encoders: dict[str, Any]  # what reads prompts, of which `modules` has those that LoRA files can hold
    text_encoder_names: tuple[str, ...]  # their names
    window_tokens: int  # a prompt's own that its text encoder reads at once: 75 for CLIP
    max_prompt_tokens: int  # and those of a longer one that it reads in all
    prediction_type: str  # "epsilon", "v_prediction" or "flow"
    guidance_embeds: bool  # it is told the guidance in its context, instead of being guided by two predictions
    device: torch.device
    dtype: torch.dtype  # of the weights
    loss_scale: float  # what a loss is multiplied by on its way back, so that its gradients fit the dtype

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to: `unet` or `transformer`, and text encoders that LoRA files can hold."""
        ...

    def on_device(self, *parts: str) -> AbstractContextManager[None]:
        """Inside it `vae`, or some of `text_encoder_names`, stay on the device between calls, each of which brings its own."""
        ...

    def keep_on_device(self, *parts: str) -> None:
        """From now on these parts never leave the device: an adapter is attached, or someone else uses them."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels to scaled latents (the posterior's mean: deterministic)."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents to pixels (they may leave [-1, 1] a little)."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Prompts to context, differentiable, so that callers choose.

        A prompt longer than the text encoder's window is encoded in up to MAX_CHUNKS windows side by side.
        """
        ...

    def tokens(self, prompt: str) -> list[str]:
        """A prompt as the model reads it, without the tokens that begin, end and fill it; never cut."""
        ...

    def enable_gradient_checkpointing(self) -> bool:
        """Compute layers again on the way back from now on, in less memory; False where that is so already."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        """The model's raw output for noisy latents, of their shape."""
        ...

    def fixed_context(self) -> AbstractContextManager[None]:
        """Inside it, `predict` may reuse what it derived from a context's tokens while given that same tensor.

        Only for inference, and adapter weights must not change inside.
        """
        ...

    def sample_timesteps(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Timesteps (count,) to train latents of a shape (C, h, w) at, on the CPU."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents noised to their timesteps: sqrt(abar) x + sqrt(1 - abar) noise, or (1 - s) x + s noise."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should have returned.

        The noise, v = sqrt(abar) noise - sqrt(1 - abar) x, or the flow noise - x.
        """
        ...

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio, of squares, (B,): abar / (1 - abar) or ((1 - s) / s)^2; 0 where all is noise."""
        ...

    def sampler(self, name: str, steps: int | None = None, shape: tuple[int, int, int] | None = None) -> Any:
        """A fresh deterministic diffusers scheduler for rendering, one of SAMPLERS, at its first step of so many.

        Latents are of a shape (C, h, w), or None: of `latent_shape`.

        Raises:
            ConfigError: the model cannot be sampled so.
        """
        ...
