"""Folders that several tests of the data package read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.folders import write_concepts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images without captions."""
    root = write_concepts(tmp_path / "mona", {"": ["x"] * 2})
    for file in root.glob("*.txt"):
        file.unlink()
    return root
