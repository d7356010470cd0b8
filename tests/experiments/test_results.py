"""Results are written one case at a time and read back together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.common import results


def test_saved_results_are_read_back_and_hold_how_they_were_measured(tmp_path: Path) -> None:
    results.save_result(tmp_path, 110, {"rate": 0.5})
    results.save_result(tmp_path, 111, {"rate": 0.25})
    results.save_result(tmp_path, 110, {"rate": 0.75})
    assert results.load_results(tmp_path) == {"110": {"rate": 0.75}, "111": {"rate": 0.25}}
    assert {"command", "commit", "machine", "weights"} <= json.loads((tmp_path / "110.json").read_text("utf-8")).keys()


def test_results_of_other_weights_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.save_result(tmp_path, 110, {"rate": 0.5})
    monkeypatch.setattr(results, "weights_hash", lambda: "others")
    assert results.load_results(tmp_path) == {}
