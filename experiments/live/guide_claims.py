"""Which claims of the community training guide hold in the synthetic test world?

    python -m experiments.live.guide_claims --seeds 163 164 165 166 167 168

Each claim is tested as a difference between training runs, with its interval over characters; a claim whose interval
holds 0 is "not seen". The characters have three outfits. The guide's recipes are scaled to the synthetic test world
(see adapters.py), and every checkpoint is judged at LoRA weight 1. That Prodigy overfits later is read from the
training runs of remedies.py. A stopped run continues; several processes may share the seeds. Writes
experiments/results/guide-claims/guide-claims.md, of all characters judged so far.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora.data.concepts import load_dataset, with_buckets
from autolora.models.base import BaseModel
from autolora.paperdoll.look import novel_character
from autolora.paperdoll.world import write_dataset
from autolora.scoring.failure_metrics import saturation_features
from autolora.train.loop import train_one
from autolora.train.run import Run
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.judge import Judge
from experiments.common.results import as_text, load_results, save_result, save_table, table_head, table_row
from experiments.common.scores import FEWEST_CHARACTERS, mean_interval
from experiments.common.seeds import REMEDIES_RENDERS, refuse_development_seed
from experiments.common.training import packaged_model, settings_of, training_context
from experiments.live.adapters import guide_run
from experiments.live.remedies import OUTFITS, RENDERS, Curve
from experiments.live.remedies import RESULTS as REMEDIES

GRAIN = 16  # standard deviation of the noise in grainy images, of 255
OVERCOOKED = 0.3  # share of the class word's images that show the character
RESULTS = results.RESULTS / "guide-claims"


@dataclass(frozen=True)
class Arm:
    """A training run to judge: an adapter kind's guide recipe, its images, and a multiple of its learning rate."""

    kind: str
    pictures: str = "clean"  # the folder of images
    rate: float = 1.0
    dataset: tuple[str, ...] = ()  # overrides

    def run(self) -> Run:
        """Return the recipe at its learning rate."""
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
    "lokr": Arm("lokr"),  # 6.5e-5: the guide recommends 5e-5 to 8e-5
    "lokr-high": Arm("lokr", rate=4.0),
    "ia3-below": Arm("ia3", rate=0.02),  # 1e-4
    "ia3-lower": Arm("ia3", rate=0.15),  # 7.5e-4: the guide recommends 5e-4 to 1e-3
    "ia3-upper": Arm("ia3", rate=1.5),  # 7.5e-3: and 5e-3 to 1e-2
    "ia3-above": Arm("ia3", rate=6.0),  # 3e-2
}


def best(name: str) -> Callable[[Curve], float]:
    """Return a measure: the highest value of a figure along a training run."""
    return lambda curve: max(point[name] for point in curve)


def last(name: str) -> Callable[[Curve], float]:
    """Return a measure: the value of a figure at the end of a training run."""
    return lambda curve: curve[-1][name]


def overcooked_at(curve: Curve) -> float:
    """Return the images shown until the class word alone shows the character in a share OVERCOOKED of its images.

    Where no checkpoint does, these are the images of the last one.
    """
    return next((point["step"] for point in curve if point["bleed"] >= OVERCOOKED), curve[-1]["step"])


@dataclass(frozen=True)
class Claim:
    """A difference between arms, those of `more` minus those of `less`, and the sign that the guide gives it."""

    text: str
    more: tuple[str, ...]
    less: tuple[str, ...]
    measure: Callable[[Curve], float]
    sign: int = 1  # 0: the guide makes no statement
    form: str = "+.0%"

    def verdict(self, low: float, high: float) -> str:
        """Return what the interval of the difference says of the claim."""
        direction = 1 if low > 0 else -1 if high < 0 else 0
        if not self.sign:
            return ["no difference shown", "more", "less"][direction]
        return ["the opposite", "not seen", "seen"][direction * self.sign + 1]


LIKENESS = best("likeness")
GRAINY = "LoCon's images take over more of the noise of noisy images (fine detail more than on clean ones)"
CLAIMS = [
    Claim("LoCon shows the character in the prompted outfit more often", ("locon",), ("lora",), best("dressed")),
    Claim(GRAINY, ("locon-grain", "lora"), ("lora-grain", "locon"), last("detail"), form="+.4f"),
    Claim("many buckets blur (less fine detail)", ("few-buckets",), ("many-buckets",), last("detail"), form="+.4f"),
    Claim("many buckets cost likeness", ("few-buckets",), ("many-buckets",), LIKENESS),
    Claim("Prodigy overcooks later (images shown)", ("Prodigy",), ("none",), overcooked_at, form="+.0f"),
    Claim("LoKr at 6.5e-5 shows the character more often than at 1.6e-5", ("lokr",), ("lokr-low",), LIKENESS),
    Claim("LoKr at 6.5e-5 shows the character more often than at 2.6e-4", ("lokr",), ("lokr-high",), LIKENESS),
    Claim("LoKr at 6.5e-5 overcooks later than at 2.6e-4", ("lokr",), ("lokr-high",), overcooked_at, form="+.0f"),
    Claim("IA3 at 7.5e-3 shows the character more often than at 7.5e-4", ("ia3-upper",), ("ia3-lower",), LIKENESS, 0),
    Claim("IA3 at 7.5e-4 shows the character more often than at 1e-4", ("ia3-lower",), ("ia3-below",), LIKENESS),
    Claim("IA3 at 7.5e-3 shows the character more often than at 3e-2", ("ia3-upper",), ("ia3-above",), LIKENESS),
]


def write_pictures(seed: int, out: Path) -> None:
    """Write the character's images three times: clean, with grain, and cut to many shapes."""
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
            else:  # some are cut narrower around the middle, the others lower from the top
                side = shapes.randrange(36, size + 1)
                wide = shapes.random() < 0.5
                pixels = pixels[:side] if wide else pixels[:, (size - side) // 2 : (size + side) // 2]
            Image.fromarray(pixels).save(path)


def figures(judge: Judge, trigger: str) -> dict[str, float]:
    """Return the figures of the LoRA in the judge's adapter at LoRA weight 1, and the fine detail of its images.

    `dressed` is the share of images with the trigger that show the character in the prompted outfit.
    """
    character, classifier = judge.character, judge.classifier
    with_trigger = judge.images(judge.prompts("trigger", trigger))
    class_alone = judge.images(judge.prompts("class"))
    is_character = classifier.shows(with_trigger, character)
    dressed = np.array(classifier.outfit(with_trigger, character)) == np.arange(len(with_trigger)) % OUTFITS
    values = {
        "likeness": is_character.mean(),
        "dressed": (is_character & dressed).mean(),
        "detail": saturation_features(with_trigger)[:, 2].mean(),
        "bleed": classifier.shows(class_alone, character).mean(),
    }
    return {name: round(float(value), 5) for name, value in values.items()}


def train_arm(name: str, seed: int, out: Path, model: BaseModel) -> None:
    """Train and judge an arm, unless it has been judged."""
    arm, key = ARMS[name], f"{seed}-{name}"
    if key in load_results(RESULTS / "bakes"):
        return
    settings = settings_of(f"dataset.path={out / str(seed) / arm.pictures}", *arm.dataset)
    dataset = with_buckets(load_dataset(settings.dataset), settings.dataset, model.resolution)
    run = arm.run()
    context = training_context(model, run.adapter, dataset, out / "cache" / "latents")
    render = settings.model.render.search
    judge = Judge(model, context.adapter, novel_character(seed, OUTFITS), render, RENDERS, REMEDIES_RENDERS)
    curve = []
    for checkpoint in train_one(run, context):
        facts = {"step": float(checkpoint.step), "diverged": float(checkpoint.diverged)}
        curve.append(facts | figures(judge, dataset.trigger))
    context.adapter.detach()
    buckets = len({picture.bucket for picture in dataset.pictures})
    save_result(RESULTS / "bakes", key, {"character": seed, "arm": name, "frames": buckets, "curve": curve})
    print(key, curve[-1], flush=True)


def judge_character(seed: int, out: Path) -> None:
    """Train and judge every arm on one character."""
    refuse_development_seed(seed)
    write_pictures(seed, out)
    model = packaged_model()
    for name in ARMS:
        train_arm(name, seed, out, model)


def claims_table(curves: Mapping[str, Mapping[int, Sequence[Curve]]]) -> str:
    """Return one line per claim: the difference with its interval over characters, and the verdict.

    Args:
        curves: of every training seed, by arm and character.
    """
    lines = table_head("claim", "difference (95% interval)", "verdict", "characters")
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
        mean, low, high = mean_interval(gaps)
        interval = f"{mean:{claim.form}} ({low:{claim.form}} to {high:{claim.form}})"
        lines.append(table_row(claim.text, interval, claim.verdict(low, high), len(shared)))
    return as_text(lines)


def arms_table(judged: Sequence[Mapping[str, Any]]) -> str:
    """Return one line per arm: means over the characters."""
    names = ("likeness", "dressed", "bleed", "detail")
    lines = table_head(
        "arm",
        "best likeness",
        "best of the prompted outfit",
        "bleed at the end",
        "detail at the end",
        "buckets",
        "diverged",
    )
    for arm in ARMS:
        entries = [entry for entry in judged if entry["arm"] == arm]
        if entries:
            measures = (best("likeness"), best("dressed"), last("bleed"), last("detail"))
            values = [np.mean([measure(entry["curve"]) for entry in entries]) for measure in measures]
            cells = [f"{v:.4f}" if name == "detail" else f"{v:.0%}" for name, v in zip(names, values, strict=True)]
            buckets = f"{np.mean([entry['frames'] for entry in entries]):.1f}"
            diverged = sum(entry["curve"][-1]["diverged"] for entry in entries)
            lines.append(table_row(arm, *cells, buckets, f"{diverged:.0f} of {len(entries)}"))
    return as_text(lines)


def main() -> None:
    """Judge what has not been judged yet, and write the tables."""
    args = argument_parser(__doc__, seeds=(163, 164, 165, 166, 167, 168), out="runs/guide-claims").parse_args()
    for seed in args.seeds:
        judge_character(seed, args.out)
    judged = list(load_results(RESULTS / "bakes").values())
    curves: dict[str, dict[int, list[Curve]]] = {}
    for entry in (*judged, *load_results(REMEDIES / "bakes").values()):
        arm = entry.get("arm") or entry["remedy"]
        curves.setdefault(arm, {}).setdefault(entry["character"], []).append(entry["curve"])
    save_table(RESULTS / "guide-claims.md", f"{claims_table(curves)}\n{arms_table(judged)}")


if __name__ == "__main__":
    main()
