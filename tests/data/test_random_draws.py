"""Random draws: the order of images in an epoch, and the order and dropout of tags."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.captions import join_tags, split_tags
from autolora.data.random_draws import drop_tags, epoch_order, shuffle_tags

CAPTIONS = st.text(st.sampled_from("ab Z_,\\()\t\n é日"), max_size=40)
quick = settings(max_examples=60, deadline=None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_epoch_order_is_seeded_shuffled_and_checked() -> None:
    def order(seed: int) -> list[int]:
        return epoch_order(10, 25, torch.Generator().manual_seed(seed))

    assert order(1) == order(1) != order(2)
    assert order(1)[:10] != order(1)[10:20]
    assert sorted(order(1)[:10]) == sorted(order(1)[10:20]) == list(range(10))
    for images, steps in ((0, 3), (3, -1)):
        with pytest.raises(ValueError, match="at least one image"):
            epoch_order(images, steps, torch.Generator())
    assert epoch_order(3, 0, torch.Generator()) == []


@quick
@given(CAPTIONS, st.integers(0, 5), st.integers(0, 99))
def test_shuffle_keeps_every_tag_and_the_first_tags_in_place(caption: str, keep: int, seed: int) -> None:
    tags, shuffled = split_tags(caption), split_tags(shuffle_tags(caption, keep, generator(seed)))
    assert sorted(shuffled) == sorted(tags)
    assert shuffled[:keep] == tags[:keep]
    assert shuffle_tags(caption, keep, generator(seed)) == join_tags(shuffled)


def test_shuffle_reaches_every_order() -> None:
    draws = generator(0)
    orders = {shuffle_tags("z, a, b, c", 1, draws) for _ in range(100)}
    assert len(orders) == 6
    assert all(order.startswith("z, ") for order in orders)


@quick
@given(CAPTIONS, st.integers(0, 5), st.floats(0, 1), st.integers(0, 99))
def test_drop_keeps_the_order_and_the_first_tags(caption: str, keep: int, share: float, seed: int) -> None:
    tags = split_tags(caption)
    left = split_tags(drop_tags(caption, keep, share, generator(seed)))
    assert left[: min(keep, len(tags))] == tags[:keep]
    rest = iter(tags)
    assert all(tag in rest for tag in left)  # a subsequence
    assert split_tags(drop_tags(caption, keep, 0.0, generator(seed))) == tags
    assert split_tags(drop_tags(caption, keep, 1.0, generator(seed))) == tags[:keep]


def test_drop_removes_its_share_and_refuses_invalid_shares() -> None:
    caption = join_tags(str(i) for i in range(2000))
    assert 1400 < len(split_tags(drop_tags(caption, 0, 0.25, generator(1)))) < 1600
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        drop_tags("a", 0, 1.5, generator(0))
