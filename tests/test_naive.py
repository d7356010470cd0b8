"""The naive scores on embeddings whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from naive import clip_i, clip_t, kid


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


ROWS = unit(np.random.default_rng(0).normal(size=(20, 16)))


def test_cosines_are_those_of_pairs() -> None:
    assert clip_t(ROWS, ROWS) == pytest.approx(1)
    assert clip_t(ROWS, -ROWS) == 0
    assert clip_i(np.eye(4), np.eye(4)) == pytest.approx(1 / 4)


def test_kid_grows_with_the_distance_and_is_the_same_every_time() -> None:
    others = unit(np.random.default_rng(1).normal(size=(20, 16)))
    near, far = kid(ROWS, others), kid(ROWS, unit(others + 1))
    assert near < far
    assert kid(ROWS, others) == pytest.approx(near)
