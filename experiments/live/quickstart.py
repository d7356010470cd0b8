"""Is the choice of the quickstart study right, on characters that nothing was tuned on?

    python -m experiments.live.quickstart --seeds 141 146 148 149 150

For each character the guide's recipe is trained to its end, and the study runs. Then the attribute classifier, which
has no part in the score, counts how often images show the character with its trigger (likeness) and with the class
word alone (bleed). The study has no limit in minutes, so that the load of the machine changes nothing. A stopped run
continues; several processes may share the seeds. Writes experiments/results/quickstart/oracle.md and oracle.csv, of
all characters judged so far, and a sheet of images for each.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_lora
from autolora.files import write_atomic
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.judge import WEIGHTS, Judge
from experiments.common.results import as_text, load_results, save_result, table_head, table_row
from experiments.common.seeds import QUICKSTART_RENDERS, ensure_dataset, evaluation_character
from experiments.common.training import packaged_model, settings_of, train_to_end, tune

RESULTS = results.RESULTS / "quickstart"
CHARACTERS = RESULTS / "oracle"
CONDITIONS = """Asked of each: with the class word alone, the guide's last checkpoint shows the character at least 40
points more often than the base model, at LoRA weight 1; with the trigger, the export shows the character at least 0.9
times as often as the guide's best checkpoint, and with the class word alone at most 10 points more often than the base
model, both at LoRA weights 0.7 and 1."""

Row = dict[str, str | float]


def judge_character(seed: int, out: Path, renders: int, recipe: str, log: Callable[[str], None]) -> Row:
    """Run the study of one character, train the guide's recipe, and return the rates of both."""
    folder = ensure_dataset(out / f"character-{seed}", seed)
    began = time.perf_counter()
    places = [f"dataset.path={folder}", f"cache={out / 'cache'}"]
    result = tune("quickstart", out / f"study-{seed}", *places, "budget.minutes=null")
    seconds = time.perf_counter() - began
    log(f"character {seed}: the study took {seconds:.0f} s")
    model = packaged_model()
    run = settings_of(f"recipe={recipe}").run
    guide = [checkpoint.state for checkpoint in train_to_end(run, folder, out, model)]
    exported = read_lora(Path(result["export"]), model)
    adapter = attach(model.modules, LoRA(dim=16))
    adapter.start(0, LoRA(dim=16), torch.Generator().manual_seed(0))
    character = evaluation_character(seed)
    judge = Judge(model, adapter, character, settings_of().model.render, renders, QUICKSTART_RENDERS)
    best = max(guide, key=lambda state: _likeness(replace(judge, renders=max(40, renders // 4)), state))
    row: Row = {"seed": seed, "outfits": len(character.outfits)}
    row |= _rates(judge, {"guide last": guide[-1], "guide best": best, "export": exported})
    row |= {"study seconds": round(seconds), "beside training": f"{1 - result['training_seconds'] / seconds:.0%}"}
    row |= {"verdict": result["verdict"], "recipe": result["best"]["recipe"], "step": result["best"]["step"]}
    _save_sheet(judge, [guide[-1], exported], CHARACTERS / f"{seed}.png")
    return row


def _likeness(judge: Judge, state: State) -> int:
    """Return how many images with the trigger show the character, over all LoRA weights."""
    judge.adapter.load(state)
    return sum(judge.rate("trigger", weight).hits for weight in WEIGHTS)


def _rates(judge: Judge, states: dict[str, State]) -> Row:
    """Return the rates of the base model and of each LoRA, as text and as shares."""
    base = judge.rate("class", 0.0)
    row: Row = {"base 1girl": base.text(), "base 1girl share": base.share}
    for title, state in states.items():
        judge.adapter.load(state)
        for kind in ("trigger", "class"):
            for weight in WEIGHTS:
                rate = judge.rate(kind, weight)
                row[f"{title} {kind} {weight:g}"] = rate.text()
                row[f"{title} {kind} {weight:g} share"] = rate.share
    return row


def _save_sheet(judge: Judge, states: list[State], path: Path) -> None:
    """Save a strip of the base model and one of each LoRA, at twice the size."""
    strips = [judge.strip(0.0)]
    for state in states:
        judge.adapter.load(state)
        strips.append(judge.strip())
    sheet = Image.fromarray(np.concatenate(strips, axis=0))
    results.save_image(sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST), path)


def holds(row: Row) -> dict[str, bool]:
    """Return which conditions a character meets: the guide overcooks, and the export is like it and does not bleed."""

    def share(name: str) -> float:
        return float(row[f"{name} share"])

    base, weights = share("base 1girl"), [f"{weight:g}" for weight in WEIGHTS]
    return {
        "guide overcooks": share("guide last class 1") >= base + 0.4,
        "likeness": all(share(f"export trigger {w}") >= 0.9 * share(f"guide best trigger {w}") for w in weights),
        "no bleed": all(share(f"export class {w}") <= base + 0.1 for w in weights),
    }


def table(rows: list[Row]) -> str:
    """Return the rates as a Markdown table, one line per character and weight, then the conditions of each."""
    names = ("guide last", "guide best", "export")
    titles = [title for name in names for title in (f"{name}: trigger", "class word")]
    lines = table_head(
        "character", "weight", "base: class word", *titles, "export's likeness, as a share of the guide's best"
    )
    for row in rows:
        for weight in WEIGHTS:
            cells = [str(row[f"{name} {kind} {weight:g}"]) for name in names for kind in ("trigger", "class")]
            best = float(row[f"guide best trigger {weight:g} share"])
            cells.append(f"{float(row[f'export trigger {weight:g} share']) / best:.0%}" if best else "")
            lines.append(
                table_row(f"{row['seed']}, {row['outfits']} outfit(s)", f"{weight:g}", row["base 1girl"], *cells)
            )
    lines += ["", CONDITIONS, ""]
    for row in rows:
        conditions = ", ".join(f"{name} {'yes' if met else 'NO'}" for name, met in holds(row).items())
        lines.append(f"- {row['seed']} ({row['recipe']}, step {row['step']}, {row['study seconds']} s): {conditions}")
    return as_text(lines)


def main() -> None:
    """Judge every character that has not been judged yet, and write the table."""
    parser = argument_parser(__doc__, seeds=(141, 146, 148, 149, 150), out="runs/quickstart-oracle")
    parser.add_argument("--renders", type=int, default=200, help="renders per rate")
    parser.add_argument("--recipe", default="doll-adamw", help="the guide's recipe")
    args = parser.parse_args()
    for seed in args.seeds:
        if str(seed) not in load_results(CHARACTERS):
            save_result(CHARACTERS, seed, judge_character(seed, args.out, args.renders, args.recipe, print))
    rows = list(load_results(CHARACTERS).values())
    with (RESULTS / "oracle.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_atomic(RESULTS / "oracle.md", table(rows))


if __name__ == "__main__":
    main()
