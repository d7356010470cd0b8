"""The embedded world's tagger: a linear head on its scoring CLIP, which never saw the oracle."""

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
    """Reads the base model's own tags off paper-doll pictures; each group's probabilities add up to 1.

    A group may hold an empty tag, for what the base model has no word for. The groups of `pair` give one tag
    together, `red dress`, as probable as its parts are at once.
    """

    def __init__(self, clip: OpenClip, head: Path) -> None:
        with safe_open(head, "pt") as file:
            self.weight, self.bias = (file.get_tensor(name).float() for name in ("weight", "bias"))
            metadata = file.metadata()
        self.groups: dict[str, list[str]] = json.loads(metadata["groups"])
        self.pair: list[str] = json.loads(metadata["pair"])
        self.clip, self.layer = clip, metadata["layer"]
        self.categories = dict.fromkeys(self._name(np.zeros(len(self.bias))), "general")

    def tag(self, pictures: TaggerImages) -> list[dict[str, float]]:
        """The probability of every tag of the base model's world, for each picture."""
        if not len(pictures):
            return []
        rows = self._features(np.stack([squared(picture, self.clip.side[0]) for picture in pictures]))
        sizes = [len(tags) for tags in self.groups.values()]
        logits = torch.split(rows @ self.weight + self.bias, sizes, dim=1)
        columns = torch.cat([part.softmax(1) for part in logits], 1).double().numpy()
        return [self._name(row) for row in columns]

    @torch.inference_mode()
    def _features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, features) of the layer that the head was fitted on."""
        found: list[Tensor] = []
        layer = getattr(self.clip.model.visual, self.layer)
        handle = layer.register_forward_hook(lambda module, inputs, output: found.append(output.flatten(1)))
        try:
            self.clip.images(pictures)
        finally:
            handle.remove()
        return torch.cat(found).float().cpu()

    def _name(self, columns: NDArray[np.float64]) -> dict[str, float]:
        """Probabilities by tag."""
        ends = np.cumsum([len(tags) for tags in self.groups.values()])[:-1]
        parts = dict(zip(self.groups, np.split(columns, ends), strict=True))
        named = {
            tag: float(value)
            for group, tags in self.groups.items()
            if group not in self.pair
            for tag, value in zip(tags, parts[group], strict=True)
            if tag
        }
        first, second = self.pair
        for a, one in zip(self.groups[first], parts[first], strict=True):
            named |= {
                f"{a} {b}": float(one * other)
                for b, other in zip(self.groups[second], parts[second], strict=True)
                if a and b
            }
        return named


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
