"""Reading folders: every layout that is accepted, every mistake with its one clear line."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora.data.sources import load_image, load_pixels, read_folder
from autolora.errors import DatasetError
from tests.data.folders import noise_image, write_concepts, write_zorak


def test_kohya_folders_in_a_fixed_order(tmp_path: Path) -> None:
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
    for i, suffix in enumerate(("png", "jpg", "JPEG", "webp", "bmp")):
        noise_image(i).save(root / f"{suffix}.{suffix}")
        (root / f"{suffix}.{'caption' if i % 2 else 'txt'}").write_text(f"mona, {suffix}")
    pictures = read_folder(root)
    assert {p.concept for p in pictures} == {"mona"}
    assert {p.caption for p in pictures} == {f"mona, {s}" for s in ("png", "jpg", "JPEG", "webp", "bmp")}


def test_junk_is_ignored_and_captions_are_read_as_written(tmp_path: Path) -> None:
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
    (folder / "002.caption").write_text(" a ,")  # says the same as its .txt
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


def _no_picture(root: Path) -> None:
    (root / "3_mona" / "000.png").write_text("<html>404</html>")


def _zero_bytes(root: Path) -> None:
    (root / "3_mona" / "000.png").write_bytes(b"")


def _avif(root: Path) -> None:
    (root / "3_mona" / "x.avif").write_bytes(b"x")


def _empty_concept(root: Path) -> None:
    (root / "5_mona dress").mkdir()


def _nameless_concept(root: Path) -> None:
    write_concepts(root, {"5_": ["a"]})


def _number_forgotten(root: Path) -> None:
    write_concepts(root, {"dress": ["a"]})


def _loose(root: Path) -> None:
    noise_image(0).save(root / "loose.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_caption, "000.png: no caption: write its tags into 000.txt beside it"),
        (_empty_caption, "000.png: its caption 000.txt is empty: write its tags into it"),
        (_latin1_caption, "000.png: its caption 000.txt is not UTF-8 text: save it as UTF-8"),
        (_two_captions, "000.png: 000.txt and 000.caption say different things: keep one of them"),
        (_truncated, "000.png: broken (image file is truncated"),
        (_truncated_jpeg, "000.jpg: broken (image file is truncated"),
        (_no_picture, "000.png: broken, or no picture at all: replace or remove it"),
        (_zero_bytes, "000.png: an empty file: replace or remove it"),
        (_avif, "x.avif: .avif pictures cannot be read yet: save it as .png"),
        (_empty_concept, "5_mona dress: no images: add pictures with captions or remove the folder"),
        (_nameless_concept, "5_: no class tokens after the number: rename it, such as `5_mona`"),
        (_number_forgotten, "dress: a folder of pictures without a number"),
        (_loose, "loose.png: lies beside the concept folders: move it into one of them"),
    ],
)
def test_each_mistake_is_one_line_with_file_and_remedy(
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


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    root = write_concepts(tmp_path, {"3_mona": ["mona"] * 60})
    for spoil in (_avif, _empty_concept, _loose):
        spoil(root)
    (root / "3_mona" / "007.png").write_bytes(b"")
    (root / "3_mona" / "007.txt").write_text("")
    with pytest.raises(DatasetError) as caught:
        read_folder(root)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{root}: 4 problems"
    assert len(lines) == 5
    assert any("007.png" in line and "empty:" in line and "an empty file" in line for line in lines)
    for caption in (root / "3_mona").glob("*.txt"):
        caption.unlink()
    with pytest.raises(DatasetError, match=r"63 problems[\s\S]*\.\.\. and 23 more$"):
        read_folder(root)


def test_a_path_that_is_no_folder_of_pictures(tmp_path: Path) -> None:
    write_concepts(tmp_path / "Zorak", {"img/3_mona": ["a"]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_text("")
    write_concepts(tmp_path / "unnumbered", {"fit_a": ["a"], "fit_b": ["b"]})
    cases = {
        "zorak ": f"no such folder: did you mean {tmp_path / 'Zorak'}?",
        "Zorrak/img/3_mona": f"no such folder: did you mean {tmp_path / 'Zorak'}?",
        "qqqqqqqqq": "no such folder: give dataset.path=FOLDER",
        "a.zip": "is a file: dataset.path takes a folder",
        "empty": "no images: put png, jpg",
        "Zorak": f"no images here, but there are in `img`: give dataset.path={tmp_path / 'Zorak' / 'img'}",
        "unnumbered": "rename it to `1_fit_b`",
    }
    for name, message in cases.items():
        with pytest.raises(DatasetError) as caught:
            read_folder(tmp_path / name)
        assert message in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX permissions")
def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_zorak(tmp_path, 1)

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)  # chmod does not stop a test that runs as root
    with pytest.raises(DatasetError, match="permission denied: make it readable"):
        read_folder(root)


def test_pixels_are_upright_covered_cropped_and_on_white(tmp_path: Path) -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    assert load_pixels(tmp_path / "wide.png", 10).shape == (10, 10, 3)
    assert (load_pixels(tmp_path / "wide.png", 10) == (0, 0, 255)).all()  # the middle, unscaled
    assert load_pixels(tmp_path / "wide.png", 12, 20).shape == (20, 12, 3)

    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    turned = Image.new("RGB", (30, 10), "red")
    turned.paste("blue", (0, 0, 15, 10))
    turned.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == (10, 30)
    (tmp_path / "turned.txt").write_text("a")
    (tmp_path / "wide.txt").write_text("a")
    assert {(p.width, p.height) for p in read_folder(tmp_path)} == {(10, 30), (30, 10)}
    assert (load_pixels(tmp_path / "turned.png", 10, 30)[0] == (0, 0, 255)).all()

    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 128))
    for name in ("clear.png", "clear.webp"):
        clear.save(tmp_path / name, lossless=True)
        pixels = load_pixels(tmp_path / name, 4)
        assert (pixels[1:] == 255).all()
        assert np.abs(pixels[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    clear.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png", transparency=0)
    assert load_image(tmp_path / "palette.png").mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.full((4, 4), 32768, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert (load_pixels(tmp_path / "deep.png", 4) == 128).all()
    with pytest.raises(DatasetError, match="cannot be read any more"):
        load_pixels(tmp_path / "gone.png", 4)
