"""How much sooner a study of nine trials is through by packing, pruning and the ladder: replayed from the bank.

    python -m experiments.replay.makespan

Each character's recipes in the same order every way, the unchanged ones first. What an image and a render cost is
measured first, on the packaged character: one trial after the other with every core, and packed, where each core has a
worker that trains several at once. The whole suite is every group of probes at both weights, once or, as
`ladder_replay.py` counts it, with the finals' seeds; the finals, the same for all, are left out, as is what pruning
learns later where trials run side by side.
Writes experiments/results/speed/makespan.md and .json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.data.concepts import load_dataset
from autolora.evaluation.result import CheckpointResult, with_scorecard
from autolora.evaluation.session import REPEATS
from autolora.evaluation.throughput import measure_speed, packed_speeds
from autolora.files import write_atomic
from autolora.models.load import load_model
from autolora.progress import Bars
from autolora.provenance import provenance
from autolora.scoring.intervals import Array
from autolora.study.lifecycle import make_sampler_and_pruner
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import TrainingContext
from experiments.replay.bank import rung_name
from experiments.replay.efficiency import Baked, Bank, ending, read_bank, trial_of
from experiments.replay.multi_fidelity import blank_point, evaluated, seen_card
from experiments.replay.score_validity import BANK, Row, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "speed"
ORDERS = 40
ROUNDS = 5  # of measuring what things cost; the medians count


@dataclass(frozen=True)
class Way:
    """What is switched on."""

    name: str
    packing: bool = False
    pruning: bool = False
    ladder: bool = False
    repeats: int = 1  # seeds a prompt of the whole suite


BASELINES = (
    Way("one after the other, the finals' suite on every checkpoint", repeats=REPEATS),
    Way("one after the other, the whole suite once on every checkpoint"),
)
WAYS = (
    *BASELINES,
    Way("packing", packing=True),
    Way("pruning", pruning=True),
    Way("ladder", ladder=True),
    Way("packing, pruning and ladder", packing=True, pruning=True, ladder=True),
)


@dataclass(frozen=True)
class Costs:
    """Seconds of this machine: one trial after the other with every core, and packed, by a worker per core."""

    image: float  # trained on
    render: float
    packed_image: float
    packed_render: float
    workers: int
    at_once: int  # trials of a worker


@dataclass(frozen=True)
class Spent:
    """A replayed study: seconds by what they went into, and the whole suite's score of the best checkpoint it saw."""

    training: float
    rendering: float
    best: float


def measured_costs(most: int) -> Costs:
    """What this machine takes; the packed workers are measured side by side."""
    workers = torch.get_num_threads()
    alone = measured(workers, 1)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        together = pool.starmap(measured, [(1, most)] * workers, chunksize=1)
    image, render = (1 / sum(1 / one[i] for one in together) for i in range(2))
    return Costs(*alone[:2], image, render, workers, min(one[2] for one in together))


def measured(threads: int, most: int) -> tuple[float, float, int]:
    """Seconds an image and a render, by the recipe that trains longest; how many such trials at once are fastest."""
    torch.set_num_threads(threads)
    config = cfg.compose("train", ["recipe=doll-preserve", "dataset=quickstart"])
    run, settings = cfg.build_run(config), cfg.model_settings(config)
    model, dataset = load_model(settings), load_dataset(cfg.dataset_settings(config))
    cache = Path(str(config.cache)).expanduser() / "latents"
    adapter = attach(model.modules, run.adapter)
    context = TrainingContext(
        model, adapter, dataset, LatentCache(model, cache), PromptCache(model), dataset.pictures[:4]
    )
    renders = [measure_speed(run, context, settings.render.search).seconds_per_render for _ in range(ROUNDS)]
    rounds = [packed_speeds(run, context, most) for _ in range(ROUNDS)]
    rates = {count: median(one[count] for one in rounds if count in one) for count in rounds[0]}
    best = max(rates, key=lambda count: rates[count])
    return 1 / (rates[best] * run.train.batch_size), median(renders), best


def replay(bank: Bank, order: Sequence[Baked], renders: dict[str, int], costs: Costs, way: Way) -> Spent:
    """Work off the recipes in this order."""
    study = optuna.create_study(direction="maximize", **make_sampler_and_pruner(bank.settings))
    seen: list[CheckpointResult] = []
    images, rendered, best = 0, 0, -np.inf
    for place, baked in enumerate(order):
        unchanged = place < len(bank.space)
        curve: list[CheckpointResult] = []
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
    image, render = (costs.packed_image, costs.packed_render) if way.packing else (costs.image, costs.render)
    return Spent(images * image, rendered * render, float(best))


def look(
    bank: Bank, row: Row, curve: list[CheckpointResult], seen: list[CheckpointResult], renders: dict[str, int], way: Way
) -> tuple[CheckpointResult, int]:
    """A checkpoint as it is judged, and the renders that takes."""
    if way.ladder:
        point, weights = evaluated(row, curve, [*seen, *curve], bank.base_losses, bank.scoring)
        return point, weights * renders["search"]
    card = seen_card(json.loads(row[rung_name(bank.scoring.weights)]))
    return with_scorecard(blank_point(row, bank.base_losses), card), renders["whole"] * way.repeats


def orders(bank: Bank) -> list[list[Baked]]:
    """The unchanged recipes, then others drawn from the pool."""
    first = bank.unchanged
    rest = [one for one in bank.pool if one not in first]
    more = bank.settings.budget.n_trials - len(first)
    return [
        [*first, *(rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:more])]
        for seed in range(ORDERS)
    ]


def table(costs: Costs, found: dict[str, dict[str, list[Spent]]]) -> str:
    """One line a way: the mean over characters and orders, and the lowest and highest character."""
    text = [
        f"One after the other with every core an image trained on takes {costs.image:.3f} s, a render "
        f"{costs.render:.3f} s; packed, {costs.workers} workers of one thread with {costs.at_once} trials each, "
        f"{costs.packed_image:.3f} s and {costs.packed_render:.3f} s: {costs.image / costs.packed_image:.1f} times as "
        "fast in training.",
        "",
        "| | minutes | of them rendering | of the first way's (lowest and highest character) | of the second's | "
        "its best checkpoint |",
        "|" + "---|" * 6,
    ]
    for way in WAYS:
        minutes, shares, kept = [], np.zeros((len(found), len(BASELINES))), []
        rendering = 0.0
        for i, ways in enumerate(found.values()):
            own = ways[way.name]
            total = seconds(own)
            minutes.append(total.mean() / 60)
            shares[i] = [(total / seconds(ways[base.name])).mean() for base in BASELINES]
            rendering += float(np.mean([one.rendering for one in own]) / total.mean()) / len(found)
            kept.append(np.mean([a.best / b.best for a, b in zip(own, ways[BASELINES[0].name], strict=True)]))
        of_baselines = [f"{own.mean():.2f} ({own.min():.2f} to {own.max():.2f})" for own in shares.T]
        cells = [way.name, f"{np.mean(minutes):.1f}", f"{rendering:.0%}", *of_baselines, f"{np.mean(kept):.1%}"]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def seconds(studies: Sequence[Spent]) -> Array:
    """How long each replayed study took."""
    return np.array([one.training + one.rendering for one in studies])


def main() -> None:
    """Measure what things cost, replay every character every way, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=4, help="trials at most that a worker trains at once")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    costs = measured_costs(args.at_once)
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
