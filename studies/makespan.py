"""How much sooner a study of nine trials is through by packing, pruning and the ladder: replayed from the bank.

    python studies/makespan.py

Each character's recipes in the same order every way, the unchanged ones first. What an image, a render and packing cost
is measured first, on the packaged character with every core. The whole suite is every group of probes at both weights,
once; the finals, the same for all, are left out, as is what pruning learns later where trials run side by side.
Writes studies/results/speed/makespan.md and .json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import torch
from bank import rung_name
from efficiency import Baked, Bank, ending, read_bank, trial_of
from ladder_replay import blank_point, climbed, seen_card
from optuna.trial import TrialState
from score_validity import BANK, Row, read_rows

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.data.concepts import load_dataset
from autolora.files import write_atomic
from autolora.models import load_model
from autolora.progress import Bars
from autolora.provenance import provenance
from autolora.study.begin import methods
from autolora.study.speed import measure_speed, pack_speeds
from autolora.study.trial import Point, judged
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import Bench

RESULTS = Path(__file__).parent / "results" / "speed"
ORDERS = 40
ROUNDS = 5  # of measuring what things cost; the medians count


@dataclass(frozen=True)
class Way:
    """What is switched on."""

    name: str
    packing: bool = False
    pruning: bool = False
    ladder: bool = False


WAYS = (
    Way("one after the other, the whole suite on every checkpoint"),
    Way("packing", packing=True),
    Way("pruning", pruning=True),
    Way("ladder", ladder=True),
    Way("packing, pruning and ladder", packing=True, pruning=True, ladder=True),
)


@dataclass(frozen=True)
class Costs:
    """Seconds, with so many threads."""

    threads: int

    image: float  # trained on, one trial at a time
    render: float
    gain: float  # of packing: images trained on at once, of one at a time
    at_once: int


@dataclass(frozen=True)
class Spent:
    """A replayed study: seconds by what they went into, and the whole suite's score of the best checkpoint it saw."""

    training: float
    rendering: float
    best: float


def measured_costs(most: int, threads: int) -> Costs:
    """What this machine takes, by the recipe that trains longest."""
    torch.set_num_threads(threads)
    config = cfg.compose("train", ["recipe=doll-preserve", "dataset=quickstart"])
    run, settings = cfg.build_run(config), cfg.model_settings(config)
    model, dataset = load_model(settings), load_dataset(cfg.dataset_settings(config))
    cache = Path(str(config.cache)).expanduser() / "latents"
    adapter = attach(model.modules, run.adapter)
    bench = Bench(model, adapter, dataset, LatentCache(model, cache), PromptCache(model), dataset.pictures[:4])
    speeds = [measure_speed(run, bench, settings.render.search) for _ in range(ROUNDS)]
    rounds = [pack_speeds(run, bench, most) for _ in range(ROUNDS)]
    gains = {count: median(rates[count] / rates[1] for rates in rounds if count in rates) for count in rounds[0]}
    best = max(gains, key=lambda count: gains[count])
    image, shot = (median(getattr(s, f"seconds_per_{what}") for s in speeds) for what in ("image", "render"))
    return Costs(threads, image, shot, gains[best], best)


def replay(bank: Bank, order: Sequence[Baked], renders: dict[str, int], costs: Costs, way: Way) -> Spent:
    """Work off the recipes in this order."""
    study = optuna.create_study(direction="maximize", **methods(bank.settings))
    seen: list[Point] = []
    images, rendered, best = 0, 0, -np.inf
    for place, baked in enumerate(order):
        unchanged = place < len(bank.space)
        curve: list[Point] = []
        state = TrialState.COMPLETE
        for row in baked.rows:
            point, asked = look(bank, row, curve, seen, renders, way)
            curve.append(point)
            rendered += asked
            best = max(best, float(row["objective"]))
            may_end = way.pruning and row is not baked.rows[-1]
            if may_end and (ended := ending(study, bank, baked, curve, unchanged)):
                state = ended
                break
        images += int(baked.rows[len(curve) - 1]["step"])
        seen += curve
        objectives = [p.objective for p in curve]
        study.add_trial(trial_of(baked, state, max(objectives), objectives))
    training = images * costs.image / (costs.gain if way.packing else 1.0)
    return Spent(training, rendered * costs.render, float(best))


def look(
    bank: Bank, row: Row, curve: list[Point], seen: list[Point], renders: dict[str, int], way: Way
) -> tuple[Point, int]:
    """A checkpoint as it is judged, and the renders that takes."""
    if way.ladder:
        point, weights = climbed(row, curve, [*seen, *curve], bank.base_losses, bank.scoring)
        return point, weights * renders["search"]
    card = seen_card(json.loads(row[rung_name(bank.scoring.weights)]))
    return judged(blank_point(row, bank.base_losses), card), renders["whole"]


def orders(bank: Bank) -> list[list[Baked]]:
    """The unchanged recipes, then others drawn from the pool."""
    first = bank.unchanged
    rest = [one for one in bank.pool if one not in first]
    more = bank.settings.budget.trials - len(first)
    return [
        [*first, *(rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:more])]
        for seed in range(ORDERS)
    ]


def table(costs: Costs, found: dict[str, dict[str, list[Spent]]]) -> str:
    """One line a way: the mean over characters and orders, and the lowest and highest character."""
    text = [
        f"An image trained on takes {costs.image:.3f} s, a render {costs.render:.3f} s by {costs.threads} "
        f"threads; {costs.at_once} trials at once train {costs.gain:.2f} times as fast as one after the other.",
        "",
        "| | minutes | of them rendering | of the first way's (lowest and highest character) | its best checkpoint |",
        "|" + "---|" * 5,
    ]
    for way in WAYS:
        minutes, shares, kept = [], [], []
        rendering = 0.0
        for ways in found.values():
            own, first = ways[way.name], ways[WAYS[0].name]
            total = np.array([one.training + one.rendering for one in own])
            base = np.array([one.training + one.rendering for one in first])
            minutes.append(total.mean() / 60)
            shares.append((total / base).mean())
            rendering += float(np.mean([one.rendering for one in own]) / total.mean()) / len(found)
            kept.append(np.mean([a.best / b.best for a, b in zip(own, first, strict=True)]))
        text.append(
            f"| {way.name} | {np.mean(minutes):.1f} | {rendering:.0%} | {np.mean(shares):.2f} "
            f"({min(shares):.2f} to {max(shares):.2f}) | {np.mean(kept):.1%} |"
        )
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure what things cost, replay every character every way, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=8, help="trials at most that train at once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    costs = measured_costs(args.at_once, args.threads)
    found: dict[str, dict[str, list[Spent]]] = {}
    with Bars() as bars:
        for name, rows in read_rows().items():
            bank = read_bank(name, rows)
            renders: dict[str, int] = json.loads((BANK / f"{name}.json").read_text("utf-8"))["renders"]
            with bars.task(f"character {name}", len(WAYS) * ORDERS) as advance:
                found[name] = {way.name: [] for way in WAYS}
                for order in orders(bank):
                    for way in WAYS:
                        found[name][way.name].append(replay(bank, order, renders, costs, way))
                        advance(1)
    content: dict[str, Any] = provenance() | {"costs": asdict(costs)}
    content["found"] = {n: {w: [asdict(one) for one in own] for w, own in ways.items()} for n, ways in found.items()}
    write_atomic(RESULTS / "makespan.json", json.dumps(content) + "\n")
    text = table(costs, found)
    write_atomic(RESULTS / "makespan.md", text)
    print(text)


if __name__ == "__main__":
    main()
