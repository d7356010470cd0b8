"""What booru tags say: their kind, by the noun they turn on, what excludes and what implies what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from autolora.data.captions import booru_key, tag_key

TRAITS = ("marks", "hair colour", "hair style", "eyes", "skin", "body")  # what stays when a character changes clothes
OUTFIT = ("clothing", "accessory")
LONGEST_TAG = 4  # words; what is longer, or has an article, is a phrase that happens to stand between commas


def _set(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


_COLOURS = _set("""
    black brown blonde blond red blue green pink white purple grey gray silver gold golden aqua orange yellow
    teal magenta violet crimson navy lavender beige cyan maroon turquoise amber auburn ginger platinum
    """)
_CREATURES = _set("""
    animal cat fox wolf dog rabbit bunny mouse bear cow horse deer goat sheep tiger lion dragon bird bat snake
    spider fish demon devil angel monster elf slime plant robot ghost oni succubus vampire raccoon squirrel
    """)
_PATTERNS = {
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
_SAYS = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
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
_KINDS = {word: kind for kind, text in _NOUNS.items() for word in text.split()}
_FIRST = {word: kind for kind, text in _VERBS.items() for word in text.split()}
_ENDINGS = ("dress", "suit", "shirt", "coat", "skirt", "room", "band", "hat")  # sundress, miniskirt, bedroom
_PARTICLES = _set(
    "of on in at to over under between behind with by from across above below up down out back apart together"
)
_MIXED_HAIR = _set(
    "multicolored two-tone streaked gradient split-color rainbow streak tips half inner roots facial chest"
)
_MOVING_HAIR = frozenset(("wet", "floating", "flowing", "windblown"))
# What eyes and brows do for a moment.
_LOOKS = _set(
    "closed half-closed narrowed wide rolling crossed averted empty heart-shaped constricted dilated v-shaped raised "
    "furrowed covered teary"
)
_SHAPES = frozenset(("star", "cross", "stripe", "stripes", "diamond", "heart", "crescent", "triangle"))
_SMILEY = re.compile(r"(?!.*[^\W_]{2}).*[:;=^><@+_|].*")
_EXCLUSIVE = {
    tag: group
    for group, tags in {
        "hair length": "very short hair, short hair, medium hair, long hair, very long hair, absurdly long hair",
        "skin tone": "pale skin, light skin, tan skin, dark skin",
        "time of day": "day, night",
        "sky": "blue sky, night sky",
        "place": "indoors, outdoors",
        "mouth": "open mouth, closed mouth",
        "posture": "standing, sitting, lying, squatting",
        "frame": "portrait, upper body, cowboy shot, full body",
    }.items()
    for tag in tags.split(", ")
}
_IMPLIES = {  # beside the rule that `long hair` implies `hair`
    "animal ears": re.compile(rf"(\w+ )?({'|'.join(sorted(_CREATURES))}) ears"),
    "multicolored hair": re.compile(r"(two-tone|streaked|gradient|split-color|rainbow) hair|colored inner hair"),
    "shirt": re.compile(r"(\w+ )?t-shirt"),
}
_PEOPLE = re.compile(r"(\d+\+?|multiple|several) ?(girl|boy|other)s?")
_NEGATIONS = frozenset(("no", "without", "fake", "unworn", "missing", "removed"))


@cache
def kind_of(tag: str) -> str:
    """What a booru tag describes.

    One of TRAITS or OUTFIT, or expression, pose, framing, scenery, count, style, meta, quality, rating or unknown.
    A few whole tags are known; of all others the noun decides, which stands last or before the first particle
    (`hair over one eye` is of hair), or the verb in front (`holding sword` is a pose).
    """
    if _SMILEY.fullmatch(tag_key(tag)):
        return "expression"
    name = booru_key(tag)
    for kind, pattern in _SAYS.items():
        if pattern.fullmatch(name):
            return kind
    words = re.sub(r" \([^)]*\)$", "", name).split()
    if not 1 <= len(words) <= LONGEST_TAG or not {"a", "an", "the", "and"}.isdisjoint(words):
        return "unknown"
    if words[0] in _FIRST:
        return _FIRST[words[0]]
    noun = _noun_phrase(words)
    return _by_noun(noun[-1], frozenset(noun[:-1]))


def exclusive_group(tag: str, others: Iterable[str] = ()) -> str | None:
    """The group of which a picture of one character shows only one tag, such as `hair length`; None: there is none.

    `others`, the caption's tags, lift exclusion: several people or views, hair of several colours, heterochromia.
    """
    group = _group_of(tag)
    if group is None:
        return None
    beside = {booru_key(other) for other in others}
    people = [other for other in beside if _PEOPLE.fullmatch(other)]
    several = len(people) > 1 or any(not other.startswith("1") for other in people)
    lifted = several or not beside.isdisjoint(("multiple views", "reference sheet", "comic"))
    if group == "hair colour":
        lifted |= any(kind_of(other) == "marks" and other.endswith(("hair", "streak", "tips")) for other in beside)
    elif group == "eye colour":
        lifted |= "heterochromia" in beside
    return None if lifted else group


def implied_by(tag: str, others: Iterable[str]) -> str | None:
    """The first of `others` that says all that `tag` says and more (`long hair` beside `hair`), or None."""
    return next((other for other in others if _implies(other, tag)), None)


@cache
def _group_of(tag: str) -> str | None:
    """The exclusive group of a tag whatever stands beside it."""
    name, kind = booru_key(tag), kind_of(tag)
    coloured = not _COLOURS.isdisjoint(name.split())
    if kind == "hair colour" or (kind == "eyes" and coloured and name.endswith(" eyes")):
        return kind.replace("eyes", "eye colour")
    return _EXCLUSIVE.get(name)


@cache
def noun_of(tag: str) -> str:
    """The last word of a tag, singular; only tags of one noun imply each other."""
    return booru_key(tag).replace("-", " ").rpartition(" ")[2].removesuffix("s")


def _implies(more: str, tag: str) -> bool:
    """Whether a tag says all that another says and more: it ends in it, or is one of _IMPLIES."""
    long, short = booru_key(more), booru_key(tag)
    if not long or long.split()[0] in _NEGATIONS:
        return False
    if short in _IMPLIES and _IMPLIES[short].fullmatch(long):
        return True
    ends = long.removesuffix("s").endswith(" " + short.removesuffix("s"))
    return ends and _family(tag) == _family(more) and _family(tag) not in ("unknown", "count")


def _noun_phrase(words: list[str]) -> list[str]:
    """The words before the first particle."""
    end = next((i for i, word in enumerate(words) if i and word in _PARTICLES), len(words))
    return words[:end]


def _by_noun(noun: str, before: frozenset[str]) -> str:
    """The kind of a noun with the words before it."""
    kind = next(
        (_KINDS[form] for form in (noun, noun.removesuffix("s"), noun.removesuffix("es")) if form in _KINDS), ""
    )
    coloured = not _COLOURS.isdisjoint(before)
    if noun == "hair":
        if not _MIXED_HAIR.isdisjoint(before):
            return "marks"
        if not _MOVING_HAIR.isdisjoint(before):
            return "pose"
        return "hair colour" if coloured else "hair style"
    if kind == "eyes" and not _LOOKS.isdisjoint(before):
        return "expression"
    if noun in _SHAPES and (coloured or not before.isdisjoint(("facial", "forehead", "cheek"))):
        return "marks"
    if noun in ("girl", "boy") and not _CREATURES.isdisjoint(before):
        return "marks"
    if kind in ("", "scenery") and "hair" in before:
        return "accessory" if kind else "hair style"  # a hair flower, but hair intakes
    if not kind and noun.endswith(_ENDINGS):
        return {"room": "scenery", "band": "accessory", "hat": "accessory"}.get(
            next(ending for ending in _ENDINGS if noun.endswith(ending)), "clothing"
        )
    return kind or "unknown"


def _family(tag: str) -> str:
    """The kind, traits in one: `hair` is implied by hair of a colour, of a length and of two colours alike."""
    kind = kind_of(tag)
    return "trait" if kind in TRAITS else kind
