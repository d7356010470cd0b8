"""Does the score's interval hold the value that a much larger set of renders gives?

    python -m experiments.replay.interval_coverage --seeds 110 111 112 113 --out runs/bank

Of each character of the bank, which must be filled and measured, three checkpoints are rendered with ten times the
prompts of a search. From each such pool 200 suites of a tenth are drawn, by whole prompts. Counted is how often the
95% interval of a suite holds the pool's value, for the score and for every term at LoRA weight 1. Writes
experiments/results/score/interval_coverage.md, of all characters judged so far, and the figures of each.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from autolora.adapters.kinds import LoRA
from autolora.evaluation.session import Session
from autolora.paperdoll.look import GROUPS
from autolora.sampling import BaseRenders
from autolora.scoring.eval_prompts import SEARCH_GROUPS, EvalPrompt
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import Rendered, Scorecard, render_eval_prompts, score
from autolora.scoring.scorer import Scorer, with_fresh_prompts
from autolora.train.run import Run
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, load_results, save_result, save_table, table_head, table_row
from experiments.replay.bank_rows import CHARACTERS
from experiments.replay.bank_session import checkpoints_of, kept_suite, load_renders, open_character

RESULTS = results.RESULTS / "score"
COVERAGE = RESULTS / "interval_coverage"
TIMES = 10  # how many times larger the pool is
RANKS = (0.5, 0.8, 0.95)  # of the checkpoints by score: which are rendered
TERMS = ("likeness", "fidelity", "editability", "bleed_class", "spread", "burn")


def random_tags(rng: random.Random, dressed: bool) -> str:
    """Return random tags of a prompt, with an outfit or without."""
    tags = [rng.choice(GROUPS[group]) for group in ("expression", "pose", "background")]
    if dressed:
        tags.insert(0, f"{rng.choice(GROUPS['outfit_color'])} {rng.choice(GROUPS['outfit'])}")
    return ", ".join(tags)


def distinct_tags(rng: random.Random, count: int, dressed: bool) -> tuple[str, ...]:
    """Return as many different random tags as `count` says."""
    tags: dict[str, None] = {}
    while len(tags) < count:
        tags[random_tags(rng, dressed)] = None
    return tuple(tags)


def pool_scorer(session: Session) -> Scorer:
    """Return the search's score with ten times the prompts, without the few prompts from validation captions."""
    assert session.scorer is not None, session.unmeasured
    context, rng, search = session.context, random.Random(0), session.scoring
    settings = replace(
        search,
        trigger_prompts=distinct_tags(rng, TIMES * (len(search.trigger_prompts) + 1) - 1, False),
        outfit_prompts=distinct_tags(rng, TIMES * len(search.outfit_prompts), True),
        num_class_renders=TIMES * search.num_class_renders,
    )
    renders = BaseRenders(context.model, session.render_settings.search, session.renders.folder)
    dataset = replace(context.dataset, validation=())
    pool = with_fresh_prompts(replace(session.scorer, settings=settings), dataset, renders, context.adapter, 1)
    return pool.only(*SEARCH_GROUPS)


def sub_suites(pool: Scorer, count: int) -> Iterator[Scorer]:
    """Yield suites of a tenth of each group's prompts, with the same share of each concept."""
    groups: dict[tuple[str, str], list[EvalPrompt]] = defaultdict(list)
    for prompt in pool.prompts:
        groups[prompt.group, prompt.concept].append(prompt)
    rng = random.Random(1)
    for _ in range(count):
        chosen = [prompt for prompts in groups.values() for prompt in rng.sample(prompts, len(prompts) // TIMES)]
        yield replace(pool, prompts=tuple(chosen))


def coverage(pool: Scorer, renders: Rendered, count: int) -> dict[str, float]:
    """Return by term how often the intervals of drawn suites hold the pool's value."""
    truth = estimates(score(pool, renders))
    hits: dict[str, list[bool]] = defaultdict(list)
    for suite in sub_suites(pool, count):
        suite_renders = {(p, w): renders[p, w] for p in suite.prompts for w in suite.settings.weights}
        for name, estimate in estimates(score(suite, suite_renders)).items():
            hits[name].append(estimate.low <= truth[name].value <= estimate.high)
    return {name: float(np.mean(term_hits)) for name, term_hits in hits.items()}


def estimates(card: Scorecard) -> dict[str, Estimate]:
    """Return the score and the terms at LoRA weight 1."""
    return {"score": card.score} | {name: card.by_weight["1"][name] for name in TERMS}


def chosen_checkpoints(seed: int, out: Path, session: Session) -> list[Path]:
    """Return the checkpoints at some ranks of the bank's score."""
    suite = kept_suite(session)
    paths = [path for path, _, _ in checkpoints_of(seed, out)]
    ranked = sorted(paths, key=lambda path: score(suite, load_renders(suite, path)).score.value)
    return [ranked[round(rank * (len(ranked) - 1))] for rank in RANKS]


def judge_character(seed: int, out: Path, count: int) -> dict[str, dict[str, float]]:
    """Return the coverage by checkpoint."""
    session = open_character(seed, out, [Run("coverage", LoRA(dim=16))])
    context, pool = session.context, pool_scorer(session)
    context.adapter.start(0, LoRA(dim=16), torch.Generator().manual_seed(0))
    by_checkpoint = {}
    for path in chosen_checkpoints(seed, out, session):
        context.adapter.load(load_file(path.with_suffix(".safetensors")))
        name = f"{seed}, recipe {path.parent.name}, step {path.name}"
        by_checkpoint[name] = coverage(pool, render_eval_prompts(pool, context.model, context.adapter), count)
        print(name, by_checkpoint[name], flush=True)
    return by_checkpoint


def table(by_checkpoint: dict[str, dict[str, float]]) -> str:
    """Return one line per checkpoint, the mean last."""
    names = ("score", *TERMS)
    lines = table_head("checkpoint", *names)
    for title, rates in by_checkpoint.items():
        lines.append(table_row(title, *(f"{rates[name]:.0%}" for name in names)))
    means = [float(np.mean([rates[name] for rates in by_checkpoint.values()])) for name in names]
    return as_text([*lines, table_row("**mean**", *(f"**{mean:.0%}**" for mean in means))])


def main() -> None:
    """Judge every character and write the table."""
    parser = argument_parser(__doc__, seeds=CHARACTERS, out="runs/bank")
    parser.add_argument("--suites", type=int, default=200, help="suites drawn from each pool")
    args = parser.parse_args()
    for seed in args.seeds:
        save_result(COVERAGE, seed, judge_character(seed, args.out, args.suites))
    by_checkpoint = {name: rates for rows in load_results(COVERAGE).values() for name, rates in rows.items()}
    save_table(RESULTS / "interval_coverage.md", table(by_checkpoint))


if __name__ == "__main__":
    main()
