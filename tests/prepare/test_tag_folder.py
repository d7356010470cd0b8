"""Which images get a caption, and where it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolora.errors import DatasetError
from autolora.prepare import tag_folder as module
from autolora.prepare.tag_folder import tag_folder, untagged
from autolora.prepare.tagger_base import Tagger, TaggerSettings, Tagging
from tests.data.folders import noise_image


@pytest.mark.parametrize(
    ("files", "bare"),
    [
        (["a.png", "b.jpg", "b.txt"], ["a.png"]),
        (["a.png", "a.TXT"], []),
        (["a.png", "a.png.txt"], []),
        (["a.png", "a.caption"], []),
        (["amélie.png", "ame\u0301lie.txt"], []),
        (["a.png", "a.jpg", "a.txt"], []),  # they share a caption already
    ],
)
def test_images_without_a_caption_are_found(files: list[str], bare: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert [path.name for path in untagged(tmp_path)] == bare


@pytest.mark.parametrize(
    "files",
    [["a.png", "a.jpg"], ["a.png", "a.jpg", "a.png.txt"], ["a.png", "A.jpg"], ["amélie.png", "ame\u0301lie.jpg"]],
)
def test_no_two_images_share_a_caption(files: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=r"another image of this name has the same caption .*\.txt: rename one"):
        untagged(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_the_longest_name_gets_a_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"{'x' * 251}.png"
    noise_image(0).save(path)
    monkeypatch.setattr(module, "tag_images", lambda *_: [Tagging((), None)])
    tagger: Tagger = None  # type: ignore[assignment]
    tag_folder(untagged(tmp_path), tagger, TaggerSettings(prefix=("smile",)))
    assert path.with_suffix(".txt").read_text() == "smile\n" and len(list(tmp_path.iterdir())) == 2
