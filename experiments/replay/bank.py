"""The replay bank: many recipes trained on evaluation characters, every checkpoint rendered and judged once.

    python -m experiments.replay.bank fill --seeds 110 111 112 113
    python -m experiments.replay.bank measure --seeds 110 111 112 113

What another score, another search or another rule of choice would have picked is then replayed from the bank, without
training again.

`fill` trains one recipe after the other and keeps, under runs/bank, each checkpoint in half precision, its renders of
every evaluation prompt that counts in the score, at every LoRA weight, and the figures of the attribute classifier.
`measure` writes one row per checkpoint to experiments/results/bank/<weights>/<seed>.csv: images shown, seconds, losses,
terms at every LoRA weight, what the multi-fidelity search sees, and the figures of the attribute classifier.

Rows need nothing of runs/bank, so `fill` leaves out the recipes that have rows: the bank may grow by a few recipes at a
time, and several processes may share the work (`--part 1/2` and `--part 2/2`). A GPU is slow at training such small
models: beside one, let the CPU train (`CUDA_VISIBLE_DEVICES= python -m experiments.replay.bank train --part ...`), then
run `fill` once to render and judge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from safetensors.torch import load_file, save_file

from autolora.evaluation.session import Session
from autolora.files import atomic_path, write_atomic
from autolora.scoring.scorecard import render_eval_prompts
from autolora.scoring.scorer import Scorer
from autolora.train.loop import train_one
from experiments.common.arguments import argument_parser
from experiments.common.judge import Judge, attribute_figures
from experiments.common.seeds import BANK_RENDERS, evaluation_character, refuse_development_seed
from experiments.replay.bank_measure import measure_character
from experiments.replay.bank_rows import CHARACTERS, rows_of, write_rows
from experiments.replay.bank_session import Recipe, kept_suite, open_character, overrides_of, recipes


def fill_character(seed: int, out: Path, count: int, renders: int, part: tuple[int, int], judging: bool = True) -> None:
    """Train and judge the recipes of a character that have no rows and no files yet.

    A recipe is done once its `facts.json` is there, which is written last.

    Args:
        seed: the seed of the character.
        out: the folder of the bank's files.
        count: the number of recipes of the bank.
        renders: the number of renders per rate and LoRA weight.
        part: of the recipes, (1, 2) for every second one from the first on.
        judging: False: train only.
    """
    refuse_development_seed(seed)
    drawn = recipes(count, overrides_of(seed, out))
    session = open_character(seed, out, [recipe.run for recipe in drawn])
    suite, context = kept_suite(session), session.context
    settings = session.render_settings.search
    judge = Judge(context.model, context.adapter, evaluation_character(seed), settings, renders, BANK_RENDERS)
    with_rows = {int(row["number"]) for row in rows_of(seed)}
    for recipe in drawn[part[0] - 1 :: part[1]]:
        folder = out / str(seed) / f"{recipe.number:02d}"
        if recipe.number not in with_rows and not (folder / "facts.json").is_file():
            facts = training_figures(recipe, session, folder)
            for fact in facts if judging else ():
                if not fact["diverged"]:
                    judge_checkpoint(folder / str(fact["step"]), session, suite, judge)
            if judging:
                content = {"values": recipe.values, "checkpoints": facts}
                write_atomic(folder / "facts.json", json.dumps(content, indent=1))
            print(f"character {seed}, recipe {recipe.number}: {facts[-1]['step']} images", flush=True)


def training_figures(recipe: Recipe, session: Session, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of a recipe's checkpoints, training it if that has not been done."""
    path = folder / "trained.json"
    if not path.is_file():
        write_atomic(path, json.dumps(list(train_recipe(recipe, session, folder))))
    figures: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return figures


def train_recipe(recipe: Recipe, session: Session, folder: Path) -> Iterator[dict[str, Any]]:
    """Train a recipe to its end, keep every checkpoint, and yield its training figures."""
    for checkpoint in train_one(recipe.run, session.context):
        half = {k: v.half() if v.dim() else v.float() for k, v in checkpoint.state.items()}
        with atomic_path(folder / f"{checkpoint.step}.safetensors") as temporary:
            save_file(half, temporary)
        yield {
            "step": checkpoint.step,
            "seconds": round(checkpoint.seconds, 2),
            "train_loss": checkpoint.train_loss,
            "val_loss": checkpoint.val_loss,
            "val_losses": checkpoint.val_losses,
            "diverged": checkpoint.diverged,
            "device": session.context.model.device.type,
        }


def judge_checkpoint(path: Path, session: Session, suite: Scorer, judge: Judge) -> None:
    """Keep a checkpoint's renders of the suite, and its figures of the attribute classifier."""
    adapter = session.context.adapter
    adapter.load(load_file(path.with_suffix(".safetensors")))
    renders = render_eval_prompts(suite, session.context.model, adapter)
    with atomic_path(path.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, pictures=np.concatenate(list(renders.values())))
    figures: dict[str, float] = {}
    for weight in suite.settings.weights:
        at_weight = attribute_figures(judge, session.scoring.outfit_prompts, weight)
        figures |= {f"{name}@{weight:g}": value for name, value in at_weight.items()}
    write_atomic(path.with_suffix(".json"), json.dumps(figures))


def main() -> None:
    """Train what is missing, judge it too, or measure what is there."""
    parser = argument_parser(__doc__, seeds=CHARACTERS, out="runs/bank")
    parser.add_argument("what", choices=["train", "fill", "measure"])
    parser.add_argument("--recipes", type=int, default=48)
    parser.add_argument("--renders", type=int, default=32, help="renders per rate and LoRA weight")
    parser.add_argument("--part", default="1/1", help="which part of the recipes this process fills in, such as 1/2")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    part, parts = map(int, args.part.split("/"))
    for seed in args.seeds:
        if args.what != "measure":
            fill_character(seed, args.out, args.recipes, args.renders, (part, parts), args.what == "fill")
        else:
            write_rows(seed, *measure_character(seed, args.out))


if __name__ == "__main__":
    main()
