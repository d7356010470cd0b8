"""Scores LoRA files of any trainer in one session, so that their scores can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora.adapters.base import State
from autolora.adapters.read import lora_of, read_lora, unread
from autolora.errors import ConfigError, ExportError, Unmeasurable
from autolora.evaluation.samples import labelled
from autolora.evaluation.session import Session, final_scorer
from autolora.files import expand_user, finished
from autolora.models.base import BaseModel
from autolora.prepare.regularization import suggest_regularization
from autolora.progress import Bars
from autolora.sampling import Images
from autolora.scoring.diagnosis import remedy
from autolora.scoring.scorecard import Scorecard, embed, render_eval_prompts, score
from autolora.scoring.scorer import Scorer
from autolora.scoring.standard_metrics import standard_metrics
from autolora.train.run import Run

GRID_PROMPTS = {"trigger": 3, "novel": 2, "class_only": 2, "class_context": 1}  # prompts in the grid, by prompt group


@dataclass(frozen=True)
class ScoredFile:
    """A LoRA file with its scorecard and its row of the image grid."""

    path: Path
    scorecard: Scorecard
    renders: Images  # one of each prompt in the grid, at the recommended weight
    base_renders: Images  # the base model's, with the same seeds
    metrics: dict[str, float]  # the standard metrics at the recommended weight; they do not decide the rank

    @property
    def remedy(self) -> str:
        """What may help against the file's most serious fault; empty without one."""
        scorecard = self.scorecard
        return remedy(scorecard.constraints, [suggest_regularization(scorecard.bleed_by_prompt).summary])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the schema of `best` in `result.json`."""
        scorecard = self.scorecard
        return {
            "trial": None,
            "recipe": self.path.name,
            "step": None,
            "weight": scorecard.weight,
            "score": scorecard.score.as_dict(),
            "terms": {name: term.as_dict() for name, term in scorecard.terms.items()},
            "broken_constraints": scorecard.broken,
            "verdict": scorecard.verdict,
            "remedy": self.remedy,
            "unmeasurable": scorecard.unmeasurable,
            "leaks": scorecard.bleed_by_prompt,
            "usual": self.metrics,
        }


def find_lora_files(place: str) -> list[Path]:
    """List the .safetensors files of a folder or of a pattern such as ~/epochs/*.safetensors, or one file itself.

    Raises:
        ConfigError: the folder or the pattern has no such file.
    """
    path = expand_user(place)
    if path.is_dir():
        files = finished(path.glob("*.safetensors"))
    elif "*" in path.name and not path.exists():
        files = finished(path.parent.glob(path.name))
    else:
        return [path]
    if not files:
        raise ConfigError(f"lora={place}: there is no .safetensors file; give a LoRA file or a folder of them")
    return files


def read_lora_files(files: Sequence[Path], model: BaseModel) -> tuple[dict[Path, State], dict[Path, str]]:
    """Read files as adapters of a model.

    Returns:
        The adapters, and the reason for each file that cannot be read.

    Raises:
        ExportError: no file can be read.
    """
    states: dict[Path, State] = {}
    refused: dict[Path, str] = {}
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


def unread_in(files: Iterable[Path], model: BaseModel) -> dict[Path, str]:
    """What files change that autolora does not read, so that their scores do not cover it."""
    return {path: text for path in files if (text := unread(path, model))}


def runs_of_files(states: Mapping[Path, State]) -> list[Run]:
    """The runs to open a session with, so that its adapter can hold each of the files."""
    return [Run(path.name, adapter=lora_of(state)) for path, state in states.items()]


def score_lora_files(session: Session, states: Mapping[Path, State], bars: Bars) -> list[ScoredFile]:
    """Score every file as the finals of a study do, and return them with the best first.

    Args:
        session: opened with `runs_of_files(states)`.
        states: the adapters by file.
        bars: where progress is shown.

    Raises:
        Unmeasurable: nothing can be scored on this dataset.
    """
    if session.scorer is None:
        raise Unmeasurable(session.unmeasured)
    scorer = final_scorer(session.scorer, session, bars)
    results = [_score_file(path, state, session, scorer, bars) for path, state in states.items()]
    return sorted(results, key=lambda result: result.scorecard.objective, reverse=True)


def _score_file(path: Path, state: State, session: Session, scorer: Scorer, bars: Bars) -> ScoredFile:
    model, adapter = session.context.model, session.context.adapter
    adapter.load(state)
    with bars.task(f"rendering {path.name}", scorer.num_renders) as advance:
        renders = render_eval_prompts(scorer, model, adapter, advance)
    embeddings = embed(scorer, renders)
    scorecard = score(scorer, renders, embeddings)
    prompts = [prompt for group, count in GRID_PROMPTS.items() for prompt in scorer.select(group)[:count]]
    return ScoredFile(
        path,
        scorecard,
        renders=np.stack([renders[prompt, scorecard.weight][0] for prompt in prompts]),
        base_renders=np.stack([scorer.base_renders[prompt][0] for prompt in prompts]),
        metrics=standard_metrics(scorer, renders, embeddings, scorecard.weight),
    )


def comparison_grid(results: Sequence[ScoredFile]) -> Image.Image:
    """A labelled row of renders for the base model and for each file at its recommended weight."""
    rows = [("base model", results[0].base_renders)]
    rows += [(f"{result.path.stem}, weight {result.scorecard.weight:g}", result.renders) for result in results]
    return labelled(rows)
