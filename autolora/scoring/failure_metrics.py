"""What likeness hides: outfits mixed up, pictures copied, variety lost, the class word changed, colours burnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from autolora.sampling import Images
from autolora.scoring.intervals import Array, Estimate, bootstrap_means

DUPLICATE_SIMILARITY = 0.995  # training pictures nearer than this count once


def cross_bleed(rendered: Sequence[Array], real: Sequence[Array], draws: int, seed: int) -> tuple[float, Array]:
    """How much oftener than real pictures renders of one concept show another, at the worst pair of concepts.

    Args:
        rendered: for each concept asked for, (prompts, seeds, concepts) how surely its renders pass for each concept.
        real: for each concept, (n, concepts) the same of its held-out pictures.

    Returns:
        max over i != j of P(shows j | asked i) in renders minus the same in held-out pictures, with its draws.
    """
    gaps, spreads = [], []
    for i, (asked, validation) in enumerate(zip(rendered, real, strict=True)):
        for j in range(len(rendered)):
            if i != j:
                shown = _shown(asked, j)
                mistaken = float(_shown(validation, j).mean())
                gaps.append(float(shown.mean()) - mistaken)
                spreads.append(bootstrap_means(shown, draws, seed) - mistaken)
    worst = int(np.argmax(gaps))
    return gaps[worst], np.max(spreads, axis=0)


def confusion(rendered: Sequence[Array]) -> Array:
    """(asked, shown) shares of renders, as `cross_bleed` takes them; what shows no concept is in no column."""
    return np.array([[float(_shown(asked, j).mean()) for j in range(len(rendered))] for asked in rendered])


def _shown(passes: Array, concept: int) -> Array:
    """1 where a picture passes for this concept and more surely than for any other."""
    return np.asarray((passes.argmax(-1) == concept) & (passes[..., concept] > 0.5), dtype=float)


def memorisation(rendered: Array, training: Array) -> Estimate:
    """Share of renders nearer to a training picture than training pictures are to one another, with Wilson interval.

    Nearer: above the 95th percentile of the leave-one-out similarities of training pictures, duplicates removed.

    Args:
        rendered: (n, D) unit vectors of renders with the trigger.
        training: (m, D) unit vectors of the training pictures as the VAE keeps them, m >= 3 distinct ones.

    Raises:
        ValueError: fewer than three distinct training pictures.
    """
    distinct: list[Array] = []
    for row in training:
        if all(float(row @ other) < DUPLICATE_SIMILARITY for other in distinct):
            distinct.append(row)
    if len(distinct) < 3:
        raise ValueError(f"{len(distinct)} distinct training pictures, at least 3 are needed")
    similarity = np.stack(distinct) @ np.stack(distinct).T
    np.fill_diagonal(similarity, -1.0)
    nearest = float(np.quantile(similarity.max(1), 0.95))
    copies = int(((rendered @ training.T).max(1) > nearest).sum())
    interval = binomtest(copies, len(rendered)).proportion_ci(method="wilson")
    return Estimate(copies / len(rendered), float(interval.low), float(interval.high))


def spread(rendered: Array, base: Array, draws: int, seed: int) -> tuple[float, Array]:
    """How much renders of one prompt differ by seed, relative to the base model's: 1 = as much, 0 = not at all.

    Args:
        rendered: (prompts, seeds, D) embeddings, at least two seeds.
        base: the base renders', of the same shape.

    Raises:
        ValueError: one seed a prompt.
    """
    return _ratio(_variances(rendered), _variances(base), draws, seed)


def drift(rendered: Array, base: Array, draws: int, seed: int) -> tuple[float, Array]:
    """How far renders have moved from the base model's of the same seed: 0 = the same, 1 = as far as from another seed.

    Squared distances, as shares of those between the base model's renders of one prompt. It sees a class word that is
    ruined where bleed sees none: guidance may lead it away from the character.

    Args:
        rendered: (prompts, seeds, D) embeddings, at least two seeds.
        base: the base renders', of the same shape.

    Raises:
        ValueError: one seed a prompt.
    """
    return _ratio(((rendered - base) ** 2).sum(2), 2 * _variances(base), draws, seed)


def _variances(rows: Array) -> Array:
    """(prompts, 1) variances over the seeds of (prompts, seeds, D)."""
    if rows.shape[1] < 2:
        raise ValueError("one seed a prompt, at least 2 are needed")
    return np.asarray(((rows - rows.mean(1, keepdims=True)) ** 2).sum((1, 2)) / (rows.shape[1] - 1))[:, None]


def _ratio(own: Array, reference: Array, draws: int, seed: int) -> tuple[float, Array]:
    """One mean over another, with its draws."""
    floor = 1e-9
    ratio = float(own.mean() / max(float(reference.mean()), floor))
    return ratio, bootstrap_means(own, draws, seed) / np.maximum(bootstrap_means(reference, draws, seed), floor)


def burn(
    rendered: Images, base: Images, references: Images, prompts: int, draws: int, seed: int
) -> tuple[float, Array]:
    """Excess of colour, clipping or fine detail above the base model's and the training pictures', in deviations.

    A deviation is that of the base model's renders or of the training pictures, whichever is larger.

    Args:
        rendered: (prompts * seeds, H, W, 3) renders, prompt by prompt.
        base: base renders of the same prompts and seeds.
        references: training pictures as the VAE keeps them.
        prompts: how many prompts there are.

    Returns:
        The worst of the three excesses (negative where all stay below) and its bootstrap draws.
    """
    of_base, of_references = burn_features(base), burn_features(references)
    level = np.maximum(of_base.mean(0), of_references.mean(0))
    excess = (burn_features(rendered) - level) / np.maximum(np.maximum(of_base.std(0), of_references.std(0)), 1e-6)
    by_prompt = excess.reshape(prompts, -1, excess.shape[1])
    resampled = [bootstrap_means(by_prompt[:, :, i], draws, seed) for i in range(excess.shape[1])]
    return float(excess.mean(0).max()), np.max(resampled, axis=0)


def burn_features(pictures: Images) -> Array:
    """(N, 3): chroma of the strongest tenth of pixels, share of clipped channels, mean Laplacian of luminance."""
    values = pictures.astype(np.float64) / 255
    chroma = (values.max(-1) - values.min(-1)).reshape(len(values), -1)
    clipped = ((values <= 0.008) | (values >= 0.992)).mean((1, 2, 3))
    luminance = values @ np.array([0.299, 0.587, 0.114])
    middle = luminance[:, 1:-1, 1:-1]
    around = luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1] + luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
    return np.stack([np.quantile(chroma, 0.9, axis=1), clipped, np.abs(4 * middle - around).mean((1, 2))], axis=1)
