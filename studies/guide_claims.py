"""What the training guide claims and a study can test: each claim with an interval, or "not seen".

    python studies/guide_claims.py --seeds 163 164 165

Characters with three outfits; the guide's recipes in the embedded world's steps and rates (`adapters.py`), judged by
the oracle at every checkpoint, weight 1. That Prodigy overcooks later is read from the bakes of `remedies.py`. A killed
run continues, and several processes may share the seeds. Writes studies/results/guide-claims/guide-claims.md, of all
judged so far, once there are two characters.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from adapters import guide_run
from kept import keep, kept
from PIL import Image
from remedies import RESULTS as REMEDIES
from remedies import Judge, interval

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.data.concepts import load_dataset, with_frames
from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.models import load_model
from autolora.models.base import BaseModel
from autolora.paperdoll.look import novel_character
from autolora.paperdoll.world import write_dataset
from autolora.scoring.defects import burn_features
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import Bench, train_one
from autolora.train.run import Run

Curve = Sequence[Mapping[str, float]]
OUTFITS = 3
GRAIN = 16  # standard deviation of the noise in spoilt pictures, of 255
OVERCOOKED = 0.3  # of the class word's pictures show the character
RESULTS = Path(__file__).parent / "results" / "guide-claims"


@dataclass(frozen=True)
class Arm:
    """What is baked: an adapter's guide recipe, on which pictures, at which multiple of its rate."""

    kind: str
    pictures: str = "clean"
    rate: float = 1.0
    dataset: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1)

    def run(self, seed: int) -> Run:
        """The recipe with a training seed."""
        run = guide_run(self.kind)
        optimizer: Any = run.optimizer
        rated = replace(optimizer, lr=optimizer.lr * self.rate)
        return replace(run, optimizer=rated, train=replace(run.train, seed=seed))


LOKR_RATES, IA3_RATES = (0.25, 0.5, 2.0, 4.0), (0.1, 0.2, 0.5, 2.0, 4.0)  # times 6.5e-5, and times 5e-3
ARMS = {
    "lora": Arm("lora"),
    "locon": Arm("locon"),
    "lora-grain": Arm("lora", "grain"),
    "locon-grain": Arm("locon", "grain"),
    "few-buckets": Arm("lora", "shapes", dataset=("dataset.buckets.step=8", "dataset.buckets.count=4")),
    "many-buckets": Arm("lora", "shapes", dataset=("dataset.buckets.step=8", "dataset.buckets.count=16")),
    **{f"lokr-{rate:g}": Arm("lokr", rate=rate, seeds=(0,)) for rate in (1.0, *LOKR_RATES)},
    **{f"ia3-{rate:g}": Arm("ia3", rate=rate, seeds=(0,)) for rate in (1.0, *IA3_RATES)},
}


def best(name: str) -> Callable[[Curve], float]:
    """The highest value along a bake."""
    return lambda curve: max(point[name] for point in curve)


def last(name: str) -> Callable[[Curve], float]:
    """The value at a bake's end."""
    return lambda curve: curve[-1][name]


def overcooked_at(curve: Curve) -> float:
    """Images shown until the class word shows the character in OVERCOOKED of its pictures, or until the end."""
    bleed = np.maximum.accumulate([0.0, *(point["bleed"] for point in curve)])
    steps = [0.0, *(point["step"] for point in curve)]
    at = int(np.searchsorted(bleed, OVERCOOKED))
    if at == len(steps):
        return steps[-1]
    share = (OVERCOOKED - bleed[at - 1]) / (bleed[at] - bleed[at - 1])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


@dataclass(frozen=True)
class Claim:
    """A difference between two arms that the guide says has a sign; 0 where it says nothing."""

    text: str
    arm: str
    against: str
    measure: Callable[[Curve], float]
    sign: int
    form: str = "+.0%"

    def verdict(self, low: float, high: float) -> str:
        """What the interval says of it."""
        found = 1 if low > 0 else -1 if high < 0 else 0
        if not self.sign:
            return ["no difference shown", "more", "less"][found]
        return ["the opposite", "not seen", "seen"][found * self.sign + 1]


def rate_claims(name: str, kind: str, guide: float, rates: Sequence[float]) -> list[Claim]:
    """That no other rate draws the character oftener than the guide's."""
    text = f"{name} at {{:.2g}} draws the character less often than at {guide:.2g}"
    measure = best("likeness")
    return [Claim(text.format(guide * rate), f"{kind}-{rate:g}", f"{kind}-1", measure, -1) for rate in rates]


GRAINY = "LoCon picks up more of noisy pictures' noise (fine detail)"
CLAIMS = [
    Claim("LoCon draws the asked outfit on the character oftener", "locon", "lora", best("dressed"), 1),
    Claim(GRAINY, "locon-grain", "lora-grain", last("detail"), 1, "+.4f"),
    Claim("... beside what it has on clean ones", "locon", "lora", last("detail"), 0, "+.4f"),
    Claim("many buckets blur (fine detail)", "many-buckets", "few-buckets", last("detail"), -1, "+.4f"),
    Claim("... and cost likeness", "many-buckets", "few-buckets", best("likeness"), -1),
    Claim("Prodigy overcooks later (images shown)", "Prodigy", "none", overcooked_at, 1, "+.0f"),
    *rate_claims("LoKr", "lokr", 6.5e-5, LOKR_RATES),
    *rate_claims("IA3", "ia3", 5e-3, IA3_RATES),
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


def bake_arm(name: str, seed: int, out: Path, model: BaseModel) -> None:
    """Bake and judge an arm with every training seed that has not been judged yet."""
    arm = ARMS[name]
    places = [f"dataset.path={out / str(seed) / arm.pictures}", *arm.dataset]
    settings = cfg.dataset_settings(cfg.compose("train", places))
    dataset = with_frames(load_dataset(settings), settings, model.resolution)
    for training_seed in arm.seeds:
        key = f"{seed}-{name}-{training_seed}"
        if key in kept(RESULTS / "bakes"):
            continue
        run = arm.run(training_seed)
        adapter = attach(model.modules, run.adapter)
        judge = Judge(model, adapter, novel_character(seed, OUTFITS))
        bench = Bench(model, adapter, dataset, LatentCache(model, out / "cache" / "latents"), PromptCache(model))
        curve = []
        for checkpoint in train_one(run, bench):
            told = {"step": float(checkpoint.step), "diverged": float(checkpoint.diverged)}
            curve.append(told | figures(judge, dataset.trigger))
        adapter.detach()
        keep(RESULTS / "bakes", key, {"character": seed, "arm": name, "seed": training_seed, "curve": curve})
        print(key, curve[-1], flush=True)


def judge_character(seed: int, out: Path) -> None:
    """Every arm on one character."""
    if seed < 100:
        raise StudyError(f"seed {seed} is a development seed; claims are tested on evaluation characters, 100 and up")
    write_pictures(seed, out)
    model = load_model(cfg.model_settings(cfg.compose("train", [])))
    for name in ARMS:
        bake_arm(name, seed, out, model)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line a claim: the difference with its interval, over characters and training seeds, and what it says."""
    curves = {(one.get("arm", one.get("remedy")), one["character"], one["seed"]): one["curve"] for one in found}
    lines = ["| claim | from | to | difference (95% interval) | verdict | bakes each |", "|" + "---|" * 6]
    for claim in CLAIMS:
        pairs: dict[int, list[tuple[float, float]]] = {}
        for (arm, character, seed), curve in curves.items():
            if arm == claim.arm and (claim.against, character, seed) in curves:
                other = curves[claim.against, character, seed]
                pairs.setdefault(character, []).append((claim.measure(other), claim.measure(curve)))
        if len(pairs) < 2:  # one character is no interval
            continue
        mean, low, high = interval({c: [own - other for other, own in some] for c, some in pairs.items()})
        before, after = np.mean([pair for some in pairs.values() for pair in some], axis=0)
        plain, form = claim.form.replace("+", ""), claim.form
        cells = [claim.text, f"{before:{plain}}", f"{after:{plain}}", f"{mean:{form}} ({low:{form}} to {high:{form}})"]
        bakes = sum(map(len, pairs.values()))
        lines.append(f"| {' | '.join(cells)} | {claim.verdict(low, high)} | {bakes} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge what has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[163, 164, 165])
    parser.add_argument("--out", type=Path, default=Path("runs/guide-claims"))
    args = parser.parse_args()
    for seed in args.seeds:
        judge_character(seed, args.out)
    text = table([*kept(RESULTS / "bakes").values(), *kept(REMEDIES / "bakes").values()])
    write_atomic(RESULTS / "guide-claims.md", text)
    print(text)


if __name__ == "__main__":
    main()
