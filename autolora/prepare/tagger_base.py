"""What every tagger offers, and its settings."""

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
    """What reads tags off pictures."""

    @property
    def categories(self) -> Mapping[str, str]:
        """Every tag it knows, spelt as in its own list: `general`, `character` or `rating`."""
        ...

    def tag(self, pictures: TaggerImages) -> list[dict[str, float]]:
        """The probability of every tag it knows, for each picture of one batch."""
        ...


@dataclass(frozen=True)
class TaggerSettings:
    """Which tagger, and what of its findings becomes a caption; the thresholds are WD14 taggers' usual ones."""

    path: str = "paperdoll"  # a folder with model.onnx and selected_tags.csv, or OWNER/NAME in the hub's cache
    prefix: tuple[str, ...] = ()  # tags in front of every caption, such as 1girl and the trigger
    general_threshold: float = 0.35
    character_threshold: float = 0.85
    underscores: bool = False  # `long_hair` as it is; kaomojis such as ^_^ keep theirs anyway
    escape_brackets: bool = False  # `mona \(game\)`, as prompt boxes want it
    exclude: tuple[str, ...] = ()  # tags never written, in any spelling
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
    """A tag, spelt as it would be written, with its probability."""

    tag: str
    score: float


@dataclass(frozen=True)
class Tagging:
    """What a tagger found in one picture: characters first, then general tags, each by falling probability."""

    tags: tuple[TagScore, ...]
    rating: TagScore | None  # the likeliest; none where the tagger has no ratings

    @property
    def caption(self) -> str:
        """The tags as a caption; the rating is never part of it."""
        return join_tags(found.tag for found in self.tags)


def squared(picture: Image.Image | NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture padded to a square and resized, (side, side, 3) in RGB.

    Transparency and padding are white, the resize is bicubic, as in the WD14 authors' own demo (SmilingWolf/wd-tagger).
    """
    image = (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGBA")
    longest = max(image.size)
    square = Image.new("RGBA", (longest, longest), (255, 255, 255, 255))
    square.alpha_composite(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
