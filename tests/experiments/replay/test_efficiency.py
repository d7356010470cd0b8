"""The replay of search methods: suggestions become recipes of the bank, and shown images are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import optuna
import pytest

from autolora.scoring.settings import ScoringSettings
from autolora.settings import StudySettings
from autolora.study.space import parse_space, suggest
from experiments.common.scores import Row
from experiments.replay.efficiency import at_random, autolora, distance, figures, nearest, plain_tpe, table
from experiments.replay.replayed_bank import Bank, BankRecipe
from tests.experiments.replay.test_score_validity import row

SPACE = parse_space({"a": {"lr": {"log": [1e-4, 1e-2]}, "dim": {"choice": [8, 16]}}, "b": {"lr": {"linear": [0, 1]}}})


def bank_recipe(number: int, params: dict[str, object], likeness: float) -> BankRecipe:
    trial = optuna.trial.FixedTrial(params)
    suggest(trial, SPACE)  # type: ignore[arg-type]
    rows = [
        {**row(number, likeness * part, objective=likeness * part), "step": f"{step}"}
        for part, step in ((0.5, 50), (1, 100))
    ]
    return BankRecipe(str(params["recipe"]), params, trial.distributions, rows)


def bank() -> Bank:
    pool = [
        bank_recipe(i, {"recipe": "a", "a/lr": lr, "a/dim": 8}, 0.2 + 0.1 * i)
        for i, lr in enumerate((1e-4, 1e-3, 1e-2))
    ]
    pool.append(bank_recipe(3, {"recipe": "b", "b/lr": 0.5}, 0.9))
    return Bank(pool, SPACE, [1.0], ScoringSettings(outfit_prompts=("hat", "glasses")), StudySettings("made-up", {}))


def test_a_suggestion_is_the_nearest_recipe_of_its_kind_that_is_left() -> None:
    study, pool = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), bank().pool
    for _ in range(20):
        study.enqueue_trial({"recipe": "a", "a/lr": 2e-4, "a/dim": 8})
        assert nearest(study, SPACE, pool) is pool[0]
    study.enqueue_trial({"recipe": "b", "b/lr": 0.1})
    assert nearest(study, SPACE, pool[:2]) in pool[:2]  # none of its kind is left
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.COMPLETE))


def test_every_key_counts_as_a_share_of_its_range() -> None:
    near, far = {"a/lr": 1e-3, "a/dim": 8}, {"a/lr": 1e-2, "a/dim": 16}
    assert distance(near, near, SPACE["a"], "a") == 0
    assert distance(near, far, SPACE["a"], "a") == pytest.approx(0.5 + 1)


@pytest.mark.parametrize("search", [at_random, plain_tpe])
def test_every_recipe_is_shown_once_and_the_best_is_picked_in_the_end(search: object) -> None:
    trace = list(search(bank(), 0))  # type: ignore[operator]
    assert [shown for shown, _ in trace] == [100, 200, 300, 400]
    assert trace[-1][1]["recipe"] == "3"
    assert trace == list(search(bank(), 0))  # type: ignore[operator]


def test_figures_are_shares_of_the_grids_images() -> None:
    made_up = bank()

    def slow(bank: Bank, seed: int) -> Iterator[tuple[int, Row]]:
        yield 50, bank.pool[0].rows[-1]
        yield 300, bank.pool[3].rows[-1]

    method_figures = figures(made_up, slow, [0], lambda count: None)
    assert method_figures["images"] == 400 and method_figures["reached"] == [0.75]
    assert 0 < method_figures["fifth"][0] < 0.5
    text = table({"5": dict.fromkeys(("autolora", "random", "TPE, last checkpoint"), method_figures)})
    assert "| random | 5 | 75% (75% to 75%) | 0% |" in text


def rung(bleed: float, fidelity: float) -> str:
    """Return what progressive evaluation sees of a checkpoint."""
    terms = {"fidelity": fidelity, "bleed_class": bleed}
    by_weight = {"1": {n: {"value": v, "low": v - 0.02, "high": v + 0.02} for n, v in terms.items()}}
    score = {"value": fidelity, "low": fidelity - 0.02, "high": fidelity + 0.02}
    return json.dumps({"score": score, "constraints": {"bleed_class": bleed + 0.02 - 0.15}, "by_weight": by_weight})


def test_an_overcooked_trial_is_counted_up_to_where_the_study_ends_it() -> None:
    made_up = bank()
    for entry in made_up.pool:
        bleed = 0.6 if entry.recipe == "b" else 0.0
        entry.rows[:] = [
            {
                **entry.rows[0],
                **{"step": f"{100 * k}", "train_loss": "0.1", "val_loss": "0.5", "val_losses": "[0.5]"},
                **{name: rung(bleed, 0.5 + 0.1 * k) for name in ("rung@1", "rung@0.7+1")},
                "objective": f"{-bleed + 0.1 * k}",
            }
            for k in (1, 2, 3)
        ]
    trace = list(autolora(made_up, 0))
    assert trace[0][0] == 300 and trace[1][0] - trace[0][0] == 200  # patience is 2 checkpoints
    assert [shown for shown, _ in trace] == [300, 500, 800, 1100]
    assert trace[-1][1]["step"] == "300" and trace[-1][1]["recipe"] != "3"
