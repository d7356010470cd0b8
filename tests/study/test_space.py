"""Search spaces: what is read, what is refused, what is drawn."""

from __future__ import annotations

import optuna
import pytest

from autolora.errors import ConfigError
from autolora.study.space import as_text, difference, parse_range, parse_space, sampled_values, suggest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log": [1e-3, 1e-4]}, "low 0.001 is above high 0.0001"),
        ({"log": [0, 1]}, "must start above 0"),
        ({"int": [1, 2.5]}, "whole numbers"),
        ({"choice": []}, "needs a list"),
        ({"choice": [1, 1]}, "repeats"),
        ({"linear": [1]}, "two numbers"),
        ({"linear": ["a", 2]}, "two numbers"),
        ({"logg": [1, 2]}, "expected one of log"),
        ({"log": [1, 2], "int": [1, 2]}, "expected one of log"),
        (3, "expected one of log"),
    ],
)
def test_impossible_ranges_are_refused(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_range(given)


def test_all_mistakes_are_told_at_once() -> None:
    recipes = {"a": {"x": {"log": [2, 1]}}, "b": {"y": {"choice": []}}}
    with pytest.raises(ConfigError) as caught:
        parse_space(recipes)
    assert "study.recipes.a.x" in str(caught.value)
    assert "study.recipes.b.y" in str(caught.value)


def test_draws_stay_inside_and_are_named_by_recipe() -> None:
    space = parse_space(
        {
            "a": {"lr": {"log": [1e-4, 1e-2]}, "n": {"log_int": [2, 9]}},
            "b": {"lr": {"choice": [None, 0.5]}, "tags": {"choice": [[], ["smile", "^_^"]]}},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        recipe, values = suggest(trial, space)
        assert all(value in space[recipe][key] for key, value in values.items())
        assert all(name == "recipe" or name.startswith(f"{recipe}/") for name in trial.params)
        trial.set_user_attr("recipe", recipe)
        study.tell(trial, 0)
        assert sampled_values(study.trials[-1]) == (recipe, values)  # lists are stored as text


def test_difference_names_what_changed() -> None:
    old = as_text(parse_space({"a": {"x": {"log": [1, 2]}, "y": {"choice": [1]}}}))
    new = as_text(parse_space({"a": {"x": {"log": [1, 3]}, "z": {"choice": [1]}}}))
    lines = " ".join(difference(old, new))
    assert "a/x: was log: [1, 2], now log: [1, 3]" in lines
    assert "a/y: removed" in lines
    assert "a/z: added" in lines
    assert difference(old, old) == []
