"""How soon does a study find what the whole grid finds? Replayed from the bank.

    python -m experiments.replay.efficiency

Each search method takes a character's recipes from the bank until all are taken, and after every trial names its pick.
A suggestion of a sampler is taken as the nearest recipe that remains. Counted are the images shown until the pick
reaches 95% of the best checkpoint by the attribute classifier, as a share of the images of the whole grid.

- autolora: the baselines first, then the study's own sampler, pruner, progressive evaluation and stop of overcooked
  trials.
- random: recipes in random order, every checkpoint of each scored by the whole suite of prompts.
- TPE, last checkpoint: Optuna's TPE with its defaults; only the last checkpoint of each run is scored.

Writes experiments/results/efficiency/efficiency.md, and the figures of each character.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from autolora.evaluation.result import CheckpointResult
from autolora.progress import Bars
from autolora.study.lifecycle import make_sampler_and_pruner
from autolora.study.space import Range, Space, suggest
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, load_results, save_result, save_table, table_head, table_row
from experiments.common.scores import Row, share_of_pick
from experiments.replay.bank_rows import read_rows
from experiments.replay.multi_fidelity import evaluated, finalists
from experiments.replay.replayed_bank import Bank, BankRecipe, early_end, quiet_optuna, read_bank, trial_of

RESULTS = results.RESULTS / "efficiency"
SEEDS = 40
GOOD_SHARE = 0.95  # of the best checkpoint's score by the attribute classifier


Trace = Iterator[tuple[int, Row]]  # after each trial: images shown in all, and the pick
Method = Callable[[Bank, int], Trace]  # of a bank and a seed


def _objective(row: Row) -> float:
    return float(row["objective"])


def autolora(bank: Bank, seed: int) -> Trace:
    """Search as autolora does."""
    study = optuna.create_study(direction="maximize", **make_sampler_and_pruner(replace(bank.settings, seed=seed)))
    points: list[CheckpointResult] = []
    rows: list[Row] = []
    images, remaining = 0, list(bank.pool)
    baselines = bank.baselines
    while remaining:
        entry = baselines.pop(0) if baselines else nearest(study, bank.space, remaining)
        remaining.remove(entry)
        is_baseline = len(bank.pool) - len(remaining) <= len(bank.space)
        curve, state = trained_part(study, entry, bank, points, is_baseline)
        images += int(entry.rows[len(curve) - 1]["step"])
        points += curve
        rows += entry.rows[: len(curve)]
        best = max(p.objective for p in curve)
        study.add_trial(trial_of(entry, state, best, [p.objective for p in curve]))
        yield images, max((rows[i] for i in finalists(points, rows)), key=_objective)


def trained_part(
    study: optuna.Study, entry: BankRecipe, bank: Bank, seen: Sequence[CheckpointResult], is_baseline: bool
) -> tuple[list[CheckpointResult], TrialState]:
    """Return a recipe's results as far as the study would train it, and the state in which its trial ends."""
    curve: list[CheckpointResult] = []
    for row in entry.rows:
        curve.append(evaluated(row, curve, [*seen, *curve], bank.base_losses, bank.scoring)[0])
        if row is not entry.rows[-1] and (state := early_end(study, bank, entry, curve, is_baseline)):
            return curve, state
    return curve, TrialState.COMPLETE


def at_random(bank: Bank, seed: int) -> Trace:
    """Take recipes in random order; every checkpoint is scored by the whole suite."""
    images, rows = 0, list[Row]()
    for place in np.random.default_rng(seed).permutation(len(bank.pool)):
        entry = bank.pool[place]
        images += entry.images
        rows += entry.rows
        yield images, max(rows, key=_objective)


def plain_tpe(bank: Bank, seed: int) -> Trace:
    """Search by Optuna's TPE with its defaults, which sees the last checkpoints only."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    images, remaining, rows = 0, list(bank.pool), list[Row]()
    while remaining:
        entry = nearest(study, bank.space, remaining)
        remaining.remove(entry)
        images += entry.images
        rows.append(entry.rows[-1])
        study.add_trial(trial_of(entry, TrialState.COMPLETE, _objective(rows[-1]), []))
        yield images, max(rows, key=_objective)


METHODS: dict[str, Method] = {
    "autolora": autolora,
    "random": at_random,
    "TPE, last checkpoint": plain_tpe,
}


def nearest(study: optuna.Study, space: Space, remaining: Sequence[BankRecipe]) -> BankRecipe:
    """Return the remaining recipe that is nearest to the sampler's suggestion, of the same name if there is one."""
    suggestion = study.ask()
    recipe, _ = suggest(suggestion, space)
    params = dict(suggestion.params)
    study.tell(suggestion, state=TrialState.FAIL)  # the recipe that runs in its place is added as its own trial
    same = [entry for entry in remaining if entry.recipe == recipe]
    if not same:
        return remaining[0]
    return min(same, key=lambda entry: distance(params, entry.params, space[recipe], recipe))


def distance(a: Mapping[str, Any], b: Mapping[str, Any], ranges: Mapping[str, Range], recipe: str) -> float:
    """Return how far two settings of a recipe lie apart: the sum over its keys, each as a share of its range."""
    total = 0.0
    for key, key_range in ranges.items():
        x, y = a[f"{recipe}/{key}"], b[f"{recipe}/{key}"]
        if key_range.kind == "choice":
            total += float(x != y)
            continue
        low, high = (float(v) for v in key_range.values)  # type: ignore[arg-type]
        if key_range.kind.startswith("log"):
            x, y, low, high = (math.log(v) for v in (x, y, low, high))
        total += abs(x - y) / (high - low) if high > low else 0.0
    return total


def figures(bank: Bank, method: Method, seeds: Sequence[int], advance: Callable[[int], None]) -> dict[str, Any]:
    """Return the figures of a search method.

    Returns:
        `reached`, by seed the share of the grid's images until the pick is good enough (1: never); `fifth`, by seed the
        pick's share of the best at a fifth of the images; `images`, those of the whole grid.
    """
    rows = bank.rows
    grid_images = sum(entry.images for entry in bank.pool)
    values = {id(row): share_of_pick(rows, lambda other, row=row: float(other is row)) for row in rows}  # type: ignore[misc]
    reached, fifth = [], []
    for seed in seeds:
        trace = [(images / grid_images, values[id(pick)]) for images, pick in method(bank, seed)]
        reached.append(next((share for share, value in trace if value >= GOOD_SHARE), 1.0))
        fifth.append(next((value for share, value in reversed(trace) if share <= 0.2), 0.0))
        advance(1)
    return {"reached": reached, "fifth": fifth, "images": grid_images}


def table(characters: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line per search method and character, the mean over characters last."""
    lines = table_head(
        "search",
        "character",
        "images to 95% of the best, of the grid's: median (90% of seeds)",
        "seeds that need at most a fifth",
        "pick's score at a fifth of the images, of the best: median (90% of seeds)",
    )
    for name in METHODS:
        columns = []
        for character, by_method in characters.items():
            reached, fifth = (np.array(by_method[name][key]) for key in ("reached", "fifth"))
            in_time = float((reached <= 0.2).mean())
            columns.append((np.median(reached), in_time, np.median(fifth)))
            lines.append(
                table_row(name, character, median_and_range(reached), f"{in_time:.0%}", median_and_range(fifth))
            )
        means = np.mean(columns, axis=0)
        lines.append(table_row(f"**{name}**", "**mean**", *(f"**{mean:.0%}**" for mean in means)))
    return as_text(lines)


def median_and_range(values: np.ndarray[Any, Any]) -> str:
    """Return the median and the middle 90%."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.0%} ({low:.0%} to {high:.0%})"


def main() -> None:
    """Replay every character of the bank by every search method, and write the table."""
    argument_parser(__doc__).parse_args()
    quiet_optuna()
    banks = {name: read_bank(name, rows) for name, rows in read_rows().items()}
    with Bars() as bars:
        for name, bank in banks.items():
            with bars.task(f"character {name}", len(METHODS) * SEEDS) as advance:
                by_method = {way: figures(bank, method, range(SEEDS), advance) for way, method in METHODS.items()}
            save_result(RESULTS / "characters", name, {"recipes": len(bank.pool), **by_method})
    save_table(RESULTS / "efficiency.md", table(load_results(RESULTS / "characters")))


if __name__ == "__main__":
    main()
