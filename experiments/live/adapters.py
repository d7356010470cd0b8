"""Every adapter kind with the guide's settings and tuned, on characters that nothing was tuned on.

    python -m experiments.live.adapters --seeds 186 189

"Guide" is the community training guide's recipe, trained to its last epoch. Its images and its learning rate are
scaled to the synthetic test world as `doll-adamw` scales the guide's AdamW: a fifth of the images in half the epochs,
and 30 times the learning rate, at which IA3 trains at .15. "Tuned" is the export of a study of three trials whose
recipes preserve the base model: `doll-preserve` with its ranges of the quickstart, or AdamW around a learning rate
calibrated for the kind where Prodigy finds none (some LoHas become oversaturated under it). A stopped run continues;
several processes may share the seeds. Writes experiments/results/adapters/adapters.md, of all characters judged so
far, and images.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import StudyError
from autolora.export.metadata import ExportFacts
from autolora.export.write import export_lora
from autolora.files import write_atomic
from autolora.models.base import BaseModel
from autolora.train.run import Run
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.judge import WEIGHTS, judge_lora
from experiments.common.results import as_text, load_results, save_image, save_result, table_head, table_row
from experiments.common.seeds import ensure_dataset, refuse_development_seed
from experiments.common.training import packaged_model, settings_of, train_to_end, tune

GUIDE: dict[str, tuple[str, ...]] = {
    "lora": ("recipe=guide-adamw",),
    "locon": ("recipe=guide-locon",),
    "dora": ("recipe=guide-adamw", "adapter=dora"),
    "dylora": ("recipe=guide-dylora",),
    "loha": ("recipe=guide-loha",),
    "lokr": ("recipe=guide-lokr",),
    "ia3": ("recipe=guide-ia3",),
}
# Of the synthetic test world: the learning rate's factor, and images per concept and epochs (the guide: 1000 and 8).
RATE_FACTOR, IMAGES_PER_CONCEPT, EPOCHS = 30, 200, 4
PRODIGY_KINDS = ("lora", "locon", "dora")  # kinds that `doll-preserve` trains well
# Learning rate and alpha of AdamW, calibrated on development character 30.
ADAMW = {"dylora": (1.2e-2, 16), "loha": (3e-3, 8), "lokr": (1.2e-2, 8), "ia3": (0.15, 8)}
PRESERVING = (
    "train.images_per_concept=320",
    "train.min_character_images=640",
    "train.prior_preservation_ratio=0.5",
    "train.min_lora_multiplier=0.7",
    "train.caption_dropout_rate=0.15",
    "train.class_caption_dropout_rate=0.3",
)
SHORT = ("budget.n_trials=3", "budget.minutes=null", "study.n_finalists=1", "study.average_checkpoints=false")
RESULTS = results.RESULTS / "adapters"


@dataclass(frozen=True)
class JudgedLora:
    """A LoRA to judge, and what it took to train."""

    state: State
    recipe: str
    images: int  # shown in training
    seconds: float  # of training
    file_bytes: int


def guide_run(kind: str) -> Run:
    """Return the guide's recipe for an adapter kind, scaled to the synthetic test world."""
    run = settings_of(*GUIDE[kind]).run
    optimizer: Any = run.optimizer
    train = replace(run.train, images_per_concept=IMAGES_PER_CONCEPT, epochs=EPOCHS)
    return replace(run, optimizer=replace(optimizer, lr=optimizer.lr * RATE_FACTOR), train=train)


def train_guide(kind: str, folder: Path, out: Path, model: BaseModel) -> JudgedLora:
    """Train the guide's recipe to its last checkpoint and export it.

    Raises:
        StudyError: the training run diverged.
    """
    run = guide_run(kind)
    *_, last = train_to_end(run, folder, out, model)
    if last.diverged:
        raise StudyError(f"the guide's recipe for {kind} diverged after {last.step} images")
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    facts = ExportFacts(dataset.trigger, 1.0, "", last.step)
    exported = export_lora(last.state, run, dataset, model, out / f"guide-{kind}-{folder.name}", kind, facts=facts)
    return JudgedLora(last.state, run.name, last.step, last.seconds, exported.size)


def study_overrides(kind: str) -> tuple[str, ...]:
    """Return the overrides that make the quickstart a study of one adapter kind whose recipes preserve the base."""
    if kind in PRODIGY_KINDS:
        return "~study.recipes.doll-adamw", "~study.recipes.doll-prodigy", f"adapter={kind}"
    rate, alpha = ADAMW[kind]
    ranges = f"{{optimizer.lr: {{log: [{rate / 2}, {rate * 2}]}}, train.images_per_concept: {{int: [240, 400]}}}}"
    recipe = ("~study.recipes", f"+study.recipes={{doll-adamw: {ranges}}}", f"optimizer.lr={rate}")
    return *recipe, f"adapter={kind}", f"adapter.alpha={alpha}", *PRESERVING


def tune_kind(kind: str, folder: Path, out: Path, model: BaseModel) -> JudgedLora:
    """Run a study of a few trials and return what it exports."""
    places = [f"dataset.path={folder}", f"cache={out / 'cache'}"]
    result = tune("quickstart", out / f"tuned-{kind}-{folder.name}", *places, *study_overrides(kind), *SHORT)
    best, path = result["best"], Path(result["export"])
    state, size = read_lora(path, model), path.stat().st_size
    return JudgedLora(state, best["recipe"], best["step"], result["training_seconds"], size)


def judge(seed: int, lora: JudgedLora, model: BaseModel, renders: int) -> tuple[dict[str, Any], Image.Image]:
    """Return what a LoRA is and cost with its figures, and a strip of its images at LoRA weight 1."""
    figures, strip = judge_lora(lora.state, seed, model, renders)
    facts: dict[str, Any] = {"recipe": lora.recipe, "steps": lora.images, "seconds": round(lora.seconds)}
    facts |= {"megabytes": round(lora.file_bytes / 1e6, 3)}
    return facts | {name: round(value, 4) for name, value in figures.items()}, strip


def judge_character(seed: int, kinds: list[str], out: Path, renders: int) -> None:
    """Train, tune and judge every adapter kind that has not been judged yet."""
    refuse_development_seed(seed)
    folder = ensure_dataset(out / f"character-{seed}", seed)
    for kind in kinds:
        name = f"{seed}-{kind}"
        if name in load_results(RESULTS / "made"):
            continue
        model = packaged_model()
        began = time.perf_counter()
        arms = {"guide": train_guide(kind, folder, out, model), "tuned": tune_kind(kind, folder, out, model)}
        judged = {arm: judge(seed, lora, model, renders) for arm, lora in arms.items()}
        strips = np.concatenate([np.asarray(strip) for _, strip in judged.values()], axis=0)
        save_image(Image.fromarray(strips), RESULTS / "pictures" / f"{name}.png")
        figures = {arm: arm_figures for arm, (arm_figures, _) in judged.items()}
        save_result(RESULTS / "made", name, {"character": seed, "adapter": kind, **figures})
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


def table(judged: list[dict[str, Any]], renders: int) -> str:
    """Return one line per adapter kind and arm: means over the characters, with the lowest and the highest."""
    characters = ", ".join(map(str, sorted({entry["character"] for entry in judged})))
    lines = [
        f"Means over characters {characters}, the lowest and the highest in brackets; {renders} renders per rate and",
        "LoRA weight, likeness and bleed over LoRA weights 0.7 and 1.0. The training seconds of the tuned ones are the",
        "sum over all three trials.",
        "",
        *table_head(
            "adapter",
            "settings",
            "likeness",
            "attributes as prompted",
            "bleed on the class word",
            "file MB",
            "training s",
        ),
    ]
    for kind in GUIDE:
        for arm in ("guide", "tuned"):
            entries = [entry[arm] for entry in judged if entry["adapter"] == kind]
            if entries:
                rates = [_mean_and_range(entries, f"oracle_{name}") for name in ("likeness", "accuracy", "bleed")]
                size, seconds = (np.mean([entry[key] for entry in entries]) for key in ("megabytes", "seconds"))
                lines.append(table_row(kind, arm, *rates, f"{size:.2f}", f"{seconds:.0f}"))
    return as_text(lines)


def _mean_and_range(entries: list[dict[str, Any]], name: str) -> str:
    values = [float(np.mean([entry[f"{name}@{weight:g}"] for weight in WEIGHTS])) for entry in entries]
    return f"{np.mean(values):.0%}" + (f" ({min(values):.0%} to {max(values):.0%})" if len(values) > 1 else "")


def main() -> None:
    """Judge what has not been judged yet, and write the table."""
    parser = argument_parser(__doc__, seeds=(186, 189), out="runs/adapters")
    parser.add_argument("--kinds", nargs="+", choices=GUIDE, default=list(GUIDE))
    parser.add_argument("--renders", type=int, default=96, help="renders per rate and LoRA weight")
    args = parser.parse_args()
    for seed in args.seeds:
        judge_character(seed, args.kinds, args.out, args.renders)
    write_atomic(RESULTS / "adapters.md", table(list(load_results(RESULTS / "made").values()), args.renders))


if __name__ == "__main__":
    main()
