"""What the base model already draws for a trigger and its words, and suggestions of words without a meaning."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from autolora.data.captions import join_tags, split_tags, tag_key
from autolora.errors import ConfigError
from autolora.models.base import BaseModel
from autolora.sampling import Advance, BaseRenders
from autolora.scoring.encoders import Encoder
from autolora.scoring.intervals import Array, Estimate, estimate

MEANINGLESS = ("dozmel", "kabrun", "tilvog")  # reference words beside the class word, which mean nothing to the model
# `WordAudit.effect` above which a word is flagged. In the packaged model the 32 characters that it knows by name have
# at least .36; words that change no attribute, by the attribute classifier, have at most .28. A quarter of random words
# have more than .3: for them the classifier too finds one attribute far too often.
LIMIT = 0.3
CANDIDATES = 20  # words that are examined at most for each suggestion


@dataclass(frozen=True)
class AuditSettings:
    """The precision of an audit; every word costs `seeds` renders."""

    seeds: int = 8
    first_seed: int = 50_000  # differs from the seeds of evaluation prompts, on which the LoRA is scored later
    limit: float = LIMIT
    nearest: int = 3  # number of known tags that are named for a word
    bootstrap: int = 400

    def __post_init__(self) -> None:
        mistakes = []
        if self.seeds < 3:
            mistakes.append(f"audit.seeds must be at least 3, got {self.seeds}")
        if not 0 < self.limit < 1:
            mistakes.append(f"audit.limit must be between 0 and 1, got {self.limit}")
        if self.nearest < 0 or self.bootstrap < 1:
            mistakes.append("audit.nearest must be at least 0 and audit.bootstrap at least 1")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def requests(self, prompts: Sequence[str]) -> list[tuple[str, int]]:
        """Every prompt with every seed."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(prompt, seed) for prompt in prompts for seed in seeds]


@dataclass(frozen=True)
class WordAudit:
    """What the base model draws for the whole trigger or one of its words."""

    word: str
    tokens: tuple[str, ...]
    is_known_tag: bool  # whether it is a tag that the base model knows
    effect: Estimate  # 0: its renders differ as much as the reference's; 1 and more: they all show the same
    spread: float  # mean cosine distance between its renders of different seeds
    distance: float  # of the mean of its renders from that of the reference; from about 0 (noise) to 1
    nearest: tuple[str, ...]  # known tags that its renders are closest to, compared to the reference
    flagged: bool

    @property
    def verdict(self) -> str:
        """The result in words."""
        if not self.flagged:
            return f"`{self.word}` has no meaning for the base model"
        reason = (
            "is a tag that the base model knows" if self.is_known_tag else "already has a meaning for the base model"
        )
        nearest = f" (nearest: {join_tags(self.nearest)})" if self.nearest else ""
        return f"`{self.word}` {reason}{nearest}"


@dataclass(frozen=True)
class TriggerAudit:
    """The audit of a trigger: the whole trigger first, then its words if it has several."""

    trigger: str
    words: tuple[WordAudit, ...]
    spread: Estimate  # of the reference renders: the class word alone and with meaningless words

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the trigger."""
        return self.words[0].tokens

    @property
    def flagged(self) -> tuple[WordAudit, ...]:
        """The words with a meaning for the base model."""
        return tuple(word for word in self.words if word.flagged)

    @property
    def verdict(self) -> str:
        """The result in one line, with a remedy if a word is flagged."""
        if not self.flagged:
            return f"`{self.trigger}`: clean, it has no meaning for the base model"
        verdicts = "; ".join(word.verdict for word in self.flagged)
        return f"`{self.trigger}`: {verdicts}: choose another trigger, or train with regularization images of it"


def split_words(trigger: str) -> tuple[str, ...]:
    """The words of a trigger, `Mona_TacoBell` -> Mona, Taco, Bell; single letters and numbers are left out."""
    parts = re.split(r"[\W_]+|(?<=[^\W\d_])(?=\d)|(?<=[a-z])(?=[A-Z])", trigger)
    return tuple(dict.fromkeys(part for part in parts if len(part) > 1 and not part.isdigit()))


def audit_requests(trigger: str, class_word: str, settings: AuditSettings) -> list[tuple[str, int]]:
    """All (prompt, seed) pairs that `audit_trigger` renders, for the total of a progress bar and the cost."""
    return settings.requests(add_class_word(class_word, [*_words_to_audit(trigger, class_word), "", *MEANINGLESS]))


def add_class_word(class_word: str, words: Sequence[str]) -> list[str]:
    """A prompt for each word, after the class word; empty parts are left out, and equal parts are written once."""
    return [join_tags(dict.fromkeys(part for part in (class_word, word) if part)) for word in words]


def audit_trigger(
    trigger: str,
    renders: BaseRenders,
    encoder: Encoder,
    class_word: str,
    known_tags: Sequence[str],
    settings: AuditSettings | None = None,
    advance: Advance | None = None,
) -> TriggerAudit:
    """Compare the base model's renders of a trigger, and of each of its words, with a reference.

    Every word is rendered after the class word, as in captions. Alone, the model's own choice of a subject would hide
    the effect of the word: by the spread, known characters of the packaged model are separated from meaningless words
    with an AUC of .83 instead of .98. The reference is the class word alone and with meaningless words.
    `WordAudit.effect` is how much more similar a word's renders are to each other than to the reference's, divided by
    the reference's spread. All words share their seeds, and no two renders of the same seed are compared, so that
    shared noise has no effect.

    Args:
        trigger: one tag, for example `Mona_Taco`.
        renders: the base model's renders.
        encoder: embeds images and texts into one space.
        class_word: for example `1girl`; may be empty.
        known_tags: tags that the model knows, to describe what a word draws.
        settings: number of seeds, and the limit; None: the defaults.
        advance: called with the number of finished renders, `len(audit_requests(...))` in total.

    Raises:
        ConfigError: the trigger is empty, consists of several tags, or is longer than a prompt.
    """
    settings = settings or AuditSettings()
    _check(trigger, renders.model)
    words = _words_to_audit(trigger, class_word)
    images = renders.render(audit_requests(trigger, class_word, settings), advance)
    embedded = encoder.embed_pooled(images)
    rows = embedded.reshape(-1, settings.seeds, embedded.shape[1])
    reference = _make_reference(rows[len(words) :], encoder, known_tags, settings)
    audits = [
        _audit_word(word, row, reference, tuple(renders.model.tokens(word)), settings)
        for word, row in zip(words, rows[: len(words)], strict=True)
    ]
    return TriggerAudit(trigger, tuple(audits), estimate(reference.spread[0], reference.spread))


@dataclass(frozen=True)
class _Reference:
    """The renders that words are compared with; `counts` holds the weight of each seed in each bootstrap draw.

    In the first draw every seed has weight 1.
    """

    rows: Array  # (words, seeds, D)
    counts: Array  # (draws, seeds)
    spread: Array  # (draws,)
    tags: Sequence[str]
    directions: Array  # (tags, D) unit vectors: each tag's text relative to the mean of all tags


def _make_reference(rows: Array, encoder: Encoder, tags: Sequence[str], settings: AuditSettings) -> _Reference:
    seeds = settings.seeds
    generator = np.random.default_rng(0)
    draws = generator.multinomial(seeds, np.full(seeds, 1 / seeds), settings.bootstrap)
    counts = np.concatenate([np.ones((1, seeds)), draws[(draws > 0).sum(1) > 1]])  # one seed alone makes no pair
    spread = 1 - np.mean([_mean_cosine(row, row, counts) for row in rows], axis=0)
    texts = encoder.embed_texts(tags) if tags else np.zeros((0, rows.shape[2]))
    centered = texts - texts.mean(0) if tags else texts
    directions = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-9)
    return _Reference(rows, counts, spread, tags, directions)


def _audit_word(
    word: str, row: Array, reference: _Reference, tokens: tuple[str, ...], settings: AuditSettings
) -> WordAudit:
    counts = reference.counts
    within = _mean_cosine(row, row, counts)
    to_reference = np.mean([_mean_cosine(row, other, counts) for other in reference.rows], axis=0)
    excess = within - to_reference
    effect = estimate(float(excess[0] / reference.spread[0]), excess / reference.spread)
    towards = reference.directions @ (row.mean(0) - reference.rows.mean((0, 1)))
    nearest = np.argsort(-towards, kind="stable")[: settings.nearest]
    offset = row - reference.rows.mean(0)
    is_known_tag = _key(word) in {_key(tag) for tag in reference.tags}
    return WordAudit(
        word=word,
        tokens=tokens,
        is_known_tag=is_known_tag,
        effect=effect,
        spread=float(1 - within[0]),
        distance=float(np.sqrt(max(_mean_cosine(offset, offset, counts[:1])[0], 0))),  # not biased by few seeds
        nearest=tuple(reference.tags[i] for i in nearest if towards[i] > 0),
        flagged=is_known_tag or effect.value > settings.limit,
    )


def suggest_triggers(
    model: BaseModel,
    count: int,
    seed: int,
    taken: Collection[str] = (),
    passes: Callable[[str], bool] = lambda word: True,
) -> list[str]:
    """Up to `count` pronounceable words that should have no meaning to the model, words of few tokens first.

    Words of a single token are left out, because the model has seen them often. So are words that contain a word of
    `taken`, or are contained in one.

    Args:
        model: counts the tokens.
        count: number of words; at most CANDIDATES times as many are examined.
        seed: the same seed suggests the same words.
        taken: triggers in use and known tags.
        passes: examines a word, for example `lambda word: not audit_trigger(word, ...).flagged`.
    """
    rng = random.Random(f"trigger-{seed}")
    parts = {part.casefold() for tag in taken for part in split_words(tag) if len(part) > 2}
    words = dict.fromkeys(_invent_word(rng) for _ in range(50 * count + 200))
    unknown = [word for word in words if not any(part in word or word in part for part in parts)]
    tokens = {word: len(model.tokens(word)) for word in unknown}
    ordered = sorted((word for word in unknown if tokens[word] > 1), key=tokens.__getitem__)
    return list(islice((word for word in ordered[: CANDIDATES * count] if passes(word)), count))


def _invent_word(rng: random.Random) -> str:
    """A random word of consonants and vowels, such as `bakim` or `bakrim`."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    pattern = rng.choice(("cvcvc", "cvccvc"))
    return "".join(rng.choice(consonants if kind == "c" else vowels) for kind in pattern)


def _check(trigger: str, model: BaseModel) -> None:
    """Raise ConfigError if the trigger is not one tag, or is longer than a prompt."""
    if len(split_tags(trigger)) != 1:
        raise ConfigError(f"trigger `{trigger}`: expected one tag, without commas, got {len(split_tags(trigger))} tags")
    if (size := len(model.tokens(trigger))) > model.window_tokens:
        raise ConfigError(
            f"trigger `{trigger}` takes {size} tokens, a prompt holds {model.window_tokens}: choose a shorter one"
        )


def _words_to_audit(trigger: str, class_word: str) -> list[str]:
    """The trigger, then its words if it has several; spellings that differ only in case are one word."""
    keys = {_key(trigger), _key(class_word)}
    return [trigger, *(word for word in split_words(trigger) if _key(word) not in keys)]


def _key(tag: str) -> str:
    return tag_key(tag.replace("_", " "))


def _mean_cosine(first: Array, second: Array, counts: Array) -> Array:
    """The mean cosine between renders of two words at different seeds, for each bootstrap draw.

    Args:
        first: (seeds, D) unit vectors.
        second: (seeds, D) unit vectors.
        counts: weight of each seed in each draw, (draws, seeds).
    """
    different = 1 - np.eye(len(first))
    pairs = np.einsum("bi,ij,bj->b", counts, first @ second.T * different, counts)
    return np.asarray(pairs / np.einsum("bi,ij,bj->b", counts, different, counts))
