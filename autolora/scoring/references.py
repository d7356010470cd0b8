"""Fits what separates each concept's images from the base model's renders, and from its sibling concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from scipy.stats import norm

from autolora.data.sources import Picture
from autolora.errors import Unmeasurable
from autolora.models.base import BaseModel
from autolora.sampling import Images, to_uint8
from autolora.scoring.embeddings import Embeddings, concatenate
from autolora.scoring.encoders import Encoder
from autolora.scoring.intervals import Array, bootstrap_means
from autolora.scoring.terms import LinearDiscriminant, cross_fit, fit_discriminant
from autolora.train.caches import LatentCache

MINIMUM_AUC = 0.9
DECODED_AT_ONCE = 16  # images


@dataclass(frozen=True)
class ReferenceImages:
    """The images that discriminants are fitted on; the dataset's images after a pass through the VAE."""

    trigger: str
    training: dict[str, Images]  # by concept
    validation: dict[str, Images]  # by concept
    negatives: Images  # renders of the base model

    @property
    def all_training(self) -> Images:
        """The training images of all concepts."""
        return np.concatenate(list(self.training.values()))


# An image passes for the character if it lies at most this many standard deviations of real images below their mean.
DEVIATIONS = 2
# The minimum distance of that threshold from the mean of real images, and the minimum width of the soft step, as a
# share of the distance between the base model's renders and real images. Real images often lie within a tenth of that
# distance, so that with their standard deviation alone all half-learnt characters would score the same. On the replay
# data's first 414 checkpoints, 0.2 agrees with the attribute classifier's score by .85 on average (worst .80), the
# standard deviation alone by .81 (.75); 0.17 to 0.25 do as well as 0.2. The value was chosen on these checkpoints; on
# the present 444 it agrees by .82 (.71).
STEP = 0.2
# The same number of standard deviations for bleed, for which the character's marks in other clothes are enough. On 60
# checkpoints of characters 9 and 10 the rate then equals the attribute classifier's (+.005); with 2 it is .038 too low.
BLEED_DEVIATIONS = 3


@dataclass(frozen=True)
class SoftThreshold:
    """A soft step along a discriminant, so that few renders still distinguish a near miss from a far one."""

    features: Literal["pooled", "patches"]  # the embeddings that it looks at
    discriminant: LinearDiscriminant
    threshold: float
    width: float

    def __call__(self, images: Embeddings) -> Array:
        """Return (N,) from 0, certainly below the threshold, to 1."""
        return self.at(self.discriminant(getattr(images, self.features)))

    def at(self, positions: Array) -> Array:
        """Return the same for positions along the discriminant."""
        return np.asarray(norm.cdf(positions, self.threshold, self.width))


@dataclass(frozen=True)
class Reference:
    """What an image must be to pass for a real image of a character or of one of its concepts.

    An image of a concept must pass for the character and lie on the concept's side of each sibling. The mean pass score
    is closer to the share of images that show the character than the mean position along the discriminant is: the mean
    error is .14 instead of .25 for likeness and .09 instead of .31 for bleed, by the attribute classifier over 103
    checkpoints of development characters 3, 4, 9, 10 and 11. A render without one of the marks still has nine tenths of
    the position.
    """

    name: str
    thresholds: tuple[SoftThreshold, ...]  # the character's first
    real: Array  # (n,) pass scores of the dataset's images, each by discriminants that were fitted without it
    validation: Embeddings

    def pass_scores(self, images: Embeddings) -> Array:
        """Return (N,) from 0, certainly not an image of it, to 1."""
        return np.asarray(np.prod([threshold(images) for threshold in self.thresholds], axis=0))


@dataclass(frozen=True)
class References:
    """The references of the character and of every concept."""

    concepts: tuple[Reference, ...]
    character: Reference
    bleed: Reference  # the character with a lower threshold: what must not appear without the trigger
    training: Array  # (n, D) embeddings of all training images
    alike: tuple[str, ...] = ()  # pairs of concepts that the encoder cannot separate, so that they have no threshold


def fit_references(images: ReferenceImages, encoder: Encoder, n_bootstrap: int) -> References:
    """Embed the reference images; fit a discriminant for the character and one for each concept against each sibling.

    Likeness uses patch embeddings. Bleed uses pooled embeddings, because the character in other clothes or without one
    of its marks is bleed too: on the replay data's first 87 recipes the bleed rate by patches is .12 below the
    attribute classifier's, by pooled embeddings .03.

    Raises:
        Unmeasurable: the encoder cannot tell the character from the base model's renders, so no score would mean
            anything.
    """
    training = {name: encoder.embed(part) for name, part in images.training.items()}
    validation = {name: encoder.embed(part) for name, part in images.validation.items()}
    negatives = encoder.embed(images.negatives)
    all_training, all_validation = concatenate(training.values()), concatenate(validation.values())
    patches = _separate(all_training.patches, all_validation.patches, negatives.patches)
    pooled = _separate(all_training.pooled, all_validation.pooled, negatives.pooled)
    threshold = patches.threshold("patches", DEVIATIONS, STEP)
    bleed_threshold = pooled.threshold("pooled", BLEED_DEVIATIONS)
    character = Reference(images.trigger, (threshold,), threshold.at(patches.positions), all_validation)
    bleed = Reference(images.trigger, (bleed_threshold,), bleed_threshold.at(pooled.positions), all_validation)
    auc = min(patches.auc, pooled.auc)
    low = np.quantile(bootstrap_means(character.real[:, None], n_bootstrap, 0), 0.025)
    if auc < MINIMUM_AUC or low <= character.pass_scores(negatives).mean():
        raise Unmeasurable(
            f"`{images.trigger}` is unmeasurable: {encoder.name} separates its images from the base model's with AUC "
            f"{auc:.2f} (at least {MINIMUM_AUC} is needed); add images, or choose another scoring.encoder"
        )
    concepts, alike = _fit_concepts(training, validation, threshold, patches.positions)
    return References(concepts, character, bleed, all_training.pooled, alike)


def _fit_concepts(
    training: dict[str, Embeddings], validation: dict[str, Embeddings], threshold: SoftThreshold, positions: Array
) -> tuple[tuple[Reference, ...], tuple[str, ...]]:
    """Fit each concept against each of its siblings.

    Args:
        training: embeddings of the training images by concept.
        validation: embeddings of the validation images by concept.
        threshold: the character's.
        positions: of the training images along the character's discriminant, in the order of the concepts.

    Returns:
        The references, and the pairs of concepts that cannot be separated.
    """
    concepts, alike, start = [], [], 0
    for name, own in training.items():
        own_validation, thresholds, count = validation[name], [threshold], len(own.patches)
        validation_positions = threshold.discriminant(own_validation.patches)
        real = threshold.at(np.concatenate([positions[start : start + count], validation_positions]))
        start += count
        for sibling, siblings in training.items():
            boundary = _boundary(own.patches, siblings.patches) if sibling != name else None
            if boundary:
                side, side_positions = boundary
                thresholds.append(side)
                side_validation = side.discriminant(own_validation.patches)
                real = real * side.at(np.concatenate([side_positions, side_validation]))
            elif name < sibling:
                alike.append(f"{name} and {sibling}")
        concepts.append(Reference(name, tuple(thresholds), real, own_validation))
    return tuple(concepts), tuple(alike)


@dataclass(frozen=True)
class _Separation:
    """How well one kind of embedding separates the character from the base model's renders."""

    discriminant: LinearDiscriminant
    positions: Array  # of training images, each by a discriminant fitted without it, then of validation images
    base: float  # the mean position of the base model's renders
    auc: float

    def threshold(
        self, features: Literal["pooled", "patches"], deviations: float, min_step: float = 0
    ) -> SoftThreshold:
        """Return a threshold below the mean of real images.

        Args:
            features: the kind of embedding.
            deviations: its distance from the mean in standard deviations of real images.
            min_step: the least distance and width, as a share of the distance to the base model's renders.
        """
        center, spread = float(self.positions.mean()), float(max(self.positions.std(), 1e-6))
        step = min_step * (center - self.base)
        return SoftThreshold(features, self.discriminant, center - max(deviations * spread, step), max(spread, step))


def _separate(training: Array, validation: Array, negatives: Array) -> _Separation:
    unseen, auc = cross_fit(training, negatives)
    discriminant = fit_discriminant(training, negatives)
    positions = np.concatenate([unseen, discriminant(validation)])
    return _Separation(discriminant, positions, float(discriminant(negatives).mean()), auc)


def _boundary(own: Array, siblings: Array) -> tuple[SoftThreshold, Array] | None:
    """Return the threshold half way between a concept and a sibling, and the cross-validated positions of its images.

    None if the two cannot be separated.
    """
    positions, auc = cross_fit(own, siblings)
    if auc < MINIMUM_AUC:
        return None
    discriminant = fit_discriminant(own, siblings)
    half_way = float(discriminant(own).mean() + discriminant(siblings).mean()) / 2
    return SoftThreshold("patches", discriminant, half_way, float(max(positions.std(), 1e-6))), positions


@torch.inference_mode()
def decode(model: BaseModel, latents: LatentCache, pictures: Sequence[Picture], side: int) -> Images:
    """Return images (N, side, side, 3) after a pass through the VAE.

    Renders pass through the VAE too; without this, a discriminant would learn to recognize decoded images. Images are
    cropped to the model's square resolution, whatever bucket they are trained in, and resized to the side of the
    renders, because renders are square and fine detail depends on the size.
    """
    pictures = [replace(picture, bucket=None) for picture in pictures]
    images: list[Images] = []
    for start in range(0, len(pictures), DECODED_AT_ONCE):
        pixels = model.decode_latents(latents.latents(pictures[start : start + DECODED_AT_ONCE]))
        images += list(to_uint8(pixels))
    if side == model.resolution:
        return np.stack(images)
    resized = [Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in resized])
