"""Writing a copy of a dataset with edited captions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from autolora.data.caption_recipe import CaptionRecipe, apply_captions
from autolora.data.captions_copy import write_copy
from autolora.data.concepts import Concept, Dataset, DatasetSettings, load_dataset
from autolora.errors import DatasetError, StorageError
from tests.data.folders import write_concepts, write_zorak


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(DatasetSettings(path=str(write_zorak(tmp_path / "zorak"))))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_copy_reads_as_the_dataset_that_was_written(dataset: Dataset, tmp_path: Path) -> None:
    before = contents(dataset.root)
    modes = {path: path.stat().st_mode for path in dataset.root.rglob("*")}
    recipe = CaptionRecipe(drop_tags=("beach",), trigger_swap_rate=0.4, swap_tags=("gold horns",))
    edited = apply_captions(recipe, dataset, 0, validation=True)
    assert write_copy(edited, tmp_path / "new" / "copy") == 16
    copy = load_dataset(DatasetSettings(path=str(tmp_path / "new" / "copy"), trigger="zorak"))
    assert {p.sha256: (p.caption, p.concept) for p in (*copy.pictures, *copy.validation)} == {
        p.sha256: (p.caption, p.concept) for p in (*edited.pictures, *edited.validation)
    }
    assert [c.trigger for c in copy.concepts] == ["fit_a", "fit_b"]
    assert sorted(p.name for p in (tmp_path / "new" / "copy").iterdir()) == ["1_zorak fit_a", "1_zorak fit_b"]
    assert contents(dataset.root) == before
    assert {path: path.stat().st_mode for path in dataset.root.rglob("*")} == modes


def test_images_are_linked_or_else_copied(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_copy(dataset, tmp_path / "linked")
    first = dataset.pictures[0]
    assert (tmp_path / "linked" / "1_zorak fit_a" / first.path.name).samefile(first.path)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_copy(dataset, tmp_path / "copied")
    copied = tmp_path / "copied" / "1_zorak fit_a" / first.path.name
    assert copied.read_bytes() == first.path.read_bytes() and not copied.samefile(first.path)


def test_equal_file_names_masks_and_special_characters_in_concepts(dataset: Dataset, tmp_path: Path) -> None:
    first, second, third = dataset.pictures[:3]
    for folder in ("a", "b", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("L", (24, 24), 255).save(tmp_path / "masks" / "x.png")
    Image.new("L", (24, 24), 255).save(tmp_path / "masks" / "y.bmp")
    pictures = []
    for picture, name, mask in ((first, "a/x.png", "x.png"), (second, "b/X.png", "y.bmp"), (third, "b/x.jpg", None)):
        (tmp_path / name).write_bytes(picture.path.read_bytes())
        masked = tmp_path / "masks" / mask if mask else None
        pictures.append(replace(picture, path=tmp_path / name, concept=r"fit \(a/b\)", mask=masked))
    unusual = replace(dataset, concepts=(Concept(r"fit \(a/b\)", "fit", tuple(pictures)),), validation=())
    assert write_copy(unusual, tmp_path / "out") == 3
    files = contents(tmp_path / "out")
    assert sorted(name.removeprefix("1_fit (a_b)/") for name in files) == sorted(
        ["x.png", "x.txt", "x.mask.png", "X-2.png", "X-2.txt", "X-2.mask.png", "x-3.jpg", "x-3.txt"]
    )
    assert files["1_fit (a_b)/X-2.txt"].decode() == second.caption + "\n"
    with Image.open(tmp_path / "out" / "1_fit (a_b)" / "X-2.mask.png") as mask:
        assert (mask.format, mask.mode) == ("PNG", "L")


def test_nothing_is_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    full = write_concepts(tmp_path / "full", {"1_a": ["x"]})
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for taken in (full, tmp_path / "file", dataset.root):
        with pytest.raises(DatasetError, match="exists and is not an empty folder: choose another or remove it"):
            write_copy(dataset, taken)
    for inside in (dataset.root / "copy", dataset.pictures[0].path.parent / "x" / "copy"):
        with pytest.raises(DatasetError, match="lies in the dataset's own folder"):
            write_copy(dataset, inside)
        assert not inside.exists()
    (tmp_path / "empty").mkdir()
    assert write_copy(dataset, tmp_path / "empty") == 16


def test_a_failed_copy_leaves_no_files(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.pictures[3].path.rename(tmp_path / "elsewhere.png")
    with pytest.raises(DatasetError, match=r"\.png: is missing: restore the file"):
        write_copy(dataset, tmp_path / "copy")
    assert contents(tmp_path / "copy") == {}
    (tmp_path / "elsewhere.png").rename(dataset.pictures[3].path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="free some space"):
            write_copy(dataset, tmp_path / "copy")
    assert contents(tmp_path / "copy") == {}
    assert write_copy(dataset, tmp_path / "copy") == 16
