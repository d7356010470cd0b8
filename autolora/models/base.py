"""What training, rendering and scoring need of a base model, whatever its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.errors import ConfigError

MOST_CHUNKS = 3  # windows of the text encoder that a prompt may fill: 225 tokens of CLIP's 75
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZERS = ("nf4", "int8")
PREDICTION_TYPES = ("epsilon", "v_prediction")
TIMESTEP_SAMPLINGS = ("logit_normal", "uniform")
SAMPLERS = ("ddim", "euler", "dpmpp_2m")
MOST_STEPS = 500  # denoising steps; schedulers cannot take more than they have training timesteps


@dataclass(frozen=True)
class RenderSettings:
    """How probes are rendered."""

    num_inference_steps: int = 12
    search_inference_steps: int | None = None  # fewer while a study searches; its finals and pictures take `steps`
    guidance_scale: float = 4.0  # 1 renders without guidance, at half the work
    batch_size: int = 32
    size: int | None = None  # side of a picture in pixels, in the search and the finals; null: the resolution
    prompt_prefix: str = ""  # what stands before every prompt: quality tags, as a model's users write them
    negative_prompt: str = ""
    scheduler: str = "ddim"  # or euler, dpmpp_2m: none draws noise on the way, so that a seed means one picture
    guidance_rescale: float = 0.0  # share of what guidance adds in contrast that is taken back; 0.7 for v-prediction

    def __post_init__(self) -> None:
        mistakes = []
        if not 1 <= self.num_inference_steps <= MOST_STEPS:
            mistakes.append(
                f"model.render.num_inference_steps must be from 1 to {MOST_STEPS}, got {self.num_inference_steps}"
            )
        if self.search_inference_steps is not None and self.search_inference_steps < 1:
            mistakes.append(
                f"model.render.search_inference_steps must be at least 1 or null, got {self.search_inference_steps}"
            )
        if self.size is not None and self.size < 1:
            mistakes.append(f"model.render.size must be at least 1 pixel or null, got {self.size}")
        if not self.guidance_scale >= 1:
            mistakes.append(f"model.render.guidance_scale must be 1 (none) or more, got {self.guidance_scale}")
        if self.scheduler not in SAMPLERS:
            mistakes.append(f"model.render.scheduler must be one of {', '.join(SAMPLERS)}, got {self.scheduler}")
        if not 0 <= self.guidance_rescale <= 1:
            mistakes.append(f"model.render.guidance_rescale must be from 0 (none) to 1, got {self.guidance_rescale}")
        if self.batch_size < 1:
            mistakes.append(f"model.render.batch_size must be at least 1, got {self.batch_size}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def side(self, model: BaseModel) -> int:
        """Of a picture, pixels: never more than the model's resolution."""
        return min(self.size or model.resolution, model.resolution)

    def prompt(self, prompt: str) -> str:
        """A prompt as the model gets it."""
        return ", ".join(part for part in (self.prompt_prefix, prompt) if part)

    @property
    def search(self) -> RenderSettings:
        """The settings of the search, never of more steps than the real ones."""
        return replace(
            self,
            num_inference_steps=min(self.num_inference_steps, self.search_inference_steps or self.num_inference_steps),
        )


@dataclass(frozen=True)
class ModelSettings:
    """Which base model: family, folder, file or hub id (`paperdoll` is the packaged one), picture size in pixels.

    For prior preservation it draws `class_pictures` pictures of the class word; `class_tags` are what they show
    besides, in words that it knows.
    """

    family: str = "sd1"
    path: str = "paperdoll"
    vae: str | None = None  # a folder or .safetensors file of a VAE to use instead of the model's own
    clip_skip: int | None = None  # 2: the text encoder's state before its last layer, as A1111 counts; null: the last
    name: str | None = None  # how results call it; the folder's name by default
    resolution: int | None = None  # the model's own by default
    prediction_type: str | None = None  # epsilon or v_prediction, where the model's files do not say it rightly
    zero_terminal_snr: bool | None = None  # the same: whether its last timestep is pure noise
    timestep_sampling: str | None = None  # flow matching: logit_normal (null), or uniform, before the shift
    timestep_shift: float | None = None  # flow matching: above 1, more of training is at high noise; null: the model's
    dtype: str = "float32"  # of the frozen weights; adapters and their optimizer stay in 32 bit
    quantize: str | None = None  # nf4 or int8: in how many bits the linear layers of what denoises are kept; null: all
    gradient_checkpointing: bool = False  # layers are computed again on the way back: slower, in far less memory
    offload: bool | None = None  # text encoders and VAE leave the GPU while unused; null: on cards below 20 GiB
    num_class_images: int = 192
    class_tags: tuple[str, ...] = ()
    render: RenderSettings = field(default_factory=RenderSettings)

    def __post_init__(self) -> None:
        mistakes = []
        if self.num_class_images < 4:
            mistakes.append(f"model.num_class_images must be at least 4, got {self.num_class_images}")
        if self.clip_skip is not None and self.clip_skip < 1:
            mistakes.append(f"model.clip_skip must be at least 1 (the last layer) or null, got {self.clip_skip}")
        if self.dtype not in DTYPES:
            mistakes.append(f"model.dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if self.quantize not in (None, *QUANTIZERS):
            kinds = ", ".join(QUANTIZERS)
            mistakes.append(f"model.quantize must be one of {kinds} or null, got {self.quantize}")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            kinds = ", ".join(PREDICTION_TYPES)
            mistakes.append(f"model.prediction_type must be one of {kinds} or null, got {self.prediction_type}")
        if self.timestep_sampling not in (None, *TIMESTEP_SAMPLINGS):
            kinds = ", ".join(TIMESTEP_SAMPLINGS)
            mistakes.append(f"model.timestep_sampling must be one of {kinds} or null, got {self.timestep_sampling}")
        if self.timestep_shift is not None and not self.timestep_shift > 0:
            mistakes.append(f"model.timestep_shift must be above 0 or null, got {self.timestep_shift}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def refuse(self, kind: str, *names: str) -> None:
        """Refuse settings that models of a kind have no use for.

        Raises:
            ConfigError: one of them is set.
        """
        if given := next((name for name in names if getattr(self, name) is not None), None):
            raise ConfigError(f"model.{given}={getattr(self, given)}: {kind} has no such setting; leave it out")


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
    text_parts: tuple[str, ...]  # their names
    prompt_tokens: int  # a prompt's own that its text encoder reads at once: 75 for CLIP
    most_tokens: int  # and those of a longer one that it reads in all
    prediction_type: str  # "epsilon", "v_prediction" or "flow"
    tells_guidance: bool  # it is told the guidance in its context, instead of being guided by two predictions
    device: torch.device
    dtype: torch.dtype  # of the weights
    loss_scale: float  # what a loss is multiplied by on its way back, so that its gradients fit the dtype

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to: `unet` or `transformer`, and text encoders that LoRA files can hold."""
        ...

    def using(self, *parts: str) -> AbstractContextManager[None]:
        """Inside it `vae`, or some of `text_parts`, stay on the device between calls, each of which brings its own."""
        ...

    def stay(self, *parts: str) -> None:
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

        A prompt longer than the text encoder's window is encoded in up to MOST_CHUNKS windows side by side.
        """
        ...

    def tokens(self, prompt: str) -> list[str]:
        """A prompt as the model reads it, without the tokens that begin, end and fill it; never cut."""
        ...

    def checkpoint_gradients(self) -> bool:
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

    def draw_timesteps(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
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
