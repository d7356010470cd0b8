"""Sample images of a trial's checkpoints for the report: some of the renders that they were scored by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from autolora.errors import BrokenFile
from autolora.files import atomic_path, write_atomic
from autolora.received import read_json
from autolora.scoring.eval_prompts import EvalPrompt, in_groups

if TYPE_CHECKING:  # these modules import torch, which a report does without
    from autolora.sampling import Images
    from autolora.scoring.scorecard import Rendered
    from autolora.scoring.scorer import Scorer

LOSSLESS_UP_TO = 128  # pixels; larger images are kept as lossy WebP of at most SIDE pixels
SIDE = 320
LABEL_PIXELS = 14
CONCEPTS, OTHERS = 3, 2  # the most concepts, and prompts of each other group, that are shown


@dataclass(frozen=True)
class Sample:
    """A prompt and a seed that every checkpoint is shown by; `base_prompt` is the prompt without triggers."""

    group: str  # trigger, novel or class_only
    prompt: str
    base_prompt: str
    seed: int

    @classmethod
    def of(cls, prompt: EvalPrompt) -> Sample:
        """An evaluation prompt at its first seed."""
        return cls(prompt.group, prompt.prompt, prompt.base_prompt, prompt.seeds[0])


def sample_prompts(prompts: Sequence[EvalPrompt]) -> list[EvalPrompt]:
    """The prompts whose first render is kept: one of each concept, then some in other clothes and without triggers."""
    with_trigger = in_groups(prompts, "trigger")
    by_concept = {prompt.concept: prompt for prompt in reversed(with_trigger)}
    concepts = list(dict.fromkeys(prompt.concept for prompt in with_trigger))[:CONCEPTS]
    others = [prompt for group in ("novel", "class_only") for prompt in in_groups(prompts, group)[:OTHERS]]
    return [*(by_concept[name] for name in concepts), *others]


def save_samples(
    folder: Path,
    step: int,
    prompts: Sequence[EvalPrompt],
    renders: Mapping[tuple[EvalPrompt, float], Images],
    weight: float,
) -> None:
    """Keep the samples of a checkpoint's renders at one weight.

    Raises:
        StorageError: the folder cannot be written.
    """
    kept = sample_prompts(prompts)
    write_samples(folder, f"{step}", [Sample.of(p) for p in kept], [renders[p, weight][0] for p in kept])


def write_samples(folder: Path, name: str, samples: Sequence[Sample], images: Sequence[Images]) -> None:
    """Write square images, (H, W, 3) each, side by side as one file, and the list of their samples once.

    Raises:
        StorageError: the folder cannot be written.
    """
    side = min(images[0].shape[1], SIDE)
    strip = Image.new("RGB", (side * len(images), side))
    for place, image in enumerate(images):
        strip.paste(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS), (place * side, 0))
    listed = folder / "samples.json"
    content = json.dumps([asdict(sample) for sample in samples], indent=1, ensure_ascii=False)
    if not listed.is_file() or listed.read_text("utf-8") != content:
        write_atomic(listed, content)
    with atomic_path(folder / f"{name}.webp") as temporary:
        strip.save(temporary, "WEBP", lossless=side <= LOSSLESS_UP_TO, quality=88)


def read_samples(folder: Path, name: str) -> list[tuple[Sample, Image.Image]]:
    """The samples and images that `write_samples` wrote; none if a file is missing or broken."""
    try:
        samples = read_json(folder / "samples.json", list[Sample]) or []
        with Image.open(folder / f"{name}.webp") as opened:
            strip = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, BrokenFile):
        return []
    side = strip.height
    if strip.width != side * len(samples):
        return []
    return [(sample, strip.crop((i * side, 0, (i + 1) * side, side))) for i, sample in enumerate(samples)]


def labelled(rows: Sequence[tuple[str, Images]]) -> Image.Image:
    """One image of labelled rows; each row has the same number of images, (N, H, W, 3)."""
    count, side = rows[0][1].shape[:2]
    sheet = Image.new("RGB", (side * count, (side + LABEL_PIXELS) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, images) in enumerate(rows):
        top = i * (side + LABEL_PIXELS)
        draw.text((2, top), label, fill="black")
        sheet.paste(Image.fromarray(np.concatenate(list(images), axis=1)), (0, top + LABEL_PIXELS))
    return sheet


PROMPTS = 2  # with the trigger, and as many without
SEEDS = 4  # columns


def save_grid(folder: Path, step: int, scorer: Scorer, rendered: Rendered) -> None:
    """Write the grid of a checkpoint's renders and the base model's: prompts x seeds, with and without the trigger."""
    with atomic_path(folder / f"{step}.png") as temporary:
        render_grid(scorer, rendered).save(temporary, format="PNG")


def render_grid(scorer: Scorer, rendered: Rendered) -> Image.Image:
    """Two rows for each prompt, at the strongest weight: the base model's renders, and the LoRA's at the same seeds."""
    weight = max(weight for _, weight in rendered)
    prompts = [p for group in ("trigger", "class_only") for p in scorer.select(group)[:PROMPTS]]
    rows = [
        row
        for prompt in prompts
        if (prompt, weight) in rendered
        for row in (
            (f"base: {prompt.base_prompt}", _columns(scorer.base_renders[prompt])),
            (f"LoRA at {weight:g}: {prompt.prompt}", _columns(rendered[prompt, weight])),
        )
    ]
    return labelled(rows)


def _columns(images: Images) -> Images:
    """One image for each column; white if there are fewer."""
    missing = SEEDS - len(images)
    if missing <= 0:
        return images[:SEEDS]
    return np.concatenate([images, np.full((missing, *images.shape[1:]), 255, np.uint8)])
