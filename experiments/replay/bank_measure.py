"""Measures the checkpoints that the replay bank has filled in: one row each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autolora.adapters.kinds import LoRA
from autolora.scoring.eval_prompts import SEARCH_GROUPS
from autolora.scoring.scorecard import Rendered, Scorecard, embed, score
from autolora.scoring.scorer import Scorer
from autolora.scoring.standard_metrics import standard_metrics
from autolora.train.run import Run
from experiments.replay.bank_rows import rung_name, stored_keys
from experiments.replay.bank_session import checkpoints_of, kept_suite, load_renders, open_character, whole_suite

RUNG_TERMS = ("fidelity", "bleed_class")  # what the multi-fidelity search decides by, besides score and constraints


def measure_character(seed: int, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return every checkpoint's row, and what is the same for all of them: numbers of renders, and base losses."""
    session = open_character(seed, out, [Run("bank", LoRA(dim=16))])
    suite = kept_suite(session)
    rows = []
    for path, recipe, fact in checkpoints_of(seed, out):
        figures = json.loads(path.with_suffix(".json").read_text("utf-8"))
        renders = load_renders(suite, path)
        embedded = embed(suite, renders)
        row = row_of(seed, path, recipe, fact, score(suite, renders, embedded))
        for weight in suite.settings.weights:
            standard = standard_metrics(suite, renders, embedded, weight)
            row |= {f"{name}@{weight:g}": value for name, value in standard.items()}
        rows.append(row | rungs(suite, renders) | figures)
    whole, search = whole_suite(session, session.render_settings.search), suite.only(*SEARCH_GROUPS).at_weights(1.0)
    counts = {"search": search.num_renders, "deciding": suite.num_renders, "whole": whole.num_renders}
    return rows, {"renders": counts, "base_losses": session.base_losses}


def row_of(seed: int, path: Path, recipe: dict[str, Any], fact: dict[str, Any], card: Scorecard) -> dict[str, Any]:
    """Return one row without the figures of the attribute classifier.

    Args:
        seed: the seed of the character.
        path: the checkpoint's path without a suffix.
        recipe: the values of its recipe.
        fact: its training figures.
        card: its scorecard.
    """
    row = {"character": seed, "number": int(path.parent.name), "recipe": json.dumps(stored_keys(recipe)), **fact}
    row |= {"score": card.score.value, "score_low": card.score.low, "score_high": card.score.high}
    row |= {"objective": card.objective, "weight": card.weight, "broken": " ".join(card.broken)}
    for weight, terms in card.by_weight.items():
        for name, term in terms.items():
            row |= {f"{name}{end}@{weight}": getattr(term, end[1:] or "value") for end in ("", "_low", "_high")}
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def rungs(suite: Scorer, renders: Rendered) -> dict[str, str]:
    """Return what the multi-fidelity search sees of a checkpoint, by column: at the strongest LoRA weight, and at all.

    Only what its decisions need is kept.
    """
    search, columns = suite.only(*SEARCH_GROUPS), {}
    for weights in ([max(search.settings.weights)], search.settings.weights):
        card = score(search.at_weights(*weights), renders)
        terms = {w: {n: weight_terms[n].as_dict() for n in RUNG_TERMS} for w, weight_terms in card.by_weight.items()}
        constraints = {name: round(value, 4) for name, value in card.constraints.items()}
        content = {"score": card.score.as_dict(), "constraints": constraints, "by_weight": terms}
        columns[rung_name(weights)] = json.dumps(content)
    return columns
