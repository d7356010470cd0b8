"""A run: one recipe with all its values fixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autolora.adapters.kinds import DyLoRA, LoRA
from autolora.data.caption_recipe import CaptionRecipe, apply_captions
from autolora.data.captions import tag_key
from autolora.data.concepts import Dataset
from autolora.errors import ConfigError
from autolora.optim.base import Optimizer
from autolora.optim.optimizers import AdamW
from autolora.optim.schedules import Constant, Schedule

LOSSES = ("l2", "huber")
MOST_IMAGES = 10_000_000  # of a sub-concept in an epoch; an epoch's order is drawn in memory


@dataclass(frozen=True)
class TrainSettings:
    """How long a run trains, on what, and with which loss."""

    epochs: int = 8
    images_per_concept: int | None = 1000  # shown per epoch and sub-concept; None: its images times their repeats
    # The same for single sub-concepts, by name or trigger.
    concept_images: Mapping[str, int] = field(default_factory=dict)
    min_character_images: int = 0  # shown per epoch of all sub-concepts together, at least
    batch_size: int = 4
    checkpoints_per_epoch: int = 1
    scale_weight_norms: float | None = None
    max_grad_norm: float | None = 1.0  # gradients of a larger norm, over all layers, are scaled down to it; None: none
    loss_type: str = "l2"  # or huber: large errors count linearly, so that an unusual image has less influence
    huber_delta: float = 0.1  # the error from which huber is linear
    min_snr_gamma: float | None = 5.0
    debiased_estimation_loss: bool = False  # weights of noisy timesteps fall less steeply than with Min-SNR
    noise_offset: float = 0.0  # added to whole channels, so that renders can become very dark or very bright
    # Images per image of the dataset whose target is the base model's prediction.
    prior_preservation_ratio: float = 0.0
    reg_ratio: float = 0.0  # class images per image of the dataset that are trained as they are
    num_class_images: int | None = None  # how many different class images are used; None: all
    min_lora_multiplier: float = 1.0  # half of the dataset's images are trained at this LoRA weight, the others at 1
    caption_dropout_rate: float = 0.0  # share of the dataset's captions that are left empty
    class_caption_dropout_rate: float = 0.0  # share of class images' captions that are left empty
    shuffle_caption: bool = True
    # Share of the tags after the first `keep_tokens` that are left out, drawn anew each time an image is shown.
    caption_tag_dropout_rate: float = 0.0
    keep_tokens: int = 1
    flip_aug: bool = False  # half of the images are mirrored; not for asymmetric characters
    unmasked_weight: float = 0.1  # weight of the loss outside an image's mask, if it has one
    seed: int = 0

    def __post_init__(self) -> None:
        mistakes = [
            f"train.{name} must be at least 1, got {getattr(self, name)}"
            for name in ("epochs", "images_per_concept", "batch_size", "checkpoints_per_epoch", "num_class_images")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        mistakes += [
            f"train.concept_images.{name} must be a whole number of at least 1, got {count!r}"
            for name, count in self.concept_images.items()
            if isinstance(count, bool) or not isinstance(count, int) or count < 1
        ]
        if self.min_character_images < 0:
            mistakes.append(f"train.min_character_images must be 0 (none) or more, got {self.min_character_images}")
        if self.scale_weight_norms is not None and self.scale_weight_norms <= 0:
            mistakes.append(f"train.scale_weight_norms must be above 0 or null, got {self.scale_weight_norms}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            mistakes.append(f"train.max_grad_norm must be above 0 or null, got {self.max_grad_norm}")
        if self.loss_type not in LOSSES:
            mistakes.append(f"train.loss_type must be one of {', '.join(LOSSES)}, got {self.loss_type}")
        if self.huber_delta <= 0:
            mistakes.append(f"train.huber_delta must be above 0, got {self.huber_delta}")
        if not 0 <= self.noise_offset <= 1:
            mistakes.append(
                f"train.noise_offset must be from 0 (none) to 1 (0.03 to 0.1 is usual), got {self.noise_offset}"
            )
        if self.debiased_estimation_loss and self.min_snr_gamma is not None:
            mistakes.append(
                "train.debiased_estimation_loss and train.min_snr_gamma both weight timesteps: set "
                "train.min_snr_gamma=null, or leave train.debiased_estimation_loss out"
            )
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            mistakes.append(f"train.min_snr_gamma must be above 0 or null, got {self.min_snr_gamma}")
        mistakes += [
            f"train.{name} must be from 0 (none) to 4, got {getattr(self, name)}"
            for name in ("prior_preservation_ratio", "reg_ratio")
            if not 0 <= getattr(self, name) <= 4
        ]
        if not 0 <= self.unmasked_weight <= 1:
            mistakes.append(f"train.unmasked_weight must be from 0 to 1, got {self.unmasked_weight}")
        if not 0 < self.min_lora_multiplier <= 1:
            mistakes.append(f"train.min_lora_multiplier must be above 0 and at most 1, got {self.min_lora_multiplier}")
        mistakes += [
            f"train.{name} must be 0 or more and below 1, got {getattr(self, name)}"
            for name in ("caption_dropout_rate", "class_caption_dropout_rate", "caption_tag_dropout_rate")
            if not 0 <= getattr(self, name) < 1
        ]
        if self.keep_tokens < 0:
            mistakes.append(f"train.keep_tokens must be 0 or more, got {self.keep_tokens}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    @property
    def shows_class_pictures(self) -> bool:
        """Whether class images are shown in addition to the dataset's."""
        return bool(self.prior_preservation_ratio or self.reg_ratio)


@dataclass(frozen=True)
class InitFile:
    """A LoRA file that training starts from; its hash identifies it, wherever the file lies."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Run:
    """Everything that decides what a LoRA becomes, except the dataset and the base model."""

    name: str
    adapter: LoRA | DyLoRA = field(default_factory=LoRA)
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Constant)
    train: TrainSettings = field(default_factory=TrainSettings)
    captions: CaptionRecipe = field(default_factory=CaptionRecipe)
    init_lora: InitFile | None = None  # None: a new adapter

    def __post_init__(self) -> None:
        if self.optimizer.replaces_schedule:
            if not isinstance(self.schedule, Constant):
                raise ConfigError("a schedule-free optimizer replaces the schedule: set schedule=constant")
            if self.train.scale_weight_norms is not None:
                raise ConfigError(
                    "train.scale_weight_norms would not limit the averaged weights of a schedule-free optimizer: set "
                    "it to null, or use another optimizer"
                )

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify the run; any change of a setting changes them."""
        kinds = [type(part).__name__ for part in (self.adapter, self.optimizer, self.schedule)]
        text = json.dumps([kinds, self.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """Return all settings as plain values, with the hash of the `init_lora` file: exported files hold no path."""
        return {**dataclasses.asdict(self), "init_lora": self.init_lora.sha256 if self.init_lora else None}

    def with_captions(self, dataset: Dataset) -> Dataset:
        """Return the dataset with the captions that the run trains with.

        Raises:
            DatasetError: the caption recipe cannot be applied to these captions.
        """
        return apply_captions(self.captions, dataset, self.train.seed, self.train.keep_tokens)

    def images_by_concept(self, dataset: Dataset) -> tuple[int, ...]:
        """Return how many images of each sub-concept one epoch shows.

        With few sub-concepts each is shown more often, so that together they reach `min_character_images`.

        Raises:
            ConfigError: `concept_images` names a sub-concept that the dataset does not have, or there are too many.
        """
        minimum = math.ceil(self.train.min_character_images / len(dataset.concepts))
        exceptions = _concept_images(self.train.concept_images, dataset)
        counts = []
        for concept in dataset.concepts:
            usual = self.train.images_per_concept or sum(picture.repeats for picture in concept.pictures)
            counts.append(exceptions.get(concept.name, max(usual, minimum)))
            if counts[-1] > MOST_IMAGES:
                raise ConfigError(
                    f"an epoch would show {counts[-1]} images of {concept.name}, more than {MOST_IMAGES}: set "
                    "train.images_per_concept, or fewer repeats in the name of its folder"
                )
        return tuple(counts)

    def images_per_epoch(self, dataset: Dataset) -> int:
        """Return how many images one epoch shows, class images included."""
        return sum(self.images_by_concept(dataset)) + sum(self.class_images_per_epoch(dataset).values())

    def class_images_per_epoch(self, dataset: Dataset) -> dict[str, int]:
        """Return how many images one epoch shows against bleed, by kind.

        Four of five images that preserve the base model are class images. The fifth is an image of the dataset whose
        caption has no trigger. With class images alone, the character's visible tags would still cause bleed; with
        images of the dataset alone, the trigger would become too strong and renders would oversaturate.
        """
        count = sum(self.images_by_concept(dataset))
        preserved = round(count * self.train.prior_preservation_ratio)
        without = preserved // 5
        regularization = round(count * self.train.reg_ratio)
        return {"class images": preserved - without, "without triggers": without, "regularization": regularization}

    def optimizer_steps(self, dataset: Dataset) -> int:
        """Return the optimizer steps of the whole run; with several bucket resolutions there are a few more."""
        return self.train.epochs * math.ceil(self.images_per_epoch(dataset) / self.train.batch_size)


def _concept_images(concept_images: Mapping[str, int], dataset: Dataset) -> dict[str, int]:
    """Return `train.concept_images` by the sub-concepts' names.

    In the config a sub-concept has its name, with `_` for spaces, or its trigger.
    """
    names = {_key(name): c.name for c in dataset.concepts for name in (c.name, c.trigger) if name != dataset.trigger}
    unknown = [name for name in concept_images if _key(name) not in names]
    if unknown:
        expected = ", ".join(names) or "none that has a trigger of its own"
        raise ConfigError(f"train.concept_images.{unknown[0]}: the dataset has no such sub-concept; it has {expected}")
    return {names[_key(name)]: count for name, count in concept_images.items()}


def _key(name: str) -> str:
    return tag_key(name).replace(" ", "_")
