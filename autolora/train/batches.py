"""What each step of a run shows: images, captions, noise and timesteps, in an order that the run's seed decides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autolora.data.concepts import Dataset, without_triggers
from autolora.data.random_draws import drop_tags, epoch_order, shuffle_tags
from autolora.data.sources import Picture
from autolora.models.base import BaseModel
from autolora.train.caches import latent_shape
from autolora.train.run import Run

PURPOSES = ("adapter", "order", "captions", "noise", "timesteps", "weights", "flips", "offset")


def generators(seed: int) -> dict[str, torch.Generator]:
    """Return a CPU generator per purpose, so that an additional draw for one purpose does not change the others."""
    seeds = {p: int.from_bytes(hashlib.sha256(f"{seed}-{p}".encode()).digest()[:7], "big") for p in PURPOSES}
    return {purpose: torch.Generator().manual_seed(value) for purpose, value in seeds.items()}


@dataclass(frozen=True)
class Batch:
    """What one step of one run shows: B images of one bucket resolution."""

    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    noise: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)
    preserved: tuple[bool, ...]  # whether the base model's prediction is the target
    weights: Tensor  # (B,), the LoRA weight that each image is trained at
    flips: tuple[bool, ...]  # whether the image is mirrored


def padded(batch: Batch, length: int) -> Batch:
    """Repeat a batch's images up to a length."""
    return _select(batch, [i % len(batch.pictures) for i in range(length)])


def in_parts(batch: Batch, size: int) -> list[Batch]:
    """Split a batch into micro-batches of at most `size` images."""
    indices = range(len(batch.pictures))
    return [_select(batch, indices[begin : begin + size]) for begin in indices[::size]]


def _select(batch: Batch, indices: Sequence[int]) -> Batch:
    order = list(indices)
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
    """Images of one kind, and how many of them an epoch shows."""

    pictures: tuple[Picture, ...]
    images_per_epoch: int
    caption_dropout_rate: float = 0.0
    preserved: bool = False  # whether the base model's prediction is the target
    from_dataset: bool = False  # with dropout of tags and a random LoRA weight


def epoch_parts(run: Run, dataset: Dataset, class_pictures: Sequence[Picture]) -> list[Part]:
    """Return what an epoch of a run shows: the images of each concept, then class images.

    Classifier-free guidance moves a render away from what an empty caption gives. If empty captions become the
    character, guidance moves all other prompts away from it; so class images are shown with empty captions too. If
    empty captions stay the base model's, guidance pushes the trigger too far and renders oversaturate; so the dataset's
    images are shown with empty captions too. Images without triggers keep their captions.

    Raises:
        ValueError: class images are needed, but there are none.
    """
    settings, counts = run.train, run.class_images_per_epoch(dataset)
    class_images = tuple(class_pictures[: settings.num_class_images])
    if not class_images and (counts["class images"] or counts["regularization"]):
        raise ValueError("train.prior_preservation_ratio or train.reg_ratio is above 0, but there are no class images")
    parts = [
        Part(concept.pictures, count, settings.caption_dropout_rate, from_dataset=True)
        for concept, count in zip(dataset.concepts, run.images_by_concept(dataset), strict=True)
    ]
    parts += [
        Part(class_images, counts["class images"], settings.class_caption_dropout_rate, preserved=True),
        Part(without_triggers(dataset).pictures, counts["without triggers"], preserved=True),
        Part(class_images, counts["regularization"], settings.class_caption_dropout_rate),
    ]
    return [part for part in parts if part.images_per_epoch]


class Stream:
    """The batches of one run in order; the state of the stream can be saved and restored."""

    def __init__(self, run: Run, dataset: Dataset, model: BaseModel, class_pictures: Sequence[Picture] = ()) -> None:
        self.run, self.model = run, model
        self.parts = epoch_parts(run, run.with_captions(dataset), class_pictures)
        self.pictures = [(picture, part) for part in self.parts for picture in part.pictures]
        self.generators = generators(run.train.seed)
        self.queue: list[list[int]] = []  # the rest of this epoch's batches, as indices of `pictures`

    def next_batch(self) -> Batch:
        """Return the next batch; the last batches of an epoch may be smaller."""
        if not self.queue:
            self.queue = self._epoch(self.generators["order"])
        examples = [self.pictures[i] for i in self.queue.pop(0)]
        count = len(examples)
        captions = tuple(self._caption(picture.caption, part) for picture, part in examples)
        shape = latent_shape(self.model, examples[0][0].bucket)
        noise = torch.randn(count, *shape, generator=self.generators["noise"])
        if self.run.train.noise_offset:  # Guttenberg 2023
            offset = torch.randn(count, shape[0], 1, 1, generator=self.generators["offset"])
            noise = noise + self.run.train.noise_offset * offset
        timesteps = self.model.sample_timesteps(count, shape, self.generators["timesteps"])
        preserved = tuple(part.preserved for _, part in examples)
        is_weaker = torch.rand(count, generator=self.generators["weights"]) < 0.5
        from_dataset = torch.tensor([part.from_dataset for _, part in examples])
        weights = torch.where(is_weaker & from_dataset, self.run.train.min_lora_multiplier, 1.0)
        mirrored = torch.rand(count, generator=self.generators["flips"]) < 0.5
        flips = tuple(bool(flip) and self.run.train.flip_aug for flip in mirrored)
        return Batch(tuple(p for p, _ in examples), captions, noise, timesteps, preserved, weights, flips)

    def optimizer_steps(self) -> int:
        """Return the number of batches of the whole run; it depends on the images that the epochs draw."""
        order = generators(self.run.train.seed)["order"]
        return sum(len(self._epoch(order)) for _ in range(self.run.train.epochs))

    def _epoch(self, generator: torch.Generator) -> list[list[int]]:
        """Return the batches of an epoch; a batch is complete when it has enough images of one bucket resolution."""
        order, first = [], 0
        for part in self.parts:
            order += [first + i for i in epoch_order(len(part.pictures), part.images_per_epoch, generator)]
            first += len(part.pictures)
        batches: list[list[int]] = []
        incomplete: dict[tuple[int, int] | None, list[int]] = {}
        for i in torch.randperm(len(order), generator=generator).tolist():
            bucket = self.pictures[order[i]][0].bucket
            incomplete.setdefault(bucket, []).append(order[i])
            if len(incomplete[bucket]) == self.run.train.batch_size:
                batches.append(incomplete.pop(bucket))
        return [*batches, *incomplete.values()]

    def _caption(self, caption: str, part: Part) -> str:
        """Return a caption with this time's dropout and order of tags."""
        settings, generator = self.run.train, self.generators["captions"]
        if part.caption_dropout_rate and torch.rand((), generator=generator) < part.caption_dropout_rate:
            return ""
        if part.from_dataset and settings.caption_tag_dropout_rate:
            caption = drop_tags(caption, settings.keep_tokens, settings.caption_tag_dropout_rate, generator)
        return shuffle_tags(caption, settings.keep_tokens, generator) if settings.shuffle_caption else caption

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue this stream exactly."""
        return {"queue": list(self.queue), "generators": {p: g.get_state() for p, g in self.generators.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.queue = list(state["queue"])
        for purpose, saved in state["generators"].items():
            self.generators[purpose].set_state(saved)
