"""One folder, expressed in every layout, is the same dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autolora.data.concepts import Dataset, DatasetSettings, load_dataset, with_buckets
from autolora.data.sources import Picture
from tests.data.folders import write_layouts, write_zorak

LAYOUTS = ("metadata.jsonl", "metadata.csv", "meta_cap.json", "kohya.jsonl", "toml")


def bare(dataset: Dataset, root: Path) -> Dataset:
    """The dataset without what only says where it lies and how often its folders repeat it."""

    def own(pictures: tuple[Picture, ...]) -> tuple[Picture, ...]:
        return tuple(replace(p, path=p.path.relative_to(root), repeats=1) for p in pictures)

    concepts = tuple(replace(concept, pictures=own(concept.pictures)) for concept in dataset.concepts)
    return replace(dataset, name="", root=Path(), concepts=concepts, validation=own(dataset.validation), notes=())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_makes_no_difference(layout: str, tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "zorak", 8)
    path = write_layouts(root, tmp_path / "others")[layout]
    settings, other = DatasetSettings(str(root)), DatasetSettings(str(path))
    found = with_buckets(load_dataset(other), other, 32)
    expected = with_buckets(load_dataset(settings), settings, 32)
    assert bare(found, root if layout == "toml" else path) == bare(expected, root)
    assert len(found.validation) == 6 and found.concepts[0].trigger == "fit_a"
