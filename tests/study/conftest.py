"""A finished study, shared by all tests of studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolora.cli import main
from tests.study.search.test_tune import tune


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study that ran to its end: its command line is `tune(finished)`."""
    folder = tmp_path_factory.mktemp("study")
    assert main(tune(folder)) == 0
    return folder
