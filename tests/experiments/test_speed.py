"""Benchmarks are run by hand; that they still fit the package is tested."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "speed"
BENCHMARKS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "loops"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_imports(name: str) -> None:
    assert callable(importlib.import_module(f"experiments.speed.{name}").main)
