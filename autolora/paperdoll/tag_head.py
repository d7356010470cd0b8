"""Fits the tags of the embedded world on the scoring CLIP: `python -m autolora.paperdoll.tag_head`."""

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

HEAD = WEIGHTS.parent / "tagger.safetensors"  # beside the frozen weights: it is none of what results depend on
LAYER = "layer3"  # of the CLIP's image tower: what comes after it no longer tells hair styles, mouths and poses apart
PICTURES = 12_000
DECAY = 1e-2
_WORDED = {"hair_color": "{} hair", "eye_color": "{} eyes"}
# Colour and cut of an outfit are read apart and tagged together: "red dress".
PAIR = ("outfit_color", "outfit")


def head_groups() -> dict[str, tuple[str, ...]]:
    """The tags of every group, one column each; an empty tag where there is nothing that the base model has a word for.

    A novel character's outfits are such: the last column of `outfit`.
    """
    groups = {
        group: tuple("" if v == "none" else _WORDED.get(group, "{}").format(v) for v in values)
        for group, values in GROUPS.items()
    }
    return groups | {"outfit": (*groups["outfit"], "")}


def column(look: Look, group: str) -> int:
    """Which column of a group a look shows."""
    value = look.values[group]
    return GROUPS[group].index(value) if value in GROUPS[group] else len(GROUPS[group])


def drawings(seed: str, count: int) -> tuple[list[Look], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Looks, plain and marked in turn, and their pictures, every second one softened: (count, 64, 64, 3) uint8."""
    rng = random.Random(seed)
    looks, pictures = mixed_looks(rng, count), []
    for look in looks:
        picture = draw(look, rng)
        pictures.append(np.asarray(soften(picture, rng) if rng.random() < 0.5 else picture))
    return looks, np.stack(pictures)


@torch.inference_mode()
def features(visual: Any, pixels: Tensor) -> Tensor:
    """(B, 3, 64, 64) pixels, normalized as the CLIP wants them -> (B, features) of LAYER."""
    found: list[Tensor] = []
    handle = getattr(visual, LAYER).register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        visual(pixels)
    finally:
        handle.remove()
    return found[0].flatten(1)


def fit_head(inputs: Tensor, labels: list[Tensor], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Logistic regression of all groups at once, by L-BFGS on standardized features (no random start).

    Returns:
        weight (features, columns) and bias (columns,) for the features as they are.
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
        entropies = [F.cross_entropy(rows, wanted) for rows, wanted in zip(logits, labels, strict=True)]
        loss: Tensor = torch.stack(entropies).sum() + DECAY / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight = weight.detach() / std[:, None]
    return weight, bias.detach() - mean @ weight


def main() -> None:
    """Draw, fit and write the head; about ten minutes on one core."""
    import open_clip

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--out", type=Path, default=HEAD)
    args = parser.parse_args()
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    visual = clip.eval().visual
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (visual.image_mean, visual.image_std))
    looks, pictures = drawings("tag-head", args.pictures)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    inputs = torch.cat([features(visual, (part.float() / 255 - mean) / std) for part in torch.split(pixels, 128)])
    groups = head_groups()
    labels = [torch.tensor([column(look, group) for look in looks]) for group in groups]
    weight, bias = fit_head(inputs, labels, [len(tags) for tags in groups.values()])
    metadata = {"groups": json.dumps(groups), "pair": json.dumps(PAIR), "layer": LAYER}
    with atomic_path(args.out) as temporary:
        save_file({"weight": weight.half(), "bias": bias.half()}, temporary, metadata)


if __name__ == "__main__":
    main()
