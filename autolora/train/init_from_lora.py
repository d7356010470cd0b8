"""Start training from a LoRA file (`init_lora=FILE`) instead of from a new adapter."""

from __future__ import annotations

from pathlib import Path

import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.formats import layer_weights
from autolora.adapters.initialize import start_from
from autolora.adapters.read import read_lora, unread
from autolora.errors import ConfigError
from autolora.models.base import BaseModel
from autolora.train.run import Run


def starting_state(run: Run, fresh: State, model: BaseModel) -> State:
    """Return a run's new adapter with the changes of its `init_lora` file.

    Args:
        run: the run.
        fresh: its new adapter; returned unchanged if the run has no such file.
        model: the base model.

    Raises:
        ExportError: the file cannot be read, or was made for another base model.
        ConfigError: the run's adapter cannot represent the file exactly.
    """
    if run.init_lora is None:
        return fresh
    path = Path(run.init_lora.path)
    source = read_lora(path, model)
    if left_out := unread(path, model):
        raise ConfigError(f"init_lora={path} holds {left_out}, which no adapter here can start from: remove them first")
    try:
        return start_from(fresh, source, layer_weights(model.modules), ordered=run.adapter.n_ranks > 1)
    except ConfigError as error:
        raise ConfigError(f"init_lora={run.init_lora.path} with recipe {run.name}: {error}") from error


def check_start(run: Run, model: BaseModel) -> None:
    """Refuse a run that cannot start from its `init_lora` file, before anything is trained.

    Args:
        run: the run.
        model: the base model, without an adapter.

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
