"""Standard metrics of the field, which are reported beside the score and decide nothing."""

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

LPIPS_SIDE = 64  # pixels; AlexNet's pooling layers need at least half of that


def standard_metrics(scorer: Scorer, rendered: Rendered, embedded: Embedded, weight: float) -> dict[str, float]:
    """Compute CLIP-I, CLIP-T and KID of the renders with the trigger, and LPIPS if its weights are on this machine.

    Args:
        scorer: the prepared score, whose encoder is used.
        rendered: the renders of its prompts.
        embedded: the result of `embed` for them.
        weight: the LoRA weight.
    """
    prompts = scorer.select("trigger", "novel")
    by_prompt = [embedded[weight][p].pooled for p in prompts]
    rows = np.concatenate(by_prompt)
    texts = np.repeat(np.stack([scorer.text_embeddings[p] for p in prompts]), [len(part) for part in by_prompt], axis=0)
    training = scorer.references.training
    metrics = {"clip_i": clip_i(rows, training), "clip_t": clip_t(rows, texts), "kid": kid(rows, training)}
    if lpips_weights().is_file():
        metrics["lpips"] = lpips(np.concatenate([rendered[p, weight] for p in scorer.select("class_only")]))
    return metrics


def clip_i(rendered: Array, references: Array) -> float:
    """Return the mean cosine similarity of renders and reference images (Gal et al. 2022, An Image is Worth One Word).

    Args:
        rendered: (n, D) unit vectors.
        references: (m, D) unit vectors.
    """
    return float((rendered @ references.T).mean())


def clip_t(rendered: Array, texts: Array) -> float:
    """Return the mean cosine similarity of renders and their prompts.

    It is CLIPScore (Hessel et al. 2021) without its factor.

    Args:
        rendered: (n, D) unit vectors.
        texts: (n, D) unit vectors, one per render.
    """
    return float(np.maximum((rendered * texts).sum(1), 0).mean())


def kid(rendered: Array, references: Array) -> float:
    """Return the kernel distance of renders and reference images (Binkowski et al. 2018), by torchmetrics.

    There is one subset, with as many images as the smaller side has. torchmetrics draws it with the global random
    generator, whose state is fixed here and restored afterwards.
    """
    size = min(len(rendered), len(references))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # about the memory that large sets need
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=size)
    metric.update(torch.from_numpy(references), real=True)
    metric.update(torch.from_numpy(rendered), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(metric.compute()[0])


def lpips(images: Images) -> float:
    """Return how much renders vary: the mean perceptual distance (Zhang et al. 2018) of neighbours in the list.

    Args:
        images: (n, H, W, 3), at least two.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if min(pixels.shape[-2:]) < LPIPS_SIDE:
        pixels = torch.nn.functional.interpolate(pixels, (LPIPS_SIDE, LPIPS_SIDE), mode="bilinear")
    distance = learned_perceptual_image_patch_similarity(pixels[1:], pixels[:-1], net_type="alex", normalize=True)
    return float(distance)


def lpips_weights() -> Path:
    """Return the file of LPIPS' AlexNet weights, which `torchvision.models.alexnet` downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
