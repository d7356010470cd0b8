"""What flow-matching transformers share: straight paths from image to noise, and shifted timesteps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from autolora.errors import ConfigError
from autolora.models.base import Context
from autolora.models.base_denoiser import FrozenBaseModel, check_sides
from autolora.models.flow_parts import FlowParts, check_sampler
from autolora.models.folders import ENCODERS
from autolora.models.library_logging import silence_libraries
from autolora.models.settings import ModelSettings

PATCH = 2  # side of a transformer token in latent cells


class FlowEuler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps along the flow (Liu et al. 2022), with the attributes that diffusers' other schedulers have."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the sample unchanged."""
        return sample


class FlowModel(FrozenBaseModel):
    """A frozen transformer trained by flow matching (Lipman et al. 2022); see `BaseModel` for shapes.

    At noise level s, which is timestep s * train_timesteps, latents are (1 - s) x + s noise, and the model predicts
    noise - x. Each family implements how prompts are encoded and what its transformer gets as input.
    """

    architecture: str
    adapted_encoders: tuple[str, ...] = ()  # text encoders that LoRA files of the family can contain
    prediction_type = "flow"
    clip_skip: int | None = None
    guidance_embeds = False
    source: Path | None

    def __init__(self, parts: FlowParts, name: str, settings: ModelSettings) -> None:
        self.name, self.base_hash, self.source = name, parts.base_hash, parts.source
        self.pipeline = parts.pipeline
        self.transformer, self.vae, self.scheduler = (
            getattr(self.pipeline, part) for part in ("transformer", "vae", "scheduler")
        )
        encoders = ENCODERS[self.architecture]
        self.text_encoders = {name: getattr(self.pipeline, name) for name in encoders}
        self.tokenizers = {name: getattr(self.pipeline, tokenizer) for name, tokenizer in encoders.items()}
        self._apply_settings(settings)
        self.loss_scale = 1.0
        self.train_timesteps = int(self.scheduler.config.num_train_timesteps)
        self.window_tokens = self.max_prompt_tokens = self._prompt_tokens()  # there is only one window
        self._set_size(settings)

    def _set_size(self, settings: ModelSettings) -> None:
        config = self.vae.config
        self.pixels_per_latent = 2 ** (len(config.block_out_channels) - 1)  # pixels per latent cell, on a side
        self.resolution = int(settings.resolution or 128 * self.pixels_per_latent)
        check_sides(self.resolution, settings.render.size, PATCH * self.pixels_per_latent)
        side = self.resolution // self.pixels_per_latent
        self.latent_shape = (int(config.latent_channels), side, side)
        self.scaling, self.offset = float(config.scaling_factor), float(config.shift_factor or 0.0)

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to."""
        return {"transformer": self.transformer, **{name: self.text_encoders[name] for name in self.adapted_encoders}}

    def _prompt_tokens(self) -> int:
        """Return how many of a prompt's tokens are read, by the text encoder that reads the most."""
        raise NotImplementedError

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts to their context."""
        with self._autocast(), self.on_device(*self.text_encoder_names), silence_libraries():
            return self._context(list(prompts))

    def _context(self, prompts: list[str]) -> Context:
        raise NotImplementedError

    def tokens(self, prompt: str) -> list[str]:
        """Return a prompt's tokens by the tokenizer of the text encoder that reads the most."""
        tokens: list[str] = list(self.tokenizers.values())[-1].tokenize(prompt)
        return tokens

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        """Return the transformer's output for noisy latents.

        Raises:
            ConfigError: the latents cannot be divided into whole tokens.
        """
        if noisy.shape[2] % PATCH or noisy.shape[3] % PATCH:
            width, height = noisy.shape[3] * self.pixels_per_latent, noisy.shape[2] * self.pixels_per_latent
            raise ConfigError(
                f"a bucket of {width}x{height} px: dataset.buckets.bucket_reso_steps must be a multiple of "
                f"{PATCH * self.pixels_per_latent} for this model"
            )
        with self._autocast():
            return self._predict_flow(noisy, timesteps.float(), context).float()

    def _predict_flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        raise NotImplementedError

    @contextmanager
    def fixed_context(self) -> Iterator[None]:
        """Cache nothing: in these models the prompt's tokens change from layer to layer with the image's tokens."""
        yield

    def shift(self, shape: tuple[int, int, int]) -> float:
        """Return the timestep shift for latents of a shape (C, h, w); above 1, more timesteps are at high noise.

        It is the setting, else what the model's scheduler uses for sampling.
        """
        config = self.scheduler.config
        if self.settings.timestep_shift is not None:
            return self.settings.timestep_shift
        if not config.use_dynamic_shifting:
            return float(config.shift)
        mu = self._mu(shape)
        return math.exp(mu) if config.time_shift_type == "exponential" else mu

    def _mu(self, shape: tuple[int, int, int]) -> float:
        """Return the shift for an image's size: linear in the number of tokens, as in diffusers' Flux pipeline."""
        config = self.scheduler.config
        tokens = (shape[1] // PATCH) * (shape[2] // PATCH)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (tokens - config.base_image_seq_len))

    def sample_timesteps(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Sample noise levels u, logit-normal (Esser et al. 2024) or uniform, shifted to k u / (1 + (k - 1) u)."""
        if self.settings.timestep_sampling == "uniform":
            level = torch.rand(count, generator=generator)
        else:
            level = torch.randn(count, generator=generator).sigmoid()
        shift = self.shift(shape)
        return self.train_timesteps * (shift * level / (1 + (shift - 1) * level))

    def _level(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self.train_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return (1 - s) x + s noise."""
        level = self._level(timesteps).view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return noise - x at every timestep."""
        return noise - latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return ((1 - s) / s)^2, (B,)."""
        level = self._level(timesteps).clamp(1e-6, 1)
        return ((1 - level) / level).square()

    def sampler(self, name: str = "euler", steps: int | None = None, shape: tuple[int, int, int] | None = None) -> Any:
        """Return a new scheduler with Euler steps, shifted for latents of this shape by the model's scheduler config.

        Raises:
            ConfigError: the name is not `euler`.
        """
        check_sampler(name, self.architecture)
        sampler = FlowEuler.from_config(self.scheduler.config, stochastic_sampling=False)
        if steps is not None:
            sampler.set_timesteps(steps, sigmas=self._levels(steps), mu=self._mu(shape or self.latent_shape))
            sampler.set_begin_index(0)
        return sampler

    def _levels(self, steps: int) -> list[float] | None:
        """Return the noise levels of the family's pipeline before the shift; None: the scheduler's own."""
        return [1 - i / steps for i in range(steps)]
