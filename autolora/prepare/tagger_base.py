"""The interface of taggers, their settings and their results; imports no machine-learning library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autolora.data.captions import join_tags
from autolora.errors import ConfigError

TaggerImages = Sequence[Image.Image | NDArray[np.uint8]] | NDArray[np.uint8]  # arrays are (H, W, 3); sizes may differ


class Tagger(Protocol):
    """Finds tags in images."""

    @property
    def categories(self) -> Mapping[str, str]:
        """All tags of the tagger, in its own spelling, with their category: `general`, `character` or `rating`."""
        ...

    def tag(self, images: TaggerImages) -> list[dict[str, float]]:
        """The probability of every tag, for each image of one batch."""
        ...


@dataclass(frozen=True)
class TaggerSettings:
    """The tagger, and which of its tags become a caption; the default thresholds are common for WD14 taggers."""

    path: str = "paperdoll"  # a folder with model.onnx and selected_tags.csv, or OWNER/NAME in the hub's cache
    prefix: tuple[str, ...] = ()  # tags at the start of every caption, such as 1girl and the trigger
    general_threshold: float = 0.35
    character_threshold: float = 0.85
    underscores: bool = False  # write `long_hair` instead of `long hair`; kaomojis such as ^_^ always keep theirs
    escape_brackets: bool = False  # write `mona \(game\)`, as prompt boxes need it
    exclude: tuple[str, ...] = ()  # tags that are never written, in any spelling
    batch_size: int = 8

    def __post_init__(self) -> None:
        mistakes = []
        for name in ("general_threshold", "character_threshold"):
            if not 0 < getattr(self, name) <= 1:
                mistakes.append(f"tagger.{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.batch_size < 1:
            mistakes.append(f"tagger.batch_size must be at least 1, got {self.batch_size}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))


@dataclass(frozen=True)
class TagScore:
    """A tag, spelled as in captions, with its probability."""

    tag: str
    score: float


@dataclass(frozen=True)
class Tagging:
    """The tags of one image: characters first, then general tags, each in order of falling probability."""

    tags: tuple[TagScore, ...]
    rating: TagScore | None  # the most probable rating; None if the tagger has no ratings

    @property
    def caption(self) -> str:
        """The tags as a caption, without the rating."""
        return join_tags(score.tag for score in self.tags)


def squared(image: Image.Image | NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image padded to a square and resized, (side, side, 3) uint8 RGB.

    Transparency and padding are white and the resize is bicubic, as in the demo of the WD14 authors
    (SmilingWolf/wd-tagger).
    """
    rgba = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGBA")
    longest = max(rgba.size)
    square = Image.new("RGBA", (longest, longest), (255, 255, 255, 255))
    square.alpha_composite(rgba, ((longest - rgba.width) // 2, (longest - rgba.height) // 2))
    return np.asarray(square.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
