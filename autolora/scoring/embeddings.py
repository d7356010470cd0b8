"""The embeddings of images, as an encoder returns them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autolora.scoring.intervals import Array


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N images; rows are unit vectors."""

    pooled: Array  # (N, D), in the space of the encoder's texts
    patches: Array  # (N, P), mid-layer features of each image quarter, before pooling

    def split(self, counts: Sequence[int]) -> list[Embeddings]:
        """Split the rows into consecutive parts of these lengths."""
        ends = np.cumsum(counts)[:-1]
        parts = zip(np.split(self.pooled, ends), np.split(self.patches, ends), strict=True)
        return [Embeddings(pooled, patches) for pooled, patches in parts]


def concatenate(parts: Iterable[Embeddings]) -> Embeddings:
    """Concatenate the rows of several embeddings."""
    parts = list(parts)
    return Embeddings(np.concatenate([e.pooled for e in parts]), np.concatenate([e.patches for e in parts]))
