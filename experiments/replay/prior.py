"""The bank's recipe that is best for all of its characters, kept for later studies as conf/recipe/doll-bank.yaml.

    python -m experiments.replay.prior
    autolora tune quickstart '+study.recipes.doll-bank={}'

A recipe is worth what its pick is worth: the attribute classifier's score of the checkpoint with the best score, as a
share of the best in the character's bank. Kept is the recipe with the best mean over characters; another recipe ties
with it where the 95% t-interval of their difference over characters holds 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from autolora import config as cfg
from autolora.files import write_atomic
from autolora.provenance import provenance
from autolora.study.definition import define_study
from autolora.study.recipes import recipe_yaml
from experiments.common.arguments import argument_parser
from experiments.common.scores import Row, share_of_best
from experiments.common.seeds import evaluation_character
from experiments.common.training import settings_of
from experiments.replay.bank_rows import SPACE, read_rows, recipe_values
from experiments.replay.bank_session import with_checkpoints

NAME = "doll-bank"
PATH = cfg.ROOT / "conf" / "recipe" / f"{NAME}.yaml"

Array = np.ndarray[Any, Any]


def worth(rows: list[Row]) -> dict[str, float]:
    """Return what each recipe's pick is worth on one character."""
    values = {}
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        pick = max((row for row in rows if row["recipe"] == recipe), key=lambda row: float(row["objective"]))
        values[recipe] = share_of_best(pick, rows)
    return values


def best_of(characters: dict[str, list[Row]]) -> tuple[str, Array, int]:
    """Return the recipe to keep, its worth on each character, and how many others tie with it."""
    by_character = [worth(rows) for rows in characters.values()]
    common = [recipe for recipe in by_character[0] if all(recipe in values for values in by_character)]
    worths = {recipe: np.array([values[recipe] for values in by_character]) for recipe in common}
    best = max(common, key=lambda recipe: float(worths[recipe].mean()))
    tied = [recipe for recipe in common if recipe != best and not _is_below(worths[recipe], worths[best])]
    return best, worths[best], len(tied)


def _is_below(values: Array, best: Array) -> bool:
    return bool(ttest_1samp(values - best, 0.0).confidence_interval(0.95).high < 0)


def main() -> None:
    """Write the recipe, with what it is worth and how it was found."""
    argument_parser(__doc__).parse_args()
    characters = read_rows()
    recipe, worths, tied = best_of(characters)
    definition = define_study(settings_of(study=SPACE))
    row = next(row for row in characters[next(iter(characters))] if row["recipe"] == recipe)
    values = recipe_values(row)
    run = with_checkpoints(definition.run, values.pop("recipe"), values)
    names = ", ".join(f"{name} ({len(evaluation_character(int(name)).outfits)})" for name in characters)
    shares = ", ".join(f"{share:.0%}" for share in worths)
    comment = (
        f"# The bank's best recipe on characters (outfits) {names}:\n# its pick has {shares} of the best by the "
        f"attribute classifier; {tied} others tie with it. `{provenance()['command']}`, commit "
        f"{provenance()['commit']}.\n"
    )
    write_atomic(PATH, recipe_yaml(run, NAME) + comment)
    print(comment, end="")


if __name__ == "__main__":
    main()
