"""Classifies the attributes and marks of an image of the synthetic test world.

Tests and experiments judge with it. Nothing is tuned by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from autolora.paperdoll.look import GROUPS, MARKS, NOVEL_OUTFITS, Character
from autolora.paperdoll.weights import ATTRIBUTE_CLASSIFIER

HEADS: dict[str, tuple[str, ...]] = {
    **GROUPS,
    "outfit": GROUPS["outfit"] + NOVEL_OUTFITS,
    **MARKS,
}
# An image shows a character if the mean log-probability of its marks, each clipped to at least -6, is above this: one
# of the three marks may be missing. It was set on seeds 0-99: recall 98% after the VAE, false alarms 0.2%.
SHOWS_THRESHOLD = -1.6


class AttributeNet(nn.Module):
    """A convolutional network: (B, 3, 64, 64) pixels in [-1, 1] -> one vector of logits per head."""

    def __init__(self) -> None:
        super().__init__()

        def block(inside: int, outside: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())

        widths = [(3, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1), (96, 160, 2), (160, 160, 1)]
        self.body = nn.Sequential(*(block(*w) for w in widths), nn.Conv2d(160, 48, 1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(48 * 64, sum(len(values) for values in HEADS.values()))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the logits of every head, (B, values)."""
        logits = self.head(self.body(pixels))
        sizes = [len(values) for values in HEADS.values()]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        return dict(zip(HEADS, logits.tensor_split(ends, dim=1), strict=True))


class AttributeClassifier:
    """The trained network; it takes uint8 images of shape (N, 64, 64, 3)."""

    def __init__(self, path: Path = ATTRIBUTE_CLASSIFIER) -> None:
        self.net = AttributeNet()
        self.net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
        self.net.eval()

    @torch.inference_mode()
    def log_probabilities(self, images: NDArray[np.uint8] | Tensor, batch_size: int = 128) -> dict[str, Tensor]:
        """Return the log-probability of every value, by head, each of shape (N, values)."""
        pixels = torch.as_tensor(np.asarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        chunks = [self.net(pixels[i : i + batch_size]) for i in range(0, len(pixels), batch_size)]
        return {head: torch.cat([c[head] for c in chunks]).log_softmax(1) for head in HEADS}

    def read(self, images: NDArray[np.uint8] | Tensor) -> list[dict[str, str]]:
        """Return the most likely value of every attribute and mark of each image."""
        log_p = self.log_probabilities(images)
        best = {head: log_p[head].argmax(1).tolist() for head in HEADS}
        return [{head: HEADS[head][best[head][i]] for head in HEADS} for i in range(len(images))]

    def shows(self, images: NDArray[np.uint8] | Tensor, character: Character) -> NDArray[np.bool_]:
        """Return whether each image shows this character by its marks: bool array of shape (N,)."""
        log_p = self.log_probabilities(images)
        marks = vars(character.marks)
        score = torch.stack([log_p[h][:, HEADS[h].index(value)].clamp(min=-6) for h, value in marks.items()]).mean(0)
        return np.asarray((score > SHOWS_THRESHOLD).numpy())

    def outfit(self, images: NDArray[np.uint8] | Tensor, character: Character) -> list[int]:
        """Return which of the character's outfits each image shows, by cut and colour: indices into `outfits`."""
        log_p = self.log_probabilities(images)
        scores = [
            log_p["outfit"][:, HEADS["outfit"].index(o.cut)]
            + log_p["outfit_color"][:, HEADS["outfit_color"].index(o.color)]
            for o in character.outfits
        ]
        return [int(i) for i in torch.stack(scores, 1).argmax(1)]

    def accuracy(self, images: NDArray[np.uint8] | Tensor, expected: Sequence[dict[str, str]]) -> dict[str, float]:
        """Return by group the share of images with the expected value, over the images that have an expected value."""
        read = self.read(images)
        hits: dict[str, list[bool]] = {}
        for values, expected_values in zip(read, expected, strict=True):
            for group, value in expected_values.items():
                hits.setdefault(group, []).append(values[group] == value)
        return {group: float(np.mean(group_hits)) for group, group_hits in hits.items()}
