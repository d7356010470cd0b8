"""A made-up study: two guide recipes that overcook, and drawn trials, one of them good."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from autolora.report.content import CurvePoint, GridRow, Report, TrialRow
from autolora.scoring.intervals import Estimate


def estimate(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half)


def curve(steps: int, count: int, speed: float, bleed_from: float) -> tuple[CurvePoint, ...]:
    """Likeness saturates, bleed follows it later, editability falls."""
    points = []
    for index in range(1, count + 1):
        step = round(steps * index / count)
        fidelity = 1.02 * (1 - math.exp(-step * speed / 300))
        bleed = 0.95 / (1 + math.exp(-(step * speed - bleed_from) / 60)) - 0.02
        editability = 1.0 - 0.5 * max(0.0, bleed) + 0.02 * math.sin(index)
        f, e = min(1.0, max(0.0, fidelity)), min(1.0, max(0.0, editability))
        points.append(CurvePoint(step, 2 * f * e / (f + e), fidelity, editability, bleed))
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
        "terms": {
            "fidelity": estimate(best.fidelity),
            "likeness": estimate(best.fidelity),
            "editability": estimate(best.editability, 0.03),
            "bleed_class": estimate(best.bleed_class, 0.04),
        },
        "curve": points,
        "overcooked_step": over,
        "reason": f"stopped: overcooked since step {over}" if over else "ran to its end",
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


def grids(size: int = 64) -> tuple[GridRow, ...]:
    zorak = ("#f08a24", "#7b3fb0", True, size)
    rows = []
    for index, prompt in enumerate(("1girl, zorak, fit_a", "1girl, zorak, fit_b, night", "1girl, zorak, red dress")):
        own = ("#f08a24", ("#7b3fb0", "#e2b93b", "#c62828")[index], True, size)
        images = {
            "base model": face("#6b4a2b", "#3d6ea5", False, size),
            "guide-adamw": face(*zorak),
            "exported": face(*own),
        }
        rows.append(GridRow(prompt, 100 + index, images, "With the trigger"))
    for index, prompt in enumerate(("1girl", "1girl, smile, beach", "1boy")):
        plain = (("#6b4a2b", "#3d6ea5"), ("#d8b04a", "#2e8b57"), ("#333333", "#999999"))[index]
        images = {
            "base model": face(*plain, False, size),
            "guide-adamw": face(*zorak),
            "exported": face(*plain, False, size),
        }
        rows.append(GridRow(prompt, 200 + index, images, "Without the trigger: this should stay the base model's"))
    return tuple(rows)


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
                "guide-adamw/train.max_norm": None,
            },
        ),
        trial(
            3,
            "guide-adamw",
            0.25,
            params={
                "guide-adamw/adapter.dim": 16,
                "guide-adamw/optimizer.lr": 1.1e-4,
                "guide-adamw/train.max_norm": 0.5,
            },
        ),
        trial(
            4,
            "guide-prodigy",
            0.1,
            state="pruned",
            params={"guide-prodigy/optimizer.d_coef": 0.53},
            reason="pruned: behind three quarters of the trials at step 800",
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
            reason="diverged at step 200: <loss> is not finite",
        ),
    )
    return Report(
        study="quickstart",
        verdict="Exported trial 3 (guide-adamw) after 1400 images: likeness 0.70 and bleed 0.02. guide-adamw unchanged "
        "overcooked from step 400: plain 1girl shows the character in 71% of renders.",
        dataset="zorak, 24 pictures in 2 outfits",
        seconds=734.2,
        trials=trials,
        grids=grids(size),
        best=3,
        baselines={"guide-adamw": 0, "guide-prodigy": 1},
        export_path=Path("runs/quickstart/best/quickstart-zorak.safetensors"),
        command="autolora tune quickstart",
        model="paperdoll",
        activation_text="1girl, zorak",
        weight=0.7,
        bleed_limit=0.15,
        notes=("The second guide recipe is a tie with trial 2 within its interval.",),
    )
