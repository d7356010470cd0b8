"""What does packing save? LoRA steps per second, several at once on one base model and one after the other by peft.

    python -m experiments.speed.packing --batch-sizes 1 4 --arms plain 1 2 4 8 --workers 1 2
    python -m experiments.speed.packing --model sd15 --batch-sizes 1 --arms plain compiled 1 2 4 8  # on a GPU

An arm is `plain` (diffusers and peft), `compiled` (the same with torch.compile), or the number of LoRAs that autolora
trains at once. A trial-step is one optimizer step of one LoRA. Workers are processes of one thread each that run at the
same time, as the workers of a study do. On a CPU the processor time of the worker is measured, so that other processes
change the result little. Rounds of all arms alternate, so that the load of the machine affects all alike; medians are
compared. An arm that runs out of memory is reported and left out. Writes
experiments/results/speed/packing-MODEL.json and packing-MODEL.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from autolora.files import write_atomic
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.provenance import provenance
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, table_head, table_row
from experiments.full_size.random_models import MODELS, random_model
from experiments.speed.loops import Inputs, Steps, our_loop, plain_loop, stored

CACHE = Path("runs/.cache/latents")
Arm = tuple[str, int]  # its name and its batch size
Figures = dict[str, float]


def base_model(name: str, resolution: int | None) -> Any:
    """Return the packaged model, or one of full size with random weights: speed and memory do not depend on them."""
    if name == "paperdoll":
        return load_model(ModelSettings(resolution=resolution))
    family, pixels = MODELS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return random_model(family, resolution or pixels, "bfloat16", device)


def build(arm: str, model: Any, inputs: Inputs, dim: int, batch_size: int) -> Steps:
    """Return the loop of an arm."""
    if arm.isdigit():
        return our_loop(model, CACHE, dim, batch_size, int(arm))
    return plain_loop(model, inputs, dim, batch_size, compiled=arm == "compiled")


def work(orders: Connection, args: argparse.Namespace) -> None:
    """Run orders of (arm, batch size, steps) until None comes, and send back seconds and GiB, or an error.

    Args:
        orders: the connection to the parent process.
        args: the arguments of the command line.
    """
    torch.set_num_threads(args.threads)
    model = base_model(args.model, args.resolution)
    cuda, loops, resident = model.device.type == "cuda", dict[Arm, Steps](), dict[Arm, int]()
    clock = time.perf_counter if cuda or args.threads > 1 else time.process_time
    inputs = stored(model, CACHE)
    while (order := orders.recv()) is not None:
        arm, batch_size, steps = order
        key = arm, batch_size
        try:
            before = torch.cuda.memory_allocated() if cuda else 0
            if key not in loops:
                loops[key] = build(arm, model, inputs, args.dim, batch_size)
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began, start = clock(), torch.cuda.memory_allocated() if cuda else 0
            loops[key](steps)
            if cuda:
                torch.cuda.synchronize()
            seconds = clock() - began
            resident.setdefault(key, torch.cuda.memory_allocated() - before if cuda else 0)
            peak = torch.cuda.max_memory_allocated() - start if cuda else 0
            orders.send((seconds, (resident[key] + peak) / 2**30))
        except torch.OutOfMemoryError:
            loops.pop(key, None)
            torch.cuda.empty_cache()
            orders.send("out of memory")


def measure(workers: int, args: argparse.Namespace) -> Iterator[dict[Arm, Figures]]:
    """Yield after every round the trial-steps per second of all workers together, and GiB of GPU memory per worker."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(workers)]
    processes = [context.Process(target=work, args=(theirs, args), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()
    arms = [(arm, size) for size in args.batch_sizes for arm in args.arms]
    rates: dict[Arm, list[float]] = {}
    memory: dict[Arm, float] = {}
    for number in range(args.rounds + 1):
        for key in list(arms):
            for ours, _ in pipes:
                ours.send((*key, args.steps))
            replies = [ours.recv() for ours, _ in pipes]
            if any(isinstance(reply, str) for reply in replies):
                print(f"{key}: {replies}", flush=True)
                arms.remove(key)
                continue
            trials = int(key[0]) if key[0].isdigit() else 1
            rate = sum(trials * args.steps / seconds for seconds, _ in replies)
            memory[key] = max(gib for _, gib in replies)
            print(f"round {number}, workers {workers}, {key}: {rate:.2f}/s, {memory[key]:.2f} GiB", flush=True)
            if number:  # the first round warms up
                rates.setdefault(key, []).append(rate)
        yield {key: {"trial-steps/s": statistics.median(values), "GiB": memory[key]} for key, values in rates.items()}
    for ours, _ in pipes:
        ours.send(None)
    for process in processes:
        process.join()


def table(measured: dict[int, dict[Arm, Figures]]) -> str:
    """Return one line per arm, with ratios to the plain loop and to one LoRA at a time with as many workers."""
    lines = table_head(
        "workers", "batch", "LoRAs at once", "trial-steps/s", "of plain peft", "of one at a time", "GiB per worker"
    )
    for workers, arms in measured.items():
        for (arm, size), figures in arms.items():
            rate = figures["trial-steps/s"]
            ratios = [
                f"{rate / arms[baseline, size]['trial-steps/s']:.2f}" if (baseline, size) in arms else ""
                for baseline in ("plain", "1")
            ]
            memory = f"{figures['GiB']:.2f}" if figures["GiB"] else ""
            lines.append(table_row(workers, size, arm, f"{rate:.2f}", *ratios, memory))
    return as_text(lines)


def write(measured: dict[int, dict[Arm, Figures]], args: argparse.Namespace) -> None:
    """Write what has been measured so far."""
    figures = [
        {"workers": workers, "batch size": size, "arm": arm} | {name: round(x, 3) for name, x in values.items()}
        for workers, arms in measured.items()
        for (arm, size), values in arms.items()
    ]
    settings = {name: getattr(args, name) for name in ("dim", "threads", "rounds", "steps")}
    result = provenance() | settings | {"figures": figures}
    write_atomic(args.out / f"packing-{args.model}.json", json.dumps(result, indent=2) + "\n")
    write_atomic(args.out / f"packing-{args.model}.md", table(measured))


def main() -> None:
    """Measure, print and write the ratios."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", choices=["paperdoll", *MODELS], default="paperdoll")
    parser.add_argument("--resolution", type=int, help="pixels; the model's own by default")
    parser.add_argument("--arms", nargs="+", default=["plain", "1", "2", "4", "8"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results.RESULTS / "speed")
    args = parser.parse_args()
    measured: dict[int, dict[Arm, Figures]] = {}
    for workers in args.workers:
        for figures in measure(workers, args):
            measured[workers] = figures
            write(measured, args)
    print(table(measured))


if __name__ == "__main__":
    main()
