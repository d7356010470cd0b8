"""What the training guide claims and a study can test: each claim with an interval, or "not seen".

    python -m experiments.live.guide_claims --seeds 163 164 165 166 167 168

Characters with three outfits; the guide's recipes in the embedded world's steps and rates (`adapters.py`), judged by
the oracle at every checkpoint, weight 1. That Prodigy overcooks later is read from the bakes of `remedies.py`. A killed
run continues; several processes take seeds of their own. Writes experiments/results/guide-claims/guide-claims.md, of all
judged so far, once there are three characters.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.data.concepts import load_dataset, with_buckets
from autolora.files import write_atomic
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.paperdoll.look import novel_character
from autolora.paperdoll.world import write_dataset
from autolora.scoring.failure_metrics import burn_features
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import TrainingContext, train_one
from autolora.train.run import Run
from experiments.common.results import keep, kept, refuse_development
from experiments.live.adapters import guide_run
from experiments.live.remedies import FEWEST_CHARACTERS, Judge, interval
from experiments.live.remedies import RESULTS as REMEDIES

Curve = Sequence[Mapping[str, float]]
OUTFITS = 3
GRAIN = 16  # standard deviation of the noise in spoilt pictures, of 255
OVERCOOKED = 0.3  # of the class word's pictures show the character
RESULTS = Path(__file__).parents[1] / "results" / "guide-claims"


@dataclass(frozen=True)
class Arm:
    """What is baked: an adapter's guide recipe, on which pictures, at which multiple of its rate."""

    kind: str
    pictures: str = "clean"
    rate: float = 1.0
    dataset: tuple[str, ...] = ()

    def run(self) -> Run:
        """The recipe at its rate."""
        run = guide_run(self.kind)
        optimizer: Any = run.optimizer
        return replace(run, optimizer=replace(optimizer, lr=optimizer.lr * self.rate))


ARMS = {
    "lora": Arm("lora"),
    "locon": Arm("locon"),
    "lora-grain": Arm("lora", "grain"),
    "locon-grain": Arm("locon", "grain"),
    "few-buckets": Arm("lora", "shapes", dataset=("dataset.buckets.bucket_reso_steps=8", "dataset.buckets.count=4")),
    "many-buckets": Arm("lora", "shapes", dataset=("dataset.buckets.bucket_reso_steps=8", "dataset.buckets.count=16")),
    "lokr-low": Arm("lokr", rate=0.25),
    "lokr": Arm("lokr"),  # 6.5e-5: the guide has 5e-5 to 8e-5
    "lokr-high": Arm("lokr", rate=4.0),
    "ia3-below": Arm("ia3", rate=0.02),  # 1e-4
    "ia3-lower": Arm("ia3", rate=0.15),  # 7.5e-4: the guide has 5e-4 to 1e-3
    "ia3-upper": Arm("ia3", rate=1.5),  # 7.5e-3: and 5e-3 to 1e-2
    "ia3-above": Arm("ia3", rate=6.0),  # 3e-2
}


def best(name: str) -> Callable[[Curve], float]:
    """The highest value along a bake."""
    return lambda curve: max(point[name] for point in curve)


def last(name: str) -> Callable[[Curve], float]:
    """The value at a bake's end."""
    return lambda curve: curve[-1][name]


def overcooked_at(curve: Curve) -> float:
    """Images shown at the first checkpoint whose class word shows the character in OVERCOOKED of its pictures.

    The last one's where there is none.
    """
    return next((point["step"] for point in curve if point["bleed"] >= OVERCOOKED), curve[-1]["step"])


@dataclass(frozen=True)
class Claim:
    """A difference between arms, those of `more` less those of `less`, that the guide says has a sign; 0: nothing."""

    text: str
    more: tuple[str, ...]
    less: tuple[str, ...]
    measure: Callable[[Curve], float]
    sign: int = 1
    form: str = "+.0%"

    def verdict(self, low: float, high: float) -> str:
        """What the interval says of it."""
        found = 1 if low > 0 else -1 if high < 0 else 0
        if not self.sign:
            return ["no difference shown", "more", "less"][found]
        return ["the opposite", "not seen", "seen"][found * self.sign + 1]


DRAWN = best("likeness")
GRAINY = "LoCon's pictures take over more of noisy pictures' noise (fine detail more than on clean ones)"
CLAIMS = [
    Claim("LoCon draws the asked outfit on the character oftener", ("locon",), ("lora",), best("dressed")),
    Claim(GRAINY, ("locon-grain", "lora"), ("lora-grain", "locon"), last("detail"), form="+.4f"),
    Claim("many buckets blur (less fine detail)", ("few-buckets",), ("many-buckets",), last("detail"), form="+.4f"),
    Claim("many buckets cost likeness", ("few-buckets",), ("many-buckets",), DRAWN),
    Claim("Prodigy overcooks later (images shown)", ("Prodigy",), ("none",), overcooked_at, form="+.0f"),
    Claim("LoKr at 6.5e-5 draws the character oftener than at 1.6e-5", ("lokr",), ("lokr-low",), DRAWN),
    Claim("LoKr at 6.5e-5 draws the character oftener than at 2.6e-4", ("lokr",), ("lokr-high",), DRAWN),
    Claim("LoKr at 6.5e-5 overcooks later than at 2.6e-4", ("lokr",), ("lokr-high",), overcooked_at, form="+.0f"),
    Claim("IA3 at 7.5e-3 draws the character oftener than at 7.5e-4", ("ia3-upper",), ("ia3-lower",), DRAWN, 0),
    Claim("IA3 at 7.5e-4 draws the character oftener than at 1e-4", ("ia3-lower",), ("ia3-below",), DRAWN),
    Claim("IA3 at 7.5e-3 draws the character oftener than at 3e-2", ("ia3-upper",), ("ia3-above",), DRAWN),
]


def write_pictures(seed: int, out: Path) -> None:
    """The character's pictures: clean, with grain, and cut to many shapes."""
    for name, size in (("clean", 64), ("grain", 64), ("shapes", 96)):
        folder = out / str(seed) / name
        if folder.exists():
            continue
        write_dataset(folder, seed, OUTFITS, size=size)
        noise, shapes = np.random.default_rng(seed), random.Random(seed)
        for path in sorted(folder.rglob("*.png")) if name != "clean" else ():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            if name == "grain":
                pixels = np.clip(pixels + noise.normal(0, GRAIN, pixels.shape), 0, 255).astype(np.uint8)
            else:  # some narrower around the middle, the others lower from the top
                side = shapes.randrange(36, size + 1)
                wide = shapes.random() < 0.5
                pixels = pixels[:side] if wide else pixels[:, (size - side) // 2 : (size + side) // 2]
            Image.fromarray(pixels).save(path)


def figures(judge: Judge, trigger: str) -> dict[str, float]:
    """What the oracle says of the LoRA in the adapter at weight 1, and how much fine detail its pictures have."""
    asked = judge.prompts(trigger)
    shown, plain = judge.pictures(asked["likeness"]), judge.pictures(asked["bleed"])
    like = judge.oracle.shows(shown, judge.character)
    dressed = np.array(judge.oracle.outfit(shown, judge.character)) == np.arange(len(shown)) % OUTFITS
    found = {"likeness": like.mean(), "dressed": (like & dressed).mean(), "detail": burn_features(shown)[:, 2].mean()}
    found["bleed"] = judge.oracle.shows(plain, judge.character).mean()
    return {name: round(float(value), 5) for name, value in found.items()}


def train_arm(name: str, seed: int, out: Path, model: BaseModel) -> None:
    """Bake and judge an arm, unless it has been judged."""
    arm, key = ARMS[name], f"{seed}-{name}"
    if key in kept(RESULTS / "bakes"):
        return
    places = [f"dataset.path={out / str(seed) / arm.pictures}", *arm.dataset]
    settings = cfg.dataset_settings(cfg.compose("train", places))
    dataset = with_buckets(load_dataset(settings), settings, model.resolution)
    run = arm.run()
    adapter = attach(model.modules, run.adapter)
    judge = Judge(model, adapter, novel_character(seed, OUTFITS))
    context = TrainingContext(
        model, adapter, dataset, LatentCache(model, out / "cache" / "latents"), PromptCache(model)
    )
    curve = []
    for checkpoint in train_one(run, context):
        told = {"step": float(checkpoint.step), "diverged": float(checkpoint.diverged)}
        curve.append(told | figures(judge, dataset.trigger))
    adapter.detach()
    frames = len({picture.bucket for picture in dataset.pictures})
    keep(RESULTS / "bakes", key, {"character": seed, "arm": name, "frames": frames, "curve": curve})
    print(key, curve[-1], flush=True)


def judge_character(seed: int, out: Path) -> None:
    """Every arm on one character."""
    refuse_development(seed)
    write_pictures(seed, out)
    model = load_model(cfg.model_settings(cfg.compose("train", [])))
    for name in ARMS:
        train_arm(name, seed, out, model)


def claims_table(curves: Mapping[str, Mapping[int, Sequence[Curve]]]) -> str:
    """One line a claim: the difference with its interval over characters, and what it says.

    Args:
        curves: by arm and character, of every training seed.
    """
    lines = ["| claim | difference (95% interval) | verdict | characters |", "|" + "---|" * 4]
    for claim in CLAIMS:
        arms = (*claim.more, *claim.less)
        shared = set.intersection(*(set(curves.get(arm, {})) for arm in arms))
        if len(shared) < FEWEST_CHARACTERS:
            continue
        level = {
            (arm, character): float(np.mean([claim.measure(curve) for curve in curves[arm][character]]))
            for arm in arms
            for character in shared
        }
        gaps = {c: [sum(level[a, c] for a in claim.more) - sum(level[a, c] for a in claim.less)] for c in shared}
        mean, low, high = interval(gaps)
        told = f"{mean:{claim.form}} ({low:{claim.form}} to {high:{claim.form}})"
        lines.append(f"| {claim.text} | {told} | {claim.verdict(low, high)} | {len(shared)} |")
    return "\n".join(lines) + "\n"


def arms_table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line an arm: means over the characters."""
    names = ("likeness", "dressed", "bleed", "detail")
    lines = [
        "| arm | best likeness | best of the asked outfit | bleed at the end | detail at the end | frames | diverged |",
        "|" + "---|" * 7,
    ]
    for arm in ARMS:
        own = [one for one in found if one["arm"] == arm]
        if own:
            measures = (best("likeness"), best("dressed"), last("bleed"), last("detail"))
            values = [np.mean([measure(one["curve"]) for one in own]) for measure in measures]
            cells = [f"{v:.4f}" if name == "detail" else f"{v:.0%}" for name, v in zip(names, values, strict=True)]
            frames = f"{np.mean([one['frames'] for one in own]):.1f}"
            diverged = sum(one["curve"][-1]["diverged"] for one in own)
            lines.append(f"| {arm} | {' | '.join(cells)} | {frames} | {diverged:.0f} of {len(own)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge what has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[163, 164, 165, 166, 167, 168])
    parser.add_argument("--out", type=Path, default=Path("runs/guide-claims"))
    args = parser.parse_args()
    for seed in args.seeds:
        judge_character(seed, args.out)
    found = list(kept(RESULTS / "bakes").values())
    curves: dict[str, dict[int, list[Curve]]] = {}
    for one in (*found, *kept(REMEDIES / "bakes").values()):
        curves.setdefault(one.get("arm") or one["remedy"], {}).setdefault(one["character"], []).append(one["curve"])
    text = f"{claims_table(curves)}\n{arms_table(found)}"
    write_atomic(RESULTS / "guide-claims.md", text)
    print(text)


if __name__ == "__main__":
    main()
