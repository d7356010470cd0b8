"""The meaning of tags: kinds, exclusion and implication."""

from __future__ import annotations

import pytest

from autolora.data.vocabulary import OUTFIT, TRAITS, exclusive_group, implied_by, kind_of
from autolora.paperdoll.look import GROUPS, NOVEL_OUTFITS, mark_tags

KINDS = {
    "marks": "horns; fox tail; animal ears; scar on face; scar across eye; mole under eye; freckles; arm tattoo; halo; "
    "heterochromia; fang; two-tone hair; streaked hair; gradient hair; colored inner hair; blonde streak; facial mark; "
    "star emblem; red star; cat girl; pointy ears; mechanical arms; third eye",
    "hair colour": "blonde hair; light_brown_hair; dark blue hair",
    "hair style": "long hair; very long hair; hair between eyes; hair over one eye; twintails; low ponytail; "
    "side braid; blunt bangs; hair bun; hime cut; hair_intakes; one side up; messy hair",
    "eyes": "blue eyes; slit pupils; tsurime; thick eyebrows; glowing eyes",
    "skin": "pale skin; tan; dark-skinned female",
    "body": "large breasts; muscular male; abs",
    "clothing": "blue dress; sundress; white shirt; school uniform; thighhighs; detached sleeves; bare shoulders; "
    "emblem coat; gold trim; no pants; bow-trimmed skirt; stockings",
    "accessory": "hair ornament; hair ribbon; hair flower; hairband; black-framed eyewear; earrings; sun hat; sword; "
    "red scarf; fake animal ears; bow (weapon); hand fan",
    "expression": "smile; evil smile; open mouth; closed eyes; one eye closed; tongue out; light blush; tears; :d; "
    r"^_^; >_<; ;\); v-shaped eyebrows; furrowed brow; heart-shaped pupils; parted lips; crying",
    "pose": "standing; sitting; looking at viewer; looking_back; arms up; hand on own hip; holding sword; on back; "
    "crossed arms; holding own hair; head tilt; peace sign; shirt lift; floating hair; arm behind back",
    "framing": "portrait; upper body; full body; cowboy shot; from behind; from above; wide shot; close-up; profile",
    "scenery": "simple background; outdoors; night; night sky; blue sky; cherry blossoms; bedroom; in water; "
    "flower field",
    "count": "1girl; 2girls; 6+boys; multiple girls; solo; male focus; no humans; woman",
    "meta": "highres; absurdres; commentary request; translation request; artist name; watermark; signature; dated; "
    "twitter username; bad id; official art; bad pixiv id; artist:someone; year 2023",
    "quality": "masterpiece; best quality; worst_quality; score_9; score_8_up; very aesthetic; 8k; highly detailed",
    "rating": "rating:safe; rating_safe; general; sensitive; explicit; safe; nsfw",
    "style": "monochrome; greyscale; 1990s (style); watercolor (medium); retro artstyle; depth of field; photo; comic",
    "unknown": "zorak; fit_a; touhou; mona (game); a girl in a red dress; blue hair and red eyes; "
    "standing in the rain here; 日本",
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_by_noun(kind: str) -> None:
    tags = KINDS[kind].split("; ")
    assert {tag: kind_of(tag) for tag in tags} == dict.fromkeys(tags, kind)


def test_the_kind_does_not_depend_on_the_spelling() -> None:
    assert kind_of(" Long_HAIR ") == kind_of("long hair") == "hair style"
    assert kind_of(r"bow \(weapon\)") == "accessory"
    assert kind_of("") == kind_of("...") == kind_of("(x)") == "unknown"


def test_tags_of_the_synthetic_world_are_recognized() -> None:
    for group, kind in (
        ("count", "count"),
        ("hair_style", "hair style"),
        ("skin", "skin"),
        ("expression", "expression"),
        ("background", "scenery"),
        ("pose", "pose"),
    ):
        assert {kind_of(tag) for tag in GROUPS[group]} == {kind}
    assert {kind_of(tag) for tag in mark_tags()} == {"marks"}
    assert {kind_of(f"{colour} hair") for colour in GROUPS["hair_color"]} == {"hair colour"}
    assert {kind_of(f"{colour} eyes") for colour in GROUPS["eye_color"]} == {"eyes"}
    assert {kind_of(f"red {cut}") for cut in (*GROUPS["outfit"], *NOVEL_OUTFITS)} == {"clothing"}
    assert {kind_of(tag) for tag in GROUPS["accessory"][1:]} == {"accessory"}
    assert not set(TRAITS) & set(OUTFIT)


@pytest.mark.parametrize(
    ("tags", "group"),
    [
        ("short hair; medium hair; long hair; very_long_hair", "hair length"),
        ("blonde hair; dark blue hair", "hair colour"),
        ("red eyes; light blue eyes", "eye colour"),
        ("pale skin; dark skin", "skin tone"),
        ("day; night", "time of day"),
        ("indoors; outdoors", "place"),
        ("open mouth; closed mouth", "mouth"),
        ("standing; sitting; lying", "posture"),
        ("upper body; full body", "framing"),
        ("smile; hat; spiky hair; slit pupils; closed eyes; two-tone hair; zorak; 1girl", None),
    ],
)
def test_exclusive_groups(tags: str, group: str | None) -> None:
    assert {exclusive_group(tag) for tag in tags.split("; ")} == {group}


def test_groups_that_allow_several_tags() -> None:
    assert exclusive_group("blue hair", ["1girl", "red hair", "heterochromia", "streaked jacket"]) == "hair colour"
    for mixed in ("multicolored hair", "streaked_hair", "teal left half hair", "blonde streak"):
        assert exclusive_group("blue hair", [mixed]) is None
        assert exclusive_group("blue eyes", [mixed]) == "eye colour"
    assert exclusive_group("blue eyes", ["heterochromia"]) is None
    for several in (["2girls"], ["1girl", "1boy"], ["multiple boys"], ["multiple views"], ["6+girls"]):
        assert exclusive_group("blue hair", several) is exclusive_group("standing", several) is None


@pytest.mark.parametrize(
    ("tag", "more"),
    [
        ("hair", "long hair"),
        ("hair", "blue hair"),
        ("hair", "streaked hair"),
        ("dress", "blue dress"),
        ("Long_hair", "very long hair"),
        ("blue hair", "light blue hair"),
        ("braid", "twin braids"),
        ("animal ears", "black cat ears"),
        ("multicolored hair", "two-tone hair"),
        ("shirt", "white t-shirt"),
        ("background", "white background"),
    ],
)
def test_the_less_specific_tag_is_implied(tag: str, more: str) -> None:
    assert implied_by(tag, ["smile", more]) == more
    assert implied_by(more, ["smile", tag]) is None


@pytest.mark.parametrize(
    ("tag", "other"),
    [
        ("dress", "sundress"),  # the text encoder reads other tokens
        ("pants", "no pants"),
        ("animal ears", "fake animal ears"),
        ("hair", "holding own hair"),
        ("hair", "hair ornament"),
        ("girl", "cat girl"),
        ("zorak", "young zorak"),
        ("eyes", "closed eyes"),
        ("long hair", "long_hair"),  # the same tag
    ],
)
def test_tags_that_are_not_implied(tag: str, other: str) -> None:
    assert implied_by(tag, [other]) is None
