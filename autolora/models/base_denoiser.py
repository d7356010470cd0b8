"""What every family does alike: its VAE, its precision, and what of it is on the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from autolora.errors import ConfigError
from autolora.models.base import DTYPES
from autolora.models.offload import OffloadManager, offloads
from autolora.models.settings import ModelSettings

TILE_PX = 512  # decoding 1024 px in one piece takes 4 GB, as much as what denoises


class FrozenBaseModel:
    """A core that denoises, a VAE and text encoders; families say the rest of `BaseModel`."""

    vae: Any
    text_encoders: dict[str, Any]
    scaling: float
    tiles: bool  # whether large pictures are decoded piece by piece
    offset = 0.0  # of latents, before they are scaled

    @property
    def core(self) -> Any:
        """What denoises: the UNet or the transformer."""
        raise NotImplementedError

    def _settle(self, settings: ModelSettings) -> None:
        """Take precision and memory as they are set; all parts are there."""
        self.settings = settings
        self.device, self.dtype = self.core.device, DTYPES[settings.dtype]
        if settings.gradient_checkpointing:
            self.enable_gradient_checkpointing()
        self.text_encoder_names = tuple(self.text_encoders)
        resting: dict[str, nn.Module] = {"vae": self.vae, **self.text_encoders}
        self.tiles = offloads(settings.offload, self.device)
        self.offload = OffloadManager(self.device, resting, self.tiles)
        self.on_device, self.keep_on_device = self.offload.on_device, self.offload.keep_on_device
        self.vae.tile_sample_min_size = TILE_PX
        self.vae.tile_latent_min_size = TILE_PX // 2 ** (len(self.vae.config.block_out_channels) - 1)
        if self.device.type == "cuda":
            self.vae.enable_slicing()  # one picture after the other: decoding takes more memory than denoising

    def enable_gradient_checkpointing(self) -> bool:
        """Compute layers again on the way back; False where that is so already."""
        if self.core.is_gradient_checkpointing:
            return False
        self.core.enable_gradient_checkpointing()
        return True

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [-1, 1] -> scaled latents; always in one piece, as tiles would not be as exact."""
        self.vae.use_tiling = False
        with self.on_device("vae"):
            mean: Tensor = self.vae.encode(pixels.to(self.device)).latent_dist.mean
        return (mean - self.offset) * self.scaling

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents -> (B, 3, H, W) pixels around [-1, 1]; in tiles that overlap where memory is short."""
        self.vae.use_tiling = self.tiles
        with self.on_device("vae"):
            pixels: Tensor = self.vae.decode(latents / self.scaling + self.offset, return_dict=False)[0]
        return pixels

    def _precision(self) -> AbstractContextManager[Any]:
        """Weights of 16 bit meet adapters of 32 under autocast."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def check_sides(resolution: int, render_size: int | None, unit: int) -> None:
    """Refuse a size that a model cannot take: every side in pixels is a multiple of `unit`.

    Raises:
        ConfigError: it is not.
    """
    for key, side in (("model.resolution", resolution), ("model.render.size", render_size)):
        if side is not None and (side < 1 or side % unit):
            raise ConfigError(f"{key}={side} must be a multiple of {unit} here")
