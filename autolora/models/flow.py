"""What flow-matching transformers have in common: straight paths from a picture to noise, and shifted timesteps."""

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

PATCH = 2  # latent cells on a side of one of the transformer's tokens


class FlowEuler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps along the flow (Liu et al. 2022), with what diffusers' other schedulers say of their inputs."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The sample as it is."""
        return sample


class FlowModel(FrozenBaseModel):
    """A frozen transformer trained by flow matching (Lipman et al. 2022); see `BaseModel` for shapes.

    Latents at noise level s, timestep s * train_timesteps, are (1 - s) x + s noise, and it predicts noise - x. Families
    say how prompts are encoded, and what their transformer is given.
    """

    architecture: str
    adapted_encoders: tuple[str, ...] = ()  # that LoRA files of the family can hold
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
        self._settle(settings)
        self.loss_scale = 1.0
        self.train_timesteps = int(self.scheduler.config.num_train_timesteps)
        self.window_tokens = self.max_prompt_tokens = self._prompt_tokens()  # no prompt is read in several windows
        self._take_size(settings)

    def _take_size(self, settings: ModelSettings) -> None:
        config = self.vae.config
        self.cell = 2 ** (len(config.block_out_channels) - 1)  # pixels on a side of a latent's
        self.resolution = int(settings.resolution or 128 * self.cell)
        check_sides(self.resolution, settings.render.size, PATCH * self.cell)
        side = self.resolution // self.cell
        self.latent_shape = (int(config.latent_channels), side, side)
        self.scaling, self.offset = float(config.scaling_factor), float(config.shift_factor or 0.0)

    @property
    def core(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to."""
        return {"transformer": self.transformer, **{name: self.text_encoders[name] for name in self.adapted_encoders}}

    def _prompt_tokens(self) -> int:
        """A prompt's own that are read, of the text encoder that reads most of it."""
        raise NotImplementedError

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """N prompts -> their context."""
        with self._precision(), self.on_device(*self.text_encoder_names), silence_libraries():
            return self._read(list(prompts))

    def _read(self, prompts: list[str]) -> Context:
        raise NotImplementedError

    def tokens(self, prompt: str) -> list[str]:
        """The pieces of a prompt, uncut, by the tokenizer of the text encoder that reads most of it."""
        pieces: list[str] = list(self.tokenizers.values())[-1].tokenize(prompt)
        return pieces

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        """The transformer's output for noisy latents.

        Raises:
            ConfigError: they are not of whole tokens.
        """
        if noisy.shape[2] % PATCH or noisy.shape[3] % PATCH:
            width, height = noisy.shape[3] * self.cell, noisy.shape[2] * self.cell
            raise ConfigError(
                f"a bucket of {width}x{height} px: dataset.buckets.bucket_reso_steps must be a multiple of {PATCH * self.cell} here"
            )
        with self._precision():
            return self._flow(noisy, timesteps.float(), context).float()

    def _flow(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        raise NotImplementedError

    @contextmanager
    def fixed_context(self) -> Iterator[None]:
        """Nothing is reused: the tokens of the prompt change from layer to layer with those of the picture."""
        yield

    def shift(self, shape: tuple[int, int, int]) -> float:
        """By how much latents of a shape (C, h, w) are trained at more noise, as the model's scheduler samples them."""
        config = self.scheduler.config
        if self.settings.timestep_shift is not None:
            return self.settings.timestep_shift
        if not config.use_dynamic_shifting:
            return float(config.shift)
        grown = self._mu(shape)
        return math.exp(grown) if config.time_shift_type == "exponential" else grown

    def _mu(self, shape: tuple[int, int, int]) -> float:
        """How the shift grows with a picture's size, as diffusers' pipelines have it from Flux: a line through two."""
        config = self.scheduler.config
        tokens = (shape[1] // PATCH) * (shape[2] // PATCH)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (tokens - config.base_image_seq_len))

    def sample_timesteps(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Of noise levels u, logit-normal (Esser et al. 2024) or uniform, and shifted to k u / (1 + (k - 1) u)."""
        if self.settings.timestep_sampling == "uniform":
            level = torch.rand(count, generator=generator)
        else:
            level = torch.randn(count, generator=generator).sigmoid()
        shift = self.shift(shape)
        return self.train_timesteps * (shift * level / (1 + (shift - 1) * level))

    def _level(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self.train_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - s) x + s noise."""
        level = self._level(timesteps).view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """noise - x, whatever the timestep."""
        return noise - latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """((1 - s) / s)^2, (B,)."""
        level = self._level(timesteps).clamp(1e-6, 1)
        return ((1 - level) / level).square()

    def sampler(self, name: str = "euler", steps: int | None = None, shape: tuple[int, int, int] | None = None) -> Any:
        """A fresh scheduler: Euler steps, shifted as the model's own scheduler says for latents of a shape (C, h, w).

        Raises:
            ConfigError: another one is asked for.
        """
        check_sampler(name, self.architecture)
        sampler = FlowEuler.from_config(self.scheduler.config, stochastic_sampling=False)
        if steps is not None:
            sampler.set_timesteps(steps, sigmas=self._levels(steps), mu=self._mu(shape or self.latent_shape))
            sampler.set_begin_index(0)
        return sampler

    def _levels(self, steps: int) -> list[float] | None:
        """The noise levels that the family's pipeline samples at, before they are shifted; None: the scheduler's."""
        return [1 - i / steps for i in range(steps)]
