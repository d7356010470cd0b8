"""The tagger of the synthetic test world: a linear head on its CLIP model, independent of the attribute classifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autolora.errors import ConfigError
from autolora.paperdoll.weights import WEIGHTS
from autolora.prepare.tagger_base import TaggerImages, squared
from autolora.scoring.encoders import OpenClip, load_encoder

HEAD = WEIGHTS.parent / "tagger.safetensors"  # written by `python -m autolora.paperdoll.tag_head`


class DollTagger:
    """Finds the base model's tags in paper-doll images; the probabilities of each group of tags add up to 1.

    A group may contain an empty tag, for things that the base model has no word for. The two groups of `pair` form one
    tag together, such as `red dress`; its probability is the product of theirs.
    """

    def __init__(self, clip: OpenClip, head: Path) -> None:
        with safe_open(head, "pt") as file:
            self.weight, self.bias = (file.get_tensor(name).float() for name in ("weight", "bias"))
            metadata = file.metadata()
        self.groups: dict[str, list[str]] = json.loads(metadata["groups"])
        self.pair: list[str] = json.loads(metadata["pair"])
        self.clip, self.layer = clip, metadata["layer"]
        self.categories = dict.fromkeys(self._by_tag(np.zeros(len(self.bias))), "general")

    def tag(self, images: TaggerImages) -> list[dict[str, float]]:
        """The probability of every tag of the base model, for each image."""
        if not len(images):
            return []
        rows = self._features(np.stack([squared(image, self.clip.side[0]) for image in images]))
        sizes = [len(tags) for tags in self.groups.values()]
        logits = torch.split(rows @ self.weight + self.bias, sizes, dim=1)
        probabilities = torch.cat([part.softmax(1) for part in logits], 1).double().numpy()
        return [self._by_tag(row) for row in probabilities]

    @torch.inference_mode()
    def _features(self, images: NDArray[np.uint8]) -> Tensor:
        """The features of the layer that the head was fitted on: (N, H, W, 3) uint8 -> (N, features)."""
        outputs: list[Tensor] = []
        layer = getattr(self.clip.model.visual, self.layer)
        handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.flatten(1)))
        try:
            self.clip.embed_pooled(images)
        finally:
            handle.remove()
        return torch.cat(outputs).float().cpu()

    def _by_tag(self, probabilities: NDArray[np.float64]) -> dict[str, float]:
        """The probabilities of one image by tag."""
        ends = np.cumsum([len(tags) for tags in self.groups.values()])[:-1]
        by_group = dict(zip(self.groups, np.split(probabilities, ends), strict=True))
        by_tag = {
            tag: float(value)
            for group, tags in self.groups.items()
            if group not in self.pair
            for tag, value in zip(tags, by_group[group], strict=True)
            if tag
        }
        first, second = self.pair
        for a, first_value in zip(self.groups[first], by_group[first], strict=True):
            by_tag |= {
                f"{a} {b}": float(first_value * second_value)
                for b, second_value in zip(self.groups[second], by_group[second], strict=True)
                if a and b
            }
        return by_tag


def load_doll_tagger(head: Path = HEAD) -> DollTagger:
    """Load the packaged tagger.

    Raises:
        ConfigError: its file is missing or broken.
    """
    clip = load_encoder("paperdoll")
    assert isinstance(clip, OpenClip)
    try:
        return DollTagger(clip, head)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{head} is missing or broken ({error}): install autolora again") from error
