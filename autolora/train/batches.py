"""What a step trains on: cached latents and text embeddings, in an order that only the run's seed decides."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolora.data.captions import shuffle_tags
from autolora.data.concepts import Dataset, epoch_order, without_triggers
from autolora.data.sources import Picture, load_pixels
from autolora.files import atomic_path
from autolora.models.base import BaseModel
from autolora.train.run import Run

PURPOSES = ("adapter", "order", "captions", "noise", "timesteps", "weights")


def generators(seed: int) -> dict[str, torch.Generator]:
    """One CPU generator per purpose, so that one draw more in one never moves another."""
    seeds = {p: int.from_bytes(hashlib.sha256(f"{seed}-{p}".encode()).digest()[:7], "big") for p in PURPOSES}
    return {purpose: torch.Generator().manual_seed(value) for purpose, value in seeds.items()}


class LatentCache:
    """Latents by picture content, kept in memory and on disk."""

    def __init__(self, model: BaseModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._memory: dict[str, Tensor] = {}

    def latents(self, pictures: Sequence[Picture], advance: Callable[[int], None] | None = None) -> Tensor:
        """(N, C, h, w) scaled latents; what is not cached is encoded and kept."""
        for picture in pictures:
            if picture.sha256 not in self._memory:
                self._memory[picture.sha256] = self._load(picture)
            if advance:
                advance(1)
        return torch.stack([self._memory[p.sha256] for p in pictures]).to(self.model.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load(self, picture: Picture) -> Tensor:
        path = self.folder / f"{picture.sha256[:32]}-{self.model.base_hash}-{self.model.resolution}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path))
        pixels = torch.from_numpy(load_pixels(picture.path, self.model.resolution).copy()).permute(2, 0, 1)
        latent = self.model.encode_images(pixels[None].float() / 127.5 - 1)[0].cpu()
        with atomic_path(path) as temporary:
            np.save(temporary, latent.numpy())
        return latent


class PromptCache:
    """Text embeddings by caption, bounded; off while the text encoder trains."""

    def __init__(self, model: BaseModel, size: int = 4096) -> None:
        self.model, self.size = model, size
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def contexts(self, captions: Sequence[str], trains_text_encoder: bool) -> Tensor:
        """(B, tokens, dim) contexts; with gradients only where the text encoder trains."""
        if trains_text_encoder:
            return self.model.encode_prompts(captions)
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                with torch.no_grad():  # one by one: in a batch, rounding would depend on what else was new
                    self._known[caption] = self.model.encode_prompts([caption])[0]
        for caption in captions:
            self._known.move_to_end(caption)
        found = torch.stack([self._known[c] for c in captions])
        while len(self._known) > self.size:
            self._known.popitem(last=False)
        return found


@dataclass(frozen=True)
class Batch:
    """What one step of one run shows: B pictures, captions and flags, noise (B, C, h, w), timesteps and weights (B)."""

    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    noise: Tensor
    timesteps: Tensor
    preserved: tuple[bool, ...]  # where the base model's own prediction is the target
    weights: Tensor  # the LoRA weight that each is trained at


class Stream:
    """The pictures, captions, noise and timesteps of one run, in order; its state can be saved and restored."""

    def __init__(self, run: Run, dataset: Dataset, model: BaseModel, class_pictures: Sequence[Picture] = ()) -> None:
        self.run, self.model = run, model
        beside = {"class pictures": tuple(class_pictures), "without triggers": without_triggers(dataset).pictures}
        steps = {kind: count for kind, count in run.steps_beside(len(dataset.concepts)).items() if count}
        if not all(beside[kind] for kind in steps):
            raise ValueError("train.preserve_share is above 0, but there are no class pictures")
        each = run.steps_of_each(len(dataset.concepts))
        self.parts = [(concept.pictures, each) for concept in dataset.concepts]
        self.parts += [(beside[kind], count) for kind, count in steps.items()]
        self.pictures = [picture for pictures, _ in self.parts for picture in pictures]
        self.first_preserved = len(dataset.pictures)
        self.first_without_triggers = self.first_preserved + len(class_pictures)
        self.generators = generators(run.train.seed)
        self.queue: list[int] = []  # pictures still to show in this epoch

    def next_batch(self) -> Batch:
        """What the next step shows; an epoch's last batch may be short."""
        settings = self.run.train
        if not self.queue:
            self.queue = self._epoch()
        picks, self.queue = self.queue[: settings.batch_size], self.queue[settings.batch_size :]
        captions = tuple(self._caption(i) for i in picks)
        noise = torch.randn(len(picks), *self.model.latent_shape, generator=self.generators["noise"])
        steps = torch.randint(0, self.model.train_timesteps, (len(picks),), generator=self.generators["timesteps"])
        preserved = tuple(i >= self.first_preserved for i in picks)
        weak = torch.rand(len(picks), generator=self.generators["weights"]) < 0.5
        weights = torch.where(weak & ~torch.tensor(preserved), settings.min_weight, 1.0)
        return Batch(tuple(self.pictures[i] for i in picks), captions, noise, steps, preserved, weights)

    def _epoch(self) -> list[int]:
        order, first = [], 0
        for pictures, steps in self.parts:
            order += [first + i for i in epoch_order(len(pictures), steps, self.generators["order"])]
            first += len(pictures)
        return [order[i] for i in torch.randperm(len(order), generator=self.generators["order"]).tolist()]

    def _caption(self, index: int) -> str:
        """The caption as it is shown this time.

        Guidance leads away from what an empty caption draws. Where that becomes the character, every other prompt is
        led away from it, so class pictures lose their captions too; where it stays the base model's, the trigger is
        led too far and burns. The pictures without triggers keep their captions.
        """
        settings, generator, caption = self.run.train, self.generators["captions"], self.pictures[index].caption
        chance = 0.0
        if index < self.first_without_triggers:
            chance = settings.caption_dropout if index < self.first_preserved else settings.preserve_dropout
        if chance and torch.rand((), generator=generator) < chance:
            return ""
        return shuffle_tags(caption, settings.keep_tags, generator) if settings.shuffle_tags else caption

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to continue this stream exactly."""
        return {"queue": list(self.queue), "generators": {p: g.get_state() for p, g in self.generators.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.queue = list(state["queue"])
        for purpose, saved in state["generators"].items():
            self.generators[purpose].set_state(saved)
