"""Every experiment can be imported and prints its help; the experiments themselves are run by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
EXPERIMENTS = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "def main(" in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_prints_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert module.__doc__ and module.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_docstring_shows_the_command(name: str) -> None:
    assert f"python -m {name}" in (importlib.import_module(name).__doc__ or "")


def test_the_readme_names_every_experiment() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert [name for name in EXPERIMENTS if f"`python -m {name}" not in readme] == []
