"""The replay bank's recipes, and the session in which its checkpoints are trained, rendered and measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from autolora.data.concepts import load_dataset
from autolora.evaluation.session import Session, open_session
from autolora.models.settings import RenderSettings
from autolora.progress import Bars
from autolora.sampling import BaseRenders
from autolora.scoring.eval_prompts import DECIDING_GROUPS
from autolora.scoring.scorecard import Rendered
from autolora.scoring.scorer import Scorer, with_fresh_prompts
from autolora.study.definition import define_study
from autolora.study.space import suggest
from autolora.train.run import Run
from experiments.common.seeds import ensure_dataset
from experiments.common.training import settings_of
from experiments.replay.bank_rows import SPACE

CHECKPOINTS = 6  # of each recipe


@dataclass(frozen=True)
class Recipe:
    """One recipe of the bank: its number, its values and the training run that they make."""

    number: int
    values: dict[str, Any]
    run: Run


def recipes(count: int, overrides: tuple[str, ...]) -> list[Recipe]:
    """Return the baselines of the bank's space, then random draws from it: the same recipes for every character."""
    definition = define_study(settings_of(*overrides, study=SPACE))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for recipe, values in definition.default_values.items():
        study.enqueue_trial({"recipe": recipe, **{f"{recipe}/{key}": value for key, value in values.items()}})
    drawn = []
    for number in range(count):
        recipe, values = suggest(study.ask(), definition.space)
        run = with_checkpoints(definition.run, recipe, values)
        drawn.append(Recipe(number, {"recipe": recipe, **values}, run))
    return drawn


def with_checkpoints(make_run: Callable[[str, dict[str, Any]], Run], recipe: str, values: dict[str, Any]) -> Run:
    """Return a recipe's run that shows as many images in all, but in CHECKPOINTS epochs.

    Args:
        make_run: composes a run of a recipe and its values.
        recipe: the name of the recipe.
        values: the values of some of its keys.
    """
    run = make_run(recipe, values)
    assert run.train.images_per_concept is not None
    per_epoch = max(1, round(run.train.images_per_concept * run.train.epochs / CHECKPOINTS))
    return make_run(recipe, {**values, "train.epochs": CHECKPOINTS, "train.images_per_concept": per_epoch})


def overrides_of(seed: int, out: Path) -> tuple[str, ...]:
    """Return the overrides that point the bank's space at a character."""
    batch_size = 256 if torch.cuda.is_available() else 32  # large batches suit a GPU: the model is very small
    places = (f"dataset.path={out / str(seed) / 'pictures'}", f"cache={out / 'cache'}")
    return (*places, f"model.render.batch_size={batch_size}")


def open_character(seed: int, out: Path, runs: list[Run]) -> Session:
    """Draw the character's images if they are not there, and open a session that its runs share."""
    ensure_dataset(out / str(seed) / "pictures", seed)
    settings = settings_of(*overrides_of(seed, out), study=SPACE)
    with Bars() as bars:
        return open_session(settings, load_dataset(settings.dataset), runs, bars)


def whole_suite(session: Session, settings: RenderSettings) -> Scorer:
    """Return the score with every group of evaluation prompts at every LoRA weight, with seeds that no study uses."""
    assert session.scorer is not None, session.unmeasured
    context = session.context
    renders = BaseRenders(context.model, settings, session.renders.folder)
    return with_fresh_prompts(session.scorer, context.dataset, renders, context.adapter, 1)


def kept_suite(session: Session) -> Scorer:
    """Return the score whose renders the bank keeps: all prompts that count, in the denoising steps of a search."""
    return whole_suite(session, session.render_settings.search).only(*DECIDING_GROUPS)


def checkpoints_of(seed: int, out: Path) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Yield every checkpoint that did not diverge: its path without a suffix, its recipe and its training figures."""
    for path in sorted((out / str(seed)).glob("*/facts.json")):
        facts = json.loads(path.read_text("utf-8"))
        for fact in facts["checkpoints"]:
            if not fact["diverged"]:
                yield path.parent / str(fact["step"]), facts["values"], fact


def load_renders(scorer: Scorer, path: Path) -> Rendered:
    """Return a checkpoint's renders of the kept suite, as `render_eval_prompts` returned them."""
    keys = [(prompt, weight) for prompt in scorer.prompts for weight in scorer.settings.weights]
    stored = np.load(path.with_suffix(".npz"))["pictures"]
    return dict(zip(keys, np.split(stored, np.cumsum([len(p.seeds) for p, _ in keys])[:-1]), strict=True))
