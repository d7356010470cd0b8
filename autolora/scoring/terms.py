"""Functions on embeddings that the score is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autolora.scoring.intervals import Array, bootstrap_means


@dataclass(frozen=True)
class LinearDiscriminant:
    """A direction in embedding space that separates a concept from everything else."""

    direction: Array  # (D,)

    def __call__(self, embeddings: Array) -> Array:
        """Project (..., D) embeddings to (...) positions along the direction."""
        return np.asarray(embeddings @ self.direction)


def fit_discriminant(positives: Array, negatives: Array, shrinkage: float = 0.3) -> LinearDiscriminant:
    """Fit Fisher's linear discriminant, with the pooled covariance shrunk towards a multiple of the identity.

    Args:
        positives: (P, D) embeddings of the concept's images.
        negatives: (N, D) embeddings of base renders or of sibling concepts.
        shrinkage: share of the identity in the covariance (Friedman 1989, Regularized Discriminant Analysis).
    """
    centered = np.concatenate([positives - positives.mean(0), negatives - negatives.mean(0)])
    # The singular vectors of the rows are used, because there are far more columns than rows.
    _, singular, axes = np.linalg.svd(centered / np.sqrt(len(centered)), full_matrices=False)
    variance, between = (1 - shrinkage) * singular**2, positives.mean(0) - negatives.mean(0)
    floor = shrinkage * (singular**2).sum() / centered.shape[1]
    direction = between - axes.T @ (variance / (variance + floor) * (axes @ between))
    return LinearDiscriminant(direction / np.linalg.norm(direction))


def cross_fit(positives: Array, negatives: Array, folds: int = 5, seed: int = 0) -> tuple[Array, float]:
    """Cross-validate the discriminant: positions of positives that it was not fitted on, and its AUC.

    Args:
        positives: (P, D) embeddings of the concept's images.
        negatives: (N, D) embeddings of base renders or of sibling concepts.
        folds: the number of folds.
        seed: of the assignment to folds.

    Returns:
        Positions (P,), each along a discriminant that was fitted without this image, and the AUC: the probability that
        an unseen positive lies above an unseen negative. Both are 0 if a fold has fewer than two images on one side.
    """
    generator = np.random.default_rng(seed)
    fold_of = [generator.permutation(np.arange(len(rows)) % folds) for rows in (positives, negatives)]
    positions, wins = np.zeros(len(positives)), []
    for fold in range(folds):
        fitted, unseen = [f != fold for f in fold_of], [f == fold for f in fold_of]
        if min(rows.sum() for rows in fitted) < 2 or not unseen[0].any():
            continue
        discriminant = fit_discriminant(positives[fitted[0]], negatives[fitted[1]])
        positions[unseen[0]] = discriminant(positives[unseen[0]])
        wins.append((positions[unseen[0]][:, None] > discriminant(negatives[unseen[1]])[None, :]).ravel())
    return positions, float(np.concatenate(wins).mean()) if wins else 0.0


def relative_position(rendered: Array, base: Array, real: Array, n_bootstrap: int, seed: int) -> tuple[float, Array]:
    """Return where renders lie between the base model's renders (0) and real images (1).

    Args:
        rendered: (prompts, seeds) values of the LoRA's renders.
        base: (prompts, seeds) values of the base renders at the same seeds.
        real: (n,) values of real images.
        n_bootstrap: the number of bootstrap draws.
        seed: of the bootstrap.

    Returns:
        The value and its bootstrap draws (n_bootstrap,), paired over prompts and seeds.
    """
    value = (rendered.mean() - base.mean()) / (real.mean() - base.mean())
    base_draws = bootstrap_means(base, n_bootstrap, seed)
    real_draws = bootstrap_means(real[:, None], n_bootstrap, seed + 1)
    span = np.maximum(real_draws - base_draws, 1e-6)
    return float(value), (bootstrap_means(rendered, n_bootstrap, seed) - base_draws) / span


def editability(rendered: Array, base: Array, texts: Array, n_bootstrap: int, seed: int) -> tuple[float, Array]:
    """Return how well renders follow their prompts: 1 = as well as the base model, 0 = no better than other prompts.

    Each image's similarity to its own prompt is compared with its similarity to the other prompts. So what all renders
    share, such as a character that no prompt describes, has no influence.

    Args:
        rendered: (prompts, seeds, D) embeddings of the LoRA's renders.
        base: (prompts, seeds, D) embeddings of the base renders.
        texts: (prompts, D) embeddings of the prompts without triggers.
        n_bootstrap: the number of bootstrap draws.
        seed: of the bootstrap.

    Returns:
        The value and its bootstrap draws (n_bootstrap,).
    """

    def lead(images: Array) -> Array:
        """Return (prompts, seeds) similarities to the own prompt minus the mean of those to the others."""
        pairs = np.einsum("psd,qd->psq", images, texts)
        own = np.einsum("psd,pd->ps", images, texts)
        return np.asarray(own - (pairs.sum(2) - own) / (len(texts) - 1))

    lora_lead, base_lead = lead(rendered), lead(base)
    value = lora_lead.mean() / base_lead.mean()
    base_draws = np.maximum(bootstrap_means(base_lead, n_bootstrap, seed), 1e-6)
    return float(value), bootstrap_means(lora_lead, n_bootstrap, seed) / base_draws


def clipped_harmonic_mean(a: Array, b: Array) -> Array:
    """Return 2ab / (a + b) of values clipped to [0, 1], so that an excess of one does not make up for the other."""
    a, b = np.clip(a, 0, 1), np.clip(b, 0, 1)
    return np.asarray(2 * a * b / np.maximum(a + b, 1e-9))
