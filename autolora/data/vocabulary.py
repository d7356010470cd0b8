"""The meaning of booru tags: their kind, which tags exclude each other, and which tags imply others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from autolora.data.captions import booru_key, tag_key

TRAITS = ("marks", "hair colour", "hair style", "eyes", "skin", "body")  # kinds that do not change with the outfit
OUTFIT = ("clothing", "accessory")
LONGEST_TAG = 4  # words; a longer text between commas, or one with an article, is a phrase and not a tag


def _word_set(words: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(words.split())


_COLOURS = _word_set("""
    black brown blonde blond red blue green pink white purple grey gray silver gold golden aqua orange yellow
    teal magenta violet crimson navy lavender beige cyan maroon turquoise amber auburn ginger platinum
    """)
_CREATURES = _word_set("""
    animal cat fox wolf dog rabbit bunny mouse bear cow horse deer goat sheep tiger lion dragon bird bat snake
    spider fish demon devil angel monster elf slime plant robot ghost oni succubus vampire raccoon squirrel
    """)
_PATTERN_TEXTS = {
    "rating": r"rating[:\s].+|safe|sfw|nsfw|general|sensitive|questionable|explicit|suggestive",
    "quality": r"masterpiece|(very )?(aesthetic|displeasing)|score \d+( up)?|\w+ quality|4k|8k|uhd|hdr"
    r"|(extremely |ultra |highly |very |intricate |ultra-|insanely )?(detailed|details)",
    "meta": r"((incredibly )?absurd|high|low)res|huge filesize|(.+ )?(commentary|username|watermark|signature|logo)"
    r"|(.+ )(request|mismatch|filesize|sample|id|notice)|(artist|copyright|character|company|group) name"
    r"|web address|dated|commission|official art|scan|jpeg artifacts|tagme|revision|duplicate|source larger"
    r"|(artist|copyright|character|series|source|meta|user|date):.+|year \d{4}|newest|recent|(.+ )?translated"
    r"|third-party edit|photoshop|ai-generated",
    "count": r"(\d+\+?|multiple|several) ?(girl|boy|other)s?|solo( focus)?|(male|female) focus|no humans|duo|trio"
    r"|crowd|couple|everyone|(girl|boy|person|man|men|woman|women|people|male|female)",
    "framing": r"from (above|below|behind|side|outside)|(upper|lower|full|cropped) (body|legs|torso)|close-up|closeup"
    r"|pov|profile|straight-on|multiple views|(.+ )?out of frame|reference sheet|dutch angle",
    "expression": r"(one|both) eyes? closed|wide-eyed|:\w+:|expressionless|serious|happy|sad|angry|surprised|shy|scared"
    r"|embarrassed|annoyed|nervous|sleepy|drunk|determined|confused|bored|worried|jitome|ahegao|nose bubble",
    "pose": r"v|double v|on (back|side|stomach|one knee)|all fours|seiza|wariza|contrapposto|head (tilt|rest)"
    r"|bent over|indian style|(head|chin) (down|up|rest)|back-to-back|profile pose|upside-down",
    "marks": r"heterochromia|(sharp|pointy) teeth|(third|extra|missing|mechanical|robot) (eyes?|arms?|legs?)"
    r"|kemonomimi",
    "hair style": r"(one|two|half|side) ?(side )?up|widow's peak",
    "skin": r"tan|pale|tanlines?|dark-skinned (fe)?male",
    "body": r"tall|short|muscular( (fe)?male)?|plump|curvy|petite|skinny|toned|mature (fe)?male|flat chest"
    r"|thick thighs|abs",
    "clothing": r"bare .+|(completely )?nude|naked .+|topless|bottomless|barefoot|sleeveless|strapless|zettai ryouiki"
    r"|off shoulder|cleavage|sideboob|underboob|cosplay|striped|plaid|frilled|.+-trimmed .+",
    "accessory": r"fake .+",
    "style": r".+ \((style|medium)\)|.*(?<!\w)(style|artstyle)|depth of field|lens flare|chromatic aberration"
    r"|film grain|cel shading|black and white|spot color|\d{4}s|3d|traditional media",
    "scenery": r"(in|under|against|through) .+",
}
_KIND_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _PATTERN_TEXTS.items()}
_VERBS = {
    "pose": """
    standing sitting lying kneeling squatting crouching walking running jumping leaning reaching pointing waving
    stretching hugging holding carrying covering adjusting playing eating drinking sleeping reading writing fighting
    flying falling dancing singing swimming riding smoking pulling lifting grabbing spreading facing looking kissing
    touching bathing cooking talking saluting praying peeking hiding hanging arching wading crossing tying removing
    """,
    "expression": """
    smiling laughing crying winking frowning grinning blushing screaming shouting yawning drooling pouting glaring
    """,
    "marks": "mechanical prosthetic robotic cybernetic",
}
_NOUNS = {
    "marks": """
    horn antler antenna antennae halo tail wing ear scar mole freckle tattoo fang tusk claw hoof hooves fin gill whisker
    snout muzzle fur scale mark marking birthmark facepaint emblem crest stitch gem beard mustache goatee sideburns
    stubble mermaid android cyborg elf vampire fairy furry joint tentacle prosthesis streak tip highlight
    """,
    "hair style": """
    hair twintails ponytail pigtails braid bang ahoge bun bob cut sidelock dreadlock afro mohawk curl drill updo cornrow
    pompadour undercut hairstyle forelock topknot ringlet bald
    """,
    "eyes": "eye pupil sclera iris eyelash eyebrow brow tsurime tareme sanpaku",
    "skin": "skin",
    "body": "breast hip body waist",
    "clothing": """
    dress shirt t-shirt skirt hoodie suit overalls jacket coat uniform sweater cardigan kimono yukata robe armor armour
    poncho tunic cape cloak capelet vest pants jeans shorts leggings tights thighhighs kneehighs socks stockings
    pantyhose shoe boot sandal heel sneaker loafer slipper footwear swimsuit bikini leotard bodysuit apron blouse top
    bra panties underwear lingerie sleeve neckline clothes clothing outfit costume serafuku gown pajamas bloomers buruma
    hakama haori gauntlet pauldron greave cuirass turtleneck corset frill lace print trim cutout jumpsuit blazer
    camisole fishnets garter legwear sportswear swimwear hood hem button pocket zipper midriff navel collarbone shoulder
    armpit thigh
    """,
    "accessory": """
    glasses sunglasses goggles eyewear monocle hat cap beret helmet headband hairband hairclip hairpin ornament ribbon
    bow bowtie necktie tie scarf glove mitten choker necklace pendant earring bracelet ring jewelry belt bag backpack
    umbrella mask eyepatch crown tiara veil headphones headset headdress headwear headgear wristband armband sash brooch
    badge pin watch wristwatch piercing bandaid bandage sword weapon gun staff knife katana rifle spear axe shield book
    phone cup wand microphone guitar fan collar makeup lipstick eyeshadow eyeliner nail polish fingernail scrunchie bell
    chain pouch holster sheath scabbard quiver feather cane basket bottle flag instrument
    """,
    "expression": "smile frown grin smirk blush pout mouth lip tongue teeth tear wink expression face sweat sweatdrop",
    "pose": """
    arm hand leg finger knee elbow fist pose stance hug salute gesture sign lift tug grab pull hold contact walk thumb
    """,
    "framing": "portrait shot view angle focus perspective foreshortening fisheye",
    "scenery": """
    background sky beach meadow city outdoors indoors day night sunset sunrise evening dusk dawn twilight ocean sea
    water lake river forest tree grass flower field mountain street road building room window door bed couch chair table
    desk cloud moon sun snow rain sand rock ruin castle stairs wall floor fence bridge petal leaf leaves blossom
    garden park cafe train car underwater space fire smoke sunlight scenery landscape horizon pool onsen balcony rooftop
    shore cave desert village town cityscape skyline puddle bench tatami curtain pillow autumn winter summer spring
    library kitchen hallway shop stage alley particle stars nature jungle waterfall
    """,
    "style": """
    monochrome greyscale grayscale sketch lineart watercolor realistic photorealistic anime manga comic chibi art
    coloring painting illustration drawing photo photograph blurry bokeh silhouette border parody sepia
    """,
}
_KIND_BY_NOUN = {word: kind for kind, text in _NOUNS.items() for word in text.split()}
_KIND_BY_VERB = {word: kind for kind, text in _VERBS.items() for word in text.split()}
_ENDINGS = ("dress", "suit", "shirt", "coat", "skirt", "room", "band", "hat")  # sundress, miniskirt, bedroom
_PARTICLES = _word_set(
    "of on in at to over under between behind with by from across above below up down out back apart together"
)
_MIXED_HAIR = _word_set(
    "multicolored two-tone streaked gradient split-color rainbow streak tips half inner roots facial chest"
)
_MOVING_HAIR = frozenset(("wet", "floating", "flowing", "windblown"))
# Words that make a tag of eyes or eyebrows an expression.
_EYE_EXPRESSIONS = _word_set(
    "closed half-closed narrowed wide rolling crossed averted empty heart-shaped constricted dilated v-shaped raised "
    "furrowed covered teary"
)
_MARK_SHAPES = frozenset(("star", "cross", "stripe", "stripes", "diamond", "heart", "crescent", "triangle"))
_SMILEY = re.compile(r"(?!.*[^\W_]{2}).*[:;=^><@+_|].*")
_EXCLUSIVE_GROUPS = {
    tag: group
    for group, tags in {
        "hair length": "very short hair, short hair, medium hair, long hair, very long hair, absurdly long hair",
        "skin tone": "pale skin, light skin, tan skin, dark skin",
        "time of day": "day, night",
        "sky": "blue sky, night sky",
        "place": "indoors, outdoors",
        "mouth": "open mouth, closed mouth",
        "posture": "standing, sitting, lying, squatting",
        "framing": "portrait, upper body, cowboy shot, full body",
    }.items()
    for tag in tags.split(", ")
}
_IMPLIED = {  # tags that match a pattern imply the key, besides the rule that `long hair` implies `hair`
    "animal ears": re.compile(rf"(\w+ )?({'|'.join(sorted(_CREATURES))}) ears"),
    "multicolored hair": re.compile(r"(two-tone|streaked|gradient|split-color|rainbow) hair|colored inner hair"),
    "shirt": re.compile(r"(\w+ )?t-shirt"),
}
_PEOPLE = re.compile(r"(\d+\+?|multiple|several) ?(girl|boy|other)s?")
_NEGATIONS = frozenset(("no", "without", "fake", "unworn", "missing", "removed"))


@cache
def kind_of(tag: str) -> str:
    """The kind of thing that a booru tag describes.

    One of TRAITS or OUTFIT, or expression, pose, framing, scenery, count, style, meta, quality, rating or unknown.
    Some tags are recognized as a whole. For all others the noun decides: the last word, or the word before the first
    particle (`hair over one eye` is about hair). A verb in front decides first (`holding sword` is a pose).
    """
    if _SMILEY.fullmatch(tag_key(tag)):
        return "expression"
    name = booru_key(tag)
    for kind, pattern in _KIND_PATTERNS.items():
        if pattern.fullmatch(name):
            return kind
    words = re.sub(r" \([^)]*\)$", "", name).split()
    if not 1 <= len(words) <= LONGEST_TAG or not {"a", "an", "the", "and"}.isdisjoint(words):
        return "unknown"
    if words[0] in _KIND_BY_VERB:
        return _KIND_BY_VERB[words[0]]
    *before, noun = _noun_phrase(words)
    return _kind_by_noun(noun, frozenset(before))


def exclusive_group(tag: str, others: Iterable[str] = ()) -> str | None:
    """The group, such as `hair length`, of which an image of one character shows only one tag; None without a group.

    Args:
        tag: the tag.
        others: the caption's tags; several people or views, hair of several colours and heterochromia allow several
            tags of a group, so the result is None.
    """
    group = _group_of(tag)
    if group is None:
        return None
    caption = {booru_key(other) for other in others}
    people = [other for other in caption if _PEOPLE.fullmatch(other)]
    several = len(people) > 1 or any(not other.startswith("1") for other in people)
    allows_several = several or not caption.isdisjoint(("multiple views", "reference sheet", "comic"))
    if group == "hair colour":
        mixed_hair = ("hair", "streak", "tips")
        allows_several |= any(kind_of(other) == "marks" and other.endswith(mixed_hair) for other in caption)
    elif group == "eye colour":
        allows_several |= "heterochromia" in caption
    return None if allows_several else group


def implied_by(tag: str, others: Iterable[str]) -> str | None:
    """The first of `others` that implies the tag, as `long hair` implies `hair`, or None."""
    return next((other for other in others if _implies(other, tag)), None)


@cache
def _group_of(tag: str) -> str | None:
    """The exclusive group of a tag, without regard to other tags."""
    name, kind = booru_key(tag), kind_of(tag)
    coloured = not _COLOURS.isdisjoint(name.split())
    if kind == "hair colour" or (kind == "eyes" and coloured and name.endswith(" eyes")):
        return kind.replace("eyes", "eye colour")
    return _EXCLUSIVE_GROUPS.get(name)


@cache
def noun_of(tag: str) -> str:
    """The last word of a tag, singular; only tags of one noun imply each other."""
    return booru_key(tag).replace("-", " ").rpartition(" ")[2].removesuffix("s")


def _implies(more: str, tag: str) -> bool:
    """Whether the tag `more` implies `tag`: it ends in it, or _IMPLIED says so."""
    long, short = booru_key(more), booru_key(tag)
    if not long or long.split()[0] in _NEGATIONS:
        return False
    if short in _IMPLIED and _IMPLIED[short].fullmatch(long):
        return True
    ends = long.removesuffix("s").endswith(" " + short.removesuffix("s"))
    return ends and _family(tag) == _family(more) and _family(tag) not in ("unknown", "count")


def _noun_phrase(words: list[str]) -> list[str]:
    """The words before the first particle."""
    end = next((i for i, word in enumerate(words) if i and word in _PARTICLES), len(words))
    return words[:end]


def _kind_by_noun(noun: str, before: frozenset[str]) -> str:
    """The kind of a noun, given the words before it."""
    forms = (noun, noun.removesuffix("s"), noun.removesuffix("es"))
    kind = next((_KIND_BY_NOUN[form] for form in forms if form in _KIND_BY_NOUN), "")
    coloured = not _COLOURS.isdisjoint(before)
    if noun == "hair":
        if not _MIXED_HAIR.isdisjoint(before):
            return "marks"
        if not _MOVING_HAIR.isdisjoint(before):
            return "pose"
        return "hair colour" if coloured else "hair style"
    if kind == "eyes" and not _EYE_EXPRESSIONS.isdisjoint(before):
        return "expression"
    if noun in _MARK_SHAPES and (coloured or not before.isdisjoint(("facial", "forehead", "cheek"))):
        return "marks"
    if noun in ("girl", "boy") and not _CREATURES.isdisjoint(before):
        return "marks"
    if kind in ("", "scenery") and "hair" in before:
        return "accessory" if kind else "hair style"  # `hair flower` is an accessory, `hair intakes` a hair style
    if not kind and noun.endswith(_ENDINGS):
        return {"room": "scenery", "band": "accessory", "hat": "accessory"}.get(
            next(ending for ending in _ENDINGS if noun.endswith(ending)), "clothing"
        )
    return kind or "unknown"


def _family(tag: str) -> str:
    """The kind of a tag, with all traits as one: hair of any colour, length or mix of colours implies `hair`."""
    kind = kind_of(tag)
    return "trait" if kind in TRAITS else kind
