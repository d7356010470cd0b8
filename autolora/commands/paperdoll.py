"""`autolora paperdoll`: draws a dataset of the synthetic test world."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autolora.files import expand_user


def paperdoll(arguments: Sequence[str]) -> int:
    """Write a kohya-style folder of a new character; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="autolora paperdoll", description="draw a dataset of the synthetic test world"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    dataset = actions.add_parser("dataset", help="write a kohya-style folder of a novel character")
    dataset.add_argument("out", type=Path)
    dataset.add_argument("--seed", type=int, default=0, help="0-99 for development, 100 and up for evaluation")
    dataset.add_argument("--outfits", type=int, default=2, help="1 to 4")
    dataset.add_argument("--images", type=int, default=14, help="images of each outfit")
    dataset.add_argument("--full", action="store_true", help="captions with everything that is seen, as by a tagger")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    from autolora.paperdoll.world import write_dataset

    out = expand_user(options.out)
    character = write_dataset(out, options.seed, options.outfits, options.images, full=options.full)
    outfits = ", ".join(outfit.trigger for outfit in character.outfits)
    print(f"wrote {options.out}: character `{character.trigger}`, outfits {outfits}")
    return 0
