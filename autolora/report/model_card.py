"""Writes `model_card.md` and its sample images beside an exported file; it holds no path of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autolora.files import atomic_path, write_atomic
from autolora.report.templating import environment
from autolora.scoring.intervals import Estimate


@dataclass(frozen=True)
class CardSample:
    """A sample image; `file` is its path relative to the card."""

    prompt: str
    seed: int
    weight: float
    image: Image.Image
    file: str


@dataclass(frozen=True)
class CardConcept:
    """The images of one concept; `steps` is how many of them training showed in total."""

    name: str
    trigger: str
    images: int
    steps: int


@dataclass(frozen=True)
class Licence:
    """The licence of the base model: its name on the model hub, empty if unknown, and a sentence about it."""

    name: str
    words: str


UNSTATED = Licence(
    "",
    "The base model's folder states no licence. Look it up at the model's source before you share this file, because "
    "a LoRA is bound by the licence of its base model.",
)


@dataclass(frozen=True)
class ModelCard:
    """Everything that the card shows."""

    title: str
    file: str
    verdict: str
    activation_text: str
    triggers: Mapping[str, str]  # by the concept that each calls
    weight: float
    base: str
    family: str
    licence: Licence
    samples: tuple[CardSample, ...]
    scorecard: tuple[tuple[str, Estimate, str], ...]
    by_weight: Mapping[str, Mapping[str, Estimate]]
    weaknesses: tuple[str, ...]
    asked: str
    concepts: tuple[CardConcept, ...]
    validation: int
    resolution: int
    tags: tuple[str, ...]
    recipe: str
    step: int

    @property
    def stem(self) -> str:
        """The file's name as prompts use it."""
        return self.file.removesuffix(".safetensors")

    @property
    def images(self) -> int:
        """The number of training images."""
        return sum(concept.images for concept in self.concepts)


def write_model_card(card: ModelCard, folder: Path) -> Path:
    """Write the sample images, then `model_card.md`, into the folder, and return the path of the card.

    Raises:
        StorageError: the folder cannot be written.
    """
    for sample in card.samples:
        with atomic_path(folder / sample.file) as temporary:
            sample.image.convert("RGB").save(temporary, "PNG")
    words = environment(escaped=False).get_template("model_card.md.jinja").render(card=card)
    write_atomic(folder / "model_card.md", words)
    return folder / "model_card.md"


def base_licence(source: Path | None) -> Licence:
    """The licence that a base model's folder states: in the front matter of its README, else as a LICENSE file's title.

    Args:
        source: the folder, or the model's file in it; None if the model has neither.
    """
    if source is None:
        return UNSTATED
    folder = source if source.is_dir() else source.parent
    readme = folder / "README.md"
    front = re.match(r"---\n(.*?)\n---", readme.read_text("utf-8", "replace"), re.S) if readme.is_file() else None
    stated = re.search(r"^license:\s*[\"']?([\w.-]+)", front.group(1), re.M) if front else None
    if stated:
        name = stated.group(1)
        return Licence(name, f"The licence of the base model is `{name}`; this LoRA is bound by it too.")
    for path in sorted(folder.glob("LICEN[SC]E*")):
        lines = [line.strip(" #") for line in path.read_text("utf-8", "replace").splitlines() if line.strip(" #")]
        if lines:
            return Licence("", f"The licence of the base model is: {lines[0]}. This LoRA is bound by it too.")
    return UNSTATED
