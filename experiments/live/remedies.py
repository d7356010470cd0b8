"""Which of the guide's remedies against overcooking works, and how well? By the oracle, each against none.

    python -m experiments.live.remedies --seeds 155 157 158

Characters with three outfits, captioned as by a tagger and pruned into the triggers as the guide teaches. Each remedy
is added alone to the guide's recipe and trained with three seeds. What counts is class bleed at equal likeness: along a
bake both grow, so that each is read where the other bake shows the character as often. A killed run continues, and
several processes may share the seeds. Writes experiments/results/remedies/remedies.md, of all judged so far, and pictures.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import sem
from scipy.stats import t as student_t

from autolora import config as cfg
from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.data.captions import replace_tag
from autolora.data.concepts import Dataset, edit_captions, load_dataset
from autolora.files import write_atomic
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.look import Character, known_cast, novel_character
from autolora.paperdoll.world import write_dataset
from autolora.prepare.regularization import class_pictures, class_prompts
from autolora.sampling import BaseRenders, Images, RenderRequest, render
from autolora.scoring.intervals import Array
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import TrainingContext, train_one
from autolora.train.run import Run
from experiments.common.results import keep, kept, refuse_development

OUTFITS, TRAINING_SEEDS = 3, (0, 1, 2)
BASELINE = ("recipe=doll-adamw", "captions.absorb_tags=all")
REMEDIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "decoupling": ("captions.trigger_swap_rate=0.4",),
    "regularization images": ("train.reg_ratio=1",),
    "preservation": ("train.prior_preservation_ratio=1",),
    "Prodigy": ("recipe=doll-prodigy",),
    "max norm": ("train.scale_weight_norms=1",),
    "known word in the trigger": (),
}
FIRST_SEED = 930_000  # apart from every probe of the score
RENDERS = 60  # of each kind at each checkpoint
LEVELS = np.linspace(0.1, 0.9, 33)  # of likeness, at which bleed is read
FEWEST_LEVELS = 5  # that two bakes must share, else they cannot be compared
FEWEST_CHARACTERS = 3  # that an interval takes
RESULTS = Path(__file__).parents[1] / "results" / "remedies"


def run_of(remedy: str, seed: int) -> Run:
    """The guide's recipe with a remedy."""
    own = [*BASELINE, *REMEDIES[remedy]]
    recipe = [argument for argument in own if argument.startswith("recipe=")][-1]
    others = [argument for argument in own if not argument.startswith("recipe=")]
    return cfg.build_run(cfg.compose("train", [recipe, *others, f"train.seed={seed}"]))


def with_known_word(dataset: Dataset, seed: int) -> Dataset:
    """The dataset with a character's name of the base model's in front of its main trigger, as in `Mona_Taco`."""
    people, _ = known_cast()
    word = f"{random.Random(seed).choice(people).name}_{dataset.trigger}"
    renamed = edit_captions(dataset, lambda picture, _: replace_tag(picture.caption, dataset.trigger, word))
    return replace(renamed, trigger=word)


class Judge:
    """Counts, by the oracle, how often pictures show the character."""

    def __init__(self, model: BaseModel, adapter: AdapterSet, character: Character) -> None:
        self.model, self.adapter, self.character, self.oracle = model, adapter, character, AttributeClassifier()
        self.settings = cfg.model_settings(cfg.compose("train", [])).render.search

    def prompts(self, trigger: str) -> dict[str, list[str]]:
        """What is asked: the trigger with each outfit's in turn, and the class word alone."""
        count = self.character.traits["count"]
        asked = [f"{count}, {trigger}, {outfit.trigger}" for outfit in self.character.outfits]
        return {"likeness": [asked[i % len(asked)] for i in range(RENDERS)], "bleed": [count] * RENDERS}

    def pictures(self, prompts: Sequence[str], weight: float = 1.0) -> Images:
        """The prompts, each at a seed of its own."""
        shots = [RenderRequest(prompt, FIRST_SEED + i, weight) for i, prompt in enumerate(prompts)]
        return render(self.model, shots, self.settings, self.adapter)

    def rates(self, trigger: str) -> dict[str, float]:
        """Likeness and bleed of what is in the adapter, at weight 1."""
        asked = self.prompts(trigger)
        return {k: float(self.oracle.shows(self.pictures(p), self.character).mean()) for k, p in asked.items()}


def judge_character(seed: int, out: Path) -> None:
    """Bake every remedy with every training seed that has not been judged yet."""
    refuse_development(seed)
    folder, cache = out / str(seed), out / "cache"
    if not folder.exists():
        write_dataset(folder, seed, OUTFITS, full=True)
    dataset = load_dataset(cfg.dataset_settings(cfg.compose("train", [f"dataset.path={folder}"])))
    settings = cfg.model_settings(cfg.compose("train", []))
    model = load_model(settings)
    prompts = class_prompts(dataset, settings.class_tags, settings.num_class_images)
    shown = class_pictures(prompts, BaseRenders(model, settings.render, cache / "renders"), FIRST_SEED)
    adapter = attach(model.modules, run_of("none", 0).adapter)
    judge = Judge(model, adapter, novel_character(seed, OUTFITS))
    context = TrainingContext(model, adapter, dataset, LatentCache(model, cache / "latents"), PromptCache(model), shown)
    for remedy in REMEDIES:
        for training_seed in TRAINING_SEEDS:
            name = f"{seed}-{remedy.replace(' ', '-')}-{training_seed}"
            if name in kept(RESULTS / "bakes"):
                continue
            own = with_known_word(dataset, seed) if remedy == "known word in the trigger" else dataset
            curve = []
            for checkpoint in train_one(run_of(remedy, training_seed), replace(context, dataset=own)):
                curve.append({"step": checkpoint.step} | judge.rates(own.trigger))
            keep(RESULTS / "bakes", name, {"character": seed, "remedy": remedy, "seed": training_seed, "curve": curve})
            print(name, curve[-1], flush=True)
            if training_seed == TRAINING_SEEDS[0]:
                save_strip(judge, own.trigger, seed, remedy)


def save_strip(judge: Judge, trigger: str, seed: int, remedy: str) -> None:
    """Keep what the last checkpoint draws: six of the class word, then six of the trigger."""
    asked = judge.prompts(trigger)
    strip = np.concatenate(list(judge.pictures([*asked["bleed"][:6], *asked["likeness"][:6]])), axis=1)
    path = RESULTS / "pictures" / f"{seed}-{remedy.replace(' ', '-')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).save(path)


def bleed_at(curve: Sequence[Mapping[str, float]]) -> Array:
    """Bleed where a bake first reaches each of LEVELS of likeness, (levels,); nan where it never does."""
    likeness = np.maximum.accumulate([0.0, *(point["likeness"] for point in curve)])
    bleed = np.array([0.0, *(point["bleed"] for point in curve)])
    found = np.full(len(LEVELS), np.nan)
    for i, level in enumerate(LEVELS):
        at = int(np.searchsorted(likeness, level))
        if at < len(likeness):
            share = (level - likeness[at - 1]) / (likeness[at] - likeness[at - 1])
            found[i] = bleed[at - 1] + share * (bleed[at] - bleed[at - 1])
    return found


def difference(with_it: Sequence[Mapping[str, float]], without: Sequence[Mapping[str, float]]) -> float:
    """How much more a bake bleeds than another at equal likeness, mean over the levels both reach; nan if few."""
    gaps = bleed_at(with_it) - bleed_at(without)
    reached = ~np.isnan(gaps)
    return float(gaps[reached].mean()) if reached.sum() >= FEWEST_LEVELS else float("nan")


def interval(by_character: Mapping[int, Sequence[float]]) -> tuple[float, float, float]:
    """Mean over characters and its 95% interval by Student's t; nan ends where there are too few of them."""
    means = [float(np.nanmean(own)) for own in by_character.values() if not np.isnan(own).all()]
    if len(means) < FEWEST_CHARACTERS:
        return float(np.mean(means)) if means else float("nan"), float("nan"), float("nan")
    mean, half = float(np.mean(means)), float(student_t.ppf(0.975, len(means) - 1) * sem(means))
    return mean, mean - half, mean + half


def verdict(low: float, high: float) -> str:
    """What an interval of the difference says."""
    if np.isnan(low):
        return "cannot be compared"
    return "less bleed" if high < 0 else "more bleed" if low > 0 else "no difference shown"


def table(found: Sequence[Mapping[str, object]]) -> str:
    """One line a remedy: bleed at equal likeness against none, and where the bakes ended."""
    curves = {(one["remedy"], one["character"], one["seed"]): one["curve"] for one in found}
    lines = [
        "| remedy | class bleed at equal likeness, against none | verdict | best likeness | bleed there | bakes |",
        "|" + "---|" * 6,
    ]
    for remedy in REMEDIES:
        own = {key[1:]: curve for key, curve in curves.items() if key[0] == remedy}
        if not own:
            continue
        pairs: dict[int, list[float]] = {}
        for (character, seed), curve in own.items():
            if ("none", character, seed) in curves:
                pairs.setdefault(character, []).append(difference(curve, curves["none", character, seed]))
        best = [max(curve, key=lambda point: point["likeness"]) for curve in own.values()]
        likeness, bleed = (np.mean([point[name] for point in best]) for name in ("likeness", "bleed"))
        cells = ["", ""]
        if remedy != "none":
            mean, low, high = interval(pairs)
            cells = [f"{mean:+.0%} ({low:+.0%} to {high:+.0%})", verdict(low, high)]
        lines.append(f"| {remedy} | {' | '.join(cells)} | {likeness:.0%} | {bleed:.0%} | {len(own)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge what has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[155, 157, 158])
    parser.add_argument("--out", type=Path, default=Path("runs/remedies"))
    args = parser.parse_args()
    for seed in args.seeds:
        judge_character(seed, args.out)
    text = table(list(kept(RESULTS / "bakes").values()))
    write_atomic(RESULTS / "remedies.md", text)
    print(text)


if __name__ == "__main__":
    main()
