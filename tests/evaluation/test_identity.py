"""What may change while a run or a study is continued, and what may not; whose results a folder holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autolora.config import compose
from autolora.data.concepts import load_dataset
from autolora.errors import StudyError
from autolora.evaluation.identity import FILE, Owner, changes, check_folder, claim_folder, identity_of, recipe_owner
from autolora.settings import build_settings
from tests.data.folders import noise_image, write_concepts


def owner(folder: Path, *overrides: str) -> Owner:
    """A recipe on the images of a folder, as `autolora train` would train it."""
    settings = build_settings(compose("train", [f"dataset.path={folder}", "dataset.trigger=mona", *overrides]))
    return recipe_owner(settings.run, identity_of(settings, load_dataset(settings.dataset)))


@pytest.fixture
def mona(tmp_path: Path) -> Path:
    return write_concepts(tmp_path / "mona", {"": [f"mona, 1girl, place {i}" for i in range(8)]})


def moved(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.parent / "elsewhere" / folder.name))


def one_less(folder: Path) -> Path:
    (folder / "007.png").unlink()
    return folder


def redrawn(folder: Path) -> Path:
    noise_image(99).save(folder / "003.png")
    return folder


def another_caption(folder: Path) -> Path:
    (folder / "003.txt").write_text("mona, 1girl, hat")
    return folder


def masked(folder: Path) -> Path:
    noise_image(99).save(folder / "003.mask.png")
    return folder


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (moved, set()),
        (one_less, {"training images", "validation images", "captions"}),
        (redrawn, {"training images", "validation images", "captions"}),
        (another_caption, {"captions"}),
        (masked, {"training images", "validation images"}),
    ],
)
def test_the_content_of_the_images_counts_and_not_their_place(
    mona: Path, change: Callable[[Path], Path], differs: set[str]
) -> None:
    before = owner(mona).identity
    found = {line.partition(":")[0] for line in changes(before, owner(change(mona)).identity)}
    assert found <= differs and bool(found) == bool(differs)


@pytest.mark.parametrize(
    ("override", "differs"),
    [
        ("scoring.num_negative_renders=16", ["scoring.num_negative_renders"]),
        ("scoring.max_bleed=0.2", ["scoring.max_bleed"]),
        ("model.render.guidance_scale=7", ["model.render.guidance_scale"]),
        ("dataset.seed=1", ["dataset.seed", "training images", "validation images"]),
        ("dataset.trigger=place", None),
        ("train.images_per_concept=16", ["train.images_per_concept"]),
        ("optimizer=lion", None),
        ("model.render.batch_size=1", []),
        ("model.gradient_checkpointing=true", []),
        ("export.dtype=float32", []),
        ("quiet=true", []),
    ],
)
def test_settings_that_decide_a_score_count(mona: Path, override: str, differs: list[str] | None) -> None:
    if override == "dataset.trigger=place":
        for file in mona.glob("*.txt"):
            file.write_text(file.read_text() + ", place")
    found = [line.partition(":")[0] for line in changes(owner(mona).identity, owner(mona, override).identity)]
    assert found if differs is None else sorted(found) == sorted(differs)


def test_a_folder_keeps_what_it_holds(tmp_path: Path) -> None:
    mona = Owner("recipe", "guide", {"train.epochs": "8"})
    assert not check_folder(tmp_path / "new", mona)
    claim_folder(tmp_path, mona)
    claim_folder(tmp_path, mona)
    assert check_folder(tmp_path, Owner("recipe", "guide", {}))  # what is not known yet is not compared
    for other in (Owner("study", "guide", {}), Owner("recipe", "mine", {})):
        with pytest.raises(StudyError, match="holds the results of recipe guide"):
            claim_folder(tmp_path, other)
    with pytest.raises(StudyError, match=r"train\.epochs: was 8, now 9"):
        claim_folder(tmp_path, Owner("recipe", "guide", {"train.epochs": "9"}))
    (tmp_path / FILE).write_text('{"kind": "recipe"')
    with pytest.raises(StudyError, match="cannot be read"):
        check_folder(tmp_path, mona)
