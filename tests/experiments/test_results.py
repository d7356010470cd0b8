"""Results that grow a character at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.common import results as kept


def test_what_is_kept_comes_back_with_how_it_was_found(tmp_path: Path) -> None:
    kept.keep(tmp_path, 110, {"rate": 0.5})
    kept.keep(tmp_path, 111, {"rate": 0.25})
    kept.keep(tmp_path, 110, {"rate": 0.75})
    assert kept.kept(tmp_path) == {"110": {"rate": 0.75}, "111": {"rate": 0.25}}
    assert {"command", "commit", "machine", "weights"} <= json.loads((tmp_path / "110.json").read_text("utf-8")).keys()


def test_figures_of_other_weights_do_not_mix_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep(tmp_path, 110, {"rate": 0.5})
    monkeypatch.setattr(kept, "weights_hash", lambda: "others")
    assert kept.kept(tmp_path) == {}
