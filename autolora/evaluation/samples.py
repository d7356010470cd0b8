"""Sample pictures of a trial's checkpoints for the report: some of the renders that they were scored by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from autolora.files import atomic_path, write_atomic
from autolora.scoring.probes import EvalPrompt, of_groups

if TYPE_CHECKING:  # these modules import torch, which a report does without
    from autolora.sampling import Images
    from autolora.scoring.scorecard import Rendered
    from autolora.scoring.scorer import Scorer

LOSSLESS_UP_TO = 128  # pixels; larger ones are kept as lossy WebP of at most SIDE
SIDE = 320
LABEL_PIXELS = 14
CONCEPTS, OTHERS = 3, 2  # most concepts shown, and prompts of each other group


@dataclass(frozen=True)
class Sample:
    """A prompt and seed that every checkpoint is shown by; `base_prompt` is the same without triggers."""

    group: str  # trigger, novel or class_only
    prompt: str
    base_prompt: str
    seed: int

    @classmethod
    def of(cls, probe: EvalPrompt) -> Sample:
        """A probe at its first seed."""
        return cls(probe.group, probe.prompt, probe.base_prompt, probe.seeds[0])


def sample_probes(probes: Sequence[EvalPrompt]) -> list[EvalPrompt]:
    """The probes whose first render is kept: one of each concept, then some in other clothes and without triggers."""
    by_concept = {probe.concept: probe for probe in reversed(of_groups(probes, "trigger"))}
    concepts = list(dict.fromkeys(probe.concept for probe in of_groups(probes, "trigger")))[:CONCEPTS]
    others = [p for group in ("novel", "class_only") for p in of_groups(probes, group)[:OTHERS]]
    return [*(by_concept[name] for name in concepts), *others]


def save_samples(
    folder: Path,
    step: int,
    probes: Sequence[EvalPrompt],
    pictures: Mapping[tuple[EvalPrompt, float], Images],
    weight: float,
) -> None:
    """Keep the samples of a checkpoint's renders at one weight.

    Raises:
        StorageError: the folder cannot be written.
    """
    chosen = sample_probes(probes)
    write_samples(folder, f"{step}", [Sample.of(p) for p in chosen], [pictures[p, weight][0] for p in chosen])


def write_samples(folder: Path, name: str, samples: Sequence[Sample], pictures: Sequence[Images]) -> None:
    """Write pictures side by side as one file, and once which samples they are.

    Raises:
        StorageError: the folder cannot be written.
    """
    side = min(pictures[0].shape[1], SIDE)
    strip = Image.new("RGB", (side * len(pictures), side))
    for place, picture in enumerate(pictures):
        strip.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (place * side, 0))
    listed = folder / "samples.json"
    content = json.dumps([asdict(sample) for sample in samples], indent=1, ensure_ascii=False)
    if not listed.is_file() or listed.read_text("utf-8") != content:
        write_atomic(listed, content)
    with atomic_path(folder / f"{name}.webp") as temporary:
        strip.save(temporary, "WEBP", lossless=side <= LOSSLESS_UP_TO, quality=88)


def read_samples(folder: Path, name: str) -> list[tuple[Sample, Image.Image]]:
    """What `write_samples` wrote; nothing where it is missing or broken, as a report can do without."""
    try:
        samples = [Sample(**entry) for entry in json.loads((folder / "samples.json").read_text("utf-8"))]
        with Image.open(folder / f"{name}.webp") as opened:
            strip = opened.convert("RGB")
    except (OSError, ValueError, TypeError):
        return []
    side = strip.height
    if strip.width != side * len(samples):
        return []
    return [(sample, strip.crop((i * side, 0, (i + 1) * side, side))) for i, sample in enumerate(samples)]


def labelled(rows: Sequence[tuple[str, Images]]) -> Image.Image:
    """Rows of as many pictures each, (N, H, W, 3), under their names."""
    count, side = rows[0][1].shape[:2]
    sheet = Image.new("RGB", (side * count, (side + LABEL_PIXELS) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, pictures) in enumerate(rows):
        top = i * (side + LABEL_PIXELS)
        draw.text((2, top), label, fill="black")
        sheet.paste(Image.fromarray(np.concatenate(list(pictures), axis=1)), (0, top + LABEL_PIXELS))
    return sheet


PROMPTS = 2  # with the trigger, and as many without
SEEDS = 4  # columns


def save_grid(folder: Path, step: int, scorer: Scorer, rendered: Rendered) -> None:
    """Write the grid of a checkpoint's renders: prompts x seeds, trigger on and off, the base model's beside."""
    with atomic_path(folder / f"{step}.png") as temporary:
        picture_grid(scorer, rendered).save(temporary, format="PNG")


def picture_grid(scorer: Scorer, rendered: Rendered) -> Image.Image:
    """Two rows a prompt, at the strongest weight: the base model's pictures, and the same seeds with the LoRA."""
    weight = max(weight for _, weight in rendered)
    probes = [p for group in ("trigger", "class_only") for p in scorer.of(group)[:PROMPTS]]
    rows = [
        row
        for probe in probes
        if (probe, weight) in rendered
        for row in (
            (f"base: {probe.base_prompt}", _columns(scorer.base_pictures[probe])),
            (f"LoRA at {weight:g}: {probe.prompt}", _columns(rendered[probe, weight])),
        )
    ]
    return labelled(rows)


def _columns(pictures: Images) -> Images:
    """As many pictures as there are columns; white where a prompt has fewer."""
    missing = SEEDS - len(pictures)
    if missing <= 0:
        return pictures[:SEEDS]
    return np.concatenate([pictures, np.full((missing, *pictures.shape[1:]), 255, np.uint8)])
