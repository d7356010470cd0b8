"""What a step trains on: cached latents and text embeddings, in an order that only the run's seed decides."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autolora.data.concepts import Dataset, without_triggers
from autolora.data.crops import load_cropped, load_mask, size_ids
from autolora.data.random_draws import drop_tags, epoch_order, shuffle_tags
from autolora.data.sources import Picture
from autolora.errors import ConfigError
from autolora.files import atomic_path
from autolora.models.base import BaseModel, Context, stack_contexts
from autolora.train.run import Run

PURPOSES = ("adapter", "order", "captions", "noise", "timesteps", "weights", "flips", "offset")


def generators(seed: int) -> dict[str, torch.Generator]:
    """One CPU generator per purpose, so that one draw more in one never moves another."""
    seeds = {p: int.from_bytes(hashlib.sha256(f"{seed}-{p}".encode()).digest()[:7], "big") for p in PURPOSES}
    return {purpose: torch.Generator().manual_seed(value) for purpose, value in seeds.items()}


def latent_shape(model: BaseModel, frame: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a picture in a frame; None is the model's own square.

    Raises:
        ConfigError: a side is no whole number of latent cells.
    """
    channels, side, _ = model.latent_shape
    cell = model.resolution // side
    width, height = frame or (model.resolution, model.resolution)
    if width % cell or height % cell:
        raise ConfigError(
            f"a bucket of {width}x{height} px: dataset.buckets.bucket_reso_steps must be a multiple of {cell} here"
        )
    return channels, height // cell, width // cell


class LatentCache:
    """Latents and loss masks by picture content and frame, kept on the model's device and on disk."""

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
        """(N, C, h, w) scaled latents of pictures of one frame, mirrored where asked; what is new is encoded and kept.

        A mirrored picture is encoded as such: a VAE does not commute with mirroring.
        """
        found = []
        for picture, flip in zip(pictures, flips or [False] * len(pictures), strict=True):
            found.append(self._known(self._key(picture, flip), partial(self._encode, picture, flip)))
            if advance:
                advance(1)
        return torch.stack(found)

    def masks(self, pictures: Sequence[Picture], flips: Sequence[bool]) -> Tensor | None:
        """(N, 1, h, w) loss masks from 0 to 1 in the latents' cells, 1 for a picture without; None if none has one."""
        if not any(picture.mask for picture in pictures):
            return None
        found = []
        for picture, flip in zip(pictures, flips, strict=True):
            found.append(self._known(f"{self._key(picture, flip)}-mask", partial(self._mask, picture, flip)))
        return torch.stack(found)

    def sizes(self, pictures: Sequence[Picture], flips: Sequence[bool] = ()) -> Tensor:
        """(N, 6) how each picture was cropped, as `size_ids` gives it."""
        found = []
        for picture, flip in zip(pictures, flips or [False] * len(pictures), strict=True):
            key = self._key(picture, flip)
            if key not in self._sizes:
                self._sizes[key] = size_ids(self._framed(picture), flip)
            found.append(self._sizes[key])
        return torch.tensor(found, device=self.model.device)

    def _known(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor from memory, from its file, or made and kept."""
        if key not in self._memory:
            path = self.folder / f"{key}.npy"
            if path.is_file():
                found = torch.from_numpy(np.load(path))
            else:
                found = make()
                with atomic_path(path) as temporary:
                    np.save(temporary, found.numpy())
            self._memory[key] = found.to(self.model.device)  # 64 KB for 512 px: they fit beside any model
        return self._memory[key]

    def _framed(self, picture: Picture) -> Picture:
        return picture if picture.bucket else replace(picture, bucket=(self.model.resolution, self.model.resolution))

    def _key(self, picture: Picture, flip: bool) -> str:
        width, height = self._framed(picture).bucket or (0, 0)
        parts = [picture.sha256[:32], self.model.base_hash, f"{width}x{height}"]
        if picture.mask:  # it decides where the picture is cropped
            if picture.mask not in self._mask_hashes:
                self._mask_hashes[picture.mask] = hashlib.sha256(picture.mask.read_bytes()).hexdigest()[:16]
            parts.append(self._mask_hashes[picture.mask])
        return "-".join([*parts, *["mirrored"] * flip])

    def _mask(self, picture: Picture, flip: bool) -> Tensor:
        pixels = torch.from_numpy(load_mask(self._framed(picture), flip).copy())[None]
        return F.adaptive_avg_pool2d(pixels, latent_shape(self.model, picture.bucket)[1:])

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, picture: Picture, flip: bool) -> Tensor:
        pixels = torch.from_numpy(load_cropped(self._framed(picture), flip).copy()).permute(2, 0, 1)
        return self.model.encode_images(pixels[None].float() / 127.5 - 1)[0].cpu()


MOST_CONTEXT_BYTES = 2**28  # of text embeddings kept on the device: 800 captions of SDXL in 16 bit, or all of SD1's


class PromptCache:
    """Text embeddings by caption, bounded in number and memory; off while the text encoder trains."""

    def __init__(self, model: BaseModel, size: int = 4096) -> None:
        self.model, self.size = model, size
        self._known: OrderedDict[str, Context] = OrderedDict()
        self._bytes = 0

    def contexts(self, captions: Sequence[str], trains_text_encoder: bool) -> Context:
        """The contexts of B captions; with gradients only where the text encoder trains."""
        if trains_text_encoder:
            return self.model.encode_prompts(captions)
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        with torch.no_grad(), self.model.on_device(*(self.model.text_encoder_names if new else ())):
            for caption in new:  # one by one: in a batch, rounding would depend on what else was new
                self._known[caption] = self.model.encode_prompts([caption])
                self._bytes += self._known[caption].nbytes
        for caption in captions:
            self._known.move_to_end(caption)
        found = stack_contexts([self._known[c] for c in captions])
        while len(self._known) > self.size or self._bytes > MOST_CONTEXT_BYTES:
            self._bytes -= self._known.popitem(last=False)[1].nbytes
        return found


@dataclass(frozen=True)
class Batch:
    """What one step of one run shows: B pictures of one frame, their noise (B, C, h, w), timesteps and weights (B)."""

    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    noise: Tensor
    timesteps: Tensor
    preserved: tuple[bool, ...]  # where the base model's own prediction is the target
    weights: Tensor  # the LoRA weight that each is trained at
    flips: tuple[bool, ...]  # which are mirrored


def padded(batch: Batch, length: int) -> Batch:
    """The batch, repeated to a length."""
    return _picked(batch, [i % len(batch.pictures) for i in range(length)])


def in_parts(batch: Batch, at_once: int) -> list[Batch]:
    """The batch in parts of at most so many pictures."""
    whole = range(len(batch.pictures))
    return [_picked(batch, whole[begin : begin + at_once]) for begin in whole[::at_once]]


def _picked(batch: Batch, order: Sequence[int]) -> Batch:
    order = list(order)
    return Batch(
        tuple(batch.pictures[i] for i in order),
        tuple(batch.captions[i] for i in order),
        batch.noise[order],
        batch.timesteps[order],
        tuple(batch.preserved[i] for i in order),
        batch.weights[order],
        tuple(batch.flips[i] for i in order),
    )


@dataclass(frozen=True)
class Part:
    """Pictures of one kind, and how many of them an epoch shows."""

    pictures: tuple[Picture, ...]
    steps: int
    caption_dropout_rate: float = 0.0
    preserved: bool = False  # the base model's own prediction is the target
    own: bool = False  # the dataset's: its tags are dropped, and it may be trained at the smaller weight


def epoch_parts(run: Run, dataset: Dataset, class_pictures: Sequence[Picture]) -> list[Part]:
    """What an epoch of a run shows: each concept's pictures, then what is shown beside them.

    Guidance leads away from what an empty caption draws. Where that becomes the character, every other prompt is led
    away from it, so class pictures lose their captions too; where it stays the base model's, the trigger is led too far
    and burns. The pictures without triggers keep their captions.

    Raises:
        ValueError: class pictures are needed, but there are none.
    """
    settings, beside = run.train, run.class_images_per_epoch(dataset)
    shown = tuple(class_pictures[: settings.num_class_images])
    if not shown and (beside["class images"] or beside["regularization"]):
        raise ValueError(
            "train.prior_preservation_ratio or train.reg_ratio is above 0, but there are no class pictures"
        )
    parts = [
        Part(concept.pictures, steps, settings.caption_dropout_rate, own=True)
        for concept, steps in zip(dataset.concepts, run.images_by_concept(dataset), strict=True)
    ]
    parts += [
        Part(shown, beside["class images"], settings.class_caption_dropout_rate, preserved=True),
        Part(without_triggers(dataset).pictures, beside["without triggers"], preserved=True),
        Part(shown, beside["regularization"], settings.class_caption_dropout_rate),
    ]
    return [part for part in parts if part.steps]


class Stream:
    """The pictures, captions, noise and timesteps of one run, in order; its state can be saved and restored."""

    def __init__(self, run: Run, dataset: Dataset, model: BaseModel, class_pictures: Sequence[Picture] = ()) -> None:
        self.run, self.model = run, model
        self.parts = epoch_parts(run, run.with_captions(dataset), class_pictures)
        self.pictures = [(picture, part) for part in self.parts for picture in part.pictures]
        self.generators = generators(run.train.seed)
        self.queue: list[list[int]] = []  # batches still to show in this epoch

    def next_batch(self) -> Batch:
        """What the next step shows; batches at the end of an epoch may be short."""
        if not self.queue:
            self.queue = self._epoch(self.generators["order"])
        picks = self.queue.pop(0)
        chosen = [self.pictures[i] for i in picks]
        captions = tuple(self._caption(picture.caption, part) for picture, part in chosen)
        shape = latent_shape(self.model, chosen[0][0].bucket)
        noise = torch.randn(len(picks), *shape, generator=self.generators["noise"])
        if self.run.train.noise_offset:  # Guttenberg 2023
            whole = torch.randn(len(picks), shape[0], 1, 1, generator=self.generators["offset"])
            noise = noise + self.run.train.noise_offset * whole
        steps = self.model.sample_timesteps(len(picks), shape, self.generators["timesteps"])
        preserved = tuple(part.preserved for _, part in chosen)
        weak = torch.rand(len(picks), generator=self.generators["weights"]) < 0.5
        weights = torch.where(
            weak & torch.tensor([part.own for _, part in chosen]), self.run.train.min_lora_multiplier, 1.0
        )
        mirrored = torch.rand(len(picks), generator=self.generators["flips"]) < 0.5
        flips = tuple(bool(flip) and self.run.train.flip_aug for flip in mirrored)
        return Batch(tuple(p for p, _ in chosen), captions, noise, steps, preserved, weights, flips)

    def optimizer_steps(self) -> int:
        """Batches of the whole run from its start; they depend on which pictures the last pass of an epoch draws."""
        order = generators(self.run.train.seed)["order"]
        return sum(len(self._epoch(order)) for _ in range(self.run.train.epochs))

    def _epoch(self, generator: torch.Generator) -> list[list[int]]:
        """The batches of an epoch: a batch is shown when as many pictures of its frame have come up as it holds."""
        order, first = [], 0
        for part in self.parts:
            order += [first + i for i in epoch_order(len(part.pictures), part.steps, generator)]
            first += len(part.pictures)
        batches: list[list[int]] = []
        waiting: dict[tuple[int, int] | None, list[int]] = {}
        for i in torch.randperm(len(order), generator=generator).tolist():
            frame = self.pictures[order[i]][0].bucket
            waiting.setdefault(frame, []).append(order[i])
            if len(waiting[frame]) == self.run.train.batch_size:
                batches.append(waiting.pop(frame))
        return [*batches, *waiting.values()]

    def _caption(self, caption: str, part: Part) -> str:
        """The caption as it is shown this time."""
        settings, generator = self.run.train, self.generators["captions"]
        if part.caption_dropout_rate and torch.rand((), generator=generator) < part.caption_dropout_rate:
            return ""
        if part.own and settings.caption_tag_dropout_rate:
            caption = drop_tags(caption, settings.keep_tokens, settings.caption_tag_dropout_rate, generator)
        return shuffle_tags(caption, settings.keep_tokens, generator) if settings.shuffle_caption else caption

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to continue this stream exactly."""
        return {"queue": list(self.queue), "generators": {p: g.get_state() for p, g in self.generators.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.queue = list(state["queue"])
        for purpose, saved in state["generators"].items():
            self.generators[purpose].set_state(saved)
