"""How each concept is told apart: margins fitted on the user's pictures against what the base model draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm

from autolora.data.sources import Picture
from autolora.errors import Unmeasurable
from autolora.models.base import BaseModel
from autolora.sampling import Pictures
from autolora.scoring.encoders import Encoder
from autolora.scoring.intervals import Array, bootstrap_means
from autolora.scoring.terms import Margin, cross_fit, fit_margin
from autolora.train.batches import LatentCache

MINIMUM_AUC = 0.9


@dataclass(frozen=True)
class Material:
    """The pictures that margins are fitted on; the user's as the VAE keeps them."""

    trigger: str
    training: dict[str, Pictures]  # by concept
    held_out: dict[str, Pictures]  # by concept
    contrast: Pictures  # by the base model

    @property
    def every(self) -> Pictures:
        """All training pictures."""
        return np.concatenate(list(self.training.values()))


DEVIATIONS = 3  # of real pictures, below their mean, that a picture may lie and still pass for one


@dataclass(frozen=True)
class Reference:
    """One concept's margin, and from where on a picture passes for a real one of it.

    Counting what passes comes nearer to the share of pictures that show the character than the mean margin does: mean
    error .14 against .25 for likeness and .09 against .31 for bleed, by the oracle over 103 checkpoints of development
    characters 3, 4, 9, 10 and 11. A render that lacks one mark still lies nine tenths of the way.
    """

    name: str
    margin: Margin
    threshold: float
    width: float  # of the soft step there, so that few renders still tell a near miss from a far one
    real: Array  # (n,) how surely the user's own pictures pass, each judged by a margin fitted without it
    held_out: Array  # (m, D) embeddings of held-out pictures

    def passes(self, embeddings: Array) -> Array:
        """(..., D) embeddings -> (...) from 0, surely no picture of it, to 1."""
        return np.asarray(norm.cdf(self.margin(embeddings), self.threshold, self.width))


@dataclass(frozen=True)
class References:
    """Every concept's reference, the character's as a whole, and the (n, D) embeddings of all training pictures."""

    concepts: tuple[Reference, ...]
    character: Reference
    training: Array


def fit_references(material: Material, encoder: Encoder, bootstrap: int) -> References:
    """Embed the material and fit a margin for each concept, against its siblings too, and for the character.

    Raises:
        Unmeasurable: the encoder cannot tell a concept from the base model's pictures, so no score would mean anything.
    """
    training = {name: encoder.images(pictures) for name, pictures in material.training.items()}
    held_out = {name: encoder.images(pictures) for name, pictures in material.held_out.items()}
    contrast, every = encoder.images(material.contrast), np.concatenate(list(training.values()))
    concepts = []
    for name, positives in training.items():
        siblings = [rows for other, rows in training.items() if other != name]
        negatives = np.concatenate([contrast, *siblings])
        concepts.append(_fit(name, positives, negatives, held_out[name], encoder.name, bootstrap))
    whole = _fit(material.trigger, every, contrast, np.concatenate(list(held_out.values())), encoder.name, bootstrap)
    return References(tuple(concepts), whole, every)


def _fit(name: str, positives: Array, negatives: Array, held_out: Array, encoder: str, bootstrap: int) -> Reference:
    unseen, auc = cross_fit(positives, negatives)
    margin = fit_margin(positives, negatives)
    every = np.concatenate([unseen, margin(held_out)])
    width = float(max(every.std(), 1e-6))
    threshold = float(every.mean()) - DEVIATIONS * width
    reference = Reference(name, margin, threshold, width, norm.cdf(every, threshold, width), held_out)
    low = np.quantile(bootstrap_means(reference.real[:, None], bootstrap, 0), 0.025)
    if auc < MINIMUM_AUC or low <= reference.passes(negatives).mean():
        raise Unmeasurable(
            f"`{name}` is unmeasurable: {encoder} tells its pictures from the base model's with AUC {auc:.2f} "
            f"(at least {MINIMUM_AUC} is needed); add pictures, or choose another scoring.encoder"
        )
    return reference


@torch.inference_mode()
def decode(model: BaseModel, latents: LatentCache, pictures: Sequence[Picture]) -> Pictures:
    """(N, H, W, 3) pictures passed through the VAE, else a margin would learn `drawn or decoded`."""
    found = []
    for start in range(0, len(pictures), 16):
        pixels = model.decode_latents(latents.latents(pictures[start : start + 16]))
        found.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(found)
