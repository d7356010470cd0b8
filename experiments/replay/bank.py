"""The replay bank: many recipes trained on evaluation characters, every checkpoint rendered and judged once.

    python -m experiments.replay.bank fill --seeds 110 111 112 113
    python -m experiments.replay.bank measure --seeds 110 111 112 113

What a score, a ladder or a rule of choice would have done is then replayed from the bank instead of trained again.
`fill` trains one recipe after the other and keeps, under runs/bank, each checkpoint as half-precision tensors, its
pictures of every probe that counts in the score, at every weight, and the oracle's figures. `measure` writes one row a
checkpoint to experiments/results/bank/<weights>/<seed>.csv: images shown, seconds, losses, terms at every weight, what
each rung of the ladder sees, the oracle's figures. Rows need nothing of runs/bank any more, so `fill` leaves out the
recipes that have theirs: the bank may grow a few recipes at a time, and several processes may share the work
(`--part 1/2` and `--part 2/2`). Beside a GPU, which such small models share badly, let the CPU's cores train
(`CUDA_VISIBLE_DEVICES= python -m experiments.replay.bank train --part ...`) and one `fill` after them judge.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from safetensors.torch import load_file, save_file

from autolora import config as cfg
from autolora.adapters.kinds import LoRA
from autolora.evaluation.session import Session, open_session
from autolora.files import atomic_path, write_atomic
from autolora.models.settings import RenderSettings
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.look import Character, novel_character, parse_prompt
from autolora.paperdoll.weights import VERSION, weights_hash
from autolora.paperdoll.world import write_dataset
from autolora.progress import Bars
from autolora.provenance import provenance
from autolora.sampling import BaseRenders, RenderRequest, render
from autolora.scoring.eval_prompts import DECIDING_GROUPS, SEARCH_GROUPS
from autolora.scoring.scorecard import Rendered, Scorecard, embed, render_eval_prompts, score
from autolora.scoring.scorer import Scorer, with_fresh_prompts
from autolora.scoring.standard_metrics import standard_metrics
from autolora.study.definition import define_study
from autolora.study.space import suggest
from autolora.train.loop import train_one
from autolora.train.run import Run
from experiments.common.results import refuse_development
from experiments.live.quickstart import Judge

CHECKPOINTS = 6
FIRST_SEED = 950_000  # apart from every probe of the score
RUNG_TERMS = ("fidelity", "bleed_class")  # what the ladder decides by, besides score and constraints
RESULTS = Path(__file__).parents[1] / "results" / "bank" / VERSION
SPACE = str(RESULTS.parent / "space.yaml")


@dataclass(frozen=True)
class Recipe:
    """One recipe of the bank: where its values come from and the run they make."""

    number: int
    values: dict[str, Any]
    run: Run


def recipes(count: int, arguments: tuple[str, ...]) -> list[Recipe]:
    """The recipes of the bank's space as they are, then random draws from it; the same for every character."""
    definition, own = define_study(cfg.compose("tune", list(arguments), SPACE), SPACE, arguments)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for recipe, values in own.items():
        study.enqueue_trial({"recipe": recipe, **{f"{recipe}/{key}": value for key, value in values.items()}})
    found = []
    for number in range(count):
        recipe, values = suggest(study.ask(), definition.space)
        found.append(Recipe(number, {"recipe": recipe, **values}, spread(definition.run, recipe, values)))
    return found


def spread(make: Any, recipe: str, values: dict[str, Any]) -> Run:
    """The recipe's run with the same images in all, cut into CHECKPOINTS epochs."""
    run: Run = make(recipe, values)
    per_epoch = max(1, round(run.train.images_per_concept * run.train.epochs / CHECKPOINTS))
    cut: Run = make(recipe, {**values, "train.epochs": CHECKPOINTS, "train.images_per_concept": per_epoch})
    return cut


def character_of(seed: int) -> Character:
    """The evaluation character of a seed: one to three outfits."""
    return novel_character(seed, 1 + seed % 3)


def open_character(seed: int, out: Path, runs: list[Run]) -> Session:
    """Draw the character's pictures if they are not there, and prepare everything its runs share."""
    folder = out / str(seed) / "pictures"
    if not folder.exists():
        write_dataset(folder, seed, 1 + seed % 3)
    config = cfg.compose("tune", list(arguments_of(seed, out)), SPACE)
    with Bars() as bars:
        return open_session(config, runs, bars)


def arguments_of(seed: int, out: Path) -> tuple[str, ...]:
    """The overrides that point the quickstart at a character of the bank."""
    at_once = 256 if torch.cuda.is_available() else 32  # a GPU spends its time on launches, whatever their size
    places = (f"dataset.path={out / str(seed) / 'pictures'}", f"cache={out / 'cache'}")
    return (*places, f"model.render.batch_size={at_once}")


def fill_character(seed: int, out: Path, count: int, renders: int, part: tuple[int, int], judging: bool = True) -> None:
    """Train every recipe of this process's part that is not there yet, and judge it; `facts.json` is written last."""
    refuse_development(seed)
    chosen = recipes(count, arguments_of(seed, out))
    session = open_character(seed, out, [recipe.run for recipe in chosen])
    suite = kept_suite(session)
    judge = Judge(session.context.model, session.context.adapter, AttributeClassifier(), character_of(seed), renders)
    known = {int(row["number"]) for row in rows_of(seed)}
    for recipe in chosen[part[0] - 1 :: part[1]]:
        folder = out / str(seed) / f"{recipe.number:02d}"
        if recipe.number not in known and not (folder / "facts.json").is_file():
            facts = trained(recipe, session, folder)
            for fact in facts if judging else ():
                if not fact["diverged"]:
                    judge_checkpoint(folder / str(fact["step"]), session, suite, judge)
            if judging:
                content = {"values": recipe.values, "checkpoints": facts}
                write_atomic(folder / "facts.json", json.dumps(content, indent=1))
            print(f"character {seed}, recipe {recipe.number}: {facts[-1]['step']} images", flush=True)


def trained(recipe: Recipe, session: Session, folder: Path) -> list[dict[str, Any]]:
    """A recipe's training figures, of now or of before."""
    path = folder / "trained.json"
    if not path.is_file():
        write_atomic(path, json.dumps(list(train_recipe(recipe, session, folder))))
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return found


def train_recipe(recipe: Recipe, session: Session, folder: Path) -> Iterator[dict[str, Any]]:
    """Train a recipe to its end, keep every checkpoint, and give its training figures."""
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
    """Keep a checkpoint's pictures of the suite, and what the oracle says of it."""
    adapter = session.context.adapter
    adapter.load(load_file(path.with_suffix(".safetensors")))
    pictures = render_eval_prompts(suite, session.context.model, adapter)
    with atomic_path(path.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, pictures=np.concatenate(list(pictures.values())))
    figures: dict[str, float] = {}
    for weight in suite.settings.weights:
        found = oracle_figures(judge, session.scoring.outfit_prompts, session.render_settings.search, weight)
        figures |= {f"{name}@{weight:g}": value for name, value in found.items()}
    write_atomic(path.with_suffix(".json"), json.dumps(figures))


def oracle_figures(
    judge: Judge, tags: Sequence[str], settings: RenderSettings, weight: float, first_seed: int = FIRST_SEED
) -> dict[str, float]:
    """What the oracle says of the LoRA in the adapter: in all, and by the two halves of its renders.

    Mark likeness with the trigger, attribute accuracy of novel prompts with the trigger, bleed on the class word.
    """
    character = judge.character
    lead = f"{character.traits['count']}, {character.trigger}"
    chosen = [tags[i % len(tags)] for i in range(judge.renders)]
    asked = {"likeness": judge.prompts("trigger"), "accuracy": [f"{lead}, {t}" for t in chosen]}
    asked["bleed"] = judge.prompts("class")
    found: dict[str, float] = {}
    for name, prompts in asked.items():
        shots = [RenderRequest(prompt, first_seed + i, weight) for i, prompt in enumerate(prompts)]
        pictures = render(judge.model, shots, settings, judge.adapter)
        halves = {"": slice(None), "_a": slice(0, None, 2), "_b": slice(1, None, 2)}
        for half, part in halves.items():
            if name == "accuracy":
                by_tag = judge.oracle.accuracy(pictures[part], [parse_prompt(t) for t in chosen[part]])
                found[f"oracle_{name}{half}"] = float(np.mean(list(by_tag.values())))
            else:
                found[f"oracle_{name}{half}"] = float(judge.oracle.shows(pictures[part], character).mean())
    return found


def whole_suite(session: Session, steps: RenderSettings) -> Scorer:
    """Every group of probes at every weight, with seeds that no study uses."""
    assert session.scorer is not None, session.unmeasured
    context = session.context
    renders = BaseRenders(context.model, steps, session.renders.folder)
    return with_fresh_prompts(session.scorer, context.dataset, renders, context.adapter, 1)


def kept_suite(session: Session) -> Scorer:
    """What the bank keeps pictures of: all that counts in the score, in the search's steps."""
    return whole_suite(session, session.render_settings.search).only(*DECIDING_GROUPS)


def checkpoints_of(seed: int, out: Path) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Every checkpoint that did not diverge: its path without a suffix, its recipe and its training figures."""
    for path in sorted((out / str(seed)).glob("*/facts.json")):
        facts = json.loads(path.read_text("utf-8"))
        for fact in facts["checkpoints"]:
            if not fact["diverged"]:
                yield path.parent / str(fact["step"]), facts["values"], fact


def load_pictures(scorer: Scorer, path: Path) -> Rendered:
    """A checkpoint's pictures of the kept suite, as `render_eval_prompts` gave them."""
    keys = [(probe, weight) for probe in scorer.prompts for weight in scorer.settings.weights]
    stored = np.load(path.with_suffix(".npz"))["pictures"]
    return dict(zip(keys, np.split(stored, np.cumsum([len(p.seeds) for p, _ in keys])[:-1]), strict=True))


def row_of(seed: int, path: Path, recipe: dict[str, Any], fact: dict[str, Any], card: Scorecard) -> dict[str, Any]:
    """One CSV row, without the oracle's figures."""
    row = {"character": seed, "number": int(path.parent.name), "recipe": json.dumps(recipe), **fact}
    row |= {"score": card.score.value, "score_low": card.score.low, "score_high": card.score.high}
    row |= {"objective": card.objective, "weight": card.weight, "broken": " ".join(card.broken)}
    for weight, terms in card.by_weight.items():
        for name, term in terms.items():
            row |= {f"{name}{end}@{weight}": getattr(term, end[1:] or "value") for end in ("", "_low", "_high")}
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def rungs(suite: Scorer, pictures: Rendered) -> dict[str, str]:
    """What the ladder sees of a checkpoint on each of its rungs with renders, as far as its decisions ask."""
    search, found = suite.only(*SEARCH_GROUPS), {}
    for weights in ([max(search.settings.weights)], search.settings.weights):
        card = score(search.at(*weights), pictures)
        seen = {w: {n: terms[n].as_dict() for n in RUNG_TERMS} for w, terms in card.by_weight.items()}
        constraints = {name: round(value, 4) for name, value in card.constraints.items()}
        content = {"score": card.score.as_dict(), "constraints": constraints, "by_weight": seen}
        found[rung_name(weights)] = json.dumps(content)
    return found


def rung_name(weights: Sequence[float]) -> str:
    """The column of the ladder's rung at some weights."""
    return "rung@" + "+".join(f"{weight:g}" for weight in weights)


def measure_character(seed: int, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every checkpoint's row, and what is the same for all of them: renders asked for, the base model's losses."""
    session = open_character(seed, out, [Run("bank", LoRA(dim=16))])
    suite = kept_suite(session)
    rows = []
    for path, recipe, fact in checkpoints_of(seed, out):
        figures = json.loads(path.with_suffix(".json").read_text("utf-8"))
        pictures = load_pictures(suite, path)
        embedded = embed(suite, pictures)
        row = row_of(seed, path, recipe, fact, score(suite, pictures, embedded))
        for weight in suite.settings.weights:
            usual = standard_metrics(suite, pictures, embedded, weight)
            row |= {f"{name}@{weight:g}": value for name, value in usual.items()}
        rows.append(row | rungs(suite, pictures) | figures)
    whole = whole_suite(session, session.render_settings.search)
    renders = {"search": suite.only(*SEARCH_GROUPS).at(1.0).renders, "deciding": suite.renders, "whole": whole.renders}
    return rows, {"renders": renders, "base_losses": session.base_losses}


def rows_of(seed: int) -> list[dict[str, str]]:
    """A character's rows so far; none where they are of other weights."""
    path = RESULTS / f"{seed}.csv"
    if not path.is_file() or json.loads(path.with_suffix(".json").read_text("utf-8"))["weights"] != weights_hash():
        return []
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def write_rows(seed: int, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Put a character's new rows in the place of their recipes' old ones, and beside them how they were made."""
    new = {row["number"] for row in rows}
    merged: list[dict[str, Any]] = [row for row in rows_of(seed) if int(row["number"]) not in new]
    merged = sorted([*merged, *rows], key=lambda row: (int(row["number"]), int(row["step"])))
    names = list(dict.fromkeys(name for row in merged for name in row))  # some terms need two outfits
    with atomic_path(RESULTS / f"{seed}.csv") as temporary, temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=names)
        writer.writeheader()
        writer.writerows(merged)
    facts = provenance() | {"weights": weights_hash(), "rows": len(merged)} | facts
    write_atomic(RESULTS / f"{seed}.json", json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Train what is missing, judge it too, or measure what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "fill", "measure"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[110, 111, 112, 113])
    parser.add_argument("--recipes", type=int, default=48)
    parser.add_argument("--renders", type=int, default=32, help="the oracle's renders per rate and weight")
    parser.add_argument("--part", default="1/1", help="which part of the recipes this process fills in, such as 1/2")
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
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
