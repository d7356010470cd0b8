"""Scores LoRA files made anywhere: one, or all of a folder ranked, with a picture grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Table

from autolora import config as cfg
from autolora.adapters.base import State
from autolora.adapters.read import lora_of, read_lora
from autolora.commands.output import Output
from autolora.errors import ConfigError, ExportError, Unmeasurable
from autolora.evaluation.samples import labelled
from autolora.evaluation.session import final_scorer, open_session
from autolora.files import atomic_path, finished, write_atomic
from autolora.models.load import load_model
from autolora.prepare.regularization import suggest_regularization
from autolora.progress import Bars
from autolora.sampling import Images
from autolora.scoring.diagnosis import remedy
from autolora.scoring.probes import EvalPrompt
from autolora.scoring.scorecard import Scorecard, embed, render_probes
from autolora.scoring.scorecard import score as score_renders
from autolora.scoring.scorer import Scorer
from autolora.scoring.standard_metrics import standard_metrics
from autolora.train.run import Run

SHOWN = {"trigger": 3, "novel": 2, "class_only": 2, "class_context": 1}  # pictures of the grid by probe group


@dataclass(frozen=True)
class Scored:
    """One file's scorecard and its row of the picture grid."""

    path: Path
    card: Scorecard
    pictures: Images
    usual: dict[str, float]  # what others choose by, at the recommended weight; nothing is decided by it

    @property
    def remedy(self) -> str:
        """What may help against its gravest fault."""
        return remedy(self.card.constraints, [suggest_regularization(self.card.bleed_by_prompt).summary])

    def as_dict(self) -> dict[str, Any]:
        """The schema of `result.json`'s `best`."""
        card = self.card
        return {
            "trial": None,
            "recipe": self.path.name,
            "step": None,
            "weight": card.weight,
            "score": card.score.as_dict(),
            "terms": {name: term.as_dict() for name, term in card.terms.items()},
            "broken_constraints": card.broken,
            "verdict": card.verdict,
            "remedy": self.remedy,
            "unmeasurable": card.unmeasurable,
            "leaks": card.bleed_by_prompt,
            "usual": self.usual,
        }


def find_files(lora: str) -> list[Path]:
    """The file, the folder's .safetensors files, or those that a pattern such as ~/epochs/*.safetensors matches.

    Raises:
        ConfigError: there is none.
    """
    path = Path(lora).expanduser()
    if path.is_dir():
        found = finished(path.glob("*.safetensors"))
    elif "*" in path.name and not path.exists():
        found = finished(path.parent.glob(path.name))
    else:
        return [path]
    if not found:
        raise ConfigError(f"lora={lora}: there is no .safetensors file; give a LoRA file or a folder of them")
    return found


def read_files(config: DictConfig, files: Sequence[Path]) -> tuple[dict[Path, State], dict[Path, str]]:
    """Every file as an adapter state, and why the others cannot be read.

    Raises:
        ExportError: none can be.
    """
    model = load_model(cfg.model_settings(config))
    states, refused = {}, {}
    for path in files:
        try:
            states[path] = read_lora(path, model)
        except ExportError as error:
            refused[path] = str(error).replace(str(path), path.name)
            if len(files) == 1:
                raise
    if not states:
        raise ExportError(f"none of {len(files)} files can be read: {next(iter(refused.values()))}")
    return states, refused


def score_files(config: DictConfig, states: Mapping[Path, State], progress: Bars) -> tuple[list[Scored], Images]:
    """Every file scored on one workbench, the best first; and the base model's row of the grid."""
    runs = [Run(path.name, adapter=lora_of(state)) for path, state in states.items()]
    with progress as bars:
        session = open_session(config, runs, bars)
        if session.scorer is None:
            raise Unmeasurable(session.unmeasured)
        scorer = final_scorer(
            session.scorer, session, bars
        )  # as a study's last word, so that an export scores here as it did there
        shown = _shown(scorer)
        found = []
        for path, state in states.items():
            session.context.adapter.load(state)
            with bars.task(f"rendering {path.name}", scorer.renders) as advance:
                pictures = render_probes(scorer, session.context.model, session.context.adapter, advance)
            embedded = embed(scorer, pictures)
            card = score_renders(scorer, pictures, embedded)
            row = np.stack([pictures[probe, card.weight][0] for probe in shown])
            found.append(Scored(path, card, row, standard_metrics(scorer, pictures, embedded, card.weight)))
    base = np.stack([scorer.base_pictures[probe][0] for probe in shown])
    return sorted(found, key=lambda one: one.card.objective, reverse=True), base


def _shown(scorer: Scorer) -> list[EvalPrompt]:
    groups = {group: scorer.of(group) for group in SHOWN}
    return [probe for group, count in SHOWN.items() for probe in groups[group][:count]]


def grid(found: Sequence[Scored], base: Images) -> Image.Image:
    """A row of pictures for the base model and for each file at its recommended weight, under its name."""
    rows = [("base model", base), *((f"{one.path.stem}, weight {one.card.weight:g}", one.pictures) for one in found)]
    return labelled(rows)


def _terms(card: Scorecard) -> Table:
    table = Table("", "value", "95% interval", box=None)
    for name, term in {"score": card.score, **card.terms}.items():
        table.add_row(name, f"{term.value:.3f}", f"{term.low:.3f} to {term.high:.3f}")
    table.add_row("weight", f"{card.weight:g}", "recommended")
    return table


def _ranking(found: Sequence[Scored]) -> Table:
    table = Table("", "file", "score", "interval", "fidelity", "editab.", "bleed", "weight", box=None)
    for place, one in enumerate(found, 1):
        score, terms = one.card.score, one.card.terms
        shown = (f"{terms[name].value:.2f}" for name in ("fidelity", "editability", "bleed_class"))
        interval = f"{score.low:.2f} to {score.high:.2f}"
        table.add_row(str(place), one.path.name, f"{score.value:.3f}", interval, *shown, f"{one.card.weight:g}")
    return table


def print_table(found: Sequence[Scored], refused: Mapping[Path, str]) -> None:
    """One file's terms, or the ranking of several by what decides; the rest is in `score.json`."""
    Console().print(_terms(found[0].card) if len(found) == 1 else _ranking(found))
    for one in found:
        usual = ", ".join(f"{name} {value:.3f}" for name, value in one.usual.items())
        print(f"{one.path.name}: {one.card.verdict}" + (f". Try {one.remedy}" if one.remedy else ""))
        print(f"  what others choose by: {usual}")
    for reason in refused.values():
        print(f"not scored: {reason}")


def score(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Score LoRA files against a dataset; `score.json` and `score.png` go beside them or into `out`.

    One file writes one object, several write a list, the best first.
    """
    if not config.lora:
        raise ConfigError("no LoRA given: add lora=FILE.safetensors, or lora=FOLDER to rank all files in it")
    output, files = Output.of(config), find_files(str(config.lora))
    states, refused = read_files(config, files)
    found, base = score_files(config, states, output.bars())
    out = Path(str(config.out)).expanduser() if config.out else files[0].parent
    content = [one.as_dict() for one in found]
    write_atomic(out / "score.json", json.dumps(content if len(files) > 1 else content[0], indent=2))
    with atomic_path(out / "score.png") as temporary:
        grid(found, base).save(temporary, format="PNG")

    def show() -> None:
        if not output.quiet:
            print_table(found, refused)
        print(f"{out / 'score.json'}\n{out / 'score.png'}")

    output.last(show, {"files": content, "refused": {str(path): reason for path, reason in refused.items()}})
    return 0
