"""Less memory for a step that does not fit into the GPU's, and settings that would help."""

from __future__ import annotations

import gc
import math

import torch

from autolora.models.base import BaseModel
from autolora.optim.optimizers import AdamW, AdamW8bit
from autolora.train.run import Run


def reduce_memory_use(model: BaseModel, micro_batch_size: int) -> tuple[int, str] | None:
    """Take the next measure that trains the same with less memory; results change by rounding only.

    Args:
        model: gets gradient checkpointing, if it is not on already.
        micro_batch_size: how many images of a batch pass through the model at once now.

    Returns:
        The new micro-batch size and a sentence about what changed; None if no measure is left.
    """
    gc.collect()  # reference cycles of the failed step's graph still hold its tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if model.enable_gradient_checkpointing():
        return micro_batch_size, (
            "the GPU's memory is full: gradient checkpointing is on from now on, which is slower; "
            "model.gradient_checkpointing=true turns it on from the start"
        )
    if micro_batch_size > 1:
        smaller = math.ceil(micro_batch_size / 2)
        return smaller, (
            f"the GPU's memory is full: batches are split into micro-batches of {smaller} from now on, with the same "
            "result; a smaller train.batch_size avoids that"
        )
    return None


def memory_suggestions(run: Run, model: BaseModel) -> list[str]:
    """Return settings that need less memory, those with the smallest drawbacks first."""
    suggestions = []
    if model.settings.offload is False:
        suggestions.append("model.offload=true")
    if not model.settings.gradient_checkpointing:
        suggestions.append("model.gradient_checkpointing=true")
    if run.train.batch_size > 1:
        suggestions.append(f"train.batch_size={run.train.batch_size // 2}")
    if isinstance(run.optimizer, AdamW) and not isinstance(run.optimizer, AdamW8bit):
        suggestions.append("optimizer=adamw8bit")
    if model.dtype == torch.float32:
        suggestions.append("model.dtype=bfloat16")
    return [*suggestions, f"a model.resolution below {model.resolution}"]
