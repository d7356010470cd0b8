"""One folder, written in every layout, is the same dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autolora.data.concepts import Dataset, DatasetSettings, load_dataset, with_buckets
from autolora.data.sources import Picture
from tests.data.folders import LAYOUTS, write_layouts, write_zorak


def bare(dataset: Dataset, root: Path) -> Dataset:
    """The dataset without its paths and repeats."""

    def without_paths(pictures: tuple[Picture, ...]) -> tuple[Picture, ...]:
        return tuple(replace(p, path=p.path.relative_to(root), repeats=1) for p in pictures)

    concepts = tuple(replace(concept, pictures=without_paths(concept.pictures)) for concept in dataset.concepts)
    return replace(
        dataset, name="", root=Path(), concepts=concepts, validation=without_paths(dataset.validation), notes=()
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_dataset_is_equal_in_every_layout(layout: str, tmp_path: Path) -> None:
    root = write_zorak(tmp_path / "zorak", 8)
    path = write_layouts(root, tmp_path / "others")[layout]
    settings, layout_settings = DatasetSettings(str(root)), DatasetSettings(str(path))
    dataset = with_buckets(load_dataset(layout_settings), layout_settings, 32)
    expected = with_buckets(load_dataset(settings), settings, 32)
    assert bare(dataset, root if layout == "toml" else path) == bare(expected, root)
    assert len(dataset.validation) == 6 and dataset.concepts[0].trigger == "fit_a"
