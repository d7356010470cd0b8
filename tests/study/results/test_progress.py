"""The progress of a running study: on a terminal, in a log, for a script and on its page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from rich.console import Console

from autolora.commands.output import Output
from autolora.config import compose
from autolora.errors import ConfigError
from autolora.progress import Bars
from autolora.settings import Budget, StudySettings, build_settings
from autolora.study.budget import WORKED, StudyClock
from autolora.study.definition import StudyDefinition
from autolora.study.results.facts import save_facts
from autolora.study.results.progress import study_progress
from autolora.study.results.report_data import REFRESH_SECONDS, write_study_report
from autolora.study.running import RunningStudy
from autolora.study.storage import study_storage
from tests.study.results.test_comparison import point, write_study


def opened(
    tmp_path: Path, trials: list[tuple[str, bool, Any]], minutes: float | None = None
) -> tuple[StudyDefinition, optuna.Study]:
    """The definition of a study of 10 trials, and its trials so far, each of which took 30 seconds."""
    folder = write_study(tmp_path / "run", trials)
    study = optuna.load_study(study_name="made-up", storage=study_storage(folder))
    study.set_user_attr("training_seconds", 30.0 * len(trials))
    settings = StudySettings("made-up", {"a": {}}, Budget(10, minutes))
    return StudyDefinition(settings, {}, folder, "mine", ("json=true",)), study


TRIALS = [("a", True, point(0.9, bleed_class=0.1)), ("a", False, point(0.4, 300)), ("a", False, point(0.3))]


def test_the_best_breaks_nothing_and_time_is_left(tmp_path: Path) -> None:
    now = study_progress(*opened(tmp_path, TRIALS))
    assert (now.trial, now.step, now.ended, now.breaks) == (1, 300, 3, ())
    assert now.seconds_left == pytest.approx(7 * 30)
    line = now.line()
    assert (
        "3 of 10 trials, 3 min 30 s of search left; best trial 1 (a) after 300 images: score 0.40 (0.38 to 0.42)"
        in line
    )


def test_minutes_end_a_study_sooner(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS, minutes=3)
    search_seconds, trial = 60 * definition.settings.search_minutes, study.ask()
    trial.set_user_attr(WORKED, [[0.0, 100.0]])
    assert study_progress(definition, study).seconds_left == pytest.approx(search_seconds - 100)
    trial.set_user_attr(WORKED, [[0.0, search_seconds + 1]])
    assert study_progress(definition, study).seconds_left == 0


def test_before_the_first_checkpoint(tmp_path: Path) -> None:
    now = study_progress(*opened(tmp_path, []))
    assert now.seconds_left is None and "no checkpoint is scored yet" in now.line()
    Console(file=open("/dev/null", "w")).print(now.table())  # noqa: SIM115


def test_a_log_gets_one_line_and_quiet_none(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars, bars.task("working", 3) as advance:
        advance(1)
        bars.show("a table", "word " * 60)
        bars.show("a table")
    assert capsys.readouterr().err.splitlines() == ["word " * 60]
    with Bars(quiet=True) as bars:
        bars.log("nothing")
        bars.show("a table", "nothing")
    assert capsys.readouterr().err == ""


def test_a_script_gets_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    output.event("trial", study_progress(*opened(tmp_path, TRIALS)).as_dict())
    output.last("words for a person", {"path": tmp_path})
    trial, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert trial["event"] == "trial" and trial["trial"] == 1 and trial["bleed"]["value"] == 0.4
    assert result == {"event": "result", "path": str(tmp_path)}
    Output().event("trial", {})
    Output().last("words for a person", {})
    assert capsys.readouterr().out == "words for a person\n"


def test_quiet_must_be_true_or_false() -> None:
    with pytest.raises(ConfigError, match="quiet must be true or false, got 3"):
        build_settings(compose("train", ["quiet=3"]))


def test_the_page_of_a_running_study_looks_for_news(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    dataset = SimpleNamespace(name="mona", trigger="mona", concepts=(), class_word="1girl")
    context = SimpleNamespace(dataset=dataset, model=SimpleNamespace(name="base"))
    session: Any = SimpleNamespace(context=context, scoring=SimpleNamespace(max_bleed=0.15))
    save_facts(RunningStudy(definition, study, session, Bars(quiet=True), StudyClock(study, definition.settings, 0.0)))
    page = write_study_report(definition, study, running=True).read_text("utf-8")
    assert f'http-equiv="refresh" content="{REFRESH_SECONDS}"' in page
    assert "3 trials" in page
    assert "autolora tune mine</code>" in page
