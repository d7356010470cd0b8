"""Writes small folders of captioned pictures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from autolora.data.sources import Picture


def noise_image(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A picture of coarse random blocks: different seeds are far apart for any perceptual hash."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def write_concepts(root: Path, concepts: Mapping[str, Sequence[str]], first_seed: int = 0) -> Path:
    """One folder a concept (`""` is the root itself), one different picture a caption."""
    seed = first_seed
    for folder, captions in concepts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, caption in enumerate(captions):
            noise_image(seed).save(root / folder / f"{number:03}.png")
            (root / folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
            seed += 1
    return root


def write_zorak(root: Path, pictures: int = 8) -> Path:
    """A character with two outfits, kohya style."""
    places = ("beach", "city", "blue sky", "meadow")
    return write_concepts(
        root,
        {
            f"10_zorak {fit}": [f"1girl, zorak, {fit}, {places[i % 4]}" for i in range(pictures)]
            for fit in ("fit_a", "fit_b")
        },
    )


def write_layouts(root: Path, out: Path) -> dict[str, Path]:
    """A kohya-style or plain folder in every layout, by its name: what to give as the dataset's path.

    Metadata lists the pictures backwards and no caption files lie beside them.
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
    for image, text in captions.items():  # absolute, without suffix, and split into caption and tags
        caption, _, tags = text.partition(", ")
        entries[str(paths["meta_cap.json"].absolute() / image)[:-4]] = {"caption": caption, "tags": tags}
    (paths["meta_cap.json"] / "meta_cap.json").write_text(json.dumps(entries), encoding="utf-8")
    folders = dict.fromkeys((root / image).parent for image in images)
    subsets = [f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(folder.absolute()))}" for folder in folders]
    paths["toml"] = out / "dataset.toml"
    paths["toml"].write_text("\n".join(["[[datasets]]", *subsets]), encoding="utf-8")
    return paths


def pictures_of(captions: Sequence[str], concept: str = "zorak") -> list[Picture]:
    """Pictures that exist only as captions."""
    return [Picture(Path(f"{concept}/{i}.png"), c, concept, 8, 8, str(i)) for i, c in enumerate(captions)]
