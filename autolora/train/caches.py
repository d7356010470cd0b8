"""What is encoded once and kept: latents and loss masks of images, text embeddings of captions."""

from __future__ import annotations

import hashlib
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autolora.data.crops import load_cropped, load_mask, size_ids
from autolora.data.sources import Picture
from autolora.errors import ConfigError, ModelError
from autolora.files import atomic_path
from autolora.models.base import BaseModel, Context, stack_contexts


def latent_shape(model: BaseModel, bucket: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return the shape (C, h, w) of the latents of an image.

    Args:
        model: the base model.
        bucket: the bucket resolution in pixels (width, height); None is a square of the model's resolution.

    Raises:
        ConfigError: a side is not a multiple of the VAE's scale.
    """
    channels, side, _ = model.latent_shape
    scale = model.resolution // side
    width, height = bucket or (model.resolution, model.resolution)
    if width % scale or height % scale:
        raise ConfigError(
            f"a bucket of {width}x{height} px does not fit this model: dataset.buckets.bucket_reso_steps must be a "
            f"multiple of {scale}"
        )
    return channels, height // scale, width // scale


class LatentCache:
    """Latents and loss masks by image content and bucket resolution, kept on the model's device and on disk."""

    def __init__(self, model: BaseModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._memory: dict[str, Tensor] = {}
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._mask_hashes: dict[Path, str] = {}

    def latents(
        self,
        pictures: Sequence[Picture],
        flips: Sequence[bool] = (),
        advance: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the scaled latents (N, C, h, w) of N images of one bucket resolution; encode those that are new.

        A mirrored image is encoded mirrored, because a VAE does not commute with mirroring.

        Args:
            pictures: the images.
            flips: which of them are mirrored; empty: none.
            advance: called with 1 after each image.
        """
        latents = []
        for picture, flip in zip(pictures, flips or [False] * len(pictures), strict=True):
            shape = latent_shape(self.model, picture.bucket)
            latents.append(self._cached(self._key(picture, flip), shape, partial(self._encode, picture, flip)))
            if advance:
                advance(1)
        return torch.stack(latents)

    def masks(self, pictures: Sequence[Picture], flips: Sequence[bool]) -> Tensor | None:
        """Return the loss masks (N, 1, h, w), from 0 to 1; 1 for an image without a mask, None if no image has one."""
        if not any(picture.mask for picture in pictures):
            return None
        masks = []
        for picture, flip in zip(pictures, flips, strict=True):
            shape = (1, *latent_shape(self.model, picture.bucket)[1:])
            masks.append(self._cached(f"{self._key(picture, flip)}-mask", shape, partial(self._mask, picture, flip)))
        return torch.stack(masks)

    def sizes(self, pictures: Sequence[Picture], flips: Sequence[bool] = ()) -> Tensor:
        """Return how each image was cropped, as `size_ids` does, (N, 6)."""
        sizes = []
        for picture, flip in zip(pictures, flips or [False] * len(pictures), strict=True):
            key = self._key(picture, flip)
            if key not in self._sizes:
                self._sizes[key] = size_ids(self._with_bucket(picture), flip)
            sizes.append(self._sizes[key])
        return torch.tensor(sizes, device=self.model.device)

    def _cached(self, key: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return a tensor from memory or from its file, or make and save it, also in place of a broken file."""
        if key not in self._memory:
            path = self.folder / f"{key}.npy"
            tensor = _read_tensor(path, shape)
            if tensor is None:
                tensor = make()
                with atomic_path(path, cached=True) as temporary:
                    np.save(temporary, tensor.numpy())
            self._memory[key] = tensor.to(self.model.device)  # 64 KB for 512 px: small beside any model
        return self._memory[key]

    def _with_bucket(self, picture: Picture) -> Picture:
        return picture if picture.bucket else replace(picture, bucket=(self.model.resolution, self.model.resolution))

    def _key(self, picture: Picture, flip: bool) -> str:
        width, height = self._with_bucket(picture).bucket or (0, 0)
        parts = [picture.sha256[:32], self.model.base_hash, f"{width}x{height}"]
        if picture.mask:  # the crop depends on it
            if picture.mask not in self._mask_hashes:
                self._mask_hashes[picture.mask] = hashlib.sha256(picture.mask.read_bytes()).hexdigest()[:16]
            parts.append(self._mask_hashes[picture.mask])
        return "-".join([*parts, *["mirrored"] * flip])

    def _mask(self, picture: Picture, flip: bool) -> Tensor:
        pixels = torch.from_numpy(load_mask(self._with_bucket(picture), flip).copy())[None]
        return F.adaptive_avg_pool2d(pixels, latent_shape(self.model, picture.bucket)[1:])

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, picture: Picture, flip: bool) -> Tensor:
        pixels = torch.from_numpy(load_cropped(self._with_bucket(picture), flip).copy()).permute(2, 0, 1)
        latents = self.model.encode_images(pixels[None].float() / 127.5 - 1)[0].cpu()
        if not latents.isfinite().all():
            raise ModelError(
                f"the VAE of {self.model.name} makes latents of {picture.path} that are no numbers: set another "
                "model.vae, or model.dtype=float32"
            )
        return latents


def _read_tensor(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Read a tensor of finite numbers of a shape; None where the file is missing or holds anything else."""
    try:
        array = np.load(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError):
        return None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != "f":
        return None
    return torch.from_numpy(array) if np.isfinite(array).all() else None


MAX_PROMPT_BYTES = 2**28  # 800 captions of SDXL in 16 bit


class PromptCache:
    """Text embeddings by caption on the model's device, limited in number and memory.

    A text encoder that is trained is not cached.
    """

    def __init__(self, model: BaseModel, size: int = 4096) -> None:
        self.model, self.size = model, size
        self._embeddings: OrderedDict[str, Context] = OrderedDict()
        self._bytes = 0

    def contexts(self, captions: Sequence[str], trains_text_encoder: bool) -> Context:
        """Return the text embeddings of B captions; they have gradients only where the text encoder is trained."""
        if trains_text_encoder:
            return self.model.encode_prompts(captions)
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._embeddings]
        with torch.no_grad(), self.model.on_device(*(self.model.text_encoder_names if new else ())):
            for caption in new:  # one at a time: in a batch, rounding would depend on the other captions
                self._embeddings[caption] = self.model.encode_prompts([caption])
                self._bytes += self._embeddings[caption].nbytes
        for caption in captions:
            self._embeddings.move_to_end(caption)
        stacked = stack_contexts([self._embeddings[c] for c in captions])
        while len(self._embeddings) > self.size or self._bytes > MAX_PROMPT_BYTES:
            self._bytes -= self._embeddings.popitem(last=False)[1].nbytes
        return stacked
