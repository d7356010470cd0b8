"""An export takes its names when it is proved, and another kind's plain twin is scored: on the embedded world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autolora.adapters.read import read_metadata
from autolora.cli import main
from autolora.errors import ExportError
from autolora.study import export_best, proof
from tests.study.test_tune import SMALL

SETTINGS = [s for s in SMALL if not s.startswith(("study.", "budget."))]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A short run of LoHa."""
    tmp = tmp_path_factory.mktemp("loha")
    short = ["train.steps_per_concept=16", "train.epochs=1", "optimizer.lr=0.05", "adapter.dim=4"]
    return ["train", "recipe=guide-loha", "dataset=quickstart", f"out={tmp}", f"cache={tmp}", *SETTINGS, *short]


@pytest.fixture(scope="module")
def best(command: list[str]) -> Path:
    return Path(command[3].removeprefix("out=")) / "best"


def test_a_file_that_is_not_what_was_trained_is_not_exported(
    command: list[str], best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*given: Any) -> None:
        exported, twin = given[2:4]
        assert exported.path.is_file() and twin.path.is_file()
        raise ExportError(f"{exported.path}: a layer differs")

    best.mkdir()
    (best / "mine.txt").write_text("stays")
    monkeypatch.setattr(proof, "prove", wrong)
    assert main(command) == 6
    assert f"{best}/banin.safetensors: a layer differs; nothing was exported" in capsys.readouterr().err
    assert [path.name for path in best.iterdir()] == ["mine.txt"]


def test_its_plain_twin_is_scored(
    command: list[str], best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a rank too small to be the same; after what an earlier export left, which was killed."""
    monkeypatch.setattr(export_best, "TWIN_DIMS", (1,))
    for name in (".new-x1/banin.safetensors", ".banin-x1.safetensors"):
        (best / name).parent.mkdir(exist_ok=True)
        (best / name).write_bytes(b"half")
    assert main(command) == 0
    assert not [path for path in best.iterdir() if path.name.startswith(".")]
    found = json.loads((best.parent / "score.json").read_text("utf-8"))
    twin = found["plain"]
    assert sorted(path.name for path in best.glob("*.safetensors")) == ["banin-lora.safetensors", "banin.safetensors"]
    assert twin["path"] == str(best / "banin-lora.safetensors") and 0 < twin["distance"] < 1
    assert read_metadata(Path(twin["path"]))["autolora.twin_distance"] == f"{twin['distance']:.4f}"
    assert twin["score"]["value"] != pytest.approx(found["score"]["value"], abs=0.001)
    assert twin["score"]["low"] <= twin["score"]["value"] <= twin["score"]["high"]
    said = capsys.readouterr().out
    assert f"{twin['distance']:.1%} off, score {twin['score']['value']:.3f})" in said
