"""YAML files of one's own as editors write them: byte order marks and other encodings."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolora import config
from autolora.errors import ConfigError

STUDY = "# @package _global_\nstudy: {name: café, recipes: {doll-adamw: {}}}\n"
RECIPE = "# @package _global_\nrecipe_name: café\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_study_of_an_editor_on_windows_is_read(encoding: str, tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_bytes(STUDY.replace("\n", "\r\n").encode(encoding))
    assert config.compose("tune", [], str(study)).study.name == "café"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_a_study_in_another_encoding_is_refused_by_its_name(encoding: str, tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_bytes(STUDY.encode(encoding))
    with pytest.raises(ConfigError, match=r"mine\.yaml is not UTF-8 text: save|this is no YAML: .*mine\.yaml"):
        config.compose("tune", [], str(study))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_a_recipe_in_another_encoding_is_refused_by_its_name(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_bytes(RECIPE.encode(encoding))
    with pytest.raises(ConfigError, match=r"mine\.yaml (is not UTF-8 text|begins with a byte order mark)"):
        config.compose("train", ["recipe=mine"])
