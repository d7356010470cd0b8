"""Results of experiments: one JSON file per case with how it was measured, and a Markdown table of all cases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from autolora.files import write_atomic
from autolora.paperdoll.weights import VERSION, weights_hash
from autolora.provenance import provenance

RESULTS = Path(__file__).parents[1] / "results"


def weights_name() -> str:
    """Return the version and the hash of the synthetic test world's weights."""
    return f"{VERSION} {weights_hash()}"


def save_result(folder: Path, name: str | int, result: Mapping[str, Any]) -> None:
    """Write the result of one case, with the command, commit, machine and weights behind it."""
    facts = provenance() | {"weights": weights_name(), "found": result}
    write_atomic(folder / f"{name}.json", json.dumps(facts, indent=1) + "\n")


def load_results(folder: Path) -> dict[str, Any]:
    """Return the results by case; results of other weights are left out."""
    files = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: facts["found"] for name, facts in files.items() if facts["weights"] == weights_name()}


def save_image(image: Image.Image, path: Path) -> None:
    """Save an image in a folder that may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def save_table(path: Path, text: str) -> None:
    """Write a Markdown table and print it."""
    write_atomic(path, text)
    print(text)


def table_head(*columns: str) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [table_row(*columns), "|" + "---|" * len(columns)]


def table_row(*cells: object) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def as_text(lines: Iterable[str]) -> str:
    """Join lines to a text that ends with a line break."""
    return "\n".join(lines) + "\n"
