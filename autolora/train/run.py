"""A run: one fully fixed recipe."""

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
from autolora.optim.optimizers import AdamW, Optimizer
from autolora.optim.schedules import Constant, Schedule

LOSSES = ("l2", "huber")


@dataclass(frozen=True)
class TrainSettings:
    """How long and on what a run trains; steps are images shown."""

    epochs: int = 8
    images_per_concept: int | None = 1000  # per epoch and sub-concept; None: pictures x repeats, as the folders say
    concept_images: Mapping[str, int] = field(
        default_factory=dict
    )  # the same of single sub-concepts, by name or trigger
    min_character_images: int = 0  # per epoch of the main concept at least, which all sub-concepts together show
    batch_size: int = 4
    checkpoints_per_epoch: int = 1
    scale_weight_norms: float | None = None
    loss_type: str = "l2"  # or huber: large errors count in proportion, so that an odd picture pulls less
    huber_delta: float = 0.1  # the error from which that is so
    min_snr_gamma: float | None = 5.0
    debiased_estimation_loss: bool = False  # weigh noisy timesteps less steeply instead of by Min-SNR
    noise_offset: float = 0.0  # of a picture's whole channels, so that it may become as dark or bright as asked
    prior_preservation_ratio: float = (
        0.0  # pictures shown for each of the dataset's on which the base's own answer is the target
    )
    reg_ratio: float = 0.0  # class pictures shown for each of the dataset's, trained on as they are
    num_class_images: int | None = None  # how many different ones both of these use; None: all there are
    min_lora_multiplier: float = 1.0  # LoRA weight that half of the pictures are trained at, the others at 1
    caption_dropout_rate: float = 0.0  # share of the dataset's captions that are left empty
    class_caption_dropout_rate: float = 0.0  # the same of class pictures: keeps the empty caption the base model's own
    shuffle_caption: bool = True
    caption_tag_dropout_rate: float = (
        0.0  # share of the tags after the kept ones that are left out, drawn at every showing
    )
    keep_tokens: int = 1
    flip_aug: bool = False  # half of the showings mirrored; not for what is lopsided
    unmasked_weight: float = 0.1  # of the loss outside a picture's mask, where it has one
    seed: int = 0

    def __post_init__(self) -> None:
        mistakes = [
            f"train.{name} must be at least 1, got {getattr(self, name)}"
            for name in ("epochs", "images_per_concept", "batch_size", "checkpoints_per_epoch", "num_class_images")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        mistakes += [
            f"train.concept_images.{name} must be a whole number of at least 1, got {steps!r}"
            for name, steps in self.concept_images.items()
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1
        ]
        if self.min_character_images < 0:
            mistakes.append(f"train.min_character_images must be 0 (none) or more, got {self.min_character_images}")
        if self.scale_weight_norms is not None and self.scale_weight_norms <= 0:
            mistakes.append(f"train.scale_weight_norms must be above 0 or null, got {self.scale_weight_norms}")
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
                "train.debiased_estimation_loss and train.min_snr_gamma both weigh timesteps: set train.min_snr_gamma=null, or leave "
                "train.debiased_estimation_loss out"
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
        """Whether class pictures are shown beside the dataset's."""
        return bool(self.prior_preservation_ratio or self.reg_ratio)


@dataclass(frozen=True)
class InitFile:
    """A LoRA file that training starts from; what it holds decides what becomes of it, not where it lies."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Run:
    """Everything that decides what a LoRA becomes, besides the pictures and the base model."""

    name: str
    adapter: LoRA | DyLoRA = field(default_factory=LoRA)
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Constant)
    train: TrainSettings = field(default_factory=TrainSettings)
    captions: CaptionRecipe = field(default_factory=CaptionRecipe)
    init_lora: InitFile | None = None  # None: from nothing

    def __post_init__(self) -> None:
        if self.optimizer.replaces_schedule:
            if not isinstance(self.schedule, Constant):
                raise ConfigError("schedule-free optimizers take the place of a schedule: set schedule=constant")
            if self.train.scale_weight_norms is not None:
                raise ConfigError(
                    "train.scale_weight_norms would not cap the average that a schedule-free optimizer keeps: set it to null, or "
                    "use another optimizer"
                )

    def fingerprint(self) -> str:
        """16 hex digits that change with anything in the run."""
        kinds = [type(part).__name__ for part in (self.adapter, self.optimizer, self.schedule)]
        text = json.dumps([kinds, self.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """All of it as plain values; of an `init` file its hash, as a LoRA's readers need not know folders."""
        return {**dataclasses.asdict(self), "init_lora": self.init_lora.sha256 if self.init_lora else None}

    def with_captions(self, dataset: Dataset) -> Dataset:
        """The dataset with the captions that the run trains with.

        Raises:
            DatasetError: its recipe cannot be applied to these captions.
        """
        return apply_captions(self.captions, dataset, self.train.seed, self.train.keep_tokens)

    def images_by_concept(self, dataset: Dataset) -> tuple[int, ...]:
        """Images of each sub-concept shown in one epoch: few of them are shown oftener, to reach `min_character_images`.

        Raises:
            ConfigError: steps are set for a sub-concept that the dataset does not have.
        """
        least = math.ceil(self.train.min_character_images / len(dataset.concepts))
        own = _steps_by_concept(self.train.concept_images, dataset)
        found = []
        for concept in dataset.concepts:
            usual = self.train.images_per_concept or sum(picture.repeats for picture in concept.pictures)
            found.append(own.get(concept.name, max(usual, least)))
        return tuple(found)

    def images_per_epoch(self, dataset: Dataset) -> int:
        """Images shown in one epoch, those beside the concepts included."""
        return sum(self.images_by_concept(dataset)) + sum(self.class_images_per_epoch(dataset).values())

    def class_images_per_epoch(self, dataset: Dataset) -> dict[str, int]:
        """Images shown in one epoch beside the concepts, against bleed, by kind.

        Of those that keep the base model as it is four of five are class pictures. The fifth is the dataset's own
        without its triggers: with class pictures alone the visible tags still call the character; with own pictures
        alone the trigger outgrows its guidance and burns.
        """
        own = sum(self.images_by_concept(dataset))
        preserved = round(own * self.train.prior_preservation_ratio)
        without = preserved // 5
        regularization = round(own * self.train.reg_ratio)
        return {"class images": preserved - without, "without triggers": without, "regularization": regularization}

    def optimizer_steps(self, dataset: Dataset) -> int:
        """Optimizer steps of the whole run; somewhat more where pictures of several frames leave batches short."""
        return self.train.epochs * math.ceil(self.images_per_epoch(dataset) / self.train.batch_size)


def _steps_by_concept(concept_images: Mapping[str, int], dataset: Dataset) -> dict[str, int]:
    """`train.concept_images` by the concepts' names; a concept is called by its name, `_` for spaces, or by its trigger."""
    names = {_plain(name): c.name for c in dataset.concepts for name in (c.name, c.trigger) if name != dataset.trigger}
    unknown = [name for name in concept_images if _plain(name) not in names]
    if unknown:
        known = ", ".join(names) or "none that has a trigger of its own"
        raise ConfigError(f"train.concept_images.{unknown[0]}: the dataset has no such sub-concept; it has {known}")
    return {names[_plain(name)]: steps for name, steps in concept_images.items()}


def _plain(name: str) -> str:
    return tag_key(name).replace(" ", "_")
