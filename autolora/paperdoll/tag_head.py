"""Fits the tagger of the synthetic test world on the scoring CLIP: `python -m autolora.paperdoll.tag_head`."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from autolora.files import atomic_path
from autolora.paperdoll.corpus import mixed_looks, soften
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import GROUPS, Look
from autolora.paperdoll.weights import CLIP, WEIGHTS

HEAD = WEIGHTS.parent / "tagger.safetensors"  # not among the frozen weights, because no result depends on it
LAYER = "layer3"  # of the CLIP's image tower; later layers no longer separate hair styles, mouths and poses
NUM_IMAGES = 12_000
DECAY = 1e-2
_TAG_FORMATS = {"hair_color": "{} hair", "eye_color": "{} eyes"}
# Colour and cut of an outfit are classified separately and form one tag: "red dress".
PAIR = ("outfit_color", "outfit")


def head_groups() -> dict[str, tuple[str, ...]]:
    """Return the tags of every group, one per column; the tag is empty if the base model has no word for the value.

    The last column of `outfit` is such: it stands for the outfits of novel characters.
    """
    groups = {
        group: tuple("" if v == "none" else _TAG_FORMATS.get(group, "{}").format(v) for v in values)
        for group, values in GROUPS.items()
    }
    return groups | {"outfit": (*groups["outfit"], "")}


def column(look: Look, group: str) -> int:
    """Return the column of a group that a look belongs to."""
    value = look.values[group]
    return GROUPS[group].index(value) if value in GROUPS[group] else len(GROUPS[group])


def drawings(seed: str, count: int) -> tuple[list[Look], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Draw looks, alternately without and with marks; return them and their images (count, 64, 64, 3) uint8.

    About half of the images are softened.
    """
    rng = random.Random(seed)
    looks, images = mixed_looks(rng, count), []
    for look in looks:
        image = draw(look, rng)
        images.append(np.asarray(soften(image, rng) if rng.random() < 0.5 else image))
    return looks, np.stack(images)


@torch.inference_mode()
def features(visual: Any, pixels: Tensor) -> Tensor:
    """Return the features (B, features) of LAYER for (B, 3, 64, 64) pixels, normalized for the CLIP."""
    outputs: list[Tensor] = []
    handle = getattr(visual, LAYER).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        visual(pixels)
    finally:
        handle.remove()
    return outputs[0].flatten(1)


def fit_head(inputs: Tensor, labels: list[Tensor], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression of all groups at once by L-BFGS on standardized features, starting from zero.

    Returns:
        weight (features, columns) and bias (columns,) for features that are not standardized.
    """
    mean, std = inputs.mean(0), inputs.std(0) + 1e-3
    inputs = (inputs - mean) / std
    weight, bias = torch.zeros(inputs.shape[1], sum(sizes)), torch.zeros(sum(sizes))
    optimizer = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()], max_iter=80, history_size=8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.split(inputs @ weight + bias, sizes, dim=1)
        entropies = [F.cross_entropy(rows, label) for rows, label in zip(logits, labels, strict=True)]
        loss: Tensor = torch.stack(entropies).sum() + DECAY / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight = weight.detach() / std[:, None]
    return weight, bias.detach() - mean @ weight


def main() -> None:
    """Draw images, fit the head and write it; this takes about ten minutes on one core."""
    import open_clip

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--out", type=Path, default=HEAD)
    args = parser.parse_args()
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    visual = clip.eval().visual
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (visual.image_mean, visual.image_std))
    looks, images = drawings("tag-head", args.images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    inputs = torch.cat([features(visual, (part.float() / 255 - mean) / std) for part in torch.split(pixels, 128)])
    groups = head_groups()
    labels = [torch.tensor([column(look, group) for look in looks]) for group in groups]
    weight, bias = fit_head(inputs, labels, [len(tags) for tags in groups.values()])
    metadata = {"groups": json.dumps(groups), "pair": json.dumps(PAIR), "layer": LAYER}
    with atomic_path(args.out) as temporary:
        save_file({"weight": weight.half(), "bias": bias.half()}, temporary, metadata)


if __name__ == "__main__":
    main()
