"""Holds pictures out for scoring; near-duplicates stay together, so that none held out is trained on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autolora.data.images import difference_hash, load_image
from autolora.data.sources import Picture, format_problems
from autolora.errors import DatasetError

# Measured on 8 paper-doll characters: nine in ten JPEG, half-size and brighter copies differ in at most 3 of
# 64 bits (2%-cropped ones in at most 6), different drawings in at least 5 but for one pair in a hundred. The
# largest group is then 4 of 24 pictures (at 8 bits: 18). Captions are not asked: copies have different ones.
NEAR_DUPLICATE_BITS = 4
FEWEST_PICTURES = 3
_BLOCK_ROWS = 64

Split = tuple[dict[str, tuple[Picture, ...]], tuple[Picture, ...]]


def difference_hashes(pictures: Sequence[Picture]) -> NDArray[np.bool_]:
    """The hashes of pictures, (n, 64) bool; of one that does not know its own the file is read.

    Raises:
        DatasetError: a file is gone or broken.
    """
    hashes = [difference_hash(load_image(p.path)) if p.perceptual_hash is None else p.perceptual_hash for p in pictures]
    return np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.bool_)


def validation_count(pictures: int, share: float, minimum: int) -> int:
    """How many of a concept's pictures to hold out: max(minimum, share), at most half; 1 of under six."""
    if pictures < 6:
        return 1
    return min(max(minimum, int(share * pictures + 0.5)), pictures // 2)


def split_validation(concepts: Mapping[str, Sequence[Picture]], share: float, minimum: int, seed: int) -> Split:
    """The training pictures of each concept, and the held-out pictures of all, both in their first order.

    Chains of near-duplicates, across concepts too, land on one side, so a concept may hold out fewer.
    Where a concept's pictures are all alike (icons, flat drawings), its threshold falls until a split exists.

    Raises:
        DatasetError: a concept has too few pictures, or only copies of one.
    """
    few = [
        f"concept `{name}` has {len(pictures)} picture(s): at least {FEWEST_PICTURES} are needed"
        for name, pictures in concepts.items()
        if len(pictures) < FEWEST_PICTURES
    ]
    if few:
        raise DatasetError(format_problems("too few pictures", few))
    everything = [picture for pictures in concepts.values() for picture in pictures]
    names = [name for name, pictures in concepts.items() for _ in pictures]
    wanted = {name: validation_count(len(pictures), share, minimum) for name, pictures in concepts.items()}
    hashes = difference_hashes(everything)
    files = [picture.sha256 for picture in everything]
    bits = dict.fromkeys(concepts, NEAR_DUPLICATE_BITS)
    while True:
        groups = _groups(hashes, files, np.array([bits[name] for name in names]))
        validation = _choose(groups, names, wanted, seed)
        counts = Counter(names[i] for i in validation)
        stuck = [name for name in concepts if counts[name] == 0]
        if not stuck:
            break
        copies = [name for name in stuck if bits[name] < 0]
        if copies:
            listed = (f"concept `{name}` has only copies of one picture: add different ones" for name in copies)
            raise DatasetError(format_problems("nothing can be held out", listed))
        bits |= {name: bits[name] - 1 for name in stuck}
    train = {
        concept: tuple(p for i, p in enumerate(everything) if names[i] == concept and i not in validation)
        for concept in concepts
    }
    return train, tuple(p for i, p in enumerate(everything) if i in validation)


def _groups(hashes: NDArray[np.bool_], files: Sequence[str], bits: NDArray[np.int_]) -> list[list[int]]:
    """Indices, chains of near-duplicates grouped; a pair takes the stricter of its concepts' thresholds.

    The same file twice is always one group. Rows of distances are met in blocks, never as a whole (n, n) matrix.
    """
    from scipy.sparse import coo_array  # imported here because it takes a quarter of a second
    from scipy.sparse.csgraph import connected_components

    labels = np.unique(files, return_inverse=True)[1]
    signs = np.where(hashes, np.float32(1), np.float32(-1))  # product of two: equal bits less different bits
    for start in range(0, len(signs), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        distances = (hashes.shape[1] - signs[block] @ signs[start:].T) / 2
        near = distances <= np.minimum(bits[block, None], bits[start:])
        rows, columns = np.nonzero(near & (labels[block, None] != labels[start:]))
        ends = (labels[start + rows], labels[start + columns])
        pairs = coo_array((np.ones(len(rows), np.bool_), ends), (len(labels), len(labels)))
        labels = connected_components(pairs, directed=False)[1][labels]
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(index)
    return list(groups.values())


def _choose(groups: list[list[int]], names: Sequence[str], wanted: Mapping[str, int], seed: int) -> set[int]:
    """Draw whole groups at random while they fit every concept they touch.

    A concept where none fits takes its smallest, if training keeps a picture of every concept in it.
    """
    total = Counter(names)
    held: Counter[str] = Counter()
    chosen: set[int] = set()

    def take(group: list[int], most: Mapping[str, int]) -> None:
        """Hold the group out unless a concept would hold out more than `most`."""
        size = Counter(names[i] for i in group)
        if chosen.isdisjoint(group) and all(held[name] + count <= most[name] for name, count in size.items()):
            held.update(size)
            chosen.update(group)

    for concept, most in wanted.items():
        own = [group for group in groups if any(names[i] == concept for i in group)]
        random.Random(f"held-out {seed} {concept}").shuffle(own)
        for group in own:
            if held[concept] < most:
                take(group, wanted)
        for group in sorted(own, key=len):
            if not held[concept]:
                take(group, {name: count - 1 for name, count in total.items()})
    return chosen
