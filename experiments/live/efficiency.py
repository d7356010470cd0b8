"""Does a live study find what the whole grid finds? On characters of its own, which confirm `efficiency.py` or not.

    python -m experiments.replay.bank fill --seeds 172 177
    python -m experiments.replay.bank measure --seeds 172 177
    python -m experiments.live.efficiency --seeds 172 177

The study draws from the bank's ranges and begins no trial after a fifth of the images that the character's bank was
shown. Its pick after each trial, and what it exports, are valued by the oracle as a share of the bank's best
checkpoint, which the bank's own figures choose; all are rendered afresh, so that luck in the choice is not counted as
merit. The bank's checkpoints must still lie where they were filled in. Intervals draw each rate again as a binomial.
Writes experiments/results/efficiency/live.md, of all judged so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from autolora import config as cfg
from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.cli import main as autolora
from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.models.load import load_model
from autolora.paperdoll.world import write_dataset
from autolora.study.budget import STEP
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.trials import load_trials
from experiments.common.judge import valued
from experiments.common.results import keep, kept, refuse_development
from experiments.replay.bank import SPACE, arguments_of, character_of, rows_of
from experiments.replay.efficiency import ENOUGH
from experiments.replay.score_validity import DRAWS, WEIGHTS, oracle_score

FIFTH = 0.2
FIRST_SEED = 960_000  # apart from the bank's, which chose its best
RATES = ("likeness", "accuracy", "bleed")
RESULTS = Path(__file__).parents[1] / "results" / "efficiency"
Figures = Mapping[str, Any]


def picks(arguments: tuple[str, ...]) -> Iterator[tuple[int, State]]:
    """After each trial that made its pick a better one: images shown in all, and the pick."""
    config = cfg.compose("tune", list(arguments), SPACE)
    definition, _ = define_study(config, SPACE, arguments)
    study = load_started_study(definition, print)
    best: float | None = None
    shown = 0
    for trial, record in sorted(load_trials(definition, study), key=lambda pair: pair[0].datetime_complete):
        shown += trial.user_attrs[STEP]
        point = record.best_result()
        if point is not None and (best is None or point.objective > best):
            best = point.objective
            yield shown, record.load(point)


def judge_character(seed: int, out: Path, renders: int) -> dict[str, Any]:
    """The study of a character, and its picks by the oracle.

    Raises:
        StudyError: the character has no bank yet, or its study failed.
    """
    refuse_development(seed)
    rows = rows_of(seed)
    if not rows:
        raise StudyError(
            f"character {seed} has no bank: run python -m experiments.replay.bank fill and measure --seeds {seed} first"
        )
    images = sum({row["number"]: int(row["step"]) for row in rows}.values())  # the last row of each recipe counts
    folder = out / str(seed) / "pictures"
    if not folder.exists():
        write_dataset(folder, seed, len(character_of(seed).outfits))
    limits = ("budget.minutes=null", "budget.n_trials=48", f"budget.max_images={int(FIFTH * images)}")
    arguments = (*arguments_of(seed, out), f"out={out / f'live-{seed}'}", *limits)
    if code := autolora(["tune", SPACE, *arguments]):
        raise StudyError(f"the study of character {seed} ended with exit code {code}")
    model = load_model(cfg.model_settings(cfg.compose("train", [])))
    result = json.loads((out / f"live-{seed}" / "result.json").read_text("utf-8"))

    def figures(state: State) -> Figures:
        return valued(state, seed, model, renders, searching=True, first_seed=FIRST_SEED)[0]

    top = max(rows, key=oracle_score)
    best = figures(load_file(out / str(seed) / f"{int(top['number']):02d}" / f"{top['step']}.safetensors"))
    trace = [(shown / images, share(figures(state), best, renders)) for shown, state in picks(arguments)]
    exported = share(figures(read_lora(Path(result["export"]), model)), best, renders)
    facts = {"recipes": len({row["number"] for row in rows}), "images": images, "trials": result["trials"]}
    return facts | {"trace": trace, "export": exported, "best": result["best"]["recipe"]}


def share(figures: Figures, best: Figures, renders: int) -> tuple[float, float, float]:
    """The oracle's score by its figures as a share of the best one's, with the interval of so many renders a rate."""
    generator = np.random.default_rng(0)

    def drawn(one: Figures) -> float:
        names = [f"oracle_{rate}@{weight}" for rate in RATES for weight in WEIGHTS]
        return oracle_score({name: generator.binomial(renders, one[name]) / renders for name in names})

    low, high = np.quantile([drawn(figures) / drawn(best) for _ in range(DRAWS)], [0.025, 0.975])
    return oracle_score(figures) / oracle_score(best), float(low), float(high)


def table(found: Mapping[str, Figures]) -> str:
    """One line a character."""
    lines = [
        "| character | recipes in its bank | trials | images to 95% of the best, of the bank's | last pick's value, of "
        "the best | export's value, of the best |",
        "|" + "---|" * 6,
    ]
    for name, one in found.items():
        reached = next((f"{images:.0%}" for images, (value, *_) in one["trace"] if value >= ENOUGH), "not reached")
        shares = [f"{value:.0%} ({low:.0%} to {high:.0%})" for value, low, high in (one["trace"][-1][1], one["export"])]
        cells = [name, one["recipes"], sum(one["trials"].values()), reached, *shares]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge every character that has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[172, 177])
    parser.add_argument("--renders", type=int, default=128, help="per rate and weight")
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    args = parser.parse_args()
    for seed in args.seeds:
        if str(seed) not in kept(RESULTS / "live"):
            keep(RESULTS / "live", seed, judge_character(seed, args.out, args.renders))
    text = table(kept(RESULTS / "live"))
    write_atomic(RESULTS / "live.md", text)
    print(text)


if __name__ == "__main__":
    main()
