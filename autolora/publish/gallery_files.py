"""The images of a finished study's report as files in its folder, so that they can be shown without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autolora.evaluation.samples import read_samples
from autolora.files import path_below
from autolora.report.schema import Column, Gallery, OutfitMatrix, Pair, Sample
from autolora.scoring.intervals import Estimate

Images = tuple[Image.Image, ...]


@dataclass(frozen=True)
class Strip:
    """Images side by side in one file, as `write_samples` wrote it."""

    folder: str  # relative to the study's folder
    name: str  # of the file, without its suffix

    def read(self, study_folder: Path) -> Images:
        """The images.

        Raises:
            FileNotFoundError: the file is missing or broken.
            StorageError: its name leads out of the study's folder.
        """
        path = path_below(study_folder, f"{self.folder}/{self.name}.webp")
        images = tuple(image for _, image in read_samples(path.parent, path.stem))
        if not images:
            raise FileNotFoundError(path)
        return images


@dataclass(frozen=True)
class ColumnFiles:
    """The files of one column of the gallery."""

    name: str
    by_step: dict[int, Strip]
    by_weight: dict[float, Strip]
    step: int
    weight: float


@dataclass(frozen=True)
class GalleryFiles:
    """The files of the gallery: the base model's column first, the best checkpoint's last."""

    samples: tuple[Sample, ...]
    columns: tuple[ColumnFiles, ...]
    step_weight: float


@dataclass(frozen=True)
class PairFiles:
    """The files of one prompt with and without its triggers: by title, a strip and the image's place in it."""

    prompt: str
    without: str
    seed: int
    images: dict[str, tuple[Strip, int]]


@dataclass(frozen=True)
class MatrixFiles:
    """The files of the outfit matrix, and its shares."""

    names: tuple[str, ...]
    real: Strip
    shares: tuple[tuple[Estimate, ...], ...]
    renders: tuple[Strip, ...]  # a row for each outfit that was asked for


@dataclass(frozen=True)
class ImageFiles:
    """Every image that a finished study's report shows beside those of its trials."""

    gallery: GalleryFiles
    pairs: tuple[PairFiles, ...]
    matrix: MatrixFiles | None  # None: the dataset has one concept, or nothing can be measured


def read_gallery(files: GalleryFiles, study_folder: Path) -> Gallery:
    """The gallery with its images.

    Raises:
        FileNotFoundError: a file is missing or broken.
    """
    columns = tuple(
        Column(
            column.name,
            {step: strip.read(study_folder) for step, strip in column.by_step.items()},
            {weight: strip.read(study_folder) for weight, strip in column.by_weight.items()},
            column.step,
            column.weight,
        )
        for column in files.columns
    )
    return Gallery(files.samples, columns, files.step_weight)


def read_pair(files: PairFiles, study_folder: Path) -> Pair:
    """One prompt's images with and without its triggers.

    Raises:
        FileNotFoundError: a file is missing or broken.
    """
    images = {title: strip.read(study_folder)[place] for title, (strip, place) in files.images.items()}
    return Pair(files.prompt, files.without, files.seed, images)


def read_matrix(files: MatrixFiles, study_folder: Path) -> OutfitMatrix:
    """The outfit matrix with its images.

    Raises:
        FileNotFoundError: a file is missing or broken.
    """
    renders = tuple(strip.read(study_folder) for strip in files.renders)
    return OutfitMatrix(files.names, files.real.read(study_folder), files.shares, renders)
