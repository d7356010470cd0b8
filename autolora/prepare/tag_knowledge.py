"""Which tags the base model can draw without training; only a trigger can teach the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autolora.data.caption_recipe import LEVELS
from autolora.prepare.trigger_audit import AuditSettings, add_class_word
from autolora.sampling import Advance, BaseRenders
from autolora.scoring.encoders import Encoder
from autolora.scoring.intervals import Estimate, bootstrap_means, estimate

# The response from which a tag counts as drawable. In the packaged model 27 of 30 tags of its vocabulary are above it
# (not `twintails` and `ponytail`, which its CLIP hardly distinguishes from other hair, and `purple eyes`), and 16 of 17
# tags of things that it has never seen are below. Their mean is 0.1: of `red horns`, for example, the red is drawn.
LIMIT = 0.25
TAG_AUDIT = AuditSettings(first_seed=60_000, limit=LIMIT)


@dataclass(frozen=True)
class DrawableTag:
    """How well the base model's renders follow a tag: response 0 is not at all, 1 is as far as the text changes."""

    tag: str
    response: Estimate
    drawable: bool


def tag_requests(tags: Sequence[str], class_word: str, settings: AuditSettings = TAG_AUDIT) -> list[tuple[str, int]]:
    """All (prompt, seed) pairs that `drawable_tags` renders: first the class word alone, then with each tag."""
    return settings.requests(add_class_word(class_word, ["", *tags]))


def drawable_tags(
    tags: Sequence[str],
    renders: BaseRenders,
    encoder: Encoder,
    class_word: str,
    settings: AuditSettings = TAG_AUDIT,
    advance: Advance | None = None,
) -> tuple[DrawableTag, ...]:
    """Compare renders of the class word with and without each tag, at the same seeds.

    The response is the shift of an image's embedding along the shift of the prompt's embedding, divided by the length
    of the latter.

    Args:
        tags: for example `gold horns`.
        renders: the base model's renders.
        encoder: embeds images and texts into one space.
        class_word: for example `1girl`; may be empty.
        settings: number of seeds, and the limit.
        advance: called with the number of finished renders, `len(tag_requests(...))` in total.
    """
    embedded = encoder.embed_pooled(renders.render(tag_requests(tags, class_word, settings), advance))
    rows = embedded.reshape(-1, settings.seeds, embedded.shape[1])
    texts = encoder.embed_texts(add_class_word(class_word, ["", *tags]))
    results = []
    for tag, row, text in zip(tags, rows[1:], texts[1:], strict=True):
        direction = text - texts[0]
        shares = (row - rows[0]) @ direction / max(float(direction @ direction), 1e-9)
        draws = bootstrap_means(shares[:, None], settings.bootstrap, seed=0)
        response = estimate(float(shares.mean()), draws, settings.seeds)
        results.append(DrawableTag(tag, response, response.value >= settings.limit))
    return tuple(results)


def suggest_level(levels: Mapping[str, Mapping[str, Sequence[str]]], tags: Sequence[DrawableTag]) -> str:
    """The level of `captions.absorb_tags` that is right for most tags; of equally good levels the weaker one.

    It is right to absorb tags that the base model cannot draw, because only a trigger can teach them. It is right to
    keep tags that it can draw: they remain changeable by the caption, and the trigger need not learn them.

    Args:
        levels: the tags that each trigger would absorb at each level, from `absorbed_by_level`.
        tags: results for all of these tags.
    """

    def right(level: str) -> int:
        absorbed = absorbed_tags(levels, level)
        return sum((result.tag in absorbed) != result.drawable for result in tags)

    return max(LEVELS, key=right)


def absorbed_tags(levels: Mapping[str, Mapping[str, Sequence[str]]], level: str) -> set[str]:
    """The tags that all triggers together absorb at a level."""
    return {tag for tags in levels.get(level, {}).values() for tag in tags}
