"""What is done, and said, where the GPU's memory is too small for a step."""

from __future__ import annotations

import gc
import math

import torch

from autolora.models.base import BaseModel
from autolora.optim.optimizers import AdamW, AdamW8bit
from autolora.train.run import Run


def reduce_memory_use(model: BaseModel, at_once: int) -> tuple[int, str] | None:
    """The next way to train the same in less memory, with the same numbers to within rounding.

    Args:
        model: whose layers are computed again on the way back from now on, if they are not already.
        at_once: pictures of a batch that pass the model together so far.

    Returns:
        how many pass together now, and what changed in words; None where nothing is left to try.
    """
    gc.collect()  # what failed is still held together by the cycles of its graph
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if model.enable_gradient_checkpointing():
        return at_once, (
            "the GPU's memory is full: layers are computed again on the way back from now on, which is slower; "
            "model.gradient_checkpointing=true does so from the start"
        )
    if at_once > 1:
        fewer = math.ceil(at_once / 2)
        return fewer, (
            f"the GPU's memory is full: batches pass the model in parts of {fewer} from now on, with the same result; "
            "a smaller train.batch_size does not need that"
        )
    return None


def memory_suggestions(run: Run, model: BaseModel) -> list[str]:
    """Settings that would take less memory, the cheapest first."""
    found = []
    if model.settings.offload is False:
        found.append("model.offload=true")
    if not model.settings.gradient_checkpointing:
        found.append("model.gradient_checkpointing=true")
    if run.train.batch_size > 1:
        found.append(f"train.batch_size={run.train.batch_size // 2}")
    if isinstance(run.optimizer, AdamW) and not isinstance(run.optimizer, AdamW8bit):
        found.append("optimizer=adamw8bit")
    if model.dtype == torch.float32:
        found.append("model.dtype=bfloat16")
    return [*found, f"a model.resolution below {model.resolution}"]
