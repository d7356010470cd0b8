"""A small dataset for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolora.paperdoll.world import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset of one character in two outfits."""
    out = tmp_path_factory.mktemp("data") / "doll"
    write_dataset(out, seed=1, outfits=2, images_per_outfit=6, size=32)
    return out
