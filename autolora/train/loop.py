"""The training loop: it yields slots at their checkpoints and knows nothing of studies, scores or reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from autolora import stop
from autolora.train.checkpoint import Checkpoint
from autolora.train.run import Run
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from autolora.train.step import train_step


def train(
    next_job: Callable[[], Job | None],
    context: TrainingContext,
    on_step: Callable[[TrainingSlot], None] | None = None,
) -> Iterator[list[TrainingSlot]]:
    """Train jobs in every slot of the context's adapter set; yield the slots that reached a checkpoint.

    A job that continues from a checkpoint yields its slot at once, before any step, because the caller may not have
    acted on that checkpoint yet. Training ends when every slot is free and `next_job` returned None.

    Args:
        next_job: called for each free slot, which is one whose run has ended or was stopped by `slot.stop()`; None
            means that there are no more jobs.
        context: what all slots share.
        on_step: called for each slot after each optimizer step.
    """
    active: dict[int, TrainingSlot] = {}
    exhausted = False
    while True:
        for index in range(context.adapter.slots):
            if index not in active and not exhausted:
                job = next_job()
                exhausted = job is None
                if job is not None:
                    active[index] = TrainingSlot(index, job, context)
                    if job.resume:
                        yield [active[index]]
        active = {index: slot for index, slot in active.items() if not slot.stopped}
        if not active and exhausted:
            return
        if not active:
            continue
        stop.check()
        began = time.perf_counter()
        train_step(context, active)
        for slot in active.values():
            slot.seconds += (time.perf_counter() - began) / len(active)
            if on_step:
                on_step(slot)
        ready = [slot for slot in active.values() if not slot.stopped and slot.is_checkpoint_due()]
        for slot in ready:
            slot.make_checkpoint()
        if ready:
            yield ready
            active = {index: slot for index, slot in active.items() if not slot.stopped}


def train_one(run: Run, context: TrainingContext) -> Iterator[Checkpoint]:
    """Train one run from its start to its end in a context of one slot; yield its checkpoints."""
    jobs = iter([Job(run)])
    for (slot,) in train(lambda: next(jobs, None), context):
        assert slot.checkpoint is not None
        yield slot.checkpoint
