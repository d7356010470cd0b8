"""Reading folders: supported layouts, and one clear line per problem."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autolora.data.sources import read_folder, read_source
from autolora.errors import DatasetError
from tests.data.folders import noise_image, write_concepts, write_zorak


def test_kohya_folders_are_read_in_a_fixed_order(tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "Zorak ünï (x=1, ~)", 3)
    pictures = read_folder(root)
    assert [p.concept for p in pictures] == ["zorak fit_a"] * 3 + ["zorak fit_b"] * 3
    assert [p.path.name for p in pictures] == ["000.png", "001.png", "002.png"] * 2
    first = pictures[0]
    assert first.caption == "1girl, zorak, fit_a, beach"
    assert (first.width, first.height) == (24, 24)
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_plain_folder_is_one_concept_and_every_image_kind_is_read(tmp_path: Path) -> None:
    root = tmp_path / "mona"
    root.mkdir()
    for i, suffix in enumerate(("png", "jpg", "JPEG", "webp", "bmp", "avif")):
        noise_image(i).save(root / f"{suffix}.{suffix}")
        (root / f"{suffix}.{'caption' if i % 2 else 'txt'}").write_text(f"mona, {suffix}")
    pictures = read_folder(root)
    assert {p.concept for p in pictures} == {"mona"}
    assert {p.caption for p in pictures} == {f"mona, {s}" for s in ("png", "jpg", "JPEG", "webp", "bmp", "avif")}


def test_other_files_are_ignored_and_captions_are_read_as_written(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"3_mona": ["a"] * 4})
    for junk in (
        "Thumbs.db",
        ".DS_Store",
        "._000.png",
        "3_mona/desktop.ini",
        "3_mona/._001.png",
        "3_mona/notes.txt",
    ):
        (root / junk).write_bytes(b"junk")
    write_concepts(root, {"_rejected": ["b"], ".hidden": ["b"], "empty": []})
    folder = root / "3_mona"
    (folder / "000.txt").write_bytes("\ufeff1girl,  café\\(x\\)  ".encode())
    (folder / "001.txt").write_bytes(b"1girl,\r\nmona\n\n, red hair\n")
    (folder / "002.caption").write_text(" a ,")  # the same caption as in its .txt
    captions = [p.caption for p in read_folder(root)]
    assert captions == ["1girl,  café\\(x\\)", "1girl, mona, red hair", "a", "a"]


def _no_caption(root: Path) -> None:
    (root / "3_mona" / "000.txt").unlink()


def _empty_caption(root: Path) -> None:
    (root / "3_mona" / "000.txt").write_text(" , \n")


def _latin1_caption(root: Path) -> None:
    (root / "3_mona" / "000.txt").write_bytes("café".encode("latin-1"))


def _two_captions(root: Path) -> None:
    (root / "3_mona" / "000.caption").write_text("something else")


def _truncated(root: Path) -> None:
    path = root / "3_mona" / "000.png"
    noise_image(0, (90, 90)).save(path)
    path.write_bytes(path.read_bytes()[:-900])


def _truncated_jpeg(root: Path) -> None:
    path = root / "3_mona" / "000.jpg"
    noise_image(0, (90, 90)).save(path)
    path.write_bytes(path.read_bytes()[:-900])


def _no_image(root: Path) -> None:
    (root / "3_mona" / "000.png").write_text("<html>404</html>")


def _zero_bytes(root: Path) -> None:
    (root / "3_mona" / "000.png").write_bytes(b"")


def _unread_kind(root: Path) -> None:
    (root / "3_mona" / "x.jxl").write_bytes(b"x")


def _empty_concept(root: Path) -> None:
    (root / "5_mona dress").mkdir()


def _nameless_concept(root: Path) -> None:
    write_concepts(root, {"5_": ["a"]})


def _number_forgotten(root: Path) -> None:
    write_concepts(root, {"dress": ["a"]})


def _loose(root: Path) -> None:
    noise_image(0).save(root / "loose.png")


def _no_repeats(root: Path) -> None:
    write_concepts(root, {"0_dress": ["a"]})


def _mask(root: Path, size: tuple[int, int] = (24, 24), name: str = "000.mask.png") -> None:
    (root / "3_mona" / "masks").mkdir(exist_ok=True)
    noise_image(0, size).save(root / "3_mona" / name)


def _two_masks(root: Path) -> None:
    _mask(root)
    _mask(root, name="masks/000.png")


def _mask_of_another_shape(root: Path) -> None:
    _mask(root, (48, 49))


def _no_mask(root: Path) -> None:
    (root / "3_mona" / "000-masklabel.png").write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_caption, "000.png: no caption: write its tags into 000.txt beside it"),
        (_empty_caption, "000.png: its caption 000.txt is empty: write its tags into it"),
        (_latin1_caption, "000.png: its caption 000.txt is not UTF-8 text: save it as UTF-8"),
        (_two_captions, "000.png: 000.txt and 000.caption hold different captions: keep one of them"),
        (_truncated, "000.png: broken (image file is truncated"),
        (_truncated_jpeg, "000.jpg: broken (image file is truncated"),
        (_no_image, "000.png: broken, or not an image: replace or remove it"),
        (_zero_bytes, "000.png: an empty file: replace or remove it"),
        (_unread_kind, "x.jxl: .jxl images are not supported: save it as .png"),
        (_empty_concept, "5_mona dress: no images: add captioned images or remove the folder"),
        (_nameless_concept, "5_: no class tokens after the number: rename it, for example to `5_mona`"),
        (_number_forgotten, "dress: a folder of images without a number"),
        (_loose, "loose.png: lies beside the concept folders: move it into one of them"),
        (_no_repeats, "0_dress: 0 repeats: rename it to `1_dress`, or to `_dress` to leave it out"),
        (_two_masks, f"000.png: 000.mask.png and {Path('masks/000.png')} are both its mask: keep one of them"),
        (
            _mask_of_another_shape,
            "000.png: its mask 000.mask.png has another aspect ratio (48x49, the image 24x24): crop it",
        ),
        (_no_mask, "000.png: its mask 000-masklabel.png is broken, or not an image: replace or remove it"),
    ],
)
def test_each_problem_is_one_line_with_file_and_remedy(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    root = write_concepts(tmp_path / "data", {"3_mona": ["mona"] * 2})
    read_folder(root)
    spoil(root)
    with pytest.raises(DatasetError) as caught:
        read_folder(root)
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"{root}: ")
    assert "\n" not in text


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"3_mona": ["mona"] * 60})
    for spoil in (_unread_kind, _empty_concept, _loose):
        spoil(root)
    (root / "3_mona" / "007.png").write_bytes(b"")
    (root / "3_mona" / "007.txt").write_text("")
    with pytest.raises(DatasetError) as caught:
        read_folder(root)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{root}: 4 problems"
    assert len(lines) == 5
    assert any("007.png" in line and "empty:" in line and "an empty file" in line for line in lines)
    for caption in sorted((root / "3_mona").glob("*.txt"))[1:]:
        caption.unlink()
    with pytest.raises(DatasetError, match=r"62 problems[\s\S]*\.\.\. and 22 more$"):
        read_folder(root)


def test_paths_that_are_not_datasets(tmp_path: Path) -> None:
    write_concepts(tmp_path / "Zorak", {"img/3_mona": ["a"]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_text("")
    (tmp_path / "dataset.toml").write_text("")
    write_concepts(tmp_path / "unnumbered", {"fit_a": ["a"], "fit_b": ["b"]})
    write_concepts(tmp_path, {"plain/images": ["a"], "deep/a/b": ["a"], "plain/images/notes": []})
    cases = {
        "zorak ": f"no such folder: did you mean {tmp_path / 'Zorak'}?",
        "Zorrak/img/3_mona": f"no such folder: did you mean {tmp_path / 'Zorak'}?",
        "qqqqqqqqq": "no such folder: set dataset.path=FOLDER",
        "a.zip": "is a file: dataset.path takes a folder of images, or a .toml, .json, .jsonl, .csv file",
        "x" * 999: "no such folder: set",
        "qqqqqqqqq.csv": "no such file: set dataset.path=FOLDER",
        "dataset.tml": f"no such folder: did you mean {tmp_path / 'dataset.toml'}?",
        "empty": "no images: put png, jpg",
        "Zorak": f"no images here, but there are in `img`: set dataset.path={tmp_path / 'Zorak' / 'img'}",
        "unnumbered": "rename it to `1_fit_b`",
        "plain": f"no images here, but there are in `images`: set dataset.path={tmp_path / 'plain' / 'images'}",
        "deep": f"no images here, but there are in `a/b`: set dataset.path={tmp_path / 'deep' / 'a' / 'b'}",
        "plain/images/notes": f"but there are in the folder above: set dataset.path={tmp_path / 'plain' / 'images'}",
        "plain/images/qqq": f"there are images in {tmp_path / 'plain' / 'images'}: set dataset.path=",
    }
    for name, message in cases.items():
        with pytest.raises(DatasetError) as caught:
            read_folder(tmp_path / name)
        assert message in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX permissions")
def test_a_folder_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_zorak(tmp_path, 1)

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)  # chmod has no effect for root
    with pytest.raises(DatasetError, match="permission denied: make it readable"):
        read_folder(root)


def test_folder_names_give_repeats_and_concept(tmp_path: Path) -> None:
    root = write_concepts(tmp_path / "zorak", {"10_zorak fit_a": ["a"], "2_zorak": ["b"]})
    assert [(p.concept, p.repeats) for p in read_folder(root)] == [("zorak fit_a", 10), ("zorak", 2)]
    assert [(p.concept, p.repeats) for p in read_folder(root / "10_zorak fit_a")] == [("zorak fit_a", 10)]


def test_class_tokens_are_the_caption_only_in_a_folder_without_captions(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"1_mona": ["a"] * 2, "2_mona dress": ["b"] * 2})
    for file in (root / "2_mona dress").glob("*.txt"):
        file.unlink()
    source = read_source(root)
    assert [p.caption for p in source.pictures] == ["a", "a", "mona dress", "mona dress"]
    assert source.notes == ("2_mona dress: no caption files, so every image gets the caption `mona dress`",)
    (root / "2_mona dress" / "001.txt").write_text("b")
    with pytest.raises(DatasetError, match=r"000.png: no caption: write its tags into 000.txt"):
        read_source(root)


def test_masks_are_found_by_name_and_are_no_images(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"3_mona": ["mona"] * 4})
    for name, size in (("000.mask.png", (24, 24)), ("001-masklabel.png", (48, 48)), ("masks/002.png", (240, 241))):
        _mask(root, size, name)
    (root / "3_mona" / "_stray.mask.png").write_bytes(b"never read")
    source = read_source(root)
    masks = [p.mask.name if p.mask else None for p in source.pictures]
    assert masks == ["000.mask.png", "001-masklabel.png", "002.png", None]
    assert source.notes == ("3_mona: masks without an image: _stray.mask.png",)


def test_a_folder_of_masks_is_not_a_concept(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"": ["mona"]})
    (root / "masks").mkdir()
    noise_image(0).save(root / "masks" / "000.png")
    assert [p.mask for p in read_folder(root)] == [root / "masks" / "000.png"]


def test_regularization_needs_no_captions(tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "zorak", 1)
    numbered = write_concepts(tmp_path / "reg", {"1_1girl": ["1girl, solo", "x"]})
    (numbered / "1_1girl" / "001.txt").unlink()
    plain = write_concepts(tmp_path / "a_red dress", {"": ["x"]})
    (plain / "000.txt").unlink()
    source = read_source(root, numbered)
    assert [p.caption for p in source.regularization] == ["1girl, solo", "1girl"]
    assert {p.concept for p in source.regularization} == {"1girl"}
    assert source.pictures == tuple(read_folder(root))
    assert [p.caption for p in read_source(root, plain).regularization] == ["a red dress"]


def test_problems_of_regularization_images_are_reported_with_the_others(tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "zorak", 1)
    (root / "10_zorak fit_a" / "000.png").write_bytes(b"")
    reg = write_concepts(tmp_path / "reg", {"": ["a"]})
    (reg / "000.png").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        read_source(root, reg)
    assert f"{reg / '000.png'}: an empty file" in str(caught.value) and "fit_a" in str(caught.value)
    with pytest.raises(DatasetError, match=r"the folder does not exist: correct dataset.reg_data_dir"):
        read_source(root, tmp_path / "nothing")
    with pytest.raises(DatasetError, match="listed for training and for regularization"):
        read_source(root, root)


def test_nothing_is_written(tmp_path: Path) -> None:
    root = write_zorak(tmp_path, 2)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    read_source(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
