"""Does the score's interval hold what a much larger set of renders says?

    python -m experiments.replay.interval_coverage --seeds 110 111 112 113 --out runs/bank

Of each character of the bank (trained and measured before) three checkpoints are rendered with ten times the prompts
of a search. 200 sub-suites of a tenth are drawn from each pool, by whole prompts, and it is counted how often the 95%
interval of a sub-suite holds the pool's value: for the score and for every term at weight 1.
Writes experiments/results/score/interval_coverage.md, of all characters judged so far, and each one's figures.
"""

from __future__ import annotations

import argparse
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
from autolora.files import write_atomic
from autolora.paperdoll.look import GROUPS
from autolora.sampling import BaseRenders
from autolora.scoring.eval_prompts import SEARCH_GROUPS, EvalPrompt
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import Rendered, Scorecard, render_eval_prompts, score
from autolora.scoring.scorer import Scorer, with_fresh_prompts
from autolora.train.run import Run
from experiments.common.results import keep, kept
from experiments.replay.bank import checkpoints_of, kept_suite, load_pictures, open_character

RESULTS = Path(__file__).parents[1] / "results" / "score"
KEPT = RESULTS / "interval_coverage"
TIMES = 10  # how much larger the pool is
RANKS = (0.5, 0.8, 0.95)  # of the checkpoints by score: which are rendered
TERMS = ("likeness", "fidelity", "editability", "bleed_class", "spread", "burn")


def tags(rng: random.Random, dressed: bool) -> str:
    """Random tags around a character, with other clothes or without."""
    chosen = [rng.choice(GROUPS[group]) for group in ("expression", "pose", "background")]
    if dressed:
        chosen.insert(0, f"{rng.choice(GROUPS['outfit_color'])} {rng.choice(GROUPS['outfit'])}")
    return ", ".join(chosen)


def distinct(rng: random.Random, count: int, dressed: bool) -> tuple[str, ...]:
    """That many different ones."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[tags(rng, dressed)] = None
    return tuple(found)


def pool_scorer(session: Session) -> Scorer:
    """The search's score with ten times the prompts; without those of held-out captions, of which there are few."""
    assert session.scorer is not None, session.unmeasured
    context, rng, old = session.context, random.Random(0), session.scoring
    settings = replace(
        old,
        trigger_prompts=distinct(rng, TIMES * (len(old.trigger_prompts) + 1) - 1, False),
        outfit_prompts=distinct(rng, TIMES * len(old.outfit_prompts), True),
        num_class_renders=TIMES * old.num_class_renders,
    )
    renders = BaseRenders(context.model, session.render_settings.search, session.renders.folder)
    plain = replace(context.dataset, validation=())
    pool = with_fresh_prompts(replace(session.scorer, settings=settings), plain, renders, context.adapter, 1)
    return pool.only(*SEARCH_GROUPS)


def sub_suites(pool: Scorer, count: int) -> Iterator[Scorer]:
    """Suites of a tenth of each group's prompts, for each concept alike."""
    groups: dict[tuple[str, str], list[EvalPrompt]] = defaultdict(list)
    for probe in pool.prompts:
        groups[probe.group, probe.concept].append(probe)
    rng = random.Random(1)
    for _ in range(count):
        chosen = [probe for own in groups.values() for probe in rng.sample(own, len(own) // TIMES)]
        yield replace(pool, prompts=tuple(chosen))


def held(pool: Scorer, pictures: Rendered, count: int) -> dict[str, float]:
    """How often the intervals of sub-suites hold the pool's values."""
    truth = estimates(score(pool, pictures))
    hits: dict[str, list[bool]] = defaultdict(list)
    for suite in sub_suites(pool, count):
        own = {(p, w): pictures[p, w] for p in suite.prompts for w in suite.settings.weights}
        for name, found in estimates(score(suite, own)).items():
            hits[name].append(found.low <= truth[name].value <= found.high)
    return {name: float(np.mean(own)) for name, own in hits.items()}


def estimates(card: Scorecard) -> dict[str, Estimate]:
    """The score and the terms at the strongest weight."""
    return {"score": card.score} | {name: card.by_weight["1"][name] for name in TERMS}


def chosen_checkpoints(seed: int, out: Path, session: Session) -> list[Path]:
    """The checkpoints at some ranks of the bank's score."""
    suite = kept_suite(session)
    found = [path for path, _, _ in checkpoints_of(seed, out)]
    ranked = sorted(found, key=lambda path: score(suite, load_pictures(suite, path)).score.value)
    return [ranked[round(rank * (len(ranked) - 1))] for rank in RANKS]


def judge_character(seed: int, out: Path, count: int) -> dict[str, dict[str, float]]:
    """Coverage by checkpoint."""
    session = open_character(seed, out, [Run("coverage", LoRA(dim=16))])
    context, pool = session.context, pool_scorer(session)
    context.adapter.start(0, LoRA(dim=16), torch.Generator().manual_seed(0))
    found = {}
    for path in chosen_checkpoints(seed, out, session):
        context.adapter.load(load_file(path.with_suffix(".safetensors")))
        name = f"{seed}, recipe {path.parent.name}, step {path.name}"
        found[name] = held(pool, render_eval_prompts(pool, context.model, context.adapter), count)
        print(name, found[name], flush=True)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """One line a checkpoint, the mean last."""
    names = ("score", *TERMS)
    lines = ["| checkpoint | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for title, own in found.items():
        lines.append(f"| {title} | " + " | ".join(f"{own[name]:.0%}" for name in names) + " |")
    means = [float(np.mean([own[name] for own in found.values()])) for name in names]
    return "\n".join([*lines, "| **mean** | " + " | ".join(f"**{mean:.0%}**" for mean in means) + " |"]) + "\n"


def main() -> None:
    """Judge every character and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[110, 111, 112, 113])
    parser.add_argument("--suites", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    args = parser.parse_args()
    for seed in args.seeds:
        keep(KEPT, seed, judge_character(seed, args.out, args.suites))
    found = {name: rates for own in kept(KEPT).values() for name, rates in own.items()}
    write_atomic(RESULTS / "interval_coverage.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
