"""Which tags the base model can draw by itself, and so which ones only a trigger can carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autolora.data.caption_recipe import LEVELS
from autolora.prepare.trigger_audit import AuditSettings, add_class_word
from autolora.sampling import Advance, BaseRenders
from autolora.scoring.encoders import Encoder
from autolora.scoring.intervals import Estimate, bootstrap_means, estimate

# From which response on a tag counts as drawn. On the packaged model 27 of 30 tags of its vocabulary lie above (not
# `twintails` and `ponytail`, which its CLIP hardly tells from other hair, and `purple eyes`), and 16 of 17 of things
# that it has never seen below: there it is 0.1 on average, since of `red horns` the red is drawn.
LIMIT = 0.25
TAG_AUDIT = AuditSettings(first_seed=60_000, limit=LIMIT)


@dataclass(frozen=True)
class DrawableTag:
    """How far the base model's pictures follow a tag: 0 not at all, 1 as far as its text lies from the class's."""

    tag: str
    response: Estimate
    drawable: bool


def tag_requests(tags: Sequence[str], class_word: str, settings: AuditSettings = TAG_AUDIT) -> list[tuple[str, int]]:
    """Every (prompt, seed) that `drawable_tags` renders: the class word alone first, then with each tag."""
    return settings.requests(add_class_word(class_word, ["", *tags]))


def drawable_tags(
    tags: Sequence[str],
    renders: BaseRenders,
    encoder: Encoder,
    class_word: str,
    settings: AuditSettings = TAG_AUDIT,
    advance: Advance | None = None,
) -> tuple[DrawableTag, ...]:
    """Compare the class word's pictures with and without each tag, on the same seeds.

    The response is the shift of a picture's embedding along the shift of the prompt's, over the length of the latter.

    Args:
        tags: such as `gold horns`.
        renders: the base model's cached renders.
        encoder: with pictures and texts in one space.
        class_word: such as `1girl`; may be empty.
        settings: how closely to look.
        advance: hears of finished renders, `len(drawn_shots(...))` in all.
    """
    embedded = encoder.images(renders.render(tag_requests(tags, class_word, settings), advance))
    rows = embedded.reshape(-1, settings.seeds, embedded.shape[1])
    texts = encoder.texts(add_class_word(class_word, ["", *tags]))
    found = []
    for tag, row, text in zip(tags, rows[1:], texts[1:], strict=True):
        way = text - texts[0]
        shares = (row - rows[0]) @ way / max(float(way @ way), 1e-9)
        draws = bootstrap_means(shares[:, None], settings.bootstrap, seed=0)
        response = estimate(float(shares.mean()), draws, settings.seeds)
        found.append(DrawableTag(tag, response, response.value >= settings.limit))
    return tuple(found)


def suggest_level(levels: Mapping[str, Mapping[str, Sequence[str]]], found: Sequence[DrawableTag]) -> str:
    """The level of LEVELS that is right for most tags; the weaker of equals.

    Right is to absorb what the base model cannot draw, which only a trigger can carry, and to keep what it can: that
    stays changeable in the captions, and costs the trigger nothing to learn.

    Args:
        levels: by level, the tags that each trigger would absorb, as `suggest_pruning` gives them.
        found: all of these tags.
    """

    def right(level: str) -> int:
        absorbed = absorbed_tags(levels, level)
        return sum((one.tag in absorbed) != one.drawable for one in found)

    return max(LEVELS, key=right)


def absorbed_tags(levels: Mapping[str, Mapping[str, Sequence[str]]], level: str) -> set[str]:
    """What all triggers together absorb at a level."""
    return {tag for tags in levels.get(level, {}).values() for tag in tags}
