"""Frozen encoders that turn pictures and prompts into unit vectors of one space."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.errors import ConfigError
from autolora.models.base import BaseModel
from autolora.models.offload import OffloadManager
from autolora.scoring.intervals import Array

BATCH_SIZE = 16  # pictures that an encoder looks at together: of 64, ViT-L takes 0.8 GB more beside a trial in training
INNER = ("forward_intermediates", "forward_head")  # what a timm model must have for its details to be seen


def _remedy(repository: str, given: str) -> str:
    """How to get an encoder: the repository of the Hugging Face hub that it is in, and how a folder is given."""
    where = f"{repository.strip('/')} of the Hugging Face hub" if repository else "it"
    return (
        f"run once with HF_HUB_OFFLINE=0 in the environment to have {where} downloaded, or give the folder of one that "
        f"is on this machine: {given}local-dir:FOLDER"
    )


@dataclass(frozen=True)
class Embeddings:
    """Pictures as an encoder sees them; rows are unit vectors."""

    pooled: Array  # (N, D) in the space of its texts
    patches: Array  # (N, P) what is where, before it is pooled

    def split(self, counts: Sequence[int]) -> list[Embeddings]:
        """As many rows in turn as each of the counts says."""
        ends = np.cumsum(counts)[:-1]
        return [
            Embeddings(*parts) for parts in zip(np.split(self.pooled, ends), np.split(self.patches, ends), strict=True)
        ]


def concatenate(views: Iterable[Embeddings]) -> Embeddings:
    """The rows of all of them, in turn."""
    views = list(views)
    return Embeddings(np.concatenate([v.pooled for v in views]), np.concatenate([v.patches for v in views]))


class Encoder(Protocol):
    """What the terms need of an encoder."""

    name: str

    def embed_pooled(self, pictures: NDArray[np.uint8]) -> Array:
        """(N, H, W, 3) uint8 -> (N, D) unit vectors in the space of its texts."""
        ...

    def embed(self, pictures: NDArray[np.uint8]) -> Embeddings:
        """(N, H, W, 3) uint8 -> the same vectors, and the details behind them."""
        ...

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """N prompts -> (N, D)."""
        ...


class OpenClip:
    """Any open_clip model with both towers; on the GPU at hand for as long as it looks."""

    def __init__(self, name: str, weights: str | None = None) -> None:
        import open_clip

        logging.disable(logging.ERROR)  # it logs what it raises
        try:
            self.model, _, _ = open_clip.create_model_and_transforms(name, pretrained=weights)
        except Exception as error:  # open_clip raises whatever its hub client, its registry or its reader does
            known = open_clip.get_pretrained_cfg(name, weights) if weights else {}
            how = _remedy(str(known.get("hf_hub", "")), "scoring.encoder=")
            raise ConfigError(f"open_clip cannot load {name} {weights or ''} ({_first_line(error)}): {how}") from error
        finally:
            logging.disable(logging.NOTSET)
        self.model.eval().requires_grad_(False)
        self.offload = _offload_manager(self.model)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.name = name
        visual = self.model.visual
        side = visual.image_size
        self.side: tuple[int, int] = (side, side) if isinstance(side, int) else (side[0], side[1])
        self.mean = torch.tensor(visual.image_mean or (0.481, 0.458, 0.408)).view(1, 3, 1, 1)
        self.std = torch.tensor(visual.image_std or (0.269, 0.261, 0.276)).view(1, 3, 1, 1)
        # Always with the last block: its ModifiedResNet pools what it stops at, whether that is the last or not.
        with self.offload.on_device("encoder"):
            blank = torch.zeros(1, 3, *self.side, device=self.offload.device)
            every = self.model.forward_intermediates(image=blank)["image_intermediates"]
        self.blocks = [_detailed(len(every)), len(every) - 1]

    def embed_pooled(self, pictures: NDArray[np.uint8]) -> Array:
        """(N, H, W, 3) uint8 -> (N, D) unit vectors."""
        return self.embed(pictures).pooled

    @torch.inference_mode()
    def embed(self, pictures: NDArray[np.uint8]) -> Embeddings:
        """(N, H, W, 3) uint8 -> the same vectors, and the details behind them."""
        rows = []
        with self.offload.on_device("encoder"):
            for pixels in _batches(pictures, self.side):
                rows.append(self.features(((pixels - self.mean) / self.std).to(self.offload.device)))
        return _views(rows)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, *side) normalised pixels -> (B, D) and (B, P), as `views` has them but of any length."""
        seen = self.model.forward_intermediates(image=image, image_indices=self.blocks)
        return seen["image_features"], _quarters(seen["image_intermediates"][0])

    @torch.inference_mode()
    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """N prompts -> (N, D) unit vectors."""
        with self.offload.on_device("encoder"):
            tokens = self.tokenizer(list(prompts)).to(self.offload.device)
            return _array(self.model.encode_text(tokens, normalize=True))


class Timm:
    """A timm model without a text tower, such as DINOv2: for a second opinion on likeness and bleed."""

    def __init__(self, name: str) -> None:
        import timm

        try:
            self.model = timm.create_model(name, pretrained=True, num_classes=0).eval().requires_grad_(False)
        except Exception as error:  # timm raises whatever its hub client, its registry or its reader does
            known = timm.get_pretrained_cfg(name)
            how = _remedy(str(known.hf_hub_id or "") if known else "", "scoring.second_encoder=timm:")
            raise ConfigError(f"timm cannot load {name} ({_first_line(error)}): {how}") from error
        lacking = [method for method in INNER if not hasattr(self.model, method)]
        if lacking:
            raise ConfigError(
                f"timm:{name} does not show its inner blocks (no {' and no '.join(lacking)}): take another model, "
                "such as timm:vit_small_patch14_dinov2.lvd142m"
            )
        self.offload = _offload_manager(self.model)
        config = timm.data.resolve_model_data_config(self.model)
        self.name = f"timm:{name}"
        self.side: tuple[int, int] = config["input_size"][-2:]
        self.mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        with self.offload.on_device("encoder"):
            blank = torch.zeros(1, 3, *self.side, device=self.offload.device)
            self.block = _detailed(len(self.model.forward_intermediates(blank)[1]))

    def embed_pooled(self, pictures: NDArray[np.uint8]) -> Array:
        """(N, H, W, 3) uint8 -> (N, D) unit vectors."""
        return self.embed(pictures).pooled

    @torch.inference_mode()
    def embed(self, pictures: NDArray[np.uint8]) -> Embeddings:
        """(N, H, W, 3) uint8 -> the same vectors, and the details behind them."""
        rows = []
        with self.offload.on_device("encoder"):
            for pixels in _batches(pictures, self.side):
                rows.append(self.features(((pixels - self.mean) / self.std).to(self.offload.device)))
        return _views(rows)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, *side) normalised pixels -> (B, D) and (B, P), as `views` has them but of any length."""
        last, (block,) = self.model.forward_intermediates(image, indices=[self.block])
        return self.model.forward_head(last), _quarters(block)

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """Refused: there is no text tower."""
        raise ConfigError(f"{self.name} has no text tower: it can be scoring.second_encoder, not scoring.encoder")


class VaeEncoder:
    """The base model's own autoencoder: colours and shapes at a coarse grid, for a second opinion."""

    GRID = 4  # cells a side that latents are averaged over

    def __init__(self, model: BaseModel) -> None:
        self.model, self.name = model, "vae"

    def embed(self, pictures: NDArray[np.uint8]) -> Embeddings:
        """(N, H, W, 3) uint8 -> its vectors twice: they are details already."""
        rows = self.embed_pooled(pictures)
        return Embeddings(rows, rows)

    @torch.inference_mode()
    def embed_pooled(self, pictures: NDArray[np.uint8]) -> Array:
        """(N, H, W, 3) uint8 -> (N, GRID * GRID * C) unit vectors."""
        rows = []
        with self.model.on_device("vae"):
            for pixels in _batches(pictures, None):
                latents = self.model.encode_images((pixels * 2 - 1).to(self.model.device))
                rows.append(F.adaptive_avg_pool2d(latents.float(), self.GRID).flatten(1))
        return _array(F.normalize(torch.cat(rows), dim=-1))

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        """Refused: there is no text tower."""
        raise ConfigError(f"{self.name} has no text tower: it can be scoring.second_encoder, not scoring.encoder")


def _offload_manager(model: nn.Module) -> OffloadManager:
    """An encoder looks once a checkpoint and then makes room for training."""
    return OffloadManager(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"), {"encoder": model}, offload=True
    )


def _batches(pictures: NDArray[np.uint8], side: tuple[int, int] | None) -> Iterator[Tensor]:
    """(B, 3, h, w) in [0, 1], resized where a side is given."""
    for start in range(0, len(pictures), BATCH_SIZE):
        part = np.ascontiguousarray(pictures[start : start + BATCH_SIZE])
        pixels = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255
        if side is not None and tuple(pixels.shape[-2:]) != side:
            pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True).clamp(0, 1)
        yield pixels


def _detailed(blocks: int) -> int:
    """Which block shows details best: three quarters of the way up, where parts are seen but not yet pooled.

    On the bank's first 87 recipes its quarters tell renders with the character from those without by AUC .90 (.84 to
    .93, the oracle's word), the last block's by .89, the second of four stages' by .89, the pooled vector by .83 (.69
    to .90), which hardly tells a render that lacks one mark.
    """
    return blocks - blocks // 4 - 1


def _quarters(block: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 4 C): the mean of each quarter of the picture."""
    return F.adaptive_avg_pool2d(block.float(), 2).flatten(1)


def _views(rows: Sequence[tuple[Tensor, Tensor]]) -> Embeddings:
    return Embeddings(*(_array(F.normalize(torch.cat(part), dim=-1)) for part in zip(*rows, strict=True)))


def _array(rows: Tensor) -> Array:
    return np.asarray(rows.double().cpu().numpy())


def load_encoder(name: str) -> Encoder:
    """Load an encoder by its name in `scoring.encoder`: one with a text tower.

    `paperdoll`, `local-dir:FOLDER` of an open_clip model, or `open_clip:MODEL/WEIGHTS` as open_clip lists them.

    Raises:
        ConfigError: there is no such encoder, or it cannot be downloaded.
    """
    from autolora.paperdoll.weights import CLIP

    kind, _, rest = name.partition(":")
    if kind == "open_clip" and "/" in rest:
        return _open_clip(*rest.split("/", 1))
    if name != "paperdoll" and kind != "local-dir":
        raise ConfigError(
            f"scoring.encoder={name}: expected `local-dir:FOLDER` of an open_clip model, "
            "`open_clip:MODEL/WEIGHTS` or `paperdoll`"
        )
    folder = CLIP if name == "paperdoll" else Path(rest).expanduser()
    if not (folder / "open_clip_config.json").is_file():
        raise ConfigError(
            f"scoring.encoder={name}: no open_clip_config.json in {folder}; give an open_clip model's folder"
        )
    return _open_clip(f"local-dir:{folder}", None)


def load_second_encoder(name: str, model: BaseModel) -> Encoder:
    """Load an encoder by its name in `scoring.second_encoder`: also `timm:MODEL`, or `vae` for the base model's own.

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
