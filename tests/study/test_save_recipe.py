"""What won a study becomes a recipe that later studies and runs take by its name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.settings import build_run
from autolora.study.definition import StudyDefinition
from autolora.study.lifecycle import load_started_study
from autolora.study.recipes import save_recipe
from autolora.study.space import sampled_values
from autolora.study.trials import WINNER
from tests.study.results.test_comparison import point
from tests.study.test_warm_start import ADAMW, near, planned, run, start


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StudyDefinition, optuna.Study]:
    """A study whose third trial was exported."""
    monkeypatch.chdir(tmp_path)
    definition = planned(tmp_path / "run", ADAMW, "train.epochs=3")
    run(start(definition)[0], definition, near(2e-4), trials=3)
    study = load_started_study(definition, print)
    study.set_user_attr(WINNER, 2)
    curve = tmp_path / "run" / "trials" / "uid2" / "curve.json"
    curve.parent.mkdir(parents=True)
    curve.write_text(json.dumps([asdict(replace(point(0.7), verdict="good"))]))
    return definition, study


def test_a_later_study_takes_it_by_its_name(ended: tuple[StudyDefinition, optuna.Study], tmp_path: Path) -> None:
    definition, study = ended
    path = save_recipe(definition, study, "mona-best")
    assert path == Path("conf/recipe/mona-best.yaml")
    assert "trial 2 of study mona (doll, tiny), after 100 images, by its search score 0.700" in path.read_text("utf-8")
    then = replace(definition.run(*sampled_values(study.trials[2])), name="mona-best")
    assert build_run(cfg.compose("train", ["recipe=mona-best"])) == then
    later = planned(tmp_path / "later", "mona-best: {adapter.dim: {choice: [8, 16]}}")
    assert later.run("mona-best", {}) == then
    assert save_recipe(definition, study, "mona-best") == path  # the same once more


def test_no_other_recipe_is_overwritten(ended: tuple[StudyDefinition, optuna.Study]) -> None:
    definition, study = ended
    for name, message in (
        ("doll-adamw", "there is another recipe of this name"),
        ("a/b", "cannot be the name of a recipe"),
    ):
        with pytest.raises(ConfigError, match=message):
            save_recipe(definition, study, name)
    save_recipe(definition, study, "mine")
    study.set_user_attr(WINNER, 0)
    (definition.folder / "trials" / "uid2").rename(definition.folder / "trials" / "uid0")
    with pytest.raises(ConfigError, match="another recipe"):
        save_recipe(definition, study, "mine")


def test_a_study_that_has_not_ended_has_none(tmp_path: Path) -> None:
    definition = planned(tmp_path / "run", ADAMW)
    with pytest.raises(StudyError, match="has exported nothing yet"):
        save_recipe(definition, start(definition)[0], "mine")
