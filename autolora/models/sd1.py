"""Stable Diffusion 1.x and every model of its layout, read from a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from autolora.errors import ConfigError, ModelError
from autolora.models.base import MOST_CHUNKS, ModelSettings, stack_contexts
from autolora.models.folders import AGAIN, check_sd1_folder, folder_hash, weight_files
from autolora.paperdoll.weights import BASE

_DDIM: Any = DDIMScheduler  # untyped libraries are called through Any
_TRANSFORMERS_LOG: Any = transformers_logging
_DIFFUSERS_LOG: Any = diffusers_logging
PREDICTION_TYPES = ("epsilon", "v_prediction")


class StableDiffusion:
    """A frozen SD1-layout model in 32-bit floats; see `BaseModel` for shapes."""

    architecture = "sd1"

    def __init__(self, folder: Path, name: str, resolution: int | None, device: torch.device) -> None:
        self.folder, self.name, self.device, self.dtype = folder, name, device, torch.float32
        self.base_hash = folder_hash(folder)
        self.unet = _load(UNet2DConditionModel, folder / "unet", device)
        self.vae = _load(AutoencoderKL, folder / "vae", device)
        self.text_encoder = _load(CLIPTextModel, folder / "text_encoder", device)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        positions = self.text_encoder.config.max_position_embeddings
        self.max_tokens = min(self.tokenizer.model_max_length, positions)
        self.prompt_tokens = self.max_tokens - 2  # one begins, one ends
        self._comma = self.tokenizer(",", add_special_tokens=False).input_ids[-1]
        self._take_schedule(folder)
        self._take_size(resolution)

    def _take_schedule(self, folder: Path) -> None:
        # As StableDiffusionPipeline mends outdated files: latents are never clipped, steps are offset by 1.
        source = folder / "scheduler"
        self.scheduler = _DDIM.from_pretrained(source, clip_sample=False, steps_offset=1)
        self.train_timesteps = int(self.scheduler.config.num_train_timesteps)
        self.prediction_type = str(self.scheduler.config.prediction_type)
        if self.prediction_type not in PREDICTION_TYPES:
            raise ModelError(
                f"{source}: prediction_type={self.prediction_type} is not supported; "
                f"expected one of {', '.join(PREDICTION_TYPES)}"
            )
        abar = self.scheduler.alphas_cumprod.double()
        self._signal = abar.sqrt().float().to(self.device)
        self._noise = (1 - abar).sqrt().float().to(self.device)
        self._snr = (abar / (1 - abar)).float().to(self.device)

    def _take_size(self, resolution: int | None) -> None:
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        unit = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.resolution = int(resolution or self.unet.config.sample_size * factor)
        if self.resolution < 1 or self.resolution % unit:
            raise ConfigError(f"model.resolution={self.resolution} must be a multiple of {unit} here")
        side = self.resolution // factor
        self.latent_shape = (int(self.unet.config.in_channels), side, side)
        self.scaling = float(self.vae.config.scaling_factor)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The roots that adapters attach to."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [-1, 1] -> scaled latents."""
        mean: Tensor = self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mean
        return mean * self.scaling

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents -> (B, 3, H, W) pixels around [-1, 1]."""
        pixels: Tensor = self.vae.decode(latents / self.scaling, return_dict=False)[0]
        return pixels

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> (N, tokens, dim), long ones in several windows of the text encoder."""
        windows = [self._windows(prompt) for prompt in prompts]
        ids = torch.tensor([window for own in windows for window in own], device=self.device)
        hidden: Tensor = self.text_encoder(ids).last_hidden_state
        parts = torch.split(hidden, [len(own) for own in windows])
        return stack_contexts([part.flatten(0, 1) for part in parts])

    def _windows(self, prompt: str) -> list[list[int]]:
        """A prompt's token ids, each window begun, ended and padded; cut after a comma where one is near its end.

        A1111 cuts at the last comma of a window's last 20 tokens, too, so that no tag is torn apart.
        """
        room, rest = self.prompt_tokens, self.tokenizer(prompt, add_special_tokens=False).input_ids
        begin, end, pad = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        windows: list[list[int]] = []
        while len(windows) < MOST_CHUNKS and (rest or not windows):
            cut = room
            if len(rest) > room:
                cut = next((i for i in range(room, room - 20, -1) if rest[i - 1] == self._comma), room)
            own, rest = rest[:cut], rest[cut:]
            windows.append([begin, *own, end, *[pad] * (room - len(own))])
        return windows

    def tokens(self, prompt: str) -> list[str]:
        """The tokenizer's own pieces of a prompt, uncut; a piece that ends a word ends in `</w>`."""
        pieces: list[str] = self.tokenizer.tokenize(prompt)
        return pieces

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The UNet's output for noisy latents."""
        output: Tensor = self.unet(noisy, timesteps, context, return_dict=False)[0]
        return output

    @contextmanager
    def fixed_context(self) -> Iterator[None]:
        """Project a context to keys and values once for all denoising steps (14% of a paper-doll step)."""
        projections = [m for n, m in self.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
        own = [vars(module).get("forward") for module in projections]  # None: the class's
        try:
            for module in projections:
                module.forward = _remember_last(module.forward)
            yield
        finally:
            for module, forward in zip(projections, own, strict=True):
                vars(module).pop("forward", None)
                if forward is not None:
                    module.forward = forward

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(abar) x + sqrt(1 - abar) noise."""
        return _per_sample(self._signal, timesteps) * latents + _per_sample(self._noise, timesteps) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or v = sqrt(abar) noise - sqrt(1 - abar) x (Salimans and Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        return _per_sample(self._signal, timesteps) * noise - _per_sample(self._noise, timesteps) * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """abar / (1 - abar), (B,)."""
        ratio: Tensor = self._snr[timesteps]
        return ratio

    def sampler(self) -> Any:
        """A fresh DDIM scheduler (Song et al. 2020, eta 0: no randomness after the first noise)."""
        return _DDIM.from_config(self.scheduler.config)


def load_sd1(settings: ModelSettings) -> StableDiffusion:
    """Load an SD1-layout folder in 32-bit floats, on the GPU when there is one.

    Raises:
        ModelError: the folder is missing, of another kind, or its files are broken.
        ConfigError: the resolution does not suit the model.
    """
    packaged = settings.path == "paperdoll"
    folder = BASE if packaged else Path(settings.path).expanduser()
    if packaged and not folder.is_dir():
        raise ModelError(f"the packaged paper-doll model is missing ({folder}): install autolora again")
    check_sd1_folder(folder)
    name = settings.name or ("paperdoll" if packaged else folder.resolve().name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _quiet():
            return StableDiffusion(folder, name, settings.resolution, device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model.path={folder} cannot be loaded ({reason}): {AGAIN}") from error


def _load(kind: Any, folder: Path, device: torch.device) -> Any:
    """One frozen part of the pipeline; channels last runs 17-26% faster on a CPU (paper-doll model).

    Raises:
        ModelError: the weights lack some of the model's tensors (libraries would fill them in at random).
    """
    variant, _ = weight_files(folder)
    part, info = kind.from_pretrained(
        folder,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: the weights lack {len(missing)} tensors ({missing[0]} ...): {AGAIN}")
    return part.to(device=device, dtype=torch.float32, memory_format=torch.channels_last).eval().requires_grad_(False)


def _per_sample(table: Tensor, timesteps: Tensor) -> Tensor:
    return table[timesteps].view(-1, 1, 1, 1)


def _remember_last(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A forward that computes only when its input is another tensor object than the time before."""
    last: list[Tensor] = []  # input and output

    def remembering(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, forward(x)]
        return last[1]

    return remembering


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' bars and notes while loading; what matters is checked and raised instead."""
    bar = _TRANSFORMERS_LOG.is_progress_bar_enabled()
    levels = (_TRANSFORMERS_LOG.get_verbosity(), _DIFFUSERS_LOG.get_verbosity())
    _TRANSFORMERS_LOG.disable_progress_bar()
    _TRANSFORMERS_LOG.set_verbosity_error()
    _DIFFUSERS_LOG.set_verbosity_error()
    try:
        yield
    finally:
        _TRANSFORMERS_LOG.set_verbosity(levels[0])
        _DIFFUSERS_LOG.set_verbosity(levels[1])
        if bar:
            _TRANSFORMERS_LOG.enable_progress_bar()
