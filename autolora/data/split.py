"""Chooses the validation images; near-duplicates stay on one side, so that no validation image is trained on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autolora.data.images import difference_hash, load_image
from autolora.data.sources import Picture, format_problems
from autolora.errors import DatasetError

# Measured on 8 paper-doll characters: 90% of JPEG, half-size and brighter copies differ in at most 3 of 64 bits, 90% of
# copies cropped by 2% in at most 6. Different drawings differ in at least 5 bits, except for 1% of the pairs. With 4
# bits the largest group is 4 of 24 images, with 8 bits 18. Captions are not compared: copies have different ones.
NEAR_DUPLICATE_BITS = 4
FEWEST_PICTURES = 3  # per concept
_BLOCK_ROWS = 64

Split = tuple[dict[str, tuple[Picture, ...]], tuple[Picture, ...]]


def difference_hashes(pictures: Sequence[Picture]) -> NDArray[np.bool_]:
    """The difference hashes of images, (n, 64) bool; the file is read if an image has no `perceptual_hash`.

    Raises:
        DatasetError: a file is missing or broken.
    """
    hashes = [difference_hash(load_image(p.path)) if p.perceptual_hash is None else p.perceptual_hash for p in pictures]
    return np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.bool_)


def validation_count(images: int, share: float, minimum: int) -> int:
    """The number of validation images of a concept: max(minimum, share * images), at most half; 1 below six images."""
    if images < 6:
        return 1
    return min(max(minimum, int(share * images + 0.5)), images // 2)


def split_validation(concepts: Mapping[str, Sequence[Picture]], share: float, minimum: int, seed: int) -> Split:
    """The training images of each concept and the validation images of all concepts, both in their original order.

    Chains of near-duplicates, even across concepts, land on one side, so a concept may have fewer validation images.
    If all images of a concept are similar (icons, flat drawings), its threshold is lowered until as many images as are
    asked for can be held out, or as near to that as can be.

    Args:
        concepts: the images of each concept.
        share: of each concept's images to validate on.
        minimum: number of validation images per concept.
        seed: of the random choice.

    Raises:
        DatasetError: a concept has too few images, or only copies of one image.
    """
    too_few = [
        f"concept `{name}` has {len(pictures)} image(s): at least {FEWEST_PICTURES} are needed"
        for name, pictures in concepts.items()
        if len(pictures) < FEWEST_PICTURES
    ]
    if too_few:
        raise DatasetError(format_problems("too few images", too_few))
    everything = [picture for pictures in concepts.values() for picture in pictures]
    names = [name for name, pictures in concepts.items() for _ in pictures]
    targets = {name: validation_count(len(pictures), share, minimum) for name, pictures in concepts.items()}
    hashes = difference_hashes(everything)
    files = [picture.sha256 for picture in everything]
    bits = dict.fromkeys(concepts, NEAR_DUPLICATE_BITS)
    tried: list[tuple[int, int, set[int]]] = []  # concepts without a validation image, images too many or too few
    while not tried or tried[-1][:2] != (0, 0):
        groups = _group_duplicates(hashes, files, np.array([bits[name] for name in names]))
        chosen = _choose(groups, names, targets, seed)
        counts = Counter(names[i] for i in chosen)
        lowest = {name: 0 if counts[name] else -1 for name in concepts}  # at -1 only copies of one file are together
        similar = [name for name in concepts if not counts[name] or bits[name] < NEAR_DUPLICATE_BITS]
        missed = sum(abs(counts[name] - targets[name]) for name in similar)
        tried.append((sum(not counts[name] for name in concepts), missed, chosen))
        lowered = {n: bits[n] - 1 for n in similar if counts[n] != targets[n] and bits[n] > lowest[n]}
        if not lowered:
            break
        bits |= lowered
    unsplit, _, chosen = min(tried, key=lambda one: one[:2])
    if unsplit:
        without = concepts.keys() - {names[i] for i in chosen}
        problems = (f"concept `{name}` has only copies of one image: add different ones" for name in sorted(without))
        raise DatasetError(format_problems("no image is left for validation", problems))
    train = {
        concept: tuple(p for i, p in enumerate(everything) if names[i] == concept and i not in chosen)
        for concept in concepts
    }
    return train, tuple(p for i, p in enumerate(everything) if i in chosen)


def _group_duplicates(hashes: NDArray[np.bool_], files: Sequence[str], bits: NDArray[np.int_]) -> list[list[int]]:
    """The indices of all images, with chains of near-duplicates grouped.

    A pair is compared by the stricter of its concepts' thresholds. Copies of one file are always in one group. The
    distances are computed in blocks of rows, because the (n, n) matrix of a large dataset would not fit into memory.

    Args:
        hashes: (n, 64).
        files: a hash of each file.
        bits: threshold of each image.
    """
    from scipy.sparse import coo_array  # imported here because it takes a quarter of a second
    from scipy.sparse.csgraph import connected_components

    labels = np.unique(files, return_inverse=True)[1]
    signs = np.where(hashes, np.float32(1), np.float32(-1))  # the product of two is equal bits minus different bits
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


def _choose(groups: list[list[int]], names: Sequence[str], targets: Mapping[str, int], seed: int) -> set[int]:
    """The indices of the validation images: random whole groups, as long as they fit every concept they touch.

    A concept without a fitting group gets its smallest group, if training keeps an image of every concept in it.

    Args:
        groups: of near-duplicates, as indices.
        names: the concept of each image.
        targets: number of validation images of each concept.
        seed: of the random choice.
    """
    total = Counter(names)
    counts: Counter[str] = Counter()
    chosen: set[int] = set()

    def take(group: list[int], limits: Mapping[str, int]) -> None:
        """Choose the group unless a concept would exceed its limit."""
        size = Counter(names[i] for i in group)
        if chosen.isdisjoint(group) and all(counts[name] + count <= limits[name] for name, count in size.items()):
            counts.update(size)
            chosen.update(group)

    own = Counter(name for group in groups if len({names[i] for i in group}) == 1 for name in (names[i] for i in group))
    # First the concepts that need groups which they share with others: the others have enough of their own.
    for concept, target in sorted(targets.items(), key=lambda item: own[item[0]] >= item[1]):
        candidates = [group for group in groups if any(names[i] == concept for i in group)]
        random.Random(f"held-out {seed} {concept}").shuffle(candidates)
        for group in candidates:
            if counts[concept] < target:
                take(group, targets)
        for group in sorted(candidates, key=len):
            if not counts[concept]:
                take(group, {name: count - 1 for name, count in total.items()})
    return chosen
