"""What all families share: the VAE, the dtype of the weights, and moving parts to and from the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from autolora.errors import ConfigError
from autolora.models.base import DTYPES
from autolora.models.offload import OffloadManager, offloads
from autolora.models.settings import ModelSettings

TILE_PX = 512  # decoding 1024 px without tiles takes 4 GB, as much memory as the denoiser


class FrozenBaseModel:
    """A denoiser, a VAE and text encoders; each family implements the rest of `BaseModel`."""

    vae: Any
    text_encoders: dict[str, Any]
    scaling: float
    tiled_decoding: bool
    offset = 0.0  # is subtracted from latents before they are scaled

    @property
    def denoiser(self) -> Any:
        """The UNet or the transformer."""
        raise NotImplementedError

    def _apply_settings(self, settings: ModelSettings) -> None:
        """Apply the settings of dtype and memory; call it when all parts are loaded."""
        self.settings = settings
        self.device, self.dtype = self.denoiser.device, DTYPES[settings.dtype]
        if settings.gradient_checkpointing:
            self.enable_gradient_checkpointing()
        self.text_encoder_names = tuple(self.text_encoders)
        movable: dict[str, nn.Module] = {"vae": self.vae, **self.text_encoders}
        self.tiled_decoding = offloads(settings.offload, self.device)
        self.offload = OffloadManager(self.device, movable, self.tiled_decoding)
        self.on_device, self.keep_on_device = self.offload.on_device, self.offload.keep_on_device
        self.vae.tile_sample_min_size = TILE_PX
        self.vae.tile_latent_min_size = TILE_PX // 2 ** (len(self.vae.config.block_out_channels) - 1)
        if self.device.type == "cuda":
            self.vae.enable_slicing()  # one image at a time, because decoding takes more memory than denoising

    def enable_gradient_checkpointing(self) -> bool:
        """Recompute layers in the backward pass; return False if that was already on."""
        if self.denoiser.is_gradient_checkpointing:
            return False
        self.denoiser.enable_gradient_checkpointing()
        return True

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode (B, 3, H, W) pixels in [-1, 1] to scaled latents, without tiles, because tiles are less exact."""
        self.vae.use_tiling = False
        with self.on_device("vae"):
            mean: Tensor = self.vae.encode(pixels.to(self.device)).latent_dist.mean
        return (mean - self.offset) * self.scaling

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to (B, 3, H, W) pixels around [-1, 1], in overlapping tiles if parts are offloaded."""
        self.vae.use_tiling = self.tiled_decoding
        with self.on_device("vae"):
            pixels: Tensor = self.vae.decode(latents / self.scaling + self.offset, return_dict=False)[0]
        return pixels

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return autocast if the weights are 16-bit, because adapters are 32-bit."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def check_sides(resolution: int, render_size: int | None, unit: int) -> None:
    """Refuse a resolution or a render size that is not a multiple of `unit` pixels.

    Raises:
        ConfigError: one of them is not.
    """
    for key, side in (("model.resolution", resolution), ("model.render.size", render_size)):
        if side is not None and (side < 1 or side % unit):
            raise ConfigError(f"{key}={side} must be a multiple of {unit} for this model")
