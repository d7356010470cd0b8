"""What the base model already draws for a trigger and its words, and words that it draws nothing for."""

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

MEANINGLESS = ("dozmel", "kabrun", "tilvog")  # stand beside the class word alone for a model left to itself
# `WordAudit.effect` above which a word counts as drawing something of its own. On the packaged model 32 characters that it
# knows by name lie at .36 and above, words that by the oracle have no look of their own at .28 and below. Of words
# invented at random a quarter lies above .3: there the oracle finds one attribute far too often as well.
LIMIT = 0.3
LOOKS = 20  # at words, for each that is to be suggested


@dataclass(frozen=True)
class AuditSettings:
    """How closely the base model is looked at; every word costs `seeds` renders."""

    seeds: int = 8
    first_seed: int = 50_000  # away from the probes', so that nothing is chosen on what later judges it
    limit: float = LIMIT
    nearest: int = 3  # known tags named for a word
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
        """Every prompt at every seed."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(prompt, seed) for prompt in prompts for seed in seeds]


@dataclass(frozen=True)
class WordAudit:
    """What the base model draws for the whole trigger or one of its words."""

    word: str
    tokens: tuple[str, ...]
    known: bool  # a tag that the base model is known to draw
    effect: Estimate  # 0: nothing that the reference does not draw; 1 and more: always the same picture
    spread: float  # of its pictures: mean cosine distance between two of different seeds
    distance: float  # of their mean from that of the reference pictures; about 0 (noise) to 1
    nearest: tuple[str, ...]  # known tags that its pictures lie closest to, compared to the reference
    flagged: bool

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.flagged:
            return f"`{self.word}` draws nothing of its own"
        what = "is a tag of its own" if self.known else "draws something of its own"
        near = f" (nearest: {join_tags(self.nearest)})" if self.nearest else ""
        return f"`{self.word}` {what}{near}"


@dataclass(frozen=True)
class TriggerAudit:
    """A trigger's audit: the whole word first, then its parts where it has several."""

    trigger: str
    words: tuple[WordAudit, ...]
    spread: Estimate  # of the reference pictures: the class word alone and with meaningless words

    @property
    def tokens(self) -> tuple[str, ...]:
        """The trigger as the model reads it."""
        return self.words[0].tokens

    @property
    def flagged(self) -> tuple[WordAudit, ...]:
        """The words that bring something of their own."""
        return tuple(word for word in self.words if word.flagged)

    @property
    def verdict(self) -> str:
        """One line: what is wrong and what to do, or that nothing is."""
        if not self.flagged:
            return f"`{self.trigger}`: clean, the base model draws nothing of its own for it"
        found = "; ".join(word.verdict for word in self.flagged)
        return f"`{self.trigger}`: {found}: choose another trigger, or train with regularization images of it"


def split_words(trigger: str) -> tuple[str, ...]:
    """The words a trigger is made of, `Mona_TacoBell` -> Mona, Taco, Bell; single letters and numbers do not count."""
    parts = re.split(r"[\W_]+|(?<=[^\W\d_])(?=\d)|(?<=[a-z])(?=[A-Z])", trigger)
    return tuple(dict.fromkeys(part for part in parts if len(part) > 1 and not part.isdigit()))


def audit_requests(trigger: str, class_word: str, settings: AuditSettings) -> list[tuple[str, int]]:
    """Every (prompt, seed) that `audit_trigger` renders, for the total of a progress bar and for the cost."""
    return settings.requests(add_class_word(class_word, [*_audited(trigger, class_word), "", *MEANINGLESS]))


def add_class_word(class_word: str, words: Sequence[str]) -> list[str]:
    """A prompt for each word, beside the class word; what is empty, or the same, stands once or not at all."""
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
    """Compare what the base model draws for a trigger, and for each of its words, to the reference.

    Every word stands beside the class word, as triggers do in captions: alone, what a model makes of a prompt without
    a subject hides what the word adds (by spread, known characters of the packaged model are told from meaningless
    words with AUC .83 instead of .98). The reference is the class word alone and with meaningless words.
    `WordAudit.effect` is how much more alike a word's pictures are to one another than to the reference's, over the
    reference's spread; all words share their seeds, and no picture is compared to one of its own seed, so that shared
    noise does not count.

    Args:
        trigger: one tag, such as `Mona_Taco`.
        renders: the base model's cached renders.
        encoder: with pictures and texts in one space.
        class_word: such as `1girl`; may be empty.
        known_tags: tags that the model knows, to name what a word draws.
        advance: hears of finished renders, `len(audit_shots(...))` in all.

    Raises:
        ConfigError: the trigger is empty, several tags, or longer than a prompt.
    """
    settings = settings or AuditSettings()
    _check(trigger, renders.model)
    words = _audited(trigger, class_word)
    pictures = renders.render(audit_requests(trigger, class_word, settings), advance)
    embedded = encoder.images(pictures)
    rows = embedded.reshape(-1, settings.seeds, embedded.shape[1])
    own, reference = rows[: len(words)], _refer(rows[len(words) :], encoder, known_tags, settings)
    audits = [
        _audit_word(word, row, reference, tuple(renders.model.tokens(word)), settings)
        for word, row in zip(words, own, strict=True)
    ]
    return TriggerAudit(trigger, tuple(audits), estimate(reference.spread[0], reference.spread))


@dataclass(frozen=True)
class _Reference:
    """What words are compared to; `counts` says how often each draw counts each seed, the first one each once."""

    rows: Array  # (words, seeds, D)
    counts: Array  # (draws, seeds)
    spread: Array  # (draws,)
    tags: Sequence[str]
    directions: Array  # (tags, D) unit vectors: what sets each tag's text apart from the others' mean


def _refer(rows: Array, encoder: Encoder, tags: Sequence[str], settings: AuditSettings) -> _Reference:
    seeds = settings.seeds
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), settings.bootstrap)
    counts = np.concatenate([np.ones((1, seeds)), drawn[(drawn > 0).sum(1) > 1]])  # one seed alone makes no pair
    spread = 1 - np.mean([_likeness(row, row, counts) for row in rows], axis=0)
    texts = encoder.texts(tags) if tags else np.zeros((0, rows.shape[2]))
    apart = texts - texts.mean(0) if tags else texts
    directions = apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-9)
    return _Reference(rows, counts, spread, tags, directions)


def _audit_word(
    word: str, row: Array, reference: _Reference, tokens: tuple[str, ...], settings: AuditSettings
) -> WordAudit:
    counts = reference.counts
    alike = _likeness(row, row, counts)
    usual = np.mean([_likeness(row, other, counts) for other in reference.rows], axis=0)
    own = estimate(float((alike - usual)[0] / reference.spread[0]), (alike - usual) / reference.spread)
    towards = reference.directions @ (row.mean(0) - reference.rows.mean((0, 1)))
    nearest = np.argsort(-towards, kind="stable")[: settings.nearest]
    apart = row - reference.rows.mean(0)
    known = _key(word) in {_key(tag) for tag in reference.tags}
    return WordAudit(
        word=word,
        tokens=tokens,
        known=known,
        effect=own,
        spread=float(1 - alike[0]),
        distance=float(np.sqrt(max(_likeness(apart, apart, counts[:1])[0], 0))),  # free of the noise of few seeds
        nearest=tuple(reference.tags[i] for i in nearest if towards[i] > 0),
        flagged=known or own.value > settings.limit,
    )


def suggest_triggers(
    model: BaseModel,
    count: int,
    seed: int,
    taken: Collection[str] = (),
    passes: Callable[[str], bool] = lambda word: True,
) -> list[str]:
    """Up to `count` pronounceable words that should mean nothing to the model, those of few tokens first.

    A word that is one token has been met often, so it means something; so may one that holds a word of `taken`.

    Args:
        model: whose tokens count.
        count: how many words; LOOKS times as many are looked at, at most.
        seed: equal seeds suggest the same words.
        taken: triggers in use and known tags.
        passes: a closer look at each, such as `lambda word: not audit_trigger(word, ...).flagged`.
    """
    rng = random.Random(f"trigger-{seed}")
    known = {part.casefold() for tag in taken for part in split_words(tag) if len(part) > 2}
    words = dict.fromkeys(_invent(rng) for _ in range(50 * count + 200))
    unknown = [word for word in words if not any(part in word or word in part for part in known)]
    by_tokens = {word: len(model.tokens(word)) for word in unknown}
    ordered = sorted((word for word in unknown if by_tokens[word] > 1), key=by_tokens.__getitem__)
    return list(islice((word for word in ordered[: LOOKS * count] if passes(word)), count))


def _invent(rng: random.Random) -> str:
    """Two syllables of consonant, vowel, consonant, `bakrim`, or one and a half, `bakim`."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    pattern = rng.choice(("cvcvc", "cvccvc"))
    return "".join(rng.choice(consonants if kind == "c" else vowels) for kind in pattern)


def _check(trigger: str, model: BaseModel) -> None:
    if len(split_tags(trigger)) != 1:
        raise ConfigError(f"trigger `{trigger}`: got {len(split_tags(trigger))} tags, expected one, without commas")
    if (size := len(model.tokens(trigger))) > model.prompt_tokens:
        raise ConfigError(f"trigger `{trigger}` takes {size} tokens, a prompt holds {model.prompt_tokens}: shorten it")


def _audited(trigger: str, class_word: str) -> list[str]:
    """The trigger, then its words where it has several; what differs in case alone is one word to the tokenizer."""
    known = {_key(trigger), _key(class_word)}
    return [trigger, *(word for word in split_words(trigger) if _key(word) not in known)]


def _key(tag: str) -> str:
    return tag_key(tag.replace("_", " "))


def _likeness(first: Array, second: Array, counts: Array) -> Array:
    """Mean cosine between pictures of two words, never of one seed, for each row of how often each seed counts.

    Args:
        first, second: (seeds, D) unit vectors.
        counts: (draws, seeds).
    """
    others = 1 - np.eye(len(first))
    pairs = np.einsum("bi,ij,bj->b", counts, first @ second.T * others, counts)
    return np.asarray(pairs / np.einsum("bi,ij,bj->b", counts, others, counts))
