"""The looks of paper dolls: attribute groups, tags, and novel characters that the base model never saw."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

GROUPS: dict[str, tuple[str, ...]] = {
    "count": ("1girl", "1boy"),
    "hair_color": ("black", "brown", "blonde", "red", "blue", "green", "pink", "white"),
    "hair_style": ("short hair", "long hair", "twintails", "ponytail", "spiky hair"),
    "eye_color": ("blue", "green", "red", "yellow", "purple"),
    "skin": ("pale skin", "tan skin", "dark skin"),
    "outfit": ("t-shirt", "dress", "hoodie", "suit", "overalls"),
    "outfit_color": ("red", "blue", "green", "yellow", "purple", "white", "black"),
    "accessory": ("none", "glasses", "hat", "scarf", "bow"),
    "expression": ("smile", "frown", "open mouth"),
    "background": ("white background", "blue sky", "night sky", "beach", "meadow", "city"),
    "pose": ("arms down", "arms up", "waving"),
}
# The base model is never trained on what follows: this is what makes a character novel.
MARKS: dict[str, tuple[str, ...]] = {
    "crest": ("none", "horns", "cat ears", "halo", "antlers", "antennae"),
    "crest_color": ("red", "gold", "teal", "violet", "black"),
    "two_tone": ("none", "left half", "tips", "streak"),
    "two_tone_color": ("orange", "teal", "magenta", "white", "black"),
    "face_mark": ("none", "star", "cross", "stripes", "diamond"),
    "face_mark_color": ("red", "blue", "green", "gold", "black"),
}
NOVEL_OUTFITS = ("robe", "armor", "poncho", "striped tunic", "emblem coat")
NOVEL_OUTFIT_COLORS = ("red", "blue", "green", "yellow", "purple", "white", "black")

# The attributes of a character without its outfit, and those of its costume.
CHARACTER_GROUPS = ("count", "hair_color", "hair_style", "eye_color", "skin")
COSTUME_GROUPS = ("outfit", "outfit_color", "accessory")
CAST_SIZE = 48  # the number of characters, and of costumes, that the base model knows by name

_STYLE_WEIGHTS = {"1girl": (25, 28, 22, 20, 5), "1boy": (42, 8, 2, 8, 40)}
_ACCESSORY_WEIGHTS = (45, 14, 14, 14, 13)


@dataclass(frozen=True)
class Marks:
    """A novel character's marks: the crest on the head, the second hair colour and the mark on the face."""

    crest: str
    crest_color: str
    two_tone: str
    two_tone_color: str
    face_mark: str
    face_mark_color: str

    def tags(self) -> tuple[str, ...]:
        """Return the tags of the marks; only the scoring CLIP is trained on them, never the base model."""
        marks = [(self.crest, self.crest_color), (self.face_mark, self.face_mark_color)]
        tags = [f"{color} {kind}" for kind, color in marks if kind != "none"]
        if self.two_tone != "none":
            tags.append(f"{self.two_tone_color} {self.two_tone} hair")
        return tuple(tags)


@dataclass(frozen=True)
class Outfit:
    """A novel outfit: its cut, its main and second colour, and its trigger."""

    cut: str
    color: str
    second_color: str
    trigger: str


@dataclass(frozen=True)
class Look:
    """Everything that a drawing shows."""

    values: dict[str, str]  # by group of GROUPS
    marks: Marks | None = None
    second_color: str = "white"

    def tags(self) -> tuple[str, ...]:
        """Return the booru-style tags of this look, the count tag first."""
        count, *rest = self.tags_of(self.values)
        return (count, *(() if self.marks is None else self.marks.tags()), *rest)

    def tags_of(self, groups: Collection[str]) -> tuple[str, ...]:
        """Return the tags of some attribute groups in a fixed order; an outfit's tag contains its colour."""
        v = self.values
        tags = {
            "count": v["count"],
            "hair_color": f"{v['hair_color']} hair",
            "hair_style": v["hair_style"],
            "eye_color": f"{v['eye_color']} eyes",
            "skin": v["skin"],
            "outfit": f"{v['outfit_color']} {v['outfit']}",
            "accessory": v["accessory"],
            "expression": v["expression"],
            "pose": v["pose"],
            "background": v["background"],
        }
        return tuple(tag for group, tag in tags.items() if group in groups and tag != "none")


@dataclass(frozen=True)
class Character:
    """A novel character: fixed traits, marks and one to four outfits, each with a trigger."""

    seed: int
    trigger: str
    traits: dict[str, str]  # count, hair_color, hair_style, eye_color, skin
    marks: Marks
    outfits: tuple[Outfit, ...]


def tag_vocabulary() -> tuple[str, ...]:
    """Return every tag that the base model's captions may contain."""
    simple = [v for g in ("count", "hair_style", "skin", "expression", "background", "pose") for v in GROUPS[g]]
    simple += [v for v in GROUPS["accessory"] if v != "none"]
    simple += [f"{c} hair" for c in GROUPS["hair_color"]] + [f"{c} eyes" for c in GROUPS["eye_color"]]
    simple += [f"{c} {o}" for c in GROUPS["outfit_color"] for o in GROUPS["outfit"]]
    return tuple(simple)


def mark_tags() -> tuple[str, ...]:
    """Return every tag of novel characters' marks."""
    pairs = (("crest", ""), ("face_mark", ""), ("two_tone", " hair"))
    return tuple(f"{c} {k}{tail}" for m, tail in pairs for k in MARKS[m][1:] for c in MARKS[f"{m}_color"])


def sample_values(rng: random.Random) -> dict[str, str]:
    """Sample a value for each attribute group, with the frequencies of the base model's world."""
    values = {group: rng.choice(options) for group, options in GROUPS.items()}
    values["hair_style"] = rng.choices(GROUPS["hair_style"], _STYLE_WEIGHTS[values["count"]])[0]
    values["accessory"] = rng.choices(GROUPS["accessory"], _ACCESSORY_WEIGHTS)[0]
    return values


def parse_prompt(prompt: str) -> dict[str, str]:
    """Return the attribute values that a prompt names; groups that it does not name are absent."""
    lookup: dict[str, dict[str, str]] = {}
    for group in ("count", "hair_style", "skin", "expression", "background", "pose", "accessory"):
        for value in GROUPS[group]:
            lookup[value] = {group: value}
    for color in GROUPS["hair_color"]:
        lookup[f"{color} hair"] = {"hair_color": color}
    for color in GROUPS["eye_color"]:
        lookup[f"{color} eyes"] = {"eye_color": color}
    for color in GROUPS["outfit_color"]:
        for outfit in GROUPS["outfit"]:
            lookup[f"{color} {outfit}"] = {"outfit_color": color, "outfit": outfit}
    values: dict[str, str] = {}
    for tag in prompt.split(","):
        values.update(lookup.get(tag.strip(), {}))
    return values


def nonsense_word(rng: random.Random) -> str:
    """Return a pronounceable word without a meaning, for a trigger."""
    consonants, vowels = "bdfgjklmnprstvz", "aeiou"
    pairs = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.choice((2, 2, 3))))
    return pairs + rng.choice("kmnrxz")


@dataclass(frozen=True)
class KnownName:
    """A name of a character or of a costume that the base model knows, and the attributes that it stands for."""

    name: str
    values: dict[str, str]


@cache
def known_cast() -> tuple[tuple[KnownName, ...], tuple[KnownName, ...]]:
    """Return the characters and the costumes that the base model knows by name."""
    rng = random.Random("cast")
    words = sorted({nonsense_word(rng) for _ in range(2 * CAST_SIZE)})
    rng.shuffle(words)
    samples = [(word, sample_values(rng)) for word in words]
    people = [KnownName(w, {g: v[g] for g in CHARACTER_GROUPS}) for w, v in samples[:CAST_SIZE]]
    costumes = [KnownName(w, {g: v[g] for g in COSTUME_GROUPS}) for w, v in samples[CAST_SIZE:]]
    return tuple(people), tuple(costumes)


def novel_character(seed: int, outfits: int = 2) -> Character:
    """Make the novel character of a seed (0-99 for development, 100 and up for evaluation).

    Raises:
        ValueError: `outfits` is not between 1 and 4.
    """
    if not 1 <= outfits <= 4:
        raise ValueError(f"outfits must be 1 to 4, got {outfits}")
    rng = random.Random(f"character-{seed}")
    values = sample_values(rng)
    traits = {g: values[g] for g in CHARACTER_GROUPS}
    marks = Marks(
        crest=rng.choice(MARKS["crest"][1:]),
        crest_color=rng.choice(MARKS["crest_color"]),
        two_tone=rng.choice(MARKS["two_tone"][1:]),
        two_tone_color=rng.choice([c for c in MARKS["two_tone_color"] if c != traits["hair_color"]]),
        face_mark=rng.choice(MARKS["face_mark"][1:]),
        face_mark_color=rng.choice(MARKS["face_mark_color"]),
    )
    words: list[str] = []
    known_names = {entry.name for kind in known_cast() for entry in kind}
    while len(words) < outfits + 1:
        word = nonsense_word(rng)
        if word not in words and word not in known_names:
            words.append(word)
    cuts = rng.sample(NOVEL_OUTFITS, outfits)
    outfit_list: list[Outfit] = []
    for cut, word in zip(cuts, words[1:], strict=True):
        color, second = rng.sample(NOVEL_OUTFIT_COLORS, 2)
        outfit_list.append(Outfit(cut, color, second, word))
    return Character(seed, words[0], traits, marks, tuple(outfit_list))


def character_look(character: Character, outfit: Outfit, rng: random.Random) -> Look:
    """Sample a look of a novel character: its traits and marks, this outfit, everything else at random."""
    values = sample_values(rng) | character.traits
    values |= {"outfit": outfit.cut, "outfit_color": outfit.color, "accessory": "none"}
    return Look(values, character.marks, outfit.second_color)


def random_novel_look(rng: random.Random) -> Look:
    """Sample a look with random marks and outfits, to train the attribute classifier on novel characters."""
    values = sample_values(rng)
    marks = Marks(**{field: rng.choice(options) for field, options in MARKS.items()})
    second = "white"
    if rng.random() < 0.6:
        values["outfit"] = rng.choice(NOVEL_OUTFITS)
        values["outfit_color"], second = rng.sample(NOVEL_OUTFIT_COLORS, 2)
    if rng.random() < 0.5:
        values["accessory"] = "none"
    return Look(values, marks, second)
