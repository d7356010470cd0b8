"""Seeds: which characters an experiment may judge, and the first seed of its renders.

Characters with seeds below 100 are development characters: recipes, scores and limits were tuned on them. Only
evaluation characters, from 100 up, may be judged. Renders start at a seed of their own for each purpose, apart from
the seeds of the score's evaluation prompts.
"""

from __future__ import annotations

from pathlib import Path

from autolora.errors import StudyError
from autolora.paperdoll.look import Character, novel_character
from autolora.paperdoll.world import write_dataset

FIRST_EVALUATION_SEED = 100
# The first seed of an experiment's renders.
QUICKSTART_RENDERS = 900_000  # and of every strip of images
REMEDIES_RENDERS = 930_000
BANK_RENDERS = 950_000
LIVE_EFFICIENCY_RENDERS = 960_000  # apart from the bank's renders, by which the bank's best checkpoint is chosen


def refuse_development_seed(seed: int) -> None:
    """Refuse a character that something was tuned on.

    Raises:
        StudyError: the seed is one of a development character.
    """
    if seed < FIRST_EVALUATION_SEED:
        raise StudyError(
            f"seed {seed} is a development seed: give seeds of evaluation characters, {FIRST_EVALUATION_SEED} and up"
        )


def evaluation_character(seed: int) -> Character:
    """Return the evaluation character of a seed: it has one to three outfits."""
    return novel_character(seed, 1 + seed % 3)


def ensure_dataset(folder: Path, seed: int) -> Path:
    """Draw the images of an evaluation character, unless the folder exists, and return the folder."""
    if not folder.exists():
        write_dataset(folder, seed, len(evaluation_character(seed).outfits))
    return folder
