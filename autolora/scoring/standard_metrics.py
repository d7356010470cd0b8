"""The figures that others choose by, shown beside the score; nothing is decided by them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.image.kid import KernelInceptionDistance

from autolora.sampling import Images
from autolora.scoring.intervals import Array
from autolora.scoring.scorecard import Embedded, Rendered
from autolora.scoring.scorer import Scorer

LPIPS_SIDE = 64  # pixels; AlexNet's pooling leaves nothing of less than half of that


def standard_metrics(scorer: Scorer, pictures: Rendered, embedded: Embedded, weight: float) -> dict[str, float]:
    """CLIP-I, CLIP-T and KID of the renders with the trigger, on embeddings of the score's encoder; LPIPS if it can be.

    Args:
        scorer: the prepared score.
        pictures: its rendered probes.
        embedded: what `embed` made of them.
        weight: of the LoRA.
    """
    probes = scorer.select("trigger", "novel")
    asked = [embedded[weight][p].pooled for p in probes]
    rows = np.concatenate(asked)
    texts = np.repeat(np.stack([scorer.text_embeddings[p] for p in probes]), [len(own) for own in asked], axis=0)
    training = scorer.references.training
    found = {"clip_i": clip_i(rows, training), "clip_t": clip_t(rows, texts), "kid": kid(rows, training)}
    if lpips_weights().is_file():
        found["lpips"] = lpips(np.concatenate([pictures[p, weight] for p in scorer.select("class_only")]))
    return found


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

    One subset, of all there is on the smaller side. Which it is on the larger the metric draws from the global
    generator, which is lent a fixed state and put back.
    """
    size = min(len(rendered), len(references))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of the memory that large sets would take
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=size)
    metric.update(torch.from_numpy(references), real=True)
    metric.update(torch.from_numpy(rendered), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(metric.compute()[0])


def lpips(pictures: Images) -> float:
    """Mean perceptual distance of neighbours in a list of renders (Zhang et al. 2018), by torchmetrics: how they vary.

    Args:
        pictures: (n, H, W, 3), at least two.
    """
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    if min(pixels.shape[-2:]) < LPIPS_SIDE:
        pixels = torch.nn.functional.interpolate(pixels, (LPIPS_SIDE, LPIPS_SIDE), mode="bilinear")
    found = learned_perceptual_image_patch_similarity(pixels[1:], pixels[:-1], net_type="alex", normalize=True)
    return float(found)


def lpips_weights() -> Path:
    """Where torchvision keeps the AlexNet that LPIPS is made of, once `torchvision.models.alexnet` has fetched it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
