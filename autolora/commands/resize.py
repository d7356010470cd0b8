"""Makes a LoRA file smaller as far as its score allows: `autolora export resize=FILE`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from autolora import config as cfg
from autolora.adapters.formats import layer_weights
from autolora.adapters.read import lora_of, read_lora, read_metadata
from autolora.commands.output import Output
from autolora.errors import ConfigError, Unmeasurable
from autolora.evaluation.session import Session, final_scorer, open_session
from autolora.export.resize import Resizer, unit_of, write_resized
from autolora.export.verify import verify_deltas
from autolora.export.write import DTYPES
from autolora.files import atomic_files, write_atomic
from autolora.models.load import load_model
from autolora.progress import Bars
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorecard import Scorecard
from autolora.scoring.scorer import Scorer
from autolora.train.run import Run


@dataclass(frozen=True)
class Resized:
    """A file of one rank and how it scores; `kept`: as well as the whole one, as far as its interval can tell."""

    dim: int | None  # None: the whole one
    path: Path
    score: Estimate
    broken: list[str]
    kept: bool

    @property
    def megabytes(self) -> float:
        """The file's size."""
        return self.path.stat().st_size / 1e6


def resize_file(config: DictConfig) -> int:
    """Write a LoRA at smaller ranks, score each, and offer the smallest that stays within the whole one's interval.

    Without `dims` the ranks to try are sought. `resize.json` lies beside the files.

    Raises:
        ConfigError: ranks that cannot be.
        ExportError: the file cannot be read.
        Unmeasurable: nothing can be scored on these pictures.
    """
    output, source = Output.of(config), Path(str(config.resize)).expanduser()
    folder = Path(str(config.out)).expanduser() if config.out else source.parent
    model = load_model(cfg.model_settings(config))
    state, metadata = read_lora(source, model), read_metadata(source)
    resizer = Resizer(state, layer_weights(model.modules), unit_of(metadata))
    given = wanted_dims([config.dims] if isinstance(config.dims, int) else config.dims, resizer)
    with output.bars() as bars:
        session = open_session(config, [Run(source.name, adapter=lora_of(state))], bars)
        if session.scorer is None:
            raise Unmeasurable(session.unmeasured)
        scorer = final_scorer(session.scorer, session, bars)
        whole = _scored(None, source, None, session, scorer, bars)
        found = []

        def keeps(dim: int) -> bool:
            smaller = resizer.to(dim)
            with atomic_files(folder) as hidden:
                made = write_resized(
                    smaller, dim, source, metadata, session.context.model, hidden, DTYPES[session.export.dtype]
                )
                verify_deltas(smaller, made, session.context.model)
            found.append(_scored(dim, folder / made.name, whole, session, scorer, bars))
            bars.log(f"dim {dim}: {_in_words(found[-1].score)}")
            return found[-1].kept

        if given is None:
            seek(keeps, resizer.most, resizer.largest, resizer.unit or 1)
        else:
            for dim in given:
                keeps(dim)
    found = [whole, *sorted(found, key=lambda one: one.dim or 0, reverse=True)]
    content = [_as_dict(one) for one in found]
    write_atomic(folder / "resize.json", json.dumps(content, indent=2))
    output.last(lambda: print_resized(found), {"files": content})
    return 0


def wanted_dims(given: Sequence[int] | None, resizer: Resizer) -> list[int] | None:
    """The ranks that were asked for, the largest first; None where they are to be sought.

    Raises:
        ConfigError: a rank below 1 or above the file's, or no multiple of a DyLoRA's unit.
    """
    if given is None:
        return None
    unit = resizer.unit or 1
    for dim in given:
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= resizer.most or dim % unit:
            multiples = f" in steps of {unit}" if unit > 1 else ""
            raise ConfigError(f"dims={dim}: expected ranks from {unit} to {resizer.most}{multiples}, as in dims=[16,8]")
    return sorted(set(given), reverse=True)


def seek(keeps: Callable[[int], bool], most: int, first: int, unit: int) -> None:
    """Try ranks, multiples of `unit`, until the smallest that keeps the score is found, if smaller ones keep no more.

    Halves until the score is lost, then ever smaller steps between the last that kept it and that one.

    Args:
        keeps: tries a rank.
        most: the rank that is known to keep it, or beyond which none is tried.
        first: the largest to try of the halves.
        unit: what ranks are multiples of.
    """
    kept, lost = most, first // unit * unit
    while lost and keeps(lost):
        kept, lost = lost, lost // 2 // unit * unit
    while (middle := (kept + lost) // 2 // unit * unit) > lost:
        kept, lost = (middle, lost) if keeps(middle) else (kept, middle)


def _scored(
    dim: int | None, path: Path, whole: Resized | None, session: Session, scorer: Scorer, bars: Bars
) -> Resized:
    """A file as it is read back, scored."""
    session.context.adapter.load(read_lora(path, session.context.model))
    card: Scorecard = session.score(scorer, bars)
    kept = whole is None or (card.score.value >= whole.score.low and set(card.broken) <= set(whole.broken))
    return Resized(dim, path, card.score, card.broken, kept)


def smallest_kept(found: list[Resized]) -> Resized | None:
    """The smallest rank down to which every one tried keeps the score; None where not even the largest does."""
    smaller = found[1:]
    kept = next((i for i, one in enumerate(smaller) if not one.kept), len(smaller))
    return smaller[kept - 1] if kept else None


def _in_words(score: Estimate) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def _as_dict(one: Resized) -> dict[str, object]:
    return {
        "dim": one.dim,
        "path": str(one.path),
        "megabytes": round(one.megabytes, 3),
        "score": one.score.as_dict(),
        "broken_constraints": one.broken,
        "kept": one.kept,
    }


def print_resized(found: list[Resized]) -> None:
    """A line a rank, and what is offered."""
    table = Table("dim", "MB", "score", "", box=None)
    for one in found:
        verdict = "whole" if one.dim is None else ("keeps it" if one.kept else "loses")
        broken = f", breaks {', '.join(one.broken)}" if one.broken else ""
        table.add_row(str(one.dim or ""), f"{one.megabytes:.2f}", _in_words(one.score), verdict + broken)
    Console().print(table)
    best, whole = smallest_kept(found), found[0]
    if best is None:
        tried = ", ".join(str(one.dim) for one in found[1:])
        print(
            f"of the ranks tried ({tried}) none keeps the score within its interval; {whole.path} stays the one to use"
        )
    else:
        sizes = f"{best.megabytes:.2f} of {whole.megabytes:.2f} MB"
        print(f"smallest that keeps the score: dim {best.dim}, {sizes}\n{best.path}")
