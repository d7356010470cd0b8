"""The scores that others choose by, to compare ours with; on embeddings of the same encoder."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from autolora.scoring.intervals import Array


def clip_i(rendered: Array, references: Array) -> float:
    """Mean cosine of renders and reference pictures (Gal et al. 2022, An Image is Worth One Word).

    Args:
        rendered: (n, D) unit vectors.
        references: (m, D) unit vectors.
    """
    return float((rendered @ references.T).mean())


def clip_t(rendered: Array, texts: Array) -> float:
    """Mean cosine of renders and their prompts, CLIPScore without its factor (Hessel et al. 2021).

    Args:
        rendered: (n, D) unit vectors.
        texts: (n, D) unit vectors, one a render.
    """
    return float(np.maximum((rendered * texts).sum(1), 0).mean())


def kid(rendered: Array, references: Array) -> float:
    """Kernel distance of renders and reference pictures (Binkowski et al. 2018), by torchmetrics.

    One subset of all there is, so that no random draw decides.
    """
    metric = KernelInceptionDistance(
        feature=torch.nn.Identity(), subsets=1, subset_size=min(len(rendered), len(references))
    )
    metric.update(torch.from_numpy(references), real=True)
    metric.update(torch.from_numpy(rendered), real=False)
    return float(metric.compute()[0])
