"""The conditions that each evaluation character must meet, and rates as text."""

from __future__ import annotations

import pytest

from experiments.common.judge import Rate
from experiments.live.quickstart import holds, table

ROW: dict[str, str | float] = {
    "seed": 1,
    "outfits": 2,
    "recipe": "doll-preserve",
    "step": 900,
    "study seconds": 600,
    "base 1girl": "0% (0%-2%)",
    "base 1girl share": 0.02,
    **{f"guide last {kind} {w}": "x" for kind in ("trigger", "class") for w in ("0.7", "1")},
    **{f"guide best {kind} {w}": "x" for kind in ("trigger", "class") for w in ("0.7", "1")},
    **{f"export {kind} {w}": "x" for kind in ("trigger", "class") for w in ("0.7", "1")},
    **{f"guide best trigger {w} share": 0.8 for w in ("0.7", "1")},
    **{f"export trigger {w} share": 0.75 for w in ("0.7", "1")},
    **{f"export class {w} share": 0.05 for w in ("0.7", "1")},
    "guide last class 1 share": 0.6,
}


def test_a_good_character_meets_all_conditions() -> None:
    assert all(holds(ROW).values())
    assert "- 1 (doll-preserve, step 900, 600 s): guide overcooks yes, likeness yes, no bleed yes" in table([ROW])


@pytest.mark.parametrize(
    ("key", "share", "name"),
    [
        ("guide last class 1 share", 0.41, "guide overcooks"),
        ("export trigger 0.7 share", 0.71, "likeness"),
        ("export trigger 1 share", 0.71, "likeness"),
        ("export class 0.7 share", 0.13, "no bleed"),
        ("export class 1 share", 0.13, "no bleed"),
    ],
)
def test_a_condition_that_is_not_met_is_named(key: str, share: float, name: str) -> None:
    assert [condition for condition, met in holds({**ROW, key: share}).items() if not met] == [name]
    assert f"{name} NO" in table([{**ROW, key: share}])


def test_a_rate_is_printed_with_wilsons_interval() -> None:
    assert Rate(142, 200).text() == "71% (64%-77%)"
