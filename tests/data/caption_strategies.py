"""Random datasets of captions for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.data.folders import dataset_of

TAGS = (
    *("zorak", "Zorak", "fit_a", "fit a", "1girl", "long hair", "very_long_hair", "hair", "short hair", "blue hair"),
    *("red hair", "two-tone hair", "multicolored hair", "animal ears", "cat ears", "blue eyes", "red eyes", "2girls"),
    *("blue robe", "robe", "hat", "sun hat", "smile", "open mouth", "closed mouth", "standing", "sitting", "city"),
    *("night", "day", "highres", "masterpiece", "rating:safe", "upper body", "full body", "unheard", "watermark"),
    *("a girl who stands in the rain", "looking at viewer", "from above", r"mona \(game\)"),
)
CAPTIONS = st.lists(st.sampled_from(TAGS), min_size=1, max_size=9).map(", ".join)
DATASETS = st.lists(CAPTIONS, min_size=1, max_size=4).flatmap(
    lambda a: st.lists(CAPTIONS, min_size=1, max_size=4).map(lambda b: dataset_of({"fit_a": a, "fit_b": b}))
)
LEVELS = st.sampled_from(["none", "marks", "all"])
