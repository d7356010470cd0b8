"""A made-up study: two guide recipes that overcook, and drawn trials, one of them good."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

from autolora.data.step_table import StepTable, StepTableRow
from autolora.report.figures.theme import TERM_NAMES
from autolora.report.schema import (
    Column,
    Costs,
    CurvePoint,
    Effect,
    Gallery,
    OutfitMatrix,
    Pair,
    Report,
    Reproduction,
    Sample,
    TrialRow,
)
from autolora.scoring.intervals import Estimate


def estimate(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half)


OTHER_TERMS = {name: estimate(0.1) for name in TERM_NAMES if name != "score"}  # of metrics that are added later


def curve(steps: int, count: int, speed: float, bleed_from: float) -> tuple[CurvePoint, ...]:
    """Likeness saturates, bleed follows it later, editability falls."""
    points = []
    for index in range(1, count + 1):
        step = round(steps * index / count)
        fidelity = 1.02 * (1 - math.exp(-step * speed / 300))
        bleed = 0.95 / (1 + math.exp(-(step * speed - bleed_from) / 60)) - 0.02
        editability = 1.0 - 0.5 * max(0.0, bleed) + 0.02 * math.sin(index)
        f, e = min(1.0, max(0.0, fidelity)), min(1.0, max(0.0, editability))
        score = 2 * f * e / (f + e)
        terms = OTHER_TERMS | {
            "score": estimate(score),
            "fidelity": estimate(fidelity),
            "likeness": estimate(fidelity, 0.08),
            "editability": estimate(editability, 0.03),
            "bleed_class": estimate(bleed, 0.04),
        }
        broken = ("bleed_class",) if bleed > 0.15 else ()
        verdict = "overcooked" if broken else "good"
        points.append(CurvePoint(step, score, fidelity, editability, bleed, terms, verdict, broken))
    return tuple(points)


def trial(number: int, recipe: str, speed: float, **more: object) -> TrialRow:
    points = curve(int(more.pop("steps", 1600)), 8, speed, 420.0)  # type: ignore[call-overload]
    good = [p for p in points if p.bleed_class < 0.15] or [points[0]]
    best = max(good, key=lambda p: p.score)
    over = next((p.at for p in points if p.bleed_class > 0.15), None)
    fields: dict[str, object] = {
        "params": {},
        "state": "complete",
        "score": estimate(best.score),
        "best_step": best.at,
        "terms": OTHER_TERMS
        | {
            "fidelity": estimate(best.fidelity),
            "likeness": estimate(best.fidelity),
            "editability": estimate(best.editability, 0.03),
            "bleed_class": estimate(best.bleed_class, 0.04),
        },
        "curve": points,
        "overcooked_step": over,
        "reason": f"stopped: overcooked since {over} images" if over else "ran to its end",
    }
    return TrialRow(number=number, uid=f"{number:08x}", recipe=recipe, **(fields | more))  # type: ignore[arg-type]


def face(hair: str, dress: str, horns: bool, size: int = 64) -> Image.Image:
    """A doll that shows at a glance whether it is the character."""
    image = Image.new("RGB", (size, size), "#bcd3e6")
    draw, u = ImageDraw.Draw(image), size / 64
    draw.rectangle((18 * u, 40 * u, 46 * u, 64 * u), fill=dress)
    draw.ellipse((16 * u, 10 * u, 48 * u, 44 * u), fill=hair)
    draw.ellipse((21 * u, 18 * u, 43 * u, 42 * u), fill="#f6d7bd")
    for x in (26, 35):
        draw.rectangle((x * u, 27 * u, (x + 3) * u, 32 * u), fill="#40241a")
    if horns:
        draw.polygon([(20 * u, 16 * u), (16 * u, 2 * u), (27 * u, 11 * u)], fill="#7a2d1d")
        draw.polygon([(44 * u, 16 * u), (48 * u, 2 * u), (37 * u, 11 * u)], fill="#7a2d1d")
    return image


def shown(orange: float, outfit: int, size: int) -> Image.Image:
    """The character's hair and horns by how much of it is learnt, in an outfit."""
    hair, learnt = ("#6b4a2b", "#f08a24"), orange > 0.5
    return face(hair[learnt], ("#7b3fb0", "#e2b93b", "#c62828", "#3d6ea5")[outfit], learnt, size)


def gallery(size: int = 64) -> Gallery:
    """Three prompts with the trigger and two without; the unchanged recipe bleeds into those from step 800."""
    prompts = ("1girl, zorak, fit_a", "1girl, zorak, fit_b", "1girl, zorak, red dress", "1girl", "1girl, beach")
    groups = ("With the trigger",) * 3 + ("Without the trigger: this should stay the base model's",) * 2
    samples = tuple(Sample(p, 100 + i, g) for i, (p, g) in enumerate(zip(prompts, groups, strict=True)))

    def drawn(called: float, plain: float) -> tuple[Image.Image, ...]:
        return tuple(shown(called if i < 3 else plain, min(i, 3), size) for i in range(len(samples)))

    steps, weights = range(200, 1800, 200), (0.4, 0.6, 0.7, 0.8, 1.0, 1.2)
    return Gallery(
        samples,
        (
            Column("base model", {0: drawn(0, 0)}),
            *(
                Column(
                    f"{name}, unchanged",
                    {step: drawn(step / 800, step / 1500) for step in steps},
                    {weight: drawn(weight, weight - 0.3) for weight in weights},
                    1600,
                )
                for name in ("guide-adamw", "guide-prodigy")
            ),
            Column(
                "best",
                {step: drawn(step / 1600, 0) for step in steps},
                {weight: drawn(weight, weight - 0.6) for weight in weights},
                1400,
                0.7,
            ),
        ),
    )


def pairs(size: int = 64) -> tuple[Pair, ...]:
    return tuple(
        Pair(
            f"1girl, zorak, {outfit}",
            "1girl",
            100 + i,
            {
                "best, with": shown(1, i, size),
                "best, without": shown(0, 3, size),
                "guide-adamw, unchanged, without": shown(1, 3, size),
                "base model": shown(0, 3, size),
            },
        )
        for i, outfit in enumerate(("fit_a", "fit_b"))
    )


def matrix(size: int = 64) -> OutfitMatrix:
    shares = ((0.9, 0.04), (0.11, 0.83))
    return OutfitMatrix(
        ("fit_a", "fit_b"),
        (shown(1, 0, size), shown(1, 1, size)),
        tuple(tuple(estimate(share, 0.04) for share in row) for row in shares),
        tuple(tuple(shown(1, i, size) for _ in row) for i, row in enumerate(shares)),
    )


REPRODUCTION = Reproduction(
    "# @package _global_\nrecipe_name: quickstart-best\n",
    "autolora train recipe=guide-adamw adapter.dim=16",
    "accelerate launch train_network.py \\\n  --network_dim=16",
    ("IMAGES holds the folders 10_fit_a, 12_fit_b.",),
    {"base model": "paperdoll", "recipe": "guide-adamw"},
)
STEP_TABLE = StepTable(
    (
        StepTableRow("fit_a", 12, 10.0, 120, 960, 1.0),
        StepTableRow("fit_b", 12, 10.0, 120, 960, 1.0),
        StepTableRow("zorak", 24, 10.0, 240, 1920, 2.0),
    ),
    8,
    {"class images": 96},
)
EFFECTS = (
    Effect("guide-adamw", "adapter.dim", estimate(0.3, 0.2), (8, 16, 32), (estimate(0.5),) * 3, (2, 3, 5)),
    Effect("guide-adamw", "optimizer.lr", None, (1e-4, 3e-4, 6e-4, 9e-4), (estimate(0.6),) * 4, (1, 2, 3, 5), log=True),
    Effect("guide-adamw", "train.scale_weight_norms", None, (None, 0.5), (estimate(0.4), estimate(0.7)), (2, 3)),
)


def report(size: int = 64) -> Report:
    trials = (
        trial(0, "guide-adamw", 1.0, broken=("bleed_class",)),
        trial(1, "guide-prodigy", 1.7),
        trial(
            2,
            "guide-adamw",
            0.4,
            params={
                "guide-adamw/adapter.dim": 8,
                "guide-adamw/optimizer.lr": 3.2145e-4,
                "guide-adamw/train.scale_weight_norms": None,
            },
        ),
        trial(
            3,
            "guide-adamw",
            0.25,
            params={
                "guide-adamw/adapter.dim": 16,
                "guide-adamw/optimizer.lr": 1.1e-4,
                "guide-adamw/train.scale_weight_norms": 0.5,
            },
        ),
        trial(
            4,
            "guide-prodigy",
            0.1,
            state="pruned",
            params={"guide-prodigy/optimizer.d_coef": 0.53},
            reason="pruned: behind three quarters of the trials at 800 images",
        ),
        trial(
            5, "guide-adamw", 0.6, params={"guide-adamw/adapter.dim": 32, "guide-adamw/optimizer.lr": 6e-4}, steps=900
        ),
        TrialRow(
            6,
            "00000006",
            "guide-prodigy",
            {"guide-prodigy/optimizer.d_coef": 1.97},
            "failed",
            reason="diverged at 200 images: <loss> is not finite",
        ),
    )
    return Report(
        study="quickstart",
        verdict="Exported trial 3 (guide-adamw) after 1400 images: likeness 0.70 and bleed 0.02. guide-adamw unchanged "
        "overcooked from 400 images on: plain 1girl shows the character in 71% of renders.",
        dataset="zorak, 24 images in 2 outfits",
        seconds=734.2,
        trials=trials,
        gallery=gallery(size),
        pairs=pairs(size),
        matrix=matrix(size),
        effects=EFFECTS,
        step_table=STEP_TABLE,
        costs=Costs(500.0, 234.2, 9400, 1400, 3200),
        reproduction=REPRODUCTION,
        best=3,
        baselines={"guide-adamw": 0, "guide-prodigy": 1},
        export_path=Path("runs/quickstart/best/quickstart-zorak.safetensors"),
        command="autolora tune quickstart",
        model="paperdoll",
        activation_text="1girl, zorak",
        weight=0.7,
        max_bleed=0.15,
        notes=("The second guide recipe is a tie with trial 2 within its interval.",),
    )


def render_like(seed: int, size: int) -> Image.Image:
    """Smooth shapes with some grain: about as large, packed, as a render of that size."""
    image = shown(1, seed % 4, size)
    draw, turn = ImageDraw.Draw(image), random.Random(seed)
    for _ in range(24):
        x, y, r = (turn.randrange(size) for _ in range(3))
        draw.ellipse((x, y, x + r / 4, y + r / 4), fill=tuple(turn.randrange(256) for _ in range(3)))
    return Image.blend(image, Image.effect_noise((size, size), 60).convert("RGB"), 0.06)


def large_report(trials: int = 50, size: int = 320) -> Report:
    """Fifty trials of eight checkpoints, all with pictures of their own, as a study of Stable Diffusion leaves them."""
    numbers, renders = itertools.count(), [render_like(seed, size) for seed in range(24)]

    def own(count: int) -> tuple[Image.Image, ...]:
        """Shifted renders: each is another image, and packs as large as one."""
        return tuple(ImageChops.offset(renders[n % 24], 1 + n // 24) for n in itertools.islice(numbers, count))

    rows = []
    for number in range(trials):
        row = trial(number, "guide-adamw", 0.3 + number / 50)
        rows.append(replace(row, curve=tuple(replace(point, renders=own(4)) for point in row.curve)))
    columns = [Column("base model", {0: own(7)})]
    for name in ("guide-adamw", "guide-prodigy", "best"):
        by_weight = {weight: own(7) for weight in (0.4, 0.6, 0.8, 1.0, 1.2)}
        columns.append(Column(name, {step: own(7) for step in range(200, 1800, 200)}, by_weight, 1600))
    samples = tuple(Sample(f"1girl, zorak, {i}", i) for i in range(7))
    return replace(report(size), trials=tuple(rows), gallery=Gallery(samples, tuple(columns)))
