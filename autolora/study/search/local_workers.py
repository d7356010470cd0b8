"""Worker processes on this machine, one per visible GPU or per core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from autolora.progress import Bars
from autolora.study.definition import StudyDefinition

STOPPING_SECONDS = 60.0  # in which a worker must release its trial


def count_workers(workers: int | str) -> int:
    """The number of workers to start: `auto` means one per visible GPU, without any one per core."""
    return workers if isinstance(workers, int) else len(visible_gpus()) or cores()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def environments(count: int) -> list[dict[str, str]]:
    """The extra environment variables of each of `count` workers: its GPU, or its share of the cores."""
    gpus = visible_gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} for place in range(count)]
    return [{"OMP_NUM_THREADS": str(max(1, cores() // count))}] * count


@contextmanager
def local_workers(definition: StudyDefinition, count: int, bars: Bars) -> Iterator[None]:
    """Start workers; this process is the first of them. If the block ends in an error, the others are stopped."""
    first, *others = environments(count)
    if count > 1 and "OMP_NUM_THREADS" in first and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(first["OMP_NUM_THREADS"]))
    processes = [_start(definition, number, added) for number, added in enumerate(others, 2)]
    patience = None  # without an error all workers end by themselves
    try:
        yield
    except BaseException:
        patience = STOPPING_SECONDS
        for process in processes:
            process.terminate()
        raise
    finally:
        _gather(processes, patience, definition, bars)


def worker_command(definition: StudyDefinition) -> list[str]:
    """The command line that joins a study from the same folder; the storage is passed in the environment."""
    arguments = [argument for argument in definition.arguments if not argument.startswith("workers=")]
    return [sys.executable, "-P", "-m", "autolora.cli", "worker", definition.source, *arguments]


def _start(definition: StudyDefinition, number: int, added: dict[str, str]) -> subprocess.Popen[bytes]:
    storage = {"AUTOLORA_STORAGE": definition.settings.storage} if definition.settings.storage else {}
    log = definition.folder / "workers" / f"{number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        environment = {**os.environ, **added, **storage}
        return subprocess.Popen(worker_command(definition), env=environment, stdout=out, stderr=out)


def _gather(
    processes: Sequence[subprocess.Popen[bytes]], patience: float | None, definition: StudyDefinition, bars: Bars
) -> None:
    for number, process in enumerate(processes, 2):
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code not in (0, 130):
            bars.log(
                f"worker {number} ended with code {code}: {definition.folder / 'workers' / f'{number}.log'} says why"
            )
