"""What the base model says before anything is trained: of the triggers, and of the tags that they could absorb."""

from __future__ import annotations

from autolora.data.captions import split_tags
from autolora.data.concepts import Dataset
from autolora.data.tag_report import absorbed_by_level
from autolora.prepare.tag_knowledge import TAG_AUDIT, absorbed_tags, drawable_tags, suggest_level, tag_requests
from autolora.prepare.trigger_audit import (
    AuditSettings,
    TriggerAudit,
    audit_requests,
    audit_trigger,
    suggest_triggers,
)
from autolora.progress import Bars
from autolora.report.tables import Cell, Section
from autolora.sampling import Advance, BaseRenders
from autolora.scoring.encoders import Encoder
from autolora.scoring.settings import ScoringSettings

SUGGESTED = 3  # better triggers named where one is flagged


def pruning_section(dataset: Dataset, renders: BaseRenders, encoder: Encoder | str, bars: Bars) -> Section:
    """Which of the tags that the triggers could absorb the base model can draw, and how far to prune for that."""
    levels = absorbed_by_level(dataset)
    carried = {tag: (word, level) for level in reversed(levels) for word, tags in levels[level].items() for tag in tags}
    title, columns = "Pruning", ("tag", "trigger", "level", "response", "low", "high", "drawn")
    if isinstance(encoder, str) or not carried:
        reason = f"not looked at: {encoder}" if carried else "no tag is frequent enough"
        return Section(title, columns, (), (reason,))
    tags = tuple(carried)
    shots = tag_requests(tags, dataset.class_word)
    with bars.task("drawing what the triggers could absorb", len(shots)) as advance:
        found = drawable_tags(tags, renders, encoder, dataset.class_word, advance=advance)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (*(one.tag, *carried[one.tag]), *one.response.as_dict().values(), "yes" if one.drawable else "no")
        for one in found
    )
    level = suggest_level(levels, found)
    absorbed = absorbed_tags(levels, level)
    price = [one.tag for one in found if one.drawable and one.tag in absorbed]
    left = [one.tag for one in found if not one.drawable and one.tag not in absorbed]
    words = [
        f"suggested: captions.absorb_tags={level}: only a trigger can carry what the base model cannot draw by its tag"
    ]
    if left:
        words.append(f"captions.drop_tags=[{','.join(left)}] leaves the rest of that to the trigger too")
    if price:
        words.append(f"its price: the base model can draw {', '.join(price)}, which will be harder to change")
    words.append(f"response: how far pictures follow the tag, 0 = not at all; from {TAG_AUDIT.limit:g} on it is drawn")
    return Section(title, columns, rows, tuple(words))


def trigger_section(
    dataset: Dataset, renders: BaseRenders, encoder: Encoder | str, scoring: ScoringSettings, bars: Bars
) -> Section:
    """What the base model draws for each trigger and its words before anything is trained, with better triggers.

    Without an encoder, given why there is none, it is tokens only.
    """
    triggers = list(dict.fromkeys([dataset.trigger, *(concept.trigger for concept in dataset.concepts)]))
    title, columns = "Triggers", ("trigger", "word", "tokens", "own", "low", "high", "nearest")
    rows: tuple[tuple[Cell, ...], ...]
    if isinstance(encoder, str):
        rows = tuple((word, word, len(renders.model.tokens(word)), None, None, None, "") for word in triggers)
        return Section(title, columns, rows, (f"not looked at: {encoder}",))
    words = [tag for context in (*scoring.trigger_prompts, *scoring.outfit_prompts) for tag in split_tags(context)]
    known = sorted({tag for tag in words if tag not in triggers})
    settings = AuditSettings()
    shots = [len(audit_requests(trigger, dataset.class_word, settings)) for trigger in triggers]

    def look(trigger: str, advance: Advance | None = None) -> TriggerAudit:
        return audit_trigger(trigger, renders, encoder, dataset.class_word, known, settings, advance)

    with bars.task("drawing what the triggers mean to the base model", sum(shots)) as advance:
        audits = [look(trigger, advance) for trigger in triggers]
    rows = tuple(
        (
            *(found.trigger, one.word, len(one.tokens), one.effect.value, one.effect.low, one.effect.high),
            ", ".join(one.nearest if one.flagged else ()),
        )
        for found in audits
        for one in found.words
    )
    said = [found.verdict for found in audits]
    if any(found.flagged for found in audits):
        with bars.task("looking for better triggers", None):
            taken = [*triggers, *known]
            free = suggest_triggers(renders.model, SUGGESTED, 0, taken, lambda word: not look(word).flagged)
        said.append(f"words that mean nothing to it: {', '.join(free) or 'none was found'}")
    said.append(f"own: 0 = what a meaningless word draws, 1 = always one picture; above {settings.limit} is a warning")
    return Section(title, columns, rows, tuple(said))
