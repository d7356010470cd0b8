"""Judges the quickstart by the oracle on characters that nothing was tuned on.

    python -m experiments.live.quickstart --seeds 141 146 148 149 150

For each character: the guide recipe trained to its end, and the study; then, by the oracle and not by the score,
how often pictures show the character with its trigger (likeness) and on the class word alone (bleed).
A killed run continues; several processes may share the seeds, and the table is of all judged so far. The study's
limit in minutes is lifted, so that what else the machine does changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import binomtest

from autolora import config as cfg
from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.base import State
from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_lora
from autolora.cli import main as autolora
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.look import Character, novel_character
from autolora.paperdoll.world import write_dataset
from autolora.sampling import Images, RenderRequest, render
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import TrainingContext, train_one
from autolora.train.run import Run
from experiments.common.results import keep, kept

WEIGHTS = (0.7, 1.0)
FIRST_SEED = 900_000  # apart from every probe of the score
RESULTS = Path(__file__).parents[1] / "results" / "quickstart"
KEPT = RESULTS / "oracle"
ASKED = """Asked of each: the guide's last checkpoint shows the character on the class word at least 40 points above
the base model, at weight 1; the export is at least 0.9 times as like it as the guide's best checkpoint, and bleeds at
most 10 points above the base model, both at weights 0.7 and 1."""


@dataclass(frozen=True)
class Rate:
    """Hits of n with a Wilson 95% interval."""

    hits: int
    count: int

    def text(self) -> str:
        """`71% (64-77)`."""
        interval = binomtest(self.hits, self.count).proportion_ci(method="wilson")
        return f"{self.hits / self.count:.0%} ({interval.low:.0%}-{interval.high:.0%})"


@dataclass(frozen=True)
class Judge:
    """Renders prompts with a LoRA and counts the pictures that show the character."""

    model: BaseModel
    adapter: AdapterSet
    oracle: AttributeClassifier
    character: Character
    renders: int

    def prompts(self, kind: str) -> list[str]:
        """The class word alone, or the class word with the trigger and each outfit's in turn."""
        count = self.character.traits["count"]
        if kind == "class":
            return [count] * self.renders
        words = [f"{count}, {self.character.trigger}, {o.trigger}" for o in self.character.outfits]
        return [words[i % len(words)] for i in range(self.renders)]

    def rate(self, state: State | None, kind: str, weight: float) -> Rate:
        """How many pictures show the character."""
        shots = [RenderRequest(p, FIRST_SEED + i, weight if state else 0.0) for i, p in enumerate(self.prompts(kind))]
        hits = self.oracle.shows(self._render(state, shots), self.character)
        return Rate(int(hits.sum()), len(hits))

    def _render(self, state: State | None, shots: list[RenderRequest]) -> Images:
        if state:
            self.adapter.load(state)
        return render(self.model, shots, cfg.model_settings(cfg.compose("train", [])).render, self.adapter)

    def strip(self, state: State | None, weight: float, each: int = 6) -> Images:
        """A row of pictures: the class word, then the trigger."""
        kinds = [(kind, i) for kind in ("class", "trigger") for i in range(each)]
        shots = [RenderRequest(self.prompts(k)[i], FIRST_SEED + i, weight if state else 0.0) for k, i in kinds]
        return np.concatenate(list(self._render(state, shots)), axis=1)


def train_to_end(run: Run, folder: Path, out: Path, model: BaseModel) -> Iterator[Checkpoint]:
    """A recipe to its very end, without a score; every checkpoint."""
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    adapter = attach(model.modules, run.adapter)
    context = TrainingContext(model, adapter, dataset, LatentCache(model, out / "latents"), PromptCache(model))
    yield from train_one(run, context)
    adapter.detach()


def judge_character(
    seed: int, out: Path, renders: int, recipe: str, say: Callable[[str], None]
) -> dict[str, str | float]:
    """One character: bake, study, and the oracle's rates."""
    folder = out / f"character-{seed}"
    outfits = 1 + seed % 3
    character = novel_character(seed, outfits)
    if not folder.exists():
        write_dataset(folder, seed, outfits)
    began = time.perf_counter()
    places = [f"dataset.path={folder}", f"out={out / f'study-{seed}'}", f"cache={out / 'cache'}"]
    code = autolora(["tune", "quickstart", *places, "budget.minutes=null"])
    if code:
        raise SystemExit(f"the study of character {seed} ended with exit code {code}")
    result = json.loads((out / f"study-{seed}" / "result.json").read_text("utf-8"))
    seconds = time.perf_counter() - began
    say(f"character {seed}: study took {seconds:.0f} s")
    model = load_model(cfg.model_settings(cfg.compose("train", [])))
    run = cfg.build_run(cfg.compose("train", [f"recipe={recipe}"]))
    guide = [checkpoint.state for checkpoint in train_to_end(run, folder, out, model)]
    exported = read_lora(Path(result["export"]), model)
    adapter = attach(model.modules, LoRA(dim=16))
    adapter.start(0, LoRA(dim=16), torch.Generator().manual_seed(0))
    judge = Judge(model, adapter, AttributeClassifier(), character, renders)
    few = Judge(model, adapter, judge.oracle, character, max(40, renders // 4))
    best = max(guide, key=lambda state: sum(few.rate(state, "trigger", w).hits for w in WEIGHTS))
    base = judge.rate(None, "class", 0)
    row: dict[str, str | float] = {"seed": seed, "outfits": outfits}
    row |= {"base 1girl": base.text(), "base 1girl share": base.hits / base.count}
    for title, state in (("guide last", guide[-1]), ("guide best", best), ("export", exported)):
        for kind in ("trigger", "class"):
            for weight in WEIGHTS:
                rate = judge.rate(state, kind, weight)
                row[f"{title} {kind} {weight:g}"] = rate.text()
                row[f"{title} {kind} {weight:g} share"] = rate.hits / rate.count
    row |= {"study seconds": round(seconds), "beside training": f"{1 - result['training_seconds'] / seconds:.0%}"}
    row |= {"verdict": result["verdict"], "recipe": result["best"]["recipe"], "step": result["best"]["step"]}
    strips = [judge.strip(None, 0), judge.strip(guide[-1], 1.0), judge.strip(exported, 1.0)]
    grid = Image.fromarray(np.concatenate(strips, axis=0))
    KEPT.mkdir(parents=True, exist_ok=True)
    grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST).save(KEPT / f"{seed}.png")
    return row


def holds(row: dict[str, str | float]) -> dict[str, bool]:
    """What is asked of every character: that overcooking is real, and that the export is like it and does not bleed."""

    def share(name: str) -> float:
        return float(row[f"{name} share"])

    base, weights = share("base 1girl"), [f"{weight:g}" for weight in WEIGHTS]
    return {
        "guide overcooks": share("guide last class 1") >= base + 0.4,
        "likeness": all(share(f"export trigger {w}") >= 0.9 * share(f"guide best trigger {w}") for w in weights),
        "no bleed": all(share(f"export class {w}") <= base + 0.1 for w in weights),
    }


def table(rows: list[dict[str, str | float]]) -> str:
    """The rates as a Markdown table, one line a character and weight, then what holds for each."""
    names = ("guide last", "guide best", "export")
    lines = [
        "| character | weight | base: class word | "
        + " | ".join(f"{name}: trigger | class word" for name in names)
        + " | export's likeness, of the guide's best |",
        "|" + "---|" * (4 + 2 * len(names)),
    ]
    for row in rows:
        for weight in WEIGHTS:
            cells = [str(row[f"{name} {kind} {weight:g}"]) for name in names for kind in ("trigger", "class")]
            about = f"{row['seed']}, {row['outfits']} outfit(s)"
            best = float(row[f"guide best trigger {weight:g} share"])
            cells.append(f"{float(row[f'export trigger {weight:g} share']) / best:.0%}" if best else "")
            lines.append(f"| {about} | {weight:g} | {row['base 1girl']} | " + " | ".join(cells) + " |")
    lines += ["", ASKED, ""]
    for row in rows:
        found = ", ".join(f"{name} {'yes' if met else 'NO'}" for name, met in holds(row).items())
        lines.append(f"- {row['seed']} ({row['recipe']}, step {row['step']}, {row['study seconds']} s): {found}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge every seed that has not been judged yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[141, 146, 148, 149, 150])
    parser.add_argument("--renders", type=int, default=200)
    parser.add_argument("--recipe", default="doll-adamw")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-oracle"))
    args = parser.parse_args()
    for seed in args.seeds:
        if str(seed) not in kept(KEPT):
            keep(KEPT, seed, judge_character(seed, args.out, args.renders, args.recipe, print))
    rows = list(kept(KEPT).values())
    with (RESULTS / "oracle.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "oracle.md").write_text(table(rows))


if __name__ == "__main__":
    main()
