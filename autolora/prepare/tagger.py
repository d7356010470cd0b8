"""Tags images with WD14 taggers through onnxruntime, or with the tagger of the synthetic test world."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autolora.data.captions import escape_tag, tag_key
from autolora.errors import ConfigError
from autolora.files import expand_user
from autolora.prepare.tagger_base import Tagger, TaggerImages, TaggerSettings, Tagging, TagScore, squared

MODEL_FILE, TAGS_FILE = "model.onnx", "selected_tags.csv"
COLUMNS = ("name", "category")  # of selected_tags.csv; the columns `tag_id` and `count` are not used
CATEGORIES = {"0": "general", "4": "character", "9": "rating"}  # Danbooru's numbers, as in selected_tags.csv
DEFAULT_SIDE = 448  # pixels, if the model does not fix the size of its input
_TWO_LETTERS = re.compile(r"[^\W_]{2}")


class Wd14Tagger:
    """A WD14 tagger in an onnxruntime session, on the CPU."""

    def __init__(self, session: Any, categories: dict[str, str]) -> None:
        self.session, self.categories = session, categories
        source = session.get_inputs()[0]
        batch, *rest = source.shape
        self.channels_first = rest[0] == 3 and rest[-1] != 3
        side = rest[-1] if self.channels_first else rest[0]
        self.side = side if isinstance(side, int) else DEFAULT_SIDE
        self.batch: int | None = batch if isinstance(batch, int) else None  # None: any batch size is accepted
        self.input, self.output = source.name, session.get_outputs()[0].name

    def tag(self, images: TaggerImages) -> list[dict[str, float]]:
        """The probability of every tag, for each image.

        Raises:
            ConfigError: the model's outputs are not probabilities.
        """
        step = self.batch or max(len(images), 1)
        probabilities: list[dict[str, float]] = []
        for start in range(0, len(images), step):
            inputs = np.stack([preprocess(image, self.side) for image in images[start : start + step]])
            count = len(inputs)
            if count < step:
                inputs = np.concatenate([inputs, np.zeros((step - count, *inputs.shape[1:]), np.float32)])
            if self.channels_first:
                inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
            rows = self.session.run([self.output], {self.input: inputs})[0][:count]
            if not (rows.min() >= 0 and rows.max() <= 1):
                raise ConfigError(
                    f"the tagger's outputs are from {rows.min():.3g} to {rows.max():.3g}, expected probabilities: "
                    "choose a WD14 model, such as SmilingWolf/wd-vit-tagger-v3"
                )
            probabilities += [dict(zip(self.categories, row, strict=True)) for row in rows.tolist()]
        return probabilities


def preprocess(image: Image.Image | NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """An image as input of WD14 taggers: (side, side, 3) float32 from 0 to 255, in BGR order."""
    return np.ascontiguousarray(squared(image, side)[..., ::-1], np.float32)


def load_tagger(path: str | Path) -> Tagger:
    """Load a tagger.

    Args:
        path: a folder, OWNER/NAME in the hub's cache (nothing is downloaded), or `paperdoll`.

    Raises:
        ConfigError: files are missing or belong to different models, or the extra `tagger` is not installed.
    """
    if str(path) == "paperdoll":
        from autolora.prepare.doll_tagger import load_doll_tagger  # imports torch

        return load_doll_tagger()
    model, tags = _find_files(str(path))
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(f"tagger.path={path}: install autolora[tagger] (onnxruntime is missing)") from error
    categories = read_tags(tags)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions
    try:
        session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises exceptions of many types
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{model} cannot be loaded ({reason}): download or copy it again") from error
    shape, size = session.get_inputs()[0].shape, session.get_outputs()[0].shape[-1]
    if len(shape) != 4 or 3 not in (shape[1], shape[-1]):
        raise ConfigError(f"{model}: its input has shape {shape}, expected (N, side, side, 3) or (N, 3, side, side)")
    if isinstance(size, int) and size != len(categories):
        raise ConfigError(
            f"{model} has {size} tags, {tags.name} lists {len(categories)}: use two files of the same model"
        )
    return Wd14Tagger(session, categories)


def _find_files(path: str) -> tuple[Path, Path]:
    """The paths of the model and of its list of tags."""
    folder = expand_user(path)
    if folder.is_dir():
        missing = [name for name in (MODEL_FILE, TAGS_FILE) if not (folder / name).is_file()]
        if missing:
            raise ConfigError(f"tagger.path={path}: {' and '.join(missing)} missing in this folder: add them")
        return folder / MODEL_FILE, folder / TAGS_FILE
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise ConfigError(
            f"tagger.path={path}: no such folder; expected a folder with {MODEL_FILE} and {TAGS_FILE}, `paperdoll`, or "
            "a name such as SmilingWolf/wd-vit-tagger-v3"
        )
    from huggingface_hub import try_to_load_from_cache

    files = [try_to_load_from_cache(path, name) for name in (MODEL_FILE, TAGS_FILE)]
    model, tags = (Path(file) if isinstance(file, str) else None for file in files)
    if model is None or tags is None:
        raise ConfigError(
            f"tagger.path={path}: {MODEL_FILE} and {TAGS_FILE} are not both in the hub's cache: run "
            f"`hf download {path} {MODEL_FILE} {TAGS_FILE}`, or set tagger.path to a folder with both files"
        )
    return model, tags


def read_tags(path: Path) -> dict[str, str]:
    """The tags in a selected_tags.csv in the order of the model's outputs, each with its category.

    Raises:
        ConfigError: a column is missing, a category is unknown, or a tag is listed twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read ({error}): download or copy it again") from error
    if not set(COLUMNS) <= set(columns):
        raise ConfigError(f"{path}: columns {', '.join(columns) or 'none'}; expected tag_id, name, category, count")
    tags: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        name, number = row["name"], row["category"]
        if number not in CATEGORIES or not name or name in tags:
            raise ConfigError(
                f"{path}, line {line}: got name {name!r} of category {number!r}; expected a name not listed before and "
                "category 0 (general), 4 (character) or 9 (rating): use the file of the model"
            )
        tags[name] = CATEGORIES[number]
    return tags


def tag_images(
    tagger: Tagger, images: TaggerImages, settings: TaggerSettings, advance: Callable[[int], None] | None = None
) -> list[Tagging]:
    """Tag images in batches and keep the tags above the thresholds.

    Args:
        tagger: finds the tags.
        images: the images.
        settings: thresholds, spelling and batch size.
        advance: called with the number of images of each finished batch.
    """
    taggings: list[Tagging] = []
    for start in range(0, len(images), settings.batch_size):
        batch = images[start : start + settings.batch_size]
        taggings += [choose_tags(scores, tagger.categories, settings) for scores in tagger.tag(batch)]
        if advance:
            advance(len(batch))
    return taggings


def choose_tags(scores: Mapping[str, float], categories: Mapping[str, str], settings: TaggerSettings) -> Tagging:
    """The tags of an image whose probability reaches the threshold of their category."""
    limits = {"character": settings.character_threshold, "general": settings.general_threshold}
    excluded = {tag_key(tag.replace("_", " ")) for tag in settings.exclude}
    ordered = sorted(scores.items(), key=lambda item: -item[1])
    chosen = [
        TagScore(spell(tag, settings), score)
        for category, limit in limits.items()
        for tag, score in ordered
        if categories[tag] == category and score >= limit and tag_key(tag.replace("_", " ")) not in excluded
    ]
    ratings = [TagScore(spell(tag, settings), score) for tag, score in ordered if categories[tag] == "rating"]
    return Tagging(tuple(chosen), ratings[0] if ratings else None)


def spell(tag: str, settings: TaggerSettings) -> str:
    """A tag as written into captions; a tag without two letters in a row is a kaomoji and keeps its underscores."""
    if not settings.underscores and _TWO_LETTERS.search(tag):
        tag = tag.replace("_", " ")
    return escape_tag(tag) if settings.escape_brackets else tag
