"""Which of the guide's remedies against overfitting work, and how well? Each is compared with no remedy.

    python -m experiments.live.remedies --seeds 155 157 158

The characters have three outfits. Their captions name everything that a tagger sees, and the triggers absorb what the
guide tells to prune. Each remedy is added alone to the guide's recipe and trained with three seeds. Measured is the
bleed on the class word at equal likeness: both grow along a training run, so each run is read where the other one shows
the character as often. A stopped run continues, and several processes may share the seeds. Writes
experiments/results/remedies/remedies.md, of all characters judged so far, and images.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora.data.captions import replace_tag
from autolora.data.concepts import Dataset, edit_captions, load_dataset
from autolora.models.load import load_model
from autolora.paperdoll.look import known_cast, novel_character
from autolora.paperdoll.world import write_dataset
from autolora.prepare.regularization import class_pictures, class_prompts
from autolora.sampling import BaseRenders
from autolora.scoring.intervals import Array
from autolora.train.loop import train_one
from autolora.train.run import Run
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.judge import STRIP_IMAGES, Judge
from experiments.common.results import as_text, load_results, save_image, save_result, save_table, table_head, table_row
from experiments.common.scores import mean_interval
from experiments.common.seeds import REMEDIES_RENDERS, refuse_development_seed
from experiments.common.training import settings_of, training_context

OUTFITS, TRAINING_SEEDS = 3, (0, 1, 2)
BASELINE = ("recipe=doll-adamw", "captions.absorb_tags=all")
KNOWN_WORD = "known word in the trigger"
REMEDIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "decoupling": ("captions.trigger_swap_rate=0.4",),
    "regularization images": ("train.reg_ratio=1",),
    "preservation": ("train.prior_preservation_ratio=1",),
    "Prodigy": ("recipe=doll-prodigy",),
    "max norm": ("train.scale_weight_norms=1",),
    KNOWN_WORD: (),
}
RENDERS = 60  # of each kind at each checkpoint
LEVELS = np.linspace(0.1, 0.9, 33)  # of likeness, at which bleed is read
FEWEST_LEVELS = 5  # that two training runs must share to be compared
RESULTS = results.RESULTS / "remedies"

Curve = Sequence[Mapping[str, float]]


def run_of(remedy: str, seed: int) -> Run:
    """Return the guide's recipe with a remedy."""
    overrides = [*BASELINE, *REMEDIES[remedy]]
    recipe = [argument for argument in overrides if argument.startswith("recipe=")][-1]
    others = [argument for argument in overrides if not argument.startswith("recipe=")]
    return settings_of(recipe, *others, f"train.seed={seed}").run


def with_known_word(dataset: Dataset, seed: int) -> Dataset:
    """Return the dataset with a name that the base model knows in front of its main trigger, as in `Mona_Taco`."""
    people, _ = known_cast()
    word = f"{random.Random(seed).choice(people).name}_{dataset.trigger}"
    renamed = edit_captions(dataset, lambda picture, _: replace_tag(picture.caption, dataset.trigger, word))
    return replace(renamed, trigger=word)


def judge_character(seed: int, out: Path) -> None:
    """Train every remedy with every training seed that has not been judged yet."""
    refuse_development_seed(seed)
    folder, cache = out / str(seed), out / "cache"
    if not folder.exists():
        write_dataset(folder, seed, OUTFITS, full=True)
    settings = settings_of(f"dataset.path={folder}")
    dataset, model = load_dataset(settings.dataset), load_model(settings.model)
    prompts = class_prompts(dataset, settings.model.class_tags, settings.model.num_class_images)
    renders = BaseRenders(model, settings.model.render, cache / "renders")
    class_images = class_pictures(prompts, renders, REMEDIES_RENDERS)
    context = training_context(model, run_of("none", 0).adapter, dataset, cache / "latents", class_images)
    character = novel_character(seed, OUTFITS)
    judge = Judge(model, context.adapter, character, settings.model.render.search, RENDERS, REMEDIES_RENDERS)
    for remedy in REMEDIES:
        for training_seed in TRAINING_SEEDS:
            name = f"{seed}-{remedy.replace(' ', '-')}-{training_seed}"
            if name in load_results(RESULTS / "bakes"):
                continue
            captioned = with_known_word(dataset, seed) if remedy == KNOWN_WORD else dataset
            curve = []
            for checkpoint in train_one(run_of(remedy, training_seed), replace(context, dataset=captioned)):
                curve.append({"step": checkpoint.step} | rates(judge, captioned.trigger))
            facts = {"character": seed, "remedy": remedy, "seed": training_seed, "curve": curve}
            save_result(RESULTS / "bakes", name, facts)
            print(name, curve[-1], flush=True)
            if training_seed == TRAINING_SEEDS[0]:
                path = RESULTS / "pictures" / f"{seed}-{remedy.replace(' ', '-')}.png"
                save_image(strip(judge, captioned.trigger), path)


def rates(judge: Judge, trigger: str) -> dict[str, float]:
    """Return likeness and bleed of the LoRA in the judge's adapter at LoRA weight 1."""
    return {"likeness": judge.rate("trigger", trigger=trigger).share, "bleed": judge.rate("class").share}


def strip(judge: Judge, trigger: str) -> Image.Image:
    """Render six images of the class word, then six with the trigger, each at a seed of its own."""
    prompts = [*judge.prompts("class")[:STRIP_IMAGES], *judge.prompts("trigger", trigger)[:STRIP_IMAGES]]
    return Image.fromarray(np.concatenate(list(judge.images(prompts)), axis=1))


def bleed_at(curve: Curve) -> Array:
    """Return the bleed where a training run first reaches each of LEVELS of likeness.

    Returns:
        (levels,); nan where the run never reaches a level.
    """
    likeness = np.maximum.accumulate([0.0, *(point["likeness"] for point in curve)])
    bleed = np.array([0.0, *(point["bleed"] for point in curve)])
    values = np.full(len(LEVELS), np.nan)
    for i, level in enumerate(LEVELS):
        at = int(np.searchsorted(likeness, level))
        if at < len(likeness):
            share = (level - likeness[at - 1]) / (likeness[at] - likeness[at - 1])
            values[i] = bleed[at - 1] + share * (bleed[at] - bleed[at - 1])
    return values


def difference(with_remedy: Curve, without: Curve) -> float:
    """Return how much more one training run bleeds than another at equal likeness.

    The mean is over the levels that both reach; nan where they share too few.
    """
    gaps = bleed_at(with_remedy) - bleed_at(without)
    reached = ~np.isnan(gaps)
    return float(gaps[reached].mean()) if reached.sum() >= FEWEST_LEVELS else float("nan")


def verdict(low: float, high: float) -> str:
    """Return what the interval of a difference in bleed says."""
    if np.isnan(low):
        return "cannot be compared"
    return "less bleed" if high < 0 else "more bleed" if low > 0 else "no difference shown"


def table(judged: Sequence[Mapping[str, Any]]) -> str:
    """Return one line per remedy: bleed at equal likeness compared with none, and the best likeness of the runs."""
    curves = {(entry["remedy"], entry["character"], entry["seed"]): entry["curve"] for entry in judged}
    lines = table_head(
        "remedy",
        "class bleed at equal likeness, compared with none",
        "verdict",
        "best likeness",
        "bleed there",
        "training runs",
    )
    for remedy in REMEDIES:
        runs = {key[1:]: curve for key, curve in curves.items() if key[0] == remedy}
        if not runs:
            continue
        pairs: dict[int, list[float]] = {}
        for (character, seed), curve in runs.items():
            if ("none", character, seed) in curves:
                pairs.setdefault(character, []).append(difference(curve, curves["none", character, seed]))
        best = [max(curve, key=lambda point: point["likeness"]) for curve in runs.values()]
        likeness, bleed = (np.mean([point[name] for point in best]) for name in ("likeness", "bleed"))
        cells = ["", ""]
        if remedy != "none":
            mean, low, high = mean_interval(pairs)
            cells = [f"{mean:+.0%} ({low:+.0%} to {high:+.0%})", verdict(low, high)]
        lines.append(table_row(remedy, *cells, f"{likeness:.0%}", f"{bleed:.0%}", len(runs)))
    return as_text(lines)


def main() -> None:
    """Judge what has not been judged yet, and write the table."""
    args = argument_parser(__doc__, seeds=(155, 157, 158), out="runs/remedies").parse_args()
    for seed in args.seeds:
        judge_character(seed, args.out)
    save_table(RESULTS / "remedies.md", table(list(load_results(RESULTS / "bakes").values())))


if __name__ == "__main__":
    main()
