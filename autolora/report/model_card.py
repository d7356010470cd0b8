"""`model_card.md`: what a person who gets the file should know, with sample pictures beside it, and no private path."""

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
    """A sample picture; `file` is relative to the card."""

    prompt: str
    seed: int
    weight: float
    image: Image.Image
    file: str


@dataclass(frozen=True)
class CardConcept:
    """What was shown of one concept, and how often a picture of it."""

    name: str
    trigger: str
    pictures: int
    steps: int


@dataclass(frozen=True)
class Licence:
    """Of the base model: its name as on the hub where it is known, and what to do."""

    name: str
    words: str


UNSTATED = Licence(
    "",
    "The base model's folder states no licence: look where it came from before you share this file, as what is "
    "made from a model is bound by its licence.",
)


@dataclass(frozen=True)
class ModelCard:
    """Everything the card says."""

    title: str
    file: str
    verdict: str
    activation_text: str
    triggers: Mapping[str, str]  # by what they call
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
        """The file's name in a prompt."""
        return self.file.removesuffix(".safetensors")

    @property
    def pictures(self) -> int:
        """How many it was trained on."""
        return sum(concept.pictures for concept in self.concepts)


def write_model_card(card: ModelCard, folder: Path) -> Path:
    """Write the sample pictures, then `model_card.md`, into the export's folder.

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
    """The licence that a base model's folder states: in its README's front matter, else by a LICENSE file's title.

    Args:
        source: the folder, or the model's file in it; None where it is of neither.
    """
    if source is None:
        return UNSTATED
    folder = source if source.is_dir() else source.parent
    readme = folder / "README.md"
    front = re.match(r"---\n(.*?)\n---", readme.read_text("utf-8", "replace"), re.S) if readme.is_file() else None
    stated = re.search(r"^license:\s*[\"']?([\w.-]+)", front.group(1), re.M) if front else None
    if stated:
        name = stated.group(1)
        return Licence(name, f"The base model is under `{name}`; what is made from it is bound by that too.")
    for path in sorted(folder.glob("LICEN[SC]E*")):
        lines = [line.strip(" #") for line in path.read_text("utf-8", "replace").splitlines() if line.strip(" #")]
        if lines:
            return Licence("", f"The base model is under: {lines[0]}. What is made from it is bound by that too.")
    return UNSTATED
