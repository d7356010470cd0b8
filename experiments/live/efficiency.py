"""Does a live study find what the whole grid finds? Confirms replay/efficiency.py on characters of its own, or not.

    python -m experiments.replay.bank fill --seeds 172 177
    python -m experiments.replay.bank measure --seeds 172 177
    python -m experiments.live.efficiency --seeds 172 177

The study draws from the bank's ranges and starts no trial after a fifth of the images that the character's bank was
shown. Its pick after each trial, and its export, are compared with the bank's best checkpoint by the attribute
classifier's score. The bank's own figures choose that checkpoint, and all are rendered again with other seeds, so that
luck in the choice is not counted as merit. The bank's checkpoints must still be where they were filled in. Intervals
draw each rate again from a binomial distribution. Writes experiments/results/efficiency/live.md, of all characters
judged so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.errors import StudyError
from autolora.study.budget import STEP
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.trials import load_trials
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.judge import judge_lora
from experiments.common.results import as_text, load_results, save_result, save_table, table_head, table_row
from experiments.common.scores import WEIGHTS, classifier_score
from experiments.common.seeds import LIVE_EFFICIENCY_RENDERS, ensure_dataset, refuse_development_seed
from experiments.common.training import packaged_model, settings_of, tune
from experiments.replay.bank_rows import SPACE, rows_of
from experiments.replay.bank_session import overrides_of
from experiments.replay.efficiency import GOOD_SHARE
from experiments.replay.score_validity import DRAWS

FIFTH = 0.2
RATES = ("likeness", "accuracy", "bleed")
RESULTS = results.RESULTS / "efficiency"
Figures = Mapping[str, Any]


def picks(overrides: tuple[str, ...]) -> Iterator[tuple[int, State]]:
    """Yield the images shown in all and the pick after each trial that made it a better one."""
    definition = define_study(settings_of(*overrides, study=SPACE))
    study = load_started_study(definition, print)
    best: float | None = None
    images = 0
    trials = load_trials(definition, study, print)
    trials.sort(key=lambda pair: pair[0].datetime_complete)  # type: ignore[arg-type, return-value]
    for trial, trial_folder in trials:
        images += trial.user_attrs[STEP]
        result = trial_folder.best_result()
        if result is not None and (best is None or result.objective > best):
            best = result.objective
            yield images, trial_folder.load(result)


def judge_character(seed: int, out: Path, renders: int) -> dict[str, Any]:
    """Run the study of a character and judge its picks.

    Raises:
        StudyError: the character has no bank yet, or its study failed.
    """
    refuse_development_seed(seed)
    rows = rows_of(seed)
    if not rows:
        raise StudyError(
            f"character {seed} has no bank: run python -m experiments.replay.bank fill and measure --seeds {seed} first"
        )
    images = sum({row["number"]: int(row["step"]) for row in rows}.values())  # the last row of each recipe counts
    ensure_dataset(out / str(seed) / "pictures", seed)
    limits = ("budget.minutes=null", "budget.n_trials=48", f"budget.max_images={int(FIFTH * images)}")
    folder, overrides = out / f"live-{seed}", (*overrides_of(seed, out), *limits)
    result = tune(SPACE, folder, *overrides)
    model = packaged_model()

    def figures(state: State) -> Figures:
        return judge_lora(state, seed, model, renders, search_steps=True, first_seed=LIVE_EFFICIENCY_RENDERS)[0]

    top = max(rows, key=classifier_score)
    best = figures(load_file(out / str(seed) / f"{int(top['number']):02d}" / f"{top['step']}.safetensors"))
    after_trials = picks((f"out={folder}", *overrides))
    trace = [(count / images, share(figures(state), best, renders)) for count, state in after_trials]
    exported = share(figures(read_lora(Path(result["export"]), model)), best, renders)
    facts = {"recipes": len({row["number"] for row in rows}), "images": images, "trials": result["trials"]}
    return facts | {"trace": trace, "export": exported, "best": result["best"]["recipe"]}


def share(figures: Figures, best: Figures, renders: int) -> tuple[float, float, float]:
    """Return a LoRA's score as a share of the best one's, with the ends of its 95% interval.

    Args:
        figures: of the LoRA.
        best: of the best one.
        renders: the number of renders per rate.
    """
    generator = np.random.default_rng(0)

    def drawn(rates: Figures) -> float:
        names = [f"oracle_{rate}@{weight}" for rate in RATES for weight in WEIGHTS]
        return classifier_score({name: generator.binomial(renders, rates[name]) / renders for name in names})

    low, high = np.quantile([drawn(figures) / drawn(best) for _ in range(DRAWS)], [0.025, 0.975])
    return classifier_score(figures) / classifier_score(best), float(low), float(high)


def table(characters: Mapping[str, Figures]) -> str:
    """Return one line per character."""
    lines = table_head(
        "character",
        "recipes in its bank",
        "trials",
        "images to 95% of the best, of the bank's",
        "last pick's score, of the best",
        "export's score, of the best",
    )
    for name, facts in characters.items():
        reached = next(
            (f"{images:.0%}" for images, (value, *_) in facts["trace"] if value >= GOOD_SHARE), "not reached"
        )
        compared = (facts["trace"][-1][1], facts["export"])
        shares = [f"{value:.0%} ({low:.0%} to {high:.0%})" for value, low, high in compared]
        lines.append(table_row(name, facts["recipes"], sum(facts["trials"].values()), reached, *shares))
    return as_text(lines)


def main() -> None:
    """Judge every character that has not been judged yet, and write the table."""
    parser = argument_parser(__doc__, seeds=(172, 177), out="runs/bank")
    parser.add_argument("--renders", type=int, default=128, help="renders per rate and LoRA weight")
    args = parser.parse_args()
    for seed in args.seeds:
        if str(seed) not in load_results(RESULTS / "live"):
            save_result(RESULTS / "live", seed, judge_character(seed, args.out, args.renders))
    save_table(RESULTS / "live.md", table(load_results(RESULTS / "live")))


if __name__ == "__main__":
    main()
