"""Caption files as people have them: marks of editors, other encodings, double endings, and captions of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolora.data.layouts.folders import list_folder
from autolora.data.layouts.metadata_files import list_metadata
from autolora.errors import DatasetError

CAPTION = "mona, 1girl, smile"


def images(folder: Path, *names: str, caption: str = CAPTION) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()  # listing decodes nothing
        if caption:
            (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "raw", ["\ufeff\ufeffmona, 1girl, smile", "mona, \ufeff1girl, smile", "mona, 1girl\ufeff\nsmile"]
)
def test_byte_order_marks_are_no_part_of_a_tag(raw: str, tmp_path: Path) -> None:
    folder = images(tmp_path / "mona", "a.png", caption=raw)
    assert [entry.caption for entry in list_folder(folder).entries] == [CAPTION]


@pytest.mark.parametrize("raw", [bytes(40), CAPTION.encode("utf-16-le"), CAPTION.encode("utf-16"), b"caf\xe9"])
def test_what_is_no_utf_8_text_is_refused(raw: bytes, tmp_path: Path) -> None:
    folder = images(tmp_path / "mona", "a.png")
    (folder / "a.txt").write_bytes(raw)
    (entry,) = list_folder(folder).entries
    assert "a.txt" in entry.problem and "save it as UTF-8" in entry.problem


def test_a_nul_in_metadata_is_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "mona", "a.png", caption="")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "mona\\u0000"}\n')
    try:
        problems = [entry.problem for entry in list_metadata(folder / "metadata.jsonl").entries]
    except DatasetError as error:
        problems = [str(error)]
    assert "holds a NUL character" in problems[0]


def test_a_caption_named_after_the_whole_file_is_read(tmp_path: Path) -> None:
    folder = images(tmp_path / "10_mona dress", "a.png", "b.PNG", caption="")
    for name in ("a.png.txt", "b.PNG.txt"):
        (folder / name).write_text(CAPTION)
    listing = list_folder(tmp_path)
    assert [entry.caption for entry in listing.entries] == [CAPTION] * 2 and not listing.notes


def test_two_captions_that_differ_are_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "mona", "a.png")
    (folder / "a.png.txt").write_text("zorak")
    (entry,) = list_folder(folder).entries
    assert "a.txt and a.png.txt hold different captions" in entry.problem


def test_jfif_files_are_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "mona", "a.png", "b.jfif", "c.JFIF")
    assert [entry.path.name for entry in list_folder(folder).entries] == ["a.png", "b.jfif", "c.JFIF"]


def test_captions_without_an_image_are_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "mona", "a.png", "b.gif")
    (folder / "lost.txt").write_text(CAPTION)
    (folder / "away.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "away.txt").write_text(CAPTION)
    (note,) = list_folder(folder).notes
    assert note.endswith("captions without an image: away.txt, lost.txt")


@pytest.mark.parametrize("below", ["sub", "sub/deep"])
def test_images_below_a_class_folder_are_named(below: str, tmp_path: Path) -> None:
    images(tmp_path / "10_mona dress", "a.png")
    images(tmp_path / "10_mona dress" / below, "b.png")
    images(tmp_path / "10_mona dress" / "masks", "a.png", caption="")
    images(tmp_path / "10_mona dress" / "_left out", "c.png")
    (note,) = list_folder(tmp_path).notes
    assert note.endswith("images in folders below are not read: sub")


def test_images_deep_below_a_plain_folder_are_refused(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    images(tmp_path / "a" / "deep", "b.png")
    assert "a: a folder of images without a number" in list_folder(tmp_path).problems[0]
