"""The bank's recipe that serves all of its characters best, kept for later studies as conf/recipe/doll-bank.yaml.

    python -m experiments.replay.prior
    autolora tune quickstart '+study.recipes.doll-bank={}'

A recipe is worth what its pick is worth: the checkpoint with the best score, valued by the oracle as a share of the
best that the character's bank has. Kept is the recipe with the best mean over characters; another ties with it where
the 95% t-interval of their difference over characters holds 0.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from autolora import config as cfg
from autolora.files import write_atomic
from autolora.provenance import provenance
from autolora.study.definition import define_study
from autolora.study.recipes import recipe_yaml
from experiments.replay.bank import SPACE, character_of, spread
from experiments.replay.score_validity import Row, read_rows, share_of_best

NAME = "doll-bank"
PATH = cfg.ROOT / "conf" / "recipe" / f"{NAME}.yaml"


def worth(rows: list[Row]) -> dict[str, float]:
    """What each recipe's pick is worth on one character."""
    found = {}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        pick = max((row for row in rows if row["recipe"] == recipe), key=lambda row: float(row["objective"]))
        found[recipe] = share_of_best(pick, rows)
    return found


def best_of(characters: dict[str, list[Row]]) -> tuple[str, np.ndarray[Any, Any], int]:
    """The recipe to keep, its worth on each character, and how many others tie with it."""
    each = [worth(rows) for rows in characters.values()]
    common = [recipe for recipe in each[0] if all(recipe in one for one in each)]
    values = {recipe: np.array([one[recipe] for one in each]) for recipe in common}
    best = max(common, key=lambda recipe: float(values[recipe].mean()))
    tied = [recipe for recipe in common if recipe != best and not _below(values[recipe], values[best])]
    return best, values[best], len(tied)


def _below(own: np.ndarray[Any, Any], best: np.ndarray[Any, Any]) -> bool:
    return bool(ttest_1samp(own - best, 0.0).confidence_interval(0.95).high < 0)


def main() -> None:
    """Write the recipe, with what it is worth and where it came from."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    characters = read_rows()
    recipe, values, tied = best_of(characters)
    definition, _ = define_study(cfg.compose("tune", [], SPACE), SPACE, ())
    drawn = json.loads(recipe)
    run = spread(definition.run, drawn.pop("recipe"), drawn)
    names = ", ".join(f"{name} ({len(character_of(int(name)).outfits)})" for name in characters)
    shares = ", ".join(f"{value:.0%}" for value in values)
    comment = (
        f"# The bank's best recipe on characters (outfits) {names}:\n# its pick has {shares} of the best by the "
        f"oracle; {tied} others tie with it. `{provenance()['command']}`, commit {provenance()['commit']}.\n"
    )
    write_atomic(PATH, recipe_yaml(run, NAME) + comment)
    print(comment, end="")


if __name__ == "__main__":
    main()
