"""How figures of the attribute classifier become one score, and how means over characters get an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import sem
from scipy.stats import t as student_t

WEIGHTS = ("0.7", "1")  # LoRA weights as the names of figures have them
BLEED_LIMIT = 0.15
FEWEST_CHARACTERS = 3  # that an interval needs

Row = dict[str, str]  # of the bank: one checkpoint


def mean_over_weights(row: Mapping[str, Any], name: str) -> float:
    """Return the mean of a figure over the LoRA weights."""
    return float(np.mean([float(row[f"{name}@{weight}"]) for weight in WEIGHTS]))


def classifier_score(row: Mapping[str, Any], half: str = "") -> float:
    """Return the score of a checkpoint by its figures of the attribute classifier.

    The score is the harmonic mean of likeness and accuracy less the bleed above the limit, averaged over the LoRA
    weights. See `judge.attribute_figures` for the figures.

    Args:
        row: the figures by `oracle_NAME@WEIGHT`.
        half: `_a` or `_b` for the figures of one half of the renders; empty for all renders.
    """
    values = []
    for weight in WEIGHTS:
        likeness, accuracy = (float(row[f"oracle_{name}{half}@{weight}"]) for name in ("likeness", "accuracy"))
        bleed = float(row[f"oracle_bleed{half}@{weight}"])
        values.append(2 * likeness * accuracy / max(likeness + accuracy, 1e-9) - max(0.0, bleed - BLEED_LIMIT))
    return float(np.mean(values))


def share_of_best(figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
    """Return a checkpoint's classifier score as a share of the best row's.

    One half of the renders chooses the best row and the other half scores both, then the halves change places: luck in
    the choice is not counted as merit.
    """
    shares = []
    for chosen_by, scored_by in (("_a", "_b"), ("_b", "_a")):
        best = classifier_score(max(rows, key=lambda row: classifier_score(row, chosen_by)), scored_by)
        shares.append(classifier_score(figures, scored_by) / best)
    return float(np.mean(shares))


def share_of_pick(rows: Sequence[Row], score: Callable[[Row], float]) -> float:
    """Return the classifier score of the row that a score picks, as a share of the best row's."""
    picked = max(rows, key=score)
    return share_of_best(picked, rows)


def mean_interval(by_character: Mapping[int, Sequence[float]]) -> tuple[float, float, float]:
    """Return the mean over characters and its 95% interval by Student's t.

    The ends are nan where there are fewer than `FEWEST_CHARACTERS` characters.
    """
    means = [float(np.nanmean(values)) for values in by_character.values() if not np.isnan(values).all()]
    if len(means) < FEWEST_CHARACTERS:
        return float(np.mean(means)) if means else float("nan"), float("nan"), float("nan")
    mean, half = float(np.mean(means)), float(student_t.ppf(0.975, len(means) - 1) * sem(means))
    return mean, mean - half, mean + half
