"""Does a live study find what the whole grid finds? On characters of its own, which confirm `efficiency.py` or not.

    python studies/bank.py fill --seeds 172 177 --recipes 20
    python studies/bank.py measure --seeds 172 177
    python studies/efficiency_live.py --seeds 172 177

The study draws from the bank's ranges and begins no trial after a fifth of the images that the character's bank was
shown. Its pick after each trial, and what it exports, are valued by the oracle on the bank's own prompts and seeds,
as a share of the best checkpoint of the bank, which is chosen by one half of them and valued by the other.
Writes studies/results/efficiency/live.md, of all judged so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bank import SPACE, arguments_of, character_of, rows_of
from efficiency import ENOUGH
from kept import keep, kept, refuse_development
from score_validity import share_of_best
from valued import valued

from autolora import config as cfg
from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.cli import main as autolora
from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.models import load_model
from autolora.paperdoll.world import write_dataset
from autolora.study.begin import started_study
from autolora.study.budget import STEP
from autolora.study.plan import make_plan
from autolora.study.tune import records

FIFTH = 0.2
RESULTS = Path(__file__).parent / "results" / "efficiency"
Figures = Mapping[str, Any]


def picks(arguments: tuple[str, ...]) -> Iterator[tuple[int, State]]:
    """After each trial that made its pick a better one: images shown in all, and the pick."""
    config = cfg.compose("tune", list(arguments), SPACE)
    plan, _ = make_plan(config, SPACE, arguments)
    study = started_study(plan, print)
    best: float | None = None
    shown = 0
    for trial, record in sorted(records(plan, study), key=lambda pair: pair[0].datetime_complete):
        shown += trial.user_attrs[STEP]
        point = record.best()
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
        raise StudyError(f"character {seed} has no bank: run studies/bank.py fill and measure --seeds {seed} first")
    images = sum({row["number"]: int(row["step"]) for row in rows}.values())  # the last row of each recipe counts
    folder = out / str(seed) / "pictures"
    if not folder.exists():
        write_dataset(folder, seed, len(character_of(seed).outfits))
    limits = ("budget.minutes=null", "budget.trials=48", f"budget.steps={int(FIFTH * images)}")
    arguments = (*arguments_of(seed, out), f"out={out / f'live-{seed}'}", *limits)
    if code := autolora(["tune", SPACE, *arguments]):
        raise StudyError(f"the study of character {seed} ended with exit code {code}")
    model = load_model(cfg.model_settings(cfg.compose("train", [])))
    result = json.loads((out / f"live-{seed}" / "result.json").read_text("utf-8"))

    def share(state: State) -> float:
        return share_of_best(valued(state, seed, model, renders, searching=True)[0], rows)

    trace = [(shown / images, share(state)) for shown, state in picks(arguments)]
    exported = share(read_lora(Path(result["export"]), model))
    facts = {"recipes": len({row["number"] for row in rows}), "images": images, "trials": result["trials"]}
    return facts | {"trace": trace, "export": exported, "best": result["best"]["recipe"]}


def table(found: Mapping[str, Figures]) -> str:
    """One line a character."""
    lines = [
        "| character | recipes in its bank | trials | images to 95% of the best, of the bank's | last pick's value, of "
        "the best | export's value, of the best |",
        "|" + "---|" * 6,
    ]
    for name, one in found.items():
        reached = next((f"{images:.0%}" for images, value in one["trace"] if value >= ENOUGH), "not reached")
        cells = [name, one["recipes"], sum(one["trials"].values()), reached]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {one['trace'][-1][1]:.0%} | {one['export']:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge every character that has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[172, 177])
    parser.add_argument("--renders", type=int, default=32, help="per rate and weight, as in the bank")
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
