"""What Stable Diffusion models share: a VAE, a UNet, CLIP text encoders and a noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from autolora.errors import ConfigError, ModelError
from autolora.models.base import MAX_CHUNKS, Context, stack_contexts
from autolora.models.base_denoiser import FrozenBaseModel, check_sides
from autolora.models.parts import Parts
from autolora.models.prompts import prompt_windows
from autolora.models.settings import PREDICTION_TYPES, ModelSettings

_SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {  # untyped libraries are called through Any
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}
HALF_LOSS_SCALE = 2.0**12  # float16 loses gradients below 2^-24; losses are of the order of 1


class StableDiffusion(FrozenBaseModel):
    """A frozen model with the layout of SD1; see `BaseModel` for shapes. Subclasses differ in their text encoders."""

    architecture = "sd1"
    guidance_embeds = False

    def __init__(self, parts: Parts, name: str, settings: ModelSettings) -> None:
        settings.refuse("a model with a noise schedule", "timestep_sampling", "timestep_shift")
        self.name, self.base_hash, self.source = name, parts.base_hash, parts.source
        self.unet, self.vae = parts.unet, parts.vae
        self.text_encoders, self.tokenizers = parts.text_encoders, parts.tokenizers
        self.text_encoder, self.tokenizer = parts.text_encoders["text_encoder"], parts.tokenizers["text_encoder"]
        self._apply_settings(settings)
        self.loss_scale = HALF_LOSS_SCALE if self.dtype == torch.float16 else 1.0
        self.max_tokens = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        self.window_tokens = self.max_tokens - 2  # without the begin and the end token
        self.max_prompt_tokens = MAX_CHUNKS * self.window_tokens
        self.clip_skip = settings.clip_skip
        self._check_clip_skip()
        self._set_schedule(parts.scheduler)
        self._set_size(settings)

    def _check_clip_skip(self) -> None:
        layers = self.text_encoder.config.num_hidden_layers
        if self.clip_skip is not None and self.clip_skip > layers:
            raise ConfigError(f"model.clip_skip={self.clip_skip}: this text encoder has {layers} layers")

    def _set_schedule(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.train_timesteps = int(scheduler.config.num_train_timesteps)
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in PREDICTION_TYPES:
            raise ModelError(
                f"the scheduler's prediction_type={self.prediction_type} is not supported; "
                f"expected one of {', '.join(PREDICTION_TYPES)}"
            )
        abar = scheduler.alphas_cumprod.double()
        if self.prediction_type == "epsilon" and abar[-1] == 0:
            raise ModelError(
                "the last timestep is pure noise (zero terminal SNR), so epsilon cannot be predicted from it: set "
                "model.prediction_type=v_prediction, or model.zero_terminal_snr=false"
            )
        self._signal = abar.sqrt().float().to(self.device)
        self._noise = (1 - abar).sqrt().float().to(self.device)
        self._snr = (abar / (1 - abar)).float().to(self.device)

    def _set_size(self, settings: ModelSettings) -> None:
        self.pixels_per_latent = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels per latent cell, on a side
        multiple = self.pixels_per_latent * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.resolution = int(settings.resolution or self.unet.config.sample_size * self.pixels_per_latent)
        check_sides(self.resolution, settings.render.size, multiple)
        side = self.resolution // self.pixels_per_latent
        self.latent_shape = (int(self.unet.config.in_channels), side, side)
        self.scaling = float(self.vae.config.scaling_factor)

    @property
    def denoiser(self) -> Any:
        """The UNet."""
        return self.unet

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to."""
        return {"unet": self.unet, **self.text_encoders}

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Encode prompts; a long prompt fills several windows of the text encoders."""
        outputs, counts = [], [0]
        with self._autocast(), self.on_device(*self.text_encoder_names):
            for name, tokenizer in self.tokenizers.items():
                windows = [prompt_windows(tokenizer, prompt, self.window_tokens) for prompt in prompts]
                ids = torch.tensor([ids for prompt in windows for ids in prompt], device=self.device)
                outputs.append(self.text_encoders[name](ids, output_hidden_states=True))
                counts = [len(prompt) for prompt in windows]
            tokens, pooled = self._context(outputs)
        first = [sum(counts[:i]) for i in range(len(counts))]  # index of each prompt's first window
        return stack_contexts(
            [
                Context(part.flatten(0, 1)[None], None if pooled is None else pooled[i : i + 1])
                for i, part in zip(first, torch.split(tokens, counts), strict=True)
            ]
        )

    def _context(self, outputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (W, tokens, dim) of W windows, and pooled (W, dim) in families that have it."""
        if self.clip_skip is None:
            tokens: Tensor = outputs[0].last_hidden_state
            return tokens, None
        encoder = getattr(
            self.text_encoder, "text_model", self.text_encoder
        )  # older versions of transformers have this level
        return encoder.final_layer_norm(outputs[0].hidden_states[-self.clip_skip]), None

    def tokens(self, prompt: str) -> list[str]:
        """Return the tokenizer's tokens of a prompt; a token that ends a word ends in `</w>`."""
        tokens: list[str] = self.tokenizer.tokenize(prompt)
        return tokens

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        """Return the UNet's output for noisy latents."""
        added = self._added_conditions(noisy, context)
        with self._autocast():
            output: Tensor = self.unet(noisy, timesteps, context.tokens, added_cond_kwargs=added, return_dict=False)[0]
        return output.float()

    def _added_conditions(self, noisy: Tensor, context: Context) -> dict[str, Tensor] | None:
        """Return the UNet's conditions besides tokens and timesteps; None: it has no others."""
        return None

    @contextmanager
    def fixed_context(self) -> Iterator[None]:
        """Project a context to keys and values once for all denoising steps (saves 14% of a paper-doll step)."""
        projections = [m for n, m in self.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
        original = [vars(module).get("forward") for module in projections]  # None: the class's method
        try:
            for module in projections:
                module.forward = _cache_last(module.forward)
            yield
        finally:
            for module, forward in zip(projections, original, strict=True):
                vars(module).pop("forward", None)
                if forward is not None:
                    module.forward = forward

    def sample_timesteps(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Sample timesteps of the schedule uniformly, int64."""
        return torch.randint(0, self.train_timesteps, (count,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sqrt(abar) x + sqrt(1 - abar) noise."""
        return _per_sample(self._signal, timesteps) * latents + _per_sample(self._noise, timesteps) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or v = sqrt(abar) noise - sqrt(1 - abar) x (Salimans and Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        return _per_sample(self._signal, timesteps) * noise - _per_sample(self._noise, timesteps) * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return abar / (1 - abar), (B,)."""
        ratio: Tensor = self._snr[timesteps]
        return ratio

    def sampler(self, name: str = "ddim", steps: int | None = None, shape: tuple[int, int, int] | None = None) -> Any:
        """Return a new scheduler that adds no noise after the first step; it does not depend on the latents' shape.

        It is DDIM (Song et al. 2020) with eta 0, Euler (Karras et al. 2022) without churn, or second-order multistep
        DPM-Solver++ (Lu et al. 2022) with Karras' noise levels.
        """
        kind, settings = _SAMPLERS[name]
        sampler = kind.from_config(self.scheduler.config, **settings)
        if steps is not None:
            sampler.set_timesteps(steps)
        return sampler


def check_penultimate(clip_skip: int | None, name: str) -> None:
    """Refuse a text-encoder layer that a family was not trained on.

    Raises:
        ConfigError: clip_skip is neither 2 nor None.
    """
    if clip_skip not in (None, 2):
        raise ConfigError(
            f"model.clip_skip={clip_skip}: {name} always uses the layer before the last, which is clip_skip=2"
        )


def _per_sample(table: Tensor, timesteps: Tensor) -> Tensor:
    return table[timesteps].view(-1, 1, 1, 1)


def _cache_last(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a forward function that computes only if its input is another tensor object than in the last call."""
    last: list[Tensor] = []  # input and output

    def cached(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, forward(x)]
        return last[1]

    return cached
