"""The terms of the score as plain functions on embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autolora.scoring.intervals import Array, bootstrap_means


@dataclass(frozen=True)
class LinearDiscriminant:
    """A direction in embedding space along which a concept stands apart from everything else."""

    direction: Array  # (D,)

    def __call__(self, embeddings: Array) -> Array:
        """(..., D) embeddings -> (...) positions along the direction."""
        return np.asarray(embeddings @ self.direction)


def fit_discriminant(positives: Array, negatives: Array, shrinkage: float = 0.3) -> LinearDiscriminant:
    """Fisher's linear discriminant with the pooled covariance shrunk towards a multiple of the identity.

    Args:
        positives: (P, D) references of the concept.
        negatives: (N, D) base renders and sibling concepts.
        shrinkage: share of the identity in the covariance (Friedman 1989, regularized discriminant analysis).
    """
    centered = np.concatenate([positives - positives.mean(0), negatives - negatives.mean(0)])
    # By the rows' singular vectors, as details have far more columns than there are rows.
    _, singular, axes = np.linalg.svd(centered / np.sqrt(len(centered)), full_matrices=False)
    variance, between = (1 - shrinkage) * singular**2, positives.mean(0) - negatives.mean(0)
    floor = shrinkage * (singular**2).sum() / centered.shape[1]
    direction = between - axes.T @ (variance / (variance + floor) * (axes @ between))
    return LinearDiscriminant(direction / np.linalg.norm(direction))


def cross_fit(positives: Array, negatives: Array, folds: int = 5, seed: int = 0) -> tuple[Array, float]:
    """Where references lie that the margin was fitted without, and how surely they lie above unseen negatives.

    Returns:
        (P,) positions, each by a margin fitted without that reference, and the AUC: the chance that an unseen
        reference lies above an unseen negative. Without two references on either side of a fold both are 0.
    """
    generator = np.random.default_rng(seed)
    parts = [generator.permutation(np.arange(len(rows)) % folds) for rows in (positives, negatives)]
    positions, wins = np.zeros(len(positives)), []
    for fold in range(folds):
        keep, left = [p != fold for p in parts], [p == fold for p in parts]
        if min(k.sum() for k in keep) < 2 or not left[0].any():
            continue
        margin = fit_discriminant(positives[keep[0]], negatives[keep[1]])
        positions[left[0]] = margin(positives[left[0]])
        wins.append((positions[left[0]][:, None] > margin(negatives[left[1]])[None, :]).ravel())
    return positions, float(np.concatenate(wins).mean()) if wins else 0.0


def relative_position(rendered: Array, base: Array, real: Array, draws: int, seed: int) -> tuple[float, Array]:
    """Where renders lie between the base model (0) and real pictures (1), with bootstrap draws.

    Args:
        rendered: (prompts, seeds) figures of the LoRA's renders.
        base: (prompts, seeds) figures of the base renders at the same seeds.
        real: (n,) figures of real pictures.

    Returns:
        The value and (draws,) bootstrap draws, paired over prompts and seeds.
    """
    value = (rendered.mean() - base.mean()) / (real.mean() - base.mean())
    base_draws = bootstrap_means(base, draws, seed)
    real_draws = bootstrap_means(real[:, None], draws, seed + 1)
    span = np.maximum(real_draws - base_draws, 1e-6)
    return float(value), (bootstrap_means(rendered, draws, seed) - base_draws) / span


def editability(rendered: Array, base: Array, texts: Array, draws: int, seed: int) -> tuple[float, Array]:
    """How well renders still follow their prompt: 1 = as the base model does, 0 = no better than any other prompt.

    What all renders share, such as a character that no prompt describes, counts neither for nor against it: each
    picture's similarity to its own prompt is taken relative to its similarity to the others'.

    Args:
        rendered: (prompts, seeds, D) embeddings of the LoRA's renders.
        base: (prompts, seeds, D) embeddings of the base renders.
        texts: (prompts, D) embeddings of the prompts without triggers.
    """

    def lead(pictures: Array) -> Array:
        pairs = np.einsum("psd,qd->psq", pictures, texts)
        own = np.einsum("psd,pd->ps", pictures, texts)
        return np.asarray(own - (pairs.sum(2) - own) / (len(texts) - 1))

    follows, reference = lead(rendered), lead(base)
    value = follows.mean() / reference.mean()
    spread = bootstrap_means(follows, draws, seed) / np.maximum(bootstrap_means(reference, draws, seed), 1e-6)
    return float(value), spread


def clipped_harmonic_mean(a: Array, b: Array) -> Array:
    """2ab / (a + b) of values clipped to [0, 1]: an excess of one cannot make up for the other."""
    a, b = np.clip(a, 0, 1), np.clip(b, 0, 1)
    return np.asarray(2 * a * b / np.maximum(a + b, 1e-9))
