"""Faults that likeness does not show: mixed concepts, copies, lost diversity, a changed class word, oversaturation.

These are functions on arrays; `metrics.py` applies them to a checkpoint's renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autolora.scoring.intervals import Array, Estimate, bootstrap_means
from autolora.scoring.metric_types import MetricUnmeasurable

if TYPE_CHECKING:  # `sampling` imports torch
    from autolora.sampling import Images

DUPLICATE_SIMILARITY = 0.995  # training images that are more similar than this count as one


def concept_mixing(
    rendered: Sequence[Array], real: Sequence[Array], n_bootstrap: int, seed: int
) -> tuple[float, Array]:
    """Return how much more often renders of one concept show another than real images do, for the worst pair.

    Args:
        rendered: for each requested concept, (prompts, seeds, concepts) pass scores of its renders for every concept.
        real: for each concept, (n, concepts) pass scores of its validation images.
        n_bootstrap: the number of bootstrap draws.
        seed: of the bootstrap.

    Returns:
        The maximum over i != j of P(shows j | requested i) in renders minus the same in validation images, and its
        bootstrap draws.
    """
    gaps, draws = [], []
    for i, (renders, validation) in enumerate(zip(rendered, real, strict=True)):
        for j in range(len(rendered)):
            if i != j:
                shows_other = _shows(renders, j)
                expected = float(_shows(validation, j).mean())
                gaps.append(float(shows_other.mean()) - expected)
                draws.append(bootstrap_means(shows_other, n_bootstrap, seed) - expected)
    worst = int(np.argmax(gaps))
    return gaps[worst], np.max(draws, axis=0)


def _shows(pass_scores: Array, concept: int) -> Array:
    """Return 1 where an image passes for this concept with a higher score than for any other, else 0."""
    return np.asarray((pass_scores.argmax(-1) == concept) & (pass_scores[..., concept] > 0.5), dtype=float)


def memorization(rendered: Array, training: Array) -> Estimate:
    """Return the share of renders that are closer to a training image than training images are to one another.

    "Closer" means above the 95th percentile of the leave-one-out similarities of training images without duplicates.
    The interval is Wilson's.

    Args:
        rendered: (n, D) unit vectors of renders with the trigger.
        training: (m, D) unit vectors of the training images after a pass through the VAE.

    Raises:
        MetricUnmeasurable: there are fewer than three distinct training images.
    """
    from scipy.stats import binomtest

    distinct: list[Array] = []
    for row in training:
        if all(float(row @ earlier) < DUPLICATE_SIMILARITY for earlier in distinct):
            distinct.append(row)
    if len(distinct) < 3:
        raise MetricUnmeasurable(f"only {len(distinct)} distinct training images, at least 3 are needed")
    similarity = np.stack(distinct) @ np.stack(distinct).T
    np.fill_diagonal(similarity, -1.0)
    threshold = float(np.quantile(similarity.max(1), 0.95))
    copies = int(((rendered @ training.T).max(1) > threshold).sum())
    interval = binomtest(copies, len(rendered)).proportion_ci(method="wilson")
    return Estimate(copies / len(rendered), float(interval.low), float(interval.high))


def diversity(rendered: Array, base: Array, n_bootstrap: int, seed: int) -> tuple[float, Array]:
    """Return how much renders of one prompt differ between seeds, relative to the base model's: 0 = not at all.

    Args:
        rendered: (prompts, seeds, D) embeddings, at least two seeds.
        base: the base renders' embeddings, of the same shape.
        n_bootstrap: the number of bootstrap draws.
        seed: of the bootstrap.

    Raises:
        MetricUnmeasurable: there is only one seed per prompt.
    """
    return _ratio(_variances(rendered), _variances(base), n_bootstrap, seed)


def class_drift(rendered: Array, base: Array, n_bootstrap: int, seed: int) -> tuple[float, Array]:
    """Return how far renders moved from the base model's with the same seed: 0 = not, 1 = as far as from another seed.

    It is a ratio of squared distances, to those between the base model's renders of one prompt. It detects a damaged
    class word where bleed is 0, because guidance may also move it away from the character.

    Args:
        rendered: (prompts, seeds, D) embeddings, at least two seeds.
        base: the base renders' embeddings, of the same shape.
        n_bootstrap: the number of bootstrap draws.
        seed: of the bootstrap.

    Raises:
        MetricUnmeasurable: there is only one seed per prompt.
    """
    return _ratio(((rendered - base) ** 2).sum(2), 2 * _variances(base), n_bootstrap, seed)


def _variances(embeddings: Array) -> Array:
    """Return the variances over the seeds, (prompts, 1), of (prompts, seeds, D) embeddings."""
    if embeddings.shape[1] < 2:
        raise MetricUnmeasurable("only one seed per prompt, at least 2 are needed")
    deviations = embeddings - embeddings.mean(1, keepdims=True)
    return np.asarray((deviations**2).sum((1, 2)) / (embeddings.shape[1] - 1))[:, None]


def _ratio(values: Array, reference: Array, n_bootstrap: int, seed: int) -> tuple[float, Array]:
    """Return the ratio of two means and its bootstrap draws."""
    floor = 1e-9
    ratio = float(values.mean() / max(float(reference.mean()), floor))
    reference_draws = np.maximum(bootstrap_means(reference, n_bootstrap, seed), floor)
    return ratio, bootstrap_means(values, n_bootstrap, seed) / reference_draws


def oversaturation(
    rendered: Images, base: Images, references: Images, prompts: int, n_bootstrap: int, seed: int
) -> tuple[float, Array]:
    """Return how far colour, clipping or fine detail exceed the base model's and the training images', in deviations.

    One deviation is the standard deviation of the base renders or of the training images, whichever is larger.

    Args:
        rendered: (prompts * seeds, H, W, 3) renders, ordered by prompt.
        base: base renders of the same prompts and seeds.
        references: training images after a pass through the VAE.
        prompts: the number of prompts.
        n_bootstrap: the number of bootstrap draws.
        seed: of the bootstrap.

    Returns:
        The largest of the three excesses, which is negative if all are below, and its bootstrap draws.
    """
    of_base, of_references = saturation_features(base), saturation_features(references)
    level = np.maximum(of_base.mean(0), of_references.mean(0))
    deviation = np.maximum(np.maximum(of_base.std(0), of_references.std(0)), 1e-6)
    excess = (saturation_features(rendered) - level) / deviation
    by_prompt = excess.reshape(prompts, -1, excess.shape[1])
    draws = [bootstrap_means(by_prompt[:, :, i], n_bootstrap, seed) for i in range(excess.shape[1])]
    return float(excess.mean(0).max()), np.max(draws, axis=0)


def saturation_features(images: Images) -> Array:
    """Return (N, 3): chroma of the 90th percentile of pixels, share of clipped values, mean Laplacian of luminance."""
    values = images.astype(np.float64) / 255
    chroma = (values.max(-1) - values.min(-1)).reshape(len(values), -1)
    clipped = ((values <= 0.008) | (values >= 0.992)).mean((1, 2, 3))
    luminance = values @ np.array([0.299, 0.587, 0.114])
    center = luminance[:, 1:-1, 1:-1]
    around = luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1] + luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
    return np.stack([np.quantile(chroma, 0.9, axis=1), clipped, np.abs(4 * center - around).mean((1, 2))], axis=1)
