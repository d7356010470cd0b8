"""For the images of a single training run, is the study's LoRA as good as the best of the guide's recipes?

    python -m experiments.live.promise --seeds 180 181 182 183

Every recipe of the community training guide, scaled to the synthetic test world, is trained to its last epoch with
several training seeds. The study `onebake` shows no more images than a single run of the guide's AdamW recipe, its
finals included. All LoRAs are judged by the attribute classifier's score: likeness with the trigger and attributes as
prompted, less the bleed above the limit, over LoRA weights 0.7 and 1. A recipe is better where the means differ by more
than twice the standard deviation over training seeds, pooled over all of the character's LoRAs; less than that is a
tie. A stopped run continues; several processes may share the seeds. Writes experiments/results/promise/promise.md, of
all characters judged so far, and images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autolora.adapters.read import read_lora
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import StudyError
from autolora.models.base import BaseModel
from autolora.study.budget import STEP
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.train.run import Run
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, load_results, save_image, save_result, save_table, table_head, table_row
from experiments.common.scores import classifier_score
from experiments.common.seeds import ensure_dataset, evaluation_character, refuse_development_seed
from experiments.common.training import packaged_model, settings_of, train_to_end, tune
from experiments.live.adapters import GUIDE, JudgedLora, guide_run, judge

STUDY = "onebake"
CLEAR = 2.0  # standard deviations over training seeds from which a difference counts
RESULTS = results.RESULTS / "promise"

Scores = np.ndarray[Any, Any]


def recipes() -> dict[str, Run]:
    """Return the guide's recipes, scaled to the synthetic test world."""
    scaled = {kind: guide_run(kind) for kind in GUIDE if kind != "dora"}  # the guide has no recipe for DoRA
    return {"prodigy": settings_of("recipe=doll-prodigy").run} | scaled


def train_recipe(run: Run, seed: int, folder: Path, out: Path, model: BaseModel) -> JudgedLora:
    """Train a recipe to its last epoch with a training seed; a LoRA that diverged is judged as it is."""
    *_, last = train_to_end(replace(run, train=replace(run.train, seed=seed)), folder, out, model)
    return JudgedLora(last.state, run.name, last.step, last.seconds, 0)


def run_study(seed: int, folder: Path, out: Path, model: BaseModel) -> JudgedLora:
    """Run the study with a training seed and return what it exports, with the images that it was shown in all."""
    study_folder = out / f"{folder.name}-{seed}"
    overrides = (f"dataset.path={folder}", f"cache={out / 'cache'}", f"train.seed={seed}")
    result = tune(STUDY, study_folder, *overrides)
    definition = define_study(settings_of(f"out={study_folder}", *overrides, study=STUDY))
    images = sum(trial.user_attrs[STEP] for trial in load_started_study(definition, print).trials)
    state = read_lora(Path(result["export"]), model)
    return JudgedLora(state, result["best"]["recipe"], images, result["training_seconds"], 0)


def images_of_guide(folder: Path) -> int:
    """Return how many images the guide's AdamW recipe shows of a character."""
    guide, dataset = recipes()["lora"], load_dataset(DatasetSettings(path=str(folder)))
    return guide.images_per_epoch(dataset) * guide.train.epochs


def judge_character(seed: int, out: Path, training_seeds: int, renders: int) -> None:
    """Train and judge every LoRA of a character that has not been judged yet.

    Raises:
        StudyError: the study was shown more images than a single run of the guide's AdamW recipe.
    """
    refuse_development_seed(seed)
    folder = ensure_dataset(out / f"character-{seed}", seed)
    model = packaged_model()
    guide, limit, done = recipes(), images_of_guide(folder), load_results(RESULTS / "made")
    for training_seed in range(training_seeds):
        for arm in (STUDY, *guide):
            name = f"{seed}-{arm}-{training_seed}"
            if name in done:
                continue
            if arm == STUDY:
                lora = run_study(training_seed, folder, out, model)
                if lora.images > limit:
                    raise StudyError(f"the study was shown {lora.images} images, a single training run {limit}")
            else:
                lora = train_recipe(guide[arm], training_seed, folder, out, model)
            figures, strip = judge(seed, lora, model, renders)
            score = round(classifier_score(figures), 4)
            save_result(RESULTS / "made", name, figures | {"score": score})
            print(f"{name}: {score:.2f}, {lora.images} images", flush=True)
            if not training_seed:
                save_image(strip, RESULTS / "pictures" / f"{seed}-{arm}.png")


def by_character(judged: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of each character's LoRAs; characters with fewer than two LoRAs of an arm are left out."""
    characters: dict[str, dict[str, Any]] = {}
    for name, figures in judged.items():
        seed, _, rest = name.partition("-")
        characters.setdefault(seed, {})[rest] = figures
    arms = (STUDY, *recipes())
    return {
        seed: figures
        for seed, figures in characters.items()
        if all(len(scores_by_arm(figures).get(arm, ())) > 1 for arm in arms)
    }


def scores_by_arm(figures: dict[str, Any]) -> dict[str, Scores]:
    """Return the scores of each arm's LoRAs, one per training seed."""
    scores: dict[str, list[float]] = {}
    for name, lora_figures in figures.items():
        scores.setdefault(name.rpartition("-")[0], []).append(lora_figures["score"])
    return {arm: np.array(arm_scores) for arm, arm_scores in scores.items()}


def verdict(scores: dict[str, Scores]) -> tuple[str, float, str]:
    """Return the guide's best recipe by its mean, and how far the study is above it.

    Returns:
        The recipe, the difference in standard deviations over training seeds, and `better`, `tie` or `worse`.
    """
    best = max((arm for arm in scores if arm != STUDY), key=lambda arm: float(scores[arm].mean()))
    deviation = float(np.sqrt(np.mean([arm_scores.var(ddof=1) for arm_scores in scores.values()])))
    ahead = float(scores[STUDY].mean() - scores[best].mean()) / deviation
    return best, ahead, "better" if ahead > CLEAR else "worse" if ahead < -CLEAR else "tie"


def table(characters: dict[str, dict[str, Any]], renders: int) -> str:
    """Return one line per character, then the scores of every recipe."""
    lines = [
        f"The attribute classifier's score of each training seed's LoRA, {renders} renders per rate and LoRA weight.",
        "",
        *table_head(
            "character",
            "outfits",
            "images of one training run",
            "of the study",
            "study",
            "the guide's best",
            "recipe",
            "ahead by, in seed-SD",
            "study is",
        ),
    ]
    for seed, figures in characters.items():
        scores = scores_by_arm(figures)
        best, ahead, comparison = verdict(scores)
        images = [figures[f"{arm}-0"]["steps"] for arm in ("lora", STUDY)]
        outfits = len(evaluation_character(int(seed)).outfits)
        cells = [seed, outfits, *images, _listed(scores[STUDY]), _listed(scores[best]), best]
        lines.append(table_row(*cells, f"{ahead:+.1f}", comparison))
    arms = list(scores_by_arm(next(iter(characters.values()))))
    lines += ["", *table_head("character", *arms)]
    lines += [table_row(seed, *map(_listed, scores_by_arm(figures).values())) for seed, figures in characters.items()]
    return as_text(lines)


def _listed(scores: Scores) -> str:
    return ", ".join(f"{score:.2f}" for score in scores)


def main() -> None:
    """Judge every character that has not been judged yet, and write the table."""
    parser = argument_parser(__doc__, seeds=(180, 181, 182, 183), out="runs/promise")
    parser.add_argument("--training-seeds", type=int, default=3)
    parser.add_argument("--renders", type=int, default=64, help="renders per rate and LoRA weight")
    args = parser.parse_args()
    if args.training_seeds < 2:
        parser.error(f"--training-seeds must be 2 or more, as their spread is measured, got {args.training_seeds}")
    for seed in args.seeds:
        judge_character(seed, args.out, args.training_seeds, args.renders)
    save_table(RESULTS / "promise.md", table(by_character(load_results(RESULTS / "made")), args.renders))


if __name__ == "__main__":
    main()
