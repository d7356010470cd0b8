"""A study has a LoRA from its first scored checkpoint on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from autolora.adapters.read import read_metadata
from autolora.cli import main
from autolora.errors import ExportError
from autolora.study.search import best_so_far, trial_runner
from autolora.study.search.best_so_far import is_best_so_far
from tests.study.search.test_tune import SHORT_FINALS, tune


def study_with(*trials: list[float], end: bool = False) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for values in trials:
        trial = study.ask()
        for step, value in enumerate(values, 1):
            trial.report(value, step)
        if end:
            study.tell(trial, max(values))
    return study


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize(("objective", "best"), [(0.4, False), (0.5, False), (0.6, True)])
def test_the_best_is_above_all_others(objective: float, best: bool, end: bool) -> None:
    assert is_best_so_far(study_with([0.1, 0.5], [0.3], end=end), objective) is best


def test_the_first_checkpoint_is_the_best() -> None:
    assert is_best_so_far(study_with(), -1.0)


def test_a_file_that_is_wrong_does_not_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> Path:
        raise ExportError("a.safetensors: a layer differs")

    monkeypatch.setattr(best_so_far, "export_best_so_far", wrong)
    logged: list[str] = []
    running: Any = SimpleNamespace(
        definition=SimpleNamespace(settings=SimpleNamespace(name="small"), folder=Path()),
        study=study_with(),
        session=SimpleNamespace(context=SimpleNamespace(dataset=None, model=None), export=SimpleNamespace(dtype="")),
        bars=SimpleNamespace(log=logged.append),
    )
    result: Any = SimpleNamespace(diverged=False, objective=0.5)
    best_so_far.keep_if_best(running, None, result)  # type: ignore[arg-type]
    assert logged == ["the best LoRA so far is not exported: a.safetensors: a layer differs"]


@pytest.mark.slow
def test_a_stopped_study_has_its_best_lora(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is stopped in its second trial; `export` and the same command write the same file again."""
    scored: list[str] = []
    publish = trial_runner.keep_if_best

    def stop_later(running: object, folder: object, result: object) -> None:
        publish(running, folder, result)  # type: ignore[arg-type]
        scored.append("")
        if len(scored) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trial_runner, "keep_if_best", stop_later)
    command = tune(tmp_path, "budget.n_trials=2", *SHORT_FINALS, cache=finished)
    assert main(command) == 130
    monkeypatch.undo()
    capsys.readouterr()
    best = tmp_path / "run" / "best"
    assert {path.name for path in best.iterdir()} == {"banin.safetensors", "banin.json", "banin.png"}
    results = [
        entry
        for path in (tmp_path / "run" / "trials").glob("*/curve.json")
        for entry in json.loads(path.read_text("utf-8"))
    ]
    top = max(results, key=lambda entry: entry["objective"])
    lora = best / "banin.safetensors"
    made = read_metadata(lora)
    assert (
        made["autolora.checkpoint"] == f"{top['step']} images" and "unfinished study" in made["modelspec.description"]
    )
    whole = lora.read_bytes()
    lora.unlink()
    assert main(["export", *command[1:]]) == 0
    assert f"LoRA: {lora}" in capsys.readouterr().out
    assert read_metadata(lora)["sshs_model_hash"] == made["sshs_model_hash"] and len(lora.read_bytes()) == len(whole)
