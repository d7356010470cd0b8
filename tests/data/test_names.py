"""Names of files and tags: spelled in two ways by Unicode, as macOS does, or no text at all."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from autolora.cli import main
from autolora.data.captions import has_tag, mentions
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.data.sources import read_source
from autolora.errors import DatasetError
from tests.data.folders import noise_image, write_concepts

NFC, NFD = (unicodedata.normalize(form, "amélie") for form in ("NFC", "NFD"))
CAPTION = f"1girl, {NFC}, smile"


def one_image(folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True)
    noise_image(0).save(folder / f"{stem}.png")
    return folder


@pytest.mark.parametrize(("disk", "written"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("layout", ["captions", "double", "csv", "kohya", "toml"])
def test_names_meet_however_their_letters_are_composed(layout: str, disk: str, written: str, tmp_path: Path) -> None:
    folder = one_image(tmp_path / f"1_{disk}", disk)
    noise_image(0).save(folder / f"{written}.mask.png")
    place = folder.parent / f"1_{written}"
    if layout in ("captions", "double", "toml"):
        (folder / f"{written}{'.png' if layout == 'double' else ''}.txt").write_text(f"1girl, {written}, smile")
    if layout == "csv":
        (folder / "metadata.csv").write_text(f'file_name,text\n{written}.png,"{CAPTION}"')
    if layout == "kohya":
        path = tmp_path / "moved" / written
        (folder / "meta.json").write_text(json.dumps({str(path): {"tags": CAPTION}}))
    if layout == "toml":
        place = tmp_path / "d.toml"
        place.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir='1_{written}'")
    source = read_source(place)
    assert [(p.caption, p.concept) for p in source.pictures] == [(CAPTION, NFC)] and not source.notes
    assert source.pictures[0].mask is not None


def test_a_trigger_meets_its_tag_however_it_is_typed(tmp_path: Path) -> None:
    captions = [f"1girl, {word}, place {i}" for i, word in enumerate([NFC, NFD] * 3)]
    dataset = load_dataset(DatasetSettings(path=str(write_concepts(tmp_path / "d", {"": captions})), trigger=NFD))
    assert dataset.trigger == NFC and all(NFC in picture.tags for picture in dataset.pictures)
    assert has_tag(CAPTION, NFD) and mentions(f"a photo of the girl {NFC} on a beach", NFD)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("name", ["10_mon\udce9/000.png", "10_mona/0\udce90.png"])
def test_names_that_are_no_text_are_refused_by_their_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    one_image(path.parent, path.stem)
    path.with_suffix(".txt").write_text("mona")
    with pytest.raises(DatasetError, match="its path is not UTF-8 text: rename its folder or the file"):
        read_source(tmp_path)
    assert main(["tag", f"dataset.path={tmp_path}"]) == 0  # it has its caption
    assert main(["captions", f"dataset.path={path.parent}", "dataset.trigger=mona"]) in (2, 3)
    assert "rename" in capsys.readouterr().err
