"""What a study found of each character: a file a character with how it was found, and a table of all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.paperdoll.weights import VERSION, weights_hash
from autolora.provenance import provenance


def keep(folder: Path, name: str | int, found: Mapping[str, Any]) -> None:
    """Write what was found of one character, with the command, commit, machine and weights behind it."""
    facts = provenance() | {"weights": f"{VERSION} {weights_hash()}", "found": found}
    write_atomic(folder / f"{name}.json", json.dumps(facts, indent=1) + "\n")


def kept(folder: Path) -> dict[str, Any]:
    """What was found by character, with the weights of today only."""
    files = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: facts["found"] for name, facts in files.items() if facts["weights"] == f"{VERSION} {weights_hash()}"}


def refuse_development(seed: int) -> None:
    """Only characters that nothing was tuned on count.

    Raises:
        StudyError: the seed is one that things are tuned on.
    """
    if seed < 100:
        raise StudyError(f"seed {seed} is a development seed: give those of evaluation characters, 100 and up")
