"""`autolora score FILE`: scores one LoRA file, or ranks all files of a folder, with an image grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autolora import api
from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.errors import printable
from autolora.evaluation.lora_files import ScoredFile, comparison_grid
from autolora.files import atomic_path, write_atomic
from autolora.scoring.scorecard import Scorecard


def score(request: Request) -> int:
    """Score LoRA files against a dataset. `score.json` and `score.png` go beside the files or into `out`.

    For one file, `score.json` holds one object; for several a list, the best first.
    """
    settings, output = request.settings, Output.of(request.settings)
    with output.bars() as bars:
        scores = api.score_lora(settings, request.lora, dataset=request.dataset, bars=bars)
    files, results, refused = scores.files, scores.results, scores.refused
    out = request.beside(files[0])
    content = [result.as_dict() for result in results]
    write_atomic(out / "score.json", json.dumps(content if len(files) > 1 else content[0], indent=2))
    with atomic_path(out / "score.png") as temporary:
        comparison_grid(results).save(temporary, format="PNG")

    def show() -> None:
        if not output.quiet:
            print_scores(results, refused)
            for path, left_out in scores.unread.items():
                print(f"{path.name} is scored without {left_out}, which autolora does not read")
        print(f"{out / 'score.json'}\n{out / 'score.png'}")

    facts = {"refused": refused, "unread": scores.unread}
    texts = {name: {str(path): text for path, text in by_path.items()} for name, by_path in facts.items()}
    output.last(show, {"files": content, **texts})
    return 0


def print_scores(results: Sequence[ScoredFile], refused: Mapping[Path, str]) -> None:
    """Print the terms of one file, or the ranking of several, then the verdict and the standard metrics of each."""
    Console().print(_terms(results[0].scorecard) if len(results) == 1 else _ranking(results))
    for result in results:
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
        print(f"{result.path.name}: {result.scorecard.verdict}" + (f". Try {result.remedy}" if result.remedy else ""))
        print(f"  standard metrics: {metrics}")
    for reason in refused.values():
        print(f"not scored: {printable(reason)}")


def _terms(scorecard: Scorecard) -> Table:
    table = Table("", "value", "95% interval", box=None)
    for name, term in {"score": scorecard.score, **scorecard.terms}.items():
        table.add_row(name, f"{term.value:.3f}", f"{term.low:.3f} to {term.high:.3f}")
    table.add_row("weight", f"{scorecard.weight:g}", "recommended")
    return table


def _ranking(results: Sequence[ScoredFile]) -> Table:
    table = Table("", "file", "score", "interval", "fidelity", "editab.", "bleed", "weight", box=None)
    for rank, result in enumerate(results, 1):
        value, terms = result.scorecard.score, result.scorecard.terms
        columns = (f"{terms[name].value:.2f}" for name in ("fidelity", "editability", "bleed_class"))
        interval = f"{value.low:.2f} to {value.high:.2f}"
        weight = f"{result.scorecard.weight:g}"
        table.add_row(str(rank), result.path.name, f"{value.value:.3f}", interval, *columns, weight)
    return table
