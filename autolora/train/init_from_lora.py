"""Training that starts from a LoRA file, `init_lora=FILE`, instead of from nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.formats import layer_weights
from autolora.adapters.initialize import start_from
from autolora.adapters.read import read_lora
from autolora.errors import ConfigError
from autolora.models.base import BaseModel
from autolora.train.run import Run


def starting_state(run: Run, fresh: State, model: BaseModel) -> State:
    """A run's fresh adapter, changed to what its `init` file holds.

    Raises:
        ExportError: the file cannot be read, or was made for another base model.
        ConfigError: the run's adapter cannot hold it exactly.
    """
    if run.init_lora is None:
        return fresh
    given = read_lora(Path(run.init_lora.path), model)
    try:
        return start_from(fresh, given, layer_weights(model.modules), ordered=run.adapter.n_ranks > 1)
    except ConfigError as error:
        raise ConfigError(f"init_lora={run.init_lora.path} with recipe {run.name}: {error}") from error


def check_start(run: Run, model: BaseModel) -> None:
    """Refuse a run that cannot start from its `init` file, before any time is spent; `model` has no adapter yet.

    Raises:
        ConfigError, ExportError: as `starting_state`.
    """
    if run.init_lora is None:
        return
    adapter = attach(model.modules, run.adapter)
    try:
        adapter.start(0, run.adapter, torch.Generator().manual_seed(run.train.seed))
        starting_state(run, adapter.state(0), model)
    finally:
        adapter.detach()
