"""Every adapter with the guide's settings and tuned, by the oracle, on characters that nothing was tuned on.

    python -m experiments.live.adapters --seeds 186 189

"Guide" is the guide's recipe to its last epoch, its steps and rate scaled to the embedded world as `doll-adamw` scales
the guide's AdamW (a fifth of the steps in half the epochs, 30 times the rate, so that IA3 trains at .15). "Tuned" is
what a study of three trials exports that preserves the base model: of `doll-preserve` and its ranges in the quickstart,
or by AdamW around a rate of its own where Prodigy finds none (a LoHa burns under it on some). A killed run
continues; several processes take seeds of their own. Writes experiments/results/adapters/adapters.md, of all judged so far,
and pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora import config as cfg
from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.cli import main as autolora
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import StudyError
from autolora.export.metadata import ExportFacts
from autolora.export.write import export_lora
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.paperdoll.world import write_dataset
from autolora.train.run import Run
from experiments.common.judge import valued
from experiments.common.results import keep, kept, refuse_development
from experiments.live.quickstart import WEIGHTS, train_to_end
from experiments.replay.bank import character_of

GUIDE: dict[str, tuple[str, ...]] = {
    "lora": ("recipe=guide-adamw",),
    "locon": ("recipe=guide-locon",),
    "dora": ("recipe=guide-adamw", "adapter=dora"),
    "dylora": ("recipe=guide-dylora",),
    "loha": ("recipe=guide-loha",),
    "lokr": ("recipe=guide-lokr",),
    "ia3": ("recipe=guide-ia3",),
}
RATE, STEPS, EPOCHS = 30, 200, 4  # of the embedded world, where the guide has 1, 1000 and 8
PRODIGY = ("lora", "locon", "dora")  # which it is at home with: `doll-preserve`
# Rate and alpha of AdamW, calibrated on development character 30.
ADAMW = {"dylora": (1.2e-2, 16), "loha": (3e-3, 8), "lokr": (1.2e-2, 8), "ia3": (0.15, 8)}
PRESERVING = (
    *(
        "train.images_per_concept=320",
        "train.min_character_images=640",
        "train.prior_preservation_ratio=0.5",
        "train.min_lora_multiplier=0.7",
    ),
    *("train.caption_dropout_rate=0.15", "train.class_caption_dropout_rate=0.3"),
)
SHORT = ("budget.n_trials=3", "budget.minutes=null", "study.n_finalists=1", "study.average_checkpoints=false")
RESULTS = Path(__file__).parents[1] / "results" / "adapters"


@dataclass(frozen=True)
class Made:
    """A LoRA that was made, and at what cost."""

    state: State
    recipe: str
    steps: int
    seconds: float  # of training
    file_bytes: int


def guide_run(kind: str) -> Run:
    """The guide's recipe for an adapter in the embedded world's steps and rate."""
    run = cfg.build_run(cfg.compose("train", list(GUIDE[kind])))
    optimizer: Any = run.optimizer
    train = replace(run.train, images_per_concept=STEPS, epochs=EPOCHS)
    return replace(run, optimizer=replace(optimizer, lr=optimizer.lr * RATE), train=train)


def train_guide(kind: str, folder: Path, out: Path, model: BaseModel) -> Made:
    """The guide's recipe to its last checkpoint, and its file."""
    run = guide_run(kind)
    *_, last = train_to_end(run, folder, out, model)
    if last.diverged:
        raise StudyError(f"the guide's {kind} diverged at step {last.step}")
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    card = ExportFacts(dataset.trigger, 1.0, "", last.step)
    exported = export_lora(last.state, run, dataset, model, out / f"guide-{kind}-{folder.name}", kind, facts=card)
    return Made(last.state, run.name, last.step, last.seconds, exported.size)


def space(kind: str) -> tuple[str, ...]:
    """The overrides of the quickstart that make it a study of one adapter that preserves the base model."""
    if kind in PRODIGY:
        return "~study.recipes.doll-adamw", "~study.recipes.doll-prodigy", f"adapter={kind}"
    rate, alpha = ADAMW[kind]
    ranges = f"{{optimizer.lr: {{log: [{rate / 2}, {rate * 2}]}}, train.images_per_concept: {{int: [240, 400]}}}}"
    around = ("~study.recipes", f"+study.recipes={{doll-adamw: {ranges}}}", f"optimizer.lr={rate}")
    return *around, f"adapter={kind}", f"adapter.alpha={alpha}", *PRESERVING


def tune(kind: str, folder: Path, out: Path, model: BaseModel) -> Made:
    """What a study of a few trials exports."""
    run = out / f"tuned-{kind}-{folder.name}"
    places = [f"dataset.path={folder}", f"out={run}", f"cache={out / 'cache'}"]
    code = autolora(["tune", "quickstart", *places, *space(kind), *SHORT])
    if code:
        raise StudyError(f"the study of {kind} on {folder} ended with exit code {code}")
    result = json.loads((run / "result.json").read_text("utf-8"))
    best, path = result["best"], Path(result["export"])
    return Made(read_lora(path, model), best["recipe"], best["step"], result["training_seconds"], path.stat().st_size)


def judge(seed: int, made: Made, model: BaseModel, renders: int) -> tuple[dict[str, Any], Image.Image]:
    """What a LoRA is and cost with the oracle's figures, and a strip of it at weight 1."""
    figures, strip = valued(made.state, seed, model, renders)
    found: dict[str, Any] = {"recipe": made.recipe, "steps": made.steps, "seconds": round(made.seconds)}
    found |= {"megabytes": round(made.file_bytes / 1e6, 3)}
    return found | {name: round(value, 4) for name, value in figures.items()}, strip


def judge_character(seed: int, kinds: list[str], out: Path, renders: int) -> None:
    """Bake, tune and judge every adapter that has not been judged yet."""
    refuse_development(seed)
    folder = out / f"character-{seed}"
    if not folder.exists():
        write_dataset(folder, seed, len(character_of(seed).outfits))
    for kind in kinds:
        name = f"{seed}-{kind}"
        if name in kept(RESULTS / "made"):
            continue
        model = load_model(cfg.model_settings(cfg.compose("train", [])))
        began = time.perf_counter()
        arms = {"guide": train_guide(kind, folder, out, model), "tuned": tune(kind, folder, out, model)}
        judged = {arm: judge(seed, made, model, renders) for arm, made in arms.items()}
        found = {"character": seed, "adapter": kind, **{arm: figures for arm, (figures, _) in judged.items()}}
        picture = Image.fromarray(np.concatenate([np.asarray(strip) for _, strip in judged.values()], axis=0))
        (RESULTS / "pictures").mkdir(parents=True, exist_ok=True)
        picture.save(RESULTS / "pictures" / f"{name}.png")
        keep(RESULTS / "made", name, found)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


def table(found: list[dict[str, Any]], renders: int) -> str:
    """One line an adapter and arm: means over the characters, and the lowest and highest where there are several."""
    lines = [
        f"Means over characters {', '.join(map(str, sorted({one['character'] for one in found})))}, the lowest and the",
        f"highest in brackets; {renders} renders a rate and weight, likeness and bleed over weights 0.7 and 1.0. What",
        "the tuned ones took to train is that of all three trials.",
        "",
        "| adapter | settings | likeness | attributes as prompted | bleed on the class word | file MB | training s |",
        "|" + "---|" * 7,
    ]
    for kind in GUIDE:
        for arm in ("guide", "tuned"):
            own = [one[arm] for one in found if one["adapter"] == kind]
            if own:
                rates = [_range(own, f"oracle_{name}") for name in ("likeness", "accuracy", "bleed")]
                size, seconds = (np.mean([one[key] for one in own]) for key in ("megabytes", "seconds"))
                lines.append(f"| {kind} | {arm} | " + " | ".join(rates) + f" | {size:.2f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _range(own: list[dict[str, Any]], name: str) -> str:
    values = [float(np.mean([one[f"{name}@{weight:g}"] for weight in WEIGHTS])) for one in own]
    return f"{np.mean(values):.0%}" + (f" ({min(values):.0%} to {max(values):.0%})" if len(values) > 1 else "")


def main() -> None:
    """Judge what has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[186, 189])
    parser.add_argument("--kinds", nargs="+", choices=GUIDE, default=list(GUIDE))
    parser.add_argument("--renders", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    args = parser.parse_args()
    for seed in args.seeds:
        judge_character(seed, args.kinds, args.out, args.renders)
    (RESULTS / "adapters.md").write_text(table(list(kept(RESULTS / "made").values()), args.renders), encoding="utf-8")


if __name__ == "__main__":
    main()
