"""For the images of one hand-made bake, is the study's LoRA as good as the best recipe of the guide?

    python -m experiments.live.promise --seeds 180 181 182 183

Every recipe of the guide is baked to its last epoch, in the embedded world's steps and rate, each with several
training seeds; the study `onebake` has no more images than the guide's AdamW bake alone, its finals included. Judged by
the oracle's own score: likeness with the trigger and attributes as prompted, less bleed above the limit, over weights
0.7 and 1. A recipe is better where the means differ by more than twice the spread over training seeds, of all the
character's LoRAs pooled; anything nearer is a tie. A killed run continues; several processes take seeds of their own.
Writes experiments/results/promise/promise.md, of all judged so far, and pictures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autolora import config as cfg
from autolora.adapters.read import read_lora
from autolora.cli import main as autolora
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.paperdoll.world import write_dataset
from autolora.study.budget import STEP
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.train.run import Run
from experiments.common.results import keep, kept, refuse_development
from experiments.live.adapters import GUIDE, Made, guide_run, judge
from experiments.live.quickstart import train_to_end
from experiments.replay.bank import character_of
from experiments.replay.score_validity import oracle_score

OURS = "onebake"
CLEAR = 2.0  # seed-SD
RESULTS = Path(__file__).parents[1] / "results" / "promise"


def recipes() -> dict[str, Run]:
    """The guide's recipes in the embedded world's steps and rate."""
    scaled = {kind: guide_run(kind) for kind in GUIDE if kind != "dora"}  # which is none of the guide's
    return {"prodigy": cfg.build_run(cfg.compose("train", ["recipe=doll-prodigy"]))} | scaled


def baked(run: Run, seed: int, folder: Path, out: Path, model: BaseModel) -> Made:
    """A recipe to its last epoch with a training seed of its own; one that diverged is judged as it is."""
    *_, last = train_to_end(replace(run, train=replace(run.train, seed=seed)), folder, out, model)
    return Made(last.state, run.name, last.step, last.seconds, 0)


def studied(seed: int, folder: Path, out: Path, model: BaseModel) -> Made:
    """What the study exports, and the images that it was shown in all."""
    name = f"{folder.name}-{seed}"
    arguments = (f"dataset.path={folder}", f"out={out / name}", f"cache={out / 'cache'}", f"train.seed={seed}")
    if code := autolora(["tune", OURS, *arguments]):
        raise StudyError(f"the study of {name} ended with exit code {code}")
    result = json.loads((out / name / "result.json").read_text("utf-8"))
    definition, _ = define_study(cfg.compose("tune", list(arguments), OURS), OURS, arguments)
    images = sum(trial.user_attrs[STEP] for trial in load_started_study(definition, print).trials)
    state = read_lora(Path(result["export"]), model)
    return Made(state, result["best"]["recipe"], images, result["training_seconds"], 0)


def one_bake(folder: Path) -> int:
    """Images that the guide's AdamW recipe shows of a character."""
    guide, dataset = recipes()["lora"], load_dataset(DatasetSettings(path=str(folder)))
    return guide.images_per_epoch(dataset) * guide.train.epochs


def judge_character(seed: int, out: Path, seeds: int, renders: int) -> None:
    """Make and judge every LoRA of a character that has not been judged yet.

    Raises:
        StudyError: the study was shown more images than one bake.
    """
    refuse_development(seed)
    folder = out / f"character-{seed}"
    if not folder.exists():
        write_dataset(folder, seed, len(character_of(seed).outfits))
    model = load_model(cfg.model_settings(cfg.compose("train", [])))
    guide, limit, done = recipes(), one_bake(folder), kept(RESULTS / "made")
    for training_seed in range(seeds):
        for arm in (OURS, *guide):
            name = f"{seed}-{arm}-{training_seed}"
            if name in done:
                continue
            if arm == OURS:
                made = studied(training_seed, folder, out, model)
                if made.steps > limit:
                    raise StudyError(f"the study was shown {made.steps} images, one bake is {limit}")
            else:
                made = baked(guide[arm], training_seed, folder, out, model)
            figures, strip = judge(seed, made, model, renders)
            score = round(oracle_score(figures), 4)
            keep(RESULTS / "made", name, figures | {"score": score})
            print(f"{name}: {score:.2f}, {made.steps} images", flush=True)
            if not training_seed:
                (RESULTS / "pictures").mkdir(parents=True, exist_ok=True)
                strip.save(RESULTS / "pictures" / f"{seed}-{arm}.png")


def by_character(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each character's LoRAs, of characters that have at least two of every arm."""
    found: dict[str, dict[str, Any]] = {}
    for name, figures in made.items():
        seed, _, rest = name.partition("-")
        found.setdefault(seed, {})[rest] = figures
    wanted = (OURS, *recipes())
    return {seed: one for seed, one in found.items() if all(len(arms(one).get(arm, ())) > 1 for arm in wanted)}


def arms(found: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The oracle's score of each arm's LoRAs, a training seed each."""
    scores: dict[str, list[float]] = {}
    for name, figures in found.items():
        scores.setdefault(name.rpartition("-")[0], []).append(figures["score"])
    return {arm: np.array(own) for arm, own in scores.items()}


def verdict(scores: dict[str, np.ndarray[Any, Any]]) -> tuple[str, float, str]:
    """The guide's best recipe by its mean, how many seed-SD the study is above it, and what that is called."""
    best = max((arm for arm in scores if arm != OURS), key=lambda arm: float(scores[arm].mean()))
    spread = float(np.sqrt(np.mean([own.var(ddof=1) for own in scores.values()])))
    ahead = float(scores[OURS].mean() - scores[best].mean()) / spread
    return best, ahead, "better" if ahead > CLEAR else "worse" if ahead < -CLEAR else "tie"


def table(found: dict[str, Any], renders: int) -> str:
    """One line a character, then every recipe's scores."""
    lines = [
        f"The oracle's score of each training seed's LoRA, {renders} renders a rate and weight.",
        "",
        "| character | outfits | images of one bake | of the study | study | the guide's best | recipe | ahead by, in "
        "seed-SD | study is |",
        "|" + "---|" * 9,
    ]
    for seed, one in found.items():
        scores = arms(one)
        best, ahead, called = verdict(scores)
        images = [one[f"{arm}-0"]["steps"] for arm in ("lora", OURS)]
        outfits = len(character_of(int(seed)).outfits)
        cells = [seed, outfits, *images, _listed(scores[OURS]), _listed(scores[best]), best]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {ahead:+.1f} | {called} |")
    names = list(arms(next(iter(found.values()))))
    lines += ["", "| character | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for seed, one in found.items():
        lines.append(f"| {seed} | " + " | ".join(_listed(own) for own in arms(one).values()) + " |")
    return "\n".join(lines) + "\n"


def _listed(scores: np.ndarray[Any, Any]) -> str:
    return ", ".join(f"{score:.2f}" for score in scores)


def main() -> None:
    """Judge every character that has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[180, 181, 182, 183])
    parser.add_argument("--training-seeds", type=int, default=3)
    parser.add_argument("--renders", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/promise"))
    args = parser.parse_args()
    if args.training_seeds < 2:
        parser.error(f"--training-seeds must be 2 or more, as their spread is measured, got {args.training_seeds}")
    for seed in args.seeds:
        judge_character(seed, args.out, args.training_seeds, args.renders)
    text = table(by_character(kept(RESULTS / "made")), args.renders)
    write_atomic(RESULTS / "promise.md", text)
    print(text)


if __name__ == "__main__":
    main()
