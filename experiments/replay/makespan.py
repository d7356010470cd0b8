"""How much sooner does a study of nine trials end with packing, pruning and progressive evaluation? Replayed.

    python -m experiments.replay.makespan

Each character's recipes are taken in the same order every way, the baselines first. What a training image and a render
cost is measured first, on the packaged character: one trial after the other with every core, and packed, where each
core has a worker that trains several trials at once. The whole suite is every group of prompts at both LoRA weights,
with one seed or with the finals' number of seeds. Left out are the finals, which are the same every way, and what
pruning learns later where trials run side by side. Writes experiments/results/speed/makespan.md and makespan.json.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

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
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, save_table, table_head, table_row
from experiments.common.scores import Row
from experiments.common.training import settings_of, training_context
from experiments.replay.bank_rows import facts_of, read_rows, rung_name
from experiments.replay.multi_fidelity import blank_point, card_of, evaluated
from experiments.replay.replayed_bank import Bank, BankRecipe, early_end, quiet_optuna, read_bank, trial_of

RESULTS = results.RESULTS / "speed"
ORDERS = 40
ROUNDS = 5  # of measuring costs; the medians count


@dataclass(frozen=True)
class Way:
    """What is switched on."""

    name: str
    packing: bool = False
    pruning: bool = False
    progressive: bool = False
    repeats: int = 1  # seeds per prompt of the whole suite


BASELINES = (
    Way("one after the other, the finals' suite on every checkpoint", repeats=REPEATS),
    Way("one after the other, the whole suite once on every checkpoint"),
)
WAYS = (
    *BASELINES,
    Way("packing", packing=True),
    Way("pruning", pruning=True),
    Way("progressive evaluation", progressive=True),
    Way("packing, pruning and progressive evaluation", packing=True, pruning=True, progressive=True),
)


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine: one trial after the other with every core, and packed, with a worker per core."""

    image: float  # shown in training
    render: float
    packed_image: float
    packed_render: float
    workers: int
    at_once: int  # trials of a worker


@dataclass(frozen=True)
class Spent:
    """The seconds of a replayed study, and its best checkpoint's score by the whole suite."""

    training: float
    rendering: float
    best: float

    @property
    def seconds(self) -> float:
        """The seconds in all."""
        return self.training + self.rendering


def measure_costs(most: int) -> Costs:
    """Measure the costs on this machine; the packed workers are measured side by side.

    Args:
        most: the largest number of trials that a worker may train at once.
    """
    workers = torch.get_num_threads()
    alone = measure_worker(workers, 1)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        together = pool.starmap(measure_worker, [(1, most)] * workers, chunksize=1)
    image, render = (1 / sum(1 / worker[i] for worker in together) for i in range(2))
    return Costs(*alone[:2], image, render, workers, min(worker[2] for worker in together))


def measure_worker(threads: int, most: int) -> tuple[float, float, int]:
    """Measure a worker with the recipe that trains longest.

    Returns:
        Seconds per training image, seconds per render, and how many trials at once are fastest.
    """
    torch.set_num_threads(threads)
    settings = settings_of("recipe=doll-preserve", "dataset=quickstart")
    run, model, dataset = settings.run, load_model(settings.model), load_dataset(settings.dataset)
    class_images = dataset.pictures[:4]
    context = training_context(model, run.adapter, dataset, settings.cache / "latents", class_images)
    search = settings.model.render.search
    renders = [measure_speed(run, context, search).seconds_per_render for _ in range(ROUNDS)]
    rounds = [packed_speeds(run, context, most) for _ in range(ROUNDS)]
    rates = {count: median(speeds[count] for speeds in rounds if count in speeds) for count in rounds[0]}
    best = max(rates, key=lambda count: rates[count])
    return 1 / (rates[best] * run.train.batch_size), median(renders), best


def replay(bank: Bank, order: Sequence[BankRecipe], renders: dict[str, int], costs: Costs, way: Way) -> Spent:
    """Run the recipes in this order and return what that costs.

    Args:
        bank: the character's bank.
        order: the recipes of the study.
        renders: the number of renders of a search's prompts and of the whole suite.
        costs: seconds per image and render.
        way: what is switched on.
    """
    study = optuna.create_study(direction="maximize", **make_sampler_and_pruner(bank.settings))
    seen: list[CheckpointResult] = []
    images, rendered, best = 0, 0, -np.inf
    for place, entry in enumerate(order):
        is_baseline = place < len(bank.space)
        curve: list[CheckpointResult] = []
        state = TrialState.COMPLETE
        for row in entry.rows:
            point, row_renders = evaluate(bank, row, curve, seen, renders, way)
            curve.append(point)
            rendered += row_renders
            best = max(best, float(row["objective"]))
            may_end = way.pruning and row is not entry.rows[-1]
            if may_end and (early := early_end(study, bank, entry, curve, is_baseline)):
                state = early
                break
        images += int(entry.rows[len(curve) - 1]["step"])
        seen += curve
        objectives = [p.objective for p in curve]
        study.add_trial(trial_of(entry, state, max(objectives), objectives))
    image, render = (costs.packed_image, costs.packed_render) if way.packing else (costs.image, costs.render)
    return Spent(images * image, rendered * render, float(best))


def evaluate(
    bank: Bank, row: Row, curve: list[CheckpointResult], seen: list[CheckpointResult], renders: dict[str, int], way: Way
) -> tuple[CheckpointResult, int]:
    """Return the result of a checkpoint, and the number of renders that it takes."""
    if way.progressive:
        point, weights = evaluated(row, curve, [*seen, *curve], bank.base_losses, bank.scoring)
        return point, weights * renders["search"]
    card = card_of(json.loads(row[rung_name(bank.scoring.weights)]))
    return with_scorecard(blank_point(row, bank.base_losses), card), renders["whole"] * way.repeats


def orders(bank: Bank) -> list[list[BankRecipe]]:
    """Return random orders of recipes: the baselines, then others drawn from the pool."""
    baselines = bank.baselines
    rest = [entry for entry in bank.pool if entry not in baselines]
    more = bank.settings.budget.n_trials - len(baselines)
    return [
        [*baselines, *(rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:more])]
        for seed in range(ORDERS)
    ]


def table(costs: Costs, replayed: dict[str, dict[str, list[Spent]]]) -> str:
    """Return one line per way: means over characters and orders, and the lowest and the highest character.

    Args:
        costs: as they were measured.
        replayed: the studies by character and way.
    """
    lines = [
        f"One after the other with every core, a training image takes {costs.image:.3f} s and a render "
        f"{costs.render:.3f} s; packed, {costs.workers} workers of one thread with {costs.at_once} trials each take "
        f"{costs.packed_image:.3f} s and {costs.packed_render:.3f} s: training is "
        f"{costs.image / costs.packed_image:.1f} times as fast.",
        "",
        *table_head(
            "way",
            "minutes",
            "of them rendering",
            "of the first way's (lowest and highest character)",
            "of the second's",
            "its best checkpoint",
        ),
    ]
    for way in WAYS:
        minutes, shares, best = [], np.zeros((len(replayed), len(BASELINES))), []
        rendering = 0.0
        for i, by_way in enumerate(replayed.values()):
            studies, baseline = by_way[way.name], by_way[BASELINES[0].name]
            total = seconds(studies)
            minutes.append(total.mean() / 60)
            shares[i] = [(total / seconds(by_way[base.name])).mean() for base in BASELINES]
            rendering += float(np.mean([study.rendering for study in studies]) / total.mean()) / len(replayed)
            best.append(np.mean([a.best / b.best for a, b in zip(studies, baseline, strict=True)]))
        of_baselines = [f"{column.mean():.2f} ({column.min():.2f} to {column.max():.2f})" for column in shares.T]
        cells = [f"{np.mean(minutes):.1f}", f"{rendering:.0%}", *of_baselines, f"{np.mean(best):.1%}"]
        lines.append(table_row(way.name, *cells))
    return as_text(lines)


def seconds(studies: Sequence[Spent]) -> Array:
    """Return the seconds of each replayed study, (studies,)."""
    return np.array([study.seconds for study in studies])


def main() -> None:
    """Measure the costs, replay every character every way, and write the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--at-once", type=int, default=4, help="the most trials that a worker trains at once")
    args = parser.parse_args()
    quiet_optuna()
    costs = measure_costs(args.at_once)
    replayed: dict[str, dict[str, list[Spent]]] = {}
    with Bars() as bars:
        for name, rows in read_rows().items():
            bank = read_bank(name, rows)
            renders: dict[str, int] = facts_of(name)["renders"]
            with bars.task(f"character {name}", len(WAYS) * ORDERS) as advance:
                replayed[name] = {way.name: [] for way in WAYS}
                for order in orders(bank):
                    for way in WAYS:
                        replayed[name][way.name].append(replay(bank, order, renders, costs, way))
                        advance(1)
    content: dict[str, Any] = provenance() | {"costs": asdict(costs)}
    content["found"] = {
        name: {way: [asdict(study) for study in studies] for way, studies in by_way.items()}
        for name, by_way in replayed.items()
    }
    write_atomic(RESULTS / "makespan.json", json.dumps(content) + "\n")
    save_table(RESULTS / "makespan.md", table(costs, replayed))


if __name__ == "__main__":
    main()
