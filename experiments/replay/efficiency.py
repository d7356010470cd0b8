"""How soon does the study find what the whole grid finds? Replayed from the bank.

    python -m experiments.replay.efficiency

Each way of searching works off a character's recipes from the bank until none is left, and after every trial names its
pick. A suggestion of a sampler is taken as the nearest recipe that is left. Counted are the images shown until the
pick reaches 95% of the best checkpoint there was, by the oracle, as a share of those of the whole grid.

- autolora: recipes as they are, then the study's own sampler, pruner, ladder and end of what overcooks.
- random: recipes in random order, every checkpoint of each scored by the whole suite.
- TPE, last checkpoint: Optuna's TPE as it comes; only the end of each run is scored.

Writes experiments/results/efficiency/efficiency.md, and the figures of each character.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from autolora import config as cfg
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.scoring.settings import ScoringSettings
from autolora.study.lifecycle import make_sampler_and_pruner
from autolora.study.settings import StudySettings, study_settings
from autolora.study.space import Range, Space, parse_space, suggest
from autolora.train.run import Run
from experiments.common.results import keep, kept
from experiments.replay.bank import SPACE
from experiments.replay.multi_fidelity import evaluated, finalists
from experiments.replay.score_validity import BANK, Row, picked, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "efficiency"
SEEDS = 40
ENOUGH = 0.95  # of the oracle's score of the best there was


@dataclass(frozen=True)
class Baked:
    """A recipe of the bank: its values, by `recipe/key` and as distributions of the space, and its rows by step."""

    recipe: str
    params: dict[str, Any]
    distributions: dict[str, optuna.distributions.BaseDistribution]
    rows: list[Row]


@dataclass(frozen=True)
class Bank:
    """A character's recipes and what the ladder must know of it."""

    pool: list[Baked]
    space: Space
    base_losses: Sequence[float]
    scoring: ScoringSettings
    settings: StudySettings

    @property
    def rows(self) -> list[Row]:
        """All checkpoints."""
        return [row for one in self.pool for row in one.rows]

    @property
    def unchanged(self) -> list[Baked]:
        """The recipes as they are, which come first."""
        return [next(one for one in self.pool if one.recipe == recipe) for recipe in self.space]


Found = Iterator[tuple[int, Row]]  # after each trial: images shown in all, and the pick


def autolora(bank: Bank, seed: int) -> Found:
    """The study as autolora runs it."""
    study = optuna.create_study(direction="maximize", **make_sampler_and_pruner(replace(bank.settings, seed=seed)))
    points: list[CheckpointResult] = []
    rows: list[Row] = []
    shown, left = 0, list(bank.pool)
    baselines = bank.unchanged
    while left:
        baked = baselines.pop(0) if baselines else nearest(study, bank.space, left)
        left.remove(baked)
        unchanged = len(bank.pool) - len(left) <= len(bank.space)
        curve, state = watched(study, baked, bank, points, unchanged)
        shown += int(baked.rows[len(curve) - 1]["step"])
        points += curve
        rows += baked.rows[: len(curve)]
        best = max(p.objective for p in curve)
        study.add_trial(trial_of(baked, state, best, [p.objective for p in curve]))
        yield shown, max((rows[i] for i in finalists(points, rows)), key=lambda row: float(row["objective"]))


def watched(
    study: optuna.Study, baked: Baked, bank: Bank, seen: Sequence[CheckpointResult], unchanged: bool
) -> tuple[list[CheckpointResult], TrialState]:
    """A recipe's checkpoints as far as the study would train it, and how its trial ends."""
    curve: list[CheckpointResult] = []
    for row in baked.rows:
        curve.append(evaluated(row, curve, [*seen, *curve], bank.base_losses, bank.scoring)[0])
        if row is not baked.rows[-1] and (state := ending(study, bank, baked, curve, unchanged)):
            return curve, state
    return curve, TrialState.COMPLETE


def ending(
    study: optuna.Study, bank: Bank, baked: Baked, curve: list[CheckpointResult], unchanged: bool
) -> TrialState | None:
    """How a trial ends at this checkpoint, if it does; unchanged recipes are never pruned."""
    if TrialFolder(Path(), Run(baked.recipe), curve).should_stop_overcooked(bank.settings.patience):
        return TrialState.COMPLETE
    best_so_far = np.maximum.accumulate([p.objective for p in curve])
    running = trial_of(baked, TrialState.RUNNING, None, list(best_so_far))
    return TrialState.PRUNED if not unchanged and study.pruner.prune(study, running) else None


def at_random(bank: Bank, seed: int) -> Found:
    """Recipes in random order, every checkpoint scored by the whole suite."""
    shown, rows = 0, list[Row]()
    for place in np.random.default_rng(seed).permutation(len(bank.pool)):
        baked = bank.pool[place]
        shown += int(baked.rows[-1]["step"])
        rows += baked.rows
        yield shown, max(rows, key=lambda row: float(row["objective"]))


def plain_tpe(bank: Bank, seed: int) -> Found:
    """TPE as Optuna has it, told of the last checkpoints only."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    shown, left, rows = 0, list(bank.pool), list[Row]()
    while left:
        baked = nearest(study, bank.space, left)
        left.remove(baked)
        shown += int(baked.rows[-1]["step"])
        rows.append(baked.rows[-1])
        study.add_trial(trial_of(baked, TrialState.COMPLETE, float(rows[-1]["objective"]), []))
        yield shown, max(rows, key=lambda row: float(row["objective"]))


METHODS: dict[str, Callable[[Bank, int], Found]] = {
    "autolora": autolora,
    "random": at_random,
    "TPE, last checkpoint": plain_tpe,
}


def nearest(study: optuna.Study, space: Space, left: Sequence[Baked]) -> Baked:
    """The recipe that is left and nearest to what the sampler suggests: of the same kind, if there is one."""
    asked = study.ask()
    recipe, _ = suggest(asked, space)
    params = dict(asked.params)
    study.tell(asked, state=TrialState.FAIL)  # what is run in its place is added as a trial of its own
    same = [one for one in left if one.recipe == recipe]
    return min(same or left, key=lambda one: apart(params, one.params, space[recipe], recipe) if same else 0.0)


def apart(a: Mapping[str, Any], b: Mapping[str, Any], ranges: Mapping[str, Range], recipe: str) -> float:
    """How far two settings of a recipe lie apart: keys count alike, each as a share of its range."""
    total = 0.0
    for key, own in ranges.items():
        x, y = a[f"{recipe}/{key}"], b[f"{recipe}/{key}"]
        if own.kind == "choice":
            total += float(x != y)
            continue
        low, high = (float(v) for v in own.values)  # type: ignore[arg-type]
        if own.kind.startswith("log"):
            x, y, low, high = (math.log(v) for v in (x, y, low, high))
        total += abs(x - y) / (high - low) if high > low else 0.0
    return total


def trial_of(baked: Baked, state: TrialState, value: float | None, reported: Sequence[float]) -> FrozenTrial:
    """A recipe of the bank as a trial."""
    values = {number: float(v) for number, v in enumerate(reported, 1)}
    return create_trial(
        state=state,
        value=value if state is TrialState.COMPLETE else None,
        params=baked.params,
        distributions=baked.distributions,
        intermediate_values=values,
    )


def read_bank(name: str, rows: Sequence[Row]) -> Bank:
    """A character's bank, with the space that its recipes were drawn from."""
    config = cfg.compose("tune", [], SPACE)
    space, scoring = parse_space(study_settings(config).recipes), cfg.scoring_settings(config)
    facts = json.loads((BANK / f"{name}.json").read_text("utf-8"))
    by_number: dict[str, list[Row]] = {}
    for row in rows:
        by_number.setdefault(row["number"], []).append(row)
    pool = []
    for own in by_number.values():
        values = json.loads(own[0]["recipe"])
        recipe = values.pop("recipe")
        fixed = {"recipe": recipe, **{f"{recipe}/{key}": values[key] for key in space[recipe]}}
        drawn = optuna.trial.FixedTrial(fixed)
        suggest(drawn, space)  # type: ignore[arg-type]
        pool.append(Baked(recipe, fixed, drawn.distributions, own))
    return Bank(pool, space, facts["base_losses"], scoring, study_settings(config))


def figures(bank: Bank, method: Callable[[Bank, int], Found], seeds: Sequence[int], advance: Callable[[int], None]
            ) -> dict[str, Any]:  # fmt: skip
    """By seed: the share of the grid's images until the pick is good enough (1: never), and its value at a fifth."""
    rows = bank.rows
    whole = sum(int(one.rows[-1]["step"]) for one in bank.pool)
    values = {id(row): picked(rows, lambda other, row=row: float(other is row)) for row in rows}
    reached, fifth = [], []
    for seed in seeds:
        trace = [(shown / whole, values[id(pick)]) for shown, pick in method(bank, seed)]
        reached.append(next((share for share, value in trace if value >= ENOUGH), 1.0))
        fifth.append(next((value for share, value in reversed(trace) if share <= 0.2), 0.0))
        advance(1)
    return {"reached": reached, "fifth": fifth, "images": whole}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each way of searching and character, the mean over characters last."""
    lines = [
        "| search | character | images to 95% of the best, of the grid's: median (90% of seeds) | seeds that need at "
        "most a fifth | pick's value at a fifth of the images, of the best: median (90% of seeds) |",
        "|" + "---|" * 5,
    ]
    for name in METHODS:
        columns = []
        for character, one in found.items():
            reached, fifth = (np.array(one[name][key]) for key in ("reached", "fifth"))
            columns.append((np.median(reached), float((reached <= 0.2).mean()), np.median(fifth)))
            lines.append(f"| {name} | {character} | {spread(reached)} | {columns[-1][1]:.0%} | {spread(fifth)} |")
        means = np.mean(columns, axis=0)
        lines.append(f"| **{name}** | **mean** | **{means[0]:.0%}** | **{means[1]:.0%}** | **{means[2]:.0%}** |")
    return "\n".join(lines) + "\n"


def spread(values: np.ndarray[Any, Any]) -> str:
    """Median and the middle 90%."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.0%} ({low:.0%} to {high:.0%})"


def main() -> None:
    """Replay every character of the bank by every way of searching, and write the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    banks = {name: read_bank(name, rows) for name, rows in read_rows().items()}
    with Bars() as bars:
        for name, bank in banks.items():
            with bars.task(f"character {name}", len(METHODS) * SEEDS) as advance:
                found = {way: figures(bank, search, range(SEEDS), advance) for way, search in METHODS.items()}
            keep(RESULTS / "characters", name, {"recipes": len(bank.pool), **found})
    text = table(kept(RESULTS / "characters"))
    write_atomic(RESULTS / "efficiency.md", text)
    print(text)


if __name__ == "__main__":
    main()
