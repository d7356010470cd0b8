"""Writes small folders of captioned images, and builds datasets that exist only as captions."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from autolora.data.concepts import Concept, Dataset
from autolora.data.sources import Picture

LAYOUTS = ("metadata.jsonl", "metadata.csv", "meta_cap.json", "kohya.jsonl", "toml")  # besides folders


def noise_image(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """An image of coarse random blocks; the perceptual hashes of different seeds differ in many bits."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def write_concepts(root: Path, concepts: Mapping[str, Sequence[str]], first_seed: int = 0) -> Path:
    """Write one folder per concept (`""` is the root itself) with a different image for each caption."""
    seed = first_seed
    for folder, captions in concepts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, caption in enumerate(captions):
            noise_image(seed).save(root / folder / f"{number:03}.png")
            (root / folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
            seed += 1
    return root


def write_zorak(root: Path, pictures: int = 8) -> Path:
    """Write a character with two outfits as kohya folders."""
    places = ("beach", "city", "blue sky", "meadow")
    return write_concepts(
        root,
        {
            f"10_zorak {fit}": [f"1girl, zorak, {fit}, {places[i % 4]}" for i in range(pictures)]
            for fit in ("fit_a", "fit_b")
        },
    )


def write_layouts(root: Path, out: Path) -> dict[str, Path]:
    """Copy a folder into every layout; returns the dataset's path for each layout by name.

    Metadata lists the images in reverse order; the copies have no caption files.
    """
    paths = {"folder": root}
    images = [path.relative_to(root) for path in sorted(root.rglob("*.png"), reverse=True)]
    captions = {image.as_posix(): (root / image).with_suffix(".txt").read_text(encoding="utf-8") for image in images}
    for name in ("metadata.jsonl", "metadata.csv", "meta_cap.json", "kohya.jsonl"):
        paths[name] = out / name / root.name
        shutil.copytree(root, paths[name], ignore=shutil.ignore_patterns("*.txt"))

    def write_lines(name: str, rows: Sequence[Mapping[str, object]]) -> None:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (paths[name] / name).write_text(text, encoding="utf-8")

    write_lines("metadata.jsonl", [{"file_name": image, "text": text} for image, text in captions.items()])
    write_lines("kohya.jsonl", [{"image_path": image, "caption": text} for image, text in captions.items()])
    with (paths["metadata.csv"] / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *captions.items()])
    entries = {}
    for image, text in captions.items():  # absolute paths without suffix, caption split into caption and tags
        caption, _, tags = text.partition(", ")
        entries[str(paths["meta_cap.json"].absolute() / image)[:-4]] = {"caption": caption, "tags": tags}
    (paths["meta_cap.json"] / "meta_cap.json").write_text(json.dumps(entries), encoding="utf-8")
    folders = dict.fromkeys((root / image).parent for image in images)
    subsets = [f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(folder.absolute()))}" for folder in folders]
    paths["toml"] = out / "dataset.toml"
    paths["toml"].write_text("\n".join(["[[datasets]]", *subsets]), encoding="utf-8")
    return paths


def pictures_of(captions: Sequence[str], concept: str = "zorak") -> list[Picture]:
    """Images that exist only as captions."""
    return [Picture(Path(f"{concept}/{i}.png"), c, concept, 8, 8, str(i)) for i, c in enumerate(captions)]


def dataset_of(concepts: dict[str, Sequence[str]], validation: Sequence[str] = ()) -> Dataset:
    """A dataset of captions by their concept's own trigger; the main trigger is zorak, the class word 1girl."""
    concept_list = tuple(Concept(f"zorak {t}", t, tuple(pictures_of(c, f"zorak {t}"))) for t, c in concepts.items())
    return Dataset(
        "zorak", Path(), "zorak", "1girl", concept_list, tuple(pictures_of(validation, concept_list[0].name))
    )


def captions_of(dataset: Dataset) -> list[str]:
    return [picture.caption for picture in dataset.pictures]


LOOKS = "gold horns, blue hair, long hair, red eyes, pale skin"


def outfits(a: int = 10, b: int = 10) -> Dataset:
    """Two outfits of one character, fully tagged."""
    places = ("beach", "city", "meadow")
    return dataset_of(
        {
            "fit_a": [f"1girl, zorak, fit_a, {LOOKS}, blue robe, hat, smile, {places[i % 3]}" for i in range(a)],
            "fit_b": [f"1girl, zorak, fit_b, {LOOKS}, red armor, hat, smile, {places[i % 3]}" for i in range(b)],
        },
        validation=[f"1girl, zorak, fit_a, {LOOKS}, blue robe, smile, smile, city"],
    )
