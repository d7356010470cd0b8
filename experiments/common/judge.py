"""What the oracle says of one LoRA of a character, and how it looks."""

from __future__ import annotations

import torch
from PIL import Image

from autolora import config as cfg
from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.read import lora_of
from autolora.models.base import BaseModel
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from experiments.live.quickstart import WEIGHTS, Judge
from experiments.replay.bank import FIRST_SEED, character_of, oracle_figures


def valued(
    state: State, seed: int, model: BaseModel, renders: int, searching: bool = False, first_seed: int = FIRST_SEED
) -> tuple[dict[str, float], Image.Image]:
    """The oracle's figures by the names that the bank has, and a strip of pictures at weight 1.

    Args:
        state: the LoRA.
        seed: the character's.
        model: the base.
        renders: per rate and weight.
        searching: with the few steps of a search, as in the bank.
        first_seed: of the renders; the bank's, if not given.
    """
    scoring = cfg.scoring_settings(cfg.compose("tune", [], "quickstart"))
    settings = cfg.model_settings(cfg.compose("train", [])).render
    adapter = attach(model.modules, lora_of(state))
    adapter.start(0, lora_of(state), torch.Generator().manual_seed(0))
    adapter.load(state)
    judge = Judge(model, adapter, AttributeClassifier(), character_of(seed), renders)
    found: dict[str, float] = {}
    for weight in WEIGHTS:
        steps = settings.search if searching else settings
        asked = oracle_figures(judge, scoring.outfit_prompts, steps, weight, first_seed)
        found |= {f"{name}@{weight:g}": value for name, value in asked.items()}
    strip = Image.fromarray(judge.strip(state, 1.0))
    adapter.detach()
    return found, strip
