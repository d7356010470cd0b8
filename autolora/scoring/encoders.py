"""Frozen encoders that turn images and prompts into unit vectors of the same space."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.errors import ConfigError
from autolora.files import expand_user
from autolora.models.base import BaseModel
from autolora.models.offload import OffloadManager
from autolora.scoring.embeddings import Embeddings
from autolora.scoring.intervals import Array

BATCH_SIZE = 16  # images; with 64, ViT-L takes 0.8 GB more beside a trial in training
TIMM_METHODS = ("forward_intermediates", "forward_head")  # what a timm model must have to return patch embeddings


def _how_to_get(repository: str, key: str) -> str:
    """Say how to get an encoder, from its repository on the Hugging Face hub and the config key for a folder."""
    source = f"{repository.strip('/')} from the Hugging Face hub" if repository else "it"
    return (
        f"run once with HF_HUB_OFFLINE=0 in the environment to download {source}, or give the folder of an encoder on "
        f"this machine: {key}local-dir:FOLDER"
    )


class Encoder(Protocol):
    """The interface of an encoder that the metrics use."""

    name: str

    def embed_pooled(self, images: NDArray[np.uint8]) -> Array:
        """Embed (N, H, W, 3) uint8 images as (N, D) unit vectors in the space of the texts."""
        ...

    def embed(self, images: NDArray[np.uint8]) -> Embeddings:
        """Embed (N, H, W, 3) uint8 images as the same vectors and as patch embeddings."""
        ...

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """Embed N prompts as (N, D) unit vectors."""
        ...


class _NetworkEncoder:
    """An encoder that is a network of its own; it is on the GPU only while it embeds images."""

    name: str
    model: Any
    side: tuple[int, int]  # of its input, in pixels
    mean: Tensor  # (1, 3, 1, 1), of normalized pixels
    std: Tensor
    offload: OffloadManager

    def embed_pooled(self, images: NDArray[np.uint8]) -> Array:
        """Embed (N, H, W, 3) uint8 images as (N, D) unit vectors."""
        return self.embed(images).pooled

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> Embeddings:
        """Embed (N, H, W, 3) uint8 images as pooled and patch embeddings."""
        rows = []
        with self.offload.on_device("encoder"):
            for pixels in _batches(images, self.side):
                rows.append(self.features(((pixels - self.mean) / self.std).to(self.offload.device)))
        return Embeddings(*(_array(F.normalize(torch.cat(part), dim=-1)) for part in zip(*rows, strict=True)))

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled (B, D) and patch (B, P) features, not normalized, of (B, 3, *side) normalized pixels."""
        raise NotImplementedError


class OpenClip(_NetworkEncoder):
    """An open_clip model with an image tower and a text tower."""

    def __init__(self, name: str, weights: str | None = None) -> None:
        import open_clip

        logging.disable(logging.ERROR)  # open_clip logs the errors that it raises
        try:
            self.model, _, _ = open_clip.create_model_and_transforms(name, pretrained=weights)
        except Exception as error:  # open_clip raises the errors of its hub client, its registry and its reader
            config = open_clip.get_pretrained_cfg(name, weights) if weights else {}
            help_text = _how_to_get(str(config.get("hf_hub", "")), "scoring.encoder=")
            message = f"open_clip cannot load {name} {weights or ''} ({_first_line(error)}): {help_text}"
            raise ConfigError(message) from error
        finally:
            logging.disable(logging.NOTSET)
        self.model.eval().requires_grad_(False)
        self.offload = _offload_manager(self.model)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.name = name
        visual = self.model.visual
        side = visual.image_size
        self.side = (side, side) if isinstance(side, int) else (side[0], side[1])
        self.mean = torch.tensor(visual.image_mean or (0.481, 0.458, 0.408)).view(1, 3, 1, 1)
        self.std = torch.tensor(visual.image_std or (0.269, 0.261, 0.276)).view(1, 3, 1, 1)
        with self.offload.on_device("encoder"):
            blank = torch.zeros(1, 3, *self.side, device=self.offload.device)
            blocks = len(self.model.forward_intermediates(image=blank)["image_intermediates"])
        # The last block is always included, because open_clip's ModifiedResNet pools the last block that it computes.
        self.blocks = [_patch_block(blocks), blocks - 1]

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled (B, D) and patch (B, P) features, not normalized, of (B, 3, *side) normalized pixels."""
        output = self.model.forward_intermediates(image=pixels, image_indices=self.blocks)
        return output["image_features"], _quarters(output["image_intermediates"][0])

    @torch.inference_mode()
    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """Embed N prompts as (N, D) unit vectors."""
        with self.offload.on_device("encoder"):
            tokens = self.tokenizer(list(prompts)).to(self.offload.device)
            return _array(self.model.encode_text(tokens, normalize=True))


class Timm(_NetworkEncoder):
    """A timm model without a text tower, such as DINOv2, as a second encoder for likeness and bleed."""

    def __init__(self, name: str) -> None:
        import timm

        try:
            self.model = timm.create_model(name, pretrained=True, num_classes=0).eval().requires_grad_(False)
        except Exception as error:  # timm raises the errors of its hub client, its registry and its reader
            registered = timm.get_pretrained_cfg(name)
            repository = str(registered.hf_hub_id or "") if registered else ""
            help_text = _how_to_get(repository, "scoring.second_encoder=timm:")
            raise ConfigError(f"timm cannot load {name} ({_first_line(error)}): {help_text}") from error
        missing = [method for method in TIMM_METHODS if not hasattr(self.model, method)]
        if missing:
            raise ConfigError(
                f"timm:{name} gives no access to its inner blocks (no {' and no '.join(missing)}): use another model, "
                "such as timm:vit_small_patch14_dinov2.lvd142m"
            )
        self.offload = _offload_manager(self.model)
        config = timm.data.resolve_model_data_config(self.model)
        self.name = f"timm:{name}"
        self.side = config["input_size"][-2:]
        self.mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        with self.offload.on_device("encoder"):
            blank = torch.zeros(1, 3, *self.side, device=self.offload.device)
            self.block = _patch_block(len(self.model.forward_intermediates(blank)[1]))

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled (B, D) and patch (B, P) features, not normalized, of (B, 3, *side) normalized pixels."""
        last, (block,) = self.model.forward_intermediates(pixels, indices=[self.block])
        return self.model.forward_head(last), _quarters(block)

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """Raise ConfigError, because there is no text tower."""
        raise _no_text_tower(self.name)


class VaeEncoder:
    """The base model's own VAE as a second encoder: colours and shapes on a coarse grid."""

    GRID = 4  # side of the grid of cells that latents are averaged over

    def __init__(self, model: BaseModel) -> None:
        self.model, self.name = model, "vae"

    def embed(self, images: NDArray[np.uint8]) -> Embeddings:
        """Embed (N, H, W, 3) uint8 images; the same vectors serve as pooled and as patch embeddings."""
        rows = self.embed_pooled(images)
        return Embeddings(rows, rows)

    @torch.inference_mode()
    def embed_pooled(self, images: NDArray[np.uint8]) -> Array:
        """Embed (N, H, W, 3) uint8 images as (N, GRID * GRID * C) unit vectors."""
        rows = []
        with self.model.on_device("vae"):
            for pixels in _batches(images, None):
                latents = self.model.encode_images((pixels * 2 - 1).to(self.model.device))
                rows.append(F.adaptive_avg_pool2d(latents.float(), self.GRID).flatten(1))
        return _array(F.normalize(torch.cat(rows), dim=-1))

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """Raise ConfigError, because there is no text tower."""
        raise _no_text_tower(self.name)


def _no_text_tower(name: str) -> ConfigError:
    return ConfigError(f"{name} has no text tower: it can be scoring.second_encoder, not scoring.encoder")


def _offload_manager(model: nn.Module) -> OffloadManager:
    """Return a manager that frees the GPU's memory for training when the encoder is not used."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return OffloadManager(device, {"encoder": model}, offload=True)


def _batches(images: NDArray[np.uint8], side: tuple[int, int] | None) -> Iterator[Tensor]:
    """Yield (B, 3, h, w) in [0, 1], resized if a side is given."""
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.ascontiguousarray(images[start : start + BATCH_SIZE])
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        if side is not None and tuple(pixels.shape[-2:]) != side:
            pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True).clamp(0, 1)
        yield pixels


def _patch_block(blocks: int) -> int:
    """Return the index of the block for patch embeddings: at three quarters of the depth.

    On the replay data's first 87 recipes, its quarters separate renders with the character from those without by AUC
    .90 (.84 to .93, by the attribute classifier), the last block's by .89 and the second of four stages' by .89. The
    pooled vector, which hardly notices that one mark is missing, does so by .83 (.69 to .90).
    """
    return blocks - blocks // 4 - 1


def _quarters(block: Tensor) -> Tensor:
    """Average each quarter of the image: (B, C, h, w) -> (B, 4 C)."""
    return F.adaptive_avg_pool2d(block.float(), 2).flatten(1)


def _array(rows: Tensor) -> Array:
    return np.asarray(rows.double().cpu().numpy())


def load_encoder(name: str) -> Encoder:
    """Load an encoder with a text tower by its name in `scoring.encoder`.

    Args:
        name: `paperdoll`, `local-dir:FOLDER` of an open_clip model, or `open_clip:MODEL/WEIGHTS` from open_clip's list.

    Raises:
        ConfigError: there is no such encoder, or it cannot be downloaded.
    """
    from autolora.paperdoll.weights import CLIP

    kind, _, rest = name.partition(":")
    if kind == "open_clip" and "/" in rest:
        return _open_clip(*rest.split("/", 1))
    if name != "paperdoll" and kind != "local-dir":
        raise ConfigError(
            f"scoring.encoder={name}: expected `local-dir:FOLDER`, `open_clip:MODEL/WEIGHTS` or `paperdoll`"
        )
    folder = CLIP if name == "paperdoll" else expand_user(rest)
    config = folder / "open_clip_config.json"
    if not config.is_file():
        reason = f"{folder} has no {config.name}; give the folder of an open_clip model"
        raise ConfigError(f"scoring.encoder={name}: {reason}")
    if "trust_remote_code" in _keys(config):
        raise ConfigError(
            f"scoring.encoder={name}: open_clip_config.json asks for code in its folder to be run "
            "(trust_remote_code), which autolora never does; use another encoder"
        )
    return _open_clip(f"local-dir:{folder}", None)


def _keys(path: Path) -> list[str]:
    """Return all keys of a JSON file at any depth; none if it is broken, which open_clip reports."""
    keys: list[str] = []
    with suppress(ValueError, RecursionError):
        json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: keys.extend(key for key, _ in pairs))
    return keys


def load_second_encoder(name: str, model: BaseModel) -> Encoder:
    """Load an encoder by its name in `scoring.second_encoder`.

    Args:
        name: as for `load_encoder`, or `timm:MODEL`, or `vae` for the base model's own VAE.
        model: the base model.

    Raises:
        ConfigError: there is no such encoder, or it cannot be downloaded.
    """
    if name == "vae":
        return VaeEncoder(model)
    return _timm(name.removeprefix("timm:")) if name.startswith("timm:") else load_encoder(name)


@lru_cache(maxsize=2)
def _open_clip(name: str, weights: str | None) -> OpenClip:
    return OpenClip(name, weights)


@lru_cache(maxsize=1)
def _timm(name: str) -> Timm:
    return Timm(name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
