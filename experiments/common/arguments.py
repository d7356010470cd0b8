"""The command-line arguments that experiments share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def argument_parser(
    description: str | None, seeds: Sequence[int] = (), out: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser that shows an experiment's docstring as its help.

    Args:
        description: the docstring of the experiment's module.
        seeds: the default of `--seeds`, the characters to judge; none: the experiment has no such argument.
        out: the default of `--out`, the folder of datasets and training runs; None: there is no such argument.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="*", default=list(seeds), help="the characters to judge")
    if out is not None:
        parser.add_argument("--out", type=Path, default=Path(out), help="the folder of datasets and training runs")
    return parser
