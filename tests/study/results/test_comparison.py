"""The comparison of studies: wins are counted by study, and few studies leave wide intervals."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest

from autolora.cli import main
from autolora.evaluation.result import CheckpointResult
from autolora.study.results.comparison import TUNED, UNCHANGED, read_study, wins
from autolora.study.storage import study_storage

pytestmark = pytest.mark.slow  # trains, renders or loads many models


def point(score: float, step: int = 100, half: float = 0.02, **constraints: float) -> CheckpointResult:
    term = {"value": score, "low": score - half, "high": score + half}
    terms = dict.fromkeys(("fidelity", "likeness", "editability", "bleed_class"), term)
    below = 2.0 if any(value > 0 for value in constraints.values()) else 0.0
    return CheckpointResult(step, 0.1, 0.1, [0.9], score - below, term, terms=terms, constraints=constraints)


def write_study(folder: Path, trials: list[tuple[str, bool, CheckpointResult]]) -> Path:
    """The folder of a study with one checkpoint for each trial: (recipe, whether it is a baseline, the checkpoint)."""
    folder.mkdir(parents=True)
    study = optuna.create_study(storage=study_storage(folder), study_name="made-up", direction="maximize")
    study.set_user_attr("space", {"dataset": folder.name, "base model": "abc"})
    optuna.create_study(storage=study_storage(folder), study_name="made-up/finals")
    for number, (recipe, unchanged, result) in enumerate(trials):
        trial = study.ask()
        trial.set_user_attr("uid", f"{number:012x}")
        trial.set_user_attr("recipe", recipe)
        if unchanged:
            trial.set_user_attr("baseline", recipe)
        path = folder / "trials" / f"{number:012x}"
        path.mkdir(parents=True)
        (path / "curve.json").write_text(json.dumps([asdict(result)]))
        study.tell(trial, result.objective)
    return folder


def two_recipes(folder: Path, a: float, b: float, tuned: float) -> Path:
    return write_study(folder, [("a", True, point(a)), ("b", True, point(b)), ("b", False, point(tuned))])


def test_who_wins_unchanged_and_tuned(tmp_path: Path) -> None:
    folders = [two_recipes(tmp_path / f"{i}", 0.6, 0.4, 0.8 if i else 0.5) for i in range(4)]
    rows = [row for folder in folders for row in read_study(folder)]
    unchanged, tuned = wins(rows, UNCHANGED), wins(rows, TUNED)
    assert unchanged["a"][0].value == 1 and unchanged["b"][0].value == 0
    assert tuned["b"][0].value == 0.75 and tuned["b"][1] == 4
    assert list(tuned) == ["b", "a"]


def test_few_studies_and_near_scores_leave_wide_intervals(tmp_path: Path) -> None:
    two = [row for i in range(2) for row in read_study(two_recipes(tmp_path / f"{i}", 0.6, 0.4, 0.4))]
    assert wins(two, UNCHANGED)["a"][0].low < 0.2
    near = read_study(write_study(tmp_path / "near", [("a", True, point(0.51, half=0.2)), ("b", True, point(0.5))]))
    clear = read_study(write_study(tmp_path / "clear", [("a", True, point(0.9)), ("b", True, point(0.5))]))
    assert wins(near, UNCHANGED)["a"][0].low == 0.0
    assert wins(clear, UNCHANGED)["a"][0].low > 0.0


def test_a_checkpoint_that_breaks_a_limit_loses(tmp_path: Path) -> None:
    broken = point(0.9, bleed_class=0.1)
    rows = read_study(write_study(tmp_path / "one", [("a", True, broken), ("b", True, point(0.3))]))
    assert wins(rows, UNCHANGED)["b"][0].value == 1


def test_the_command_writes_csv_json_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(two_recipes(tmp_path / name, 0.6, 0.4, 0.8)) for name in ("mona", "zorak")]
    assert main(["compare", *folders, f"out={tmp_path / 'both'}"]) == 0
    assert "Who wins" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "both" / "comparison.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 8 and {row["dataset"] for row in rows} == {"mona", "zorak"}
    assert float(rows[0]["score_low"]) < float(rows[0]["score"]) < float(rows[0]["score_high"])
    content = json.loads((tmp_path / "both" / "comparison.json").read_text("utf-8"))
    assert len(content["entries"]) == 8
    assert "</html>" in (tmp_path / "both" / "index.html").read_text("utf-8")


def test_the_command_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(two_recipes(tmp_path / name, 0.6, 0.4, 0.8)) for name in ("mona", "zorak")]
    assert main(["compare", *folders, f"out={tmp_path / 'both'}", "json=true"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "result"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "elsewhere"], "holds no study"),
        (["nowhere", "elsewhere", "model=sd15"], "comparing studies takes"),
        (["nowhere", "elsewhere", "quiet=perhaps"], "quiet must be true or false"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) in (2, 5)
    assert words in capsys.readouterr().err


def test_a_study_without_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = two_recipes(tmp_path / "one", 0.6, 0.4, 0.8)
    empty = write_study(tmp_path / "empty", [])
    assert main(["compare", str(one), str(empty)]) == 5
    assert "no trial has a scored checkpoint" in capsys.readouterr().err
